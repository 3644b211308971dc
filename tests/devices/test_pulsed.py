"""Pulsed cells against another simulator's responses, their closed forms, and what a pulse must never do."""

import json
from dataclasses import fields, replace

import pytest
import torch
from scipy import stats

from energytl.devices import presets
from energytl.devices.pulsed import (
    Cells,
    ConstantStep,
    ExponentialStep,
    SoftBounds,
    SoftBoundsReference,
    pulse,
)

pytestmark = pytest.mark.usefixtures("one_thread")

STANDARD_ERRORS = 5
SPREAD = {"dw_min_spread": 0.4, "up_down_spread": 0.1, "upper_spread": 0.3, "lower_spread": 0.5}
DEVICES = {
    "constant": ConstantStep(dw_min=0.1, up_down=0.2, **SPREAD),
    "soft": SoftBounds(dw_min=0.1, up_down=0.2, **SPREAD),
    "reference": SoftBoundsReference(dw_min=0.1, log_normal=True, reference_skew=0.1, reference_spread=0.1, **SPREAD),
    "exponential": ExponentialStep(dw_min=0.1, up_down=0.05, **SPREAD),
    "coarse": presets.reram_hfo2(),
}
REFERENCE = {
    "ideal_soft_bounds": SoftBounds(dw_min=0.01),
    "ReRamArrayOM": presets.reram_om(),
    "ReRamArrayHfO2": presets.reram_hfo2(),
    "ReRamSB": replace(presets.reram_soft_bounds(), subtract_symmetry_point=False),
}


@pytest.fixture(params=DEVICES.values(), ids=DEVICES)
def device(request):
    return request.param


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def double(cells):
    return Cells(*(getattr(cells, field.name).double() for field in fields(cells)))


def evenly_inside(cells, shape, seed=1):
    share = torch.rand(shape, generator=generator(seed), dtype=torch.float64)
    return cells.lower + (cells.upper - cells.lower) * share


