"""What every on-chip optimizer must do: a new one is tested by naming it in OPTIMIZERS."""

import copy
import gc
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from energytl import (
    BitSerialRead,
    Fluctuation,
    Hardware,
    InputFormat,
    Moments,
    Noiseless,
    WeightFormat,
    analog_layers,
    convert,
    to_digital,
)
from energytl.devices import presets
from energytl.devices.fluctuation import amplitude
from energytl.devices.pulsed import ConstantStep, SoftBounds, SoftBoundsReference
from energytl.optim import AGAD, ColumnRead, CTTv2, Hybrid, PulsedSGD, PulseTrain, TTv1, TTv2
from energytl.optim.array import CellArray

pytestmark = pytest.mark.usefixtures("one_thread")

STANDARD_ERRORS = 5
MODES = {
    **{f"{kind.__name__} exact": partial(kind, exact=True) for kind in (PulsedSGD, TTv1, TTv2, CTTv2, AGAD)},
    **{f"{kind.__name__} at once": partial(kind, exact=False) for kind in (PulsedSGD, TTv1, TTv2, CTTv2, AGAD)},
    "Hybrid": Hybrid,
}
HOW = ("exact", "at once")
OPTIMIZERS = {"PulsedSGD": PulsedSGD, "Hybrid": Hybrid, "TTv1": TTv1, "TTv2": TTv2, "CTTv2": CTTv2, "AGAD": AGAD}
IDEAL = Hardware(computation=Noiseless(), weights=WeightFormat(bits=None))

every_mode = pytest.mark.parametrize("mode", MODES)
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def network(hardware=IDEAL, seed=0):
    """Convolutions, one of them grouped, a layer that stays digital, and a linear one."""
    torch.manual_seed(seed)
    digital = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 2, groups=2),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    return convert(digital, hardware, seed=0)


def optimizer_of(mode, model, lr=0.05, device=None, seed=7, **settings):
    kind = {**MODES, **OPTIMIZERS}[mode]
    optimizer = kind(model.parameters(), lr=lr, device=device or presets.reram_om(), seed=seed, **settings)
    optimizer.fuse = False  # compiling takes longer than all these tests; see test_array.py
    return optimizer


def batches(count, size=8, seed=1):
    random = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, 1, 7, 7, generator=random), torch.randint(0, 3, (size,), generator=random))
        for _ in range(count)
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


def tensors(state):
    """All tensors of nested dictionaries, by path."""
    found = {}
    for key, value in state.items():
        if isinstance(value, dict):
            found |= {f"{key}.{name}": tensor for name, tensor in tensors(value).items()}
        elif torch.is_tensor(value):
            found[str(key)] = value
    return found


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key in ours:
        torch.testing.assert_close(
            ours[key], theirs[key], rtol=0, atol=0, equal_nan=True, msg=lambda m, k=key: f"{k} {m}"
        )


# What trains on the chip, and what does not.


@every_mode
def test_analog_weights_train_on_the_chip_and_all_else_as_sgd_does(mode):
    model, data = network(), batches(1)
    on_chip = {id(layer.weight) for layer in analog_layers(model).values()}
    twin = copy.deepcopy(model)
    plain = torch.optim.SGD(twin.parameters(), lr=0.05)
    optimizer = optimizer_of(mode, model, device=presets.ideal(100), lr=0.05)
    before = [p.detach().clone() for p in model.parameters()]
    train(twin, plain, data)
    train(model, optimizer, data)
    digital = 0
    for parameter, other, start in zip(model.parameters(), twin.parameters(), before, strict=True):
        if id(parameter) in on_chip:
            assert parameter.grad is None and other.grad is not None
        else:
            torch.testing.assert_close(parameter, other, rtol=0, atol=1e-7)
            digital += not torch.equal(parameter, start)
    assert digital == 4  # biases of two layers, scale and shift of the normalisation
    train(model, optimizer, batches(30))
    for parameter, start in zip(model.parameters(), before, strict=True):
        if id(parameter) in on_chip:
            assert torch.isfinite(parameter).all() and (parameter - start).abs().max() > 0.01


@every_mode
def test_weights_are_what_the_cells_show(mode):
    model, device = network(), presets.reram_om()
    optimizer = optimizer_of(mode, model, device=device)
    train(model, optimizer, batches(5))
    for layer in analog_layers(model).values():
        slow = optimizer.state[layer.weight]["slow"]
        shown = (slow["state"] - slow["reference"] + slow["offset"]) * layer.weight_range
        torch.testing.assert_close(layer.weight.detach().reshape(shown.shape), shown, rtol=1e-6, atol=1e-7)
        assert ((slow["state"] >= slow["lower"]) & (slow["state"] <= slow["upper"])).all()


@every_optimizer
def test_frozen_weights_stay(name):
    model = network()
    optimizer = optimizer_of(name, model, device=presets.ideal(50))
    first, *_, last = analog_layers(model).values()
    first.weight.requires_grad_(False)
    before = first.weight.clone(), last.weight.detach().clone()
    train(model, optimizer, batches(12))
    assert torch.equal(first.weight, before[0]) and not torch.equal(last.weight, before[1])


