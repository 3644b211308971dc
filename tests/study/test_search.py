"""Searches on one machine: with a formula for trials, and one with real ones."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import optuna
import pytest
from optuna.trial import TrialState

from energytl import cli
from energytl.study import search as search_module
from energytl.study.front import hypervolumes, points
from energytl.study.quantities import QUANTITIES
from energytl.study.search import Search, run_search
from energytl.study.settings import StudyError, read_study
from energytl.study.storage import RETRIES, error_of, give_up, open_storage, put_back, slots


@pytest.fixture
def searched(study, tmp_path, formula):
    """searched(trials, **changes): the trials after a search of the formula."""

    def run(trials: int, folder: str = "logs", **changes) -> optuna.Study:
        search = Search(study(**changes), tmp_path / folder / "tiny_search", None, trials)
        run_search(search)
        with search.open() as trials:
            return trials

    return run


def params(trials: optuna.Study) -> list[dict]:
    return [trial.params for trial in trials.trials]


def test_a_search_goes_on_where_it_stopped_as_if_it_had_not(searched, formula):
    unbroken = searched(12, "unbroken")
    searched(5, "broken")
    broken = searched(12, "broken")
    assert params(broken) == params(unbroken)
    assert len(formula) == 24
    assert [trial.state for trial in broken.trials] == [TrialState.COMPLETE] * 12


@pytest.mark.parametrize("objectives", [["accuracy", "energy_paper"], ["accuracy", "energy_paper", "latency"]])
@pytest.mark.parametrize("sampler", ["TPESampler", "GPSampler", "NSGAIISampler", "NSGAIIISampler"])
def test_two_objectives_and_three_with_every_sampler(objectives, sampler, searched):
    trials = searched(
        12, objectives=objectives, sampler=f"optuna.samplers.{sampler}", constraints={"accuracy": {"at_least": 0.5}}
    )
    for trial in trials.trials:
        assert len(trial.values) == len(objectives)
        assert trial.values[0] == -trial.user_attrs["numbers"]["accuracy"]


def test_values_that_were_measured_before_are_not_run_again(searched, formula):
    trials = searched(12, vary={"hardware.inputs.bits": [3, 4], "hardware.read": ["SingleRead", "BitSerialRead"]})
    assert len(trials.trials) == 12
    assert len(formula) == len({json.dumps(trial.params) for trial in trials.trials}) <= 4
    repeated = [trial for trial in trials.trials if "same_as" in trial.user_attrs]
    assert all(trial.values == trials.trials[trial.user_attrs["same_as"]].values for trial in repeated)
    assert len(points(search_settings(trials), trials.trials)) == len(formula)


def search_settings(trials: optuna.Study):
    """Objectives are all that points need here."""

    class Settings:
        objectives = ("accuracy", "energy_paper")
        constraints = {}  # noqa: RUF012

    return Settings


def test_failed_trials_keep_their_error_and_are_not_repeated(searched, monkeypatch, formula_of):
    calls = []

    def fail_on_single_reads(case, folder, wanted, rivals):
        calls.append(case.name)
        if case.values["hardware.read"] == "SingleRead":
            raise RuntimeError("out\nof memory")
        return search_module.Outcome({name: formula_of(case.values)[name] for name in wanted}, [], 0.01)

    monkeypatch.setattr(search_module, "run_trial", fail_on_single_reads)
    trials = searched(12, vary={"hardware.read": ["SingleRead", "BitSerialRead"], "hardware.inputs.bits": [2, 5]})
    failed = [trial for trial in trials.trials if trial.state == TrialState.FAIL]
    assert failed
    assert failed[0].user_attrs["error"] == "out of memory"
    assert all(trial.user_attrs["error"].endswith("out of memory") for trial in failed)
    assert len(calls) <= 4


def test_a_search_in_which_everything_fails_ends_early(searched, monkeypatch):
    def fail(*_):
        raise ValueError("no such layer")

    monkeypatch.setattr(search_module, "run_trial", fail)
    with pytest.raises(
        StudyError, match="5 have failed, and none since the command began has succeeded; the last: no such layer"
    ):
        searched(50)


def test_a_search_stops_where_the_hypervolume_stagnates(searched, formula):
    trials = searched(
        200,
        stop={"trials": 10, "gain": 0.01},
        vary={"hardware.inputs.bits": {"low": 2, "high": 4}, "hardware.rho": [0.5, 1.0]},
    )
    assert len(trials.trials) < 200
    assert len(formula) > 3


def test_an_interrupted_trial_is_repeated_first(searched, monkeypatch, formula_of):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(search_module, "run_trial", interrupt)
    with pytest.raises(KeyboardInterrupt):
        searched(3)
    monkeypatch.setattr(
        search_module,
        "run_trial",
        lambda case, folder, wanted, rivals: search_module.Outcome(formula_of(case.values), [], 0.0),
    )
    trials = searched(3)
    states = [trial.state for trial in trials.trials]
    assert states == [TrialState.COMPLETE] * 3


def test_a_trial_that_keeps_killing_its_worker_fails_in_the_end(study, tmp_path, formula):
    search = Search(study(), tmp_path / "tiny_search", None, 2)
    with search.open() as trials:
        for _ in range(RETRIES + 1):
            trial = trials.ask()
            search.study.suggest(trial)
            give_up(trials, trials.trials[trial.number])
    run_search(search)
    with search.open() as trials:
        first, second = slots(trials.trials)
    assert error_of(first) == f"its worker was killed {RETRIES + 1} times"
    assert second.state == TrialState.COMPLETE


def test_interruptions_do_not_count_as_kills(study, tmp_path, formula):
    search = Search(study(), tmp_path / "tiny_search", None, 1)
    with search.open() as trials:
        for _ in range(RETRIES + 2):
            put_back(trials, trials.ask())
    run_search(search)
    with search.open() as trials:
        assert [trial.state for trial in trials.trials] == [TrialState.COMPLETE]


def test_a_full_disk_ends_the_search_and_costs_no_trial(searched, monkeypatch, formula_of):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(search_module, "run_trial", full)
    with pytest.raises(StudyError, match=r"No space left.*what is finished is kept.*the same command goes on"):
        searched(3)
    monkeypatch.setattr(
        search_module, "run_trial", lambda case, *_: search_module.Outcome(formula_of(case.values), [], 0.0)
    )
    assert [trial.state for trial in slots(searched(3).trials)] == [TrialState.COMPLETE] * 3


def test_a_trial_taken_beside_the_last_one_is_surplus(study, tmp_path, formula):
    search = Search(study(), tmp_path / "tiny_search", None, 2)
    run_search(search)
    with search.open() as trials:
        trial = trials.ask()
    with pytest.raises(optuna.TrialPruned):
        search_module.prepare(search, trials, trial, 0)
    assert trials.trials[2].user_attrs["surplus"] is True
    assert len(slots(trials.trials)) == 2


def test_another_search_of_the_same_name_is_refused(study, tmp_path, formula):
    run_search(Search(study(), tmp_path / "tiny_search", None, 1))
    for changes in ({"constraints": {"accuracy": {"at_least": 0.9}}}, {"objectives": ["accuracy", "latency"]}):
        other = Search(study(**changes), tmp_path / "tiny_search", None, 1)
        with pytest.raises(StudyError, match=f"began with another {next(iter(changes))}"), other.open():
            pass
    other = Search(study(settings={"train.epochs": 7}), tmp_path / "tiny_search", None, 1)
    with pytest.raises(StudyError, match=r"began with another train\.epochs"), other.open():
        pass


def test_places_may_differ_and_a_search_without_trials_binds_nothing(study, tmp_path, formula):
    folder = tmp_path / "tiny_search"
    with Search(study(), folder, None, 1).open():
        pass
    run_search(Search(study(settings={"train.epochs": 7}), folder, None, 1))
    elsewhere = {"train.epochs": 7, "trainer.num_sanity_val_steps": 0}
    run_search(Search(study(settings=elsewhere), folder, None, 2))
    assert formula == ["0000", "0001"]


def test_tpe_beats_random_search_on_the_formula(study, formula_of):
    """Hypervolumes of 40 trials in one common box, five seeds each; at each seed, and so by more than chance (1/32)."""
    space = {"hardware.rho": {"low": 0.01, "high": 100.0, "log": True}, "hardware.inputs.bits": {"low": 1, "high": 8}}
    space["hardware.read"] = ["SingleRead", "BitSerialRead"]
    found: dict[tuple[str, int], list] = {}
    for sampler in ("TPESampler", "RandomSampler"):
        read = study(sampler=f"optuna.samplers.{sampler}", vary=space, settings={"hardware.cell.g_max_siemens": 1.1e-4})
        for seed in range(5):
            trials = optuna.create_study(directions=["minimize"] * 2, sampler=read.sampler(seed))
            for _ in range(40):
                trial = trials.ask()
                numbers = formula_of(read.suggest(trial))
                trial.set_user_attr("numbers", numbers)
                trials.tell(trial, [QUANTITIES[name].loss(numbers[name]) for name in read.settings.objectives])
            found[sampler, seed] = points(read.settings, trials.trials)
    box = [replace(point, feasible=False) for run in found.values() for point in run]
    volumes = {run: hypervolumes([*box, *own])[-1] for run, own in found.items()}
    assert all(volumes["TPESampler", seed] > volumes["RandomSampler", seed] for seed in range(5)), volumes


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://me:secret@127.0.0.1:1/none", "storage postgresql://me:***@127.0.0.1:1/none cannot be used"),
        ("grpc://127.0.0.1:port", "cannot be used"),
        ("nonsense", "allowed: postgresql://USER:PASSWORD@HOST/DATABASE"),
    ],
)
def test_a_storage_that_refuses_is_named_in_one_line(url, said, study_file, tmp_path, capsys):
    assert cli.main(["search", str(study_file()), "--storage", url, "--out", str(tmp_path / "logs")]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "secret" not in error
    assert "\n" not in error


@pytest.fixture(scope="module")
def finished(tmp_path_factory, write_study):
    """A real search by two workers, through the command line."""
    folder = tmp_path_factory.mktemp("search")
    changes = {"hopeless": {"share": 0.5, "least": 2}, "constraints": {"accuracy": {"at_least": 0.2}}}
    path = write_study(folder, "tiny_search", **changes)
    arguments = ["search", str(path), "--workers", "2", "--trials", "6", "--out", str(folder / "logs")]
    ran = subprocess.run(
        [sys.executable, "-m", "energytl.cli", *arguments], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return folder / "logs" / "search" / "tiny_search", ran.stdout


def test_a_search_leaves_a_front_of_recipes_that_run(finished, tmp_path, capsys):
    folder, said = finished
    recipes = sorted((folder / "front").glob("*.yaml"))
    assert recipes
    assert f"{recipes[0].parent.name}/{recipes[0].name}" in said
    assert cli.main(["run", str(recipes[-1]), "--out", str(tmp_path)]) == 0
    (again,) = json.loads((tmp_path / recipes[-1].stem / "summary.json").read_text()).values()
    trial = int(recipes[-1].read_text("utf-8").split()[2])
    confirmed = json.loads((folder / "confirmed" / f"{trial:04d}" / "version_0" / "result.json").read_text())
    for key in ("accuracy_median", "energy_paper", "latency_s", "cells"):
        assert again[key] == pytest.approx(confirmed[key], rel=1e-6)
    assert len(confirmed["accuracies"]) == 4
    front = {row["number"]: row for row in json.loads((folder / "front" / "front.json").read_text())}
    assert front[trial]["numbers"]["accuracy"] == confirmed["accuracy_median"]  # told of test images
    assert front[trial]["losses"][0] == -confirmed["accuracy_held_out"]  # chosen by others
    assert confirmed["chosen_on"] == {"images": 800, "of": "training"}
    tried = json.loads((folder / "trials" / f"{trial:04d}" / "version_0" / "result.json").read_text())
    assert tried["accuracy_held_out"] != confirmed["accuracy_held_out"]
    assert tried["history"] == confirmed["history"]  # not trained again


def test_the_report_of_a_search_holds_all_that_was_found(finished, capsys):
    folder, said = finished
    assert cli.main(["report", str(folder)]) == 0
    assert capsys.readouterr().out.split("\n\n")[0] in said
    rows = (folder / "trials.csv").read_text("utf-8").splitlines()
    assert (
        rows[0]
        == "trial,state,front,accuracy,energy_paper,hardware.rho,hardware.read,hardware.inputs.bits,seconds,error"
    )
    assert len([row for row in rows[1:] if row.split(",")[1] in ("complete", "pruned")]) >= 6
    for picture in ("front", "hypervolume", "parallel_coordinates"):
        assert (folder / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
    assert "6 trials" in said
    assert "overhead of the search" in said
    page = (folder / "report.html").read_text("utf-8")
    assert page.count("<img") >= 3
    assert list((folder / "tensorboard").glob("trial_*"))


def test_workers_share_one_pretraining(finished):
    folder, _ = finished
    assert len(list((folder / "trained").glob("*/checkpoints"))) == 1


def heeding_ctrl_c():
    """As from a terminal: where tests run in a shell's background, SIGINT is ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
