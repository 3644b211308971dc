"""One array of pulsed cells: what it holds, how it is pulsed, what it shows."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from energytl.analog.noise import normal_like
from energytl.devices.pulsed import Cells, PulsedDevice, bounded, pulse
from energytl.optim.fused import fused
from energytl.optim.pulses import ExpectedPulses

STATES_AT_ONCE = 2**17
"""How many cells times samples are worked on at once: what fits a core's cache."""


@dataclass
class CellArray:
    """Cells and their states; every tensor is (…, O, K) or broadcasts to it. Methods that end in _ change it.

    Attributes:
        cells: the population.
        state: physical states g.
        offset: write noise that the cells show now; a scalar 0 if the device has none.
        untouched: probability that a cell got no pulse since its offset was drawn; a scalar 1 without write noise.
        pulses: pulses so far, a scalar.
    """

    cells: Cells
    state: Tensor
    offset: Tensor
    untouched: Tensor
    pulses: Tensor

    @classmethod
    def new(cls, device: PulsedDevice, shape: tuple[int, ...], generator: torch.Generator) -> "CellArray":
        """An array of drawn cells that hold the weight 0, as far as their bounds allow."""
        cells = device.draw(shape, generator)
        where = generator.device
        offset, untouched = torch.zeros((), device=where), torch.ones((), device=where)
        if device.write_noise:
            offset, untouched = torch.zeros(shape, device=where), torch.zeros(shape, device=where)
        array = cls(cells, torch.zeros(shape, device=where), offset, untouched, torch.zeros((), device=where))
        array.write_(torch.zeros(shape, device=where), device, generator)
        return array

    def write_(self, weights: Tensor, device: PulsedDevice, generator: torch.Generator) -> None:
        """Hold these weights, cut to each cell's bounds; write noise is drawn."""
        self.state = torch.minimum(torch.maximum(weights + self.cells.reference, self.cells.lower), self.cells.upper)
        self.untouched.zero_()
        if not device.write_noise:
            self.untouched.fill_(1.0)
        self.settle_(device, generator)

    def settle_(self, device: PulsedDevice, generator: torch.Generator) -> None:
        """Draw the write noise of the cells that were pulsed since it was drawn last."""
        if not device.write_noise:
            return
        shape, where = self.state.shape, generator.device
        keep = torch.rand(shape, generator=generator, device=where) < self.untouched
        drawn = torch.randn(shape, generator=generator, device=where) * (device.write_noise * device.dw_min)
        self.offset = torch.where(keep, self.offset, drawn)
        self.untouched.fill_(1.0)

    def weights(self) -> Tensor:
        """What the cells show: w = g − r + write noise."""
        return self.state - self.cells.reference + self.offset

    def columns(self, index: Tensor) -> "CellArray":
        """Some columns, as an array of their own; `put_` takes them back."""
        tensors = {name: t.index_select(-1, index) if t.dim() else t for name, t in self.tensors().items()}
        return CellArray.of(tensors | {"pulses": torch.zeros_like(self.pulses)})

    def put_(self, index: Tensor, columns: "CellArray") -> None:
        """Take up the states of such columns."""
        for name in ("state", "offset", "untouched"):
            if getattr(self, name).dim():
                getattr(self, name).index_copy_(-1, index, getattr(columns, name))
        self.pulses += columns.pulses

    def pulse_(self, direction: Tensor, device: PulsedDevice, generator: torch.Generator) -> None:
        """One pulse for each cell where direction is +1 or −1, none where it is 0."""
        self.state = pulse(device, self.state, direction, self.cells, generator)
        if device.write_noise:
            self.untouched.masked_fill_(direction != 0, 0.0)
        self.pulses += direction.abs().sum()

    def train_(
        self,
        counts: Callable[[int, int], Tensor],
        samples: int,
        device: PulsedDevice,
        generator: torch.Generator,
    ) -> None:
        """Pulses of samples one after the other, each finding the state that the last one left (mode `exact`).

        Equal pulses of one sample are an affine map of the state, so any number of samples is too: maps are composed
        pairwise. Noise is drawn once, with the variance of all; bounds cut what is left after each composition.

        Args:
            counts: (first, last) → signed pulse numbers (…, samples, O, K) of samples first..last − 1.
            samples: how many there are.
            device: kind of cell.
            generator: of the noise.
        """
        by_sample = (getattr(self.cells, field.name) for field in fields(Cells))
        maps = device.maps(Cells(*(t.unsqueeze(-3) if t.dim() else t for t in by_sample)))
        together = max(1, STATES_AT_ONCE // self.state.numel())
        variance = torch.zeros_like(self.state)
        state, touched = self.state, torch.zeros_like(self.state, dtype=torch.bool)
        for first in range(0, samples, together):
            numbers = counts(first, min(first + together, samples))
            if maps is None:
                moved = state
                for number in numbers.unbind(-3):
                    moved, more = device.burst(moved, number, self.cells)
                    variance = variance + more
            else:
                factor, shift, more = _composed(*(t.expand_as(numbers) for t in maps(numbers)))
                moved = torch.addcmul(shift, factor, state)
                variance = more.addcmul_(factor.square(), variance)
            pulsed = (numbers != 0).any(-3)
            state = bounded(moved, state, pulsed, self.cells)
            touched |= pulsed
            self.pulses += numbers.abs().sum()
        if device.cycle_noise:
            moved = torch.addcmul(state, normal_like(state, generator), variance.sqrt_())
            state = bounded(moved, state, touched, self.cells)
        self.state = state
        if device.write_noise:
            self.untouched.masked_fill_(touched, 0.0)

    def train_aggregated_(
        self, pulses: ExpectedPulses, device: PulsedDevice, generator: torch.Generator, fuse: bool = False
    ) -> None:
        """All pulses of a mini-batch at once, up and down in random order (mode `aggregated`, see `diffused`).

        Args:
            pulses: expected numbers.
            device: kind of cell.
            generator: of the noise.
            fuse: compute in one fused kernel (torch.compile).
        """
        function = fused(diffused) if fuse else diffused
        noise = normal_like(self.state, generator)
        tensors = (pulses.total, pulses.net, pulses.squares, self.state, noise)
        cells = (self.cells.up, self.cells.down, self.cells.upper, self.cells.lower)
        state = function(device, *(t.flatten() for t in tensors), *(t.flatten() for t in cells))
        self.state = state.view(self.state.shape)
        if device.write_noise:
            self.untouched.mul_(pulses.total.neg().exp_())
        self.pulses += pulses.total.sum()

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, as a checkpoint holds them."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "cells"}
        return own | {field.name: getattr(self.cells, field.name) for field in fields(self.cells)}

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> "CellArray":
        """The array that shares these tensors."""
        names = {field.name for field in fields(Cells)}
        cells = Cells(**{name: tensors[name] for name in names})
        return cls(cells=cells, **{name: tensor for name, tensor in tensors.items() if name not in names})


def diffused(
    device: PulsedDevice,
    total: Tensor,
    net: Tensor,
    squares: Tensor,
    state: Tensor,
    noise: Tensor,
    up: Tensor,
    down: Tensor,
    upper: Tensor,
    lower: Tensor,
) -> Tensor:
    """States after many random pulses up and down in random order, as a diffusion; all tensors of one shape.

    With N↑, N↓ expected pulses and steps a↑(g), a↓(g), the mean follows dg/dt = N↑·a↑ − N↓·a↓ for one unit of time
    (exact for Poisson pulses and linear steps), the variance collects N↑·(a↑² + α↑²σ²) + N↓·(a↓² + α↓²σ²), less what
    binomial counts vary less than Poisson's; each is drawn back by the slope of the steps. Cells of a row or column,
    which share their lines' pulses, vary independently here.

    Args:
        device: kind of cell.
        total, net, squares: moments of the pulse numbers (`ExpectedPulses`).
        state: g.
        noise: standard normal numbers.
        up, down, upper, lower: see `Cells`.
    """
    cells = Cells(up, down, upper, lower, up)  # the reference plays no part
    rising, falling = (total + net) * 0.5, (total - net) * 0.5
    up_step, down_step = device.steps(state, cells)
    up_slope, down_slope = device.slopes(state, cells)
    pull = (falling * down_slope - rising * up_slope).clamp(min=0)
    counting = rising * up_step * up_step + falling * down_step * down_step
    binomial = 1 - squares / total.clamp(min=1e-30)
    cycling = (rising * up * up + falling * down * down) * device.cycle_noise**2
    variance = (counting * binomial + cycling).clamp(min=0) * saturating(2 * pull)
    moved = state + (rising * up_step - falling * down_step) * saturating(pull) + noise * variance.sqrt()
    return bounded(moved, state, total > 0, cells)


def saturating(pull: Tensor) -> Tensor:
    """φ(Λ) = (1 − e^−Λ)/Λ, 1 at 0: what is left of a unit drift against a pull Λ; shape of pull, ≥ 0.

    >>> saturating(torch.tensor([0.0, 1.0]))
    tensor([1.0000, 0.6321])
    """
    series = 1 - pull * (1 / 2 - pull * (1 / 6 - pull / 24))
    return torch.where(pull > 0.02, (1 - torch.exp(-pull)) / pull, series)


def _composed(factor: Tensor, shift: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The affine map of samples (dimension −3) one after the other, composed pairwise."""
    while factor.shape[-3] > 1:
        odd = None
        if factor.shape[-3] % 2:
            odd = [t[..., -1:, :, :] for t in (factor, shift, variance)]
            factor, shift, variance = (t[..., :-1, :, :] for t in (factor, shift, variance))
        first, then = [
            [t[..., start::2, :, :] for t in (factor, shift, variance)] for start in (0, 1)
        ]
        factor = first[0] * then[0]
        shift = torch.addcmul(then[1], then[0], first[1])
        variance = torch.addcmul(then[2], then[0].square(), first[2])
        if odd is not None:
            factor, shift, variance = (
                torch.cat([t, last], -3) for t, last in zip((factor, shift, variance), odd, strict=True)
            )
    return factor.squeeze(-3), shift.squeeze(-3), variance.squeeze(-3)