@every_optimizer
def test_layers_left_out_and_copies_train_digitally(name):
    model = network()
    layers = list(analog_layers(model).values())
    optimizer = OPTIMIZERS[name](layers[-1].parameters(), lr=0.05, device=presets.ideal(), seed=0)
    twin = copy.deepcopy(model)
    F.cross_entropy(model(batches(1)[0][0]), batches(1)[0][1]).backward()
    assert layers[0].weight.grad is not None and layers[-1].weight.grad is None
    F.cross_entropy(twin(batches(1)[0][0]), batches(1)[0][1]).backward()
    assert all(layer.weight.grad is not None for layer in analog_layers(twin).values())
    assert len(optimizer.samples[layers[-1].weight].batches) == 1


@every_optimizer
def test_layers_train_digitally_when_the_optimizer_is_gone(name):
    model = network()
    optimizer = optimizer_of(name, model)
    train(model, optimizer, batches(2))
    del optimizer
    gc.collect()
    F.cross_entropy(model(batches(1)[0][0]), batches(1)[0][1]).backward()
    assert all(layer.weight.grad is not None for layer in analog_layers(model).values())


def test_a_group_that_comes_later_trains_too():
    model = network()
    first, *_, last = analog_layers(model).values()
    optimizer = PulsedSGD(first.parameters(), lr=0.05, device=presets.ideal(50), seed=0)
    optimizer.fuse = False
    optimizer.add_param_group({"params": list(last.parameters()), "lr": 0.0})
    before = first.weight.detach().clone(), last.weight.detach().clone()
    train(model, optimizer, batches(3))
    assert not torch.equal(first.weight, before[0])
    torch.testing.assert_close(last.weight, before[1], atol=1e-6, rtol=1e-5)  # its own lr: programmed, not trained
    optimizer.param_groups[1]["lr"] = 0.5
    train(model, optimizer, batches(3))
    assert (last.weight - before[1]).abs().max() > 0.01


# Steps.


def linear(outputs=3, inputs=4, seed=0, **hardware):
    torch.manual_seed(seed)
    return convert(
        nn.Linear(inputs, outputs), Hardware(computation=Noiseless(), weights=WeightFormat(bits=None)), seed=0
    )


@every_mode
def test_two_backward_passes_and_one_step_are_two_steps_of_the_same_samples(mode):
    samples = [(torch.randn(6, 4), torch.randn(6, 3)) for _ in range(8)]
    states = []
    for together in (1, 2):
        model = linear()
        optimizer = optimizer_of(mode, model)
        for number, (x, d) in enumerate(samples):
            model(x).backward(0.1 * d)  # x and d do not depend on the weights
            if (number + 1) % together == 0:
                optimizer.step()
        states.append(tensors(optimizer.state[model.weight]) | {"weight": model.weight.detach()})
        assert optimizer.state[model.weight]["samples"] == 48
    assert_equal(*states)


@every_optimizer
def test_zero_grad_forgets_samples(name):
    model = linear()
    optimizer = optimizer_of(name, model)
    model(torch.randn(6, 4)).sum().backward()
    optimizer.zero_grad()
    before = model.weight.detach().clone()
    optimizer.step()
    assert torch.equal(model.weight, before) and not optimizer.state[model.weight]


@every_optimizer
def test_a_step_uses_its_samples_once(name):
    model = linear()
    optimizer = optimizer_of(name, model)
    model(torch.randn(6, 4)).sum().backward()
    optimizer.step()
    before = model.weight.detach().clone()
    optimizer.step()
    assert torch.equal(model.weight, before) and optimizer.state[model.weight]["steps"] == 1


@every_optimizer
def test_a_closure_is_called_once_with_gradients(name):
    model, calls = linear(), []
    optimizer = optimizer_of(name, model)

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(6, 4)).square().sum()
        loss.backward()
        calls.append(float(loss.detach()))
        return loss

    assert float(optimizer.step(closure).detach()) == calls[0] and len(calls) == 1
    assert optimizer.state[model.weight]["samples"] == 6


@every_mode
def test_a_seed_makes_a_run(mode):
    runs = []
    for seed in (7, 7, 8):
        model = network()
        optimizer = optimizer_of(mode, model, seed=seed)
        torch.manual_seed(len(runs))  # whatever else draws from torch's global generator
        train(model, optimizer, batches(4))
        runs.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_without_a_seed_torchs_own_decides():
    seeds = []
    for start in (1, 1, 2):
        model = linear()
        torch.manual_seed(start)
        seeds.append(PulsedSGD(model.parameters(), lr=0.1, device=presets.ideal()).param_groups[0]["seed"])
    assert seeds[0] == seeds[1] != seeds[2]


@pytest.mark.parametrize("exact", [True, False])
def test_pulses_step_by_lr_times_the_gradient_in_the_mean(exact):
    lr, repeats = 0.04, 600
    x, d = (torch.randn(5, n, generator=torch.Generator().manual_seed(n)) for n in (4, 3))
    moved = []
    model = linear()
    start = model.weight.detach().clone()
    for seed in range(repeats):
        with torch.no_grad():
            model.weight.copy_(start)
        optimizer = optimizer_of("PulsedSGD", model, lr, ConstantStep(dw_min=0.02), seed, exact=exact)
        model(x).backward(d)
        optimizer.step()
        moved.append(model.weight.detach() - start)
    moved = torch.stack(moved).double()
    expected = -lr * (d.T @ x).double()
    assert expected.abs().max() > 4 * model.weight_range * 0.02
    error = moved.std(0) / repeats**0.5
    assert ((moved.mean(0) - expected).abs() < STANDARD_ERRORS * error + 1e-6).all()


