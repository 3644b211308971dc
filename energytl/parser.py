"""jsonargparse as recipes and studies use it: own parts begin with their own defaults, and an error is one line."""

import difflib
import inspect
import math
import pkgutil
import re
import sys
import typing
from abc import ABC
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

from jsonargparse import ArgumentParser, Namespace, _typehints
from torch import nn

from energytl.allowed import fits, words

Kind = type[Any]

ARGUMENT = re.compile(r"^ {4}(\w+(?:, \w+)*): (.*(?:\n {8}.*)*)", re.MULTILINE)
"""Names and text of an argument or attribute in a docstring."""


def parse(parser: ArgumentParser, text: str, overrides: Sequence[str] = ()) -> Namespace:
    """Settings as the parser takes them; what is left out is default.

    Args:
        parser: with an argument `config`.
        text: YAML.
        overrides: as on the command line, --key.sub=value; they win over the text.

    Raises:
        ArgumentError: for what does not fit.
        Exception: whatever a user's module raises when it is imported.
    """
    with _no_arguments_of_another_class():
        settings = parser.parse_args(["--config", text, *overrides])
    settings.pop("config", None)
    _refuse_no_values(settings)
    return settings


@contextmanager
def _no_arguments_of_another_class() -> Iterator[None]:
    """While it is open, a new class path drops all arguments of the one before.

    jsonargparse merges defaults, files and options by one function, which keeps those arguments of another class path
    that the new one takes, too: a user's device would be called with the default device's intensity.
    """
    keeping = _typehints.discard_init_args_on_class_path_change

    def discard(parser_or_action: Any, prev_val: Any, value: Any) -> None:  # noqa: ANN401
        if prev_val and "init_args" in prev_val:
            before = prev_val["class_path"]  # None: the type itself, of which there are no others
            if before is not None and not same_part(before, value["class_path"]):
                prev_val["init_args"] = Namespace()

    _typehints.discard_init_args_on_class_path_change = discard
    try:
        yield
    finally:
        _typehints.discard_init_args_on_class_path_change = keeping


def _refuse_no_values(settings: Any, at: str = "") -> None:  # noqa: ANN401
    """Refuse null for an argument of a class or a function that does not take it, which jsonargparse passes over.

    And NaN everywhere, infinity where it is no user's own class or function.

    Raises:
        ValueError: naming the key and what is allowed.
    """
    values = vars(settings) if isinstance(settings, Namespace) else settings
    if isinstance(values, dict):
        part = named(values["class_path"]) if "init_args" in values and "class_path" in values else None
        hints = {} if part is None else _argument_types(part)
        for name, value in values.items():
            key = at if name == "init_args" else f"{at}.{name}".removeprefix(".")
            if isinstance(value, float) and math.isnan(value):
                raise ValueError(f"{key} is nan; allowed: a number")
            for argument in vars(value) if name == "init_args" and isinstance(value, Namespace) else ():
                if value[argument] in (math.inf, -math.inf) and part.__module__.startswith(("torch.", "energytl.")):
                    raise ValueError(f"{key}.{argument} is {value[argument]}; allowed: a finite number")
                if value[argument] is None and argument in hints and not fits(None, hints[argument]):
                    raise ValueError(f"{key}.{argument} is null; allowed: {words(hints[argument])}")
            _refuse_no_values(value, key)
    elif isinstance(values, list | tuple):
        for value in values:
            _refuse_no_values(value, at)


def _argument_types(part: Any) -> dict[str, Any]:  # noqa: ANN401
    """Types of the arguments of a class or a function; none that only type checkers know."""
    try:
        return typing.get_type_hints(part.__init__ if inspect.isclass(part) else part)
    except NameError:
        return {}


def same_part(first: str, second: str) -> bool:
    """Whether two class paths name one class or function; a bare name is that of any path that ends with it.

    >>> same_part("energytl.Cell", "energytl.devices.cell.Cell"), same_part("Cell", "energytl.Cell")
    (True, True)
    """
    if first == second or "." not in first + second:
        return first == second
    if "." not in first or "." not in second:
        return first.rpartition(".")[2] == second.rpartition(".")[2]
    found = named(first)
    return found is not None and found is named(second)


def named(path: str) -> Any:  # noqa: ANN401
    """What a path names; None if nothing."""
    try:
        return pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError):
        return None


def lost(given: dict[str, Any], settings: Any, at: str = "") -> str | None:  # noqa: ANN401
    """The first key that has nothing in it and is not in the settings either: a parser passes over it.

    >>> lost({"hardware": {"weight": {}}}, {"hardware": {"rho": 2.0}})
    'hardware.weight'
    """
    for key, value in given.items():
        if not isinstance(value, dict) or (key in ("init_args", "dict_kwargs") and not value):
            continue
        inner = settings if key in settings else settings.get("init_args") or {}
        if key not in inner:
            return at + key
        if isinstance(inner[key], dict | Namespace):
            found = lost(value, inner[key], f"{at}{key}.")
            if found:
                return found
    return None


