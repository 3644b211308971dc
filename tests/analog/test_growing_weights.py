"""What training leaves of ρ and of the range of weights: decay, weights that outgrow their range."""

import copy
import io
import math

import pytest
import torch
from torch import nn

from energytl import Hardware, InputFormat, MultilevelPair, Noiseless, WeightFormat, analog_layers, calibrate, convert

pytestmark = pytest.mark.usefixtures("one_thread")

DECAYING = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    "Adam": lambda p: torch.optim.Adam(p, 0.1, weight_decay=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.1, weight_decay=0.1),
}


@pytest.mark.parametrize("optimizer", DECAYING)
def test_decay_without_a_gradient_leaves_rho_where_it_started(optimizer):
    analog = convert(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), Hardware(rho=7.0), seed=0)
    analog[1].configure(rho=0.3)
    again = copy.deepcopy(analog)
    again.load_state_dict(analog.state_dict())
    for network in (analog, again):
        stepper = DECAYING[optimizer](network.parameters())
        for p in network.parameters():
            p.grad = torch.zeros_like(p)
        for _ in range(100):
            stepper.step()
        assert [float(layer.rho.detach()) for layer in network] == pytest.approx([7.0, 0.3], rel=1e-6)


def test_rho_is_loaded_into_a_network_of_any_start():
    analog = convert(nn.Linear(2, 2), Hardware(rho=7.0))
    with torch.no_grad():
        analog.log_rho.fill_(-1.0)
    file = io.BytesIO()
    torch.save(analog.state_dict(), file)
    file.seek(0)
    other = convert(nn.Linear(2, 2), Hardware(rho=0.1)).double()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert float(other.rho.detach()) == pytest.approx(7.0 / math.e, rel=1e-6)


FORMATS = {
    "by weights": Hardware(weights=WeightFormat(8), computation=Noiseless()),
    "max": Hardware(weights=WeightFormat(8, range_by="max"), computation=Noiseless()),
    "columns": Hardware(weights=WeightFormat(8, columns=True), computation=Noiseless()),
    "rms": Hardware(weights=WeightFormat(8, range_rms=3.0), computation=Noiseless()),
    "levels": Hardware(mapping=MultilevelPair((1, 2, 4, 8, 16, 32, 64)), computation=Noiseless()),
}


def trained(network, steps=300, follow=False):
    """Loss after so many steps from a start near zero towards a random matrix; the range may follow every step."""
    torch.manual_seed(1)
    x = torch.randn(256, 16)
    y = x @ torch.randn(16, 4)
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (network(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        if follow:
            network.fit_weight_range()
    return float(loss.detach())


@pytest.mark.parametrize("hardware", FORMATS)
def test_weights_that_start_near_zero_learn_as_digital_ones(hardware):
    torch.manual_seed(0)
    digital = nn.Linear(16, 4)
    nn.init.normal_(digital.weight, std=1e-3)
    hardware = FORMATS[hardware]
    analog = convert(copy.deepcopy(digital), Hardware(**{**vars(hardware), "inputs": InputFormat(8)}))
    start = analog.weight_range if analog.column_ranges is None else float(analog.column_ranges.max())
    followed = trained(copy.deepcopy(analog), follow=True)
    assert trained(analog) <= 2 * followed < 0.1 * trained(digital, 1)
    largest = analog.weight_range if analog.column_ranges is None else float(analog.column_ranges.max())
    assert largest > 100 * start


@pytest.mark.parametrize("weights", [WeightFormat(8, range=2e-3), WeightFormat(8, range_by="outputs")], ids=repr)
def test_weights_that_outgrow_a_given_range_are_named_once(weights):
    net = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4))
    net[0].requires_grad_(False)
    nn.init.normal_(net[1].weight, std=1e-3)
    analog = convert(net, Hardware(weights=weights, computation=Noiseless()))
    calibrate(analog, [torch.randn(64, 16)])
    with pytest.warns(UserWarning, match=r"more than 10% of the weights of layer 1 \(AnalogLinear\)") as warned:
        trained(analog, 100)
    assert len(warned) == 1


def test_ranges_stay_while_weights_stay_within_and_without_gradients():
    torch.manual_seed(0)
    analog = convert(nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 16)), Hardware(computation=Noiseless()))
    before = [layer.weight_range for layer in analog_layers(analog).values()]
    optimizer = torch.optim.SGD(analog.parameters(), 1e-7)
    for _ in range(40):
        analog(torch.rand(4, 16)).square().sum().backward()
        optimizer.step()
    assert [layer.weight_range for layer in analog_layers(analog).values()] == before
    with torch.no_grad():
        for _ in range(40):
            analog[0].weight.mul_(1.1)
            analog(torch.rand(4, 16))
    assert [layer.weight_range for layer in analog_layers(analog).values()] == before
