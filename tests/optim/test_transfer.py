"""Training by resets alone, and by writing levels anew: against a pair followed by hand, counts, and unbroken runs."""

import copy
import gc
import math
import random

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from energytl import Hardware, Noiseless, WeightFormat, analog_layers, convert
from energytl import run as run_module
from energytl.analog.mapping import BitCells, DifferentialPair, MultilevelCell, MultilevelPair, OneCell, ResetCells
from energytl.cost.training import Activity, training_cost
from energytl.devices.programming import Variation
from energytl.optim import MultilevelRefresh, ResetPair
from energytl.optim.transfer import levels_of_cells, reset_conductance, reset_pairs, resets_to
from energytl.recipe import read
from energytl.run import run_case
from energytl.tables import tables

pytestmark = pytest.mark.usefixtures("one_thread")

THREE = ((0.1, 0.5), (0.3, 0.3), (0.6, 0.2))  # fast, then ever slower
BOTH = pytest.mark.parametrize("kind", [MultilevelRefresh, ResetPair])


def analog(states=200, full_range=2.0, **hardware):
    weights = WeightFormat(bits=None, states=states, range=full_range)
    settings = {"computation": Noiseless(), "mapping": ResetCells(), "weights": weights}
    return Hardware(**settings | hardware)


def linear(outputs, inputs, hardware, weight=None, bias=False):
    layer = convert(nn.Linear(inputs, outputs, bias=bias), hardware, seed=0)
    if weight is not None:
        with torch.no_grad():
            layer.weight.copy_(torch.as_tensor(weight))
    return layer


def pull(optimizer, layer, gradient):
    """A step with this gradient of the weight."""
    layer.weight.grad = torch.as_tensor(gradient, dtype=torch.float32).expand(layer.weight.shape).clone()
    optimizer.step()


def state_of(optimizer, layer):
    return optimizer.state[layer.weight]


class Pair:
    """One pair of cells, followed by hand."""

    def __init__(self, weight, states, full_range, stages=()):
        self.n, self.range, self.stages = states, full_range, stages
        self.resets, self.writes, self.sets = {"+": 0, "-": 0}, {"+": 0, "-": 0}, 0
        self.reset_to(max(-1.0, min(1.0, round(weight / full_range * states) / states)))

    def curve(self):
        shares, falls = zip(*(self.stages or ((1.0, 1.0),)), strict=True)
        return [0.0, *np.cumsum(shares)], [1.0, *(1 - np.cumsum(falls))]

    def conductance(self, resets):
        return float(np.interp(resets / self.n, *self.curve()))

    def reset_to(self, difference):
        pulses, conductances = self.curve()
        number = round(self.n * float(np.interp(1 - abs(difference), conductances[::-1], pulses[::-1])))
        cell = "-" if difference > 0 else "+"
        self.resets[cell] += number
        self.writes[cell] += number

    def move(self, change):
        number = round(change * self.n / self.range)
        cell, other = ("-", "+") if number > 0 else ("+", "-")
        left = self.n - self.resets[cell]
        if abs(number) > left and self.resets[other]:
            wanted = self.weight / self.range + number / self.n
            self.resets = {"+": 0, "-": 0}
            self.sets += 2
            self.writes = {name: count + 1 for name, count in self.writes.items()}
            self.reset_to(max(-1.0, min(1.0, wanted)))
        else:
            sent = min(abs(number), left)
            self.resets[cell] += sent
            self.writes[cell] += sent

    @property
    def weight(self):
        return (self.conductance(self.resets["+"]) - self.conductance(self.resets["-"])) * self.range


# The conductance of a cell.


@pytest.mark.parametrize("stages", [(), THREE, ((1.0, 1.0),)], ids=len)
@pytest.mark.parametrize("states", [1, 7, 200])
def test_a_reset_leads_from_1_to_0_in_n_pulses(states, stages):
    pulses = torch.arange(states + 1)
    conductance = reset_conductance(pulses, states, stages)
    assert float(conductance[0]) == 1 and float(conductance[-1]) == pytest.approx(0, abs=1e-12)
    assert (conductance.diff() < 0).all()
    if len(stages) < 2:
        torch.testing.assert_close(conductance, 1 - pulses.double() / states)
    assert torch.equal(resets_to(conductance, states, stages), pulses.int())


