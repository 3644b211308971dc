"""Large reads on the CPU, in bytes and compact numbers with fused kernels, against the small ones and the law."""

import math
from functools import partial

import pytest
import torch
from scipy import stats
from torch import nn

import energytl
from energytl import (
    BitCells,
    BitSerialRead,
    Fluctuation,
    InputFormat,
    MultilevelPair,
    RepeatedRead,
    WeightFormat,
    convert,
)
from energytl.analog import fused, fused_noise, read
from energytl.analog.mapping import read_variance

Hardware = partial(energytl.Hardware, law="paper", sensing_noise=None)
"""What is calculated by hand below."""

LAYERS = {
    "3x3": (lambda: nn.Conv2d(8, 16, 3, padding=1), (64, 8, 24, 24)),
    "no bias": (lambda: nn.Conv2d(16, 8, 3, padding=1, stride=2, bias=False), (64, 16, 17, 17)),
    "grouped": (lambda: nn.Conv2d(8, 8, 3, groups=4), (64, 8, 24, 24)),
    "depthwise": (lambda: nn.Conv2d(8, 8, 3, 2, 1, groups=8), (64, 8, 24, 24)),
    "reflected": (lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), (64, 8, 24, 24)),
    "one channel": (lambda: nn.Conv2d(1, 8, 3), (300, 1, 30, 30)),
    "linear": (lambda: nn.Linear(64, 32), (4100, 64)),
    "tokens": (lambda: nn.Linear(64, 32), (100, 41, 64)),
}
HARDWARE = {
    "default": Hardware(rho=1.0),
    "bit-serial": Hardware(rho=1.0, read=BitSerialRead()),
    "repeated": Hardware(rho=1.0, read=RepeatedRead(3)),
    "bit cells": Hardware(rho=1.0, mapping=BitCells()),
    "multilevel": Hardware(rho=1.0, mapping=MultilevelPair()),
    "uneven levels": Hardware(rho=1.0, mapping=MultilevelPair((0.5, 1.3, 2.2))),
    "unrounded": Hardware(rho=1.0, weights=WeightFormat(bits=None)),
    "many bits": Hardware(rho=1.0, weights=WeightFormat(bits=10), inputs=InputFormat(9)),
}


def layer_and_input(layer, hardware):
    make, shape = LAYERS[layer]
    torch.manual_seed(0)
    digital, x = make(), torch.rand(shape) - 0.4
    network = convert(digital, HARDWARE[hardware], seed=0)
    network.input_range = 0.5  # some inputs are cut
    return network, x


def law(network, x):
    """Mean and standard deviation of every output, in double precision."""
    x = network.padded(x.double())
    integers = (x / network.input_range * network.hardware.inputs.levels).round()
    integers = integers.clamp(-network.hardware.inputs.levels, network.hardware.inputs.levels)
    step = network.input_range / network.hardware.inputs.levels
    with torch.no_grad():
        weight = (network.stored_weight * network.weight_range).double()
        bias = None if network.bias is None else network.bias.double()
        hardware = network.hardware
        stored = hardware.mapping.stored(network.stored_weight, hardware.weights)
        significances = hardware.mapping.significances(hardware.weights)
        squares = read_variance(stored, network.rho, significances, hardware.fluctuation) * network.weight_range**2
        squares = squares.double()
        variance = network.hardware.read.variance(integers, network.hardware.inputs)
        return network.multiply(integers * step, weight, bias), network.multiply(
            variance * step**2, squares, None
        ).sqrt()


@pytest.mark.parametrize("hardware", HARDWARE)
@pytest.mark.parametrize("layer", LAYERS)
def test_large_reads_have_the_mean_and_the_deviation_of_the_law(layer, hardware, monkeypatch):
    network, x = layer_and_input(layer, hardware)
    seen = []
    monkeypatch.setattr(read, "add_normal_", lambda mean, variance, *rest: seen.extend((mean, variance, *rest)))
    with torch.no_grad():
        network(x)
    mean, variance, scale, floor, *_ = seen
    expected, deviation = law(network, x)
    torch.testing.assert_close(mean.double(), expected, rtol=1e-5, atol=1e-5)
    found = (variance.double() + floor).sqrt() * scale
    assert float((found / deviation - 1).abs().max()) < 0.005
    assert float((found / deviation - 1).square().mean().sqrt()) < 0.002


@pytest.mark.parametrize(
    "layer", ["3x3", pytest.param("no bias", marks=pytest.mark.slow), pytest.param("linear", marks=pytest.mark.slow)]
)
def test_large_reads_are_normal_about_the_law(layer):
    network, x = layer_and_input(layer, "default")
    expected, deviation = law(network, x)
    for outcome in (network(x).detach(), torch.no_grad()(network)(x)):
        normal = ((outcome - expected) / deviation).flatten()
        assert stats.kstest(normal[:200_000].numpy(), "norm").pvalue > 1e-6
        assert abs(float(normal.mean())) <= 5 * len(normal) ** -0.5
        assert abs(float(normal.var()) - 1) <= 5 * (2 / len(normal)) ** 0.5 + 0.002


def with_unit_noise(mean, variance, scale, floor, generator, wants_slope):
    deviation = (variance.float() + floor).sqrt()
    mean.add_(scale * deviation)
    return (0.5 * scale / deviation).to(variance.dtype)


