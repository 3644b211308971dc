"""How the cells of one array are read (schemes), and how the simulation computes such a read (computations).

Schemes say what the hardware does: one read with the whole input (`SingleRead`), the mean of several
(`RepeatedRead`), one read for each input bit (`BitSerialRead`, Wang 2021 §4.3). Computations say how its random
outcome is drawn: a state for every cell and read (`Exact`, the ground truth, slow), the mean and variance of each
output (`Moments`, the same distribution for two products; the local reparameterisation of Kingma 2015), one state
a cell held throughout (`Frozen`), or none (`Noiseless`).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from energytl.allowed import Allowed, check
from energytl.analog.fused import compact_dtype, elementwise, is_large
from energytl.analog.fused_noise import add_normal_
from energytl.analog.integer_product import LARGEST, integers_are_exact
from energytl.analog.large_conversion import converted_large
from energytl.analog.mapping import Mapping, WeightFormat, integer_levels, read_variance, smallest_weight
from energytl.analog.noise import NoiseStream, normal_like
from energytl.analog.once import once
from energytl.analog.partial_sums import convert_sums, converted, rounding_variance
from energytl.analog.quantize import (
    bit_count,
    bit_power,
    fake_quantize,
    gradient_inside,
    round_to_integers,
)
from energytl.analog.sensing import output_variance, sums_variances
from energytl.crossbar.converter import Converter
from energytl.devices.cell import Cell
from energytl.devices.fluctuation import Fluctuation, amplitude, sample_states, signed_amplitude
from energytl.devices.sensing import SensingNoise
from energytl.streams import Stream, fold, seed_of


@dataclass(frozen=True)
class InputFormat:
    """How finely an input is rounded.

    Attributes:
        bits: bits of an input's magnitude: integers 0..levels with levels = 2^bits − 1. The sign of a signed input
            is the polarity of its pulse and takes no bit.
        follows: whether the range follows the largest input of each image, or of each vector in a linear layer, as
            converters with a variable reference do; else it is fixed by calibration. What training on chip from
            scratch needs.

    >>> InputFormat(5).levels
    31
    """

    bits: int = 5
    follows: bool = False

    def __post_init__(self) -> None:
        """Refuse widths that hold no input."""
        check(self, "inputs", bits=Allowed(1, 16))

    @property
    def levels(self) -> int:
        """The largest integer input."""
        return 2**self.bits - 1


class ReadScheme(ABC):
    """What the hardware does to multiply an input with the cells.

    Methods take integer inputs n, −levels..levels, as floats of any shape.
    """

    @abstractmethod
    def reads(self, inputs: InputFormat) -> int:
        """Reads of every cell for one output position."""

    @abstractmethod
    def pulses(self, integers: Tensor) -> Tensor:
        """Unit pulses that an input sends: what the paper's energy counts (Wang 2021, eq. 19)."""

    @abstractmethod
    def on_time(self, integers: Tensor, inputs: InputFormat) -> Tensor:
        """Time for which an input drives its row, in units of one read's length."""

    @abstractmethod
    def variance(self, integers: Tensor, inputs: InputFormat) -> Tensor:
        """Variance of the outcome in units of a² if all reads are independent."""

    @abstractmethod
    def phases(self, integers: Tensor, inputs: InputFormat) -> Tensor:
        """Input of each read, times its weight in the sum; (reads, *integers.shape), summing to the integers."""

    @abstractmethod
    def conversions(self, inputs: InputFormat) -> tuple[float, ...]:
        """The integer input that one step of the drive stands for, in each phase that is converted apart."""

    def drive_levels(self, inputs: InputFormat) -> int:
        """Steps of the drive of one such phase: the input's own, or one, of a bit."""
        return inputs.levels

    def charges(self, inputs: InputFormat) -> tuple[float, ...]:
        """The integer input that the charge of a fully driven cell stands for, in each read of the cells."""
        return tuple(unit * self.drive_levels(inputs) for unit in self.conversions(inputs))

    def bits_apart(self) -> bool:
        """Whether such phases are the bits of the input, lowest first; else each drives with the whole input."""
        return False

    def drives(self, integers: Tensor, inputs: InputFormat) -> Iterator[tuple[Tensor, Callable[[], Tensor]]]:
        """Drives of each such phase, in steps, of integers' shape; and what makes the variance that they carry.

        The variance is in units of a², of reads that are independent.
        """
        for _ in self.conversions(inputs):
            yield integers, integers.square