# Training.


def blobs(count=400, seed=2):
    """Two classes that a line separates, and their batches of 10."""
    random = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 2, (count,), generator=random)
    x = torch.randn(count, 4, generator=random) * 0.7 + (2 * y - 1).unsqueeze(-1) * torch.tensor([1.0, -0.8, 0.5, 0.0])
    return list(zip(x.split(10), y.split(10), strict=True))


ROOMY = Hardware(
    computation=Noiseless(), weights=WeightFormat(bits=None, range_rms=30), inputs=InputFormat(10, follows=True)
)


def learnt(kind, lr, hardware=IDEAL, epochs=4, **settings):
    """Mean loss of each epoch, and the accuracy at the end."""
    torch.manual_seed(0)
    digital = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    model = digital if kind is torch.optim.SGD else convert(digital, hardware, seed=0)
    optimizer = kind(model.parameters(), lr=lr, **settings)
    optimizer.fuse = False
    data = blobs()
    losses = [sum(train(model, optimizer, data)) / len(data) for _ in range(epochs)]
    accuracy = sum(float((model(x).argmax(-1) == y).sum()) for x, y in data) / 400
    return losses, accuracy


DIRECT, THROUGH_A = (20_000, 0, 0.03), (4_000, 1, 0.05)
"""States; the first epoch that is compared, as A has to fill first; allowed difference in units of the first loss."""
LIKE_SGD = {
    "PulsedSGD exact": (partial(PulsedSGD, exact=True), *DIRECT),
    "PulsedSGD at once": (PulsedSGD, *DIRECT),
    "Hybrid": (Hybrid, *DIRECT),
    "TTv2 exact": (partial(TTv2, exact=True, auto_scale=False, fast_rate=1.0), *THROUGH_A),
    "TTv2 at once": (partial(TTv2, auto_scale=False, fast_rate=1.0), *THROUGH_A),
}


@pytest.mark.parametrize("name", LIKE_SGD)
def test_on_ideal_cells_of_many_states_training_is_as_sgds(name):
    kind, states, first, allowed = LIKE_SGD[name]
    losses, accuracy = learnt(torch.optim.SGD, 0.1)
    found, found_accuracy = learnt(kind, 0.1, ROOMY, device=presets.ideal(states), seed=3)
    assert losses[-1] < 0.25 * losses[0] and accuracy > 0.97
    assert found_accuracy >= accuracy - 0.01
    differences = [abs(a - b) for a, b in zip(found, losses, strict=True)]
    assert max(differences[first:]) < allowed * losses[0], (found, losses)


@every_mode
def test_real_cells_learn(mode):
    rates = {"PulsedSGD": 0.1, "Hybrid": 0.1, "TTv1": 0.1, "TTv2": 0.1, "CTTv2": 0.1, "AGAD": 0.1}
    losses, accuracy = learnt(MODES[mode], rates[mode.split()[0]], device=presets.reram_om(), seed=5)
    assert accuracy > 0.85 and losses[-1] < losses[0], (losses, accuracy)


def test_fluctuation_and_its_coefficient_train_beside_pulses():
    hardware = Hardware(
        fluctuation=Fluctuation(),
        computation=Moments(),
        read=BitSerialRead(),
        rho=2.0,
        weights=WeightFormat(bits=None, range_rms=10),
        inputs=InputFormat(5, follows=True),
    )
    torch.manual_seed(0)
    model = convert(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), hardware, seed=0)
    optimizer = CTTv2(model.parameters(), lr=0.1, device=presets.ideal(1000), seed=3)
    optimizer.fuse = False
    weights = [layer.weight.detach().clone() for layer in analog_layers(model).values()]
    data = blobs()
    losses = [sum(train(model, optimizer, data)) / len(data) for _ in range(5)]
    assert losses[-1] < 0.5 * losses[0]
    for layer, before in zip(analog_layers(model).values(), weights, strict=True):
        assert float(layer.rho.detach()) > 2.0 + 1e-3  # the loss alone wants less fluctuation
        assert (layer.weight - before).abs().max() > 0.05 and layer.weight.grad is None


def test_fluctuation_is_in_the_reads_of_the_fast_array():
    # on cells whose fast array shows ±a only: H is what the fluctuation made of it
    hardware = Hardware(fluctuation=Fluctuation(intensity=5.0), computation=Moments(), weights=WeightFormat(bits=None))
    buffers = []
    for quiet in (False, True):
        model = convert(nn.Linear(4, 3), IDEAL if quiet else hardware, seed=0)
        optimizer = optimizer_of("TTv2", model, 0.1, presets.ideal(1000), threshold=1e6)
        optimizer.column_read = ColumnRead(bits=None)
        for _ in range(8):
            model(torch.ones(2, 4)).backward(torch.ones(2, 3))
            optimizer.step()
        buffers.append(optimizer.state[model.weight]["buffer"])
    assert not torch.allclose(buffers[0], buffers[1], rtol=1e-3)


