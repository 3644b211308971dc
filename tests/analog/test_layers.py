"""Analog Linear and Conv2d against torch's own layers, with weights, inputs and variances worked out by hand."""

import dataclasses
import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.func import functional_call

import energytl
from energytl import (
    BitCells,
    BitSerialRead,
    Exact,
    Fluctuation,
    Frozen,
    Moments,
    Noiseless,
    OneCell,
    RepeatedRead,
    SingleRead,
    convert,
    to_digital,
)
from energytl.analog.noise import normal_like
from energytl.devices.fluctuation import sample_states

Hardware = partial(energytl.Hardware, law="paper", sensing_noise=None)
"""What is calculated by hand below."""

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),  # torch's own
]

LAYERS = {  # torch's layer, shape of its inputs, output positions of one image
    "linear": (lambda: nn.Linear(6, 5), (4, 6), 1),
    "linear without bias": (lambda: nn.Linear(6, 5, bias=False), (4, 6), 1),
    "tokens": (lambda: nn.Linear(6, 5), (2, 3, 6), 3),
    "grid of tokens": (lambda: nn.Linear(6, 5), (2, 2, 3, 6), 6),
    "one vector": (lambda: nn.Linear(6, 5), (6,), 1),
    "convolution": (lambda: nn.Conv2d(3, 4, 3), (2, 3, 6, 5), 4 * 3),
    "convolution without bias": (lambda: nn.Conv2d(3, 4, 1, bias=False), (2, 3, 2, 2), 2 * 2),
    "fills the image": (lambda: nn.Conv2d(3, 4, (6, 5)), (2, 3, 6, 5), 1),
    "stride and padding": (lambda: nn.Conv2d(3, 4, 3, stride=(2, 1), padding=(1, 2)), (2, 3, 6, 5), 3 * 7),
    "dilation": (lambda: nn.Conv2d(3, 4, 3, dilation=(2, 1), padding=1), (2, 3, 6, 5), 4 * 5),
    "groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), (2, 4, 4, 4), 4 * 4),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4, stride=2), (2, 4, 5, 5), 2 * 2),
    "valid": (lambda: nn.Conv2d(3, 4, 3, padding="valid"), (2, 3, 6, 5), 4 * 3),
    "same": (lambda: nn.Conv2d(3, 4, (3, 5), padding="same"), (2, 3, 6, 5), 6 * 5),
    "asymmetric same": (lambda: nn.Conv2d(3, 4, (2, 4), padding="same"), (2, 3, 6, 5), 6 * 5),
    "reflect": (lambda: nn.Conv2d(3, 4, 3, padding=(2, 1), padding_mode="reflect"), (2, 3, 6, 5), 8 * 5),
    "circular": (lambda: nn.Conv2d(3, 4, 3, padding=(1, 2), padding_mode="circular"), (2, 3, 6, 5), 6 * 7),
    "replicate": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="replicate"), (2, 3, 6, 5), 6 * 5),
    "one image": (lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1), (3, 6, 5), 3 * 3),
    "one image, reflect": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (3, 6, 5), 6 * 5),
}
SCHEMES = [SingleRead(), RepeatedRead(5), BitSerialRead()]
NOISE = Fluctuation(intensity=1.0, floor=0.0015, saturation=0.5, corner_siemens=0.33e-6)

every_layer = pytest.mark.parametrize("layer", LAYERS)
every_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=repr)


def digital_and_inputs(layer):
    """A layer in double precision and inputs, a fifth of which lie outside ±0.8."""
    make, shape, _ = LAYERS[layer]
    torch.manual_seed(0)
    return make().double(), torch.rand(shape, dtype=torch.float64) * 2 - 1


def analog_of(digital, **hardware):
    network = convert(digital, Hardware(**{"rho": 2.0, "fluctuation": NOISE, **hardware}), seed=0).double()
    network.weight_range = 0.9 * float(digital.weight.detach().abs().max())  # so that some weights lie outside
    network.input_range = 0.8
    return network


def rounded(values, full_range, levels):
    """The nearest of all levels; the gradient is one inside the range and zero outside."""
    grid = torch.arange(-levels, levels + 1).to(values) * (full_range / levels)
    nearest = grid[(values.detach().unsqueeze(-1) - grid).abs().argmin(-1)]
    return nearest + (values - values.detach()) * (values.detach().abs() < full_range)


def parameters_of(digital, weight, bias=None):
    """What torch's layer computes with: this weight, and this bias if it has one."""
    if digital.bias is None:
        return {"weight": weight}
    return {"weight": weight, "bias": digital.bias if bias is None else bias}


def own(network, digital):
    """The network's Parameters that the digital one has, too."""
    return [getattr(network, name) for name, _ in digital.named_parameters()]


def gradients(outputs, tensors, direction):
    return torch.autograd.grad(outputs, tensors, direction)


