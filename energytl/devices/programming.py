"""What an array holds after a digital weight was written to it once: errors of programming, and stuck cells.

Weights are in units of their layer's full range, u = w/range in −1..1. Errors given as conductances are those of a
differential pair: the cell of the weight's sign is aimed at G = |u|·g_max, the other at 0, and both miss, as a cell
does that is left at its lowest conductance:

    G± = max(0, target + σ(target)·ξ),   u' = (G⁺ − G⁻)/g_max
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from energytl.allowed import Allowed, check

WAN_G_MAX_SIEMENS = 40e-6
WAN_MICROSIEMENS = {
    1: (0.348, 16.03, -43.853, 45.393, -16.815),
    86_400: (0.701, 22.086, -50.773, 47.095, -16.458),
    172_800: (0.782, 20.274, -43.507, 37.062, -11.934),
}
"""Coefficients c_i of σ = Σ_i c_i·(G/g_max)^i in µS, by seconds since programming, at g_max = 40 µS."""

G_MAX = Allowed(0, 1, above=True, below=True, note="siemens, not µS")


class WriteError(ABC):
    """How a programmed weight differs from the one that was asked for. A frozen record."""

    @abstractmethod
    def program(self, u: Tensor, generator: torch.Generator | None) -> Tensor:
        """What the array holds, not cut to −1..1; shape of u.

        Args:
            u: targets in −1..1, any shape.
            generator: of the errors, on u's device; None: torch's global one.
        """


@dataclass(frozen=True)
class GaussianWrite(WriteError):
    """The same normal error for every weight (Athena 2024, table 1: 0 to 10 % of the range).

    Attributes:
        std: standard deviation, as a share of the full range: of the largest weight.

    >>> GaussianWrite(std=0.0).program(torch.tensor([0.5]), None)
    tensor([0.5000])
    """

    std: float

    def __post_init__(self) -> None:
        """Refuse what is no standard deviation."""
        check(self, "error", std=Allowed(0, note="share of the full range"))

    def program(self, u: Tensor, generator: torch.Generator | None) -> Tensor:  # noqa: D102
        return u + self.std * _normal(u, generator)


@dataclass(frozen=True)
class Wan2022(WriteError):
    """Write-verify of HfOx ReRAM and its relaxation: the chip NeuRRAM (Wan et al., Nature 2022); see `wan_sigma`.

    Attributes:
        after_s: time since programming, s: 1, 86400 (a day) or 172800 (two days).
        g_max_siemens: conductance of the full range; the fit is of 40 µS, and σ is scaled with it.

    >>> Wan2022(after_s=86_400).program(torch.zeros(2), torch.Generator().manual_seed(0))
    tensor([ 0.0270, -0.0100])
    """

    after_s: int = 1
    g_max_siemens: float = WAN_G_MAX_SIEMENS

    def __post_init__(self) -> None:
        """Refuse times that were not measured."""
        check(self, "error", g_max_siemens=G_MAX)
        if self.after_s not in WAN_MICROSIEMENS:
            allowed = ", ".join(map(str, WAN_MICROSIEMENS))
            raise ValueError(f"error.after_s is {self.after_s}; allowed: {allowed} (seconds since programming)")

    def program(self, u: Tensor, generator: torch.Generator | None) -> Tensor:  # noqa: D102
        plus, minus = (
            _achieved(g, wan_sigma(g, self.g_max_siemens, self.after_s), generator)
            for g in _targets(u, self.g_max_siemens)
        )
        return (plus - minus) / self.g_max_siemens


@dataclass(frozen=True)
class Milo2021(WriteError):
    """Write-verify of HfO2 ReRAM (Milo et al., IEEE Transactions on Electron Devices 2021); see `milo_sigma`.

    Attributes:
        g_max_siemens: conductance of the full range. The line holds for conductances, so the relative error falls
            with the range that a design takes.

    >>> Milo2021(g_max_siemens=200e-6).program(torch.tensor([1.0]), torch.Generator().manual_seed(0))
    tensor([1.0228])
    """

    g_max_siemens: float

    def __post_init__(self) -> None:
        """Refuse what is no conductance."""
        check(self, "error", g_max_siemens=G_MAX)

    def program(self, u: Tensor, generator: torch.Generator | None) -> Tensor:  # noqa: D102
        plus, minus = (_achieved(g, milo_sigma(g), generator) for g in _targets(u, self.g_max_siemens))
        return (plus - minus) / self.g_max_siemens


def wan_sigma(g_siemens: Tensor, g_max_siemens: float, after_s: int) -> Tensor:
    """σ(G) = g_max/40 µS·Σ_i c_i·(G/g_max)^i in S, G in 0..g_max (Wan et al., Nature 2022); shape of G.

    >>> wan_sigma(torch.tensor([20e-6]), 40e-6, after_s=1)
    tensor([2.0229e-06])
    """
    share = g_siemens / g_max_siemens
    sigma = torch.zeros_like(share)
    for coefficient in reversed(WAN_MICROSIEMENS[after_s]):
        sigma = sigma * share + coefficient
    return sigma * (1e-6 * g_max_siemens / WAN_G_MAX_SIEMENS)


def milo_sigma(g_siemens: Tensor) -> Tensor:
    """σ(G) = 4.78 µS − 0.0091·G, not below 0 (Milo et al. 2021), in S; shape of G.

    >>> milo_sigma(torch.tensor([100e-6]))
    tensor([3.8700e-06])
    """
    return (4.78e-6 - 0.0091 * g_siemens).clamp(min=0)


def hold_stuck(u: Tensor, share: float, within: float, generator: torch.Generator | None) -> Tensor:
    """Weights of which a share, drawn at random, is held evenly between ±within whatever was written; shape of u.

    >>> held = hold_stuck(torch.tensor([0.5, -0.5]), share=1.0, within=0.02, generator=None)
    >>> bool((held.abs() <= 0.02).all())
    True
    """
    stuck = torch.rand(u.shape, generator=generator, device=u.device) < share
    held = (2 * torch.rand(u.shape, generator=generator, device=u.device) - 1) * within
    return torch.where(stuck, held.to(u.dtype), u)


def _targets(u: Tensor, g_max_siemens: float) -> tuple[Tensor, Tensor]:
    return u.clamp(min=0) * g_max_siemens, (-u).clamp(min=0) * g_max_siemens


def _achieved(target: Tensor, sigma: Tensor, generator: torch.Generator | None) -> Tensor:
    """Conductances of cells that miss their targets but do not go below 0."""
    return (target + sigma * _normal(target, generator)).clamp(min=0)


def _normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)
