"""Progress bars: on the terminal's standard error, and none where it is no terminal."""

import sys
from contextlib import redirect_stdout
from typing import Any

from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from tqdm import tqdm


def watched() -> bool:
    """Whether somebody sees bars: what is written into a file or a pipe has none."""
    return sys.stderr.isatty()


class Bar(tqdm):  # type: ignore[type-arg]
    """tqdm's bar on standard error, and none where that is no terminal.

    Args:
        arguments: of tqdm.
        disable: no bar even there.
        options: of tqdm.

    >>> [number for number in Bar([1, 2], "numbers")]
    [1, 2]
    """

    def __init__(self, *arguments: Any, disable: bool = False, **options: Any) -> None:  # noqa: ANN401
        super().__init__(*arguments, disable=disable or not watched(), **options)  # type: ignore[call-overload]


class TrainingBar(TQDMProgressBar):
    """Lightning's bars on standard error; its own are on standard output, where results go."""

    def init_sanity_tqdm(self) -> Tqdm:
        """Of the validation before training."""
        with redirect_stdout(sys.stderr):
            return super().init_sanity_tqdm()

    def init_train_tqdm(self) -> Tqdm:
        """Of an epoch."""
        with redirect_stdout(sys.stderr):
            return super().init_train_tqdm()

    def init_validation_tqdm(self) -> Tqdm:
        """Of a validation."""
        with redirect_stdout(sys.stderr):
            return super().init_validation_tqdm()
