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
        pulses: pulses so far, a scalar.
    """

    cells: Cells
    state: Tensor
    offset: Tensor
    pulses: Tensor

    @classmethod
    def new(cls, device: PulsedDevice, shape: tuple[int, ...], generator: torch.Generator) -> "CellArray":
        """An array of drawn cells that hold the weight 0, as far as their bounds allow."""
        cells = device.draw(shape, generator)
        where = generator.device
        offset = torch.zeros(shape if device.write_noise else (), device=where)
        array = cls(cells, torch.zeros(shape, device=where), offset, torch.zeros((), device=where))
        array.write_(torch.zeros(shape, device=where), device, generator)
        return array

    def write_(self, weights: Tensor, device: PulsedDevice, generator: torch.Generator) -> None:
        """Hold these weights, cut to each cell's bounds; write noise is drawn."""
        wanted = weights + self.cells.reference
        self.state.copy_(torch.minimum(torch.maximum(wanted, self.cells.lower), self.cells.upper))
        self._redraw_(torch.ones_like(self.state, dtype=torch.bool), device, generator)

    def _redraw_(self, pulsed: Tensor, device: PulsedDevice, generator: torch.Generator) -> None:
        """New write noise for the cells that were pulsed."""
        if device.write_noise:
            drawn = normal_like(self.state, generator).mul_(device.write_noise * device.dw_min)
            self.offset.copy_(torch.where(pulsed, drawn, self.offset))

    def weights(self) -> Tensor:
        """What the cells show: w = g − r + write noise."""
        return self.state - self.cells.reference + self.offset

    def columns(self, first: int, number: int) -> "CellArray":
        """Some columns, as an array that shares their cells."""

        def part(tensor: Tensor) -> Tensor:
            return tensor.narrow(-1, first, number) if tensor.dim() else tensor

        cells = self.cells
        return CellArray(
            Cells(part(cells.up), part(cells.down), part(cells.upper), part(cells.lower), part(cells.reference)),
            part(self.state),
            part(self.offset),
            self.pulses,
        )

    def pulse_(self, direction: Tensor, device: PulsedDevice, generator: torch.Generator) -> None:
        """One pulse for each cell where direction is +1 or −1, none where it is 0."""
        self.state.copy_(pulse(device, self.state, direction, self.cells, generator))
        self._redraw_(direction != 0, device, generator)
        self.pulses += direction.abs().sum()

    def train_(
        self,
        counts: Callable[[int, int], Tensor],
        samples: int,
        device: PulsedDevice,
        generator: torch.Generator,
        fuse: bool = False,
    ) -> None:
        """Pulses of samples one after the other, each finding the state that the last one left (mode `exact`).

        Equal pulses of one sample are an affine map of the state, so any number of samples is too: maps are composed
        pairwise. Noise is drawn once, with the variance of all; bounds cut what is left after each composition.

        Args:
            counts: (first, last) → signed pulse numbers (…, samples, O, K) of samples first..last − 1.
            samples: how many there are.
            device: kind of cell.
            generator: of the noise.
            fuse: compute in fused kernels (torch.compile).
        """
        bounds = (self.cells.lower, self.cells.upper)
        constants = device.constants(self.cells)
        if constants is not None:
            constants = tuple(t.unsqueeze(-3) for t in constants)
        together = max(1, STATES_AT_ONCE // self.state.numel())
        state, variance = self.state.clone(), torch.zeros_like(self.state)
        touched = torch.zeros_like(self.state)
        for first in range(0, samples, together):
            numbers = counts(first, min(first + together, samples))
            if constants is None:
                for number in numbers.unbind(-3):
                    moved, more = device.pulse_by_pulse(state, number, self.cells)
                    state, variance = bounded(moved, state, number != 0, self.cells), variance + more
                touched += numbers.abs().sum(-3)
            elif numbers.shape[-3] == 1:
                (fused(moved_) if fuse else moved_)(device, numbers, state, variance, touched, *bounds, *constants)
            else:
                maps = (fused(mapped) if fuse else mapped)(device, numbers, *constants)
                factor, shift, more = _composed(*maps)
                variance = more.addcmul_(factor.square(), variance)
                pulsed = numbers.abs().sum(-3)
                state = bounded(torch.addcmul(shift, factor, state), state, pulsed > 0, self.cells)
                touched += pulsed
        if device.cycle_noise:
            moved = torch.addcmul(state, normal_like(state, generator), variance.sqrt_())
            state = bounded(moved, state, touched > 0, self.cells)
        self.state.copy_(state)
        self._redraw_(touched > 0, device, generator)
        self.pulses += touched.sum()

    def train_aggregated_(
        self,
        pulses: ExpectedPulses,
        signs: Tensor,
        device: PulsedDevice,
        generator: torch.Generator,
        fuse: bool = False,
    ) -> None:
        """All pulses of some samples at once, in random order (mode `aggregated`, see `diffused_`).

        Args:
            pulses: their moments.
            signs: of the columns, (…, 1, K), ±1: what choppers make of up and down.
            device: kind of cell.
            generator: of the noise.
            fuse: compute in one fused kernel (torch.compile).
        """
        cells = (self.cells.up, self.cells.down, self.cells.upper, self.cells.lower)
        moments = (pulses.total, pulses.net, pulses.power, pulses.slot, pulses.samples)
        noise = normal_like(pulses.total, generator)
        (fused(diffused_) if fuse else diffused_)(device, *moments, signs, self.state, noise, *cells)
        if device.write_noise:
            unpulsed = torch.exp(-pulses.total)
            uniform = torch.rand(unpulsed.shape, generator=generator, device=unpulsed.device)
            self._redraw_(uniform >= unpulsed, device, generator)
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


def diffused_(
    device: PulsedDevice,
    total: Tensor,
    net: Tensor,
    power: Tensor,
    slot: Tensor,
    samples: Tensor,
    signs: Tensor,
    state: Tensor,
    noise: Tensor,
    up: Tensor,
    down: Tensor,
    upper: Tensor,
    lower: Tensor,
) -> None:
    """Move states by many pulses, samples in random order, as a diffusion; tensors of one shape, or broadcast to it.

    With N↑, N↓ expected pulses, steps a↑(g), a↓(g) and Λ = −(N↑·da↑/dg − N↓·da↓/dg), the pull of the steps' slopes:
    * mean: dg/dt = N↑·a↑ − N↓·a↓ for one unit of time, so g + (N↑·a↑ − N↓·a↓)·φ(Λ), φ(Λ) = (1 − e^−Λ)/Λ (exact for
      Poisson pulses and linear steps);
    * variance: pulses count at random, N↑·a↑² + N↓·a↓² (binomially, so a little less), and differ, N↑·α↑²σ² + N↓·α↓²σ²;
      both are forgotten as φ(2Λ). Which samples came last matters, too: Σm²·a²·(φ(2Λ) − φ(Λ)²), a sample's place in
      the order being uniform.
    Cells of a row or column, which share their lines' pulses, vary independently here; so do steps within one burst.

    Args:
        device: kind of cell.
        total: moments of the pulse numbers, these five: see `ExpectedPulses`.
        net: Σ ±m.
        power: Σ m².
        slot: mean of 1/BL.
        samples: number of samples.
        signs: of the columns, ±1.
        state: g, changed.
        noise: standard normal numbers.
        up: α↑, these four: see `Cells`.
        down: α↓.
        upper: b_max.
        lower: b_min.
    """
    cells = Cells(up, down, upper, lower, up)  # the reference plays no part
    signed = net * signs
    rising, falling = (total + signed) * 0.5, (total - signed) * 0.5
    up_step, down_step = device.steps(state, cells)
    up_slope, down_slope = device.slopes(state, cells)
    pull = (falling * down_slope - rising * up_slope).clamp(min=0)
    once, twice = saturating(pull), saturating(2 * pull)
    inverse = 1 / total.clamp(min=1e-30)
    square_step = (rising * up_step * up_step + falling * down_step * down_step) * inverse
    counting = (total - power * slot).clamp(min=0) * twice
    unequal = (power - net * net / samples).clamp(min=0) * (samples / (samples - 1).clamp(min=1))
    ordering = unequal * (twice - once * once).clamp(min=0)
    cycling = (rising * up * up + falling * down * down) * device.cycle_noise**2 * twice
    variance = square_step * (counting + ordering) + cycling
    moved = state + (rising * up_step - falling * down_step) * once + noise * variance.sqrt()
    state.copy_(bounded(moved, state, total > 0, cells))


def moved_(
    device: PulsedDevice,
    numbers: Tensor,
    state: Tensor,
    variance: Tensor,
    touched: Tensor,
    lower: Tensor,
    upper: Tensor,
    *constants: Tensor,
) -> None:
    """Apply one sample's pulse numbers (…, 1, O, K) to state, variance and pulses so far, (…, O, K), all changed."""
    factor, shift, more = (t.squeeze(-3) for t in device.affine(numbers, *constants))
    number = numbers.squeeze(-3)
    moved = torch.minimum(torch.maximum(factor * state + shift, lower), upper)
    state.copy_(torch.where(number == 0, state, moved))
    variance.copy_(factor * factor * variance + more)
    touched.add_(number.abs())


def mapped(device: PulsedDevice, numbers: Tensor, *constants: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`PulsedDevice.affine` as a function."""
    return device.affine(numbers, *constants)


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
        first, then = [[t[..., start::2, :, :] for t in (factor, shift, variance)] for start in (0, 1)]
        factor = first[0] * then[0]
        shift = torch.addcmul(then[1], then[0], first[1])
        variance = torch.addcmul(then[2], then[0].square(), first[2])
        if odd is not None:
            factor, shift, variance = (
                torch.cat([t, last], -3) for t, last in zip((factor, shift, variance), odd, strict=True)
            )
    return factor.squeeze(-3), shift.squeeze(-3), variance.squeeze(-3)
