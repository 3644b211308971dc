"""Whatever ships is executed."""

import json
from pathlib import Path

import pytest

from energytl import cli
from energytl.recipe import read

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
SHORT = {
    "quickstart": ["--pretrain.epochs=1", "--train.epochs=1", "--evaluation.reads=2", "--evaluation.images=100"],
    "onchip_mnist": ["--train.epochs=1", "--trainer.limit_train_batches=2", "--evaluation.images=100"],
    "cifar10_resnet20": [
        "--train.epochs=1",
        "--trainer.limit_train_batches=2",
        "--trainer.limit_val_batches=2",
        "--evaluation.images=50",
        "--evaluation.reads=1",
        "--evaluation.max_drop=0.5",
    ],
}
"""Overrides that make a recipe run in seconds."""


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_runs(path, tmp_path, request):
    overrides = list(SHORT.get(path.stem, []))
    if path.stem.startswith("cifar10"):
        packed = request.getfixturevalue("packed_data")
        (weights,) = (packed / "weights" / "cifar10").glob("akamaster_resnet20-*.th")
        overrides += [f"--data.root={request.getfixturevalue('data_root')}", f"--weights={weights}"]
    assert cli.main(["run", str(path), "--out", str(tmp_path), *overrides]) == 0
    summary = json.loads((tmp_path / path.stem / "summary.json").read_text())
    assert list(summary) == [case.name for case in read(path, [])]
    assert (tmp_path / path.stem / "report.html").is_file()


@pytest.mark.slow
def test_the_quickstart_keeps_its_promise(tmp_path):
    (path,) = [path for path in RECIPES if path.stem == "quickstart"]
    assert cli.main(["run", str(path), "--out", str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "quickstart" / "summary.json").read_text())
    best, traditional = summary["A+B+C"], summary["traditional"]
    for row in (best, traditional):
        assert row["accuracy_median"] >= row["accuracy_digital"] - 0.01
    assert traditional["energy_paper"] >= 10 * best["energy_paper"]
