"""How little energy keeps the accuracy: accuracy against a common factor on ρ, and the least factor for a target.

Energy in the paper's units is proportional to ρ, so the least factor is the least energy of a trained network. It is
searched on few images and few reads; what is found is confirmed on all of them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count, pairwise

import torch
from scipy.optimize import isotonic_regression
from torch import Tensor, nn

from energytl.analog.convert import analog_layers
from energytl.evaluation import quartiles, top_accuracies

STEP = math.log(2)
"""Distance of a curve's points, in log ρ."""

PRECISION = 0.05
"""Relative precision of a factor."""

MARGIN = 0.001
"""What a search aims above its target, so that three quarters of the confirming reads are above it."""

APART = math.log(1.25)
"""In log ρ: a factor that is confirmed is at most so far above one that was too small, if any was."""

PLATEAU = 0.005
"""What is so near to a curve's highest accuracy may be on its plateau: no confirmation begins above its foot."""

OWN_BEST = 0.002
"""A network that does not reach its target is shown at the least ρ that comes so near to its own best accuracy."""


class RhoScale:
    """A common factor on the ρ of all layers; a layer stops where its conductance window is full.

    Args:
        network: analog; its present ρ is factor 1.

    >>> from energytl import convert
    >>> layer = convert(nn.Linear(2, 2))
    >>> RhoScale(layer).set(math.log(2)), round(float(layer.rho.detach()), 3)
    (None, 20.0)
    """

    def __init__(self, network: nn.Module) -> None:
        self._layers = list(analog_layers(network).values())
        self._start = [math.log(float(layer.rho.detach())) for layer in self._layers]
        self._full = [math.log(layer.hardware.cell.largest_rho) for layer in self._layers]

    @property
    def highest(self) -> float:
        """The log factor beyond which nothing changes: every layer's window is full."""
        return max(0.0, *(full - start for full, start in zip(self._full, self._start, strict=True)))

    def set(self, log_factor: float) -> None:
        """Scale all ρ, from what they were when this was made."""
        with torch.no_grad():
            for layer, start, full in zip(self._layers, self._start, self._full, strict=True):
                layer.log_rho.fill_(min(start + log_factor, max(start, full)) - math.log(layer.rho_start))

    def energy(self, energies: Sequence[float], log_factor: float) -> float:
        """Energy in paper units at that factor, from each layer's energy at factor 1."""
        scaled = (
            energy * math.exp(min(log_factor, max(0.0, full - start)))
            for energy, full, start in zip(energies, self._full, self._start, strict=True)
        )
        return math.fsum(scaled)

    def spending(self, energies: Sequence[float], budget: float) -> float:
        """The log factor at which the energy is that budget, or the highest one if it spends less."""
        low, high = math.log(budget / math.fsum(energies)), self.highest
        while high - low > 1e-6:  # no less than if no window were full; bisection from there
            middle = (low + high) / 2
            low, high = (middle, high) if self.energy(energies, middle) < budget else (low, middle)
        return min(low, self.highest)


@dataclass(frozen=True)
class Curve:
    """Accuracy against the log of the common factor on ρ, as measured and so with noise.

    Attributes:
        log_factors: ascending, one or more.
        accuracies: measured there.
    """

    log_factors: tuple[float, ...]
    accuracies: tuple[float, ...]

    @property
    def rising(self) -> tuple[float, ...]:
        """The nearest accuracies that never fall with ρ (isotonic regression: mean square)."""
        return tuple(float(value) for value in isotonic_regression(self.accuracies).x)

    def at(self, log_factor: float) -> float:
        """Accuracy at that factor, interpolated; beyond the ends, theirs.

        >>> Curve((0.0, 1.0), (0.5, 0.7)).at(0.5)
        0.6
        """
        pairs = list(zip(self.log_factors, self.rising, strict=True))
        for (left, low), (right, high) in pairwise(pairs):
            if left <= log_factor < right:
                return low + (high - low) * (log_factor - left) / (right - left)
        return pairs[0][1] if log_factor < self.log_factors[0] else pairs[-1][1]

    def least(self, target: float) -> float | None:
        """The least log factor with that accuracy, interpolated, or None if it is nowhere reached.

        >>> Curve((0.0, 1.0, 2.0), (0.5, 0.7, 0.7)).least(0.65), Curve((0.0,), (0.5,)).least(0.6)
        (0.75, None)
        """
        pairs = list(zip(self.log_factors, self.rising, strict=True))
        if pairs[0][1] >= target:
            return pairs[0][0]
        for (left, low), (right, high) in pairwise(pairs):
            if low < target <= high:
                return round(left + (right - left) * (target - low) / (high - low), 12)
        return None


def trace(
    accuracy_at: Callable[[float], float], highest: float, floor: float, lowest: float, needed: float = math.inf
) -> Curve:
    """Measure accuracy from the highest factor down, by halves, until it falls below the floor.

    Args:
        accuracy_at: measures at a log factor.
        highest: log factor to start from.
        floor: accuracy below which nothing is of interest.
        lowest: log factor that ends the search all the same.
        needed: log factor down to which the curve is wanted, whatever the accuracy.
    """
    points = []
    log_factor = highest
    while True:
        points.append((log_factor, accuracy_at(log_factor)))
        if (points[-1][1] < floor and log_factor <= needed) or log_factor <= lowest:
            break
        log_factor = max(log_factor - STEP, lowest)
    log_factors, accuracies = zip(*reversed(points), strict=True)
    return Curve(log_factors, accuracies)


