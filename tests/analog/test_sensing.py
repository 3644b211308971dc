"""Noise of sensing against Nyquist's and the capacitor's formulas by hand, in every computation and read."""

import math

import pytest
import torch
from torch import nn

import energytl
from energytl import (
    Arrays,
    BitSerialRead,
    BitSlices,
    Converter,
    DifferentialPair,
    Exact,
    Fluctuation,
    Frozen,
    FullRange,
    Hardware,
    Moments,
    MultilevelPair,
    Noiseless,
    OneCell,
    RepeatedRead,
    SensingNoise,
    SingleRead,
    convert,
)
from energytl.analog import fused, fused_conversion, fused_noise, read

pytestmark = pytest.mark.usefixtures("one_thread")

BOLTZMANN, KELVIN, FARAD, VOLT, SECOND, G_MIN = 1.380649e-23, 350.0, 2e-12, 0.2, 10e-9, 8e-6
SILENT = Fluctuation(intensity=0.0)
SCHEMES = {  # squares of the integer inputs that a full drive stands for: of the reads' charges, and of the conversions
    "single": (SingleRead(), 31**2, 31**2),
    "repeated": (RepeatedRead(5), 31**2 / 5, 31**2 / 5),
    "bits": (BitSerialRead(), sum(4**p for p in range(5)), sum(4**p for p in range(5))),
    "bits as charge": (BitSerialRead(analog_accumulation=True), sum(4**p for p in range(5)), 31**2),
}
MAPPINGS = {"one cell": OneCell(), "pair": DifferentialPair(), "slices": BitSlices(2), "levels": MultilevelPair()}
LAYERS = {"linear": (lambda: nn.Linear(45, 3), (45,)), "grouped": (lambda: nn.Conv2d(10, 4, 3, groups=2), (10, 3, 3))}


def by_hand(layer, scheme, mapping, arrays, rho):
    """Variance of each output, in units of integer inputs times full weights, squared."""
    _, of_reads, of_conversions = SCHEMES[scheme]
    full = VOLT * SECOND * rho * 1e-6
    stored = layer.hardware.mapping.stored(layer.stored_weight.detach().double(), layer.hardware.weights).flatten(2)
    siemens = (G_MIN + rho * 1e-6 * stored.abs()).sum(2)  # (C, O)
    if mapping == "pair":
        siemens = siemens + G_MIN * stored.shape[2]
    significances = torch.tensor(layer.hardware.mapping.significances(layer.hardware.weights), dtype=torch.float64)
    columns = float(significances.square().sum()) if mapping == "slices" else 1.0
    thermal = 2 * BOLTZMANN * KELVIN * SECOND * (significances.square()[:, None] * siemens).sum(0) * of_reads
    return (thermal + BOLTZMANN * KELVIN * FARAD * arrays * columns * of_conversions) / full**2


def made(layer, computation, scheme="single", mapping="one cell", rho=1.0, fluctuation=SILENT, **hardware):
    torch.manual_seed(0)
    network = convert(
        LAYERS[layer][0](),
        Hardware(
            fluctuation=fluctuation,
            sensing_noise=SensingNoise(KELVIN, FARAD),
            computation=computation,
            read=SCHEMES[scheme][0],
            mapping=MAPPINGS[mapping],
            rho=rho,
            arrays=Arrays(rows=20),
            **hardware,
        ),
        seed=0,
    )
    network.input_range = 1.0
    return network


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("computation", [Moments(), Exact(), Frozen()], ids=["moments", "exact", "frozen"])
@pytest.mark.parametrize("layer", LAYERS)
def test_variance_of_outputs_is_that_of_both_formulas(layer, computation, scheme, mapping):
    network, image = made(layer, computation, scheme, mapping), torch.rand(LAYERS[layer][1])
    images = 4000
    with torch.no_grad():
        outputs = network(image.expand(images, *image.shape)).flatten(1).double()
    unit = network.weight_range / 31
    expected = by_hand(network, scheme, mapping, len(network.arrays), 1.0) * unit**2
    error = expected * math.sqrt(2 / images)
    assert ((outputs.var(0) - expected).abs() < 5 * error).all()
    with torch.no_grad():
        clear = energytl.configure(network, computation=Noiseless())(image[None]).flatten().double()
    assert ((outputs.mean(0) - clear).abs() < 5 * (expected / images).sqrt()).all()


