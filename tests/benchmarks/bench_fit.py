"""Whether `energytl device fit` finds devices that are known, how sure it is, and how long it takes.

    python tests/benchmarks/bench_fit.py [SETS]

First measurements of a few kinds, then SETS (default: 50) random devices. `covered` is the share of fields whose true
value lies within the stated 95 % interval; of 50 devices with eight fields each, 90 to 99 % are to be expected.
"""

import math
import sys
import time

import numpy as np
import torch

from energytl.devices.fit import DeviceFit, fit
from energytl.devices.measured import Measured

FIELDS = (
    *("dw_min", "dw_min_spread", "up_down", "up_down_spread"),
    *("cycle_noise", "write_noise", "upper_spread", "lower_spread", "zero", "one"),
)
ZERO, HALF = 34.0, 26.0


def measure(truth, cells, runs, seed, proportional=False):
    """Simulated cells, independent of the package's own; runs are numbers of pulses, up first, then down, …"""
    rng = np.random.default_rng(seed)
    gain = (
        np.exp(truth["dw_min_spread"] * rng.normal(size=cells))
        if truth["log_normal"]
        else 1 + truth["dw_min_spread"] * rng.normal(size=cells)
    )
    skew = truth["up_down"] + truth["up_down_spread"] * rng.normal(size=cells)
    up, down = (np.abs(truth["dw_min"] * (gain + sign * skew)) for sign in (1, -1))
    upper, lower = (np.abs(1 + truth[f"{end}_spread"] * rng.normal(size=cells)) for end in ("upper", "lower"))
    state, shown, directions = -lower + 0.02, [], []
    for number, count in enumerate(runs):
        sign = 1 - 2 * (number % 2)
        step, bound = (up, upper) if sign > 0 else (down, lower)
        for _ in range(count):
            move = step * (1 - sign * state / bound)
            noise = truth["cycle_noise"] * rng.normal(size=cells) * (move if proportional else step)
            state = np.clip(state + sign * move + noise, -lower, upper)
            shown.append(state + truth["write_noise"] * truth["dw_min"] * rng.normal(size=cells))
            directions.append(np.full(cells, float(sign)))
    names = tuple(f"D{cell:02d}" for cell in range(cells))
    return Measured(names, torch.tensor(ZERO + HALF * np.array(shown)), torch.tensor(np.array(directions)))


def device(dw_min=0.02, read=0.01, **changes):
    """True values; read: read noise in units of half the range."""
    truth = {"dw_min": dw_min, "dw_min_spread": 0.2, "log_normal": False, "up_down": 0.09, "up_down_spread": 0.05}
    truth |= {"cycle_noise": 0.3, "write_noise": read / dw_min, "upper_spread": 0.1, "lower_spread": 0.1}
    return truth | {"zero": ZERO, "one": ZERO + HALF} | changes


KINDS = {
    "step 0.02, read 1 %": (device(), 6, (200, 200)),
    "no cycle noise": (device(cycle_noise=0.0), 6, (200, 200)),
    "80 pulses a run": (device(), 6, (80, 80)),
    "step 0.04, read 1 %": (device(0.04), 10, (100, 100)),
    "step 0.04, read 3 %": (device(0.04, 0.03), 10, (100, 100)),
    "read 5 %": (device(read=0.05), 6, (200, 200)),
    "nearly noise-free": (device(read=0.0004, cycle_noise=0.01, dw_min_spread=0.02), 6, (200, 200)),
    "no read noise": (device(read=0.0), 6, (200, 200)),
    "no noise at all": (device(read=0.0, cycle_noise=0.0), 6, (200, 200)),
    "four cycles of 50": (device(), 6, (50,) * 8),
    "noise of the step taken": (device(), 6, (200, 200), True),
    "the same, four cycles": (device(), 6, (50,) * 8, True),
    "coarse, 100 cells": (device(0.4, 0.2, log_normal=True, dw_min_spread=0.6, upper_spread=0.4), 100, (25, 25)),
}


def drawn(seed):
    """A random device and protocol."""
    rng = np.random.default_rng(1000 + seed)
    step = math.exp(rng.uniform(math.log(0.01), math.log(0.2)))
    truth = device(
        step,
        math.exp(rng.uniform(math.log(0.002), math.log(0.05))),
        log_normal=bool(rng.integers(2)),
        dw_min_spread=rng.uniform(0.02, 0.3),
        up_down=rng.uniform(-0.3, 0.3),
        up_down_spread=rng.uniform(0.01, 0.1),
        cycle_noise=math.exp(rng.uniform(math.log(0.05), math.log(1.0))),
        upper_spread=rng.uniform(0.02, 0.2),
        lower_spread=rng.uniform(0.02, 0.2),
    )
    run = int(rng.uniform(1.5, 4) / step) + 10
    return truth, int(rng.integers(5, 25)), (run, run) * int(rng.integers(1, 3))


def value(found: DeviceFit, name: str) -> float:
    """Of a field, or the conductance of a state."""
    of_states = {"zero": found.zero, "one": found.zero + found.half_range}
    return of_states[name] if name in of_states else getattr(found.device, name)


def main(sets: int) -> None:
    """Print the tables."""
    print(f"{'':24}{'s':>6}{'steps':>6} " + "".join(f"{name:>27}" for name in FIELDS))
    for name, (truth, cells, runs, *proportional) in KINDS.items():
        began = time.perf_counter()
        found = fit(measure(truth, cells, runs, 1, *proportional))
        row = f"{name:24}{time.perf_counter() - began:6.1f}{found.steps:6}{'' if found.converged else '!'} "
        for field in FIELDS:
            low, high = found.intervals[field]
            mark = " " if low <= truth[field] <= high else "*"
            row += f"{truth[field]:9.3g}:{value(found, field):.3g} ({low:.3g}, {high:.3g}){mark}".rjust(27)
        print(row, flush=True)
    inside, seconds, converged = {name: [] for name in FIELDS}, [], 0
    for seed in range(sets):
        truth, cells, runs = drawn(seed)
        began = time.perf_counter()
        found = fit(measure(truth, cells, runs, seed))
        seconds.append(time.perf_counter() - began)
        converged += found.converged
        for name in FIELDS:
            low, high = found.intervals[name]
            inside[name].append(low <= truth[name] <= high)
    print(
        f"\n{sets} random devices: {converged} converged; {np.median(seconds):.1f} s each, at most {max(seconds):.1f} s"
    )
    print("covered: " + ", ".join(f"{name} {np.mean(hits):.0%}" for name, hits in inside.items()))
    print(f"all fields: {np.mean(list(inside.values())):.1%}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50)
