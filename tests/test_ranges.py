"""Ranges that train: what a factor on them means, and what is left of it after training."""

import copy
import math

import pytest
import torch
from torch import nn

from energytl import Hardware, InputFormat, Noiseless, WeightFormat, analog_layers, calibrate, configure, convert
from energytl.classifier import Classifier
from energytl.cost.energy import counting_pulses
from energytl.devices.presets import ideal
from energytl.objectives import Objective, network_energy
from energytl.optim import PulsedSGD
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
        for log_range in ranges.parameters():
            log_range.add_(math.log(factor))


BOTH = {"inputs": True, "weights": True}


@pytest.mark.parametrize("trained", [{}, {"inputs": False, "weights": True}, BOTH], ids=["inputs", "weights", "both"])
@pytest.mark.parametrize("factor", [0.5, 1.0, 1.7])
def test_a_factor_is_a_range_of_so_many_times_the_layers_and_settles_as_one(network, factor, trained):
    layers = list(analog_layers(network).values())
    before = [(layer.input_range, layer.weight_range) for layer in layers]
    ranges = TrainedRanges(layers, **trained)
    set_factors(ranges, factor)
    seen = network(images())
    held = [layer.stored_weight.detach() for layer in layers]
    ranges.settle()
    factors = (factor if trained.get("inputs", True) else 1, factor if trained.get("weights") else 1)
    for layer, (input_range, weight_range) in zip(layers, before, strict=True):
        assert layer.input_range == pytest.approx(factors[0] * input_range)
        assert layer.weight_range == pytest.approx(factors[1] * weight_range)
    for layer, stored in zip(layers, held, strict=True):
        torch.testing.assert_close(layer.stored_weight.detach(), stored)
    torch.testing.assert_close(network(images()), seen)


def test_the_gradient_to_a_range_is_that_of_a_factor_on_inputs_and_outputs(network):
    network.double()
    layers = list(analog_layers(network).values())
    for layer in layers:
        x = torch.rand(4, *((2, 6, 6) if layer is layers[0] else (4, 4, 4) if layer is layers[1] else (16,))).double()
        log_factor = torch.zeros((), dtype=torch.double, requires_grad=True)
        bias = layer.bias.view(-1, *[1] * (x.dim() - 2))
        outputs = (layer(x / log_factor.exp()) - bias) * log_factor.exp() + bias
        target = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(2)).double()
        (expected,) = torch.autograd.grad((outputs * target).sum(), log_factor)
        ranges = TrainedRanges([layer])
        (found,) = torch.autograd.grad((layer(x) * target).sum(), list(ranges.parameters()))
        ranges.settle()
        torch.testing.assert_close(found, expected)


def test_ranges_do_not_train_before_they_are_calibrated():
    layer = convert(nn.Linear(2, 2), seed=0)
    with pytest.raises(ValueError, match="calibrate the network first"):
        TrainedRanges([layer])


def test_what_follows_a_layer_may_work_in_place(network):
    network[1].inplace = True
    ranges = TrainedRanges(list(analog_layers(network).values()))
    network(images()).sum().backward()
    assert all(log_range.grad.isfinite() for log_range in ranges.parameters())


def test_a_factor_on_the_weights_widens_the_range_of_every_column(network):
    configure(network, weights=WeightFormat(columns=True))
    layers = list(analog_layers(network).values())
    before = [layer.column_ranges for layer in layers]
    ranges = TrainedRanges(layers, **BOTH)
    set_factors(ranges, 1.3)
    seen = network(images())
    ranges.settle()
    for layer, columns in zip(layers, before, strict=True):
        torch.testing.assert_close(layer.column_ranges, 1.3 * columns)
    torch.testing.assert_close(network(images()), seen)


def test_a_wider_range_of_the_weights_takes_less_energy_and_the_energy_says_so(network):
    layers = list(analog_layers(network).values())
    ranges = TrainedRanges(layers, inputs=False, weights=True)
    network(images())
    slopes = torch.autograd.grad(network_energy(layers), list(ranges.parameters()))
    assert all(float(slope) < 0 for slope in slopes)


