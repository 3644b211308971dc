"""What cells hold after they were written once: errors of programming, and cells that are stuck.

Values are in units of their layer's full range, m in 0..1; a cell conducts G = g_min + ρ·m·1 µS (`Scale`). Errors that
were measured as conductances miss so, and no cell falls below 0 S, though below g_min, which is a value below 0:

    G' = max(0, G + σ(G)·ξ),   m' = (G' − g_min)/(ρ·1 µS)
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from energytl.allowed import SHARE, Allowed, check
from energytl.devices.cell import Cell

WAN_G_MAX_SIEMENS = 40e-6
WAN_MICROSIEMENS = {
    1: (0.348, 16.03, -43.853, 45.393, -16.815),
    86_400: (0.701, 22.086, -50.773, 47.095, -16.458),
    172_800: (0.782, 20.274, -43.507, 37.062, -11.934),
}
"""Coefficients c_i of σ = Σ_i c_i·(G/g_max)^i in µS, by seconds since programming, at g_max = 40 µS."""

PCM_G_MAX_SIEMENS = 25e-6
PCM_MICROSIEMENS = (0.26348, 1.9650, -1.1731)
"""Likewise of phase-change memory, at g_max = 25 µS."""

FALCONE_MICROSIEMENS = {0.02: (0.01122e-6, 0.01129), 0.002: (0.000811e-6, 0.001069)}
"""c and s of σ = c + s·G, c in S, by the relative acceptance range of the write."""


@dataclass(frozen=True)
class Scale:
    """How values become conductances.

    Attributes:
        cell: the conductance window.
        full_siemens: what a full value adds to an empty cell: ρ·1 µS.
        values: what a cell can hold, ascending from 0, if its mapping has levels; else ().
    """

    cell: Cell
    full_siemens: float
    values: tuple[float, ...] = ()

    def siemens(self, values: Tensor) -> Tensor:
        """G of cells that hold these values, S; shape of values."""
        return self.cell.g_min_siemens + self.full_siemens * values

    def held(self, siemens: Tensor) -> Tensor:
        """The values that cells of these conductances hold; shape of siemens."""
        return (siemens - self.cell.g_min_siemens) / self.full_siemens


class WriteError(ABC):
    """How a written cell differs from what was asked for. A frozen record."""

    of_idle_cells: ClassVar[bool] = False
    """Whether cells that should hold nothing miss that, too."""

    @abstractmethod
    def written(self, targets: Tensor, scale: Scale, generator: torch.Generator | None) -> Tensor:
        """What the cells hold, in units of the full range; shape of targets.

        Args:
            targets: what they should hold, 0 or more, any shape.
            scale: of their conductances.
            generator: of the errors, on the cells' device; None: torch's global one.
        """


@dataclass(frozen=True)
class Variation(WriteError):
    """Each cell's value is its level times a normal number of mean 1, not below 0 (Dong 2018, §II).

    Attributes:
        relative: standard deviation as a share of the level: one for all levels, or one for each level of the
            mapping's cells above the lowest, ascending; the lowest does not vary. Dong's levels 1:3:8 have 0.274,
            0.145 and 0.107.

    >>> scale = Scale(Cell(), 1e-6, (0.0, 0.5, 1.0))
    >>> Variation((0.0, 0.1)).written(torch.tensor([0.0, 0.5, 1.0]), scale, torch.Generator().manual_seed(0))
    tensor([0.0000, 0.5000, 0.7821])
    """

    relative: float | tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse what are no standard deviations."""
        check(self, "programming", relative=Allowed(0, 100, note="share of the level"))
        if not self.levels:
            raise ValueError("programming.relative is empty; allowed: 0 or more, one number or one a level")

    @property
    def levels(self) -> tuple[float, ...]:
        """The numbers, one or more."""
        return self.relative if isinstance(self.relative, tuple) else (self.relative,)

    def written(self, targets: Tensor, scale: Scale, generator: torch.Generator | None) -> Tensor:  # noqa: D102
        sigma: float | Tensor = self.levels[0]
        if len(self.levels) > 1:
            values = targets.new_tensor(scale.values)
            nearest = torch.bucketize(targets, (values[1:] + values[:-1]) / 2)
            sigma = targets.new_tensor((0.0, *self.levels))[nearest]
        return (1 + sigma * standard_normal(targets, generator)).clamp(min=0) * targets


@dataclass(frozen=True)
class GaussianWrite(WriteError):
    """The same normal error for every weight's cell (Athena 2024, table 1: 0 to 10 % of the range).

    Attributes:
        std: standard deviation, as a share of the full range: of the largest weight.

    >>> GaussianWrite(std=0.0).written(torch.tensor([0.5]), Scale(Cell(), 1e-6), None)
    tensor([0.5000])
    """

    std: float

    def __post_init__(self) -> None:
        """Refuse what is no standard deviation."""
        check(self, "programming", std=Allowed(0, 100, note="share of the full range"))

    def written(self, targets: Tensor, scale: Scale, generator: torch.Generator | None) -> Tensor:  # noqa: D102
        return targets + self.std * standard_normal(targets, generator)


class ConductanceError(WriteError):
    """An error of the conductance, normal and known by its standard deviation; of idle cells, too."""

    of_idle_cells = True

    @abstractmethod
    def sigma(self, siemens: Tensor, cell: Cell) -> Tensor:
        """σ(G), S; shape of siemens.

        Args:
            siemens: G that is aimed at.
            cell: the conductance window.
        """

    def written(self, targets: Tensor, scale: Scale, generator: torch.Generator | None) -> Tensor:  # noqa: D102
        siemens = scale.siemens(targets)
        missed = siemens + self.sigma(siemens, scale.cell) * standard_normal(targets, generator)
        return scale.held(missed.clamp(min=0))