def test_stages_have_their_shares():
    ends = reset_conductance(torch.tensor([20, 80, 200]), 200, THREE)
    torch.testing.assert_close(ends, torch.tensor([0.5, 0.2, 0.0], dtype=torch.float64))
    steps = reset_conductance(torch.arange(201), 200, THREE).diff().neg()
    for part, (share, fall) in zip((steps[:20], steps[20:80], steps[80:]), THREE, strict=True):
        torch.testing.assert_close(part, torch.full_like(part, fall / (share * 200)))


# Pairs.


@pytest.mark.parametrize("stages", [(), THREE], ids=["linear", "stages"])
@pytest.mark.parametrize("states", [5, 40])
def test_pairs_follow_one_that_is_followed_by_hand(states, stages):
    draw = random.Random(states)
    start = [draw.uniform(-2.5, 2.5) for _ in range(12)]
    layer = linear(3, 4, analog(states), torch.tensor(start).reshape(3, 4))
    optimizer = ResetPair(layer.parameters(), lr=0.5, stages=stages)
    pairs = [Pair(weight, states, 2.0, stages) for weight in start]
    for _ in range(150):
        changes = [draw.gauss(0, draw.choice([0.01, 0.3, 2.0])) for _ in pairs]
        pull(optimizer, layer, torch.tensor(changes).reshape(3, 4) / -0.5)
        for pair, change in zip(pairs, changes, strict=True):
            pair.move(change)
        expected = torch.tensor([pair.weight for pair in pairs])
        torch.testing.assert_close(layer.weight.detach().flatten(), expected, rtol=0, atol=1e-6)
    state = state_of(optimizer, layer)
    for cell, name in enumerate("+-"):
        assert state["resets"][cell].flatten().tolist() == [pair.resets[name] for pair in pairs]
        assert state["writes"][cell].flatten().tolist() == [pair.writes[name] for pair in pairs]
    assert int(state["sets"]) == sum(pair.sets for pair in pairs) > 100
    assert {state[key].dtype for key in ("resets", "writes")} == {torch.int32}
    (activity,) = optimizer.activities()
    assert activity.pulses == activity.slots == sum(sum(pair.writes.values()) for pair in pairs)
    assert activity.most_writes == max(max(pair.writes.values()) for pair in pairs)


def test_pulses_of_a_known_sequence():
    layer = linear(1, 1, analog(10, 1.0), [[0.3]])
    optimizer = ResetPair(layer.parameters(), lr=1.0)
    #         ΔW in steps → pulses of G⁺, G⁻ since their set; all pulses so far
    sequence = [(0, (0, 3), 3), (5, (0, 8), 8), (-4, (4, 8), 12), (2, (4, 10), 14), (1, (0, 7), 23), (9, (0, 10), 26)]
    sequence += [(3, (0, 10), 26), (-10, (10, 10), 36), (-1, (1, 0), 39), (-20, (10, 0), 48), (-1, (10, 0), 48)]
    sequence += [(20, (0, 10), 60)]
    for steps, resets, pulses in sequence:
        pull(optimizer, layer, -0.1 * steps)
        state = state_of(optimizer, layer)
        assert tuple(state["resets"].flatten().tolist()) == resets
        assert optimizer.activities()[0].pulses == pulses
        assert float(layer.weight.detach()) == pytest.approx((resets[1] - resets[0]) / 10)
    assert int(state["sets"]) == 6


