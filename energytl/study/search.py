"""A search: workers that take trials from the storage until there are enough, and what a trial is there."""

import hashlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from energytl.analog.noise import fold
from energytl.progress import Bar
from energytl.quiet import quiet_libraries
from energytl.recipe import Case, said_by
from energytl.study.front import front, hypervolumes, points
from energytl.study.quantities import QUANTITIES
from energytl.study.settings import Settings, Study, StudyError
from energytl.study.storage import (
    HEARTBEAT_S,
    Worker,
    error_of,
    give_up,
    open_storage,
    open_study,
    original,
    queue_again,
    queue_lost,
    revive,
    slots,
)
from energytl.study.trial import Outcome, Rivals, run_trial
from energytl.workers import end_with_parent, limit_threads, on_own_gpu

POLL_S = 1.0
"""How often a worker without work looks for some, and the bar is drawn."""

HASTY_FAILURES = 5
"""A search whose first trials, so many, have all failed is not worth going on with."""

GRACE_S = 30
"""How long interrupted workers may take to put their trials back."""


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

    @contextmanager
    def open(self) -> Iterator[optuna.Study]:
        """The trials so far, for as long as the context lasts."""
        with open_storage(self.url, self.folder, self.heartbeat_s) as storage:
            yield open_study(self.study, storage)


def run_search(search: Search) -> None:
    """Run trials until there are enough, with a bar; workers that were killed are replaced.

    Raises:
        StudyError: if nothing but failures comes out, or workers end before there are enough.
    """
    with search.open() as trials, Bar(total=search.trials, desc=search.study.name, unit="trial") as bar:
        begun = begin(search, trials)
        draw(bar, search, trials)
        if search.workers == 1:
            for _ in work(search, 0, begun):
                draw(bar, search, trials)
        else:
            _run_workers(search, begun, trials, bar)
        draw(bar, search, trials)
        refuse_failures(trials, begun)
        known = trials.get_trials(deepcopy=False)
        if wanted(search, known) and not enough(search, known, begun):
            raise StudyError("the workers have ended before there were enough trials; to go on, repeat the command")


def begin(search: Search, trials: optuna.Study) -> int:
    """Queue what earlier commands have left unfinished; how many trials there are."""
    revive(trials, search.folder)
    queue_lost(trials)
    return len(trials.get_trials(deepcopy=False))


def _run_workers(search: Search, begun: int, trials: optuna.Study, bar: Any) -> None:  # noqa: ANN401
    """Start the workers, and replace those that are killed."""
    processes = multiprocessing.get_context("spawn")
    running = {index: processes.Process(target=_worker, args=(search, index, begun)) for index in range(search.workers)}
    for process in running.values():
        process.start()
    killed = 0
    try:
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
                        running[index] = processes.Process(target=_worker, args=(search, index, begun))
                        running[index].start()
    except KeyboardInterrupt:
        _end(list(running.values()))
        raise


def _end(processes: list[Any]) -> None:
    """Wait for interrupted workers; a terminal interrupts them with their parent, others do not."""
    for process in processes:
        process.join(2)
    for process in processes:
        if process.is_alive() and process.pid:
            os.kill(process.pid, signal.SIGINT)
    for process in processes:
        process.join(GRACE_S)
        process.kill()


def _worker(search: Search, index: int, begun: int) -> None:
    """One of several processes."""
    end_with_parent()
    quiet_libraries()
    limit_threads(search.workers)
    try:
        for _ in work(search, index, begun):
            pass
    except KeyboardInterrupt:
        sys.exit(1)
    except (StudyError, OSError) as error:
        print(f"\nworker {index}: {said_by(error)}", file=sys.stderr)
        sys.exit(1)


def work(search: Search, index: int, begun: int) -> Iterator[None]:
    """Run trials until there are enough, or the hypervolume stagnates; yields after each.

    Args:
        search: to work on.
        index: of this worker, for its share of devices.
        begun: how many trials there were when the command began.
    """
    with search.open() as trials, Worker(search.folder) as worker:
        while True:
            revive(trials, search.folder)
            known = trials.get_trials(deepcopy=False)
            if enough(search, known, begun):
                return
            if wanted(search, known):
                next_sampler(search, trials)
                _run_next(search, trials, worker, index)
                yield
            elif any(trial.state == TrialState.RUNNING for trial in known):
                time.sleep(POLL_S)  # its worker may be killed yet
            else:
                return


def next_sampler(search: Search, trials: optuna.Study) -> None:
    """A new sampler for the next trial: one worker's suggestions are those of the study's seed, however interrupted."""
    seeds = [search.study.settings.seed, len(slots(trials.get_trials(deepcopy=False)))]
    if search.workers > 1 or search.url is not None:  # workers that ask at the same time must not get the same
        place = hashlib.sha256(f"{os.uname().nodename} {os.getpid()}".encode()).digest()
        seeds.append(int.from_bytes(place[:4], "big"))
    trials.sampler = search.study.sampler(fold(*seeds) % 2**32)


