"""Whatever ships is built, and executed: of recipes with many cases the first and the last."""

import json
from pathlib import Path

import pytest
from PIL import Image

from energytl import cli
from energytl.recipe import read

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))

SHORT = {
    "quickstart": ["--pretrain.epochs=1", "--train.epochs=1", "--evaluation.reads=2", "--evaluation.images=100"],
    "cost": ["--data.batch_size=2", "--calibration_batches=1"],
    "onchip_mnist": ["--train.epochs=1", "--trainer.limit_train_batches=2", "--evaluation.images=100"],
    "lenet": ["--pretrain.epochs=1", "--train.epochs=1", "--trainer.limit_train_batches=5", "--evaluation.images=50"],
    "swin_t": ["--network.weights=null", "--data.size=32", "--evaluation.reads=1"],
    "dong_large": ["--data.batch_size=2", "--calibration_batches=1", "--evaluation.images=4"],
    "cifar10": [
        "--train.epochs=1",
        "--data.batch_size=10",
        "--trainer.limit_train_batches=2",
        "--trainer.limit_val_batches=2",
        "--calibration_batches=1",
        "--evaluation.cost_batches=1",
        "--evaluation.images=20",
        "--evaluation.reads=1",
    ],
}
"""Overrides that make recipes run in seconds, by the network or data that they are about."""

ON_CHIP = ("athena", "energy_aware", "fagbohungbe")
"""How the names of recipes of transfer learning on the chip begin."""

SLOW = (
    "wang_table1_vgg16",
    "wang_table1_resnet18",
    "wang_table1_resnet32",
    "wang_table1_resnet20_longer",
    "wang_fig10_resnet20",
    "wang_total_lenet",
    "wang_ranges_lenet",
    "wang_correlation_lenet",
    "wang_table2",
    "wang_posttraining",
    "wang_depthwise",
    "dong_fig8",
    "dong_fig11",
    "dong_fig13",
    "flowers17",
)
"""Likewise of those with networks that want a GPU or see 224 pixels, or that another recipe stands for."""


@pytest.fixture(scope="session")
def imagenet(tmp_path_factory):
    """A thousand classes of one tiny image each, to train on and to test with."""
    root = tmp_path_factory.mktemp("imagenet")
    for part in ("train", "val"):
        for number in range(1000):
            folder = root / part / f"n{number:08d}"
            folder.mkdir(parents=True)
            Image.new("RGB", (16, 16), (number % 256,) * 3).save(folder / "image.png")
    return root


@pytest.fixture
def data_here(data_root, tmp_path, monkeypatch):
    """A working directory whose folder data has the real data."""
    (tmp_path / "data").symlink_to(data_root)
    monkeypatch.chdir(tmp_path)