@pytest.mark.parametrize("name", REFERENCE)
def test_responses_are_those_of_another_simulator(reference, name):
    # each statistic within 5 combined standard errors; those of the own sample from its own spread, of the median
    # from the order statistics 2.5 standard errors of its rank to both sides
    device, count = REFERENCE[name], 40_000
    entry = json.loads((reference / "pulsed_response.json").read_text("utf-8"))["devices"][name]
    snapshots = {(row["direction"], row["n"]): row["persistent"] for row in entry["pulses"]}
    random = generator(7)
    cells = device.draw((count,), random)
    g, compared = cells.reference.expand(count), 0
    for direction, sign in (("up", 1.0), ("down", -1.0)):
        for number in range(1, 101):
            g = pulse(device, g, torch.full((count,), sign), cells, random)
            if (direction, number) not in snapshots:
                continue
            theirs, w = snapshots[direction, number], (g - cells.reference).double()
            variance, fourth = w.var(), (w - w.mean()).pow(4).mean()
            ordered, rank = w.sort().values, round(2.5 * count**0.5 / 2)
            own = {
                "mean": (w.mean(), (variance / count).sqrt(), theirs["se_mean"]),
                "std": (
                    w.std(),
                    ((fourth - variance**2).clamp(min=0) / count / (4 * variance + 1e-30)).sqrt(),
                    theirs["se_std"],
                ),
                "p50": (w.median(), (ordered[count // 2 + rank] - ordered[count // 2 - rank]) / 5, theirs["se_p50"]),
            }
            for statistic, (found, error, their_error) in own.items():
                allowed = STANDARD_ERRORS * (float(error) ** 2 + their_error**2) ** 0.5 + 2e-6
                assert float(found) == pytest.approx(theirs[statistic], abs=allowed), (direction, number, statistic)
                compared += 1
    assert compared == 42


def test_other_bounds_or_steps_are_not_those_of_the_other_simulator(reference):
    # the comparison above can fail: 2 % of the step is seen
    changed = replace(REFERENCE["ReRamArrayOM"], dw_min=1.02 * 0.0949)
    entry = json.loads((reference / "pulsed_response.json").read_text("utf-8"))["devices"]["ReRamArrayOM"]
    theirs = next(row for row in entry["pulses"] if (row["direction"], row["n"]) == ("up", 1))["persistent"]
    random = generator(7)
    cells = changed.draw((400_000,), random)
    w = pulse(changed, cells.reference, torch.ones(400_000), cells, random) - cells.reference
    assert (
        abs(float(w.mean()) - theirs["mean"]) > STANDARD_ERRORS * (float(w.var()) / 4e5 + theirs["se_mean"] ** 2) ** 0.5
    )


@pytest.mark.parametrize("name", ["soft", "reference", "constant"])
def test_the_closed_form_is_pulse_by_pulse(name):
    device = DEVICES[name]
    cells = double(device.draw((500,), generator()))
    fine = (cells.up < cells.upper) & (cells.down < -cells.lower)  # else a single pulse passes the bound
    start = evenly_inside(cells, (500,))
    for count in (1, 2, 7, 40):
        for sign in (1, -1):
            counts = torch.full((500,), float(sign * count), dtype=torch.float64)
            found, variance = device.burst(start, counts, cells)
            g = start
            for _ in range(count):
                up, down = device.steps(g, cells)
                g = g + (up if sign > 0 else -down)
            torch.testing.assert_close(found[fine], g[fine])
            assert not variance.any()  # without cycle noise
    unmoved, variance = device.burst(start, torch.zeros(500, dtype=torch.float64), cells)
    torch.testing.assert_close(unmoved, start)
    assert not variance.any()


def test_the_stepwise_burst_is_the_closed_form_where_both_exist():
    device = replace(DEVICES["soft"], cycle_noise=0.0, dw_min=0.02)
    cells = double(device.draw((300,), generator()))
    start, counts = evenly_inside(cells, (300,)), torch.arange(-150, 150).double() / 10
    counts = counts.round()
    torch.testing.assert_close(device.pulse_by_pulse(start, counts, cells)[0], device.burst(start, counts, cells)[0])


@pytest.mark.parametrize("name", ["soft", "constant"])
@pytest.mark.parametrize("count", [1, 12, -12])
def test_the_closed_form_has_mean_and_variance_of_noisy_pulses(name, count):
    # far from the bounds, so that they cut nothing: within them are 9 and more standard deviations
    kinds = {"soft": SoftBounds, "constant": ConstantStep}
    device, samples = kinds[name](dw_min=0.03, up_down=0.1, cycle_noise=0.5), 100_000
    cells, random = device.nominal(), generator(3)
    g = torch.full((samples,), 0.1)
    for _ in range(abs(count)):
        g = pulse(device, g, torch.full((samples,), float(count > 0) * 2 - 1), cells, random)
    mean, variance = device.burst(torch.tensor(0.1), torch.tensor(float(count)), cells)
    mean, variance = float(mean), float(variance)
    g = g.double()
    assert float(g.mean()) == pytest.approx(mean, abs=STANDARD_ERRORS * (variance / samples) ** 0.5 + 1e-6)
    assert float(g.var()) == pytest.approx(variance, rel=STANDARD_ERRORS * (2 / samples) ** 0.5)


def test_a_pulse_larger_than_the_way_to_its_bound_ends_there():
    device = SoftBounds(dw_min=3.0)
    cells = device.nominal()
    for sign, bound in ((1.0, 1.0), (-1.0, -1.0)):
        after = pulse(device, torch.tensor([0.2]), torch.tensor([sign]), cells, None)
        burst, _ = device.burst(torch.tensor([0.2]), torch.tensor([sign]), cells)
        assert float(after) == pytest.approx(bound)
        assert float(burst) == pytest.approx(bound)


def test_no_pulse_leaves_the_bounds(device):
    device = replace(device, cycle_noise=2.0)
    random = generator(4)
    cells = device.draw((2000,), random)
    g = evenly_inside(double(cells), (2000,)).float()
    for number in range(60):
        direction = torch.randint(-1, 2, (2000,), generator=random).float() if number < 40 else torch.ones(2000)
        before, g = g, pulse(device, g, direction, cells, random)
        assert (g <= cells.upper).all()
        assert (g >= cells.lower).all()
        assert torch.equal(g[direction == 0], before[direction == 0])
    assert (g == cells.upper).any()


def test_without_a_generator_pulses_are_their_steps(device):
    cells = device.draw((100,), generator())
    g = torch.zeros(100)
    up, down = device.steps(g, cells)
    torch.testing.assert_close(pulse(device, g, torch.ones(100), cells, None), torch.minimum(up, cells.upper))
    torch.testing.assert_close(pulse(device, g, -torch.ones(100), cells, None), torch.maximum(-down, cells.lower))


def test_cycle_noise_is_in_units_of_the_cells_own_step():
    device = SoftBounds(dw_min=0.01, dw_min_spread=0.5, log_normal=True, up_down=0.3, cycle_noise=0.8)
    random, samples = generator(5), 50_000
    cells = device.draw((4,), random)
    for sign, step in ((1.0, cells.up), (-1.0, cells.down)):
        g = pulse(device, torch.zeros(samples, 4), torch.full((samples, 4), sign), cells, random)
        expected = (0.8 * step).tolist()
        assert g.std(0).tolist() == pytest.approx(expected, rel=STANDARD_ERRORS / (2 * samples) ** 0.5)


def test_stuck_cells_do_not_move():
    device = SoftBounds(dw_min=0.1, cycle_noise=1.0, stuck=0.2, stuck_range=0.05, upper_spread=0.3, lower_spread=0.3)
    random, count = generator(6), 20_000
    cells = device.draw((count,), random)
    stuck = (cells.up == 0) & (cells.down == 0)
    assert float(stuck.float().mean()) == pytest.approx(0.2, abs=STANDARD_ERRORS * (0.16 / count) ** 0.5)
    held = cells.upper[stuck]
    assert torch.equal(held, cells.lower[stuck])
    assert (held.abs() <= 0.05).all()
    assert stats.kstest(held.numpy(), stats.uniform(-0.05, 0.1).cdf).pvalue > 1e-6
    g = torch.zeros(count)
    for sign in (1.0, 1.0, -1.0):
        g = pulse(device, g, torch.full((count,), sign), cells, random)
        assert torch.equal(g[stuck], held)
    assert not (g[~stuck] == 0).any()
    moved, variance = device.burst(g, torch.full((count,), 5.0), cells)
    assert moved.isfinite().all()
    torch.testing.assert_close(moved[stuck], held)
    assert not variance[stuck].any()


@pytest.mark.parametrize("log_normal", [False, True])
def test_steps_and_bounds_are_spread_as_stated(log_normal):
    device = SoftBounds(
        dw_min=0.02,
        dw_min_spread=0.15,
        log_normal=log_normal,
        upper=1.25,
        lower=-0.75,
        upper_spread=0.2,
        lower_spread=0.1,
    )
    cells = device.draw((100, 200), generator(8))
    law = stats.lognorm(0.15, scale=0.02) if log_normal else stats.norm(0.02, 0.003)
    assert torch.equal(cells.up, cells.down)
    for drawn, expected in (
        (cells.up, law),
        (cells.upper, stats.norm(1.25, 0.25)),
        (cells.lower, stats.norm(-0.75, 0.075)),
    ):
        assert drawn.shape == (100, 200)
        assert stats.kstest(drawn.flatten().numpy(), expected.cdf).pvalue > 1e-6
    assert abs(stats.spearmanr(cells.up.flatten(), cells.upper.flatten()).statistic) < STANDARD_ERRORS / 20_000**0.5


def test_up_and_down_steps_differ_as_stated(assert_moments):
    device = SoftBounds(dw_min=0.02, dw_min_spread=0.2, up_down=0.1, up_down_spread=0.05)
    cells = device.draw((20_000,), generator(9))
    middle, half = (cells.up + cells.down) / 2 / 0.02, (cells.up - cells.down) / 2 / 0.02
    both = torch.stack([middle, half], 1)
    covariance = torch.tensor([[0.04, 0.0], [0.0, 0.0025]], dtype=torch.float64)
    assert_moments(both, torch.tensor([1.0, 0.1], dtype=torch.float64), covariance)


def test_a_wide_spread_leaves_steps_positive_and_bounds_on_their_sides():
    device = SoftBounds(dw_min=0.1, dw_min_spread=2.0, up_down_spread=1.0, upper_spread=3.0, lower_spread=3.0)
    cells = device.draw((5000,), generator())
    assert (cells.up >= 0).all()
    assert (cells.down >= 0).all()
    assert (cells.upper >= 0).all()
    assert (cells.lower <= 0).all()


def test_a_generator_decides_the_cells(device):
    first, again, other = (device.draw((3, 4), generator(seed)) for seed in (1, 1, 2))
    assert first.up.shape == (3, 4)
    for field in fields(first):
        assert torch.equal(getattr(first, field.name), getattr(again, field.name))
    assert not torch.equal(first.up, other.up)


@pytest.mark.parametrize("name", ["soft", "reference", "coarse", "exponential"])
def test_up_and_down_steps_are_equal_at_the_symmetry_point(name):
    device = DEVICES[name]
    cells = double(device.draw((1000,), generator(2)))
    point = device.symmetry_point(cells)
    inside = (point > cells.lower) & (point < cells.upper)
    assert inside.float().mean() > 0.9
    up, down = device.steps(point, cells)
    torch.testing.assert_close(up[inside], down[inside], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["soft", "reference", "exponential"])
def test_alternating_pulses_end_at_the_symmetry_point(name):
    device = replace(DEVICES[name], dw_min=0.01)
    cells = device.draw((200,), generator(2))
    point = device.symmetry_point(cells)
    inside = (point > cells.lower) & (point < cells.upper)
    g = evenly_inside(double(cells), (200,)).float()
    far = (g - point).abs()
    for _ in range(1500):
        for sign in (1.0, -1.0):
            g = pulse(device, g, torch.full((200,), sign), cells, None)
    near = (g - point).abs()
    up, _ = device.steps(point, cells)
    slow = (cells.up / cells.upper - cells.down / cells.lower) < 2e-3  # e^-3 of the way left after 1500 pairs
    settled = inside & ~slow
    assert settled.float().mean() > 0.8
    assert (near <= 0.06 * far + up)[settled].all()


def test_the_reference_is_the_symmetry_point_and_its_error(assert_moments):
    device = replace(DEVICES["reference"], reference_skew=0.2, reference_spread=0.05)
    cells = device.draw((20_000,), generator(3))
    error = (cells.reference - device.symmetry_point(cells)).unsqueeze(1)
    assert_moments(error, torch.tensor([0.2], dtype=torch.float64), torch.tensor([[0.0025]], dtype=torch.float64))
    near_zero = replace(device, subtract_symmetry_point=False).draw((20_000,), generator(3)).reference.unsqueeze(1)
    assert_moments(near_zero, torch.tensor([0.2], dtype=torch.float64), torch.tensor([[0.0025]], dtype=torch.float64))
    assert not SoftBounds().draw((5,), generator()).reference.any()


def test_constant_steps_count_their_pulses():
    device = ConstantStep(dw_min=0.01)
    cells, g = device.nominal(), torch.zeros(3)
    direction = torch.tensor([1.0, -1.0, 0.0])
    for _ in range(70):
        g = pulse(device, g, direction, cells, None)
    torch.testing.assert_close(g, torch.tensor([0.7, -0.7, 0.0]))
    for _ in range(70):
        g = pulse(device, g, direction, cells, None)
    assert g.tolist() == [1.0, -1.0, 0.0]


def test_exponential_steps_by_hand():
    device = ExponentialStep(
        dw_min=0.01, up_amplitude=-1.2, down_amplitude=-0.1, up_rate=5.0, down_rate=4.0, scale=-0.5, shift=-0.4
    )
    state = torch.tensor([0.3], dtype=torch.float64)
    up, down = device.steps(state, double(device.nominal()))
    z = -0.5 * 0.3 * 2 / 2 - 0.4
    assert float(up) == pytest.approx(0.01 * (1 + 1.2 * 2.718281828459045 ** (5 * z)))
    assert float(down) == pytest.approx(0.01 * (1 + 0.1 * 2.718281828459045 ** (-4 * z)))


def test_an_exponential_step_does_not_turn_round():
    device = ExponentialStep(dw_min=0.01, up_amplitude=50.0)
    state, cells = torch.tensor([-1.0, 0.0]), device.nominal()
    assert device.steps(state, cells)[0].tolist() == [0.0, 0.0]
    assert device.slopes(state, cells)[0].abs().tolist() == [0.0, 0.0]


def test_slopes_are_finite_differences_of_the_steps(device):
    cells = double(device.draw((200,), generator(4)))
    g, h = evenly_inside(cells, (200,)), 1e-6
    above, below = device.steps(g + h, cells), device.steps(g - h, cells)
    for slope, high, low in zip(device.slopes(g, cells), above, below, strict=True):
        torch.testing.assert_close(slope.double().expand_as(g), (high - low) / (2 * h), rtol=1e-5, atol=1e-7)


def test_the_nominal_cell_has_no_spread(device):
    cells = device.nominal()
    assert cells.up.shape == ()
    assert float(cells.up) == pytest.approx(device.dw_min * (1 + device.up_down))
    assert float(cells.down) == pytest.approx(device.dw_min * (1 - device.up_down))
    assert (float(cells.upper), float(cells.lower)) == (1.0, -1.0)


def test_a_device_without_a_symmetry_point_is_refused_where_one_is_needed():
    for fine in (presets.ideal(), presets.reram_om(), presets.reram_exponential(), ConstantStep()):
        fine.require_symmetry_point()
    for wrong in (ConstantStep(up_down=0.1), ExponentialStep(up_down=0.9)):
        with pytest.raises(ValueError, match=r"has no symmetry point inside its bounds \(-1 to 1"):
            wrong.require_symmetry_point()
    with pytest.raises(ValueError, match=r"reference at 1\.2, outside its bounds .* set reference_skew nearer to 0"):
        SoftBoundsReference(reference_skew=1.2).require_symmetry_point()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dw_min": 0.0}, r"device\.dw_min is 0\.0; allowed: above 0"),
        ({"dw_min": float("nan")}, r"device\.dw_min is nan"),
        ({"upper": -0.1}, r"device\.lower is -1\.0 and device\.upper -0\.1; allowed: lower < 0 < upper"),
        ({"lower": 0.0}, r"allowed: lower < 0 < upper"),
        ({"stuck": 1.1}, r"device\.stuck is 1\.1; allowed: 0 to 1"),
        ({"cycle_noise": -1.0}, r"device\.cycle_noise is -1\.0; allowed: 0 or more"),
        ({"write_noise": float("inf")}, r"device\.write_noise is inf"),
        ({"reference_spread": -0.1}, r"device\.reference_spread is -0\.1; allowed: 0 or more"),
    ],
)
def test_what_is_no_device_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        SoftBoundsReference(**values)
