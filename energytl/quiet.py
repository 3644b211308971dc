"""Keeps what libraries say about themselves from what a user wants to read."""

import logging
import os
import sys
import warnings
from pathlib import Path
from types import TracebackType
from typing import TextIO


class EnergytlWarning(UserWarning):
    """What goes on, but not as a user expects; the message is one line."""


def quiet_libraries() -> None:
    """Show only errors of libraries, and energytl's own warnings in a line, unless Python was asked for warnings."""
    for name in ("lightning.pytorch", "lightning.fabric", "torch.distributed", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.simplefilter("once", EnergytlWarning)
        warnings.showwarning = _show


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning as one line."""
    print(f"energytl: warning: {message}", file=file or sys.stderr)


def interrupted_quietly() -> None:
    """Let Ctrl-C end the program with a line and the exit code 130, also while modules are still imported.

    Only where the program is the command line: whoever imports the package keeps Python's traceback.
    """
    program = sys.orig_argv[1:3]
    if program == ["-m", "energytl.cli"] or (program and Path(program[0]).name == "energytl"):
        sys.excepthook = _end_interrupted


def _end_interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    print("\nenergytl: interrupted", file=sys.stderr, flush=True)
    os._exit(130)
