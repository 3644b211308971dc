"""Cells, reads, latency and energy of a network for one image, layer by layer and in all."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from torch import Tensor, nn

from energytl.analog.configure import analog_layers, ideal_converters, required_layers
from energytl.analog.inference import hooked, inference
from energytl.analog.layers import AnalogLayer
from energytl.cost.energy import (
    cell_energy,
    converter_energy,
    paper_energy,
    row_driver_energy,
    shift_add_energy,
)
from energytl.cost.periphery import IDEAL_CONVERTERS, IDEAL_WIRES, NOT_MODELLED, SILENT_SENSING, Periphery
from energytl.cost.training import Activity, TrainingCost, training_cost


@dataclass(frozen=True)
class LayerCost:
    """Cost of one layer for one image; None stands for "not modelled".

    Attributes:
        name: the layer's name in the network.
        groups, rows, outputs: the layer's matrix: inputs and outputs of each group.
        positions: output positions, the reads α of Wang 2021, eq. 13; of attention's projections the tokens.
        cells: memory cells.
        reads: reads of every cell: positions × reads of the scheme.
        latency_s: time, reads one after the other.
        rho: energy coefficient ρ, µS.
        energy_paper: Σ ρ·|w|·pulses.
        energy_cell_j: joules in the cells.
        energy_converter_j, energy_row_driver_j, energy_shift_add_j: joules around them.
    """

    name: str
    groups: int
    rows: int
    outputs: int
    positions: int
    cells: int
    reads: int
    latency_s: float
    rho: float
    energy_paper: float | None
    energy_cell_j: float | None
    energy_converter_j: float | None
    energy_row_driver_j: float | None
    energy_shift_add_j: float | None

    @property
    def energy_total_j(self) -> float | None:
        """Joules in cells, converters, row drivers and shift-and-add."""
        return _sum((self.energy_cell_j, self.energy_converter_j, self.energy_row_driver_j, self.energy_shift_add_j))


@dataclass(frozen=True)
class Cost:
    """Cost of a network for one image.

    Attributes:
        layers: the analog layers' costs, in the network's order.
        training: cost of the whole training, if it was on the chip.
        not_modelled: what the numbers do not contain.
    """

    layers: tuple[LayerCost, ...]
    training: TrainingCost | None = None
    not_modelled: tuple[str, ...] = NOT_MODELLED

    @property
    def cells(self) -> int:
        """Memory cells."""
        return sum(layer.cells for layer in self.layers)

    @property
    def reads(self) -> int:
        """Reads, one layer after the other."""
        return sum(layer.reads for layer in self.layers)

    @property
    def latency_s(self) -> float:
        """Time for one image, layers one after the other, s."""
        return math.fsum(layer.latency_s for layer in self.layers)

    @property
    def energy_paper(self) -> float | None:
        """Σ ρ·|w|·pulses, paper units."""
        return _sum(layer.energy_paper for layer in self.layers)

    @property
    def energy_cell_j(self) -> float | None:
        """Energy in the cells, J."""
        return _sum(layer.energy_cell_j for layer in self.layers)

    @property
    def energy_total_j(self) -> float | None:
        """Energy with the circuits around the cells, J; None without a periphery."""
        return _sum(layer.energy_total_j for layer in self.layers)

    @property
    def energy_j(self) -> float | None:
        """The same as energy_total_j: all joules that are modelled."""
        return self.energy_total_j

    def with_training(self, activities: list[Activity], periphery: Periphery | None) -> "Cost":
        """The same with the cost of training on the chip, from what an on-chip optimizer's `activities()` says."""
        energies = [layer.energy_total_j for layer in self.layers]
        latencies = [layer.latency_s for layer in self.layers]
        positions = [layer.positions for layer in self.layers]
        return replace(self, training=training_cost(activities, positions, energies, latencies, periphery))

    def of_one(self, runs: int) -> "Cost":
        """The cost of one of several equal networks that run side by side, as groups of the same layers."""
        if runs == 1:
            return self
        layers = []
        for layer in self.layers:
            values = asdict(layer)
            energies = {name: value and value / runs for name, value in values.items() if name.startswith("energy_")}
            layers.append(replace(layer, groups=layer.groups // runs, cells=layer.cells // runs, **energies))
        return replace(self, layers=tuple(layers), training=self.training and self.training.of_one(runs))

    def numbers(self) -> dict[str, float | int | None]:
        """The whole network's plain numbers, by the keys of summary.json."""
        keys = ("energy_paper", "energy_cell_j", "energy_total_j", "latency_s", "cells", "reads")
        return {key: getattr(self, key) for key in keys} | (self.training.numbers() if self.training else {})

    def rows(self) -> list[dict[str, float | int | str | None]]:
        """One dictionary of plain numbers for each layer."""
        return [{**asdict(layer), "energy_total_j": layer.energy_total_j} for layer in self.layers]


def estimate(
    analog: nn.Module, example: Tensor, periphery: Periphery | None = Periphery(), *, blank: bool = False
) -> Cost:
    """What one image costs, with the activations that the example really causes.

    Args:
        analog: a converted network.
        example: a batch of inputs (N, …), (L, N, …) where attention that is not batch_first takes it so, or a single
            one without a batch; energies are means over its images. Where a layer's inputs are not N of one image
            each, a read of the first image tells how many positions belong to one.
        periphery: the circuits around the arrays; None leaves them out: no total energy, latency of reads alone.
        blank: the example has the right shape but no meaning: energies are None.

    Raises:
        ValueError: for a network without analog layers, or of which the example reads none.

    >>> import energytl, torch
    >>> cost = estimate(energytl.convert(nn.Linear(4, 2)), torch.ones(1, 4))
    >>> cost.cells, cost.reads
    (8, 1)
    """
    layers = required_layers(analog)
    ranges = {layer: layer.input_range for layer in layers.values()}
    try:
        with inference(analog):
            with ideal_converters(analog) if blank else nullcontext():  # their ranges may not be known yet
                inputs, batch = _inputs(analog, example)
                of_one, images = inputs, 1
                if batch is not None:
                    images = example.shape[batch]
                    if images > 1 and any(len(layer.prepared(x)) != images for layer, x in _calls(inputs)):
                        of_one, _ = _inputs(analog, example.narrow(batch, 0, 1))
            if not any(inputs.values()):
                names = ", ".join(layers)
                raise ValueError(f"{type(analog).__name__} does not call its analog layers ({names}): nothing is read")
            costs = tuple(
                _layer_cost(name, layer, inputs[layer], of_one[layer], images, periphery, blank)
                for name, layer in layers.items()
            )
        return Cost(costs, not_modelled=(*NOT_MODELLED, *_left_out(list(inputs))))
    finally:
        if blank:  # its activations are no inputs to calibrate on
            for layer, input_range in ranges.items():
                layer.input_range = input_range


def _left_out(layers: list[AnalogLayer]) -> list[str]:
    """What the accuracy of some of these layers does not contain, as their hardware leaves it out."""
    every = [layer.hardware for layer in layers]
    asked = {
        IDEAL_WIRES: any(not hardware.arrays.wire_ohm for hardware in every),
        IDEAL_CONVERTERS: any(hardware.converter is None for hardware in every),
        SILENT_SENSING: any(hardware.sensing_noise is None for hardware in every),
    }
    return [what for what, is_left_out in asked.items() if is_left_out]


def _inputs(analog: nn.Module, example: Tensor) -> tuple[dict[AnalogLayer, list[Tensor]], int | None]:
    """Each layer's inputs, call by call, and which dimension of the example is the batch; None: it has none."""
    inputs: dict[AnalogLayer, list[Tensor]] = {layer: [] for layer in analog_layers(analog).values()}
    attentions = [module for module in analog.modules() if isinstance(module, nn.MultiheadAttention)]
    batches: set[int | None] = set()

    def note(module: nn.Module, arguments: tuple[Tensor, ...], _: Any) -> None:  # noqa: ANN401
        x = arguments[0]
        if isinstance(module, AnalogLayer):
            inputs[module].append(x)
            single = x.dim() == module.image_dims
        else:
            single = x.dim() == 2
            if not module.batch_first and x.dim() > 2 and x.shape[:2] == example.shape[:2]:
                batches.add(1)
        if single and x.dim() == example.dim():
            batches.add(None)

    with hooked([*inputs, *attentions], note):
        analog(example)
    return inputs, None if None in batches else 1 if 1 in batches else 0


def _calls(inputs: dict[AnalogLayer, list[Tensor]]) -> Iterator[tuple[AnalogLayer, Tensor]]:
    return ((layer, x) for layer, several in inputs.items() for x in several)


def mean_cost(costs: list[Cost]) -> Cost:
    """Mean of several estimates of one network, batches of equal size: energies differ, counts do not.

    >>> mean_cost([Cost(()), Cost(())]).cells
    0
    """
    layers = []
    for same in zip(*(cost.layers for cost in costs), strict=True):
        energies = {
            field.name: _mean([getattr(layer, field.name) for layer in same])
            for field in fields(LayerCost)
            if field.name.startswith("energy_")
        }
        layers.append(LayerCost(**{**asdict(same[0]), **energies}))
    return Cost(tuple(layers), not_modelled=tuple(dict.fromkeys(what for cost in costs for what in cost.not_modelled)))


def _layer_cost(
    name: str,
    layer: AnalogLayer,
    inputs: list[Tensor],
    of_one: list[Tensor],
    images: int,
    periphery: Periphery | None,
    blank: bool,
) -> LayerCost:
    hardware = layer.hardware
    groups, rows, outputs = layer.matrix_shape
    found, own = ([_rows(layer, x) for x in several] for several in (inputs, of_one))
    if of_one is inputs:
        own = [count // images for count in found]
    if len(found) != len(own):  # e.g. called once an image
        found, own = [sum(found)] * len(found), [sum(own)] * len(found)
        positions = own[0]
    else:
        positions = sum(own)
    shares = [count / single for count, single in zip(found, own, strict=True)]  # 1: read anew for each image

    def per_image(energy: Callable[[AnalogLayer, Tensor], Tensor]) -> float:
        return sum(float(energy(layer, x)) / share for x, share in zip(inputs, shares, strict=True))

    reads = positions * hardware.read.reads(hardware.inputs)
    latency_s = reads * hardware.cell.read_s
    if periphery:
        turns = positions * len(hardware.read.conversions(hardware.inputs)) * periphery.columns_per_converter
        latency_s += turns * periphery.converter_of(hardware.converter).conversion_s()
    return LayerCost(
        name=name,
        groups=groups,
        rows=rows,
        outputs=outputs,
        positions=positions,
        cells=layer.weight.numel() * hardware.mapping.cells_per_weight(hardware.weights),
        reads=reads,
        latency_s=latency_s,
        rho=float(layer.rho.detach()),
        energy_paper=None if blank else per_image(paper_energy),
        energy_cell_j=None if blank else per_image(cell_energy),
        energy_converter_j=converter_energy(layer, positions, periphery) if periphery else None,
        energy_row_driver_j=row_driver_energy(layer, reads, periphery) if periphery else None,
        energy_shift_add_j=shift_add_energy(layer, positions, periphery) if periphery else None,
    )


def _rows(layer: AnalogLayer, x: Tensor) -> int:
    """Output positions of one call."""
    prepared = layer.prepared(x)
    return len(prepared) * layer.count_positions(prepared)


def _sum(values: Iterable[float | None]) -> float | None:
    """The sum, or None if any part is not modelled."""
    known = []
    for part in values:
        if part is None:
            return None
        known.append(part)
    return math.fsum(known)


def _mean(values: list[float | None]) -> float | None:
    total = _sum(values)
    return None if total is None else total / len(values)
