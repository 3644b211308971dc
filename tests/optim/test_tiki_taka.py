"""The Tiki-Taka family by hand-stepped tables, and a toy problem against another simulator's 20 seeds."""

import json
from dataclasses import dataclass, replace
from functools import cache
from itertools import permutations

import pytest
import torch

from energytl.devices.pulsed import ConstantStep, SoftBounds, SoftBoundsReference
from energytl.optim.array import CellArray
from energytl.optim.pulses import PulseTrain, coincidences, dense_lines, expected_pulses, pulse_rates
from energytl.optim.tiki_taka import AGAD, CTTv2, Devices, TTv1, TTv2

pytestmark = pytest.mark.usefixtures("one_thread")

STANDARD_ERRORS = 5
STEP = 0.125
DEVICE = ConstantStep(dw_min=STEP)  # θ and all numbers below are exact in binary
LR = 0.5


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def both(device):
    return Devices(device, device)


def as_seen(weights):
    return weights


def pair_of(rule, fast, device=DEVICE):
    fast = torch.tensor(fast) if isinstance(fast, list) else fast
    pair = rule.new(tuple(fast.shape), both(device), generator())
    pair.fast.state.copy_(fast)
    return pair


def weights(cells):
    return cells.state - cells.cells.reference


def read(rule, pair, reads, device=DEVICE, lr=LR, seed=1):
    return rule.transfer_(pair, reads, lr, both(device), as_seen, generator(seed))


def test_ttv2_sends_a_pulse_where_its_integrator_crosses_the_threshold():
    rule = TTv2(threshold=2.0, kept=0.25)  # θ = 0.25
    pair = pair_of(rule, [[0.25, -0.5], [0.375, 0.0]])
    table = [  # after each sweep of two reads: H, and C in steps
        ([[0.125, -0.0625], [0.1875, 0.0]], [[0, -1], [0, 0]]),  # −0.25 = −θ fires
        ([[0.0625, -0.3125 * 0.25], [0.375 * 0.25, 0.0]], [[1, -2], [1, 0]]),
        ([[0.1875, (-0.3125 * 0.25 - 0.25) * 0.25], [0.28125 * 0.25, 0.0]], [[1, -3], [2, 0]]),
    ]
    for buffer, slow in table:
        read(rule, pair, 2)
        torch.testing.assert_close(pair.buffer, torch.tensor(buffer), rtol=0, atol=0)
        torch.testing.assert_close(weights(pair.slow), torch.tensor(slow) * STEP, rtol=0, atol=0)
    torch.testing.assert_close(pair.fast.state, torch.tensor([[0.25, -0.5], [0.375, 0.0]]))  # reads move nothing
    assert pair.reads == 6 and float(pair.slow.pulses) == 6 and float(pair.fast.pulses) == 0


def test_a_read_adds_lr_times_what_is_seen():
    rule = TTv2(threshold=1000.0)
    pair = pair_of(rule, [[0.25, -0.5, 1.0]])
    rule.transfer_(pair, 3, 0.25, both(DEVICE), lambda seen: seen + 0.5, generator())
    torch.testing.assert_close(pair.buffer, torch.tensor([[0.1875, 0.0, 0.375]]))


def test_each_array_moves_by_steps_of_its_own_device():
    rule, devices = TTv2(), Devices(ConstantStep(dw_min=STEP / 4), DEVICE)
    pair = rule.new((1, 2), devices, generator())
    counts = torch.tensor([[[8.0, -1.0]]])
    rule.learn_in_order_(pair, lambda first, last: counts, 1, 1, LR, devices, as_seen, generator())
    torch.testing.assert_close(weights(pair.fast), torch.tensor([[2.0, -0.25]]) * STEP, rtol=0, atol=0)
    torch.testing.assert_close(weights(pair.slow), torch.tensor([[1.0, 0.0]]) * STEP, rtol=0, atol=0)  # H is at θ


