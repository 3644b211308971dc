"""The least energy that keeps an accuracy: curves, the scale of ρ, and the search on synthetic accuracies."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import isotonic_regression
from scipy.stats import norm
from torch import nn

from energytl import Hardware, Noiseless, analog_layers, convert
from energytl.cost.estimate import estimate
from energytl.evaluation import quartiles
from energytl.frontier import NEAR, OWN_BEST, ROUND, ROUNDS, STEP, Curve, RhoScale, search, trace

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


def at_knots(factors, accuracies):
    """A curve of one read at each of its knots."""
    return Curve(factors, tuple(zip(factors, accuracies, strict=True)))


def test_a_curve_never_falls_and_is_the_nearest_that_does_not():
    curve = at_knots((0.0, 1.0, 2.0, 3.0), (0.5, 0.7, 0.6, 0.9))
    assert curve.rising == pytest.approx((0.5, 0.65, 0.65, 0.9))
    falling = at_knots((0.0, 1.0, 2.0), (0.9, 0.5, 0.1))
    assert falling.rising == pytest.approx((0.5, 0.5, 0.5))


def test_reads_at_the_knots_alone_are_isotonic_regression():
    generator = np.random.default_rng(0)
    knots = tuple(float(k) for k in range(6))
    reads = [(knot, float(accuracy)) for knot in knots for accuracy in generator.random(int(generator.integers(1, 4)))]
    counts = [sum(factor == knot for factor, _ in reads) for knot in knots]
    means = [np.mean([accuracy for factor, accuracy in reads if factor == knot]) for knot in knots]
    assert Curve(knots, tuple(reads)).rising == pytest.approx(isotonic_regression(means, weights=counts).x)


def test_reads_between_knots_are_fitted_by_lines_between_them():
    def line(x):
        return 0.5 + 0.2 * min(x, 1.0) + 0.1 * max(x - 1.0, 0.0)

    factors = [0.0, 0.2, 0.5, 1.0, 1.4, 1.9, 2.0]
    curve = Curve((0.0, 1.0, 2.0), tuple((x, line(x)) for x in factors))
    assert curve.rising == pytest.approx((0.5, 0.7, 0.8))


def test_knots_lie_closer_where_more_reads_were_made_but_no_closer_by_still_more():
    coarse = at_knots(tuple(STEP * k for k in range(5)), (0.5, 0.6, 0.7, 0.75, 0.76))
    more = coarse.with_reads(2 * STEP, [(1.5 * STEP, 0.66), (2.5 * STEP, 0.74)])
    assert [knot / STEP for knot in more.knots] == pytest.approx([0, 1, 1.5, 2, 2.5, 3, 4])
    assert more.rising == pytest.approx((0.5, 0.6, 0.66, 0.7, 0.74, 0.75, 0.76))
    assert more.with_reads(2 * STEP, []).knots == more.knots
    assert len(more.with_reads(0.9 * STEP, [(0.5 * STEP, 0.55)]).knots) == len(more.knots) + 1


def test_a_curve_is_straight_between_its_points_and_flat_beyond():
    curve = at_knots((-1.0, 1.0, 2.0), (0.5, 0.7, 0.8))
    assert [curve.at(x) for x in (-9, -1, 0, 1, 1.5, 2, 9)] == pytest.approx([0.5, 0.5, 0.6, 0.7, 0.75, 0.8, 0.8])
    assert at_knots((0.3,), (0.4,)).at(7) == 0.4


def test_the_least_factor_is_where_the_curve_first_has_the_accuracy():
    curve = at_knots((-1.0, 1.0, 2.0, 3.0), (0.5, 0.7, 0.7, 0.8))
    for target in (0.51, 0.6, 0.69, 0.75, 0.8):
        assert curve.at(curve.least(target)) == pytest.approx(target)
    assert curve.least(0.7 - 1e-9) == pytest.approx(1.0)
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


def test_a_rho_that_training_took_beyond_its_window_is_lowered_but_not_raised(analog):
    for layer in analog_layers(analog).values():
        nn.init.constant_(layer.log_rho, math.log(2 * FULL / layer.rho_start))
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
    numbers = []
    curve = trace(lambda x, n: (numbers.append(n), 0.9 if x > -2.0 else 0.1)[1], highest=1.0, floor=0.5, lowest=-9.0)
    assert curve.knots == pytest.approx(tuple(1.0 - STEP * i for i in (5, 4, 3, 2, 1, 0)))
    assert curve.rising == pytest.approx((0.1, 0.9, 0.9, 0.9, 0.9, 0.9))
    assert numbers == [0, 1, 2, 3, 4, 5]


def test_a_trace_ends_at_the_lowest_factor():
    curve = trace(lambda x, n: 0.9, highest=0.0, floor=0.5, lowest=-1.0)
    assert curve.knots == pytest.approx((-1.0, -STEP, 0.0))


def test_a_trace_goes_on_to_the_factor_that_is_needed_and_then_to_the_floor():
    below = trace(lambda x, n: 0.1, highest=0.0, floor=0.5, lowest=-9.0, needed=-1.5)
    assert below.knots[0] == pytest.approx(-3 * STEP)
    needed_first = trace(lambda x, n: 0.9 if x > -3 else 0.1, highest=0.0, floor=0.5, lowest=-9.0, needed=-0.5)
    assert needed_first.knots[0] == pytest.approx(-5 * STEP)


# searching


def accuracy(x):
    return 0.9 * norm.cdf(x + 2)


def traced(read_at, floor=0.6, highest=3.0):
    return trace(read_at, highest=highest, floor=floor, lowest=-9.0)


@pytest.mark.parametrize("drop", [0.005, 0.01, 0.05, 0.2])
@pytest.mark.parametrize("highest", [3.0, 3.0 + STEP / 3, 3.0 + STEP / 2])
def test_without_noise_the_factor_found_has_the_accuracy_asked(drop, highest):
    def read_at(x, n):
        return accuracy(x)

    curve, found = search(traced(read_at, 0.9 - drop - 0.1, highest), lambda curve: 0.9 - drop, read_at)
    assert accuracy(found) == pytest.approx(0.9 - drop, abs=drop / 10)  # straight lines between knots err a little
    assert curve.at(found) == pytest.approx(0.9 - drop)


def test_every_read_of_a_search_has_a_number_of_its_own_and_lies_on_the_curve():
    numbers, places = [], []

    def read_at(x, n):
        numbers.append(n)
        places.append(x)
        return accuracy(x)

    known = traced(read_at)
    curve, _ = search(known, lambda curve: 0.8, read_at)
    again, _ = search(curve, lambda curve: 0.7, read_at)
    assert numbers == list(range(len(again.reads)))
    least, most = ROUNDS
    assert len(curve.reads) == len(known.reads) + least * len(ROUND)
    assert len(again.reads) <= len(curve.reads) + most * len(ROUND)
    assert all(known.knots[0] <= place <= known.knots[-1] for place in places)


def test_a_target_out_of_sight_is_not_searched_for():
    curve = at_knots((0.0, 1.0), (0.5, 0.9))
    assert search(curve, lambda curve: 0.9 + 1.1 * NEAR, lambda x, n: pytest.fail("read")) == (curve, None)


def test_a_target_in_sight_is_asked_of_several_reads_at_the_highest_factor():
    curve = at_knots((0.0, 1.0), (0.5, 0.9))
    more, found = search(curve, lambda curve: 0.905, lambda x, n: 0.5 + 0.4 * x)
    assert found is None
    assert len(more.reads) - 2 == ROUNDS[0] * len(ROUND)
    assert sum(x == 1.0 for x, _ in more.reads) - 1 == len(more.reads[2:]) / 2
    _, found = search(curve, lambda curve: 0.905, lambda x, n: 0.51 + 0.4 * x)  # the first read was unlucky
    assert 0.9 < found <= 1.0


def test_a_search_that_begins_far_off_ends_at_the_target():
    lucky = at_knots(tuple(STEP * k for k in range(-6, 4)), [0.5, 0.9, *[0.9] * 8])

    def read_at(x, n):
        return min(0.9, 0.5 + 0.4 * (x + 6 * STEP) / (5 * STEP))

    _, found = search(lucky, lambda curve: 0.85, read_at)
    assert read_at(found, 0) == pytest.approx(0.85, abs=0.03)


def test_the_own_best_is_the_least_that_comes_near_enough():
    def read_at(x, n):
        return 0.9 - 0.4 * math.exp(-1.5 * x)

    curve, found = search(traced(read_at, 0.5, 8.0), lambda curve: curve.best - OWN_BEST, read_at)
    assert read_at(found, 0) == pytest.approx(curve.best - OWN_BEST, abs=OWN_BEST / 4)
    flat, found = search(traced(lambda x, n: 0.9, 0.95, 1.0), lambda curve: curve.best - OWN_BEST, lambda x, n: 0.9)
    assert found == flat.knots[0]


# what a choice is worth: images and reads whose true accuracy is known


class Task:
    """Images of which a digital network has 96 % right, and an analog one fewer the smaller its ρ.

    A read errs on an image that the digital network has right with the probability w·e(x), of difficulties w of mean
    0.2, and has right 0.2·w·e(x) of the others, so that the true drop is (0.96·0.2 - 0.04·0.04)·e(x).
    """

    def __init__(self, images, generator):
        self.generator = generator
        self.digital = generator.random(images) < 0.96
        self.difficulty = generator.beta(0.2, 0.8, images)

    @staticmethod
    def errs(x):
        return 1 - math.exp(-0.06 * math.exp(-1.6 * x))

    @classmethod
    def drop(cls, x):
        return (0.96 * 0.2 - 0.04 * 0.04) * cls.errs(x)

    def read(self, x):
        """Accuracy of one read."""
        wrong = self.generator.random(len(self.digital)) < self.errs(x) * self.difficulty
        lost, won = wrong & self.digital, wrong & ~self.digital & (self.generator.random(len(self.digital)) < 0.2)
        return float(self.digital.mean() - lost.mean() + won.mean())


def chosen(task, drop):
    """The search's factor, of a target by the task's digital accuracy."""

    def read_at(x, n):
        return task.read(x)

    target = float(task.digital.mean()) - drop
    _, found = search(traced(read_at, target - 0.02, 5.0), lambda curve: target, read_at)
    return found


def until_reads_are_enough(task, drop):
    """The rule of choosing and telling by the same reads: more ρ until ten reads' lower quartile is enough."""
    target, x = float(task.digital.mean()) - drop, -1.0
    while True:
        reads = [task.read(x) for _ in range(10)]
        if quartiles(reads)[0] >= target:
            return x, reads
        x += math.log(1.25) / 2


