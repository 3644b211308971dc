"""Converted reads of large inputs: array by array, products of small integers as such, each conversion in one pass."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from energytl.analog.fused import compact_dtype, elementwise
from energytl.analog.fused_conversion import add_converted_
from energytl.analog.integer_product import LARGEST, integers_are_exact
from energytl.analog.partial_sums import converter_ranges, variance_floor
from energytl.analog.quantize import round_to_integers

if TYPE_CHECKING:
    from energytl.analog.read import Array, InputFormat, ReadScheme


def converted_large(
    array: "Array", x: Tensor, cells: Tensor | None, draw: torch.Generator | None, variances: Tensor | None
) -> Tensor:
    """What `Array.converted` gives, for large float32 inputs on the CPU of at most 7 bits, without gradients.

    Squares of cells that are read bit by bit are rounded to 1/127 of the largest where they are multiplied as
    integers, which moves a partial sum's standard deviation by 0.2 % or so.

    Args:
        array: the layer's cells, with its converter, and a matrix that `split` cuts.
        x: inputs, of the layer's own kind.
        cells: what they hold, (C, *weight.shape), in units of the full range; None: what they should.
        draw: of the noise; None: neither reads nor converters have any.
        variances: of one read of each cell, like cells; None: reads do not fluctuate.
    """
    assert array.converter is not None
    units = array.scheme.conversions(array.inputs)
    columns, significances = array.mapping.sensed(array.stored if cells is None else cells, array.weights)
    spreads = None if variances is None else array.mapping.sensed_variances(variances, array.weights)
    levels = array.mapping.sensed_levels(array.weights) if cells is None and array.cells is None else None
    steps = array.converter.step(converter_ranges(array)) * array.scheme.drive_levels(array.inputs)
    floor = 0.0 if spreads is None else variance_floor(array)
    sensing = array.sensing_of_sums
    outputs, outcome, shape = len(array.weight), torch.empty(0), torch.Size()
    for number, phase, mean, variance in _products(array, x, columns, spreads, levels):
        if not outcome.numel():
            shape = mean.movedim(array.output_dim, -1).shape[:-1]
            outcome = mean.new_zeros(shape.numel(), outputs)
            outcome += 0.0 if array.bias is None else array.bias
        means, deviations = (None if y is None else _rows(y, array.output_dim) for y in (mean, variance))
        assert means is not None
        for column, significance in enumerate(significances):
            own = slice(column * outputs, (column + 1) * outputs)
            add_converted_(
                outcome,
                means[:, own],
                None if deviations is None else deviations[:, own],
                steps[number : number + 1] if len(steps) > 1 else steps,
                units[phase] * significance * array.unit,
                floor,
                None if sensing is None else sensing[phase][number, column],
                array.converter,
                draw,
            )
    return outcome.view(*shape, outputs).movedim(-1, array.output_dim)


def _products(
    array: "Array", x: Tensor, columns: Tensor, spreads: Tensor | None, levels: int | None
) -> Iterator[tuple[int, int, Tensor, Tensor | None]]:
    """Numbers of array and phase, mean and variance of their partial sums (S·O outputs), in steps of the drive."""
    scheme, inputs = array.scheme, array.inputs
    once = len(scheme.conversions(inputs)) == 1 and spreads is not None
    rounding = array.input_range, inputs.levels
    if once:
        codes, squares = elementwise(_codes_and_variance, (x,), *rounding, scheme, inputs, compact_dtype())
    else:
        (codes,) = elementwise(_codes, (x,), *rounding)
    inputs_of = _parts(array, codes)
    squares_of = _parts(array, squares) if once else ()
    means_of = _parts(array, columns.flatten(0, 1))
    spreads_of = [None] * len(inputs_of) if spreads is None else _parts(array, spreads.flatten(0, 1))
    for number, (part, mean, spread) in enumerate(zip(inputs_of, means_of, spreads_of, strict=True)):
        if once:
            yield number, 0, *_product(array, part, squares_of[number], mean, spread, levels)
            continue
        if not scheme.bits_apart():
            for phase, products in enumerate(_whole_products(array, part, mean, spread, levels)):
                yield number, phase, *products
            continue
        magnitudes = (part.to(torch.int16) - inputs.levels).to(torch.int8)
        signs = magnitudes.sign() if bool((magnitudes < 0).any()) else None
        magnitudes = magnitudes.abs_().view(torch.uint8)
        read = _BitProducts(array, mean, spread, levels)
        for phase in range(len(scheme.conversions(inputs))):
            yield number, phase, *read(magnitudes >> phase & 1, signs)


def _whole_products(
    array: "Array", codes: Tensor, mean: Tensor, spread: Tensor | None, levels: int | None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Mean and variance of the partial sums of one array in each phase; codes are its inputs, as bytes n + levels."""
    integers = codes.to(torch.float32) - array.inputs.levels
    before: Tensor | None = None
    for drive, squares in array.scheme.drives(integers, array.inputs):
        if drive is not before:
            bytes_or_drive = codes if drive is integers else drive
            variance = None if spread is None else squares().to(compact_dtype())
            products, before = _product(array, bytes_or_drive, variance, mean, spread, levels), drive
        yield products


