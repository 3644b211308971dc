"""Cells as random effects: the cells of most likelihood, what they scatter around and by how much, and both noises.

Every cell has five effects: its step (or the step's logarithm), half the difference of its steps up and down, its
bounds, and its state at the first pulse. The first four are normal between cells; σ and the read noise are common to
all. The likelihood of a cell, given these, is that of `energytl.devices.kalman`. The effects are integrated out by
Laplace's approximation, so that what few pulses of one cell cannot tell is taken from the others, and the scatter of
estimates is not mistaken for one of the cells (Davidian & Giltinan 1995, chapter 6); means and variances between cells
are of restricted maximum likelihood (REML), which counts the cells less one. Slopes are finite differences, curvatures
the Fisher information of normal numbers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from energytl.devices.kalman import Array, innovations

EFFECTS = 5
DIFFERENCE = 1e-5
"""Of an effect, for finite differences in double precision; all effects are of the order of 1."""

ITERATIONS, SETTLED = 60, 0.05
"""Newton steps at most, and the gain of log-likelihood that one must promise to be worth taking."""

VARIANCE_STEPS = 50
SMALLEST_STEP, SMALLEST_BOUND, SMALLEST_BETWEEN, SMALLEST_CYCLE_NOISE = 1e-5, 0.02, 1e-5, 0.003
START_VARIANCE = 4.0
"""Of the state at the first pulse; wide, as that is part of the measurement and not of the cells."""

EXTREME_STEPS = (0.05, 20.0)
"""Of a cell at the start of a fit, in units of the median cell's."""

RATES = np.geomspace(1e-3, 0.9, 20)
LARGEST_MOVE = np.array([1.0, 1.0, 0.5, 0.5, 1.0])[:, None]
FRACTIONS, FRACTIONS_OF_CELLS = (1.0, 0.5, 0.15, 0.02, 0.0), (1.0, 0.3, 0.0)


@dataclass(frozen=True)
class Pulses:
    """What N cells showed after each of K pulses, in units in which their range is about ±1.

    Attributes:
        shown: (K, N); 0 where nothing is given.
        rising: whether the pulse was up, (K, N).
        given: 1.0 where a value is given, else 0.0, (K, N).
        resolution: smallest standard deviation that the read noise may have.
        proportional: whether the noise of a pulse is proportional to the step that it takes.
    """

    shown: Array
    rising: NDArray[np.bool_]
    given: Array
    resolution: float
    proportional: bool = False

    def innovations(self, cells: tuple[Array, ...], sigma: Array, reading: Array) -> tuple[Array, Array]:
        """Of the filter, (K, …, N)."""
        return innovations(self.shown, self.rising, cells, sigma, reading, self.proportional)


@dataclass(frozen=True)
class Population:
    """What is known of the cells.

    Attributes:
        effects: of each cell: step (or its ln), half difference of steps, bounds, start, (5, N); steps in
            units of `unit`.
        unit: a typical step.
        log_normal: whether the first effect is ln(step).
        mean, between: means and variances between cells, (5,).
        covariance: of the errors of the means, (5, 5).
        within: what each cell's own error adds to the variance of its effects, mean over cells, (5,).
        noises: ln σ and ln of the read noise's variance, (2,).
        of_noises: covariance of the errors of the noises, (2, 2).
        log_likelihood: marginal.
        steps: Newton steps taken.
        converged: whether another one would gain less than `SETTLED`.
    """

    effects: Array
    unit: float
    log_normal: bool
    mean: Array
    between: Array
    covariance: Array
    within: Array
    noises: Array
    of_noises: Array
    log_likelihood: float
    steps: int
    converged: bool

    @property
    def cells(self) -> tuple[Array, ...]:
        """Steps up and down, bounds and start, each (N,)."""
        return cells_of(self.effects, self.unit, self.log_normal)

    def start(self, middle: float, half: float) -> "Start":
        """Its cells and noises in units in which 0 is what is middle here, and 1 is half."""
        return Start(moved_cells(self.cells, middle, half), self.noises - [0.0, 2 * math.log(half)])