@every_layer
def test_the_way_back_gives_the_same_outputs_bit_for_bit(layer):
    digital, x = digital_and_inputs(layer)
    assert torch.equal(to_digital(convert(digital))(x), digital(x))


@every_layer
def test_positions_are_the_outputs_of_one_channel_of_one_image(layer):
    digital, x = digital_and_inputs(layer)
    network = analog_of(digital)
    assert network.positions == 0
    network(x)
    assert network.positions == LAYERS[layer][2]


@every_layer
@every_scheme
@pytest.mark.parametrize("mapping", [OneCell(), BitCells()], ids=repr)
@pytest.mark.parametrize("computation", [Noiseless(), Frozen(), Moments(), Exact(), Exact(1)], ids=repr)
def test_without_fluctuation_a_read_is_the_product_of_rounded_numbers(layer, scheme, mapping, computation):
    digital, x = digital_and_inputs(layer)
    network = analog_of(
        digital, fluctuation=Fluctuation(intensity=0.0), read=scheme, mapping=mapping, computation=computation
    )
    x.requires_grad_()
    inputs, weight = rounded(x, 0.8, 31), rounded(digital.weight, network.weight_range, 15)
    expected = functional_call(digital, parameters_of(digital, weight), inputs)
    found = network(x)
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(expected)
    found = gradients(found, [x, *own(network, digital)], direction)
    for ours, theirs in zip(found, gradients(expected, [x, *digital.parameters()], direction), strict=True):
        torch.testing.assert_close(ours, theirs)


def deviations_of_cells(weight, cell_range, rho, mapping):
    """Standard deviations of a read, in units of the weight, of the cells of each weight: (C, *weight.shape)."""

    def amplitude(magnitude):
        return magnitude * (0.0015 + 0.5 / (1 + rho * magnitude / 0.33)) * cell_range

    unit = weight / cell_range
    if not isinstance(mapping, BitCells):
        return amplitude(unit.abs()).unsqueeze(0)
    integers, straight_through = (unit.detach() * 15).round().long(), unit - unit.detach()
    bits = [(integers.abs() >> p & 1) * integers.sign() + straight_through for p in range(4)]
    return torch.stack([2**p / 15 * amplitude(bit.abs()) for p, bit in enumerate(bits)])


def variance_of_inputs(inputs, step, scheme, correlation, held):
    """c·n² + (1−c)·v(n) in units of the input; its slope is that of the parabola through 0 and full scale."""
    independent = {
        SingleRead(): lambda n: n**2,
        RepeatedRead(5): lambda n: n**2 / 5,
        BitSerialRead(): lambda n: sum(4**p for p in range(5) if n >> p & 1),
    }[scheme]
    table = torch.tensor([(1 - correlation) * independent(n) + (0 if held else correlation * n**2) for n in range(32)])
    exact = table.to(inputs)[(inputs.detach() / step).abs().round().long()] * step**2
    parabola = table[31] / 31**2 * inputs.square()
    return exact + parabola - parabola.detach()


GRADIENT_CASES = [(layer, 0.0) for layer in LAYERS] + [
    (layer, 0.5) for layer, (_, shape, _) in LAYERS.items() if len(shape) in (2, 4)
]


