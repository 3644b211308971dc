"""Every study that ships is executed, shortened."""

import csv
from pathlib import Path

import pytest

from energytl import cli
from energytl.study.settings import read_study

STUDIES = sorted((Path(__file__).parents[2] / "search").glob("*.yaml"))
SLOW = ("energy_accuracy",)  # other search spaces of the same kind run by default


def by_size(path):
    return pytest.param(path, marks=[pytest.mark.slow] * (path.stem in SLOW), id=path.stem)


SHORT = ["--pretrain.epochs=1", "--train.epochs=1", "--trainer.limit_train_batches=8", "--evaluation.images=100"]


def test_three_studies_ship():
    assert [path.stem for path in STUDIES] == ["cttv2_transfer", "energy_accuracy", "mapping_precision"]


@pytest.mark.parametrize("path", [by_size(path) for path in STUDIES])
def test_a_study_runs(path, tmp_path):
    # one thread and few images: the networks are too bad for the constraint, so the front may be empty
    assert cli.main(["search", str(path), "--trials", "2", "--out", str(tmp_path), *SHORT]) == 0
    with (tmp_path / "search" / path.stem / "trials.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["complete", "complete"]
    for name in read_study(path, []).settings.objectives:
        assert all(float(row[name]) > 0 for row in rows)
