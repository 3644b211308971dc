"""Rounding to integer levels with straight-through gradients, and the ranges to round in.

A value x becomes step·n with the integer n in −levels..levels and step = range/levels. Signed inputs are sent as
sign and magnitude: the word line carries a positive or a negative pulse (as NeuRRAM does, Nature 2022), so a signed
input needs neither more cells nor more reads than an unsigned one.
"""

import math
from typing import Any

import torch
from torch import Tensor

Grid = int | tuple[float, ...]
"""Numbers that can be held, in units of a full range: n/levels with integers n of −levels..levels, or these values."""

SAMPLED = 2**14
"""How many numbers stand for all in a search for a range, at most."""

LARGEST = 2**12
"""How many of the largest numbers are looked at one by one."""

AT_ONCE = 2**20
"""How many numbers a search for ranges rounds at once, at most."""


def round_to_integers(x: Tensor, full_range: float, levels: int) -> Tensor:
    """The integers n in −levels..levels nearest to x/step, as x's float type; no gradient, any shape.

    >>> round_to_integers(torch.tensor([0.1, 0.4, -3.0]), 1.0, 2)
    tensor([ 0.,  1., -2.])
    """
    return x.detach().mul(levels / full_range).round_().clamp_(-levels, levels)


def fake_quantize(x: Tensor, full_range: float, levels: int) -> Tensor:
    """Round x to the nearest of 2·levels + 1 values in ±full_range; any shape.

    The gradient is one inside the range and zero where x was cut off (straight-through estimator).

    >>> fake_quantize(torch.tensor([0.1, 0.4, -3.0]), 1.0, 2)
    tensor([ 0.0000,  0.5000, -1.0000])
    """
    return _Round.apply(x, full_range, levels)


def gradient_inside(grad: Tensor, x: Tensor, full_range: float) -> Tensor:
    """The straight-through gradient of rounding: grad where |x| ≤ full_range, else 0."""
    beyond = full_range * (1 + 2.0**-20)  # hardtanh's own gradient stops at its ends
    return torch.ops.aten.hardtanh_backward(grad, x, -beyond, beyond)


class _Round(torch.autograd.Function):
    """Rounding with a straight-through gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, full_range: float, levels: int) -> Tensor:  # noqa: ANN401
        """Round."""
        ctx.save_for_backward(x)
        ctx.full_range = full_range
        return round_to_integers(x, full_range, levels).mul_(full_range / levels)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        """Pass the gradient on inside the range."""
        return gradient_inside(grad, ctx.saved_tensors[0], ctx.full_range), None, None


def round_to_values(x: Tensor, full_range: float, values: tuple[float, ...]) -> Tensor:
    """Round x to the nearest of values·full_range; any shape. The gradient is one inside ±full_range, zero outside.

    Args:
        x: any numbers.
        full_range: what the value 1 stands for.
        values: ascending, in units of the full range.

    >>> round_to_values(torch.tensor([0.1, 0.6, -3.0]), 1.0, (-1.0, 0.0, 0.375, 1.0))
    tensor([ 0.0000,  0.3750, -1.0000])
    """
    return _RoundToValues.apply(x, full_range, values)


class _RoundToValues(torch.autograd.Function):
    """Rounding to given values with a straight-through gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, full_range: float, values: tuple[float, ...]) -> Tensor:  # noqa: ANN401
        """Round."""
        ctx.save_for_backward(x)
        ctx.full_range = full_range
        return _nearest(x / full_range, x.new_tensor(values)).mul_(full_range)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        """Pass the gradient on inside the range."""
        return gradient_inside(grad, ctx.saved_tensors[0], ctx.full_range), None, None


def nearest_index(x: Tensor, values: Tensor) -> Tensor:
    """Number of the nearest of the ascending values, int64; shape of x."""
    return torch.bucketize(x.detach(), (values[1:] + values[:-1]) / 2)


