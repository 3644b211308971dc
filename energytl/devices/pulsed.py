"""Memory cells that pulses move up and down: steps, bounds, spread between cells, symmetry points.

A cell's physical state g lies between its own bounds; the weight it shows is w = g − r + write noise, with the fixed
state r of a reference cell. All are in units in which the nominal bounds are near ±1. An up pulse moves g by the step
a↑(g) plus cycle-to-cycle noise, a down pulse by −a↓(g) (Gong 2022; Rasch 2021):

    constant step   a↑ = α↑                        a↓ = α↓
    soft bounds     a↑ = α↑·(1 − g/b_max)          a↓ = α↓·(1 − g/b_min)
    exponential     a↑ = α↑·[1 − A↑·exp(γ↑·z)]₊    a↓ = α↓·[1 − A↓·exp(−γ↓·z)]₊,  z = 2a·g/(b_max − b_min) + b

Noise of one pulse: α·σ·ξ with σ = cycle_noise. After each pulse g is cut to its bounds.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from energytl.allowed import ABOVE_0, FROM_0, SHARE, check, check_value


@dataclass(frozen=True)
class Cells:
    """One drawn population, tensors of one shape (or scalars that broadcast to it).

    Attributes:
        up, down: steps α↑, α↓ at state 0, ≥ 0.
        upper, lower: bounds b_max ≥ 0, b_min ≤ 0.
        reference: state r of the reference cells.
    """

    up: Tensor
    down: Tensor
    upper: Tensor
    lower: Tensor
    reference: Tensor


@dataclass(frozen=True)
class PulsedDevice(ABC):
    """A kind of cell, as the statistics of many.

    Attributes:
        dw_min: step Δw_min of the median cell at state 0.
        dw_min_spread: relative spread of the steps between cells.
        log_normal: whether that spread is log-normal (its σ is then of ln α); else normal.
        up_down: half the difference of up and down steps, in units of dw_min.
        up_down_spread: its standard deviation between cells.
        cycle_noise: standard deviation of the noise of one pulse, in units of the cell's own step at state 0.
        write_noise: standard deviation, in units of dw_min, of the offset that a cell shows; redrawn by every pulse.
        upper, lower: nominal bounds.
        upper_spread, lower_spread: their relative spreads between cells (normal).
        stuck: share of cells that no pulse moves, held at a state within ±stuck_range.
        stuck_range: see stuck.
        pulse_s: length of a pulse, s (Dong 2018: 100 ns).
        pulse_j: energy of a pulse, J (assumption: 1.2 V across 50 µS for 100 ns).
    """

    dw_min: float = 0.01
    dw_min_spread: float = 0.0
    log_normal: bool = False
    up_down: float = 0.0
    up_down_spread: float = 0.0
    cycle_noise: float = 0.0
    write_noise: float = 0.0
    upper: float = 1.0
    lower: float = -1.0
    upper_spread: float = 0.0
    lower_spread: float = 0.0
    stuck: float = 0.0
    stuck_range: float = 0.01
    pulse_s: float = 100e-9
    pulse_j: float = 7.2e-12

    def __post_init__(self) -> None:
        """Refuse what is no device."""
        spreads = ("dw_min_spread", "up_down_spread", "upper_spread", "lower_spread", "stuck_range")
        noises = ("cycle_noise", "write_noise", "pulse_s", "pulse_j")
        check(self, "device", **dict.fromkeys((*spreads, *noises), FROM_0), dw_min=ABOVE_0, stuck=SHARE)
        if not self.lower < 0 < self.upper:
            raise ValueError(f"device.lower is {self.lower} and device.upper {self.upper}; allowed: lower < 0 < upper")
        if not -1 < self.up_down < 1:
            raise ValueError(
                f"device.up_down is {self.up_down}; allowed: between -1 and 1, so that both steps are above 0"
            )

    inside = False
    """Whether mean steps never lead beyond the bounds, so that bounds need not cut between bursts."""

    @abstractmethod
    def steps(self, g: Tensor, cells: Cells) -> tuple[Tensor, Tensor]:
        """Mean steps a↑(g), a↓(g) of one pulse; shape of g."""

    @abstractmethod
    def slopes(self, g: Tensor, cells: Cells) -> tuple[Tensor, Tensor]:
        """Derivatives of `steps`, da↑/dg and da↓/dg; broadcast to the shape of g."""

    @abstractmethod
    def constants(self, cells: Cells) -> tuple[Tensor, ...] | None:
        """What `affine` needs to know of the cells; None if bursts are no affine maps of the state."""

    @abstractmethod
    def affine(self, counts: Tensor, *constants: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Bursts of |counts| equal pulses, up where positive: the state g becomes factor·g + shift.

        Returns factor, shift and the variance that noise adds, each of the shape of counts.
        """

    def burst(self, g: Tensor, counts: Tensor, cells: Cells) -> tuple[Tensor, Tensor]:
        """Mean and variance of the state after |counts| pulses, up where positive, down where negative.

        The bounds do not cut inside a burst; shape of g.
        """
        constants = self.constants(cells)
        if constants is None:
            return self.pulse_by_pulse(g, counts, cells)
        factor, shift, variance = self.affine(counts, *constants)
        return factor * g + shift, variance

    def pulse_by_pulse(self, g: Tensor, counts: Tensor, cells: Cells) -> tuple[Tensor, Tensor]:
        """`burst` without a closed form. The variance leaves out how steps change with the noise."""
        rising, left = counts > 0, counts.abs()
        for done in range(int(left.max()) if left.numel() else 0):
            up, down = self.steps(g, cells)
            g = g + torch.where(rising, up, -down) * (left > done)
        step = torch.where(rising, cells.up, cells.down)
        return g, (step * self.cycle_noise).square() * left

    @abstractmethod
    def symmetry_point(self, cells: Cells) -> Tensor:
        """State at which up and down steps are equal; not finite, or outside the bounds, where there is none."""

    def reference(self, shape: tuple[int, ...], cells: Cells, generator: torch.Generator) -> Tensor:
        """State of the reference cells: none, so 0."""
        return torch.zeros((), device=generator.device)

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Cells:
        """Cells at random, on the generator's device: steps ≥ 0, bounds on their own sides of 0."""

        def normal() -> Tensor:
            return torch.randn(shape, generator=generator, device=generator.device)

        spread = self.dw_min_spread * normal() if self.dw_min_spread else torch.zeros(shape, device=generator.device)
        gain = spread.exp() if self.log_normal else 1 + spread
        skew = self.up_down + (self.up_down_spread * normal() if self.up_down_spread else 0.0)
        high = self.upper * (1 + (self.upper_spread * normal() if self.upper_spread else torch.zeros_like(gain)))
        low = self.lower * (1 + (self.lower_spread * normal() if self.lower_spread else torch.zeros_like(gain)))
        cells = Cells(
            up=(self.dw_min * (gain + skew)).abs(),
            down=(self.dw_min * (gain - skew)).abs(),
            upper=torch.maximum(high, low).abs(),
            lower=-torch.minimum(high, low).abs(),
            reference=torch.zeros((), device=generator.device),
        )
        cells = replace(cells, reference=self.reference(shape, cells, generator))
        if not self.stuck:
            return cells
        stuck = torch.rand(shape, generator=generator, device=generator.device) < self.stuck
        held = (2 * torch.rand(shape, generator=generator, device=generator.device) - 1) * self.stuck_range
        held = held.clamp(cells.lower, cells.upper)
        up, down, upper, lower, reference = _parts(cells)
        return Cells(
            up.masked_fill(stuck, 0.0),
            down.masked_fill(stuck, 0.0),
            torch.where(stuck, held, upper),
            torch.where(stuck, held, lower),
            reference,
        )

    def nominal(self) -> Cells:
        """The cell without any spread, as scalars; its reference is the symmetry point of such a cell, or 0."""
        spreads = [field.name for field in fields(self) if field.name.endswith("_spread")]
        plain = replace(self, **dict.fromkeys([*spreads, "stuck"], 0.0))  # type: ignore[arg-type]
        return plain.draw((), torch.Generator().manual_seed(0))

    def require_symmetry_point(self, name: str = "device") -> None:
        """Refuse a device whose weight has no symmetry point inside its bounds.

        Args:
            name: of the setting that is to blame.

        Raises:
            ValueError: naming the point and the bounds.
        """
        cells = self.nominal()
        point = float(self.symmetry_point(cells))
        low, high = float(cells.lower), float(cells.upper)
        reference = float(cells.reference)
        if not low < point < high:
            raise ValueError(
                f"{name} {type(self).__name__} has no symmetry point inside its bounds ({low:g} to {high:g}; it would "
                f"be at {point:g}): Tiki-Taka needs one; set up_down nearer to 0 or take a device with soft bounds"
            )
        if not low < reference < high:
            raise ValueError(
                f"{name} {type(self).__name__} has its reference at {reference:g}, outside its bounds ({low:g} to "
                f"{high:g}): set reference_skew nearer to 0"
            )