@pytest.mark.parametrize("mapping", ["pair", "slices"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("way", ["moments", "exact", "frozen", "large", "large and frozen", "as variance"])
def test_converters_see_the_noise_of_each_array_and_phase(scheme, mapping, way, monkeypatch):
    """With so many bits that rounding adds nothing."""
    computation = Moments(rounding_as_variance=True) if way == "as variance" else Moments()
    computation = {"exact": Exact(), "frozen": Frozen(), "large and frozen": Frozen()}.get(way, computation)
    network = made("linear", computation, scheme, mapping, converter=Converter(bits=18, range=FullRange()))
    if way.startswith("large"):
        monkeypatch.setattr(fused, "fused", lambda function, *_: function)
        monkeypatch.setattr(fused_conversion, "fused", lambda function, otherwise: otherwise)
        monkeypatch.setattr(read, "is_large", lambda x: True)
    images, image = 4000, torch.rand(45)
    with torch.no_grad():
        outputs = network(image.expand(images, 45).contiguous()).double()
    expected = by_hand(network, scheme, mapping, len(network.arrays), 1.0) * (network.weight_range / 31) ** 2
    assert ((outputs.var(0) - expected).abs() < 5 * expected * math.sqrt(2 / images)).all()


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("fluctuation", [SILENT, Fluctuation()], ids=["silent", "fluctuating"])
def test_gradients_of_rho_and_of_weights_are_differences_of_the_same_draw(large, fluctuation, monkeypatch):
    network = made("linear", Moments(), weights=energytl.WeightFormat(bits=None), fluctuation=fluctuation, rho=0.3)
    if large:
        monkeypatch.setattr(fused, "fused", lambda function, *_: function)
        monkeypatch.setattr(fused_noise, "fused", lambda function, otherwise: otherwise)
        monkeypatch.setattr(read, "is_large", lambda x: True)
        monkeypatch.setattr(read, "compact_dtype", lambda: torch.float32)
    torch.manual_seed(1)
    x, slope = torch.rand(64, 45), torch.randn(64, 3)

    def loss():
        network.noise.reseed(7)
        return (network(x) * slope).sum()

    loss().backward()
    way = torch.randn_like(network.weight)
    expected = float(network.log_rho.grad), float((network.weight.grad * way).sum())
    found = []
    for tensor, step in ((network.log_rho, torch.tensor(1.0)), (network.weight, way)):
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                tensor.add_(sign * 1e-3 * step)
                ends.append(float(loss()))
                tensor.sub_(sign * 1e-3 * step)
        found.append((ends[0] - ends[1]) / 2e-3)
    assert found[0] == pytest.approx(expected[0], rel=0.02)
    assert found[1] == pytest.approx(expected[1], rel=0.02)
    assert abs(expected[0]) > 0.01


def test_weights_that_are_stored_at_next_to_nothing_cannot_be_read():
    deviations = []
    for rho in (1.0, 1e-2, 1e-4):
        network = made("linear", Moments(), rho=rho, fluctuation=Fluctuation())
        with torch.no_grad():
            deviations.append(float(network(torch.rand(45).expand(2000, -1)).std(0).mean()))
    assert deviations[1] / deviations[0] > 20  # the paper's fluctuation alone would saturate
    assert deviations[2] / deviations[1] == pytest.approx(100, rel=0.05)


def test_a_network_at_vanishing_rho_is_at_chance():
    """A perfect classifier of 10 classes; at so little ρ its outputs are noise alone."""
    torch.manual_seed(0)
    digital = nn.Linear(10, 10, bias=False)
    with torch.no_grad():
        digital.weight.copy_(torch.eye(10))
    labels = torch.arange(10).repeat(500)
    shares = {}
    for law in ("paper", "cell"):
        for rho in (10.0, 1e-6):
            network = convert(digital, Hardware(law=law, rho=rho), seed=0)
            network.input_range = 1.0
            with torch.no_grad():
                shares[law, rho] = float((network(torch.eye(10)[labels]).argmax(1) == labels).double().mean())
    error = math.sqrt(0.1 * 0.9 / len(labels))
    for law in ("paper", "cell"):
        assert shares[law, 10.0] > 0.95
        assert abs(shares[law, 1e-6] - 0.1) < 5 * error


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"temperature_kelvin": 0}, "sensing_noise.temperature_kelvin is 0; allowed: above 0"),
        ({"capacitor_farad": 5}, "sensing_noise.capacitor_farad is 5; allowed: 0 to 0.001"),
        ({"capacitor_farad": math.nan}, "sensing_noise.capacitor_farad is nan"),
    ],
)
def test_what_is_no_noise_is_refused_by_name(changes, says):
    with pytest.raises(ValueError, match=says):
        SensingNoise(**changes)
