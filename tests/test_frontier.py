"""The least energy that keeps an accuracy: curves, the scale of ρ, and the search on synthetic accuracies."""

import math

import pytest
import torch
from scipy.stats import norm
from torch import nn

from energytl import Hardware, Noiseless, analog_layers, configure, convert
from energytl.cost.estimate import estimate
from energytl.frontier import (
    APART,
    MARGIN,
    OWN_BEST,
    PLATEAU,
    PRECISION,
    STEP,
    Curve,
    RhoScale,
    confirm,
    own_best,
    refine,
    trace,
)

FULL = 82.0  # µS, the ρ that fills the default cell's window


@pytest.fixture
def analog():
    """Two layers, of which the second fills its window at twice its ρ."""
    torch.manual_seed(0)
    network = convert(
        nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), Hardware(rho=2.0, computation=Noiseless()), seed=0
    )
    network[2].configure(rho=FULL / 2)
    return network


def rho_of(network):
    return [float(layer.rho.detach()) for layer in analog_layers(network).values()]


def energies_of(network):
    x = torch.rand(16, 8, generator=torch.Generator().manual_seed(0))
    return [layer.energy_paper for layer in estimate(network, x).layers]


# curves


def test_a_curve_never_falls_and_is_the_nearest_that_does_not():
    curve = Curve((0.0, 1.0, 2.0, 3.0), (0.5, 0.7, 0.6, 0.9))
    assert curve.rising == pytest.approx((0.5, 0.65, 0.65, 0.9))
    falling = Curve((0.0, 1.0, 2.0), (0.9, 0.5, 0.1))
    assert falling.rising == pytest.approx((0.5, 0.5, 0.5))


def test_a_curve_is_straight_between_its_points_and_flat_beyond():
    curve = Curve((-1.0, 1.0, 2.0), (0.5, 0.7, 0.8))
    assert [curve.at(x) for x in (-9, -1, 0, 1, 1.5, 2, 9)] == pytest.approx([0.5, 0.5, 0.6, 0.7, 0.75, 0.8, 0.8])
    assert Curve((0.3,), (0.4,)).at(7) == 0.4


def test_the_least_factor_is_where_the_curve_first_has_the_accuracy():
    curve = Curve((-1.0, 1.0, 2.0, 3.0), (0.5, 0.7, 0.7, 0.8))
    for target in (0.51, 0.6, 0.69, 0.75, 0.8):
        assert curve.at(curve.least(target)) == pytest.approx(target)
    assert curve.least(0.7) == pytest.approx(1.0)
    assert curve.least(0.1) == -1.0
    assert curve.least(0.81) is None


# the scale of ρ


def test_a_factor_scales_every_rho_until_its_window_is_full(analog):
    scale = RhoScale(analog)
    scale.set(math.log(0.1))
    assert rho_of(analog) == pytest.approx([0.2, FULL / 20], rel=1e-5)
    scale.set(math.log(3))  # of the first ρ again, not of the present
    assert rho_of(analog) == pytest.approx([6, FULL], rel=1e-5)
    scale.set(math.log(1000))
    assert rho_of(analog) == pytest.approx([FULL, FULL], rel=1e-5)
    assert math.exp(scale.highest) == pytest.approx(FULL / 2, rel=1e-5)


def test_a_rho_beyond_its_window_is_lowered_but_not_raised(analog):
    configure(analog, rho=2 * FULL)
    scale = RhoScale(analog)
    assert scale.highest == 0
    scale.set(math.log(2))
    assert rho_of(analog) == pytest.approx([2 * FULL] * 2, rel=1e-5)
    scale.set(math.log(0.25))
    assert rho_of(analog) == pytest.approx([FULL / 2] * 2, rel=1e-5)


@pytest.mark.parametrize("factor", [0.01, 0.5, 1.0, 1.9, 3.0, 30.0, 1000.0])
def test_energy_at_a_factor_is_what_the_scaled_network_takes(analog, factor):
    energies, scale = energies_of(analog), RhoScale(analog)
    expected = scale.energy(energies, math.log(factor))
    scale.set(math.log(factor))
    assert expected == pytest.approx(sum(energies_of(analog)), rel=1e-5)