@dataclass(frozen=True)
class SingleRead(ReadScheme):
    """One read; the input is the length of the pulse."""

    def reads(self, inputs: InputFormat) -> int:  # noqa: D102
        return 1

    def pulses(self, integers: Tensor) -> Tensor:  # noqa: D102
        return integers.abs()

    def on_time(self, integers: Tensor, inputs: InputFormat) -> Tensor:  # noqa: D102
        return integers.abs() / inputs.levels

    def variance(self, integers: Tensor, inputs: InputFormat) -> Tensor:  # noqa: D102
        return integers.square()

    def phases(self, integers: Tensor, inputs: InputFormat) -> Tensor:  # noqa: D102
        return integers.unsqueeze(0)

    def conversions(self, inputs: InputFormat) -> tuple[float, ...]:  # noqa: D102
        return (1.0,)


@dataclass(frozen=True)
class RepeatedRead(ReadScheme):
    """The mean of several single reads: fluctuation compensation (Wan 2020; Wang 2021, baseline).

    Attributes:
        times: number of reads K; energy and latency × K, variance / K.
    """

    times: int = 5

    def __post_init__(self) -> None:
        """Refuse less than one read."""
        check(self, "read", times=Allowed(1, 1000))

    def reads(self, inputs: InputFormat) -> int:  # noqa: D102
        return self.times

    def pulses(self, integers: Tensor) -> Tensor:  # noqa: D102
        return self.times * integers.abs()

    def on_time(self, integers: Tensor, inputs: InputFormat) -> Tensor:  # noqa: D102
        return self.times * integers.abs() / inputs.levels

    def variance(self, integers: Tensor, inputs: InputFormat) -> Tensor:  # noqa: D102
        return integers.square().div_(self.times)

    def phases(self, integers: Tensor, inputs: InputFormat) -> Tensor:  # noqa: D102
        return (integers / self.times).expand(self.times, *integers.shape)

    def conversions(self, inputs: InputFormat) -> tuple[float, ...]:  # noqa: D102
        return (1 / self.times,) * self.times


@dataclass(frozen=True)
class BitSerialRead(ReadScheme):
    """One read for each bit of the input, summed with the bits' weights: low-fluctuation decomposition.

    Wang 2021, eq. 14-20: the mean is that of a single read, the variance Σ 4^p·δ_p instead of (Σ 2^p·δ_p)².

    Attributes:
        analog_accumulation: the bits' outcomes are weighted and summed as charge and converted once (NeuRRAM, Wan
            2022: the sample of bit p is integrated 2^p times); else each is converted, and they are summed as numbers.

    >>> BitSerialRead().pulses(torch.arange(4.0))
    tensor([0., 1., 1., 2.])
    """

    analog_accumulation: bool = False

    def reads(self, inputs: InputFormat) -> int:  # noqa: D102
        return inputs.bits

    def pulses(self, integers: Tensor) -> Tensor:  # noqa: D102
        return bit_count(integers)

    def on_time(self, integers: Tensor, inputs: InputFormat) -> Tensor:  # noqa: D102
        return bit_count(integers)

    def variance(self, integers: Tensor, inputs: InputFormat) -> Tensor:  # noqa: D102
        return bit_power(integers, inputs.bits)

    def phases(self, integers: Tensor, inputs: InputFormat) -> Tensor:  # noqa: D102
        powers = torch.arange(inputs.bits, device=integers.device).view(-1, *[1] * integers.dim())
        bits = integers.detach().abs().round().to(torch.int32) >> powers & 1
        values = (bits << powers).to(integers) * integers.detach().sign()
        return values + (integers - integers.detach()) / inputs.bits  # straight-through, an equal share a bit

    def conversions(self, inputs: InputFormat) -> tuple[float, ...]:  # noqa: D102
        return (1.0,) if self.analog_accumulation else tuple(2.0**p for p in range(inputs.bits))

    def drive_levels(self, inputs: InputFormat) -> int:  # noqa: D102
        return inputs.levels if self.analog_accumulation else 1

    def charges(self, inputs: InputFormat) -> tuple[float, ...]:  # noqa: D102
        return tuple(2.0**p for p in range(inputs.bits))

    def bits_apart(self) -> bool:  # noqa: D102
        return not self.analog_accumulation

    def drives(self, integers: Tensor, inputs: InputFormat) -> Iterator[tuple[Tensor, Callable[[], Tensor]]]:  # noqa: D102
        if self.analog_accumulation:
            yield integers, lambda: self.variance(integers, inputs)
            return
        narrow = torch.int16 if inputs.bits < 16 else torch.int32
        magnitudes, signs = integers.detach().abs().to(narrow), integers.detach().sign()
        through = (integers - integers.detach()) / inputs.bits if integers.requires_grad else None
        for p in range(inputs.bits):
            drive = (magnitudes >> p).bitwise_and_(1).to(signs).mul_(signs)
            drive = drive if through is None else drive + through / 2**p  # straight-through, an equal share a bit
            yield drive, drive.square


