"""What `energytl check` passes does not fail later for a reason that was known: each is named before anything runs."""

import pytest
import torch
import yaml

from energytl import cli
from energytl.models import mlp

MODULE = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from energytl.data import Digits
from energytl.models import mlp


class Own(Digits):
    def load(self):
        return self.part(40), self.part(20)

    def part(self, count):
        return TensorDataset(torch.rand(count, 1, 28, 28), torch.arange(count) % 10)


class DropsLast(Own):
    def _loader(self, images, sampler, batch_size=None):
        return DataLoader(images, batch_size or self.batch_size, sampler=sampler, drop_last=True)


class Empty(Own):
    def load(self):
        return self.part(0), self.part(20)


class NoTest(Own):
    def load(self):
        return self.part(40), self.part(0)


class Bytes(Own):
    def part(self, count):
        return TensorDataset(torch.zeros(count, 1, 28, 28, dtype=torch.uint8), torch.arange(count) % 10)


class OneHot(Own):
    def part(self, count):
        return TensorDataset(torch.rand(count, 1, 28, 28), torch.eye(10)[torch.arange(count) % 10])


class FromOne(Own):
    def part(self, count):
        return TensorDataset(torch.rand(count, 1, 28, 28), torch.arange(count) % 10 + 1)


class Smaller(Own):
    def part(self, count):
        return TensorDataset(torch.rand(count, 1, 14, 14), torch.arange(count) % 10)


class Threes(Own):
    def part(self, count):
        images = torch.rand(count, 1, 28, 28)
        return TensorDataset(images, torch.arange(count) % 10, images)


class OneLeft(Own):
    def load(self):
        return self.part(41), self.part(20)


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(784, 8), nn.BatchNorm1d(8), nn.Linear(8, 10)

    def forward(self, x):
        return self.b(self.norm(self.a(x.flatten(1))))


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(784, 8), nn.Linear(8, 10)

    def forward(self, x):
        h = self.a(x.flatten(1)).sigmoid()
        y = self.b(h)
        h += 1
        return y


def no_optimizer(params):
    return list(params)
"""

OWN = {"class_path": "known.Own", "init_args": {"batch_size": 20}}
MLP = {"class_path": "energytl.models.mlp", "init_args": {"hidden": [8]}}
CYCLE = {"class_path": "torch.optim.lr_scheduler.OneCycleLR", "init_args": {"max_lr": 0.1, "total_steps": 1}}


def of(name, **arguments):
    return {"class_path": f"known.{name}", "init_args": {"batch_size": 20, **arguments}}


REASONS = {
    "fewer images than a batch": (
        {"data": of("DropsLast", batch_size=64)},
        "DropsLast gives no test batch: it has 20 images",
    ),
    "no training images": ({"data": of("Empty")}, "Empty gives no training batch: it has 0 images"),
    "no test images": ({"data": of("NoTest")}, "NoTest gives no test batch: it has 0 images"),
    "bytes": ({"data": of("Bytes")}, "torch.uint8; allowed: (1, 28, 28), its `shape`, in floating point"),
    "labels as vectors": ({"data": of("OneHot")}, "labels of OneHot have shape (20, 10)"),
    "labels from one": ({"data": of("FromOne")}, "labels of FromOne lie between 1 and 10; allowed: 0 to 9"),
    "images of another shape": ({"data": of("Smaller")}, "images of Smaller have shape (1, 14, 14)"),
    "batches of three": ({"data": of("Threes")}, "batch of Threes is a list; allowed: images and labels"),
    "batch norm of one image": ({"data": of("OneLeft"), "network": "known.Normed"}, "more than 1 value per channel"),
    "gradients overwritten": ({"network": "known.InPlace"}, "modified by an inplace operation"),
    "no optimizer": ({"train.optimizer": "known.no_optimizer"}, "no_optimizer"),
    "an optimizer of sparse gradients": ({"train.optimizer": "torch.optim.SparseAdam"}, "SparseAdam does not support"),
    "a schedule that ends": ({"train.scheduler": CYCLE, "train.epochs": 5}, "scheduler.total_steps of OneCycleLR is 1"),
    "a schedule that ends in pre-training": (
        {"pretrain": {"epochs": 5, "scheduler": CYCLE}},
        "pretrain: scheduler.total_steps of OneCycleLR is 1",
    ),
    "a pre-training's optimizer": (
        {"pretrain": {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "nesterov": True}}}},
        "Nesterov momentum requires a momentum",
    ),
    "more of the first than classes": ({"evaluation.top": [5, 20]}, "evaluation.top has 20; allowed: below 10"),
    "more images than there are": ({"evaluation.images": 500}, "evaluation.images is 500; allowed: at most 20"),
    "more exact images": ({"evaluation.exact_images": 21}, "evaluation.exact_images is 21; allowed: at most 20"),
    "a drop to chance": ({"evaluation.max_drop": 0.95}, "evaluation.max_drop is 0.95; allowed: below 0.9"),
    "convergence out of range": ({"convergence": {"target": 94.0}}, "convergence.target is 94.0"),
    "convergence without validations": (
        {"convergence": {"target": 0.9}, "trainer.check_val_every_n_epoch": 7},
        "convergence waits for validations",
    ),
    "a validation after more batches": (
        {"trainer.val_check_interval": 100},
        "val_check_interval is 100; allowed: at most 2",
    ),
    "weights in float16": ({"trainer.precision": "16-true"}, "trainer.precision is 16-true"),
    "no batches": ({"trainer.limit_train_batches": 0.1}, "limit_train_batches is 0.1"),
    "bare bones": ({"trainer.barebones": True}, "trainer: "),
    "an accelerator that is not there": ({"trainer.accelerator": "tpu"}, "trainer: "),
    "a precision that is not there": ({"trainer.precision": "transformer-engine"}, "trainer: "),
    "a strategy that is not there": ({"trainer.strategy": "deepspeed"}, "trainer: "),
    "a hint of no module": ({"objective": {"hints": ["9"], "hint_weight": 1.0}}, "9 is no module of the network"),
    "frozen patterns that fit nothing": ({"frozen": ["conv*"]}, "no layer fits 'conv*'"),
    "weights of other sizes": ({"weights": "other.pt"}, "weights other.pt is of another network"),
}


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """check(settings): the exit code and the last line of `energytl check`."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "known.py").write_text(MODULE)
    torch.save(mlp(hidden=(9,)).state_dict(), "other.pt")

    def run(changes):
        recipe = {"network": MLP, "data": OWN, "train": {"epochs": 1}, "evaluation": {"reads": 2}}
        (tmp_path / "r.yaml").write_text(yaml.safe_dump({**recipe, "cases": {"a": changes}}))
        code = cli.main(["check", "r.yaml"])
        said = capsys.readouterr()
        return code, (said.out + said.err).strip().splitlines()[-1]

    return run


@pytest.mark.parametrize("name", REASONS)
def test_known_reasons_are_named_by_check(check, name):
    changes, says = REASONS[name]
    code, line = check(changes)
    assert code == 2
    assert line.startswith("energytl: ")
    assert says in line


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"data": of("OneLeft")},
        {"evaluation": {"reads": 2, "top": [9], "images": 20, "exact_images": 20}},
        {"trainer.limit_train_batches": 1, "trainer.val_check_interval": 1},
        {"train.scheduler": {**CYCLE, "init_args": {"max_lr": 0.1, "total_steps": 3}}, "train.epochs": 3},
    ],
    ids=str,
)
def test_what_is_just_allowed_passes(check, changes):
    code, line = check(changes)
    assert (code, line.split(":")[0]) == (0, "  cells")