def refine(
    curve: Curve,
    target: float,
    accuracy_at: Callable[[float], float],
    shifts: list[float] | None = None,
    rounds: int = 3,
) -> float | None:
    """The least log factor for a target on other images than the curve's, near enough for `confirm` to begin with.

    The images differ by a shift of accuracy that hardly depends on ρ; it is measured where the target is suspected.
    The search never aims above the foot of the curve's plateau: there a shift within the noise would lift the factor
    to its end.

    Args:
        curve: measured on few images.
        target: accuracy on all images; the search aims MARGIN above it.
        accuracy_at: measures on all images.
        shifts: known from earlier searches on this curve; this one adds its own.
        rounds: measurements at most.

    Returns:
        The log factor, or None if even at the curve's highest the target is out of sight.
    """
    shifts = [] if shifts is None else shifts
    highest, top = curve.log_factors[-1], curve.rising[-1]

    def least(aim: float) -> float:
        found = curve.least(min(aim, top - PLATEAU))
        assert found is not None
        return found

    def aimed() -> float:
        return target + MARGIN - (sum(shifts) / len(shifts) if shifts else 0.0)

    in_sight = False
    log_factor = least(aimed()) if aimed() <= top else highest
    for _ in range(rounds):
        accuracy = accuracy_at(log_factor)
        if log_factor == highest:
            if accuracy < target - 2 * MARGIN:
                return None
            in_sight = True
        shifts.append(accuracy - curve.at(log_factor))
        before, log_factor = log_factor, least(aimed()) if aimed() <= top or in_sight else highest
        if abs(log_factor - before) < PRECISION:
            break
    return least(aimed())


def own_best(lowest: float, highest: float, accuracy_at: Callable[[float], float]) -> float:
    """The least log factor whose accuracy is within OWN_BEST of that at the highest, to a factor of APART on ρ.

    >>> own_best(0.0, 8.0, lambda log_factor: min(log_factor, 0.5))
    0.5
    """
    enough = accuracy_at(highest) - OWN_BEST
    if accuracy_at(lowest) >= enough:
        return lowest
    while highest - lowest > APART:
        middle = (lowest + highest) / 2
        lowest, highest = (lowest, middle) if accuracy_at(middle) >= enough else (middle, highest)
    return highest


def confirm(
    curve: Curve, log_factor: float, target: float, reads_at: Callable[[float, int, Tensor | None], Tensor]
) -> tuple[float, Tensor] | None:
    """The least factor at which independent reads are accurate enough: their lower quartile reaches the target.

    It is raised until a few reads are, or lowered until they are not, at first by APART, then by twice as much each
    time; then searched by halves between the last factor that was too small and the least that was not, until these are
    no more than APART. All reads have the last word: where they refute what the few said, the search goes on above.
    Every attempt has reads of its own; that the best of several attempts may have been lucky is not corrected.

    Args:
        curve: whose slope says how far to raise what is not accurate enough, at first by one STEP at most, then by
            twice as much each time, or to its end if nothing less promises to be enough; its ends are the ends.
        log_factor: to begin with.
        target: accuracy.
        reads_at: at a log factor, for the n-th attempt: ranks (reads, images), 0 for images that were right; of a few
            reads, or, given these, of all.

    Returns:
        The factor and the reads that confirmed it, or None if even the highest is not confirmed.
    """
    lowest, highest = curve.log_factors[0], curve.log_factors[-1]
    too_small, raised, lowered = -math.inf, 0, 0
    promising: list[tuple[float, int, Tensor]] = []  # from the largest factor down
    for attempt in count():
        reads = reads_at(log_factor, attempt, None)
        if _lower_quartile(reads) >= target:
            promising.append((log_factor, attempt, reads))
        else:
            too_small = log_factor
        while promising and (promising[-1][0] - too_small <= APART or promising[-1][0] <= lowest):
            log_factor, number, few = promising.pop()
            reads = reads_at(log_factor, number, few)
            if _lower_quartile(reads) >= target:
                return log_factor, reads
            too_small = log_factor
        if promising:
            found, _, _ = promising[-1]
            if too_small > -math.inf:
                log_factor = (too_small + found) / 2
            else:
                log_factor = max(lowest, found - APART * 2**lowered)
                lowered += 1
        elif log_factor >= highest:
            break
        else:
            median = quartiles(top_accuracies(reads))[1]
            wanted = curve.least(curve.at(log_factor) + max(0.0, target + MARGIN - median))
            if wanted is None:
                log_factor = highest
            else:
                least, most = log_factor + PRECISION, log_factor + STEP * 2**raised
                log_factor = min(highest, most, max(least, wanted))
            raised += 1
    return None


def _lower_quartile(reads: Tensor) -> float:
    return quartiles(top_accuracies(reads))[0]


def refuting_reads(reads: int) -> int:
    """How many of so many reads, all below a target, put their lower quartile below it whatever the others are.

    >>> refuting_reads(10), refuting_reads(1)
    (4, 1)
    """
    return min(reads, (reads - 1) // 4 + 2)