@dataclass(frozen=True)
class Array:
    """One layer's cells, ready to be read.

    Attributes:
        weight: stored weights, rounded if the cells are, of the layer's weight shape.
        cells: what the cells of each weight hold, if not what the mapping says of the weight: they vary. Shape
            (C, *weight.shape), in units of the full range.
        kept: what follows from weights and ρ alone, for further reads of the same; None: they may change.
        full_range: the weight that the full range u = 1 stands for.
        rho: energy coefficient ρ, scalar.
        input_range: the input that the integer `levels` stands for.
        bias: added digitally after the read, or None.
        of_outputs: one number an output → a shape that broadcasts to the outputs.
        cell, sensing_noise, fluctuation, weights, inputs, scheme: the hardware.
        mapping: with all cells that fluctuate.
        idle_siemens: what an empty cell conducts, as far as that fluctuates, too; 0: the paper's law.
        noise: source of the random states.
        index: number of the layer in its network.
        alone: whether the layer is known to be called once in an inference.
        multiply: (x, weight, bias) → the layer's product.
        multiply_integers: (inputs, zero, weight, scale, bias) → the same of uint8 and int8, see `integer_conv2d`.
        multiply_backward: (grad, x, weight, whether x's and the weight's are wanted) → its gradients to them, or None.
        bias_gradient: grad → its gradient to the bias.
        arrays: rows of each array that the matrix is cut into.
        converter: of the partial sums; None: ideal.
        converter_range: what calibration found for it, or None.
        partial_sums: (x, weight) → the product's parts, one for each array, (arrays, *the product's shape).
        split: inputs or weights → those of each array apart, or None if `multiply` cannot take them so.
        output_dim: which dimension of the product its outputs are.
        added_variance: of each output, besides the cells' fluctuation.
        unfold: x → (N, L, G, K): K inputs of each of G groups at L output positions of N images.
        fold: (N, L, G, O) → the product's shape.
        positions: output positions of one image, L.
    """

    weight: Tensor
    cells: Tensor | None
    kept: dict[str, Any] | None
    full_range: float
    rho: Tensor
    input_range: float
    bias: Tensor | None
    of_outputs: Callable[[Tensor], Tensor]
    cell: Cell
    sensing_noise: SensingNoise | None
    fluctuation: Fluctuation
    idle_siemens: float
    mapping: Mapping
    weights: WeightFormat
    inputs: InputFormat
    scheme: ReadScheme
    noise: NoiseStream
    index: int
    alone: bool
    multiply: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    multiply_integers: Callable[[Tensor, int, Tensor, float | Tensor, Tensor | None], Tensor]
    multiply_backward: Callable[[Tensor, Tensor, Tensor, bool, bool], tuple[Tensor | None, Tensor | None]]
    bias_gradient: Callable[[Tensor], Tensor]
    arrays: tuple[int, ...]
    converter: Converter | None
    converter_range: Tensor | None
    partial_sums: Callable[[Tensor, Tensor], Tensor]
    split: Callable[[Tensor], tuple[Tensor, ...] | None]
    output_dim: int
    unfold: Callable[[Tensor], Tensor]
    fold: Callable[[Tensor], Tensor]
    positions: int
    added_variance: float = 0.0

    @property
    def stored(self) -> Tensor:
        """What the cells of each weight hold, in units of the full range; (C, *weight.shape)."""
        return self.mapping.stored(self.weight / self.full_range, self.weights) if self.cells is None else self.cells

    @property
    def squares(self) -> Tensor:
        """Variance of one read of each weight, in units of the full range squared; of the weight's shape."""
        return once(self.kept, "squares", self._squares)

    def _squares(self) -> Tensor:
        return read_variance(self.stored, self.rho, self.significances, self.fluctuation, self.idle_siemens)

    @property
    def variances(self) -> Tensor:
        """Variance of one read of each cell, in units of the full range squared; (C, *weight.shape)."""
        return amplitude(self.stored, self.rho, self.fluctuation, self.idle_siemens).square()

    @property
    def spread(self) -> Tensor:
        """What a unit offset of its state adds to each cell, in units of the full range; (C, *weight.shape)."""
        return signed_amplitude(self.stored, self.rho, self.fluctuation, self.idle_siemens)

    @property
    def sensing_variance(self) -> Tensor | None:
        """Variance of each output by noise of sensing, (O,), as `analog.sensing` has it; None: no such noise."""
        return None if self.sensing_noise is None else once(self.kept, "sensing", lambda: output_variance(self))

    @property
    def sensing_of_sums(self) -> list[Tensor] | None:
        """The same of the partial sums of each phase, (arrays, S, O), in units of one step of the drive."""
        if self.sensing_noise is None:
            return None
        variances: list[Tensor] = once(self.kept, "sensing of sums", lambda: sums_variances(self))
        return variances

    @property
    def step(self) -> float:
        """What the integer input 1 stands for."""
        return self.input_range / self.inputs.levels

    @property
    def unit(self) -> float:
        """The output of a weight of the full range that is read with the integer input 1."""
        return self.step * self.full_range

    @property
    def significances(self) -> tuple[float, ...]:
        """Of the cells of a weight, length C."""
        return self.mapping.significances(self.weights)

    @property
    def integer_levels(self) -> int | None:
        """The integer that stands for the full range, if all weights are integers in its units; else None."""
        return integer_levels(self.mapping, self.weights) if self.cells is None else None

    def deviation(self, generator: torch.Generator, copies: tuple[int, ...] = ()) -> Tensor:
        """Random read minus stored weight, in units of the inputs' weights: shape (*copies, *weight.shape)."""
        cells = self.cell_deviation(generator, copies)
        significances = cells.new_tensor(self.significances)
        shape = (-1, *[1] * self.weight.dim())
        return (significances.view(shape) * cells).sum(len(copies)) * self.full_range

    def sensed(self, outcome: Tensor, generator: torch.Generator) -> Tensor:
        """The outcome of a read with the noise of sensing."""
        if self.sensing_variance is None:
            return outcome
        return outcome + normal_like(outcome, generator) * self.of_outputs(self.sensing_variance.sqrt() * self.unit)

    def cell_deviation(self, generator: torch.Generator, copies: tuple[int, ...] = ()) -> Tensor:
        """Random read minus what the cells hold, in units of the full range; (*copies, C, *weight.shape)."""
        spread = self.spread
        return spread * sample_states((*copies, *spread.shape), self.fluctuation, generator).to(spread)

    def converted(
        self, x: Tensor, cells: Tensor | None, draw: torch.Generator | None, variances: Tensor | None = None
    ) -> Tensor:
        """The outcome of a read whose partial sums are converted; see `partial_sums.converted`.

        Args:
            x: inputs, of the layer's own kind.
            cells: what they hold, (C, *weight.shape), in units of the full range; None: what they should.
            draw: of the noise; None: neither reads nor converters have any.
            variances: of one read of each cell, like cells; None: reads do not fluctuate.
        """
        known = type(self.converter) is Converter  # else it has codes of its own
        wanted = known and not torch.is_grad_enabled() and self.inputs.levels <= LARGEST
        if wanted and is_large(x) and self.split(x) is not None:
            return converted_large(self, x, cells, draw, variances)
        cells = self.stored if cells is None else cells
        step = self.input_range / self.inputs.levels
        scaled = fake_quantize(x, self.input_range, self.inputs.levels) / step
        product = converted(self, scaled + (scaled.round() - scaled).detach(), cells, draw, variances)
        product = product * (step * self.full_range)
        return product if self.bias is None else product + self.of_outputs(self.bias)


