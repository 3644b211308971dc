"""One trial: a recipe run to its result, and stopped in training where it is hopeless."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from energytl.points import cost_numbers, price
from energytl.recipe import Case, Recipe
from energytl.results import Result, latest_results
from energytl.run import run_case
from energytl.study.quantities import QUANTITIES
from energytl.study.settings import Hopeless
from energytl.workers import silently, wants_processes

TRIALS = "trials"
"""Folder of a search with the runs of its trials."""


@dataclass(frozen=True)
class Outcome:
    """What a trial found out.

    Attributes:
        numbers: its quantities; empty if it was stopped.
        epochs: accuracy's loss and those of the costs after each epoch, of a trial that was watched.
        seconds: what it took.
    """

    numbers: dict[str, float]
    epochs: list[list[float]]
    seconds: float


@dataclass(frozen=True)
class Rivals:
    """What other trials had reached after each epoch, and when a trial is hopeless beside them.

    Attributes:
        rule: when.
        costs: quantities that are compared, besides accuracy.
        epochs: of each other trial, as in `Outcome`.
    """

    rule: Hopeless
    costs: tuple[str, ...]
    epochs: tuple[list[list[float]], ...]

    def dominate(self, epoch: int, losses: Sequence[float]) -> bool:
        """Whether too many of the others were better at this epoch (from 0).

        >>> rivals = Rivals(Hopeless(share=0.5, least=2), ("energy_paper",), ([[-0.9, 1.0]], [[-0.8, 2.0]]))
        >>> rivals.dominate(0, [-0.5, 3.0]), rivals.dominate(0, [-0.5, 0.5])
        (True, False)
        """
        others = [trial[epoch] for trial in self.epochs if len(trial) > epoch]
        if len(others) < self.rule.least:
            return False
        accuracy, *costs = losses
        better = [
            other[0] <= accuracy - self.rule.margin
            and all(own >= cost for own, cost in zip(costs, other[1:], strict=True))
            for other in others
        ]
        return sum(better) >= self.rule.share * len(others)


class HopelessError(RuntimeError):
    """A trial that others dominate at the same epoch."""


class Watch(Callback):
    """Notes accuracy and costs after each epoch, and raises where others dominate.

    Args:
        rivals: the others, and the rule.
        recipe: the trial's, for its images and circuits.
    """

    def __init__(self, rivals: Rivals, recipe: Recipe) -> None:
        self.rivals, self.recipe = rivals, recipe
        self.epochs: list[list[float]] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, and compare with the others at this epoch."""
        if trainer.sanity_checking:
            return
        network = pl_module.network
        assert isinstance(network, nn.Module)
        result: Result = {QUANTITIES["accuracy"].key: float(trainer.callback_metrics["val/accuracy"])}
        result |= cost_numbers(price(network, self.recipe.data, 1, self.recipe))
        names = ("accuracy", *self.rivals.costs)
        losses = [QUANTITIES[name].loss(QUANTITIES[name].of(result)) for name in names]
        self.epochs.append(losses)
        if self.rivals.dominate(len(self.epochs) - 1, losses):
            raise HopelessError(f"dominated after epoch {len(self.epochs)}")

    def state_dict(self) -> dict[str, Any]:
        """Losses so far."""
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what a checkpoint holds."""
        self.epochs = list(state_dict["epochs"])


def run_trial(case: Case, folder: Path, wanted: Sequence[str], rivals: Rivals | None) -> Outcome:
    """Run the recipe of a trial; what it prints goes to a file beside its runs.

    Args:
        case: the recipe, named after the trial; an interrupted run of it is taken up.
        folder: of the search.
        wanted: quantities.
        rivals: to be stopped beside; None: it is never stopped.
    """
    started = time.monotonic()
    watches: list[Watch] = []

    def watch(recipe: Recipe) -> list[Callback]:
        if rivals is not None:
            watches.append(Watch(rivals, recipe))
        return [*watches]

    numbers: dict[str, float] = {}
    try:
        result = run_silently(case, folder / TRIALS, watch)
        numbers = {name: QUANTITIES[name].of(result) for name in wanted}
    except HopelessError:
        pass
    epochs = watches[0].epochs if watches else []
    return Outcome(numbers, epochs, time.monotonic() - started)


def run_silently(case: Case, runs: Path, watch: Callable[[Recipe], list[Callback]] = lambda recipe: []) -> Result:
    """Run a case, or take up an interrupted run of it, or find its result; what is printed goes to a file beside it.

    Args:
        case: named by a trial's number.
        runs: folder of such cases.
        watch: see `run_case`; a case that trains in several processes is not watched.
    """
    with silently(runs / f"{case.name}.log"):
        if wants_processes(case):
            return _run_in_processes(case, runs)
        return run_case(case, int(case.name), runs, resume=True, watch=watch)


def _run_in_processes(case: Case, runs: Path) -> Result:
    """`energytl run` of the case as a process, whose command line is what Lightning's strategies start again."""
    with tempfile.TemporaryDirectory() as temporary:
        recipe = Path(temporary) / f"{runs.name}.yaml"
        recipe.write_text(yaml.safe_dump({"cases": {case.name: case.resolved()}}), encoding="utf-8")
        command = [sys.executable, "-m", "energytl.cli", "run", str(recipe), "--out", str(runs.parent), "--resume"]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
    print(ran.stdout, ran.stderr)
    if ran.returncode:
        said = ran.stderr.strip().splitlines() or [f"ended with {ran.returncode}"]
        raise RuntimeError(f"energytl run: {said[-1]}")
    return latest_results(runs)[case.name]