def test_columns_are_read_in_turn():
    rule = TTv2(threshold=1000.0)
    pair = pair_of(rule, [[1.0, 2.0, 4.0]], ConstantStep(dw_min=STEP, upper=8.0))
    for reads, expected in ((2, [1, 1, 0]), (2, [2, 1, 1]), (1, [2, 2, 1]), (4, [3, 3, 3]), (0, [3, 3, 3])):
        read(rule, pair, reads, lr=1.0)
        torch.testing.assert_close(pair.buffer, torch.tensor([[1.0, 2.0, 4.0]]) * torch.tensor(expected))


def test_what_moved_is_told_with_its_column():
    rule = TTv2(threshold=1.0)
    pair = pair_of(rule, [[1.0, 0.0, -1.0], [1.0, 0.0, 0.0]])
    pair.reads = 2
    moved = read(rule, pair, 3)  # columns 2, 0, 1
    slow = pair.slow.show_(DEVICE, generator())
    assert [first for first, _ in moved] == [2, 0]
    for first, shown in moved:
        torch.testing.assert_close(shown, slow[:, first : first + shown.shape[-1]])
    torch.testing.assert_close(slow, torch.tensor([[1, 0, -1], [1, 0, 0]]) * STEP)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_a_column_is_due_every_so_many_images(every):
    rule = TTv2(every=every)
    pair = pair_of(rule, [[0.0, 0.0]])
    due = [rule.due(pair, images) for images in (1, 1, 4, 0, 5)]
    images, reads, expected = 0, 0, []
    for more in (1, 1, 4, 0, 5):
        images += more
        expected.append(images // every - reads)
        reads = images // every
    assert due == expected and pair.images == 11


def test_ttv1_moves_c_by_what_it_reads():
    # errors −v of one output drive all slots where lr·|v| asks for more pulses than a train has
    rule = TTv1(train=PulseTrain(longest=3))
    pair = pair_of(rule, [[0.5, -0.25, 0.0]])
    read(rule, pair, 3, lr=10.0)
    torch.testing.assert_close(weights(pair.slow), torch.tensor([[3.0, -3.0, 0.0]]) * STEP)
    assert not pair.buffer.any()


def test_ttv1_moves_c_by_lr_times_what_it_reads_in_the_mean():
    device, repeats, lr = ConstantStep(dw_min=0.001), 20_000, 0.02
    rule, fast = TTv1(), torch.tensor([[0.53, -0.1], [0.02, 0.23]])
    pair = pair_of(rule, fast.expand(repeats, 2, 2), device)
    read(rule, pair, 2, device, lr)
    moved = weights(pair.slow).double()
    error = moved.std(0) / repeats**0.5
    assert ((moved.mean(0) - lr * fast).abs() < STANDARD_ERRORS * error + 1e-7).all() and (error > 0).all()


def test_choppers_turn_after_a_read_in_a_regular_rhythm():
    rule = CTTv2(threshold=1000.0, chop_probability=0.5, regular=True)
    pair = pair_of(rule, [[0.25, 0.5]])
    for sweep, (sign, times) in enumerate([(1, 1), (-1, 2), (-1, 1), (1, 0), (1, 1), (-1, 2)]):
        read(rule, pair, 1)
        assert pair.chop.tolist() == [[sign, 1 if sweep in (0, 4) else pair.chop[0, 1]]]
        read(rule, pair, 1)
        assert pair.chop.tolist() == [[sign, sign]]
        torch.testing.assert_close(pair.buffer, times * torch.tensor([[0.125, 0.25]]))


@pytest.mark.parametrize(("probability", "signs"), [(1.0, [-1, 1, -1, 1]), (0.0, [1, 1, 1, 1])])
def test_certain_choppers(probability, signs):
    rule = CTTv2(threshold=1000.0, chop_probability=probability)
    pair = pair_of(rule, [[0.25, 0.5], [1.0, 1.0]])
    for sign in signs:
        read(rule, pair, 2)
        assert pair.chop.tolist() == [[sign, sign]]
    assert pair.buffer.any() != bool(probability)  # +, −, +, − add up to nothing


def test_random_choppers_turn_with_their_probability_and_alone():
    columns, sweeps, probability = 500, 60, 0.3
    rule = CTTv2(threshold=1e9, chop_probability=probability)
    pair = pair_of(rule, torch.zeros(2, columns))
    turned, random = [], generator(3)
    for _ in range(sweeps):
        before = pair.chop.clone()
        rule.transfer_(pair, columns, LR, both(DEVICE), as_seen, random)
        turned.append(pair.chop != before)
    turned = torch.stack(turned).double().flatten(1)
    error = (probability * (1 - probability) / turned.numel()) ** 0.5
    assert abs(turned.mean() - probability) < STANDARD_ERRORS * error
    after = ((turned[1:] - probability) * (turned[:-1] - probability)).mean() / (probability * (1 - probability))
    assert abs(after) < STANDARD_ERRORS / turned.numel() ** 0.5
    beside = ((turned[:, 1:] - probability) * (turned[:, :-1] - probability)).mean() / (probability * (1 - probability))
    assert abs(beside) < STANDARD_ERRORS / turned.numel() ** 0.5


def offset_seen(rule, sweeps):
    """Pulses that C gets from an A that shows nothing but an offset, which no pulses change."""
    pair = pair_of(rule, torch.full((2, 3), 0.25))
    for sweep in range(sweeps):
        read(rule, pair, 3, seed=sweep)
    return weights(pair.slow) / STEP


def test_an_offset_of_a_moves_c_only_without_choppers():
    assert (offset_seen(TTv2(threshold=4.0), 80) == 8).all()  # θ = 0.5: a pulse every fourth read, until C is full
    assert not offset_seen(CTTv2(threshold=4.0, chop_probability=0.5, regular=True), 80).any()
    assert not offset_seen(AGAD(threshold=4.0, chop_probability=0.5), 80).any()


def test_agad_subtracts_what_the_last_period_saw():
    # period 2, running mean M ← M + (v − M)/2; from the third sweep on the reference P is the M of the period before
    rule = AGAD(threshold=1.0, chop_probability=0.5, tail=1.0)
    pair = pair_of(rule, [[0.5]])
    table = [  # v, then after the read: H, M, P, sign, C in steps
        (0.5, 0.25, 0.25, 0.0, 1, 0),  # nothing is sent in the first period, whatever H is
        (0.5, 0.5, 0.375, 0.0, -1, 0),
        (0.25, 0.5 - 0.5 * (0.25 - 0.375), 0.3125, 0.375, -1, 0),  # nor in the first sweep of the second
        (0.0, 0.0, 0.15625, 0.375, 1, 1),  # 0.5625 + 0.1875 fires
        (0.15625, 0.0, 0.15625, 0.15625, 1, 1),
        (-0.34375, 0.0, -0.09375, 0.15625, -1, 0),  # −0.25 fires
    ]
    for value, buffer, mean, past, sign, steps in table:
        pair.fast.state.fill_(value)
        read(rule, pair, 1)
        found = (pair.buffer, pair.mean, pair.past, pair.chop, weights(pair.slow) / STEP)
        assert [float(t) for t in found] == [buffer, mean, past, sign, steps]


@pytest.mark.parametrize(("probability", "period"), [(0.1, 10), (0.05, 20), (0.7, 2), (1.0, 1)])
def test_a_period_is_the_inverse_probability_and_two_at_least_where_it_measures_a_reference(probability, period):
    chopped = CTTv2(threshold=1000.0, chop_probability=probability, regular=True)
    measured = AGAD(threshold=1000.0, chop_probability=probability)
    for rule, reads in ((chopped, period), (measured, max(period, 2))):
        pair = pair_of(rule, [[0.0]])
        for _ in range(reads - 1):
            read(rule, pair, 1)
        assert float(pair.chop) == 1
        read(rule, pair, 1)
        assert float(pair.chop) == -1


FAMILY = {
    "TTv1": TTv1(train=PulseTrain(longest=3)),
    "TTv2": TTv2(threshold=1.0, kept=0.5),
    "CTTv2": CTTv2(threshold=1.0, chop_probability=1.0),
    "CTTv2 regular": CTTv2(threshold=1.0, chop_probability=0.5, regular=True),
    "AGAD": AGAD(threshold=0.5, chop_probability=0.5, tail=1.0),
}


@pytest.mark.parametrize("per_image", [1, 4])
@pytest.mark.parametrize("every", [1, 2, 5])
@pytest.mark.parametrize("name", FAMILY)
def test_reads_in_the_middle_of_a_batch_are_in_their_place(name, every, per_image):
    # one output, so that TTv1's trains are certain
    rule, device = replace(FAMILY[name], every=every), SoftBounds(dw_min=0.05, up_down=0.2)
    shape, images = (2, 1, 3), 60
    counts = torch.randint(-2, 3, (2, images * per_image, 1, 3), generator=generator(1)).float()

    def learn(pair, batches):
        done = 0
        for batch in batches:
            part = counts[:, done * per_image : (done + batch) * per_image]
            served = lambda first, last, part=part: part[:, first:last].clone()  # noqa: E731
            rule.learn_in_order_(pair, served, batch * per_image, batch, 100.0, both(device), as_seen, generator(2))
            done += batch
        return pair

    together = [k for k in (3 * every, 2, 3 * every - 1, 1, 3) if k]
    while sum(together) > images:
        together.pop()
    together += [1] * (images - sum(together))
    one_by_one = learn(rule.new(shape, both(device), generator()), [1] * images)
    at_once = learn(rule.new(shape, both(device), generator()), together)
    assert weights(one_by_one.slow).any()
    for key in ("images", "reads"):
        assert getattr(at_once, key) == getattr(one_by_one, key)
    assert one_by_one.reads == images // every
    for key in ("buffer", "chop", "mean", "past"):
        torch.testing.assert_close(getattr(at_once, key), getattr(one_by_one, key))
    for key in ("fast", "slow"):
        torch.testing.assert_close(getattr(at_once, key).state, getattr(one_by_one, key).state)
        assert float(getattr(at_once, key).pulses) == float(getattr(one_by_one, key).pulses)


def test_no_column_twice_in_one_call():
    rule = TTv2()
    pair = pair_of(rule, [[0.0] * 3])
    with pytest.raises(ValueError, match="4 reads of 3 columns in one call; allowed: each column once"):
        rule.learn_in_order_(pair, lambda a, b: None, 4, 4, LR, both(DEVICE), as_seen, generator())


def test_pulses_wait_for_the_read_of_their_column():
    # in a batch at once nothing is lost and nothing comes twice: A is what all pulses together make of it
    device, repeats = SoftBounds(dw_min=0.0005), 400
    rule = CTTv2(threshold=1e9, every=2, chop_probability=0.0)
    pair = rule.new((repeats, 2, 3), both(device), generator())
    x, d = torch.randn(40, 3, generator=generator(1)), torch.randn(40, 2, generator=generator(2)) - 0.5
    total, net, random = 0, 0, generator(3)
    for part in range(4):
        lines = dense_lines(*(t[10 * part : 10 * part + 10].expand(repeats, 10, -1) for t in (x, d)))
        rates = pulse_rates(lines, 2.0, PulseTrain())
        pulses = expected_pulses(lines, rates)
        total, net = total + pulses.total, net + pulses.net
        rule.learn_aggregated_(pair, lines, rates, 10, 1.0, both(device), as_seen, random)
    assert pair.reads == 20  # the last of them of column 1: what came since the last read of each waits
    read(rule, pair, 3, device)  # columns 2, 0, 1: all is carried out
    assert float(pair.fast.pulses) == pytest.approx(float(total.sum()), rel=1e-4)
    found, expected = weights(pair.fast), net[0] * device.dw_min
    error = found.std(0) / repeats**0.5
    assert ((found.mean(0) - expected).abs() < STANDARD_ERRORS * error + 0.02 * expected.abs()).all()
    again = pair.fast.state.clone()
    read(rule, pair, 3, device)
    assert torch.equal(pair.fast.state, again)  # and waits no longer


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: TTv2(threshold=0.0), r"threshold is 0.0; allowed: above 0"),
        (lambda: TTv2(threshold=float("nan")), r"threshold is nan; allowed: above 0"),
        (lambda: TTv2(kept=1.0), r"kept is 1.0; allowed: 0 up to, not including, 1"),
        (lambda: TTv1(every=0), r"every is 0; allowed: whole numbers of images"),
        (lambda: CTTv2(chop_probability=1.5), r"chop_probability is 1.5; allowed: 0 to 1"),
        (lambda: AGAD(chop_probability=-0.1), r"chop_probability is -0.1; allowed: 0 to 1"),
        (lambda: AGAD(tail=0.0), r"tail is 0.0; allowed: above 0"),
    ],
)
def test_settings_are_refused_in_one_line(make, line):
    with pytest.raises(ValueError, match=line) as error:
        make()
    assert "\n" not in str(error.value)


