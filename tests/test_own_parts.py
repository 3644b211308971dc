"""A user's own classes and functions begin with their own defaults, wherever and however they are named."""

import pytest
import yaml
from jsonargparse import _typehints

from energytl.recipe import merge, parse, read, recipe_parser
from energytl.study import settings as study

BASE = {"network": "energytl.models.mlp", "data": "energytl.data.Digits", "evaluation": None}
PARTS = """
from dataclasses import dataclass
from typing import Any
import torch
import energytl
from energytl.data import Digits

def oxide(intensity: float = 3.0) -> energytl.Fluctuation:
    return energytl.Fluctuation(intensity=intensity, floor=0.003)

def cell(read_volt: float = 0.1) -> energytl.Cell:
    return energytl.Cell(read_volt=read_volt)

@dataclass(frozen=True)
class Quiet(energytl.Fluctuation):
    intensity: float = 0.2

@dataclass(frozen=True)
class Adc(energytl.IsaacConverter):
    bits: int = 5

@dataclass(frozen=True)
class Often(energytl.RepeatedRead):
    times: int = 9

@dataclass(frozen=True)
class Slices(energytl.BitSlices):
    cell_bits: int = 3

class Few(Digits):
    def __init__(self, batch_size: int = 7, workers: int = 0, seed: int = 5) -> None:
        super().__init__(batch_size, workers, seed)

class Slow(torch.optim.SGD):
    def __init__(self, params: Any, lr: float = 0.5) -> None:
        super().__init__(params, lr)
"""
OWN = {
    "hardware.fluctuation": ("oxide", {"intensity": 3.0}),
    "hardware.cell": ("cell", {"read_volt": 0.1}),
    "periphery.converter": ("Adc", {"bits": 5}),
    "hardware.read": ("Often", {"times": 9}),
    "hardware.mapping": ("Slices", {"cell_bits": 3}),
    "data": ("Few", {"batch_size": 7, "workers": 0, "seed": 5}),
    "train.optimizer": ("Slow", {"lr": 0.5}),
    "pretrain.data": ("Few", {"batch_size": 7, "workers": 0, "seed": 5}),
    "stages.a.hardware.fluctuation": ("oxide", {"intensity": 3.0}),
}


@pytest.fixture
def written(tmp_path, monkeypatch):
    (tmp_path / "own_parts.py").write_text(PARTS, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)

    def write(content, name="recipe.yaml"):
        path = tmp_path / name
        path.write_text(yaml.safe_dump(content, sort_keys=False), "utf-8")
        return path

    return write


def part(settings, key):
    for name in key.split("."):
        settings = settings[name]
    return settings


@pytest.mark.parametrize("key", OWN)
def test_an_own_part_begins_with_its_own_defaults(written, key):
    name, arguments = OWN[key]
    ways = [
        (BASE | {key: f"own_parts.{name}"}, []),
        (BASE | {"cases": {"a": {key: f"own_parts.{name}"}}}, []),
        (BASE | {key: {"class_path": f"own_parts.{name}"}}, []),
    ]
    if not key.startswith("stages"):
        ways.append((BASE, [f"--{key}=own_parts.{name}"]))
    for content, overrides in ways:
        (case,) = read(written(content), overrides)
        assert part(case.resolved(), key) == {"class_path": f"own_parts.{name}", "init_args": arguments}


def test_the_part_is_made_as_the_resolved_recipe_says(written):
    parts = {"hardware.fluctuation": "own_parts.Quiet", "periphery.converter": "own_parts.Adc"}
    (case,) = read(written(BASE | parts), [])
    recipe = case.build()
    assert (recipe.hardware.fluctuation.intensity, recipe.periphery.converter.bits) == (0.2, 5)
    assert parse(case.as_yaml()) == case.settings


def test_what_was_written_for_the_same_part_stays_and_for_another_goes(written):
    written(BASE | {"hardware": {"fluctuation": {"class_path": "own_parts.oxide", "init_args": {"intensity": 7.0}}}})
    base = {"base": "recipe.yaml"}

    def found(content, overrides=()):
        (case,) = read(written(base | content, "second.yaml"), list(overrides))
        return part(case.resolved(), "hardware.fluctuation")

    assert found({})["init_args"] == {"intensity": 7.0}
    assert found({"hardware.fluctuation": "own_parts.oxide"})["init_args"] == {"intensity": 7.0}
    assert found({}, ["--hardware.fluctuation=own_parts.oxide"])["init_args"] == {"intensity": 7.0}
    assert found({"hardware.fluctuation": "own_parts.Quiet"})["init_args"]["intensity"] == 0.2
    assert found({}, ["--hardware.fluctuation=own_parts.Quiet"])["init_args"]["intensity"] == 0.2
    both = ["--hardware.fluctuation=own_parts.Quiet", "--hardware.fluctuation.intensity=4"]
    assert found({}, both)["init_args"]["intensity"] == 4.0


def test_arguments_alone_leave_the_part_that_was_named_before(written):
    cases = {"a": {"hardware.fluctuation.intensity": 2.0}, "b": {"data.init_args.seed": 3}}
    content = BASE | {"hardware": {"fluctuation": "own_parts.oxide"}, "data": "own_parts.Few", "cases": cases}
    a, b = (case.resolved() for case in read(written(content), []))
    assert part(a, "hardware.fluctuation") == {"class_path": "own_parts.oxide", "init_args": {"intensity": 2.0}}
    assert part(b, "data") == {"class_path": "own_parts.Few", "init_args": {"batch_size": 7, "workers": 0, "seed": 3}}


def test_two_paths_of_one_class_are_one_part():
    old = {"read": {"class_path": "energytl.RepeatedRead", "init_args": {"times": 7}}}
    for path in ("RepeatedRead", "energytl.analog.read.RepeatedRead"):
        assert merge(old, {"read": {"class_path": path}})["read"]["init_args"] == {"times": 7}
    assert merge(old, {"read": "energytl.SingleRead"}) == {"read": "energytl.SingleRead"}


def test_a_studys_sampler_begins_with_its_own_defaults(tmp_path):
    text = yaml.safe_dump({"recipe": "r.yaml", "objectives": ["accuracy", "cells"], "sampler": "RandomSampler"})
    sampler = study.parse(study.parser(), text).sampler
    assert sampler.class_path == "optuna.samplers.RandomSampler"
    assert "constant_liar" not in sampler.init_args


def test_other_parsers_of_the_program_keep_their_own_rule():
    before = _typehints.discard_init_args_on_class_path_change
    defaults = recipe_parser().get_defaults()
    parse(yaml.safe_dump(BASE | {"hardware": {"fluctuation": "energytl.devices.presets.strong"}}))
    with pytest.raises(ValueError, match="Nowhere"):
        read_wrong = yaml.safe_dump(BASE | {"hardware": {"fluctuation": "energytl.devices.presets.Nowhere"}})
        try:
            parse(read_wrong)
        except Exception as error:
            raise ValueError(str(error)) from error
    assert _typehints.discard_init_args_on_class_path_change is before
    assert recipe_parser().get_defaults() == defaults
