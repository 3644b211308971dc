"""Variation of programmed conductances: what a cell holds instead of what was written, frozen for a chip's life."""

from dataclasses import dataclass

import torch
from torch import Tensor

from energytl.allowed import FROM_0, check


@dataclass(frozen=True)
class Variation:
    """Each cell's conductance is its level times a normal number of mean 1, not below 0 (Dong 2018, §II).

    Attributes:
        relative: standard deviation as a share of the level: one for all levels, or one for each level of the
            mapping's cells above the lowest, ascending; the lowest does not vary. Dong's levels 1:3:8 have 0.274,
            0.145 and 0.107.
    """

    relative: float | tuple[float, ...] = 0.0

    def __post_init__(self) -> None:
        """Refuse what are no standard deviations."""
        check(self, "variation", relative=FROM_0)
        if not self.levels:
            raise ValueError("variation.relative is empty; allowed: 0 or more, one number or one a level")

    @property
    def levels(self) -> tuple[float, ...]:
        """The numbers, one or more."""
        return self.relative if isinstance(self.relative, tuple) else (self.relative,)

    def program(self, stored: Tensor, cell_values: tuple[float, ...], generator: torch.Generator) -> Tensor:
        """What the cells of one chip hold; shape of stored, gradient as if nothing varied.

        Args:
            stored: what they should hold, in units of the full range, of either sign.
            cell_values: what a cell can hold, ascending from 0; only for one number a level.
            generator: of the chip's deviations, on the cells' device.

        >>> generator = torch.Generator().manual_seed(0)
        >>> Variation((0.0, 0.1)).program(torch.tensor([0.0, 0.5, 1.0]), (0.0, 0.5, 1.0), generator)
        tensor([0.0000, 0.5000, 0.7821])
        """
        sigma: float | Tensor = self.levels[0]
        if len(self.levels) > 1:
            values = stored.new_tensor(cell_values)
            nearest = torch.bucketize(stored.detach().abs(), (values[1:] + values[:-1]) / 2)
            sigma = stored.new_tensor((0.0, *self.levels))[nearest]
        normal = torch.randn(stored.shape, generator=generator, device=stored.device, dtype=stored.dtype)
        factor = (1 + sigma * normal).clamp(min=0)
        return stored + ((factor - 1) * stored).detach()
