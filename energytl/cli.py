"""The command line: parsing, and one clear line for what goes wrong."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

from filelock import FileLock
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import nn

from energytl.analog.convert import analog_layers
from energytl.analog.remaining import left_digital
from energytl.callbacks import DivergedError
from energytl.cost.estimate import Cost, LayerCost
from energytl.device_fit import fit_device
from energytl.points import price
from energytl.quiet import quiet_libraries
from energytl.recipe import Case, Recipe, RecipeError, read, recipe_parser, said_by
from energytl.report import report
from energytl.results_page import results_page
from energytl.run import missing_data, prepare
from energytl.stages import analog_network
from energytl.study.confirm import confirm_front, write_front
from energytl.study.quantities import QUANTITIES
from energytl.study.ray_cluster import run_on_ray
from energytl.study.report import STUDY, TENSORBOARD, search_report
from energytl.study.search import Search, run_search, wanted_quantities
from energytl.study.settings import StudyError, read_study
from energytl.study.storage import HEARTBEAT_S
from energytl.tables import aligned, quantity
from energytl.training import first_training
from energytl.workers import run_cases, waiting_last, wants_processes

PIPE_CLOSED, USAGE_ERROR, INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 if nobody reads on, 2 for what the user can mend, 130 after Ctrl-C."""
    quiet_libraries()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
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
            recipe_parser(f"energytl {given.command} RECIPE").print_help()
            return 0
        if given.recipe is None:
            raise RecipeError(f"{given.command} wants a recipe, a YAML file; --help lists its keys")
        sys.path[:0] = [str(given.recipe.parent), str(Path.cwd())]  # for a user's own modules
        cases = read(given.recipe, [word for word in overrides if word != "--print_config"])
        if "--print_config" in overrides:
            print("\n".join(f"# case {case.name}\n{case.as_yaml()}" for case in cases))
            return 0
        chosen = _chosen(cases, given.case)
        commands = {"run": _run, "check": _check, "cost": _cost}
        return commands[given.command](given, cases, chosen)
    except KeyboardInterrupt:
        ways = {"run": "; to go on, repeat the command with --resume", "search": "; to go on, repeat the command"}
        again = ways.get(given.command, "")
        print(f"\nenergytl: interrupted{again}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # as `| head` closes it; Python's last flush must not fail, too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except OSError as error:
        advice = ": make room or choose another place with --out, then repeat with --resume; what is finished is kept"
        unwritable = given.command in ("run", "search") and not isinstance(error, URLError)
        print(f"\nenergytl: {said_by(error)}{advice if unwritable else ''}", file=sys.stderr)
        return USAGE_ERROR
    except (DivergedError, ValueError) as error:
        below_bars = "\n" if given.command in ("run", "search") else ""
        print(f"{below_bars}energytl: {said_by(error)}", file=sys.stderr)
        return USAGE_ERROR


def _parser(command: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="energytl",
        description="How little energy keeps a network's accuracy on analog in-memory hardware?",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    texts = {
        "run": "train, evaluate and compare the cases of a recipe",
        "check": "say what would run: data, layers, cells, reads",
        "cost": "cells, reads, latency and energy, without training",
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
        "data", type=Path, metavar="DATA.csv", help="columns device,pulse,direction,conductance; a row for every pulse"
    )
    fitting.add_argument("--out", type=Path, metavar="PNG", help="where the figure goes (default: DATA.png)")
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
    sub.add_argument(
        "--heartbeat", type=int, default=HEARTBEAT_S, metavar="S", help="between a worker's signs of life to a database"
    )
    sub.add_argument(
        "--out", type=Path, default=Path("logs"), metavar="DIR", help="where runs go: DIR/search/STUDY (default: logs)"
    )


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
    with search.open():
        pass  # a storage that refuses, or another search of that name, is found before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STUDY).write_text(study.as_yaml(), encoding="utf-8")
    if given.cluster == "ray":
        run_on_ray(search, given.workers)
    else:
        run_search(search)
    with FileLock(folder / "report.lock"):  # commands that end together report one after the other
        write_front(search, confirm_front(search))
        print(search_report(folder, given.storage))
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
    run_cases({cases.index(case): case for case in chosen}, len(cases), folder, given.resume, given.workers)
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        return 0
    print(report(folder, [case.name for case in cases]))
    print(f"\n{folder / 'report.html'}; curves: tensorboard --logdir '{folder}'")
    return 0


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


def _analog(recipe: Recipe) -> nn.Module:
    return analog_network(recipe, recipe.network, recipe.hardware, recipe.data, recipe.seed, recipe.calibration)


def _cost_row(name: str, rho: str, cost: Cost | LayerCost) -> tuple[str, ...]:
    paper = "not modelled" if cost.energy_paper is None else f"{cost.energy_paper:.3g}"
    counts = f"{cost.cells:,}", f"{cost.reads:,}", quantity(cost.latency_s, "s")
    return name, *counts, rho, paper, quantity(cost.energy_cell_j, "J"), quantity(cost.energy_total_j, "J")


if __name__ == "__main__":
    sys.exit(main())