class Computation(ABC):
    """How the simulation draws the outcome of a read."""

    @abstractmethod
    def __call__(self, array: Array, x: Tensor) -> Tensor:
        """Outcome of reading the array with the inputs x."""


@dataclass(frozen=True)
class Noiseless(Computation):
    """The quantised product without fluctuation: what an ideal cell would return."""

    def __call__(self, array: Array, x: Tensor) -> Tensor:  # noqa: D102
        if array.converter is not None:
            return _beside(array.converted(x, None, None), array.rho)
        quantised = fake_quantize(x, array.input_range, array.inputs.levels)
        return _beside(array.multiply(quantised, array.weight, array.bias), array.rho)


@dataclass(frozen=True)
class Frozen(Computation):
    """One state of every cell, held for the whole batch or for the life of a chip; any scheme reads the same.

    Attributes:
        chip: number of the chip, whose states are the same in every batch; None draws new ones for each batch, the
            same for all calls of a layer in one call of the network.
    """

    chip: int | None = None

    def __call__(self, array: Array, x: Tensor) -> Tensor:  # noqa: D102
        if self.chip is None:
            generator, _ = array.noise.of_cells(x.device, array.index, array.alone)
        else:
            generator = torch.Generator(x.device).manual_seed(seed_of(Stream.STATES, self.chip, array.index))
        if array.converter is not None:
            return array.converted(x, array.stored + array.cell_deviation(generator), array.noise.of_read(x.device))
        quantised = fake_quantize(x, array.input_range, array.inputs.levels)
        outcome = array.multiply(quantised, array.weight + array.deviation(generator), array.bias)
        return outcome if array.sensing_noise is None else array.sensed(outcome, array.noise.of_read(x.device))