# The toy problem: 5 inputs, 3 outputs, one sample at a time (tiki_taka_toy.json states all settings).

MEANS = SPREADS = (0.0, 0.1, 0.3)
TOY = SoftBoundsReference(
    dw_min=0.004, dw_min_spread=0.3, cycle_noise=0.3, upper_spread=0.1, lower_spread=0.1, up_down_spread=0.01
)


@dataclass(frozen=True)
class Toy:
    """One algorithm's settings.

    Attributes:
        rule: None: pulses go straight to the weights.
        fast_rate: λ_A.
        lr: of the transfer.
    """

    rule: TTv1 | TTv2 | CTTv2 | AGAD | None
    fast_rate: float
    lr: float


TOYS = {
    "sgd": Toy(None, 0.02, 0.0),
    "ttv1": Toy(TTv1(), 0.02, 0.02),
    "ttv2": Toy(TTv2(threshold=25, kept=0.1), 1.0, 0.05),
    "ttv2_class_defaults": Toy(TTv2(threshold=1, kept=0.1), 0.05, 0.05),
    "c_ttv2": Toy(CTTv2(threshold=25), 1.0, 0.05),
    "agad": Toy(AGAD(threshold=25), 1.0, 0.05),
}


@cache
def toy_errors(path, name, exact, errors, seeds, samples, last, seed=11):
    """Weight errors |W − W*|/√15 of `seeds` runs, mean over the last samples, for each (mean, spread): (…, seeds)."""
    target = torch.tensor(json.loads(path.read_text("utf-8"))["w_star"])
    toy, random = TOYS[name], generator(seed)
    runs = len(errors) * seeds
    cells = [
        CellArray.new(replace(TOY, reference_skew=skew, reference_spread=spread), (seeds, 3, 5), random).tensors()
        for skew, spread in errors
    ]
    joined = {key: torch.cat([c[key] for c in cells]) if t.dim() else t for key, t in cells[0].items()}
    fast = slow = CellArray.of(joined)
    if toy.rule is not None:
        pair = toy.rule.new((runs, 3, 5), both(TOY), random)
        pair.fast, slow = fast, pair.slow
    rate, sums = toy.fast_rate / TOY.dw_min, torch.zeros(runs)
    for sample in range(samples):
        error = weights(slow) - target
        if sample >= samples - last:
            sums += error.square().mean((-1, -2)).sqrt()
        x = (0.5 * torch.randn(runs, 1, 5, generator=random)).clamp(-1, 1)
        d = x @ error.mT + 0.1 * torch.randn(runs, 1, 3, generator=random)
        if exact:
            counts = coincidences(x, d, rate, PulseTrain(), random)
            served = lambda first, last, counts=counts: counts.clone()  # noqa: E731
            if toy.rule is None:
                fast.train_(served, 1, TOY, random)
            else:
                toy.rule.learn_in_order_(pair, served, 1, 1, toy.lr, both(TOY), as_seen, random)
        else:
            rates = pulse_rates(lines := dense_lines(x, d), rate, PulseTrain())
            if toy.rule is None:
                fast.train_aggregated_(expected_pulses(lines, rates), torch.ones(1, 1), TOY, random)
            else:
                toy.rule.learn_aggregated_(pair, lines, rates, 1, toy.lr, both(TOY), as_seen, random)
    return (sums / last).view(len(errors), seeds).double()


