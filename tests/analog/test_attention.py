"""Attention on analog arrays: torch's and torchvision's own numbers, every projection read, and all of it trainable."""

import copy
import io
import pickle
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models.swin_transformer import (
    PatchMergingV2,
    ShiftedWindowAttention,
    ShiftedWindowAttentionV2,
    SwinTransformer,
    SwinTransformerBlockV2,
)
from torchvision.models.vision_transformer import VisionTransformer

from energytl import (
    BitSerialRead,
    Hardware,
    InputFormat,
    Moments,
    Noiseless,
    SingleRead,
    WeightFormat,
    analog_layers,
    calibrate,
    configure,
    convert,
    estimate,
    left_digital,
    to_digital,
)
from energytl.analog.attention import CallingAttention
from energytl.analog.layers import AnalogLayer
from energytl.analog.read import Computation
from energytl.devices import presets
from energytl.optim import AGAD, CTTv2, TTv2

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Product(Computation):
    """The layer's product itself, of inputs that are not rounded."""

    def __call__(self, array, x):
        return array.multiply(x, array.weight, array.bias)


EXACT = Hardware(computation=Product(), weights=WeightFormat(bits=None))
FINE = Hardware(computation=Noiseless(), weights=WeightFormat(bits=None), inputs=InputFormat(16))

SWIN = partial(
    SwinTransformer,
    patch_size=[2, 2],
    embed_dim=8,
    depths=[2, 2],
    num_heads=[2, 2],
    window_size=[3, 3],
    dropout=0.1,
    attention_dropout=0.1,
    num_classes=3,
)
NETWORKS = {
    "swin": SWIN,
    "swin_v2": partial(SWIN, block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2),
    "vit": partial(VisionTransformer, 32, 8, 2, 4, 32, 16, attention_dropout=0.1, num_classes=3),
}
PROJECTIONS = {"swin": ("qkv", "proj"), "swin_v2": ("qkv", "proj"), "vit": ("in_proj", "out_proj")}

every_network = pytest.mark.parametrize("name", NETWORKS)


def network(name):
    """With weights at random where torchvision starts with zeros."""
    torch.manual_seed(0)
    made = NETWORKS[name]().eval()
    for parameter in made.parameters():
        if parameter.count_nonzero() == 0:
            nn.init.normal_(parameter, std=0.3)
    return made


def images(count=2):
    """With an odd number of patches: 7 × 7 and 4 × 4 are padded to windows of 3 × 3, 15 × 15 and 32 × 32 pixels."""
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def pixels(name, count=2):
    return images(count) if name == "vit" else images(count)[:, :, :15, :15]


def projections(name, analog):
    layers = {key: layer for key, layer in analog_layers(analog).items() if key.split(".")[-1] in PROJECTIONS[name]}
    assert len(layers) == (4 if name == "vit" else 8)
    return layers


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def outputs_and_gradients(model, x):
    torch.manual_seed(5)  # of dropout
    outputs = model(x)
    outputs.square().sum().backward()
    grads = {key: p.grad for key, p in model.named_parameters() if not key.endswith("log_rho")}
    model.zero_grad(set_to_none=True)
    return outputs.detach(), grads


# The same numbers


@every_network
@pytest.mark.parametrize("gradients", [True, False])
def test_without_noise_and_rounding_outputs_are_the_digital_ones(name, gradients):
    digital, x = network(name), pixels(name)
    analog = convert(digital, EXACT, strict=True)
    with torch.set_grad_enabled(gradients):
        close(analog(x), digital(x))


@every_network
@pytest.mark.parametrize("read", [SingleRead(), BitSerialRead()], ids=str)
def test_without_noise_outputs_are_the_digital_ones_but_for_the_rounding_of_inputs(name, read):
    digital, x = network(name), pixels(name)  # the norms before projections give inputs of both signs
    analog = calibrate(configure(convert(digital, FINE, strict=True), read=read), [x])
    with torch.no_grad():
        torch.testing.assert_close(analog(x), digital(x), rtol=1e-3, atol=1e-3)


