"""Costs of networks: counts by hand and from the papers, energies as sums over layers and means over images."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision import models

from energytl import (
    Arrays,
    BitCells,
    BitSerialRead,
    Cell,
    Converter,
    DifferentialPair,
    FullRange,
    Hardware,
    InputFormat,
    Noiseless,
    OneCell,
    Periphery,
    RepeatedRead,
    SingleRead,
    WaldenConverter,
    WeightFormat,
    analog_layers,
    calibrate,
    convert,
    estimate,
)
from energytl.cost.energy import cell_energy, paper_energy
from energytl.cost.estimate import mean_cost
from energytl.devices import presets
from energytl.models import SideBySide
from energytl.optim import CTTv2, PulsedSGD

pytestmark = pytest.mark.usefixtures("one_thread")

ENERGIES = ("energy_paper", "energy_cell_j", "energy_converter_j", "energy_row_driver_j", "energy_shift_add_j")


@pytest.fixture
def images():
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def small(**hardware):
    """64 + 16 + 1 output positions; 216 + 288 + 1,280 weights."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    return convert(network, Hardware(**{"computation": Noiseless(), **hardware}), seed=0)


def test_shapes_and_positions_by_hand(images):
    layers = estimate(small(), images).layers
    assert [(layer.name, layer.groups, layer.rows, layer.outputs, layer.positions) for layer in layers] == [
        ("0", 1, 27, 8, 64),
        ("2", 2, 36, 4, 16),
        ("5", 1, 128, 10, 1),
    ]


@pytest.mark.parametrize(("mapping", "factor"), [(OneCell(), 1), (DifferentialPair(), 2), (BitCells(), 5)], ids=repr)
def test_cells_by_hand(images, mapping, factor):
    cost = estimate(small(mapping=mapping), images)
    assert [layer.cells for layer in cost.layers] == [216 * factor, 288 * factor, 1280 * factor]
    assert cost.cells == 1784 * factor


@pytest.mark.parametrize(
    ("scheme", "factor"), [(SingleRead(), 1), (RepeatedRead(3), 3), (BitSerialRead(), 4)], ids=repr
)
def test_reads_and_latency_by_hand(images, scheme, factor):
    network = small(read=scheme, inputs=InputFormat(4), cell=Cell(read_s=2e-9))
    bare = estimate(network, images, periphery=None)
    assert [layer.reads for layer in bare.layers] == [64 * factor, 16 * factor, factor]
    assert bare.reads == 81 * factor
    assert bare.latency_s == pytest.approx(81 * factor * 2e-9)
    periphery = Periphery(converter=WaldenConverter(6), columns_per_converter=4)
    assert estimate(network, images, periphery).latency_s == pytest.approx(81 * factor * (2e-9 + 4 * 7e-9))


@pytest.mark.parametrize(
    ("name", "cells", "positions"), [("resnet18", 11_678_912, 30_234), ("resnet34", 21_779_648, 41_308)]
)
def test_networks_of_wang_2021_have_its_cells_and_positions(name, cells, positions):
    scheme, cell = BitSerialRead(), Cell(read_s=5e-9)
    network = convert(models.get_model(name), Hardware(computation=Noiseless(), read=scheme, cell=cell))
    cost = estimate(network, torch.zeros(1, 3, 224, 224), periphery=None, blank=True)
    assert cost.cells == cells
    assert sum(layer.positions for layer in cost.layers) == positions
    assert cost.latency_s == pytest.approx(positions * 5 * 5e-9)  # five bits of 5 ns


def test_energies_are_those_of_the_inputs_that_really_arrive(images):
    network = calibrate(small(), [images])
    cost = estimate(network, images)
    with torch.no_grad():
        inputs = {"0": images, "2": network[:2](images), "5": network[:5](images)}
        for layer in cost.layers:
            module = analog_layers(network)[layer.name]
            assert layer.energy_paper == pytest.approx(float(paper_energy(module, inputs[layer.name])) / 4)
            assert layer.energy_cell_j == pytest.approx(float(cell_energy(module, inputs[layer.name])) / 4)


