"""States that outlast a read belong to the cell: all calls of a layer in one inference find the same."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import energytl
from energytl import Converter, Exact, Fluctuation, Frozen, FullRange, Hardware, Moments, convert, to_digital
from energytl.analog import fused, fused_noise, read

pytestmark = pytest.mark.usefixtures("one_thread")

COMPUTATIONS = {"frozen": Frozen(), "exact": Exact(), "moments": Moments(), "exact in parts": Exact(states_at_once=1)}
LAYERS = {
    "linear": (lambda: nn.Linear(20, 5), (3, 20)),
    "tokens": (lambda: nn.Linear(20, 5), (3, 4, 20)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (3, 4, 6, 6)),
}


class Twice(nn.Module):
    """Two calls of one layer, both returned."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, y=None):
        return torch.stack([self.layer(x), self.layer(x if y is None else y)])


def twice(layer, computation, correlation=1.0, **hardware):
    torch.manual_seed(0)
    fluctuation = Fluctuation(correlation=correlation)
    hardware = {"rho": 1.0, "sensing_noise": None, "law": "cell", **hardware}
    network = convert(Twice(LAYERS[layer][0]()), Hardware(fluctuation, computation=computation, **hardware), seed=1)
    network.layer.input_range = 1.0
    return network, torch.rand(LAYERS[layer][1])


def differs(a, b):
    return float((a - b).detach().abs().max() / a.detach().abs().max())


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("computation", COMPUTATIONS)
def test_a_layer_that_is_called_twice_has_the_same_cells(computation, layer):
    network, x = twice(layer, COMPUTATIONS[computation])
    for _ in range(2):  # before and after it is known how often the layer is called
        first, second = network(x)
        assert differs(first, second) < 1e-4
    assert differs(first, network(x)[0]) > 0.05  # the next inference


@pytest.mark.parametrize("computation", [Frozen(), Exact()], ids=["frozen", "exact"])
def test_so_have_converted_reads(computation):
    network, x = twice("tokens", computation, converter=Converter(bits=18, range=FullRange()))
    first, second = network(x)
    assert differs(first, second) < 1e-3
    assert differs(first, network(x)[0]) > 0.05


def test_so_have_large_reads(monkeypatch):
    monkeypatch.setattr(fused, "fused", lambda function, *_: function)
    monkeypatch.setattr(fused_noise, "fused", lambda function, otherwise: otherwise)
    monkeypatch.setattr(read, "is_large", lambda x: True)
    network, x = twice("grouped", Moments())
    first, second = network(x)
    assert differs(first, second) < 1e-3


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("computation", [Exact(), Moments()], ids=["exact", "moments"])
def test_two_calls_with_different_inputs_covary_by_the_cells_that_they_share(computation, layer):
    """Cov(Σ x·r, Σ y·r) = c·Σ a²·x·y, by two inputs of the first image that differ."""
    correlation, count = 0.5, 4000
    network, x = twice(layer, computation, correlation)
    x, y = (values[:1].expand(count, *x.shape[1:]) for values in (x, torch.rand_like(x)))
    with torch.no_grad():
        first, second = network(x, y).flatten(2).double()
        siemens = 8.0 + network.layer.stored_weight.double().abs()  # in µS, at ρ = 1
        squares = (siemens * (0.0015 + 1 / (1 + siemens / 0.1662))).square()
        scale = network.layer.weight_range
        levels = [(values[:1] * 31).round() / 31 for values in (x, y)]
        inputs = []
        for values in levels:  # which input meets which cell
            jacobian = torch.autograd.functional.jacobian(
                lambda w, v=values: torch.func.functional_call(
                    to_digital(network).layer, {"weight": w.float()}, (v,)
                ).flatten(),
                network.layer.weight.detach().clone(),
            )
            inputs.append(jacobian.flatten(1).double() * scale)
    spread = squares.flatten()
    covariances = (inputs[0] * inputs[1] * spread).sum(1) * correlation
    variances = [(values.square() * spread).sum(1) for values in inputs]
    found = ((first - first.mean(0)) * (second - second.mean(0))).mean(0)
    error = ((variances[0] * variances[1] + covariances**2) / count).sqrt()
    assert ((found - covariances).abs() < 5 * error).all()
    for outputs, variance in zip((first, second), variances, strict=True):
        assert ((outputs.var(0) - variance).abs() < 5 * variance * (2 / count) ** 0.5).all()