@pytest.mark.parametrize(("layer", "correlation"), GRADIENT_CASES)
@pytest.mark.parametrize("mapping", [OneCell(), BitCells()], ids=repr)
@every_scheme
def test_moments_and_gradients_are_those_of_the_plain_composition(layer, scheme, mapping, correlation):
    """Mean + √variance·ε (+ the deviation held for each image), by autograd through torch's own operations."""
    digital, x = digital_and_inputs(layer)
    noise = dataclasses.replace(NOISE, correlation=correlation)
    network = analog_of(digital, fluctuation=noise, mapping=mapping, read=scheme)
    x.requires_grad_()
    network.noise.reseed(5)
    found = network(x)

    step, cell_range, held = 0.8 / 31, network.weight_range, correlation > 0 and LAYERS[layer][2] > 1
    inputs, weight = rounded(x, 0.8, 31), rounded(digital.weight, cell_range, 15)
    cells = deviations_of_cells(weight, cell_range, network.rho, mapping)
    no_bias = None if digital.bias is None else torch.zeros_like(digital.bias)
    variance = functional_call(
        digital,
        parameters_of(digital, cells.square().sum(0), no_bias),
        variance_of_inputs(inputs, step, scheme, correlation, held),
    )
    smallest = deviations_of_cells(torch.tensor(cell_range / 15), cell_range, network.rho.detach(), OneCell())
    floor = 1e-4 * (smallest * step).square() + 1e-30
    network.noise.reseed(5)
    read = found.detach().reshape(-1, *found.shape[-3:]) if isinstance(digital, nn.Conv2d) else found.detach()
    last = torch.channels_last if isinstance(digital, nn.Conv2d) else torch.contiguous_format  # as it is computed
    generator = network.noise.generator(x.device)
    normal = normal_like(read.contiguous(memory_format=last), generator).reshape(found.shape)
    spread = (variance + floor).sqrt() * normal
    expected = functional_call(digital, parameters_of(digital, weight), inputs) + spread
    if held:
        with network.noise.within(network.index):
            of_cells, _ = network.noise.of_cells(x.device, network.index, alone=True)
        states = sample_states((len(x), *cells.shape), noise, of_cells)
        deviations = correlation**0.5 * (states * cells).sum(1) * weight.sign()
        expected = expected + torch.cat(
            [
                functional_call(digital, parameters_of(digital, deviation, no_bias), image.unsqueeze(0))
                for image, deviation in zip(inputs, deviations, strict=True)
            ]
        )

    torch.testing.assert_close(found, expected)
    direction, tensors = torch.randn_like(expected), [x, network.log_rho]
    found = gradients(found, [*tensors, *own(network, digital)], direction)
    for ours, theirs in zip(found, gradients(expected, [*tensors, *digital.parameters()], direction), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("computation", [Noiseless(), Frozen(), Moments(), Exact()], ids=repr)
@every_scheme
def test_gradients_are_zero_where_inputs_or_weights_are_cut_off(scheme, computation):
    digital, x = digital_and_inputs("convolution")
    network = analog_of(digital, read=scheme, computation=computation)
    x.requires_grad_()
    network(x).square().sum().backward()
    for tensor, full_range in ((x, 0.8), (network.weight, network.weight_range)):
        outside = tensor.detach().abs() > full_range
        assert 0 < outside.sum() < outside.numel()
        assert torch.equal(tensor.grad == 0, outside)


def test_frozen_inputs_weights_and_biases_get_no_gradient():
    digital, x = digital_and_inputs("stride and padding")
    network = analog_of(digital)
    network.weight.requires_grad_(False)
    network.bias.requires_grad_(False)
    network(x).square().sum().backward()
    assert network.weight.grad is None
    assert network.bias.grad is None
    assert float(network.log_rho.grad) != 0


@pytest.mark.parametrize("layer", ["one image", "one image, reflect"])
def test_one_image_without_a_batch_may_have_correlated_reads(layer):
    digital, x = digital_and_inputs(layer)
    network = analog_of(digital, fluctuation=dataclasses.replace(NOISE, correlation=0.5))
    assert network(x).shape == digital(x).shape


@pytest.mark.parametrize(
    "layer",
    ["convolution", "linear"],
)
def test_an_empty_batch_gives_an_empty_output(layer):
    digital, x = digital_and_inputs(layer)
    assert analog_of(digital)(x[:0]).shape == digital(x[:0]).shape


def test_inputs_of_other_types_are_read_in_the_type_of_the_weight():
    network = convert(nn.Linear(6, 5), Hardware(computation=Noiseless()))
    integers = torch.randint(0, 31, (4, 6))
    network.input_range = 31.0
    expected = network(integers.float())
    for dtype in (torch.float64, torch.bfloat16, torch.uint8):
        assert torch.equal(network(integers.to(dtype)), expected)


def test_reads_keep_their_precision_under_autocast():
    digital, x = digital_and_inputs("convolution")
    network, x = convert(digital.float(), Hardware(computation=Noiseless())), x.float()
    expected = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network(x), expected)


def test_the_input_range_is_set_by_the_first_batch_and_stays():
    network = convert(nn.Linear(6, 5), Hardware(computation=Noiseless()))
    assert network.input_range is None
    network(torch.full((1, 6), 3.0))
    network(torch.full((1, 6), 300.0))
    assert network.input_range == pytest.approx(3.0)


@pytest.mark.parametrize("layer", ["linear", "convolution"])
def test_layers_print_as_torchs_do_with_rho_and_no_warning(layer):
    digital, _ = digital_and_inputs(layer)
    network = convert(digital, Hardware(rho=2.5))
    torch.set_warn_always(True)  # torch warns once a process otherwise, and another test may have been first
    try:
        with warnings.catch_warnings(action="error"):
            printed = repr(network)
    finally:
        torch.set_warn_always(False)
    assert printed.startswith(f"Analog{type(digital).__name__}({digital.weight.shape[1]}, {digital.weight.shape[0]}, ")
    assert "rho=2.5" in printed


def test_weights_on_their_largest_level_can_still_be_trained():
    digital = nn.Linear(4, 2)
    with torch.no_grad():
        digital.weight.sign_()  # as of a binary network: all on the largest level, none cut off
    network = convert(digital, Hardware(computation=Noiseless()))
    network(torch.rand(3, 4)).sum().backward()
    assert network.weight.grad.count_nonzero() == 8
