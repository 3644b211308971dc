"""Pulse trains against another simulator's moments, the rules by hand, and the moments that a mini-batch is given."""

import json

import pytest
import torch

from energytl.optim import pulses
from energytl.optim.pulses import (
    PulseTrain,
    coincidences,
    counts_in_order,
    dense_lines,
    drive,
    expected_pulses,
    pulse_rates,
)

pytestmark = pytest.mark.usefixtures("one_thread")

STANDARD_ERRORS = 5
TRAINS = [
    PulseTrain(longest, length, lines) for longest in (31, 4) for length in (True, False) for lines in (True, False)
]
SETS = [
    "managed",
    "clipped",
    "short_train",
    "fixed_length_unmanaged",
    "fixed_length_managed",
    "fixed_length_managed_31_generator_artefact",
]
REPEATS, THEIR_REPEATS = 60_000, 100_000

every_train = pytest.mark.parametrize("train", TRAINS, ids=repr)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def assert_same(found, expected):
    """Equal but for rounding to 32 bits somewhere."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * (1 + float(expected.abs().max())))


def of_set(reference, name):
    """One set of the reference file: x, d, rate and trains as this package names them, and the set."""
    content = json.loads((reference / "pulsed_update_moments.json").read_text("utf-8"))
    chosen = content["sets"][name]
    train = PulseTrain(chosen["desired_bl"], chosen["update_bl_management"], chosen["update_management"])
    x, d = torch.tensor(content["x"]), torch.tensor(content["d"])
    return x, d, chosen["learning_rate"] / content["dw_min"], train, chosen


def law(x, d, rate, train):
    """Signed mean (O, K) and covariance (O·K, O·K) of one sample's pulse numbers, from the rules for its lines.

    Lines fire independently: BL·pq is the mean, BL·q(1 − q)·p₁p₂ the covariance in a row, BL·p(1 − p)·q₁q₂ in a column.
    """
    x, d = x.double(), d.double()
    driven = drive(x.abs().max(), d.abs().max(), rate, train)
    length = driven.length
    p, q = ((f * v.abs()).clamp(max=1) for f, v in ((driven.x_factor, x), (driven.d_factor, d)))
    sign = -(d.sign()[:, None] * x.sign()).flatten()
    mean = (q[:, None] * p).flatten()
    rows, columns = (torch.where(torch.eye(len(v), dtype=torch.bool), v, v.outer(v)) for v in (q, p))
    covariance = length * (torch.kron(rows, columns) - mean.outer(mean)) * sign.outer(sign)
    return (length * mean * sign).view(len(d), len(x)), covariance


@pytest.mark.parametrize(
    ("train", "rate", "length", "x_probability", "d_probability"),
    [  # max|x| = 1.2, max|d| = 0.8: k = 0.96·rate
        (PulseTrain(), 10.0, 10, 0.96**0.5, 0.96**0.5),
        (PulseTrain(), 0.5, 1, 0.48**0.5, 0.48**0.5),
        (PulseTrain(), 100.0, 31, 1.0, 96 / 31),  # what exceeds 31 slots is cut at the errors
        (PulseTrain(managed_length=False), 10.0, 31, (9.6 / 31) ** 0.5, (9.6 / 31) ** 0.5),
        (PulseTrain(30, False, False), 10.0, 30, 1.2 * (10 / 30) ** 0.5, 0.8 * (10 / 30) ** 0.5),
        (PulseTrain(managed_lines=False), 10.0, 10, 1.2, 0.8),
        (PulseTrain(5), 10.0, 5, 1.0, 9.6 / 5),
    ],
    ids=repr,
)
def test_lines_are_driven_by_the_rules(train, rate, length, x_probability, d_probability):
    driven = drive(torch.tensor(1.2), torch.tensor(0.8), rate, train)
    assert float(driven.length) == length
    assert float(driven.x_factor * 1.2) == pytest.approx(x_probability, rel=1e-6)
    assert float(driven.d_factor * 0.8) == pytest.approx(d_probability, rel=1e-6)


@pytest.mark.parametrize("whole", [1, 4, 31])
def test_a_train_is_no_longer_than_a_whole_number_asks_for(whole):
    driven = drive(torch.tensor(1.0), torch.tensor(0.5), 2.0 * whole, PulseTrain())
    assert float(driven.length) == whole
    assert float(driven.x_factor) == pytest.approx(1.0, abs=1e-6)
    assert float(driven.d_factor * 0.5) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("name", SETS)
def test_line_probabilities_are_those_of_another_simulator(reference, name):
    x, d, rate, train, theirs = of_set(reference, name)
    driven = drive(x.abs().max(), d.abs().max(), rate, train)
    assert float(driven.length) == theirs["train_length"]
    for factor, values, key in ((driven.x_factor, x, "x"), (driven.d_factor, d, "d")):
        probabilities = (factor * values.abs()).clamp(max=1)
        torch.testing.assert_close(
            probabilities, torch.tensor(theirs[f"{key}_line_probabilities"]), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("name", SETS)
def test_pulse_numbers_have_the_moments_of_another_simulator(reference, name):
    x, d, rate, train, theirs = of_set(reference, name)
    counts = coincidences(x.expand(REPEATS, -1), d.expand(REPEATS, -1), rate, train, generator(3))
    counts = counts.flatten(1).double()
    mean, covariance = law(x, d, rate, train)
    expected_mean, expected_variance = (torch.tensor(theirs[f"expected_{m}_counts"]) for m in ("mean", "var"))
    torch.testing.assert_close(mean.float(), expected_mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(covariance.diagonal().float(), expected_variance.flatten(), rtol=2e-5, atol=1e-6)

    centred = counts - mean.flatten()
    found = centred.T @ centred / REPEATS
    fourth = centred.square().T @ centred.square() / REPEATS
    # the error of a product of rare numbers does not show in every sample: at least as if they were independent
    error = torch.maximum(fourth - found.square(), covariance.diagonal().outer(covariance.diagonal())).sqrt()
    mean_error = covariance.diagonal().sqrt()
    random = mean_error > 1e-6
    assert random.sum() == (13 if name == "clipped" else 15)
    assert torch.equal(counts[:, ~random], mean.flatten()[~random].expand(REPEATS, -1))  # these are certain

    def assert_near(ours, others, error, repeats, what):
        worst = ((ours - others).abs() / (error * (1 / REPEATS + (1 / repeats if repeats else 0)) ** 0.5))[error > 1e-6]
        assert worst.max() < STANDARD_ERRORS, what

    assert_near(counts.mean(0), mean.flatten(), mean_error, None, "mean")
    assert_near(found, covariance, error, None, "covariance")
    their_mean = torch.tensor(theirs["mean_counts"], dtype=torch.float64).flatten()
    assert_near(counts.mean(0), their_mean, mean_error, THEIR_REPEATS, "their mean")
    if "artefact" not in name:  # whose (co)variances are known to be wrong
        their_covariance = torch.tensor(theirs["covariance_counts_24x24"], dtype=torch.float64)
        assert_near(found, their_covariance, error, THEIR_REPEATS, "their covariance")


def test_the_covariance_is_not_that_of_independent_cells(reference):
    # the comparison above can fail: cells of a row share their line's pulses
    x, d, rate, train, _ = of_set(reference, "managed")
    _, covariance = law(x, d, rate, train)
    counts = coincidences(x.expand(REPEATS, -1), d.expand(REPEATS, -1), rate, train, generator(3)).flatten(1).double()
    found = torch.cov(counts.T)[6, 7]
    error = (covariance[6, 6] * covariance[7, 7] / REPEATS) ** 0.5
    assert abs(found) > 10 * error and abs(found - covariance[6, 7]) < 5 * error


def test_rare_pulses_are_as_rare_as_they_should_be():
    # lines whose probability is far below what one 16-bit random number can tell apart
    x, d = torch.ones(40, 50_000), torch.ones(40, 1)
    for probability in (2.0**-18, 3e-5):
        driven_by_inputs = coincidences(
            torch.cat([x[:, :1], x * probability], -1), d, 1.0, PulseTrain(managed_length=True), generator(1)
        )[..., 1:]
        expected = driven_by_inputs.numel() * probability
        assert abs(float(-driven_by_inputs.sum()) - expected) < STANDARD_ERRORS * expected**0.5


@every_train
@pytest.mark.parametrize("rate", [0.05, 1.0, 7.3, 200.0])
def test_moments_of_one_sample_are_those_of_its_trains(train, rate):
    x, d = normal(1, 5, seed=1), normal(1, 3, seed=2)
    x[0, 2] = 0.0
    lines = dense_lines(x, d)
    rates = pulse_rates(lines, rate, train)
    found = expected_pulses(lines, rates)
    mean, covariance = law(x[0], d[0], rate, train)
    assert_same(found.net, mean)
    assert_same(found.total, mean.abs())
    assert_same(found.total - found.power * found.slot, covariance.diagonal().view_as(mean))
    length = float(drive(x.abs().max(), d.abs().max(), rate, train).length)
    assert float(rates.slots) == length and float(found.slot) == pytest.approx(1 / length)
    assert float(found.samples) == 1


@every_train
def test_moments_of_a_batch_are_sums_over_its_samples(train):
    x, d = normal(7, 5, seed=1), normal(7, 3, seed=2)
    x[3], d[5] = 0.0, 0.0
    lines = dense_lines(x, d)
    rates = pulse_rates(lines, 7.3, train)
    found = expected_pulses(lines, rates)
    means = torch.stack([law(a, b, 7.3, train)[0] for a, b in zip(x, d, strict=True)])
    assert_same(found.net, means.sum(0))
    assert_same(found.total, means.abs().sum(0))
    assert_same(found.power, means.square().sum(0))
    lengths = [drive(a.abs().max(), b.abs().max(), 7.3, train).length for a, b in zip(x, d, strict=True)]
    assert float(rates.slots) == pytest.approx(float(sum(lengths)))
    assert float(found.samples) == 7
    if not train.managed_length:  # trains of one length: variances add up exactly, too
        variance = sum(law(a, b, 7.3, train)[1].diagonal() for a, b in zip(x, d, strict=True))
        assert_same(found.total - found.power * found.slot, variance.view_as(found.total))


def test_the_mean_train_weighs_samples_by_their_pulses():
    # where samples differ only in size, one mean of 1/BL gives every cell's variance exactly
    size = torch.tensor([0.2, 0.5, 1.0, 3.0], dtype=torch.float64).unsqueeze(-1)
    x, d = size * normal(1, 5, seed=1), normal(1, 3, seed=2).expand(4, -1)
    found = expected_pulses(lines := dense_lines(x, d), pulse_rates(lines, 5.0, PulseTrain()))
    assert len({float(drive(a.abs().max(), d.abs().max(), 5.0, PulseTrain()).length) for a in x}) > 2
    variance = sum(law(a, b, 5.0, PulseTrain())[1].diagonal() for a, b in zip(x, d, strict=True))
    assert_same(found.total - found.power * found.slot, variance.view_as(found.total))


@every_train
@pytest.mark.parametrize("silent", ["x", "d", "both", "rate"])
def test_without_signal_there_is_no_pulse(train, silent):
    x, d = normal(2, 5, seed=1), normal(2, 3, seed=2)
    rate = torch.zeros((), dtype=torch.float64) if silent == "rate" else 7.3
    x[0] *= silent not in ("x", "both")
    d[0] *= silent not in ("d", "both")
    counts = coincidences(x, d, rate, train, generator())
    found = expected_pulses(lines := dense_lines(x, d), pulse_rates(lines, rate, train))
    assert not counts[0].any()
    if silent == "rate":
        assert not counts.any() and not found.total.any() and not found.net.any()
    else:  # the other sample gets its own
        assert counts[1].any()
        assert_same(found.net, law(x[1], d[1], rate, train)[0])
    for moment in (found.total, found.net, found.power, found.slot):
        assert torch.isfinite(moment).all()


def certain_lines(*leading):
    """Samples whose lines fire in every slot: (…, 6, 4) inputs, (…, 6, 3) errors, (…, 6, 3, 4) pulse numbers."""
    k = torch.randint(1, 31, (*leading, 6, 1), generator=generator(5)).float()
    x, d = (torch.randint(0, 2, (*leading, 6, n), generator=generator(n)) * 2.0 - 1.0 for n in (4, 3))
    return x * 2, d * k, -(d * k).unsqueeze(-1) * x.unsqueeze(-2)


@pytest.mark.parametrize("leading", [(), (2,), (2, 3)], ids=repr)
def test_leading_dimensions_are_arrays_of_their_own(leading):
    x, d, expected = certain_lines(*leading)
    assert torch.equal(coincidences(x, d, 0.5, PulseTrain(), generator()).float(), expected)
    found = expected_pulses(lines := dense_lines(x, d), pulse_rates(lines, 0.5, PulseTrain()))
    assert_same(found.net, expected.sum(-3))
    assert_same(found.total, expected.abs().sum(-3))
    assert_same(found.power, expected.square().sum(-3))


@pytest.mark.parametrize("at_once", [1, 31 * 7 * 2, 2**22], ids=["one", "two", "all"])
def test_blocks_are_the_samples_in_their_order(monkeypatch, at_once):
    monkeypatch.setattr(pulses, "TRAINS_AT_ONCE", at_once)
    x, d, expected = certain_lines()
    for ends in ([1, 2, 3, 4, 5, 6], [3, 4, 6], [2, 6], [6]):
        counts, first = counts_in_order(x, d, 0.5, PulseTrain(), generator()), 0
        for last in ends:
            assert torch.equal(counts(first, last).float(), expected[first:last])
            first = last


@pytest.mark.parametrize("at_once", [1, 2**22], ids=["one", "all"])
def test_blocks_have_the_moments_of_their_samples(monkeypatch, at_once):
    monkeypatch.setattr(pulses, "TRAINS_AT_ONCE", at_once)
    repeats = 4000
    x, d = normal(4, 5, seed=1).float(), normal(4, 3, seed=2).float()
    counts = counts_in_order(x.expand(repeats, -1, -1), d.expand(repeats, -1, -1), 7.3, PulseTrain(), generator(4))
    drawn = torch.cat([counts(0, 1), counts(1, 3), counts(3, 4)], 1).double()
    for sample in range(4):
        mean, covariance = law(x[sample], d[sample], 7.3, PulseTrain())
        found = drawn[:, sample].flatten(1)
        variance = covariance.diagonal()
        assert ((found.mean(0) - mean.flatten()).abs() <= STANDARD_ERRORS * (variance / repeats).sqrt() + 1e-6).all()
        centred = (found - mean.flatten()).square()
        assert ((centred.mean(0) - variance).abs() <= STANDARD_ERRORS * centred.std(0) / repeats**0.5 + 1e-6).all()
    # samples of one cell are independent of each other, also where they come from one block
    one, other = (drawn[:, s].flatten(1) - drawn[:, s].flatten(1).mean(0) for s in (1, 2))
    both = (one * other).mean(0) / (one.std(0) * other.std(0) + 1e-9)
    assert (both.abs() < STANDARD_ERRORS / repeats**0.5).all()


def test_a_train_has_slots():
    with pytest.raises(ValueError, match=r"train.longest is 0; allowed: whole numbers of slots"):
        PulseTrain(longest=0)
