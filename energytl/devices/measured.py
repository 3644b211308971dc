"""Measured pulse responses: the conductance of many cells after each of many pulses, from a table as text.

    device,pulse,direction,conductance (uS)
    A1,1,up,10.42
    A1,2,up,11.17
    A1,3,down,10.06
    B7,1,up,9.83

A row for every pulse of a device, read after it. What programs and laboratories make of such a table is read, too:

* separated by commas, semicolons, tabs, bars or spaces; quoted; further columns, rows without any value, lines of other
  text above the names of the columns; names in any case; UTF-8, UTF-16 or Latin-1.
* decimal points or commas, and thousands separators, whichever the conductances show; whole numbers as 1.0.
* directions up and down, set and reset, potentiation and depression, LTP and LTD, 1 and -1.
* a unit (S, mS, µS, uS, nS) after the column's name: conductances are then in siemens.
* pulses numbered throughout, the rows being in any order; or anew with every change of direction, or for each direction
  on its own, the rows then being in measuring order.

What may mean two things is refused in a line that names it.
"""

import csv
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

COLUMNS = ("device", "pulse", "direction", "conductance")
DIRECTIONS = {
    **dict.fromkeys(("up", "set", "potentiation", "ltp"), 1.0),
    **dict.fromkeys(("down", "reset", "depression", "ltd"), -1.0),
}
SIEMENS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9}
"""Of the units in small letters, with the micro sign and the Greek letter; casefold makes the first the second."""

DELIMITERS = (",", ";", "\t", "|", " ")
MOST_LINES_ABOVE = 100
FEWEST_PULSES = 10

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?")


@dataclass(frozen=True)
class Measured:
    """What cells showed, one column a cell; NaN after a cell's last pulse.

    Attributes:
        names: of the cells, length N.
        shown: conductance after each pulse, (K, N); in siemens, or in one unknown unit.
        directions: +1 up, −1 down, 0 after the last pulse, (K, N).
        siemens: whether the unit is known.
    """

    names: tuple[str, ...]
    shown: Tensor
    directions: Tensor
    siemens: bool = False

    @property
    def pulses(self) -> int:
        """How many pulses were measured, of all cells together."""
        return int(self.directions.abs().sum())


@dataclass(frozen=True)
class _Row:
    """Of the table: its line in the file, and its values as text in the order of `COLUMNS`."""

    line: int
    device: str
    pulse: str
    direction: str
    conductance: str


@dataclass(frozen=True)
class _Pulse:
    line: int
    number: int
    direction: float
    conductance: float


def read_csv(path: Path) -> Measured:
    r"""Read a table as the module describes it.

    Raises:
        OSError: if there is no such file.
        ValueError: in one line, naming the line of the file or the device.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     lines = [f"A1;{n};{'up' if n < 7 else 'down'};{n},25" for n in range(12)]
    ...     _ = Path(folder, "a.csv").write_text("Device;Pulse;Direction;Conductance (uS)\n" + "\n".join(lines))
    ...     measured = read_csv(Path(folder, "a.csv"))
    >>> measured.names, measured.pulses, measured.siemens, round(float(measured.shown[1, 0]), 9)
    (('A1',), 12, True, 1.25e-06)
    """
    lines = _text(path).splitlines()
    above, delimiter, places, scale = _header(lines, path)
    rows = list(_rows(lines, above, delimiter, places, path))
    if not rows:
        raise ValueError(f"{path} holds no pulses below its first line")
    decimal = _decimal_mark(rows, delimiter, path)
    responses: dict[str, list[_Pulse]] = {}
    for row in rows:
        responses.setdefault(row.device, []).append(_parsed(row, decimal, scale or 1.0, f"{path}, line {row.line}"))
    return _columns(
        {name: _in_order(name, pulses, path) for name, pulses in responses.items()}, scale is not None, path
    )


def _text(path: Path) -> str:
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-16" if raw.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    if re.search(r"[\x00-\x08\x0e-\x1f]", text):
        raise ValueError(f"{path} is no text: save the table as CSV, in UTF-8 or UTF-16")
    return text


def _header(lines: list[str], path: Path) -> tuple[int, str, list[int], float | None]:
    """Number of the line that names the columns, the delimiter, the columns' places, the unit in siemens if named."""
    best, found, line = 0, [""] * len(COLUMNS), 1
    for above, text in enumerate(lines[:MOST_LINES_ABOVE]):
        for delimiter in DELIMITERS:
            fields = [
                field.strip()
                for field in next(csv.reader([text.lstrip("#")], delimiter=delimiter, skipinitialspace=True), [])
            ]
            words = [re.split(r"[\s(\[/_,]", field, maxsplit=1)[0].casefold() for field in fields]
            names = [fields[words.index(name)] if name in words else "" for name in COLUMNS]
            if all(names):
                return above, delimiter, [words.index(name) for name in COLUMNS], _unit(names[-1], path)
            if sum(map(bool, names)) > best:
                best, found, line = sum(map(bool, names)), names, above + 1
    missing = COLUMNS[found.index("")]
    raise ValueError(
        f"{path}, line {line}: no column {missing!r}; a line must name the columns {', '.join(COLUMNS)}, separated by "
        "commas, semicolons or tabs"
    )