def test_a_converter_rounds_and_ends():
    read = ColumnRead(bits=3, span=1.5)
    values = torch.tensor([-2.0, -0.6, -0.2, 0.26, 0.7, 9.0])
    seen = read(values, None, torch.tensor(1.0), torch.Generator())
    torch.testing.assert_close(seen, torch.tensor([-1.5, -0.5, 0.0, 0.5, 0.5, 1.5]))
    assert torch.equal(ColumnRead(bits=None)(values, None, torch.tensor(1.0), torch.Generator()), values)
    default = ColumnRead()(torch.tensor([0.3]), None, torch.tensor(1.0), torch.Generator())
    assert float(default) == pytest.approx(round(0.3 * 255 / 2) * 2 / 255)


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_a_columns_read_has_the_fluctuation_of_its_cells_and_the_circuits_noise(noise):
    count, rho, fluctuation = 40_000, torch.tensor(2.0), Fluctuation()
    weights = torch.tensor([0.6, -0.3, 0.05]).expand(count, 3)
    seen = ColumnRead(noise=noise, bits=None)(weights, fluctuation, rho, torch.Generator().manual_seed(0)).double()
    variance = amplitude(weights[0], rho, fluctuation).double().square() + noise**2
    centred = (seen - weights).square()
    assert ((seen.mean(0) - weights[0]).abs() < STANDARD_ERRORS * (variance / count).sqrt()).all()
    error = centred.std(0) / count**0.5 + 1e-6
    assert ((centred.mean(0) - variance).abs() < STANDARD_ERRORS * error).all()


# State.


@every_mode
def test_a_resumed_run_goes_on_bit_for_bit(mode, tmp_path):
    data = batches(10)
    straight = network()
    optimizer = optimizer_of(mode, straight)
    train(straight, optimizer, data)
    first = network()
    half = optimizer_of(mode, first)
    train(first, half, data[:5])
    torch.save({"model": first.state_dict(), "optimizer": half.state_dict()}, tmp_path / "half.pt")
    train(first, half, data[5:])  # what was saved does not share the run's memory
    saved = torch.load(tmp_path / "half.pt", weights_only=True)
    resumed = network(seed=99)
    again = optimizer_of(mode, resumed, seed=99)
    train(resumed, again, batches(2, seed=5))  # whatever it was before
    resumed.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    train(resumed, again, data[5:])
    assert_equal(dict(resumed.named_parameters()), dict(straight.named_parameters()))
    for ours, theirs in zip(resumed.parameters(), straight.parameters(), strict=True):
        assert_equal(tensors(again.state.get(ours, {})), tensors(optimizer.state.get(theirs, {})))
    assert again.activities() == optimizer.activities()


@every_optimizer
def test_a_lightning_checkpoint_goes_on_bit_for_bit(name, fit, tmp_path):
    x, y = zip(*batches(4), strict=True)
    loader = DataLoader(TensorDataset(torch.cat(x), torch.cat(y)), batch_size=8)
    straight, half, resumed = network(), network(), network()
    fit(straight, lambda model: optimizer_of(name, model), loader, 2)
    fit(half, lambda model: optimizer_of(name, model), loader, 1).save_checkpoint(tmp_path / "half.ckpt")
    other = {"ckpt_path": tmp_path / "half.ckpt", "weights_only": True}
    fit(resumed, lambda model: optimizer_of(name, model, seed=99), loader, 2, **other)
    assert_equal(dict(resumed.named_parameters()), dict(straight.named_parameters()))


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode.split()[0] in {"TTv1", "TTv2", "CTTv2", "AGAD"}])
def test_every_array_is_written_pulsed_and_read_as_its_own_cells(mode, monkeypatch):
    slow, fast = (SoftBounds(dw_min=0.02, upper=upper) for upper in (1.0, 2.0))
    used = set()
    for name in ("write_", "train_", "train_aggregated_", "pulse_", "show_"):

        def spied(array, *args, name=name, method=getattr(CellArray, name), **settings):
            (device,) = (given for given in args if isinstance(given, SoftBounds))
            assert (array.cells.upper == device.upper).all()
            used.add((name, device.upper))
            return method(array, *args, **settings)

        monkeypatch.setattr(CellArray, name, spied)
    model = convert(nn.Linear(5, 4), IDEAL, seed=0)
    optimizer = optimizer_of(mode, model, lr=5.0, device=slow, fast_device=fast)
    for _ in range(12):
        model(torch.randn(8, 5)).backward(torch.randn(8, 4))
        optimizer.step()
        optimizer.zero_grad()
    pulsed = "train_" if mode.endswith("exact") else "train_aggregated_"
    moved = "train_" if mode.startswith("TTv1") else "pulse_"
    own = {("write_", 2.0), (pulsed, 2.0), ("show_", 2.0), ("write_", 1.0), (moved, 1.0), ("show_", 1.0)}
    assert used == own


