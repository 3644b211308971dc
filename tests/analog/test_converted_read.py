"""Reads whose partial sums are converted: against integer products, against states drawn one by one, against torch."""

import pytest
import torch
from torch import nn

import energytl
from energytl import BitSerialRead, Exact, Hardware, InputFormat, Moments, Noiseless, RepeatedRead, SingleRead
from energytl.analog import fused, fused_conversion, read
from energytl.analog.mapping import BitSlices, DifferentialPair, MultilevelPair, OneCell, ResetCells
from energytl.crossbar.arrays import Arrays
from energytl.crossbar.converter import CalibratedRange, Converter, FullRange, GranularRange

SCHEMES = {
    "single": SingleRead(),
    "repeated": RepeatedRead(3),
    "bits": BitSerialRead(),
    "bits as charge": BitSerialRead(analog_accumulation=True),
}
LAYERS = {
    "linear": (lambda: nn.Linear(40, 6), (5, 40)),
    "tokens": (lambda: nn.Linear(20, 6), (3, 4, 20)),
    "strided": (lambda: nn.Conv2d(5, 6, 3, stride=2, padding=1), (2, 5, 7, 7)),
    "grouped": (lambda: nn.Conv2d(6, 4, 3, groups=2), (2, 6, 6, 6)),
    "cut channel": (lambda: nn.Conv2d(2, 3, 5, padding=2), (2, 2, 6, 6)),
}


def analog_layer(kind, hardware, seed=0):
    torch.manual_seed(seed)
    make, shape = LAYERS[kind]
    x = torch.rand(shape) - 0.3
    layer = energytl.convert(make(), hardware, seed=seed)
    return energytl.calibrate(layer, [x]), x


def clear(layer, x):
    """What the layer gives with ideal converters and no fluctuation."""
    energytl.configure(layer, converter=None, computation=Noiseless())
    return layer(x)


@pytest.mark.parametrize("rows", [12, 16])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", LAYERS)
def test_granular_range_with_enough_bits_is_the_product_itself(kind, scheme, rows):
    hardware = Hardware(
        read=SCHEMES[scheme],
        arrays=Arrays(rows=rows),
        converter=Converter(bits=16, range=GranularRange()),
        computation=Noiseless(),
    )
    layer, x = analog_layer(kind, hardware)
    assert len(layer.arrays) > 1 or kind == "tokens"
    found = layer(x)
    assert torch.allclose(found, clear(layer, x), atol=1e-5)


@pytest.mark.parametrize(
    "mapping",
    [OneCell(), DifferentialPair(), ResetCells(), BitSlices(2), MultilevelPair()],
    ids=lambda mapping: type(mapping).__name__,
)
def test_granular_range_is_exact_for_every_mapping(mapping):
    hardware = Hardware(
        mapping=mapping,
        read=BitSerialRead(),
        arrays=Arrays(rows=16),
        converter=Converter(bits=12, range=GranularRange()),
        computation=Noiseless(),
    )
    layer, x = analog_layer("linear", hardware)
    assert torch.allclose(layer(x), clear(layer, x), atol=1e-5)


