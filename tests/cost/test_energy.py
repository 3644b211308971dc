"""Energies of one layer against explicit loops over images, positions, rows, outputs and cells."""

from itertools import product

import pytest
import torch
from torch import nn

from energytl import (
    Arrays,
    BitCells,
    BitSerialRead,
    Cell,
    DifferentialPair,
    Hardware,
    Noiseless,
    OneCell,
    Periphery,
    RepeatedRead,
    SingleRead,
    WeightFormat,
    convert,
    estimate,
    to_digital,
)
from energytl.analog.quantize import round_to_integers
from energytl.cost.energy import (
    cell_energy,
    conversions,
    converter_energy,
    counting_pulses,
    driven_sum,
    paper_energy,
    regularised_energy,
    row_driver_energy,
    shift_add_energy,
)
from energytl.cost.periphery import WaldenConverter

pytestmark = pytest.mark.usefixtures("one_thread")

CELL = Cell(read_volt=0.3, read_s=7e-9, g_min_siemens=5e-6, g_max_siemens=60e-6)
RHO = 13.0

SCHEMES = {  # pulses of an integer input, and for how many reads' length it drives its row
    SingleRead(): (lambda n: n, lambda n: n / 31),
    RepeatedRead(3): (lambda n: 3 * n, lambda n: 3 * n / 31),
    BitSerialRead(): (lambda n: bin(n).count("1"), lambda n: bin(n).count("1")),
}
MAPPINGS = {  # magnitudes of the cells on the lines that are read, for the weight u = integer/15
    OneCell(): lambda u: [u],
    DifferentialPair(): lambda u: [u, 0.0],
    BitCells(): lambda u: [float(round(u * 15) >> p & 1) for p in range(4)],
}
LAYERS = {  # torch's layer, shape of its inputs, and its groups, rows and outputs of each group
    "linear": (lambda: nn.Linear(5, 3), (2, 5), (1, 5, 3)),
    "tokens": (lambda: nn.Linear(5, 3), (2, 4, 5), (1, 5, 3)),
    "convolution": (
        lambda: nn.Conv2d(4, 6, (2, 3), stride=(1, 2), padding=(1, 0), dilation=(1, 2), groups=2),
        (2, 4, 3, 7),
        (2, 12, 3),
    ),
    "circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 2, 3, 4), (1, 18, 3)),
}

every_layer = pytest.mark.parametrize("layer", LAYERS)
every_mapping = pytest.mark.parametrize("mapping", MAPPINGS, ids=repr)
every_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=repr)


def analog_and_inputs(layer, **hardware):
    make, shape, _ = LAYERS[layer]
    torch.manual_seed(0)
    hardware = Hardware(**{"cell": CELL, "rho": RHO, "computation": Noiseless(), **hardware})
    network = convert(make().double(), hardware).double()
    network.input_range = 0.9
    return network, torch.rand(shape, dtype=torch.float64) * 2 - 1


def nearest(values, full_range, levels):
    """|Integers| nearest to the values, cut off at levels."""
    return [min(levels, round(abs(value) * levels / full_range)) for value in values.detach().flatten().tolist()]


def meetings(network, x):
    """(|integer input|, |weight u|) for each image, position, output and row, by loops."""
    integers = torch.tensor(nearest(x, 0.9, 31)).reshape(x.shape)
    u = torch.tensor(nearest(network.weight, network.weight_range, 15)).reshape(network.weight.shape) / 15
    if u.dim() == 2:
        for row, output, k in product(integers.reshape(-1, 5), range(3), range(5)):
            yield int(row[k]), float(u[output, k])
        return
    layer, (_, _, high, wide) = to_digital(network), x.shape
    outputs, channels, *kernel = u.shape
    _, _, *size = network(x).shape
    for image, output, top, left in product(range(len(x)), range(outputs), *map(range, size)):
        first_channel = output // (outputs // layer.groups) * channels
        for channel, i, j in product(range(channels), *map(range, kernel)):
            row = top * layer.stride[0] - layer.padding[0] + i * layer.dilation[0]
            column = left * layer.stride[1] - layer.padding[1] + j * layer.dilation[1]
            if layer.padding_mode == "circular":
                row, column = row % high, column % wide
            if 0 <= row < high and 0 <= column < wide:
                yield int(integers[image, first_channel + channel, row, column]), float(u[output, channel, i, j])