def fast_and_slow(**settings):
    """The state of a weight after a step of CTTv2."""
    torch.manual_seed(0)
    model = convert(nn.Linear(30, 20), IDEAL, seed=0)
    optimizer = optimizer_of("CTTv2 at once", model, **settings)
    model(torch.randn(8, 30)).backward(torch.randn(8, 20))
    optimizer.step()
    return optimizer.state[model.weight]


def test_arrays_may_be_of_different_cells():
    device, skewed = presets.reram_om(), replace(presets.reram_om(), reference_skew=0.5)
    same, other = fast_and_slow(), fast_and_slow(fast_device=skewed)
    assert_equal(tensors(fast_and_slow(fast_device=device)), tensors(same))
    moved = (other["fast"]["reference"] - same["fast"]["reference"]).float()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.5), rtol=0, atol=0.005)  # held in half precision
    assert torch.equal(other["slow"]["reference"], same["slow"]["reference"])


@pytest.mark.parametrize(
    ("fast", "error", "says"),
    [
        (replace(presets.reram_om(), pulse_s=1.0), ValueError, "fast_device has pulses .* of .1.0, "),
        ("reram_om", TypeError, "fast_device is 'reram_om'; allowed: a pulsed device"),
        (
            SoftBoundsReference(reference_skew=1.5),
            ValueError,
            "fast_device SoftBoundsReference has its reference at 1.5",
        ),
    ],
)
def test_other_cells_of_the_fast_array_are_refused_by_name(fast, error, says):
    with pytest.raises(error, match=says):
        optimizer_of("TTv2", network(), fast_device=fast)


def bytes_per_weight(mode):
    torch.manual_seed(0)
    model = convert(nn.Linear(256, 128), IDEAL, seed=0)
    optimizer = optimizer_of(mode, model)
    for _ in range(2):
        model(torch.randn(8, 256)).backward(torch.randn(8, 128))
        optimizer.step()
    state = tensors(optimizer.state[model.weight])
    return sum(t.numel() * t.element_size() for t in state.values()) / model.weight.numel()


BYTES = {"PulsedSGD": 24, "Hybrid": 28, "TTv1": 48, "TTv2": 52, "CTTv2": 52, "AGAD": 56}
"""Arrays of 24 (α↑, α↓, b_max, b_min, g; r and write noise in half), 4 for H, 4 for AGAD's two means, in half."""


@every_mode
def test_states_are_small(mode):
    # a batch at once: two more numbers wait for each cell of the fast array; a few more for each row and column
    name = mode.split()[0]
    waits = mode.endswith("at once") and name != "PulsedSGD"
    expected = BYTES[name] + 8 * waits
    assert expected <= bytes_per_weight(mode) < expected + 0.2
    assert expected <= 64


@every_mode
def test_bfloat16_weights_and_inputs_keep_float32_states(mode):
    torch.manual_seed(0)
    model = convert(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).bfloat16(), IDEAL, seed=0)
    optimizer = optimizer_of(mode, model, device=presets.ideal(50))
    before = model[0].weight.detach().clone()
    for _ in range(20):
        optimizer.zero_grad()
        model(torch.randn(8, 6).bfloat16()).square().sum().backward()
        optimizer.step()
    assert model[0].weight.dtype == torch.bfloat16 and not torch.equal(model[0].weight, before)
    state = optimizer.state[model[0].weight]
    plain = convert(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), IDEAL, seed=0)
    of_floats = optimizer_of(mode, plain, device=presets.ideal(50))
    plain(torch.randn(8, 6)).square().sum().backward()
    of_floats.step()
    types = {key: t.dtype for key, t in tensors(of_floats.state[plain[0].weight]).items()}
    assert {key: t.dtype for key, t in tensors(state).items()} == types
    assert types["slow.state"] == types["slow.up"] == torch.float32
    twin = convert(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).bfloat16(), IDEAL, seed=0)
    again = optimizer_of(mode, twin, device=presets.ideal(50))
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert_equal(tensors(again.state[twin[0].weight]), tensors(state))  # torch would cast them to the weight's type


@every_mode
def test_activities_after_known_steps(mode):
    device = presets.ideal(100)
    model = convert(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), IDEAL, seed=0)
    settings = {"train": PulseTrain(7, managed_length=False)}
    optimizer = optimizer_of(mode, model, device=device, **settings)
    assert optimizer.activities() == []
    for size in (5, 3):
        model(torch.randn(size, 4)).square().sum().backward()
        optimizer.step()
    first, second = optimizer.activities()
    assert (first.layer, first.outputs, first.samples) == (0, 3, 8)
    assert (second.layer, second.outputs, second.samples) == (1, 2, 8)
    assert (first.pulse_s, first.pulse_j) == (device.pulse_s, device.pulse_j)
    state = optimizer.state[model[0].weight]
    assert first.pulses == pytest.approx(sum(float(state[a]["pulses"]) for a in ("fast", "slow") if a in state))
    if not mode.startswith("Hybrid"):
        assert first.slots == second.slots == 7 * 8
        assert first.pulses > 0
    assert first.column_reads == (8 if "TT" in mode or "AGAD" in mode else 0)


