import dataclasses
import math

import pytest
import torch
from scipy import stats

from energytl.devices import presets
from energytl.devices.fluctuation import (
    Fluctuation,
    amplitude,
    largest_relative_amplitude,
    relative_amplitude,
    sample_states,
)

STATES = {
    "two alike": ((-1.0, 1.0), (0.5, 0.5)),
    "two unlike": ((0.0, 1.0), (0.75, 0.25)),
    "four": ((0.0, 1.0, 2.0, 3.0), (0.4, 0.3, 0.2, 0.1)),
    "unordered": ((5.0, -3.0, -1.0), (0.1, 0.2, 0.7)),
}
KINDS = (presets.weak, presets.normal, presets.strong)
SINGLE_EPS = torch.finfo(torch.float32).eps


@pytest.fixture(params=STATES.values(), ids=STATES)
def states(request):
    offsets, probabilities = request.param
    return Fluctuation(offsets=offsets, probabilities=probabilities)


def test_states_have_zero_mean_and_unit_variance(states):
    offsets, probabilities = states.states().double(), torch.tensor(states.probabilities, dtype=torch.float64)
    rounding = SINGLE_EPS * float(offsets.square().max())
    assert float((probabilities * offsets).sum()) == pytest.approx(0, abs=rounding)
    assert float((probabilities * offsets.square()).sum()) == pytest.approx(1, abs=2 * rounding)


def test_states_keep_order_and_spacing_of_the_offsets(states):
    given, scaled = torch.tensor(states.offsets), states.states()
    torch.testing.assert_close(scaled.diff() / (scaled[1] - scaled[0]), given.diff() / (given[1] - given[0]))


def test_sampled_states_are_as_frequent_as_their_probabilities(states):
    count = 100_000
    sampled = sample_states((count,), states, torch.Generator().manual_seed(0))
    found = [int((sampled == offset).sum()) for offset in states.states()]
    expected = [count * probability for probability in states.probabilities]
    assert sum(found) == count
    assert stats.chisquare(found, expected).pvalue > 1e-6


def test_sampled_states_are_independent(states, assert_moments):
    pairs = sample_states((50_000, 4), states, torch.Generator().manual_seed(1))
    eye = torch.eye(4, dtype=torch.float64)
    if len(states.offsets) == 2 and states.probabilities[0] == 0.5:
        pairs, eye = pairs[:, :2] + pairs[:, 2:], 2 * eye[:2, :2]  # a lone ±1 has a square without spread
    assert_moments(pairs, torch.zeros(len(eye), dtype=torch.float64), eye)