def bias(errors):
    """Mean, and its standard error."""
    return float(np.mean(errors)), float(np.std(errors) / len(errors) ** 0.5)


@pytest.mark.parametrize("drop", [0.005, 0.01, 0.02])
def test_what_is_chosen_on_some_images_and_told_of_others_is_not_lucky(drop):
    generator = np.random.default_rng(0)
    missed, luck, off = [], [], []
    for _ in range(700):
        x = chosen(Task(800, generator), drop)
        test = Task(1000, generator)
        told, fresh = (np.mean([test.read(x) for _ in range(reads)]) for reads in (10, 40))
        missed.append(test.drop(x) - drop)
        luck.append(told - fresh)
        off.append(test.digital.mean() - told - test.drop(x))
    for errors in (missed, luck, off):
        mean, error = bias(errors)
        assert abs(mean) < 5 * error
        assert error < 0.0002  # small beside the luck of the rule below


def test_what_is_chosen_and_told_by_the_same_reads_is_lucky():
    generator = np.random.default_rng(0)
    luck, off = [], []
    for _ in range(200):
        test = Task(1000, generator)
        x, reads = until_reads_are_enough(test, 0.01)
        luck.append(np.mean(reads) - np.mean([test.read(x) for _ in range(40)]))
        off.append(test.digital.mean() - np.mean(reads) - test.drop(x))
    for errors, sign in ((luck, 1), (off, -1)):
        mean, error = bias(errors)
        assert sign * mean > 5 * error
