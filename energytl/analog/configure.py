"""The layers of an analog network, their hardware, and how they are read: for good, or while a block is open."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from energytl.analog.hardware import Hardware
from energytl.analog.layers import AnalogLayer
from energytl.analog.read import Computation
from energytl.devices.drift import Drift
from energytl.devices.programming import Stuck

AS_WRITTEN: dict[str, Any] = {"programming": None, "stuck": Stuck(), "drift": Drift()}
"""Fields of the hardware of which cells hold what they should, but for wires."""


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


def configure(
    analog: nn.Module,
    layers: Mapping[str, Mapping[str, Any]] | None = None,
    **changes: Any,  # noqa: ANN401
) -> nn.Module:
    """Change fields of the hardware of every analog layer, or of some, in place; `rho` sets the layers' ρ.

    A change of weights or mapping also sets the weight ranges anew, by the weights; calibrate again for those that the
    outputs choose, and for the inputs' and the converters'.

    Args:
        analog: a converted network.
        layers: for patterns of layers' names (`*` stands for anything), changes of their hardware; a key may name a
            part of a part, as `converter.bits`. Of patterns that match one layer, the later win.
        changes: of all layers, before these.

    Raises:
        ValueError: for a pattern that matches no layer, and for fields that there are not.

    >>> from energytl.analog.convert import convert
    >>> network = convert(nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2)))
    >>> _ = configure(network, {"1": {"inputs.bits": 8}}, rho=3.0)
    >>> [(layer.hardware.inputs.bits, layer.hardware.rho) for layer in network]
    [(5, 3.0), (8, 3.0)]
    """
    found = required_layers(analog)
    for layer in found.values():
        layer.configure(**changes)
    for pattern, own in (layers or {}).items():
        matching = [layer for name, layer in found.items() if fnmatchcase(name, pattern)]
        if not matching:
            names = ", ".join(found)
            raise ValueError(f"no layer is called {pattern!r}; there are: {names}")
        for layer in matching:
            layer.configure(**_fields(layer.hardware, pattern, own))
    return analog


def _fields(hardware: Hardware, pattern: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Whole fields of the hardware from changes of their parts."""
    changed = hardware
    for key, value in changes.items():
        changed = _with(changed, key.split("."), value, f"{pattern}: {key}")
    return {key.split(".")[0]: getattr(changed, key.split(".")[0]) for key in changes}


def _with(part: Any, place: list[str], value: Any, said: str) -> Any:  # noqa: ANN401
    """A frozen record with another value at a place within it."""
    first, *others = place
    allowed = [field.name for field in fields(part)] if is_dataclass(part) else []
    if first not in allowed:
        what = f"{type(part).__name__} has no {first}" if allowed else f"there is no part of {part}"
        raise ValueError(f"{said}: {what}; allowed: {', '.join(allowed) or 'to set all of it'}")
    own = _with(getattr(part, first), others, value, said) if others else value
    return replace(part, **{first: own})


@contextmanager
def reading(
    analog: nn.Module,
    computation: Computation | None = None,
    *,
    seed: int | None = None,
    chip: int | None = None,
    time_s: float | None = None,
    as_written: bool = False,
) -> Iterator[nn.Module]:
    """While it is open, the network is read so; afterwards each layer as before, from where its random stream stood.

    Args:
        analog: a converted network.
        computation: how reads are computed; None: as each layer has it.
        seed: of the read noise; None: it goes on.
        chip: whose cells are read; None: those of each layer's own chip.
        time_s: since programming, for layers whose hardware has a law of drift; None: the hardware's own time.
        as_written: cells hold what they should: without errors of programming, stuck cells and drift.

    >>> from energytl.analog.convert import convert
    >>> from energytl.analog.read import Noiseless
    >>> layer = convert(nn.Linear(4, 2))
    >>> with reading(layer, Noiseless(), chip=3):
    ...     layer.hardware.computation, layer.hardware.chip
    (Noiseless(), 3)
    >>> layer.hardware.chip
    0
    """
    before = {layer: layer.hardware for layer in required_layers(analog).values()}
    if time_s is not None and all(hardware.drift.law is None for hardware in before.values()):
        raise ValueError("time_s requires hardware whose cells change with time: set hardware.drift.law, e.g. PcmDrift")
    places = {noise: (noise.seed, noise.position) for noise in {layer.noise for layer in before}}
    given = {"computation": computation, "chip": chip}
    changes = {name: value for name, value in given.items() if value is not None} | (AS_WRITTEN if as_written else {})
    try:
        for layer, hardware in before.items():
            drift = hardware.drift
            if time_s is not None and drift.law is not None:
                drift = replace(drift, time_s=time_s)
            layer.configure(**{"drift": drift} | changes)
        if seed is not None:
            for noise in places:
                noise.reseed(seed)
        yield analog
    finally:
        for layer, hardware in before.items():
            layer.configure(**{name: getattr(hardware, name) for name in (*changes, "drift")})
        if seed is not None:
            for noise, place in places.items():
                noise.go_on_from(*place)


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
