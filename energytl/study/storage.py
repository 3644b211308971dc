"""Where a search keeps its trials, who works on them, and how the trials of killed workers come back."""

import os
import re
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, GrpcStorageProxy, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from energytl.recipe import flat
from energytl.study.settings import Study, StudyError

JOURNAL = "journal.log"
"""The default storage: a file in the folder of the search, for one machine or a shared file system."""

HEARTBEAT_S = 15
"""How often a worker tells a database that it is alive; after four times this without a word its trial comes back."""

RETRIES = 5
"""How often a trial whose worker was killed comes back; after that it has failed."""

FORMATS = "postgresql://USER:PASSWORD@HOST/DATABASE, another database of SQLAlchemy's, or grpc://HOST:PORT"

PLACES = ("data.init_args.root", "trainer", "weights")
"""Recipe keys that say where and how a trial runs, not what it finds out: machines of one search may differ in them."""

optuna.logging.set_verbosity(optuna.logging.ERROR)  # progress and errors are shown by the search itself


@contextmanager
def open_storage(url: str | None, folder: Path, heartbeat_s: int = HEARTBEAT_S) -> Iterator[BaseStorage]:
    """Connect to where trials are kept, for as long as the context lasts.

    Args:
        url: a database, with heartbeats; or Optuna's proxy for one, grpc://host:port; None: a journal file.
        folder: of the search, where the journal file lies.
        heartbeat_s: between signs of life to a database; 0: none.

    Raises:
        StudyError: in one line without the password, if it cannot be reached, or is lost.
    """
    named = f"storage {_without_password(url)}" if url else f"the file {folder / JOURNAL}"
    try:
        storage = _connect(url, folder, heartbeat_s)
    except (SQLAlchemyError, ImportError, ValueError, OSError, RuntimeError) as error:
        raise StudyError(f"{named} cannot be used: {_reason(error, url)}") from error
    try:
        yield storage
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise StudyError(f"{named} was lost: {_reason(error, url)}; to go on, repeat the command") from error
    finally:
        if isinstance(storage, RDBStorage):
            storage.remove_session()
            storage.engine.dispose()
        elif isinstance(storage, GrpcStorageProxy):
            storage.close()


def _connect(url: str | None, folder: Path, heartbeat_s: int) -> BaseStorage:
    if url is None:
        folder.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    if not url.startswith("grpc://"):
        return RDBStorage(
            url.replace("postgresql://", "postgresql+psycopg://", 1),
            heartbeat_interval=heartbeat_s or None,
            grace_period=4 * heartbeat_s or None,
            heartbeat_stale_trial_callback=queue_again,
        )
    host, _, port = url.removeprefix("grpc://").partition(":")
    proxy = GrpcStorageProxy(host=host, port=int(port))
    try:
        proxy.wait_server_ready(timeout=10)
    except Exception as error:  # whatever grpc raises
        proxy.close()
        raise OSError("no server answers there; start one with optuna.storages.run_grpc_proxy_server") from error
    return proxy


def _reason(error: Exception, url: str | None) -> str:
    """An error's own words, without addresses of manuals, and what is allowed where the URL is wrong."""
    if isinstance(error, ModuleNotFoundError) and "psycopg" in str(error):
        return "psycopg is not installed: pip install 'energytl[postgresql]'"
    text = " ".join(re.sub(r"\(Background on this error.*", "", str(error), flags=re.DOTALL).split())
    known = url is None or isinstance(error, OperationalError | OSError)
    return _without_password(text) if known else f"{_without_password(text)} (allowed: {FORMATS})"


def _without_password(text: str) -> str:
    """Text without what may be a password in a URL.

    >>> _without_password("postgresql://me:s@cret@host/db?password=more")
    'postgresql://me:***@host/db?password=***'
    """
    masked = re.sub(r"(://[^:/@\s]*):\S*@", r"\1:***@", text)
    return re.sub(r"(passw(?:or)?d=)[^&\s]*", r"\1***", masked)


