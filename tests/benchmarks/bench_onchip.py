"""What training on chip costs in simulation: a training step, as a multiple of plain torch's on one thread.

    pytest tests/benchmarks/bench_onchip.py -o python_files='bench_*.py'

Networks, batches and settings as in the published comparison with aihwkit: presets with auto scale and trains of up to
31 slots; and few pulses, with λ_A = 0.01 and no auto scale. Reads are noiseless, weights continuous, inputs 8-bit; the
images of the fully connected network are MNIST digits. Every round runs all candidates in a new order.
"""

import copy
import random
import statistics

import pytest
import torch
from bench_speed import machine, seconds, small_cnn
from torch import nn
from torch.nn import functional as F

from energytl import Hardware, InputFormat, Noiseless, WeightFormat, convert
from energytl.data import Digits
from energytl.devices import presets
from energytl.optim import CTTv2, PulsedSGD

ROUNDS = 60
HARDWARE = Hardware(weights=WeightFormat(None), inputs=InputFormat(8), computation=Noiseless())
OPTIMIZERS = {
    "c-TTv2 preset": lambda p: CTTv2(p, lr=0.1, device=presets.reram_soft_bounds(), fast_rate=0.5, seed=1),
    "c-TTv2 preset, exact": lambda p: CTTv2(
        p, lr=0.1, device=presets.reram_soft_bounds(), fast_rate=0.5, exact=True, seed=1
    ),
    "c-TTv2 few pulses": lambda p: CTTv2(
        p, lr=0.1, device=presets.ideal(), fast_rate=0.01, auto_scale=False, every=10, seed=1
    ),
    "pulsed SGD": lambda p: PulsedSGD(p, lr=0.1, device=presets.reram_soft_bounds(), seed=1),
}
PUBLISHED = {  # aihwkit 1.2's multiples of plain torch, measured on the same kind of machine
    "mlp-10": {"c-TTv2 preset": 182, "c-TTv2 few pulses": 4.6},
    "mlp-64": {"c-TTv2 preset": 331, "c-TTv2 few pulses": 7.5},
    "cnn-32": {"c-TTv2 preset": 279, "c-TTv2 few pulses": 12.7},
}


def mlp():
    return nn.Sequential(
        nn.Flatten(),
        *(nn.Linear(784, 256), nn.Sigmoid()),
        *(nn.Linear(256, 128), nn.Sigmoid()),
        nn.Linear(128, 10),
    )


def digits(batch):
    data = Digits(batch_size=batch)
    data.setup("fit")
    return next(iter(data.train_dataloader()))


def colours(batch):
    return torch.rand(batch, 3, 32, 32), torch.randint(10, (batch,))


class Step:
    """One training step on one batch."""

    def __init__(self, network, make, batch):
        self.network, (self.images, self.labels) = network, batch
        self.optimizer = make(network.parameters())

    def __call__(self):
        self.optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(self.network(self.images), self.labels).backward()
        self.optimizer.step()


def state_bytes(step):
    """Bytes of the optimizer's tensors for each weight that trains on chip."""

    def size(value):
        if isinstance(value, dict):
            return sum(size(part) for part in value.values())
        return value.numel() * value.element_size() if isinstance(value, torch.Tensor) else 0

    states = step.optimizer.state
    return sum(size(state) for state in states.values()) / max(1, sum(weight.numel() for weight in states))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("make", "images", "size"),
    [(mlp, digits, 10), (mlp, digits, 64), (small_cnn, colours, 32)],
    ids=["mlp-10", "mlp-64", "cnn-32"],
)
@pytest.mark.benchmark(group="on-chip training step")
def test_onchip_step(make, images, size, benchmark, capsys, request):
    torch.manual_seed(0)
    digital, batch = make(), images(size)
    steps = {"plain torch": Step(copy.deepcopy(digital), lambda p: torch.optim.SGD(p, lr=0.1), batch)}
    for name, optimizer in OPTIMIZERS.items():
        steps[name] = Step(convert(copy.deepcopy(digital), HARDWARE, seed=0), optimizer, batch)
    for step in steps.values():
        for _ in range(3):
            seconds(step)  # allocations, compilation, cells
    times, order = {name: [] for name in steps}, random.Random(0)
    others = [name for name in steps if name != "plain torch"]

    def run_others():
        for name in order.sample(others, len(others)):
            seconds(steps[name])  # what others left in the caches
            times[name].append(seconds(steps[name]))
        seconds(steps["plain torch"])

    benchmark.pedantic(steps["plain torch"], setup=run_others, rounds=ROUNDS)
    plain = benchmark.stats.stats.median
    published = PUBLISHED[request.node.callspec.id]
    rows = [f"\n{request.node.callspec.id} ({machine()})", f"{'plain torch':24}{1e3 * plain:8.2f} ms"]
    for name in others:
        median, known = statistics.median(times[name]), published.get(name)
        aihwkit = f"   (aihwkit {known}x)" if known else ""
        bytes_each = state_bytes(steps[name])
        rows.append(f"{name:24}{1e3 * median:8.2f} ms{median / plain:8.1f}x{bytes_each:7.0f} bytes/weight{aihwkit}")
        benchmark.extra_info[name] = {"median_s": median, "to_torch": median / plain, "bytes": bytes_each}
    benchmark.extra_info["machine"] = machine()
    with capsys.disabled():
        print("\n".join(rows))
