"""One array of pulsed cells: what it holds, how it is pulsed, what it shows."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from energytl.analog.fused import fused
from energytl.analog.noise import normal_like
from energytl.devices.pulsed import Cells, PulsedDevice, bounded, pulse
from energytl.optim.pulses import ExpectedPulses

STATES_AT_ONCE = 2**17
"""How many cells times samples are worked on at once: what fits a core's cache."""

LARGE = 2**14
"""Cells from which on samples are applied one by one, a few in one kernel, rather than composed pairwise first."""

MANY = 2**20
"""Cells times samples from which on a fused kernel is worth its call where samples are composed."""

UNROLLED = 5
"""Samples in one kernel."""


@dataclass
class CellArray:
    """Cells and their states; every tensor is (…, O, K) or broadcasts to it. Methods that end in _ change it.

    Attributes:
        cells: the population.
        state: physical states g.
        offset: write noise that the cells show; NaN where a pulse came since and it waits to be drawn; a scalar 0 if
            the device has none.
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
        # a checkpoint's size is mostly cells': random offsets, drawn once, need no more digits than bfloat16 has
        cells = replace(cells, reference=cells.reference.bfloat16())
        offset = torch.zeros(shape if device.write_noise else (), dtype=torch.bfloat16, device=where)
        pulses = torch.zeros((), dtype=torch.float64, device=where)
        array = cls(cells, torch.zeros(shape, device=where), offset, pulses)
        array.write_(torch.zeros(shape, device=where), device, generator)
        return array

    def write_(self, weights: Tensor, device: PulsedDevice, generator: torch.Generator) -> None:
        """Hold these weights, cut to each cell's bounds; write noise is drawn."""
        self.state.copy_((weights + self.cells.reference).clamp(self.cells.lower, self.cells.upper))
        self._unsettle_(torch.ones_like(self.state, dtype=torch.bool))

    def _unsettle_(self, pulsed: Tensor) -> None:
        """The write noise of cells that were pulsed is to be drawn anew."""
        if self.offset.dim():
            self.offset.masked_fill_(pulsed, math.nan)

    def show_(self, device: PulsedDevice, generator: torch.Generator) -> Tensor:
        """What the cells show, w = g − r + write noise, which is drawn where pulses came since it was last."""
        if self.offset.dim():
            drawn = _normal(self.state, generator).mul_(device.write_noise * device.dw_min)
            self.offset.copy_(torch.where(self.offset.isnan(), drawn, self.offset))
        return self.state - self.cells.reference + self.offset

    def columns(self, first: int, number: int) -> "CellArray":
        """Some columns, as an array of their own, whose pulses count here; `put_` takes them back."""

        def part(tensor: Tensor) -> Tensor:
            return tensor.narrow(-1, first, number).contiguous() if tensor.dim() else tensor

        cells = self.cells
        return CellArray(
            Cells(part(cells.up), part(cells.down), part(cells.upper), part(cells.lower), part(cells.reference)),
            part(self.state),
            part(self.offset),
            self.pulses,
        )

    def put_(self, first: int, columns: "CellArray") -> None:
        """Take up the states of such columns."""
        for own, new in ((self.state, columns.state), (self.offset, columns.offset)):
            if own.dim():
                own.narrow(-1, first, new.shape[-1]).copy_(new)

    def chosen(self, index: Tensor) -> "CellArray":
        """Any columns, as an array of their own, whose pulses count here; `put_chosen_` takes them back."""
        tensors = {name: t.index_select(-1, index) if t.dim() else t for name, t in self.tensors().items()}
        return CellArray.of(tensors)

    def put_chosen_(self, index: Tensor, columns: "CellArray") -> None:
        """Take up the states of such columns."""
        for own, new in ((self.state, columns.state), (self.offset, columns.offset)):
            if own.dim() and own is not new:
                own.index_copy_(-1, index, new)

    def pulse_(self, direction: Tensor, device: PulsedDevice, generator: torch.Generator) -> None:
        """One pulse for each cell where direction is +1 or −1, none where it is 0."""
        self.state.copy_(pulse(device, self.state, direction, self.cells, generator))
        self._unsettle_(direction != 0)
        self.pulses += direction.abs().sum()

    def train_(
        self,
        counts: Callable[[int, int], Tensor],
        samples: int,
        device: PulsedDevice,
        generator: torch.Generator,
        fuse: bool = False,
        signs: Tensor | None = None,
        ends: Tensor | None = None,
    ) -> None:
        """Pulses of samples one after the other, each finding the state that the last one left (mode `exact`).

        Equal pulses of one sample are an affine map of the state, so any number of samples is too. On small arrays
        many maps are composed pairwise before one is applied; on large ones, and where bounds must cut in between,
        samples are applied in turn, a few in one kernel. Noise is drawn once, with the variance of all.

        Args:
            counts: (first, last) → signed pulse numbers (…, samples, O, K) of samples first..last − 1.
            samples: how many there are.
            device: kind of cell.
            generator: of the noise.
            fuse: compute in fused kernels (torch.compile).
            signs: of the columns, (…, 1, K), ±1: what choppers make of up and down; None: all 1.
            ends: of the columns, (K,): how many samples concern it, the first ones; None: all.
        """
        state, variance = self.state.clone(), torch.zeros_like(self.state)
        touched = torch.zeros_like(self.state)
        bounds = (self.cells.upper, self.cells.lower)
        if signs is None:
            signs = torch.ones((1, state.shape[-1]), device=state.device)
        if ends is None:
            ends = torch.full((state.shape[-1],), samples, device=state.device)
        large = self.state.numel() >= LARGE
        many = fuse and self.state.numel() * samples >= MANY
        fuse = fuse and large
        constants = (fused(constants_of) if fuse else constants_of)(device, self.cells.up, self.cells.down, *bounds)
        one_by_one = fused(in_order_) if fuse else in_order_
        in_turn = large or not device.inside
        together = UNROLLED if in_turn or constants is None else max(1, STATES_AT_ONCE // self.state.numel())
        for first in range(0, samples, together):
            numbers = counts(first, min(first + together, samples))
            order = torch.arange(first, first + numbers.shape[-3], device=state.device)
            factors = signs.unsqueeze(-3) * (order.unsqueeze(-1) < ends).unsqueeze(-2)
            if constants is None:
                for number in (numbers * factors).unbind(-3):
                    moved, more = device.pulse_by_pulse(state, number, self.cells)
                    state = bounded(moved, state, number != 0, self.cells)
                    variance += more
                    touched += number.abs()
            elif in_turn:
                missing = together - numbers.shape[-3]
                if fuse and missing:  # so that one kernel serves all
                    numbers, factors = (F.pad(t, (0, 0, 0, 0, 0, missing)) for t in (numbers, factors))
                one_by_one(device, numbers, factors, state, variance, touched, *bounds, *constants)
            else:
                numbers = numbers * factors
                by_sample = (t.unsqueeze(-3) for t in constants)
                maps = (fused(affine) if many else affine)(device, numbers, *by_sample)
                factor, shift, more = _composed(*maps)
                variance = more.addcmul_(factor.square(), variance)
                pulsed = numbers.abs().sum(-3)
                state = bounded(torch.addcmul(shift, factor, state), state, pulsed > 0, self.cells)
                touched += pulsed
        if device.cycle_noise:
            noise = _normal(state, generator)
            (fused(disturb_) if fuse else disturb_)(state, variance, touched, noise, *bounds)
        self.state.copy_(state)
        if device.write_noise:
            self._unsettle_(touched > 0)
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
        noise = _normal(pulses.total, generator)
        (fused(diffused_) if fuse else diffused_)(device, *moments, signs, self.state, noise, *cells)
        if device.write_noise:
            unpulsed = torch.exp(-pulses.total)
            uniform = torch.rand(unpulsed.shape, generator=generator, device=unpulsed.device)
            self._unsettle_(uniform >= unpulsed)
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
    samples: float,
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
    up, down = torch.minimum(up, upper), torch.minimum(down, -lower)  # a larger step ends at the bound
    cells = Cells(up, down, upper, lower, up)  # the reference plays no part
    rising = torch.addcmul(total, net, signs) * 0.5
    falling = total - rising
    up_step, down_step = device.steps(state, cells)
    up_slope, down_slope = device.slopes(state, cells)
    pull = (falling * down_slope - rising * up_slope).clamp(min=1e-20)
    lost = torch.expm1(-pull)  # e^−Λ − 1
    once = -lost / pull
    twice = once * (1 + lost / 2)  # φ(2Λ)
    square_step = (rising * up_step.square() + falling * down_step.square()) / total.clamp(min=1e-30)
    counting = (total - power * slot).clamp(min=0) * twice
    unequal = (power - net.square() / samples).clamp(min=0) * (samples / max(samples - 1, 1))
    ordering = unequal * (twice - once.square()).clamp(min=0)
    cycling = (rising * up.square() + falling * down.square()) * twice
    variance = torch.add(square_step * (counting + ordering), cycling, alpha=device.cycle_noise**2)
    moved = state + (rising * up_step - falling * down_step) * once + noise * variance.sqrt()
    state.copy_(bounded(moved, state, total > 0, cells))


def constants_of(
    device: PulsedDevice, up: Tensor, down: Tensor, upper: Tensor, lower: Tensor
) -> tuple[Tensor, ...] | None:
    """`PulsedDevice.constants` as a function of tensors."""
    return device.constants(Cells(up, down, upper, lower, up))  # the reference plays no part


def in_order_(
    device: PulsedDevice,
    numbers: Tensor,
    factors: Tensor,
    state: Tensor,
    variance: Tensor,
    touched: Tensor,
    upper: Tensor,
    lower: Tensor,
    *constants: Tensor,
) -> None:
    """Apply the pulse numbers of a few samples (…, samples, O, K), one after the other.

    Args:
        device: kind of cell.
        numbers: signed pulse numbers, without choppers.
        factors: of samples and columns, (…, samples, 1, K): ±1 by the choppers, 0 where a sample plays no part.
        state: g, changed; this and all others (…, O, K).
        variance: of the state by the pulses' noise, changed.
        touched: pulses so far, changed.
        upper: b_max.
        lower: b_min.
        *constants: of the cells, see `PulsedDevice.constants`.
    """
    g, spread, pulses = state, variance, touched
    for unsigned, sign in zip(numbers.unbind(-3), factors.unbind(-3), strict=True):
        number = unsigned * sign
        factor, shift, more = device.affine(number, *constants)
        moved = (factor * g + shift).clamp(lower, upper)
        g = torch.where(number == 0, g, moved)
        spread = factor * factor * spread + more
        pulses = pulses + number.abs()
    state.copy_(g)
    variance.copy_(spread)
    touched.copy_(pulses)


def affine(device: PulsedDevice, numbers: Tensor, *constants: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`PulsedDevice.affine` as a function of tensors."""
    return device.affine(numbers, *constants)


def disturb_(state: Tensor, variance: Tensor, touched: Tensor, noise: Tensor, upper: Tensor, lower: Tensor) -> None:
    """Add normal noise of that variance to the states of the cells that were touched, cut to their bounds."""
    moved = (state + noise * variance.sqrt()).clamp(lower, upper)
    state.copy_(torch.where(touched > 0, moved, state))


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers; of few, torch's own are faster."""
    if like.numel() < LARGE:
        return torch.randn(like.shape, generator=generator, device=like.device)
    return normal_like(like, generator)


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
