"""Write digital weights onto analog arrays, once, with the errors of the write."""

import warnings

import torch
from torch import nn

from energytl.analog.configure import analog_layers
from energytl.analog.layers import AnalogLayer
from energytl.analog.noise import NoiseStream
from energytl.devices.programming import Stuck, WriteError


def program_(model: nn.Module, error: WriteError, stuck: Stuck = Stuck(), seed: int | None = None) -> nn.Module:
    """Have every analog layer hold what its cells hold after they were written; in place.

    Weights that are not rounded (`weights: {bits: null}`) are replaced: with u = weight/weight_range cut to ±1, cells
    hold error(u), cut to ±1 again, or what they are stuck at. So weights beyond the range (three root mean squares) are
    cut, too, and a warning says how many. Training goes on from there. Rounded weights stay, as rounding in each read
    would hide errors in them: their layers' `hardware.programming` and `hardware.stuck` say from now on what becomes of
    them in the cells, on the chip of this seed. Biases stay: they are digital. So do the weight ranges.

    Args:
        model: a converted network.
        error: of the write.
        stuck: shares of the cells that stay in one state, whatever is written.
        seed: of errors and stuck cells; None draws it from torch's global generator.

    Raises:
        ValueError: if the network has no analog layer, or one whose weight cannot be written.
        TypeError: if `stuck` is no `Stuck`.

    >>> from energytl import GaussianWrite, Hardware, WeightFormat, convert
    >>> analog = convert(nn.Linear(4, 2), Hardware(weights=WeightFormat(bits=None)))
    >>> program_(analog, GaussianWrite(std=0.05), seed=0)
    AnalogLinear(4, 2, bias=True, rho=10)
    """
    if not isinstance(stuck, Stuck):
        raise TypeError(f"stuck is {stuck!r}; allowed: energytl.Stuck(hrs, lrs), shares of the cells")
    layers = analog_layers(model)
    if not layers:
        raise ValueError("the network has no analog layer to program: convert it first")
    for name, layer in layers.items():
        if layer.hardware.changes:
            raise ValueError(
                f"layer {name or 'network'} has hardware.programming, stuck, drift or arrays.wire_ohm, which say "
                "already what its cells hold: leave them out, or do not program it"
            )
        if "weight" not in layer._parameters:
            raise ValueError(
                f"the weight of layer {name or 'network'} is computed in every call, which would undo what is written: "
                "make it plain first, e.g. by torch.nn.utils.prune.remove"
            )
    _warn_of_cuts(layers)
    stream = NoiseStream(seed)
    chip = stream.seed
    written = set()
    for layer in layers.values():
        if layer.hardware.rounds:
            layer.configure(programming=error, stuck=stuck, chip=chip)
        elif layer.weight not in written:  # two layers may share one array
            written.add(layer.weight)
            _write(layer, error, stuck, stream.generator(layer.weight.device))
    return model


@torch.no_grad()
def _write(layer: AnalogLayer, error: WriteError, stuck: Stuck, generator: torch.Generator) -> None:
    mapping, weights, scale = layer.hardware.mapping, layer.hardware.weights, layer.conductance_scale
    if error.of_idle_cells or stuck:
        mapping = mapping.with_idle_cells()
    targets = mapping.stored((layer.weight / layer.weight_range).clamp(-1, 1), weights)
    held = error.written(targets.abs(), scale, generator).clamp(-1, 1)
    held = torch.where(targets < 0, -1.0, 1.0) * (stuck.held(held, scale, generator) if stuck else held)
    significances = held.new_tensor(mapping.significances(weights))
    layer.weight.copy_(torch.tensordot(significances, held, 1) * layer.weight_range)


def _warn_of_cuts(layers: dict[str, AnalogLayer]) -> None:
    """Say how many weights lie beyond the ranges of their layers."""
    outside = {
        name: int((layer.weight.detach().abs() > layer.weight_range * (1 + 1e-6)).sum())
        for name, layer in layers.items()
        if not layer.hardware.rounds
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
