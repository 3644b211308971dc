"""Where a search keeps its trials, who works on them, and how the trials of killed workers come back."""

import os
import re
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from grpc import RpcError
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, GrpcStorageProxy, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, event, make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from energytl.recipe import flat
from energytl.study.settings import Study, StudyError
from energytl.study.trial import TRIALS

DATABASE = "trials.db"
"""The default storage: an SQLite file in the folder of the search, for the processes of one machine."""

OLD_JOURNAL = "journal.log"
"""The default storage of earlier versions."""

HEARTBEAT_S = 15.0
"""How often a worker gives a sign of life; after four times this without a word its trial comes back."""

RETRIES = 5
"""How often a trial whose worker was killed comes back; after that it has failed."""

BUSY_S = 60
"""How long a process waits for others that write to the same SQLite file."""

FORMATS = "postgresql://USER:PASSWORD@HOST/DATABASE, another database of SQLAlchemy's, or grpc://HOST:PORT"

PLACES = ("data.init_args.root", "trainer", "weights")
"""Recipe keys that say where and how a trial runs, not what it finds out: machines of one search may differ in them."""

LOST = (SQLAlchemyError, StorageInternalError, RpcError, sqlite3.Error)
"""What the storage raises where it cannot be reached, read or written."""

optuna.logging.set_verbosity(optuna.logging.ERROR)  # progress and errors are shown by the search itself


@contextmanager
def open_storage(url: str | None, folder: Path) -> Iterator[BaseStorage]:
    """Connect to where trials are kept, for as long as the context lasts.

    Args:
        url: a database; or Optuna's proxy for one, grpc://host:port; None: an SQLite file in the folder.
        folder: of the search.

    Raises:
        StudyError: in one line without the password, if it cannot be reached, is damaged, or is lost.
    """
    named = f"storage {_without_password(url)}" if url is not None else f"the file {folder / DATABASE}"
    if url is None and (folder / OLD_JOURNAL).is_file() and not (folder / DATABASE).is_file():
        raise StudyError(
            f"{folder / OLD_JOURNAL} holds the trials of an earlier version, which this one does not read: move it "
            "away, and the same command begins anew"
        )
    try:
        storage = _connect(url, folder)
    except (*LOST, ImportError, ValueError, LookupError, OSError, RuntimeError) as error:
        if _damaged(error):
            raise StudyError(f"{named} is damaged{_advice(error, folder)}") from error
        raise StudyError(f"{named} cannot be used: {_reason(error, url)}") from error
    try:
        yield storage
    except LOST as error:
        said = "is damaged" if _damaged(error) else f"was lost: {_reason(error, url)}"
        raise StudyError(f"{named} {said}{_advice(error, folder)}") from error
    finally:
        if isinstance(storage, RDBStorage):
            storage.remove_session()
            storage.engine.dispose()
        elif isinstance(storage, GrpcStorageProxy):
            storage.close()


def _connect(url: str | None, folder: Path) -> BaseStorage:
    if url is None:
        folder.mkdir(parents=True, exist_ok=True)
        return _sqlite(folder / DATABASE, folder)
    if url.startswith("grpc://"):
        return _proxy(url)
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise ValueError("it names no file, so other processes would not see it; leave out --storage")
        return _sqlite(Path(parsed.database), folder)
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    plain = parsed.render_as_string(hide_password=False)
    return RDBStorage(plain.replace("{", "{{").replace("}", "}}"))  # Optuna formats it


