"""Tasks made of other data: images with swapped rows, and random projections for many small networks side by side."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from energytl.data import ImageData
from energytl.streams import Stream, seed_of

DRAWS = 1000
"""Random projections that are tried before a ceiling counts as out of reach."""


class Modified(ImageData):
    """Another data set, changed: rows of its images swapped, or fewer images of it.

    Args:
        images: the data set that is changed; where its images are held, its batch_size and workers load them.
        swapped_rows: pairs of pixel rows that are interchanged in every image, one pair after the other.
        train_images: so many training images, drawn at random by `seed`, in the order they had; null: all.
        test_images: so many test images, evenly spaced; null: all.
        hold: read and transform images once and hold them; false for data that is augmented anew in every epoch.
        batch_size: images in a batch, of training and of test.
        workers: processes that load images; 0 loads in the main process.
        seed: of the choice and of the order of the training images.

    >>> from energytl.data import Digits
    >>> data = Modified(Digits(), swapped_rows=((9, 14),), train_images=100)
    >>> data.setup()
    >>> len(data.train_set), len(data.test_set), data.shape
    (100, 1000, (1, 28, 28))
    """

    def __init__(
        self,
        images: ImageData,
        swapped_rows: tuple[tuple[int, int], ...] = (),
        train_images: int | None = None,
        test_images: int | None = None,
        hold: bool = True,
        batch_size: int = 10,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        height = images.shape[1]
        for row in (row for pair in swapped_rows for row in pair):
            if not 0 <= row < height:
                raise ValueError(
                    f"data.swapped_rows has row {row}; allowed: 0 to {height - 1}, as data.images are {height} high"
                )
        for name, count in (("train_images", train_images), ("test_images", test_images)):
            if count is not None and count < 1:
                raise ValueError(f"data.{name} is {count}; allowed: 1 or more, or null for all")
        super().__init__(images.shape, images.classes, batch_size, workers, seed)
        self.images, self.swapped_rows, self.hold = images, swapped_rows, hold
        self.train_images, self.test_images = train_images, test_images
        self.not_modelled = images.not_modelled

    def load(self) -> tuple[Dataset[Any], Dataset[Any]]:  # noqa: D102
        train, test = _sets(self.images)
        available = _asked("test_images", self.test_images, test)
        tested = self._changed(test, _evenly_spaced(available, self.test_images))
        if train is test:
            return tested, tested
        available = _asked("train_images", self.train_images, train)
        drawn = torch.randperm(available, generator=torch.Generator().manual_seed(seed_of(Stream.SUBSET, self.seed)))
        return self._changed(train, sorted(drawn[: self.train_images].tolist())), tested

    def _changed(self, images: Dataset[Any], chosen: list[int]) -> Dataset[Any]:
        rows = list(range(self.shape[1]))
        for first, second in self.swapped_rows:
            rows[first], rows[second] = rows[second], rows[first]
        changed = _Reordered(images, chosen, rows)
        return TensorDataset(*_read(changed, self.images, self.seed)) if self.hold else changed


class Reduced(ImageData):
    """Classes of images, projected at random to a few numbers, for many small networks that are trained side by side.

    The reduced MNIST of Athena et al., Front. Electron. 4 (2024), §3: images of some classes are projected to
    `dimensions` numbers, of which a network sees `elements`; in the second task `changed` of these give way to others.
    An input holds an image for each run, of run r in the channels from r·elements on; a label holds a class for each.
    Run r sees projection r // repeats, and the training images in an order of its own. Projections are normal random
    matrices, scaled so that the largest number that a training image has in any dimension is ±1.

    Args:
        images: where the images come from; its batch_size and workers load them.
        labels: the classes to keep; label i of a run means labels[i].
        dimensions: numbers that an image is projected to.
        elements: of these, that a run sees: the first ones.
        changed: of these, that are replaced by random others of the dimensions; without a ceiling, data that differ
            in this alone replace the same ones first.
        projections: different projections.
        repeats: runs with each projection.
        ceiling: share of the training images (0..1) that a linear classifier without bias must get right on the first
            `elements`, before any are changed; projections that give less are passed over.
        train_images: training images, evenly spaced among those of the kept classes; all, if there are fewer.
        test_images: test images likewise, in the same order for all runs.
        batch_size: inputs in a batch, of training and of test.
        seed: of the order of the training images.
        projection_seed: of the projections and of the elements that change.

    >>> from energytl.data import Digits
    >>> data = Reduced(Digits(), projections=2, repeats=3)
    >>> data.setup()
    >>> x, labels = next(iter(data.train_dataloader()))
    >>> data.runs, tuple(x.shape), tuple(labels.shape)
    (6, (10, 48, 1, 1), (10, 6))
    """

    def __init__(
        self,
        images: ImageData,
        labels: tuple[int, ...] = (0, 1),
        dimensions: int = 16,
        elements: int = 8,
        changed: int = 0,
        projections: int = 5,
        repeats: int = 10,
        ceiling: float = 0.0,
        train_images: int = 10000,
        test_images: int = 1000,
        batch_size: int = 10,
        seed: int = 0,
        projection_seed: int = 0,
    ) -> None:
        if len(labels) < 2 or len(set(labels)) < len(labels) or not set(labels) <= set(range(images.classes)):
            raise ValueError(f"data.labels is {labels}; allowed: 2 or more different ones of 0 to {images.classes - 1}")
        counts = {"dimensions": dimensions, "projections": projections, "repeats": repeats}
        for name, count in (counts | {"train_images": train_images, "test_images": test_images}).items():
            if count < 1:
                raise ValueError(f"data.{name} is {count}; allowed: 1 or more")
        if not 1 <= elements <= dimensions:
            raise ValueError(f"data.elements is {elements}; allowed: 1 to data.dimensions, {dimensions}")
        most = min(elements, dimensions - elements)
        if not 0 <= changed <= most:
            raise ValueError(
                f"data.changed is {changed}; allowed: 0 to {most}, for {elements} data.elements of {dimensions} "
                "data.dimensions"
            )
        if not 0 <= ceiling <= 1:
            raise ValueError(f"data.ceiling is {ceiling}; allowed: 0 to 1")
        runs = projections * repeats
        super().__init__((runs * elements, 1, 1), len(labels), batch_size, 0, seed)
        self.runs = runs
        self.images, self.labels, self.dimensions, self.elements = images, labels, dimensions, elements
        self.changed, self.projections, self.repeats, self.ceiling = changed, projections, repeats, ceiling
        self.train_images, self.test_images, self.projection_seed = train_images, test_images, projection_seed
        self.not_modelled = (*images.not_modelled, "the random projection of the images")

    def load(self) -> tuple[Dataset[Any], Dataset[Any]]:  # noqa: D102
        train, test = _sets(self.images)
        if train is test:
            raise ValueError("data.images has no training images apart from its test images; add these")
        x, labels = self._kept(train, "training")
        test_x, test_labels = self._kept(test, "test", self.test_images)
        matrices = self._matrices(x, labels)
        used = _evenly_spaced(len(x), min(self.train_images, len(x)))
        orders: list[Tensor] = []
        trained, tested = [], []
        for matrix in matrices:
            projected, test_projected = x @ matrix.T, test_x @ matrix.T
            largest = float(projected.abs().max()) or 1.0
            for _ in range(self.repeats):
                run = len(orders)
                seen = self._seen(run, projected, labels)
                order = torch.randperm(
                    len(used), generator=torch.Generator().manual_seed(seed_of(Stream.RUN_ORDER, self.seed, run))
                )
                order = torch.tensor(used)[order]
                orders.append(order)
                trained.append(projected[order][:, seen] / largest)
                tested.append(test_projected[:, seen] / largest)
        classes = labels[torch.stack(orders, 1)], test_labels[:, None].repeat(1, self.runs)
        inputs = (torch.cat(parts, 1)[:, :, None, None] for parts in (trained, tested))
        if self.runs == 1:
            classes = classes[0].squeeze(1), classes[1].squeeze(1)
        train_set, test_set = (TensorDataset(*pair) for pair in zip(inputs, classes, strict=True))
        return train_set, test_set

    def _kept(self, images: Dataset[Any], which: str, count: int | None = None) -> tuple[Tensor, Tensor]:
        """Pixels (n, P) and labels (n,) of the images of the kept classes, at most `count`, evenly spaced."""
        found = _labels(images)
        missing = sorted(set(self.labels) - set(found.tolist()))
        if missing:
            raise ValueError(f"data.labels: data.images has no {which} images of {missing}; name other classes")
        kept = torch.isin(found, torch.tensor(self.labels)).nonzero().flatten()
        kept = kept[_evenly_spaced(len(kept), min(count or len(kept), len(kept)))]
        x, labels = _read(Subset(images, kept.tolist()), self.images, self.projection_seed)
        number = torch.full((self.images.classes,), -1)
        number[list(self.labels)] = torch.arange(self.classes)
        return x.float().flatten(1), number[labels]

    def _matrices(self, x: Tensor, labels: Tensor) -> list[Tensor]:
        """The first random projections, (dimensions, P), that reach the ceiling."""
        generator = torch.Generator().manual_seed(seed_of(Stream.PROJECTION, self.projection_seed))
        found: list[Tensor] = []
        best = 0.0
        for _ in range(DRAWS if self.ceiling > 0 else self.projections):
            matrix = torch.randn(self.dimensions, x.shape[1], generator=generator)
            if self.ceiling > 0:
                share = linear_ceiling(x @ matrix[: self.elements].T, labels, self.classes)
                best = max(best, share)
                if share < self.ceiling:
                    continue
            found.append(matrix)
            if len(found) == self.projections:
                return found
        raise ValueError(
            f"data.ceiling is {self.ceiling}; only {len(found)} of {DRAWS} random projections reach it, of "
            f"{self.projections} wanted (best: {best:.4f}): set a lower --data.ceiling, or more --data.elements"
        )

    def _seen(self, run: int, projected: Tensor, labels: Tensor) -> Tensor:
        """The dimensions that a run sees, in their places: the first choice of changes that reaches the ceiling."""
        generator = torch.Generator().manual_seed(seed_of(Stream.PERMUTATION, self.projection_seed, run))
        best = 0.0
        for _ in range(DRAWS):
            places = torch.randperm(self.elements, generator=generator)[: self.changed]
            others = torch.randperm(self.dimensions - self.elements, generator=generator)[: self.changed]
            seen = torch.arange(self.elements)
            seen[places] = self.elements + others
            if not self.changed or self.ceiling == 0:
                return seen
            share = linear_ceiling(projected[:, seen], labels, self.classes)
            if share >= self.ceiling:
                return seen
            best = max(best, share)
        raise ValueError(
            f"data.ceiling is {self.ceiling}; no choice of {self.changed} data.changed elements of projection "
            f"{run // self.repeats} reaches it (best: {best:.4f}): lower --data.ceiling or add --data.dimensions"
        )


def linear_ceiling(x: Tensor, labels: Tensor, classes: int) -> float:
    """The share of these inputs that a linear classifier without bias gets right, fitted to them by least squares.

    The targets are ±1, as in Bishop, Pattern Recognition and Machine Learning (2006), §4.1.3 (where they are 0 and 1,
    which without a bias gives the same decisions).

    Args:
        x: inputs (n, features).
        labels: (n,) of 0 to classes − 1.
        classes: number of classes.

    >>> linear_ceiling(torch.tensor([[1.0], [2.0], [-1.0], [3.0]]), torch.tensor([0, 0, 1, 1]), 2)
    0.75
    """
    targets = 2.0 * torch.nn.functional.one_hot(labels, classes).double() - 1
    weights = torch.linalg.lstsq(x.double(), targets).solution
    return float((x.double() @ weights).argmax(1).eq(labels).double().mean())


class _Reordered(Subset[Any]):
    """Some of the images, with their rows in another order."""

    def __init__(self, images: Dataset[Any], chosen: Sequence[int], rows: list[int]) -> None:
        super().__init__(images, chosen)
        self.rows = rows

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        image, label = super().__getitem__(index)
        return image[..., self.rows, :], label

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Any]]:
        return [self[index] for index in indices]


def _sets(images: ImageData) -> tuple[Dataset[Any], Dataset[Any]]:
    """Both sets of a task's images, loaded."""
    missing = images.present()
    if missing:
        raise FileNotFoundError(re.sub(r"(^|--)data\.", r"\1data.images.", missing))
    assert images.train_set is not None and images.test_set is not None
    return images.train_set, images.test_set


