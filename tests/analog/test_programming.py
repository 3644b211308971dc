"""Whole networks that are written onto arrays: what changes, what stays, what is refused."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from energytl import (
    BitSlices,
    DifferentialPair,
    GaussianWrite,
    Hardware,
    Milo2021,
    MultilevelPair,
    Noiseless,
    OneCell,
    Stuck,
    Wan2022,
    WeightFormat,
    analog_layers,
    convert,
    program_,
)
from energytl.devices.programming import WriteError

ERRORS = [GaussianWrite(0.1), Wan2022(), Milo2021()]
STANDARD_ERRORS = 5


@dataclass(frozen=True)
class Shifted(WriteError):
    """Every cell comes out higher."""

    by: float

    def written(self, targets, scale, generator):
        return targets + self.by


def network(bits=None, **hardware):
    torch.manual_seed(0)
    digital = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 50), nn.Linear(50, 4))
    return convert(digital, Hardware(weights=WeightFormat(bits=bits), computation=Noiseless(), **hardware), seed=0)


def weights(model):
    return {name: layer.weight.detach().clone() for name, layer in analog_layers(model).items()}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_every_array_gets_errors_within_its_range_and_biases_stay(error):
    model = network()
    before, biases = weights(model), [layer.bias.detach().clone() for layer in analog_layers(model).values()]
    ranges = [layer.weight_range for layer in analog_layers(model).values()]
    assert program_(model, error, seed=0) is model
    for (name, layer), bias, full_range in zip(analog_layers(model).items(), biases, ranges, strict=True):
        assert (layer.weight != before[name]).float().mean() > 0.9
        assert layer.weight.abs().max() <= full_range * (1 + 1e-6)
        assert layer.weight_range == full_range
        assert torch.equal(layer.bias, bias)
        assert isinstance(layer.weight, nn.Parameter)
        assert layer.weight.requires_grad


@pytest.mark.parametrize("by", [0.25, -1.5])
def test_errors_are_in_units_of_each_layers_range_and_cut_to_it(by):
    model = network()
    before = weights(model)
    program_(model, Shifted(by))
    for name, layer in analog_layers(model).items():
        full = layer.weight_range
        torch.testing.assert_close(
            layer.weight.detach(), before[name].sign() * (before[name].abs() + by * full).clamp(-full, full)
        )
    assert by > 0 or (layer.weight == -full).any()


def test_the_spread_of_gaussian_errors():
    model = network()
    layer = analog_layers(model)["3"]
    before = layer.weight.detach().clone()
    program_(model, GaussianWrite(0.02), seed=1)
    inside = before.abs() < 0.85 * layer.weight_range  # 7 standard deviations from being cut
    errors = ((layer.weight.detach() - before) / layer.weight_range)[inside]
    count = len(errors)
    assert count > 5000
    assert float(errors.std()) == pytest.approx(0.02, abs=STANDARD_ERRORS * 0.02 / (2 * count) ** 0.5)
    assert float(errors.mean()) == pytest.approx(0, abs=STANDARD_ERRORS * 0.02 / count**0.5)


def test_what_was_written_is_what_is_read():
    model = network()
    x = torch.rand(2, 3, 8, 8)
    program_(model, GaussianWrite(0.1), seed=0)
    layer = analog_layers(model)["3"]
    torch.testing.assert_close(layer.stored_weight * layer.weight_range, layer.weight)
    exact = copy.deepcopy(model)
    program_(exact, GaussianWrite(0.0))
    torch.testing.assert_close(exact(x), model(x))


def test_stuck_cells_hold_nothing_or_all_that_their_window_lets_them():
    model = network(rho=41.0)
    program_(model, Shifted(0.5), stuck=Stuck(hrs=0.3, lrs=0.1), seed=0)
    layer = analog_layers(model)["3"]
    values = layer.weight.detach() / layer.weight_range
    count = values.numel()
    full = 82 / 41  # the window above g_min, in units of the full range
    assert float((values == 0).float().mean()) == pytest.approx(0.3, abs=STANDARD_ERRORS * (0.21 / count) ** 0.5)
    highest = (values.abs() - full).abs() < 1e-4
    assert float(highest.float().mean()) == pytest.approx(0.1, abs=STANDARD_ERRORS * (0.09 / count) ** 0.5)
    assert (values[~highest].abs() <= 1 + 1e-6).all()


@pytest.mark.parametrize("mapping", [OneCell(), DifferentialPair(), BitSlices(2), MultilevelPair()], ids=repr)
def test_rounded_weights_are_written_cell_by_cell_on_the_chip_of_the_seed(mapping):
    x = torch.rand(2, 3, 8, 8)
    models = [network(bits=5, mapping=mapping, rho=20.0) for _ in range(4)]
    written = [models[0]] + [program_(m, Wan2022(), seed=seed) for m, seed in zip(models[1:], (1, 1, 2), strict=True)]
    clear, first, again, other = (model(x) for model in written)
    assert torch.equal(first, again)
    assert not torch.allclose(first, clear, atol=1e-3) and not torch.allclose(first, other, atol=1e-3)
    assert weights(models[1]).keys() == weights(models[0]).keys()
    assert all(torch.equal(weights(models[1])[name], weights(models[0])[name]) for name in weights(models[0]))
    with pytest.raises(ValueError, match=r"layer 0 has hardware\.programming, stuck, drift"):
        program_(models[1], Wan2022())


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_seed_decides_what_is_written(error):
    first, again, other = (weights(program_(network(), error, stuck=Stuck(hrs=0.1), seed=seed)) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_torchs_global_seed_decides_without_a_seed():
    written = []
    for _ in range(2):
        model = network()
        torch.manual_seed(5)
        written.append(weights(program_(model, GaussianWrite(0.1))))
    assert all(torch.equal(written[0][name], written[1][name]) for name in written[0])


def test_layers_draw_different_errors():
    model = convert(nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9)), Hardware(weights=WeightFormat(bits=None)))
    before = weights(model)
    program_(model, GaussianWrite(0.01), seed=0)
    errors = [(layer.weight - before[name]) / layer.weight_range for name, layer in analog_layers(model).items()]
    assert not torch.allclose(*errors, atol=1e-4)


def test_a_shared_array_is_written_once():
    layer = nn.Linear(5, 5)
    tied = nn.Linear(5, 5)
    tied.weight = layer.weight
    model = convert(nn.Sequential(layer, tied), Hardware(weights=WeightFormat(bits=None)))
    before = layer.weight.detach().clone()
    program_(model, Shifted(-0.1))
    layer = analog_layers(model)["1"]
    full = analog_layers(model)["0"].weight_range
    torch.testing.assert_close(layer.weight.detach(), before.sign() * (before.abs() - 0.1 * full).clamp(-full, full))


def test_bfloat16_weights_stay_bfloat16():
    model = network().to(torch.bfloat16)
    program_(model, Wan2022(), stuck=Stuck(hrs=0.1), seed=0)
    assert {layer.weight.dtype for layer in analog_layers(model).values()} == {torch.bfloat16}


def test_what_cannot_be_programmed_is_refused():
    with pytest.raises(ValueError, match="no analog layer to program: convert it first"):
        program_(nn.Linear(2, 2), GaussianWrite(0.1))
    with pytest.raises(TypeError, match=r"stuck is 0\.5; allowed: energytl\.Stuck"):
        program_(network(), GaussianWrite(0.1), stuck=0.5)
    with pytest.raises(ValueError, match=r"stuck\.hrs is 1\.5; allowed: 0 to 1"):
        Stuck(hrs=1.5)
    with pytest.raises(ValueError, match=r"stuck\.hrs and stuck\.lrs are 0\.6 and 0\.5; allowed: at most 1 together"):
        Stuck(0.6, 0.5)