def _sqlite(path: Path, folder: Path) -> RDBStorage:
    """An SQLite file whose writing may stop at any byte: what was committed before is there.

    With a write-ahead log, pages of the file are overwritten only by what the log holds in full, with checksums; every
    transaction takes the right to write where it begins, so that no two workers take the same trial.

    Raises:
        sqlite3.DatabaseError: if the file is damaged.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}")
    if path.is_file() and path.stat().st_size == 0 and (folder / TRIALS).is_dir():
        raise sqlite3.DatabaseError("it is empty")
    with FileLock(path.with_name(f"{path.name}.lock"), mode=0o666):  # tables are made one after the other
        storage = RDBStorage(
            "sqlite:///" + str(path).replace("{", "{{").replace("}", "}}"),
            engine_kwargs={"connect_args": {"timeout": BUSY_S, "isolation_level": None}},
        )
        with storage.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
            page = int(connection.exec_driver_sql("PRAGMA page_size").scalar() or 1)
            if path.stat().st_size % page:  # pages that a full disk left half, and that the log has whole
                connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)")
            if found != "ok" or path.stat().st_size % page:
                raise sqlite3.DatabaseError(found if found != "ok" else "its end is missing")

    @event.listens_for(storage.engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return storage


def _proxy(url: str) -> GrpcStorageProxy:
    host, _, port = url.removeprefix("grpc://").partition(":")
    proxy = GrpcStorageProxy(host=host, port=int(port))
    try:
        proxy.wait_server_ready(timeout=10)
    except Exception as error:  # whatever grpc raises
        proxy.close()
        raise OSError("no server answers there; start one with optuna.storages.run_grpc_proxy_server") from error
    return proxy


def _cause(error: BaseException) -> BaseException:
    """What a driver raised, without what SQLAlchemy and Optuna say around it."""
    if isinstance(error, StorageInternalError | ImportError) and error.__cause__ is not None:
        return _cause(error.__cause__)
    if isinstance(error, DBAPIError) and error.orig is not None:
        return error.orig
    return error


def _damaged(error: BaseException) -> bool:
    """Whether an SQLite file is no longer one."""
    cause = _cause(error)
    code = getattr(cause, "sqlite_errorcode", None)
    if code is None:
        return type(cause) is sqlite3.DatabaseError
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _advice(error: BaseException, folder: Path) -> str:
    if _damaged(error):
        return (
            f" ({_reason(error, None)}): move it away, and the same command begins anew; finished runs stay in "
            f"{folder / TRIALS}, and one whose settings come up again is not trained again"
        )
    full = getattr(_cause(error), "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
    return f"; what is finished is kept: {'make room, and ' if full else ''}the same command goes on"


def _reason(error: BaseException, url: str | None) -> str:
    """An error's own words, without addresses of manuals, and what is allowed where the URL is wrong."""
    cause = _cause(error)
    if isinstance(cause, ImportError) and "psycopg" in str(cause):
        return "psycopg is not installed: pip install 'energytl[postgresql]'"
    text = " ".join(re.sub(r"\(Background on this error.*", "", str(cause), flags=re.DOTALL).split())
    known = url is None or isinstance(error, DBAPIError | StorageInternalError | RpcError | OSError)
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
    directions = [StudyDirection.MINIMIZE] * len(study.settings.objectives)
    opened = optuna.create_study(study_name=study.name, storage=storage, directions=directions, load_if_exists=True)
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
    """One process that works on trials; as long as it lives it gives signs of life in the storage.

    Args:
        study: whose trials.
        command: name of the command that it belongs to, unlike all others.
        heartbeat_s: between its signs.
    """

    def __init__(self, study: optuna.Study, command: str, heartbeat_s: float) -> None:
        self.name = worker_name(command, os.getpid())
        self._study, self._heartbeat_s = study, heartbeat_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)

    def __enter__(self) -> "Worker":
        """Begin to live."""
        self._sign_of_life()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._ended.set()
        self._thread.join()

    def sign(self, trial: optuna.Trial) -> None:
        """Note who runs a trial."""
        trial.set_user_attr("worker", self.name)

    def _live(self) -> None:
        while not self._ended.wait(self._heartbeat_s):
            try:
                self._sign_of_life()
            except LOST:
                continue  # the storage may be back by the next one; if not, the next trial says so
        self._study._storage.remove_session()

    def _sign_of_life(self) -> None:
        self._study.set_user_attr(self.name, time.time())


def worker_name(command: str, process: int) -> str:
    """How the storage knows a process of a command; no process was called so before."""
    return f"worker {command} {process}"


class Lookout:
    """What one process has seen of those who work on trials.

    Signs of life are only compared with earlier ones, so that clocks may differ between machines; a trial whose worker
    was stopped before it could sign counts as without a sign.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[object, float]] = {}

    def silences(self, study: optuna.Study) -> list[tuple[FrozenTrial, float]]:
        """The trials that run, and for how long (s) their worker has given no sign of life, as far as was seen."""
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        signs, now = (study.user_attrs if running else {}), time.monotonic()
        seen = {}
        for trial in running:
            worker = trial.user_attrs.get("worker", "")
            sign = (trial.datetime_start, worker, signs.get(worker))
            before = self._seen.get(trial.number, (None, now))
            seen[trial.number] = before if before[0] == sign else (sign, now)
        self._seen = seen
        return [(trial, now - seen[trial.number][1]) for trial in running]


def give_up(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queue the trial of a killed worker again, under its number and with its values; at most RETRIES times."""
    killed = trial.user_attrs.get("killed", 0) + 1
    try:
        study._storage.set_trial_user_attr(trial._trial_id, "killed", killed)
        if killed <= RETRIES:
            put_back(study, trial)
            return
        study._storage.set_trial_user_attr(trial._trial_id, "error", f"its worker was killed {killed} times")
        study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    except UpdateFinishedTrialError:
        return


def put_back(study: optuna.Study, trial: optuna.Trial | FrozenTrial) -> None:
    """Queue a trial that was begun, unless it has ended, or another worker has taken it since."""
    now = study._storage.get_trial(trial._trial_id)
    if now.state == TrialState.RUNNING and now.user_attrs.get("worker") == trial.user_attrs.get("worker"):
        study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)


def slots(known: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that count: none that was taken too many."""
    return [trial for trial in known if not trial.user_attrs.get("surplus")]


def error_of(trial: FrozenTrial) -> str | None:
    """Why a trial has failed for good; None if it has not."""
    return str(trial.user_attrs.get("error", "nobody knows why")) if trial.state == TrialState.FAIL else None
