"""What becomes of conductances in the time between programming and reading."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from energytl.allowed import Allowed, check
from energytl.devices.cell import Cell
from energytl.devices.programming import WAN_MICROSIEMENS, standard_normal, wan_sigma

FIRST_S = 1.0
"""Laws hold from a second after programming on."""

PCM_START_S, PCM_READ_S = 20.0, 250e-9


class DriftLaw(ABC):
    """How a cell's conductance changes with time. A frozen record."""

    longest_s: float = math.inf
    """How long after programming the law was measured."""

    @abstractmethod
    def at(self, siemens: Tensor, time_s: float, cell: Cell, generator: torch.Generator | None) -> Tensor:
        """G at that time, S, not below 0; shape of siemens.

        Args:
            siemens: G as programmed.
            time_s: t, since programming, from 1 s on.
            cell: the conductance window.
            generator: of the cells' differences, on their device; None: torch's global one.
        """


@dataclass(frozen=True)
class PcmDrift(DriftLaw):
    """Phase-change memory: G(t) = G·((t + t0)/t0)^−ν, t0 = 20 s, and 1/f noise (Nandakumar 2019, Joshi 2020).

    ν of each cell is |N(μ, σ)|, μ = clamp(−0.0155·ln u + 0.0244, 0.049, 0.1) and σ = clamp(−0.0125·ln u − 0.0059,
    0.008, 0.045) with u = G/g_max; the noise gathered until t has the relative deviation
    min(0.0088/u^0.65, 0.2)·√ln((t + t_r)/(2·t_r)), t_r = 250 ns.

    Attributes:
        noise: whether the 1/f noise is there; it is not drift, and no factor undoes it.
    """

    noise: bool = True

    def at(self, siemens: Tensor, time_s: float, cell: Cell, generator: torch.Generator | None) -> Tensor:  # noqa: D102
        share = (siemens / cell.g_max_siemens).clamp(min=1e-6)
        mean = (-0.0155 * share.log() + 0.0244).clamp(0.049, 0.1)
        spread = (-0.0125 * share.log() - 0.0059).clamp(0.008, 0.045)
        exponent = (mean + spread * standard_normal(siemens, generator)).abs()
        drifted = siemens * ((time_s + PCM_START_S) / PCM_START_S) ** -exponent
        if not self.noise:
            return drifted
        relative = (0.0088 / share**0.65).clamp(max=0.2) * math.sqrt(math.log((time_s + PCM_READ_S) / (2 * PCM_READ_S)))
        return (drifted * (1 + relative * standard_normal(siemens, generator))).clamp(min=0)


@dataclass(frozen=True)
class RramRelaxation(DriftLaw):
    """HfOx ReRAM relaxes, the faster the sooner (Wan et al., Nature 2022: `wan_sigma` at 1 s, a day, two days).

    σ² at t is interpolated in ln t; what it is above that of 1 s, which `Wan2022` writes with, is added.
    """

    longest_s = 172_800.0

    def at(self, siemens: Tensor, time_s: float, cell: Cell, generator: torch.Generator | None) -> Tensor:  # noqa: D102
        added = relaxed_variance(siemens, time_s, cell.g_max_siemens)
        return (siemens + added.sqrt() * standard_normal(siemens, generator)).clamp(min=0)


@dataclass(frozen=True)
class CmoHfoxRelaxation(DriftLaw):
    """CMO/HfOx ReRAM (Falcone et al., IBM 2025): ΔG is normal, mean −0.0890·ln t µS, σ = 0.0420·ln t + 0.4118 µS."""

    def at(self, siemens: Tensor, time_s: float, cell: Cell, generator: torch.Generator | None) -> Tensor:  # noqa: D102
        logarithm = math.log(time_s)
        change = -0.0890 * logarithm + (0.0420 * logarithm + 0.4118) * standard_normal(siemens, generator)
        return (siemens + 1e-6 * change).clamp(min=0)


def relaxed_variance(siemens: Tensor, time_s: float, g_max_siemens: float) -> Tensor:
    """σ²(t) − σ²(1 s) of ReRAM by Wan 2022, not below 0, S²; shape of siemens.

    >>> float(relaxed_variance(torch.tensor(20e-6), 1.0, 40e-6))
    0.0
    """
    squares = {seconds: wan_sigma(siemens, g_max_siemens, seconds).square() for seconds in WAN_MICROSIEMENS}
    for early, late in pairwise(WAN_MICROSIEMENS):
        if time_s <= late:
            share = math.log(time_s / early) / math.log(late / early)
            return (squares[early] + share * (squares[late] - squares[early]) - squares[1]).clamp(min=0)
    raise ValueError(f"time_s is {time_s:g}; allowed: at most {max(WAN_MICROSIEMENS):,} (two days)")


@dataclass(frozen=True)
class Drift:
    """Time after programming, what it does, and what is done about it.

    Attributes:
        law: of the cells; null: they keep what was written.
        time_s: since programming, s.
        compensation: digital factors that put outputs right, from a read of the layer with all rows driven one by one,
            after programming and now: `layer`, one factor (global drift compensation, Joshi 2020); `column`, one an
            output; `none`.
    """

    law: DriftLaw | None = None
    time_s: float = FIRST_S
    compensation: str = "none"

    def __post_init__(self) -> None:
        """Refuse times that the law says nothing of."""
        check(self, "drift", time_s=Allowed(FIRST_S, note="seconds since programming"))
        if self.compensation not in ("none", "layer", "column"):
            raise ValueError(f"drift.compensation is {self.compensation}; allowed: none, layer, column")
        if self.law is None and (self.time_s != FIRST_S or self.compensation != "none"):
            raise ValueError("drift.time_s and drift.compensation require a drift.law, e.g. PcmDrift")
        if self.law is not None and self.time_s > self.law.longest_s:
            raise ValueError(
                f"drift.time_s is {self.time_s:g}; {type(self.law).__name__} was measured to {self.law.longest_s:g} s"
            )


def compensating(programmed: Tensor, now: Tensor, columns: bool) -> Tensor:
    """The factor Σ|w₀|/Σ|w|, of the layer, (1,), or of each output, (O,); 1 where nothing is left.

    Args:
        programmed: w₀ of each output, (O, …).
        now: w, likewise.
        columns: one an output.
    """
    dims = tuple(range(0 if not columns else 1, now.dim()))
    sums = [w.detach().abs().sum(dims).reshape(-1) for w in (programmed, now)]
    return torch.where(sums[1] > 0, sums[0] / sums[1], torch.ones_like(sums[0]))