@pytest.mark.parametrize("every", [1, 3, 10])
def test_columns_are_read_every_so_many_images(every):
    model = linear()
    optimizer = optimizer_of("TTv2", model, every=every)
    for size in (5, 3, 13):
        model(torch.randn(size, 4)).square().sum().backward()
        optimizer.step()
    assert optimizer.activities()[0].column_reads == 21 // every


# Refusals, in one clear line.


def assert_one_line(error):
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@every_mode
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_inputs_and_errors_that_are_not_finite_name_their_layer(mode, value):
    for spoilt, what in (("x", "inputs x"), ("d", "errors d")):
        model = network()
        optimizer = optimizer_of(mode, model)
        train(model, optimizer, batches(1))
        last = list(analog_layers(model).values())[-1]
        weight = last.weight.detach().clone()
        x, d = torch.randn(2, 16), torch.randn(2, 3)
        (x if spoilt == "x" else d)[1, 2] = value
        last(x).backward(d)
        line = rf"layer 2 \(weight \(3, 16\)\) got {what} that are not finite in step 2"
        with pytest.raises(ValueError, match=line) as error:
            optimizer.step()
        assert_one_line(error)
        assert torch.equal(last.weight, weight)


TIKI_TAKA = [TTv1, TTv2, CTTv2, AGAD]
WITHOUT_SYMMETRY_POINT = {
    "constant": ConstantStep(up_down=0.1),
    "outside": SoftBoundsReference(reference_skew=1.5),
}


@pytest.mark.parametrize("device", WITHOUT_SYMMETRY_POINT.values(), ids=WITHOUT_SYMMETRY_POINT)
@pytest.mark.parametrize("kind", TIKI_TAKA)
def test_tiki_taka_needs_a_symmetry_point(kind, device):
    with pytest.raises(
        ValueError, match=r"symmetry point inside its bounds|reference at .* outside its bounds"
    ) as error:
        kind(linear().parameters(), lr=0.1, device=device)
    assert_one_line(error)
    model = linear()
    PulsedSGD(model.parameters(), lr=0.1, device=device)  # which needs none


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda p, d: TTv2(p, lr=0.1, device=d, threshold=0.0), r"threshold is 0.0; allowed: above 0"),
        (lambda p, d: CTTv2(p, lr=0.1, device=d, threshold=-1.0), r"threshold is -1.0; allowed: above 0"),
        (lambda p, d: AGAD(p, lr=0.1, device=d, threshold=0.0), r"threshold is 0.0; allowed: above 0"),
        (lambda p, d: Hybrid(p, lr=0.1, device=d, threshold=0.0), r"threshold is 0.0; allowed: above 0"),
        (lambda p, d: TTv1(p, lr=0.1, device=d, every=0), r"every is 0; allowed: whole numbers of images"),
        (lambda p, d: TTv2(p, lr=0.1, device=d, fast_rate=0.0), r"fast_rate is 0.0; allowed: above 0"),
        (lambda p, d: CTTv2(p, lr=0.1, device=d, chop_probability=2.0), r"chop_probability is 2.0; allowed: 0 to 1"),
    ],
)
def test_settings_are_refused(make, line):
    with pytest.raises(ValueError, match=line) as error:
        make(linear().parameters(), presets.reram_om())
    assert_one_line(error)


@every_optimizer
@pytest.mark.parametrize("lr", [-0.1, math.nan, math.inf])
def test_a_learning_rate_is_0_or_more(name, lr):
    with pytest.raises(ValueError, match=rf"lr is {lr}; allowed: 0 or more") as error:
        OPTIMIZERS[name](linear().parameters(), lr=lr, device=presets.reram_om())
    assert_one_line(error)


@every_optimizer
def test_an_analog_weight_is_needed(name):
    with pytest.raises(ValueError, match="none of the parameters is the weight of an analog layer: convert") as error:
        OPTIMIZERS[name](nn.Linear(4, 3).parameters(), lr=0.1, device=presets.reram_om())
    assert_one_line(error)


@every_optimizer
def test_a_run_is_resumed_on_the_same_device_with_the_same_settings(name):
    model = linear()
    optimizer = optimizer_of(name, model)
    train(model, optimizer, [(torch.randn(5, 4), torch.randint(0, 3, (5,)))])
    saved = optimizer.state_dict()
    with pytest.raises(ValueError, match=r"the checkpoint's device is SoftBoundsReference\(dw_min=0.0949") as error:
        optimizer_of(name, linear(), device=presets.reram_hfo2()).load_state_dict(saved)
    assert "\n" not in str(error.value)
    others = {"threshold": 3.0} if name == "Hybrid" else {"exact": True}
    with pytest.raises(ValueError, match=r"the checkpoint's settings is|the checkpoint's settings are") as error:
        optimizer_of(name, linear(), **others).load_state_dict(saved)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="the checkpoint's device is None"):
        optimizer_of(name, linear()).load_state_dict(torch.optim.SGD(linear().parameters(), lr=0.1).state_dict())


