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
from energytl.study.settings import read_study
from energytl.study.storage import open_storage, slots


def settled(trials: optuna.Study, count: int) -> None:
    """So many trials count, and each has succeeded."""
    assert [trial.state for trial in slots(trials.trials)] == [TrialState.COMPLETE] * count


@pytest.mark.slow
def test_four_workers_on_postgresql_of_which_one_is_killed(postgresql, study, study_file, tmp_path, wait_for):
    study_file("killed")
    command = [sys.executable, "-m", "energytl.cli", "search", str(tmp_path / "killed.yaml"), "--storage", postgresql]
    command += ["--workers", "4", "--trials", "6", "--out", str(tmp_path / "logs")]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def workers():
        with open_storage(postgresql, tmp_path) as storage:
            if "killed" not in optuna.get_all_study_names(storage):
                return []
            trials = optuna.load_study(study_name="killed", storage=storage)
            return [t for t in trials.get_trials(states=(TrialState.RUNNING,)) if "worker" in t.user_attrs and t.params]

    victim = wait_for(workers)[0]
    os.kill(int(victim.user_attrs["worker"].split()[-1]), signal.SIGKILL)
    out, error = running.communicate(timeout=1800)  # a limit for what never ends
    assert running.returncode == 0, error
    assert "was killed (SIGKILL); its trial is repeated" in error
    with open_storage(postgresql, tmp_path) as storage:
        trials = optuna.load_study(study_name="killed", storage=storage)
        settled(trials, 6)
        known = trials.trials
    assert known[victim.number].user_attrs["killed"] == 1
    assert victim.params.items() <= known[victim.number].params.items()  # it may die between two suggestions
    assert "6 trials: 6 measured; 1 of them repeated" in out


def test_a_worker_of_another_machine_without_a_sign_of_life_is_given_up(postgresql, study, tmp_path, formula):
    search = Search(study(), tmp_path / "silent", postgresql, 3, heartbeat_s=0.1)
    give_silent_worker_up(search)
    assert sorted(formula) == ["0000", "0001", "0002"]


def give_silent_worker_up(search: Search) -> None:
    """A worker of another machine has stopped after its first sign of life and two suggestions."""
    with search.open() as trials:
        lost = trials.ask()
        lost.set_user_attr("worker", "worker elsewhere 1")
        trials.set_user_attr("worker elsewhere 1", 1.0)
        search.study.suggest(lost)
        run_search(search)
        settled(trials, 3)
        assert trials.trials[0].params == lost.params


def test_workers_through_optunas_proxy(postgresql, study_file, tmp_path, formula):
    """The proxy has no heartbeats of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with open_storage(postgresql, tmp_path) as storage, ThreadPoolExecutor(2) as threads:
        server = make_server(storage, "127.0.0.1", port, threads)
        server.start()
        search = Search(read_study(study_file("proxied"), []), tmp_path, f"grpc://127.0.0.1:{port}", 3, heartbeat_s=0.1)
        give_silent_worker_up(search)
        server.stop(None).wait()


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'energytl[ray]'")
def test_two_tasks_on_a_local_ray_cluster(study, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_worker_niceness", "0")  # Ray's 15 takes minutes to import torch beside other tests
    for limit in ("raylet_start_wait_time_s", "worker_register_timeout_seconds", "gcs_server_request_timeout_seconds"):
        monkeypatch.setenv(f"RAY_{limit}", "600")  # a busy machine is no failure
    search = Search(study(constraints={"accuracy": {"at_least": 0.1}}), tmp_path / "tiny_search", None, 4)
    run_on_ray(search, 2)
    with search.open() as trials:
        settled(trials, 4)
        found = points(search.study.settings, trials.trials)
    assert front(found)
    assert all(0.1 <= point.numbers["accuracy"] <= 1 and point.numbers["energy_paper"] > 0 for point in front(found))
    assert {path.name for path in (tmp_path / "tiny_search" / "trials").glob("????")} == {f"{n:04d}" for n in range(4)}