def said_by(error: BaseException) -> str:
    """What an error says, in one line; its type if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def one_line(error: BaseException, parser: ArgumentParser, record: type) -> str:
    """What a parser says, with the whole key in front, without Python's class brackets and the Nones allowed.

    Args:
        error: what it raised, or a user's module.
        parser: whose keys an unknown one is compared with.
        record: of the settings, whose types say what there is to choose from.
    """
    if not isinstance(error, ValueError | TypeError | OSError | ImportError) and not _of_the_parser(error):
        return f"{_place(error)}{type(error).__name__}: {said_by(error)}"
    text = said_by(error).split(" Exception raised from ")[0]  # torch's C++
    keys = re.findall(r'Parser key "([\w.]+)": ', text)
    text = re.sub(r"<class '([\w.]*\.)?(\w+)'>", r"\2", text)
    text = re.sub(r"Does not validate against .* Errors: - (?:Problem with given class_path '[^']*': )?", "", text)
    text = text.split(" - Expected a NoneType")[0].rsplit('Parser key "', 1)[-1]
    text = re.sub(r'^[\w.]+": ', "", text)
    text = re.sub(r"Type \S*Callable\[.*?expects a function or a callable class: ", "", text)
    text = re.sub(r" Got value: (Namespace|NestedArg)\(.*", "", text)
    text = re.sub(r"(ambiguous option: \S+) could match .*", r"\1; write the whole key", text)
    text = re.sub(r"Group '([\w.]+)' does not accept option '([\w.]+)'", r"Option '\1.\2'", text)
    unknown = re.search(r"(?:unrecognized arguments: --|Option ')([\w.]+)", text)
    if unknown:
        return unknown_key(".".join([*keys, unknown[1]]), parser, record)
    key = "".join(f"{'.'.join(keys)}: " for _ in keys[:1])
    name = re.search(r"Expected a dot import path string: (\S+)|Import path (\S+) does not correspond to", text)
    name = name or re.search(r"Expected '(\S+)' to be a (?:function|subclass)", text)
    if name and keys:
        return key + no_part(next(found for found in name.groups() if found), _kind(record, ".".join(keys).split(".")))
    return key + text.replace("Expected a ", "expected ")


def unknown_key(name: str, parser: ArgumentParser, record: type) -> str:
    """That there is no such key, and which one may be meant."""
    *parents, last = name.split(".")
    kind = _kind(record, parents)
    if parents and kind is not None:
        there_are = "; there are " + ", ".join(field.name for field in fields(kind)) if is_dataclass(kind) else ""
        return f"{'.'.join(parents)}: unknown key {last}{there_are}"
    known = sorted(set(parser.get_defaults().keys(branches=True)) - {"config"})
    close = difflib.get_close_matches(name, known, 1)
    top = ", ".join(key for key in known if "." not in key)
    return f"unknown key {name}; " + (f"did you mean {close[0]}?" if close else f"there are {top}")


def _of_the_parser(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in ("argparse", "jsonargparse", "yaml")


def _place(error: BaseException) -> str:
    """File and line of a user's code that raised an error."""
    if isinstance(error, SyntaxError):
        return ""  # it says so itself
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno}: " if trace else ""


def _kind(record: type, keys: Sequence[str]) -> Kind | None:
    """The class that the value of a key is an instance of, or makes; None if it is not known.

    >>> from energytl.analog.hardware import Hardware
    >>> _kind(Hardware, ["weights"]).__name__
    'WeightFormat'
    """
    hint: Any = record
    named = False  # whether the next key may be a name that the user gave
    for key in keys:
        inner = typing.get_type_hints(hint) if is_dataclass(hint) else {}
        if key not in inner:
            hint = hint if named else None
        else:
            hint, named = inner[key], typing.get_origin(inner[key]) is dict
        while typing.get_args(hint):
            hint = [part for part in typing.get_args(hint) if part is not type(None)][-1]
    return hint if inspect.isclass(hint) else None


def no_part(name: str, kind: Kind | None) -> str:
    """Why a name gives nothing of a kind, and what does."""
    found = named(name) if "." in name else None
    wanted = "class or function" if kind is None else kind.__name__
    if inspect.isfunction(found) and "return" not in found.__annotations__:
        returned = public_path(kind) if kind else wanted
        return (
            f"the function {name} does not say what it returns: write def {found.__name__}(…) -> {returned}, if it does"
        )
    if found is not None:
        return f"{name} gives no {wanted}{_there_are(kind, name)}"
    return f"there is no {wanted} {name!r}{_there_are(kind, name)}"


