"""From a digital network to an analog one and back, and what stayed digital, by name."""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.optim.swa_utils import update_bn

from energytl.analog.attention import (
    FUNCTIONAL,
    AnalogProjection,
    CallingAttention,
    Projection,
    call_projections,
    use_weights,
)
from energytl.analog.hardware import Hardware
from energytl.analog.inference import hooked, inference
from energytl.analog.layers import AnalogConv2d, AnalogLayer, AnalogLinear, Calibration
from energytl.analog.noise import NoiseStream
from energytl.analog.quantize import Seen
from energytl.crossbar.converter import CalibratedRange

ANALOG_OF: dict[type[nn.Module], type[AnalogLayer]] = {
    Projection: AnalogProjection,
    nn.Linear: AnalogLinear,
    nn.Conv2d: AnalogConv2d,
}
"""The first that fits."""

PRODUCTS = (nn.Linear, nn.Bilinear, nn.RNNBase, _ConvNd)
"""torch's modules whose parameters of two dimensions or more are all weights."""

ADDED = ("pos_embedding", "relative_position_bias_table")
"""Names of parameters that torchvision's networks add and never multiply with an input."""


def convert(
    network: nn.Module, hardware: Hardware | None = None, *, strict: bool = False, seed: int | None = None
) -> nn.Module:
    """An analog copy of the network: every Linear and Conv2d reads memory cells.

    So do the projections of nn.MultiheadAttention and of torchvision's Swin, which use their weights without calling
    them: in the copy they are called. Softmax, norms and products of activations with each other stay digital.

    The copy has its own modules, but shares Parameters and buffers with the network, and its state-dict keys are
    the same; the network itself goes on computing digitally. To use both on another device or in another type, move
    the network before it is converted: moving one moves the shared Parameters, but not the other's buffers.

    Args:
        network: any module.
        hardware: what it runs on; default: normal telegraph noise, 5-bit inputs and weights, single reads.
        strict: raise where weights would stay digital (see `left_digital`).
        seed: of the read noise; None draws it from torch's global generator.

    Raises:
        ValueError: with strict, naming the weights that cannot be converted; and if nothing can.

    >>> convert(nn.Sequential(nn.Linear(4, 2)), seed=0)
    Sequential(
      (0): AnalogLinear(4, 2, bias=True, rho=10)
    )
    """
    analog = _copy(network)
    hardware = hardware or Hardware()
    noise = NoiseStream(seed)
    for module in list(analog.modules()):
        call_projections(module)
    swapped: dict[nn.Module, nn.Module] = {}
    for module in _called(analog):
        kind = _analog_kind(module)
        if kind is not None and module not in swapped:
            swapped[module] = kind(module, hardware, noise, index=len(swapped)).train(module.training)  # type: ignore[arg-type]
    if not swapped:
        raise ValueError(f"{type(network).__name__} has no Linear or Conv2d to convert")
    analog = _replace(analog, swapped)
    remaining = left_digital(analog) if strict else []
    if remaining:
        raise ValueError(
            f"{len(remaining)} weights cannot be converted and would stay digital: {', '.join(remaining)}. "
            "Replace these modules by ones of Linear and Conv2d that are called, or convert with strict: false"
        )
    return analog


def to_digital(analog: nn.Module) -> nn.Module:
    """The digital network again, as a copy that shares its Parameters: its outputs are the original's, bit for bit.

    >>> to_digital(convert(nn.Linear(4, 2)))
    Linear(in_features=4, out_features=2, bias=True)
    """
    network = _copy(analog)
    swapped: dict[nn.Module, nn.Module] = {
        module: module.digital() for module in network.modules() if isinstance(module, AnalogLayer)
    }
    network = _replace(network, swapped)
    for module in network.modules():
        use_weights(module)
    return network


def left_digital(analog: nn.Module) -> list[str]:
    """Names of the weight matrices that are not on analog arrays; [] is the goal.

    A weight is a parameter outside analog layers that is multiplied with an input: of torch's own products, or with
    two or more dimensions larger than one; not a scale, a norm or an added position table. A layer whose forward is
    never called, as its weight is used directly, shows only when the network runs: `estimate` counts no reads of it,
    and recipes refuse it.

    >>> left_digital(convert(nn.Sequential(nn.Linear(4, 2), nn.Conv1d(2, 2, 3))))
    ['1.weight']
    """
    return [
        f"{module_name}.{name}".lstrip(".")
        for module_name, module in analog.named_modules()
        if not isinstance(module, AnalogLayer)
        for name, parameter in module.named_parameters(recurse=False)
        if _is_matrix(module, name, parameter) and not _is_shared(module, parameter)
    ]


def _is_matrix(module: nn.Module, name: str, parameter: Tensor) -> bool:
    """Whether a parameter is multiplied with inputs: of torch's own products, or by its shape."""
    if isinstance(module, PRODUCTS):
        return parameter.dim() > 1
    return sum(size > 1 for size in parameter.shape) > 1 and name not in ADDED


def _is_shared(module: nn.Module, parameter: Tensor) -> bool:
    """Whether a parameter of attention is a weight of its own analog projections."""
    layers = module.children() if isinstance(module, CallingAttention) else ()
    return any(layer.weight is parameter for layer in layers if isinstance(layer, AnalogLayer))


def analog_layers(network: nn.Module) -> dict[str, AnalogLayer]:
    """The analog layers of a network by name, in their order."""
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, AnalogLayer)}