@dataclass(frozen=True)
class Moments(Computation):
    """Each output is normal with the exact mean Σ w·x and variance Σ a²·v(x): two products for independent reads.

    With correlation c the variance is a²·(c·x² + (1−c)·v(x)), v the scheme's. Where one image has several output
    positions, or the layer is called more than once in an inference, the correlated part is a deviation of each cell
    drawn once an image, so that positions and calls correlate too: a third product, and weights for each image in
    memory. So it is in a network's first inference, before which it is not known how often layers are called.

    On the CPU, large float32 inputs are multiplied as integers where inputs and weights are small ones, which is exact;
    squares and gradients as bfloat16 where the processor is faster at it. That moves an output's standard deviation by
    0.2 % or so, and gradients by less than 1 % of their norm.

    With converters the partial sum of each array and phase is drawn so, and converted.

    Attributes:
        rounding_as_variance: instead of converting partial sums, add the variance of their rounding, Δ²/12, and of the
            converters' noise to the outputs': at the price of a read with ideal converters, for training. It holds
            where Δ is below about two standard deviations of a partial sum and little is cut off.
    """

    rounding_as_variance: bool = False

    def __call__(self, array: Array, x: Tensor) -> Tensor:  # noqa: D102
        if array.converter is not None:
            if not self.rounding_as_variance:
                return array.converted(x, None, array.noise.of_read(x.device), array.variances)
            array = replace(array, added_variance=rounding_variance(array))
        correlation = array.fluctuation.correlation
        generator, added = array.noise.of_read(x.device), array.sensing_variance
        of_cells, held = generator, False
        if correlation > 0:
            of_cells, alone = array.noise.of_cells(x.device, array.index, array.alone)
            held = array.positions > 1 or not alone
        tensors = array.weight, array.squares, added, array.bias
        if not is_large(x):
            outcome: Tensor = _ReadMoments.apply(x, *tensors, array, held, generator)
        elif torch.is_grad_enabled():
            outcome = _LargeReadMoments.apply(x, *tensors, array, held, generator)
        else:
            outcome, _ = _draw_large(x, array.squares, added, array, held, generator, wants_slope=False)
        if not held or not len(x):
            return outcome
        quantised = fake_quantize(x, array.input_range, array.inputs.levels)
        deviation = array.deviation(of_cells, (len(x),)) * math.sqrt(correlation)
        each = torch.vmap(array.multiply, in_dims=(0, 0, None))
        return outcome + each(quantised.unsqueeze(1), deviation, None).squeeze(1)


Currents = Iterator[tuple[int, int, Tensor]]
"""Phase, cell of a weight, and what each cell of its kind adds in it: (n, L, G, O, K)."""


