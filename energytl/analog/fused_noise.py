"""Normal noise of given variance, added in the same pass over memory in which it is drawn.

Random numbers come from a counter: number i is a hash of i and of a key, so threads share no state, and the key is
all that a call takes from the network's stream. The hash is Wellons' chain of shifts and multiplications
(nullprogram.com/blog/2018/07/31), twice, the second half of the key added in between. Its upper 24 bits become a
standard normal number by a rational approximation of the normal distribution's quantiles: 2²⁴ equally likely values
within ±5.4, off by 2·10⁻⁴ at most.
"""

import torch
from torch import Tensor

from energytl.analog.fused import flat, fused
from energytl.analog.noise import normal_like

_SHIFTS_AND_FACTORS = ((16, 0x7FEB352D), (15, 0x846CA68B - 2**32))


def add_normal_(
    mean: Tensor, variance: Tensor, scale: float, floor: float, generator: torch.Generator, wants_slope: bool
) -> Tensor:
    """Make the mean the outcome mean + ε·scale·√(variance + floor), ε standard normal; any shape, float32 on the CPU.

    What is returned is the variance's memory: if wanted, it holds the outcome's slope to the root's
    argument, ε·scale/(2·√…). Where torch cannot compile, ε are the numbers of `normal_like`.
    """
    if variance.stride() != mean.stride():
        variance = torch.empty_like(mean, dtype=variance.dtype).copy_(variance)
    key = torch.empty(1, dtype=torch.int64).random_(-(2**63), None, generator=generator).view(torch.int32)
    line = torch.tensor([scale, floor])  # a tensor, as torch.compile may take numbers for constants
    fused(_add_normal_, _add_normal_unfused_)(flat(mean), flat(variance), line, key, wants_slope)
    return variance


def _add_normal_(mean: Tensor, variance: Tensor, line: Tensor, key: Tensor, wants_slope: bool) -> None:
    scale, floor = line.unbind()
    normal, deviation = normal_numbers(len(mean), key), torch.sqrt(variance.float() + floor)
    mean.copy_(mean + normal * scale * deviation)
    if wants_slope:
        variance.copy_(0.5 * normal * scale / deviation)


def _add_normal_unfused_(mean: Tensor, variance: Tensor, line: Tensor, key: Tensor, wants_slope: bool) -> None:
    scale, floor = line.unbind()
    normal = normal_like(mean, torch.Generator().manual_seed(int(key.view(torch.int64))))
    deviation = variance.float().add_(floor).sqrt_()
    normal.mul_(scale)
    mean.addcmul_(normal, deviation)
    if wants_slope:
        variance.copy_(normal.div_(deviation).mul_(0.5))


def normal_numbers(count: int, key: Tensor) -> Tensor:
    """So many standard normal numbers, (count,) float32."""
    return _quantile(_hash(torch.arange(count, dtype=torch.int32), key))


def _hash(counter: Tensor, key: Tensor) -> Tensor:
    """32 random bits for each number and key, int32."""
    bits = counter
    for half in key.unbind():
        bits = bits + half
        for shift, factor in _SHIFTS_AND_FACTORS:
            bits = (bits ^ _shifted(bits, shift)) * factor
        bits = bits ^ _shifted(bits, 16)
    return bits


def _shifted(bits: Tensor, shift: int) -> Tensor:
    """Unsigned right shift."""
    return bits >> shift & 2 ** (32 - shift) - 1


def _quantile(bits: Tensor) -> Tensor:
    """Quantiles of the standard normal distribution at p = (upper 24 bits + ½)/2²⁴; t = 2p − 1 is exact.

    z = t·P(s)/Q(s), s = (1 − t²)^¼: a minimax fit of 2⁻²⁵ ≤ p ≤ 1 − 2⁻²⁵. (Coefficients stand where they are used:
    torch.compile reads those of a list from memory, for every number anew.)
    """
    t = ((bits >> 8).float() + 0.5) * 2.0**-23
    s = ((1 - t.abs()) * (1 + t.abs())).sqrt().sqrt()
    numerator = (((s * 700.4821167 - 2510.141113) * s + 3296.368408) * s + 551.3739014) * s + 6.922539234
    denominator = ((s * 465.7471008 + 1056.110352) * s + 108.0098038) * s + 1.0
    return t * (numerator / denominator)
