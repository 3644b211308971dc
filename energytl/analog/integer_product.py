"""Convolutions of small integers, exact and fast: what rounded weights and inputs multiply to.

Integers of at most 8 bits are multiplied and summed as integers (uint8 × int8 → int32, oneDNN), in a quarter of the
time that float32 takes on processors with instructions for it (VNNI, AMX), in half of it on others that sum pairs of
products in 16 bits (AVX2), if pairs fit. torch reaches that kernel only by operators of its own, so it is tried once
for each pair of widths against the float product, and not used where the two differ.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

LARGEST = 127
"""Largest integer, of inputs (plus 127 an unsigned byte) and of weights."""


def integer_conv2d(
    inputs: Tensor,
    zero: int,
    weight: Tensor,
    scale: float | Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """scale·Σ k·(n − zero) + bias, float32 of conv2d's shape, channels last; the sum is exact.

    Args:
        inputs: n, uint8 (N, C, H, W), channels last.
        zero: the n that stands for 0, which the padding holds, too.
        weight: k, int8 (O, C/groups, KH, KW).
        scale: of an integer product; one for all, or float32 (O,).
        bias: float32 (O,), or None.
        stride: the rest as conv2d has it.
        padding: zeros above and left, as many as below and right.
        dilation: distance of a kernel's elements.
        groups: of channels.
    """
    scales, common = (scale, 1.0) if isinstance(scale, Tensor) else (torch.ones(len(weight)), scale)
    zeros = torch.zeros(len(weight), dtype=torch.int32)
    geometry = (list(stride), list(padding), list(dilation), groups)
    packed = torch.ops.onednn.qconv_prepack(weight, scales, common, zero, *geometry, list(inputs.shape))
    output: Any = (1.0, 0, torch.float32, "none", [], "")  # scale, zero and type of the result; no function of it
    result: Tensor = torch.ops.onednn.qconv2d_pointwise(
        inputs, common, zero, packed, scales, zeros, bias, *geometry, *output
    )
    return result


@cache
def integers_are_exact(inputs: int, weights: int) -> bool:
    """Whether this processor multiplies integers up to these magnitudes fast, and this torch without error.

    Tried on sums of the largest ones, which 16-bit sums of pairs may cut off.
    """
    if max(inputs, weights) > LARGEST or torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(2 * inputs + 1, (2, 64, 5, 5), generator=generator)
    x[0] = 2 * inputs
    weight = torch.randint(-weights, weights + 1, (16, 64, 3, 3), generator=generator)
    weight[0], weight[1] = weights, -weights
    codes = x.to(torch.uint8).contiguous(memory_format=torch.channels_last)
    expected = F.conv2d((x - inputs).double(), weight.double(), None, 1, 1)
    try:
        found = integer_conv2d(codes, inputs, weight.to(torch.int8), 1.0, None, (1, 1), (1, 1), (1, 1), 1)
    except Exception:  # another torch may lack the operator, or take other arguments
        return False
    return bool(torch.equal(found.double(), expected))