def test_energies_are_means_over_images_and_all_else_does_not_depend_on_them(images):
    network = calibrate(small(), [images])
    whole, parts = estimate(network, images), [estimate(network, image.unsqueeze(0)) for image in images]
    for field in ENERGIES:
        for layer, *same in zip(whole.layers, *(part.layers for part in parts), strict=True):
            assert getattr(layer, field) == pytest.approx(sum(getattr(one, field) for one in same) / 4)
    assert len({part.energy_paper for part in parts}) == 4
    mean = mean_cost(parts)
    assert mean.numbers() == pytest.approx(whole.numbers())
    assert [layer.reads for layer in mean.layers] == [layer.reads for layer in whole.layers]


def test_totals_are_sums_over_layers_and_parts(images):
    cost = estimate(small(), images)
    for layer in cost.layers:
        assert layer.energy_total_j == pytest.approx(sum(getattr(layer, field) for field in ENERGIES[1:]))
        assert all(getattr(layer, field) > 0 for field in ENERGIES)
    for field in ("energy_paper", "energy_cell_j", "energy_total_j"):
        assert getattr(cost, field) == pytest.approx(sum(getattr(layer, field) for layer in cost.layers))
    assert cost.energy_j == cost.energy_total_j
    assert cost.numbers().keys() == {"energy_paper", "energy_cell_j", "energy_total_j", "latency_s", "cells", "reads"}
    assert [row["energy_total_j"] for row in cost.rows()] == [layer.energy_total_j for layer in cost.layers]


def test_what_is_not_modelled_is_none_and_never_zero(images):
    network = small()
    bare = estimate(network, images, periphery=None)
    assert bare.energy_cell_j > 0
    assert bare.energy_total_j is bare.energy_j is None
    for layer in bare.layers:
        assert [getattr(layer, field) for field in (*ENERGIES[2:], "energy_total_j")] == [None] * 4
    blank = estimate(network, images, blank=True)
    assert blank.energy_paper is blank.energy_cell_j is blank.energy_total_j is None
    for layer in blank.layers:
        assert [getattr(layer, field) for field in (*ENERGIES[:2], "energy_total_j")] == [None] * 3
        assert all(getattr(layer, field) > 0 for field in ENERGIES[2:])
    assert mean_cost([bare, bare]).energy_total_j is None
    assert mean_cost([blank, blank]).energy_paper is None
    assert len(blank.not_modelled) > 0


def test_zero_inputs_cost_zero_and_are_not_unknown(images):
    cost = estimate(small(), 0 * images)
    assert cost.layers[0].energy_cell_j == 0.0
    assert cost.layers[0].energy_converter_j > 0


def test_a_layer_that_is_called_twice_is_read_twice_and_built_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x):
            return self.layer(self.layer(x))

    network = convert(Twice(), Hardware(computation=Noiseless()))
    cost = estimate(network, torch.rand(3, 6))
    assert (cost.cells, cost.reads) == (36, 2)


@pytest.mark.parametrize("shape", [(2, 5, 6), (2, 5, 1, 6)])
def test_tokens_are_positions(shape):
    cost = estimate(convert(nn.Linear(6, 4)), torch.rand(shape))
    assert (cost.layers[0].positions, cost.reads) == (5, 5)


def test_windows_of_an_image_are_positions_of_the_image():
    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 4)

        def forward(self, x):
            return self.layer(x.reshape(-1, 5, 6))  # (N·W, T, K), as swin transformers do

    assert estimate(convert(Windows()), torch.rand(2, 3, 5, 6)).reads == 15


def test_estimating_leaves_no_traces(images):
    network = small().train()
    hooks = [list(layer._forward_hooks) for layer in network.modules()]
    estimate(network, images)
    assert network.training
    assert [list(layer._forward_hooks) for layer in network.modules()] == hooks
    assert all(parameter.grad is None for parameter in network.parameters())


def test_estimating_leaves_frozen_modules_frozen(images):
    network = small().train()
    network[1].eval()
    estimate(network, images)
    assert not network[1].training


