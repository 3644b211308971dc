"""How a weight is laid down in cells, and what follows for its fluctuation and its conductance.

Weights are in units of their layer's full range, u = w/range in −1..1. A mapping writes u = Σ_c s_c·m_c with the
stored values m_c of its cells, |m_c| ≤ 1, and fixed significances s_c.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from itertools import pairwise, product
from typing import Literal

import torch
from torch import Tensor

from energytl.allowed import Allowed, check
from energytl.analog.quantize import Grid, best_range, best_ranges, fake_quantize, nearest_index, round_to_values
from energytl.devices.cell import Cell
from energytl.devices.fluctuation import SIEMENS_PER_RHO, Fluctuation, amplitude

SMALLEST_RANGE = 1e-12
"""Range of weights that are all 0."""

UNROUNDED_RANGE_RMS = 3.0
"""Full range of weights that are not rounded, in their root mean squares, unless said otherwise."""


@dataclass(frozen=True)
class WeightFormat:
    """How finely a weight is rounded, and in which range. A mapping with levels of its own rounds to these instead.

    Attributes:
        bits: bits of a weight, its sign among them: 2·levels + 1 values with levels = 2^(bits−1) − 1. None: not
            rounded, and not cut to the range: what programming or pulses leave in a cell.
        states: instead of bits, states of an analog cell above its lowest: a pair of cells of 200 states has 401
            values, from −range to range in steps of range/200 (Dong 2018).
        range: the full range itself. None: one that fits the weights, as the next three say.
        range_rms: the full range, in root mean squares of the layer's weights. Training on chip from small random ones
            needs room to grow. None: as range_by says; 3 for weights that are not rounded, which leaves few of a
            trained layer's outside.
        range_by: what the range is best for, where neither of the two is given: `weights`, their mean square error;
            `outputs`, that of the layer's outputs for the images of calibration; `max`, the largest weight.
        columns: each output has a range of its own, and is scaled digitally after conversion.

    >>> WeightFormat(5).levels, WeightFormat(bits=None, states=200).levels
    (15, 200)
    """

    bits: int | None = 5
    states: int | None = None
    range: float | None = None
    range_rms: float | None = None
    range_by: Literal["weights", "outputs", "max"] = "weights"
    columns: bool = False

    def __post_init__(self) -> None:
        """Refuse widths that hold no weight."""
        bits, states = Allowed(2, 16, note="one of them is the sign"), Allowed(1, 2**15 - 1)
        check(
            self,
            "weights",
            bits=bits,
            states=states,
            range=Allowed(0, 1e9, above=True),
            range_rms=Allowed(0, 1e3, above=True),
        )
        if self.states is not None and self.bits is not None:
            raise ValueError("weights.states stands instead of weights.bits: set bits: null")
        if self.range is not None and (self.range_rms is not None or self.columns):
            raise ValueError("weights.range is the same for all weights: leave out range_rms and columns")

        if self.range_by != "weights" and (self.range is not None or self.range_rms is not None):
            raise ValueError("weights.range_by has no effect beside range or range_rms: leave one of them out")

    @property
    def rounds(self) -> bool:
        """Whether weights are rounded."""
        return self.bits is not None or self.states is not None

    @property
    def levels(self) -> int:
        """The largest integer weight.

        Raises:
            ValueError: for weights that are not rounded.
        """
        if self.states is not None:
            return self.states
        if self.bits is None:
            raise ValueError("weights.bits is null, so weights are not rounded; this mapping needs 2 to 16 bits")
        return 2 ** (self.bits - 1) - 1

    def full_ranges(self, matrices: Tensor, grid: Grid | None, inputs: Tensor | None = None) -> Tensor:
        """The range of each row of weights, (G, O), or (1, 1) if they share it.

        Args:
            matrices: weights, (G, O, K).
            grid: what they are rounded to; None: not at all.
            inputs: (G, K, S) that they are multiplied with, if the outputs are to choose.
        """
        matrices, across = matrices.detach(), 2 if self.columns else (0, 1, 2)
        matrices = matrices.to(torch.promote_types(matrices.dtype, torch.float32))
        if self.range is not None:
            return matrices.new_full((1, 1), self.range)
        if grid is None or self.range_rms is not None:
            largest = matrices.abs().amax(across, keepdim=True)
            unit = torch.where(largest > 0, largest, 1.0)  # any unit: no square is out of bounds
            rms = ((matrices / unit).square().mean(across, keepdim=True).sqrt() * unit).squeeze(2)
            return _above_zero((self.range_rms or UNROUNDED_RANGE_RMS) * rms)
        if self.range_by == "max":
            return _above_zero(matrices.abs().amax(across, keepdim=True).squeeze(2))
        if inputs is None and not self.columns:
            return matrices.new_tensor([[best_range(matrices, grid)]], dtype=torch.float64)
        return best_ranges(matrices, grid, shared=not self.columns, inputs=inputs)


def _above_zero(ranges: Tensor) -> Tensor:
    return torch.where(ranges == 0, SMALLEST_RANGE, ranges)


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

    def senses_apart(self, weights: WeightFormat) -> bool:
        """Whether the current of each cell of a weight is converted by itself."""
        return self.conversions_per_output(weights) == len(self.significances(weights))

    def sensed(self, cells: Tensor, weights: WeightFormat) -> tuple[Tensor, tuple[float, ...]]:
        """What is converted apart, and its significances: columns (S, *shape) of cells (C, *shape).

        Cells that share a conversion are sensed together: their currents add up before it.
        """
        significances = self.significances(weights)
        if self.senses_apart(weights):
            return cells, significances
        return torch.tensordot(cells.new_tensor([significances]), cells, 1), (1.0,)

    def sensed_variances(self, variances: Tensor, weights: WeightFormat) -> Tensor:
        """Variances of one read of what is converted apart, (S, *shape), of those of the cells, (C, *shape)."""
        significances = self.significances(weights)
        if self.senses_apart(weights):
            return variances
        return torch.tensordot(variances.new_tensor([significances]).square(), variances, 1)

    def sensed_levels(self, weights: WeightFormat) -> int | None:
        """The integer that stands for a full cell, if what is sensed are multiples of one number; else None."""
        return integer_levels(self, weights)

    def idle_cells(self, weights: WeightFormat) -> int:
        """Cells that hold nothing of this weight but stand, at g_min, on the lines that are read."""
        return 0

    def with_idle_cells(self) -> "Mapping":
        """The same mapping, whose cells are all that stand on the lines that are read."""
        return self

    def grid(self, weights: WeightFormat) -> Grid | None:
        """What a weight is rounded to, in units of the full range; None: not rounded."""
        return weights.levels if weights.rounds else None

    @property
    def cell_values(self) -> tuple[float, ...]:
        """What one cell can hold, ascending from 0 to 1, if the mapping itself says so; else ()."""
        return ()

    def rounded(self, weight: Tensor, full_range: float, weights: WeightFormat) -> Tensor:
        """What cells of that range hold of these weights; shape of weight, straight-through gradient."""
        grid = self.grid(weights)
        if grid is None:
            return weight
        if isinstance(grid, int):
            return fake_quantize(weight, full_range, grid)
        return round_to_values(weight, full_range, grid)


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

    def with_idle_cells(self) -> Mapping:  # noqa: D102
        return BothCells()


@dataclass(frozen=True)
class BothCells(DifferentialPair):
    """A differential pair with its idle cell beside the other: what G⁺ and G⁻ hold.

    >>> BothCells().stored(torch.tensor([0.25, -1.0]), WeightFormat()).tolist()
    [[0.25, -0.0], [-0.0, 1.0]]
    """

    def significances(self, weights: WeightFormat) -> tuple[float, ...]:  # noqa: D102
        return (1.0, -1.0)

    def stored(self, u: Tensor, weights: WeightFormat) -> Tensor:  # noqa: D102
        return torch.stack([u * (u >= 0), -u * (u < 0)])

    def idle_cells(self, weights: WeightFormat) -> int:  # noqa: D102
        return 0


@dataclass(frozen=True)
class ResetCells(OneCell):
    """W = G⁺ − G⁻ of two cells that only small resets lower from their highest conductance (Dong 2018, §IV B).

    Of a weight above 0 the negative cell has been reset, of one below 0 the positive one; at 0 both conduct fully. (A
    pair that moved up and down has both cells lower, at most by the resets since they were set: not modelled.)

    >>> ResetCells().stored(torch.tensor([0.25, -1.0]), WeightFormat()).tolist()
    [[1.0, 0.0], [0.75, 1.0]]
    """

    def cells_per_weight(self, weights: WeightFormat) -> int:  # noqa: D102
        return 2

    def significances(self, weights: WeightFormat) -> tuple[float, ...]:  # noqa: D102
        return (1.0, -1.0)

    def stored(self, u: Tensor, weights: WeightFormat) -> Tensor:  # noqa: D102
        return torch.stack([1 + u * (u < 0), 1 - u * (u >= 0)])


@dataclass(frozen=True)
class BitSlices(Mapping):
    """Several cells of a few bits each a weight, converted apart and added with their significances: bit slicing.

    Sign and magnitude: the cells hold the magnitude, lowest bits first, one more holds the sign and steers the others'
    polarity (its own read is not modelled). A cell at its highest level stores the full range.

    Attributes:
        cell_bits: bits of a cell.

    >>> BitSlices(2).stored(torch.tensor([-13 / 15]), WeightFormat(5)).flatten() * 3  # 1101: 01 and 11
    tensor([-1., -3.])
    """

    cell_bits: int = 2

    def __post_init__(self) -> None:
        """Refuse cells of no bit."""
        check(self, "mapping", cell_bits=Allowed(1, 8))

    def cells_per_weight(self, weights: WeightFormat) -> int:  # noqa: D102
        return self.conversions_per_output(weights) + 1

    def conversions_per_output(self, weights: WeightFormat) -> int:  # noqa: D102
        return -(-weights.levels.bit_length() // self.cell_bits)

    def significances(self, weights: WeightFormat) -> tuple[float, ...]:  # noqa: D102
        slices = range(self.conversions_per_output(weights))
        return tuple(2.0 ** (self.cell_bits * p) * self._highest / weights.levels for p in slices)

    def stored(self, u: Tensor, weights: WeightFormat) -> Tensor:  # noqa: D102
        integer = (u.detach() * weights.levels).round().to(torch.int32)
        slices = self.conversions_per_output(weights)
        shifts = torch.arange(slices, device=u.device).view(-1, *[1] * u.dim()) * self.cell_bits
        digits = (integer.abs() >> shifts & self._highest) * integer.sign() / self._highest
        share = weights.levels / (2 ** (self.cell_bits * slices) - 1)
        return digits.to(u) + share * (u - u.detach())  # straight-through: the cells move so that Σ s_c·m_c moves as u

    def sensed_levels(self, weights: WeightFormat) -> int | None:  # noqa: D102
        return self._highest

    @property
    def _highest(self) -> int:
        return 2**self.cell_bits - 1


@dataclass(frozen=True)
class BitCells(BitSlices):
    """One one-bit cell for each bit of the weight: binarized encoding (Zhu et al., DAC 2019; Wang 2021, baseline).

    >>> BitCells().stored(torch.tensor([-5 / 7]), WeightFormat(4)).flatten()  # 101, lowest bit first
    tensor([-1.,  0., -1.])
    """

    cell_bits: int = field(default=1, init=False)


@dataclass(frozen=True)
class MultilevelCell(Mapping):
    """One cell of a few levels a weight, without a sign: 0 and the levels, in units of the highest (Dong 2018).

    Attributes:
        levels: conductances above the lowest, ascending, in any unit; the lowest stands for 0.

    >>> MultilevelCell((1, 3, 8)).grid(WeightFormat())
    (0.0, 0.125, 0.375, 1.0)
    """

    levels: tuple[float, ...] = (1,)

    def __post_init__(self) -> None:
        """Refuse what are no levels."""
        check(self, "mapping")
        if not self.levels or not all(low < high for low, high in pairwise((0, *self.levels))):
            raise ValueError(f"mapping.levels is {list(self.levels)}; allowed: above 0, ascending, as [1, 3, 8]")

    def cells_per_weight(self, weights: WeightFormat) -> int:  # noqa: D102
        return 1

    def conversions_per_output(self, weights: WeightFormat) -> int:  # noqa: D102
        return 1

    def significances(self, weights: WeightFormat) -> tuple[float, ...]:  # noqa: D102
        return (1.0,)

    def grid(self, weights: WeightFormat) -> Grid | None:  # noqa: D102
        return self.cell_values

    def stored(self, u: Tensor, weights: WeightFormat) -> Tensor:  # noqa: D102
        return u.unsqueeze(0)

    @property
    def cell_values(self) -> tuple[float, ...]:  # noqa: D102
        return tuple(level / self.levels[-1] for level in (0, *self.levels))


@dataclass(frozen=True)
class MultilevelPair(MultilevelCell):
    """W = G⁺ − G⁻ of two cells of a few levels: all differences of two levels (Dong 2018, §III B), sensed together.

    Levels 1:3:8 give 0, ±1, ±2, ±3, ±5, ±7 and ±8: six alternative values in the paper's count. Where several pairs
    have one difference, that of least conductance holds it.

    >>> [8 * value for value in MultilevelPair((1, 3, 8)).grid(WeightFormat())]
    [-8.0, -7.0, -5.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 5.0, 7.0, 8.0]
    """

    levels: tuple[float, ...] = (1, 3, 8)

    def cells_per_weight(self, weights: WeightFormat) -> int:  # noqa: D102
        return 2

    def significances(self, weights: WeightFormat) -> tuple[float, ...]:  # noqa: D102
        return (1.0, -1.0)

    def grid(self, weights: WeightFormat) -> Grid | None:  # noqa: D102
        return tuple(self._pairs)

    def stored(self, u: Tensor, weights: WeightFormat) -> Tensor:  # noqa: D102
        pairs = self._pairs
        cells = u.new_tensor(list(pairs.values()))[nearest_index(u, u.new_tensor(list(pairs)))].movedim(-1, 0)
        moving = u - u.detach()  # straight-through: the cell of the weight's sign moves
        return cells + torch.stack([moving * (u >= 0), -moving * (u < 0)])

    @property
    def _pairs(self) -> dict[float, tuple[float, float]]:
        """Value → what its two cells hold, ascending."""
        found: dict[float, tuple[float, float]] = {}
        for plus, minus in sorted(product(self.cell_values, repeat=2), key=sum):
            found.setdefault(round(plus - minus, 12), (plus, minus))
        return dict(sorted(found.items()))


def read_variance(
    stored: Tensor, rho: Tensor, significances: tuple[float, ...], noise: Fluctuation, idle_siemens: float = 0.0
) -> Tensor:
    """Variance Σ_c s_c²·a(m_c, ρ)² of one read of each weight, in units of range²; (C, *shape) → shape.

    Args:
        stored: m_c, in units of the full range.
        rho: energy coefficient ρ, scalar.
        significances: s_c.
        noise: of the cells.
        idle_siemens: what an empty cell conducts; 0: the paper's law (`amplitude`).

    >>> read_variance(torch.tensor([[1.0]]), torch.tensor(1.0), (1.0,), Fluctuation()).sqrt()
    tensor([0.1440])
    """
    squares = amplitude(stored, rho, noise, idle_siemens).square()
    if len(significances) == 1:
        return squares[0] * significances[0] ** 2
    return torch.tensordot(squares.new_tensor(significances).square(), squares, 1)


def integer_levels(mapping: Mapping, weights: WeightFormat) -> int | None:
    """The integer that stands for the full range, if all weights are integers in its units; else None.

    >>> integer_levels(MultilevelPair((1, 3, 8)), WeightFormat()), integer_levels(OneCell(), WeightFormat(5))
    (8, 15)
    """
    grid = mapping.grid(weights)
    if not isinstance(mapping, MultilevelCell):
        return grid if isinstance(grid, int) else None
    whole = all(float(level).is_integer() for level in mapping.levels)
    return int(mapping.levels[-1]) if whole else None


def smallest_weight(mapping: Mapping, weights: WeightFormat) -> float:
    """The smallest weight that can be told from 0, in units of the full range; 2⁻¹⁵ where none is rounded."""
    grid = mapping.grid(weights)
    if grid is None:
        return 1 / (2**15 - 1)
    return 1 / grid if isinstance(grid, int) else min(value for value in grid if value > 0)


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
