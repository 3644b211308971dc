"""What training on the chip costs, by hand."""

import pytest

from energytl import IsaacConverter, Periphery
from energytl.cost.training import Activity, TrainingCost, training_cost

FIRST = Activity(
    layer=0, outputs=10, samples=200, slots=2_000.0, pulses=5_000.0, column_reads=40, pulse_s=1e-7, pulse_j=2e-12
)
SECOND = Activity(
    layer=1, outputs=4, samples=100, slots=500.0, pulses=700.0, column_reads=10, pulse_s=2e-7, pulse_j=3e-12
)
POSITIONS = [2, 1]  # of one image
PERIPHERY = Periphery(
    converter=IsaacConverter(8), columns_per_converter=8, row_driver_j=0.4e-12, shift_add_j=0.02e-12
)  # 1.667 pJ and 9 ns a conversion


def test_costs_of_two_layers_by_hand():
    cost = training_cost([FIRST, SECOND], POSITIONS, [3e-9, 1e-9], [1e-6, 2e-6], PERIPHERY)
    assert cost.images == 100 and cost.pulses == 5_700 and cost.column_reads == 50
    assert cost.energy_pulses_j == pytest.approx(5_000 * 2e-12 + 700 * 3e-12)
    assert cost.energy_forward_j == pytest.approx(100 * 4e-9)
    assert cost.energy_backward_j == pytest.approx(100 * 1e-9)  # the first layer has no transposed read
    column_reads = 40 * (10 * 1.687e-12 + 0.4e-12) + 10 * (4 * 1.687e-12 + 0.4e-12)
    assert cost.energy_column_reads_j == pytest.approx(column_reads)
    assert cost.energy_j == pytest.approx(1e-8 + 2.1e-9 + 4e-7 + 1e-7 + column_reads)
    trains = 2_000 * 1e-7 + 500 * 2e-7
    reads_and_writes = 40 * (8 * 9e-9 + 2 * 1e-7) + 10 * (8 * 9e-9 + 2 * 2e-7)
    passes = 100 * (1e-6 + 2e-6 + 2e-6)
    assert cost.latency_s == pytest.approx(trains + reads_and_writes + passes)


def test_without_circuits_their_energy_is_not_modelled():
    cost = training_cost([FIRST, SECOND], POSITIONS, [3e-9, 1e-9], [1e-6, 2e-6], None)
    assert cost.energy_column_reads_j is None and cost.energy_j is None
    assert cost.energy_pulses_j == pytest.approx(1.21e-8) and cost.energy_forward_j == pytest.approx(4e-7)
    assert cost.latency_s == pytest.approx(2e-4 + 1e-4 + 40 * 2e-7 + 10 * 4e-7 + 5e-4)  # no conversions


def test_what_one_layer_does_not_model_no_sum_does():
    cost = training_cost([FIRST], POSITIONS, [3e-9, None], [1e-6, 2e-6], PERIPHERY)
    assert cost.energy_forward_j is None and cost.energy_backward_j is None and cost.energy_j is None
    first_only = training_cost([FIRST], POSITIONS, [None, 1e-9], [1e-6, 2e-6], PERIPHERY)
    assert first_only.energy_forward_j is None and first_only.energy_backward_j == pytest.approx(1e-7)


def test_nothing_trained_costs_nothing():
    cost = training_cost([], [1], [3e-9], [1e-6], PERIPHERY)
    assert cost == TrainingCost(0, 0.0, 0, 0.0, 0.0, 0.0, 0.0, 0.0) and cost.energy_j == 0


def test_numbers_carry_the_keys_of_a_result():
    cost = training_cost(iter([FIRST, SECOND]), POSITIONS, [3e-9, 1e-9], [1e-6, 2e-6], PERIPHERY)
    assert cost.numbers() == {
        "training_images": 100,
        "training_pulses": 5_700.0,
        "training_column_reads": 50,
        "training_energy_pulses_j": cost.energy_pulses_j,
        "training_energy_forward_j": cost.energy_forward_j,
        "training_energy_backward_j": cost.energy_backward_j,
        "training_energy_column_reads_j": cost.energy_column_reads_j,
        "training_latency_s": cost.latency_s,
        "training_energy_j": cost.energy_j,
    }
