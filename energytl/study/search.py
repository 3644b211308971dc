"""A search: workers that take trials from the storage until there are enough, and what a trial is there."""

import hashlib
import multiprocessing
import os
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from energytl.parser import said_by
from energytl.progress import Bar
from energytl.quiet import quiet_libraries
from energytl.recipe import Case
from energytl.streams import Stream, seed_of
from energytl.study.front import front, hypervolumes, points
from energytl.study.quantities import QUANTITIES
from energytl.study.settings import Settings, Study, StudyError
from energytl.study.storage import (
    HEARTBEAT_S,
    LOST,
    Lookout,
    Worker,
    error_of,
    give_up,
    open_storage,
    open_study,
    put_back,
    slots,
    worker_name,
)
from energytl.study.trial import Outcome, Rivals, run_trial
from energytl.workers import end_with_parent, limit_threads, on_own_gpu

POLL_S = 1.0
"""How often a worker without work looks for some, and the bar is drawn."""

HASTY_FAILURES = 5
"""A search whose first trials, so many, have all failed is not worth going on with."""

GRACE_S = 30
"""How long interrupted workers may take to put their trials back."""

SILENT_BEATS = 4
"""After so many signs of life that did not come a worker counts as killed."""

STUDY = "study.yaml"
"""The study as it ran, in the folder of the search."""


