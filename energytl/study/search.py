"""A search: workers that take trials from the storage until there are enough, and what a trial is there."""

import hashlib
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState
from tqdm import tqdm

from energytl.analog.noise import fold
from energytl.recipe import Case
from energytl.study.front import front, hypervolumes, points
from energytl.study.quantities import QUANTITIES
from energytl.study.settings import Settings, Study, StudyError
from energytl.study.storage import HEARTBEAT_S, open_storage, open_study, original, queue_again, revive, sign
from energytl.study.trial import Outcome, Rivals, run_trial

POLL_S = 0.5
"""How often a worker without work looks for some, and the bar is drawn."""

HASTY_FAILURES = 5
"""A search of which so many trials have failed and none has not is not worth going on with."""


@dataclass(frozen=True)
class Search:
    """A study, and where and how it runs.

    Attributes:
        study: that was read.
        folder: logs/search/<study>.
        url: of the storage; None: a journal file in the folder.
        trials: how many in all.
        workers: processes on this machine.
        heartbeat_s: between a worker's signs of life to a database.
    """

    study: Study
    folder: Path
    url: str | None
    trials: int
    workers: int = 1
    heartbeat_s: int = HEARTBEAT_S

    def open(self) -> optuna.Study:
        """The trials so far."""
        return open_study(self.study, open_storage(self.url, self.folder, self.heartbeat_s))


def run_search(search: Search) -> None:
    """Run trials until there are enough, with a bar; workers that were killed are replaced.

    Raises:
        StudyError: if nothing but failures comes out.
    """
    trials = search.open()
    with tqdm(total=search.trials, desc=search.study.name, unit="trial", smoothing=0.1) as bar:
        draw(bar, search, trials)
        if search.workers == 1:
            for _ in work(search, 0):
                draw(bar, search, trials)
        else:
            _run_workers(search, trials, bar)
        draw(bar, search, trials)
    refuse_failures(trials)


def _run_workers(search: Search, trials: optuna.Study, bar: Any) -> None:  # noqa: ANN401
    """Start the workers, and replace those that are killed."""
    processes = multiprocessing.get_context("spawn")
    running = {index: processes.Process(target=_worker, args=(search, index)) for index in range(search.workers)}
    for process in running.values():
        process.start()
    try:
        killed = 0
        while running:
            time.sleep(POLL_S)
            draw(bar, search, trials)
            for index, process in list(running.items()):
                if process.is_alive():
                    continue
                del running[index]
                if process.exitcode and process.exitcode < 0:
                    killed += 1
                    name = signal.Signals(-process.exitcode).name
                    bar.write(f"worker {index} was killed ({name}); its trial is repeated", file=sys.stderr)
                    if killed <= 2 * search.workers:
                        running[index] = processes.Process(
                            target=_worker, args=(search, index + search.workers * killed)
                        )
                        running[index].start()
    except KeyboardInterrupt:
        for process in running.values():
            if process.is_alive() and process.pid:
                os.kill(process.pid, signal.SIGINT)
        for process in running.values():
            process.join()
        raise


def _worker(search: Search, index: int) -> None:
    """One of several processes."""
    limit_threads(search.workers)
    try:
        for _ in work(search, index):
            pass
    except KeyboardInterrupt:
        sys.exit(1)


def limit_threads(workers: int) -> None:
    """This process's share of the processor, if there are several."""
    if workers > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))


def work(search: Search, index: int) -> Iterator[None]:
    """Run trials until there are enough, or the hypervolume stagnates; yields after each.

    Args:
        search: to work on.
        index: of this worker, for its share of devices and of random numbers.
    """
    trials = search.open()
    while True:
        revive(trials)
        known = trials.get_trials(deepcopy=False)
        if enough(search, known):
            return
        if wanted(search, known):
            next_sampler(search, trials)
            _run_next(search, trials, index)
            yield
        elif any(trial.state == TrialState.RUNNING for trial in known):
            time.sleep(POLL_S)  # its worker may be killed yet
        else:
            return


def next_sampler(search: Search, trials: optuna.Study) -> None:
    """A new sampler for the next trial: one worker's suggestions are those of the study's seed, however interrupted."""
    seeds = [search.study.settings.seed, len(trials.get_trials(deepcopy=False))]
    if search.workers > 1 or search.url is not None:  # workers that ask at the same time must not get the same
        place = hashlib.sha256(f"{socket.gethostname()} {os.getpid()}".encode()).digest()
        seeds.append(int.from_bytes(place[:4], "big"))
    trials.sampler = search.study.sampler(fold(*seeds) % 2**32)


def _run_next(search: Search, trials: optuna.Study, index: int) -> None:
    """Take a trial, run it, and tell how it went."""
    mine: list[optuna.Trial] = []

    def objective(trial: optuna.Trial) -> tuple[float, ...]:
        mine.append(trial)
        sign(trial)
        started = prepare(search, trials, trial, _device(index))
        if isinstance(started, Case):
            outcome = run_trial(
                started, search.folder, wanted_quantities(search.study.settings), rivals(search.study, trials)
            )
        else:
            outcome = started
        return conclude(search.study, trial, outcome)

    def recorded(trial: optuna.Trial) -> tuple[float, ...]:
        try:
            return objective(trial)
        except optuna.TrialPruned:
            raise
        except Exception as error:
            trial.set_user_attr("error", one_line(error))
            raise

    try:
        trials.optimize(recorded, n_trials=1, catch=(Exception,))
    except KeyboardInterrupt:
        for trial in mine:
            again(trials, trial)
        raise