@dataclass(frozen=True)
class Exact(Computation):
    """A state for every cell, image, output position and read: the definition, and slow.

    A correlated read finds the cell's state of this image with probability √c, a fresh one otherwise, so any two
    reads of one cell within an image correlate by c, also those of several calls of the layer in one inference.

    Attributes:
        states_at_once: how many states are held in memory.
    """

    states_at_once: int = 2**22

    def __post_init__(self) -> None:
        """Refuse to hold nothing."""
        check(self, "computation", states_at_once=Allowed(1))

    def __call__(self, array: Array, x: Tensor) -> Tensor:  # noqa: D102
        step, generator = array.step, array.noise.of_read(x.device)
        quantised = fake_quantize(x, array.input_range, array.inputs.levels)
        patches = array.unfold(quantised / step)
        _, positions, groups, _ = patches.shape
        stored, spread = (y.reshape(len(y), groups, -1, patches.shape[-1]) for y in (array.stored, array.spread))
        chunk = max(1, self.states_at_once // (positions * stored[0].numel()))
        read = self._read if array.converter is None else self._read_converted
        draws = generator, self._of_cells(array, len(stored), x.device)
        parts = []
        for part in patches.split(chunk):
            nothing = part.new_zeros(*part.shape[:-1], stored.shape[2])
            parts.append(read(array, nothing, self._currents(array, part, stored, spread, *draws), generator))
        product = torch.cat(parts) * (step * array.full_range)
        outcome = array.fold(product if array.bias is None else product + array.bias.view(groups, -1))
        return outcome if array.converter is not None else array.sensed(outcome, generator)

    @staticmethod
    def _of_cells(array: Array, cells: int, device: torch.device) -> list[torch.Generator]:
        """Of the states that are kept, a generator for each cell of a weight: however images are split, they agree."""
        if array.fluctuation.correlation == 0:
            return []
        of_all, _ = array.noise.of_cells(device, array.index, array.alone)
        return [torch.Generator(device).manual_seed(fold(of_all.initial_seed(), cell)) for cell in range(cells)]

    @staticmethod
    def _read(array: Array, total: Tensor, currents: Currents, generator: torch.Generator) -> Tensor:
        """The sums of the cells' currents, beside a total (n, L, G, O)."""
        for _, cell, current in currents:
            total = total + array.significances[cell] * current.sum(-1)
        return total

    @staticmethod
    def _read_converted(array: Array, total: Tensor, currents: Currents, generator: torch.Generator) -> Tensor:
        """The same with converters: the currents of each array, phase and column that is sensed apart are converted."""
        scheme, inputs = array.scheme, array.inputs
        units = scheme.conversions(inputs)
        apart, sensing = array.mapping.senses_apart(array.weights), array.sensing_of_sums
        sums: dict[tuple[int, int], Tensor] = {}
        for phase, cell, current in currents:
            parts = torch.stack([part.sum(-1) for part in current.split(array.arrays, -1)])
            place = (phase if len(units) > 1 else 0, cell if apart else 0)
            sums[place] = sums.get(place, 0.0) + parts * (1.0 if apart else array.significances[cell])
        for (phase, cell), parts in sums.items():
            significance = array.significances[cell] if apart else 1.0
            unit, steps = units[phase], parts / units[phase]
            if sensing is not None:
                noise = sensing[phase][:, cell].sqrt().view(len(parts), 1, 1, *total.shape[2:])
                steps = steps + noise * torch.randn(steps.shape, generator=generator, device=steps.device)
            total = total + convert_sums(array, steps, unit * significance, generator)
        return total

    def _currents(
        self,
        array: Array,
        patches: Tensor,
        stored: Tensor,
        spread: Tensor,
        generator: torch.Generator,
        of_cells: list[torch.Generator],
    ) -> Currents:
        """Phase, cell of a weight, and what each cell of its kind adds in it: (n, L, G, O, K)."""
        noise = array.fluctuation
        together = math.sqrt(noise.correlation)
        shape = (*patches.shape[:-1], stored.shape[2], patches.shape[-1])
        phases = array.scheme.phases(patches, array.inputs)
        for number, (cell, amplitudes) in enumerate(zip(stored, spread, strict=True)):
            held = self._kept_states((1, *shape[2:]), shape[0], noise, of_cells[number]) if together else None
            for phase, driven in enumerate(phases):
                states = sample_states(shape, noise, generator)
                if held is not None:
                    same = torch.rand(shape, generator=generator, device=patches.device) < together
                    states = torch.where(same, held, states)
                yield phase, number, (cell + amplitudes * states) * driven.unsqueeze(3)

    @staticmethod
    def _kept_states(shape: tuple[int, ...], images: int, noise: Fluctuation, generator: torch.Generator) -> Tensor:
        """States of so many further images, one after the other, (images, *shape)."""
        states = torch.empty((images, *shape), device=generator.device)
        for image in states:
            image.copy_(sample_states(shape, noise, generator))
        return states


def _beside(outcome: Tensor, rho: Tensor) -> Tensor:
    """The outcome, unchanged, which ρ has part in with a gradient of 0: processes wait for one of every parameter."""
    if not (torch.is_grad_enabled() and rho.requires_grad):
        return outcome
    beside: Tensor = _Beside.apply(outcome, rho)
    return beside


class _Beside(torch.autograd.Function):
    """y, and 0 to another."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, other: Tensor) -> Tensor:  # noqa: ANN401
        """Pass y on in its own memory."""
        ctx.save_for_backward(other)
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        """The gradient, and none."""
        return grad, torch.zeros_like(ctx.saved_tensors[0])


def read_variance_of_inputs(
    integers: Tensor, scheme: ReadScheme, inputs: InputFormat, correlation: float, held: bool
) -> Tensor:
    """c·n² + (1−c)·v(n), the variance of a read in units of a² for integer inputs n; shape of integers.

    Without the first term where the correlated part is held elsewhere.

    >>> n = torch.tensor([3.0])
    >>> [float(read_variance_of_inputs(n, BitSerialRead(), InputFormat(2), c, held=False)) for c in (0, 0.5, 1)]
    [5.0, 7.0, 9.0]
    """
    if correlation == 0:
        return scheme.variance(integers, inputs)
    independent = (1 - correlation) * scheme.variance(integers, inputs)
    return independent if held else independent + correlation * integers.square()


def _variance_floor(array: Array) -> Tensor:
    """10⁻⁴ of the variance of one input step on the smallest weight, per output; keeps the slope of √ finite.

    In units of `Array.unit` squared, as all variances here.
    """
    smallest = array.weight.new_full((), smallest_weight(array.mapping, array.weights))
    quantum = amplitude(smallest, array.rho.detach(), array.fluctuation)
    return (1e-4 * quantum.square() + 1e-30 + array.added_variance).to(array.weight.dtype).expand(len(array.weight))


class _ReadMoments(torch.autograd.Function):
    """Σ w·x + unit·√(Σ s·v(n))·ε, n the integers that x is rounded to, with two products forward and four backward.

    Inputs: x; weight w and its variance s in units of the range squared, both of the layer's weight shape; what is
    added to the variance of each output, or None; bias or None; the Array; whether the correlated part is held
    elsewhere; what draws ε. What is kept for the backward pass is x, the two weights and one number per output; rounded
    inputs are computed again. The slope of v is that of the parabola through 0 and full scale.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        weight: Tensor,
        squares: Tensor,
        added: Tensor | None,
        bias: Tensor | None,
        array: Array,
        held: bool,
        generator: torch.Generator,
    ) -> Tensor:
        """Draw the outcome of one read."""
        integers, variance = _encode(x, array, held)
        product = array.multiply(integers, weight * array.step, bias)
        del integers
        floor = _variance_floor(array)
        deviation = array.multiply(variance, squares, floor if added is None else floor + added).sqrt_()
        del variance
        normal = normal_like(product, generator)
        product.addcmul_(normal, deviation, value=array.unit)
        ctx.save_for_backward(x, weight, squares, normal.div_(deviation))
        ctx.array, ctx.held = array, held
        return product

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Gradients to x, weight, squares, added and bias."""
        x, weight, squares, slope = ctx.saved_tensors
        array = ctx.array
        wants_x, wants_weight, wants_squares, wants_added, wants_bias, *_ = ctx.needs_input_grad
        integers, variance = _encode(x, array, ctx.held)
        grad_x, grad_weight = array.multiply_backward(grad, integers, weight, wants_x, wants_weight)
        grad_deviation = (slope * grad).mul_(0.5 * array.unit)
        grad_variance, grad_squares = array.multiply_backward(grad_deviation, variance, squares, wants_x, wants_squares)
        if grad_x is not None and grad_variance is not None:
            grad_x = grad_x.addcmul_(integers, grad_variance, value=2 * _curvature(array, ctx.held) / array.step)
            grad_x = gradient_inside(grad_x, x, array.input_range)
        grad_weight = None if grad_weight is None else grad_weight.mul_(array.step)
        grad_bias = array.bias_gradient(grad) if wants_bias else None
        grad_added = array.bias_gradient(grad_deviation) if wants_added else None
        return grad_x, grad_weight, grad_squares, grad_added, grad_bias, None, None, None


def _encode(x: Tensor, array: Array, held: bool) -> tuple[Tensor, Tensor]:
    """Inputs as integers n, and the variance v(n) they carry; both of x's shape."""
    integers = round_to_integers(x, array.input_range, array.inputs.levels)
    correlation = array.fluctuation.correlation
    variance = read_variance_of_inputs(integers, array.scheme, array.inputs, correlation, held)
    return integers, variance