@every_network
@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_all_parameters_are_the_digital_ones(name, training):
    digital, x = network(name).train(training), pixels(name)
    expected, theirs = outputs_and_gradients(digital, x)
    outputs, ours = outputs_and_gradients(convert(digital, EXACT), x)
    close(outputs, expected)
    assert list(ours) == list(theirs)
    for key, gradient in theirs.items():
        torch.testing.assert_close(ours[key], gradient, rtol=1e-4, atol=1e-4, msg=lambda m, k=key: f"{k} {m}")


def test_the_keys_of_swin_v2_have_no_bias():
    digital, x = network("swin_v2"), pixels("swin_v2")
    analog = convert(digital, EXACT)
    attention = analog.features[1][0].attn
    with torch.no_grad():
        for own in (attention, digital.features[1][0].attn):
            own.qkv.bias.fill_(0.5)
        close(analog(x), digital(x))
    _, gradients = outputs_and_gradients(analog, x)
    queries, keys, values = gradients["features.1.0.attn.qkv.bias"].chunk(3)
    assert keys.count_nonzero() == 0
    assert queries.count_nonzero() == queries.numel()
    assert values.count_nonzero() == values.numel()


@every_network
def test_other_types(name):
    digital, x = network(name).double(), pixels(name).double()
    torch.testing.assert_close(convert(digital, EXACT)(x), digital(x), rtol=1e-10, atol=1e-10)
    digital, x = digital.float(), x.float()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        torch.testing.assert_close(convert(digital, EXACT)(x).float(), digital(x).float(), rtol=0.1, atol=0.1)


@every_network
def test_the_way_back_gives_torchs_own_classes_parameters_and_bits(name):
    digital, x = network(name), pixels(name)
    back = to_digital(convert(digital))
    assert [(key, type(module)) for key, module in back.named_modules()] == [
        (key, type(module)) for key, module in digital.named_modules()
    ]
    assert all(map(torch.equal, back.parameters(), digital.parameters()))
    with torch.no_grad():
        assert torch.equal(back(x), digital(x))
    _, theirs = outputs_and_gradients(digital, x)
    _, ours = outputs_and_gradients(back, x)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


# torch's attention with all its settings


def masks(which, n, queries, keys, heads):
    random = torch.Generator().manual_seed(3)
    hidden = {
        key: torch.rand(shape, generator=random) < 0.3
        for key, shape in {
            "attn_mask": (queries, keys),
            "each": (n * heads, queries, keys),
            "key_padding_mask": (n, keys),
        }.items()
    }
    for mask in hidden.values():
        mask[..., 0] = False  # something is left to attend to
    scores = torch.randn(queries, keys, generator=random)
    return {
        "none": {},
        "bool": {"attn_mask": hidden["attn_mask"]},
        "float": {"attn_mask": scores},
        "each head": {"attn_mask": hidden["each"]},
        "padding": {"key_padding_mask": hidden["key_padding_mask"]},
        "both": {"attn_mask": hidden["attn_mask"], "key_padding_mask": hidden["key_padding_mask"]},
        "causal": {"attn_mask": torch.ones(queries, keys).triu(1).bool(), "is_causal": True},
    }[which]


