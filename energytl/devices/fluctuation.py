"""Random telegraph noise: what a memory cell returns when it is read.

A cell that stores the weight w with energy coefficient ρ returns r_l(w, ρ) = w + a(w, ρ)·c_l in its state l
(Wang 2021, eq. 7-8). Weights are in units of their layer's full range, so |w| ≤ 1.

Unit of ρ: what a cell of the full range conducts, in microsiemens, above an empty one: G = g_idle + ρ·|w|·1 µS.

Two laws say of which conductance the amplitude is. In the paper's, g_idle is 0: a weight of 0 is silent, and one of
next to nothing fluctuates by at most itself. In the cell's, g_idle is the empty cell's own conductance, g_min, so that
noise and energy speak of the same cell: idle cells fluctuate, and what they add to a weight grows as 1/ρ.
"""

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from energytl.allowed import FROM_0, SHARE, Allowed, check

SIEMENS_PER_RHO = 1e-6


@dataclass(frozen=True)
class Fluctuation:
    """How strongly, and between which states, the conductance of a cell fluctuates.

    Attributes:
        intensity: factor k on the amplitude, ≥ 0, at low conductance too: where k·(b + x_sat) is below the largest
            amplitude, weights stay readable for nothing. Another device at equal saturation has another floor and
            corner, as weak and strong in `devices.presets`.
        floor: relative amplitude b of a cell of high conductance (He et al., DAC 2019: 0.0015).
        saturation: relative amplitude x_sat of a cell of low conductance, 0..1. Ielmini 2010 shows that it
            saturates; where is our assumption, and 1 the one that leaves no weight readable for nothing.
        corner_siemens: conductance G0 below which the amplitude saturates. The default makes
            x_sat·G0 = 0.1662 µS, the slope of He et al., ΔG = 0.1662 µS + 0.0015·G.
        offsets: the states' offsets c_l; scaled to zero mean and unit variance.
        probabilities: the states' probabilities p_l.
        correlation: c, 0..1, between two reads of one cell within one inference. 0: every read finds a fresh
            state (Wang 2021); 1: the state outlasts the inference.

    >>> Fluctuation(offsets=(0.0, 1.0), probabilities=(0.75, 0.25)).states()
    tensor([-0.5774,  1.7321])
    """

    intensity: float = 1.0
    floor: float = 0.0015
    saturation: float = 1.0
    corner_siemens: float = 0.1662e-6
    offsets: tuple[float, ...] = (-1.0, 1.0)
    probabilities: tuple[float, ...] = (0.5, 0.5)
    correlation: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is not a fluctuation."""
        check(
            self,
            "fluctuation",
            intensity=FROM_0,
            floor=FROM_0,
            saturation=SHARE,
            corner_siemens=Allowed(0, 1, above=True, below=True, note="siemens, not µS"),
            correlation=SHARE,
        )
        if len(self.offsets) != len(self.probabilities) or len(set(self.offsets)) < 2:
            raise ValueError(
                f"fluctuation.offsets {list(self.offsets)} and .probabilities {list(self.probabilities)}: "
                "give two or more different offsets and as many probabilities"
            )
        if min(self.probabilities) <= 0 or not math.isclose(sum(self.probabilities), 1.0, rel_tol=1e-6):
            raise ValueError(
                f"fluctuation.probabilities are {list(self.probabilities)}; allowed: above 0, summing to 1"
            )

    def states(self) -> Tensor:
        """Offsets c_l with Σ p·c = 0 and Σ p·c² = 1, shape (m,)."""
        offsets = torch.tensor(self.offsets, dtype=torch.float64)
        probabilities = torch.tensor(self.probabilities, dtype=torch.float64)
        centred = offsets - (probabilities * offsets).sum()
        return (centred / (probabilities * centred.square()).sum().sqrt()).float()


@cache
def largest_relative_amplitude(fluctuation: Fluctuation) -> float:
    """a/|w| at which the lowest state reads zero: beyond it a read would change its sign.

    >>> largest_relative_amplitude(Fluctuation())
    1.0
    """
    return 1.0 / -float(fluctuation.states().min())


def relative_amplitude(conductance_siemens: Tensor, fluctuation: Fluctuation) -> Tensor:
    """a/|w| = k·(b + x_sat / (1 + G/G0)), at most 1/|min c_l|; any shape (Ielmini 2010; He et al. 2019).

    >>> relative_amplitude(torch.tensor([0.0, 1.0]), Fluctuation())  # 0 S: saturated; 1 S: the floor
    tensor([1.0000, 0.0015])
    """
    falling = fluctuation.saturation / (1 + conductance_siemens / fluctuation.corner_siemens)
    relative = fluctuation.intensity * (fluctuation.floor + falling)
    return relative.clamp(max=largest_relative_amplitude(fluctuation))


def amplitude(weight: Tensor, rho: Tensor, fluctuation: Fluctuation, idle_siemens: float = 0.0) -> Tensor:
    """a(w, ρ), the standard deviation of one read of a cell, in units of the layer's full range; shape of weight.

    That is ΔG(G)/(ρ·1 µS), with ΔG = G·`relative_amplitude` and G = g_idle + ρ·|w|·1 µS.

    Args:
        weight: what cells hold, in units of the full range.
        rho: energy coefficient ρ, scalar.
        fluctuation: of the cells.
        idle_siemens: g_idle, what an empty cell conducts; 0: the paper's law.

    >>> amplitude(torch.tensor([0.0, -0.5, 1.0]), torch.tensor(1.0), Fluctuation())
    tensor([0.0000, 0.1255, 0.1440])
    >>> amplitude(torch.tensor([0.0, -0.5, 1.0]), torch.tensor(1.0), Fluctuation(), 8e-6)
    tensor([0.1748, 0.1758, 0.1767])
    """
    magnitude = weight.abs()
    full = rho * SIEMENS_PER_RHO
    if not idle_siemens:
        return magnitude * relative_amplitude(magnitude * full, fluctuation)
    siemens = idle_siemens + magnitude * full
    return siemens * relative_amplitude(siemens, fluctuation) / full


def signed_amplitude(weight: Tensor, rho: Tensor, fluctuation: Fluctuation, idle_siemens: float = 0.0) -> Tensor:
    """±a(w, ρ): what a unit offset adds to a weight, as a state moves the conductance, whatever the weight's sign.

    Args are those of `amplitude`; the sign of an empty cell is +.

    >>> signed_amplitude(torch.tensor([-0.5]), torch.tensor(1.0), Fluctuation())
    tensor([-0.1255])
    """
    return torch.where(weight < 0, -1.0, 1.0) * amplitude(weight, rho, fluctuation, idle_siemens)


def sample_states(shape: tuple[int, ...] | torch.Size, fluctuation: Fluctuation, generator: torch.Generator) -> Tensor:
    """Independent states of cells, as their offsets c_l; float32 on the generator's device.

    >>> sample_states((4,), Fluctuation(), torch.Generator().manual_seed(1)).abs()
    tensor([1., 1., 1., 1.])
    """
    device = generator.device
    states = fluctuation.states().to(device)
    edges = torch.tensor(fluctuation.probabilities, device=device).cumsum(0)[:-1]
    uniform = torch.rand(shape, generator=generator, device=device)
    return states[torch.bucketize(uniform, edges, right=True)]
