"""Where the random states of a network's cells come from: one seed, and a place in its stream for every read.

States that outlast a read are those of a whole inference: of one call of the network, or of the part of it that is
called by itself. Of each layer they follow from the place of its first read there, so all its calls find the same.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from energytl.streams import Stream, fold, seed_of

Made = TypeVar("Made")

REMEMBERED = 2**17
"""Reads whose places in the stream are kept, so that a backward pass can compute them again."""


@dataclass
class Inference:
    """What has been read since a network, or a part of it, was called.

    Attributes:
        of: what was called.
        calls: of each layer, by its number.
        first: place of each layer's first read whose cells keep states.
        alone: layers whose first call was taken for their only one.
    """

    of: str | int
    calls: Counter[int] = field(default_factory=Counter)
    first: dict[int, int] = field(default_factory=dict)
    alone: set[int] = field(default_factory=set)


class NoiseStream:
    """Random numbers of one analog network: those of a read follow from the seed and from how many came before.

    Torch's own seed decides none of them. But where torch computes a part of a network again in the backward pass
    (torch.utils.checkpoint), all that it puts back is the state of its own generator. So every read takes one number
    from that, too, and looks its place in the stream up by it when it is computed again.

    Args:
        seed: start of the stream; None draws one from torch's global generator, so torch.manual_seed decides.

    Attributes:
        seed, position: what a stream goes on from, as plain numbers.
        inference: that which goes on, or None.

    >>> stream = NoiseStream(seed=1)
    >>> first = stream.normal(torch.empty(3))
    >>> stream.reseed(1)
    >>> bool((stream.normal(torch.empty(3)) == first).all())
    True
    """

    def __init__(self, seed: int | None = None) -> None:
        self.inference: Inference | None = None
        self.reseed(int(torch.randint(2**62, ())) if seed is None else seed)

    def reseed(self, *seeds: int) -> None:
        """Start anew from one seed or several (as seed, epoch, rank)."""
        self.go_on_from(fold(*seeds), 0)

    def go_on_from(self, seed: int, position: int) -> None:
        """Take up the place of another stream."""
        self.seed, self.position = seed, position
        self._made: dict[int, Any] = {}

    def enter(self, name: str | int) -> None:
        """Note that a part of the network is called: it begins an inference, unless it is called within one."""
        if self.inference is None or self.inference.of == name:  # the same again: the last one was broken off
            self.inference = Inference(name)

    def leave(self, name: str | int) -> None:
        """Note that a call has ended, which `enter` was told of."""
        if self.inference is not None and self.inference.of == name:
            self.inference = None

    @contextmanager
    def within(self, name: str | int) -> Iterator[Inference]:
        """The inference of what is called while this is open: that which it is a part of, or one of its own."""
        self.enter(name)
        assert self.inference is not None
        try:
            yield self.inference
        finally:
            self.leave(name)

    def generator(self, device: torch.device) -> torch.Generator:
        """A generator of its own for what is drawn next."""
        return self._at(self._advance(), device)

    def of_read(self, device: torch.device) -> torch.Generator:
        """The same for a read; one that is computed again in a backward pass gets the numbers of its first time.

        Raises:
            RuntimeError: in a backward pass, for a read that has no first time.
        """
        return self._at(self._as_at_first(self._advance), device)

    def of_cells(self, device: torch.device, layer: int, alone: bool) -> tuple[torch.Generator, bool]:
        """A generator of the states that a layer's cells keep for the whole inference: alike in each of its calls.

        Args:
            device: of the generator.
            layer: its number.
            alone: whether this is its only call; given back as it was at first, where a read is computed again.
        """

        def make() -> tuple[int, bool]:
            assert self.inference is not None
            first = self.inference.first
            if layer not in first:
                first[layer] = self._advance()
            return first[layer], alone

        place, alone = self._as_at_first(make)
        return torch.Generator(device).manual_seed(seed_of(Stream.STATES, self.seed, place, layer)), alone

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers of the shape, type, device and memory layout of a dense tensor."""
        return normal_like(like, self.generator(like.device))

    def _advance(self) -> int:
        self.position += 1
        return self.position - 1

    def _as_at_first(self, make: Callable[[], Made]) -> Made:
        """What is made now; or was made, where a read is computed again in a backward pass."""
        if torch.is_inference_mode_enabled():
            return make()
        mark = int(torch.empty((), dtype=torch.int64, device="cpu").random_())
        if torch._C._current_graph_task_id() == -1:
            if len(self._made) >= REMEMBERED:
                del self._made[next(iter(self._made))]
            self._made[mark] = made = make()
            return made
        if mark not in self._made:
            raise RuntimeError(
                "a random read in the backward pass is none of the forward pass, so it would find other states: give "
                "torch.utils.checkpoint preserve_rng_state=True"
            )
        found: Made = self._made[mark]
        return found

    def _at(self, position: int, device: torch.device) -> torch.Generator:
        return torch.Generator(device).manual_seed(fold(self.seed, position))


def normal_like(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers of the shape, type, device and memory layout of a dense tensor.

    On the CPU, where torch's own take longer than a small convolution, by inverse transform of 16 random bits:
    65,536 equally likely values within ±4.3, of unit variance.
    """
    numbers = torch.empty_like(like)
    flat = numbers.as_strided((numbers.numel(),), (1,))  # far faster to fill than channels last
    if like.device.type != "cpu" or like.dtype != torch.float32:
        flat.normal_(generator=generator)
        return numbers
    index = uniform_int16(flat.numel(), generator).to(torch.int32).add_(2**15)
    torch.index_select(_normal_quantiles(), 0, index, out=flat)
    return numbers


def uniform_int16(count: int, generator: torch.Generator) -> Tensor:
    """So many independent numbers, uniform over all 16-bit integers, (count,) on the generator's device."""
    words = torch.empty(-(-count // 4), dtype=torch.int64, device=generator.device)  # four numbers a word: far faster
    return words.random_(-(2**63), None, generator=generator).view(torch.int16)[:count]


@cache
def _normal_quantiles() -> Tensor:
    """65,536 quantiles of the standard normal distribution, scaled to unit variance."""
    middles = (torch.arange(2**16, dtype=torch.float64) + 0.5) / 2**16
    quantiles = torch.special.ndtri(middles)
    return (quantiles / quantiles.square().mean().sqrt()).float()
