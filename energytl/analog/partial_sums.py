"""A read as the converters see it: partial sums of each array, phase and column, their noise, their conversion.

The outcome is Σ_p u_p·Σ_s σ_s·Σ_t convert(P_pst), in units of one integer input times a full weight. p are the phases
of the read that are converted apart, u_p is the integer input that one step of their drive stands for; s the columns
that are converted apart, of significance σ_s; t the arrays. P_pst has the mean Σ_k d_pk·m_sk over the rows k of array
t, of drives d in steps and of what the cells hold, m; and, where reads fluctuate, the variance Σ_k v_pk·a²_sk.
"""

from functools import reduce
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from energytl.analog.mapping import smallest_weight
from energytl.analog.noise import normal_like
from energytl.devices.fluctuation import amplitude

if TYPE_CHECKING:
    from collections.abc import Iterator

    from energytl.analog.read import Array


def converted(
    array: "Array", integers: Tensor, cells: Tensor, draw: torch.Generator | None, variances: Tensor | None
) -> Tensor:
    """Outcome of a read, in units of one integer input times a full weight; gradients straight through the codes.

    Args:
        array: the layer's cells, with its converter.
        integers: inputs n.
        cells: what the cells hold, (C, *weight.shape), in units of the full range.
        draw: of the noise; None: neither reads nor converters have any.
        variances: of one read of each cell, like cells; None: reads do not fluctuate.
    """
    outcome: Tensor | None = None
    for unit, sums in _partial_sums(array, integers, cells, draw, variances):
        part = convert_sums(array, sums, unit, draw)
        outcome = part if outcome is None else outcome + part
    assert outcome is not None  # there is a phase, and a column
    return outcome


def convert_sums(array: "Array", sums: Tensor, unit: float, draw: torch.Generator | None) -> Tensor:
    """What the converters make of partial sums (arrays, …) in units of one step of the drive; added up over the arrays.

    Args:
        array: the layer's cells.
        sums: partial sums; overwritten where no gradient is wanted.
        unit: what one of them stands for.
        draw: of the converters' noise; None: without.
    """
    assert array.converter is not None
    step = array.converter.step(converter_ranges(array)) * array.scheme.drive_levels(array.inputs)
    step = step.to(sums).view(-1, *[1] * (sums.dim() - 1))
    codes = array.converter.codes(sums / step if sums.requires_grad else sums.div_(step), draw)
    if len(step) == 1:  # one by one: sum(0) takes three times as long where the parts lie far apart in memory
        return reduce(torch.add, codes.unbind()) * (step[0] * unit)
    return reduce(torch.add, (codes * (step * unit)).unbind())


def converter_ranges(array: "Array") -> Tensor:
    """The range of each array's converters, (arrays,) or (1,), in units of one full input times one full cell."""
    assert array.converter is not None
    rows = torch.tensor(array.arrays, dtype=torch.float64)
    cell_levels = None if array.cells is not None else array.mapping.sensed_levels(array.weights)
    smallest = None if cell_levels is None else 1 / (cell_levels * array.scheme.drive_levels(array.inputs))
    return array.converter.range.largest(array.converter.levels, rows, smallest, array.converter_range).reshape(-1)


def rounding_variance(array: "Array") -> float:
    """What converting the partial sums adds to an output's variance: Σ_p u_p²·Σ_s σ_s²·Σ_t (Δ²/12 + noise²).

    In units of one integer input times a full weight, squared.
    """
    assert array.converter is not None
    ranges = converter_ranges(array).expand(len(array.arrays))
    drive_levels = array.scheme.drive_levels(array.inputs)
    phases = sum((unit * drive_levels) ** 2 for unit in array.scheme.conversions(array.inputs))
    apart = array.mapping.conversions_per_output(array.weights) > 1
    columns = sum(s**2 for s in array.significances) if apart else 1.0
    return float(array.converter.variance(ranges).sum()) * phases * columns


def seen_sums(array: "Array", x: Tensor, count: int) -> Tensor:
    """What converters see of these inputs, in units of a full input times a full cell; evenly spread, (count,) or less.

    With the fluctuation of independent reads.
    """
    levels = array.inputs.levels
    integers = (x.detach() * (levels / array.input_range)).round().clamp(-levels, levels)
    variances = array.variances
    draw = array.noise.generator(x.device)
    parts = [sums.flatten() for _, sums in _partial_sums(array, integers, array.stored, draw, variances)]
    seen = torch.cat(parts).detach() / array.scheme.drive_levels(array.inputs)
    return seen[torch.arange(min(count, len(seen)), device=x.device) * 1_000_003 % len(seen)]


def _partial_sums(
    array: "Array", integers: Tensor, cells: Tensor, draw: torch.Generator | None, variances: Tensor | None
) -> "Iterator[tuple[float, Tensor]]":
    """For each phase and column what a unit stands for, and the sums, (arrays, *outputs), in steps of the drive."""
    columns, significances = array.mapping.sensed(cells, array.weights)
    spreads = None if variances is None else array.mapping.sensed_variances(variances, array.weights)
    scheme, inputs = array.scheme, array.inputs
    units, drives = scheme.conversions(inputs), scheme.drives(integers, inputs)
    sensing = None if draw is None else array.sensing_of_sums
    for phase, (unit, (drive, squares)) in enumerate(zip(units, drives, strict=True)):
        for number, significance in enumerate(significances):
            sums = array.partial_sums(drive, columns[number])
            added = _sensing_variance(array, sensing, phase, number, sums.dim())
            if spreads is not None and draw is not None:
                variance = array.partial_sums(squares(), spreads[number]) + variance_floor(array)
                sums = sums + normal_like(sums, draw) * (variance if added is None else variance + added).sqrt()
            elif added is not None and draw is not None:
                sums = sums + normal_like(sums, draw) * added.sqrt()
            yield unit * significance, sums


def _sensing_variance(
    array: "Array", variances: list[Tensor] | None, phase: int, column: int, dims: int
) -> Tensor | None:
    """What noise of sensing adds to the partial sums of a phase and column, which have so many dimensions, or None."""
    if variances is None:
        return None
    added = torch.stack([array.of_outputs(each) for each in variances[phase][:, column]])
    return added.view(len(added), *[1] * (dims - added.dim()), *added.shape[1:])


def variance_floor(array: "Array") -> float:
    """10⁻⁴ of the variance of one step of the drive on the smallest weight: keeps the slope of √ finite."""
    smallest = torch.tensor(smallest_weight(array.mapping, array.weights))
    quantum = amplitude(smallest, array.rho.detach().cpu(), array.fluctuation)
    return 1e-4 * float(quantum) ** 2 + torch.finfo(torch.float32).tiny