@dataclass(frozen=True)
class Start:
    """Where a fit begins: steps up and down, bounds and start of cells, each (N,), and noises as in `Population`."""

    cells: tuple[Array, ...]
    noises: Array


def moved_cells(cells: tuple[Array, ...], middle: float, half: float) -> tuple[Array, ...]:
    """The same cells in units in which 0 is what is middle here, and 1 is half: steps there are α·(1 − middle/b)."""
    up, down, upper, lower, start = cells
    return (
        up * (1 - middle / upper) / half,
        down * (1 - middle / lower) / half,
        (upper - middle) / half,
        (lower - middle) / half,
        (start - middle) / half,
    )


def cells_of(effects: Array, unit: float, log_normal: bool) -> tuple[Array, ...]:
    """Steps up and down, bounds and start from effects, (5, …)."""
    step, difference, upper, lower, start = effects
    step = np.exp(step) if log_normal else step
    return (
        np.maximum(unit * (step + difference), SMALLEST_STEP),
        np.maximum(unit * (step - difference), SMALLEST_STEP),
        np.maximum(upper, SMALLEST_BOUND),
        np.minimum(lower, -SMALLEST_BOUND),
        start,
    )


def noise_free_start(pulses: Pulses) -> tuple[Array, ...]:
    """Cells whose noise-free curve is nearest to what they showed: steps, upper, lower, start, each (N,).

    For a rate α/|b| the curve is linear in bounds and start, g_k = ρ·g_{k−1} + (1 − ρ)·b, so these follow from least
    squares, and the best of `RATES` is taken. A small ridge holds what the pulses do not show near the range.
    """
    kept = (1 - RATES)[:, None]
    count = pulses.shown.shape[1]
    design = np.zeros((3, len(RATES), count))
    design[2] = 1.0
    normal = np.zeros((len(RATES), count, 3, 3)) + 1e-3 * np.eye(3)
    right = np.zeros((len(RATES), count, 3)) + 1e-3 * np.array([1.0, -1.0, 0.0])
    for row, (value, rising, given) in enumerate(zip(pulses.shown, pulses.rising, pulses.given, strict=True)):
        if row:
            design = design * kept
            design[0] += RATES[:, None] * rising
            design[1] += RATES[:, None] * ~rising
        columns = (design * given).transpose(1, 2, 0)
        normal += columns[..., :, None] * columns[..., None, :]
        right += columns * value[:, None]
    solution = np.linalg.solve(normal, right[..., None])[..., 0]
    explained = (solution * right).sum(-1)
    best = explained.argmax(0)
    upper, lower, start = solution[best, np.arange(count)].T
    upper, lower = np.clip(upper, 0.2, 3.0), np.clip(lower, -3.0, -0.2)
    return RATES[best] * (upper - lower) / 2, upper, lower, start


