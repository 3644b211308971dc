"""Settings are of their type, finite and within bounds, also where they are given in Python."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pytest
from torch import nn

import energytl
from energytl import presets
from energytl.allowed import Allowed, check, check_value, fits
from energytl.convergence import Convergence
from energytl.data import Digits
from energytl.devices.programming import Variation
from energytl.devices.pulsed import SoftBoundsReference
from energytl.evaluation import Evaluation
from energytl.objectives import Objective
from energytl.recipe import Fit


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: energytl.Hardware(fluctuation="strong"), "hardware.fluctuation is 'strong'; allowed: a Fluctuation"),
        (lambda: energytl.Hardware(read=energytl.BitSerialRead), "hardware.read is the class BitSerialRead"),
        (lambda: energytl.Hardware(read=energytl.BitSerialRead), "allowed: a ReadScheme, as BitSerialRead()"),
        (lambda: energytl.Hardware(mapping="OneCell"), "hardware.mapping is 'OneCell'; allowed: a Mapping"),
        (lambda: energytl.Hardware(fluctuation=presets.strong), "the function strong; allowed: a Fluctuation: call it"),
        (lambda: energytl.Hardware(weights=4), "hardware.weights is 4; allowed: a WeightFormat"),
        (lambda: energytl.Hardware(rho="10"), "hardware.rho is '10'; allowed: a number"),
        (lambda: energytl.Hardware(chip=1.5), "hardware.chip is 1.5; allowed: a whole number"),
        (lambda: energytl.Cell(read_volt="0.2"), "cell.read_volt is '0.2'; allowed: a number"),
        (lambda: energytl.Fluctuation(offsets=[-1.0, 1.0]), "fluctuation.offsets is [-1.0, 1.0]; allowed: a tuple of"),
        (
            lambda: energytl.Periphery(converter=energytl.IsaacConverter),
            "periphery.converter is the class IsaacConverter",
        ),
        (lambda: energytl.WeightFormat(bits="4"), "weights.bits is '4'; allowed: a whole number or null"),
        (lambda: energytl.InputFormat(bits=True), "inputs.bits is True; allowed: a whole number"),
        (lambda: Evaluation(budgets=[1.0]), "evaluation.budgets is [1.0]; allowed: a tuple of numbers"),
        (lambda: Objective(relative="no"), "objective.relative is 'no'; allowed: true or false"),
        (lambda: Fit(optimizer="Adam"), "optimizer is 'Adam'; allowed: what makes an Optimizer"),
        (lambda: Digits(batch_size="64"), "data.batch_size is '64'; allowed: a whole number"),
    ],
)
def test_another_type_is_refused_in_one_line(make, says):
    with pytest.raises(TypeError) as raised:
        make()
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "make",
    [
        lambda value: energytl.Hardware(rho=value),
        lambda value: energytl.Cell(read_s=value),
        lambda value: energytl.Cell(g_max_siemens=value),
        lambda value: energytl.Fluctuation(offsets=(0.0, value)),
        lambda value: energytl.Periphery(row_driver_j=value),
        lambda value: energytl.WaldenConverter(step_j=value),
        lambda value: energytl.GaussianWrite(std=value),
        lambda value: energytl.MultilevelCell(levels=(1.0, value)),
        lambda value: Variation(relative=(0.1, value)),
        lambda value: Evaluation(budgets=(1.0, value)),
        lambda value: Objective(rho_lr=value),
        lambda value: Objective(energy_weight=(0.1, value)),
        lambda value: Convergence(target=0.9, start=(0.1, value)),
        lambda value: SoftBoundsReference(reference_skew=value),
        lambda value: SoftBoundsReference(up_down_spread=value),
    ],
)
def test_no_number_is_infinite_or_none(make, value):
    with pytest.raises(ValueError, match=r" is (nan|-?inf)|device\.lower"):
        make(value)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Evaluation(reads=10**12), "evaluation.reads is 1000000000000; allowed: 1 to 1000000"),
        (lambda: Digits(batch_size=10**18), "data.batch_size is 1000000000000000000; allowed: 1 to 1000000"),
        (lambda: Digits(workers=-1), "data.workers is -1; allowed: 0 to 1000"),
        (lambda: Digits(seed=2**70), f"data.seed is {2**70}; allowed: 0 to 4294967295"),
        (lambda: energytl.Hardware(chip=-1), "hardware.chip is -1; allowed: 0 to"),
        (lambda: energytl.RepeatedRead(10**6), "read.times is 1000000; allowed: 1 to 1000"),
        (lambda: energytl.Cell(g_max_siemens=90), "cell.g_max_siemens is 90; allowed: above 0, below 1 (siemens"),
        (lambda: energytl.Exact(states_at_once=0), "computation.states_at_once is 0; allowed: 1 or more"),
        (lambda: check(Sized(2**63)), "size is 9223372036854775808; allowed: whole numbers of 64 bits"),
    ],
)
def test_numbers_beyond_their_bounds_are_refused_at_once(make, says):
    with pytest.raises(ValueError) as raised:
        make()
    assert str(raised.value).startswith(says)


@dataclass(frozen=True)
class Sized:
    size: int


def test_rho_fills_the_cells_window_and_no_more():
    # g_max - g_min: 90 - 8 µS by default, 20 - 5 below
    assert energytl.Hardware(rho=82.0).rho == 82.0
    with pytest.raises(ValueError, match=r"hardware\.rho is 100000\.0; allowed: above 0 up to 82, the µS between"):
        energytl.Hardware(rho=1e5)
    small = energytl.Cell(g_min_siemens=5e-6, g_max_siemens=20e-6)
    assert energytl.Hardware(cell=small, rho=15.0).rho == 15.0
    with pytest.raises(ValueError, match=r"hardware\.rho is 20\.0; allowed: above 0 up to 15"):
        energytl.Hardware(cell=small, rho=20.0)
    analog = energytl.convert(nn.Sequential(nn.Linear(4, 2)), energytl.Hardware())
    with pytest.raises(ValueError, match="up to 82"):
        energytl.configure(analog, rho=83.0)
    with pytest.raises(ValueError, match="up to 15"):
        energytl.configure(analog, rho=20.0, cell=small)
    assert float(energytl.configure(analog, rho=82.0)[0].rho.detach()) == pytest.approx(82.0)


def test_numbers_of_other_libraries_are_numbers():
    assert energytl.Hardware(rho=np.float32(2.0), chip=np.int64(3)).rho == 2
    assert replace(energytl.Hardware(), rho=2).rho == 2


@pytest.mark.parametrize(
    ("value", "hint", "right"),
    [
        ({"a": 1}, dict[str, int], True),
        ({1: 1}, dict[str, int], False),
        ((1.0, 2.0), tuple[float, float], True),
        ((1.0,), tuple[float, float], False),
        ("b", Literal["a", "b"], True),
        (None, int | None, True),
        (3, Callable[[int], int], False),
        (False, float, False),
    ],
)
def test_types_as_annotations_say_them(value, hint, right):
    assert fits(value, hint) is right


def test_bounds_in_words_belong_to_what_is_allowed():
    for allowed in (Allowed(0, 1), Allowed(0, 1, below=True), Allowed(0, 1, above=True), Allowed(2)):
        for end, closed in ((allowed.least, not allowed.above), (allowed.most, not allowed.below)):
            if math.isfinite(end):
                assert (end in allowed) is closed
    with pytest.raises(ValueError, match="x is 3; allowed: 0 to 1, or null"):
        check_value("x", 3, float | None, Allowed(0, 1))
