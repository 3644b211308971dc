import json
import math

import pytest
import torch

from energytl.devices.cell import Cell
from energytl.devices.programming import (
    WAN_MICROSIEMENS,
    Falcone2025,
    GaussianWrite,
    Milo2021,
    Nandakumar2019,
    Scale,
    Variation,
    Wan2022,
    wan_sigma,
)

COUNT = 100_000
CELL = Cell(g_min_siemens=10e-6, g_max_siemens=100e-6)
STANDARD_ERRORS = 5
SECONDS = {"1 s": 1, "1 day": 86_400, "2 days": 172_800}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def wan_table(reference):
    return json.loads((reference / "programming_wan2022.json").read_text("utf-8"))


@pytest.mark.parametrize("time", SECONDS)
def test_wan_2022_is_the_published_fit_to_the_printed_digits(wan_table, time):
    table = wan_table["times"][time]
    assert list(WAN_MICROSIEMENS[SECONDS[time]]) == table["coefficients_uS"]
    siemens = torch.tensor(wan_table["g_over_g_max"], dtype=torch.float64) * 40e-6
    sigma = wan_sigma(siemens, 40e-6, SECONDS[time]) * 1e6
    assert [float(f"{value:.6g}") for value in sigma.tolist()] == table["sigma_uS"]


@pytest.mark.parametrize("g_max", [10e-6, 25e-6, 200e-6])
def test_the_relative_error_of_wan_2022_does_not_depend_on_the_range(wan_table, g_max):
    share = torch.tensor(wan_table["g_over_g_max"], dtype=torch.float64)
    for time, table in wan_table["times"].items():
        relative = wan_sigma(share * g_max, g_max, SECONDS[time]) / g_max
        assert relative.tolist() == pytest.approx(table["sigma_over_g_max"], rel=5e-6)


@pytest.mark.parametrize(
    ("error", "microsiemens", "sigma"),
    [
        (Milo2021(), 0.0, 4.78),
        (Milo2021(), 100.0, 3.87),
        (Milo2021(), 600.0, 0.0),
        (Nandakumar2019(), 0.0, 0.26348 * 4),
        (Nandakumar2019(), 50.0, (0.26348 + 1.9650 / 2 - 1.1731 / 4) * 4),
        (Nandakumar2019(), 100.0, (0.26348 + 1.9650 - 1.1731) * 4),
        (Falcone2025(), 50.0, 0.01122 + 0.01129 * 50),
        (Falcone2025(0.002), 9.0, 0.000811 + 0.001069 * 9),
        (Wan2022(), 100.0, (0.348 + 16.03 - 43.853 + 45.393 - 16.815) * 2.5),
    ],
    ids=repr,
)
def test_deviations_by_hand(error, microsiemens, sigma):
    siemens = torch.tensor(microsiemens * 1e-6, dtype=torch.float64)
    assert float(error.sigma(siemens, CELL)) == pytest.approx(sigma * 1e-6, rel=1e-6, abs=1e-18)


@pytest.mark.parametrize("error", [Wan2022(), Milo2021(), Nandakumar2019(), Falcone2025()], ids=repr)
@pytest.mark.parametrize("value", [0.9, 0.6])
def test_cells_miss_their_conductance_by_the_deviation_of_the_law(error, value):
    scale = Scale(CELL, 50e-6)
    held = error.written(torch.full((COUNT,), value, dtype=torch.float64), scale, generator())
    siemens = 10e-6 + 50e-6 * held
    target = torch.tensor(10e-6 + 50e-6 * value, dtype=torch.float64)
    sigma = float(error.sigma(target, CELL))
    assert float(siemens.mean()) == pytest.approx(float(target), abs=STANDARD_ERRORS * sigma / COUNT**0.5)
    assert float(siemens.std()) == pytest.approx(sigma, rel=STANDARD_ERRORS / (2 * COUNT) ** 0.5)


def test_no_cell_falls_below_0_siemens_and_an_empty_one_misses_both_ways():
    scale = Scale(Cell(g_min_siemens=1e-6, g_max_siemens=100e-6), 50e-6)
    held = Milo2021().written(torch.zeros(COUNT, dtype=torch.float64), scale, generator())
    siemens = 1e-6 + 50e-6 * held
    assert float(siemens.min()) == 0.0
    below = 0.5 * math.erfc(1.0 / 4.7709 / math.sqrt(2))
    assert float((siemens == 0).double().mean()) == pytest.approx(below, abs=STANDARD_ERRORS * (0.25 / COUNT) ** 0.5)


@pytest.mark.parametrize("std", [0.0, 0.05, 0.1])
def test_gaussian_errors_have_the_stated_moments(std, assert_moments):
    targets = torch.tensor([1.0, 0.0, 0.3], dtype=torch.float64)
    errors = GaussianWrite(std).written(targets.expand(COUNT, 3), Scale(CELL, 1e-6), generator()) - targets
    if std:
        assert_moments(errors, torch.zeros(3, dtype=torch.float64), std**2 * torch.eye(3, dtype=torch.float64))
    else:
        assert not errors.any()


@pytest.mark.parametrize("error", [GaussianWrite(0.1), Wan2022(), Milo2021(), Variation(0.2)], ids=repr)
def test_a_generator_decides_the_errors(error):
    weights = torch.linspace(0, 1, 12).view(3, 4)
    first, again, other = (error.written(weights, Scale(CELL, 1e-5), generator(seed)) for seed in (3, 3, 4))
    assert first.shape == (3, 4)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianWrite(-0.1), r"programming\.std is -0\.1; allowed: 0 to 100"),
        (lambda: GaussianWrite(float("nan")), r"programming\.std is nan"),
        (lambda: Variation(1e30), r"programming\.relative is 1e\+30; allowed: 0 to 100"),
        (lambda: Falcone2025(0.1), r"programming\.acceptance is 0\.1; allowed: 0\.02, 0\.002"),
    ],
)
def test_what_is_no_error_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
