"""Keeps what libraries say about themselves from what a user wants to read."""

import logging
import sys
import warnings


def quiet_libraries() -> None:
    """Show only errors of libraries, and no warnings unless Python was asked for them."""
    for name in ("lightning.pytorch", "lightning.fabric", "torch.distributed", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
