"""Variation of cells: its statistics, which levels it concerns, and that it stays with its chip."""

import pytest
import torch
from torch import nn

from energytl import Cell, Hardware, MultilevelPair, Noiseless, Variation, WeightFormat, convert
from energytl.devices.programming import Scale

LEVELS = (0.0, 1 / 8, 3 / 8, 1.0)


def drawn(variation, stored, seed=0):
    return variation.written(stored, Scale(Cell(), 1e-6, LEVELS), torch.Generator().manual_seed(seed))


def test_each_level_varies_by_its_own_share():
    # Dong 2018, §II: 27.4 %, 14.5 % and 10.7 % of the levels 1, 3 and 8
    stored = torch.tensor(LEVELS).repeat(50_000, 1)
    held = drawn(Variation((0.274, 0.145, 0.107)), stored)
    assert held[:, 0].abs().max() == 0
    relative = held[:, 1:] / stored[:, 1:]
    torch.testing.assert_close(relative.mean(0), torch.ones(3), atol=0.005, rtol=0)
    torch.testing.assert_close(relative.std(0), torch.tensor([0.274, 0.145, 0.107]), atol=0.002, rtol=0)


def test_conductances_stay_above_zero():
    held = drawn(Variation(0.5), torch.full((20_000,), 0.5))
    assert held.min() >= 0
    assert 0.01 < (held == 0).double().mean() < 0.04  # 2.3 % of a normal number lie two deviations below


def test_the_gradient_is_that_of_cells_that_do_not_vary():
    grads = []
    for programming in (None, Variation(0.3)):
        layer = convert(nn.Linear(4, 3), Hardware(programming=programming, computation=Noiseless()), seed=0)
        torch.manual_seed(0)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(3, 4))
        layer.fit_weight_range()
        layer(torch.eye(4)).sum().backward()
        grads.append(layer.weight.grad)
    assert torch.equal(*grads)


def test_a_chip_keeps_its_cells_and_layers_have_different_ones():
    network = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    network[1].weight.data = network[0].weight.data
    hardware = Hardware(mapping=MultilevelPair(), programming=Variation(0.2), computation=Noiseless())
    analog, x = convert(network, hardware), torch.eye(4)
    first, second = analog[0](x), analog[1](x)
    assert torch.equal(analog[0](x), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("mapping", [{}, {"mapping": MultilevelPair((1, 3))}], ids=["no levels", "two levels"])
def test_one_number_a_level_wants_as_many_levels(mapping):
    with pytest.raises(ValueError, match=r"hardware\.programming\.relative has a number for each of 3 levels, but"):
        Hardware(programming=Variation((0.1, 0.2, 0.3)), **mapping)
    with pytest.raises(ValueError, match=r"programming\.relative is -0\.1; allowed: 0 to 100"):
        Variation(-0.1)
    with pytest.raises(ValueError, match=r"weights\.columns wants rounded weights"):
        Hardware(weights=WeightFormat(bits=None, columns=True))
