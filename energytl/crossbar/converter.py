"""Analog-digital converters at the foot of the columns: noise, rounding, clipping, and the range that they cover.

A converter sees the partial sum P of one array, column and phase of a read, in units of one input at full drive times
one cell at its full range: |P| is at most the number of rows. It returns the nearest of its codes; what lies outside
its range is cut off.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from energytl.allowed import FROM_0, Allowed, check


class ConverterRange(ABC):
    """The largest partial sum that a converter covers."""

    @abstractmethod
    def largest(self, levels: int, rows: Tensor, smallest_sum: float | None, calibrated: Tensor | None) -> Tensor:
        """The range of each array's converters, of the shape of rows or a scalar.

        Args:
            levels: codes above 0.
            rows: rows of each array.
            smallest_sum: the smallest difference of two partial sums; None: they are no multiples of one number.
            calibrated: what calibration found, or None before it.
        """


@dataclass(frozen=True)
class FullRange(ConverterRange):
    """Every row at full drive with a full cell (CrossSim's MAX): cuts nothing off, and is coarse."""

    def largest(self, levels: int, rows: Tensor, smallest_sum: float | None, calibrated: Tensor | None) -> Tensor:  # noqa: D102
        return rows


@dataclass(frozen=True)
class GranularRange(ConverterRange):
    """One step is the smallest difference of two partial sums: exact with enough bits, cut off with fewer."""

    def largest(self, levels: int, rows: Tensor, smallest_sum: float | None, calibrated: Tensor | None) -> Tensor:  # noqa: D102
        if smallest_sum is None:
            raise ValueError(
                "converter.range GranularRange requires cells whose levels are whole multiples of the lowest: round "
                "the weights (weights.bits), or take CalibratedRange"
            )
        return rows.new_full((), levels * smallest_sum)


@dataclass(frozen=True)
class CalibratedRange(ConverterRange):
    """Per layer, the range that errs least over the partial sums of calibration images, its noise included."""

    def largest(self, levels: int, rows: Tensor, smallest_sum: float | None, calibrated: Tensor | None) -> Tensor:  # noqa: D102
        if calibrated is None:
            raise ValueError("converter.range CalibratedRange has no range yet: call energytl.calibrate first")
        return calibrated


@dataclass(frozen=True)
class Converter:
    """How partial sums are converted.

    Attributes:
        bits: of a code, the sign among them.
        range: the largest partial sum that is told apart.
        noise_lsb: standard deviation of its noise, in steps.
        offset: 2^bits codes from −range to range, none of which is 0 (the usual successive-approximation converter on
            a symmetric input); else 2^bits − 1 codes around 0, sign and magnitude.

    >>> Converter(bits=4).levels
    7
    """

    bits: int = 8
    range: ConverterRange = CalibratedRange()
    noise_lsb: float = 0.0
    offset: bool = False

    def __post_init__(self) -> None:
        """Refuse what is no converter."""
        check(self, "converter", bits=Allowed(2, 24, note="one of them is the sign"), noise_lsb=FROM_0)

    @property
    def levels(self) -> int:
        """Codes above 0, or steps from the middle to the end."""
        return 2 ** (self.bits - 1) - 1

    def step(self, largest: Tensor) -> Tensor:
        """Δ, what two neighbouring codes differ by; shape of largest."""
        return 2 * largest / (2**self.bits - 1) if self.offset else largest / self.levels

    def variance(self, largest: Tensor) -> Tensor:
        """Δ²/12 + noise², what one conversion adds where Δ is fine (Bennett 1948) and nothing is cut off."""
        return self.step(largest).square() * (1 / 12 + self.noise_lsb**2)

    def convert(self, sums: Tensor, largest: Tensor, generator: torch.Generator | None) -> Tensor:
        """What the codes of these partial sums stand for; straight-through gradient inside the range, to Δ as well.

        Args:
            sums: partial sums, any shape.
            largest: the range, which broadcasts to them.
            generator: of the noise; None: without.
        """
        step = self.step(largest)
        return self.codes(sums / step, generator) * step

    def codes(self, steps: Tensor, generator: torch.Generator | None) -> Tensor:
        """The codes of partial sums in units of Δ, in the same units; in place where no gradient is wanted.

        Args:
            steps: P/Δ, any shape.
            generator: of the noise; None: without.
        """
        if self.noise_lsb and generator is not None:
            noise = torch.randn(steps.shape, generator=generator, device=steps.device, dtype=steps.dtype)
            steps = steps + self.noise_lsb * noise
        return offset_codes(steps, self.bits) if self.offset else sign_magnitude_codes(steps, self.bits)


def sign_magnitude_codes(steps: Tensor, bits: int) -> Tensor:
    """clamp(round(P/Δ), ±(2^(b−1) − 1)): 0 is a code; straight-through gradient, else in place.

    Args:
        steps: P/Δ, any shape.
        bits: b, 2 or more.

    >>> sign_magnitude_codes(torch.tensor([-9.0, 0.4, 0.6]), 3).tolist()
    [-3.0, 0.0, 1.0]
    """
    levels = 2 ** (bits - 1) - 1
    if not steps.requires_grad:
        return steps.round_().clamp_(-levels, levels)
    clipped = steps.clamp(-levels, levels)
    return clipped + (clipped.round() - clipped).detach()


def offset_codes(steps: Tensor, bits: int) -> Tensor:
    """clamp(round(P/Δ + m), 0, 2m) − m with m = (2^b − 1)/2: 2^b codes, none of them 0; straight-through gradient.

    Args:
        steps: P/Δ, any shape.
        bits: b.

    >>> offset_codes(torch.tensor([-9.0, 0.1, 0.9]), 2).tolist()
    [-1.5, 0.5, 0.5]
    """
    middle = (2**bits - 1) / 2
    if not steps.requires_grad:
        return steps.add_(middle).round_().clamp_(0, 2 * middle).sub_(middle)
    clipped = (steps + middle).clamp(0, 2 * middle)
    return clipped + (clipped.round() - clipped).detach() - middle
