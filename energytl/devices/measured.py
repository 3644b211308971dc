"""Measured pulse responses: the conductance of many cells after each of many pulses, from a CSV file."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

COLUMNS = ("device", "pulse", "direction", "conductance")
DIRECTIONS = {"up": 1.0, "+1": 1.0, "1": 1.0, "down": -1.0, "-1": -1.0}
FEWEST_PULSES = 10


@dataclass(frozen=True)
class Measured:
    """What cells showed, one column a cell; NaN after a cell's last pulse.

    Attributes:
        names: of the cells, length N.
        shown: conductance after each pulse, in any unit, (K, N).
        directions: +1 up, −1 down, 0 after the last pulse, (K, N).
    """

    names: tuple[str, ...]
    shown: Tensor
    directions: Tensor

    @property
    def pulses(self) -> int:
        """How many pulses were measured, of all cells together."""
        return int(self.directions.abs().sum())


def read_csv(path: Path) -> Measured:
    """Read `device, pulse, direction, conductance`: a row for every pulse, in any order.

    A device is any name. Its pulses are numbered in measuring order, without gaps, from any number on; the direction
    is up or down (or +1 or -1); the conductance is what was read after the pulse, in one unit for all devices. Other
    columns are ignored.

    Raises:
        OSError: if there is no such file.
        ValueError: in one line, naming the line of the file or the device.
    """
    responses: dict[str, dict[int, tuple[float, float]]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, skipinitialspace=True)
            missing = [column for column in COLUMNS if column not in (rows.fieldnames or ())]
            if missing:
                raise ValueError(
                    f"{path} has no column {missing[0]!r}: its first line must name the columns {','.join(COLUMNS)}"
                )
            for row in rows:
                device, pulse, direction, conductance = _parsed(row, f"{path}, line {rows.line_num}")
                pulses = responses.setdefault(device, {})
                if pulse in pulses:
                    raise ValueError(
                        f"{path}, line {rows.line_num}: device {device} has pulse {pulse} twice; number its pulses in "
                        "measuring order"
                    )
                pulses[pulse] = direction, conductance
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no CSV file in UTF-8: {error}") from error
    if not responses:
        raise ValueError(f"{path} holds no pulses below its first line")
    return _columns(responses, path)


def _parsed(row: dict[str, str | None], where: str) -> tuple[str, int, float, float]:
    device, pulse, direction, conductance = ((row[column] or "").strip() for column in COLUMNS)
    if direction.lower() not in DIRECTIONS:
        raise ValueError(f"{where}: direction is {direction!r}; allowed: up, down (or +1, -1)")
    try:
        number = int(pulse)
    except ValueError:
        raise ValueError(f"{where}: pulse is {pulse!r}; allowed: a whole number") from None
    try:
        shown = float(conductance)
    except ValueError:
        shown = math.nan
    if not math.isfinite(shown):
        raise ValueError(f"{where}: conductance is {conductance!r}; allowed: a finite number; leave such a device out")
    return device, number, DIRECTIONS[direction.lower()], shown


def _columns(responses: dict[str, dict[int, tuple[float, float]]], path: Path) -> Measured:
    longest = max(map(len, responses.values()))
    shown = torch.full((longest, len(responses)), math.nan, dtype=torch.float64)
    directions = torch.zeros_like(shown)
    for column, (name, pulses) in enumerate(responses.items()):
        count, first, last = len(pulses), min(pulses), max(pulses)
        if count < FEWEST_PULSES:
            raise ValueError(f"{path}: device {name} has {count} pulses; a fit needs {FEWEST_PULSES} or more of each")
        if last - first + 1 != count:
            gap = next(number for number in range(first, last) if number not in pulses)
            raise ValueError(f"{path}: device {name} has no pulse {gap}, but later ones: read it after every pulse")
        ordered = torch.tensor([pulses[number] for number in sorted(pulses)], dtype=torch.float64)
        directions[:count, column], shown[:count, column] = ordered.T
    for way, direction in (("up", 1), ("down", -1)):
        if not (directions == direction).any():
            raise ValueError(f"{path} holds no pulse {way}: a fit needs both directions")
    return Measured(tuple(responses), shown, directions)
