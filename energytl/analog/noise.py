"""Where the random states of a network's cells come from: one seed, and a place in its stream for every read."""

from functools import cache

import torch
from torch import Tensor

from energytl.streams import fold

REMEMBERED = 2**17
"""Reads whose places in the stream are kept, so that a backward pass can compute them again."""


class NoiseStream:
    """Random numbers of one analog network: those of a read follow from the seed and from how many came before.

    Torch's own seed decides none of them. But where torch computes a part of a network again in the backward pass
    (torch.utils.checkpoint), all that it puts back is the state of its own generator. So every read takes one number
    from that, too, and looks its place in the stream up by it when it is computed again.

    Args:
        seed: start of the stream; None draws one from torch's global generator, so torch.manual_seed decides.

    Attributes:
        seed, position: what a stream goes on from, as plain numbers.

    >>> stream = NoiseStream(seed=1)
    >>> first = stream.normal(torch.empty(3))
    >>> stream.reseed(1)
    >>> bool((stream.normal(torch.empty(3)) == first).all())
    True
    """

    def __init__(self, seed: int | None = None) -> None:
        self.reseed(int(torch.randint(2**62, ())) if seed is None else seed)

    def reseed(self, *seeds: int) -> None:
        """Start anew from one seed or several (as seed, epoch, rank)."""
        self.go_on_from(fold(*seeds), 0)

    def go_on_from(self, seed: int, position: int) -> None:
        """Take up the place of another stream."""
        self.seed, self.position = seed, position
        self._places: dict[int, int] = {}

    def generator(self, device: torch.device) -> torch.Generator:
        """A generator of its own for what is drawn next."""
        self.position += 1
        return self._at(self.position - 1, device)

    def of_read(self, device: torch.device) -> torch.Generator:
        """The same for a read; one that is computed again in a backward pass gets the numbers of its first time.

        Raises:
            RuntimeError: in a backward pass, for a read that has no first time.
        """
        if torch.is_inference_mode_enabled():
            return self.generator(device)
        mark = int(torch.empty((), dtype=torch.int64, device="cpu").random_())
        if torch._C._current_graph_task_id() == -1:
            if len(self._places) >= REMEMBERED:
                del self._places[next(iter(self._places))]
            self._places[mark] = self.position
            return self.generator(device)
        if mark not in self._places:
            raise RuntimeError(
                "a random read in the backward pass is none of the forward pass, so it would find other states: give "
                "torch.utils.checkpoint preserve_rng_state=True"
            )
        return self._at(self._places[mark], device)

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers of the shape, type, device and memory layout of a dense tensor."""
        return normal_like(like, self.generator(like.device))

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
