"""The command line: parsing, and one clear line for what goes wrong."""

import argparse
import errno
import io
import json
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import nn

from energytl import __version__
from energytl.analog.configure import analog_layers
from energytl.analog.held import conductances
from energytl.analog.remaining import left_digital
from energytl.cost.estimate import Cost, LayerCost
from energytl.device_fit import fit_device
from energytl.kept_trainings import first_training
from energytl.origin import with_line
from energytl.points import price
from energytl.quiet import quiet_libraries
from energytl.recipe import KEPT, Case, Recipe, RecipeError, read, recipe_help
from energytl.report import report
from energytl.results import whole_file
from energytl.results_page import results_page
from energytl.run import missing_data, prepare
from energytl.stages import analog_network, program
from energytl.study.quantities import QUANTITIES
from energytl.study.ray_cluster import run_on_ray
from energytl.study.report import TENSORBOARD, confirmed_report, search_report
from energytl.study.search import STUDY, Search, run_search, wanted_quantities
from energytl.study.settings import StudyError, read_study
from energytl.study.storage import HEARTBEAT_S
from energytl.tables import aligned, quantity
from energytl.workers import run_cases, waiting_last, wants_processes

PIPE_CLOSED, USAGE_ERROR, INTERRUPTED = 1, 2, 130

STDERR = 2
"""The file descriptor."""