@every_layer
@every_mapping
@every_scheme
def test_paper_energy_counts_rho_times_weight_for_every_pulse(layer, mapping, scheme):
    network, x = analog_and_inputs(layer, mapping=mapping, read=scheme)
    pulses, _ = SCHEMES[scheme]
    expected = sum(RHO * pulses(n) * sum(MAPPINGS[mapping](u)) for n, u in meetings(network, x))
    assert float(paper_energy(network, x).detach()) == pytest.approx(expected, rel=1e-6)  # log ρ was single precision


@every_layer
@every_scheme
def test_pulses_counted_while_a_layer_is_read_are_its_energy_and_its_estimate(layer, scheme):
    network, x = analog_and_inputs(layer, read=scheme)
    with counting_pulses([network], 2) as both, counting_pulses([network], 1) as first:
        network(x)
    network(x)  # is counted no more
    expected = float(paper_energy(network, x).detach())
    assert [float(energy.detach()) for energy in both] == pytest.approx([expected])
    assert float(both[0].detach()) / 2 == pytest.approx(estimate(network, x, None).energy_paper)
    assert [float(energy.detach()) for energy in first] == pytest.approx([float(paper_energy(network, x[:1]).detach())])


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last, None])
def test_the_gradient_of_the_first_images_energy_lies_in_memory_as_the_inputs_do(form):
    network, x = analog_and_inputs("convolution", read=BitSerialRead())
    x = x[:1].expand(len(x), -1, -1, -1) if form is None else x.contiguous(memory_format=form)
    x = x.detach().requires_grad_()
    with counting_pulses([network], 1) as energies:
        network(x)
    (found,) = torch.autograd.grad(energies[0], x)
    (expected,) = torch.autograd.grad(paper_energy(network, x[:1]), x)
    assert torch.equal(found, expected)
    assert found.any()
    assert found.stride() == torch.empty_like(x).stride()


def test_layers_are_counted_in_the_order_in_which_they_are_read():
    torch.manual_seed(0)
    network = convert(nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 2)), Hardware(computation=Noiseless()))
    x = torch.rand(4, 5)
    with counting_pulses([network[2], network[0]], 4) as energies:
        network(x)
    costs = [layer.energy_paper for layer in estimate(network, x, None).layers]
    assert [float(energy.detach()) / 4 for energy in energies] == pytest.approx(costs)


@every_layer
@every_scheme
def test_the_paper_energys_gradients_are_those_of_its_formula_straight_through_rounding(layer, scheme):
    network, x = analog_and_inputs(layer, read=scheme)
    network.weight_range = 0.9 * float(network.weight.detach().abs().max())
    x.requires_grad_()
    energy = paper_energy(network, x)
    energy.backward()
    assert float(network.log_rho.grad) == pytest.approx(float(energy.detach()))  # d(ρ·E)/d(log ρ) = ρ·E
    # Σ |w|·pulses is linear in |u| of each weight: the energy of one weight alone is its share of the slope.
    u, inside = network.stored_weight.detach(), network.weight.detach().abs() <= network.weight_range
    for place in (0, 7, 14):
        alone = torch.zeros_like(u).flatten()
        alone[place] = 1.0
        with torch.no_grad():
            pulses = driven_sum(network, scheme.pulses(_sent(network, x)), alone.view_as(u)) * network.rho
        slope = pulses * u.flatten()[place].sign() * inside.flatten()[place] / network.weight_range
        assert float(network.weight.grad.flatten()[place]) == pytest.approx(float(slope), rel=1e-5)
    assert not x.grad[x.detach().abs() > 0.9].any()
    assert x.grad[x.detach().abs() <= 0.9].any()


def _sent(network, x):
    """Padded inputs as integers."""
    return round_to_integers(network.prepared(x), network.input_range, 31)


@pytest.mark.parametrize("scheme", [SingleRead(), RepeatedRead(3)], ids=repr)
def test_gradients_to_inputs_and_weights_are_finite_differences_over_whole_levels(scheme):
    network, x = analog_and_inputs("linear", read=scheme)
    with torch.no_grad():  # on the levels, where a step of a level changes the energy by level times slope
        x = round_to_integers(x, 0.9, 31) * (0.9 / 31)
    x.requires_grad_()
    paper_energy(network, x).backward()

    def difference(changed, place, step):
        moved = changed.detach().clone()
        moved.view(-1)[place] += step
        with torch.no_grad():
            before = float(paper_energy(network, x))
            if changed is x:
                return (float(paper_energy(network, moved)) - before) / step
            kept = network.weight.clone()
            network.weight.copy_(moved)
            after = float(paper_energy(network, x))
            network.weight.copy_(kept)
            return (after - before) / step

    compared = 0
    for place in range(10):
        value = float(x.detach().flatten()[place])
        if 2 * 0.9 / 31 < abs(value) < 0.8:
            away = 0.9 / 31 if value > 0 else -0.9 / 31
            assert float(x.grad.flatten()[place]) == pytest.approx(difference(x, place, away), rel=1e-5)
            compared += 1
    level, largest = network.weight_range / 15, network.weight_range
    for place in range(15):
        value = float(network.weight.detach().flatten()[place])
        if 2 * level < abs(value) < largest - 2 * level:
            away = level if value > 0 else -level
            slope = float(network.weight.grad.flatten()[place])
            assert slope == pytest.approx(difference(network.weight, place, away), rel=1e-5)
            compared += 1
    assert compared > 15


