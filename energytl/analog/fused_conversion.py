"""Conversion of partial sums in one pass over memory: noise, rounding, cutting off, and the sum over the arrays."""

import torch
from torch import Tensor

from energytl.analog.fused import fused
from energytl.analog.fused_noise import normal_numbers
from energytl.analog.noise import normal_like
from energytl.crossbar.converter import Converter


def add_converted_(
    outcome: Tensor,
    mean: Tensor,
    variance: Tensor | None,
    step: Tensor,
    unit: float,
    floor: float,
    sensing: Tensor | None,
    converter: Converter,
    generator: torch.Generator | None,
) -> None:
    """Add u·Δ·code((mean + ε·√(variance + floor + sensing))/Δ) to the outcome, ε standard normal; float32 on the CPU.

    The codes are those of `Converter.codes`; its noise, normal as well, is drawn in the same number.

    Args:
        outcome: (n, O); in place.
        mean: of the partial sums, (n, O).
        variance: of them, (n, O); None: reads do not fluctuate.
        step: Δ, in units of the sums, (O,) or (1,).
        unit: u, what a sum of 1 stands for.
        floor: added to the variance of reads that fluctuate.
        sensing: added to the variance by noise of sensing, (O,); None: nothing.
        converter: whose codes they become.
        generator: that the numbers follow from; None: there is no noise.
    """
    noisy = generator is not None and (variance is not None or converter.noise_lsb > 0 or sensing is not None)
    key = torch.zeros(1, dtype=torch.int64)
    if noisy:
        key.random_(-(2**63), None, generator=generator)
    highest = (2**converter.bits - 1) / 2 if converter.offset else float(converter.levels)
    step = step.to(outcome)
    added = torch.full_like(step, converter.noise_lsb**2)
    if sensing is not None:
        step, added = (y.expand(sensing.shape) for y in (step, added))
        added = added + sensing.to(outcome) / step.square()
    line = torch.stack([1 / step, step * unit, torch.full_like(step, floor), torch.full_like(step, highest), added])
    spread = variance if generator is not None else None
    call = fused(_add_converted_, _add_converted_unfused_)
    call(outcome, mean, spread, line, key.view(torch.int32), noisy, converter.offset)


def _add_converted_(
    outcome: Tensor, mean: Tensor, variance: Tensor | None, line: Tensor, key: Tensor, noisy: bool, offset: bool
) -> None:
    normal = normal_numbers(outcome.shape[0] * outcome.shape[1], key).view(outcome.shape) if noisy else None
    _add_codes_(outcome, mean, variance, line, normal, offset)


def _add_converted_unfused_(
    outcome: Tensor, mean: Tensor, variance: Tensor | None, line: Tensor, key: Tensor, noisy: bool, offset: bool
) -> None:
    drawn = torch.Generator().manual_seed(int(key.view(torch.int64)))
    _add_codes_(outcome, mean, variance, line, normal_like(outcome, drawn) if noisy else None, offset)


def _add_codes_(
    outcome: Tensor, mean: Tensor, variance: Tensor | None, line: Tensor, normal: Tensor | None, offset: bool
) -> None:
    inverse, value, floor, highest, added = line.unbind()
    steps = mean * inverse
    if normal is not None:
        spread = added if variance is None else (variance.float() + floor) * (inverse * inverse) + added
        steps = steps + normal * torch.sqrt(spread)
    if offset:
        codes = torch.clamp(torch.round(steps + highest), min=torch.zeros_like(highest), max=2 * highest) - highest
    else:
        codes = torch.clamp(torch.round(steps), min=-highest, max=highest)
    outcome.add_(codes * value)