def _there_are(kind: Kind | None, name: str) -> str:
    if kind is None:
        return ""
    close = difflib.get_close_matches(name, [cls.__name__ for cls in _below(kind)], 3)
    near = [public_path(cls) for cls in _below(kind) if cls.__name__ in close]
    found = list(dict.fromkeys([*choices(kind), *near]))
    return f"; there are: {', '.join(found)}, and your own as my_module.name" if found else ""


def public_path(part: Any) -> str:  # noqa: ANN401
    """The shortest path by which a class or a function can be imported.

    >>> public_path(nn.Module)
    'torch.nn.Module'
    """
    packages, name = part.__module__.split("."), part.__name__
    for length in range(1, len(packages)):
        package = ".".join(packages[:length])
        if vars(sys.modules[package]).get(name) is part:
            return f"{package}.{name}"
    return f"{part.__module__}.{name}"


def choices(kind: Kind) -> list[str]:
    """Paths of energytl's own classes and functions that give an instance of a class; of networks, the functions.

    >>> from energytl.analog.read import ReadScheme
    >>> choices(ReadScheme)
    ['energytl.BitSerialRead', 'energytl.RepeatedRead', 'energytl.SingleRead']
    """
    classes = [] if kind is nn.Module else [cls for cls in _below(kind) if ABC not in cls.__bases__]
    found = [public_path(cls) for cls in classes]
    for module in [module for name, module in sys.modules.items() if name.startswith("energytl.")]:
        for name, function in inspect.getmembers(module, inspect.isfunction):
            given = function.__annotations__.get("return")
            own = function.__module__ == module.__name__ and not name.startswith("_")
            if own and inspect.isclass(given) and issubclass(given, kind) and not _needs_more(function):
                found.append(public_path(function))
    return sorted(path for path in found if path.startswith("energytl.") and "._" not in path)


def explained(part: Any, skip: Sequence[str] = ()) -> str:  # noqa: ANN401
    """The arguments of a class or a function: names, defaults, and what its documentation says first.

    >>> from energytl.analog.read import RepeatedRead
    >>> print(explained(RepeatedRead))
      times = 5  number of reads K
    """
    texts: dict[str, str] = {}
    for owner in reversed(inspect.getmro(part) if inspect.isclass(part) else [part]):
        for names, text in ARGUMENT.findall(inspect.cleandoc(owner.__doc__ or "")):
            sentence = re.split(r"[.;](?:\s|$)", " ".join(text.split()))[0]
            texts |= dict.fromkeys(names.split(", "), sentence)
    rows = []
    for name, parameter in inspect.signature(part).parameters.items():
        if name not in skip:
            default = parameter.default
            shown = f" = {type(default).__name__}()" if is_dataclass(default) else f" = {default}"
            rows.append((f"  {name}{'' if default is parameter.empty or '<' in shown else shown}", texts.get(name, "")))
    width = max((len(left) for left, _ in rows), default=0)
    return "\n".join(f"{left:{width}}  {text}".rstrip() for left, text in rows)


def help_on(record: type, key: str, name: str | None = None) -> str:
    """What a key takes: its own keys, or the classes and functions to choose from.

    Args:
        record: of the settings.
        key: dotted.
        name: of one of the classes and functions, of which the arguments are told.
    """
    kind = _kind(record, key.split("."))
    if name is not None:
        fitting = [path for path in choices(kind) if path.rpartition(".")[2] == name] if kind else []
        part = named(fitting[0] if fitting else name)
        return f"{name}:\n{explained(part)}" if callable(part) else no_part(name, kind)
    if kind is None or kind.__module__ == "builtins":
        return f"{key} is no key that takes others; --help lists those of a recipe"
    found = [] if kind.__module__ == record.__module__ else choices(kind)
    found = [path for path in found if not is_dataclass(kind) or path != public_path(kind)]
    own = f"{key}:\n{explained(kind)}\n" if is_dataclass(kind) and not inspect.isabstract(kind) else ""
    others = "".join(f"  {path:40} {(inspect.getdoc(named(path)) or '').splitlines()[0]}\n" for path in found)
    more = (
        f"{'or ' if own else ''}a class or function for {key}, your own (my_module.name), or\n{others}" if found else ""
    )
    more += f"arguments of one of them: --{key}.help=NAME" if found else ""
    return f"{own}{more}".rstrip()


def _needs_more(function: Any) -> bool:  # noqa: ANN401
    """Whether a function has parameters that must be networks or tensors, as one that changes what it is given."""
    parameters = inspect.signature(function).parameters.values()
    return any(p.default is p.empty and p.annotation not in (int, float, str, bool) for p in parameters)


def _below(kind: Kind) -> list[Kind]:
    found = [kind]
    for cls in kind.__subclasses__():
        found += _below(cls)
    return list(dict.fromkeys(found))
