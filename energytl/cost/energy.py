"""Energy of reading one layer, as functions of tensors. Three numbers, never mixed.

Paper units (Wang 2021, eq. 13 and 19), joules in the cells, joules in the circuits around them.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from energytl.analog.inference import hooked
from energytl.analog.layers import AnalogLayer
from energytl.analog.mapping import conductance, stored_magnitude
from energytl.analog.quantize import fake_quantize, round_to_integers
from energytl.cost.periphery import Periphery


def regularised_energy(layer: AnalogLayer) -> Tensor:
    """α·ρ·Σ_t |w_t| of Wang 2021, eq. 13: α output positions, |w| in units of the full range. Scalar, differentiable.

    Raises:
        RuntimeError: if the layer has not been read yet, so that α is unknown.
    """
    if layer.positions == 0:
        raise RuntimeError("the number of reads is unknown before the first forward pass")
    magnitudes = stored_magnitude(layer.stored_weight, layer.hardware.mapping, layer.hardware.weights)
    return layer.positions * layer.rho * magnitudes.sum()


@contextmanager
def counting_pulses(layers: Iterable[AnalogLayer], images: int) -> Iterator[list[Tensor]]:
    """While it is open, each read of a layer appends its `paper_energy`, differentiable.

    Args:
        layers: to be watched.
        images: so many of each batch are counted, the first.
    """
    energies: list[Tensor] = []

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        assert isinstance(layer, AnalogLayer)
        first: Tensor = _First.apply(layer.images_first(inputs[0]), images)
        energies.append(paper_energy(layer, layer.images_first(first)))

    with hooked(layers, count):
        yield energies


class _First(Function):
    """x[:count]; its gradient lies in memory as x does.

    That of torch's own slice lies in the plain order, and so does every gradient that is added to it: three times as
    slow from there on where x's channels are last.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, count: int) -> Tensor:  # noqa: ANN401
        """The first so many images."""
        ctx.like = torch.empty_like(x, device="meta")  # dense, though x may be expanded
        return x[:count]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        """Zero for all others."""
        whole = torch.zeros_like(ctx.like, device=grad.device)
        whole[: len(grad)] = grad
        return whole, None


def driven_sum(layer: AnalogLayer, drive: Tensor, per_weight: Tensor) -> Tensor:
    """Σ over images, output positions and cells of drive(input)·per_weight(cell), a scalar.

    Args:
        layer: gives the product's shape.
        drive: one number for each padded input of the layer.
        per_weight: one number for each weight, of the weight's shape.
    """
    groups, _, _ = layer.matrix_shape
    columns = per_weight.unflatten(0, (groups, -1)).sum(1)  # all outputs of an input see the same drive
    images = drive.sum(0, keepdim=True)  # and all images the same cells
    return layer.multiply(images, columns, None).sum()


def paper_energy(layer: AnalogLayer, x: Tensor) -> Tensor:
    """Σ ρ·|w|·(pulses of x) over all reads (Wang 2021, eq. 19); x as the layer takes it; paper units, scalar.

    |w| is in units of the layer's full range, a pulse is the smallest input of a single read, or one bit. Where
    gradients are on, x, w and ρ get them, straight through the rounding.
    """
    hardware, levels = layer.hardware, layer.hardware.inputs.levels
    driven, input_range, _ = layer.driven(layer.prepared(x))
    scaled = fake_quantize(driven, input_range, levels) * (levels / input_range)
    integers = scaled + (scaled.round() - scaled).detach()
    magnitudes = stored_magnitude(layer.stored_weight, hardware.mapping, hardware.weights)
    if hardware.changes:
        empty = hardware.cell.g_min_siemens
        magnitudes = _held(magnitudes, (layer.siemens() - empty).sum(0) / layer.conductance_scale.full_siemens)
    return layer.rho * driven_sum(layer, hardware.read.pulses(integers), magnitudes)


def cell_energy(layer: AnalogLayer, x: Tensor) -> Tensor:
    """Σ V²·G·t over all cells and reads, J, scalar.

    G holds all cells of a weight, idle ones and the offset g_min included. t is the time for which the input drives
    its row: read_s·x/x_max in a single read, whose input is the length of its pulse, and read_s for each set bit in a
    bit-serial one. (The paper's unit has no such lengths: it counts x pulses of a single read, one of a bit.)
    """
    hardware, integers = layer.hardware, _integers(layer, x)
    siemens = conductance(layer.stored_weight, layer.rho, hardware.mapping, hardware.weights, hardware.cell)
    if hardware.changes:
        siemens = _held(siemens, layer.siemens().sum(0))
    on_time = hardware.read.on_time(integers, hardware.inputs)
    read_j_per_siemens = hardware.cell.read_volt**2 * hardware.cell.read_s
    return read_j_per_siemens * driven_sum(layer, on_time, siemens)


def _held(target: Tensor, held: Tensor) -> Tensor:
    """What is held, with the gradient of its target."""
    return target + (held - target).detach()


def converter_energy(layer: AnalogLayer, positions: int, periphery: Periphery) -> float:
    """J for the conversions at so many output positions: one for each column current, array of rows and phase."""
    return conversions(layer, positions) * periphery.converter_of(layer.hardware.converter).conversion_j()


def shift_add_energy(layer: AnalogLayer, positions: int, periphery: Periphery) -> float:
    """J for adding up what is converted, one shift-and-add a conversion."""
    return conversions(layer, positions) * periphery.shift_add_j


def row_driver_energy(layer: AnalogLayer, reads: int, periphery: Periphery) -> float:
    """J for driving the rows of so many reads, once for each array of columns."""
    groups, rows, outputs = layer.matrix_shape
    columns = outputs * layer.hardware.mapping.cells_per_weight(layer.hardware.weights)
    arrays = -(-columns // layer.hardware.arrays.columns)
    return reads * groups * rows * arrays * periphery.row_driver_j


def conversions(layer: AnalogLayer, positions: int) -> int:
    """Number of conversions of the whole layer at so many output positions."""
    hardware, (groups, _, outputs) = layer.hardware, layer.matrix_shape
    per_output = hardware.mapping.conversions_per_output(hardware.weights) * len(layer.arrays)
    return positions * len(hardware.read.conversions(hardware.inputs)) * groups * outputs * per_output


def _integers(layer: AnalogLayer, x: Tensor) -> Tensor:
    driven, input_range, _ = layer.driven(layer.prepared(x))
    return round_to_integers(driven, input_range, layer.hardware.inputs.levels)
