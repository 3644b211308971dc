"""Reading one column of the fast array: the cells' fluctuation, output noise, a converter."""

from dataclasses import dataclass

import torch
from torch import Tensor

from energytl.analog.quantize import round_to_integers
from energytl.devices.fluctuation import Fluctuation, sample_states, signed_amplitude


@dataclass(frozen=True)
class ColumnRead:
    """The circuit at the rows' ends, where a column is read with a one-hot input.

    Attributes:
        noise: standard deviation of its noise, in units of the cells' nominal range.
        bits: bits of its converter, the sign among them; None: not rounded.
        span: largest value that it converts, in the same units.
    """

    noise: float = 0.0
    bits: int | None = 9
    span: float = 2.0

    def __post_init__(self) -> None:
        """Refuse what is no converter."""
        if not 0 <= self.noise < float("inf"):
            raise ValueError(f"column_read.noise is {self.noise}; allowed: 0 or more")
        if self.bits is not None and not 2 <= self.bits <= 16:
            raise ValueError(f"column_read.bits is {self.bits}; allowed: 2 to 16, or null")
        if not 0 < self.span < float("inf"):
            raise ValueError(f"column_read.span is {self.span}; allowed: above 0")

    def __call__(
        self,
        weights: Tensor,
        fluctuation: Fluctuation | None,
        rho: Tensor,
        generator: torch.Generator,
        idle_siemens: float = 0.0,
    ) -> Tensor:
        """Values that reading these cells returns; shape of weights, which are in units of the nominal range.

        Args:
            weights: of the columns read.
            fluctuation: of the cells, one state each as in any other read; None: none.
            rho: energy coefficient ρ of the layer.
            generator: of the states and the noise.
            idle_siemens: what an empty cell conducts, as far as it fluctuates (`Hardware.law`).
        """
        seen = weights
        if fluctuation is not None:
            states = sample_states(weights.shape, fluctuation, generator)
            seen = seen + signed_amplitude(weights, rho, fluctuation, idle_siemens) * states
        if self.noise:
            seen = seen + self.noise * torch.randn(weights.shape, generator=generator, device=weights.device)
        if self.bits is None:
            return seen
        levels = 2 ** (self.bits - 1) - 1
        return round_to_integers(seen, self.span, levels) * (self.span / levels)