def _asked(name: str, count: int | None, images: Dataset[Any]) -> int:
    """How many images there are; no more than these may be asked for."""
    available = len(images)  # type: ignore[arg-type]
    if count is not None and count > available:
        raise ValueError(
            f"data.{name} is {count}; allowed: 1 to {available}, as many as data.images has, or null for all"
        )
    return available


def _evenly_spaced(available: int, count: int | None) -> list[int]:
    """So many places of those available, or all of them.

    >>> _evenly_spaced(10, 4)
    [0, 2, 5, 7]
    """
    wanted = available if count is None else count
    return [i * available // wanted for i in range(wanted)]


def _labels(images: Dataset[Any], chosen: Tensor | None = None) -> Tensor:
    """Labels (n,) of a data set or of the chosen of its images, without reading these where it lists its labels."""
    places = torch.arange(len(images)) if chosen is None else chosen  # type: ignore[arg-type]
    if isinstance(images, Subset):
        return _labels(images.dataset, torch.as_tensor(images.indices)[places])
    if isinstance(images, TensorDataset):
        return images.tensors[-1][places]
    if hasattr(images, "targets"):
        changed = getattr(images, "target_transform", None) or int
        return torch.tensor([int(changed(label)) for label in torch.as_tensor(images.targets)[places].tolist()])
    return torch.tensor([int(images[place][1]) for place in places.tolist()])


def _held(images: Dataset[Any]) -> tuple[Tensor, Tensor] | None:
    """All images and labels of tensors, or of a part of tensors; None of other data sets."""
    if isinstance(images, TensorDataset):
        x, labels = images.tensors
        return x, labels.long()
    inner = _held(images.dataset) if isinstance(images, Subset) else None
    if inner is None:
        return None
    x, labels = (part[list(images.indices)] for part in inner)  # type: ignore[attr-defined]
    return (x[..., images.rows, :] if isinstance(images, _Reordered) else x), labels


def _read(images: Dataset[Any], source: ImageData, seed: int) -> tuple[Tensor, Tensor]:
    """All images (n, ...) and labels (n,), in order; random crops depend on the seed alone, and nothing on them."""
    held = _held(images)
    if held is not None:
        return held
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(Stream.CROPS, seed))
        batches = list(DataLoader(images, source.batch_size, num_workers=source.workers))
    return torch.cat([x for x, _ in batches]), torch.cat([labels for _, labels in batches]).long()