@pytest.mark.parametrize("share", [0.001, 0.3, 1.0, 1.5, 3.0])
def test_spending_is_the_inverse_of_energy(analog, share):
    energies, scale = energies_of(analog), RhoScale(analog)
    budget = share * math.fsum(energies)
    assert scale.energy(energies, scale.spending(energies, budget)) == pytest.approx(budget, rel=1e-5)


def test_more_than_every_full_window_cannot_be_spent(analog):
    energies, scale = energies_of(analog), RhoScale(analog)
    assert scale.spending(energies, 1e9 * math.fsum(energies)) == scale.highest


# tracing


def test_a_trace_goes_down_by_halves_until_the_floor():
    curve = trace(lambda x: 0.9 if x > -2.0 else 0.1, highest=1.0, floor=0.5, lowest=-9.0)
    assert curve.log_factors == pytest.approx(tuple(1.0 - STEP * i for i in (5, 4, 3, 2, 1, 0)))
    assert curve.accuracies == (0.1, 0.9, 0.9, 0.9, 0.9, 0.9)


def test_a_trace_ends_at_the_lowest_factor():
    curve = trace(lambda _: 0.9, highest=0.0, floor=0.5, lowest=-1.0)
    assert curve.log_factors == pytest.approx((-1.0, -STEP, 0.0))


def test_a_trace_goes_on_to_the_factor_that_is_needed_and_then_to_the_floor():
    below = trace(lambda _: 0.1, highest=0.0, floor=0.5, lowest=-9.0, needed=-1.5)
    assert below.log_factors[0] == pytest.approx(-3 * STEP)
    needed_first = trace(lambda x: 0.9 if x > -3 else 0.1, highest=0.0, floor=0.5, lowest=-9.0, needed=-0.5)
    assert needed_first.log_factors[0] == pytest.approx(-5 * STEP)


# searching: an accuracy of 0.9·Φ(x + 2), on all images with a shift


def accuracy(x):
    return 0.9 * norm.cdf(x + 2)


def measure(shift, deviation, seed):
    """A measurement with noise, of accuracies that the shift moves; it counts its calls."""
    generator = torch.Generator().manual_seed(seed)
    calls = []

    def measured(x):
        calls.append(x)
        return accuracy(x) + shift + deviation * float(torch.randn((), generator=generator))

    return measured, calls


@pytest.mark.parametrize("shift", [-0.015, 0.0, 0.015])
@pytest.mark.parametrize("drop", [0.01, 0.05, 0.2])
def test_the_least_factor_is_found_to_its_precision_on_other_images(shift, drop):
    few, _ = measure(0.0, 0.0, 0)
    curve = trace(few, highest=3.0, floor=0.9 - drop - 0.05, lowest=-9.0)
    target = 0.9 + shift - drop
    measured, calls = measure(shift, 0.0, 1)
    found = refine(curve, target, measured)
    aimed = norm.ppf((target + MARGIN - shift) / 0.9) - 2
    assert abs(accuracy(found) - accuracy(aimed)) < 0.01  # straight lines between the points err a little
    assert len(calls) <= 3


def test_a_search_is_right_to_its_precision_where_the_curve_is_straight():
    line = Curve((0.0, 1.0), (0.5, 0.9))
    measured, calls = measure(0.0, 0.0, 0)
    found = refine(line, 0.7, lambda x: 0.45 + 0.4 * x + 0.0 * measured(x))
    assert found == pytest.approx((0.7 + MARGIN - 0.45) / 0.4)
    assert len(calls) == 2  # the shift is measured once, and the second measurement agrees