def open_study(study: Study, storage: BaseStorage) -> optuna.Study:
    """The search's trials so far.

    Raises:
        StudyError: if a search of that name asked for something else.
    """
    asked = identity(study)
    names = optuna.get_all_study_names(storage)
    directions = [StudyDirection.MINIMIZE] * len(study.settings.objectives)
    opened = optuna.create_study(
        study_name=study.name, storage=storage, directions=directions, load_if_exists=study.name in names
    )
    before = opened.user_attrs.get("asked")
    if before is None or not opened.get_trials(deepcopy=False):
        opened.set_user_attr("asked", asked)
        return opened
    changed = [key for key in asked | before if asked.get(key) != before.get(key)]
    if changed or len(opened.directions) != len(directions):
        raise StudyError(
            f"the search {study.name!r} began with another {', '.join(changed[:5])}: set it back, or give the study "
            "file another name"
        )
    return opened


def identity(study: Study) -> dict[str, Any]:
    """What must stay the same for trials to be comparable, as JSON has it: the study, and the recipe but for places."""
    settings = study.settings
    recipe = flat(study.case(study.name, study.example()).resolved())
    left_out = (*PLACES, *settings.vary)
    kept = {key: value for key, value in recipe.items() if not any(f"{key}.".startswith(f"{k}.") for k in left_out)}
    return {
        "objectives": [*settings.objectives],
        "vary": settings.vary,
        "constraints": {name: [bound.at_least, bound.at_most] for name, bound in settings.constraints.items()},
    } | kept


class Worker:
    """One process that works on trials; as long as it lives it holds a lock, by which others know.

    Args:
        folder: of the search, on a file system that workers share.
    """

    def __init__(self, folder: Path) -> None:
        self.name = uuid.uuid4().hex
        self._lock = FileLock(_lock_file(folder, self.name))

    def __enter__(self) -> "Worker":
        """Begin to live."""
        Path(self._lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._lock.release()
        Path(self._lock.lock_file).unlink(missing_ok=True)

    def sign(self, trial: optuna.Trial) -> None:
        """Note who runs a trial."""
        trial.set_user_attr("worker", [self.name, os.getpid()])


def _lock_file(folder: Path, worker: str) -> Path:
    return folder / "workers" / f"{worker}.lock"


def revive(study: optuna.Study, folder: Path) -> None:
    """Queue the trials of killed workers again: those whose heartbeat or whose lock in this folder has gone."""
    optuna.storages.fail_stale_trials(study)
    if optuna.storages._heartbeat.is_heartbeat_enabled(study._storage):
        return
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        lock = _lock_file(folder, trial.user_attrs["worker"][0]) if "worker" in trial.user_attrs else None
        if lock is not None and lock.is_file() and _is_free(lock):
            give_up(study, trial)


def _is_free(lock: Path) -> bool:
    try:
        with FileLock(lock, timeout=0):
            return True
    except Timeout:
        return False


def give_up(study: optuna.Study, trial: FrozenTrial) -> None:
    """Fail a running trial and queue its like, unless another worker has done so."""
    try:
        if study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL):
            queue_again(study, trial)
    except UpdateFinishedTrialError:
        return


def queue_again(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queue the like of a failed trial, at most RETRIES times."""
    history = [*trial.system_attrs.get("retry_history", []), trial.number]
    if len(history) > RETRIES:
        return
    again = create_trial(
        state=TrialState.WAITING,
        params=trial.params,
        distributions=trial.distributions,
        system_attrs={"failed_trial": original(trial), "retry_history": history},
    )
    study.add_trial(again)


def queue_lost(study: optuna.Study) -> None:
    """Queue again what failed without an error and was not queued: its worker was killed in between."""
    known = study.get_trials(deepcopy=False)
    queued = {number for trial in known for number in trial.system_attrs.get("retry_history", [])}
    for trial in known:
        if trial.state == TrialState.FAIL and "error" not in trial.user_attrs and trial.number not in queued:
            queue_again(study, trial)


def original(trial: FrozenTrial) -> int:
    """Number of the trial that this one repeats, or its own."""
    return int(trial.system_attrs.get("failed_trial", trial.number))


def slots(known: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that count, each as its last attempt: none that was taken too many."""
    last = {original(trial): trial for trial in known}
    return [trial for trial in last.values() if not trial.user_attrs.get("surplus")]


def attempts(known: Iterable[FrozenTrial]) -> Counter[int]:
    """How often each trial was tried, by the number of its first attempt."""
    return Counter(original(trial) for trial in known if not trial.user_attrs.get("surplus"))


def error_of(trial: FrozenTrial) -> str | None:
    """Why a trial has failed for good; None if it has not."""
    if trial.state != TrialState.FAIL:
        return None
    return str(trial.user_attrs.get("error", f"its worker was killed {RETRIES + 1} times"))