@pytest.mark.parametrize("hardware", HARDWARE)
@pytest.mark.parametrize("layer", LAYERS)
def test_gradients_of_large_reads_are_those_of_small_ones(layer, hardware, monkeypatch):
    network, x = layer_and_input(layer, hardware)
    monkeypatch.setattr(read, "add_normal_", with_unit_noise)
    monkeypatch.setattr(read, "normal_like", lambda like, generator: torch.ones_like(like))
    found = []
    for large in (fused.LARGE, math.inf):
        monkeypatch.setattr(fused, "LARGE", large)
        network.zero_grad()
        inputs = x.clone().requires_grad_()
        outputs = network(inputs)
        target = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1))
        (outputs * (target + 0.1)).sum().backward()
        found.append([inputs.grad, *(parameter.grad for parameter in network.parameters())])
    for fast, exact in zip(*found, strict=True):
        assert float((fast - exact).norm()) < 0.01 * float(exact.norm())


def test_gradients_may_be_wanted_of_some_only():
    network, x = layer_and_input("3x3", "default")
    network(x).sum().backward()
    assert network.log_rho.grad.isfinite()
    network.zero_grad()
    network.weight.requires_grad_(False)
    network.log_rho.requires_grad_(False)
    inputs = x.clone().requires_grad_()
    network(inputs).sum().backward()
    assert inputs.grad.isfinite().all()
    assert network.weight.grad is None


def test_a_seed_decides_large_reads():
    network, x = layer_and_input("3x3", "default")
    with torch.no_grad():
        first, second = network(x), network(x)
        network.noise.reseed(0)
        assert torch.equal(network(x), first)
        assert torch.equal(network(x), second)
    assert not torch.equal(first, second)
    network.noise.reseed(0)
    torch.testing.assert_close(network(x).detach(), first)  # the same numbers in training


def test_correlated_large_reads_share_what_they_hold(assert_moments):
    noise = Fluctuation(correlation=0.5)
    make, shape = LAYERS["3x3"]
    torch.manual_seed(0)
    network = convert(make(), Hardware(rho=1.0, fluctuation=noise), seed=0)
    network.input_range = 1.0
    image = torch.rand(shape[1:])
    with torch.no_grad():
        outcomes = torch.cat([network(image.expand(shape)) for _ in range(20)])
    _, deviation = law(network, image.expand(shape)[:1])
    normal = ((outcomes - outcomes.mean(0)) / deviation).flatten(1)
    assert float(normal.square().mean()) == pytest.approx(1, abs=0.05)


# Noise from a counter


def drawn(seed, count=200_000, unfused=False):
    mean, variance = torch.zeros(count), torch.ones(count, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(seed)
    if unfused:
        key = torch.empty(1, dtype=torch.int64).random_(generator=generator).view(torch.int32)
        fused_noise._add_normal_unfused_(mean, variance, torch.tensor([1.0, 0.0]), key, False)
    else:
        fused_noise.add_normal_(mean, variance, 1.0, 0.0, generator, False)
    return mean.double()


@pytest.mark.parametrize("unfused", [False, True])
def test_counted_numbers_are_standard_normal(unfused):
    sample = drawn(0, unfused=unfused)
    assert stats.kstest(sample.numpy(), "norm").pvalue > 1e-6
    assert abs(float(sample.mean())) <= 5 * len(sample) ** -0.5
    assert abs(float(sample.var()) - 1) <= 5 * (2 / len(sample)) ** 0.5
    assert abs(stats.skew(sample.numpy())) <= 5 * (6 / len(sample)) ** 0.5
    assert abs(stats.kurtosis(sample.numpy())) <= 5 * (24 / len(sample)) ** 0.5


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 8, 16, 32, 1024])
def test_counted_neighbours_are_uncorrelated(lag):
    sample = drawn(0)
    for power in (1, 2):
        now, later = (part.pow(power) for part in (sample[:-lag], sample[lag:]))
        assert abs(float(torch.corrcoef(torch.stack([now, later]))[0, 1])) <= 5 * len(sample) ** -0.5


@pytest.mark.parametrize("bit", [0, 1, 16, 31, 32, 33, 63])
def test_keys_that_differ_in_one_bit_have_unrelated_numbers(bit):
    counter = torch.arange(100_000, dtype=torch.int32)
    flipped = 12345 ^ (1 << bit if bit < 63 else -(2**63))
    keys = [torch.tensor([number], dtype=torch.int64).view(torch.int32) for number in (12345, flipped)]
    first, second = (fused_noise._quantile(fused_noise._hash(counter, key)).double() for key in keys)
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) <= 5 * len(counter) ** -0.5


def test_every_bit_of_a_counted_number_is_a_fair_coin():
    bits = fused_noise._hash(torch.arange(2**16, dtype=torch.int32), torch.tensor([3, 4], dtype=torch.int32))
    for place in range(32):
        share = float((bits >> place & 1).double().mean())
        assert abs(share - 0.5) <= 5 * 0.5 / 2**8


def test_quantiles_are_those_of_the_normal_distribution():
    places = torch.cat([torch.arange(-(2**23), -(2**23) + 1000), torch.arange(-(2**23), 2**23, 997)])
    found = fused_noise._quantile((places << 8).to(torch.int32)).double()
    expected = torch.special.ndtri((places.double() + 2**23 + 0.5) / 2**24)
    assert float((found - expected).abs().max()) < 2e-4