@pytest.mark.parametrize("computation", COMPUTATIONS)
def test_cross_attention_projects_queries_and_keys_with_the_same_cells(computation):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    fluctuation = Fluctuation(correlation=1.0)
    hardware = Hardware(fluctuation, computation=COMPUTATIONS[computation], rho=1.0, sensing_noise=None)
    network = convert(attention, hardware, seed=0)
    seen, x = [], torch.rand(2, 3, 8)
    network.in_proj.register_forward_hook(lambda module, inputs, output: seen.append(output))
    for _ in range(2):
        network(x, x.clone(), x.clone())
    assert differs(seen[0], seen[1]) < 1e-4 and differs(seen[0], seen[2]) < 1e-4
    assert differs(seen[3], seen[5]) < 1e-4 and differs(seen[0], seen[3]) > 0.05


def test_calls_of_a_layer_by_itself_are_inferences_of_their_own():
    for computation in COMPUTATIONS.values():
        network, x = twice("linear", computation)
        assert differs(network.layer(x), network.layer(x)) > 0.05


def test_a_part_that_is_called_by_itself_makes_an_inference():
    torch.manual_seed(0)
    network = convert(nn.Sequential(Twice(nn.Linear(4, 3)), nn.ReLU()), Hardware(computation=Frozen(), rho=1.0), seed=0)
    energytl.configure(network, sensing_noise=None)
    first, _ = network[0](torch.rand(2, 4))
    other, _ = network[0](torch.rand(2, 4))
    assert not torch.equal(first, other) and network[0].layer.noise.inference is None


def test_an_inference_that_is_broken_off_ends():
    network, x = twice("linear", Frozen())
    with pytest.raises(RuntimeError):
        network(x, torch.rand(3, 19))
    assert network.layer.noise.inference is None
    network.layer.noise.enter("")  # as one that was broken off from the keyboard
    assert not torch.equal(network(x)[0], network(x)[0])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_copies_have_inferences_of_their_own(copied):
    network, x = twice("linear", Frozen())
    other = copied(network)
    first, second = other(x)
    assert torch.equal(first, second) and not torch.equal(first, other(x)[0])
    assert other.layer.noise is not network.layer.noise and network.layer.noise.position == 0


def test_a_digital_network_has_no_hooks_of_ours():
    network, _ = twice("linear", Frozen())
    mine = network.register_forward_hook(lambda *_: None)
    digital = to_digital(network)
    assert len(network._forward_hooks) == 2 and not digital._forward_pre_hooks
    assert list(digital._forward_hooks) == [mine.id] and not digital._forward_hooks_always_called


@pytest.mark.parametrize("computation", [Frozen(), Exact(), Moments()], ids=["frozen", "exact", "moments"])
def test_what_is_computed_again_in_the_backward_pass_finds_them(computation):
    """Also in a network's first inference, after which is known how often layers are called."""
    found = []
    for again in (False, True):
        network, x = twice("linear", computation, 0.5)
        torch.manual_seed(2)
        x.requires_grad_()
        outputs = checkpoint(network, x, use_reentrant=False) if again else network(x)
        outputs.square().sum().backward()
        found.append([outputs.detach(), x.grad, network.layer.weight.grad])
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


def test_a_resumed_network_goes_on_bit_for_bit():
    network, x = twice("linear", Moments(), 0.5)
    network(x)
    resumed, _ = twice("linear", Moments(), 0.5)
    resumed.load_state_dict(network.state_dict())
    assert resumed.layer.calls == 2
    assert torch.equal(resumed(x), network(x))


def test_a_second_call_that_no_inference_had_before_is_named():
    class Some(Twice):
        def forward(self, x, times):
            return [self.layer(x) for _ in range(times)]

    torch.manual_seed(0)
    network = convert(Some(nn.Linear(20, 5)), Hardware(Fluctuation(correlation=0.5)), seed=0)
    x = torch.rand(3, 20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            network(x, 1)
    with pytest.warns(UserWarning, match=r"layer 0 \(AnalogLinear\) is called twice"):
        network(x, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network(x, 3)
