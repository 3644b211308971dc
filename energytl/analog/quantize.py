"""Rounding to integer levels with straight-through gradients, and the ranges to round in.

A value x becomes step·n with the integer n in −levels..levels and step = range/levels. Signed inputs are sent as
sign and magnitude: the word line carries a positive or a negative pulse (as NeuRRAM does, Nature 2022), so a signed
input needs neither more cells nor more reads than an unsigned one.
"""

import math
from typing import Any

import torch
from torch import Tensor


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


def bit_count(integers: Tensor) -> Tensor:
    """Number of set bits Σ_p δ_p of |n| ≤ 2¹⁶ − 1 (Wang 2021, eq. 19); whole numbers as floats, any shape.

    Gradient: that of ½·log₂(1 + |n|), the mean number of set bits of the integers up to |n| but for a bounded rest.

    >>> bit_count(torch.tensor([0.0, 1.0, -3.0, 4.0]))
    tensor([0., 1., 2., 1.])
    """
    count = integers.detach().abs().to(torch.int32)
    for shift, mask in ((1, 0x5555), (2, 0x3333), (4, 0x0F0F), (8, 0x00FF)):
        count = (count & mask) + (count >> shift & mask)
    bits = count.to(integers)
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
    return apart.to(integers)


def best_range(x: Tensor, levels: int) -> float:
    """The range in which rounding x to integer levels errs least (mean square), above 0.

    Fifty fractions of max|x| are tried on at most 4,096 of its values, spread evenly. Where all of x is zero
    the range is 1.

    >>> best_range(torch.tensor([-1.0, 0.0, 1.0]), 1)
    1.0
    """
    values = x.detach().flatten().float()
    largest = max(abs(float(end)) for end in torch.aminmax(values))
    if not math.isfinite(largest):
        raise ValueError("the numbers to be rounded hold NaN or infinity: look at the data and the weights")
    if largest == 0:
        return 1.0
    if values.numel() > 4096:  # a large prime stride, so that the sample does not follow rows or channels
        values = values[torch.arange(4096, device=x.device) * 1_000_003 % values.numel()]
    fractions = torch.linspace(0.02, 1.0, 50, device=x.device)
    ranges = fractions.mul_(largest).unsqueeze(1)
    steps = ranges / levels
    rounded = (values / steps).round_().clamp_(-levels, levels).mul_(steps)
    return float(ranges[(rounded - values).square_().mean(1).argmin()])
