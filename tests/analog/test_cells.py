"""What a layer's cells hold: written, stuck, drifted; and that reads, energy and exported conductances all see it."""

import pytest
import torch
from torch import nn

import energytl
from energytl import (
    Arrays,
    BitSlices,
    DifferentialPair,
    Drift,
    Hardware,
    MultilevelPair,
    Nandakumar2019,
    Noiseless,
    OneCell,
    PcmDrift,
    RramRelaxation,
    Stuck,
    Wan2022,
    convert,
)
from energytl.cost.energy import cell_energy

pytestmark = pytest.mark.usefixtures("one_thread")

MAPPINGS = [OneCell(), DifferentialPair(), BitSlices(2), MultilevelPair()]
CHANGES = {
    "written": {"programming": Wan2022()},
    "stuck": {"stuck": Stuck(hrs=0.1, lrs=0.02)},
    "drifted": {"drift": Drift(PcmDrift(), 86_400.0)},
    "all": {
        "programming": Nandakumar2019(),
        "stuck": Stuck(hrs=0.1),
        "drift": Drift(RramRelaxation(), 100.0),
        "arrays": Arrays(wire_ohm=1.0),
    },
}


def layer(mapping=OneCell(), conv=False, **changes):
    torch.manual_seed(0)
    digital = nn.Conv2d(6, 8, 3) if conv else nn.Linear(40, 30)
    found = convert(digital, Hardware(mapping=mapping, rho=30.0, computation=Noiseless(), **changes), seed=0)
    found.input_range = 1.0
    return found


@pytest.mark.parametrize("mapping", MAPPINGS, ids=repr)
@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("conv", [False, True])
def test_what_is_read_and_what_is_paid_is_what_the_cells_hold(mapping, changes, conv):
    ideal, held = layer(mapping, conv), layer(mapping, conv, **CHANGES[changes])
    siemens, x = held.siemens(), torch.rand(*((5, 6, 4, 4) if conv else (5, 40)))
    assert not torch.allclose(siemens, ideal.siemens())
    with torch.no_grad():
        assert not torch.allclose(held(x), ideal(x), atol=1e-3)
        paid = float(cell_energy(held, x))
    integers = (held.prepared(x).clamp(-1, 1) * 31).round().abs() / 31
    expected = 0.2**2 * 10e-9 * float(held.multiply(integers, siemens.sum(0), None).double().sum())
    assert paid == pytest.approx(expected, rel=1e-5)
    if "arrays" not in CHANGES[changes]:  # wires take from what is read, not from what is held
        mapping, weights, target = held.hardware.read_cells, held.hardware.weights, held.stored_weight.detach()
        sign = torch.where(mapping.stored(target, weights) < 0, -1.0, 1.0)
        values = sign * (siemens[: len(sign)] - 8e-6) / 30e-6
        expected = torch.tensordot(torch.tensor(mapping.significances(weights)), values, 1)
        assert torch.allclose(held._held(held.weight).weight.detach() / held.weight_range, expected, atol=1e-5)


@pytest.mark.parametrize("changes", CHANGES)
def test_each_chip_has_cells_of_its_own_and_keeps_them(changes):
    held, x = layer(DifferentialPair(), **CHANGES[changes]), torch.rand(3, 40)
    first, again = held(x), held(x)
    other = energytl.configure(held, chip=1)(x)
    assert torch.equal(first, again) and not torch.allclose(first, other, atol=1e-3)


def test_one_more_step_changes_nothing_that_the_others_draw():
    alone = layer(DifferentialPair(), programming=Wan2022())
    more = layer(DifferentialPair(), programming=Wan2022(), stuck=Stuck(hrs=1e-9))
    assert torch.equal(alone.siemens(), more.siemens())


@pytest.mark.parametrize("mapping", MAPPINGS, ids=repr)
def test_gradients_are_those_of_what_should_be_held(mapping):
    grads = []
    for changes in ({}, CHANGES["written"], CHANGES["stuck"]):
        network = layer(mapping, **changes)
        network(torch.eye(40)).sum().backward()
        grads.append(network.weight.grad)
    assert torch.allclose(grads[0], grads[1]) and torch.allclose(grads[0], grads[2])


@pytest.mark.parametrize("conv", [False, True])
def test_compensation_puts_outputs_right_but_for_what_differs_between_cells(conv):
    x = torch.rand(*((5, 6, 4, 4) if conv else (5, 40)))
    ideal, errors = layer(DifferentialPair(), conv)(x), {}
    for compensation in ("none", "layer", "column"):
        drift = Drift(PcmDrift(noise=False), 1e6, compensation)
        errors[compensation] = float((layer(DifferentialPair(), conv, drift=drift)(x) - ideal).detach().norm())
    assert errors["layer"] < 0.5 * errors["none"]
    assert errors["column"] < 1.2 * errors["layer"]


def test_stuck_cells_have_the_conductances_of_the_window():
    siemens = layer(DifferentialPair(), stuck=Stuck(hrs=0.3, lrs=0.2)).siemens()
    count = siemens.numel()
    for share, state in ((0.2, 90e-6), (0.3, 8e-6)):
        at = float(torch.isclose(siemens, torch.tensor(state), rtol=1e-4).float().mean())
        idle = 0.5 * 0.5 if state == 8e-6 else 0.0  # of the others, half stand idle there
        assert at == pytest.approx(share + idle, abs=0.05)
    assert count == 2 * 40 * 30


def test_conductances_come_array_by_array_with_their_layout():
    network = convert(
        nn.Sequential(nn.Conv2d(6, 8, 3, groups=2), nn.Flatten(), nn.Linear(32, 5)),
        Hardware(mapping=DifferentialPair(), arrays=Arrays(rows=16)),
    )
    found = energytl.conductances(network)
    assert list(found) == ["0", "2"]
    assert [tuple(part.shape) for part in found["0"]] == [(2, 9, 4, 2)] * 3
    assert [tuple(part.shape) for part in found["2"]] == [(1, 16, 5, 2)] * 2
    whole = torch.cat(found["2"], 1)[0]  # rows, outputs, cells
    weights = (whole[..., 0] - whole[..., 1]).T / 10e-6 * network[2].weight_range
    assert torch.allclose(weights, network[2].stored_weight.detach() * network[2].weight_range, atol=1e-6)


def test_conductances_beyond_the_window_are_refused_by_layer():
    network = convert(nn.Linear(4, 4), Hardware(rho=82.0, weights=energytl.WeightFormat(bits=None, range=0.01)))
    with pytest.raises(ValueError, match=r"layer network: \d+ of 16 cells conduct more than the 9e-05 S"):
        energytl.conductances(network)