def test_a_blank_example_sets_no_input_range(images):
    network = small()
    estimate(network, torch.zeros_like(images), blank=True)
    assert [layer.input_range for layer in analog_layers(network).values()] == [None] * 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_inputs_of_other_types_are_estimated(dtype):
    network = convert(nn.Linear(6, 4), Hardware(computation=Noiseless()))
    assert estimate(network, torch.ones(2, 6, dtype=dtype)).energy_paper > 0


def equal_runs(runs, **hardware):
    """As many networks of the same weights, converted and calibrated, and their inputs, the same for all."""
    digital, random = SideBySide(features=8, classes=2, runs=runs), torch.Generator().manual_seed(0)
    weight, x = torch.randn(2, 8, 1, 1, generator=random), torch.rand(5, 8, 1, 1, generator=random)
    with torch.no_grad():
        digital.layer.weight.copy_(weight.repeat(runs, 1, 1, 1))
    x = x.repeat(1, runs, 1, 1)
    return calibrate(convert(digital, Hardware(**{"computation": Noiseless(), **hardware}), seed=0), [x]), x


@pytest.mark.parametrize("mapping", [OneCell(), DifferentialPair(), BitCells()], ids=repr)
@pytest.mark.parametrize("scheme", [SingleRead(), BitSerialRead()], ids=repr)
@pytest.mark.parametrize("rows", [3, 128])
def test_one_of_several_runs_costs_what_a_network_of_its_own_does(mapping, scheme, rows):
    hardware = {"mapping": mapping, "read": scheme, "arrays": Arrays(rows=rows)}
    several, one = (estimate(*equal_runs(runs, **hardware)) for runs in (4, 1))
    assert several.cells == 4 * one.cells
    found = several.of_one(4)
    assert found.numbers() == pytest.approx(one.numbers(), rel=1e-5)
    assert [row["name"] for row in found.rows()] == ["layer"]
    for row, expected in zip(found.rows(), one.rows(), strict=True):
        del row["name"], expected["name"]
        assert row == pytest.approx(expected, rel=1e-5)
    assert one.of_one(1) == one
    bare = estimate(*equal_runs(4), None).of_one(4)
    assert bare.energy_total_j is None
    assert bare.energy_cell_j == pytest.approx(estimate(*equal_runs(1), None).energy_cell_j)


def costs_of_training_one(kind):
    """Numbers of training one of four equal runs, and of the same run alone."""
    found = []
    for runs in (4, 1):
        network, x = equal_runs(runs, weights=WeightFormat(bits=None))
        optimizer = kind(network.parameters(), lr=0.1, device=presets.ideal(100), seed=0)
        optimizer.fuse = False
        for _ in range(3):
            logits = network(x)
            logits.backward(torch.ones_like(logits))
            optimizer.step()
        cost = estimate(network, x).with_training(optimizer.activities(), Periphery()).of_one(runs)
        found.append({name: value for name, value in cost.numbers().items() if name.startswith("training_")})
    return found


RANDOM = ("training_pulses", "training_energy_pulses_j", "training_energy_j")


@pytest.mark.parametrize("kind", [PulsedSGD, CTTv2])
def test_training_one_of_several_runs_costs_what_training_it_alone_does(kind):
    found, expected = costs_of_training_one(kind)
    assert found["training_pulses"] > 0 and found["training_energy_j"] > 0
    assert (found["training_energy_column_reads_j"] > 0) == (kind is CTTv2)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=0.02 if name in RANDOM else 1e-5), name


def test_what_the_hardware_leaves_out_is_said_as_not_modelled():
    whole = Hardware(arrays=Arrays(wire_ohm=0.35), converter=Converter(range=FullRange()))
    for hardware, words in (
        (whole, []),
        (replace(whole, arrays=Arrays()), ["wires take"]),
        (replace(whole, converter=None), ["rounding by the converters"]),
        (replace(whole, sensing_noise=None), ["noise of sensing"]),
    ):
        said = " ".join(estimate(convert(nn.Linear(4, 2), hardware), torch.ones(1, 4)).not_modelled)
        assert [
            word for word in ("wires take", "rounding by the converters", "noise of sensing") if word in said
        ] == words
