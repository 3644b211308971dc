"""Networks, from digital to analog and back: what is converted, what is shared, what is saved, what a seed decides."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torchvision import models

from energytl import (
    BitCells,
    BitSerialRead,
    DifferentialPair,
    Exact,
    Frozen,
    GaussianWrite,
    Hardware,
    InputFormat,
    Moments,
    MultilevelPair,
    Noiseless,
    WeightFormat,
    analog_layers,
    calibrate,
    configure,
    convert,
    estimate_batch_norm,
    left_digital,
    program_,
    to_digital,
)
from energytl.analog.configure import unchanging
from energytl.analog.layers import AnalogConv2d, AnalogLayer, AnalogLinear, Calibration
from energytl.analog.quantize import best_range
from energytl.devices.programming import Variation

pytestmark = pytest.mark.usefixtures("one_thread")

NETWORKS = {"resnet18": 32, "mobilenet_v2": 32, "squeezenet1_0": 64}  # and the size of an image


@pytest.fixture(scope="module")
def torchvision_network():
    networks = {}

    def get(name):
        if name not in networks:
            torch.manual_seed(0)
            networks[name] = models.get_model(name).eval()
        return networks[name]

    return get


@pytest.fixture
def small():
    """Every kind of layer that is converted, a norm with buffers, and dropout."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(64, 5)
    )


@pytest.fixture
def images():
    return torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def matrices(network):
    """Names of all modules of torch that multiply with a weight."""
    return [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]


# What is converted


@pytest.mark.parametrize("name", NETWORKS)
def test_the_way_back_gives_the_same_outputs_bit_for_bit(name, torchvision_network):
    network, x = torchvision_network(name), torch.rand(2, 3, NETWORKS[name], NETWORKS[name])
    with torch.no_grad():
        expected = network(x)
        assert torch.equal(to_digital(convert(network))(x), expected)
        assert torch.equal(network(x), expected)  # and the original is still digital


@pytest.mark.parametrize("name", [*NETWORKS, "vgg16"])
def test_nothing_stays_digital_in_convolutional_networks(name, torchvision_network):
    network = torchvision_network(name)
    analog = convert(network, strict=True)
    assert left_digital(analog) == []
    assert list(analog_layers(analog)) == matrices(network)


@pytest.mark.parametrize("name", [*NETWORKS, "swin_t", "vit_b_32"])
def test_every_converted_layer_is_really_read(name, torchvision_network):
    size = {"swin_t": 64, "vit_b_32": 224, **NETWORKS}[name]
    analog = convert(torchvision_network(name), Hardware(computation=Noiseless()))
    with torch.no_grad():
        analog(torch.rand(1, 3, size, size))
    assert [name for name, layer in analog_layers(analog).items() if layer.positions == 0] == []


def test_the_projections_of_swin_are_converted(torchvision_network):
    network = torchvision_network("swin_t")
    analog = convert(network, strict=True)
    assert left_digital(analog) == []
    assert list(analog_layers(analog)) == matrices(network)
    assert len(matrices(network)) == 53


def test_the_attention_of_vit_is_converted(torchvision_network):
    network = torchvision_network("vit_b_32")
    analog = convert(network, strict=True)
    assert left_digital(analog) == []
    packed = [f"encoder.layers.encoder_layer_{layer}.self_attention.in_proj" for layer in range(12)]
    assert sorted(analog_layers(analog)) == sorted([*matrices(network), *packed])


def test_a_subclass_with_its_own_forward_stays_digital_and_is_named():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    class Renamed(nn.Linear):
        pass

    network = nn.Sequential(nn.Linear(4, 3), Doubled(3, 3), Renamed(3, 2))
    analog = convert(network, strict=False)
    assert [isinstance(layer, AnalogLinear) for layer in analog] == [True, False, True]
    assert isinstance(analog[2], Renamed)
    assert [type(layer) for layer in to_digital(analog)] == [nn.Linear, Doubled, Renamed]
    assert left_digital(analog) == ["1.weight"]
    with pytest.raises(
        ValueError, match=r"1 weights cannot be converted .*: 1\.weight \(Doubled has a forward of its own\)\. "
    ):
        convert(network, strict=True)


def test_a_weight_that_is_computed_stays_digital_and_is_named():
    network = nn.Sequential(nn.Linear(4, 3), nn.utils.parametrizations.orthogonal(nn.Linear(3, 3)))
    assert left_digital(convert(network, strict=False)) == ["1.weight"]


