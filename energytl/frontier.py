"""How little energy keeps the accuracy: accuracy against a common factor on ρ, and the least factor for a target.

Energy in the paper's units is proportional to ρ, so the least factor is the least energy of a trained network.

What is estimated is the expected accuracy f(x) over reads, at the log factor x, on the images that choose (held out
from training and from the test). Every measurement is one read of all of them, f(x) plus the noise of a read. The
estimate is the non-decreasing, piecewise linear function that is nearest to *all* reads (least squares), and the
answer is where it crosses the target. No read decides by itself: a rule that goes on until some reads are good
enough ends where they were lucky, too accurate on paper by as much as its luck; a fitted curve errs to both sides
alike. The accuracy at the factor found misses the target by less than 0.03 % in the mean, of reads with a standard
deviation of 0.3 % (measured in tests/test_frontier.py); what a single choice misses it by is the standard error of
some ten reads, and that of the images.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from scipy.optimize import nnls
from torch import nn, no_grad

from energytl.analog.configure import analog_layers

STEP = math.log(2)
"""Distance of a curve's knots, in log ρ; half of it where it was searched."""

ROUND = tuple(STEP * eighths / 8 for eighths in (-7, -5, -3, -1, 1, 3, 5, 7))
"""Where, about a suspected crossing, a round of reads is made."""

ROUNDS = (2, 4)
"""Rounds of a search at least, and at most, if the crossing still moves by more than half a STEP."""

OWN_BEST = 0.002
"""A network that does not reach its target is shown at the least ρ that comes so near to its own best accuracy."""

NEAR = 0.01
"""How far below its target the first estimate of a curve's best accuracy may be, for the target to be searched."""


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
        with no_grad():
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
    """Accuracy against the log of the common factor on ρ, as far as reads tell.

    Attributes:
        knots: log factors between which the curve is straight, ascending.
        reads: log factor, from the first knot to the last, and accuracy of each read; at least one at each knot.

    >>> [round(accuracy, 6) for accuracy in Curve((0.0, 1.0), ((0.0, 0.5), (1.0, 0.7), (1.0, 0.9))).rising]
    [0.5, 0.8]
    """

    knots: tuple[float, ...]
    reads: tuple[tuple[float, float], ...]

    @cached_property
    def rising(self) -> tuple[float, ...]:
        """The curve at its knots: of all that never fall with ρ the nearest to the reads (mean square).

        A straight line between knots is a mean of its ends with weights that sum to 1, and a curve that never falls is
        a sum of steps of 0 or more, so this is a problem of least squares with coefficients of 0 or more.
        """
        factors, accuracies = np.array(self.reads).T
        bases = [np.interp(factors, self.knots, unit) for unit in np.eye(len(self.knots))]
        steps = np.cumsum(bases[::-1], axis=0)[::-1]
        found, _ = nnls(steps.T, accuracies)
        return tuple(float(value) for value in np.cumsum(found))

    @property
    def best(self) -> float:
        """The accuracy at the highest factor."""
        return self.rising[-1]

    def with_reads(self, around: float, reads: Sequence[tuple[float, float]]) -> "Curve":
        """The curve that more reads about a place make, with knots half as far apart within STEP / 2 of it."""
        halves = [
            (left + right) / 2
            for left, right in pairwise(self.knots)
            if right - left > 0.75 * STEP and left < around + STEP / 2 and right > around - STEP / 2
        ]
        return Curve(tuple(sorted([*self.knots, *halves])), (*self.reads, *reads))

    def at(self, log_factor: float) -> float:
        """Accuracy at that factor, interpolated; beyond the ends, theirs.

        >>> round(Curve((0.0, 1.0), ((0.0, 0.5), (1.0, 0.7))).at(0.5), 6)
        0.6
        """
        return float(np.interp(log_factor, self.knots, self.rising))

    def least(self, target: float) -> float | None:
        """The least log factor with that accuracy, interpolated, or None if it is nowhere reached.

        >>> curve = Curve((0.0, 1.0, 2.0), ((0.0, 0.5), (1.0, 0.7), (2.0, 0.7)))
        >>> curve.least(0.65), curve.least(0.8)
        (0.75, None)
        """
        pairs = list(zip(self.knots, self.rising, strict=True))
        if pairs[0][1] >= target:
            return pairs[0][0]
        for (left, low), (right, high) in pairwise(pairs):
            if low < target <= high:
                return round(left + (right - left) * (target - low) / (high - low), 12)
        return None


def trace(
    read_at: Callable[[float, int], float], highest: float, floor: float, lowest: float, needed: float = math.inf
) -> Curve:
    """One read at each knot, from the highest factor down by halves, until accuracy falls below the floor.

    Args:
        read_at: accuracy of the n-th read (from 0) of a curve, at a log factor.
        highest: log factor to start from.
        floor: accuracy below which nothing is of interest.
        lowest: log factor that ends the search all the same.
        needed: log factor down to which the curve is wanted, whatever the accuracy.
    """
    reads: list[tuple[float, float]] = []
    log_factor = highest
    while True:
        accuracy = read_at(log_factor, len(reads))
        reads.append((log_factor, accuracy))
        if (accuracy < floor and log_factor <= needed) or log_factor <= lowest:
            break
        log_factor = max(log_factor - STEP, lowest)
    return Curve(tuple(factor for factor, _ in reversed(reads)), tuple(reads))


def search(
    curve: Curve, target: Callable[[Curve], float], read_at: Callable[[float, int], float]
) -> tuple[Curve, float | None]:
    """The least log factor for a target, from rounds of reads about where the curve so far has it.

    Each round has ROUND's reads, at the end of the curve where they lie beyond it, and moves the crossing of the curve
    that all reads so far make. Where none crosses, the round is made at the highest factor.

    Args:
        curve: what is known so far.
        target: accuracy wanted, of a curve.
        read_at: as of `trace`.

    Returns:
        The curve of all reads, and the log factor, or None where even at the highest the target is out of reach.
    """
    lowest, highest = curve.knots[0], curve.knots[-1]
    if curve.best < target(curve) - NEAR:
        return curve, None
    least, most = ROUNDS
    found = curve.least(target(curve))
    for number in range(most):
        before = found
        around = highest if found is None else found
        places = [min(max(around + offset, lowest), highest) for offset in ROUND]
        curve = curve.with_reads(around, [(x, read_at(x, len(curve.reads) + n)) for n, x in enumerate(places)])
        found = curve.least(target(curve))
        steady = (found is None) == (before is None) and abs((found or 0.0) - (before or 0.0)) <= STEP / 2
        if number + 1 >= least and steady:
            break
    return curve, found