@pytest.mark.parametrize("which", ["none", "bool", "float", "each head", "padding", "both", "causal"])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize(
    "settings",
    [{}, {"batch_first": True}, {"bias": False}, {"add_bias_kv": True, "add_zero_attn": True}, {"kdim": 5, "vdim": 3}],
    ids=str,
)
@pytest.mark.parametrize("kind", ["self", "two inputs", "three inputs"])
def test_multihead_attention_is_torchs(which, need_weights, settings, kind):
    torch.manual_seed(0)
    digital = nn.MultiheadAttention(8, 2, dropout=0.2, **settings)
    for parameter in digital.parameters():
        nn.init.normal_(parameter, std=0.5)
    n, queries, keys = 3, 4, 4 if kind == "self" else 5
    sizes = [(queries, n, 8), (keys, n, digital.kdim), (keys, n, digital.vdim)]
    query, key, value = (torch.randn(size).transpose(0, int(digital.batch_first)) for size in sizes)
    if "kdim" not in settings:
        key, value = {"self": (query, query), "two inputs": (key, key), "three inputs": (key, value)}[kind]
    options = masks(which, n, queries, keys, 2) | {"need_weights": need_weights}
    analog = convert(digital, EXACT, strict=True)
    assert sorted(analog.state_dict()) == sorted(digital.state_dict())
    torch.manual_seed(1)
    expected, theirs = digital(query, key, value, **options)
    torch.manual_seed(1)
    outputs, ours = analog(query, key, value, **options)
    close(outputs, expected)
    if need_weights:
        close(ours, theirs)
        options["average_attn_weights"] = False
        torch.manual_seed(1)
        close(digital.eval()(query, key, value, **options)[1], analog.eval()(query, key, value, **options)[1])
    else:
        assert ours is None is theirs


@pytest.mark.parametrize("settings", [{}, {"kdim": 5, "vdim": 3}], ids=str)
def test_multihead_attention_trains_as_torchs(settings):
    torch.manual_seed(0)
    digital = nn.MultiheadAttention(8, 2, **settings)
    query, key, value = torch.randn(4, 2, 8), torch.randn(5, 2, digital.kdim), torch.randn(5, 2, digital.vdim)

    def gradients(model):
        model(query, key, value)[0].square().sum().backward()
        found = [parameter.grad.clone() for name, parameter in model.named_parameters() if "log_rho" not in name]
        model.zero_grad()
        return found

    for ours, theirs in zip(gradients(convert(digital, EXACT)), gradients(digital), strict=True):
        close(ours, theirs)


@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_attention_without_a_batch(need_weights):
    digital, x = nn.MultiheadAttention(8, 2, batch_first=True).eval(), torch.randn(4, 8)
    ours, theirs = (model(x, x, x, need_weights=need_weights) for model in (convert(digital, EXACT), digital))
    close(ours[0], theirs[0])
    assert (ours[1] is None) == (not need_weights)
    if need_weights:
        close(ours[1], theirs[1])


def test_cross_attention_reads_its_array_for_the_tokens_of_each_input():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x, x[:, :3], x[:, :3])[0]

    torch.manual_seed(0)
    digital, x = Net(), torch.randn(2, 5, 8)
    analog = convert(digital, EXACT, strict=True)
    assert [layer.positions for layer in estimate(analog, x).layers] == [5 + 3 + 3, 5]  # x[:, :3] twice is two inputs
    close(analog(x), digital(x))


def test_an_encoder_layer_of_torch_does_not_go_round_the_arrays():
    torch.manual_seed(0)
    digital = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    analog, x = convert(digital, EXACT, strict=True), torch.randn(2, 3, 8)
    with torch.no_grad():
        close(analog(x), digital(x))
    assert [layer.positions for layer in analog_layers(analog).values()] == [3] * 4


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (lambda x: {"query": torch.nested.nested_tensor([x[0]], layout=torch.jagged)}, "takes no nested tensors"),
        (lambda x: {"is_causal": True}, "has no attn_mask"),
    ],
    ids=["nested", "causal"],
)
def test_what_attention_cannot_do_is_refused(what, message):
    analog, x = convert(nn.MultiheadAttention(4, 2)), torch.randn(2, 3, 4)
    with pytest.raises(ValueError, match=message):
        analog(**{"query": x, "key": x, "value": x} | what(x))


# Positions and costs


@every_network
def test_tokens_are_positions_whatever_the_batch(name):
    analog = convert(network(name), EXACT)
    expected = {"vit": {17}, "swin": {81, 36}, "swin_v2": {81, 36}}[name]  # padded to whole windows
    for count in (1, 3):
        analog(pixels(name, count))
        assert {layer.positions for layer in projections(name, analog).values()} == expected