def required_layers(network: nn.Module) -> dict[str, AnalogLayer]:
    """The analog layers of a network by name, of which there must be some.

    Raises:
        ValueError: for a digital network.

    >>> required_layers(nn.Linear(4, 2))
    Traceback (most recent call last):
    ValueError: Linear has no analog layers: convert it first, with energytl.convert
    """
    layers = analog_layers(network)
    if not layers:
        raise ValueError(f"{type(network).__name__} has no analog layers: convert it first, with energytl.convert")
    return layers


def configure(analog: nn.Module, **changes: Any) -> nn.Module:  # noqa: ANN401
    """Change fields of the hardware of every analog layer, in place; `rho` sets the layers' ρ.

    A change of weights or mapping also sets the weight ranges anew, by the weights; calibrate again for those that the
    outputs choose, and for the inputs'.

    >>> from energytl.analog.read import Noiseless
    >>> layer = configure(convert(nn.Linear(4, 2)), computation=Noiseless())
    """
    for layer in required_layers(analog).values():
        layer.configure(**changes)
    return analog


@contextmanager
def unchanging(analog: nn.Module) -> Iterator[None]:
    """While it is open, weights, ranges and ρ stay as they are: what follows from them is worked out once.

    The hardware may be changed by `configure`.
    """
    layers = required_layers(analog).values()
    for layer in layers:
        layer.kept = {}
    try:
        yield
    finally:
        for layer in layers:
            layer.kept = None


def calibrate(analog: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """Set every layer's input range: to the one that rounds best all inputs of all batches together; in place.

    Ranges of weights that are chosen by the outputs (`WeightFormat.range_by`) are set, too, and then those of the
    converters (`CalibratedRange`), from partial sums with the layers' own fluctuation.

    >>> import torch
    >>> layer = calibrate(convert(nn.Linear(2, 2)), [torch.tensor([[0.0, 1.0]])])
    >>> layer.input_range
    1.0
    """
    layers = required_layers(analog).values()
    for layer in layers:
        layer.calibration = Calibration(outputs=layer.hardware.weights.range_by == "outputs")
    batches = list(batches) if _calibrated_converters(analog) else batches
    try:
        with inference(analog), ideal_converters(analog):
            for batch in batches:
                analog(batch)
        for layer in layers:
            if layer.calibration and layer.calibration.columns:
                layer.fit_weight_range(torch.cat(layer.calibration.columns, 2))
    finally:
        for layer in layers:
            layer.calibration = None
    _calibrate_converters(analog, batches)
    return analog


def _calibrated_converters(analog: nn.Module) -> list[AnalogLayer]:
    """The layers whose converters have a range that calibration finds."""
    return [
        layer
        for layer in analog_layers(analog).values()
        if layer.hardware.converter is not None and isinstance(layer.hardware.converter.range, CalibratedRange)
    ]


def _calibrate_converters(analog: nn.Module, batches: Iterable[Tensor]) -> None:
    sums = {layer: Seen() for layer in _calibrated_converters(analog)}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        assert isinstance(layer, AnalogLayer)
        sums[layer].add(layer.sampled_sums(inputs[0]))

    if not sums:
        return
    with inference(analog), ideal_converters(analog), hooked(sums, note):
        for batch in batches:
            analog(batch)
    for layer, seen in sums.items():
        layer.fit_converter_range(seen)


@contextmanager
def ideal_converters(analog: nn.Module) -> Iterator[None]:
    """While it is open, partial sums are not converted: nothing is rounded or cut off."""
    before = {layer: layer.hardware.converter for layer in analog_layers(analog).values()}
    try:
        for layer in before:
            layer.configure(converter=None)
        yield
    finally:
        for layer, converter in before.items():
            layer.configure(converter=converter)


def estimate_batch_norm(analog: nn.Module, batches: Iterable[Tensor], seed: int) -> nn.Module:
    """Set the means and variances of batch norm to those of these images' reads, at the present ρ; in place.

    Fluctuation widens what a norm sees, the more the smaller ρ is: with the statistics of other reads it scales and
    shifts whole channels. No weight changes, and no label is asked for. Joshi 2020 (Nat. Commun. 11, 2473) corrects
    the drift of phase-change memory so, and calls it AdaBS.

    Args:
        analog: with norms or without.
        batches: images, on the network's device; statistics are the mean of the batches'.
        seed: of the read noise.

    >>> import torch
    >>> network = convert(nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)))
    >>> norm = estimate_batch_norm(network, [torch.zeros(2, 1, 4, 4)], 0)[1]
    >>> round(float(norm.running_var), 6)
    0.0
    """
    layers = list(required_layers(analog).values())
    layers[0].noise.reseed(seed)
    with inference(analog), unchanging(analog):
        update_bn(batches, analog)
    return analog


def _copy(network: nn.Module) -> nn.Module:
    shared = [*network.parameters(), *network.buffers()]
    return copy.deepcopy(network, {id(tensor): tensor for tensor in shared})


def _called(module: nn.Module) -> Iterator[nn.Module]:
    """The module and its descendants, but for children whose weights are used without calling them."""
    yield module
    if not isinstance(module, FUNCTIONAL) or isinstance(module, CallingAttention):
        for child in module.children():
            yield from _called(child)


def _analog_kind(module: nn.Module) -> type[AnalogLayer] | None:
    """The analog class for a module whose product is torch's own; None for all others."""
    for digital, analog in ANALOG_OF.items():
        own_weight = isinstance(module._parameters.get("weight"), nn.Parameter)
        if isinstance(module, digital) and type(module).forward is digital.forward and own_weight:
            return analog
    return None


def _replace(network: nn.Module, swapped: dict[nn.Module, nn.Module]) -> nn.Module:
    for module in list(network.modules()):
        for name, child in module._modules.items():  # named_children() leaves out a child's second name
            if child in swapped:
                module._modules[name] = swapped[child]
    return swapped.get(network, network)