def test_scales_norms_and_biases_are_no_weights(small):
    small.append(nn.LayerNorm((5,)))
    small.scale = nn.Parameter(torch.ones(4, 1, 1))
    assert left_digital(convert(small)) == []


def test_a_network_without_weights_is_refused():
    with pytest.raises(ValueError, match="Flatten has no Linear or Conv2d"):
        convert(nn.Flatten())


class Branches(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.first, self.second = nn.Sequential(layer), nn.Sequential(nn.ReLU(), layer)

    def forward(self, x):
        return self.first(x) + self.second(x)


@pytest.mark.parametrize(
    "share",
    [
        Branches,
        lambda layer: nn.Sequential(layer, nn.ReLU(), layer),
    ],
    ids=["two parents", "one parent"],
)
def test_a_shared_module_is_converted_once_and_stays_shared(share):
    torch.manual_seed(0)
    digital, x = share(nn.Linear(4, 4)), torch.rand(2, 4)
    analog = convert(digital, strict=True)
    assert len(analog_layers(analog)) == 1
    assert list(analog.state_dict()) == list(digital.state_dict())
    assert not any(type(module) is nn.Linear for module in analog.modules())
    assert torch.equal(to_digital(analog)(x), digital(x))


def test_tied_parameters_stay_tied():
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    network[1].weight = network[0].weight
    analog = convert(network)
    assert analog[0].weight is analog[1].weight is not network[0].weight


# What is shared


def test_the_original_stays_as_it_was(small, images):
    small.eval()
    before, names = small(images), [type(module) for module in small.modules()]
    convert(small)(images)
    assert [type(module) for module in small.modules()] == names
    assert len(list(small.parameters())) == 6
    assert torch.equal(small(images), before)


def test_parameters_and_buffers_have_the_same_names_and_numbers_but_are_the_copys(small):
    analog = convert(small)
    for network in (analog, to_digital(analog)):
        for kind in ("named_parameters", "named_buffers"):
            theirs = dict(getattr(small, kind)())
            ours = {name: tensor for name, tensor in getattr(network, kind)() if not name.endswith("log_rho")}
            assert list(ours) == list(theirs)
            assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
            assert not {tensor.data_ptr() for tensor in ours.values()} & {t.data_ptr() for t in theirs.values()}
    assert [name for name, _ in analog.named_parameters() if name.endswith("log_rho")] == ["0.log_rho", "5.log_rho"]


def test_training_and_writing_the_analog_network_leave_the_digital_one_alone(small, images):
    before = copy.deepcopy(small.state_dict())
    analog = convert(small, Hardware(rho=3.0, weights=WeightFormat(bits=None)), seed=0)
    optimizer = torch.optim.SGD(analog.parameters(), lr=0.1)
    analog(images).square().sum().backward()
    optimizer.step()
    program_(analog, GaussianWrite(0.1))
    assert all(torch.equal(tensor, before[name]) for name, tensor in small.state_dict().items())
    assert not torch.equal(analog[5].weight, small[5].weight)
    assert float(analog[5].rho.detach()) != pytest.approx(3.0)


def test_in_place_the_network_itself_is_converted_or_stays_digital(small, images):
    weight, names = small.eval()[5].weight, [name for name, _ in small.named_modules()]
    other = convert(small, seed=0)
    assert convert(small, seed=0, inplace=True) is small
    assert small[5].weight is weight and [name for name, _ in small.named_modules()] == names
    assert torch.equal(small(images), other(images))
    mixed = nn.Sequential(nn.Linear(4, 4), nn.Conv1d(4, 4, 1))
    with pytest.raises(ValueError, match="1 weights cannot be converted"):
        convert(mixed, inplace=True)
    assert type(mixed[0]) is nn.Linear


@pytest.mark.parametrize("training", [True, False])
def test_modes_are_taken_over(small, training):
    small.train(training)
    small[1].eval()
    modes = [module.training for module in small.modules()]
    analog = convert(small)
    assert [module.training for module in analog.modules()] == modes
    assert [module.training for module in to_digital(analog).modules()] == modes
    assert {module.training for module in to_digital(analog.train(not training)).modules()} == {not training}


def test_types_of_layers(small):
    assert [type(layer) for layer in convert(small)] == [
        AnalogConv2d,
        nn.BatchNorm2d,
        nn.ReLU,
        nn.Flatten,
        nn.Dropout,
        AnalogLinear,
    ]


# What is saved


def test_state_dicts_have_the_same_keys_and_load_strictly_both_ways(small, images):
    digital, analog = copy.deepcopy(small), convert(copy.deepcopy(small))
    assert list(analog.state_dict()) == list(digital.state_dict())
    with torch.no_grad():
        analog[0].weight.mul_(-1)
    digital.load_state_dict(analog.state_dict(), strict=True)
    assert torch.equal(digital[0].weight, -small[0].weight)
    analog.load_state_dict(small.state_dict(), strict=True)
    assert torch.equal(to_digital(analog).eval()(images), small.eval()(images))


@pytest.mark.parametrize("assign", [False, True])
def test_rho_and_ranges_travel_with_the_state_dict(small, images, assign):
    analog = calibrate(convert(small, Hardware(rho=3.0), seed=0), [images]).eval()
    with torch.no_grad():
        analog[0].log_rho.fill_(0.123)
        analog[0].weight_range, analog[5].input_range = 0.456, 0.789
    other = convert(copy.deepcopy(small), Hardware(rho=79.0), seed=0).eval()
    nn.init.normal_(other[5].weight)
    other.load_state_dict(saved_and_loaded(analog.state_dict()), assign=assign)
    for ours, theirs in zip(analog_layers(analog).values(), analog_layers(other).values(), strict=True):
        assert torch.equal(ours.rho, theirs.rho)
        assert theirs.log_rho.requires_grad
        assert (ours.weight_range, ours.input_range) == (theirs.weight_range, theirs.input_range)
    analog[0].noise.reseed(1)
    other[0].noise.reseed(1)
    assert torch.equal(analog(images), other(images))


def test_loading_a_digital_state_keeps_rho(small):
    analog = convert(small, Hardware(rho=3.0))
    analog.load_state_dict(copy.deepcopy(small).state_dict())
    assert [float(layer.rho.detach()) for layer in analog_layers(analog).values()] == pytest.approx([3.0, 3.0])


def test_loading_a_digital_state_sets_the_ranges_of_its_weights():
    larger = nn.Linear(4, 3)
    nn.init.normal_(larger.weight, std=100.0)
    analog = convert(nn.Linear(4, 3))
    analog.load_state_dict(larger.state_dict())
    assert analog.weight_range == best_range(larger.weight, analog.hardware.weights.levels)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_a_copy_is_independent_and_goes_on_where_the_original_stands(small, images, duplicate):
    analog = convert(small, seed=0).eval()
    analog(images)
    twin = duplicate(analog)
    assert torch.equal(twin(images), analog(images))
    assert twin[0].noise is twin[5].noise is not analog[0].noise
    with torch.no_grad():
        twin[5].weight.zero_()
    assert analog[5].weight.count_nonzero() > 0
    assert torch.equal(to_digital(twin)[5].weight, twin[5].weight)


# What a seed decides


@pytest.mark.parametrize("computation", [Moments(), Exact(), Frozen(), Frozen(chip=1)], ids=repr)
def test_a_seed_decides_the_outputs_and_torchs_seed_does_not(small, images, computation):
    small.eval()
    hardware, outputs = Hardware(computation=computation, sensing_noise=None), []
    for network_seed, torch_seed in ((0, 0), (0, 1), (1, 0)):
        analog = convert(small, hardware, seed=network_seed)
        torch.manual_seed(torch_seed)
        outputs.append(analog(images))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2]) == (computation == Frozen(chip=1))


