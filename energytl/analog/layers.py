"""Linear and Conv2d on analog arrays: parameters, ranges, and calls to `energytl.analog.read`."""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from energytl.analog.hardware import Hardware
from energytl.analog.integer_product import integer_conv2d
from energytl.analog.memory_format import has_channels_last
from energytl.analog.noise import Inference, NoiseStream
from energytl.analog.once import once
from energytl.analog.partial_sums import seen_sums
from energytl.analog.quantize import Seen
from energytl.analog.read import Array
from energytl.analog.samples import collected, hand_over
from energytl.crossbar.arrays import rows_in_arrays
from energytl.crossbar.cells import behind_wires
from energytl.devices.drift import compensating
from energytl.devices.fluctuation import SIEMENS_PER_RHO
from energytl.devices.programming import Scale
from energytl.streams import Stream, seed_of

ADDED = (
    "hardware",
    "rho_start",
    "calibration",
    "_fitted",
    "_last_version",
    "noise",
    "index",
    "positions",
    "calls",
    "log_rho",
    "_weight_range",
    "column_ranges",
    "_input_range",
    "converter_range",
    "weight_factor",
    "kept",
)
"""Attributes that an analog layer has and its digital one has not."""

SAMPLES = 256
"""Output positions of which inputs are kept, from each batch, to choose ranges by the outputs."""

SUMS = 2**14
"""Partial sums that are kept, from each batch, to choose the converters' range by."""

MOST_SAMPLES = 16 * SAMPLES
"""How many are kept of all batches."""

OUTGROWN = 0.1
"""Share of weights beyond a given range, over that at the start, from which on a warning says so."""

_LAYERS: "WeakSet[AnalogLayer]" = WeakSet()
"""Every analog layer there is, so that an optimizer that gets bare parameters can tell which are arrays."""


def layers_of(parameter: nn.Parameter) -> "list[AnalogLayer]":
    """The analog layers whose weight this parameter is, those whose weights are not rounded first."""
    found = [layer for layer in list(_LAYERS) if layer.weight is parameter]
    return sorted(found, key=lambda layer: layer.hardware.rounds)


@dataclass(frozen=True)
class Held:
    """What the cells of a layer hold.

    Attributes:
        weight: what they stand for, of the layer's weight shape.
        cells: what each of them holds, (C, *weight.shape), in units of the full range; None: what it should.
        siemens: conductances of these, S.
        factor: that outputs are multiplied with after conversion, of the layer or of each output; None: 1.
    """

    weight: Tensor
    cells: Tensor | None = None
    siemens: Tensor | None = None
    factor: Tensor | None = None


class Calibration:
    """What a layer has seen since its calibration began.

    Args:
        outputs: whether inputs are kept to choose ranges of weights by the outputs, too.
    """

    def __init__(self, outputs: bool) -> None:
        self.seen = Seen()
        self.columns: list[Tensor] | None = [] if outputs else None

    def add(self, layer: "AnalogLayer", x: Tensor) -> None:
        """Take up a batch of prepared inputs; the layer's range is from now on the best for all batches so far.

        Ranges that follow the inputs are not set.
        """
        if not layer.hardware.inputs.follows:
            self.seen.add(x)
            layer.input_range = self.seen.best_range(layer.hardware.inputs.levels)
        if self.columns is not None and len(x):
            self.columns.append(layer.sampled(x))
            if sum(part.shape[2] for part in self.columns) > MOST_SAMPLES:
                self.columns = [torch.cat(self.columns, 2)[:, :, ::2]]