def _nearest(x: Tensor, values: Tensor) -> Tensor:
    return torch.where(x.isnan(), x.detach(), values[nearest_index(x, values)])


def bit_count(integers: Tensor) -> Tensor:
    """Number of set bits Σ_p δ_p of |n| ≤ 2¹⁶ − 1 (Wang 2021, eq. 19); whole numbers as floats, any shape.

    Gradient: that of ½·log₂(1 + |n|), the mean number of set bits of the integers up to |n| but for a bounded rest.

    >>> bit_count(torch.tensor([0.0, 1.0, -3.0, 4.0]))
    tensor([0., 1., 2., 1.])
    """
    count = integers.detach().abs().to(torch.int32)
    for shift, mask in ((1, 0x5555), (2, 0x3333), (4, 0x0F0F), (8, 0x00FF)):
        count = (count & mask) + (count >> shift & mask)
    bits = count.to(integers) + 0 * integers.detach()  # NaN stays NaN
    if integers.requires_grad:
        smooth = (1 + integers.abs()).log2() / 2
        bits = bits + (smooth - smooth.detach())
    return bits


def bit_power(integers: Tensor, bits: int) -> Tensor:
    """Σ_p 4^p·δ_p of |n| < 2^bits: the variance of a bit-serial read in units of a² (Wang 2021, eq. 17).

    The bits of n, moved apart to every second place. Whole numbers as floats, any shape.

    >>> bit_power(torch.tensor([0.0, 1.0, -3.0, 4.0]), 3)
    tensor([ 0.,  1.,  5., 16.])
    """
    narrow = bits <= 8 and not torch.compiler.is_compiling()  # fused kernels are fast with int32, others with int16
    apart = integers.detach().to(torch.int16 if narrow else torch.int32).abs_()
    for shift, mask in ((8, 0x00FF00FF), (4, 0x0F0F0F0F), (2, 0x33333333), (1, 0x55555555)):
        if bits > shift:
            apart.bitwise_or_(apart << shift).bitwise_and_(mask & 0x7FFF if narrow else mask)
    return apart.to(integers) + 0 * integers.detach()  # NaN stays NaN


