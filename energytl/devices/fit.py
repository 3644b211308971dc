"""Fit soft-bounds cells to measured pulse responses: mean response, spread between cells, and both noises.

The model of a cell is that of `energytl.devices.pulsed`: the state g moves by α·(1 − g/b) + α·σ·ξ with a pulse, is cut
to its bounds, and is seen with an offset redrawn at every pulse, of the standard deviation write_noise·dw_min.
`energytl.devices.kalman` has its likelihood, `energytl.devices.population` the cells of most likelihood and what they
scatter around. What follows here are the units, the fields of a device with their 95 % intervals, and what is refused.

Intervals of means are Student's for the number of cells, as far as it is the cells that scatter, and those of spreads
from the χ² distribution: a device of six measured cells is known no better than six numbers tell. Noises, which all
cells share, have normal intervals of their variances.

What pulses on single cells do not show: the reference cells (their errors are left at 0), and which state is 0. The
middle of the mean range is taken as 0, its ends as ±1. Where cells never come near a bound, bounds and step are known
only together; where they stay there, the step is unknown: the intervals then say so.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from energytl.devices.kalman import Array
from energytl.devices.measured import Measured
from energytl.devices.population import (
    DIFFERENCE,
    SMALLEST_CYCLE_NOISE,
    Population,
    Pulses,
    Start,
    fit_population,
    moved_cells,
)
from energytl.devices.pulsed import Cells, PulsedDevice, SoftBoundsReference, pulse

CONFIDENCE = 0.95
LARGEST_SKEW = 0.95
"""Largest up_down that a fit of few pulses is taken to; at 1 a step would vanish."""

WIDEST_NORMAL = 0.5
"""Relative spread beyond which steps cannot be normal: too many would be negative."""

CLEARLY = 5.0
"""Gain of log-likelihood from which on noise counts as proportional to the step taken (odds of 150 to 1)."""

FEWEST_EXPLAINED = 0.3
"""Share of the variance of what cells show that their fitted curves must explain."""

FINEST, COARSEST = 1e-6, 0.02
"""Resolution of the data that is taken as such, in units of half the range."""

UNREAD = 1e5
"""Variance, in units of half the range, of a read that tells nothing."""

UNKNOWN = 1e4
"""Ratio of the ends of its interval from which on dw_min counts as unknown."""

WRONG_WAY = 5.0
"""Standard deviations of the sum of changes from which on a cell counts as moved the wrong way."""

FITTED = (
    *("dw_min", "dw_min_spread", "up_down", "up_down_spread", "cycle_noise", "write_noise"),
    *("upper_spread", "lower_spread"),
)
"""Fields of a device that a fit finds; its bounds are ±1."""


@dataclass(frozen=True)
class DeviceFit:
    """A fitted device and what it was fitted to.

    Attributes:
        device: in units in which the mean range of the moving cells is ±1.
        intervals: 95 % intervals of the device's fields, by name; and of `zero` and `one`, the conductances of the
            states 0 and 1. Without those that one cell cannot tell.
        zero: conductance of the state 0, in the unit of the data.
        half_range: conductance of the state 1 less that of the state 0.
        measured: the data in units of the device.
        moving: of each measured cell, whether pulses move it.
        cells: most probable cells of the moving ones.
        start: and their states at the first pulse.
        steps: Newton steps that the fit took.
        converged: whether they reached the likelihood's maximum.
        missed: root mean square by which the fitted curves miss what cells show, in units of the device.
        missed_by_noise: the same, as the fitted noises make it.
        proportional: whether the noise of a pulse is proportional to the step that it takes; a device's is not.
    """

    device: SoftBoundsReference
    intervals: dict[str, tuple[float, float]]
    zero: float
    half_range: float
    measured: Measured
    moving: Tensor
    cells: Cells
    start: Tensor
    steps: int
    converged: bool
    missed: float
    missed_by_noise: float
    proportional: bool


def fit(measured: Measured, tell: Callable[[str], None] = lambda said: None) -> DeviceFit:
    """The soft-bounds device of most likelihood; takes seconds for hundreds of cells.

    Args:
        measured: of `energytl.devices.measured.read_csv`.
        tell: is called with a few words as the fit goes on.

    Raises:
        ValueError: in one line, where no pulse moves any cell, pulses move cells the wrong way, or cells do not follow
            soft bounds.

    >>> device = SoftBoundsReference(dw_min=0.2, cycle_noise=0.1, write_noise=0.1)
    >>> directions = torch.tensor([1.0] * 20 + [-1.0] * 20).double().unsqueeze(1).expand(40, 20)
    >>> shown = respond(device, directions, torch.zeros(20).double(), torch.Generator().manual_seed(0))
    >>> found = fit(Measured(tuple("abcdefghijklmnopqrst"), 30 + 10 * shown, directions))
    >>> round(found.device.dw_min, 2), found.device.upper, found.device.lower, found.converged
    (0.2, 1.0, -1.0, True)
    """
    moving = responds(measured)
    if not moving.any():
        raise ValueError("no pulse moves any of the measured devices: what they show is only noise around a constant")
    _require_right_way(measured, moving)
    zero, half = _rough_range(measured.shown[:, moving])
    rough = fit_population(_pulses(measured, moving, zero, half), True, tell=tell)
    high, low = rough.mean[2:4].tolist()
    start = rough.start((high + low) / 2, (high - low) / 2)
    zero, half = zero + half * (high + low) / 2, half * (high - low) / 2
    pulses = _pulses(measured, moving, zero, half)
    population = _likeliest(pulses, start, tell)
    proportional = _likeliest(replace(pulses, proportional=True), population.start(0.0, 1.0), tell)
    if proportional.log_likelihood > population.log_likelihood + CLEARLY:
        pulses, population = replace(pulses, proportional=True), proportional
    missed, missed_by_noise = _missed(pulses, population)
    found = _fields(population, population.mean)
    alone = population.effects.shape[1] == 1
    fields = {name: 0.0 if alone and name.endswith("_spread") else found[name] for name in FITTED}
    device = SoftBoundsReference(log_normal=population.log_normal, **fields)  # type: ignore[arg-type]
    intervals = _intervals(population, pulses.resolution)
    low, high = intervals["dw_min"]
    if high > UNKNOWN * low:
        raise ValueError(
            f"the step of a pulse cannot be told from noise (dw_min lies between {low:.1g} and {high:.1g}): measure "
            "longer runs, or more devices"
        )
    intervals |= {name: tuple(zero + half * end for end in intervals[name]) for name in ("zero", "one")}
    middle, scale = found["zero"], found["one"] - found["zero"]
    zero, half = zero + half * middle, half * scale
    normalised = replace(measured, shown=(measured.shown - zero) / half)
    stuck = 1 - float(moving.double().mean())
    if stuck > 0:
        held = normalised.shown[:, ~moving].nanmean(0)
        device = replace(device, stuck=stuck, stuck_range=float((3 * held.square().mean()).sqrt()))
        count = stats.binomtest(int((~moving).sum()), len(moving))
        intervals["stuck"] = tuple(count.proportion_ci(CONFIDENCE))
    up, down, upper, lower, first = (torch.from_numpy(part) for part in moved_cells(population.cells, middle, scale))
    return DeviceFit(
        device,
        intervals,
        zero,
        half,
        normalised,
        moving,
        Cells(up, down, upper, lower, reference=torch.zeros((), dtype=first.dtype)),
        first,
        population.steps,
        population.converged,
        missed / scale,
        missed_by_noise / scale,
        pulses.proportional,
    )


def _pulses(measured: Measured, moving: Tensor, zero: float, half: float) -> Pulses:
    """The moving cells in units of half their range; read noise is no finer than what the numbers resolve."""
    directions = measured.directions[:, moving].numpy()
    shown = ((measured.shown[:, moving] - zero) / half).numpy()
    apart = np.diff(np.unique(shown[directions != 0]))
    resolution = max(float(apart.min()) / math.sqrt(12), FINEST) if len(apart) else FINEST
    return Pulses(np.nan_to_num(shown), directions > 0, (directions != 0).astype(float), min(resolution, COARSEST))


def _likeliest(pulses: Pulses, start: Start, tell: Callable[[str], None]) -> Population:
    """With log-normal or normal steps."""
    kinds = [fit_population(pulses, True, start, tell)]
    if math.sqrt(kinds[0].between[0]) < WIDEST_NORMAL:
        kinds.append(fit_population(pulses, False, kinds[0].start(0.0, 1.0), tell))
    return max(kinds, key=lambda kind: kind.log_likelihood)


def _fields(population: Population, mean: Array) -> dict[str, float]:
    """Fields of the device whose cells scatter around mean, in units in which its bounds are ±1; its zero and one.

    With the new zero m the steps there are α·(1 − m/b): mean ½(α↑ + α↓) and half difference follow.
    """
    first, difference, upper, lower, _ = mean.tolist()
    unit, spread = population.unit, np.sqrt(population.between)
    step = unit * (math.exp(first) if population.log_normal else first)
    middle, half = (upper + lower) / 2, (upper - lower) / 2
    up, down = (step + unit * difference) * (1 - middle / upper), (step - unit * difference) * (1 - middle / lower)
    dw_min = (up + down) / 2 / half
    sigma = math.exp(population.noises[0])
    return {
        "dw_min": dw_min,
        "dw_min_spread": float(spread[0]) / (1.0 if population.log_normal else first),
        "up_down": min(max((up - down) / (up + down), -LARGEST_SKEW), LARGEST_SKEW),
        "up_down_spread": unit * float(spread[1]) / (dw_min * half),
        "cycle_noise": sigma if sigma > 1.001 * SMALLEST_CYCLE_NOISE else 0.0,
        "write_noise": math.exp(population.noises[1] / 2) / (dw_min * half),
        "upper_spread": float(spread[2]) / half,
        "lower_spread": float(spread[3]) / half,
        "zero": middle,
        "one": upper,
    }


def _intervals(population: Population, resolution: float) -> dict[str, tuple[float, float]]:
    """95 % intervals of the fields, of zero and of one; of spreads only where there are cells to scatter.

    Noises as small as the fit, or the resolution of the data, lets them be may be 0.
    """
    count = population.effects.shape[1]
    found, tail = _fields(population, population.mean), (1 + CONFIDENCE) / 2
    intervals = {}
    names = ("dw_min", "up_down", "zero", "one")
    slopes = np.zeros((len(names), len(population.mean)))
    for number in range(len(population.mean)):
        moved = population.mean.copy()
        moved[number] += DIFFERENCE
        there = _fields(population, moved)
        slopes[:, number] = [(there[name] - found[name]) / DIFFERENCE for name in names]
    for name, slope in zip(names, slopes, strict=True):
        variance = float(slope @ population.covariance @ slope)
        share = min(1.0, float(slope**2 @ population.between) / count / variance) if count > 1 else 0.0
        quantile = float(stats.t.ppf(tail, (count - 1) / max(share, 1e-3) ** 2) if count > 1 else stats.norm.ppf(tail))
        value, error = found[name], quantile * math.sqrt(variance)
        ratio = math.exp(min(error / value, 50.0)) if name == "dw_min" else 1.0
        intervals[name] = (value / ratio, value * ratio) if name == "dw_min" else (value - error, value + error)
    if count > 1:
        names = ("dw_min_spread", "up_down_spread", "upper_spread", "lower_spread")
        quantiles = stats.chi2.ppf([tail, 1 - tail], count - 1) / (count - 1)
        for name, between, within in zip(names, population.between, population.within, strict=False):
            scale = found[name] / math.sqrt(between)
            low, high = np.sqrt(np.maximum((between + within) / quantiles - within, 0.0)) * scale
            intervals[name] = float(low), float(high)
    z = float(stats.norm.ppf(tail))
    errors = np.sqrt(population.of_noises.diagonal())
    least = np.exp(population.noises) <= [1.001 * SMALLEST_CYCLE_NOISE, 1.001 * resolution**2]
    low, high = _of_deviation(math.exp(population.noises[0]), z * 2 * errors[0])
    intervals["cycle_noise"] = 0.0 if least[0] else low, high
    low, high = _of_deviation(1.0, z * errors[1])
    low = 0.0 if least[1] else low
    of_step = math.log(intervals["dw_min"][1] / found["dw_min"])
    intervals["write_noise"] = (
        found["write_noise"] * math.exp(-math.hypot(math.log(low), of_step)) if low else 0.0,
        found["write_noise"] * math.exp(math.hypot(math.log(high), of_step)),
    )
    return intervals


def _of_deviation(value: float, error: float) -> tuple[float, float]:
    """Interval of a standard deviation whose variance has this relative error."""
    return value * math.sqrt(max(0.0, 1 - error)), value * math.sqrt(1 + error)


def _missed(pulses: Pulses, population: Population) -> tuple[float, float]:
    """Root mean square of what cells show less their fitted curves, and as the fitted noises make it.

    Raises:
        ValueError: if the curves explain too little.
    """
    sigma, reading = np.exp(population.noises)
    errors, variances = pulses.innovations(population.cells, np.array([sigma]), np.array([UNREAD]))
    count = pulses.given.sum()
    missed = float((errors**2 * pulses.given).sum() / count)
    by_noise = float(((variances - UNREAD + reading) * pulses.given).sum() / count)
    centred = (pulses.shown - (pulses.shown * pulses.given).sum(0) / pulses.given.sum(0)) * pulses.given
    explained = 1 - missed / float((centred**2).sum() / count)
    if explained < FEWEST_EXPLAINED:
        raise ValueError(
            "soft bounds do not describe these devices: the fitted curves explain "
            f"{max(explained, 0):.0%} of the variance of what they show (a fit needs {FEWEST_EXPLAINED:.0%}), and "
            f"miss it by {math.sqrt(missed) / 2:.0%} of the range; check the columns pulse and direction, or measure "
            "longer runs"
        )
    return math.sqrt(missed), math.sqrt(by_noise)


def _require_right_way(measured: Measured, moving: Tensor) -> None:
    """Refuse cells whose up pulses lower the conductance, or whose down pulses raise it, beyond doubt."""
    directions, shown = measured.directions[1:, moving], measured.shown[:, moving]
    change = torch.where(directions != 0, shown[1:] - shown[:-1], 0.0)
    names = [name for name, moves in zip(measured.names, moving.tolist(), strict=True) if moves]
    for word, sign, moves in (("up", 1, "lower"), ("down", -1, "raise")):
        wrong = sign * (change * (directions == sign)).sum(0) < -WRONG_WAY * _deviation_of_sum(
            change, directions == sign
        )
        if wrong.any():
            blamed = [name for name, is_wrong in zip(names, wrong.tolist(), strict=True) if is_wrong]
            others = f" and {len(blamed) - 3} more" if len(blamed) > 3 else ""
            raise ValueError(
                f"{word} pulses {moves} the conductance of {len(blamed)} of {len(names)} devices "
                f"({', '.join(blamed[:3])}{others}): exchange up and down in the column direction, or leave "
                "these devices out"
            )


def _deviation_of_sum(change: Tensor, counted: Tensor) -> Tensor:
    """Standard deviation of the sum of the counted changes, (N,), from both noises.

    Changes are steps of a walk of variance q and differences of reads of variance r: their variance is q + 2r, their
    covariance with the next one −r, and that of the sum of n changes in m runs n·q + 2m·r.
    """
    count, pairs = counted.sum(0).clamp(min=1), counted[1:] & counted[:-1]
    centred = (change - (change * counted).sum(0) / count) * counted
    variance = centred.square().sum(0) / count
    covariance = (centred[1:] * centred[:-1] * pairs).sum(0) / pairs.sum(0).clamp(min=1)
    walk, read = (variance + 2 * covariance).clamp(min=0), (-covariance).clamp(min=0)
    return (count * walk + 2 * (count - pairs.sum(0)) * read).sqrt()


def respond(device: PulsedDevice, directions: Tensor, start: Tensor, generator: torch.Generator) -> Tensor:
    """What newly drawn cells show after each pulse, (K, N); the first row is before any pulse moves them.

    Args:
        device: kind of cell.
        directions: +1, −1 or 0, (K, N); the first row is not used.
        start: states at the first row, (N,).
        generator: of cells and noise.

    >>> shown = respond(SoftBoundsReference(dw_min=0.5), torch.ones(3, 1), torch.zeros(1), torch.Generator())
    >>> shown.flatten()
    tensor([0.0000, 0.5000, 0.7500])
    """
    cells = device.draw(tuple(start.shape), generator)
    g, states = start, [start]
    for direction in directions[1:]:
        g = pulse(device, g, direction, cells, generator)
        states.append(g)
    shown = torch.stack(states)
    offset = torch.randn(shown.shape, generator=generator, device=generator.device)
    return shown + device.write_noise * device.dw_min * offset


def responds(measured: Measured) -> Tensor:
    """Whether pulses move each cell, (N,): what it shows goes with what it showed before, or with the direction.

    A constant with independent offsets has correlations of about ±1/√K with both; a cell counts as moving where one
    of them is beyond t = 3.3 (one stuck cell in 500 is mistaken).

    >>> steps = torch.arange(20.0).unsqueeze(1)
    >>> responds(Measured(("moving", "stuck"), torch.cat([steps, steps * 7 % 3], 1), torch.ones(20, 2)))
    tensor([ True, False])
    """
    given = measured.directions != 0
    both = given[1:] & given[:-1]
    shown = measured.shown.nan_to_num(0.0)
    beyond = [
        _correlation(shown[1:], other, both).abs() * (both.sum(0) + 3.3**2).sqrt() > 3.3
        for other in (shown[:-1], measured.directions[1:])
    ]
    return beyond[0] | beyond[1]


def _correlation(x: Tensor, y: Tensor, given: Tensor) -> Tensor:
    count = given.sum(0)
    x, y = ((z - (z * given).sum(0) / count) * given for z in (x, y))
    spread = (x.square().sum(0) * y.square().sum(0)).sqrt()
    return torch.where(spread > 0, (x * y).sum(0) / spread, 0.0)


def _rough_range(shown: Tensor) -> tuple[float, float]:
    """Middle and half length of the range in which the median cell moves."""
    low, high = (float(torch.nanquantile(shown, share, 0).median()) for share in (0.05, 0.95))
    return (low + high) / 2, (high - low) / 2