def test_noise_of_the_measurements_moves_a_search_by_no_more_than_its_own_standard_error():
    line, deviation = Curve((0.0, 1.0), (0.5, 0.9)), 0.004
    found = []
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        found.append(
            refine(line, 0.7, lambda x, g=generator: 0.47 + 0.4 * x + deviation * float(torch.randn((), generator=g)))
        )
    found = torch.tensor(found, dtype=torch.float64)
    aimed, alone = (0.7 + MARGIN - 0.47) / 0.4, deviation / 0.4  # standard error of a single measurement
    assert abs(float(found.mean()) - aimed) < 5 * float(found.std()) / 200**0.5 + PRECISION / 10
    assert float(found.std()) < alone * 1.25  # 5 standard errors of a deviation from 200


def test_a_target_out_of_sight_is_not_searched_for():
    line = Curve((0.0, 1.0), (0.5, 0.9))
    calls = []
    assert refine(line, 0.95, lambda x: (calls.append(x), 0.9)[1]) is None
    assert calls == [1.0]


FLAT = Curve((0.0, 1.0, *(1.0 + k * STEP for k in range(1, 9))), (0.5, 0.96, *[0.961] * 8))


@pytest.mark.parametrize("shift", [-0.003, -0.0015, -0.001, -0.0005, 0.0, 0.001])
@pytest.mark.parametrize("target", [0.9585, 0.959, 0.9595, 0.96, 0.961])
def test_where_the_curve_is_flat_a_search_ends_at_the_foot_of_the_plateau(target, shift):
    calls = []
    found = refine(FLAT, target, lambda x: (calls.append(x), FLAT.at(x) + shift)[1])
    assert len(calls) <= 3
    if 0.961 + shift < target - 2 * MARGIN - 1e-9:
        assert found is None
    else:
        assert 0.99 < found <= 1.0


def test_a_target_within_reach_of_the_highest_factor_is_left_to_the_confirmation():
    line = Curve((0.0, 1.0), (0.5, 0.9))
    assert refine(line, 0.9, lambda x: 0.5 + 0.4 * x - MARGIN) == pytest.approx(line.least(0.9 - PLATEAU))


def test_a_search_goes_on_with_the_shift_that_an_earlier_one_measured():
    line = Curve((0.0, 1.0), (0.5, 0.9))
    shifts, calls = [], []

    def measured(x):
        calls.append(x)
        return line.at(x) - 0.1

    refine(line, 0.7, measured, shifts)
    assert shifts == pytest.approx([-0.1, -0.1])
    calls.clear()
    found = refine(line, 0.6, measured, shifts)
    assert calls == pytest.approx([found])  # it begins where the shift says
    assert line.at(found) == pytest.approx(0.7 + MARGIN)


# confirming


def reads_of(rights):
    """Ranks in two reads of a hundred images, so many of them right."""
    return (torch.arange(100) >= rights).long().repeat(2, 1)


def test_a_factor_is_raised_until_independent_reads_confirm_it():
    calls = []

    def reads_at(x, attempt, few):
        calls.append((x, attempt, few is not None))
        return reads_of(50 + 100 * x)

    hopeful = Curve((0.0, 9.0), (0.5, 9.5))  # says that the slope is one, and it is
    factor, reads = confirm(hopeful, 0.0, target=0.7, reads_at=reads_at)
    assert factor == pytest.approx(0.2 + MARGIN)
    assert (reads == 0).double().mean() == pytest.approx(0.71)
    assert [call[1:] for call in calls] == [(0, False), (1, False), (1, True)]
    steep = Curve((0.0, 9.0), (0.5, 90.5))  # a tenth of the way would do, it says; the least step is made
    calls.clear()
    confirm(steep, 0.0, target=0.6, reads_at=reads_at)
    assert [x for x, *_ in calls] == pytest.approx([0.0, PRECISION, 2 * PRECISION, 2 * PRECISION])


def test_the_steps_of_a_confirmation_double():
    tried = []
    gentle = Curve((0.0, 20 * STEP), (0.6, 0.9))
    assert confirm(gentle, 0.0, 0.7, lambda x, *_: (tried.append(x), reads_of(60))[1]) is None
    wanted = 7 * STEP + (0.1 + MARGIN) / (0.015 / STEP)  # nearer than the next step, 15
    assert tried[:5] == pytest.approx([0.0, STEP, 3 * STEP, 7 * STEP, wanted])
    assert tried[-1] == 20 * STEP


