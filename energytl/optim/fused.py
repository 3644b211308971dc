"""Functions of tensors as fused kernels, where torch can compile them."""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch


@cache
def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function compiled for all shapes, once a device (torch.compile); itself, with a warning, where that fails.

    The first call takes some ten seconds; torch keeps what it compiled on disk for the next process.
    """
    limit = "recompile_limit"  # a search may try many devices; beyond the limit torch would fall back unasked
    setattr(torch._dynamo.config, limit, max(256, getattr(torch._dynamo.config, limit)))
    compiled = torch.compile(function, dynamic=True)
    usable = True

    def call(*arguments: Any) -> Any:  # noqa: ANN401
        nonlocal usable
        if usable:
            try:
                return compiled(*arguments)
            except torch._dynamo.exc.TorchDynamoException as error:
                usable = False
                reason = str(error).strip().splitlines()[0]
                warnings.warn(
                    f"torch.compile cannot fuse {function.__name__}, so it runs slower: {reason}", stacklevel=2
                )
        return function(*arguments)

    return call
