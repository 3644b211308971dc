"""Accuracy of an analog network by Monte Carlo: over reads, over chips, without noise, and digitally."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from energytl.allowed import COUNT, COUNT_OR_0, SEED, Allowed, check
from energytl.analog.configure import analog_layers, reading, unchanging
from energytl.analog.inference import inference
from energytl.analog.read import Computation, Exact, Frozen, Noiseless
from energytl.devices.drift import FIRST_S
from energytl.progress import Bar

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Evaluation:
    """How accuracy is measured, and at which ρ.

    Attributes:
        reads: Monte Carlo runs over read noise, each over all test images.
        first_read: number of the first of them; other numbers are other noise, independent of that of an earlier run.
        chips: Monte Carlo runs on chips of their own: other errors in the cells (hardware.programming, stuck), each of
            which keeps one state of its telegraph noise, unless reads are computed without noise.
        times_s: times since programming, s, at which accuracy is told, too, by the law of hardware.drift: of so many
            chips, or of reads of the network's own.
        top: further counts k, for which the share of images whose class is among the k largest outputs is told.
        max_drop: None measures at the ρ that training left. A number, as 0.01, first scales all ρ by the common
            factor of least energy at which the accuracy (expected of a read) is so far below the digital network's:
            weight scaling, open to every method. Several numbers give points, which two may share. The factor, and
            which network of a family, are chosen on images that are held out; see `energytl.points`. A network that
            never gets there is measured at the least energy of its own best accuracy.
        budgets: energies, in paper units; each gives a point: all ρ scaled to spend just so much.
        histograms: keep a histogram of what the cells of each layer hold.
        held_out: images on which `max_drop` and `budgets` choose, and of which nothing is told: training images that
            no training sees, where the digital network learns here (pretrain without weights); else test images.
            None: a fifth of the training images, or half of the test images, 5,000 at most.
        searched: the run is one of many among which a search chooses: images are held out though it chooses nothing
            itself, training is watched on them, and its accuracy on them is what it is chosen by.
        images: test images that are told of, evenly spaced over the set; None: all (that are not held out).
        cost_batches: test batches whose activations the energy is the mean of.
        norm_batches: training batches of which batch norm takes its means and variances anew wherever ρ is set (AdaBS,
            see `energytl.estimate_batch_norm`). 0: it keeps those of training.
        exact_images: test images of each point that are read once more with a state for every cell and read
            (energytl.Exact): slow, to confirm the moments. 0: none.
    """

    reads: int = 10
    first_read: int = 0
    chips: int = 0
    times_s: tuple[float, ...] = ()
    top: tuple[int, ...] = ()
    max_drop: float | tuple[float, ...] | None = None
    budgets: tuple[float, ...] = ()
    histograms: bool = False
    held_out: int | None = None
    searched: bool = False
    images: int | None = None
    cost_batches: int = 4
    norm_batches: int = 0
    exact_images: int = 0

    def __post_init__(self) -> None:
        """Refuse to measure nothing."""
        check(
            self,
            "evaluation",
            **dict.fromkeys(("reads", "images", "held_out", "cost_batches"), COUNT),
            **dict.fromkeys(("chips", "norm_batches", "exact_images"), COUNT_OR_0),
            first_read=SEED,
            times_s=Allowed(FIRST_S, note="seconds since programming"),
            top=Allowed(2, note="as [5, 10]"),
            max_drop=Allowed(0, 1, below=True, note="0.01 for a point"),
            budgets=Allowed(0, above=True, note="in paper units"),
        )
        if self.exact_images and self.reads < 2:
            raise ValueError("evaluation.exact_images wants evaluation.reads of 2 or more to compare with")

    @property
    def drops(self) -> tuple[float, ...]:
        """The accuracy drops for which a point is wanted."""
        if self.max_drop is None:
            return ()
        return self.max_drop if isinstance(self.max_drop, tuple) else (self.max_drop,)

    @property
    def holds_out(self) -> bool:
        """Whether a choice is made by accuracy, in this run or among several: of ρ, of a network, of settings."""
        return bool(self.drops or self.budgets or self.searched)


@dataclass(frozen=True)
class Judged:
    """Images, and what the digital network makes of them.

    Attributes:
        batches: images and labels.
        digital: the rank of their classes in the digital network's outputs, (images,).
    """

    batches: Batches
    digital: Tensor

    @property
    def right(self) -> Tensor:
        """Whether the digital network is right, bool (images,)."""
        return self.digital == 0

    @property
    def accuracy(self) -> float:
        """The digital network's accuracy."""
        return float(self.right.double().mean())


