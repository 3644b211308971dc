"""Any float type, any unit, NaN and empty batches: against float64, against other units, against torch's layers."""

import copy
import math

import pytest
import torch
from torch import nn

from energytl import (
    BitCells,
    BitSerialRead,
    Exact,
    Frozen,
    Hardware,
    InputFormat,
    Moments,
    MultilevelPair,
    Noiseless,
    RepeatedRead,
    SingleRead,
    WeightFormat,
    analog_layers,
    calibrate,
    configure,
    convert,
    estimate,
    to_digital,
)
from energytl.analog import fused
from energytl.cost.energy import cell_energy, paper_energy
from energytl.optim import PulsedSGD
from energytl.ranges import TrainedRanges

pytestmark = pytest.mark.usefixtures("one_thread")

COMPUTATIONS = [Noiseless(), Moments(), Frozen(), Exact()]
SCHEMES = [SingleRead(), RepeatedRead(3), BitSerialRead()]
every_computation = pytest.mark.parametrize("computation", COMPUTATIONS, ids=repr)
every_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
LAYERS = {
    "linear": (lambda: nn.Linear(64, 8), (16, 64)),
    "tokens": (lambda: nn.Linear(16, 8), (4, 5, 16)),
    "convolution": (lambda: nn.Conv2d(3, 8, 3, padding=1, groups=1), (4, 3, 6, 6)),
    "grouped": (lambda: nn.Conv2d(4, 8, 3, groups=2, bias=False), (4, 4, 6, 6)),
}
every_layer = pytest.mark.parametrize("layer", LAYERS)


def layer_and_inputs(layer, dtype=torch.float32, **hardware):
    make, shape = LAYERS[layer]
    torch.manual_seed(0)
    x = torch.rand(shape).to(dtype)
    return convert(make().to(dtype), Hardware(**hardware), seed=0), x


# Types


@every_layer
@every_computation
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("columns", [False, True])
def test_short_types_read_what_the_same_numbers_read_in_float32(layer, computation, dtype, columns):
    hardware = {"computation": computation, "weights": WeightFormat(columns=columns), "law": "paper"}
    short, x = layer_and_inputs(layer, dtype, sensing_noise=None, **hardware)  # as their slopes in ρ cancel out
    x[0] = 0  # a blank image
    long = convert(to_digital(copy.deepcopy(short)).float(), short.hardware, seed=0)
    outputs, gradients = [], []
    for network in (short, long):
        inputs = x.clone().to(network.weight.dtype).requires_grad_()
        y = network(inputs)
        y.float().square().mean().backward()
        outputs.append(y)
        gradients.append([inputs.grad, *(parameter.grad for parameter in network.parameters())])
    assert outputs[0].dtype == dtype
    torch.testing.assert_close(outputs[0], outputs[1].to(dtype))
    eps = torch.finfo(dtype).eps
    for ours, theirs in zip(*gradients, strict=True):
        assert ours.isfinite().all()
        assert float((ours.float() - theirs).norm()) <= 4 * eps * float(theirs.norm())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@every_scheme
def test_energies_of_every_type_are_those_of_float64(dtype, scheme):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 10)).to(dtype)
    x = torch.rand(8, 3, 8, 8).to(dtype)
    hardware = Hardware(computation=Noiseless(), read=scheme, inputs=InputFormat(8), weights=WeightFormat(8))
    costs = []
    for twin in (net, copy.deepcopy(net).double()):
        analog = convert(twin, hardware, seed=0)
        analog[0].input_range, analog[3].input_range = 1.0, 1.0
        costs.append(estimate(analog, x.to(twin[0].weight.dtype)))
    for ours, theirs in zip(costs[0].layers, costs[1].layers, strict=True):
        # rounded activations reach other integers of 8 bits: from 127 to 128 a bit-serial read has 7 pulses less
        rounding = 0.02 if isinstance(scheme, BitSerialRead) else 5 * torch.finfo(dtype).eps
        assert ours.energy_paper == pytest.approx(theirs.energy_paper, rel=max(rounding, 1e-5))
        assert ours.energy_cell_j == pytest.approx(theirs.energy_cell_j, rel=max(rounding, 1e-5))


# Units


def relative_noise(layer, unit_w, unit_x, dtype=torch.float32, **hardware):
    make, shape = LAYERS[layer]
    torch.manual_seed(0)
    digital = make()
    digital.bias = None
    digital.weight.data *= unit_w
    x = (torch.rand(16, *shape[1:]) * unit_x).to(dtype)
    network = calibrate(convert(digital.to(dtype), Hardware(**hardware), seed=0), [x])
    network.noise.reseed(0)
    inputs = x.requires_grad_()
    y = network(inputs)
    (y / (unit_w * unit_x)).square().sum().backward()
    ratio = inputs.grad * unit_x, network.weight.grad * unit_w, network.log_rho.grad
    return y.detach() / (unit_w * unit_x), *ratio


