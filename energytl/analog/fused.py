"""What is fast on this machine: fused kernels where torch can compile them, and bfloat16 where products of it are."""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from energytl.quiet import EnergytlWarning

LARGE = 2**18
"""Numbers of an input from which on fused kernels are worth compiling and calling."""


def is_large(x: Tensor) -> bool:
    """Whether what is fast is worth it for these inputs: many, float32, on the CPU."""
    return x.numel() >= LARGE and x.device.type == "cpu" and x.dtype == torch.float32


@cache
def fused(function: Callable[..., Any], otherwise: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """The function compiled for all shapes, once a device (torch.compile); where that fails, another, with a warning.

    The first call takes some ten seconds; torch keeps what it compiled on disk for the next process.

    Args:
        function: what is compiled.
        otherwise: what is called where that fails; None: the function itself.
    """
    config: Any = torch._dynamo.config
    config.recompile_limit = max(256, config.recompile_limit)  # of many devices torch would give up compiling unasked
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
                    f"torch.compile cannot fuse kernels here, so reads run slower: {reason}",
                    EnergytlWarning,
                    stacklevel=2,
                )
        return (otherwise or function)(*arguments)

    return call


@cache
def compact_dtype() -> torch.dtype:
    """What the CPU multiplies in where 8 bits are enough: bfloat16 if it has products of it, else float32."""
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def elementwise(
    function: Callable[..., tuple[Tensor, ...]],
    tensors: tuple[Tensor, ...],
    *arguments: Any,  # noqa: ANN401
) -> tuple[Tensor, ...]:
    """Results of a fused function of tensors of one shape and more arguments, of the first one's shape and layout.

    The function gets the tensors flat, so that one kernel serves all shapes.
    """
    first = tensors[0]
    if not is_dense(first):
        first = first.contiguous()
    alike = [first] + [
        tensor if tensor.stride() == first.stride() else torch.empty_like(first, dtype=tensor.dtype).copy_(tensor)
        for tensor in tensors[1:]
    ]
    results = fused(function)(*map(flat, alike), *arguments)
    return tuple(result.as_strided(first.shape, first.stride()) for result in results)


def is_dense(tensor: Tensor) -> bool:
    """Whether a tensor's numbers lie together in one of torch's usual orders, so that it may be taken flat."""
    return tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last)


def flat(tensor: Tensor) -> Tensor:
    """A dense tensor as it lies in memory, (count,), without its history."""
    return tensor.detach().as_strided((tensor.numel(),), (1,))