@every_network
@pytest.mark.parametrize("count", [1, 3, 64])
def test_every_weight_is_read_and_counts_are_those_of_one_image(name, count):
    hardware = Hardware(computation=Noiseless(), inputs=InputFormat(4), read=BitSerialRead())
    analog, x = convert(network(name), hardware), pixels(name)
    calibrate(analog, [x])
    cost = estimate(analog, x[:1].expand(count, -1, -1, -1))
    one = estimate(analog, x[:1])
    assert left_digital(analog) == []
    assert all(layer.reads >= layer.positions > 0 for layer in cost.layers)
    assert [layer.reads for layer in cost.layers] == [layer.reads for layer in one.layers]
    assert cost.energy_paper == pytest.approx(one.energy_paper, rel=1e-4)
    assert cost.energy_cell_j == pytest.approx(one.energy_cell_j, rel=1e-4)
    assert any("softmax" in part and "normalisation" in part for part in cost.not_modelled)
    assert any("attention" in part for part in cost.not_modelled)


@every_network
def test_reads_fluctuate(name):
    analog, x = convert(network(name), Hardware(computation=Moments(), read=BitSerialRead()), seed=0), pixels(name)
    calibrate(analog, [x])
    for layer in projections(name, analog).values():
        configure(analog, computation=Noiseless())
        layer.configure(computation=Moments())  # this one alone
        outputs = []
        hook = layer.register_forward_hook(lambda layer, inputs, y, outputs=outputs: outputs.append(y))
        with torch.no_grad():
            analog(x)
            analog(x)
        hook.remove()
        assert not torch.equal(*outputs)


@every_network
def test_calibration_reaches_the_projections(name):
    analog = convert(network(name))
    assert all(layer.input_range is None for layer in projections(name, analog).values())
    calibrate(analog, [pixels(name)])
    assert all(layer.input_range > 0 for layer in projections(name, analog).values())


# What is saved


def saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@every_network
def test_state_dicts_have_the_same_keys_and_load_strictly_both_ways(name):
    digital, x = network(name), pixels(name)
    analog = convert(copy.deepcopy(digital), EXACT)
    assert list(analog.state_dict()) == list(digital.state_dict())
    with torch.no_grad():
        for layer in analog_layers(analog).values():
            layer.weight.mul_(-1)
        other = network(name)
        other.load_state_dict(saved_and_loaded(analog.state_dict()))
        close(other(x), analog(x))
        analog.load_state_dict(saved_and_loaded(digital.state_dict()))
        close(analog(x), digital(x))


@every_network
@pytest.mark.parametrize("assign", [False, True])
def test_rho_and_ranges_travel_with_the_state_dict(name, assign):
    x = pixels(name)
    analog = calibrate(convert(network(name), Hardware(rho=3.0), seed=0), [x])
    for number, layer in enumerate(analog_layers(analog).values()):
        nn.init.constant_(layer.log_rho, number / 10)
        nn.init.normal_(layer.weight)
        layer.weight_range = 0.5 + number / 100
    other = convert(network(name), Hardware(rho=77.0), seed=0)
    other.load_state_dict(saved_and_loaded(analog.state_dict()), assign=assign)
    for ours, theirs in zip(analog_layers(analog).values(), analog_layers(other).values(), strict=True):
        assert torch.equal(ours.rho, theirs.rho)
        assert (ours.weight_range, ours.input_range) == (theirs.weight_range, theirs.input_range)
    for layer in (analog, other):
        next(iter(analog_layers(layer).values())).noise.reseed(1)
    with torch.no_grad():
        assert torch.equal(analog(x), other(x))
    assert all(ours is theirs for ours, theirs in zip(to_digital(other).parameters(), weights_of(other), strict=True))


def weights_of(analog):
    return [parameter for key, parameter in analog.named_parameters() if not key.endswith("log_rho")]


def test_ranges_of_a_digital_state_are_set_anew_also_where_it_is_assigned():
    analog, larger = convert(nn.MultiheadAttention(4, 2)), nn.MultiheadAttention(4, 2)
    nn.init.normal_(larger.in_proj_weight, std=100.0)
    analog.load_state_dict(larger.state_dict(), assign=True)
    assert analog.in_proj.weight is analog.in_proj_weight
    assert analog.in_proj.weight_range == convert(larger).in_proj.weight_range > 10


