"""Images until a target, medians that know "never", and the ratio with its interval."""

import math

import pytest
import torch

from energytl.convergence import (
    Convergence,
    experiments,
    groups,
    images_to,
    order_quantile,
    order_quartiles,
    smoothed,
    speed_ratio,
    speeds,
)
from energytl.evaluation import quartiles

NEVER = math.inf


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def runs(crossings, images, target=0.9):
    """Step curves: below the target before the crossing, at it from then on."""
    return torch.where(images >= torch.tensor(crossings).unsqueeze(1), target, 0.5).double()


def result(crossings, seed=0, images=(0, 100, 200, 300, 400), **changes):
    """A case whose runs reach 90 % at the crossings, in batches of 10."""
    grid = torch.tensor(images)
    measured = {"target": 0.9, "window": 1, "images": list(images), "steps": (grid // 10).tolist()}
    measured["accuracy"] = runs(crossings, grid).tolist()
    return {"method": None, "condition": None, "seed": seed, "baseline": False, "convergence": measured} | changes


@pytest.mark.parametrize("target", [0.0, 1.5, -0.1])
def test_a_target_is_a_share(target):
    with pytest.raises(ValueError, match=r"convergence.target is .*; allowed: above 0 up to 1 \(as 0\.94\)"):
        Convergence(target)


def test_a_window_has_a_measurement():
    with pytest.raises(ValueError, match=r"convergence.window is 0; allowed: 1 to 1000000"):
        Convergence(0.9, window=0)
    assert Convergence(1.0) == Convergence(1.0, window=1)


# images to the target


def test_running_means_are_those_of_slices():
    accuracy = torch.rand(4, 30, generator=generator(), dtype=torch.float64)
    for window in (1, 2, 7, 30, 50):
        expected = [accuracy[:, max(0, i + 1 - window) : i + 1].mean(1) for i in range(30)]
        torch.testing.assert_close(smoothed(accuracy, window), torch.stack(expected, 1))


def test_a_window_of_one_gives_the_first_crossing():
    images = torch.arange(20) * 50
    accuracy = torch.rand(200, 20, generator=generator(), dtype=torch.float64)
    expected = [next((50.0 * i for i, a in enumerate(run) if a >= 0.9), NEVER) for run in accuracy.tolist()]
    assert NEVER in expected
    assert images_to(0.9, images, accuracy).tolist() == expected


@pytest.mark.parametrize("window", [1, 2, 3, 5])
def test_a_running_mean_of_a_step_arrives_a_window_later(window):
    """From 0 to 1 at measurement 10: the mean of w is at 1 with the w-th after the step, at 0.5 with half of them."""
    images = torch.arange(30) * 100
    step = (torch.arange(30) >= 10).double().unsqueeze(0)
    assert images_to(1.0, images, step, window).tolist() == [100 * (10 + window - 1)]
    assert images_to(0.5, images, step, window).tolist() == [100 * (10 + math.ceil(window / 2) - 1)]


def test_images_to_the_target_may_be_none_or_infinite():
    images = torch.tensor([0, 100, 200])
    curves = torch.tensor([[0.95, 0.2, 0.2], [0.1, 0.2, 0.3], [0.1, 0.2, 0.9]])
    assert images_to(0.9, images, curves).tolist() == [0, NEVER, 200]
    assert images_to(0.1, images, curves).tolist() == [0, 0, 0]


def test_an_accuracy_of_single_precision_is_at_its_own_target():
    for hundredths in range(1, 101):
        curve = torch.full((1, 9), hundredths / 100, dtype=torch.float32)
        assert images_to(hundredths / 100, torch.arange(9), curve, window=3).tolist() == [0]


# quartiles with "never"


def test_finite_quartiles_are_the_interpolated_ones():
    values = torch.rand(23, generator=generator(), dtype=torch.float64)
    for count in (1, 2, 10, 23):
        assert order_quartiles(values[:count]) == pytest.approx(quartiles(values[:count].tolist()))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 2.0, NEVER], (1.5, 2.0, NEVER)),
        ([1.0, NEVER], (NEVER, NEVER, NEVER)),
        ([1.0, 2.0, 4.0, NEVER], (1.75, 3.0, NEVER)),
        ([1.0, 2.0, 4.0, 5.0, NEVER], (2.0, 4.0, 5.0)),
        ([NEVER, NEVER], (NEVER, NEVER, NEVER)),
    ],
)
def test_never_is_later_than_everything(values, expected):
    assert order_quartiles(torch.tensor(values)) == expected
    assert order_quartiles(torch.tensor(values[::-1])) == expected


# the ratio


