"""Arrays of pulsed cells: closed forms against one pulse after the other, batches at once against their order."""

from dataclasses import dataclass, fields, replace
from shutil import which

import pytest
import torch

from energytl.devices import presets
from energytl.devices.pulsed import Cells, ConstantStep, ExponentialStep, SoftBounds, SoftBoundsReference, pulse
from energytl.optim import array
from energytl.optim.array import CellArray
from energytl.optim.pulses import (
    PulseTrain,
    coincidences,
    counts_in_order,
    dense_lines,
    expected_pulses,
    pulse_rates,
)

pytestmark = pytest.mark.usefixtures("one_thread")

STANDARD_ERRORS = 5
SPREAD = {"dw_min_spread": 0.3, "up_down_spread": 0.1, "upper_spread": 0.3, "lower_spread": 0.3}
DEVICES = {
    "constant": ConstantStep(dw_min=0.002, up_down=0.2, **SPREAD),
    "soft": SoftBounds(dw_min=0.02, up_down=0.2, **SPREAD),
    "reference": SoftBoundsReference(dw_min=0.02, reference_skew=0.1, reference_spread=0.1, stuck=0.1, **SPREAD),
    "coarse": replace(presets.reram_hfo2(), cycle_noise=0.0, write_noise=0.0),
    "exponential": ExponentialStep(dw_min=0.02, up_down=0.05, **SPREAD),
}
NOISY = {
    "constant": ConstantStep(dw_min=0.005, cycle_noise=0.5),
    "soft": SoftBounds(dw_min=0.01, cycle_noise=0.5),
    "reference": SoftBoundsReference(dw_min=0.01, up_down=0.3, cycle_noise=0.3, reference_skew=0.2),
}
WILD = {
    "om": replace(presets.reram_om(), stuck=0.1),
    "hfo2": replace(presets.reram_hfo2(), stuck=0.1),
    "noisy constant": ConstantStep(dw_min=0.3, cycle_noise=1.0, stuck=0.1, **SPREAD),
    "exponential": replace(presets.reram_exponential(), dw_min=0.1, stuck=0.1),
}
SHAPE = (2, 3, 4)
SAMPLES = 13
PATHS = {  # how many states are worked on at once, and from how many cells on samples are applied one by one
    "composed": (2**17, 2**14),
    "composed by five": (5 * 24, 2**14),
    "one at a time": (1, 2**14),
    "in order": (2**17, 1),
}