def theirs(path, name, skew, spread, when="final"):
    rows = json.loads(path.read_text("utf-8"))["main"]["results"]
    return next(
        row[when]
        for row in rows
        if (row["algorithm"], row["reference_mean"], row["reference_std"]) == (name, skew, spread)
    )


def quartiles(errors):
    return errors.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()


def median_error(low, high, seeds):
    return 0.93 * (high - low) / seeds**0.5


@pytest.mark.parametrize("name", ["ttv2", "c_ttv2", "agad"])
def test_a_reference_error_hurts_as_it_hurts_another_simulator(reference, name):
    # 5,000 samples: the errors of samples 4,501 to 5,000, without and with an error of 0.3
    path, cases = reference / "tiki_taka_toy.json", ((0.0, 0.0), (0.3, 0.0))
    found = toy_errors(path, name, True, cases, 20, 5_000, 500)
    medians = []
    for errors, case in zip(found, cases, strict=True):
        (low, median, high), other = quartiles(errors), theirs(path, name, *case, "at_5000")
        allowed = (median_error(low, high, 20) ** 2 + median_error(other["q25"], other["q75"], 20) ** 2) ** 0.5
        assert median <= other["median"] + STANDARD_ERRORS * allowed, case
        medians.append(median)
    ratio = medians[1] / medians[0]
    low, high = {"ttv2": (4.5, 8.0), "c_ttv2": (1.2, 2.6), "agad": (0.5, 1.8)}[name]
    assert low < ratio < high