def test_a_generator_decides_the_sampled_states(states):
    first, again, other = (sample_states((5, 7), states, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert first.shape == (5, 7)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("corners", [1e2, 1e3, 1e4])
def test_amplitude_follows_he_2019_at_high_conductance(corners):
    # ΔG = 0.1662 µS + 0.0015·G; the saturating form falls short of the first term by a part of 1/(1 + G/G0)
    fluctuation = Fluctuation()
    siemens = corners * fluctuation.corner_siemens
    change = float(relative_amplitude(torch.tensor(siemens, dtype=torch.float64), fluctuation)) * siemens
    missing = 1 - (change - 0.0015 * siemens) / 0.1662e-6
    assert missing == pytest.approx(1 / (1 + corners), rel=1e-6)


@pytest.mark.parametrize("intensity", [0.5, 1.0, 3.0])
def test_amplitude_saturates_at_low_conductance(intensity):
    corner = 1e-6
    fluctuation = Fluctuation(intensity=intensity, floor=0.01, saturation=0.3, corner_siemens=corner)
    siemens = torch.cat([torch.zeros(1), torch.logspace(-3, 3, 200)]).double() * corner
    relative = relative_amplitude(siemens, fluctuation)
    assert float(relative[0]) == pytest.approx(intensity * (0.01 + 0.3))
    assert (relative.diff() < 0).all()
    at_corner = relative_amplitude(torch.tensor(corner, dtype=torch.float64), fluctuation)
    assert float(at_corner) == pytest.approx(intensity * (0.01 + 0.3 / 2))


@pytest.mark.parametrize("rho", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("intensity", [1.0, 2.0, 100.0])
def test_no_state_of_a_cell_lies_below_zero(states, intensity, rho):
    fluctuation = dataclasses.replace(states, intensity=intensity)
    magnitude = torch.linspace(0, 1, 101).unsqueeze(1)
    read = magnitude + amplitude(magnitude, torch.tensor(rho), fluctuation) * fluctuation.states()
    assert (read >= -2 * SINGLE_EPS).all()


def test_a_strong_fluctuation_reaches_but_does_not_pass_zero():
    relative = relative_amplitude(torch.tensor([0.0, 1e-6]), Fluctuation(intensity=100.0))
    assert relative.tolist() == [1.0, 1.0]  # the lower of the states ±1 then reads zero


@pytest.mark.parametrize("rho", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("weight", [-1.0, -0.3, 0.0, 1 / 15, 1.0])
def test_amplitude_in_microsiemens_by_hand(weight, rho):
    microsiemens = rho * abs(weight)  # G = ρ·|w|·1 µS
    expected = abs(weight) * (0.01 + 0.4 / (1 + microsiemens / 0.25))
    fluctuation = Fluctuation(floor=0.01, saturation=0.4, corner_siemens=0.25e-6)
    found = amplitude(*torch.tensor([weight, rho], dtype=torch.float64), fluctuation)
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_amplitude_has_the_slope_of_its_finite_differences():
    weight = torch.tensor([-0.9, -0.2, 0.1, 0.7], dtype=torch.float64, requires_grad=True)
    rho = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w, r: amplitude(w, r, Fluctuation()), (weight, rho))


def test_weak_normal_and_strong_differ_by_a_factor_of_two_where_none_saturates():
    siemens = torch.logspace(-5, -4, 10, dtype=torch.float64)  # up to the default cell's largest conductance
    weak, normal, strong = (relative_amplitude(siemens, make()) for make in KINDS)
    torch.testing.assert_close(2 * weak, normal, rtol=0.02, atol=0)  # 1/(1 + G/G0) is not quite G0/G
    torch.testing.assert_close(2 * normal, strong, rtol=0.02, atol=0)


@pytest.mark.parametrize("make", KINDS)
def test_no_published_fluctuation_leaves_a_weight_readable_for_nothing(make):
    empty = relative_amplitude(torch.zeros(1), make())
    assert float(empty) == largest_relative_amplitude(make())  # the lower state reads zero


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"intensity": -0.1}, r"fluctuation\.intensity is -0\.1; allowed: 0 or more"),
        ({"floor": -1.0}, r"fluctuation\.floor is -1\.0; allowed: 0 or more"),
        ({"saturation": 1.1}, r"fluctuation\.saturation is 1\.1; allowed: 0 to 1"),
        ({"saturation": -0.1}, r"fluctuation\.saturation is -0\.1; allowed: 0 to 1"),
        ({"corner_siemens": 0.0}, r"fluctuation\.corner_siemens is 0\.0; allowed: above 0"),
        ({"correlation": 1.01}, r"fluctuation\.correlation is 1\.01; allowed: 0 to 1"),
        ({"correlation": -0.01}, r"fluctuation\.correlation is -0\.01; allowed: 0 to 1"),
        ({"offsets": (-1.0, 0.0, 1.0)}, r"fluctuation\.offsets .* and \.probabilities .* as many"),
        ({"offsets": (1.0,), "probabilities": (1.0,)}, r"fluctuation\.offsets .* two or more different"),
        ({"offsets": (1.0, 1.0)}, r"fluctuation\.offsets .* two or more different"),
        ({"probabilities": (0.5, 0.6)}, r"fluctuation\.probabilities .* allowed: above 0, summing to 1"),
        ({"probabilities": (0.0, 1.0)}, r"fluctuation\.probabilities .* allowed: above 0, summing to 1"),
    ],
)
def test_what_is_no_fluctuation_is_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        Fluctuation(**fields)


@pytest.mark.parametrize("field", ["intensity", "floor"])
def test_not_a_number_is_refused(field):
    with pytest.raises(ValueError, match=field):
        Fluctuation(**{field: math.nan})