def again(trials: optuna.Study, trial: optuna.Trial) -> None:
    """Queue an interrupted trial for the next time."""
    frozen = trials.get_trials(deepcopy=False)[trial.number]
    if frozen.state == TrialState.RUNNING:
        queue_again(trials, frozen)
    elif frozen.state == TrialState.FAIL:
        optuna.storages.RetryHeartbeatStaleTrialCallback()(trials, frozen)


def prepare(search: Search, trials: optuna.Study, trial: optuna.Trial, device: dict[str, Any]) -> Case | Outcome:
    """What a trial has to run, or the outcome of an earlier one with the same values.

    Raises:
        TrialPruned: for a trial too many, taken while another worker took the last one.
        RuntimeError: with an earlier trial's error, for values that have failed before.
        RecipeError: if the recipe does not take the values.
    """
    known = trials.get_trials(deepcopy=False)
    frozen = known[trial.number]
    if original(frozen) == frozen.number and len(slots(known[: trial.number])) >= search.trials:
        trial.set_user_attr("surplus", True)
        raise optuna.TrialPruned
    values = search.study.suggest(trial)
    for earlier in known[: trial.number]:
        if earlier.params != trial.params:
            continue
        if earlier.state == TrialState.COMPLETE:
            trial.set_user_attr("same_as", earlier.number)
            return Outcome(dict(earlier.user_attrs["numbers"]), [], 0.0)
        if earlier.state == TrialState.FAIL and "error" in earlier.user_attrs:
            raise RuntimeError(f"as trial {earlier.number}: {earlier.user_attrs['error']}")
    return search.study.case(f"{original(frozen):04d}", values | device)


def conclude(study: Study, trial: optuna.Trial, outcome: Outcome) -> tuple[float, ...]:
    """Record an outcome; the values of the objectives, all to be minimised.

    Raises:
        TrialPruned: if the trial was stopped.
    """
    trial.set_user_attr("seconds", outcome.seconds)
    if outcome.epochs:
        trial.set_user_attr("epochs", outcome.epochs)
    if not outcome.numbers:
        raise optuna.TrialPruned
    trial.set_user_attr("numbers", outcome.numbers)
    for name, bound in study.settings.constraints.items():
        trial.set_constraint(name, bound.violation(name, outcome.numbers[name]))
    return tuple(QUANTITIES[name].loss(outcome.numbers[name]) for name in study.settings.objectives)


def rivals(study: Study, trials: optuna.Study) -> Rivals | None:
    """What others had reached at each epoch, if hopeless trials are to be stopped."""
    rule = study.settings.hopeless
    if rule is None:
        return None
    early = [name for name in study.settings.objectives if name != "accuracy" and not name.startswith("training")]
    seen = trials.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    return Rivals(rule, tuple(early), tuple(t.user_attrs["epochs"] for t in seen if "epochs" in t.user_attrs))


def wanted_quantities(settings: Settings) -> tuple[str, ...]:
    """The quantities that a trial reports."""
    return tuple(dict.fromkeys([*settings.objectives, *settings.constraints]))


def slots(known: list[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that count: neither repetitions of a killed one nor taken too many."""
    return [trial for trial in known if original(trial) == trial.number and not trial.user_attrs.get("surplus")]


def wanted(search: Search, known: list[FrozenTrial]) -> bool:
    """Whether there is a trial to run."""
    return any(trial.state == TrialState.WAITING for trial in known) or len(slots(known)) < search.trials


def enough(search: Search, known: list[FrozenTrial]) -> bool:
    """Whether the hypervolume stagnates, or nothing but failures comes out."""
    finished = [trial for trial in known if trial.state.is_finished() and not trial.user_attrs.get("surplus")]
    failed = [trial for trial in finished if trial.state == TrialState.FAIL and "error" in trial.user_attrs]
    if len(failed) >= HASTY_FAILURES and len(failed) == len(finished):
        return True
    rule, found = search.study.settings.stop, points(search.study.settings, known)
    if rule is None or len(finished) <= rule.trials:
        return False
    before = sum(point.number < finished[-rule.trials].number for point in found)
    history = [0.0, *hypervolumes(found)]
    return history[before] > 0 and history[-1] - history[before] <= rule.gain * history[-1]


def refuse_failures(trials: optuna.Study) -> None:
    """Raise if there are only failures."""
    known = trials.get_trials(deepcopy=False)
    failed = [trial for trial in known if "error" in trial.user_attrs]
    if failed and not any(trial.state == TrialState.COMPLETE for trial in known):
        raise StudyError(f"no trial has succeeded, {len(failed)} failed; the last: {failed[-1].user_attrs['error']}")


def one_line(error: Exception) -> str:
    """What an error says."""
    return " ".join(str(error).split()) or type(error).__name__


def _device(index: int) -> dict[str, Any]:
    """The worker's share of several GPUs, as a setting of the recipe."""
    gpus = torch.cuda.device_count()
    return {"trainer.devices": [index % gpus]} if gpus > 1 else {}


def draw(bar: Any, search: Search, trials: optuna.Study) -> None:  # noqa: ANN401
    """Show how far the search is."""
    known = trials.get_trials(deepcopy=False)
    done = [trial for trial in slots(known) if trial.state.is_finished()]
    found = points(search.study.settings, known)
    failed = sum("error" in trial.user_attrs for trial in known)
    stopped = sum(trial.state == TrialState.PRUNED and not trial.user_attrs.get("surplus") for trial in known)
    bar.n = len(done)
    bar.set_postfix(front=len(front(found)), stopped=stopped, failed=failed)