@dataclass(frozen=True)
class Wan2022(ConductanceError):
    """Write-verify of HfOx ReRAM, a second later: the chip NeuRRAM (Wan et al., Nature 2022); see `wan_sigma`.

    >>> Wan2022().sigma(torch.tensor([20e-6]), Cell(g_max_siemens=40e-6))
    tensor([2.0229e-06])
    """

    def sigma(self, siemens: Tensor, cell: Cell) -> Tensor:  # noqa: D102
        return wan_sigma(siemens, cell.g_max_siemens, 1)


@dataclass(frozen=True)
class Milo2021(ConductanceError):
    """Write-verify of HfO2 ReRAM (Milo et al., IEEE Trans. Electron Devices 2021): σ = 4.78 µS − 0.0091·G, not below 0.

    >>> Milo2021().sigma(torch.tensor([100e-6]), Cell())
    tensor([3.8700e-06])
    """

    def sigma(self, siemens: Tensor, cell: Cell) -> Tensor:  # noqa: D102
        return (4.78e-6 - 0.0091 * siemens).clamp(min=0)


@dataclass(frozen=True)
class Nandakumar2019(ConductanceError):
    """Phase-change memory (Nandakumar et al. 2019): σ = 0.26348 + 1.9650·u − 1.1731·u² µS, u = G/g_max.

    Measured at g_max = 25 µS; σ is scaled with the cell's.

    >>> Nandakumar2019().sigma(torch.tensor([25e-6]), Cell(g_max_siemens=25e-6))
    tensor([1.0554e-06])
    """

    def sigma(self, siemens: Tensor, cell: Cell) -> Tensor:  # noqa: D102
        share = siemens / cell.g_max_siemens
        return _polynomial(PCM_MICROSIEMENS, share).clamp(min=0) * (1e-6 * cell.g_max_siemens / PCM_G_MAX_SIEMENS)


@dataclass(frozen=True)
class Falcone2025(ConductanceError):
    """CMO/HfOx ReRAM (Falcone et al., IBM 2025), measured from 9 to 88 µS.

    Attributes:
        acceptance: relative range in which a write is accepted: 0.02, σ = 0.01122 µS + 0.01129·G; or 0.002,
            σ = 0.000811 µS + 0.001069·G.

    >>> Falcone2025().sigma(torch.tensor([50e-6]), Cell())
    tensor([5.7572e-07])
    """

    acceptance: float = 0.02

    def __post_init__(self) -> None:
        """Refuse what was not measured."""
        if self.acceptance not in FALCONE_MICROSIEMENS:
            raise ValueError(f"programming.acceptance is {self.acceptance}; allowed: 0.02, 0.002")

    def sigma(self, siemens: Tensor, cell: Cell) -> Tensor:  # noqa: D102
        constant, slope = FALCONE_MICROSIEMENS[self.acceptance]
        return constant + slope * siemens


@dataclass(frozen=True)
class Stuck:
    """Cells that stay in one state, whatever is written (Gong et al., IEDM 2022: 13.48 % and 9.77 % of two arrays).

    Attributes:
        hrs: share of cells that stay in their state of high resistance, g_min.
        lrs: share that stay in that of low resistance, g_max.

    >>> scale = Scale(Cell(), 82e-6)
    >>> Stuck(hrs=1.0).held(torch.tensor([0.5]), scale, None), Stuck(lrs=1.0).held(torch.tensor([0.5]), scale, None)
    (tensor([0.]), tensor([1.]))
    """

    hrs: float = 0.0
    lrs: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what are no shares."""
        check(self, "stuck", hrs=SHARE, lrs=SHARE)
        if self.hrs + self.lrs > 1:
            raise ValueError(f"stuck.hrs and stuck.lrs are {self.hrs} and {self.lrs}; allowed: at most 1 together")

    def __bool__(self) -> bool:
        """Whether any cell is."""
        return self.hrs + self.lrs > 0

    def held(self, values: Tensor, scale: Scale, generator: torch.Generator | None) -> Tensor:
        """What the cells hold, in units of the full range; shape of values."""
        drawn = torch.rand(values.shape, generator=generator, device=values.device)
        full = (scale.cell.g_max_siemens - scale.cell.g_min_siemens) / scale.full_siemens
        held = torch.where(drawn < self.hrs, 0.0, values)
        return torch.where((drawn >= self.hrs) & (drawn < self.hrs + self.lrs), full, held).to(values.dtype)


def wan_sigma(siemens: Tensor, g_max_siemens: float, after_s: int) -> Tensor:
    """σ(G) = g_max/40 µS·Σ_i c_i·(G/g_max)^i in S, G in 0..g_max (Wan et al., Nature 2022); shape of G.

    >>> wan_sigma(torch.tensor([20e-6]), 40e-6, after_s=1)
    tensor([2.0229e-06])
    """
    sigma = _polynomial(WAN_MICROSIEMENS[after_s], siemens / g_max_siemens)
    return sigma.clamp(min=0) * (1e-6 * g_max_siemens / WAN_G_MAX_SIEMENS)


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """Σ_i c_i·x^i; shape of x."""
    total = torch.zeros_like(x)
    for coefficient in reversed(coefficients):
        total = total * x + coefficient
    return total


def standard_normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers of the shape, type and device of a tensor."""
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)
