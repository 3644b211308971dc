"""Monte Carlo accuracy and the search for the least ρ."""

import math

import pytest
import torch
from torch import nn

from energytl import Frozen, Hardware, Moments, Noiseless, analog_layers, convert
from energytl.evaluation import (
    Draw,
    accuracies,
    chip_draws,
    digital_accuracy,
    least_rho_factor,
    noiseless_draw,
    read_draws,
)


@pytest.fixture
def task():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 4))
    x = torch.rand(200, 8)
    with torch.no_grad():
        labels = network.eval()(x).argmax(1)
    return network, [(x[:120], labels[:120]), (x[120:], labels[120:])]


def test_the_teacher_itself_is_always_right(task):
    network, batches = task
    assert digital_accuracy(network, batches, "") == 1.0


def test_draws_are_reproducible_and_differ_by_their_seed(task):
    network, batches = task
    analog = convert(network, Hardware(rho=0.3), seed=0)
    draws = [*read_draws(analog, 3, seed=5), *chip_draws(2, seed=5), noiseless_draw()]
    first = accuracies(analog, batches, draws, "")
    analog(batches[0][0])
    assert accuracies(analog, batches, draws, "") == first
    assert accuracies(analog, batches, draws[::-1], "") == first[::-1]
    assert len(set(first[:3])) > 1
    assert max(first[:5]) < first[5]


def test_measuring_leaves_the_network_as_it_was(task):
    network, batches = task
    analog = convert(network, seed=0).train()
    analog[2].eval()
    accuracies(analog, batches, [Draw(Frozen(), 1), Draw(Noiseless(), 1)], "")
    assert analog.training
    assert not analog[2].training
    assert {layer.hardware.computation for layer in analog_layers(analog).values()} == {Moments()}


def rho_of(network):
    return [float(layer.rho.detach()) for layer in analog_layers(network).values()]


def always():
    return True


def test_the_least_factor_is_found_to_its_precision(task):
    analog = convert(task[0], Hardware(rho=2.0))
    threshold = 0.37
    factor = least_rho_factor(analog, lambda: rho_of(analog)[0] / 2.0 >= threshold, always, precision=0.01)
    assert threshold <= factor <= threshold * 1.01
    assert rho_of(analog) == pytest.approx([2 * factor] * 2, rel=1e-5)


def test_rho_may_be_raised_until_the_conductance_window_is_full(task):
    analog = convert(task[0], Hardware(rho=2.0))
    factor = least_rho_factor(analog, lambda: rho_of(analog)[0] >= 60, always)
    assert math.isclose(factor * 2, 60, rel_tol=0.06)


def test_what_cannot_be_reached_is_said_and_leaves_rho(task):
    analog = convert(task[0], Hardware(rho=2.0))
    assert least_rho_factor(analog, lambda: False, always) is None
    assert rho_of(analog) == pytest.approx([2.0, 2.0])


def test_the_search_ends_at_its_smallest_factor(task):
    analog = convert(task[0], Hardware(rho=2.0))
    assert least_rho_factor(analog, always, always, smallest=0.01) == pytest.approx(0.01, rel=0.06)


def test_a_factor_that_is_not_confirmed_is_raised(task):
    analog = convert(task[0], Hardware(rho=2.0))
    lucky, needed = 0.2, 0.3
    factor = least_rho_factor(
        analog, lambda: rho_of(analog)[0] / 2 >= lucky, lambda: rho_of(analog)[0] / 2 >= needed, precision=0.01
    )
    assert needed <= factor <= needed * 1.03


def test_a_factor_that_nothing_confirms_is_not_reached(task):
    analog = convert(task[0], Hardware(rho=2.0))
    assert least_rho_factor(analog, always, lambda: False) is None
    assert rho_of(analog) == pytest.approx([2.0, 2.0])