@pytest.mark.parametrize("unit", [(2.0**-50, 2.0**-50), (1.0, 2.0**-60), (2.0**-60, 1.0), (2.0**40, 2.0**40)])
@pytest.mark.parametrize("computation", [Moments(), Exact()], ids=repr)
@pytest.mark.parametrize("columns", [False, True])
@every_layer
def test_a_unit_changes_no_relative_number(layer, computation, columns, unit):
    hardware = {"computation": computation, "weights": WeightFormat(columns=columns)}
    plain, other = (relative_noise(layer, *units, **hardware) for units in ((1, 1), unit))
    for ours, theirs in zip(other, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


@pytest.mark.parametrize("unit", [(2.0**-50, 2.0**-50), (2.0**40, 2.0**40)])
def test_a_unit_changes_no_large_read(unit, monkeypatch):
    monkeypatch.setattr(fused, "LARGE", 1)
    plain, other = (relative_noise("convolution", *units) for units in ((1, 1), unit))
    for ours, theirs in zip(other, plain, strict=True):
        assert float((ours - theirs).norm()) <= 1e-4 * float(theirs.norm())


@pytest.mark.parametrize(
    "weights",
    [WeightFormat(range_by="max"), WeightFormat(bits=None), WeightFormat(8, range_rms=2.5), WeightFormat(12)],
    ids=["max", "unrounded", "rms", "by weights"],
)
def test_ranges_scale_with_the_weights(weights):
    torch.manual_seed(0)
    layer, ranges = nn.Linear(40, 30), []
    for _ in range(2):
        ranges.append(convert(layer, Hardware(weights=weights)).weight_range)
        layer.weight.data *= 2.0**-70
    assert ranges[1] == ranges[0] * 2.0**-70


def test_ranges_scale_with_the_inputs():
    x, ranges = torch.rand(8, 4), []
    for unit in (1.0, 2.0**-70):
        network = convert(nn.Linear(4, 2), Hardware(inputs=InputFormat(6)))
        network(x * unit)
        ranges.append(network.input_range)
    assert ranges[1] == ranges[0] * 2.0**-70


# Ranges that follow the inputs


@every_layer
@every_scheme
def test_what_an_image_gives_does_not_depend_on_the_others_of_its_batch(layer, scheme):
    network, x = layer_and_inputs(layer, computation=Noiseless(), read=scheme, inputs=InputFormat(5, follows=True))
    x = x * torch.logspace(-3, 3, len(x)).view(-1, *[1] * (x.dim() - 1))
    x[0] = 0
    with torch.no_grad():
        together, digital = network(x), to_digital(network)(x)
        for image, one in zip(x, together, strict=True):
            assert torch.allclose(network(image[None])[0], one, rtol=1e-5, atol=0)
        error = (together - digital).flatten(1).abs().amax(1) / digital.flatten(1).abs().amax(1)
    assert (error[1:] < 0.15).all()  # one range for all would round the small ones to 0


def test_each_vector_of_a_sequence_has_its_own_range():
    network, x = layer_and_inputs("linear", computation=Noiseless(), inputs=InputFormat(5, follows=True))
    network.bias.data.zero_()
    sequence = torch.stack([x[0], 1e4 * x[0], 1e-4 * x[0]])[None]
    product = network(sequence)[0]
    for row, unit in zip(product[1:], (1e4, 1e-4), strict=True):
        assert torch.allclose(row / unit, product[0], rtol=1e-5)


def test_the_energy_of_an_image_does_not_depend_on_the_others_of_its_batch():
    for measure in (cell_energy, paper_energy):
        network, x = layer_and_inputs("convolution", inputs=InputFormat(5, follows=True))
        x = x.abs() * torch.logspace(-3, 3, len(x)).view(-1, 1, 1, 1)
        with torch.no_grad():
            apart, together = sum(float(measure(network, image[None])) for image in x), float(measure(network, x))
        assert together == pytest.approx(apart, rel=1e-5)


def test_the_gradient_of_an_image_is_that_of_a_range_of_its_own():
    hardware = {"computation": Noiseless(), "inputs": InputFormat(8, follows=True), "weights": WeightFormat(bits=None)}
    network, x = layer_and_inputs("linear", **hardware)
    digital = to_digital(network)
    grads = []
    for net in (network, digital):
        inputs = (x * torch.logspace(-2, 2, len(x)).view(-1, 1)).requires_grad_()
        net(inputs).square().sum().backward()
        grads.append((inputs.grad.clone(), net.weight.grad.clone()))
        net.weight.grad = None
    for found, expected in zip(*grads, strict=True):
        assert float((found - expected).norm() / expected.norm()) < 0.05


def test_ranges_of_weights_by_the_outputs_are_set_where_ranges_of_inputs_follow():
    weights = WeightFormat(4, range_by="outputs")
    network, x = layer_and_inputs("linear", weights=weights, inputs=InputFormat(5, follows=True))
    before = network.weight_range
    calibrate(network, [x])
    assert network.weight_range != before


def test_a_range_that_follows_cannot_train():
    network, _ = layer_and_inputs("linear", inputs=InputFormat(5, follows=True))
    with pytest.raises(ValueError, match=r"objective\.range_lr: no range of inputs can train"):
        TrainedRanges([network])


def test_weights_of_any_unit_train_by_pulses_and_zeros_are_refused():
    from energytl.devices import presets

    layer = nn.Linear(4, 2)
    layer.weight.data *= 1e-14
    analog = convert(layer, Hardware(weights=WeightFormat(bits=None)))
    PulsedSGD(analog.parameters(), lr=0.1, device=presets.reram_om())
    layer.weight.data.zero_()
    analog = convert(layer, Hardware(weights=WeightFormat(bits=None)))
    with pytest.raises(ValueError, match="are all 0"):
        PulsedSGD(analog.parameters(), lr=0.1, device=presets.reram_om())


# NaN


@every_layer
@every_computation
@every_scheme
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("mapping", [MultilevelPair(), BitCells()], ids=["pair", "bits"])
def test_nan_stays_nan(layer, computation, scheme, large, mapping, monkeypatch):
    if large and not isinstance(computation, Moments):
        pytest.skip("only moments have a way of their own")
    monkeypatch.setattr(fused, "LARGE", 1 if large else math.inf)
    monkeypatch.setattr(fused, "fused", lambda function, otherwise=None: otherwise or function)
    network, x = layer_and_inputs(layer, computation=computation, read=scheme, mapping=mapping)
    digital = to_digital(network)
    network.input_range = 1.0
    weight = network.weight.data
    for place in (x, weight):
        kept = place.view(-1)[5].clone()
        place.view(-1)[5] = math.nan
        found, expected = network(x).isnan(), digital(x).isnan()
        assert expected.any() and not (expected & ~found).any()
        assert place is weight or not (found & ~expected).any()  # 0·NaN of the padding may be NaN, too
        place.view(-1)[5] = kept
    assert network(x).isfinite().all()


def test_a_range_that_follows_nan_is_nan_for_this_batch_only():
    network, x = layer_and_inputs("linear", inputs=InputFormat(5, follows=True))
    network(x)
    assert network(x * math.nan).isnan().all()
    assert network(x).isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_range_is_chosen_for_what_is_not_finite(value):
    net = nn.Sequential(nn.Linear(64, 4), nn.Linear(4, 4))
    with torch.no_grad():
        net[0].bias[1] = value
    analog = convert(net, Hardware(computation=Noiseless()))
    for fails in (lambda x: analog(x), lambda x: calibrate(analog, [x])):
        with pytest.raises(ValueError, match=r"layer 1 \(AnalogLinear\) has no range of inputs: .* NaN or infinity"):
            fails(torch.rand(2, 64))
    assert analog[1].input_range is None


@pytest.mark.parametrize("name", ["input_range", "weight_range"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_range_that_is_none_is_refused_with_the_layers_name(name, value):
    analog = convert(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    with pytest.raises(ValueError, match=rf"{name} of layer 1 \(AnalogLinear\) is {value}; allowed: above 0"):
        setattr(analog[1], name, value)


# Empty batches


@every_layer
@every_computation
@pytest.mark.parametrize("correlation", [0.0, 0.5])
@pytest.mark.parametrize("follows", [False, True])
def test_an_empty_batch_is_read_as_torch_does_and_sets_no_range(layer, computation, correlation, follows):
    network, x = layer_and_inputs(layer, computation=computation, inputs=InputFormat(5, follows=follows))
    configure(network, fluctuation=type(network.hardware.fluctuation)(correlation=correlation))
    y = network(x[:0].requires_grad_())
    assert y.shape == to_digital(network)(x[:0]).shape
    y.sum().backward()
    assert float(network.weight.grad.abs().sum()) == 0
    assert network.input_range is None
    calibrate(network, [x[:0], x, x[:0]])
    assert (network.input_range is None) == follows
    assert list(analog_layers(network).values()) == [network]
