import pytest
from torch import nn

from energytl import Hardware, IsaacConverter, Periphery, WaldenConverter, convert
from energytl.cost.energy import converter_energy, row_driver_energy


@pytest.mark.parametrize(("bits", "picojoules"), [(4, 0.79), (5, 0.99), (6, 1.20), (7, 1.42), (8, 1.667)])
def test_isaac_converters_take_the_published_energy(bits, picojoules):
    assert IsaacConverter(bits).conversion_j() == pytest.approx(picojoules * 1e-12)


@pytest.mark.parametrize(("bits", "femtojoules"), [(1, 50), (4, 400), (10, 25_600)])
def test_walden_converters_take_25_femtojoules_a_step(bits, femtojoules):
    assert WaldenConverter(bits).conversion_j() == pytest.approx(femtojoules * 1e-15)
    assert WaldenConverter(bits, step_j=50e-15).conversion_j() == pytest.approx(2 * femtojoules * 1e-15)


@pytest.mark.parametrize("converter", [IsaacConverter, WaldenConverter])
@pytest.mark.parametrize(("bits", "nanoseconds"), [(4, 5), (8, 9)])
def test_a_successive_approximation_takes_one_cycle_more_than_bits(converter, bits, nanoseconds):
    assert converter(bits).conversion_s() == pytest.approx(nanoseconds * 1e-9)


def test_one_read_of_a_full_array_costs_what_isaac_says():
    # 213 pJ in the converters of 128 columns (SPEC §5); 128 row drivers of 0.417 pJ
    layer = convert(nn.Linear(128, 128, bias=False), Hardware())
    assert converter_energy(layer, 1, Periphery()) == pytest.approx(213e-12, abs=0.5e-12)
    assert row_driver_energy(layer, 1, Periphery()) == pytest.approx(128 * 0.417e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IsaacConverter(3), r"converter\.bits is 3; allowed: 4 to 8"),
        (lambda: IsaacConverter(9), r"converter\.bits is 9; allowed: 4 to 8"),
        (lambda: WaldenConverter(0), r"converter\.bits is 0; allowed: 1 to 24"),
        (lambda: WaldenConverter(25), r"converter\.bits is 25; allowed: 1 to 24"),
        (lambda: WaldenConverter(8, step_j=0.0), r"converter\.step_j is 0\.0; allowed: above 0 up to 1 \(J\)"),
        (lambda: Periphery(columns_per_converter=0), r"periphery\.columns_per_converter is 0; allowed: 1 to 1000000"),
        (lambda: Periphery(row_driver_j=-1e-12), r"periphery\.row_driver_j is -1e-12; allowed: 0 to 1 \(J\)"),
        (lambda: Periphery(shift_add_j=-1e-12), r"periphery\.shift_add_j is -1e-12; allowed: 0 to 1 \(J\)"),
    ],
)
def test_what_is_no_periphery_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
