"""From a digital network to an analog one and back, and what stayed digital, by name."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.optim.swa_utils import update_bn

from energytl.analog.attention import (
    FUNCTIONAL,
    AnalogProjection,
    CallingAttention,
    Projection,
    call_projections,
    use_weights,
)
from energytl.analog.configure import analog_layers, ideal_converters, required_layers, unchanging
from energytl.analog.copies import own_copy, sharing_copy
from energytl.analog.hardware import Hardware
from energytl.analog.inference import delimit, hooked, inference, inputs_of, undelimit
from energytl.analog.layers import AnalogLayer, AnalogLinear, Calibration, analog_class
from energytl.analog.noise import NoiseStream
from energytl.analog.quantize import Seen
from energytl.analog.remaining import ANALOG_OF, grouped, refusal, why_digital
from energytl.crossbar.converter import CalibratedRange


def convert(
    network: nn.Module,
    hardware: Hardware | None = None,
    *,
    strict: bool = True,
    seed: int | None = None,
    example: tuple[Any, ...] = (),
    inplace: bool = False,
) -> nn.Module:
    """An analog copy of the network: every Linear and Conv2d reads memory cells.

    So do the projections of nn.MultiheadAttention and of torchvision's Swin, which use their weights without calling
    them: in the copy they are called. Softmax, norms and products of activations with each other stay digital.

    A converted layer is the Linear or Conv2d that it was, of a subclass: attributes, Parameters and hooks that it has
    are the copy's, too.

    The network stays as it is: the copy has Parameters and buffers of its own, under the same state-dict keys, so that
    training it, or writing errors into it, changes nothing in the network.

    Args:
        network: any module.
        hardware: what it runs on; default: normal telegraph noise, 5-bit inputs and weights, single reads.
        strict: raise where weights would stay digital (see `left_digital`); False leaves them so.
        seed: of the read noise; None draws it from torch's global generator.
        example: what the network is called with, for `strict`: shows which Parameters outside layers are multiplied.
        inplace: convert the network itself, and return it; where that is refused, it stays digital.

    Raises:
        ValueError: with strict, naming the weights that cannot be converted; if nothing can; and for a network that is
            lazy, scripted or analog already.

    >>> convert(nn.Sequential(nn.Linear(4, 2)), seed=0)
    Sequential(
      (0): AnalogLinear(4, 2, bias=True, rho=10)
    )
    """
    _refuse_unready(network)
    if not inplace:
        return _converted(own_copy(network), hardware or Hardware(), strict, seed, example)
    _converted(sharing_copy(network), hardware or Hardware(), strict, 0, example)  # refuses what cannot be converted
    return _converted(network, hardware or Hardware(), False, seed, example)


def _converted(
    analog: nn.Module, hardware: Hardware, strict: bool, seed: int | None, example: tuple[Any, ...]
) -> nn.Module:
    """The network itself, converted."""
    noise = NoiseStream(seed)
    for module in list(analog.modules()):
        call_projections(module)
    chosen = {module: kind for module in _called(analog) if (kind := _analog_kind(module)) is not None}
    for index, (module, kind) in enumerate(chosen.items()):
        layer: Any = module
        layer.__class__ = analog_class(kind, type(module))
        layer.put_on_array(hardware, noise, index)
    if not chosen:
        reasons = grouped(why_digital(analog))
        left = f"; {reasons} {'stays' if reasons.count(',') == 0 else 'stay'} digital" if reasons else ""
        raise ValueError(f"{type(analog).__name__} has no Linear or Conv2d to convert{left}")
    for module in analog.modules():
        _have_blocks_called(module)
    delimit(analog, noise, AnalogLayer)
    remaining = why_digital(analog, *example) if strict else {}
    if remaining:
        raise ValueError(
            f"{len(remaining)} weights cannot be converted and would stay digital: {grouped(remaining)}. "
            "Replace these modules by ones of Linear and Conv2d that are called, or convert with strict: false"
        )
    return analog


def to_digital(analog: nn.Module) -> nn.Module:
    """The digital network again, as a copy that shares its Parameters: its outputs are the original's, bit for bit.

    >>> to_digital(convert(nn.Linear(4, 2)))
    Linear(in_features=4, out_features=2, bias=True)
    """
    for name, layer in analog_layers(analog).items():
        if parametrize.is_parametrized(layer):
            raise ValueError(
                f"layer {name or 'network'} was parametrized after it was converted: "
                "call torch.nn.utils.parametrize.remove_parametrizations first"
            )
    network = sharing_copy(analog)
    undelimit(network)
    for layer in analog_layers(network).values():
        layer.take_off_array()
    for module in network.modules():
        use_weights(module)
        if isinstance(module, nn.TransformerEncoderLayer) and _FUSED in vars(module):
            module.activation_relu_or_gelu = vars(module).pop(_FUSED)
    return network


def calibrate(analog: nn.Module, batches: Iterable[Any]) -> nn.Module:
    """Set every layer's input range: to the one that rounds best all inputs of all batches together; in place.

    Ranges of weights that are chosen by the outputs (`WeightFormat.range_by`) are set, too, and then those of the
    converters (`CalibratedRange`), from partial sums with the layers' own fluctuation.

    Args:
        analog: a converted network.
        batches: images, or (images, labels) as data loaders yield them.

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
            for images in inputs_of(batches, analog):
                analog(images)
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