def overrides_of(path, request):
    """What shortens a recipe, and where its data and weights are."""
    name = path.stem
    if name in SHORT:
        return list(SHORT[name])
    if name.endswith("_cost"):
        return list(SHORT["cost"])
    if name.endswith("_lenet") or name == "lenet_frontier":  # not mobilenet
        return [*SHORT["lenet"], "--evaluation.max_drop=null"]
    if "table2" in name:
        root = request.getfixturevalue("imagenet")
        untrained = ["--network.weights=null", "--evaluation.max_drop=null", "--data.workers=0"]
        return [*SHORT["cifar10"], *untrained, f"--data.root={root}", "--data.batch_size=2", "--evaluation.images=2"]
    if "vgg16" in name and "dong" in name:
        root = request.getfixturevalue("imagenet")
        return [*SHORT["dong_large"], "--network.weights=null", f"--data.root={root}"]
    packed = request.getfixturevalue("packed_data")
    if name == "dong_fig8_10":
        file = packed / "weights" / "imagenet" / "squeezenet1_0_deep_compression.pth"
        return [*SHORT["dong_large"], f"--data.root={packed / 'imagenet_sample'}", f"--weights={file}"]
    if name == "dong_fig4_5":
        root = request.getfixturevalue("data_root")
        short = ["--pretrain.epochs=1", "--trainer.limit_train_batches=5", "--evaluation.images=50"]
        return [*short, f"--data.root={root}"]
    if name == "flowers17" or "dong" in name:
        flowers, file = packed / "flowers17", packed / "weights" / "imagenet" / "mobilenet_v2_uint8.pth"
        there = [f"--data.images.train={flowers}", f"--data.weights={file}"]
        cache = f"--data.cache={request.getfixturevalue('tmp_path_factory').getbasetemp() / 'features'}"
        return [*there, cache, "--train.epochs=2"]
    if name.startswith(ON_CHIP):
        request.getfixturevalue("data_here")
        unevaluated = name.startswith("athena") and name != "athena_fig1"
        evaluated = [] if unevaluated else ["--evaluation.images=50", "--evaluation.cost_batches=1"]
        evaluated += SHORT["swin_t"] if name == "fagbohungbe_swin_t" else []
        few = ["--train.epochs=1", "--trainer.val_check_interval=1", "--trainer.check_val_every_n_epoch=1"]
        return [*few, "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", *evaluated]
    if "posttraining" in name or "depthwise" in name:
        file = "squeezenet1_0_deep_compression" if "squeezenet" in name else "mobilenet_v2_uint8"
        there = [f"--data.root={packed / 'imagenet_sample'}", f"--weights={packed / 'weights/imagenet' / file}.pth"]
        measured = ["--evaluation.cost_batches=1", "--evaluation.images=8", "--evaluation.reads=1"]
        measured += ["--evaluation.max_drop=0.2"]
        short = ["--data.batch_size=2", "--calibration_batches=1"]
        return [*short, *there, *(measured if "posttraining" in name else [])]
    there = [f"--data.root={request.getfixturevalue('data_root')}"]
    if name.startswith(("time", "wires")):
        (weights,) = (packed / "weights" / "cifar10").glob("akamaster_resnet20-*.th")
        few = ["--evaluation.images=20", "--evaluation.reads=1", f"--evaluation.chips={int(name.startswith('time'))}"]
        return [*there, f"--weights={weights}", *few, "--evaluation.cost_batches=1"]
    if "resnet20" in name or "resnet32" in name:
        depth = "resnet20" if "resnet20" in name else "resnet32"
        (weights,) = (packed / "weights" / "cifar10").glob(f"akamaster_{depth}-*.th")
        there += [f"--weights={weights}", *([] if "fig9" in name else ["--evaluation.max_drop=0.5"])]
    else:
        there += ["--pretrain.epochs=1", "--evaluation.max_drop=null"]
    if "exact" in name:
        there += ["--evaluation.reads=2", "--evaluation.exact_images=2"]
    return [*SHORT["cifar10"], *there]


def by_size(path):
    return pytest.param(path, marks=[pytest.mark.slow] * path.stem.startswith((*SLOW, *ON_CHIP)), id=path.stem)


READ = [path for path in RECIPES if path.stem.startswith((*SLOW, "wang"))]


@pytest.mark.parametrize("path", READ, ids=lambda path: path.stem)
def test_cases_are_read_and_train_as_often_as_those_they_are_compared_with(path):
    settings = [case.resolved() for case in read(path, [])]
    assert all(case["network"] for case in settings)
    prices = [case["objective"]["energy_weight"] for case in settings if case["train"]]
    assert len({len(price) if isinstance(price, list) else 1 for price in prices}) <= 1


@pytest.mark.parametrize("path", [by_size(path) for path in RECIPES])
def test_every_recipe_runs(path, tmp_path, request):
    overrides = overrides_of(path, request)
    every_case = read(path, overrides)
    cases = [case.name for case in every_case]
    large = any(word.startswith("--data.batch_size") for word in overrides) and len(cases) > 2
    if large or len(cases) > 5 or path.stem.startswith(("dong", *ON_CHIP)):
        for case in every_case:
            case.build()
        cases = [cases[0], cases[-1]]
        overrides += [f"--case={case}" for case in cases]
    assert cli.main(["run", str(path), "--out", str(tmp_path), *overrides]) == 0
    summary = json.loads((tmp_path / path.stem / "summary.json").read_text())
    assert list(summary) == cases
    assert (tmp_path / path.stem / "report.html").is_file()


@pytest.mark.slow
def test_the_quickstart_keeps_its_promise(tmp_path):
    (path,) = [path for path in RECIPES if path.stem == "quickstart"]
    assert cli.main(["run", str(path), "--out", str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "quickstart" / "summary.json").read_text())
    ratios = []
    for seed in range(3):
        best, traditional = summary[f"A+B+C, seed {seed}"], summary[f"traditional, seed {seed}"]
        for row in (best, traditional):  # chosen on 800 images and told of 1,000, each good for half a point
            assert row["accuracy_median"] >= row["accuracy_digital"] - 0.01 - 0.025
        ratios.append(traditional["energy_paper"] / best["energy_paper"])
    assert sorted(ratios)[1] >= 10
