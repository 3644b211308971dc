"""Statistics, a setting of torch and the data sets that the tests of several folders share."""

import os
import runpy
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # tests beside others, and the programs that they start, have one thread each
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from scipy import stats
from torch import Tensor

STANDARD_ERRORS = 5  # a correct program fails one comparison in two million


def _assert_within_errors(actual: Tensor, expected: Tensor, error: Tensor, what: str):
    worst = ((actual - expected).abs() / error).max()
    assert worst <= STANDARD_ERRORS, f"{what} is {float(worst):.1f} standard errors away"  # NaN fails too


@pytest.fixture(scope="session")
def assert_moments():
    """check(samples, mean, covariance): n samples of M numbers, (n, M), have these moments, (M,) and (M, M)."""

    def check(samples: Tensor, mean: Tensor, covariance: Tensor):
        count, centred = len(samples), samples.double() - mean
        _assert_within_errors(centred.mean(0), torch.zeros_like(mean), (covariance.diagonal() / count).sqrt(), "mean")
        found = centred.T @ centred / count
        error = ((centred.square().T @ centred.square() / count - found.square()) / count).sqrt()
        _assert_within_errors(found, covariance, error, "covariance")

    return check


@pytest.fixture(scope="session")
def assert_third_moment():
    """check(samples, third): n samples of M numbers, (n, M), have these third central moments, (M,).

    The variance of a third moment of n samples is (μ6 − μ3² − 6·μ4·μ2 + 9·μ2³)/n (Kendall and Stuart, eq. 10.8).
    """

    def check(samples: Tensor, third: Tensor):
        centred = samples.double() - samples.double().mean(0)
        m2, m3, m4, m6 = (centred.pow(order).mean(0) for order in (2, 3, 4, 6))
        error = ((m6 - m3.square() - 6 * m4 * m2 + 9 * m2.pow(3)) / len(samples)).sqrt()
        _assert_within_errors(m3, third, error, "third moment")

    return check


@pytest.fixture(scope="session")
def assert_same_distribution():
    """check(first, second): each of M numbers, (n, M) and (m, M), is distributed alike (Kolmogorov–Smirnov).

    A correct program fails one of a million comparisons; there are about a thousand.
    """

    def check(first: Tensor, second: Tensor):
        smallest = min(stats.ks_2samp(a, b).pvalue for a, b in zip(first.T.numpy(), second.T.numpy(), strict=True))
        assert smallest > 1e-6

    return check


@pytest.fixture(scope="module")
def one_thread():
    """For thousands of operations on a few numbers: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def synthetic():
    """synthetic(points, **changes): a finished case's result without a run; points as (drop, energy, reached)."""

    def point(drop: float | None, energy: float, reached: bool | None, total_j: float) -> dict:
        accuracies = {"accuracy_median": 0.9, "accuracy_q25": 0.89, "accuracy_q75": 0.91, "accuracy_quantised": 0.92}
        drops = {"accuracy_drop": 0.031, "accuracy_drop_low": 0.021, "accuracy_drop_high": 0.041}
        energies = {"energy_paper": energy, "energy_cell_j": energy * 1e-15, "energy_total_j": total_j}
        asked = {"drop": drop, "found": reached, "drop_held_out": drop, "reached": reached, "rho_factor": 1.0}
        asked |= {"energy_weight": 0.5}
        return asked | accuracies | drops | energies

    def layer(name: str, groups: int, total_j: float) -> dict:
        parts = {"energy_converter_j": 0.4 * total_j, "energy_row_driver_j": 0.3 * total_j}
        parts |= {"energy_cell_j": 0.2 * total_j, "energy_shift_add_j": 0.1 * total_j, "energy_total_j": total_j}
        return {"name": name, "groups": groups, "cells": 10, "latency_s": 1e-6, "rho": 2.0, "energy_paper": 5.0} | parts

    def made(points: list[tuple], total_j: float = 1e-9, groups: tuple[int, ...] = (1, 1), **changes: object) -> dict:
        several = [point(*(*asked, None)[:3], total_j) for asked in points]
        result = {"case": "a", "order": 0, "cells": 6272, "reads": 2, "latency_s": 1e-6, "accuracy_digital": 0.93}
        result |= {"accuracies_chips": [], "not_modelled": ["wires"], "history": [{"epoch": 1.0, "rho": 2.0}]}
        result |= {"seed": 0, "seconds": 30.0, "finished": "2026-01-02T03:04:05+00:00", "versions": {"torch": "2.9"}}
        result |= {"layers": [layer(f"layer{i}", n, (i + 1) * total_j) for i, n in enumerate(groups)]}
        return several[0] | {"points": several, "curves": []} | result | changes

    return made


def pytest_addoption(parser):
    parser.addoption(
        "--data", type=Path, help="folder with MNIST, CIFAR and weights/ (see README); else beside the checkout"
    )


@pytest.fixture(scope="session")
def packed_data(request) -> Path:
    """The folder of packed data sets and weights: --data, or shared/data beside the checkout."""
    folder = request.config.getoption("--data") or Path(__file__).parents[2] / "shared" / "data"
    if not (folder / "unpack.py").is_file():
        pytest.skip(f"no data sets in {folder}: give their folder with --data")
    return folder


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of reference numbers: shared/reference beside the checkout."""
    folder = Path(__file__).parents[2] / "shared" / "reference"
    if not folder.is_dir():
        pytest.skip(f"no reference numbers in {folder}")
    return folder


@pytest.fixture(scope="session")
def data_root(packed_data, tmp_path_factory) -> Path:
    """The same data sets in torchvision's layout."""
    root = tmp_path_factory.mktemp("data")
    runpy.run_path(str(packed_data / "unpack.py"))["main"](str(root))
    return root
