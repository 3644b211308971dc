"""What the fluctuation costs: a training step and a conversion, with torch's own layers as the baseline.

    pytest tests/benchmarks/bench_speed.py -o python_files='bench_*.py'

Every round runs all candidates, one after the other in a new order, so that they meet the same machine. The benchmark
itself times single reads; the others' medians and their ratios to torch are printed and stand in its extra_info.
"""

import copy
import platform
import random
import statistics
import time

import pytest
import torch
import torchvision
from torch import nn

import energytl
from energytl import BitSerialRead, Hardware, Moments, Noiseless, SingleRead, convert

ROUNDS = 15
HARDWARE = {
    "noiseless": Hardware(computation=Noiseless()),
    "single": Hardware(computation=Moments(), read=SingleRead()),
    "bit-serial": Hardware(computation=Moments(), read=BitSerialRead()),
}


def resnet20():
    from energytl import models

    return models.resnet20()


def small_cnn():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 8 * 8, 10),
    )


class TrainingStep:
    """One step of stochastic gradient descent on one batch."""

    def __init__(self, network, images, labels):
        self.network, self.images, self.labels = network.train(), images, labels
        self.optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)

    def __call__(self):
        self.optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(self.network(self.images), self.labels).backward()
        self.optimizer.step()


def candidates(digital, batch):
    torch.manual_seed(0)
    images, labels = torch.rand(batch, 3, 32, 32), torch.randint(10, (batch,))
    last = torch.channels_last
    steps = {
        "torch": TrainingStep(copy.deepcopy(digital), images, labels),
        "torch, channels last": TrainingStep(
            copy.deepcopy(digital).to(memory_format=last), images.contiguous(memory_format=last), labels
        ),
    }
    for name, hardware in HARDWARE.items():
        steps[name] = TrainingStep(convert(copy.deepcopy(digital), hardware, seed=0), images, labels)
    return steps


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def machine():
    return (
        f"energytl {energytl.__version__}, torch {torch.__version__}, torchvision {torchvision.__version__}, "
        f"Python {platform.python_version()}, {platform.machine()}, {torch.get_num_threads()} threads"
    )


def report(capsys, benchmark, title, medians):
    """Print the medians and their ratios to both baselines; keep them in the benchmark's extra_info."""
    rows = [f"\n{title} ({machine()})", f"{'':22}{'median':>10}{'/ torch':>10}{'/ channels last':>18}"]
    for name, median in medians.items():
        ratios = median / medians["torch"], median / medians["torch, channels last"]
        rows.append(f"{name:22}{1e3 * median:8.1f}ms{ratios[0]:10.2f}{ratios[1]:18.2f}")
        benchmark.extra_info[name] = {"median_s": median, "to_torch": ratios[0], "to_channels_last": ratios[1]}
    rows.append(f"{'bit-serial / single':22}{medians['bit-serial'] / medians['single']:10.2f}")
    benchmark.extra_info["bit-serial to single"] = medians["bit-serial"] / medians["single"]
    benchmark.extra_info["machine"] = machine()
    with capsys.disabled():
        print("\n".join(rows))


@pytest.mark.parametrize(("make", "batch"), [(resnet20, 128), (small_cnn, 32)], ids=["resnet20-128", "small-cnn-32"])
@pytest.mark.benchmark(group="training step")
def test_training_step(make, batch, benchmark, capsys):
    steps, order = candidates(make(), batch), random.Random(0)
    others = [name for name in steps if name != "single"]
    times = {name: [] for name in others}
    for step in steps.values():
        seconds(step)  # allocations and the choice of kernels

    def run_others():
        for name in order.sample(others, len(others)):
            times[name].append(seconds(steps[name]))

    benchmark.pedantic(steps["single"], setup=run_others, rounds=ROUNDS)
    measured = {name: statistics.median(times[name]) for name in others}
    measured["single"] = benchmark.stats.stats.median
    report(capsys, benchmark, f"{make.__name__}, batch {batch}", {name: measured[name] for name in steps})


@pytest.mark.benchmark(group="conversion")
def test_conversion(benchmark):
    network = torchvision.models.resnet18()
    benchmark.extra_info["machine"] = machine()
    benchmark.pedantic(convert, args=(network,), rounds=ROUNDS, warmup_rounds=1)
