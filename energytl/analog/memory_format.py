"""Where a tensor's numbers lie: torch's contiguous order of (N, C, H, W), or channels last.

Convolutions on arrays compute in channels last and return what torch's own would: channels last where the inputs or the
weight are, else contiguous, which costs a copy each way. A network that takes images in channels last saves them all.
"""

from typing import Any

import torch
from torch import Tensor, nn

from energytl.analog.inference import inference


def has_channels_last(x: Tensor) -> bool:
    """Whether torch takes a tensor (N, C, H, W) for channels last: by its strides, c10's is_channels_last_strides_2d.

    >>> x = torch.zeros(2, 3, 4, 4)
    >>> has_channels_last(x), has_channels_last(x.contiguous(memory_format=torch.channels_last))
    (False, True)
    """
    smallest, of_channels = 0, x.stride(1)
    for dim in (1, 3, 2, 0):
        size, stride = x.shape[dim], x.stride(dim)
        if size == 0 or stride < smallest or (dim == 1 and stride == 0) or (dim == 0 and smallest == of_channels):
            return False
        smallest = stride * size
    return True


def runs_channels_last(network: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether a digital network takes images of this shape, (C, H, W), in channels last; flattening by view does not.

    >>> [runs_channels_last(nn.Sequential(nn.Conv2d(1, 2, 3), flat), (1, 8, 8)) for flat in (nn.Flatten(), nn.ReLU())]
    [True, True]
    """
    if len(shape) != 3:
        return False
    like = next(network.parameters())
    blank = torch.zeros(2, *shape, device=like.device, dtype=like.dtype)
    with inference(network):
        try:
            network(*_lay_out(network, (blank,)))
        except RuntimeError:
            return False
    return True


def lay_out_channels_last(network: nn.Module) -> None:
    """Have a network lay its images out in channels last before it runs.

    >>> layer = nn.Conv2d(1, 1, 3)
    >>> lay_out_channels_last(layer)
    >>> has_channels_last(layer(torch.zeros(2, 1, 8, 8)))
    True
    """
    network.register_forward_pre_hook(_lay_out)


def _lay_out(network: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    images, *others = inputs
    if not isinstance(images, Tensor) or images.dim() != 4 or has_channels_last(images):
        return inputs
    last = torch.empty_like(images, memory_format=torch.channels_last)  # contiguous() leaves those of one channel
    return last.copy_(images), *others