@pytest.mark.slow
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "aggregated"])
@pytest.mark.parametrize("name", TOYS)
def test_the_toy_problem_is_solved_no_worse_than_by_another_simulator(reference, name, exact):
    path = reference / "tiki_taka_toy.json"
    cases = tuple((skew, spread) for skew in MEANS for spread in SPREADS)
    found = toy_errors(path, name, exact, cases, 20, 30_000, 2_000)
    for errors, case in zip(found, cases, strict=True):
        (low, median, high), other = quartiles(errors), theirs(path, name, *case)
        allowed = (median_error(low, high, 20) ** 2 + median_error(other["q25"], other["q75"], 20) ** 2) ** 0.5
        assert median <= other["median"] + STANDARD_ERRORS * allowed, (case, median, other["median"])
        if case[1] < 0.3:  # where quartiles are narrow: no better either
            assert median >= other["median"] - STANDARD_ERRORS * allowed, (case, median, other["median"])


@pytest.mark.slow
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "aggregated"])
def test_the_order_of_the_algorithms_is_that_of_another_simulator(reference, exact):
    path = reference / "tiki_taka_toy.json"
    cases = tuple((skew, spread) for skew in MEANS for spread in SPREADS)
    medians = {name: toy_errors(path, name, exact, cases, 20, 30_000, 2_000).median(-1).values for name in TOYS}
    compared = 0
    for index, case in enumerate(cases):
        other = {name: theirs(path, name, *case) for name in TOYS}
        errors = {name: median_error(row["q25"], row["q75"], 20) for name, row in other.items()}
        for better, worse in permutations(TOYS, 2):
            apart = other[worse]["median"] - other[better]["median"]
            if apart > STANDARD_ERRORS * (errors[worse] ** 2 + errors[better] ** 2) ** 0.5:
                assert medians[worse][index] > medians[better][index], (case, better, worse)
                compared += 1
    assert compared > 60
    first = cases.index((0.3, 0.0))
    for name, factor in (("ttv2", 6), ("c_ttv2", 3), ("agad", 1)):
        assert medians[name][first] / medians[name][0] == pytest.approx(factor, rel=0.3)