@pytest.mark.parametrize("stages", [(), THREE], ids=["linear", "stages"])
def test_weights_are_the_difference_of_their_cells_and_stay_in_the_range(stages):
    torch.manual_seed(0)
    layer = linear(17, 40, analog(20, 0.2))
    optimizer = ResetPair(layer.parameters(), lr=1.0, stages=stages)
    for size in (1e-3, 0.1, 10.0, 1e30):
        for _ in range(10):
            pull(optimizer, layer, size * torch.randn(17, 40))
            resets = state_of(optimizer, layer)["resets"]
            assert int(resets.min()) >= 0 and int(resets.max()) <= 20
            high, low = reset_conductance(resets, 20, stages)
            torch.testing.assert_close(
                layer.weight.detach(), (layer.weight_range * (high - low)).float(), rtol=0, atol=0
            )
            assert float(layer.weight.detach().abs().max()) <= np.float32(0.2)
    assert float(layer.weight.detach().abs().min()) == np.float32(0.2)  # what pulls hard saturates
    pulses = optimizer.activities()[0].pulses
    pull(optimizer, layer, -layer.weight.detach())  # further out
    assert optimizer.activities()[0].pulses == pulses


def test_linear_weights_lie_on_the_steps_that_the_layer_rounds_to():
    torch.manual_seed(0)
    layer = linear(8, 30, analog(200, 2.0))
    optimizer = ResetPair(layer.parameters(), lr=1.0)
    for _ in range(5):
        pull(optimizer, layer, torch.randn(8, 30))
    torch.testing.assert_close(layer.stored_weight.detach() * 2.0, layer.weight.detach(), rtol=0, atol=1e-6)


def test_less_than_half_a_step_changes_nothing_and_costs_nothing():
    layer = linear(2, 3, analog(8, 2.0), [[0.25] * 3] * 2)  # a step is 0.25
    optimizer = ResetPair(layer.parameters(), lr=0.5)
    for _ in range(50):
        pull(optimizer, layer, 0.24)
    assert (layer.weight == 0.25).all() and optimizer.activities()[0].pulses == 6
    pull(optimizer, layer, 0.26)
    assert (layer.weight == 0).all() and optimizer.activities()[0].pulses == 12


def test_rounding_down_loses_all_that_is_less_than_a_step():
    layer = linear(1, 4, analog(8, 2.0), [[0.0] * 4])
    optimizer = ResetPair(layer.parameters(), lr=1.0, rounding="down")
    pull(optimizer, layer, [[0.249, -0.249, 0.49, -0.51]])
    assert layer.weight.tolist() == [[0, 0, -0.25, 0.5]] and optimizer.activities()[0].pulses == 3


def test_pulses_sent_do_not_depend_on_the_stage_but_what_they_do_does():
    layer = linear(1, 1, analog(10, 1.0), [[0.0]])
    optimizer = ResetPair(layer.parameters(), lr=1.0, stages=((0.5, 0.8), (0.5, 0.2)))
    moved = []
    for _ in range(5):
        before = float(layer.weight.detach())
        pull(optimizer, layer, -0.2)
        moved.append(float(layer.weight.detach()) - before)
        assert optimizer.activities()[0].pulses == 2 * len(moved)
    assert moved == pytest.approx([0.32, 0.32, 0.2, 0.08, 0.08])


def test_columns_with_ranges_of_their_own_have_steps_of_their_own():
    weights = WeightFormat(bits=None, states=10, range_by="max", columns=True)
    hardware = Hardware(computation=Noiseless(), mapping=ResetCells(), weights=weights)
    layer = linear(2, 2, hardware, [[1.0, 0.5], [0.1, 0.0]])
    layer.fit_weight_range()
    optimizer = ResetPair(layer.parameters(), lr=1.0)
    pull(optimizer, layer, 0.02)
    torch.testing.assert_close(layer.weight.detach(), torch.tensor([[1.0, 0.5], [0.08, -0.02]]))


def test_reset_pairs_is_the_same_for_any_shape():
    resets = torch.randint(0, 21, (2, 3, 4, 5), dtype=torch.int32)
    steps = torch.randint(-40, 41, (3, 4, 5), dtype=torch.int32)
    whole = reset_pairs(resets, steps, 20, THREE)
    flat = reset_pairs(resets.flatten(1), steps.flatten(), 20, THREE)
    for ours, theirs in zip(whole, flat, strict=True):
        assert torch.equal(ours.flatten(), theirs.flatten())
        assert ours.dtype in (torch.int32, torch.bool)