def test_without_a_seed_torchs_decides(small, images):
    small.eval()
    outputs = []
    for torch_seed in (0, 0, 1):
        torch.manual_seed(torch_seed)
        outputs.append(convert(small)(images))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_reseeding_reproduces_the_outputs(small, images):
    analog = convert(small, seed=0).eval()
    analog(images)
    for seeds in ((5,), (5, 1, 2)):
        analog[0].noise.reseed(*seeds)
        first, second = analog(images), analog(images)
        analog[5].noise.reseed(*seeds)  # one stream for the whole network
        assert torch.equal(analog(images), first)
        assert torch.equal(analog(images), second)
        assert not torch.equal(first, second)


def test_a_seed_reproduces_training(small, images):
    small[4].p = 0.0

    def trained():
        analog = convert(copy.deepcopy(small), seed=3)
        optimizer = torch.optim.SGD(analog.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            analog(images).square().mean().backward()
            optimizer.step()
        return torch.cat([parameter.detach().flatten() for parameter in analog.parameters()])

    assert torch.equal(trained(), trained())


def test_layers_of_one_network_draw_different_numbers():
    layer = nn.Linear(4, 4)
    analog = convert(nn.Sequential(layer, copy.deepcopy(layer)), seed=0)
    x = torch.rand(2, 4)
    assert not torch.equal(analog[0](x), analog[1](x))


# What can be changed


def test_configure_changes_only_what_it_is_told(small, images):
    analog = convert(small, Hardware(rho=3.0), seed=0)
    with torch.no_grad():
        analog[0].log_rho.fill_(0.5)
    ranges = [layer.weight_range for layer in analog_layers(analog).values()]
    assert configure(analog, computation=Noiseless()) is analog
    assert all(layer.hardware == Hardware(rho=3.0, computation=Noiseless()) for layer in analog_layers(analog).values())
    assert float(analog[0].log_rho.detach()) == 0.5
    assert [layer.weight_range for layer in analog_layers(analog).values()] == ranges
    analog.eval()
    assert torch.equal(analog(images), analog(images))


def test_configure_sets_rho_everywhere(small):
    analog = configure(convert(small), rho=7.0)
    assert [float(layer.rho.detach()) for layer in analog_layers(analog).values()] == pytest.approx([7.0, 7.0])


def test_configure_sets_rho_after_training():
    analog = convert(nn.Linear(4, 2), Hardware(rho=7.0))
    with torch.no_grad():
        analog.log_rho.fill_(1.0)
    configure(analog, rho=7.0)
    assert float(analog.rho.detach()) == pytest.approx(7.0)


def test_new_bits_get_new_ranges(small):
    analog = configure(convert(small), weights=WeightFormat(3))
    for layer in analog_layers(analog).values():
        assert layer.weight_range == best_range(layer.weight, 3)
    assert small[5].weight.unique().numel() > 7
    assert (analog[5].stored_weight * 3).unique().numel() <= 7


def test_unknown_fields_are_refused(small):
    with pytest.raises(TypeError, match="speed"):
        configure(convert(small), speed=3)


@pytest.mark.parametrize("bits", [4, 12])
def test_calibration_takes_the_best_range_of_all_batches_together(small, images, bits):
    analog = convert(small, Hardware(inputs=InputFormat(bits), computation=Noiseless()))
    batches = [images, 5 * images, 0 * images, -2 * images, images[:0], images[:1]]
    calibrate(analog, batches)
    together = torch.cat([analog[0].prepared(batch).flatten() for batch in batches])
    assert analog[0].input_range == pytest.approx(best_range(together, 2**bits - 1))
    assert analog[5].input_range is not None
    assert analog[0].calibration is None


def test_a_blank_first_batch_does_not_round_away_what_later_layers_see():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 4, bias=False)), 1e-3 * torch.rand(64, 8)
    analog = convert(net, Hardware(computation=Noiseless()))
    expected = [layer.input_range for layer in calibrate(analog, [x])]
    assert [layer.input_range for layer in calibrate(analog, [0 * x, x])] == expected
    assert expected[1] < 1e-2


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 8, bias=False)

    def forward(self, x):
        return torch.cat([self.head(0.001 * x), self.head(x), self.head(x.flip(0)[:3])])