@dataclass(frozen=True)
class Draw:
    """One run over the test images.

    Attributes:
        computation: how reads are computed; None: as each layer has it.
        seed: of their noise.
        chip: whose cells are read; None: those of the network's own chip.
        nominal: cells hold what was written, whatever the chip.
        time_s: since programming; None: as the hardware says.
    """

    computation: Computation | None
    seed: int
    chip: int | None = None
    nominal: bool = False
    time_s: float | None = None


def rank(outputs: Tensor, labels: Tensor) -> Tensor:
    """How many classes are preferred to an image's own: 0 is a correct classification, below k is top-k. Int64 (N,).

    Of equal outputs the first is preferred, as argmax does; NaN is preferred to all.

    Args:
        outputs: (N, classes).
        labels: (N,).

    >>> rank(torch.tensor([[0.1, 0.9, 0.5], [0.2, 0.2, 0.1]]), torch.tensor([2, 1]))
    tensor([1, 1])
    """
    own = outputs.gather(1, labels.unsqueeze(1))
    first = torch.arange(outputs.shape[1], device=outputs.device) < labels.unsqueeze(1)
    return (~(outputs <= own) | (outputs == own) & first).sum(1)


def ranks(network: nn.Module, batches: Batches, draws: list[Draw], label: str) -> Tensor:
    """The `rank` of every test image's class, for each draw; the images are loaded once. Int64 (draws, images).

    Args:
        network: analog.
        batches: images and labels; on the network's device after the move.
        draws: the runs.
        label: of the progress bar; empty for none.
    """
    layers = list(analog_layers(network).values())
    rows = []
    with inference(network), unchanging(network):
        for number, (x, labels) in enumerate(Bar(batches, label, leave=False, disable=not label)):
            x, labels = x.to(layers[0].weight.device), labels.to(layers[0].weight.device)
            outcomes = []
            for draw in draws:
                with reading(network, draw.computation, chip=draw.chip, time_s=draw.time_s, as_written=draw.nominal):
                    layers[0].noise.reseed(draw.seed, number)
                    outcomes.append(rank(network(x), labels))
            rows.append(torch.stack(outcomes))
    return torch.cat(rows, 1).cpu()


def accuracies(network: nn.Module, batches: Batches, draws: list[Draw], label: str) -> list[float]:
    """Fraction of test images classified correctly, for each draw; see `ranks`."""
    return top_accuracies(ranks(network, batches, draws, label))


def top_accuracies(found: Tensor, top: int = 1) -> list[float]:
    """Fraction of images whose class is among the first so many, for each row of ranks (draws, images)."""
    return (found < top).double().mean(1).tolist()


def digital_ranks(network: nn.Module, batches: Batches, label: str) -> Tensor:
    """The `rank` of every test image's class in a digital network's outputs, int64 (images,)."""
    device = next(network.parameters()).device
    with inference(network):
        return torch.cat(
            [
                rank(network(x.to(device)), labels.to(device)).cpu()
                for x, labels in Bar(batches, label, leave=False, disable=not label)
            ]
        )


def every(batches: Batches, stride: int) -> list[tuple[Tensor, Tensor]]:
    """Every stride-th image of the batches, with its label.

    >>> parts = every([(torch.arange(3), torch.arange(3)), (torch.arange(3, 5), torch.arange(3, 5))], 2)
    >>> [images.tolist() for images, _ in parts]
    [[0, 2], [4]]
    """
    kept, seen = [], 0
    for images, labels in batches:
        first = -seen % stride
        kept.append((images[first::stride], labels[first::stride]))
        seen += len(images)
    return [part for part in kept if len(part[0])]