def _curvature(array: Array, held: bool) -> float:
    """v(n)/n² at full scale."""
    largest = torch.tensor(float(array.inputs.levels))
    correlation = array.fluctuation.correlation
    full_scale = read_variance_of_inputs(largest, array.scheme, array.inputs, correlation, held)
    return float(full_scale / largest.square())


class _LargeReadMoments(torch.autograd.Function):
    """`_ReadMoments` of large float32 inputs on the CPU: in bytes and what is compact, with fused kernels.

    Inputs are those of `_ReadMoments`.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        weight: Tensor,
        squares: Tensor,
        added: Tensor | None,
        bias: Tensor | None,
        array: Array,
        held: bool,
        generator: torch.Generator,
    ) -> Tensor:
        """Draw the outcome of one read."""
        outcome, slope = _draw_large(x, squares, added, array, held, generator, wants_slope=True)
        ctx.save_for_backward(x, weight, squares, slope)
        ctx.array, ctx.held = array, held
        return outcome

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Gradients to x, weight, squares, added and bias."""
        x, weight, squares, slope = ctx.saved_tensors
        array = ctx.array
        wants_x, wants_weight, wants_squares, wants_added, wants_bias, *_ = ctx.needs_input_grad
        step, compact = array.step, compact_dtype()
        integers, variance = _rounded(x, array, ctx.held, compact)
        grad_bias = array.bias_gradient(grad) if wants_bias else None
        by_variance, by_mean = elementwise(_gradients_of_products, (slope, grad), compact)
        mean_x, mean_weight = array.multiply_backward(by_mean, integers, weight.to(compact), wants_x, wants_weight)
        variance_x, grad_squares = array.multiply_backward(
            by_variance, variance, squares.to(compact), wants_x, wants_squares
        )
        grad_x = None
        if mean_x is not None and variance_x is not None:
            curvature = 2 * _curvature(array, ctx.held) / step
            (grad_x,) = elementwise(
                _gradient_of_input, (x, mean_x, variance_x), curvature, array.input_range, array.inputs.levels
            )
        grad_weight = None if mean_weight is None else mean_weight.float().mul_(step)
        grad_squares = None if grad_squares is None else grad_squares.float()
        grad_added = array.bias_gradient(by_variance).float() if wants_added else None
        return grad_x, grad_weight, grad_squares, grad_added, grad_bias, None, None, None