# Levels that are written anew.


def test_refreshes_of_known_levels():
    # levels 0, 1, 3, 8: the highest takes one pulse, all others two
    hardware = Hardware(
        computation=Noiseless(), mapping=MultilevelPair((1, 3, 8)), weights=WeightFormat(None, range=8.0)
    )
    layer = linear(1, 4, hardware, [[0.0, 1.0, 8.0, -3.0]])
    optimizer = MultilevelRefresh(layer.parameters(), lr=1.0)
    pull(optimizer, layer, [[0.1, 0.0, 0.0, 0.0]])  # all 8 cells are written, one of them to the highest level
    assert optimizer.activities()[0].pulses == 15
    pull(optimizer, layer, [[0.1, 0.1, -0.1, 0.2]])  # no level changes
    assert optimizer.activities()[0].pulses == 15
    pull(optimizer, layer, [[-8.1, 0.0, 0.0, 0.0]])  # 0 → 8: one cell, to the highest
    assert optimizer.activities()[0].pulses == 16
    pull(optimizer, layer, [[0.0, 4.0, 0.0, 0.0]])  # 0.9 → −3.1: 1 → 0 and 0 → 3
    assert optimizer.activities()[0].pulses == 20
    pull(optimizer, layer, [[0.0, 0.0, 3.0, 0.0]])  # 8.1 → 5.1: 8 → 8 and 0 → 3
    assert optimizer.activities()[0].pulses == 22
    pull(optimizer, layer, [[0.0, 0.0, -3.0, 0.0]])  # back: 3 → 0, by a reset, too
    (activity,) = optimizer.activities()
    assert activity.pulses == activity.slots == 24
    writes = state_of(optimizer, layer)["writes"]
    assert writes.flatten().tolist() == [2, 2, 1, 1, 1, 2, 3, 1] and activity.most_writes == 3
    assert writes.dtype == torch.int32


@pytest.mark.parametrize(
    "mapping",
    [MultilevelCell((1,)), MultilevelPair((1,)), MultilevelPair((1, 3, 8, 12)), OneCell(), BitCells()],
    ids=str,
)
def test_what_is_counted_is_what_the_cells_hold(mapping):
    torch.manual_seed(0)
    layer = linear(6, 9, Hardware(computation=Noiseless(), mapping=mapping), bias=True)
    optimizer = MultilevelRefresh(layer.parameters(), lr=0.3)
    held = levels_of_cells(layer).contiguous()
    assert held.shape == (len(mapping.significances(layer.hardware.weights)), 6, 9)
    writes, pulses = torch.ones_like(held), float((2 - (held.abs() > 0.9999).float()).sum())
    for _ in range(20):
        optimizer.zero_grad()
        layer(torch.randn(5, 9)).square().sum().backward()
        optimizer.step()
        now = levels_of_cells(layer)
        for old, new, count in zip(held.flatten(), now.flatten(), writes.view(-1), strict=True):
            if abs(float(old) - float(new)) > 1e-4:
                count += 1
                pulses += 1 if abs(float(new)) > 0.9999 else 2
        held = now
    assert torch.equal(state_of(optimizer, layer)["writes"], writes.int()) and writes.max() > 1
    assert optimizer.activities()[0].pulses == pulses


def test_both_cells_of_a_pair_change_with_its_sign():
    hardware = Hardware(computation=Noiseless(), mapping=DifferentialPair(), weights=WeightFormat(3, range=3.0))
    layer = linear(1, 1, hardware, [[1.0]])
    optimizer = MultilevelRefresh(layer.parameters(), lr=1.0)
    pull(optimizer, layer, 0.0)
    assert levels_of_cells(layer).flatten().tolist() == pytest.approx([1 / 3, 0])
    assert optimizer.activities()[0].pulses == 4
    pull(optimizer, layer, 2.0)
    assert levels_of_cells(layer).flatten().tolist() == pytest.approx([0, 1 / 3])
    assert optimizer.activities()[0].pulses == 8


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_full_precision_weights_are_trained_as_sgd_does(momentum):
    torch.manual_seed(0)
    ours = linear(3, 5, Hardware(computation=Noiseless(), mapping=MultilevelPair((1, 3, 8))), bias=True)
    theirs = copy.deepcopy(ours)
    optimizer = MultilevelRefresh(ours.parameters(), lr=0.05, momentum=momentum)
    plain = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=momentum)
    for _ in range(10):
        x = torch.randn(6, 5)
        for layer, step in ((ours, optimizer), (theirs, plain)):
            step.zero_grad()
            layer(x).square().sum().backward()
            step.step()
    for parameter, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, rtol=0, atol=1e-7)