def test_a_clipped_weight_fills_the_trained_range(network):
    layer = next(iter(analog_layers(network).values()))
    ranges = TrainedRanges([layer], inputs=False, weights=True)
    network(images())
    set_factors(ranges, 0.5)
    wide = layer.weight_range
    layer.clip_weight()
    assert float(layer.weight.detach().abs().max()) == pytest.approx(0.5 * wide)


def test_weights_that_do_not_train_keep_their_range(network):
    first, *others = analog_layers(network).values()
    first.weight.requires_grad_(False)
    ranges = TrainedRanges([first, *others], **BOTH)
    assert (len(ranges.log_input_ranges), len(ranges.log_weight_factors)) == (3, 2)
    held = first.stored_weight
    set_factors(ranges, 1.3)
    network(images())
    torch.testing.assert_close(first.stored_weight, held)


def test_a_network_in_training_can_be_copied(network):
    ranges = TrainedRanges(list(analog_layers(network).values()), **BOTH)
    set_factors(ranges, 1.3)
    seen = network(images())
    torch.testing.assert_close(copy.deepcopy(network)(images()), seen)


def test_arrays_that_pulses_move_keep_the_range_of_their_weights(network):
    configure(network, weights=WeightFormat(bits=None))
    module = Classifier(
        network, 3, lambda groups: PulsedSGD(groups, lr=0.1, device=ideal()), objective=Objective(weight_range_lr=0.1)
    )
    with pytest.raises(ValueError, match=r"objective\.weight_range_lr is 0\.1, but PulsedSGD moves the weights"):
        module.configure_optimizers()


def test_a_network_in_training_is_saved_and_goes_on_with_its_ranges(network):
    layers = list(analog_layers(network).values())
    module = Classifier(network, 3, torch.optim.SGD, objective=Objective(range_lr=0.1, weight_range_lr=0.1))
    set_factors(module.ranges, 1.3)
    seen = module(images())
    state = copy.deepcopy(module.state_dict())
    weight_ranges = [layer.weight_range for layer in layers]
    set_factors(module.ranges, 0.5)
    module.load_state_dict(state)
    assert [layer.weight_range for layer in layers] == weight_ranges
    torch.testing.assert_close(module(images()), seen)


def test_a_wider_range_sends_fewer_pulses_and_the_energy_says_so(network):
    layers = list(analog_layers(network).values())
    ranges = TrainedRanges(layers)
    energies = []
    for factor in (1.0, 2.0):  # twice as wide the second time
        set_factors(ranges, factor)
        with counting_pulses(layers, 8) as counted:
            network(images())
        energy = torch.stack(counted).sum()
        slopes = torch.autograd.grad(energy, list(ranges.parameters()))
        assert all(float(slope) < 0 for slope in slopes)
        energies.append(float(energy.detach()))
    assert energies[1] < 0.6 * energies[0]


def test_training_moves_the_ranges_at_their_own_rate_without_weight_decay(network):
    module = Classifier(
        network,
        3,
        lambda groups: torch.optim.SGD(groups, lr=0.1, weight_decay=0.5),
        objective=Objective(range_lr=0.7, weight_range_lr=0.3),
    )
    module.log = lambda *args, **kwargs: None
    before = [float(log_range.detach()) for log_range in module.ranges.parameters()]
    optimizer = module.configure_optimizers()
    rates = [(group["lr"], group["weight_decay"], len(group["params"])) for group in optimizer.param_groups[-2:]]
    assert rates == [(0.7, 0.0, 3), (0.3, 0.0, 3)]
    module.training_step((images(), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])), 0).backward()
    optimizer.step()
    moved = zip(before, module.ranges.parameters(), strict=True)
    assert all(float(log_range.detach()) != start for start, log_range in moved)


def test_without_a_rate_nothing_is_hooked(network):
    assert Classifier(network, 3, torch.optim.SGD, objective=Objective()).ranges is None