@pytest.mark.parametrize("bits", [3, 8, 16])
def test_a_layer_that_is_called_often_is_calibrated_for_all_it_sees(bits):
    torch.manual_seed(0)
    x = torch.rand(64, 64)
    analog = calibrate(convert(Twice(), Hardware(inputs=InputFormat(bits), computation=Noiseless())), [x, 2 * x])
    seen = torch.cat([part.flatten() for y in (x, 2 * x) for part in (0.001 * y, y, y.flip(0)[:3])])
    assert analog.head.input_range == pytest.approx(best_range(seen, 2**bits - 1))


def test_calibration_by_the_outputs_keeps_a_bounded_number_of_samples(monkeypatch):
    monkeypatch.setattr("energytl.analog.layers.MOST_SAMPLES", 600)
    torch.manual_seed(0)
    layer, batches = nn.Linear(8, 4), torch.randn(8, 256, 8)
    analog = convert(layer, Hardware(weights=WeightFormat(3, range_by="outputs"), computation=Noiseless()))
    kept = []
    original = Calibration.add

    def add(self, *arguments):
        original(self, *arguments)
        kept.append(sum(part.shape[2] for part in self.columns))

    monkeypatch.setattr(Calibration, "add", add)
    calibrate(analog, batches)
    assert max(kept) <= 600 and kept[-1] > 256


