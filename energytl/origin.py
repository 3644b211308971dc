"""What an exception says, in one line, and which line of a user's own files it comes from."""

import re
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path

from torch import nn

SPEAKING = (ValueError, RuntimeError, OSError, AssertionError)
"""Exceptions whose words say what is wrong without their type."""

_PACKAGE = Path(__file__).parent
_LIBRARIES = [_PACKAGE, *{Path(path) for path in sysconfig.get_paths().values()}]
_FROM_A_WORKER = re.compile(r"Caught \w+ in DataLoader worker process")
_QUOTED = re.compile(r'^ *File "([^"\n]+)", line (\d+)', re.MULTILINE)


def described(error: BaseException) -> str:
    """What an error says, in one line; its type if it says nothing, or if its words alone say too little.

    >>> described(KeyError("fc")), described(ValueError("rho is -1"))
    ("KeyError: 'fc'", 'rho is -1')
    """
    text, kind = str(error), type(error).__name__
    if _FROM_A_WORKER.match(text):  # torch puts the traceback into the words; its end is what was said
        lines = text.rstrip().splitlines()
        last = max(number for number, line in enumerate(lines) if line.startswith(" "))
        kind, _, text = " ".join(lines[last + 1 :]).partition(": ")
    text = " ".join(text.split())
    return text if text and isinstance(error, SPEAKING) else f"{kind}: {text}" if text else kind


def users_line(error: BaseException) -> str | None:
    """File and line of a user's own code that an exception, or the one that caused it, was raised in or through.

    The innermost line of the first exception of the chain that went through code which is neither Python's, an
    installed package's, nor energytl's, and which energytl did call. None if there is none.

    >>> users_line(ValueError("never raised")) is None
    True
    """
    for raised in _chain(error):
        lines = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(raised.__traceback__)]
        first = next((place for place, (name, _) in enumerate(lines) if Path(name).is_relative_to(_PACKAGE)), 0)
        lines = lines[first:]  # those before it called energytl
        lines += [(found[1], int(found[2])) for found in _QUOTED.finditer(str(raised))]  # from another process
        if isinstance(raised, SyntaxError) and raised.filename:
            lines.append((raised.filename, raised.lineno))
        own = [(name, number) for name, number in lines if is_users(name)]
        if own:
            return _shown(*own[-1])
    return None


def code_line(thing: object) -> str:
    """Where a function is defined, or a module's forward; its name alone if that is not a user's file.

    >>> from torch import nn
    >>> code_line(nn.Identity())
    'Identity'
    """
    function = type(thing).forward if isinstance(thing, nn.Module) else thing
    name = getattr(function, "__qualname__", type(thing).__name__).removesuffix(".forward")
    code = getattr(function, "__code__", None)
    return f"{name} ({_shown(code.co_filename, code.co_firstlineno)})" if code and is_users(code.co_filename) else name


def with_line(error: BaseException) -> str:
    """What an error says, and which line of the user's own files it comes from, if from any."""
    text, line = described(error), users_line(error)
    return text if line is None or line in text else f"{text} ({line})"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception, what it was raised from or while handling, and so on."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _shown(name: str, line: int | None) -> str:
    path = Path(name)
    return f"{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}, line {line}"


def is_users(name: str) -> bool:
    """Whether a file is a user's own: neither Python's, an installed package's, nor energytl's."""
    path = Path(name)
    return path.is_absolute() and path.suffix == ".py" and not any(map(path.is_relative_to, _LIBRARIES))
