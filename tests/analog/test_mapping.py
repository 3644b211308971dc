import pytest
import torch

from energytl.analog.mapping import (
    BitCells,
    DifferentialPair,
    OneCell,
    WeightFormat,
    conductance,
    read_variance,
    stored_magnitude,
)
from energytl.analog.quantize import best_range
from energytl.devices.cell import Cell
from energytl.devices.fluctuation import Fluctuation, amplitude

MAPPINGS = [OneCell(), DifferentialPair(), BitCells()]


@pytest.fixture(params=[2, 4, 5, 8])
def weights(request):
    return WeightFormat(request.param)


@pytest.fixture
def all_weights(weights):
    return torch.arange(-weights.levels, weights.levels + 1, dtype=torch.float64) / weights.levels


def cells_by_hand(mapping, u, weights):
    """(significance, stored magnitude) of every cell that carries current."""
    if not isinstance(mapping, BitCells):
        return [(1.0, abs(u))]
    integer = round(abs(u) * weights.levels)
    return [(2**p / weights.levels, integer >> p & 1) for p in range(weights.bits - 1)]


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
    assert read_variance(all_weights, rho, mapping, weights, noise).tolist() == pytest.approx(expected)


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
    [(OneCell(), 1, 1), (DifferentialPair(), 2, 1), (BitCells(), 5, 4)],
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
    assert WeightFormat(bits, range_rms=2.5).full_range(weight) == pytest.approx(2.5 * rms)
    assert WeightFormat(None).full_range(weight) == pytest.approx(3 * rms)
    assert WeightFormat(5).full_range(weight) == best_range(weight, 15)
    with pytest.raises(ValueError, match="range_rms is 0; allowed: above 0, or null"):
        WeightFormat(bits, range_rms=0)
