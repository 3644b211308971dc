"""Trials as tasks of a Ray cluster: the driver suggests and records, the tasks only compute."""

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from energytl.progress import Bar
from energytl.recipe import Case, parse
from energytl.study.search import (
    POLL_S,
    Progress,
    Search,
    enough,
    finished_before,
    prepare,
    record,
    refuse_failures,
    rivals,
    take,
    uninterrupted,
    wanted,
    wanted_quantities,
)
from energytl.study.settings import StudyError
from energytl.study.storage import LOST, RETRIES, Worker, put_back
from energytl.study.trial import Outcome, Rivals, run_trial


def run_on_ray(search: Search, tasks: int | None) -> None:
    """Run trials on the cluster that Ray finds, or on a new one on this machine, until there are enough.

    Args:
        search: whose folder the tasks' machines share, or keep for themselves.
        tasks: trials at once; None: as many as the cluster has processors, or GPUs.

    Raises:
        StudyError: without Ray, or if nothing but failures comes out.
    """
    try:
        import ray
    except ImportError as error:
        raise StudyError("--cluster ray wants Ray: pip install 'energytl[ray]'") from error
    ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    resources = ray.cluster_resources()
    gpus = 1 if resources.get("GPU") else 0
    tasks = tasks or max(1, int(resources["GPU" if gpus else "CPU"]))
    search = replace(search, workers=tasks)
    remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(_task)
    try:
        with search.open() as trials, Worker(trials, search.command, search.heartbeat_s) as driver:
            search.note_study()
            begun = finished_before(trials)
            _drive(ray, remote, search, begun, trials, driver)
            refuse_failures(trials, begun)
    finally:
        ray.shutdown()


def _drive(
    ray: Any,  # noqa: ANN401
    remote: Any,  # noqa: ANN401
    search: Search,
    begun: frozenset[int],
    trials: optuna.Study,
    driver: Worker,
) -> None:
    """Keep the cluster busy until there are enough trials."""
    taken: list[optuna.Trial] = []
    running: dict[Any, optuna.Trial] = {}
    try:
        with Bar(total=search.trials, desc=search.study.name, unit="trial") as bar:
            progress = Progress(bar, search, trials)
            while True:
                progress.look()
                known = trials.get_trials(deepcopy=False)
                ended = enough(search, known, begun)
                if len(running) < search.workers and wanted(search, known) and not ended:
                    with uninterrupted():
                        taken.append(take(search, trials, driver))
                    reference = _submit(search, trials, taken[-1], remote)
                    if reference is not None:
                        running[reference] = taken[-1]
                elif running:
                    for done in ray.wait(list(running), num_returns=1, timeout=POLL_S)[0]:
                        with uninterrupted():
                            record(search, trials, running.pop(done), _result(ray, done))
                elif not ended and any(trial.state == TrialState.RUNNING for trial in known):
                    time.sleep(min(POLL_S, search.heartbeat_s))  # of other commands
                else:
                    return
    except BaseException:
        with uninterrupted():
            for trial in taken:
                put_back(trials, trial)
        raise


def _submit(search: Search, trials: optuna.Study, trial: optuna.Trial, remote: Any) -> Any:  # noqa: ANN401
    """Start a trial's task; None if it needs none."""
    try:
        started = prepare(search, trials, trial, None)
    except (*LOST, OSError):
        raise
    except Exception as error:
        record(search, trials, trial, error)
        return None
    if isinstance(started, Outcome):
        record(search, trials, trial, started)
        return None
    others = rivals(search.study, trials)
    quantities = wanted_quantities(search.study.settings)
    return remote.remote(started.name, started.as_yaml(), str(search.folder.absolute()), quantities, others)


def _result(ray: Any, reference: Any) -> Outcome | Exception:  # noqa: ANN401
    """What a task returned or raised."""
    try:
        outcome: Outcome = ray.get(reference)
    except Exception as error:
        return error
    return outcome


def _task(name: str, recipe: str, folder: str, quantities: tuple[str, ...], others: Rivals | None) -> Outcome:
    """A trial on one of the cluster's machines."""
    return run_trial(Case(name, parse(recipe)), Path(folder), quantities, others)
