"""Running a network to look at it: no gradients, evaluation mode, hooks, and everything as it was afterwards."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from energytl.analog.noise import NoiseStream


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


def delimit(network: nn.Module, noise: NoiseStream, layer: type[nn.Module]) -> None:
    """Have all parts of a network that have such layers within tell the stream when their calls begin and end.

    What is called by itself, the network or a part of it, makes an inference: cells keep states for its length.
    """
    for name, module in network.named_modules():
        if not isinstance(module, layer) and any(isinstance(part, layer) for part in module.modules()):
            module.register_forward_pre_hook(partial(_enter, noise, name))
            module.register_forward_hook(partial(_leave, noise, name), always_call=True)


def undelimit(network: nn.Module) -> None:
    """Undo `delimit`."""
    for module in network.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for number in [key for key, hook in hooks.items() if getattr(hook, "func", None) in (_enter, _leave)]:
                del hooks[number]
                module._forward_hooks_always_called.pop(number, None)


def _enter(noise: NoiseStream, name: str, module: nn.Module, args: Any) -> None:  # noqa: ANN401
    noise.enter(name)


def _leave(noise: NoiseStream, name: str, module: nn.Module, args: Any, output: Any) -> None:  # noqa: ANN401
    noise.leave(name)


@contextmanager
def hooked(modules: Iterable[nn.Module], hook: Callable[[Any, Any, Any], None]) -> Iterator[None]:
    """While it is open, each call of one of these modules also calls hook(module, inputs, output).

    Inputs are those given by position, then those given by name.

    >>> relu, outputs = nn.ReLU(), []
    >>> with hooked([relu], lambda module, inputs, output: outputs.append(output)):
    ...     _ = relu(torch.tensor(1.0))
    >>> _ = relu(torch.tensor(2.0))
    >>> outputs
    [tensor(1.)]
    """

    def call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:  # noqa: ANN401
        hook(module, (*args, *kwargs.values()), output)

    handles = [module.register_forward_hook(call, with_kwargs=True) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def inputs_of(batches: Iterable[Any], network: nn.Module) -> Iterator[Tensor]:
    """The inputs of batches, on the network's device: the batch, or the first of several, as of (images, labels).

    Raises:
        TypeError: for a batch of anything else.

    >>> [x.shape for x in inputs_of([torch.zeros(2, 3), (torch.zeros(2, 3), torch.zeros(2))], nn.Linear(3, 1))]
    [torch.Size([2, 3]), torch.Size([2, 3])]
    """
    device = next(network.parameters()).device
    for batch in batches:
        inputs = batch[0] if isinstance(batch, list | tuple) and batch else batch
        if not isinstance(inputs, Tensor):
            raise TypeError(
                f"a batch is of type {type(batch).__name__}; allowed: a tensor of inputs, or a list or tuple that "
                "starts with it, as data loaders yield"
            )
        yield inputs.to(device)
