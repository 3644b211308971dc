import json

import pytest
import torch

from energytl.devices.programming import (
    WAN_MICROSIEMENS,
    GaussianWrite,
    Milo2021,
    Wan2022,
    hold_stuck,
    milo_sigma,
    wan_sigma,
)

COUNT = 100_000
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


@pytest.mark.parametrize(("microsiemens", "sigma"), [(0.0, 4.78), (100.0, 3.87), (200.0, 2.96), (600.0, 0.0)])
def test_milo_2021_by_hand(microsiemens, sigma):
    assert float(milo_sigma(torch.tensor(microsiemens * 1e-6, dtype=torch.float64))) == pytest.approx(sigma * 1e-6)


@pytest.mark.parametrize("std", [0.0, 0.05, 0.1])
def test_gaussian_errors_have_the_stated_moments(std, assert_moments):
    targets = torch.tensor([-1.0, 0.0, 0.3], dtype=torch.float64)
    errors = GaussianWrite(std).program(targets.expand(COUNT, 3), generator()) - targets
    if std:
        assert_moments(errors, torch.zeros(3, dtype=torch.float64), std**2 * torch.eye(3, dtype=torch.float64))
    else:
        assert not errors.any()


@pytest.mark.parametrize("error", [Wan2022(), Wan2022(after_s=86_400, g_max_siemens=20e-6), Milo2021(200e-6)])
@pytest.mark.parametrize("weight", [-0.9, 0.6])
def test_a_pair_has_the_errors_of_both_its_cells(error, weight):
    # the cell of the weight is far from 0; the other, aimed at 0, shows the positive half of its error:
    # mean σ₀/√(2π), variance σ₀²·(1/2 − 1/(2π))
    def sigma(u):
        siemens = torch.tensor(u * error.g_max_siemens, dtype=torch.float64)
        if isinstance(error, Wan2022):
            return float(wan_sigma(siemens, error.g_max_siemens, error.after_s)) / error.g_max_siemens
        return float(milo_sigma(siemens)) / error.g_max_siemens

    found = error.program(torch.full((COUNT,), weight, dtype=torch.float64), generator())
    own, other = sigma(abs(weight)), sigma(0.0)
    sign = 1 if weight > 0 else -1
    mean = weight - sign * other / (2 * torch.pi) ** 0.5
    variance = own**2 + other**2 * (0.5 - 0.5 / torch.pi)
    assert float(found.mean()) == pytest.approx(mean, abs=STANDARD_ERRORS * (variance / COUNT) ** 0.5)
    assert float(found.var()) == pytest.approx(variance, abs=STANDARD_ERRORS * variance * (2.5 / COUNT) ** 0.5)


def test_the_error_of_a_zero_weight_is_even_and_of_both_cells():
    found = Milo2021(100e-6).program(torch.zeros(COUNT, dtype=torch.float64), generator())
    variance = 2 * 0.0478**2 * (0.5 - 0.5 / torch.pi)
    assert float(found.mean()) == pytest.approx(0, abs=STANDARD_ERRORS * (variance / COUNT) ** 0.5)
    fourth = float(found.pow(4).mean())
    assert float(found.var()) == pytest.approx(variance, abs=STANDARD_ERRORS * ((fourth - variance**2) / COUNT) ** 0.5)


def test_stuck_weights_are_as_many_as_asked_for_and_near_zero():
    weights = torch.ones(COUNT)
    held = hold_stuck(weights, share=0.1348, within=0.02, generator=generator())
    stuck = held[held != 1]
    assert (stuck.abs() <= 0.02).all()
    assert stuck.abs().max() > 0.0199
    assert len(stuck) / COUNT == pytest.approx(0.1348, abs=STANDARD_ERRORS * (0.1348 * 0.8652 / COUNT) ** 0.5)
    assert torch.equal(hold_stuck(weights, 0.0, 0.02, None), weights)


@pytest.mark.parametrize("error", [GaussianWrite(0.1), Wan2022(), Milo2021(200e-6)])
def test_a_generator_decides_the_errors(error):
    weights = torch.linspace(-1, 1, 12).view(3, 4)
    first, again, other = (error.program(weights, generator(seed)) for seed in (3, 3, 4))
    assert first.shape == (3, 4)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianWrite(-0.1), r"error\.std is -0\.1; allowed: 0 or more"),
        (lambda: GaussianWrite(float("nan")), r"error\.std is nan"),
        (lambda: Wan2022(after_s=60), r"error\.after_s is 60; allowed: 1, 86400, 172800"),
        (lambda: Wan2022(g_max_siemens=40), r"error\.g_max_siemens is 40; allowed: above 0, below 1 \(siemens"),
        (lambda: Milo2021(0.0), r"error\.g_max_siemens is 0\.0"),
    ],
)
def test_what_is_no_error_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
