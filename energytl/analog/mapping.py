"""How a weight is laid down in cells, and what follows for its fluctuation and its conductance.

Weights are in units of their layer's full range, u = w/range in −1..1. A mapping writes u = Σ_c s_c·m_c with the
stored values m_c of its cells, |m_c| ≤ 1, and fixed significances s_c.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from energytl.analog.quantize import best_range, fake_quantize
from energytl.devices.cell import Cell
from energytl.devices.fluctuation import SIEMENS_PER_RHO, Fluctuation, amplitude

SMALLEST_RANGE = 1e-12
"""Range of weights that are all 0."""

UNROUNDED_RANGE_RMS = 3.0
"""Full range of weights that are not rounded, in their root mean squares, unless said otherwise."""


@dataclass(frozen=True)
class WeightFormat:
    """How finely a weight is rounded.

    Attributes:
        bits: bits of a weight, its sign among them: 2·levels + 1 values with levels = 2^(bits−1) − 1. None: not
            rounded, and not cut to the range: what programming or pulses leave in a cell.
        range_rms: the full range, in root mean squares of the layer's weights. None: that which rounds them best, or
            3, which leaves few of a trained layer's weights outside, for those that are not rounded. Training on chip
            from small random ones needs room to grow.

    >>> WeightFormat(5).levels
    15
    """

    bits: int | None = 5
    range_rms: float | None = None

    def __post_init__(self) -> None:
        """Refuse widths that hold no weight."""
        if self.bits is not None and not 2 <= self.bits <= 16:
            raise ValueError(f"weights.bits is {self.bits}; allowed: 2 to 16 (one of them is the sign), or null")
        if self.range_rms is not None and not self.range_rms > 0:
            raise ValueError(f"weights.range_rms is {self.range_rms}; allowed: above 0, or null")

    @property
    def levels(self) -> int:
        """The largest integer weight.

        Raises:
            ValueError: for weights that are not rounded.
        """
        if self.bits is None:
            raise ValueError("weights.bits is null, so weights are not rounded; this mapping needs 2 to 16 bits")
        return 2 ** (self.bits - 1) - 1

    @property
    def finest_levels(self) -> int:
        """The largest integer weight of the finest rounding that weights can be told from."""
        return 2**15 - 1 if self.bits is None else self.levels

    def full_range(self, weight: Tensor) -> float:
        """The range for these weights: range_rms root mean squares, or that which rounds them best."""
        if self.bits is not None and self.range_rms is None:
            return best_range(weight, self.levels)
        rms = float(weight.detach().square().mean().sqrt())
        return max((self.range_rms or UNROUNDED_RANGE_RMS) * rms, SMALLEST_RANGE)

    def rounded(self, weight: Tensor, full_range: float) -> Tensor:
        """What a cell of that range holds of these weights; shape of weight, straight-through gradient."""
        return weight if self.bits is None else fake_quantize(weight, full_range, self.levels)


class Mapping(ABC):
    """Cells of one weight. A mapping is a frozen record without fields; the methods say what it does."""

    @abstractmethod
    def cells_per_weight(self, weights: WeightFormat) -> int:
        """Number of cells a weight takes."""

    @abstractmethod
    def conversions_per_output(self, weights: WeightFormat) -> int:
        """Number of column currents that are converted for one output."""

    @abstractmethod
    def significances(self, weights: WeightFormat) -> tuple[float, ...]:
        """s_c of the cells that carry current, length C."""

    @abstractmethod
    def stored(self, u: Tensor, weights: WeightFormat) -> Tensor:
        """m_c of the cells that carry current, shape (C, *u.shape)."""

    def idle_cells(self, weights: WeightFormat) -> int:
        """Cells that hold nothing of this weight but stand, at g_min, on the lines that are read."""
        return 0


@dataclass(frozen=True)
class OneCell(Mapping):
    """One cell a weight, its sign free of charge: how Wang 2021 counts.

    >>> OneCell().cells_per_weight(WeightFormat(5))
    1
    """

    def cells_per_weight(self, weights: WeightFormat) -> int:  # noqa: D102
        return 1

    def conversions_per_output(self, weights: WeightFormat) -> int:  # noqa: D102
        return 1

    def significances(self, weights: WeightFormat) -> tuple[float, ...]:  # noqa: D102
        return (1.0,)

    def stored(self, u: Tensor, weights: WeightFormat) -> Tensor:  # noqa: D102
        return u.unsqueeze(0)


@dataclass(frozen=True)
class DifferentialPair(OneCell):
    """W = G⁺ − G⁻: one cell of the pair holds |w|, the other idles at g_min; sensed together, one conversion."""

    def cells_per_weight(self, weights: WeightFormat) -> int:  # noqa: D102
        return 2

    def idle_cells(self, weights: WeightFormat) -> int:  # noqa: D102
        return 1


@dataclass(frozen=True)
class BitCells(Mapping):
    """One one-bit cell for each bit of the weight: binarized encoding (Zhu et al., DAC 2019; Wang 2021, baseline).

    Sign and magnitude: bits − 1 cells hold the magnitude, one holds the sign and steers the others' polarity (its
    own read is not modelled). A cell that is on stores the full range.

    >>> BitCells().stored(torch.tensor([-5 / 7]), WeightFormat(4)).flatten()  # 101, lowest bit first
    tensor([-1.,  0., -1.])
    """

    def cells_per_weight(self, weights: WeightFormat) -> int:  # noqa: D102
        return weights.levels.bit_length() + 1

    def conversions_per_output(self, weights: WeightFormat) -> int:  # noqa: D102
        return weights.levels.bit_length()

    def significances(self, weights: WeightFormat) -> tuple[float, ...]:  # noqa: D102
        return tuple(2.0**p / weights.levels for p in range(weights.levels.bit_length()))

    def stored(self, u: Tensor, weights: WeightFormat) -> Tensor:  # noqa: D102
        integer = (u.detach() * weights.levels).round().to(torch.int32)
        powers = torch.arange(weights.levels.bit_length(), device=u.device).view(-1, *[1] * u.dim())
        bits = (integer.abs() >> powers & 1) * integer.sign()
        return bits.to(u) + (u - u.detach())  # straight-through: every bit moves with u, so Σ s_c·m_c does too


def read_variance(u: Tensor, rho: Tensor, mapping: Mapping, weights: WeightFormat, noise: Fluctuation) -> Tensor:
    """Variance Σ_c s_c²·a(m_c, ρ)² of one read of each weight, in units of range²; shape of u.

    >>> read_variance(torch.tensor([1.0]), torch.tensor(1.0), OneCell(), WeightFormat(), Fluctuation()).sqrt()
    tensor([0.1440])
    """
    squares = amplitude(mapping.stored(u, weights), rho, noise).square()
    significances = mapping.significances(weights)
    if len(significances) == 1:
        return squares[0] * significances[0] ** 2
    return torch.tensordot(squares.new_tensor(significances).square(), squares, 1)


def stored_magnitude(u: Tensor, mapping: Mapping, weights: WeightFormat) -> Tensor:
    """Σ_c |m_c|, what ρ multiplies in the energy of a read (Wang 2021, eq. 13); shape of u.

    >>> stored_magnitude(torch.tensor([-5 / 7]), BitCells(), WeightFormat(4))
    tensor([2.])
    """
    return mapping.stored(u, weights).abs().sum(0)


def conductance(u: Tensor, rho: Tensor, mapping: Mapping, weights: WeightFormat, cell: Cell) -> Tensor:
    """Conductance in S of all cells of each weight, Σ_c (g_min + ρ·|m_c|·1 µS), idle cells included; shape of u.

    >>> conductance(torch.tensor([0.5]), torch.tensor(20.0), DifferentialPair(), WeightFormat(), Cell())
    tensor([2.6000e-05])
    """
    standing = len(mapping.significances(weights)) + mapping.idle_cells(weights)
    return standing * cell.g_min_siemens + rho * SIEMENS_PER_RHO * stored_magnitude(u, mapping, weights)
