"""Accuracy of an analog network by Monte Carlo: over reads, over chips, without noise, and digitally."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from energytl.analog.convert import analog_layers, configure
from energytl.analog.inference import inference
from energytl.analog.read import Computation, Frozen, Noiseless

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Evaluation:
    """How accuracy is measured.

    Attributes:
        reads: Monte Carlo runs over read noise, each over all test images.
        chips: Monte Carlo runs in which every cell keeps one state: slow telegraph noise, or chip to chip.
        max_drop: None measures at the ρ that training left. A number, as 0.01, first scales all ρ by the common
            factor of least energy at which the accuracy (lower quartile over reads) is at most so far below
            the digital network's: weight scaling, open to every method. The factor is chosen, and confirmed, on the
            test images, by other reads than those of the result.
        images: test images that are used, evenly spaced over the set; None: all.
        cost_batches: test batches whose activations the energy is the mean of.
    """

    reads: int = 10
    chips: int = 0
    max_drop: float | None = None
    images: int | None = None
    cost_batches: int = 4

    def __post_init__(self) -> None:
        """Refuse to measure nothing."""
        for name, least in (("reads", 1), ("chips", 0), ("cost_batches", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"evaluation.{name} is {getattr(self, name)}; allowed: {least} or more")
        if self.images is not None and self.images < 1:
            raise ValueError(f"evaluation.images is {self.images}; allowed: 1 or more, or null for all")
        if self.max_drop is not None and not 0 <= self.max_drop < 1:
            raise ValueError(f"evaluation.max_drop is {self.max_drop}; allowed: 0 up to 1, as 0.01 for a point")


@dataclass(frozen=True)
class Draw:
    """One run over the test images: how reads are computed, and the seed of their noise."""

    computation: Computation
    seed: int


def accuracies(network: nn.Module, batches: Batches, draws: list[Draw], label: str) -> list[float]:
    """Fraction of test images classified correctly, for each draw; the images are loaded once.

    Args:
        network: analog.
        batches: images and labels; on the network's device after the move.
        draws: the runs.
        label: of the progress bar; empty for none.
    """
    layers = list(analog_layers(network).values())
    before = layers[0].hardware.computation
    correct, images = [0] * len(draws), 0
    try:
        with inference(network):
            for number, (x, labels) in enumerate(tqdm(batches, label, leave=False, disable=not label)):
                x, labels = x.to(layers[0].weight.device), labels.to(layers[0].weight.device)
                images += len(x)
                for i, draw in enumerate(draws):
                    configure(network, computation=draw.computation)
                    layers[0].noise.reseed(draw.seed, number)
                    correct[i] += int((network(x).argmax(1) == labels).sum())
    finally:
        configure(network, computation=before)
    return [count / images for count in correct]


def digital_accuracy(network: nn.Module, batches: Batches, label: str) -> float:
    """Fraction of test images that a digital network classifies correctly."""
    device = next(network.parameters()).device
    correct = images = 0
    with inference(network):
        for x, labels in tqdm(batches, label, leave=False, disable=not label):
            correct += int((network(x.to(device)).argmax(1) == labels.to(device)).sum())
            images += len(x)
    return correct / images


def read_draws(network: nn.Module, reads: int, seed: int) -> list[Draw]:
    """Draws that differ in their read noise."""
    computation = next(iter(analog_layers(network).values())).hardware.computation
    return [Draw(computation, seed + i) for i in range(reads)]


def chip_draws(chips: int, seed: int) -> list[Draw]:
    """Draws that differ in the states that the cells keep."""
    return [Draw(Frozen(chip=seed + i), 0) for i in range(chips)]


def noiseless_draw() -> Draw:
    """Quantised inputs and weights, no fluctuation."""
    return Draw(Noiseless(), 0)


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile, interpolated.

    >>> quartiles([0.0, 1.0, 2.0, 3.0, 4.0])
    (1.0, 2.0, 3.0)
    """
    low, median, high = torch.tensor(values, dtype=torch.float64).quantile(
        torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    )
    return float(low), float(median), float(high)


def least_rho_factor(
    network: nn.Module,
    accurate: Callable[[], bool],
    confirmed: Callable[[], bool],
    smallest: float = 1e-4,
    precision: float = 0.05,
) -> float | None:
    """The smallest common factor on ρ at which the network is still accurate; ρ is left so scaled.

    Bisection finds the factor. As it keeps what a noisy measurement happened to favour, an independent one must then
    confirm it; until it does, ρ is raised by steps of twice the precision.

    Args:
        network: analog.
        accurate: whether the network, as it is now, is accurate enough.
        confirmed: the same by independent reads.
        smallest: factor below which is not searched; upwards until a layer's ρ fills the conductance window.
        precision: relative precision of the factor.

    Returns:
        The factor, or None (with ρ as it was) if the network is not accurate, or not confirmed, even at the largest ρ.
    """
    layers = list(analog_layers(network).values())
    start = [layer.log_rho.detach().clone() for layer in layers]

    def scale(log_factor: float) -> None:
        with torch.no_grad():
            for layer, log_rho in zip(layers, start, strict=True):
                layer.log_rho.copy_(log_rho + log_factor)

    rooms = [math.log(layer.hardware.cell.largest_rho) - float(rho) for layer, rho in zip(layers, start, strict=True)]
    low, high = math.log(smallest), max(0.0, min(rooms))
    largest = high
    scale(high)
    if not accurate():
        scale(0.0)
        return None
    while high - low > precision:
        middle = (low + high) / 2
        scale(middle)
        low, high = (low, middle) if accurate() else (middle, high)
    scale(high)
    while not confirmed():
        if high == largest:
            scale(0.0)
            return None
        high = min(largest, high + 2 * precision)
        scale(high)
    return math.exp(high)