@every_mode
def test_no_signal_moves_nothing(mode):
    model = linear()
    optimizer = optimizer_of(mode, model, device=SoftBounds(dw_min=0.01))
    model(torch.randn(5, 4)).backward(torch.zeros(5, 3))
    optimizer.step()
    before = model.weight.detach().clone()
    for x, d in ((0.0, 1.0), (1.0, 0.0), (0.0, 0.0)):
        model(torch.full((5, 4), x)).backward(torch.full((5, 3), d))
        optimizer.step()
    torch.testing.assert_close(model.weight.detach(), before, rtol=0, atol=1e-7)
    assert all(not t.isnan().any() for t in tensors(optimizer.state[model.weight]).values())


def test_a_network_in_channels_last_trains():
    torch.manual_seed(0)
    model = convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2)), IDEAL, seed=0)
    model = model.to(memory_format=torch.channels_last)
    optimizer = CTTv2(model.parameters(), lr=1.0, device=presets.ideal(20), seed=1)
    before = model[0].weight.detach().clone()
    for _ in range(40):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 8, 8)).square().sum().backward()
        optimizer.step()
    assert not torch.equal(model[0].weight, before)
    slow = optimizer.state[model[0].weight]["slow"]
    shown = (slow["state"] - slow["reference"]) * model[0].weight_range
    torch.testing.assert_close(model[0].weight.reshape(1, 4, 27), shown)


def test_gradients_of_inputs_alone_leave_no_samples():
    model = convert(nn.Linear(3, 2), IDEAL, seed=0)
    optimizer = PulsedSGD(model.parameters(), lr=0.1, device=presets.ideal())
    x = torch.randn(4, 3, requires_grad=True)
    torch.autograd.grad(model(x).sum(), x)
    assert not optimizer.samples[model.weight].batches
    model(x).sum().backward()
    assert len(optimizer.samples[model.weight].batches) == 1


def test_what_would_train_something_else_is_refused_in_one_line():
    digital, empty = nn.Linear(3, 2), nn.Linear(3, 2)
    nn.init.zeros_(empty.weight)
    rounded, empty, model = convert(nn.Linear(3, 2)), convert(empty, IDEAL), convert(digital, IDEAL, seed=0)
    with pytest.raises(ValueError, match=r"layer 0 .* rounded, but pulses") as error:
        CTTv2(rounded.parameters(), lr=0.1, device=presets.ideal())
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"layer 0 .* are all 0"):
        CTTv2(empty.parameters(), lr=0.1, device=presets.ideal())
    with pytest.raises(TypeError, match="device is None; allowed: a pulsed device"):
        PulsedSGD(model.parameters(), lr=0.1, device=None)
    with pytest.raises(ValueError, match="chop_probability is 0"):
        AGAD(model.parameters(), lr=0.1, device=presets.ideal(), chop_probability=0)
    optimizer = PulsedSGD(model.parameters(), lr=0.1, device=presets.ideal(), seed=0)
    to_digital(model)(torch.randn(4, 3)).sum().backward()
    with pytest.raises(ValueError, match="not the digital one that shares its weights"):
        optimizer.step()
    optimizer.zero_grad()
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    model.weight_range *= 2
    model(torch.randn(4, 3)).sum().backward()
    with pytest.raises(ValueError, match="layer 0 has the range"):
        optimizer.step()


def test_scaled_losses_are_refused():
    model = convert(nn.Linear(3, 2), IDEAL, seed=0)
    optimizer = PulsedSGD(model.parameters(), lr=0.1, device=presets.ideal(), seed=0)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(torch.randn(4, 3)).sum()).backward()
    with pytest.raises(ValueError, match="the loss is scaled"):
        scaler.step(optimizer)


# Arrays of several groups, and arrays that go on.


def grouped(kernel=1, groups=3):
    torch.manual_seed(0)
    return convert(nn.Conv2d(4 * groups, 2 * groups, kernel, groups=groups, bias=False), IDEAL, seed=0)


@pytest.mark.parametrize("kernel", [1, 2])
@pytest.mark.parametrize("mode", [f"{name} {how}" for name in ("TTv1", "TTv2", "CTTv2", "AGAD") for how in HOW])
def test_the_scale_of_an_array_is_its_own(mode, kernel):
    found, random = [], torch.Generator().manual_seed(1)
    data = [(torch.randn(5, 12, 3, 3, generator=random), torch.randn(5, 6, 4 - kernel, 4 - kernel)) for _ in range(12)]
    for factor in (1.0, 100.0):
        model = grouped(kernel)
        optimizer = optimizer_of(mode, model, lr=0.5, device=presets.ideal(100), train=PulseTrain(managed_length=False))
        x_scale, d_scale = (torch.tensor([1.0, factor, 0.01 * factor]).repeat_interleave(n) for n in (4, 2))
        for x, d in data:
            model(x * x_scale.view(-1, 1, 1)).backward(0.1 * d * d_scale.view(-1, 1, 1))
            optimizer.step()
        found.append(optimizer.state[model.weight])
    plain, scaled = found
    for name, factors in (("x_scale", (1, 100, 100)), ("d_scale", (1, 100, 100))):
        assert plain[name].shape == (3,)
        torch.testing.assert_close(scaled[name], plain[name] * torch.tensor(factors), rtol=1e-5, atol=0)
    for array in ("fast", "slow"):
        assert (plain[array]["state"][0] != 0).any()
        torch.testing.assert_close(scaled[array]["state"], plain[array]["state"], rtol=1e-3, atol=1e-4)
    x, d = data[0]
    first = x[:, :4].unfold(2, kernel, 1).unfold(3, kernel, 1).abs().amax((1, 4, 5)).mean()
    model = grouped(kernel)
    optimizer = optimizer_of(mode, model)
    model(x).backward(d)
    optimizer.step()
    state = optimizer.state[model.weight]
    assert float(state["x_scale"][0]) == pytest.approx(float(first), rel=1e-5)
    assert float(state["d_scale"][0]) == pytest.approx(float(d[:, :2].abs().amax(1).mean()), rel=1e-5)