def _unit(name: str, path: Path) -> float | None:
    said = re.sub(r"^conductance|[\s()\[\]/_,]|\bin\b", "", name.casefold())
    if said and said not in SIEMENS:
        raise ValueError(f"{path}: the column {name!r} has the unit {said!r}; allowed: S, mS, µS, uS, nS, or none")
    return SIEMENS[said] if said else None


def _rows(lines: list[str], above: int, delimiter: str, places: list[int], path: Path) -> Iterator[_Row]:
    reader = csv.reader(lines[above:], delimiter=delimiter, skipinitialspace=True)
    try:
        width = len(next(reader))
        for fields in reader:
            line = above + reader.line_num
            values = [field.strip() for field in fields]
            if not any(values):
                continue
            if any(values[width:]):
                raise ValueError(
                    f"{path}, line {line}: {len(values)} values in {width} columns; quote values that hold the "
                    f"separator {delimiter!r}, such as decimal commas, or separate the columns by semicolons"
                )
            yield _Row(line, *((values[place] if place < len(values) else "") for place in places))
    except csv.Error as error:
        raise ValueError(f"{path}, line {above + reader.line_num}: {error}") from error


def _decimal_mark(rows: Sequence[_Row], delimiter: str, path: Path) -> str:
    """Whether the conductances have decimal points or commas."""
    grouped = None
    for row in rows:
        text = row.conductance
        commas, points = text.count(","), text.count(".")
        if commas and points:
            return max(",.", key=text.rfind)
        if points > 1:
            return ","
        if commas > 1:
            return "."
        if commas and not THOUSANDS.fullmatch(text):
            return ","
        if commas:
            grouped = row
    if grouped is None:
        return "."
    if delimiter == ";":
        return ","
    raise ValueError(
        f"{path}, line {grouped.line}: conductance {grouped.conductance!r} may have a decimal comma or a thousands "
        "separator; write decimal points, without separators"
    )


def _number(text: str, decimal: str) -> float:
    """NaN where the text is no number."""
    text = text.replace("−", "-")
    if decimal == ",":
        text = text.translate(str.maketrans(",.", ".,"))
    if THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    return float(text) if NUMBER.fullmatch(text) else math.nan


def _parsed(row: _Row, decimal: str, scale: float, where: str) -> _Pulse:
    direction = DIRECTIONS.get(row.direction.casefold(), _number(row.direction, decimal))
    if direction not in (1.0, -1.0):
        raise ValueError(
            f"{where}: direction is {row.direction!r}; allowed: up, down (or +1, -1; set, reset; potentiation, "
            "depression)"
        )
    number = _number(row.pulse, decimal)
    if not number.is_integer():
        raise ValueError(f"{where}: pulse is {row.pulse!r}; allowed: a whole number")
    shown = _number(row.conductance, decimal)
    if not math.isfinite(shown):
        raise ValueError(
            f"{where}: conductance is {row.conductance!r}; allowed: a finite number; leave such a device out"
        )
    return _Pulse(row.line, int(number), direction, shown * scale)


def _in_order(name: str, pulses: list[_Pulse], path: Path) -> list[_Pulse]:
    """A device's pulses in measuring order: by their numbers, or as they stand where these begin anew."""
    if len(pulses) < FEWEST_PULSES:
        raise ValueError(f"{path}: device {name} has {len(pulses)} pulses; a fit needs {FEWEST_PULSES} or more of each")
    by_number = {pulse.number: pulse for pulse in pulses}
    if len(by_number) == len(pulses):
        first, last = min(by_number), max(by_number)
        if last - first + 1 != len(pulses):
            gap = next(number for number in range(first, last) if number not in by_number)
            raise ValueError(f"{path}: device {name} has no pulse {gap}, but later ones: read it after every pulse")
        return [by_number[number] for number in sorted(by_number)]
    runs = [list(run) for _, run in groupby(pulses, key=lambda pulse: pulse.direction)]
    last_of = {run[0].direction: pulses[0].number - 1 for run in runs}
    before = pulses[0].number - 1
    for run in runs:
        follows = run[0].number in (pulses[0].number, before + 1, last_of[run[0].direction] + 1)
        counts = [pulse.number - run[0].number for pulse in run] == list(range(len(run)))
        if not (follows and counts) or len(runs) == len(pulses):
            numbers = [pulse.number for pulse in pulses]
            twice = next(pulse for place, pulse in enumerate(pulses) if pulse.number in numbers[:place])
            raise ValueError(
                f"{path}, line {twice.line}: device {name} has pulse {twice.number} twice; number its pulses in "
                "measuring order, throughout or anew with every change of direction"
            )
        before = last_of[run[0].direction] = run[-1].number
    return pulses


def _columns(responses: dict[str, list[_Pulse]], siemens: bool, path: Path) -> Measured:
    longest = max(map(len, responses.values()))
    shown = torch.full((longest, len(responses)), math.nan, dtype=torch.float64)
    directions = torch.zeros_like(shown)
    for column, pulses in enumerate(responses.values()):
        both = [(pulse.direction, pulse.conductance) for pulse in pulses]
        directions[: len(both), column], shown[: len(both), column] = torch.tensor(both, dtype=torch.float64).T
    for way, direction in (("up", 1), ("down", -1)):
        if not (directions == direction).any():
            raise ValueError(f"{path} holds no pulse {way}: a fit needs both directions")
    return Measured(tuple(responses), shown, directions, siemens)
