"""Fronts and hypervolumes, against small examples by hand and Optuna's own."""

import random

import numpy as np
import pytest
from optuna.study import create_study
from optuna.trial import create_trial

from energytl.study.confirm import told
from energytl.study.front import Point, front, hypervolumes, point


def made(*losses: tuple[float, ...], feasible: bool = True) -> list[Point]:
    return [Point(number, {}, {}, values, feasible) for number, values in enumerate(losses)]


def test_front_of_four_points():
    found = made((1.0, 4.0), (2.0, 2.0), (4.0, 1.0), (3.0, 3.0))
    assert [p.number for p in front(found)] == [2, 1, 0]
    assert [p.number for p in front(found, near=(0.5, 0.0))] == [2, 1, 0]
    assert [p.number for p in front(found, near=(1.5, 0.0))] == [2, 1, 3, 0]


def test_points_that_break_a_constraint_are_not_on_the_front():
    found = [*made((1.0, 1.0), feasible=False), Point(1, {}, {}, (2.0, 2.0), True)]
    assert [p.number for p in front(found)] == [1]
    assert hypervolumes(found) == [0.0, pytest.approx(0.0, abs=1e-6)]
    assert front(made((1.0, 1.0), feasible=False)) == []
    assert hypervolumes([]) == []


@pytest.mark.parametrize("objectives", [2, 3])
def test_the_front_is_optunas(objectives):
    draw = random.Random(objectives)
    losses = [tuple(draw.random() for _ in range(objectives)) for _ in range(60)]
    study = create_study(directions=["minimize"] * objectives)
    for values in losses:
        study.add_trial(create_trial(values=values))
    assert {p.number for p in front(made(*losses))} == {trial.number for trial in study.best_trials}


def test_hypervolume_is_the_share_of_the_box_that_is_dominated():
    """The box is 0..4 by 0..4; (1, 1) dominates 9 of its 16, (0, 4) and (4, 0) nothing."""
    assert hypervolumes(made((0.0, 4.0), (4.0, 0.0), (1.0, 1.0))) == pytest.approx([0, 0, 9 / 16], abs=1e-6)


def test_hypervolume_against_counting_random_points():
    draw = random.Random(0)
    losses = [tuple(draw.random() for _ in range(3)) for _ in range(12)]
    lows, highs = ([end(values) for values in zip(*losses, strict=True)] for end in (min, max))
    samples = [[draw.uniform(lo, hi) for lo, hi in zip(lows, highs, strict=True)] for _ in range(20_000)]
    hits = sum(any(all(a <= b for a, b in zip(p, s, strict=True)) for p in losses) for s in samples) / len(samples)
    error = (hits * (1 - hits) / len(samples)) ** 0.5
    assert abs(hypervolumes(made(*losses))[-1] - hits) < 5 * error


def test_points_carry_the_quantities_of_their_objectives_and_constraints(study):
    settings = study(constraints={"latency": {"at_most": 1e-6}}).settings
    numbers = {"accuracy": 0.9, "energy_paper": 100.0, "latency": 2e-6}
    assert point(settings, 3, {}, numbers).losses == (-0.9, 2.0)
    assert not point(settings, 3, {}, numbers).feasible
    assert point(settings, 3, {}, numbers | {"latency": 1e-6}).feasible


def test_what_is_told_of_the_front_is_not_the_luck_by_which_it_was_chosen(study):
    settings = study(objectives=["accuracy", "energy_paper"]).settings
    generator = np.random.default_rng(0)
    lucky, honest = [], []
    for _ in range(100):
        energies = generator.uniform(1.0, 2.0, 30)
        chosen_by, tested = (0.9 + 0.005 * generator.standard_normal(30) for _ in range(2))  # all are equally good
        measured = [
            point(settings, number, {}, {"accuracy": float(accuracy), "energy_paper": float(energy)})
            for number, (accuracy, energy) in enumerate(zip(chosen_by, energies, strict=True))
        ]
        kept = front(measured)
        result = {"accuracy_q25": 0.8, "accuracy_q75": 1.0}
        again = [told(one, result | {"accuracy_median": tested[one.number]}) for one in kept]
        assert [one.losses for one in again] == [one.losses for one in kept]
        lucky.append(np.mean([one.numbers["accuracy"] for one in kept]) - 0.9)
        honest.append(np.mean([one.numbers["accuracy"] for one in again]) - 0.9)
    error = np.std(honest) / 10
    assert abs(np.mean(honest)) < 5 * error
    assert np.mean(lucky) > 5 * error


def test_a_point_without_accuracy_is_told_as_it_is(study):
    settings = study(objectives=["latency", "energy_paper"]).settings
    measured = point(settings, 3, {}, {"latency": 1.0, "energy_paper": 2.0})
    again = told(measured, {"accuracy_median": 0.9, "accuracy_q25": 0.8, "accuracy_q75": 1.0})
    assert again.numbers == measured.numbers
    assert again.quartiles == (0.8, 1.0)
