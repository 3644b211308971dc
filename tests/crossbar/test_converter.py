"""Codes of converters against another simulator's, and against what they must be by construction."""

import json

import pytest
import torch

from energytl.crossbar.arrays import rows_in_arrays
from energytl.crossbar.converter import (
    CalibratedRange,
    Converter,
    FullRange,
    GranularRange,
    offset_codes,
    sign_magnitude_codes,
)


@pytest.fixture(scope="module")
def crosssim(reference):
    """Codes and outputs of CrossSim 3.2.0 for small integer matrices; its file says how they were made."""
    return json.loads((reference / "converters.json").read_text("utf-8"))


def partial_sums(case, mode):
    """In integers: (vectors, arrays, phases, columns), with what one phase's whole input at full drive is."""
    weight, x = torch.tensor(case["W"], dtype=torch.float64), torch.tensor(case["X"], dtype=torch.float64)
    rows = rows_in_arrays(len(weight), 1, 128)
    assert list(rows) == case["partitions"]
    largest = 15 if case["signed_inputs"] else 31
    if mode == "bit_serial":
        bits = torch.arange(largest.bit_length())
        phases = (x.abs().long().unsqueeze(1) >> bits.view(1, -1, 1) & 1) * x.sign().unsqueeze(1)
        largest = 1
    else:
        phases = x.unsqueeze(1)
    parts = zip(phases.double().split(rows, 2), weight.split(rows), strict=True)
    return torch.stack([phase @ part for phase, part in parts], 1), 15 * largest


def test_codes_are_those_of_another_simulator_but_for_its_ties(crosssim):
    cases = {case["id"]: case for case in crosssim["cases"]}
    compared = 0
    for entry in crosssim["entries"]:
        if "codes" not in entry:
            continue
        sums, unit = partial_sums(cases[entry["case"]], entry["mode"])
        limits = torch.tensor(entry["limits_norm"], dtype=torch.float64)  # of each array, or of all
        low, high = (limits[:, end].view(1, -1, 1, 1) * unit for end in (0, 1))
        if entry["adc"] == "SignMagnitudeADC":
            codes = sign_magnitude_codes(sums / high * (2 ** (entry["bits"] - 1) - 1), entry["bits"])
        else:  # codes that count from the lower limit
            largest = 2 ** entry["bits"] - 1
            codes = offset_codes((sums - (low + high) / 2) / (high - low) * largest, entry["bits"]) + largest / 2
        found, expected = codes.long(), torch.tensor(entry["codes"])
        for place in entry["tie_positions"]:
            found[tuple(place)] = expected[tuple(place)]
        assert torch.equal(found, expected), {k: entry[k] for k in ("case", "mode", "adc", "bits", "range")}
        compared += expected.numel()
    assert compared > 50_000


def test_full_range_is_the_other_simulators_max(crosssim):
    cases = {case["id"]: case for case in crosssim["cases"]}
    for entry in crosssim["entries"]:
        if entry["adc"] == "SignMagnitudeADC" and entry["range"] == "MAX":
            rows = torch.tensor(cases[entry["case"]]["partitions"], dtype=torch.float64)
            converter = Converter(entry["bits"], FullRange())
            steps = converter.step(converter.range.largest(converter.levels, rows, None, None))
            assert torch.allclose(steps, torch.tensor(entry["lsb_norm"], dtype=torch.float64), rtol=1e-9)


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_what_a_code_stands_for_is_the_nearest_of_all(bits):
    sums = torch.linspace(-4, 4, 1001, dtype=torch.float64)
    for converter in (Converter(bits, FullRange()), Converter(bits, FullRange(), offset=True)):
        largest = torch.tensor(3.0, dtype=torch.float64)
        count = 2**bits - (0 if converter.offset else 1)
        values = torch.linspace(-3, 3, count, dtype=torch.float64)
        nearest = values[(sums.unsqueeze(1) - values).abs().argmin(1)]
        error = (converter.convert(sums, largest, None) - sums).abs()
        assert torch.allclose(error, (nearest - sums).abs(), atol=1e-12)


def test_noise_has_the_deviation_that_is_stated():
    converter = Converter(bits=12, range=FullRange(), noise_lsb=3.0)
    sums, largest = torch.zeros(40_000, dtype=torch.float64), torch.tensor(100.0, dtype=torch.float64)
    found = converter.convert(sums, largest, torch.Generator().manual_seed(0))
    expected = converter.variance(largest)
    error = expected * (2 / len(found)) ** 0.5
    assert abs(found.var() - expected) < 5 * error
    assert torch.equal(converter.convert(sums, largest, None), sums)


def test_gradient_passes_inside_the_range_and_to_the_step():
    sums = torch.tensor([-5.0, -1.2, 0.3, 7.0], dtype=torch.float64, requires_grad=True)
    largest = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    converter = Converter(bits=3, range=CalibratedRange())
    converter.convert(sums, largest, None).sum().backward()
    assert sums.grad.tolist() == [0, 1, 1, 0]
    codes_minus_inputs = torch.tensor([-3, -1 + 1.2, 0 - 0.3, 3], dtype=torch.float64)  # LSQ (Esser 2020), eq. 3
    assert largest.grad == pytest.approx(float(codes_minus_inputs.sum() / 3))


def test_a_range_that_is_not_known_is_refused():
    rows = torch.tensor([100.0])
    with pytest.raises(ValueError, match=r"call energytl\.calibrate first"):
        CalibratedRange().largest(7, rows, 1.0, None)
    with pytest.raises(ValueError, match="requires cells whose levels"):
        GranularRange().largest(7, rows, None, None)


@pytest.mark.parametrize(("settings", "text"), [({"bits": 1}, "bits is 1"), ({"noise_lsb": -1.0}, "noise_lsb is -1.0")])
def test_what_is_no_converter_is_refused(settings, text):
    with pytest.raises(ValueError, match=text):
        Converter(**settings)