def fit_population(
    pulses: Pulses, log_normal: bool, first: Start | None = None, tell: Callable[[str], None] = lambda said: None
) -> Population:
    """Cells, their means and variances, and both noises, of maximum marginal likelihood.

    Args:
        pulses: what the cells showed.
        log_normal: whether steps are log-normal between cells; else normal.
        first: where to start; default: from noise-free curves.
        tell: is called with a few words before every Newton step.
    """
    first = first or _first(pulses)
    unit, noises = float(np.median((first.cells[0] + first.cells[1]) / 2)), first.noises
    effects = _effects(first.cells, unit, log_normal)
    least_noises = np.log([SMALLEST_CYCLE_NOISE, pulses.resolution**2])
    mean, between = effects.mean(1), np.array([0.25, 0.05, 0.1, 0.1, START_VARIANCE])
    alone = effects.shape[1] == 1
    covariance = np.zeros((EFFECTS, EFFECTS))
    if alone:
        between = np.full(EFFECTS, START_VARIANCE)
    converged, iteration = False, 0
    for iteration in range(1, ITERATIONS + 1):
        slopes = _slopes(pulses, effects, noises, unit, log_normal)
        if not alone:
            mean, between, covariance = _between(effects, slopes, mean, between)
        step, of_noises, gain = _newton_step(effects, slopes, mean, between, covariance, noises, least_noises)
        tell(f"step {iteration}: log-likelihood {float(slopes.likelihood.sum()):.1f}, still to gain {gain:.2g}")
        if gain < SETTLED:
            converged = True
            break
        effects, noises = _moved(pulses, effects, noises, step, mean, between, unit, log_normal, least_noises)
    precision = slopes.information[:, :EFFECTS, :EFFECTS] + np.diag(1 / between)
    if alone:
        covariance = np.linalg.inv(precision[0])
    total = slopes.likelihood - 0.5 * ((effects.T - mean) ** 2 / between + np.log(between)).sum(1)
    total = total - 0.5 * np.linalg.slogdet(precision)[1]
    within = np.linalg.inv(precision).diagonal(axis1=1, axis2=2).mean(0)
    within = 1 / np.maximum(1 / within - 1 / between, 1e-3 / between)
    return Population(
        *(effects, unit, log_normal, mean, between, covariance, within, noises, of_noises),
        *(float(total.sum()), iteration, converged),
    )


@dataclass(frozen=True)
class _Slopes:
    """Log-likelihood of each cell (N,), slopes (N, 7) and information (N, 7, 7) in effects and noises.

    And the slopes of the effects' information in the noises, (2, N, 5, 5).
    """

    likelihood: Array
    slope: Array
    information: Array
    change: Array


def _effects(cells: tuple[Array, ...], unit: float, log_normal: bool) -> Array:
    """Effects from cells; the inverse of `cells_of`."""
    up, down, upper, lower, start = cells
    step = np.clip((up + down) / 2 / unit, *EXTREME_STEPS)
    return np.stack([np.log(step) if log_normal else step, (up - down) / 2 / unit, upper, lower, start])


def _first(pulses: Pulses) -> Start:
    """Noise-free curves, and the best noises around them."""
    steps, upper, lower, start = noise_free_start(pulses)
    cells = steps, steps, upper, lower, start
    return Start(cells, _first_noises(pulses, cells))


def _first_noises(pulses: Pulses, cells: tuple[Array, ...]) -> Array:
    """The best of a grid, from all noise being read noise to all of it being that of the pulses."""
    both = pulses.given[1:] * pulses.given[:-1]
    change = np.diff(pulses.shown, axis=0)
    variance = ((change**2) * both).sum() / both.sum()
    step = np.median((cells[0] + cells[1]) / 2)
    shares = np.array([0.001, 0.03, 0.2, 0.5, 0.8, 0.97, 0.999])[:, None]
    scale = np.array([0.01, 0.1, 0.5, 1.0])[None]
    reading = np.maximum(shares * scale * variance / 2, pulses.resolution**2).flatten()
    sigma = np.maximum(np.sqrt((1 - shares) * scale * variance) / step, SMALLEST_CYCLE_NOISE).flatten()
    trials = tuple(np.broadcast_to(x, (len(sigma), len(x))) for x in cells)
    best = _log_likelihood(pulses, trials, sigma[:, None], reading[:, None]).sum(1).argmax()
    return np.log([sigma[best], reading[best]])


def _log_likelihood(pulses: Pulses, cells: tuple[Array, ...], sigma: Array, reading: Array) -> Array:
    """Of each trial and cell, (…, N)."""
    errors, variances = pulses.innovations(cells, sigma, reading)
    given = pulses.given.reshape(len(pulses.given), *[1] * (errors.ndim - 2), -1)
    return -0.5 * ((np.log(variances) + errors**2 / variances) * given).sum(0)