class Seen:
    """All numbers that are to be rounded in one range, however many, in bounded memory.

    Kept are the largest, each for itself, as a few of them decide what cutting costs, and of all an even sample, each
    for as many as it stands for.
    """

    def __init__(self) -> None:
        self._largest, self._sample = torch.empty(0), torch.empty(0)
        self._counts = torch.empty(0, dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        """Take up numbers of any shape.

        Raises:
            ValueError: if one is NaN or infinite.
        """
        values = x.detach().flatten()
        if not bool(torch.isfinite(values).all()):
            raise ValueError("the numbers to be rounded hold NaN or infinity: look at the data and the weights")
        values = values.double() if values.dtype == torch.float64 else values.float()
        count = values.numel()
        if count == 0:
            return
        self._largest = _most(torch.cat([self._largest.to(values), _most(values)]))
        if count > SAMPLED:  # a large prime stride, so that the sample does not follow rows or channels
            values = values[torch.arange(SAMPLED, device=x.device) * 1_000_003 % count]
        counts = torch.full((len(values),), count / len(values), dtype=torch.float64, device=x.device)
        self._sample = torch.cat([self._sample.to(values), values])
        self._counts = torch.cat([self._counts.to(x.device), counts])
        if len(self._sample) > 2 * SAMPLED:
            places = torch.arange(SAMPLED, device=x.device) * 1_000_003 % len(self._sample)
            total, kept = self._counts.sum(), self._counts[places]
            self._sample, self._counts = self._sample[places], kept * (total / kept.sum())

    def best_range(self, grid: Grid) -> float:
        """The range in which rounding them to the grid errs least (mean square), above 0; see `best_ranges`."""
        largest = float(self._largest.abs().amax()) if len(self._largest) else 0.0
        if largest == 0.0:
            return 1.0
        values, counts = self._sample, self._counts
        if float(self._counts.sum()) > len(self._sample):
            least = self._largest.abs().amin()
            low = values.abs() <= least
            rest, others = counts[low], counts.sum() - len(self._largest)
            values = torch.cat([self._largest, values[low]])
            counts = torch.cat([torch.ones_like(self._largest, dtype=torch.float64), rest * (others / rest.sum())])
        values = (values / largest).float()  # any unit: no square is out of bounds
        return largest * float(best_ranges(values.view(1, 1, -1), grid, shared=False, counts=counts.float()))


def _most(values: Tensor) -> Tensor:
    return values if values.numel() <= LARGEST else values[values.abs().topk(LARGEST).indices]


def best_range(x: Tensor, grid: Grid) -> float:
    """The range in which rounding x to the grid errs least (mean square), above 0; of `Seen` that has seen x.

    >>> best_range(torch.tensor([-1.0, 0.0, 1.0]), 1)
    1.0
    """
    seen = Seen()
    seen.add(x)
    return seen.best_range(grid)


def best_ranges(
    matrices: Tensor, grid: Grid, *, shared: bool, inputs: Tensor | None = None, counts: Tensor | None = None
) -> Tensor:
    """For each row the range in which rounding it to the grid errs least, above 0; (G, O), or (1, 1) if it is shared.

    Fifty fractions of the row's max|x| are tried. Where all of a row is zero the range is 1.

    Args:
        matrices: (G, O, K), G groups of O rows.
        grid: what numbers are rounded to.
        shared: whether all rows share a range.
        inputs: (G, K, S) or None. With them the error is that of the products with these inputs, mean square.
        counts: for how many numbers each of a row stands, (K,) or None for one.
    """
    dtype = torch.promote_types(matrices.dtype, torch.float32)
    unit = _unit(matrices)
    matrices, inputs = (matrices.detach() / unit).float(), None if inputs is None else (inputs / _unit(inputs)).float()
    counts = None if counts is None else counts / counts.mean()
    largest = matrices.abs().amax((0, 1, 2) if shared else 2, keepdim=True)
    best, least = torch.ones_like(largest), torch.full_like(largest, math.inf)
    products = 0 if inputs is None else matrices.shape[:2].numel() * inputs.shape[2]
    at_once = max(1, AT_ONCE // max(matrices.numel(), products))
    for fractions in torch.linspace(0.02, 1.0, 50, device=matrices.device).view(-1, 1, 1, 1).split(at_once):
        ranges = torch.where(largest > 0, fractions * largest, 1.0)
        error = rounded(matrices / ranges, grid).mul_(ranges).sub_(matrices)
        error = (error if inputs is None else error @ inputs).square_()
        error = (error if counts is None else error * counts).mean(3, keepdim=True)
        if shared:
            error = error.mean((1, 2), keepdim=True)
        smallest, which = error.min(0)
        best = torch.where(smallest < least, ranges.gather(0, which.unsqueeze(0)).squeeze(0), best)
        least = torch.minimum(smallest, least)
    return torch.where(largest > 0, best * unit, 1.0).squeeze(2).to(dtype)


def _unit(x: Tensor) -> Tensor:
    """Max |x|, or 1 where all are 0, a scalar; in units of it no square is out of bounds."""
    largest = x.detach().abs().amax().double()
    return torch.where(largest > 0, largest, 1.0)


def rounded(u: Tensor, grid: Grid) -> Tensor:
    """The nearest numbers of the grid, in units of the full range; no gradient, shape of u.

    >>> rounded(torch.tensor([0.4, -3.0]), 1), rounded(torch.tensor([0.4, -3.0]), (0.0, 0.375, 1.0))
    (tensor([ 0., -1.]), tensor([0.3750, 0.0000]))
    """
    return round_to_integers(u, 1.0, grid).div_(grid) if isinstance(grid, int) else _nearest(u, u.new_tensor(grid))
