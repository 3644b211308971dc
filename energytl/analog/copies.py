"""Copies of networks that share their tensors."""

import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


def sharing_copy(network: nn.Module) -> nn.Module:
    """A copy with its own modules, hooks and plain attributes, that shares Parameters, buffers and computed tensors.

    Tensors that carry a history, as the weights that pruning or weight norm compute, cannot be copied.

    >>> network = nn.Linear(4, 2)
    >>> sharing_copy(network).weight is network.weight
    True
    """
    shared = [*network.parameters(), *network.buffers()]
    for module in network.modules():
        shared += [tensor for tensor in _tensors(list(vars(module).values())) if not tensor.is_leaf]
    return copy.deepcopy(network, {id(tensor): tensor for tensor in shared})


def _tensors(held: Any) -> Iterator[Tensor]:  # noqa: ANN401
    """Tensors in nested lists, tuples and dictionaries."""
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, dict | list | tuple):
        for item in held.values() if isinstance(held, dict) else held:
            yield from _tensors(item)