def _slopes(pulses: Pulses, effects: Array, noises: Array, unit: float, log_normal: bool) -> _Slopes:
    trials, noise_trials = np.repeat(effects[:, None], 1 + EFFECTS, 1), np.repeat(noises[:, None], 3, 1)
    for number in range(EFFECTS):
        trials[number, 1 + number] += DIFFERENCE
    for number in range(2):
        noise_trials[number, 1 + number] += DIFFERENCE
    cells = tuple(np.broadcast_to(x, (3, *x.shape)) for x in cells_of(trials, unit, log_normal))
    sigma, reading = np.exp(noise_trials)[:, :, None, None]
    errors, variances = pulses.innovations(cells, sigma, reading)
    given = pulses.given[:, None]
    in_effects = [(x[:, :, 1:] - x[:, :, :1]) / DIFFERENCE * given[:, :, None] for x in (errors, variances)]
    in_noises = [(x[:, 1:, 0] - x[:, :1, 0]) / DIFFERENCE * given for x in (errors, variances)]
    error, variance = errors[:, 0, 0], variances[:, 0, 0]
    error_slope, variance_slope = (np.concatenate([x[:, 0], y], 1) for x, y in zip(in_effects, in_noises, strict=True))
    surprise = error**2 / variance
    likelihood = -0.5 * ((np.log(variance) + surprise) * pulses.given).sum(0)
    by_error, by_variance = (error / variance)[:, None], (0.5 * (1 - surprise) / variance)[:, None]
    slope = -(error_slope * by_error + variance_slope * by_variance).sum(0).T
    errors_by, variances_by = in_effects
    of_effects = [
        _information(errors_by[:, number], variances_by[:, number], variances[:, number, 0]) for number in range(3)
    ]
    change = (np.stack(of_effects[1:]) - of_effects[0]) / DIFFERENCE
    return _Slopes(likelihood, slope, _information(error_slope, variance_slope, variance), change)


def _information(error_slope: Array, variance_slope: Array, variance: Array) -> Array:
    """Fisher information of normal numbers, (N, P, P), from slopes (K, P, N) of their means and variances (K, N)."""
    by_error = error_slope / np.sqrt(variance)[:, None]
    by_variance = variance_slope / (variance * math.sqrt(2))[:, None]
    both = np.concatenate([by_error, by_variance]).transpose(2, 1, 0)
    return both @ both.transpose(0, 2, 1)


def _between(effects: Array, slopes: _Slopes, mean: Array, between: Array) -> tuple[Array, Array, Array]:
    """Means (5,) and variances (5,) between cells, covariance (5, 5) of the means' errors, by REML.

    Each cell is a measurement of its effects, with the curvature J of its likelihood as precision. At the maximum the
    expected squares are D: Σ(û² + Var û) = N·D, solved for D by iterating D ← Σû²/(N − ΣVar û/D) (MacKay 1992), which,
    other than EM steps, also gets to a D of 0.
    """
    information = slopes.information[:, :EFFECTS, :EFFECTS]
    pull = (information @ effects.T[..., None])[..., 0] + slopes.slope[:, :EFFECTS]
    for _ in range(VARIANCE_STEPS):
        posterior = np.linalg.inv(information + np.diag(1 / between))
        # W = (D + J⁻¹)⁻¹ = D⁻¹ − D⁻¹·(J + D⁻¹)⁻¹·D⁻¹, written without differences of large numbers
        weight = (information @ posterior) / between
        covariance = np.linalg.inv(weight.sum(0) + 1e-9 * np.eye(EFFECTS))  # no cell may tell an effect
        mean = covariance @ ((posterior @ pull[..., None])[..., 0] / between).sum(0)
        likeliest = (posterior @ (pull + mean / between)[..., None])[..., 0]
        shrunk = np.eye(EFFECTS) - posterior / between
        of_mean = (shrunk @ covariance @ shrunk.transpose(0, 2, 1)).diagonal(axis1=1, axis2=2)
        unknown = (posterior.diagonal(axis1=1, axis2=2) + of_mean).sum(0) / between
        known = np.maximum(len(pull) - unknown, 1e-3)
        between = np.maximum(((likeliest - mean) ** 2).sum(0) / known, SMALLEST_BETWEEN)
        between[-1] = START_VARIANCE
    return mean, between, covariance