class AnalogLayer(nn.Module, ABC):
    """A layer whose weights are conductances. Made by `energytl.convert`, not by hand.

    It is the digital layer, of a subclass of its class: what torch, users and hooks have set on it stays. It adds
    `log_rho` (trainable), `weight_range` (set from the weights when converted) and `input_range` (set by
    `energytl.calibrate`, or else from the first batch seen). Its state dict has the digital layer's keys and no
    others: what is added, and the place in the stream of random states, travels in the state dict's metadata, so state
    dicts load both ways, and ρ is not lost. One without it, as of a digital network, sets the weight range anew.

    Reads of float16 and bfloat16 layers are computed in float32, and rounded to the layer's type.

    Attributes:
        digital_class: the class it was before.
        hardware: what the layer runs on; `energytl.configure` changes it.
        log_rho: log of ρ in units of `rho_start`, so that weight decay pulls ρ to its start and not to 1 µS.
        rho_start: the ρ from which it trains.
        calibration: what is seen while the layer is calibrated.
        noise: source of the random states, one for the whole network.
        index: number of the layer in its network.
        positions: output positions of one image in the last batch, the number α of reads of Wang 2021, eq. 13,
            but for the read scheme's factor; 0 before the first.
        calls: most calls of the layer in one inference of a network that it is a part of; 0 before the first.
        weight_factor: makes the factor on the range of the weights, while it trains (`energytl.ranges`).
    """

    digital_class: type[nn.Module]

    image_dims: int
    """Dimensions of the input of a single image, without a batch."""

    output_dim: int
    """Which dimension of a product its outputs are."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def put_on_array(self, hardware: Hardware, noise: NoiseStream, index: int) -> None:
        """Add what an array has, to a layer that has just been digital."""
        self.hardware, self.noise, self.index, self.positions = hardware, noise, index, 0
        self.calls = 0
        self.log_rho, self.rho_start = nn.Parameter(torch.tensor(0.0, device=self.weight.device)), hardware.rho
        self.weight_range = 1.0
        self.weight_factor: Callable[[], Tensor] | None = None
        self.register_buffer("column_ranges", None, persistent=False)
        self.column_ranges: Tensor | None
        self.fit_weight_range()
        self.input_range = None
        self.converter_range: Tensor | None = None
        self.calibration: Calibration | None = None
        self._last_version = -1
        self.kept: dict[str, Any] | None = None
        _LAYERS.add(self)

    def take_off_array(self) -> None:
        """Be the digital layer again, with the present Parameters; in place."""
        for name in ADDED:
            delattr(self, name)
        vars(self).pop("batch_second", None)
        _LAYERS.discard(self)
        self.__class__ = self.digital_class  # type: ignore[assignment]

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Copies and pickles are layers, too."""
        super().__setstate__(state)
        _LAYERS.add(self)

    def reset_parameters(self) -> None:
        """As the digital layer's, and the range of the new weights."""
        super().reset_parameters()  # type: ignore[misc]
        self.fit_weight_range()

    def apply(self, fn: Callable[[nn.Module], None]) -> "AnalogLayer":
        """As torch's; weights that it sets get their range."""
        before = self.weight.detach().clone()
        super().apply(fn)
        if not torch.equal(self.weight, before):
            self.fit_weight_range()
        return self

    @property
    def rho(self) -> Tensor:
        """Energy coefficient ρ: conductance, in µS, of the layer's full range; scalar, differentiable."""
        return self.log_rho.exp() * self.rho_start

    @property
    def input_range(self) -> float | None:
        """The input that the largest integer stands for; None before the first batch."""
        return self._input_range

    @input_range.setter
    def input_range(self, value: float | None) -> None:
        self._input_range = None if value is None else self._allowed("input_range", value)

    @property
    def weight_range(self) -> float:
        """The weight that a full conductance stands for."""
        return self._weight_range

    @weight_range.setter
    def weight_range(self, value: float) -> None:
        self._weight_range = self._allowed("weight_range", value)
        self._fitted: tuple[float, float] | None = None  # where its weights lie is noted when it is used

    def _allowed(self, name: str, value: float) -> float:
        if not 0 < value < math.inf:
            raise ValueError(f"{name} of layer {self.index} ({self._get_name()}) is {value}; allowed: above 0, finite")
        return float(value)

    @property
    def computed_in(self) -> torch.dtype:
        """The type that reads are computed in."""
        return torch.promote_types(self.weight.dtype, torch.float32)

    @property
    def stored_weight(self) -> Tensor:
        """What the cells hold, in units of the full range, −1..1; shape of weight, straight-through gradient."""
        return self._rounded(self._scaled(self.weight)) / self.weight_range

    def fit_weight_range(self, inputs: Tensor | None = None) -> None:
        """Set the range of the weights, or that of each column, as the hardware's format says.

        Args:
            inputs: that the outputs are compared for, (G, K, S): S inputs of each row; None: compare weights.
        """
        hardware, (groups, rows, outputs) = self.hardware, self.matrix_shape
        matrices = self.weight.detach().reshape(groups, outputs, rows)
        ranges = hardware.weights.full_ranges(matrices, hardware.mapping.grid(hardware.weights), inputs)
        if hardware.weights.columns:
            self.weight_range = 1.0
            self.column_ranges = ranges.reshape(-1, *[1] * (self.weight.dim() - 1))
        else:
            self.weight_range, self.column_ranges = float(ranges), None

    @torch.no_grad()
    def _outermost(self) -> tuple[float, float]:
        """Largest |weight|, in what weights are divided by, and the share of weights beyond the range."""
        magnitudes = self._scaled(self.weight).abs()
        beyond = (magnitudes > self.weight_range * (1 + 1e-6)).to(magnitudes.dtype).mean()
        largest, share = torch.stack([magnitudes.amax(), beyond]).tolist()
        return largest, share

    def _follow_weights(self) -> None:
        """Widen the range where training has taken weights beyond it: they get no gradient there, and would stay."""
        version = self.weight._version
        if version == self._last_version or not self.hardware.rounds or self.weight_factor is not None:
            return
        self._last_version = version
        now = largest, beyond = self._outermost()
        largest_before, beyond_before = self._fitted = self._fitted or now
        if self.hardware.weights.range is None and self.hardware.weights.range_by != "outputs":
            if largest > 1.002 * largest_before or beyond > beyond_before + 0.02:
                before = self.weight_range, self.column_ranges
                self.fit_weight_range()
                self.weight_range = max(self.weight_range, before[0])
                if self.column_ranges is not None and before[1] is not None:
                    self.column_ranges = torch.maximum(self.column_ranges, before[1])
                self._fitted = self._outermost()
        elif beyond > beyond_before + OUTGROWN:
            self._fitted = largest, 1.0
            warnings.warn(
                f"more than {OUTGROWN:.0%} of the weights of layer {self.index} ({self._get_name()}) have grown beyond "
                f"its range {self.weight_range:g} and are cut: set a wider weights.range, or calibrate anew",
                stacklevel=3,
            )

    def widen(self, factor: float) -> None:
        """Make the range of the weights, or that of each column, so many times as wide."""
        if self.column_ranges is None:
            self.weight_range *= factor
        else:
            self.column_ranges = self.column_ranges * factor

    @torch.no_grad()
    def clip_weight(self) -> None:
        """Cut the weight to its range, in place."""
        unit = self._unit
        held = self._scaled(self.weight).clamp(-self.weight_range, self.weight_range)
        self.weight.copy_(held if unit is None else held * unit)

    @property
    def _unit(self) -> Tensor | None:
        """What weights are divided by before they are held: ranges of columns, a factor that trains."""
        if self.weight_factor is None:
            return self.column_ranges
        factor = self.weight_factor()
        return factor if self.column_ranges is None else self.column_ranges * factor

    def _scaled(self, weight: Tensor) -> Tensor:
        unit, weight = self._unit, weight.to(self.computed_in)
        return weight if unit is None else weight / unit

    def _rounded(self, scaled: Tensor) -> Tensor:
        return self.hardware.mapping.rounded(scaled, self.weight_range, self.hardware.weights)

    def sampled(self, prepared: Tensor) -> Tensor:
        """Prepared inputs of at most SAMPLES output positions, evenly spaced over the first images, (G, K, S)."""
        images = max(1, SAMPLES // max(1, self.count_positions(prepared)))
        columns = self.unfold(prepared[:images]).permute(2, 3, 0, 1).flatten(2)
        stride = -(-columns.shape[2] // SAMPLES)
        return columns[:, :, ::stride]

    def sampled_sums(self, x: Tensor) -> Tensor:
        """What converters would see of these inputs, in units of a full input times a full cell; (SUMS,) or less."""
        driven, input_range, _ = self.driven(self.prepared(x))
        return seen_sums(self._array(driven, input_range, self._held(self.weight.detach())), driven, SUMS)

    def fit_converter_range(self, sums: Seen) -> None:
        """Set the range of the layer's converters to the one that errs least over these partial sums."""
        assert self.hardware.converter is not None
        self.converter_range = torch.tensor(sums.best_range(self.hardware.converter.levels), device=self.weight.device)

    def configure(self, **changes: Any) -> None:  # noqa: ANN401
        """Change fields of the hardware; a ρ or weight bits among them take effect, all else about the layer stays."""
        before, self.hardware = self.hardware, replace(self.hardware, **changes)
        if self.kept and ("rho" in changes or replace(before, computation=self.hardware.computation) != self.hardware):
            self.kept.clear()
        if "rho" in changes:
            self.rho_start = self.hardware.rho
            with torch.no_grad():
                self.log_rho.zero_()
        if {"weights", "mapping"} & set(changes):
            self.fit_weight_range()

    def forward(self, input: Tensor) -> Tensor:
        """Read the array with the inputs, as torch.nn's layer of the same name takes them.

        torch.compile calls a read as it is, between the graphs before and after: what it draws cannot be traced.
        """
        if torch.compiler.is_compiling():
            return torch.compiler.disable(AnalogLayer._read)(self, input)
        return self._read(input)

    def _read(self, input: Tensor) -> Tensor:
        with self.noise.within(self.index) as inference:
            return self._outcome(input, self._called(inference))

    def _called(self, inference: Inference) -> bool:
        """Count a call; whether the layer is known to be called once in such an inference."""
        index, before = self.index, self.calls
        inference.calls[index] += 1
        calls = inference.calls[index]
        if calls == 1 and (inference.of == index or before == 1):
            inference.alone.add(index)
        if inference.of != index:
            self.calls = max(before, calls)
        if calls == 2 and index in inference.alone and self.hardware.fluctuation.correlation > 0:
            warnings.warn(
                f"layer {index} ({self._get_name()}) is called twice in an inference, and was called once before: its "
                "cells' states may differ between the two calls, this once; run such an inference before what counts",
                stacklevel=5,
            )
        return calls == 1 and index in inference.alone

    def _outcome(self, input: Tensor, alone: bool) -> Tensor:
        prepared = self.prepared(input)
        self.positions = self.count_positions(prepared)
        if torch.is_grad_enabled() and self.weight.requires_grad:
            self._follow_weights()
        self._calibrate(prepared)
        driven, input_range, own = self.driven(prepared)
        samples = collected(self.weight) if torch.is_grad_enabled() and self.weight.requires_grad else None
        weight = self.weight if samples is None else self.weight.detach()  # the chip has no use for its gradient
        with torch.autocast(input.device.type, enabled=False):
            held = once(self.kept, "held", lambda: self._held(weight))
            y = self.hardware.computation(self._array(driven, input_range, held, alone), driven)
            digital = [self.of_outputs(of.to(y.dtype)) for of in (self.column_ranges, held.factor) if of is not None]
            for unit in (own, *digital):
                if unit is not None:
                    y = y * unit if y.requires_grad else y.mul_(unit)
            if self.bias is not None and self._bias_after:
                y = y + self.of_outputs(self.bias.to(y.dtype))
        if samples is not None:
            y = hand_over(y, self.weight, prepared, samples, self)
        return self.returned(y.to(self.weight.dtype), input)

    def _calibrate(self, prepared: Tensor) -> None:
        """Take these inputs up, while the layer is calibrated or if it never was."""
        calibration = self.calibration
        if calibration is None and self.input_range is None and not self.hardware.inputs.follows:
            calibration = Calibration(outputs=False)
        if calibration is not None and prepared.numel():
            try:
                calibration.add(self, prepared)
            except ValueError as error:
                raise ValueError(f"layer {self.index} ({self._get_name()}) has no range of inputs: {error}") from None

    def driven(self, prepared: Tensor) -> tuple[Tensor, float, Tensor | None]:
        """What the rows are driven with, the input that drives them fully, and what a unit of it stands for, or None.

        Where ranges follow the inputs, that is the largest of each image's, or of each vector's in a linear layer:
        what is read of one does not depend on the others in its batch.

        Args:
            prepared: inputs as they reach the array.
        """
        if not self.hardware.inputs.follows:
            if self.input_range is None and prepared.numel():
                raise RuntimeError("the layer's inputs have no range yet: calibrate the network or run it once")
            return prepared, self.input_range or 1.0, None
        largest = self.own_ranges(prepared.detach())
        own = torch.where(largest == 0, 1.0, largest)
        return prepared / own, 1.0, own

    @property
    def _bias_after(self) -> bool:
        """Whether the bias is added to what the outputs of a read are multiplied to."""
        digital = self.column_ranges is not None or self.hardware.drift.compensation != "none"
        return digital or self.hardware.inputs.follows

    def prepared(self, x: Tensor) -> Tensor:
        """Inputs as they reach the array: of the type of reads, a batch, padded as far as `multiply` does not."""
        return self.padded((x.unsqueeze(0) if x.dim() == self.image_dims else x).to(self.computed_in))

    def _array(self, x: Tensor, input_range: float, held: Held, alone: bool = True) -> Array:
        hardware = self.hardware
        return Array(
            weight=held.weight,
            cells=held.cells,
            kept=self.kept,
            full_range=self.weight_range,
            rho=self.rho,
            input_range=input_range,
            bias=None if self.bias is None or self._bias_after else self.bias.to(self.computed_in),
            fluctuation=hardware.fluctuation,
            idle_siemens=hardware.idle_siemens,
            mapping=hardware.read_cells,
            weights=hardware.weights,
            inputs=hardware.inputs,
            scheme=hardware.read,
            cell=hardware.cell,
            sensing_noise=hardware.sensing_noise,
            noise=self.noise,
            index=self.index,
            alone=alone,
            of_outputs=self.of_outputs,
            multiply=self.multiply,
            multiply_integers=self.multiply_integers,
            multiply_backward=self.multiply_backward,
            bias_gradient=self.bias_gradient,
            arrays=self.arrays,
            converter=hardware.converter,
            converter_range=self.converter_range,
            partial_sums=self.partial_sums,
            split=self.split,
            output_dim=self.output_dim,
            unfold=self.unfold,
            fold=lambda y: self.fold(y, x),
            positions=self.positions,
        )

    def _held(self, weight: Tensor) -> Held:
        """What the cells hold of the weight."""
        hardware, changes = self.hardware, self.hardware.changes
        target = self._rounded(self._scaled(weight))
        if not changes:
            return Held(target)
        mapping = hardware.read_cells
        stored = mapping.stored(target / self.weight_range, hardware.weights)
        significances = stored.new_tensor(mapping.significances(hardware.weights))
        scale, stream, sign = self.conductance_scale, self._stream_of_chip, torch.where(stored < 0, -1.0, 1.0)
        programmed = changes.programmed(stored.detach().abs(), scale, stream)
        aged = changes.aged(programmed, scale, stream)
        factor = None
        if hardware.drift.compensation != "none":
            before, now = (torch.tensordot(significances, sign * values, 1) for values in (programmed, aged))
            factor = compensating(before, now, hardware.drift.compensation == "column")
        seen = aged
        if changes.wire_ohm:
            seen = behind_wires(aged, scale, self.arrays, self.matrix_shape[0], hardware.arrays)
        cells = stored + (sign * seen - stored).detach()
        return Held(torch.tensordot(significances, cells, 1) * self.weight_range, cells, scale.siemens(aged), factor)

    @property
    def conductance_scale(self) -> Scale:
        """How values become conductances."""
        full = float(self.rho.detach()) * SIEMENS_PER_RHO
        return Scale(self.hardware.cell, full, self.hardware.mapping.cell_values)

    def _stream_of_chip(self, step: int) -> torch.Generator:
        place = (self.hardware.chip, self.index, step) if step else (self.hardware.chip, self.index)
        return torch.Generator(self.weight.device).manual_seed(seed_of(Stream.CELLS, *place))

    @torch.no_grad()
    def siemens(self) -> Tensor:
        """Conductances of all cells that stand on the lines, idle ones too, (C, *weight.shape), S."""
        held, mapping = once(self.kept, "held", lambda: self._held(self.weight)), self.hardware.read_cells
        siemens = held.siemens
        if siemens is None:
            values = mapping.stored(held.weight / self.weight_range, self.hardware.weights)
            siemens = self.conductance_scale.siemens(values.abs())
        idle = mapping.idle_cells(self.hardware.weights)
        return torch.cat([siemens, siemens.new_full((idle, *siemens.shape[1:]), self.hardware.cell.g_min_siemens)])

    @abstractmethod
    def multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's product of padded inputs."""

    @property
    @abstractmethod
    def channel_rows(self) -> int:
        """Rows that one input channel takes of each group's matrix."""

    @property
    def arrays(self) -> tuple[int, ...]:
        """Rows of each array that each group's matrix is cut into."""
        _, rows, _ = self.matrix_shape
        return rows_in_arrays(rows // self.channel_rows, self.channel_rows, self.hardware.arrays.rows)

    @abstractmethod
    def partial_sums(self, x: Tensor, weight: Tensor) -> Tensor:
        """The product of padded inputs in parts, one for each array: (arrays, *the product's shape)."""

    @abstractmethod
    def split(self, values: Tensor) -> tuple[Tensor, ...] | None:
        """Padded inputs, or weights, of each array apart, which `multiply` takes; None: it cannot take them apart."""

    @abstractmethod
    def multiply_integers(
        self, inputs: Tensor, zero: int, weight: Tensor, scale: float | Tensor, bias: Tensor | None
    ) -> Tensor:
        """The product scale·(inputs − zero)·weight + bias of uint8 inputs and int8 weights, float32."""

    @abstractmethod
    def multiply_backward(
        self, grad: Tensor, x: Tensor, weight: Tensor, wants_x: bool, wants_weight: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of `multiply` to x and to the weight; None for what is not wanted."""

    @abstractmethod
    def bias_gradient(self, grad: Tensor) -> Tensor:
        """Gradient of `multiply` to the bias."""

    @abstractmethod
    def padded(self, x: Tensor) -> Tensor:
        """Inputs with what `multiply` does not pad itself."""

    def images_first(self, x: Tensor) -> Tensor:
        """Inputs or outputs with the batch as their first dimension; of those, in the layer's own order."""
        return x

    @abstractmethod
    def returned(self, y: Tensor, x: Tensor) -> Tensor:
        """Outputs as torch's layer returns them for its inputs x: with a batch or without, in its memory format."""

    @abstractmethod
    def of_outputs(self, values: Tensor) -> Tensor:
        """One number an output in a shape that broadcasts to the outputs."""

    @abstractmethod
    def count_positions(self, x: Tensor) -> int:
        """Output positions of one image."""

    @abstractmethod
    def unfold(self, x: Tensor) -> Tensor:
        """Padded inputs as (N, L, G, K): K inputs of each of G groups at L positions of N images."""

    @abstractmethod
    def fold(self, y: Tensor, x: Tensor) -> Tensor:
        """Outputs (N, L, G, O) in the shape that `multiply` gives for x."""

    @abstractmethod
    def unfold_outputs(self, y: Tensor) -> Tensor:
        """Outputs in the shape that `multiply` gives, as (N, L, G, O)."""

    @abstractmethod
    def own_ranges(self, x: Tensor) -> Tensor:
        """Max |x| of each image, or of each vector of a linear layer; broadcasts to padded inputs x and to outputs."""

    @abstractmethod
    def largest_input(self, x: Tensor) -> Tensor:
        """Max |x| of what each output position of each group sees of the padded inputs; broadcasts to the outputs."""

    @abstractmethod
    def largest_output(self, y: Tensor) -> Tensor:
        """Max |y| of each output position and group; broadcasts to the outputs y."""

    @abstractmethod
    def sum_outputs(self, y: Tensor) -> Tensor:
        """Sums of each group's outputs, in the shape of outputs of a layer with one a group."""

    @abstractmethod
    def outputs_per_group(self, y: Tensor) -> int:
        """How many outputs each group of y has."""

    def mean_of_arrays(self, values: Tensor) -> Tensor:
        """Mean over the samples of what each group's outputs share, as of `largest_input`; (G,)."""
        return values.mean().reshape(1)

    def of_arrays(self, values: Tensor) -> Tensor:
        """One number a group (G,), or one for all (1,), in a shape that broadcasts to the outputs."""
        return values

    @property
    @abstractmethod
    def matrix_shape(self) -> tuple[int, int, int]:
        """Groups G, rows K and outputs O of each group's matrix."""

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:  # noqa: ANN401
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.pop(prefix + "log_rho")
        metadata = getattr(destination, "_metadata", {})  # a dictionary of the caller's own has none
        metadata.get(prefix[:-1], {}).update(
            log_rho=float(self.log_rho.detach()),
            rho_start=self.rho_start,
            noise=(self.noise.seed, self.noise.position),
            calls=self.calls,
            fitted=self._fitted,
            weight_range=self.weight_range,
            column_ranges=self.column_ranges,
            input_range=self.input_range,
            converter_range=self.converter_range,
        )

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        *args: Any,  # noqa: ANN401
    ) -> None:
        if "log_rho" in local_metadata:
            self.weight_range, self.input_range = local_metadata["weight_range"], local_metadata["input_range"]
            converter_range = local_metadata.get("converter_range")
            self.converter_range = None if converter_range is None else converter_range.to(self.weight.device)
            self.rho_start, self._last_version = local_metadata.get("rho_start", 1.0), -1  # log ρ/µS until 0.1.0
            if "noise" in local_metadata:
                self.noise.go_on_from(*local_metadata["noise"])
                self._fitted, self.calls = local_metadata["fitted"], local_metadata.get("calls", 0)
            columns = local_metadata.get("column_ranges")
            self.column_ranges = None if columns is None else columns.to(self.weight.device)
        rho = torch.as_tensor(local_metadata.get("log_rho", self.log_rho.detach()))
        complete = {**state_dict, prefix + "log_rho": rho}
        super()._load_from_state_dict(complete, prefix, local_metadata, *args)
        if "log_rho" not in local_metadata or (self.column_ranges is not None) != self.hardware.weights.columns:
            self.fit_weight_range()


class AnalogLinear(AnalogLayer, nn.Linear):  # type: ignore[misc]
    """torch.nn.Linear on an analog array; of (N, …, K) inputs the dots are the output positions of one image.

    Attributes:
        batch_second: whether inputs of three dimensions are (L, N, K), as in a transformer that is not batch_first.
    """

    batch_second = False
    digital_class: type[nn.Module] = nn.Linear
    image_dims = 1
    output_dim = -1

    def multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: D102
        return F.linear(x, weight, bias)

    def multiply_integers(  # noqa: D102
        self, inputs: Tensor, zero: int, weight: Tensor, scale: float | Tensor, bias: Tensor | None
    ) -> Tensor:
        pixels, kernels = inputs.reshape(-1, inputs.shape[-1], 1, 1), weight[:, :, None, None]
        product = integer_conv2d(pixels, zero, kernels, scale, bias, (1, 1), (0, 0), (1, 1), 1)
        return product.reshape(*inputs.shape[:-1], -1)

    def multiply_backward(  # noqa: D102
        self, grad: Tensor, x: Tensor, weight: Tensor, wants_x: bool, wants_weight: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        rows = grad.reshape(-1, grad.shape[-1])
        return grad @ weight if wants_x else None, rows.T @ x.reshape(-1, x.shape[-1]) if wants_weight else None

    def bias_gradient(self, grad: Tensor) -> Tensor:  # noqa: D102
        return grad.reshape(-1, grad.shape[-1]).sum(0)

    @property
    def channel_rows(self) -> int:  # noqa: D102
        return 1

    def split(self, values: Tensor) -> tuple[Tensor, ...] | None:  # noqa: D102
        return values.split(self.arrays, -1)

    def partial_sums(self, x: Tensor, weight: Tensor) -> Tensor:  # noqa: D102
        parts = zip(x.split(self.arrays, -1), weight.split(self.arrays, 1), strict=True)
        return torch.stack([F.linear(inputs, part) for inputs, part in parts])

    def padded(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.images_first(x)

    def images_first(self, x: Tensor) -> Tensor:  # noqa: D102
        return x.transpose(0, 1) if self.batch_second and x.dim() == 3 else x

    def returned(self, y: Tensor, x: Tensor) -> Tensor:  # noqa: D102
        return y.squeeze(0) if x.dim() == self.image_dims else self.images_first(y)

    def of_outputs(self, values: Tensor) -> Tensor:  # noqa: D102
        return values.flatten()

    def count_positions(self, x: Tensor) -> int:  # noqa: D102
        return math.prod(x.shape[1:-1])

    def unfold(self, x: Tensor) -> Tensor:  # noqa: D102
        return x.reshape(len(x), self.count_positions(x), 1, x.shape[-1])

    def fold(self, y: Tensor, x: Tensor) -> Tensor:  # noqa: D102
        return y.reshape(*x.shape[:-1], y.shape[-1])

    def unfold_outputs(self, y: Tensor) -> Tensor:  # noqa: D102
        return y.reshape(len(y), -1, 1, y.shape[-1])

    def own_ranges(self, x: Tensor) -> Tensor:  # noqa: D102
        return x.abs().amax(-1, keepdim=True)

    def largest_input(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.own_ranges(x)

    def largest_output(self, y: Tensor) -> Tensor:  # noqa: D102
        return y.abs().amax(-1, keepdim=True)

    def sum_outputs(self, y: Tensor) -> Tensor:  # noqa: D102
        return y.sum(-1, keepdim=True)

    def outputs_per_group(self, y: Tensor) -> int:  # noqa: D102
        return y.shape[-1]

    @property
    def matrix_shape(self) -> tuple[int, int, int]:  # noqa: D102
        return 1, self.weight.shape[1], self.weight.shape[0]

    def extra_repr(self) -> str:
        """Sizes as torch.nn.Linear prints them, and ρ."""
        outputs, inputs = self.weight.shape
        return f"{inputs}, {outputs}, bias={self.bias is not None}, rho={float(self.rho.detach()):.3g}"


class AnalogConv2d(AnalogLayer, nn.Conv2d):  # type: ignore[misc]
    """torch.nn.Conv2d on an analog array: one read a position, one array a group.

    Works in torch's channels-last memory format, as its products are faster so, and returns the format that torch's
    layer does: channels last where the inputs or the weight are.
    """

    digital_class: type[nn.Module] = nn.Conv2d
    image_dims = 3
    output_dim = 1

    @property
    def inner_padding(self) -> tuple[int, int]:
        """Rows and columns of zeros on each side that `multiply` adds."""
        if self.padding_mode == "zeros" and not isinstance(self.padding, str):
            top, left = self.padding
            return top, left
        left, right, top, bottom = self._reversed_padding_repeated_twice
        even = self.padding_mode == "zeros" and left == right and top == bottom
        return (top, left) if even else (0, 0)

    @property
    def outer_padding(self) -> tuple[int, ...]:
        """What `padded` adds, as `F.pad` takes it."""
        left, right, top, bottom = self._reversed_padding_repeated_twice
        even = self.padding_mode == "zeros" and left == right and top == bottom
        return (0, 0, 0, 0) if even else (left, right, top, bottom)

    def multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: D102
        return F.conv2d(x, weight, bias, self.stride, self.inner_padding, self.dilation, self.groups)

    def multiply_integers(  # noqa: D102
        self, inputs: Tensor, zero: int, weight: Tensor, scale: float | Tensor, bias: Tensor | None
    ) -> Tensor:
        geometry: Any = (self.stride, self.inner_padding, self.dilation, self.groups)
        return integer_conv2d(inputs, zero, weight, scale, bias, *geometry)

    def multiply_backward(  # noqa: D102
        self, grad: Tensor, x: Tensor, weight: Tensor, wants_x: bool, wants_weight: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        if self.groups > 1 and grad.dtype == torch.bfloat16:  # with stride 2 torch takes up to 70 times as long in it
            grad, x, weight = grad.float(), x.float(), weight.float()
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
            grad,
            x,
            weight,
            None,
            self.stride,
            self.inner_padding,
            self.dilation,
            False,
            (0, 0),
            self.groups,
            (wants_x, wants_weight, False),
        )
        return grad_x, grad_weight

    def bias_gradient(self, grad: Tensor) -> Tensor:  # noqa: D102
        return grad.sum((0, 2, 3))

    @property
    def channel_rows(self) -> int:  # noqa: D102
        return math.prod(self.weight.shape[2:])

    def split(self, values: Tensor) -> tuple[Tensor, ...] | None:  # noqa: D102
        if self.groups > 1 or self.arrays[0] < self.channel_rows:
            return None
        return values.split([rows // self.channel_rows for rows in self.arrays], 1)

    def partial_sums(self, x: Tensor, weight: Tensor) -> Tensor:  # noqa: D102
        arrays, groups = self.arrays, self.groups
        count = len(arrays)
        weight = weight.unflatten(0, (groups, -1))  # (G, O, C, KH, KW)
        if arrays[0] < self.channel_rows:  # arrays that cut a channel: each has the others' rows at 0
            number = torch.arange(count, device=x.device).repeat_interleave(torch.tensor(arrays, device=x.device))
            own = number == torch.arange(count, device=x.device).view(-1, 1)
            parts = weight.unsqueeze(1) * own.view(1, count, 1, *weight.shape[2:])
        else:
            channels = [rows // self.channel_rows for rows in arrays]
            x = _even_parts(x.unflatten(1, (groups, -1)), channels, 2).flatten(1, 3)
            x, groups = x.contiguous(memory_format=torch.channels_last), groups * count
            parts = _even_parts(weight, channels, 2).transpose(1, 2)
        product = F.conv2d(x, parts.flatten(0, 2), None, self.stride, self.inner_padding, self.dilation, groups)
        return product.unflatten(1, (self.groups, count, -1)).movedim(2, 0).flatten(2, 3)

    def padded(self, x: Tensor) -> Tensor:  # noqa: D102
        if any(self.outer_padding):
            x = F.pad(x, self.outer_padding, "constant" if self.padding_mode == "zeros" else self.padding_mode)
        return x.contiguous(memory_format=torch.channels_last)

    def returned(self, y: Tensor, x: Tensor) -> Tensor:  # noqa: D102
        if x.dim() == self.image_dims:
            return self.returned(y, x.unsqueeze(0)).squeeze(0)
        return y if has_channels_last(x) or has_channels_last(self.weight) else y.contiguous()

    def _output_size(self, x: Tensor) -> tuple[int, int]:
        sizes = [
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, padding, dilation, kernel, stride in zip(
                x.shape[-2:],
                self.inner_padding,
                self.dilation,
                self.weight.shape[-2:],
                self.stride,
                strict=True,
            )
        ]
        return sizes[0], sizes[1]

    def of_outputs(self, values: Tensor) -> Tensor:  # noqa: D102
        return values.reshape(-1, 1, 1)

    def count_positions(self, x: Tensor) -> int:  # noqa: D102
        height, width = self._output_size(x)
        return height * width

    def unfold(self, x: Tensor) -> Tensor:  # noqa: D102
        columns = F.unfold(
            x,
            self.weight.shape[-2:],
            self.dilation,
            self.inner_padding,
            self.stride,
        )
        return columns.transpose(1, 2).unflatten(2, (self.groups, -1))

    def fold(self, y: Tensor, x: Tensor) -> Tensor:  # noqa: D102
        return y.flatten(2).transpose(1, 2).unflatten(2, self._output_size(x))

    def unfold_outputs(self, y: Tensor) -> Tensor:  # noqa: D102
        return y.flatten(2).transpose(1, 2).unflatten(2, (self.groups, -1))

    def own_ranges(self, x: Tensor) -> Tensor:  # noqa: D102
        return x.abs().amax((1, 2, 3), keepdim=True)

    def largest_input(self, x: Tensor) -> Tensor:  # noqa: D102
        top, left = self.inner_padding
        channels = F.pad(self._largest_of_group(x), (left, left, top, top))
        kernel: Any = self.weight.shape[-2:]
        seen = F.max_pool2d(channels, kernel, self.stride, 0, self.dilation)
        return seen if self.groups == 1 else seen.repeat_interleave(len(self.weight) // self.groups, 1)

    def largest_output(self, y: Tensor) -> Tensor:  # noqa: D102
        largest = self._largest_of_group(y)
        return largest if self.groups == 1 else largest.repeat_interleave(len(self.weight) // self.groups, 1)

    def sum_outputs(self, y: Tensor) -> Tensor:  # noqa: D102
        return y.unflatten(1, (self.groups, -1)).sum(2)

    def outputs_per_group(self, y: Tensor) -> int:  # noqa: D102
        return y.shape[1] // self.groups

    def mean_of_arrays(self, values: Tensor) -> Tensor:  # noqa: D102
        if self.groups == 1:
            return super().mean_of_arrays(values)
        return values.mean((0, 2, 3)).reshape(self.groups, -1)[:, 0]

    def of_arrays(self, values: Tensor) -> Tensor:  # noqa: D102
        if len(values) == 1:
            return values
        return self.of_outputs(values.repeat_interleave(len(self.weight) // self.groups))

    def _largest_of_group(self, x: Tensor) -> Tensor:
        return x.abs().unflatten(1, (self.groups, -1)).amax(2)

    @property
    def matrix_shape(self) -> tuple[int, int, int]:  # noqa: D102
        outputs, inputs, height, width = self.weight.shape
        return self.groups, inputs * height * width, outputs // self.groups

    def extra_repr(self) -> str:
        """Sizes much as torch.nn.Conv2d prints them, and ρ."""
        outputs, inputs, *kernel = self.weight.shape
        return (
            f"{inputs * self.groups}, {outputs}, kernel_size={tuple(kernel)}, stride={self.stride}, "
            f"padding={self.inner_padding}, dilation={self.dilation}, groups={self.groups}, "
            f"bias={self.bias is not None}, rho={float(self.rho.detach()):.3g}"
        )


def _even_parts(values: Tensor, sizes: list[int], dim: int) -> Tensor:
    """The parts of these sizes, of which the first is largest, filled up with zeros and stacked along dim."""
    if len(set(sizes)) == 1:
        return values.unflatten(dim, (len(sizes), -1))
    after = [0, 0] * (values.dim() - 1 - dim)
    parts = values.split(sizes, dim)
    return torch.stack([F.pad(part, (*after, 0, sizes[0] - part.shape[dim])) for part in parts], dim)


def analog_class(kind: type[AnalogLayer], digital: Any) -> type[AnalogLayer]:  # noqa: ANN401
    """The class of this kind of analog layer that keeps what else a subclass of its digital class has."""
    return kind if digital is kind.digital_class else _subclass(kind, digital)


@cache
def _subclass(kind: Any, digital: Any) -> type[AnalogLayer]:  # noqa: ANN401
    def reduce(layer: AnalogLayer) -> tuple[Any, ...]:
        """Copies and pickles know both classes; this one is made at run time."""
        return _blank, (kind, digital), layer.__getstate__()

    own = {"digital_class": digital, "__reduce__": reduce, "__module__": digital.__module__}
    return type(f"Analog{digital.__name__}", (kind, digital), own)


def _blank(kind: type[AnalogLayer], digital: Any) -> AnalogLayer:  # noqa: ANN401
    made = analog_class(kind, digital)
    return made.__new__(made)