def read_draws(reads: int, seed: int) -> list[Draw]:
    """Draws that differ in their read noise."""
    return [Draw(None, seed + i) for i in range(reads)]


def chip_draws(network: nn.Module, chips: int, seed: int) -> list[Draw]:
    """Draws that differ in their chip: in what its cells hold, and in the states that they keep, if reads fluctuate."""
    layers = analog_layers(network).values()
    frozen = not all(isinstance(layer.hardware.computation, Noiseless) for layer in layers)
    return [Draw(Frozen(chip=seed + i) if frozen else None, 0, chip=seed + i) for i in range(chips)]


def draws_at(time_s: float, reads: int, chips: int, seed: int) -> list[Draw]:
    """Draws some time after programming: reads of so many chips, or, of none, of the network's own."""
    of_chips = [Draw(None, seed + i, chip=seed + i, time_s=time_s) for i in range(chips)]
    return of_chips or [Draw(None, seed + i, time_s=time_s) for i in range(reads)]


def noiseless_draw() -> Draw:
    """Quantised inputs and weights, no fluctuation, cells as they should be."""
    return Draw(Noiseless(), 0, nominal=True)


def exact_draw(seed: int) -> Draw:
    """A state for every cell and read: slow."""
    return Draw(Exact(), seed)


def run_accuracies(network: nn.Module, batches: Batches, seed: int = 0) -> list[float]:
    """Fraction of test images classified correctly, of each of the runs side by side; one read of an analog network.

    Args:
        network: images → (N, classes), or (N, classes, runs).
        batches: images and labels (N,), or (N, runs).
        seed: of the read noise.
    """
    layers = list(analog_layers(network).values())
    device = next(network.parameters()).device
    right: list[Tensor] = []
    with inference(network):
        for number, (x, labels) in enumerate(batches):
            if layers:
                layers[0].noise.reseed(seed, number)
            right.append(network(x.to(device)).argmax(1).cpu() == labels)
    found = torch.cat(right).double().mean(0)
    return found.reshape(-1).tolist()


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile, interpolated.

    >>> quartiles([0.0, 1.0, 2.0, 3.0, 4.0])
    (1.0, 2.0, 3.0)
    """
    low, median, high = torch.tensor(values, dtype=torch.float64).quantile(
        torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    )
    return float(low), float(median), float(high)


def drop_interval(digital: Tensor, reads: Tensor) -> tuple[float, float, float]:
    """Mean accuracy drop below the digital network and its 95 % interval, over test images and reads together.

    Each image gives the difference between the digital outcome and the mean over reads; the interval is that of the
    mean of these differences: mean ± 1.96·s/√N. It holds for other images of the same kind and other reads.

    Args:
        digital: whether the digital network is right, bool (images,).
        reads: whether the analog one is, bool (reads, images).

    >>> drop_interval(torch.tensor([True, True]), torch.tensor([[True, False], [True, False]]))
    (0.5, -0.48, 1.48)
    """
    differences = digital.double() - reads.double().mean(0)
    mean = float(differences.mean())
    half = 1.96 * float(differences.std()) / len(differences) ** 0.5 if len(differences) > 1 else 1.0
    return mean, round(mean - half, 6), round(mean + half, 6)


def same_accuracy(exact: Tensor, moments: Tensor) -> tuple[float, float]:
    """Difference of accuracy between one exact read and the mean of several by moments, and its standard error.

    Image i is right with probability p_i, estimated by the reads by moments. One exact read of n images has the
    variance Σ p·(1−p)/n², the mean of R others 1/R of it; p·(1−p) is estimated without bias, by R/(R−1)·p̂·(1−p̂).

    Args:
        exact: whether the exact read is right, bool (images,).
        moments: whether reads by moments are, bool (reads, images), two reads or more.
    """
    reads, images = moments.shape
    p = moments.double().mean(0)
    spread = (p * (1 - p)).sum() * reads / (reads - 1)
    error = float((spread * (1 + 1 / reads)).sqrt()) / images
    return float(exact.double().mean() - p.mean()), error
