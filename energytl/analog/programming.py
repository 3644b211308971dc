"""Write digital weights onto analog arrays, once, with the errors of the write."""

import warnings

import torch
from torch import nn

from energytl.analog.convert import analog_layers
from energytl.analog.layers import AnalogLayer
from energytl.analog.noise import NoiseStream
from energytl.devices.programming import WriteError, hold_stuck

STUCK_WITHIN = 0.01
"""A stuck weight is held within ± this share of the full range."""


def program_(model: nn.Module, error: WriteError, stuck: float = 0.0, seed: int | None = None) -> nn.Module:
    """Replace the weight of every analog layer by what its array holds after it was written; in place.

    With u = weight/weight_range cut to ±1, the array holds error(u), cut to ±1 again; so weights beyond the range (of
    unrounded weights: three root mean squares) are cut, too, and a warning says how many. Biases stay: they are
    digital. So do the weight ranges.
    The weights must not be rounded (`weights: {bits: null}`): rounding in each read would hide the errors. A network
    that shares its Parameters with this one (see `energytl.convert`) holds the written weights, too.

    Args:
        model: a converted network, with unrounded weights.
        error: of the write.
        stuck: share of weights that are held near 0 (within ±1 % of the range), whatever is written (0.1348 and
            0.0977 in the arrays of Gong et al., IEDM 2022).
        seed: of errors and stuck cells; None draws it from torch's global generator.

    Raises:
        ValueError: if the network has no analog layer, or one that rounds its weights, or `stuck` is no share.

    >>> from energytl import GaussianWrite, Hardware, WeightFormat, convert
    >>> analog = convert(nn.Linear(4, 2), Hardware(weights=WeightFormat(bits=None)))
    >>> program_(analog, GaussianWrite(std=0.05), seed=0)
    AnalogLinear(4, 2, bias=True, rho=10)
    """
    if not 0 <= stuck <= 1:
        raise ValueError(f"stuck is {stuck}; allowed: 0 to 1")
    layers = analog_layers(model)
    if not layers:
        raise ValueError("the network has no analog layer to program: convert it first")
    for name, layer in layers.items():
        if layer.hardware.rounds:
            raise ValueError(
                f"layer {name or 'network'} rounds its weights in every read, which would hide errors of the write: "
                "set weights: {bits: null}, and a mapping without levels of its own"
            )
        if any(layer.hardware.variation.levels):
            raise ValueError(
                f"layer {name or 'network'} has hardware.variation, an error of writing, too: set relative: 0"
            )
        if "weight" not in layer._parameters:
            raise ValueError(
                f"the weight of layer {name or 'network'} is computed in every call, which would undo what is written: "
                "make it plain first, e.g. by torch.nn.utils.prune.remove"
            )
    _warn_of_cuts(layers)
    stream = NoiseStream(seed)
    written = set()
    for layer in layers.values():
        if layer.weight in written:  # two layers may share one array
            continue
        written.add(layer.weight)
        generator = stream.generator(layer.weight.device)
        with torch.no_grad():
            u = (layer.weight / layer.weight_range).clamp(-1, 1)
            held = hold_stuck(error.program(u, generator), stuck, STUCK_WITHIN, generator)
            layer.weight.copy_(held.clamp(-1, 1) * layer.weight_range)
    return model


def _warn_of_cuts(layers: dict[str, AnalogLayer]) -> None:
    """Say how many weights lie beyond the ranges of their layers."""
    outside = {
        name: int((layer.weight.detach().abs() > layer.weight_range * (1 + 1e-6)).sum())
        for name, layer in layers.items()
    }
    count, weights = sum(outside.values()), sum(layer.weight.numel() for layer in layers.values())
    if count:
        most = max(outside, key=lambda name: outside[name] / layers[name].weight.numel())
        share = outside[most] / layers[most].weight.numel()
        warnings.warn(
            f"program_ cuts {count:,} of {weights:,} weights ({count / weights:.2g} of all) to the ranges of their "
            f"layers, most in {most or 'network'} ({share:.2g} of its own): a larger hardware.weights.range_rms "
            "cuts fewer",
            stacklevel=3,
        )
