from itertools import pairwise

import pytest
import torch

from energytl.analog import quantize
from energytl.analog.quantize import Seen, best_range, bit_count, bit_power, fake_quantize, round_to_integers


def all_integers(bits):
    return torch.arange(-(2**bits) + 1, 2**bits, dtype=torch.float64)


def rounding_errors(values, full_range, levels):
    """Squared distance of each value to the nearest of all levels."""
    grid = torch.arange(-levels, levels + 1, dtype=torch.float64) * (full_range / levels)
    return (values.double().unsqueeze(-1) - grid).abs_().amin(-1).square()


@pytest.mark.parametrize("levels", [1, 2, 15, 31])
def test_rounding_takes_the_nearest_level(levels):
    x = 1.5 * torch.randn(3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grid = torch.arange(-levels, levels + 1, dtype=torch.float64)
    nearest = grid[(x.unsqueeze(-1) - grid * 0.8 / levels).abs().argmin(-1)]
    assert torch.equal(round_to_integers(x, 0.8, levels), nearest)
    torch.testing.assert_close(fake_quantize(x, 0.8, levels), nearest * 0.8 / levels)


def test_rounding_passes_gradients_inside_the_range_and_none_outside():
    x = torch.tensor([-2.0, -1.01, -0.99, 0.0, 0.3, 0.99, 1.01, 2.0], requires_grad=True)
    fake_quantize(x, 1.0, 3).backward(torch.arange(1.0, 9.0))
    assert x.grad.tolist() == [0, 0, 3, 4, 5, 6, 0, 0]


def test_rounding_leaves_its_input_alone():
    x = torch.tensor([0.2, -3.0])
    fake_quantize(x, 1.0, 2)
    round_to_integers(x, 1.0, 2)
    assert x.tolist() == pytest.approx([0.2, -3.0])


@pytest.mark.parametrize("bits", [1, 2, 5, 8, 16])
def test_bit_count_counts_the_ones_of_every_integer(bits):
    integers = all_integers(bits)
    expected = [bin(abs(int(n))).count("1") for n in integers]
    assert bit_count(integers).tolist() == expected


def test_bit_count_has_the_gradient_of_half_the_binary_logarithm():
    integers = torch.tensor([-300.0, -7.0, -1.0, 0.0, 1.0, 2.0, 31.0], dtype=torch.float64, requires_grad=True)
    counted = bit_count(integers)
    assert counted.tolist() == [4, 3, 1, 0, 1, 1, 5]
    (slope,) = torch.autograd.grad(counted.sum(), integers)
    n = integers.detach()
    torch.testing.assert_close(slope, n.sign() / (2 * torch.log(torch.tensor(2.0)).double() * (1 + n.abs())))
    smooth = (1 + torch.arange(2.0**16, dtype=torch.float64)).log2() / 2  # at most one and a half bits from the mean
    mean = bit_count(torch.arange(2.0**16, dtype=torch.float64)).cumsum(0) / torch.arange(1, 2**16 + 1)
    assert (mean - smooth).abs().max() < 1.5


@pytest.mark.parametrize("bits", range(1, 17))
def test_bit_power_sums_four_to_the_power_of_every_set_bit(bits):
    integers = all_integers(bits)
    expected = [sum(4**p for p in range(bits) if abs(int(n)) >> p & 1) for n in integers]
    assert bit_power(integers, bits).tolist() == expected


@pytest.mark.parametrize("levels", [1, 15, 31])
@pytest.mark.parametrize("kind", ["normal", "uniform", "half-normal"])
def test_best_range_errs_least_of_all_fractions_tried(kind, levels):
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(500, generator=generator) if kind == "uniform" else torch.randn(500, generator=generator)
    values = values.abs() if kind == "half-normal" else values
    largest = float(values.abs().max())
    errors = {i: float(rounding_errors(values, largest * i / 50, levels).mean()) for i in range(1, 51)}
    best = min(errors, key=errors.get)
    assert best_range(values, levels) == pytest.approx(largest * best / 50)


def test_best_range_of_many_values_samples_rows_and_channels_alike():
    # Every other channel is ten times larger: a sample of some channels only finds another range.
    values = torch.randn(512, 64, generator=torch.Generator().manual_seed(0))
    values[:, 1::2] *= 10
    largest = float(values.abs().max())
    found = rounding_errors(values, best_range(values, 15), 15)
    best = min((rounding_errors(values, largest * i / 50, 15) for i in range(1, 51)), key=lambda error: error.mean())
    excess = found - best
    assert float(excess.mean()) <= 5 * float(excess.std()) / quantize.SAMPLED**0.5


def test_best_range_scales_with_the_values():
    values = torch.randn(500, generator=torch.Generator().manual_seed(0))
    assert best_range(1024 * values, 15) == 1024 * best_range(values, 15)
    assert best_range(-values, 15) == best_range(values, 15)


def test_best_range_of_zeros_is_one():
    assert best_range(torch.zeros(3, 3), 15) == 1.0


def test_values_on_the_levels_are_kept():
    values = torch.arange(-15.0, 16.0) / 8
    assert best_range(values, 15) == 15 / 8
    assert torch.equal(fake_quantize(values, 15 / 8, 15), values)


KINDS = {
    "normal": lambda count: torch.randn(count, generator=torch.Generator().manual_seed(0)),
    "heavy tails": lambda count: torch.randn(count, generator=torch.Generator().manual_seed(0)).pow(3),
    "mostly one": lambda count: (torch.rand(count, generator=torch.Generator().manual_seed(0)) * 2).clamp(max=1.0),
    "one outlier": lambda count: torch.cat(
        [torch.rand(count - 1, generator=torch.Generator().manual_seed(0)) * 0.01, torch.ones(1)]
    ),
}


def error_in(values, full_range, levels):
    """Mean square error of rounding."""
    return float((fake_quantize(values.double(), full_range, levels) - values.double()).square().mean())


@pytest.mark.parametrize("bits", [1, 4, 8, 12, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_of_many_values_a_range_errs_no_more_than_that_of_any_fraction(kind, bits):
    values, levels = KINDS[kind](300_000), 2**bits - 1
    largest = float(values.abs().max())
    least = min(error_in(values, largest * i / 50, levels) for i in (1, 2, 3, 5, 8, 12, 20, 30, 40, 45, 48, 49, 50))
    # the error of an even sample of n squares is off by their spread over √n; of uniform rounding that is √0.8 of it
    assert error_in(values, best_range(values, levels), levels) <= least * (1 + 5 * (0.8 / quantize.SAMPLED) ** 0.5)


def test_every_bit_halves_the_error_of_many_bits():
    values = KINDS["normal"](300_000)
    errors = [error_in(values, best_range(values, 2**bits - 1), 2**bits - 1) ** 0.5 for bits in range(12, 17)]
    assert all(now < 0.55 * before for before, now in pairwise(errors))


@pytest.mark.parametrize("parts", [1, 7, 100])
def test_what_is_seen_in_parts_is_seen_as_a_whole(parts):
    values = KINDS["heavy tails"](100_000)
    seen = Seen()
    for part in values.tensor_split(parts):
        seen.add(part)
    for levels in (3, 255, 65_535):
        chosen = error_in(values, seen.best_range(levels), levels)
        assert chosen <= error_in(values, best_range(values, levels), levels) * (1 + 10 / quantize.SAMPLED**0.5)
    assert len(seen._sample) <= 2 * quantize.SAMPLED and len(seen._largest) <= quantize.LARGEST


def test_few_large_values_are_not_lost_among_many_small_ones():
    seen = Seen()
    for number in range(40):
        seen.add(torch.full((20_000,), 1e-3) if number else torch.linspace(0, 1, 200))
    assert seen.best_range(65_535) == 1.0


def test_a_range_of_any_float_type():
    values = KINDS["normal"](1000).double()
    for unit in (2.0**-300, 2.0**300):
        assert best_range(values * unit, 15) == best_range(values, 15) * unit
    assert best_range((values * 60).half(), 15) == best_range((values * 60).half().float(), 15)
