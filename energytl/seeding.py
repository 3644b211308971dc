"""Everything that draws random numbers, started anew: one stream an epoch, and measurements apart from it."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from energytl.analog.configure import analog_layers
from energytl.analog.noise import NoiseStream
from energytl.streams import Stream, seed_of


def begin(network: nn.Module | None, stream: Stream, *seeds: int) -> None:
    """Start everything that draws random numbers anew: torch, Python, NumPy and the network's read noise.

    Args:
        network: analog, digital or in parts; None: without one.
        stream: what draws them.
        seeds: several numbers, e.g. seed, epoch, rank.

    >>> begin(None, Stream.TRAINING, 1, 2)
    >>> first = torch.rand(1)
    >>> begin(None, Stream.TRAINING, 1, 2)
    >>> bool(first == torch.rand(1))
    True
    """
    seed = seed_of(stream, *seeds)
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    for noise in _noise(network):
        noise.reseed(seed, 1)  # apart from torch's own


@contextmanager
def apart(network: nn.Module | None, stream: Stream, *seeds: int) -> Iterator[None]:
    """While it is open, random numbers come from these seeds; then all streams go on from where they stood.

    >>> begin(None, Stream.TRAINING, 0)
    >>> with apart(None, Stream.VALIDATION, 1):
    ...     _ = torch.rand(5)
    >>> after = torch.rand(1)
    >>> begin(None, Stream.TRAINING, 0)
    >>> bool(after == torch.rand(1))
    True
    """
    places = [(noise, noise.seed, noise.position) for noise in _noise(network)]
    with isolate_rng():
        begin(network, stream, *seeds)
        try:
            yield
        finally:
            for noise, *place in places:
                noise.go_on_from(*place)


def _noise(network: nn.Module | None) -> list[NoiseStream]:
    """The streams of the network's analog layers, each once."""
    layers = {} if network is None else analog_layers(network)
    return list({id(layer.noise): layer.noise for layer in layers.values()}.values())