def test_where_nothing_less_promises_to_be_enough_the_highest_factor_is_asked_at_once():
    tried = []
    flat = Curve((0.0, 20 * STEP), (0.6, 0.6))
    assert confirm(flat, 0.0, 0.7, lambda x, *_: (tried.append(x), reads_of(60))[1]) is None
    assert tried == [0.0, 20 * STEP]


@pytest.mark.parametrize("start", [0.0, 7 * STEP, 15 * STEP])
@pytest.mark.parametrize("foot", [STEP / 3, 4.4 * STEP, 11.9 * STEP])
def test_a_confirmed_factor_is_no_further_than_apart_above_the_least_wherever_the_search_begins(start, foot):
    flat = Curve((0.0, 20 * STEP), (0.6, 0.6))
    tried = []

    def reads_at(x, attempt, few):
        if few is None:
            assert attempt == len(tried)  # each attempt has reads of its own
            tried.append(x)
        else:
            assert x == tried[attempt]
        return reads_of(80 if x >= foot else 60)

    factor, reads = confirm(flat, start, 0.7, reads_at)
    assert foot <= factor <= foot + APART
    assert (reads == 0).double().mean() == pytest.approx(0.8)
    assert len(tried) <= 12


def test_a_search_that_finds_nothing_too_small_ends_at_the_lowest_factor():
    tried = []
    flat = Curve((0.0, 20 * STEP), (0.6, 0.6))
    factor, _ = confirm(flat, 5 * STEP, 0.7, lambda x, *_: (tried.append(x), reads_of(80))[1])
    assert factor == 0.0
    assert tried == pytest.approx([max(0.0, 5 * STEP - APART * steps) for steps in (0, 1, 3, 7, 15, 31, 31)])


@pytest.mark.parametrize("foot", [2.2 * STEP, 3.7 * STEP, 4.1 * STEP, 9.0 * STEP])
@pytest.mark.parametrize("start", [STEP, 5 * STEP, 15 * STEP])
def test_all_reads_have_the_last_word(start, foot):
    """Few reads are too hopeful by up to two steps: what they promise is searched on above."""
    flat = Curve((0.0, 20 * STEP), (0.6, 0.6))
    complete = []

    def reads_at(x, attempt, few):
        if few is not None:
            complete.append(x)
        return reads_of(80 if x >= (foot - 2 * STEP if few is None else foot) else 60)

    factor, _ = confirm(flat, start, 0.7, reads_at)
    assert foot <= factor <= foot + APART
    assert complete == sorted(complete)
    assert complete[-1] == factor


def test_the_lower_quartile_of_the_reads_decides():
    reads = torch.stack([(torch.arange(100) >= rights).long() for rights in (60, 70, 80, 90, 100)])
    curve = Curve((0.0, 1.0), (0.5, 0.8))
    factor, confirmed = confirm(curve, 0.0, 0.7, lambda *_: reads)
    assert factor == 0.0
    assert torch.equal(confirmed, reads)
    assert confirm(curve, 1.0, 0.71, lambda *_: reads) is None


# what does not get there


@pytest.mark.parametrize("slope", [1.5, 3.0, 30.0])
def test_the_own_best_is_the_least_that_comes_near_enough(slope):
    def accuracy_at(log_factor):
        return 0.9 - 0.4 * math.exp(-slope * log_factor)

    found = own_best(0.0, 5.0, accuracy_at)
    enough = accuracy_at(5.0) - OWN_BEST
    assert accuracy_at(found - APART) < enough <= accuracy_at(found)


def test_the_own_best_is_at_an_end_where_accuracy_rises_to_the_last_or_not_at_all():
    assert own_best(0.0, 0.1, lambda log_factor: log_factor) == 0.1
    assert own_best(0.0, 5.0, lambda log_factor: 0.9) == 0.0
