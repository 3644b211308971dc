"""Fit soft-bounds cells to measured pulse responses: mean response, spread between cells, and both noises.

The model of a cell is that of `energytl.devices.pulsed`: the state g moves by α·(1 − g/b) + α·σ·ξ with a pulse, and
is seen with an offset redrawn at every pulse, of the standard deviation write_noise·dw_min:

    g_k = ρ·g_{k−1} + (1 − ρ)·b + α·σ·ξ_k,   ρ = 1 − α/|b|,   shown_k = g_k + ω_k

1. Ignoring that g is cut at its bounds, this is linear and Gaussian, so a Kalman filter (`innovations`) gives its
   exact likelihood: it tells σ (which accumulates) from ω (which does not), and has none of the bias of a regression
   of increments on noisy states. Cells are random effects: steps (normal or ln), up/down difference and bounds are
   normal between cells, and their means and variances are of maximum marginal likelihood (Fisher scoring; cells by
   Gauss-Newton; Laplace's approximation; Davidian & Giltinan 1995). A spread of the estimates is no spread of the
   cells: their errors are taken out.
2. What the linear model leaves out (the cut at the bounds) biases it. So cells of the fitted device are simulated,
   fitted in the same way, and the device is changed until their fit is that of the data (indirect inference:
   Gouriéroux, Monfort & Renault 1993).

What pulses on single cells do not show: the reference cells (their errors are left at 0), and which state is 0. The
middle of the mean range is taken as 0, its ends as ±1. Where cells never come near a bound, bounds and step are known
only together; where they stay there, the step is unknown: the standard errors then say so.

Of 200 simulated cells with 100 pulses up and 100 down, of `presets.reram_om` and of a device with steps of 0.04 (8 data
sets each), the fields are found without bias (within two standard errors of the mean, these being 0.6 to 3 %); one fit
scatters by 2 to 8 %, as the drawn cells do. Two exceptions: an up_down_spread below 0.05 is found too large, by about
0.02, and with steps as coarse as reram_om's the error of cycle_noise (4 %) is up to twice the one stated.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from energytl.devices.measured import Measured
from energytl.devices.pulsed import Cells, PulsedDevice, SoftBoundsReference, pulse

LARGEST_SKEW = 0.95
"""Largest up_down that a fit of few pulses is taken to; at 1 a step would vanish."""

ITERATIONS, ROUNDS, CONVERGED, CLOSE = 60, 4, 0.01, 0.01
SETTLED = 4
"""Iterations after which cells and means are good enough to judge spreads by."""

SIMULATED_PER_CELL, FEWEST_SIMULATED, MOST_SIMULATED = 3, 200, 1600
SMALLEST_STEP, SMALLEST_BOUND, SMALLEST_NOISE = 1e-5, 0.02, 1e-3
WIDEST_NORMAL = 0.5
"""Relative spread beyond which steps cannot be normal: too many would be negative."""

DIFFERENCE = 1e-5
"""Of a parameter, for finite differences in double precision."""

FITTED = (
    *("dw_min", "dw_min_spread", "up_down", "up_down_spread", "cycle_noise", "write_noise"),
    *("upper", "lower", "upper_spread", "lower_spread"),
)
"""Fields of a device that a fit finds."""


@dataclass(frozen=True)
class DeviceFit:
    """A fitted device and what it was fitted to.

    Attributes:
        device: in units in which the mean range of the moving cells is ±1.
        errors: standard errors of the device's fields, by name.
        zero: conductance of the state 0, in the unit of the data.
        half_range: conductance of the state 1 less that of the state 0.
        measured: the data in units of the device.
        moving: of each measured cell, whether pulses move it.
        cells: most probable cells of the moving ones.
        start: and their states at the first pulse.
    """

    device: SoftBoundsReference
    errors: dict[str, float]
    zero: float
    half_range: float
    measured: Measured
    moving: Tensor
    cells: Cells
    start: Tensor


@dataclass(frozen=True)
class _Population:
    """Linear-Gaussian fit: fields of a device, their errors, the cells (5, N), and the log-likelihood."""

    found: dict[str, float]
    errors: dict[str, float]
    effects: Tensor
    log_normal: bool
    log_likelihood: float

    @property
    def cells(self) -> tuple[Tensor, ...]:
        return _cells(self.effects, self.log_normal)


def fit(measured: Measured, seed: int = 0) -> DeviceFit:
    """The soft-bounds device of most likelihood; takes seconds for hundreds of cells.

    Args:
        measured: of `energytl.devices.measured.read_csv`.
        seed: of the simulations that take out the bias.

    Raises:
        ValueError: in one line, where no pulse moves any cell.

    >>> device = SoftBoundsReference(dw_min=0.2, cycle_noise=0.1, write_noise=0.1)
    >>> directions = torch.tensor([1.0] * 20 + [-1.0] * 20).double().unsqueeze(1).expand(40, 20)
    >>> shown = respond(device, directions, torch.zeros(20).double(), torch.Generator().manual_seed(0))
    >>> found = fit(Measured(tuple("abcdefghijklmnopqrst"), 30 + 10 * shown, directions)).device
    >>> round(found.dw_min, 2), found.upper, found.lower
    (0.2, 1.0, -1.0)
    """
    moving = responds(measured)
    if not moving.any():
        raise ValueError("no pulse moves any of the measured devices: what they show is only noise around a constant")
    directions = measured.directions[:, moving]
    zero, half = _rough_range(measured.shown[:, moving])
    rough = _fit_population((measured.shown[:, moving] - zero) / half, directions, log_normal=True)
    zero, half = _recentred(zero, half, rough.found)
    shown = (measured.shown[:, moving] - zero) / half
    kinds = [_fit_population(shown, directions, log_normal) for log_normal in (False, True)]
    if kinds[0].found["dw_min_spread"] > WIDEST_NORMAL:
        del kinds[0]
    population = max(kinds, key=lambda kind: kind.log_likelihood)
    device, scales, overlooked = _without_bias(population, directions, seed)
    errors = {name: error * scales[name] for name, error in population.errors.items()}
    middle, scale = (device.upper + device.lower) / 2, (device.upper - device.lower) / 2
    stuck = 1 - float(moving.double().mean()) / (1 - overlooked)
    if stuck > 0:
        held = _mean_shown(measured.shown[:, ~moving], zero + middle * half, half * scale)
        device = replace(device, stuck=stuck, stuck_range=float((3 * held.square().mean()).sqrt()))
        errors["stuck"] = math.sqrt(stuck * (1 - stuck) / len(moving))
    up, down, upper, lower, start = population.cells
    cells = Cells(
        up=up * (1 - middle / upper) / scale,
        down=down * (1 - middle / lower) / scale,
        upper=(upper - middle) / scale,
        lower=(lower - middle) / scale,
        reference=torch.zeros((), dtype=up.dtype),
    )
    zero, half = zero + middle * half, half * scale
    normalised = replace(measured, shown=(measured.shown - zero) / half)
    start = (start - middle) / scale
    return DeviceFit(_normalised(device), errors, zero, half, normalised, moving, cells, start)


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


def _mean_shown(shown: Tensor, zero: float, half: float) -> Tensor:
    return (shown.nanmean(0) - zero) / half


def _recentred(zero: float, half: float, found: dict[str, float]) -> tuple[float, float]:
    return zero + half * (found["upper"] + found["lower"]) / 2, half * (found["upper"] - found["lower"]) / 2


def _normalised(device: SoftBoundsReference) -> SoftBoundsReference:
    """The same device in units in which its nominal bounds are ±1.

    With the new zero m the steps there are α·(1 − m/b): mean ½(α↑ + α↓) and half difference follow.
    """
    middle, half = (device.upper + device.lower) / 2, (device.upper - device.lower) / 2
    kept_up, kept_down = 1 - middle / device.upper, 1 - middle / device.lower
    up, down = (1 + device.up_down) * kept_up, (1 - device.up_down) * kept_down
    gain = (up + down) / 2
    return replace(
        device,
        dw_min=device.dw_min * gain / half,
        up_down=(up - down) / 2 / gain,
        up_down_spread=device.up_down_spread / gain,
        write_noise=device.write_noise / gain,
        upper=1.0,
        lower=-1.0,
        upper_spread=device.upper_spread * device.upper / (device.upper - middle),
        lower_spread=device.lower_spread * device.lower / (device.lower - middle),
    )


def _without_bias(
    population: _Population, directions: Tensor, seed: int
) -> tuple[SoftBoundsReference, dict[str, float], float]:
    """The device whose simulated cells are fitted as the measured ones are.

    And by what that scales the errors, and the share of its cells that seem stuck.
    """
    count = directions.shape[1]
    copies = max(1, min(max(SIMULATED_PER_CELL * count, FEWEST_SIMULATED), MOST_SIMULATED) // count)
    protocol, start = directions.repeat(1, copies), population.effects[4].repeat(copies)
    target, values = population.found, dict(population.found)
    for _ in range(ROUNDS):
        device = _device(values, population.log_normal)
        shown = respond(device, protocol, start, torch.Generator().manual_seed(seed))
        moving = responds(Measured((), shown, protocol))
        simulated = _fit_population(shown[:, moving], protocol[:, moving], population.log_normal).found
        values["up_down"] += target["up_down"] - simulated["up_down"]
        wrong = {name: target[name] / simulated[name] for name in FITTED if name != "up_down"}
        for name, ratio in wrong.items():
            values[name] *= min(max(ratio, 0.5), 2.0)
        if all(abs(ratio - 1) < CLOSE for ratio in wrong.values()):
            break
    noise = math.sqrt(1 + 1 / copies)
    scales = {name: noise for name in target}
    for name in scales.keys() - {"up_down"}:
        scales[name] *= max(1.0, values[name] / target[name])
    return _device(values, population.log_normal), scales, 1 - float(moving.double().mean())


def _device(values: dict[str, float], log_normal: bool) -> SoftBoundsReference:
    skew = min(max(values["up_down"], -LARGEST_SKEW), LARGEST_SKEW)
    return replace(SoftBoundsReference(log_normal=log_normal), **values | {"up_down": skew})  # type: ignore[arg-type]


def innovations(
    shown: Tensor, rising: Tensor, cells: tuple[Tensor, ...], cycle_noise: Tensor, write_variance: Tensor
) -> tuple[Tensor, Tensor]:
    """What a Kalman filter did not foresee of each shown value, and the variance of that; both (…, K, N).

    Args:
        shown: (K, N).
        rising: whether the pulse before was up, (K, N); the first row is not used.
        cells: steps up and down, bounds, and states at the first row, each (…, N).
        cycle_noise: σ, broadcast to (…, N).
        write_variance: of the offset, broadcast to (…, N).

    >>> cell = tuple(torch.tensor([x]) for x in (0.5, 0.5, 1.0, -1.0, 0.0))
    >>> rising, noise = torch.ones(2, 1, dtype=torch.bool), torch.tensor([1.0])
    >>> error, variance = innovations(torch.tensor([[0.0], [0.5]]), rising, cell, noise, torch.tensor([0.01]))
    >>> error.flatten(), variance.flatten()
    (tensor([0., 0.]), tensor([0.0100, 0.2600]))
    """
    up, down, upper, lower, mean = cells
    up_kept, down_kept = (1 - up / upper).clamp(0, 1), (1 + down / lower).clamp(0, 1)
    up_shift, down_shift = upper * (1 - up_kept), lower * (1 - down_kept)
    up_noise, down_noise = (up * cycle_noise).square(), (down * cycle_noise).square()
    mean = mean.expand(torch.broadcast_shapes(mean.shape, cycle_noise.shape, write_variance.shape))
    variance = torch.zeros_like(mean)
    errors, variances = [], []
    for row, (value, up_now) in enumerate(zip(shown, rising, strict=True)):
        if row:
            kept = torch.where(up_now, up_kept, down_kept)
            mean = torch.addcmul(torch.where(up_now, up_shift, down_shift), kept, mean)
            variance = torch.addcmul(torch.where(up_now, up_noise, down_noise), kept.square(), variance)
        total = variance + write_variance
        error = value - mean
        gain = variance / total
        mean = torch.addcmul(mean, gain, error)
        variance = variance * (1 - gain)
        errors.append(error)
        variances.append(total)
    return torch.stack(errors, -2), torch.stack(variances, -2)


def _cells(effects: Tensor, log_normal: bool) -> tuple[Tensor, ...]:
    """Steps up and down, bounds and start of cells from (ln step or step, half difference, bounds, start)."""
    step, difference, upper, lower, start = effects
    step = step.exp() if log_normal else step
    return (
        (step + difference).clamp(min=SMALLEST_STEP),
        (step - difference).clamp(min=SMALLEST_STEP),
        upper.clamp(min=SMALLEST_BOUND),
        lower.clamp(max=-SMALLEST_BOUND),
        start,
    )


def _fit_population(shown: Tensor, directions: Tensor, log_normal: bool) -> _Population:
    """Means and variances of the random effects and both noises, of maximum marginal likelihood."""
    given, rising, shown = (directions != 0).double(), directions > 0, shown.nan_to_num(0.0)
    noises = torch.tensor([0.5, 0.01], dtype=torch.float64).log()  # ln σ, ln of the offset's variance
    least_noises = torch.tensor([SMALLEST_NOISE, SMALLEST_NOISE**2], dtype=torch.float64).log()

    def log_likelihood(effects: Tensor) -> Tensor:
        error, variance = innovations(shown, rising, _cells(effects, log_normal), *noises.exp())
        return -0.5 * ((variance.log() + error.square() / variance) * given).sum(-2)

    effects = _first_effects(shown, log_normal)
    effects = _best(effects, log_likelihood(effects))
    mean = effects.mean(1)
    step = float(mean[0].exp() if log_normal else mean[0])
    between = torch.tensor([0.5 if log_normal else step**2 / 4, step**2 / 100, 0.1, 0.1, 4.0], dtype=torch.float64)
    farthest = torch.tensor([1.0 if log_normal else step / 2, step, 0.5, 0.5, 1.0], dtype=torch.float64).unsqueeze(1)
    fractions = torch.tensor([1.0, 0.5, 0.2, 0.05, 0.005, 0.0], dtype=torch.float64).unsqueeze(1)
    least = [-math.inf if log_normal else SMALLEST_STEP, -math.inf, SMALLEST_BOUND, -math.inf, -math.inf]
    most = [math.inf, math.inf, math.inf, -SMALLEST_BOUND, math.inf]
    allowed = torch.tensor([least, most], dtype=torch.float64)
    eye, before = torch.eye(5, dtype=torch.float64), -math.inf
    for iteration in range(ITERATIONS):
        likelihood, slope, information, change = _derivatives(shown, rising, given, effects, noises, log_normal)
        data, of_noises = information[:, :5, :5], information[:, 5:, 5:].sum(0)
        # noises: of the likelihood of the cells' most probable effects, and of how far those could be off
        posterior = torch.linalg.inv(data + torch.diag(1 / between))
        toward_noises = slope[:, 5:].sum(0) - 0.5 * (posterior * change).sum((1, 2, 3))
        noises = noises + torch.linalg.solve(of_noises + 1e-9 * eye[:2, :2], toward_noises).clamp(-0.5, 0.5)
        noises = torch.maximum(noises, least_noises)
        # the data say z ~ N(θ, H⁻¹) of a cell θ ~ N(mean, D); W = (D + H⁻¹)⁻¹, and θ = mean + D·W·(z − mean)
        toward = (data @ (effects.T - mean)[..., None]) + slope[:, :5, None]
        weight, pull = torch.linalg.solve(eye + data * between, torch.cat([data, toward], 2)).split([5, 1], 2)
        move = (mean + between * pull.squeeze(2)).T - effects
        move = move / (move.abs() / farthest).amax(0).clamp(min=1)
        trials = effects.unsqueeze(1) + move.unsqueeze(1) * fractions
        far = ((trials - mean[:, None, None]).square() / between[:, None, None]).sum(0)
        effects = _best(trials, log_likelihood(trials) - 0.5 * far)
        score = (effects.T - mean) / between  # W·(z − mean), where the step was a whole one
        shift = torch.linalg.solve(weight.sum(0) + 1e-9 * eye, score.sum(0)).clamp(-0.5, 0.5)
        mean, score = (mean + shift).clamp(*allowed), score - weight @ shift
        expected = weight.diagonal(dim1=1, dim2=2).sum(0)
        if iteration >= SETTLED:
            between = (between * (score.square().sum(0) / (expected + 1e-30)).clamp(0.5, 2.0)).clamp(min=1e-10)
        posterior = torch.linalg.inv(data + torch.diag(1 / between))
        shrunk = -0.5 * ((effects.T - mean).square() / between).sum() + 0.5 * torch.logdet(posterior).sum()
        total = float(likelihood.sum() + shrunk - 0.5 * between.log().sum() * effects.shape[1])
        if abs(total - before) < CONVERGED:
            break
        before = total
    found, errors = _fields(mean, between, noises, weight, of_noises, log_normal)
    return _Population(found, errors, effects, log_normal, total)


def _first_effects(shown: Tensor, log_normal: bool) -> Tensor:
    """Cells of eight steps each, without differences, bounds ±1, (5, 8, N)."""
    steps = torch.logspace(-2.5, -0.2, 8, dtype=torch.float64)
    first = torch.zeros(5, 8, shown.shape[1], dtype=torch.float64)
    first[0] = (steps.log() if log_normal else steps).unsqueeze(1)
    first[2], first[3], first[4] = 1.0, -1.0, shown[0]
    return first


def _best(trials: Tensor, value: Tensor) -> Tensor:
    """Of trials (5, T, N), each cell's best, (5, N)."""
    return trials.gather(1, value.argmax(0).expand(5, 1, -1)).squeeze(1)