def test_the_ratio_is_that_of_the_medians():
    assert speed_ratio(torch.tensor([600.0] * 5), torch.tensor([200.0] * 3), 100) == (3, 3, 3)
    ratio, low, high = speed_ratio(torch.tensor([100.0, 600.0, 700.0]), torch.tensor([200.0, 200.0, 900.0]), 100)
    assert ratio == 3
    assert low < 3 < high


def test_the_ratio_is_the_same_in_any_order_and_reciprocal_when_exchanged():
    a, b = (torch.rand(n, generator=generator(n)) * 1000 + 100 for n in (31, 21))
    found = speed_ratio(a, b, 1)
    mixed = speed_ratio(a.flip(0), b[torch.randperm(21, generator=generator())], 1)
    assert mixed[0] == found[0]
    assert mixed[1:] == pytest.approx(found[1:], rel=0.1)  # other resamples
    ratio, low, high = speed_ratio(b, a, 1)
    assert ratio == pytest.approx(1 / found[0])
    assert (1 / high, 1 / low) == pytest.approx(found[1:], rel=0.1)
    assert speed_ratio(3 * a, b, 1) == pytest.approx([3 * part for part in found])


def test_never_makes_the_ratio_infinite_zero_or_unknown():
    some, none = torch.tensor([100.0, 200.0, 300.0, 400.0]), torch.full((4,), NEVER)
    assert speed_ratio(none, some, 100) == (NEVER, NEVER, NEVER)
    assert speed_ratio(some, none, 100) == (0, 0, 0)
    ratio, low, high = speed_ratio(none, none, 100)
    assert math.isnan(ratio)
    assert (low, high) == (0, NEVER)  # nothing is known


def test_runs_that_never_get_there_widen_the_interval_only_upwards():
    scratch = torch.tensor([500.0] * 6 + [NEVER] * 4)
    ratio, low, high = speed_ratio(scratch, torch.tensor([250.0] * 10), 50)
    assert (ratio, low, high) == (2, 2, NEVER)


def test_at_once_counts_as_the_first_measurement():
    assert speed_ratio(torch.tensor([1000.0] * 4), torch.zeros(4), 100) == (10, 10, 10)
    assert speed_ratio(torch.zeros(4), torch.zeros(4), 100) == (1, 1, 1)


def test_one_run_has_no_interval():
    for counts in ((1, 5), (5, 1)):
        ratio, low, high = speed_ratio(*(torch.full((count,), 100.0) for count in counts), 100)
        assert ratio == 1
        assert math.isnan(low)
        assert math.isnan(high)


@pytest.mark.usefixtures("one_thread")
def test_the_interval_covers_the_true_ratio():
    """Log-normal times with medians 3000 and 1000, 300 repeats: 95 % ± 5 standard errors (1.3 %) hold the ratio 3.

    The percentile bootstrap of a median covers a little more than it says, up to 97 %, with so few runs.
    """
    covered, medians, repeats = 0, [], 300
    for seed in range(repeats):
        noise = torch.randn(2, 25, generator=generator(seed), dtype=torch.float64)
        ratio, low, high = speed_ratio(3000 * (0.4 * noise[0]).exp(), 1000 * (0.4 * noise[1]).exp(), 1, 400, seed)
        covered += low <= 3 <= high
        medians.append(ratio)
    assert 0.89 <= covered / repeats <= 0.995
    assert torch.tensor(medians).log().mean().exp() == pytest.approx(3, rel=0.05)


@pytest.mark.usefixtures("one_thread")
def test_the_interval_shrinks_with_the_root_of_the_runs():
    """Its width in logarithms is 2·1.96·√2·σ·√(π/2)/√n: the median's standard error, twice, as both groups vary."""
    for count in (50, 200, 800):
        widths = []
        for seed in range(20):
            noise = torch.randn(2, count, generator=generator(seed), dtype=torch.float64)
            _, low, high = speed_ratio(3000 * (0.4 * noise[0]).exp(), 1000 * (0.4 * noise[1]).exp(), 1, 400, seed)
            widths.append(math.log(high / low))
        expected = 2 * 1.96 * math.sqrt(2) * 0.4 * math.sqrt(math.pi / 2) / math.sqrt(count)
        assert sum(widths) / len(widths) == pytest.approx(expected, rel=0.15)


def test_quantiles_are_taken_of_each_row():
    values = torch.tensor([[1.0, 3.0], [5.0, NEVER]])
    assert order_quantile(values, 0.5).tolist() == [2, NEVER]
    assert order_quantile(values, 0.0).tolist() == [1, 5]


# groups of results


