"""Conductances some time after programming, against the formulas by hand; and what is no time."""

import math

import pytest
import torch

from energytl import Cell, CmoHfoxRelaxation, Drift, PcmDrift, RramRelaxation
from energytl.devices.drift import compensating

COUNT, STANDARD_ERRORS = 200_000, 5
CELL = Cell(g_min_siemens=0.1e-6, g_max_siemens=25e-6)
DAY = 86_400.0


def at(law, siemens, time_s, cell=CELL, seed=0):
    held = torch.full((COUNT,), siemens, dtype=torch.float64)
    return law.at(held, time_s, cell, torch.Generator().manual_seed(seed))


def check(samples, mean, deviation):
    assert float(samples.mean()) == pytest.approx(mean, abs=STANDARD_ERRORS * deviation / COUNT**0.5)
    fourth = float((samples - samples.mean()).pow(4).mean())
    error = math.sqrt(max(fourth - deviation**4, 0) / COUNT)
    assert float(samples.var()) == pytest.approx(deviation**2, abs=STANDARD_ERRORS * error)


@pytest.mark.parametrize("time_s", [1.0, 3600.0, DAY, 365 * DAY])
@pytest.mark.parametrize("share", [0.05, 0.4, 1.0])
def test_phase_change_memory_drifts_by_a_power_of_time(share, time_s):
    mu = min(max(-0.0155 * math.log(share) + 0.0244, 0.049), 0.1)
    sigma = min(max(-0.0125 * math.log(share) - 0.0059, 0.008), 0.045)
    exponents = -torch.log(at(PcmDrift(noise=False), share * 25e-6, time_s) / (share * 25e-6)) / math.log(
        (time_s + 20) / 20
    )
    folded = sigma * math.sqrt(2 / math.pi) * math.exp(-(mu**2) / (2 * sigma**2)) + mu * math.erf(
        mu / sigma / math.sqrt(2)
    )
    check(exponents, folded, math.sqrt(mu**2 + sigma**2 - folded**2))


@pytest.mark.parametrize("time_s", [1.0, DAY])
def test_the_noise_of_phase_change_memory_gathers(time_s):
    quiet, noisy = (at(PcmDrift(noise=noise), 20e-6, time_s) for noise in (False, True))
    relative = min(0.0088 / 0.8**0.65, 0.2) * math.sqrt(math.log((time_s + 250e-9) / 500e-9))
    check(noisy / quiet - 1, 0.0, relative)


@pytest.mark.parametrize(("time_s", "late"), [(1.0, 0.0), (DAY, 1.0), (math.sqrt(DAY), 0.5)])
def test_resistive_memory_relaxes_between_the_measured_times(time_s, late):
    cell = Cell(g_min_siemens=1e-6, g_max_siemens=40e-6)
    early = 0.348 + 16.03 * 0.5 - 43.853 * 0.25 + 45.393 * 0.125 - 16.815 * 0.0625
    day = 0.701 + 22.086 * 0.5 - 50.773 * 0.25 + 47.095 * 0.125 - 16.458 * 0.0625
    found = at(RramRelaxation(), 20e-6, time_s, cell) * 1e6
    if late:
        check(found, 20.0, math.sqrt(late * (day**2 - early**2)))
    else:
        assert torch.equal(found, torch.full_like(found, 20.0))


@pytest.mark.parametrize("time_s", [1.0, DAY])
def test_cmo_hfox_relaxes_with_the_logarithm_of_time(time_s):
    logarithm = math.log(time_s)
    found = at(CmoHfoxRelaxation(), 50e-6, time_s) * 1e6
    check(found, 50 - 0.0890 * logarithm, 0.0420 * logarithm + 0.4118)


def test_factors_undo_what_all_cells_have_lost_alike():
    weights = torch.randn(6, 20, dtype=torch.float64)
    lost = torch.rand(6, 1, dtype=torch.float64) + 0.1
    assert torch.allclose(compensating(weights, weights * 0.7, columns=False), torch.tensor([1 / 0.7]).double())
    assert torch.allclose(compensating(weights, weights * lost, columns=True), 1 / lost[:, 0])
    assert torch.equal(compensating(weights, weights * 0, columns=False), torch.ones(1).double())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Drift(PcmDrift(), 0.5), r"drift\.time_s is 0\.5; allowed: 1 or more"),
        (lambda: Drift(RramRelaxation(), 1e6), r"drift\.time_s is 1e\+06; RramRelaxation was measured to 172800 s"),
        (lambda: Drift(PcmDrift(), 2.0, "row"), r"drift\.compensation is row; allowed: none, layer, column"),
        (lambda: Drift(None, 2.0), r"drift\.time_s and drift\.compensation require a drift\.law"),
    ],
)
def test_what_is_no_time_is_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()