@dataclass(frozen=True)
class Search:
    """A study, and where and how it runs.

    Attributes:
        study: that was read.
        folder: logs/search/<study>.
        url: of the storage; None: an SQLite file in the folder.
        trials: how many in all.
        workers: processes on this machine.
        heartbeat_s: between a worker's signs of life.
        command: name of this command, unlike all others.
    """

    study: Study
    folder: Path
    url: str | None
    trials: int
    workers: int = 1
    heartbeat_s: float = HEARTBEAT_S
    command: str = field(default_factory=lambda: uuid.uuid4().hex)

    @contextmanager
    def open(self) -> Iterator[optuna.Study]:
        """The trials so far, for as long as the context lasts.

        Raises:
            StudyError: for a storage that cannot be used or is lost, and where nothing can be written, with what to do.
        """
        try:
            with open_storage(self.url, self.folder) as storage:
                yield open_study(self.study, storage)
        except OSError as error:
            raise StudyError(
                f"{said_by(error)}; what is finished is kept: once this is mended (a full disk has room), the same "
                "command goes on"
            ) from error

    def note_study(self) -> None:
        """Write the study as it runs beside its runs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / STUDY).write_text(self.study.as_yaml(), encoding="utf-8")


class Progress:
    """A search as its command sees it: a bar, and an eye on the workers.

    Args:
        bar: to draw.
        search: that is run.
        trials: of it.
    """

    def __init__(self, bar: Any, search: Search, trials: optuna.Study) -> None:  # noqa: ANN401
        self._bar, self._search, self._trials = bar, search, trials
        self._lookout = Lookout()
        self._told: set[int] = set()

    def look(self) -> None:
        """Draw the bar, give the trials of silent workers up, and say what is waited for."""
        search, known = self._search, self._trials.get_trials(deepcopy=False)
        for trial, silence_s in self._lookout.silences(self._trials):
            worker, grace_s = trial.user_attrs.get("worker"), SILENT_BEATS * search.heartbeat_s
            if worker and search.command in worker:
                continue  # a process of this command: it is seen to end
            if silence_s > grace_s:
                self.say(f"trial {trial.number} is repeated: its worker gave no sign of life for {grace_s:g} s")
                give_up(self._trials, trial)
                self._told.discard(trial.number)
            elif not (wanted(search, known) or trial.number in self._told) and (
                worker or silence_s > search.heartbeat_s
            ):
                self._told.add(trial.number)
                self.say(
                    f"waiting for trial {trial.number} of another command; without a sign of life from there for "
                    f"{grace_s:g} s it is repeated here"
                )
        counted = slots(known)
        failed = sum(error_of(trial) is not None for trial in counted)
        stopped = sum(trial.state == TrialState.PRUNED for trial in counted)
        self._bar.n = sum(trial.state.is_finished() for trial in counted)
        found = points(search.study.settings, counted)
        self._bar.set_postfix(front=len(front(found)), stopped=stopped, failed=failed)

    def say(self, line: str) -> None:
        """A line above the bar."""
        self._bar.write(line, file=sys.stderr)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Put Ctrl-C off until the context ends."""
    came: list[FrameType | None] = []
    before = signal.signal(signal.SIGINT, lambda _, frame: came.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came and callable(before):
        before(signal.SIGINT, came[0])


def run_search(search: Search) -> None:
    """Run trials until there are enough, with a bar; workers that were killed are replaced.

    Raises:
        StudyError: if nothing but failures comes out, or workers end before there are enough.
    """
    with search.open() as trials, Bar(total=search.trials, desc=search.study.name, unit="trial") as bar:
        search.note_study()
        progress, begun = Progress(bar, search, trials), finished_before(trials)
        progress.look()
        if search.workers == 1:
            for _ in work(search, trials, 0, begun):
                progress.look()
        else:
            _run_workers(search, begun, trials, progress)
        progress.look()
        refuse_failures(trials, begun)
        known = trials.get_trials(deepcopy=False)
        if wanted(search, known) and not enough(search, known, begun):
            raise StudyError("the workers have ended before there were enough trials; to go on, repeat the command")


def finished_before(trials: optuna.Study) -> frozenset[int]:
    """Numbers of the trials that earlier commands have finished."""
    return frozenset(trial.number for trial in trials.get_trials(deepcopy=False) if trial.state.is_finished())


def _run_workers(search: Search, begun: frozenset[int], trials: optuna.Study, progress: Progress) -> None:
    """Start the workers, and replace those that are killed."""
    processes = multiprocessing.get_context("spawn")
    running = {index: processes.Process(target=_worker, args=(search, index, begun)) for index in range(search.workers)}
    for process in running.values():
        process.start()
    killed = 0
    try:
        while running:
            time.sleep(POLL_S)
            for index, process in list(running.items()):
                if process.is_alive():
                    continue
                del running[index]
                if process.exitcode and process.exitcode < 0:
                    killed += 1
                    name = signal.Signals(-process.exitcode).name
                    progress.say(f"worker {index} was killed ({name}); its trial is repeated")
                    _give_up_of(search, trials, process)
                    if killed <= 2 * search.workers:
                        running[index] = processes.Process(target=_worker, args=(search, index, begun))
                        running[index].start()
            progress.look()
    except KeyboardInterrupt:
        _end(list(running.values()))
        for process in running.values():  # one may have been killed just before
            _give_up_of(search, trials, process)
        raise


def _give_up_of(search: Search, trials: optuna.Study, process: Any) -> None:  # noqa: ANN401
    """Give up the trial of a worker that has ended without."""
    for trial in trials.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if trial.user_attrs.get("worker") == worker_name(search.command, process.pid or 0):
            give_up(trials, trial)


def _end(processes: list[Any]) -> None:
    """Wait for interrupted workers; a terminal interrupts them with their parent, others do not."""
    end = time.monotonic() + 2
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    for process in processes:
        if process.is_alive() and process.pid:
            os.kill(process.pid, signal.SIGINT)
    for process in processes:
        process.join(GRACE_S)
        process.kill()


def _worker(search: Search, index: int, begun: frozenset[int]) -> None:
    """One of several processes."""
    end_with_parent()
    quiet_libraries()
    limit_threads(search.workers)
    try:
        with search.open() as trials:
            for _ in work(search, trials, index, begun):
                pass
    except KeyboardInterrupt:
        sys.exit(1)
    except StudyError as error:
        print(f"\nworker {index}: {said_by(error)}", file=sys.stderr)
        sys.exit(1)


def work(search: Search, trials: optuna.Study, index: int, begun: frozenset[int]) -> Iterator[None]:
    """Run trials until there are enough, or the hypervolume stagnates; yields after each, and while others run.

    Args:
        search: to work on.
        trials: of it.
        index: of this worker, for its share of devices.
        begun: numbers of the trials that were finished when the command began.
    """
    with Worker(trials, search.command, search.heartbeat_s) as worker:
        while True:
            known = trials.get_trials(deepcopy=False)
            if enough(search, known, begun):
                return
            if wanted(search, known):
                _run_next(search, trials, worker, index)
            elif any(trial.state == TrialState.RUNNING for trial in known):
                time.sleep(min(POLL_S, search.heartbeat_s))  # its worker may be killed yet
            else:
                return
            yield


def take(search: Search, trials: optuna.Study, worker: Worker) -> optuna.Trial:
    """The next trial, one that waits or a new one, signed by its worker.

    One worker's suggestions are those of the study's seed and the trial's number, however interrupted.
    """
    known = trials.get_trials(deepcopy=False)
    waiting = [number for number, trial in enumerate(slots(known)) if trial.state == TrialState.WAITING]
    seeds = [search.study.settings.seed, waiting[0] if waiting else len(slots(known))]
    if search.workers > 1 or search.url is not None:  # workers that ask at the same time must not get the same
        place = hashlib.sha256(f"{os.uname().nodename} {os.getpid()}".encode()).digest()
        seeds.append(int.from_bytes(place[:4], "big"))
    trials.sampler = search.study.sampler(seed_of(Stream.SAMPLER, *seeds) % 2**32)
    trial = trials.ask()
    worker.sign(trial)
    return trial


def _run_next(search: Search, trials: optuna.Study, worker: Worker, index: int) -> None:
    """Take a trial, run it, and tell how it went; what interrupts it puts it back.

    Raises:
        OSError: where the place to write is to blame, not the trial.
    """
    mine: list[optuna.Trial] = []
    try:
        with uninterrupted():
            mine.append(take(search, trials, worker))
        outcome = _outcome(search, trials, mine[0], index)
        with uninterrupted():
            record(search, trials, mine[0], outcome)
    except UpdateFinishedTrialError:
        return  # others took this worker for dead, and were quicker
    except BaseException:
        with uninterrupted():
            for trial in mine:
                put_back(trials, trial)
        raise


def _outcome(search: Search, trials: optuna.Study, trial: optuna.Trial, index: int) -> Outcome | Exception:
    """What a trial found out, or what it raised; Ctrl-C stops it in training, but never in the middle of a write."""
    started = time.monotonic()
    try:
        with uninterrupted():
            case, others = prepare(search, trials, trial, index), rivals(search.study, trials)
        if isinstance(case, Outcome):
            return case
        return run_trial(case, search.folder, wanted_quantities(search.study.settings), others)
    except (*LOST, UpdateFinishedTrialError, OSError):
        raise
    except Exception as error:
        trial.set_user_attr("seconds", time.monotonic() - started)
        return error


def record(search: Search, trials: optuna.Study, trial: optuna.Trial, outcome: Outcome | Exception) -> None:
    """Tell how a trial went; nothing if others took its worker for dead: its next attempt finds what it has run."""
    if trials._storage.get_trial(trial._trial_id).state != TrialState.RUNNING:
        return
    try:
        if isinstance(outcome, Exception):
            raise outcome
        trials.tell(trial, conclude(search.study, trial, outcome), TrialState.COMPLETE)
    except optuna.TrialPruned:
        trials.tell(trial, state=TrialState.PRUNED)
    except UpdateFinishedTrialError:
        return
    except (*LOST, OSError):
        raise
    except Exception as error:
        trial.set_user_attr("error", said_by(getattr(error, "cause", None) or error))  # Ray keeps a task's error there
        trials.tell(trial, state=TrialState.FAIL)


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
    if len(slots(known[: trial.number])) >= search.trials:
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
    case = search.study.case(f"{trial.number:04d}", values)
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


def enough(search: Search, known: list[FrozenTrial], begun: frozenset[int]) -> bool:
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


def refuse_failures(trials: optuna.Study, begun: frozenset[int]) -> None:
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


def _nothing_but_failures(known: list[FrozenTrial], begun: frozenset[int]) -> bool:
    """Whether several trials have failed since the command began, and none has not."""
    finished = [trial for trial in slots(known) if trial.state.is_finished() and trial.number not in begun]
    failed = [trial for trial in finished if error_of(trial)]
    return len(failed) >= HASTY_FAILURES and len(failed) == len(finished)
