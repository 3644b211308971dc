import pytest
import torch

from energytl.analog.mapping import OneCell, WeightFormat, conductance
from energytl.devices.cell import Cell
from energytl.devices.presets import mnsim_cell


def test_the_largest_rho_fills_the_conductance_window():
    cell = Cell(g_min_siemens=3e-6, g_max_siemens=50e-6)
    ends, rho = torch.tensor([0.0, 1.0], dtype=torch.float64), torch.tensor(cell.largest_rho, dtype=torch.float64)
    found = conductance(ends, rho, OneCell(), WeightFormat(), cell)
    assert found.tolist() == pytest.approx([3e-6, 50e-6])


def test_mnsim_cell_is_as_published():
    cell = mnsim_cell()  # 0.15 V, 10 kΩ to 1 MΩ, 3.16 ns
    assert (cell.read_volt, cell.read_s) == (0.15, 3.16e-9)
    assert 1 / cell.g_max_siemens == pytest.approx(10e3)
    assert 1 / cell.g_min_siemens == pytest.approx(1e6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"read_volt": 0.0}, r"cell\.read_volt is 0\.0; allowed: above 0"),
        ({"read_s": -1e-9}, r"cell\.read_s is -1e-09; allowed: above 0"),
        ({"g_max_siemens": 0.0}, r"cell\.g_max_siemens is 0\.0; allowed: above 0"),
        ({"g_min_siemens": -1e-6}, r"cell\.g_min_siemens is -1e-06; allowed: 0 up to g_max_siemens"),
        ({"g_min_siemens": 9e-5}, r"cell\.g_min_siemens is 9e-05; allowed: 0 up to g_max_siemens"),
    ],
)
def test_what_is_no_cell_is_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        Cell(**fields)
