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
    """The outputs y, unchanged; a backward pass that would reach the weight notes x and the gradient of y."""
    errors: list[Tensor] = []
    wanted = _Weight.apply(weight, x.detach(), errors, samples, layer)
    outputs: Tensor = _Outputs.apply(y, wanted, errors)
    return outputs


class _Weight(Function):
    """Stands for the weight: its backward pass comes by only where the weight's gradient is wanted."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        weight: Tensor,
        x: Tensor,
        errors: list[Tensor],
        samples: Samples,
        layer: "AnalogLayer",
    ) -> Tensor:
        """A scalar that depends on the weight."""
        ctx.save_for_backward(x)
        ctx.errors, ctx.samples, ctx.layer = errors, samples, layer
        return weight.new_zeros(())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:  # noqa: ANN401
        """Note the sample; no gradient for the weight."""
        (x,) = ctx.saved_tensors
        ctx.samples.batches.append((ctx.layer, x, ctx.errors.pop()))
        return None, None, None, None, None


class _Outputs(Function):
    """Identity on the outputs, whose gradient it keeps for `_Weight`."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, wanted: Tensor, errors: list[Tensor]) -> Tensor:  # noqa: ANN401
        """Pass y on as a copy: nothing that works in place could follow a view of it, and tokens' outputs are views."""
        ctx.errors = errors
        return y.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # noqa: ANN401
        """Keep the errors."""
        ctx.errors[:] = [grad.detach()]
        return grad, grad.new_zeros(()), None
