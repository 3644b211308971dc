"""Where the random states of a network's cells come from: one seed, one stream per torch device."""

from functools import cache

import torch
from torch import Tensor


class NoiseStream:
    """Random numbers of one analog network, independent of torch's global seed once made.

    Args:
        seed: start of the stream; None draws one from torch's global generator, so torch.manual_seed decides.

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
        self._seed = fold(*seeds)
        self._generators: dict[torch.device, torch.Generator] = {}

    def generator(self, device: torch.device) -> torch.Generator:
        """The stream's generator on that device."""
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers of the shape, type, device and memory layout of a dense tensor."""
        return normal_like(like, self.generator(like.device))

    def __getstate__(self) -> dict[str, object]:
        """Seed and positions, so that copies and pickles go on where this stream stands."""
        return {
            "seed": self._seed,
            "states": {str(device): g.get_state() for device, g in self._generators.items()},
        }

    def __setstate__(self, state: dict[str, object]) -> None:
        """Take up seed and positions."""
        self._seed = state["seed"]  # type: ignore[assignment]
        self._generators = {}
        for device, position in state["states"].items():  # type: ignore[attr-defined]
            self.generator(torch.device(device)).set_state(position)


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


def fold(*seeds: int) -> int:
    """One 62-bit seed from several; different tuples give unrelated streams (splitmix64).

    >>> fold(7) == 7 and fold(1, 2) != fold(2, 1)
    True
    """
    folded = seeds[0]
    for seed in seeds[1:]:
        z = (folded * 0x9E3779B97F4A7C15 + seed + 0x9E3779B97F4A7C15) % 2**64
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) % 2**64
        folded = (z ^ z >> 31) % 2**62
    return folded


@cache
def _normal_quantiles() -> Tensor:
    """65,536 quantiles of the standard normal distribution, scaled to unit variance."""
    middles = (torch.arange(2**16, dtype=torch.float64) + 0.5) / 2**16
    quantiles = torch.special.ndtri(middles)
    return (quantiles / quantiles.square().mean().sqrt()).float()
