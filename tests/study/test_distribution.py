"""Searches over a PostgreSQL server, Optuna's proxy, and Ray."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest
from optuna.storages._grpc.server import make_server
from optuna.trial import TrialState

from energytl.study.front import front, points
from energytl.study.ray_cluster import run_on_ray
from energytl.study.search import Search, run_search
from energytl.study.storage import open_storage, original, slots


def settled(trials: optuna.Study, count: int) -> None:
    """So many trials count, and each has succeeded once."""
    done = [original(trial) for trial in trials.trials if trial.state == TrialState.COMPLETE]
    assert len(slots(trials.trials)) == count
    assert sorted(done) == sorted(original(trial) for trial in slots(trials.trials))
    assert not any(trial.state in (TrialState.RUNNING, TrialState.WAITING) for trial in trials.trials)


def test_four_workers_on_postgresql_of_which_one_is_killed(postgresql, study, study_file, tmp_path, wait_for):
    study_file("killed")
    command = [sys.executable, "-m", "energytl.cli", "search", str(tmp_path / "killed.yaml"), "--storage", postgresql]
    command += ["--workers", "4", "--trials", "6", "--heartbeat", "1", "--out", str(tmp_path / "logs")]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def workers():
        with open_storage(postgresql, tmp_path) as storage:
            if "killed" not in optuna.get_all_study_names(storage):
                return []
            trials = optuna.load_study(study_name="killed", storage=storage)
            return [t for t in trials.get_trials(states=(TrialState.RUNNING,)) if "worker" in t.user_attrs and t.params]

    victim = wait_for(workers)[0]
    os.kill(victim.user_attrs["worker"][1], signal.SIGKILL)
    out, error = running.communicate(timeout=300)
    assert running.returncode == 0, error
    assert "was killed (SIGKILL); its trial is repeated" in error
    with open_storage(postgresql, tmp_path) as storage:
        trials = optuna.load_study(study_name="killed", storage=storage)
        settled(trials, 6)
        known = trials.trials
    assert known[victim.number].state == TrialState.FAIL
    (again,) = (t for t in known if original(t) == victim.number and t.state == TrialState.COMPLETE)
    assert known[victim.number].params.items() <= again.params.items()  # it may die between two suggestions
    assert "6 trials: 6 measured; 1 of them repeated" in out


def test_a_worker_of_another_machine_without_heartbeat_is_given_up(postgresql, study, tmp_path, formula):
    search = Search(study(name="silent"), tmp_path / "silent", postgresql, 3, heartbeat_s=1)
    with search.open() as trials:
        with pytest.warns(UserWarning, match="Heartbeat"):  # which this test records itself
            lost = trials.ask()
        search.study.suggest(lost)
        lost.set_user_attr("worker", ["elsewhere", 1])
        trials._storage._backend.record_heartbeat(lost._trial_id)
        run_search(search)
        settled(trials, 3)
        assert trials.trials[0].state == TrialState.FAIL
    assert "0000" in formula


def test_workers_through_optunas_proxy(postgresql, study, tmp_path, formula):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with open_storage(postgresql, tmp_path) as storage, ThreadPoolExecutor(2) as threads:
        server = make_server(storage, "127.0.0.1", port, threads)
        server.start()
        search = Search(study(name="proxied"), tmp_path / "proxied", f"grpc://127.0.0.1:{port}", 4)
        run_search(search)
        with search.open() as trials:
            settled(trials, 4)
        server.stop(None).wait()


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'energytl[ray]'")
def test_two_tasks_on_a_local_ray_cluster(study, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_worker_niceness", "0")  # Ray's 15 takes minutes to import torch beside other tests
    search = Search(study(constraints={"accuracy": {"at_least": 0.1}}), tmp_path / "tiny_search", None, 4)
    run_on_ray(search, 2)
    with search.open() as trials:
        settled(trials, 4)
        found = points(search.study.settings, trials.trials)
    assert front(found)
    assert all(0.1 <= point.numbers["accuracy"] <= 1 and point.numbers["energy_paper"] > 0 for point in front(found))
    assert {path.name for path in (tmp_path / "tiny_search" / "trials").glob("????")} == {f"{n:04d}" for n in range(4)}
