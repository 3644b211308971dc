"""A training that was killed and goes on ends as the unbroken one, bit for bit, and measuring changes nothing."""

import itertools

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision import transforms

from energytl import Hardware, WeightFormat, calibrate, convert
from energytl.callbacks import History
from energytl.classifier import Classifier
from energytl.data import Digits
from energytl.devices import presets
from energytl.optim import CTTv2
from energytl.optim import array as array_module
from energytl.recipe import Fit, RecipeError, read
from energytl.training import fit

pytestmark = pytest.mark.usefixtures("one_thread")


class Augmented(Dataset):
    """Crops and flips drawn by torch, brightness by NumPy."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels
        self.change = transforms.Compose([transforms.RandomCrop(28, 4), transforms.RandomHorizontalFlip()])

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.change(self.images[index]) + 0.01 * np.float32(np.random.rand()), int(self.labels[index])


class Few(Digits):
    """Few digits, augmented."""

    def load(self):
        (x, labels), (test_x, test_labels) = (images.tensors for images in super().load())
        return Augmented(x[::40], labels[::40]), TensorDataset(test_x[::8], test_labels[::8])


class OwnLoader(Few):
    """A user's loader of the usual kind, which knows nothing of seeds."""

    def train_dataloader(self):
        return DataLoader(self.train_set, self.batch_size, shuffle=True, num_workers=self.workers)


class Killed(Exception):
    pass


class Kill(Callback):
    """Ends training before an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            raise Killed


@pytest.fixture
def train(tmp_path, monkeypatch):
    """train(kind, workers, ...): what a training leaves; with `kill`, the folder of its checkpoints."""
    monkeypatch.setattr(array_module, "fused", lambda function, *_: function)  # compiling takes longer than all this
    numbers = itertools.count()

    def trained(kind="digital", workers=0, kill=None, folder=None, schedule=None, epochs=3, own=Few, **trainer):
        torch.manual_seed(0)
        path = tmp_path / "recipe.yaml"
        quiet = {"accelerator": "cpu", "enable_progress_bar": False}
        content = {"network": "energytl.models.mlp", "data": "energytl.data.Digits", "trainer": quiet | trainer}
        path.write_text(yaml.safe_dump(content))
        data = own(batch_size=32, workers=workers)
        data.setup()
        network = nn.Sequential(
            nn.AvgPool2d(7), nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 10)
        )
        make = {"chip": lambda p: CTTv2(p, lr=0.1, device=presets.reram_om())}
        if kind != "digital":
            network = convert(network, Hardware(rho=5.0, weights=WeightFormat(bits=None)), seed=1)
            calibrate(network, data.first_images(1))
        module = Classifier(network, 10, make.get(kind, lambda p: torch.optim.Adam(p, lr=0.01)), schedule, seed=3)
        history, folder = History(), folder or tmp_path / str(next(numbers))
        torch.seed()  # what came before does not matter
        kills = [] if kill is None else [Kill(kill)]
        try:
            fit(read(path, [])[0], module, Fit(epochs), data, 3, folder, None, history, kills)
        except Killed:
            return folder
        return dict(network.state_dict()), history.rows

    return trained


def assert_resumes(train, kill=1, **settings):
    weights, rows = train(**settings)
    resumed, found = train(folder=train(kill=kill, **settings), **settings)
    assert weights.keys() == resumed.keys()
    assert [name for name in weights if not torch.equal(weights[name], resumed[name])] == []
    assert found == rows


@pytest.mark.parametrize("kind", ["digital", "analog", "chip"])
def test_dropout_and_augmentation_go_on_as_in_the_unbroken_run(train, kind):
    assert_resumes(train, kind=kind)


@pytest.mark.parametrize("kind", ["digital", "chip"])
def test_so_does_the_order_of_images_that_workers_load(train, kind):
    assert_resumes(train, kind=kind, workers=2, epochs=2)


@pytest.mark.parametrize("workers", [0, 2])
def test_so_does_the_order_of_a_users_own_loader(train, workers):
    assert_resumes(train, own=OwnLoader, workers=workers, epochs=2)


@pytest.mark.parametrize(
    "trainer",
    [{"val_check_interval": 2}, {"accumulate_grad_batches": 3}, {"check_val_every_n_epoch": 2}],
    ids=str,
)
def test_so_do_trainings_of_other_shapes(train, trainer):
    assert_resumes(train, kind="analog", **trainer)


def test_steps_that_lightning_does_not_take_up_are_refused(train):
    folder = train(kill=1, max_steps=9)
    with pytest.raises(RecipeError, match=r"trainer\.max_steps is 9: Lightning does not go on from"):
        train(folder=folder, max_steps=9)


SCHEDULES = {
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=1.0),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=3),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, 1.0, 1), lr_scheduler.ExponentialLR(o, 0.5)], [1]
    ),
}


@pytest.mark.filterwarnings("ignore:The epoch parameter in:UserWarning")  # torch's own SequentialLR
@pytest.mark.parametrize("name", SCHEDULES)
def test_so_do_schedules(train, name):
    assert_resumes(train, kill=2, schedule=SCHEDULES[name])


@pytest.mark.parametrize("kind", ["digital", "analog"])
def test_measuring_more_or_less_trains_the_same_network(train, kind):
    ways = [{}, {"val_check_interval": 1}, {"limit_val_batches": 0}, {"num_sanity_val_steps": 0}]
    first, *others = (train(kind, epochs=2, **way)[0] for way in ways)
    assert all(torch.equal(first[name], other[name]) for other in others for name in first)