def test_a_search_that_is_killed_goes_on(study_file, tmp_path, wait_for):
    """SIGKILL of a worker's and then SIGINT of the command: nothing is lost, nothing counted twice."""
    command = [sys.executable, "-m", "energytl.cli", "search", str(study_file()), "--workers", "2", "--trials", "5"]
    command += ["--out", str(tmp_path / "logs")]
    folder = tmp_path / "logs" / "search" / "tiny_search"
    first = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heeding_ctrl_c
    )

    def running():
        if not (folder / "study.yaml").is_file():
            return []
        with open_storage(None, folder) as storage:
            known = optuna.load_study(study_name="tiny_search", storage=storage).trials
        names = [t.user_attrs["worker"] for t in known if t.state == TrialState.RUNNING and "worker" in t.user_attrs]
        return [int(name.split()[-1]) for name in names]

    victim = wait_for(running)[0]
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: [process for process in running() if process != victim])
    os.killpg(first.pid, signal.SIGINT)
    _, error = first.communicate(timeout=600)
    assert first.returncode == 130
    assert "to go on, repeat the command" in error
    with open_storage(None, folder) as storage:
        known = optuna.load_study(study_name="tiny_search", storage=storage).trials
    assert not any(trial.state == TrialState.RUNNING for trial in known)  # all put back, none for others to wait for
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    with open_storage(None, folder) as storage:
        known = optuna.load_study(study_name="tiny_search", storage=storage).trials
    assert [trial.state for trial in slots(known)] == [TrialState.COMPLETE] * 5


def test_trials_may_train_in_several_processes(study_file, tmp_path):
    """Lightning's own strategies inside a trial, here two processes on the CPU."""
    study = read_study(study_file(settings={"trainer": {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}}), [])
    search = Search(study, tmp_path / "tiny_search", None, 1)
    run_search(search)
    with search.open() as trials:
        (trial,) = trials.trials
    assert trial.state == TrialState.COMPLETE, trial.user_attrs
    assert 0 < trial.user_attrs["numbers"]["accuracy"] <= 1
