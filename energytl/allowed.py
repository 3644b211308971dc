"""What a setting may be: a value of its type, a finite number, within bounds; else one line that says what is allowed.

Every record of settings calls `check` when it is made, so that neither a recipe nor Python gets past it.
"""

import inspect
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from numbers import Integral, Real
from typing import Any, Literal, Union

LARGEST_INTEGER = 2**63 - 1
"""Whole numbers beyond it are no numbers of torch's."""


@dataclass(frozen=True)
class Allowed:
    """An interval of numbers.

    Attributes:
        least: lower end.
        most: upper end.
        above: the lower end itself is not allowed.
        below: the upper end itself is not allowed.
        note: what the number is, in a few words: its unit, an example.

    >>> str(Allowed(0, 1)), str(Allowed(0, 1, below=True)), str(Allowed(0, above=True, note="V")), str(Allowed(1))
    ('0 to 1', '0 up to 1', 'above 0 (V)', '1 or more')
    >>> str(Allowed(0, 1, above=True)), str(Allowed(0, 1, above=True, below=True)), str(Allowed())
    ('above 0 up to 1', 'above 0, below 1', 'a finite number')
    >>> 1 in Allowed(0, 1, below=True), float("nan") in Allowed(0)
    (False, False)
    """

    least: float = -math.inf
    most: float = math.inf
    above: bool = False
    below: bool = False
    note: str = ""

    def __contains__(self, number: float) -> bool:
        low = self.least < number if self.above else self.least <= number
        high = number < self.most if self.below else number <= self.most
        return low and high and math.isfinite(number)

    def __str__(self) -> str:
        low, high = (f"{end:.10g}" for end in (self.least, self.most))
        if self.least == -math.inf:
            words = "a finite number"
        elif self.most == math.inf:
            words = f"above {low}" if self.above else f"{low} or more"
        elif self.below:
            words = f"above {low}, below {high}" if self.above else f"{low} up to {high}"
        else:
            words = f"above {low} up to {high}" if self.above else f"{low} to {high}"
        return f"{words} ({self.note})" if self.note else words


FINITE = Allowed()
FROM_0 = Allowed(0)
ABOVE_0 = Allowed(0, above=True)
SHARE = Allowed(0, 1)
COUNT = Allowed(1, 1_000_000)
COUNT_OR_0 = Allowed(0, 1_000_000)
SEED = Allowed(0, 2**32 - 1)


def check(record: Any, name: str = "", **allowed: Allowed) -> None:  # noqa: ANN401
    """Refuse a record, an instance of a dataclass, with a field of another type than it says, or not allowed.

    All numbers must be finite, also those in tuples, and whole numbers fit 64 bits. What is null is within all bounds.

    Args:
        record: whose fields are looked at.
        name: what stands before the names of the fields.
        allowed: intervals of numbers, by field.

    Raises:
        TypeError: naming the setting, its value and the type.
        ValueError: naming the setting, its value and what is allowed.
    """
    kind: type = type(record)
    for key, hint in _hints(kind).items():
        value = getattr(record, key)
        check_value(f"{name}.{key}" if name else key, value, hint, allowed.get(key, FINITE))


def check_value(name: str, value: Any, hint: Any, allowed: Allowed = FINITE) -> None:  # noqa: ANN401
    """Refuse a value of another type, and numbers in it that are not allowed; see `check`.

    >>> check_value("hardware.rho", "high", float)
    Traceback (most recent call last):
    ...
    TypeError: hardware.rho is 'high'; allowed: a number
    """
    if not fits(value, hint):
        raise TypeError(f"{name} is {_shown(value)}; allowed: {words(hint)}{_call_it(value, hint)}")
    or_null = ", or null" if fits(None, hint) else ""
    for number in _numbers(value):
        if number not in allowed:
            raise ValueError(f"{name} is {number}; allowed: {allowed}{or_null}")
        if isinstance(number, Integral) and abs(int(number)) > LARGEST_INTEGER:
            raise ValueError(f"{name} is {number}; allowed: whole numbers of 64 bits{or_null}")


@cache
def _hints(record: type) -> dict[str, Any]:
    """Types of a record's fields; none if a user's own annotations name what only type checkers import."""
    try:
        hints = typing.get_type_hints(record)
    except NameError:
        return {}
    return {field.name: hints[field.name] for field in fields(record)}


def fits(value: Any, hint: Any) -> bool:  # noqa: ANN401
    """Whether a value is of a type, as annotations say it; whole numbers are numbers, bools are neither.

    >>> fits((1, 2.0), tuple[float, ...]), fits("1", int | None), fits(True, int), fits(print, Callable[[str], None])
    (True, False, False, True)
    """
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if hint is None or hint is types.NoneType:
        return value is None
    if origin in (Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if origin is Callable:
        return callable(value)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        expected = parts[:1] * len(value) if parts[1:] == (...,) else parts
        return len(value) == len(expected) and all(map(fits, value, expected))
    if origin is dict:
        return isinstance(value, dict) and all(fits(k, parts[0]) and fits(v, parts[1]) for k, v in value.items())
    if hint in (int, float):
        return isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def words(hint: Any) -> str:  # noqa: ANN401
    """A type in words.

    >>> words(float | tuple[float, ...] | None), words(Literal["a", "b"])
    ('a number, a tuple of numbers or null', 'a or b')
    """
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    plain = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", types.NoneType: "null"}
    if hint in plain:
        return plain[hint]
    if origin in (Union, types.UnionType, Literal):
        *first, last = (str(part) if origin is Literal else words(part) for part in parts)
        return f"{', '.join(first)} or {last}" if first else last
    if origin is tuple:
        names = {float: "numbers", int: "whole numbers", str: "texts"}
        return f"a tuple of {names.get(parts[0], words(parts[0]))}"
    if origin is dict:
        return f"a mapping of names to {words(parts[1])}"
    if origin is Callable:
        return f"what makes {words(parts[1])}"
    name = getattr(origin or hint, "__name__", str(hint))
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _shown(value: Any) -> str:  # noqa: ANN401
    if inspect.isclass(value):
        return f"the class {value.__name__}"
    if inspect.isroutine(value):
        return f"the function {value.__name__}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _call_it(value: Any, hint: Any) -> str:  # noqa: ANN401
    """How a class or a function is turned into the instance that is expected."""
    expected = tuple(part for part in (hint, *typing.get_args(hint)) if inspect.isclass(part))
    if inspect.isclass(value) and issubclass(value, expected):
        return f", as {value.__name__}()"
    return f": call it, {value.__name__}()" if inspect.isroutine(value) else ""


def _numbers(value: Any) -> typing.Iterator[Any]:  # noqa: ANN401
    if isinstance(value, tuple):
        for part in value:
            yield from _numbers(part)
    elif isinstance(value, Real) and not isinstance(value, bool):
        yield value
