"""Devices fitted to simulated pulses are those that were simulated, within the intervals that the fit states."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from energytl.devices import kalman, presets
from energytl.devices.fit import DeviceFit, fit, respond, responds
from energytl.devices.kalman import cut, innovations
from energytl.devices.measured import Measured
from energytl.devices.pulsed import SoftBoundsReference, pulse

pytestmark = pytest.mark.usefixtures("one_thread")

STANDARD_ERRORS = 5
WIDER = STANDARD_ERRORS / 1.96  # of a 95 % interval
SMOOTH = SoftBoundsReference(
    dw_min=0.1,
    dw_min_spread=0.3,
    up_down=0.1,
    up_down_spread=0.15,
    cycle_noise=0.3,
    write_noise=0.5,
    upper_spread=0.2,
    lower_spread=0.25,
)
DEVICES = {"smooth": SMOOTH, "rough": presets.reram_hfo2()}
UNITS = {"smooth": (40.0, 15.0), "rough": (40e-6, 15e-6)}
RECOVERED = ("dw_min", "dw_min_spread", "up_down", "cycle_noise", "write_noise", "upper_spread", "lower_spread")
CELLS = 100


def measure(device, cells, protocol, seed, zero=40.0, half_range=15.0):
    directions = torch.tensor(protocol, dtype=torch.float64).unsqueeze(1).repeat(1, cells)
    start = torch.zeros(cells, dtype=torch.float64)
    shown = respond(device, directions, start, torch.Generator().manual_seed(seed))
    return Measured(tuple(map(str, range(cells))), zero + half_range * shown, directions)


def within(found, name, wanted):
    """Whether the interval holds the true value, widened to five standard errors."""
    low, high = found.intervals[name]
    middle = getattr(found.device, name)
    return middle - WIDER * (middle - low) <= wanted <= middle + WIDER * (high - middle)


@pytest.fixture(scope="module", params=DEVICES)
def fitted(request) -> tuple[SoftBoundsReference, DeviceFit, tuple[float, float]]:
    device, unit = DEVICES[request.param], UNITS[request.param]
    return device, fit(measure(device, CELLS, [1.0] * 25 + [-1.0] * 25, 11, *unit)), unit


def test_a_fit_finds_the_device_that_was_measured(fitted):
    device, found, _ = fitted
    assert found.device.log_normal == device.log_normal
    for name in RECOVERED:
        assert within(found, name, getattr(device, name)), name


def test_its_intervals_are_small_enough_to_mean_something(fitted):
    # of 100 cells, a mean is known to spread/√100 and a spread to its 1/√200 part, and noises far better
    device, found, _ = fitted
    for name in RECOVERED:
        low, high = found.intervals[name]
        if name != "up_down":
            assert 0 < high - low < 0.6 * getattr(device, name), name
    low, high = found.intervals["up_down"]
    assert high - low < 0.25
    assert found.device.cycle_noise == pytest.approx(device.cycle_noise, rel=0.15)


def test_it_finds_the_unit_of_the_conductance(fitted):
    device, found, (zero, half_range) = fitted
    of_bounds = math.hypot(device.upper_spread, device.lower_spread) / 2 / math.sqrt(CELLS)
    assert found.zero == pytest.approx(zero, abs=STANDARD_ERRORS * half_range * of_bounds)
    assert found.half_range == pytest.approx(half_range, rel=STANDARD_ERRORS * of_bounds)
    assert (found.device.upper, found.device.lower) == (1.0, -1.0)
    assert found.zero + found.half_range * float(found.measured.shown[0].mean()) == pytest.approx(zero, rel=0.03)


def test_the_fitted_cells_follow_what_they_showed(fitted):
    # what is left of a cell's response are its write noise and the cycle noise that it gathered
    device, found, _ = fitted
    g, left = found.start, []
    directions, showing = (x[1:, found.moving] for x in (found.measured.directions, found.measured.shown))
    for direction, shown in zip(directions, showing, strict=True):
        g = pulse(found.device, g, direction, found.cells, None)
        left.append(shown - g)
    typical = device.dw_min * math.hypot(device.write_noise, device.cycle_noise)
    assert float(torch.stack(left).std(0).median()) < 2.5 * typical


def test_cells_of_different_length_and_order_of_pulses_are_fitted_together():
    long = measure(SMOOTH, 40, [1.0] * 20 + [-1.0] * 20, seed=2)
    short = measure(SMOOTH, 40, [-1.0] * 15 + [1.0] * 15, seed=3)
    pad = torch.full((10, 40), math.nan, dtype=torch.float64)
    both = Measured(
        tuple(map(str, range(80))),
        torch.cat([long.shown, torch.cat([short.shown, pad])], 1),
        torch.cat([long.directions, torch.cat([short.directions, torch.zeros_like(pad)])], 1),
    )
    assert both.pulses == 40 * 40 + 40 * 30
    found = fit(both)
    for name in ("dw_min", "cycle_noise", "write_noise", "upper_spread"):
        assert within(found, name, getattr(SMOOTH, name)), name


def test_stuck_cells_are_counted_and_left_out():
    stuck = 12
    measured = measure(SMOOTH, 60 + stuck, [1.0] * 15 + [-1.0] * 15, seed=4)
    held = torch.randn(30, stuck, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    measured.shown[:, 60:] = 40 + 15 * SMOOTH.write_noise * SMOOTH.dw_min * held
    assert responds(measured).tolist() == [True] * 60 + [False] * stuck
    found = fit(measured)
    assert found.device.stuck == pytest.approx(stuck / 72, abs=0.01)
    assert found.device.stuck_range < 0.2
    alone = fit(Measured(measured.names[:60], measured.shown[:, :60], measured.directions[:, :60]))
    assert found.device.dw_min == pytest.approx(alone.device.dw_min)
    assert alone.device.stuck == 0


def test_few_constants_are_mistaken_for_moving_cells():
    count = 5000
    noise = torch.randn(100, count, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    directions = torch.tensor([1.0, -1.0]).double().repeat_interleave(50).unsqueeze(1).repeat(1, count)
    mistaken = float(responds(Measured(tuple(map(str, range(count))), noise, directions)).double().mean())
    assert mistaken < 0.002 + STANDARD_ERRORS * (0.002 / count) ** 0.5


def test_data_without_any_moving_cell_are_refused():
    noise = torch.randn(40, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    directions = torch.tensor([1.0, -1.0]).double().repeat_interleave(20).unsqueeze(1).repeat(1, 3)
    for shown in (noise, torch.ones_like(noise)):
        with pytest.raises(ValueError, match="no pulse moves any of the measured devices"):
            fit(Measured(("a", "b", "c"), shown, directions))


def test_innovations_are_those_of_the_joint_normal_distribution(monkeypatch):
    monkeypatch.setattr(kalman, "cut", lambda mean, variance, lower, upper: (mean, variance))
    # independent of the filter: the covariance of what a cell shows, built from the sums of its noise
    up, down, upper, lower, start = 0.2, 0.15, 1.2, -0.9, 0.1
    sigma, write = 0.6, 0.003
    rising = [False, True, True, False, True]
    shown = torch.tensor([0.15, 0.2, 0.5, 0.3, 0.4], dtype=torch.float64)
    mean, gather = [start], torch.zeros(5, 5, dtype=torch.float64)
    for row in range(1, 5):
        step, bound = (up, upper) if rising[row] else (down, lower)
        kept = 1 - step / abs(bound)
        mean.append(kept * mean[-1] + (1 - kept) * bound)
        gather[row] = kept * gather[row - 1]
        gather[row, row] = step * sigma
    covariance = gather @ gather.T + write * torch.eye(5, dtype=torch.float64)
    joint = torch.distributions.MultivariateNormal(torch.tensor(mean, dtype=torch.float64), covariance)
    cell = tuple(np.array([x]) for x in (up, down, upper, lower, start))
    noises = (np.array([x]) for x in (sigma, write))
    error, variance = innovations(shown[:, None].numpy(), np.array(rising)[:, None], cell, *noises)
    found = -0.5 * (error**2 / variance + np.log(variance) + math.log(2 * math.pi)).sum()
    assert float(found) == pytest.approx(float(joint.log_prob(shown)), rel=1e-9)


def test_cut_moments_are_those_of_cut_numbers():
    quantiles = stats.norm.ppf((np.arange(1_000_000) + 0.5) / 1_000_000)
    for mean, deviation in ((0.9, 0.3), (-0.2, 1.5), (1.5, 0.2), (0.0, 0.05)):
        numbers = np.clip(mean + deviation * quantiles, -1.0, 1.0)
        found = cut(np.array([mean]), np.array([deviation**2]), np.array([-1.0]), np.array([1.0]))
        assert float(found[0][0]) == pytest.approx(numbers.mean(), abs=1e-5)
        assert float(found[1][0]) == pytest.approx(numbers.var(), rel=1e-3)


def known(read, cycle_noise, runs=(60, 60), cells=8, proportional=False, spread=0.05):
    """Cells simulated apart from the package: steps of 0.04 up, 0.03 down, bounds at ±1, in units of 10 around 30."""
    rng = np.random.default_rng(3)
    up, down = (step * np.exp(spread * rng.normal(size=cells)) for step in (0.04, 0.03))
    state, shown, directions = np.full(cells, -0.97), [], []
    for number, count in enumerate(runs):
        sign, step = (1, up) if number % 2 == 0 else (-1, down)
        for _ in range(count):
            move = step * (1 - sign * state)
            state = state + sign * move + cycle_noise * (move if proportional else step) * rng.normal(size=cells)
            state = np.clip(state, -1, 1)
            shown.append(30 + 10 * (state + read * rng.normal(size=cells)))
            directions.append(np.full(cells, float(sign)))
    names = tuple(f"D{cell}" for cell in range(cells))
    return Measured(names, torch.tensor(np.array(shown)), torch.tensor(np.array(directions)))


@pytest.mark.parametrize(
    ("read", "cycle_noise", "runs"),
    [
        (0.01, 0.3, (60, 60)),
        (0.03, 0.3, (60, 60)),
        (0.01, 0.0, (60, 60)),
        (0.0004, 0.01, (60, 60)),
        (0.0, 0.3, (60, 60)),
        (0.0, 0.0, (60, 60)),
        (0.01, 0.3, (40, 40) * 3),
    ],
)
def test_read_noise_is_told_from_the_noise_of_pulses(read, cycle_noise, runs):
    found = fit(known(read, cycle_noise, runs))
    assert found.converged
    assert found.device.dw_min == pytest.approx(0.035, rel=0.08)
    assert found.device.up_down == pytest.approx(1 / 7, abs=0.06)
    assert found.zero == pytest.approx(30, abs=0.4)
    assert found.half_range == pytest.approx(10, rel=0.04)
    # of noises of 960 pulses each 1/√1920 is chance; a few times that where they hide each other
    assert found.device.write_noise * found.device.dw_min == pytest.approx(read, rel=0.15, abs=0.002)
    assert found.device.cycle_noise == pytest.approx(cycle_noise, rel=0.15, abs=0.02)
    assert found.missed == pytest.approx(found.missed_by_noise, rel=0.5, abs=0.001)


def test_noise_of_the_step_taken_is_seen_and_does_not_move_the_bounds():
    found = fit(known(0.01, 0.3, proportional=True))
    assert found.proportional
    assert found.device.dw_min == pytest.approx(0.035, rel=0.08)
    assert (found.zero, found.half_range) == (pytest.approx(30, abs=0.4), pytest.approx(10, rel=0.04))
    assert not fit(known(0.01, 0.3)).proportional


def test_one_device_has_no_spread():
    found = fit(known(0.01, 0.1, cells=1))
    assert found.device.dw_min == pytest.approx(0.035, rel=0.15)
    assert found.device.dw_min_spread == found.device.upper_spread == 0.0
    assert "upper_spread" not in found.intervals
    low, high = found.intervals["dw_min"]
    assert low < found.device.dw_min < high


@pytest.mark.parametrize("read", [0.0, 0.01])
def test_pulses_that_move_the_wrong_way_are_refused(read):
    measured = known(read, 0.1)
    with pytest.raises(
        ValueError, match=r"up pulses lower the conductance of 8 of 8 devices \(D0, D1, D2 and 5 more\)"
    ):
        fit(Measured(measured.names, measured.shown, -measured.directions))
    rising = Measured(measured.names, measured.shown[:60], measured.directions[:60].clone())
    rising.directions[30:] = -1.0
    with pytest.raises(ValueError, match="down pulses raise the conductance of"):
        fit(rising)


def test_what_is_no_response_to_pulses_is_refused_with_how_much_it_misses():
    rng = np.random.default_rng(0)
    wander = torch.tensor(rng.normal(size=(120, 6)).cumsum(0))
    directions = torch.tensor(rng.choice([-1.0, 1.0], size=(120, 6)))
    with pytest.raises(ValueError, match=r"the fitted curves explain \d+% of the variance of what they show"):
        fit(Measured(tuple("abcdef"), wander, directions))