@every_layer
@every_mapping
@every_scheme
def test_cell_energy_is_voltage_squared_times_conductance_times_time(layer, mapping, scheme):
    network, x = analog_and_inputs(layer, mapping=mapping, read=scheme)
    _, on_time = SCHEMES[scheme]
    expected = sum(
        0.3**2 * 7e-9 * on_time(n) * sum(5e-6 + RHO * 1e-6 * magnitude for magnitude in MAPPINGS[mapping](u))
        for n, u in meetings(network, x)
    )
    assert float(cell_energy(network, x).detach()) == pytest.approx(expected, rel=1e-6)


@every_layer
@every_mapping
def test_regularised_energy_is_positions_times_rho_times_weights(layer, mapping):
    network, x = analog_and_inputs(layer, mapping=mapping)
    groups, _, outputs = LAYERS[layer][2]
    positions = network(x)[0].numel() // (groups * outputs)
    magnitudes = [sum(MAPPINGS[mapping](n / 15)) for n in nearest(network.weight, network.weight_range, 15)]
    energy = regularised_energy(network)
    assert float(energy.detach()) == pytest.approx(positions * RHO * sum(magnitudes), rel=1e-6)


@every_layer
def test_regularised_energy_has_the_gradients_of_its_formula(layer):
    network, x = analog_and_inputs(layer)
    network.weight_range = 0.9 * float(network.weight.detach().abs().max())
    network(x)
    energy = regularised_energy(network)
    energy.backward()
    assert float(network.log_rho.grad) == pytest.approx(float(energy.detach()))  # d(ρ·E)/d(log ρ) = ρ·E
    u, inside = network.stored_weight.detach(), network.weight.detach().abs() < network.weight_range
    slope = network.positions * network.rho.detach() / network.weight_range
    torch.testing.assert_close(network.weight.grad, slope * u.sign() * inside)
    assert 0 < inside.sum() < inside.numel()


def test_the_number_of_reads_is_unknown_before_the_first():
    network, x = analog_and_inputs("linear")
    with pytest.raises(RuntimeError, match="before the first forward pass"):
        regularised_energy(network)
    network.input_range = None
    for energy in (paper_energy, cell_energy):
        with pytest.raises(RuntimeError, match="no range yet"):
            energy(network, x)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (4, 3), (5, 7), (12, 15), (128, 128)])
@every_layer
@every_mapping
def test_periphery_counts_every_array_that_a_layer_is_cut_into(layer, mapping, rows, columns):
    network, _ = analog_and_inputs(layer, mapping=mapping, arrays=Arrays(rows, columns))
    periphery = Periphery(WaldenConverter(6, 3e-15), row_driver_j=5e-13, shift_add_j=7e-14)
    groups, inputs, outputs = LAYERS[layer][2]
    cells, sensed = {OneCell(): (1, 1), DifferentialPair(): (2, 1), BitCells(): (5, 4)}[mapping]
    converted = driven = 0
    for _group in range(groups):
        together = rows - rows % network.channel_rows or rows  # no channel is cut where a whole one fits
        for first_row in range(0, inputs, together):
            converted += outputs * sensed  # each array of rows gives currents of its own
            for _first_column in range(0, outputs * cells, columns):
                driven += min(together, inputs - first_row)  # each array of columns has its rows driven
    reads = 11
    assert conversions(network, reads) == reads * converted
    assert converter_energy(network, reads, periphery) == pytest.approx(reads * converted * 64 * 3e-15)
    assert shift_add_energy(network, reads, periphery) == pytest.approx(reads * converted * 7e-14)
    assert row_driver_energy(network, reads, periphery) == pytest.approx(reads * driven * 5e-13)


def test_more_bits_of_a_weight_take_more_conversions():
    network, _ = analog_and_inputs("linear", mapping=BitCells(), weights=WeightFormat(8))
    assert conversions(network, 1) == 3 * 7
