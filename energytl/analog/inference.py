"""Running a network to look at it: no gradients, evaluation mode, hooks, and everything as it was afterwards."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def inference(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; then every module's own mode again.

    >>> network = nn.Sequential(nn.Dropout())
    >>> with inference(network):
    ...     network[0].training
    False
    >>> network[0].training
    True
    """
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def hooked(modules: Iterable[nn.Module], hook: Callable[[Any, Any, Any], None]) -> Iterator[None]:
    """While it is open, each call of one of these modules also calls hook(module, inputs, output).

    >>> relu, outputs = nn.ReLU(), []
    >>> with hooked([relu], lambda module, inputs, output: outputs.append(output)):
    ...     _ = relu(torch.tensor(1.0))
    >>> _ = relu(torch.tensor(2.0))
    >>> outputs
    [tensor(1.)]
    """
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