def _run_next(search: Search, trials: optuna.Study, worker: Worker, index: int) -> None:
    """Take a trial, run it, and tell how it went.

    Raises:
        OSError: where the place to write is to blame, not the trial, which is queued again.
    """
    mine: list[optuna.Trial] = []
    to_blame: list[OSError] = []

    def objective(trial: optuna.Trial) -> tuple[float, ...]:
        started = prepare(search, trials, trial, index)
        if isinstance(started, Case):
            others = rivals(search.study, trials)
            started = run_trial(started, search.folder, wanted_quantities(search.study.settings), others)
        return conclude(search.study, trial, started)

    def recorded(trial: optuna.Trial) -> tuple[float, ...]:
        mine.append(trial)
        worker.sign(trial)
        started = time.monotonic()
        try:
            return objective(trial)
        except optuna.TrialPruned:
            raise
        except OSError as error:
            to_blame.append(error)
            raise
        except Exception as error:
            trial.set_user_attr("error", said_by(error))
            trial.set_user_attr("seconds", time.monotonic() - started)
            raise

    try:
        trials.optimize(recorded, n_trials=1, catch=(Exception,))
    except KeyboardInterrupt:
        for trial in mine:
            put_back(trials, trial)
        raise
    except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
        if not any(trials.get_trials(deepcopy=False)[trial.number].state == TrialState.FAIL for trial in mine):
            raise
        return  # given up by others, who took this worker for dead
    if to_blame:
        put_back(trials, mine[0])
        raise to_blame[0]


def put_back(trials: optuna.Study, trial: optuna.Trial) -> None:
    """Queue a trial that was interrupted."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        frozen = trials.get_trials(deepcopy=False)[trial.number]
        if frozen.state == TrialState.RUNNING:
            give_up(trials, frozen)
        elif frozen.state == TrialState.FAIL:
            queue_again(trials, frozen)
    finally:
        signal.signal(signal.SIGINT, before)


def prepare(search: Search, trials: optuna.Study, trial: optuna.Trial, index: int | None) -> Case | Outcome:
    """What a trial has to run, or the outcome of an earlier one with the same values.

    Args:
        search: that the trial belongs to.
        trials: all of them.
        trial: that was just taken.
        index: of the worker, for its share of several GPUs; None: it has no such share.

    Raises:
        TrialPruned: for a trial too many, taken while another worker took the last one, or for values that were
            stopped before.
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
        if earlier.params != trial.params or earlier.user_attrs.get("surplus"):
            continue
        if earlier.state in (TrialState.COMPLETE, TrialState.PRUNED):
            trial.set_user_attr("same_as", earlier.number)
            return Outcome(dict(earlier.user_attrs.get("numbers", {})), [], 0.0)
        if earlier.state == TrialState.FAIL and "error" in earlier.user_attrs:
            raise RuntimeError(f"as trial {earlier.number}: {earlier.user_attrs['error']}")
    case = search.study.case(f"{original(frozen):04d}", values)
    return case if index is None else on_own_gpu(case, index)


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
    """What others that keep to the constraints had reached at each epoch, if hopeless trials are to be stopped."""
    rule = study.settings.hopeless
    if rule is None:
        return None
    costs = tuple(name for name in study.settings.objectives if name != "accuracy")
    known = trials.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    feasible = {point.number for point in points(study.settings, known) if point.feasible}
    seen = [trial for trial in known if trial.number in feasible or trial.state == TrialState.PRUNED]
    return Rivals(rule, costs, tuple(trial.user_attrs["epochs"] for trial in seen if "epochs" in trial.user_attrs))


def wanted_quantities(settings: Settings) -> tuple[str, ...]:
    """The quantities that a trial reports."""
    return tuple(dict.fromkeys([*settings.objectives, *settings.constraints]))


def wanted(search: Search, known: list[FrozenTrial]) -> bool:
    """Whether there is a trial to run."""
    return any(trial.state == TrialState.WAITING for trial in known) or len(slots(known)) < search.trials


def enough(search: Search, known: list[FrozenTrial], begun: int) -> bool:
    """Whether the hypervolume stagnates, or nothing but failures has come out since the command began."""
    return _nothing_but_failures(known, begun) or stagnates(search.study.settings, known)


def stagnates(settings: Settings, known: list[FrozenTrial]) -> bool:
    """Whether the last trials have added too little to the hypervolume."""
    rule, finished = settings.stop, [trial for trial in slots(known) if trial.state.is_finished()]
    if rule is None or len(finished) <= rule.trials:
        return False
    found = points(settings, known)
    recent = {trial.number for trial in finished[-rule.trials :]}
    before = sum(point.number not in recent for point in found)
    history = [0.0, *hypervolumes(found)]
    return history[before] > 0 and history[-1] - history[before] <= rule.gain * history[-1]


def refuse_failures(trials: optuna.Study, begun: int) -> None:
    """Raise if there is nothing to show.

    Raises:
        StudyError: with the last error.
    """
    known = trials.get_trials(deepcopy=False)
    failed = [trial for trial in slots(known) if error_of(trial)]
    if failed and (
        _nothing_but_failures(known, begun) or not any(trial.state == TrialState.COMPLETE for trial in known)
    ):
        raise StudyError(
            f"of the trials {len(failed)} have failed, and none since the command began has succeeded; the last: "
            f"{error_of(failed[-1])}; its output lies in the folder trials/"
        )


def _nothing_but_failures(known: list[FrozenTrial], begun: int) -> bool:
    """Whether several trials have failed since so many were there, and none has not."""
    finished = [trial for trial in known[begun:] if trial.state.is_finished() and not trial.user_attrs.get("surplus")]
    failed = [trial for trial in finished if "error" in trial.user_attrs]
    return len(failed) >= HASTY_FAILURES and not any(trial.state != TrialState.FAIL for trial in finished)


def draw(bar: Any, search: Search, trials: optuna.Study) -> None:  # noqa: ANN401
    """Show how far the search is."""
    known = slots(trials.get_trials(deepcopy=False))
    found = points(search.study.settings, known)
    failed = sum(error_of(trial) is not None for trial in known)
    stopped = sum(trial.state == TrialState.PRUNED for trial in known)
    bar.n = sum(trial.state.is_finished() for trial in known)
    bar.set_postfix(front=len(front(found)), stopped=stopped, failed=failed)
