from itertools import product

import pytest
import torch
from torch import nn

from energytl import Hardware, calibrate, convert
from energytl.analog.mapping import (
    BitCells,
    BitSlices,
    DifferentialPair,
    MultilevelCell,
    MultilevelPair,
    OneCell,
    ResetCells,
    WeightFormat,
    conductance,
    read_variance,
    stored_magnitude,
)
from energytl.analog.quantize import best_range, rounded
from energytl.analog.read import InputFormat, Noiseless
from energytl.devices.cell import Cell
from energytl.devices.fluctuation import Fluctuation, amplitude

MAPPINGS = [
    OneCell(),
    DifferentialPair(),
    BitCells(),
    ResetCells(),
    BitSlices(2),
    BitSlices(3),
    MultilevelPair((1,)),
    MultilevelPair((1, 3, 8)),
    MultilevelPair((1, 3, 8, 12)),
]


@pytest.fixture(params=[2, 4, 5, 8])
def weights(request):
    return WeightFormat(request.param)


@pytest.fixture
def all_weights(mapping, weights):
    grid = mapping.grid(weights)
    if isinstance(grid, tuple):
        return torch.tensor(grid, dtype=torch.float64)
    return torch.arange(-weights.levels, weights.levels + 1, dtype=torch.float64) / weights.levels