def _calibrate_converters(analog: nn.Module, batches: Iterable[Any]) -> None:
    sums = {layer: Seen() for layer in _calibrated_converters(analog)}

    def note(layer: nn.Module, inputs: tuple[Any, ...], _: Any) -> None:  # noqa: ANN401
        assert isinstance(layer, AnalogLayer)
        sums[layer].add(layer.sampled_sums(inputs[0]))

    if not sums:
        return
    with inference(analog), ideal_converters(analog), hooked(sums, note):
        for images in inputs_of(batches, analog):
            analog(images)
    for layer, seen in sums.items():
        layer.fit_converter_range(seen)


def estimate_batch_norm(analog: nn.Module, batches: Iterable[Any], seed: int) -> nn.Module:
    """Set the means and variances of batch norm to those of these images' reads, at the present ρ; in place.

    Fluctuation widens what a norm sees, the more the smaller ρ is: with the statistics of other reads it scales and
    shifts whole channels. No weight changes, and no label is asked for. Joshi 2020 (Nat. Commun. 11, 2473) corrects
    the drift of phase-change memory so, and calls it AdaBS.

    Args:
        analog: with norms or without.
        batches: images, or (images, labels) as data loaders yield them; statistics are the mean of the batches'.
        seed: of the read noise.

    >>> import torch
    >>> network = convert(nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)), Hardware(sensing_noise=None))
    >>> norm = estimate_batch_norm(network, [torch.zeros(2, 1, 4, 4)], 0)[1]
    >>> round(float(norm.running_var), 6)
    0.0
    """
    layers = list(required_layers(analog).values())
    layers[0].noise.reseed(seed)
    with inference(analog), unchanging(analog):
        update_bn(inputs_of(batches, analog), analog)
    return analog


def _called(module: nn.Module) -> Iterator[nn.Module]:
    """The module and its descendants, but for children whose weights are used without calling them."""
    yield module
    if not isinstance(module, FUNCTIONAL) or isinstance(module, CallingAttention):
        for child in module.children():
            yield from _called(child)


def _analog_kind(module: nn.Module) -> type[AnalogLayer] | None:
    """The analog class for a module whose product is torch's own; None for all others."""
    if isinstance(module, Projection):
        return AnalogProjection
    for digital, analog in ANALOG_OF.items():
        if isinstance(module, digital) and refusal(module, digital, analog) is None:
            return analog
    return None


def _refuse_unready(network: nn.Module) -> None:
    """Refuse what has no weights yet, or none that can be taken, or is analog."""
    for name, module in network.named_modules():
        where = f"layer {name}" if name else "the network"
        if any(is_lazy(tensor) for tensor in module._parameters.values()):
            raise ValueError(
                f"{where} is lazy ({type(module).__name__}) and has no weight yet: run the network on an input once, "
                "then convert it"
            )
        if isinstance(module, torch.jit.ScriptModule) and any(True for _ in module.parameters()):
            raise ValueError(f"{where} is scripted (torch.jit), which fixes its products: convert the network before")
        if isinstance(module, AnalogLayer):
            raise ValueError(
                f"{where} is analog already: energytl.configure changes its hardware, and "
                "energytl.to_digital gives the network that can be converted again"
            )


def _have_blocks_called(module: nn.Module) -> None:
    """Have torch's own transformer blocks call their analog layers, and tell these if inputs are (L, N, E)."""
    if not isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
        return
    layers = [layer for layer in (module.linear1, module.linear2) if isinstance(layer, AnalogLinear)]
    for layer in layers:
        layer.batch_second = not module.self_attn.batch_first
    if layers and isinstance(module, nn.TransformerEncoderLayer):
        vars(module).setdefault(_FUSED, module.activation_relu_or_gelu)
        module.activation_relu_or_gelu = 0  # else it may hand all weights to one fused kernel in evaluation


_FUSED = "_digital_activation_relu_or_gelu"
"""Where a converted encoder block keeps the number of the activation that torch's fused kernel would use."""