def test_a_wrong_state_is_refused_by_its_names():
    analog = convert(nn.MultiheadAttention(4, 2))
    state = nn.MultiheadAttention(4, 2).state_dict()
    del state["in_proj_weight"]
    assert analog.load_state_dict({**state, "in_proj.bias": 0}, strict=False) == (["in_proj_weight"], ["in_proj.bias"])


@every_network
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_a_copy_is_independent_and_goes_on_where_the_original_stands(name, duplicate):
    analog, x = convert(network(name), seed=0), pixels(name)
    with torch.no_grad():
        analog(x)
        twin = duplicate(analog)
        assert torch.equal(twin(x), analog(x))
        for layer in projections(name, twin).values():
            layer.weight.zero_()
        assert all(layer.weight.count_nonzero() > 0 for layer in projections(name, analog).values())
        digital = to_digital(twin)
        assert not any(isinstance(module, CallingAttention) for module in digital.modules())
        close(configure(twin, weights=WeightFormat(bits=None), computation=Product())(x), digital(x))


@every_network
def test_parameters_have_the_digital_names_and_numbers(name):
    digital = network(name)
    analog = convert(digital)
    ours = {key: tensor for key, tensor in analog.named_parameters() if not key.endswith("log_rho")}
    assert list(ours) == [key for key, _ in digital.named_parameters()]
    assert all(torch.equal(ours[key], tensor) for key, tensor in digital.named_parameters())
    assert len(list(analog.parameters())) == len(ours) + len(analog_layers(analog))


def test_layers_follow_their_attention_to_another_device():
    with torch.device("meta"):
        digital = nn.MultiheadAttention(4, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AnalogLayer, "fit_weight_range", lambda layer, inputs=None: None)
        analog = convert(digital)
    analog.to_empty(device="cpu")
    assert analog.in_proj.weight is analog.in_proj_weight
    assert analog.in_proj_weight.device.type == "cpu"


# Training


@every_network
@pytest.mark.parametrize("kind", [TTv2, CTTv2, AGAD])
@pytest.mark.parametrize("computation", [Noiseless(), Moments()], ids=["noiseless", "moments"])
def test_projections_train_on_the_chip(name, kind, computation):
    hardware = Hardware(computation=computation, weights=WeightFormat(bits=None), inputs=InputFormat(8))
    analog, x = convert(network(name), hardware, seed=0), pixels(name)
    optimizer = kind(analog.parameters(), lr=0.5, device=presets.reram_om(), seed=7)
    optimizer.fuse = False  # compiling takes longer than the test
    layers = projections(name, analog)
    before = {key: layer.weight.detach().clone() for key, layer in layers.items()}
    for _ in range(3):
        optimizer.zero_grad()
        analog(x).square().mean().backward()
        assert all(layer.weight.grad is None for layer in layers.values())  # samples instead
        optimizer.step()
    moved = [key for key, layer in layers.items() if not torch.equal(layer.weight, before[key])]
    assert moved == list(layers)


# What is converted

