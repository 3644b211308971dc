"""What a study file may hold, and what it says of mistakes."""

import math

import pytest
import yaml
from optuna import create_study
from optuna.samplers import GPSampler, NSGAIIISampler, NSGAIISampler, RandomSampler, TPESampler

from energytl import cli
from energytl.study.settings import Bound, Choice, Range, read_study
from energytl.study.trial import Rivals


def test_ends_of_ranges_and_all_choices_are_checked_against_the_recipe(study):
    read = study()
    assert read.varied["hardware.inputs.bits"] == Range(2, 6)
    assert read.varied["hardware.read"] == Choice(("SingleRead", "BitSerialRead"))
    case = read.case("0007", {"hardware.rho": 0.5, "hardware.read": "BitSerialRead", "hardware.inputs.bits": 3})
    resolved = case.resolved()
    assert (case.name, resolved["hardware"]["rho"], resolved["hardware"]["inputs"]["bits"]) == ("0007", 0.5, 3)
    assert resolved["hardware"]["read"]["class_path"] == "energytl.BitSerialRead"
    assert resolved["share_training"] is True


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objektives": ["accuracy"]}, "unknown key objektives; did you mean objectives?"),
        ({"objectives": ["accuracy", "energy"]}, "no quantity 'energy'; there are: accuracy, energy_paper"),
        ({"objectives": ["accuracy"]}, "two or three different ones"),
        (
            {"vary": {"hardware.rho": {"low": 2.0, "high": 1.0}}},
            "vary.hardware.rho: the range from 2.0 to 1.0 is empty",
        ),
        ({"vary": {"hardware.rho": {"low": 0.0, "high": 1.0, "log": True}}}, "with log it must be above 0"),
        (
            {"vary": {"hardware.rho": {"low": "small", "high": 1.0}}},
            "vary.hardware.rho: low is 'small'; allowed: a number",
        ),
        (
            {"vary": {"hardware.rho": {"low": 0.1, "high": 1.0, "log": "no"}}},
            "vary.hardware.rho: log is 'no'; allowed: true or false",
        ),
        (
            {"vary": {"hardware.rho": {"low": 0.1, "high": math.inf}}},
            "vary.hardware.rho: high is inf; allowed: a finite",
        ),
        ({"constraints": {"accuracy": {"at_least": math.nan}}}, "at_least is nan; allowed: a number"),
        ({"vary": {"hardware.rho": {"from": 1, "to": 2}}}, "is no range; allowed: low, high, and log or step"),
        ({"vary": {"hardware.rho": 1.0}}, "does not vary; a list of values or {low, high, log, step} is wanted"),
        ({"vary": {"hardware.rho": [1.0]}}, "leaves no choice"),
        ({"vary": {"hardware.roh": [1.0, 2.0]}}, "unknown key roh"),
        ({"vary": {"hardware.rho": [1.0, -2.0]}}, "hardware.rho is -2.0"),
        ({"vary": {}}, "vary is empty"),
        ({"constraints": {"accuracy": {}}}, "either at_least or at_most"),
        ({"constraints": {"speed": {"at_most": 1}}}, "no quantity 'speed'"),
        ({"recipe": "none.yaml"}, "none.yaml not found"),
        ({"case": "B"}, "no case 'B'; there are: tiny"),
        ({"sampler": "optuna.samplers.NoSampler"}, "sampler"),
        ({"settings": {"evaluation": None}}, "evaluation: null, so that no accuracy is measured"),
        ({"hopeless": {}, "settings": {"evaluation.max_drop": 0.01}}, "hopeless needs evaluation.max_drop: null"),
        ({"trials": 0}, "trials is 0"),
        ({"constraints": {"accuracy": {"at_least": 90}}}, "accuracy is 90.0; allowed: above 0 up to 1"),
        ({"constraints": {"latency": {"at_most": 0}}}, "constraints.latency is 0.0; allowed: above 0"),
        ({"objectives": ["accuracy", "training_energy"], "hopeless": {}}, "hopeless cannot judge training_energy"),
        (
            {"objectives": ["accuracy", "training_energy"]},
            "training_energy is searched, but nothing trains on the chip",
        ),
        (
            {"constraints": {"training_latency": {"at_most": 1.0}}, "settings": {"train": None}},
            "training_latency is searched, but nothing trains on the chip",
        ),
        (
            {
                "objectives": ["accuracy", "training_energy"],
                "settings": {"hardware.weights.bits": None},
                "vary": {
                    "train.optimizer": [
                        {
                            "class_path": "energytl.optim.CTTv2",
                            "init_args": {"lr": 0.1, "device": "energytl.devices.presets.reram_om"},
                        },
                        {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}},
                    ]
                },
            },
            "nothing trains on the chip: set train.optimizer",
        ),
        ({"recipe": "cases.yaml"}, "has several cases; choose one with `case`: one, two"),
    ],
)
def test_mistakes_in_a_study_file_are_told_in_one_line(changes, said, study_file, tmp_path, capsys):
    assert cli.main(["search", str(study_file(**changes)), "--out", str(tmp_path / "logs")]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error
    assert "tiny_search.yaml" in error or "none.yaml" in error
    assert not (tmp_path / "logs").exists()


def test_a_study_file_that_is_none(tmp_path, capsys):
    (tmp_path / "list.yaml").write_text("[1, 2]")
    for name, said in (("list.yaml", "is not a mapping"), ("none.yaml", "not found")):
        assert cli.main(["search", str(tmp_path / name)]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("sampler", [TPESampler, GPSampler, NSGAIISampler, NSGAIIISampler, RandomSampler])
def test_samplers_are_made_with_the_seed_of_the_trial(sampler, study):
    read = study(sampler=f"optuna.samplers.{sampler.__name__}")
    made = read.sampler(3)
    assert isinstance(made, sampler)
    assert made is not read.sampler(3)


def test_what_a_study_resolved_to_reads_back_the_same(study, tmp_path):
    read = study(
        settings={"train.scheduler": {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 1}}}
    )
    (tmp_path / "again.yaml").write_text(read.as_yaml())
    again = read_study(tmp_path / "again.yaml", [])
    assert again.settings.vary == read.settings.vary
    assert again.settings.settings == read.settings.settings
    assert yaml.safe_load(again.as_yaml()) == yaml.safe_load(read.as_yaml())


def test_overrides_of_the_command_line_win_over_the_study(study_file):
    read = read_study(study_file(settings={"train.epochs": 4}), ["--train.epochs=3"])
    assert read.case("1", {"hardware.rho": 0.5}).resolved()["train"]["epochs"] == 3


def test_what_varies_cannot_be_set_as_well(study_file, capsys):
    assert cli.main(["search", str(study_file()), "--hardware.rho=3"]) == 2
    assert "varies hardware.rho: take it out of `vary` before you set it" in capsys.readouterr().err


def test_a_quantity_that_is_not_modelled_is_refused_before_anything_trains(study_file, tmp_path, capsys):
    path = study_file(objectives=["accuracy", "energy_total"], settings={"periphery": None})
    assert cli.main(["search", str(path), "--out", str(tmp_path / "logs")]) == 2
    assert "energy_total_j is not modelled in this recipe" in capsys.readouterr().err
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    ("low", "high", "step", "whole"), [(1, 5, None, True), (1, 5, 2, True), (0, 2, 0.5, False), (1, 5.0, None, False)]
)
def test_whole_ends_and_steps_make_whole_values(low, high, step, whole):
    trial = create_study().ask()
    assert isinstance(Range(low, high, step=step).suggest(trial, "key"), int) is whole