def _product(
    array: "Array", drive: Tensor, squares: Tensor | None, mean: Tensor, spread: Tensor | None, levels: int | None
) -> tuple[Tensor, Tensor | None]:
    """Mean and variance of the partial sums of one array, of its drive as bytes n + levels or as numbers."""
    zero = array.inputs.levels
    if drive.dtype == torch.uint8 and levels is not None and integers_are_exact(zero, levels):
        product = array.multiply_integers(drive, zero, _integers(mean, levels), 1 / levels, None)
    else:
        product = array.multiply(drive.to(mean) - zero if drive.dtype == torch.uint8 else drive, mean, None)
    if spread is None or squares is None:
        return product, None
    return product, array.multiply(squares, spread.to(squares), None)


class _BitProducts:
    """Mean and variance of the partial sums of one array that is driven with single bits.

    Args:
        array: the layer's cells.
        mean: what the array's columns hold, (S·O, …).
        spread: variances of one read of them; None: reads do not fluctuate.
        levels: the integer that stands for a full cell; None: cells hold no multiples of one number.
    """

    def __init__(self, array: "Array", mean: Tensor, spread: Tensor | None, levels: int | None) -> None:
        self.array, self.outputs = array, len(mean)
        self.whole = levels is not None and integers_are_exact(1, LARGEST)
        if not self.whole or levels is None:
            self.mean, self.spread = mean, spread
            return
        self.mean, self.scales = _integers(mean, levels), torch.full((len(mean),), 1 / levels)
        self.spread = spread
        if spread is not None:
            largest = spread.amax().clamp(min=torch.finfo(torch.float32).tiny)
            self.spread = _integers(spread / largest, LARGEST)
            self.spread_scales = (largest / LARGEST).expand(len(mean)).contiguous()
            self.both = torch.cat([self.mean, self.spread])
            self.both_scales = torch.cat([self.scales, self.spread_scales])

    def __call__(self, bits: Tensor, signs: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Mean and variance for these bits, uint8, of inputs of these signs, int8; None: none is negative."""
        multiply = self.array.multiply_integers
        if not self.whole:
            drive = bits.to(self.mean) if signs is None else bits.to(self.mean) * signs
            mean = self.array.multiply(drive, self.mean, None)
            return mean, None if self.spread is None else self.array.multiply(bits.to(mean), self.spread, None)
        if self.spread is None:
            codes, zero = (bits, 0) if signs is None else ((bits * signs + 1).to(torch.uint8), 1)
            return multiply(codes, zero, self.mean, self.scales, None), None
        if signs is not None:
            mean = multiply((bits * signs + 1).to(torch.uint8), 1, self.mean, self.scales, None)
            return mean, multiply(bits, 0, self.spread, self.spread_scales, None)
        both = multiply(bits, 0, self.both, self.both_scales, None)
        mean, variance = both.split(self.outputs, self.array.output_dim)
        return mean, variance


def _codes(x: Tensor, full_range: float, levels: int) -> tuple[Tensor]:
    """Integers n of inputs as bytes n + levels."""
    return ((round_to_integers(x, full_range, levels) + levels).to(torch.uint8),)


def _codes_and_variance(
    x: Tensor, full_range: float, levels: int, scheme: "ReadScheme", inputs: "InputFormat", compact: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Integers n of inputs as bytes n + levels, and the variance that they carry (compact)."""
    integers = round_to_integers(x, full_range, levels)
    return (integers + levels).to(torch.uint8), scheme.variance(integers, inputs).to(compact)


def _integers(values: Tensor, levels: int) -> Tensor:
    return (values * levels).round().to(torch.int8)


def _parts(array: "Array", values: Tensor) -> tuple[Tensor, ...]:
    parts = array.split(values)
    assert parts is not None  # asked before
    return parts


def _rows(y: Tensor, output_dim: int) -> Tensor:
    """Outputs as (n, O), a view where they lie so."""
    last = y.movedim(output_dim, -1)
    return last.reshape(-1, last.shape[-1])
