"""Devices fitted to simulated pulses are those that were simulated, within the standard errors of the fit."""

import math

import pytest
import torch

from energytl.devices import presets
from energytl.devices.fit import DeviceFit, fit, innovations, respond, responds
from energytl.devices.measured import Measured, read_csv
from energytl.devices.pulsed import SoftBoundsReference, pulse

pytestmark = pytest.mark.usefixtures("one_thread")

STANDARD_ERRORS = 5
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


@pytest.fixture(scope="module", params=DEVICES)
def fitted(request) -> tuple[SoftBoundsReference, DeviceFit, tuple[float, float]]:
    device, unit = DEVICES[request.param], UNITS[request.param]
    return device, fit(measure(device, CELLS, [1.0] * 25 + [-1.0] * 25, 11, *unit)), unit


def test_a_fit_finds_the_device_that_was_measured(fitted):
    device, found, _ = fitted
    assert found.device.log_normal == device.log_normal
    for name in RECOVERED:
        wanted, value, error = getattr(device, name), getattr(found.device, name), found.errors[name]
        assert value == pytest.approx(wanted, abs=STANDARD_ERRORS * error), name


def test_its_standard_errors_are_small_enough_to_mean_something(fitted):
    # of 100 cells, a mean is known to spread/√100 and a spread to its 1/√200 part, and noises far better
    device, found, _ = fitted
    for name in RECOVERED:
        if name != "up_down":
            assert 0 < found.errors[name] < 0.15 * getattr(device, name), name
    assert found.errors["up_down"] < 0.06
    # the bounds, which cut the noise of coarse steps, hide a third of it from the linear model
    assert found.errors["cycle_noise"] < 0.1 * device.cycle_noise
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
        error = found.errors[name]
        assert getattr(found.device, name) == pytest.approx(getattr(SMOOTH, name), abs=STANDARD_ERRORS * error), name


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


def test_a_seed_decides_the_fit():
    measured = measure(SMOOTH, 10, [1.0] * 10 + [-1.0] * 10, seed=8)
    first, again = (fit(measured, seed=1).device for _ in range(2))
    assert first == again


def test_innovations_are_those_of_the_joint_normal_distribution():
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
    cell = tuple(torch.tensor([x], dtype=torch.float64) for x in (up, down, upper, lower, start))
    noises = (torch.tensor([x], dtype=torch.float64) for x in (sigma, write))
    error, variance = innovations(shown.unsqueeze(1), torch.tensor(rising).unsqueeze(1), cell, *noises)
    found = -0.5 * (error.square() / variance + variance.log() + math.log(2 * math.pi)).sum()
    assert float(found) == pytest.approx(float(joint.log_prob(shown)), rel=1e-9)


HEADER = "device,pulse,direction,conductance\n"


def rows(device="a", count=12, start=1):
    return [f"{device},{start + n},{'up' if n < count / 2 else 'down'},{1e-6 * n}" for n in range(count)]


def test_a_csv_is_read_in_any_order_and_either_way_of_writing_directions(tmp_path):
    path = tmp_path / "data.csv"
    one, two = rows("a"), [row.replace("up", "+1").replace("down", "-1") for row in rows("b", 10, start=5)]
    shuffled = ["{1},{3},x,{0},{2}".format(*row.split(",")) for row in reversed(one + two)]
    path.write_text("\n".join(["pulse,conductance,note,device,direction", *shuffled]), "utf-8")
    measured = read_csv(path)
    assert measured.names == ("b", "a")
    assert measured.directions[:, 1].tolist() == [1.0] * 6 + [-1.0] * 6
    assert measured.directions[:, 0].tolist() == [1.0] * 5 + [-1.0] * 5 + [0.0] * 2
    assert measured.shown[:, 1].tolist() == [1e-6 * n for n in range(12)]
    assert measured.shown[10:, 0].isnan().all()
    assert measured.pulses == 22


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"has no column 'device': its first line must name the columns device,pulse,direction,conductance"),
        ("device,pulse,direction\na,1,up\n", r"has no column 'conductance'"),
        (HEADER, r"holds no pulses below its first line"),
        (HEADER + "a,1,sideways,1.0\n", r"line 2: direction is 'sideways'; allowed: up, down \(or \+1, -1\)"),
        (HEADER + "a,1.5,up,1.0\n", r"line 2: pulse is '1\.5'; allowed: a whole number"),
        (HEADER + "a,1,up,nan\n", r"line 2: conductance is 'nan'; allowed: a finite number"),
        (HEADER + "a,1,up,high\n", r"line 2: conductance is 'high'"),
        (HEADER + "a,1,up\n", r"line 2: conductance is ''"),
        (HEADER + "a,1,up,1\na,1,up,2\n", r"line 3: device a has pulse 1 twice"),
        (HEADER + "\n".join(rows(count=9)), r"device a has 9 pulses; a fit needs 10 or more of each"),
        (HEADER + "\n".join(rows()[:5] + rows()[6:]), r"device a has no pulse 6, but later ones"),
        (HEADER + "\n".join(rows()).replace("down", "up"), r"holds no pulse down: a fit needs both directions"),
    ],
)
def test_what_is_no_measurement_is_refused(tmp_path, text, message):
    path = tmp_path / "data.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=message):
        read_csv(path)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "data.csv"
    path.write_bytes(b"\xff\xfe\x00\x01" * 10)
    with pytest.raises(ValueError, match="is no CSV file in UTF-8"):
        read_csv(path)