def cells_by_hand(mapping, u, weights):
    """(significance, stored magnitude) of every cell that carries current."""
    if isinstance(mapping, MultilevelPair):
        levels = (0, *mapping.levels)
        value = u * levels[-1]
        plus, minus = min((pair for pair in product(levels, levels) if abs(pair[0] - pair[1] - value) < 1e-9), key=sum)
        return [(1.0, plus / levels[-1]), (-1.0, minus / levels[-1])]
    if isinstance(mapping, ResetCells):
        return [(1.0, 1.0 if u >= 0 else 1 + u), (-1.0, 1.0 if u < 0 else 1 - u)]
    if not isinstance(mapping, BitSlices):
        return [(1.0, abs(u))]
    integer, base, digits = round(abs(u) * weights.levels), 2**mapping.cell_bits, []
    while base ** len(digits) <= weights.levels:
        digits.append(integer // base ** len(digits) % base)
    return [(base**p * (base - 1) / weights.levels, digit / (base - 1)) for p, digit in enumerate(digits)]


def test_a_weight_of_n_bits_has_sign_and_magnitude(weights):
    assert weights.levels == sum(2**p for p in range(weights.bits - 1))


@pytest.mark.parametrize("mapping", MAPPINGS, ids=repr)
def test_cells_add_up_to_every_weight(mapping, weights, all_weights):
    stored = mapping.stored(all_weights, weights)
    significances = torch.tensor(mapping.significances(weights), dtype=torch.float64)
    assert stored.abs().max() <= 1
    torch.testing.assert_close((significances.unsqueeze(1) * stored).sum(0), all_weights)


@pytest.mark.parametrize("mapping", MAPPINGS, ids=repr)
def test_cells_move_with_the_weight(mapping, weights, all_weights):
    all_weights.requires_grad_()
    significances = torch.tensor(mapping.significances(weights), dtype=torch.float64)
    (significances.unsqueeze(1) * mapping.stored(all_weights, weights)).sum().backward()
    torch.testing.assert_close(all_weights.grad, torch.ones_like(all_weights))


@pytest.mark.parametrize("mapping", MAPPINGS, ids=repr)
def test_variance_of_a_read_sums_over_cells(mapping, weights, all_weights):
    rho, noise = torch.tensor(3.0, dtype=torch.float64), Fluctuation()
    expected = [
        sum(
            significance**2 * float(amplitude(torch.tensor(magnitude, dtype=torch.float64), rho, noise)) ** 2
            for significance, magnitude in cells_by_hand(mapping, float(u), weights)
        )
        for u in all_weights
    ]
    stored, significances = mapping.stored(all_weights, weights), mapping.significances(weights)
    assert read_variance(stored, rho, significances, noise).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("mapping", MAPPINGS, ids=repr)
def test_magnitude_and_conductance_sum_over_cells(mapping, weights, all_weights):
    rho, cell = torch.tensor(3.0, dtype=torch.float64), Cell()
    magnitudes, siemens = [], []
    for u in all_weights:
        stored = [magnitude for _, magnitude in cells_by_hand(mapping, float(u), weights)]
        standing = [*stored, 0.0] if isinstance(mapping, DifferentialPair) else stored  # the idle cell of the pair
        magnitudes.append(sum(stored))
        siemens.append(sum(cell.g_min_siemens + 3e-6 * magnitude for magnitude in standing))
    assert stored_magnitude(all_weights, mapping, weights).tolist() == pytest.approx(magnitudes)
    assert conductance(all_weights, rho, mapping, weights, cell).tolist() == pytest.approx(siemens)


@pytest.mark.parametrize(
    ("mapping", "cells", "conversions"),
    [
        (OneCell(), 1, 1),
        (DifferentialPair(), 2, 1),
        (BitCells(), 5, 4),
        (BitSlices(2), 3, 2),
        (BitSlices(4), 2, 1),
        (MultilevelCell((1,)), 1, 1),
        (MultilevelPair((1, 3, 8)), 2, 1),
    ],
    ids=repr,
)
def test_cells_of_a_five_bit_weight(mapping, cells, conversions):
    # Wang 2021, table 1: binarized encoding takes five times the cells; one of them only holds the sign
    assert mapping.cells_per_weight(WeightFormat(5)) == cells
    assert mapping.conversions_per_output(WeightFormat(5)) == conversions


@pytest.mark.parametrize("bits", [1, 17])
def test_widths_that_hold_no_weight_are_refused(bits):
    with pytest.raises(ValueError, match=rf"weights\.bits is {bits}; allowed: 2 to 16"):
        WeightFormat(bits)


@pytest.mark.parametrize("bits", [None, 5])
def test_a_range_in_root_mean_squares_holds_for_rounded_weights_too(bits):
    weight = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    rms = float(weight.square().mean().sqrt())
    matrix, grid = weight.view(1, 10, 100), None if bits is None else 15
    assert float(WeightFormat(bits, range_rms=2.5).full_ranges(matrix, grid)) == pytest.approx(2.5 * rms)
    assert float(WeightFormat(None).full_ranges(matrix, None)) == pytest.approx(3 * rms)
    assert float(WeightFormat(5).full_ranges(matrix, 15)) == pytest.approx(best_range(weight, 15))
    with pytest.raises(ValueError, match="range_rms is 0; allowed: above 0 up to 1000, or null"):
        WeightFormat(bits, range_rms=0)


def test_levels_1_3_8_give_the_thirteen_values_of_the_paper():
    # Dong 2018, §III B: "enables us to use 0, ±1, ±2, ±3, ±5, ±7, ±8"
    values = [8 * value for value in MultilevelPair((1, 3, 8)).grid(WeightFormat())]
    assert values == [-8, -7, -5, -3, -2, -1, 0, 1, 2, 3, 5, 7, 8]
    more = [12 * value for value in MultilevelPair((1, 3, 8, 12)).grid(WeightFormat())]
    assert [round(value) for value in more if value > 0] == [1, 2, 3, 4, 5, 7, 8, 9, 11, 12]  # ten alternative values
    assert MultilevelPair((1,)).grid(WeightFormat()) == (-1.0, 0.0, 1.0)
    assert MultilevelCell((1,)).grid(WeightFormat()) == (0.0, 1.0)


@pytest.mark.parametrize("levels", [(1,), (1, 3, 8), (1, 3, 8, 12), (0.5, 1.7, 2.2)], ids=repr)
@pytest.mark.parametrize("kind", [MultilevelCell, MultilevelPair])
def test_what_is_programmed_without_variation_is_read_back(kind, levels):
    mapping = kind(levels)
    values = torch.tensor(mapping.grid(WeightFormat()))
    weight = torch.stack([values, values.flip(0)]) * 0.3
    hardware = Hardware(mapping=mapping, weights=WeightFormat(range=0.3), computation=Noiseless())
    digital = nn.Linear(len(values), 2, bias=False)
    digital.weight.data = weight
    analog = convert(digital, hardware)
    torch.testing.assert_close(analog.stored_weight * 0.3, weight)
    inputs = torch.eye(len(values))
    with torch.no_grad():
        analog.input_range = 1.0
        torch.testing.assert_close(analog(inputs), weight.T.contiguous())


@pytest.mark.parametrize("levels", [(), (0, 1), (3, 1), (1, 1), (-1,)], ids=repr)
def test_what_are_no_levels_is_refused(levels):
    with pytest.raises(ValueError, match=r"mapping\.levels is \[.*allowed: above 0, ascending"):
        MultilevelPair(levels)


def test_an_analog_pair_of_200_states_has_steps_of_a_200th_of_the_range():
    # Dong 2018, §IV B: 400 states over [-2, 2] are steps of 0.01
    weights = WeightFormat(bits=None, states=200, range=2.0)
    held = DifferentialPair().rounded(torch.tensor([0.0149, -0.0151, 3.0]), 2.0, weights)
    torch.testing.assert_close(held, torch.tensor([0.01, -0.02, 2.0]))
    with pytest.raises(ValueError, match=r"weights\.states stands instead of weights\.bits: set bits: null"):
        WeightFormat(states=200)
    with pytest.raises(ValueError, match=r"weights\.states is 0; allowed: 1 to 32767"):
        WeightFormat(bits=None, states=0)
    with pytest.raises(ValueError, match="range_by has no effect beside range or range_rms"):
        WeightFormat(range=1.0, range_by="max")
    with pytest.raises(ValueError, match=r"has levels of its own: leave out weights\.states"):
        Hardware(mapping=MultilevelPair(), weights=weights)
    with pytest.raises(ValueError, match="range_by wants rounded weights"):
        Hardware(weights=WeightFormat(bits=None, range_by="max"))
    with pytest.raises(ValueError, match="leave out range_rms and columns"):
        WeightFormat(range=1.0, columns=True)


def test_ranges_by_the_largest_weight_by_weights_and_by_outputs():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(1, 8, 40, generator=generator)
    matrix[0, 0, 0] = 12.0  # an outlier
    inputs = torch.rand(1, 40, 200, generator=generator)
    inputs[0, 0] *= 30  # that matters
    grid = MultilevelPair((1, 3, 8)).grid(WeightFormat())

    def error(full_range, inputs=None):
        difference = rounded(matrix / full_range, grid) * full_range - matrix
        return float((difference if inputs is None else difference @ inputs).square().mean())

    largest, weights, outputs = (
        float(WeightFormat(range_by=by).full_ranges(matrix, grid, inputs if by == "outputs" else None))
        for by in ("max", "weights", "outputs")
    )
    assert largest == 12
    candidates = [12 * i / 200 for i in range(4, 201)]
    assert error(weights) <= 1.02 * min(map(error, candidates))
    assert error(outputs, inputs) <= 1.1 * min(error(candidate, inputs) for candidate in candidates)
    assert weights < largest
    assert error(outputs, inputs) < error(weights, inputs)


@pytest.mark.parametrize("kind", ["linear", "conv", "grouped"])
@pytest.mark.parametrize("by", ["weights", "outputs", "max"])
def test_columns_with_ranges_of_their_own_err_less_and_learn(kind, by):
    torch.manual_seed(0)
    digital, x = {
        "linear": (nn.Linear(6, 4), torch.rand(50, 6)),
        "conv": (nn.Conv2d(4, 6, 3, padding=1), torch.rand(5, 4, 6, 6)),
        "grouped": (nn.Conv2d(4, 6, 3, groups=2, bias=False), torch.rand(5, 4, 6, 6)),
    }[kind]
    with torch.no_grad():
        digital.weight.mul_(torch.logspace(-2, 0, len(digital.weight)).view(-1, *[1] * (digital.weight.dim() - 1)))
    errors = {}
    for columns in (False, True):
        weights = WeightFormat(range_by=by, columns=columns)
        hardware = Hardware(mapping=MultilevelPair(), weights=weights, inputs=InputFormat(12), computation=Noiseless())
        analog = calibrate(convert(digital, hardware), [x])
        outputs = analog(x)
        scale = digital(x).detach().flatten(2).std((0, 2)) if x.dim() == 4 else digital(x).detach().std(0)
        difference = (outputs - digital(x)).detach().movedim(1, -1) / scale
        errors[columns] = float(difference.square().mean())
    assert errors[True] < 0.5 * errors[False]
    outputs.square().sum().backward()
    assert analog.weight.grad.abs().amax(tuple(range(1, digital.weight.dim()))).min() > 0
    copy = convert(digital, hardware)
    copy.load_state_dict(analog.state_dict())  # column ranges travel with it
    torch.testing.assert_close(copy(x), analog(x))
    assert set(analog.state_dict()) == set(digital.state_dict())
    plain = convert(digital, Hardware(mapping=MultilevelPair()))
    plain.load_state_dict(analog.state_dict())  # of a network without column ranges they are no use
    assert plain.column_ranges is None
    assert plain.weight_range == pytest.approx(convert(digital, Hardware(mapping=MultilevelPair())).weight_range)