# Both.


def network(kind, seed=0, **hardware):
    torch.manual_seed(seed)
    digital = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(36, 3),
    )
    own = {"mapping": MultilevelPair((1, 3, 8)), "weights": WeightFormat()} if kind is MultilevelRefresh else {}
    return convert(digital, analog(40, 0.5, **own | hardware), seed=0)


def batches(count, size=8, seed=1):
    draw = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, 1, 7, 7, generator=draw), torch.randint(0, 3, (size,), generator=draw)) for _ in range(count)
    ]


def train(model, optimizer, data):
    losses = []
    for x, y in data:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        if torch.is_tensor(value):
            torch.testing.assert_close(value, theirs[key], rtol=0, atol=0)
            assert value.dtype == theirs[key].dtype
        else:
            assert value == theirs[key]


@BOTH
def test_they_learn(kind):
    model = network(kind)
    losses = train(model, kind(model.parameters(), lr=0.2), batches(1) * 80)
    assert losses[-1] < 0.3 * losses[0]


@BOTH
def test_a_resumed_run_goes_on_bit_for_bit(kind, tmp_path):
    data, more = batches(10), {"momentum": 0.5} if kind is MultilevelRefresh else {"stages": THREE}
    straight = network(kind)
    optimizer = kind(straight.parameters(), lr=0.2, **more)
    train(straight, optimizer, data)
    first = network(kind)
    half = kind(first.parameters(), lr=0.2, **more)
    train(first, half, data[:5])
    torch.save({"model": first.state_dict(), "optimizer": half.state_dict()}, tmp_path / "half.pt")
    saved = torch.load(tmp_path / "half.pt", weights_only=True)
    resumed = network(kind, seed=99)
    again = kind(resumed.parameters(), lr=0.1, **more)
    train(resumed, again, batches(2, seed=5))  # whatever it was before
    resumed.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    assert again.activities() == half.activities()
    train(resumed, again, data[5:])
    for ours, theirs in zip(resumed.parameters(), straight.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert_same(again.state.get(ours, {}), optimizer.state.get(theirs, {}))
    assert again.activities() == optimizer.activities()


@BOTH
def test_a_lightning_checkpoint_goes_on_bit_for_bit(kind, fit, tmp_path):
    x, y = zip(*batches(4), strict=True)
    loader = DataLoader(TensorDataset(torch.cat(x), torch.cat(y)), batch_size=8)

    def optimizer_of(model):
        return kind(model.parameters(), lr=0.2)

    straight, half, resumed = (network(kind, seed) for seed in (0, 0, 9))
    unbroken = fit(straight, optimizer_of, loader, 2).optimizers[0].activities()
    fit(half, optimizer_of, loader, 1).save_checkpoint(tmp_path / "half.ckpt")
    trainer = fit(resumed, optimizer_of, loader, 2, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert_same(dict(resumed.named_parameters()), dict(straight.named_parameters()))
    assert trainer.optimizers[0].activities() == unbroken
    assert [activity.samples for activity in unbroken] == [2 * 32 * 9, 2 * 32]  # Lightning forgets gradients in between


@BOTH
def test_bfloat16_weights_keep_integer_counts(kind):
    model = network(kind).bfloat16()
    optimizer = kind(model.parameters(), lr=0.2)
    train(model, optimizer, [(x.bfloat16(), y) for x, y in batches(3)])
    twin = network(kind).bfloat16()
    again = kind(twin.parameters(), lr=0.2)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    state = again.state[twin[-1].weight]
    assert_same(state, optimizer.state[model[-1].weight])
    assert state["writes"].dtype == torch.int32


@BOTH
def test_samples_are_inputs_whose_gradient_reaches_the_weight(kind):
    model = network(kind)
    optimizer = kind(model.parameters(), lr=0.2)
    assert optimizer.activities() == []
    train(model, optimizer, batches(3))
    with torch.no_grad():
        model(batches(1)[0][0])
    model.eval()(batches(1)[0][0]).sum()  # no backward pass
    copy.deepcopy(model)(batches(1)[0][0]).sum().backward()
    optimizer.step()
    assert [(a.layer, a.outputs, a.samples) for a in optimizer.activities()] == [(0, 4, 24 * 9), (1, 3, 24)]
    model(batches(1, size=5)[0][0]).sum().backward()
    optimizer.step()
    assert [a.samples for a in optimizer.activities()] == [29 * 9, 29]


@BOTH
def test_layers_keep_no_hook_when_the_optimizer_is_gone(kind):
    model = network(kind)
    optimizer = kind(model.parameters(), lr=0.2)
    train(model, optimizer, batches(1))
    assert all(layer._forward_hooks for layer in analog_layers(model).values())
    del optimizer
    gc.collect()
    assert not any(layer._forward_hooks for layer in analog_layers(model).values())


@BOTH
def test_only_the_last_layer(kind):
    model = network(kind)
    for parameter in model[:-1].parameters():
        parameter.requires_grad_(False)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = kind([p for p in model.parameters() if p.requires_grad], lr=0.2)
    train(model, optimizer, batches(5))
    changed = [not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True)]
    names = [name for (name, _), moved in zip(model.named_parameters(), changed, strict=True) if moved]
    assert names == ["4.weight", "4.bias"]
    (activity,) = optimizer.activities()
    assert activity.layer == 1 and activity.samples == 40


def test_costs_of_the_papers_layer():
    activity = Activity(1, 17, 1360, 1.7e6, 1.7e6, 0, 100e-9, 5.1e-12, most_writes=1000)
    cost = training_cost([activity], [1, 1], [1e-9, 1e-9], [0.0, 0.0], None)
    assert cost.latency_s == pytest.approx(0.17)  # Dong 2018, §IV B
    assert cost.energy_pulses_j == pytest.approx(1.7e6 * 5.1e-12)
    assert cost.energy_backward_j == 0  # no errors go back beyond the layer that trains
    assert cost.numbers()["training_most_writes"] == 1000


UNROUNDED = {"weights": WeightFormat(None)}


@pytest.mark.parametrize(
    ("kind", "hardware", "settings", "line"),
    [
        (
            ResetPair,
            UNROUNDED,
            {},
            r"layer 0 \(weight \(2, 2\)\) have no levels that ResetPair could write: convert with",
        ),
        (ResetPair, {"mapping": OneCell()}, {}, "have no levels that ResetPair could write: convert with"),
        (MultilevelRefresh, UNROUNDED, {}, "have no levels that MultilevelRefresh could write: convert with"),
        (MultilevelRefresh, {}, {"momentum": 1.0}, "momentum is 1.0; allowed: 0 up to 1"),
        (ResetPair, {}, {"lr": -1}, "lr is -1; allowed: 0 or more"),
        (ResetPair, {}, {"rounding": "up"}, "rounding is 'up'; allowed: nearest, down"),
        (ResetPair, {}, {"pulse_s": -1}, "pulse_s is -1; allowed: 0 or more"),
        (ResetPair, {}, {"pulse_j": math.nan}, "pulse_j is nan; allowed: 0 or more"),
        (ResetPair, {}, {"stages": ((0.5, 1.0),)}, "stages is .*; allowed: .* both summing to 1"),
        (ResetPair, {}, {"stages": ((2.0, 1.5), (-1.0, -0.5))}, "stages is .*; allowed"),
        (ResetPair, {}, {"stages": ((math.nan, 1.0),)}, "stages is .*; allowed"),
    ],
)
def test_settings_are_refused_in_one_line(kind, hardware, settings, line):
    layer = linear(2, 2, analog(**hardware))
    with pytest.raises(ValueError, match=line) as error:
        kind(layer.parameters(), **{"lr": 1.0} | settings)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@BOTH
def test_an_analog_weight_with_a_range_is_needed(kind):
    with pytest.raises(ValueError, match="none of the parameters is the weight of an analog layer: convert"):
        kind(nn.Linear(2, 2).parameters(), lr=1.0)
    layer = linear(2, 2, analog(programming=Variation(0.1)))
    with pytest.raises(ValueError, match=r"layer 0 has hardware\.programming, stuck, drift"):
        kind(layer.parameters(), lr=1.0)


def test_what_a_pair_cannot_follow_is_refused():
    layer = linear(2, 2, analog())
    optimizer = ResetPair(layer.parameters(), lr=1.0)
    with pytest.raises(ValueError, match=r"layer 0 \(weight \(2, 2\)\) got a gradient that is not finite"):
        pull(optimizer, layer, math.nan)
    pull(optimizer, layer, 0.1)
    layer.weight_range = 1.0
    with pytest.raises(ValueError, match="another range or number of states"):
        pull(optimizer, layer, 0.1)
    with pytest.raises(ValueError, match=r"the checkpoint's settings is ResetPair\(rounding='nearest'"):
        ResetPair(layer.parameters(), lr=1.0, rounding="down").load_state_dict(optimizer.state_dict())


# Recipes.

SETTINGS = {
    "network": {"class_path": "energytl.models.mlp", "init_args": {"hidden": [8]}},
    "data": {"class_path": "energytl.data.Digits", "init_args": {"batch_size": 500}},
    "evaluation": {"reads": 1, "images": 100, "cost_batches": 1},
    "trainer": {"enable_progress_bar": False, "limit_val_batches": 1, "limit_train_batches": 3},
}
PAIR = {"mapping": "ResetCells", "weights": {"bits": None, "states": 200, "range": 2.0}}
LEVELS = {"mapping": {"class_path": "MultilevelPair", "init_args": {"levels": [1, 3, 8, 12]}}}
STAGES = [[0.1, 0.5], [0.3, 0.3], [0.6, 0.2]]
RECIPES = {
    "ResetPair": (PAIR, {"lr": 0.1, "rounding": "down", "stages": STAGES}),
    "MultilevelRefresh": (LEVELS, {"lr": 0.1}),
    "CTTv2": ({"weights": {"bits": None}}, {"lr": 0.1, "device": "energytl.devices.presets.reram_om"}),
}


def test_recipes_train_and_tell_what_it_cost(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "case_figures", lambda result: {})
    results = {}
    for number, (name, (hardware, arguments)) in enumerate(RECIPES.items()):
        optimizer = {"class_path": f"energytl.optim.{name}", "init_args": arguments}
        settings = SETTINGS | {"hardware": hardware, "train": {"epochs": 1, "optimizer": optimizer}}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings), "utf-8")
        (case,) = read(path, [])
        results[name] = run_case(case, number, tmp_path / "out", False)
    for name in ("ResetPair", "MultilevelRefresh"):
        result = results[name]
        assert result["training_images"] == 1500
        assert result["training_pulses"] > result["training_most_writes"] > 0
        assert result["training_latency_s"] > result["training_pulses"] * 100e-9
        assert result["training_energy_pulses_j"] == pytest.approx(result["training_pulses"] * 5.1e-12)
    assert "training_most_writes" not in results["CTTv2"]
    (table,) = (table for table in tables(results) if table.title == "training on the chip")
    assert table.rows[0][-1] == "most writes of a cell"
    assert [row[-1] for row in table.rows[1:]] == [
        f"{results['ResetPair']['training_most_writes']:,}",
        f"{results['MultilevelRefresh']['training_most_writes']:,}",
        "not counted",
    ]
    (alone,) = (table for table in tables({"CTTv2": results["CTTv2"]}) if table.title == "training on the chip")
    assert alone.rows[0][-1] == "time" and len(alone.rows[1]) == len(alone.rows[0])