def _parts(cells: Cells) -> list[Tensor]:
    return [getattr(cells, field.name) for field in fields(cells)]


@dataclass(frozen=True)
class ConstantStep(PulsedDevice):
    """Every pulse moves the state by the same step, whatever the state, up to the bounds.

    >>> device = ConstantStep(dw_min=0.1)
    >>> float(device.burst(torch.zeros(()), torch.tensor(3.0), device.nominal())[0])
    0.30000001192092896
    """

    def steps(self, g: Tensor, cells: Cells) -> tuple[Tensor, Tensor]:  # noqa: D102
        return cells.up.expand_as(g), cells.down.expand_as(g)

    def slopes(self, g: Tensor, cells: Cells) -> tuple[Tensor, Tensor]:  # noqa: D102
        zero = torch.zeros((), device=g.device)
        return zero, zero

    def constants(self, cells: Cells) -> tuple[Tensor, ...]:  # noqa: D102
        return cells.up, cells.down

    def affine(self, counts: Tensor, *constants: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: D102
        up, down = constants
        step = torch.where(counts > 0, up, down)
        return torch.ones_like(counts), step * counts, (step * self.cycle_noise).square() * counts.abs()

    def symmetry_point(self, cells: Cells) -> Tensor:  # noqa: D102
        nowhere = torch.full_like(cells.up, float("inf"))
        return torch.where(cells.up == cells.down, torch.zeros_like(cells.up), nowhere)


@dataclass(frozen=True)
class SoftBounds(PulsedDevice):
    """Steps shrink linearly towards the bounds (Fusi & Abbott 2007); w = g."""

    inside = True

    def steps(self, g: Tensor, cells: Cells) -> tuple[Tensor, Tensor]:  # noqa: D102
        return soft_bounds_steps(g, cells)

    def slopes(self, g: Tensor, cells: Cells) -> tuple[Tensor, Tensor]:  # noqa: D102
        return -cells.up / cells.upper, -cells.down / cells.lower

    def constants(self, cells: Cells) -> tuple[Tensor, ...]:  # noqa: D102
        return soft_bounds_constants(cells, self.cycle_noise)

    def affine(self, counts: Tensor, *constants: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: D102
        return soft_bounds_affine(counts, *constants)

    def symmetry_point(self, cells: Cells) -> Tensor:  # noqa: D102
        return soft_bounds_symmetry_point(cells)


@dataclass(frozen=True)
class SoftBoundsReference(SoftBounds):
    """Soft bounds, read against a reference cell that is set to the symmetry point, but for an error (Gong 2022).

    Attributes:
        subtract_symmetry_point: whether the reference is set to each cell's symmetry point; else near 0.
        reference_skew: mean error of the reference (Fagbohungbe 2025: symmetry-point skew).
        reference_spread: standard deviation of that error between cells (symmetry-point variability).
    """

    subtract_symmetry_point: bool = True
    reference_skew: float = 0.0
    reference_spread: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a negative spread."""
        super().__post_init__()
        check_value("device.reference_spread", self.reference_spread, float, FROM_0)

    def reference(self, shape: tuple[int, ...], cells: Cells, generator: torch.Generator) -> Tensor:  # noqa: D102
        error = torch.randn(shape, generator=generator, device=generator.device) * self.reference_spread
        error = error + self.reference_skew
        return error + self.symmetry_point(cells) if self.subtract_symmetry_point else error


@dataclass(frozen=True)
class ExponentialStep(PulsedDevice):
    """Steps that fall exponentially with the state: the fit of Gong et al., Nature Communications 2018.

    Attributes:
        up_amplitude, down_amplitude: A↑, A↓.
        up_rate, down_rate: γ↑, γ↓.
        scale, shift: a and b of z.
    """

    up_amplitude: float = -1.18445
    down_amplitude: float = -0.081404
    up_rate: float = 5.0
    down_rate: float = 5.0
    scale: float = -0.5
    shift: float = -0.5

    def steps(self, g: Tensor, cells: Cells) -> tuple[Tensor, Tensor]:  # noqa: D102
        up, down = self._falls(g, cells)
        return cells.up * (1 - up).clamp(min=0), cells.down * (1 - down).clamp(min=0)

    def slopes(self, g: Tensor, cells: Cells) -> tuple[Tensor, Tensor]:  # noqa: D102
        up, down = self._falls(g, cells)
        per_state = self._per_state(cells)
        return (
            -cells.up * self.up_rate * per_state * up * (up < 1),
            cells.down * self.down_rate * per_state * down * (down < 1),
        )

    def _per_state(self, cells: Cells) -> Tensor:
        """dz/dg; 0 for a stuck cell, whose bounds coincide."""
        return (2 * self.scale / (cells.upper - cells.lower)).nan_to_num(0.0, 0.0, 0.0)

    def _falls(self, g: Tensor, cells: Cells) -> tuple[Tensor, Tensor]:
        z = self._per_state(cells) * g + self.shift
        return self.up_amplitude * (self.up_rate * z).exp(), self.down_amplitude * (-self.down_rate * z).exp()

    def constants(self, cells: Cells) -> None:  # noqa: D102
        return None

    def affine(self, counts: Tensor, *constants: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """There is no such map."""
        raise TypeError("bursts of exponential steps are no affine maps of the state")

    def symmetry_point(self, cells: Cells) -> Tensor:
        """By bisection between the bounds."""
        low, high = cells.lower.clone(), cells.upper.clone()

        def excess(g: Tensor) -> Tensor:
            up, down = self.steps(g, cells)
            return up - down

        crosses = (excess(low) > 0) & (excess(high) < 0)
        for _ in range(50):
            middle = (low + high) / 2
            rises = excess(middle) > 0
            low, high = torch.where(rises, middle, low), torch.where(rises, high, middle)
        return torch.where(crosses, low, torch.full_like(low, float("inf")))


def soft_bounds_steps(g: Tensor, cells: Cells) -> tuple[Tensor, Tensor]:
    """a↑ = α↑·(1 − g/b_max) and a↓ = α↓·(1 − g/b_min) of one pulse (Fusi & Abbott 2007; Gong 2022); shape of g.

    >>> up, down = soft_bounds_steps(torch.tensor([0.0, 0.5, 1.0]), SoftBounds(dw_min=0.1).nominal())
    >>> up, down
    (tensor([0.1000, 0.0500, 0.0000]), tensor([0.1000, 0.1500, 0.2000]))
    """
    return cells.up * (1 - g / cells.upper), cells.down * (1 - g / cells.lower)


def soft_bounds_constants(cells: Cells, cycle_noise: float) -> tuple[Tensor, ...]:
    """For `soft_bounds_affine`: ln ρ↑, ln ρ↓, b_max, b_min, and the variances α²σ²/(1 − ρ²) that many pulses end at."""
    logs, limits = [], []
    for step, bound in ((cells.up, cells.upper), (cells.down, -cells.lower)):
        kept = torch.where(step > 0, (1 - step / bound).clamp(min=1e-30), torch.ones_like(step))  # 1: a stuck cell
        limit = (step * cycle_noise).square() / (1 - kept * kept)
        logs.append(kept.log())
        limits.append(torch.where(step > 0, limit, torch.zeros_like(step)))
    return *logs, cells.upper, cells.lower, *limits


def soft_bounds_affine(
    counts: Tensor,
    log_up: Tensor,
    log_down: Tensor,
    upper: Tensor,
    lower: Tensor,
    up_limit: Tensor,
    down_limit: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Bursts of n pulses in closed form: g → b + (g − b)·ρⁿ, of variance α²σ²·(1 − ρ²ⁿ)/(1 − ρ²), with ρ = 1 − α/|b|.

    A pulse larger than the way to its bound (α > |b|) ends at the bound. Factor, shift, variance; shape of counts.

    >>> constants = soft_bounds_constants(SoftBounds(dw_min=0.1).nominal(), cycle_noise=1.0)
    >>> soft_bounds_affine(torch.tensor(2.0), *constants)
    (tensor(0.8100), tensor(0.1900), tensor(0.0181))
    """
    up = counts.clamp(min=0)
    down, rising = up - counts, (counts > 0).to(counts.dtype)
    factor = torch.exp(up * log_up + down * log_down)
    shift = (lower + (upper - lower) * rising) * (1 - factor)
    variance = (down_limit + (up_limit - down_limit) * rising) * (1 - factor * factor)
    return factor, shift, variance


def soft_bounds_symmetry_point(cells: Cells) -> Tensor:
    """g* = (α↑ − α↓)/(α↑/b_max − α↓/b_min), where up and down steps are equal; 0 for a cell that does not move.

    >>> cells = SoftBounds(dw_min=0.1, up_down=0.2).nominal()
    >>> soft_bounds_symmetry_point(cells)
    tensor(0.2000)
    """
    return ((cells.up - cells.down) / (cells.up / cells.upper - cells.down / cells.lower)).nan_to_num(0.0)


def pulse(
    device: PulsedDevice, g: Tensor, direction: Tensor, cells: Cells, generator: torch.Generator | None
) -> Tensor:
    """The state after one pulse where direction is +1 (up) or −1 (down), none where 0; shape of g.

    Args:
        device: kind of cell.
        g: states.
        direction: −1, 0 or 1.
        cells: of the population.
        generator: of cycle-to-cycle noise; None: without.
    """
    up, down = device.steps(g, cells)
    rising = direction > 0
    moved = torch.where(rising, up, -down)
    if device.cycle_noise and generator is not None:
        noise = torch.randn(g.shape, generator=generator, device=g.device)
        moved = moved + torch.where(rising, cells.up, cells.down) * device.cycle_noise * noise
    return bounded(g + moved * direction.abs(), g, direction != 0, cells)


def bounded(moved: Tensor, before: Tensor, pulsed: Tensor, cells: Cells) -> Tensor:
    """States cut to their bounds; what got no pulse stays as it was, even outside them."""
    return torch.where(pulsed, moved.clamp(cells.lower, cells.upper), before)
