"""Where a search keeps its trials, and how the trials of killed workers come back."""

import os
import re
import socket
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, GrpcStorageProxy, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from energytl.study.settings import Study, StudyError

JOURNAL = "journal.log"
"""The default storage: a file in the folder of the search, for one machine or a shared file system."""

HEARTBEAT_S = 15
"""How often a worker tells a database that it is alive; after four times this without a word its trial comes back."""

RETRIES = 5
"""How often a trial whose worker was killed comes back; after that it has failed."""

FORMATS = "postgresql://USER:PASSWORD@HOST/DATABASE, another database of SQLAlchemy's, or grpc://HOST:PORT"

optuna.logging.set_verbosity(optuna.logging.ERROR)  # progress and errors are shown by the search itself


def open_storage(url: str | None, folder: Path, heartbeat_s: int = HEARTBEAT_S) -> BaseStorage:
    """Connect to where trials are kept.

    Args:
        url: a database, with heartbeats; or Optuna's proxy for one, grpc://host:port; None: a journal file.
        folder: of the search, where the journal file lies.
        heartbeat_s: between signs of life.

    Raises:
        StudyError: in one line without the password, if it cannot be reached.
    """
    try:
        if url is None:
            folder.mkdir(parents=True, exist_ok=True)
            return JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
        if url.startswith("grpc://"):
            host, _, port = url.removeprefix("grpc://").partition(":")
            return _reachable(GrpcStorageProxy(host=host, port=int(port)))
        return RDBStorage(
            url.replace("postgresql://", "postgresql+psycopg://", 1),
            heartbeat_interval=heartbeat_s,
            grace_period=4 * heartbeat_s,
            heartbeat_stale_trial_callback=_retry,
        )
    except (SQLAlchemyError, ImportError, ValueError, OSError, RuntimeError) as error:
        raise StudyError(f"storage {_without_password(str(url))} cannot be used: {_reason(error)}") from error


def _reachable(proxy: GrpcStorageProxy) -> GrpcStorageProxy:
    """Wait shortly for a proxy's server."""
    try:
        proxy.wait_server_ready(timeout=10)
    except Exception as error:  # whatever grpc raises
        raise OSError("no server answers there; start one with optuna.storages.run_grpc_proxy_server") from error
    return proxy


def _reason(error: Exception) -> str:
    """An error's own first line, without addresses of its manual."""
    if isinstance(error, ModuleNotFoundError) and "psycopg" in str(error):
        return "psycopg is not installed: pip install 'energytl[postgresql]'"
    text = " ".join(re.sub(r"\(Background on this error.*", "", str(error), flags=re.DOTALL).split())
    cause = _without_password(text)
    return cause if isinstance(error, OperationalError | OSError) else f"{cause} (allowed: {FORMATS})"


def _without_password(text: str) -> str:
    return re.sub(r"(://[^:@/\s]+):[^@\s]*@", r"\1:***@", text)


def open_study(study: Study, storage: BaseStorage) -> optuna.Study:
    """The search's trials so far.

    Raises:
        StudyError: if a search of that name asked for something else.
    """
    asked = identity(study)
    opened = optuna.create_study(
        study_name=study.name,
        storage=storage,
        directions=["minimize"] * len(study.settings.objectives),
        load_if_exists=True,
    )
    before = opened.user_attrs.get("asked")
    if before is None:
        opened.set_user_attr("asked", asked)
        return opened
    changed = [key for key in asked if asked[key] != before.get(key)]
    if changed:
        raise StudyError(
            f"the search {study.name!r} began with other {', '.join(changed)}: give the study file another name, "
            "choose another --out, or set it back"
        )
    return opened


def identity(study: Study) -> dict[str, Any]:
    """What must stay the same for trials to be comparable, as JSON has it."""
    settings = study.settings
    return {
        "objectives": [*settings.objectives],
        "vary": settings.vary,
        "recipe": settings.recipe,
        "case": settings.case,
        "settings": settings.settings,
        "constraints": {name: [bound.at_least, bound.at_most] for name, bound in settings.constraints.items()},
        "overrides": [*study.overrides],
    }


def sign(trial: optuna.Trial) -> None:
    """Note who runs a trial."""
    trial.set_user_attr("worker", [socket.gethostname(), os.getpid()])


def revive(study: optuna.Study) -> None:
    """Queue the trials of killed workers again: those without heartbeat, and those of processes that died here."""
    optuna.storages.fail_stale_trials(study)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        host, process = trial.user_attrs.get("worker", (None, 0))
        if host == socket.gethostname() and not _alive(process):
            queue_again(study, trial)


def queue_again(study: optuna.Study, trial: FrozenTrial) -> None:
    """Fail a trial, and queue its like, unless another worker has done so."""
    try:
        if not study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL):
            return
    except UpdateFinishedTrialError:
        return
    _retry(study, study._storage.get_trial(trial._trial_id))


_retry = RetryHeartbeatStaleTrialCallback(max_retry=RETRIES)


def original(trial: FrozenTrial) -> int:
    """Number of the trial that this one repeats, or its own."""
    number = RetryHeartbeatStaleTrialCallback.retried_trial_number(trial)
    return trial.number if number is None else number


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
