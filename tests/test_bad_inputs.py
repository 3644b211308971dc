"""Every setting that the parser knows, with values that make no sense: one line that names it, or it works."""

import json
import math
import random
import signal
from contextlib import contextmanager

import pytest
import yaml

from energytl import cli
from energytl.quiet import quiet_libraries
from energytl.recipe import flat, merge, nested, parse

PLAIN = {"network": "energytl.models.mlp", "data": "energytl.data.Digits", "evaluation": None}
PARTS = {
    "network": {"class_path": "energytl.models.mlp", "init_args": {"hidden": [4]}},
    "pretrain": {"epochs": 1},
    "stages": {"a": {"hardware": {"rho": 2.0}, "data": "energytl.data.Digits"}},
    "program": {"error": {"class_path": "energytl.GaussianWrite", "init_args": {"std": 0.01}}},
    "train": {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}},
    "convergence": {"target": 0.9},
    "evaluation": {"max_drop": 0.01},
}
"""What makes the parser know the settings below what is null by default."""

SENSELESS = {"wrong type": [["a"], {"b": 1}], "negative": -1, "NaN": math.nan, "infinite": math.inf, "huge": 10**30}
SENSELESS |= {"missing": None}
SAMPLE = 100


def bad_inputs() -> list[tuple[str, str, dict]]:
    """The name of a setting, what is wrong with its value, and a recipe that has it."""
    known = flat(parse(yaml.safe_dump(PLAIN | PARTS)))
    found = []
    for key in known:
        top = key.split(".")[0]
        around = PLAIN | {name: PARTS[name] for name in {top, "train"} & set(PARTS)}
        if top == "stages":
            del around["train"]
        for what, value in SENSELESS.items():
            found.append((key, what, merge(around, nested({key: value}))))
    return found


@contextmanager
def in_seconds(seconds: int):
    def give_up(*_):
        raise AssertionError(f"no answer in {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fault(path, capsys, key: str, what: str, recipe: dict) -> str | None:
    """What is wrong with how this input is taken; None: nothing."""
    path.write_text(yaml.safe_dump(recipe), "utf-8")
    try:
        with in_seconds(60):
            code = cli.main(["check", str(path)])
            said = capsys.readouterr()
            if code == 0:
                if what in ("wrong type", "NaN", "infinite"):
                    return "accepted"
                cli.main(["cost", str(path), "--json"])
                json.loads(capsys.readouterr().out)
                return None
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    if said.err.strip().count("\n") or code != cli.USAGE_ERROR:
        return f"exit {code}: {said.err}"
    parts = [part for part in key.split(".") if part not in ("init_args", "class_path", "a")]
    name = parts[0] if parts[0] == "network" else parts[-1]  # what a network refuses its own code says
    by_torch = "optimizer" in parts and "Invalid" in said.err  # as "Invalid learning rate: -1.0"
    return None if name in said.err or by_torch else f"does not name it: {said.err.strip()}"


def faults(inputs, tmp_path, capsys) -> list[str]:
    quiet_libraries()
    path = tmp_path / "recipe.yaml"
    found = [(key, what, fault(path, capsys, key, what, recipe)) for key, what, recipe in inputs]
    return [f"{key}, {what}: {said}" for key, what, said in found if said]


def test_senseless_settings_are_refused_by_name_or_work(tmp_path, capsys):
    assert faults(random.Random(0).sample(bad_inputs(), SAMPLE), tmp_path, capsys) == []


@pytest.mark.slow
def test_all_senseless_settings_are_refused_by_name_or_work(tmp_path, capsys):
    inputs = bad_inputs()
    assert len(inputs) > 500
    assert faults(inputs, tmp_path, capsys) == []
