import copy
import pickle

import pytest
import torch
from scipy import stats

from energytl.analog.noise import NoiseStream
from energytl.streams import fold

COUNT = 200_000


def numbers(seed, count=COUNT, dtype=torch.float32):
    return NoiseStream(seed).normal(torch.empty(count, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_numbers_are_standard_normal(dtype):
    sample = numbers(0, dtype=dtype)
    assert stats.kstest(sample.numpy(), "norm").pvalue > 1e-6
    assert abs(float(sample.double().mean())) <= 5 * COUNT**-0.5
    assert abs(float(sample.double().var()) - 1) <= 5 * (2 / COUNT) ** 0.5
    assert abs(stats.skew(sample.numpy())) <= 5 * (6 / COUNT) ** 0.5
    assert abs(stats.kurtosis(sample.numpy())) <= 5 * (24 / COUNT) ** 0.5


def test_quantiles_of_the_fast_path_have_unit_variance_and_reach_four_sigma():
    values = numbers(0, 2**20).unique().double()
    assert len(values) > 65_536 * (1 - 2 * 2.718281828**-16)  # each value is missed with probability e^-16
    assert float(values.mean()) == pytest.approx(0, abs=1e-3)
    assert 4.2 < float(values.max()) == pytest.approx(-float(values.min()), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("lag", [1, 2, 3, 4, 8])
def test_neighbours_are_uncorrelated(lag, dtype):
    sample = numbers(0, dtype=dtype).double()  # four float32 numbers come from one random word
    for power in (1, 2):
        now, later = (part.pow(power) for part in (sample[:-lag], sample[lag:]))
        assert abs(float(torch.corrcoef(torch.stack([now, later]))[0, 1])) <= 5 * COUNT**-0.5


@pytest.mark.parametrize("other", [1, 2**31])
def test_streams_of_different_seeds_are_uncorrelated(other):
    pair = torch.stack([numbers(0), numbers(other)])
    assert abs(float(torch.corrcoef(pair)[0, 1])) <= 5 * COUNT**-0.5


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3, 4, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_numbers_take_shape_type_and_memory_layout(shape, dtype):
    like = torch.empty(shape, dtype=dtype)
    like = like.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else like
    found = NoiseStream(0).normal(like)
    assert (found.shape, found.dtype, found.stride()) == (like.shape, like.dtype, like.stride())
    assert len(found.unique()) == like.numel()  # every element was filled


def test_a_seed_decides_and_torch_does_not():
    torch.manual_seed(0)
    first = numbers(5)
    torch.manual_seed(1)
    assert torch.equal(first, numbers(5))
    assert not torch.equal(first, numbers(6))


def test_a_stream_without_a_seed_follows_torch():
    streams = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        streams.append(numbers(None, 10))
    assert torch.equal(streams[0], streams[1])
    assert not torch.equal(streams[0], streams[2])


def test_a_stream_leaves_torch_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    numbers(5)
    assert torch.equal(torch.rand(3), expected)


def test_reseeding_starts_anew():
    stream, like = NoiseStream(0), torch.empty(10)
    first, second = stream.normal(like), stream.normal(like)
    stream.reseed(0)
    assert torch.equal(stream.normal(like), first)
    assert torch.equal(stream.normal(like), second)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda stream: pickle.loads(pickle.dumps(stream))])
def test_a_copy_goes_on_where_the_stream_stands(duplicate):
    stream, like = NoiseStream(0), torch.empty(10)
    first = stream.normal(like)
    twin = duplicate(stream)
    expected = stream.normal(like)
    assert torch.equal(twin.normal(like), expected)
    assert not torch.equal(first, expected)


def test_folded_seeds_do_not_collide():
    pairs = {fold(a, b) for a in range(200) for b in range(200)}
    triples = {fold(a, b, c) for a in range(30) for b in range(30) for c in range(30)}
    assert len(pairs) == 200**2
    assert len(triples) == 30**3
    assert all(0 <= seed < 2**62 for seed in pairs | triples)


def test_numbers_first_drawn_in_inference_mode_can_be_used_in_training():
    with torch.inference_mode():
        numbers(0, 8)
    weight = torch.ones(8, requires_grad=True)
    (weight * numbers(0, 8)).sum().backward()
    assert torch.equal(weight.grad, numbers(0, 8))