def test_fewer_bits_cut_sums_off():
    hardware = Hardware(
        arrays=Arrays(rows=16),
        read=BitSerialRead(),
        converter=Converter(bits=4, range=GranularRange()),
        computation=Noiseless(),
        inputs=InputFormat(1),
    )
    layer, _ = analog_layer("linear", hardware)
    with torch.no_grad():
        layer.weight.fill_(float(layer.weight_range))
    x = torch.full((1, 40), layer.input_range)
    sums = layer.of_outputs(layer.bias) + 3 * 7 / 15 * layer.weight_range * layer.input_range  # three arrays at 7 steps
    assert torch.allclose(layer(x), sums.detach().expand(1, -1), atol=1e-5)


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", ["linear", "strided", "grouped"])
def test_moments_of_partial_sums_are_those_of_states_drawn_one_by_one(kind, scheme, bits, assert_moments):
    """Mean and variance of both, converted by a range that rounds coarsely; normal partial sums differ a little.

    A sum of 12 states is not quite normal, so codes' moments are compared with the exact samples' own error and a
    tenth of a step.
    """
    hardware = Hardware(
        rho=0.5,
        read=SCHEMES[scheme],
        arrays=Arrays(rows=20),
        converter=Converter(bits=bits, range=CalibratedRange(), noise_lsb=0.5),
        mapping=DifferentialPair(),
    )
    layer, x = analog_layer(kind, hardware)
    x = x[:1]
    samples = {}
    with torch.no_grad():
        for computation in (Exact(), Moments()):
            energytl.configure(layer, computation=computation)
            many = x.expand(3000, *x.shape[1:])
            samples[type(computation)] = layer(many).flatten(1).double()
    exact, moments = samples[Exact], samples[Moments]
    error = ((exact.var(0) + moments.var(0)) / len(exact)).sqrt()
    assert ((exact.mean(0) - moments.mean(0)).abs() < 5 * error + 0.02 * exact.std(0)).all()
    ratio = exact.var(0) / moments.var(0)
    assert ((ratio - 1).abs() < 5 * (4 / len(exact)) ** 0.5 + 0.06).all(), ratio


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rounding_as_variance_has_the_moments_of_rounding_where_steps_are_fine(scheme):
    hardware = Hardware(
        rho=0.5, read=SCHEMES[scheme], arrays=Arrays(rows=20), converter=Converter(bits=7, noise_lsb=0.7)
    )
    layer, x = analog_layer("strided", hardware)
    many = x[:1].expand(8000, *x.shape[1:])
    with torch.no_grad():
        rounded = layer(many).flatten(1).double()
        energytl.configure(layer, computation=Moments(rounding_as_variance=True))
        spread = layer(many).flatten(1).double()
    error = ((rounded.var(0) + spread.var(0)) / len(rounded)).sqrt()
    assert ((rounded.mean(0) - spread.mean(0)).abs() < 5 * error + 0.02 * spread.std(0)).all()
    assert ((rounded.var(0) / spread.var(0) - 1).abs() < 5 * (4 / len(rounded)) ** 0.5 + 0.03).all()


@pytest.fixture
def large(monkeypatch):
    """large(layer, x): what large inputs get, without what compiling takes."""
    monkeypatch.setattr(fused, "fused", lambda function, *_: function)
    monkeypatch.setattr(fused_conversion, "fused", lambda function, otherwise: otherwise)

    def read_large(layer, x):
        monkeypatch.setattr(read, "is_large", lambda x: True)
        found = layer(x)
        monkeypatch.setattr(read, "is_large", lambda x: False)
        return found

    return read_large


MAPPINGS = {"pair": DifferentialPair(), "slices": BitSlices(2), "levels apart": MultilevelPair((0.5, 1.3, 2.2))}


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", ["linear", "tokens", "strided"])
def test_large_reads_are_those_of_small_ones(kind, scheme, mapping, large):
    hardware = Hardware(
        rho=0.5, read=SCHEMES[scheme], arrays=Arrays(rows=20), mapping=MAPPINGS[mapping], converter=Converter(bits=6)
    )
    layer, x = analog_layer(kind, hardware)
    for inputs in (x, x.abs()):
        with torch.no_grad():
            energytl.configure(layer, computation=Noiseless())
            clear = layer(inputs)
            assert torch.allclose(large(layer, inputs), clear, atol=1e-5)
            energytl.configure(layer, computation=Moments())
            many = inputs[:1].repeat(4000, *[1] * (inputs.dim() - 1))
            small, fast = (read(many).flatten(1).double() for read in (layer, lambda x: large(layer, x)))
        error = ((small.var(0) + fast.var(0)) / len(small)).sqrt()
        assert ((small.mean(0) - fast.mean(0)).abs() <= 5 * error + 1e-6).all()
        ratio = small.var(0).sum() / fast.var(0).sum()  # 0.4 % of the variance: squares of 7 bits
        assert abs(float(ratio) - 1) < 5 * (4 / small.numel() * 4) ** 0.5 + 0.004


