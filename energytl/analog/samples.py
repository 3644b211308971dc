"""What arrays that train on chip need: every sample's inputs and errors, handed over in the backward pass.

A weight that trains digitally wants one gradient, the sum over samples of d·xᵀ. Pulses need the samples' x and d
themselves. An optimizer asks for them with `collect`; from then on, and as long as it keeps what it got, layers with
that weight compute no gradient of it, but note x and d in each backward pass.
"""

import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.autograd import Function
from torch.utils.weak import WeakIdKeyDictionary

if TYPE_CHECKING:
    from energytl.analog.layers import AnalogLayer


@dataclass
class Samples:
    """The samples of one weight since it was last changed.

    Attributes:
        batches: for each use of the weight in a backward pass the layer, its padded inputs x, and d, the gradients of
            the loss to its outputs.
    """

    batches: "list[tuple[AnalogLayer, Tensor, Tensor]]" = field(default_factory=list)


_COLLECTED: Any = WeakIdKeyDictionary()


def collect(weight: nn.Parameter) -> Samples:
    """Have layers of this weight hand over their samples, as long as the result is kept."""
    samples = Samples()
    _COLLECTED[weight] = weakref.ref(samples)
    return samples


def collected(weight: nn.Parameter) -> Samples | None:
    """Where samples of this weight are collected, or None if it trains digitally."""
    reference = _COLLECTED.get(weight)
    return None if reference is None else reference()


def hand_over(y: Tensor, weight: nn.Parameter, x: Tensor, samples: Samples, layer: "AnalogLayer") -> Tensor:
    """The outputs y, unchanged; their backward pass notes x and the gradient of y."""
    outputs: Tensor = _HandOver.apply(y, weight, x, samples, layer)
    return outputs


class _HandOver(Function):
    """Identity on y; the weight is an argument so that a backward pass comes by even where x wants no gradient."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, weight: Tensor, x: Tensor, samples: Samples, layer: "AnalogLayer") -> Tensor:  # noqa: ANN401
        """Pass y on."""
        ctx.save_for_backward(x)
        ctx.samples, ctx.layer = samples, layer
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:  # noqa: ANN401
        """Note the sample; no gradient for the weight."""
        (x,) = ctx.saved_tensors
        ctx.samples.batches.append((ctx.layer, x.detach(), grad.detach()))
        return grad, None, None, None, None
