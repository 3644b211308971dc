"""Trials as tasks of a Ray cluster: the driver suggests and records, the tasks only compute."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna

from energytl.progress import Bar
from energytl.recipe import Case, parse, said_by
from energytl.study.search import (
    Search,
    begin,
    conclude,
    draw,
    enough,
    next_sampler,
    prepare,
    put_back,
    refuse_failures,
    rivals,
    wanted,
    wanted_quantities,
)
from energytl.study.settings import StudyError
from energytl.study.storage import RETRIES, Worker
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
    search = replace(search, workers=tasks, heartbeat_s=0)  # Ray itself repeats the tasks of dead machines
    remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(_task)
    try:
        with search.open() as trials, Worker(search.folder) as driver:
            begun = begin(search, trials)
            _drive(ray, remote, search, begun, trials, driver)
            refuse_failures(trials, begun)
    finally:
        ray.shutdown()


def _drive(
    ray: Any,  # noqa: ANN401
    remote: Any,  # noqa: ANN401
    search: Search,
    begun: int,
    trials: optuna.Study,
    driver: Worker,
) -> None:
    """Keep the cluster busy until there are enough trials."""
    running: dict[Any, optuna.Trial] = {}
    try:
        with Bar(total=search.trials, desc=search.study.name, unit="trial") as bar:
            while True:
                while len(running) < search.workers and _more(search, trials, begun):
                    submitted = _submit(search, trials, driver, remote)
                    if submitted is not None:
                        running[submitted[0]] = submitted[1]
                draw(bar, search, trials)
                if not running:
                    break
                (done, *_), _ = ray.wait(list(running), num_returns=1)
                _record(search, trials, running.pop(done), _result(ray, done))
    except KeyboardInterrupt:
        for trial in running.values():
            put_back(trials, trial)
        raise


def _more(search: Search, trials: optuna.Study, begun: int) -> bool:
    known = trials.get_trials(deepcopy=False)
    return wanted(search, known) and not enough(search, known, begun)


def _submit(
    search: Search,
    trials: optuna.Study,
    driver: Worker,
    remote: Any,  # noqa: ANN401
) -> tuple[Any, optuna.Trial] | None:
    """Ask for a trial and start its task; None if it needs none."""
    next_sampler(search, trials)
    trial = trials.ask()
    driver.sign(trial)
    try:
        started = prepare(search, trials, trial, None)
    except Exception as error:
        _record(search, trials, trial, error)
        return None
    if isinstance(started, Outcome):
        _record(search, trials, trial, started)
        return None
    others = rivals(search.study, trials)
    quantities = wanted_quantities(search.study.settings)
    return remote.remote(started.name, started.as_yaml(), str(search.folder.absolute()), quantities, others), trial


def _record(search: Search, trials: optuna.Study, trial: optuna.Trial, outcome: Outcome | Exception) -> None:
    """Tell how a trial went."""
    try:
        if isinstance(outcome, Exception):
            raise outcome
        trials.tell(trial, conclude(search.study, trial, outcome))
    except optuna.TrialPruned:
        trials.tell(trial, state=optuna.trial.TrialState.PRUNED)
    except Exception as error:
        trial.set_user_attr("error", said_by(getattr(error, "cause", None) or error))
        trials.tell(trial, state=optuna.trial.TrialState.FAIL)


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