@pytest.mark.parametrize("name", ["PulsedSGD", "TTv2"])
def test_a_layer_without_groups_has_one_scale(name):
    model = linear()
    optimizer = optimizer_of(name, model)
    model(torch.ones(6, 4)).backward(torch.full((6, 3), 0.5))
    optimizer.step()
    state = optimizer.state[model.weight]
    if name == "TTv2":
        assert (state["x_scale"].tolist(), state["d_scale"].tolist()) == ([1.0], [0.5])


def follow(first, then, seed=8, lr=0.0, steps=1):
    """A layer trained by one optimizer, then, on the same arrays, by another; its cells in between and state after."""
    model = linear()
    before = optimizer_of(first, model)
    for _ in range(5):
        model(torch.ones(6, 4)).backward(torch.full((6, 3), 0.2))
        before.step()
    cells, shown = copy.deepcopy(before.cells()), model.weight.detach().clone()
    after = optimizer_of(then, model, lr=lr, seed=seed)
    after.go_on_with(before.cells())
    for _ in range(steps):
        model(torch.ones(6, 4)).backward(torch.full((6, 3), 0.2))
        after.step()
    return cells, after, model, shown, before


@every_optimizer
@pytest.mark.parametrize("first", OPTIMIZERS)
def test_training_goes_on_with_the_arrays_of_another(first, name):
    cells, optimizer, model, shown, _ = follow(first, name)
    assert torch.equal(model.weight, shown)
    state = optimizer.state[model.weight]
    goes_on = first == name and "fast" in state
    for array in ("slow", "fast") if goes_on else ("slow",):
        ours, theirs = dict(state[array]), dict(cells[0][array])
        moved = float(theirs.pop("pulses")) > 0
        assert moved != (first == "AGAD" and array == "slow")  # which waits for a reference first
        assert float(ours.pop("pulses")) == 0
        assert_equal(ours, theirs)
    if goes_on:
        own = {part: cells[0][part] for part in ("chop", "mean", "past")}
        assert_equal({part: state[part] for part in own}, own)
        assert bool((own["chop"] < 0).any()) == (name == "CTTv2")  # so that it is told from a new one's
        assert bool(own["mean"].any()) == (name == "AGAD")
    elif "fast" in state:
        assert (state["chop"] == 1).all() and not state["mean"].any() and not state["past"].any()
        for array in {"slow", "fast"} & set(cells[0]):
            assert not torch.equal(state["fast"]["up"], cells[0][array]["up"])
    assert optimizer.activities()[0].pulses == optimizer.activities()[0].column_reads == 0
    assert optimizer.activities()[0].samples == 6


def test_arrays_that_went_on_do_not_change_those_they_come_from():
    cells, optimizer, model, shown, before = follow("TTv2", "TTv2", lr=0.5, steps=20)
    assert not torch.equal(model.weight, shown)
    assert_equal(tensors(before.cells()[0]), tensors(cells[0]))
    assert optimizer.activities()[0].pulses > 0


def test_arrays_that_do_not_fit_are_refused_in_one_line():
    cells, *_ = follow("PulsedSGD", "PulsedSGD")
    optimizer = optimizer_of("TTv2", linear(), device=presets.reram_hfo2())
    with pytest.raises(
        ValueError, match=r"of layer 0 are of SoftBoundsReference\(dw_min=0.0949.* is .*0.4622"
    ) as error:
        optimizer.go_on_with(cells)
    assert "\n" not in str(error.value)
    wider, rescaled = linear(outputs=5), linear()
    wider.weight_range = cells[0]["range"]
    rescaled.weight_range *= 2
    for model in (wider, rescaled):
        optimizer = optimizer_of("PulsedSGD", model)
        optimizer.go_on_with(cells)
        model(torch.ones(6, 4)).sum().backward()
        with pytest.raises(ValueError, match="layer 0 has another shape or range than its arrays were") as error:
            optimizer.step()
        assert_one_line(error)


def test_a_checkpoint_wins_over_arrays_that_go_on():
    cells, optimizer, model, *_ = follow("TTv2", "TTv2", lr=0.1, steps=3)
    saved = copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    again = linear()
    resumed = optimizer_of("TTv2", again, lr=0.1, seed=99)
    resumed.go_on_with(cells)
    again.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    for one, other in ((model, optimizer), (again, resumed)):
        one(torch.ones(6, 4)).backward(torch.full((6, 3), 0.3))
        other.step()
    assert torch.equal(again.weight, model.weight)
    assert_equal(tensors(resumed.state[again.weight]), tensors(optimizer.state[model.weight]))