def test_large_reads_of_groups_go_the_general_way(large):
    layer, x = analog_layer("grouped", Hardware(arrays=Arrays(rows=20), converter=Converter(bits=6)))
    energytl.configure(layer, computation=Noiseless())
    with torch.no_grad():
        assert torch.equal(large(layer, x), layer(x))


def test_gradients_are_those_of_ideal_converters_where_nothing_is_cut_off():
    """Straight through the codes; no fluctuation, so both are those of the rounded product."""
    found = {}
    for converter in (None, Converter(bits=8, range=FullRange())):
        hardware = Hardware(arrays=Arrays(rows=20), converter=converter, computation=Noiseless())
        layer, x = analog_layer("strided", hardware)
        x.requires_grad_()
        layer(x).sum().backward()
        found[converter] = (x.grad, layer.weight.grad, layer.bias.grad)
    for ideal, converted in zip(*found.values(), strict=True):
        assert torch.allclose(ideal, converted, atol=1e-5)


def test_calibrated_range_errs_less_than_the_full_one():
    errors = {}
    for range_ in (CalibratedRange(), FullRange()):
        hardware = Hardware(converter=Converter(bits=6, range=range_), computation=Noiseless())
        layer, x = analog_layer("linear", hardware)
        found = layer(x)
        errors[type(range_)] = float((found - clear(layer, x)).detach().square().mean())
    assert errors[CalibratedRange] < errors[FullRange] / 10


def test_a_range_that_is_not_calibrated_is_refused():
    layer = energytl.convert(nn.Linear(4, 2), Hardware(converter=Converter()), seed=0)
    with pytest.raises(ValueError, match=r"call energytl\.calibrate first"):
        layer(torch.rand(3, 4))


def test_the_range_travels_in_the_state_dict(tmp_path):
    layer, _ = analog_layer("linear", Hardware(converter=Converter()))
    torch.save(layer.state_dict(), tmp_path / "state.pt")
    other = energytl.convert(nn.Linear(40, 6), Hardware(converter=Converter()), seed=0)
    other.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert float(other.converter_range) == float(layer.converter_range)


def test_correlated_reads_are_refused_where_moments_do_not_know_them():
    with pytest.raises(ValueError, match=r"fluctuation\.correlation is 0\.5"):
        Hardware(converter=Converter(), fluctuation=energytl.Fluctuation(correlation=0.5))


def test_costs_are_of_the_same_arrays_and_converters():
    net = nn.Conv2d(32, 10, 3)  # 288 rows: three arrays of 11, 11 and 10 channels
    x = torch.rand(1, 32, 6, 6)
    for scheme, phases in (("single", 1), ("repeated", 3), ("bits", 5), ("bits as charge", 1)):
        hardware = Hardware(read=SCHEMES[scheme], converter=Converter(bits=6))
        analog = energytl.calibrate(energytl.convert(net, hardware, seed=0), [x])
        cost = energytl.estimate(analog, x)
        assert cost.layers[0].energy_converter_j == pytest.approx(16 * 10 * 3 * phases * 1.20e-12)  # ISAAC's 6 bits
        reads = len(hardware.read.phases(torch.zeros(1), hardware.inputs))
        assert cost.latency_s == pytest.approx(16 * (reads * 10e-9 + phases * 8 * 7e-9))
        assert not any("rounding by the converters" in part for part in cost.not_modelled)
    ideal = energytl.estimate(energytl.convert(net, seed=0), x)
    assert any("rounding by the converters" in part for part in ideal.not_modelled)