def test_calibration_leaves_no_traces(small, images):
    analog = convert(small).train()
    statistics = small[1].running_mean.clone()
    calibrate(analog, [images])
    assert analog.training
    assert torch.equal(small[1].running_mean, statistics)
    assert all(parameter.grad is None for parameter in analog.parameters())
    assert not any(layer._forward_pre_hooks for layer in analog.modules() if isinstance(layer, AnalogLayer))


def test_calibration_leaves_frozen_norms_frozen(small, images):
    analog = convert(small).train()
    analog[1].eval()
    calibrate(analog, [images])
    assert not analog[1].training


def test_batch_norm_takes_its_statistics_from_the_reads_at_the_present_rho(small, images):
    def outputs(seed):
        """Of the norm, by another read."""
        analog[0].noise.reseed(seed, 0)
        with torch.no_grad():
            return torch.cat([analog[:2].eval()(images) for _ in range(20)])

    analog = convert(small, Hardware(rho=0.05)).train()
    calibrate(analog, [images])
    configure(analog, computation=Noiseless())
    estimate_batch_norm(analog, [images], seed=0)
    noiseless = outputs(1)
    assert noiseless.mean((0, 2, 3)) == pytest.approx(torch.zeros(4), abs=1e-5)
    assert noiseless.std((0, 2, 3), correction=0) == pytest.approx(torch.ones(4), rel=0.01)
    configure(analog, computation=Moments())
    assert float(outputs(1).std((0, 2, 3)).min()) > 1.2
    weights = copy.deepcopy([*analog.parameters()])
    estimate_batch_norm(analog, [images] * 20, seed=0)
    assert outputs(1).std((0, 2, 3)) == pytest.approx(torch.ones(4), rel=0.1)
    assert all(torch.equal(now, before) for now, before in zip(analog.parameters(), weights, strict=True))


def test_estimated_statistics_depend_on_the_seed_alone_and_modes_stay(small, images):
    analog = convert(small, Hardware(rho=0.05)).train()
    analog[4].eval()
    found = []
    for seed in (3, 4, 3):
        estimate_batch_norm(analog, [images, 2 * images], seed)
        found.append(analog[1].running_var.clone())
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])
    assert (analog[1].training, analog[4].training, analog[1].momentum) == (True, False, 0.1)


@pytest.mark.parametrize(
    "layer", [nn.Conv1d(1, 1, 3), nn.Bilinear(1, 3, 1), nn.ConvTranspose2d(1, 1, 1), nn.LSTM(1, 1)]
)
def test_thin_weights_of_other_products_are_named_too(layer):
    names = [name for name, parameter in layer.named_parameters() if parameter.dim() > 1]
    assert left_digital(convert(nn.ModuleList([nn.Linear(2, 2), layer]), strict=False)) == [
        f"1.{name}" for name in names
    ]


@pytest.mark.parametrize(
    "hardware",
    [
        Hardware(rho=2.0, mapping=BitCells()),
        Hardware(rho=2.0, read=BitSerialRead(), weights=WeightFormat(columns=True)),
        Hardware(rho=2.0, mapping=MultilevelPair((1, 3, 8)), programming=Variation(0.1), chip=1),
    ],
    ids=["bits", "columns", "chip"],
)
def test_reads_of_an_unchanging_network_are_those_of_any(hardware):
    torch.manual_seed(0)
    network, x = convert(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), hardware), torch.rand(5, 6)
    layers = list(analog_layers(network).values())

    def outputs():
        layers[0].noise.reseed(7, 0)
        return network(x)

    changes = (
        {},
        {"rho": 3.0},
        {"computation": Noiseless()},
        {"chip": 2},
        {"mapping": DifferentialPair(), "computation": Moments()},
    )
    with torch.no_grad():
        expected = [outputs()] + [(configure(network, **change), outputs())[1] for change in changes]
        configure(network, **{name: getattr(hardware, name) for name in ("rho", "computation", "chip", "mapping")})
        with unchanging(network):
            found = [outputs()] + [(configure(network, **change), outputs())[1] for change in changes]
            held = layers[0].kept["held"].weight
            outputs()
            assert layers[0].kept["held"].weight is held
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
        layers[0].weight.mul_(2)  # afterwards they may change again
        assert not torch.equal(outputs(), expected[-1])
