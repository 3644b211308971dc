"""A study that runs in seconds, one whose trials are a formula, and a database server."""

import math
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from energytl.study import search
from energytl.study.settings import Study, read_study
from energytl.study.trial import Outcome

RECIPE = {
    "network": {"class_path": "energytl.models.mlp", "init_args": {"hidden": [16]}},
    "data": {"class_path": "energytl.data.Digits", "init_args": {"batch_size": 250}},
    "pretrain": {"epochs": 2},
    "train": {"epochs": 2},
    "evaluation": {"reads": 2, "images": 200},
}
STUDY = {
    "recipe": "tiny.yaml",
    "objectives": ["accuracy", "energy_paper"],
    "vary": {
        "hardware.rho": {"low": 0.05, "high": 5.0, "log": True},
        "hardware.read": ["SingleRead", "BitSerialRead"],
        "hardware.inputs.bits": {"low": 2, "high": 6},
    },
    "confirm": {"reads": 4},
    "trials": 4,
}


@pytest.fixture(scope="session")
def write_study():
    """write_study(folder, name, **changes): path of a study file with these changes, beside its recipe."""

    def write(folder: Path, name: str, **changes) -> Path:
        (folder / "tiny.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False), "utf-8")
        (folder / "cases.yaml").write_text(yaml.safe_dump(RECIPE | {"cases": {"one": {}, "two": {}}}), "utf-8")
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(STUDY | changes, sort_keys=False), "utf-8")
        return path

    return write


@pytest.fixture
def study_file(tmp_path, write_study):
    """study_file(name, **changes): the same in the test's own folder."""
    return lambda name="tiny_search", **changes: write_study(tmp_path, name, **changes)


@pytest.fixture
def study(study_file):
    """study(**changes): the same, read."""
    return lambda **changes: read_study(study_file(**changes), [])


@pytest.fixture
def values_alone(monkeypatch):
    """A trial's case holds no recipe but the values of what varies: parsing takes most of a formula's time."""
    with_recipe = Study.case

    def case(study: Study, name: str, values: dict):
        if not name.isdecimal():
            return with_recipe(study, name, values)
        return SimpleNamespace(name=name, values=values, settings=SimpleNamespace(trainer=None))

    monkeypatch.setattr(Study, "case", case)


@pytest.fixture
def formula(monkeypatch, values_alone, formula_of):
    """Trials compute a formula of what varies instead of training; the list of those that ran, by name."""
    ran: list[str] = []

    def run_trial(case, folder, wanted, rivals):
        ran.append(case.name)
        return Outcome({name: formula_of(case.values)[name] for name in wanted}, [], 0.01)

    monkeypatch.setattr(search, "run_trial", run_trial)
    return ran


@pytest.fixture(scope="session")
def formula_of():
    """formula_of(values): quantities of what varies, by a formula."""
    ordinary = {"hardware.rho": 1.0, "hardware.read": "SingleRead", "hardware.inputs.bits": 5}
    return lambda values: quantities((made := ordinary | values) | {"bits": made["hardware.inputs.bits"]})


def quantities(values: dict) -> dict[str, float]:
    """Accuracy and costs that conflict: more conductance and bits help with falling returns and cost in proportion."""
    rho, bits, serial = values["hardware.rho"], values["bits"], "BitSerial" in str(values["hardware.read"])
    accuracy = 0.97 / (1 + 0.05 * (0.3 if serial else 1.0) / rho) - 0.2 * math.exp(-bits)
    pulses = bits / 2 if serial else 2.0**bits / 4
    latency = 1e-6 * (bits if serial else 1)
    return {"accuracy": accuracy, "energy_paper": 1000 * rho * pulses, "latency": latency, "cells": 1000.0}


@pytest.fixture(scope="session")
def postgresql():
    """URL of a database on a server of Debian's package, on this machine alone, which lives as long as the tests."""
    programs = [shutil.which("pg_ctl"), *sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")))]
    program = next((Path(path).resolve() for path in programs if path), None)
    if program is None:
        pytest.skip("no PostgreSQL server here: install Debian's package postgresql")
    root = os.geteuid() == 0  # a server refuses to run as root; Debian's package makes a user for it
    who = {"user": "postgres"} if root else {}
    folder = Path(tempfile.mkdtemp(prefix="energytl_postgresql_"))
    if root:
        shutil.chown(folder, "postgres")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def run(*words: str) -> None:
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, cwd=folder, **who)

    data = str(folder / "data")
    run(str(program.with_name("initdb")), "-D", data, "-A", "trust", "-U", "energytl", "--no-sync")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    run(str(program), "-D", data, "-o", options, "-w", "-t", "600", "-l", str(folder / "log"), "start")
    yield f"postgresql://energytl@127.0.0.1:{port}/postgres"
    run(str(program), "-D", data, "-m", "immediate", "-w", "stop")
    shutil.rmtree(folder)


@pytest.fixture
def wait_for():
    """wait_for(condition, seconds): poll until it holds; its value. The limit is for what never comes."""

    def wait(condition, seconds: float = 600.0):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            value = condition()
            if value:
                return value
            time.sleep(0.05)
        raise AssertionError("it never came")

    return wait
