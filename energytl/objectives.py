"""What training minimises: the task's loss and the energy of the reads."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from energytl.analog.layers import AnalogLayer
from energytl.cost.energy import regularised_energy


@dataclass(frozen=True)
class Objective:
    """Task loss + λ·Σ_t α_t·ρ·|w_t| (Wang 2021, eq. 13).

    Attributes:
        energy_weight: λ, 0 or more. 0 leaves the energy out and ρ as it is: without a price it would only grow.
        relative: λ is in units of the energy at the start of training, so that λ = 0.1 adds 0.1 to the first
            loss whatever the network; otherwise λ is a price for each unit of Σ α·ρ·|w|.
        rho_lr: learning rate of log ρ.
    """

    energy_weight: float = 0.0
    relative: bool = True
    rho_lr: float = 0.02

    def __post_init__(self) -> None:
        """Refuse negative prices and rates."""
        for name in ("energy_weight", "rho_lr"):
            if getattr(self, name) < 0:
                raise ValueError(f"objective.{name} is {getattr(self, name)}; allowed: 0 or more")

    @property
    def trains_rho(self) -> bool:
        """Whether ρ is a parameter of the training."""
        return self.energy_weight > 0 and self.rho_lr > 0


def network_energy(layers: Iterable[AnalogLayer]) -> Tensor:
    """Σ_t α_t·ρ·|w_t| over the layers, a differentiable scalar; the network must have run once."""
    return sum((regularised_energy(layer) for layer in layers), start=Tensor.new_zeros(Tensor(), ()))