@pytest.mark.parametrize(
    ("bound", "quantity", "value", "keeps"),
    [
        (Bound(at_least=0.9), "accuracy", 0.91, True),
        (Bound(at_least=0.9), "accuracy", 0.9, True),
        (Bound(at_least=0.9), "accuracy", 0.89, False),
        (Bound(at_most=0.9), "accuracy", 0.91, False),
        (Bound(at_most=1e-6), "latency", 1e-7, True),
        (Bound(at_most=1e-6), "latency", 1e-5, False),
        (Bound(at_least=1e-6), "latency", 1e-5, True),
        (Bound(at_least=1e-6), "latency", 1e-7, False),
    ],
)
def test_bounds(bound, quantity, value, keeps):
    assert (bound.violation(quantity, value) <= 0) is keeps


def test_a_trial_is_hopeless_if_enough_others_are_better_in_everything(study):
    rule = study(hopeless={"share": 0.5, "margin": 0.02, "least": 4}).settings.hopeless
    others = [[[-0.9, 1.0]], [[-0.9, 1.0]], [[-0.9, 3.0]], [[-0.8, 1.0], [-0.8, 1.0]]]
    rivals = Rivals(rule, ("energy_paper",), tuple(others))
    assert rivals.dominate(0, [-0.87, 2.0])  # two of four are
    assert not rivals.dominate(0, [-0.89, 2.0])  # not by the margin
    assert not rivals.dominate(0, [-0.87, 0.5])  # it is the cheapest
    assert not rivals.dominate(1, [-0.1, 9.0])  # only one has come so far