FAMILIES = [
    "alexnet",
    "vgg11",
    "resnet18",
    "resnext50_32x4d",
    "wide_resnet50_2",
    "densenet121",
    "squeezenet1_1",
    "googlenet",
    "inception_v3",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "shufflenet_v2_x0_5",
    "mnasnet0_5",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "convnext_tiny",
    "swin_t",
    "swin_v2_t",
    "vit_b_32",
    "maxvit_t",
]


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_stays_digital_in_any_family_of_torchvision(name, monkeypatch):
    monkeypatch.setattr(AnalogLayer, "fit_weight_range", lambda layer, inputs=None: None)  # meta weights have none
    with torch.device("cpu" if "regnet" in name else "meta"):  # regnet computes its sizes with tensors
        digital = models.get_model(name, **{"init_weights": False} if name in ("googlenet", "inception_v3") else {})
    analog = convert(digital, strict=True)
    assert left_digital(analog) == []
    names = [key for key, _ in analog.named_parameters() if not key.endswith("log_rho")]
    assert names == [key for key, _ in digital.named_parameters()]
    matrices = sum(isinstance(module, nn.Linear | nn.Conv2d) for module in digital.modules())
    packed = sum(isinstance(module, nn.MultiheadAttention) for module in digital.modules())
    assert len(analog_layers(analog)) == matrices + packed
    layers = [module for module in analog.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    assert all(isinstance(layer, AnalogLayer) for layer in layers)


def test_a_root_and_a_shared_attention_are_converted():
    attention, x = nn.MultiheadAttention(4, 2).eval(), torch.randn(3, 2, 4)
    shared = convert(nn.ModuleList([attention, attention]), EXACT, strict=True)
    assert shared[0] is shared[1]
    assert list(analog_layers(shared)) == ["0.in_proj", "0.out_proj"]
    close(convert(attention, EXACT, strict=True)(x, x, x)[0], attention(x, x, x)[0])


class OwnInit(nn.MultiheadAttention):
    def __init__(self):
        super().__init__(4, 2, batch_first=True)
        self.note = "mine"


class OwnBias(ShiftedWindowAttention):
    def get_relative_position_bias(self):
        return 3 * super().get_relative_position_bias()


@pytest.mark.parametrize("made", [OwnInit, partial(OwnBias, 4, [2, 2], [1, 1], 2)], ids=["init", "position bias"])
def test_subclasses_that_keep_the_forward_are_converted_and_keep_what_is_theirs(made):
    torch.manual_seed(0)
    digital = made().eval()
    analog = pickle.loads(pickle.dumps(convert(digital, EXACT, strict=True)))
    x = torch.randn(2, 3, 4) if isinstance(digital, OwnInit) else torch.randn(2, 3, 3, 4)
    arguments = (x, x, x) if isinstance(digital, OwnInit) else (x,)
    ours, theirs = analog(*arguments), digital(*arguments)
    close(*((ours[0], theirs[0]) if isinstance(digital, OwnInit) else (ours, theirs)))
    assert isinstance(analog, type(digital))
    assert type(to_digital(analog)) is type(digital)


class OwnForward(nn.MultiheadAttention):
    def forward(self, x):
        return super().forward(x, x, x)[0]


class OwnWindows(ShiftedWindowAttentionV2):
    def forward(self, x):
        return x + super().forward(x)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def with_own_projection():
    attention = ShiftedWindowAttention(4, [2, 2], [1, 1], 2)
    attention.proj = Doubled(4, 4)
    return attention


def with_computed_weight():
    return nn.utils.parametrizations.spectral_norm(nn.MultiheadAttention(4, 2), "in_proj_weight")


def with_patched_forward():
    attention = nn.MultiheadAttention(4, 2)
    attention.forward = partial(nn.MultiheadAttention.forward, attention)
    return attention


@pytest.mark.parametrize(
    ("made", "left"),
    [
        (lambda: OwnForward(4, 2), ["in_proj_weight", "out_proj.weight"]),
        (
            lambda: OwnWindows(4, [2, 2], [1, 1], 2),
            ["qkv.weight", "proj.weight", "cpb_mlp.0.weight", "cpb_mlp.2.weight"],
        ),
        (with_own_projection, ["qkv.weight", "proj.weight"]),
        (with_computed_weight, ["in_proj_weight", "out_proj.weight"]),
        (with_patched_forward, ["in_proj_weight", "out_proj.weight"]),
    ],
    ids=["forward", "windows", "projection", "computed weight", "patched"],
)
def test_attention_with_its_own_ways_stays_digital_and_is_named(made, left):
    network = nn.Sequential(nn.Linear(4, 4), made())
    assert sorted(left_digital(convert(network, strict=False))) == sorted(f"1.{name}" for name in left)
    with pytest.raises(ValueError, match=f"{len(left)} weights cannot be converted"):
        convert(network, strict=True)
