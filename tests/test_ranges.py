"""Input ranges that train: what a factor on them means, and what is left of it after training."""

import math

import pytest
import torch
from torch import nn

from energytl import Hardware, InputFormat, Noiseless, analog_layers, calibrate, convert
from energytl.classifier import Classifier
from energytl.cost.energy import counting_pulses
from energytl.objectives import Objective
from energytl.ranges import TrainedRanges


@pytest.fixture
def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(16, 3))
    analog = convert(net, Hardware(computation=Noiseless(), inputs=InputFormat(4)), seed=0)
    return calibrate(analog, [images()])


def images():
    return torch.rand(8, 2, 6, 6, generator=torch.Generator().manual_seed(1))


def set_factors(ranges, factor):
    with torch.no_grad():
        for log_factor in ranges.log_factors:
            log_factor.fill_(math.log(factor))


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.7])
def test_a_factor_is_a_range_of_so_many_times_the_layers_and_settles_as_one(network, factor):
    layers = list(analog_layers(network).values())
    before = [layer.input_range for layer in layers]
    ranges = TrainedRanges(layers)
    set_factors(ranges, factor)
    seen = network(images())
    ranges.settle()
    assert [layer.input_range for layer in layers] == pytest.approx([factor * size for size in before])
    torch.testing.assert_close(network(images()), seen)


def test_a_wider_range_sends_fewer_pulses_and_the_energy_says_so(network):
    layers = list(analog_layers(network).values())
    ranges = TrainedRanges(layers)
    energies = []
    for factor in (1.0, 2.0):
        set_factors(ranges, factor)
        with counting_pulses(layers, 8) as counted:
            network(images())
        energy = torch.stack(counted).sum()
        slopes = torch.autograd.grad(energy, list(ranges.log_factors))
        assert all(float(slope) < 0 for slope in slopes)
        energies.append(float(energy.detach()))
    assert energies[1] < 0.6 * energies[0]


def test_training_moves_the_ranges_at_their_own_rate_without_weight_decay(network):
    module = Classifier(
        network, 3, lambda groups: torch.optim.SGD(groups, lr=0.1, weight_decay=0.5), objective=Objective(range_lr=0.7)
    )
    module.log = lambda *args, **kwargs: None
    optimizer = module.configure_optimizers()
    group = optimizer.param_groups[-1]
    assert (group["lr"], group["weight_decay"], len(group["params"])) == (0.7, 0.0, 3)
    module.training_step((images(), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])), 0).backward()
    optimizer.step()
    assert all(float(log_factor.detach()) != 0 for log_factor in module.ranges.log_factors)


def test_without_a_rate_nothing_is_hooked(network):
    assert Classifier(network, 3, torch.optim.SGD, objective=Objective()).ranges is None
