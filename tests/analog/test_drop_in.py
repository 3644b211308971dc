"""A converted layer is a Linear or Conv2d to other code; what cannot be converted is named with its reason."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from energytl import (
    GaussianWrite,
    Hardware,
    InputFormat,
    Noiseless,
    WeightFormat,
    analog_layers,
    calibrate,
    convert,
    estimate,
    estimate_batch_norm,
    left_digital,
    program_,
    to_digital,
    why_digital,
)
from energytl.analog.memory_format import has_channels_last, lay_out_channels_last, runs_channels_last

pytestmark = pytest.mark.usefixtures("one_thread")
FINE = Hardware(weights=WeightFormat(16, range_by="max"), inputs=InputFormat(16), computation=Noiseless())
UNROUNDED = Hardware(weights=WeightFormat(bits=None), computation=Noiseless())


def linear():
    torch.manual_seed(0)
    return nn.Linear(4, 3), torch.rand(2, 4)


def convolution():
    torch.manual_seed(0)
    return nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), torch.rand(2, 4, 8, 8)


every_layer = pytest.mark.parametrize("made", [linear, convolution])


@every_layer
def test_torchs_attributes_and_classes_are_there(made):
    layer, _ = made()
    layer.note = "mine"
    layer.register_parameter("extra", nn.Parameter(torch.ones(2)))
    analog = convert(layer)
    assert isinstance(analog, type(layer))
    for name in type(layer).__constants__:
        assert getattr(analog, name) == getattr(layer, name)
    for network in (analog, to_digital(analog), pickle.loads(pickle.dumps(analog)), copy.deepcopy(analog)):
        assert network.note == "mine"
        assert "extra" in dict(network.named_parameters())
    assert vars(to_digital(analog)).keys() == vars(layer).keys()
    assert type(to_digital(analog)) is type(layer)


@every_layer
def test_inputs_may_be_given_by_name_also_to_calibration_and_estimates(made):
    layer, x = made()

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(input=x)

    analog = calibrate(convert(Named(), FINE), [x])
    torch.testing.assert_close(analog(x), layer(x), rtol=1e-3, atol=1e-3)
    assert estimate(analog, x).layers[0].positions > 0


@every_layer
def test_hooks_of_all_kinds_are_called_once(made):
    layer, x = made()
    x.requires_grad_()
    seen = []
    layer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append("before") or ((2 * args[0],), kwargs), with_kwargs=True
    )
    layer.register_forward_hook(lambda module, args, y: seen.append("after"), always_call=True)
    layer.register_full_backward_hook(lambda module, grads, of: seen.append("backward"))
    layer.register_state_dict_post_hook(lambda module, state, prefix, local: seen.append("saved"))
    expected = layer(x)
    for network in (convert(layer, FINE, strict=True), to_digital(convert(layer))):
        seen.clear()
        y = network(x)
        torch.testing.assert_close(y, expected, rtol=1e-3, atol=1e-3)
        y.sum().backward()
        network.state_dict()
        assert seen == ["before", "after", "backward", "saved"]


@pytest.mark.parametrize("inputs", ["contiguous", "last", "sliced", "one image", "permuted"])
@pytest.mark.parametrize("weights_last", [False, True])
@pytest.mark.parametrize("columns", [False, True])
def test_outputs_lie_in_memory_as_torchs(inputs, weights_last, columns):
    layer, x = convolution()
    if weights_last:
        layer = layer.to(memory_format=torch.channels_last)
    x = {
        "contiguous": x,
        "last": x.contiguous(memory_format=torch.channels_last),
        "sliced": x[:, :, ::2],
        "one image": x[0],
        "permuted": x.permute(0, 1, 3, 2),
    }[inputs]
    hardware = Hardware(weights=WeightFormat(columns=columns))
    for mode in (torch.enable_grad, torch.no_grad):
        with mode():
            assert convert(layer, hardware)(x).stride() == layer(x).stride()


class Flattens(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)

    def forward(self, x):
        return self.conv(x).view(len(x), -1)


@pytest.mark.parametrize(
    ("network", "runs"), [(Flattens(), False), (nn.Conv2d(1, 2, 3), True), (nn.Linear(4, 2), False)]
)
def test_what_runs_in_channels_last_is_told_from_what_flattens_by_view(network, runs):
    assert runs_channels_last(network, (4,) if isinstance(network, nn.Linear) else (1, 6, 6)) == runs
    if runs:
        x, analog = torch.rand(2, 1, 6, 6), convert(network, FINE)
        expected = analog(x)
        lay_out_channels_last(analog)
        assert has_channels_last(analog(x))
        torch.testing.assert_close(copy.deepcopy(analog)(x), expected)


def test_new_weights_get_their_range():
    def init(module):
        if isinstance(module, nn.Linear):
            module.weight.data.normal_(0, 50)

    analog = convert(nn.Sequential(nn.Linear(4, 3)))
    analog.apply(init)
    assert analog[0].weight_range > 10
    analog[0].reset_parameters()
    assert analog[0].weight_range < 1


def test_a_dictionary_of_ones_own_takes_the_state():
    layer, _ = linear()
    state = {}
    convert(layer).state_dict(destination=state, prefix="a.", keep_vars=True)
    assert list(state) == ["a.weight", "a.bias"]


# What is named


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def patched():
    layer = nn.Linear(4, 4)
    plain = layer.forward
    layer.forward = lambda x: 3 * plain(x)
    return layer


def taken():
    layer = nn.Linear(4, 4)
    layer.noise = 0.3
    return layer


COMPUTED = {
    "pruned": (lambda: prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5), "pruned by a mask"),
    "structured": (lambda: prune.ln_structured(nn.Linear(4, 4), "weight", 0.5, 2, 0), "pruned by a mask"),
    "spectral": (lambda: nn.utils.spectral_norm(nn.Linear(4, 4)), "computed by spectral_norm"),
    "weight": (lambda: nn.utils.weight_norm(nn.Linear(4, 4)), "computed by weight_norm"),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(4, 4)), "computed by Orthogonal"),
    "new weight": (lambda: parametrizations.weight_norm(nn.Linear(4, 4)), "computed by WeightNorm"),
    "patched": (patched, "forward was replaced"),
    "own": (lambda: Doubled(4, 4, 1), "Doubled has a forward of its own"),
    "taken": (taken, "attribute noise"),
    "complex": (lambda: nn.Linear(4, 4, dtype=torch.complex64), "complex64"),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", COMPUTED)
def test_what_cannot_be_converted_is_named_with_its_reason_and_comes_back_exactly(name):
    torch.manual_seed(0)
    make, reason = COMPUTED[name]
    network = nn.ModuleList([nn.Linear(4, 4), make()]).eval()
    x = torch.rand(2, 4, dtype=network[1].weight.dtype) if name != "own" else torch.rand(2, 4, 3, 3)
    network[1](x)  # weights with a history
    analog = convert(network, strict=False)
    assert left_digital(analog) == ["1.weight"]
    assert reason in why_digital(analog)["1.weight"]
    with pytest.raises(ValueError, match=f"1 weights cannot be converted .*{reason}"):
        convert(network, strict=True)
    assert torch.equal(to_digital(analog)[1](x), network[1](x))


def test_modules_in_lists_are_named():
    network = nn.Sequential(nn.Linear(4, 4))
    network.others = [nn.Linear(4, 4)]
    network.by_name = {"last": nn.Conv2d(2, 2, 1), "known": network[0]}
    assert sorted(left_digital(convert(network, strict=False))) == ["by_name.last.weight", "others.0.weight"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_quantised_and_scripted_modules_are_named_or_refused():
    plain = nn.Sequential(nn.Linear(4, 4))
    quantised = torch.ao.quantization.quantize_dynamic(plain, {nn.Linear})
    assert why_digital(convert(nn.Sequential(nn.Linear(4, 4), quantised), strict=False))["1.0.weight"].startswith(
        "quantised"
    )
    with pytest.raises(ValueError, match=r"no Linear or Conv2d to convert; 0\.weight \(quantised by torch\.ao"):
        convert(quantised)
    for scripted in (torch.jit.script(plain), torch.jit.trace(plain, torch.ones(1, 4))):
        with pytest.raises(ValueError, match="layer 1 is scripted"):
            convert(nn.Sequential(nn.Linear(4, 4), scripted))
    assert left_digital(convert(nn.Sequential(nn.Linear(4, 4), torch.jit.script(nn.ReLU())))) == []


class OwnAttention(nn.MultiheadAttention):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


def test_a_block_of_torch_calls_its_layers_whatever_its_attention():
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    block.self_attn = OwnAttention(8, 2, batch_first=True)
    analog, x = convert(block.eval(), FINE, strict=False), torch.rand(2, 3, 8)
    with torch.no_grad():
        analog(x)
        assert [layer.positions for layer in analog_layers(analog).values()] == [3, 3]
        assert torch.equal(to_digital(analog)(x), block(x))
    assert vars(to_digital(analog)).keys() == vars(block).keys()


def test_parametrized_after_conversion_is_refused_on_the_way_back():
    analog = convert(nn.Sequential(nn.Linear(4, 4)))
    parametrizations.weight_norm(analog[0])
    with pytest.raises(ValueError, match="layer 0 was parametrized after it was converted"):
        to_digital(analog)


def test_what_is_pruned_after_conversion_comes_back_and_is_not_programmed():
    analog = convert(nn.Sequential(nn.Linear(4, 4)), UNROUNDED)
    prune.l1_unstructured(analog[0], "weight", 0.5)
    back, x = to_digital(analog), torch.rand(2, 4)
    assert torch.equal(back(x), F.linear(x, analog[0].weight, analog[0].bias))
    with pytest.raises(ValueError, match="weight of layer 0 is computed in every call"):
        program_(analog, GaussianWrite(0.1))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: nn.Sequential(nn.LazyLinear(3)), "layer 0 is lazy .* run the network on an input once"),
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.LazyConv2d(3, 1)), "layer 1 is lazy"),
        (lambda: nn.Sequential(convert(nn.Linear(2, 2))), "layer 0 is analog already"),
    ],
)
def test_what_is_not_ready_is_refused_in_a_line(made, message):
    with pytest.raises(ValueError, match=message):
        convert(made())


class Tables(nn.Module):
    """A position table and a bias that are added or looked up, a weight that is multiplied, in one network."""

    def __init__(self):
        super().__init__()
        self.layer, self.words = nn.Linear(8, 8), nn.Embedding(7, 8)
        self.places = nn.Parameter(torch.randn(1, 5, 8))
        self.biases = nn.Parameter(torch.randn(9, 5))
        self.mix = nn.Parameter(torch.randn(8, 8))
        self.scale = nn.Parameter(torch.randn(8))

    def forward(self, x):
        x = self.layer(x + self.places + self.words(torch.arange(5)))
        scores = x @ x.mT + self.biases[torch.arange(5)]
        return (scores.softmax(-1) @ x) @ self.mix * self.scale


def test_an_example_shows_what_is_multiplied_and_what_is_added():
    analog, x = convert(Tables(), strict=False), torch.rand(2, 5, 8)
    assert left_digital(analog) == ["places", "biases", "mix"]
    assert left_digital(analog, x) == ["mix"]
    with pytest.raises(ValueError, match=r"1 weights cannot be converted .*mix \(multiplied"):
        convert(Tables(), strict=True, example=(x,))


def test_weights_used_without_their_layer_are_named_with_an_example():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.layer, self.used = nn.Embedding(7, 8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return F.linear(F.linear(self.layer(self.words(x)), self.used.weight), self.words.weight)

    analog = convert(Tied())
    assert left_digital(analog) == []
    assert left_digital(analog, torch.randint(7, (2, 3))) == ["words.weight", "used.weight"]


# Positions, batches, writes


@pytest.mark.parametrize("count", [1, 2, 3, 5, 10])
def test_sequences_first_cost_what_images_first_do(count):
    torch.manual_seed(0)
    first = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False
    ).eval()
    second = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False).eval()
    second.load_state_dict(first.state_dict())
    x = torch.randn(count, 10, 8)
    one, other = (calibrate(convert(network, FINE), [y]) for network, y in ((first, x), (second, x.transpose(0, 1))))
    expected, found = estimate(one, x), estimate(other, x.transpose(0, 1))
    torch.testing.assert_close(other(x.transpose(0, 1)).transpose(0, 1), one(x))
    assert {layer.positions for layer in expected.layers} == {10} == {layer.positions for layer in found.layers}
    assert found.energy_paper == pytest.approx(expected.energy_paper, rel=1e-5)
    assert {layer.positions for layer in analog_layers(other).values()} == {10}


class Transposed(nn.Module):
    """Linear layers by hand on (L, N, E), one on a table that is no batch, one called for each image."""

    def __init__(self):
        super().__init__()
        self.tokens, self.table, self.each = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        y = self.tokens(x.transpose(0, 1)).transpose(0, 1)
        y = y + self.table(torch.ones(1, 12, 8)).mean(1)
        return torch.stack([self.each(image) for image in y])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 12])
def test_positions_do_not_depend_on_how_many_images_there_are(count):
    analog = calibrate(convert(Transposed(), FINE), [torch.ones(1, 6, 8)])
    cost, one = estimate(analog, torch.ones(count, 6, 8)), estimate(analog, torch.ones(1, 6, 8))
    assert [layer.positions for layer in cost.layers] == [6, 12, 6]
    assert cost.energy_paper == pytest.approx(one.energy_paper, rel=1e-5)


@pytest.mark.parametrize("made", [linear, convolution])
def test_an_input_without_a_batch_is_one_image(made):
    layer, x = made()
    analog = calibrate(convert(layer, FINE), [x[:1]])
    expected, found = estimate(analog, x[:1]), estimate(analog, x[0])
    assert found.reads == expected.reads
    assert found.energy_paper == pytest.approx(expected.energy_paper, rel=1e-6)


def test_batches_may_have_labels():
    network, x = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)), torch.rand(6, 4)
    plain, labelled = (calibrate(convert(network), batches) for batches in ([x], [(x, torch.zeros(6))]))
    assert plain[0].input_range == labelled[0].input_range
    estimate_batch_norm(labelled, [[x, torch.zeros(6)]], 0)
    with pytest.raises(TypeError, match="a batch is of type dict; allowed"):
        calibrate(convert(network), [{"x": x}])


def test_a_write_says_how_many_weights_its_range_cuts():
    layers = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10))
    for layer, large in zip(layers, (0, 2), strict=True):
        with torch.no_grad():
            layer.weight.fill_(0.1)
            layer.weight.view(-1)[:large] = 5.0  # rms 0.71
    with pytest.warns(UserWarning, match=r"cuts 2 of 200 weights \(0\.01 of all\) .* most in 1 \(0\.02 of its own\)"):
        program_(convert(layers, UNROUNDED), GaussianWrite(0.0))