def _derivatives(
    shown: Tensor, rising: Tensor, given: Tensor, effects: Tensor, noises: Tensor, log_normal: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-likelihood (N,), its slopes (N, 7) and Fisher information (N, 7, 7) in a cell's effects and the noises.

    And the slopes of the effects' information in the noises, (2, N, 5, 5). All by finite differences.
    """
    trials, noise_trials = effects.unsqueeze(1).repeat(1, 6, 1), noises.unsqueeze(1).repeat(1, 3)
    for number in range(5):
        trials[number, 1 + number] += DIFFERENCE
    for number in range(2):
        noise_trials[number, 1 + number] += DIFFERENCE
    cycle_noise, write_variance = noise_trials.exp()[..., None, None]
    errors, variances = innovations(shown, rising, _cells(trials, log_normal), cycle_noise, write_variance)
    error, variance = errors[0, 0], variances[0, 0]
    in_effects = [(x[:, 1:] - x[:, :1]) / DIFFERENCE * given for x in (errors, variances)]
    in_noises = [(x[1:, 0] - x[:1, 0]) / DIFFERENCE * given for x in (errors, variances)]
    error_slope, variance_slope = (torch.cat([x[0], y]) for x, y in zip(in_effects, in_noises, strict=True))
    surprise = error.square() / variance
    likelihood = -0.5 * ((variance.log() + surprise) * given).sum(0)
    slope = (-error_slope * (error / variance) - 0.5 * variance_slope * (1 - surprise) / variance).sum(1).T
    of_effects = [_information(x, y, z) for x, y, z in zip(*in_effects, variances[:, 0], strict=True)]
    change = (torch.stack(of_effects[1:]) - of_effects[0]) / DIFFERENCE
    return likelihood, slope, _information(error_slope, variance_slope, variance), change


def _information(error_slope: Tensor, variance_slope: Tensor, variance: Tensor) -> Tensor:
    """Fisher information of normal numbers, (N, P, P), from slopes (P, K, N) of their means and variances (K, N)."""
    by_error, by_variance = error_slope / variance.sqrt(), variance_slope / (variance * math.sqrt(2))
    both = torch.cat([by_error, by_variance], 1).permute(2, 0, 1)
    return both @ both.mT


def _fields(
    mean: Tensor, between: Tensor, noises: Tensor, weight: Tensor, of_noises: Tensor, log_normal: bool
) -> tuple[dict[str, float], dict[str, float]]:
    """The device's fields, and their standard errors from the Fisher information."""
    step, difference, upper, lower, _ = mean.tolist()
    step = math.exp(step) if log_normal else step
    unit = [1.0 if log_normal else step, step, upper, -lower]
    spread = between.sqrt()
    found = {
        "dw_min": step,
        "dw_min_spread": float(spread[0]) / unit[0],
        "up_down": difference / step,
        "up_down_spread": float(spread[1]) / step,
        "cycle_noise": math.exp(noises[0]),
        "write_noise": math.exp(noises[1] / 2) / step,
        "upper": upper,
        "lower": lower,
        "upper_spread": float(spread[2]) / upper,
        "lower_spread": float(spread[3]) / -lower,
    }
    of_mean = torch.linalg.inv(weight.sum(0)).diagonal().sqrt()
    of_variance = (2 / weight.diagonal(dim1=1, dim2=2).square().sum(0)).sqrt()
    of_spread = torch.minimum(of_variance / (2 * spread), of_variance.sqrt())
    of_noise = torch.linalg.inv(of_noises).diagonal().sqrt()
    relative = float(of_mean[0]) / (1.0 if log_normal else step)
    of_range = float(of_mean[2:4].norm()) / 2
    errors = {
        "dw_min": math.hypot(relative, of_range) * step,
        "dw_min_spread": float(of_spread[0]) / unit[0],
        "up_down": math.hypot(float(of_mean[1]) / step, of_range * (1 / upper - 1 / lower) / 2),
        "up_down_spread": float(of_spread[1]) / step,
        "cycle_noise": float(of_noise[0]) * found["cycle_noise"],
        "write_noise": math.hypot(float(of_noise[1]) / 2, relative) * found["write_noise"],
        "upper_spread": float(of_spread[2]) / upper,
        "lower_spread": float(of_spread[3]) / -lower,
    }
    return found, errors