def _draw_large(
    x: Tensor,
    squares: Tensor,
    added: Tensor | None,
    array: Array,
    held: bool,
    generator: torch.Generator,
    wants_slope: bool,
) -> tuple[Tensor, Tensor]:
    """Outcome of the read and, if wanted, its slope to the variance (compact)."""
    step = array.step
    levels = array.integer_levels
    if levels is not None and integers_are_exact(array.inputs.levels, levels):
        integers, variance = _rounded(x, array, held, torch.uint8)
        unit = array.full_range / levels
        weight = (array.weight / unit).round_().to(torch.int8)
        mean = array.multiply_integers(integers, array.inputs.levels, weight, step * unit, array.bias)
    else:
        integers, variance = _rounded(x, array, held, torch.float32)
        mean = array.multiply(integers, array.weight * step, array.bias)
    added = None if added is None else added.to(compact_dtype())
    variance = array.multiply(variance, squares.to(compact_dtype()), added)
    slope = add_normal_(mean, variance, array.unit, float(_variance_floor(array)[0]), generator, wants_slope)
    return mean, slope


def _rounded(x: Tensor, array: Array, held: bool, form: torch.dtype) -> tuple[Tensor, Tensor]:
    """Inputs as integers n, bytes as n + levels, and the variance v(n) that they carry (compact); of x's shape."""
    rounding = array.input_range, array.inputs.levels  # 2^bits − 1, not for every number anew
    read = array.scheme, array.inputs, array.fluctuation.correlation, held
    integers, variance = elementwise(_integers_and_variance, (x,), *rounding, *read, form, compact_dtype())
    return integers, variance


def _integers_and_variance(
    x: Tensor,
    full_range: float,
    levels: int,
    scheme: ReadScheme,
    inputs: InputFormat,
    correlation: float,
    held: bool,
    form: torch.dtype,
    compact: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Integers n in that form, as bytes n + levels, and v(n)."""
    integers = round_to_integers(x, full_range, levels)
    variance = read_variance_of_inputs(integers, scheme, inputs, correlation, held)
    return (integers + levels if form == torch.uint8 else integers).to(form), variance.to(compact)


def _gradients_of_products(slope: Tensor, grad: Tensor, compact: torch.dtype) -> tuple[Tensor, Tensor]:
    """Gradients to the variance and to the mean, compact."""
    return (slope * grad).to(compact), grad.to(compact)


def _gradient_of_input(
    x: Tensor, by_mean: Tensor, by_variance: Tensor, curvature: float, full_range: float, levels: int
) -> tuple[Tensor]:
    """Gradient by_mean + curvature·n·by_variance inside the range."""
    integers = round_to_integers(x, full_range, levels)
    return (gradient_inside(by_mean.float() + curvature * integers * by_variance.float(), x, full_range),)