every_path = pytest.mark.parametrize("path", PATHS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def take(path, monkeypatch):
    for name, value in zip(("STATES_AT_ONCE", "LARGE"), PATHS[path], strict=True):
        monkeypatch.setattr(array, name, value)


def some_counts(*shape, most=3, seed=1):
    """Signed pulse numbers, a third of them 0."""
    counts = torch.randint(-most, most + 1, shape, generator=generator(seed)).float()
    return counts * (torch.rand(shape, generator=generator(seed + 1)) < 0.7)


def served(counts):
    """Such numbers as `train_` asks for them; each block is its own to change."""
    return lambda first, last: counts[..., first:last, :, :].clone()


def shown(cells, device, seed=9):
    return cells.show_(device, generator(seed)).clone()


def double(cells):
    return Cells(*(getattr(cells, field.name).double() for field in fields(cells)))


def pulse_after_pulse(device, state, counts, cells, noise=None):
    """The states (…, O, K) after numbers (…, S, O, K) of pulses, one by one."""
    for number in counts.unbind(-3):
        left = number.abs()
        for done in range(int(left.max())):
            state = pulse(device, state, number.sign() * (left > done), cells, noise)
    return state


def identical(device, repeats, shape, seed=0):
    """As many copies (repeats, *shape) of one drawn array."""
    drawn = CellArray.new(device, shape, generator(seed))
    expanded = {
        name: t.expand(repeats, *shape).clone() if t.dim() else t.clone() for name, t in drawn.tensors().items()
    }
    return CellArray.of(expanded)


@every_path
@pytest.mark.parametrize("name", DEVICES)
def test_a_batch_is_its_pulses_one_after_the_other(monkeypatch, name, path):
    take(path, monkeypatch)
    device = DEVICES[name]
    cells = CellArray.new(device, SHAPE, generator())
    counts = some_counts(2, SAMPLES, 3, 4)
    expected = pulse_after_pulse(device, cells.state.double(), counts.double(), double(cells.cells))
    cells.train_(served(counts), SAMPLES, device, generator())
    assert not torch.equal(cells.state, CellArray.new(device, SHAPE, generator()).state)
    torch.testing.assert_close(cells.state, expected.float(), rtol=1e-5, atol=2e-6)
    assert float(cells.pulses) == counts.abs().sum()


@pytest.mark.parametrize("path", ["one at a time", "in order"])
def test_bounds_cut_each_sample_where_samples_are_applied_one_by_one(monkeypatch, path):
    take(path, monkeypatch)
    device = ConstantStep(dw_min=0.2, **SPREAD)
    cells = CellArray.new(device, SHAPE, generator())
    counts = some_counts(2, SAMPLES, 3, 4, most=6)
    expected = pulse_after_pulse(device, cells.state.double(), counts.double(), double(cells.cells))
    assert ((expected == cells.cells.upper) | (expected == cells.cells.lower)).any()
    cells.train_(served(counts), SAMPLES, device, generator())
    torch.testing.assert_close(cells.state, expected.float(), rtol=1e-5, atol=1e-6)


@every_path
def test_choppers_and_ends_of_columns(monkeypatch, path):
    take(path, monkeypatch)
    device = DEVICES["soft"]
    counts = some_counts(2, SAMPLES, 3, 4)
    signs = torch.tensor([1.0, -1.0, -1.0, 1.0]).expand(2, 1, 4)
    ends = torch.tensor([0, 5, SAMPLES, 12])
    wanted = counts * signs.unsqueeze(-3) * (torch.arange(SAMPLES).unsqueeze(-1) < ends).unsqueeze(-2)
    cells = CellArray.new(device, SHAPE, generator())
    expected = pulse_after_pulse(device, cells.state.double(), wanted.double(), double(cells.cells))
    cells.train_(served(counts), SAMPLES, device, generator(), signs=signs, ends=ends)
    torch.testing.assert_close(cells.state, expected.float(), rtol=1e-5, atol=2e-6)
    assert float(cells.pulses) == wanted.abs().sum()


@every_path
@pytest.mark.parametrize("name", NOISY)
def test_noise_of_a_batch_has_the_moments_of_its_pulses(monkeypatch, name, path):
    # far from the bounds: two Monte Carlo runs of as many cells, one with `pulse`
    device, repeats = NOISY[name], 40_000
    monkeypatch.setattr(array, "STATES_AT_ONCE", PATHS[path][0] * repeats * 6 // 24)
    monkeypatch.setattr(array, "LARGE", 1 if path == "in order" else 2**40)
    counts = some_counts(9, 2, 3)
    one_by_one = identical(device, repeats, (2, 3))
    start = one_by_one.state.clone()
    one_by_one = pulse_after_pulse(device, start, counts.expand(repeats, *counts.shape), one_by_one.cells, generator(2))
    at_once = identical(device, repeats, (2, 3))
    at_once.train_(served(counts.expand(repeats, *counts.shape)), 9, device, generator(3))
    ours, theirs = at_once.state.double(), one_by_one.double()
    error = ((ours.var(0) + theirs.var(0)) / repeats).sqrt()
    assert (counts.abs().sum(0) > 0).all() and (ours.std(0) > 0.003).all()
    assert ((ours.mean(0) - theirs.mean(0)).abs() < STANDARD_ERRORS * error).all()
    assert ((ours.var(0) / theirs.var(0) - 1).abs() < STANDARD_ERRORS * 2 / repeats**0.5).all()
    # the normal numbers are those of each cell alone
    residual = (ours - ours.mean(0)).flatten(1)
    correlation = torch.corrcoef(residual.T)
    assert (correlation - torch.eye(6)).abs().max() < STANDARD_ERRORS / repeats**0.5


@every_path
@pytest.mark.parametrize("name", WILD)
def test_bounds_hold_and_stuck_cells_stay(monkeypatch, name, path):
    take(path, monkeypatch)
    device, shape = WILD[name], (1, 30, 20)
    cells = CellArray.new(device, shape, generator())
    lower, upper = cells.cells.lower, cells.cells.upper
    stuck = (cells.cells.up == 0) & (cells.cells.down == 0)
    assert 0.05 < stuck.float().mean() < 0.15
    held = cells.state[stuck].clone()
    x, d = torch.randn(1, 25, 20, generator=generator(1)), torch.randn(1, 25, 30, generator=generator(2))
    lines = dense_lines(x, d)
    pulses = expected_pulses(lines, pulse_rates(lines, 3.0, PulseTrain()))
    one = torch.ones(1, 1, 1)
    actions = [
        lambda: cells.write_(torch.randn(shape, generator=generator(3)) * 5, device, generator(4)),
        lambda: cells.train_(counts_in_order(x, d, 3.0, PulseTrain(), generator(5)), 25, device, generator(6)),
        lambda: cells.train_aggregated_(pulses, one, device, generator(7)),
        lambda: cells.pulse_(some_counts(*shape, most=1), device, generator(8)),
    ]
    for action in (*actions, actions[1], actions[2]):
        before = cells.state.clone()
        action()
        assert ((cells.state >= lower) & (cells.state <= upper)).all()
        assert torch.equal(cells.state[stuck], held)
        assert (cells.state != before)[~stuck].float().mean() > 0.1


def test_a_weight_is_cut_to_what_its_cell_can_hold():
    device = DEVICES["reference"]
    cells = CellArray.new(device, (200,), generator())
    wanted = 3 * torch.randn(200, generator=generator(1))
    cells.write_(wanted, device, generator(2))
    parts = cells.cells
    inside = (wanted + parts.reference < parts.upper) & (wanted + parts.reference > parts.lower)
    assert 20 < inside.sum() < 180
    torch.testing.assert_close(shown(cells, device)[inside], wanted[inside])
    above = wanted + parts.reference >= parts.upper
    torch.testing.assert_close(shown(cells, device)[above], (parts.upper - parts.reference)[above])


def assert_write_noise(cells, before, device, pulsed, seed):
    """What is shown has new write noise where pulsed, of the device's variance, else the old; once and for all."""
    weights = shown(cells, device, seed)
    offsets = weights - (cells.state - cells.cells.reference)
    torch.testing.assert_close(offsets[~pulsed], before[~pulsed], rtol=0, atol=1e-6)
    drawn, sigma = offsets[pulsed].double(), device.write_noise * device.dw_min
    assert ((drawn - before[pulsed]).abs() > 1e-5).float().mean() > 0.99
    assert abs(drawn.mean()) < STANDARD_ERRORS * sigma / len(drawn) ** 0.5
    assert abs(drawn.var() / sigma**2 - 1) < STANDARD_ERRORS * (2 / len(drawn)) ** 0.5
    assert torch.equal(shown(cells, device, seed + 100), weights)  # a frozen offset, no read noise
    return offsets


@every_path
def test_write_noise_is_new_only_where_pulses_came(monkeypatch, path):
    take(path, monkeypatch)
    device, shape = presets.reram_om(), (100, 200)
    cells = CellArray.new(device, shape, generator())
    before = assert_write_noise(cells, torch.zeros(shape), device, torch.ones(shape, dtype=torch.bool), 21)
    direction = some_counts(*shape, most=1)
    cells.pulse_(direction, device, generator(1))
    before = assert_write_noise(cells, before, device, direction != 0, 22)
    counts = some_counts(3, *shape, most=1) * (torch.rand(shape, generator=generator(5)) < 0.5)
    cells.train_(served(counts), 3, device, generator(2))
    before = assert_write_noise(cells, before, device, counts.abs().sum(0) > 0, 23)
    part = cells.columns(50, 100)
    part.pulse_(torch.ones(100, 100), device, generator(3))
    cells.put_(50, part)
    drawn = cells.columns(50, 10)  # drawing the noise of some leaves the others' waiting
    first = shown(drawn, device, seed=11)
    cells.put_(50, drawn)
    pulsed = torch.zeros(shape, dtype=torch.bool)
    pulsed[:, 50:150] = True
    assert_write_noise(cells, before, device, pulsed, 24)
    assert torch.equal(shown(cells, device, 25)[:, 50:60], first)


def wide(pulses, *shape):
    """The same moments for many arrays."""
    moments = {f.name: getattr(pulses, f.name) for f in fields(pulses)}
    return type(pulses)(
        **{name: t.expand(*shape) if torch.is_tensor(t) and t.dim() else t for name, t in moments.items()}
    )


def test_write_noise_of_a_batch_at_once_is_new_as_often_as_pulses_come():
    device, repeats = presets.reram_om(), 20_000
    x = torch.tensor([[1.0, 0.3, 0.0], [0.2, -0.5, 0.0]])
    d = torch.tensor([[0.1, 0.02], [-0.1, 0.05]])
    pulses = expected_pulses(lines := dense_lines(x, d), pulse_rates(lines, 5.0, PulseTrain()))
    cells = identical(device, repeats, (2, 3))
    shown(cells, device)
    before = cells.offset.clone()
    cells.train_aggregated_(wide(pulses, repeats, 2, 3), torch.ones(1, 1), device, generator(1))
    shown(cells, device, seed=10)
    renewed = cells.offset != before
    share, expected = renewed.double().mean(0), 1 - torch.exp(-pulses.total).double()
    assert not share[:, 2].any()
    error = (expected * (1 - expected) / repeats).sqrt()
    assert ((share - expected).abs()[:, :2] < STANDARD_ERRORS * error[:, :2]).all()
    sigma, drawn = device.write_noise * device.dw_min, cells.offset[renewed]
    assert abs(drawn.var() / sigma**2 - 1) < STANDARD_ERRORS * (2 / drawn.numel()) ** 0.5
    # trains fire a little more evenly than the Poisson process that this assumes
    counts = coincidences(x.expand(repeats, -1, -1), d.expand(repeats, -1, -1), 5.0, PulseTrain(), generator(2))
    truth = (counts.abs().sum(-3) > 0).double().mean(0)
    assert (truth - share).min() > -0.02 and 0.02 < (truth - share).max() < 0.15


def test_columns_are_arrays_that_are_put_back():
    device = DEVICES["reference"]
    cells = CellArray.new(device, SHAPE, generator())
    state = cells.state.clone()
    part = cells.columns(1, 2)
    torch.testing.assert_close(shown(part, device), shown(cells, device)[..., 1:3])
    part.pulse_(torch.ones(2, 3, 2), device, generator())
    part.train_(served(torch.ones(2, 1, 3, 2)), 1, device, generator())
    cells.put_(1, part)
    assert torch.equal(cells.state[..., 1:3], part.state) and torch.equal(cells.state[..., 0::3], state[..., 0::3])
    stuck = (cells.cells.up == 0)[..., 1:3]
    assert torch.equal(cells.state[..., 1:3] == state[..., 1:3], stuck)
    assert float(cells.pulses) == 24  # counted together


def test_arrays_are_their_tensors():
    cells = CellArray.new(presets.reram_om(), SHAPE, generator())
    again = CellArray.of(cells.tensors())
    again.pulse_(torch.ones(SHAPE), presets.reram_om(), generator())
    assert again.state is cells.state and float(cells.pulses) == 24
    assert set(cells.tensors()) == {"state", "offset", "pulses", "up", "down", "upper", "lower", "reference"}


# A mini-batch at once, against the same samples in random orders.

DENSITIES = [0.01, 0.1, 1.0, 10.0]
"""Pulses that a cell gets of a batch, in the mean."""
COMPARED = {
    "ideal": SoftBounds(dw_min=0.002),
    "fine": SoftBoundsReference(  # the device of the toy problem
        dw_min=0.004, dw_min_spread=0.3, cycle_noise=0.3, upper_spread=0.1, lower_spread=0.1, reference_skew=0.3
    ),
    "om": replace(presets.reram_om(), write_noise=0.0),
    "hfo2": replace(presets.reram_hfo2(), write_noise=0.0),
}


@dataclass(frozen=True)
class Compared:
    """Mean and variance of ΔW of each cell, both ways.

    Attributes:
        bias: of the means, in standard deviations of ΔW.
        error: standard error of that.
        ratio: variance at once over variance in order.
        pulses: mean pulses of a cell.
    """

    bias: torch.Tensor
    error: torch.Tensor
    ratio: torch.Tensor
    pulses: float

    def row(self):
        """Pulses; rms and largest bias, in standard deviations; mean, least and largest ratio of variances."""
        return (
            f"{self.pulses:8.3f} {self.bias.square().mean().sqrt():8.3f} {self.bias.abs().max():8.3f} "
            f"{self.ratio.log().mean().exp():8.3f} {self.ratio.min():8.3f} {self.ratio.max():8.3f}"
        )


def compared(device, density, repeats, samples=32, shape=(4, 6), seed=0):
    """The same samples for as many copies of one array, whose cells are spread over their ranges."""
    at_once, in_order = (identical(device, repeats, shape, seed) for _ in range(2))
    start = at_once.cells.reference + 0.3 * torch.randn(shape, generator=generator(seed + 1))
    start = torch.minimum(torch.maximum(start, at_once.cells.lower), at_once.cells.upper)
    at_once.state.copy_(start)
    in_order.state.copy_(start)
    x = torch.randn(samples, shape[1], generator=generator(seed + 2))
    d = torch.randn(samples, shape[0], generator=generator(seed + 3)) + 0.3 * x[:, :1]
    rate = density / float((d.abs().mT @ x.abs()).mean())
    pulses = expected_pulses(lines := dense_lines(x, d), pulse_rates(lines, rate, PulseTrain()))
    at_once.train_aggregated_(wide(pulses, repeats, *shape), torch.ones(1, 1), device, generator(seed + 4))
    order = torch.rand(repeats, samples, generator=generator(seed + 5)).argsort(-1)
    counts = counts_in_order(x[order], d[order], rate, PulseTrain(), generator(seed + 6))
    in_order.train_(counts, samples, device, generator(seed + 7))
    ours, truth = ((cells.state - start).double() for cells in (at_once, in_order))
    scale = truth.std(0)
    return Compared(
        bias=(ours.mean(0) - truth.mean(0)) / scale,
        error=((ours.var(0) + truth.var(0)) / repeats).sqrt() / scale,
        ratio=ours.var(0) / truth.var(0),
        pulses=float(pulses.total.mean()),
    )


def table(repeats=20_000):
    """Print `Compared.row` by device and density."""
    for name, device in COMPARED.items():
        for density in DENSITIES:
            print(f"{name:6}", compared(device, density, repeats).row())


# `table()` printed, with 20,000 repeats of 32 samples (pulses a cell; bias of ΔW's mean in standard deviations of ΔW,
# rms and largest over 24 cells; variance at once over variance in order, geometric mean, least and largest):
#
# device  pulses  bias   worst  ratio  least  largest
# ideal    0.01   0.009  0.03   0.99   0.86    1.13    errors of the estimate: 0.01 of bias, 0.01 to 0.1 of ratios
#          0.1    0.012  0.03   1.00   0.93    1.05
#          1      0.014  0.03   0.99   0.96    1.03
#         10      0.012  0.03   1.02   0.26    1.29    trains are full: the mean 1/BL is not every cell's
# fine     0.01   0.070  0.34   0.95   0.34    1.13    cells at a bound, which cuts noise on one side
#          0.1    0.060  0.29   0.97   0.45    1.07
#          1      0.026  0.11   0.98   0.68    1.03
#         10      0.012  0.02   1.04   0.48    1.24
# om       0.01   0.121  0.41   1.03   0.37   15.4     steps beyond a cell's range: a pulse is cut, its variance is not
#          0.1    0.091  0.30   1.01   0.46    6.1
#          1      0.052  0.20   0.95   0.66    1.08
#         10      0.029  0.10   0.99   0.71    1.43
# hfo2     0.01   0.157  0.55   1.26   0.35   55
#          0.1    0.111  0.29   1.15   0.43    9.9
#          1      0.082  0.31   0.83   0.44    1.44
#         10      0.093  0.24   0.74   0.34    1.39

RMS_BIAS = {"ideal": 0.0, "fine": 0.08, "om": 0.14, "hfo2": 0.18}
WORST_BIAS = {"ideal": 0.0, "fine": 0.36, "om": 0.45, "hfo2": 0.6}
MEAN_RATIO = {"ideal": (0.96, 1.05), "fine": (0.9, 1.08), "om": (0.9, 1.1), "hfo2": (0.65, 1.45)}


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("name", COMPARED)
def test_a_batch_at_once_moves_cells_as_its_samples_in_order_do(name, density):
    found = compared(COMPARED[name], density, repeats=5_000)
    assert found.pulses == pytest.approx(density, rel=0.05 if density < 5 else 0.2)
    assert (found.bias.abs() < WORST_BIAS[name] + STANDARD_ERRORS * found.error).all()
    assert found.bias.square().mean().sqrt() < RMS_BIAS[name] + 2 * found.error.square().mean().sqrt()
    low, high = MEAN_RATIO[name]
    assert low < found.ratio.log().mean().exp() < high


def test_the_pull_of_the_bounds_is_in_the_mean():
    # the law of Poisson pulses of linear steps, e^(−N·α) of what is left to the bound; without φ it would be 1 − N·α
    device, repeats = SoftBounds(dw_min=0.05), 5_000
    x, d = torch.ones(1, 3), torch.tensor([[-1.0, -0.5]])
    pulses = expected_pulses(lines := dense_lines(x, d), pulse_rates(lines, 10.0, PulseTrain()))
    cells = identical(device, repeats, (2, 3))
    cells.train_aggregated_(wide(pulses, repeats, 2, 3), torch.ones(1, 1), device, generator(1))
    expected = 1 - torch.exp(-0.05 * torch.tensor([10.0, 5.0])).unsqueeze(-1)
    error = cells.state.std(0) / repeats**0.5 + 1e-6
    assert ((cells.state.mean(0) - expected).abs() < STANDARD_ERRORS * error).all()


def test_chopped_columns_move_the_other_way():
    device = SoftBounds(dw_min=0.01)
    x, d = torch.rand(8, 6, generator=generator(1)), torch.rand(8, 4, generator=generator(2))
    signs = torch.tensor([[1.0, -1.0, 1.0, -1.0, -1.0, 1.0]])
    pulses = expected_pulses(lines := dense_lines(x, d), pulse_rates(lines, 8.0, PulseTrain()))
    cells = identical(device, 1, (4, 6))
    cells.train_aggregated_(pulses, signs, device, generator(3))
    assert (cells.state * signs < 0).all()


@pytest.mark.slow
@pytest.mark.skipif(which("g++") is None and which("clang++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("large", [True, False], ids=["in order", "composed"])
@pytest.mark.parametrize("name", ["soft", "constant", "om"])
def test_fused_kernels_give_the_same_numbers(monkeypatch, name, large):
    if large:
        monkeypatch.setattr(array, "LARGE", 1)
    device = presets.reram_om() if name == "om" else DEVICES[name]
    x, d = torch.randn(13, 20, generator=generator(1)), torch.randn(13, 30, generator=generator(2))
    pulses = expected_pulses(lines := dense_lines(x, d), pulse_rates(lines, 1.0, PulseTrain()))
    found = {}
    for fuse in (False, True):
        cells = CellArray.new(device, (30, 20), generator())
        counts = counts_in_order(x, d, 1.0, PulseTrain(), generator(3))
        cells.train_(counts, 13, device, generator(4), fuse)
        cells.train_aggregated_(pulses, torch.ones(1, 1), device, generator(5), fuse)
        found[fuse] = cells.tensors()
    for key, tensor in found[False].items():
        torch.testing.assert_close(found[True][key], tensor, rtol=1e-5, atol=1e-5, equal_nan=True)