@dataclass(frozen=True)
class _Step:
    """Of effects (5, N), their means (5,) and the noises (2,); the slope that Laplace's approximation adds to these."""

    effects: Array
    mean: Array
    noises: Array
    correction: Array


def _newton_step(
    effects: Array,
    slopes: _Slopes,
    mean: Array,
    between: Array,
    covariance: Array,
    noises: Array,
    least_noises: Array,
) -> tuple[_Step, Array, float]:
    """The step, the covariance of the noises' errors, and the gain of log-likelihood that the step promises."""
    slope = slopes.slope[:, :EFFECTS] - (effects.T - mean) / between
    posterior = np.linalg.inv(slopes.information[:, :EFFECTS, :EFFECTS] + np.diag(1 / between))
    cross = slopes.information[:, :EFFECTS, EFFECTS:]
    correction = -0.5 * np.einsum("nij,pnji->p", posterior, slopes.change)
    of_slope = slopes.slope[:, EFFECTS:].sum(0) + correction - np.einsum("nip,nij,nj->p", cross, posterior, slope)
    information = slopes.information[:, EFFECTS:, EFFECTS:].sum(0) - np.einsum(
        "nip,nij,njq->pq", cross, posterior, cross
    )
    of_means = np.einsum("nip,nij->pj", cross, posterior) / between
    information = information - of_means @ covariance @ of_means.T + 1e-9 * np.eye(2)
    free = (noises > least_noises + 1e-9) | (of_slope > 0)
    of_noises = np.zeros(2)
    if free.any():
        of_noises[free] = np.linalg.solve(information[np.ix_(free, free)], of_slope[free])
    gain = 0.5 * float(of_slope @ of_noises + np.einsum("ni,nij,nj->", slope, posterior, slope))
    of_noises = np.clip(of_noises, [-1.0, -2.0], [1.0, 2.0])
    move_mean = -covariance @ of_means.T @ of_noises
    moves = np.einsum("nij,nj->in", posterior, slope - cross @ of_noises + move_mean / between)
    moves = np.clip(moves, -LARGEST_MOVE, LARGEST_MOVE)
    return _Step(moves, move_mean, of_noises, correction), np.linalg.inv(information), gain


def _moved(
    pulses: Pulses,
    effects: Array,
    noises: Array,
    step: _Step,
    mean: Array,
    between: Array,
    unit: float,
    log_normal: bool,
    least_noises: Array,
) -> tuple[Array, Array]:
    """Effects and noises after the best share of a Newton step, which may be smaller for single cells."""
    shares = np.array(FRACTIONS)[:, None]
    noise_trials = np.maximum(noises + shares * step.noises, least_noises)
    means = (mean + shares * step.mean).T[:, :, None, None]
    trials = effects[:, None, None] + np.outer(FRACTIONS, FRACTIONS_OF_CELLS)[..., None] * step.effects[:, None, None]
    sigma, reading = np.exp(noise_trials.T)[..., None, None]
    value = _log_likelihood(pulses, cells_of(trials, unit, log_normal), sigma, reading)
    value = value - 0.5 * ((trials - means) ** 2 / between[:, None, None, None]).sum(0)
    choice = value.argmax(1)
    total = value.max(1).sum(1) + (noise_trials - noises) @ step.correction
    best = int(total.argmax())
    return trials[:, best, choice[best], np.arange(effects.shape[1])], noise_trials[best]
