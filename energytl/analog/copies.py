"""Copies of networks, with tensors of their own or shared ones."""

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
    shared = {id(tensor): tensor for tensor in [*network.parameters(), *network.buffers()]}
    return copy.deepcopy(network, shared | _computed(network))


def own_copy(network: nn.Module) -> nn.Module:
    """A copy that shares nothing but computed tensors, which are computed anew in the next call.

    >>> network = nn.Linear(4, 2)
    >>> own_copy(network).weight is network.weight
    False
    """
    return copy.deepcopy(network, _computed(network))


def _computed(network: nn.Module) -> dict[int, Tensor]:
    """Tensors of modules that carry a history, by id."""
    held = [tensor for module in network.modules() for tensor in _tensors(list(vars(module).values()))]
    return {id(tensor): tensor for tensor in held if not tensor.is_leaf}


def _tensors(held: Any) -> Iterator[Tensor]:  # noqa: ANN401
    """Tensors in nested lists, tuples and dictionaries."""
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, dict | list | tuple):
        for item in held.values() if isinstance(held, dict) else held:
            yield from _tensors(item)