GO_ON = {"run": "repeat the command with --resume", "search": "repeat the command"}
"""How commands that work for long go on from what is finished."""

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a disk without room."""

UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.EFBIG)
"""Errors of a place where files cannot be written, whatever room it has."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 if nobody reads on, 2 for what the user can mend, 130 after Ctrl-C."""
    quiet_libraries()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no µ still gets the table
    parser = _parser()
    given, overrides = parser.parse_known_args(arguments)
    try:
        if given.command == "report":
            if overrides:
                parser.error(f"unknown: {' '.join(overrides)}")
            if (given.folder / STUDY).is_file():
                print(search_report(given.folder, given.storage))
            elif given.storage:
                parser.error(f"--storage: {given.folder} is no folder of a search")
            else:
                print(report(given.folder, target=given.target))
            print(f"\n{given.folder / 'report.html'}")
            return 0
        if given.command == "results":
            if overrides:
                parser.error(f"unknown: {' '.join(overrides)}")
            print(results_page(given.folders, given.recipes, given.page or given.recipes / "RESULTS.md"))
            return 0
        if given.command == "device":
            if overrides:
                parser.error(f"unknown: {' '.join(overrides)}")
            print(fit_device(given.data, given.out))
            return 0
        if given.command == "search":
            sys.path[:0] = [str(given.study.parent), str(Path.cwd())]  # for a user's own modules
            return _search(given, overrides)
        if {"-h", "--help"} & set(overrides):
            _parser(given.command).print_help()
            print("\nkeys of a recipe, each of which can be overridden as --key.sub=value:\n")
            print(recipe_help())
            return 0
        asked = next(filter(None, (re.fullmatch(r"--([\w.]+)\.help(?:=(.+))?", word) for word in overrides)), None)
        if asked:
            print(recipe_help(*asked.groups()))
            return 0
        if given.recipe is None:
            raise RecipeError(f"{given.command} wants a recipe, a YAML file; --help lists its keys")
        sys.path[:0] = [str(given.recipe.parent), str(Path.cwd())]  # for a user's own modules
        cases = read(given.recipe, [word for word in overrides if word != "--print_config"])
        if "--print_config" in overrides:
            print("\n".join(f"# case {case.name}\n{case.as_yaml()}" for case in cases))
            return 0
        chosen = _chosen(cases, given.case)
        commands = {"run": _run, "check": _check, "cost": _cost, "export": _export}
        return commands[given.command](given, cases, chosen)
    except KeyboardInterrupt:
        again = f"; to go on, {GO_ON[given.command]}" if given.command in GO_ON else ""
        print(f"\nenergytl: interrupted{again}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # as `| head` closes it; Python's last flush must not fail, too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except Exception as error:
        if given.debug:
            traceback.print_exception(error)
        below_bars = "\n" if given.command in GO_ON else ""
        print(f"{below_bars}energytl: {with_line(error)}{_advice(error, given)}", file=sys.stderr)
        return USAGE_ERROR


def _advice(error: Exception, given: argparse.Namespace) -> str:
    """What to do about an error of the operating system, where its words do not say it."""
    if not isinstance(error, OSError):
        return ""
    place, name = getattr(given, "out", None), str(error.filename or "")
    ours = place is not None and (name == str(place) or place.resolve() in Path(name).resolve().parents)
    if error.errno in FULL:
        todo = "make room" if place is None else "make room or choose another place with --out"
    elif error.errno in UNWRITABLE and ours:
        todo = "choose another place with --out"
    else:
        return ""
    kept = "; what is finished is kept" if given.command in GO_ON else ""
    return f": {todo}, then {GO_ON.get(given.command, 'repeat the command')}{kept}"


@contextmanager
def _said_when_terminated(command: str) -> Iterator[None]:
    """While it is open, SIGTERM ends the program at once, with a line that says how to go on."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main one gets signals
        return

    def end(number: int, _: FrameType | None) -> None:
        again = f"; to go on, {GO_ON[command]}" if command in GO_ON else ""
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            os.write(STDERR, f"\nenergytl: terminated{again}\n".encode())  # it may have come within a print
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parser(command: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="energytl",
        description="How little energy keeps a network's accuracy on analog in-memory hardware?",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"energytl {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    texts = {
        "run": "train, evaluate and compare the cases of a recipe",
        "check": "say what would run: data, layers, cells, reads",
        "cost": "cells, reads, latency and energy, without training",
        "export": "the conductances of all cells, without training, as NumPy's .npz",
    }
    recipe_commands = {}
    for name, text in texts.items():
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False, add_help=False)
        sub.add_argument("recipe", type=Path, nargs="?", metavar="RECIPE", help="a YAML file")
        sub.add_argument("--case", action="append", metavar="NAME", help="only this case; may be repeated")
        recipe_commands[name] = sub
    run, cost = recipe_commands["run"], recipe_commands["cost"]
    run.add_argument("--out", type=Path, default=Path("logs"), metavar="DIR", help="where runs go (default: logs)")
    run.add_argument("--resume", action="store_true", help="go on where the same recipe stopped")
    run.add_argument("--workers", type=int, default=1, metavar="N", help="run so many cases at a time (default: 1)")
    export = recipe_commands["export"]
    export.add_argument("--out", type=Path, required=True, metavar="FILE.npz", help="where they are written")
    cost.add_argument("--json", action="store_true", help="plain numbers, for programs")
    finished = commands.add_parser("report", help="HTML, PNG and table from finished runs", allow_abbrev=False)
    finished.add_argument("folder", type=Path, metavar="FOLDER", help="of runs: logs/RECIPE, or logs/search/STUDY")
    finished.add_argument(
        "--target", type=float, metavar="ACCURACY", help="how soon training reached another accuracy, as 0.9"
    )
    finished.add_argument("--storage", metavar="URL", help="of a search whose trials lie in a database")
    _add_search(commands)
    page = commands.add_parser("results", help="a page of Markdown from several finished recipes", allow_abbrev=False)
    page.add_argument("folders", type=Path, nargs="+", metavar="logs/RECIPE", help="folders of runs, in their order")
    page.add_argument("--recipes", type=Path, default=Path("recipes"), metavar="DIR", help="where the recipes lie")
    page.add_argument("--page", type=Path, metavar="FILE", help="the page (default: RESULTS.md beside the recipes)")
    device = commands.add_parser("device", help="fit a device to measured pulses", allow_abbrev=False)
    actions = device.add_subparsers(dest="action", required=True)
    text = "a soft-bounds device from measured pulses, as YAML, and a figure of measured against fitted"
    fitting = actions.add_parser("fit", help=text, description=text, allow_abbrev=False)
    fitting.add_argument(
        "data",
        type=Path,
        metavar="DATA.csv",
        help="columns device,pulse,direction,conductance (uS); a row for every pulse",
    )
    fitting.add_argument("--out", type=Path, metavar="FILE", help="the figure, .png, .pdf or .svg (default: DATA.png)")
    for sub in (*commands.choices.values(), fitting):
        if sub is not device:
            sub.add_argument("--debug", action="store_true", help="show the traceback of what goes wrong")
    return recipe_commands[command] if command else parser


def _add_search(commands: Any) -> None:  # noqa: ANN401
    text = "find the front of accuracy and costs by varying a recipe; other --key.sub=value change the recipe"
    sub = commands.add_parser(
        "search", help="the Pareto front of accuracy and costs", description=text, allow_abbrev=False
    )
    sub.add_argument("study", type=Path, metavar="STUDY", help="a YAML file, as in search/")
    sub.add_argument("--trials", type=int, metavar="N", help="how many in all (default: what the study says)")
    sub.add_argument("--workers", type=int, metavar="N", help="processes on this machine (default: 1), or tasks of Ray")
    sub.add_argument(
        "--storage",
        metavar="URL",
        help="postgresql://… or grpc://… for several machines (default: a file beside the runs)",
    )
    sub.add_argument("--cluster", choices=["ray"], help="run trials as tasks of a Ray cluster")
    sub.add_argument("--heartbeat", type=int, default=HEARTBEAT_S, metavar="S", help="between a worker's signs of life")
    sub.add_argument(
        "--out", type=Path, default=Path("logs"), metavar="DIR", help="where runs go: DIR/search/STUDY (default: logs)"
    )


@_said_when_terminated("search")
def _search(given: argparse.Namespace, overrides: list[str]) -> int:
    """Search, measure the front again, report."""
    study = read_study(given.study, overrides)
    for name in ("trials", "workers", "heartbeat"):
        if getattr(given, name) is not None and getattr(given, name) < 1:
            raise StudyError(f"--{name} is {getattr(given, name)}; allowed: 1 or more")
    example = prepare(study.case(study.name, study.example()), needs_data=True)
    numbers = price(_analog(example), example.data, 1, example).numbers()
    for name in wanted_quantities(study.settings):
        if QUANTITIES[name].key in numbers:
            QUANTITIES[name].of(numbers)  # what is not modelled is found before anything trains
    folder = given.out / "search" / study.name
    trials = given.trials or study.settings.trials
    search = Search(study, folder, given.storage, trials, given.workers or 1, given.heartbeat)
    if given.cluster == "ray":
        run_on_ray(search, given.workers)
    else:
        run_search(search)
    print(confirmed_report(search))
    print(f"\n{folder / 'report.html'}; tensorboard --logdir '{folder / TENSORBOARD}'")
    return 0


def _chosen(cases: list[Case], names: list[str] | None) -> list[Case]:
    """The cases of these names; a name without its seed stands for all seeds."""

    def named(case: Case, name: str) -> bool:
        return case.name in (name, f"{name}, seed {case.settings.seed}")

    for name in names or []:
        if not any(named(case, name) for case in cases):
            raise RecipeError(f"--case: no case {name!r}; there are: {', '.join(case.name for case in cases)}")
    return [case for case in cases if names is None or any(named(case, name) for name in names)]


@_said_when_terminated("run")
def _run(given: argparse.Namespace, cases: list[Case], chosen: list[Case]) -> int:
    folder = given.out / given.recipe.stem
    if given.workers > 1 and any(wants_processes(case) for case in chosen):
        raise RecipeError("--workers is for cases of one process each: set trainer.devices and num_nodes to 1")
    if given.workers < 1:
        raise RecipeError(f"--workers is {given.workers}; allowed: 1 or more")
    trainings = []
    for case in chosen:
        recipe = prepare(case, needs_data=True)  # a wrong last case is found before the first one trains
        trainings.append(first_training(case, recipe) if given.workers > 1 else None)
    chosen = waiting_last(chosen, trainings)
    _make_folders(given.out, given.recipe, [case.name for case in chosen])
    run_cases({cases.index(case): case for case in chosen}, len(cases), folder, given.resume, given.workers)
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        return 0
    print(report(folder, [case.name for case in cases]))
    print(f"\n{folder / 'report.html'}; curves: tensorboard --logdir '{folder}'")
    return 0


def _make_folders(out: Path, recipe: Path, cases: list[str]) -> None:
    """Make the folders of a run, so that a place that cannot be written is found before anything trains.

    Raises:
        OSError: naming it.
        RecipeError: if the report's files or the runs would have the place of others.
    """
    folder = out / recipe.stem
    for name in ("summary.json", "report.html"):
        if (folder / name).is_dir():
            raise RecipeError(f"{folder / name} is a folder, but the report's file: remove it, or set another --out")
    for place in (folder, out / KEPT, *(folder / case for case in cases)):
        place.mkdir(parents=True, exist_ok=True)
        if not os.access(place, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))


def _check(given: argparse.Namespace, cases: list[Case], chosen: list[Case]) -> int:
    complete = True
    for case in chosen:
        recipe = prepare(case, needs_data=False)
        missing = missing_data(recipe)
        analog = _analog(recipe)
        left = left_digital(analog)
        cost = price(analog, recipe.data, 1, recipe)
        unread = [layer.name for layer in cost.layers if layer.positions == 0]
        print(f"{case.name}:")
        sizes = [len(getattr(recipe.data, f"{part}_set") or ()) for part in ("train", "test")]
        found = f"{type(recipe.data).__name__}, {sizes[0]} images to train, {sizes[1]} to test"
        print(f"  data: {missing or found}")
        print(f"  layers: {len(analog_layers(analog))} analog; left digital: {', '.join(left) or 'none'}")
        if unread:
            print(f"  never read: {', '.join(unread)}")
        trainings = {"pre-train": recipe.pretrain, **recipe.stages, "train": recipe.train}
        stages = [f"{name} {fit.epochs} epochs" for name, fit in trainings.items() if fit]
        print(f"  training: {', '.join(stages) or 'none'}")
        print(f"  cells: {cost.cells:,}; reads: {cost.reads:,}; latency: {quantity(cost.latency_s, 's')}")
        complete = complete and missing is None
    return 0 if complete else USAGE_ERROR


def _cost(given: argparse.Namespace, cases: list[Case], chosen: list[Case]) -> int:
    numbers = {}
    for case in chosen:
        recipe = prepare(case, needs_data=False)
        missing = recipe.data.present()
        analog = _analog(recipe)
        cost = price(analog, recipe.data, 1, recipe)
        numbers[case.name] = {**cost.numbers(), "layers": cost.rows()}
        if given.json:
            continue
        print(f"{case.name}: {'energies not modelled: ' + missing if missing else 'of the weights before training'}")
        rows: list[tuple[str, ...]] = [
            ("layer", "cells", "reads", "latency", "ρ (µS)", "energy (paper)", "cells' energy", "total energy")
        ]
        rows += [_cost_row(layer.name, f"{layer.rho:.3g}", layer) for layer in cost.layers]
        rows.append(_cost_row("all layers", "", cost))
        print(aligned(rows))
        print("not modelled: " + "; ".join(cost.not_modelled) + "\n")
    if given.json:
        print(json.dumps(numbers, indent=2, allow_nan=False))
    return 0


def _export(given: argparse.Namespace, cases: list[Case], chosen: list[Case]) -> int:
    """Write each array's conductances, with a layout that says what lies where."""
    if given.out.suffix != ".npz":
        raise RecipeError(f"--out is {given.out}; allowed: a file that ends with .npz")
    if given.out.exists():
        raise RecipeError(f"--out: {given.out} exists: choose another name, or remove it")
    arrays: dict[str, Any] = {}
    layout: dict[str, Any] = {"unit": "S", "axes": ["group", "row (im2col order)", "output", "cell"], "cases": {}}
    for case in chosen:
        recipe = prepare(case, needs_data=False)
        analog = _analog(recipe)
        program(recipe, analog)
        described = layout["cases"].setdefault(case.name, {})
        for name, parts in conductances(analog).items():
            keys = [f"{case.name}/{name or 'network'}/{number}" for number in range(len(parts))]
            arrays |= {key: part.numpy() for key, part in zip(keys, parts, strict=True)}
            hardware = analog_layers(analog)[name].hardware
            significances = hardware.mapping.with_idle_cells().significances(hardware.weights)
            described[name or "network"] = {"arrays": keys, "significances": list(significances)}
        print(f"{case.name}: {sum(len(layer['arrays']) for layer in described.values())} arrays of rows")
    with whole_file(given.out) as file:
        np.savez_compressed(file, layout=np.array(json.dumps(layout)), **arrays)
    print(given.out)
    return 0


def _analog(recipe: Recipe) -> nn.Module:
    return analog_network(recipe, recipe.network, recipe.hardware, recipe.data, recipe.seed, recipe.calibration)


def _cost_row(name: str, rho: str, cost: Cost | LayerCost) -> tuple[str, ...]:
    paper = "not modelled" if cost.energy_paper is None else f"{cost.energy_paper:.3g}"
    counts = f"{cost.cells:,}", f"{cost.reads:,}", quantity(cost.latency_s, "s")
    return name, *counts, rho, paper, quantity(cost.energy_cell_j, "J"), quantity(cost.energy_total_j, "J")


if __name__ == "__main__":
    sys.exit(main())