def test_seeds_of_one_experiment_are_one_group():
    results = {f"A {seed}": result([100, 200], seed, method="A", condition="hot", baseline=True) for seed in (1, 2, 3)}
    results |= {"B": result([400, 500], paper="none"), "plain": {"method": None, "condition": None, "seed": 0}}
    found = groups(results)
    assert list(found) == [("A", "hot"), ("B", None)]
    hot = found["A", "hot"]
    assert hot.images_to_target.tolist() == [100, 200] * 3
    assert hot.steps_to_target.tolist() == [10, 20] * 3
    assert (hot.baseline, hot.resolution, hot.paper) == (True, 100, "")
    assert found["B", None].images_to_target.tolist() == [400, NEVER]
    assert found["B", None].paper == "none"


def test_the_order_of_runs_and_seeds_does_not_matter():
    first = groups({f"{s}": result(times, s, method="A") for s, times in enumerate(([100, 300], [200, 500]))})
    again = groups({f"{s}": result(times, s, method="A") for s, times in enumerate(([500, 200], [300, 100]))})
    a, b = (order_quartiles(found["A", None].images_to_target) for found in (first, again))
    assert a == b == (175, 250, NEVER)


def test_cases_of_the_same_seed_are_not_repeats():
    cases = {name: {"method": "A", "condition": None, "seed": 0} for name in ("one", "two")}
    assert list(experiments(cases)) == [("one", None), ("two", None)]


@pytest.mark.parametrize("changed", ["target", "window", "images", "steps"])
def test_what_was_measured_otherwise_is_not_put_together(changed):
    other = result([100], 1, method="A")
    value = other["convergence"][changed]
    other["convergence"][changed] = [n + 1 for n in value] if isinstance(value, list) else value / 2
    with pytest.raises(ValueError, match=f"^a and b are one method under one condition, but .*{changed} differ$"):
        groups({"a": result([100], 0, method="A"), "b": other})


def compared(**results):
    return speeds(groups(results))


def test_the_comparison_is_with_the_baseline_of_the_same_condition():
    found = compared(
        cold=result([200, 200], method="scratch", condition="cold", baseline=True),
        hot=result([400, 400], method="scratch", condition="hot", baseline=True),
        plain=result([300, 300], method="scratch", baseline=True),
        a=result([100, 100], method="A", condition="cold"),
        b=result([100, 100], method="A", condition="hot"),
        c=result([100, 100], method="A", condition="dry"),
    )
    assert {key: speed.ratio for key, speed in found.items()} == {("A", "cold"): 2, ("A", "hot"): 4, ("A", "dry"): 3}


def test_of_several_baselines_the_fastest_counts():
    baselines = {name: result([n, n], baseline=True) for name, n in (("slow", 400), ("fast", 200), ("none", 900))}
    (speed,) = compared(**baselines, own=result([100, 100])).values()
    assert (speed.baseline, speed.ratio) == ("fast", 2)


def test_without_a_baseline_of_the_same_target_nothing_is_compared():
    other = result([400], baseline=True)
    assert compared(own=result([100])) == {}
    other["convergence"]["target"] = 0.8
    assert compared(other=other, own=result([100])) == {}


def test_ratios_to_what_is_there_at_once_are_bounds():
    late, soon = ("late", [300, 300]), ("soon", [0, 0])
    for first, second, ratio, bound in ((late, soon, 3, "≥"), (soon, late, 1 / 3, "≤"), (soon, soon, 1, "")):
        (speed,) = compared(first=result(first[1], baseline=True), second=result(second[1])).values()
        assert speed.ratio == pytest.approx(ratio)
        assert speed.bound == bound


# runs that start in a range


def started(starts, crossings, **changes):
    """A case whose runs start at these accuracies before training."""
    made = result(crossings, **changes)
    for accuracy, start in zip(made["convergence"]["accuracy"], starts, strict=True):
        accuracy[0] = start
    made["convergence"]["start"] = [0.6, 0.8]
    return made


def test_runs_that_start_in_the_range_are_compared_with_scratch_on_the_same_tasks():
    scratch = started([0.5] * 4, [400, 100, 400, 300], method="scratch", baseline=True)
    own = started([0.7, 0.3, 0.8, 0.81], [100, 400, 100, 400], method="transfer")
    found = groups({"scratch": scratch, "transfer": own})
    assert found["scratch", None].counted.all()
    assert found["transfer", None].counted.tolist() == [True, False, True, False]
    assert found["transfer", None].images_to_target.tolist() == [100, 100]
    assert speeds(found)["transfer", None].ratio == 4  # scratch's own first and third runs took 400 images


def test_an_experiment_none_of_whose_runs_starts_there_is_left_out():
    assert not groups({"transfer": started([0.5, 0.9], [100, 200], method="transfer")})


@pytest.mark.parametrize("start", [(0.8, 0.6), (-0.1, 0.5), (0.5, 1.1)])
def test_a_range_of_starts_is_two_rising_shares(start):
    with pytest.raises(ValueError, match=r"convergence\.start is .*; allowed: (two fractions|0 to 1)"):
        Convergence(0.9, start=start)
