"""Ranges of inputs and weights that train beside ρ."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from energytl.analog.fused import flat, is_dense
from energytl.analog.layers import AnalogLayer


class TrainedRanges(nn.Module):
    """Trainable ranges of each analog layer, of its inputs or its weights, while training lasts.

    A layer of input range r reads f_r; f_{s·r}(x) = s·f_r(x/s). So the gradient to log r is that of log s at s = 1,
    gradients through rounding, cutting (Esser 2020, LSQ) and energy included: a wider range sends fewer pulses, a
    tighter one rounds finer. Likewise for its weights, whose wider range takes less conductance, and fluctuates more.

    Args:
        layers: the network's analog layers, calibrated.
        inputs: whether the ranges of inputs train.
        weights: whether those of weights do, but for weights that do not train.
    """

    def __init__(self, layers: list[AnalogLayer], *, inputs: bool = True, weights: bool = False) -> None:
        super().__init__()
        self.log_input_ranges, self.log_weight_factors = nn.ParameterList(), nn.ParameterList()
        self._ranges, self._hooks = [], []
        if inputs and layers and all(layer.hardware.inputs.follows for layer in layers):
            raise ValueError(
                "objective.range_lr: no range of inputs can train where it follows each input (inputs.follows): set "
                "range_lr to 0, or hardware.inputs.follows to false"
            )
        for layer in layers:
            log_input: nn.Parameter | None = None
            log_weight: nn.Parameter | None = None
            if inputs and not layer.hardware.inputs.follows:
                if layer.input_range is None:
                    raise ValueError("a range of inputs trains from a calibrated one: calibrate the network first")
                log_input = nn.Parameter(layer.weight.new_tensor(layer.input_range).log())
                self.log_input_ranges.append(log_input)
            if weights and layer.weight.requires_grad:
                log_weight = nn.Parameter(layer.weight.new_zeros(()))
                self.log_weight_factors.append(log_weight)
                layer.weight_factor = partial(torch.exp, log_weight)
            if log_input is not None or log_weight is not None:
                ranges = _Ranges(layer, log_input, log_weight)
                self._ranges.append(ranges)
                self._hooks.append(layer.register_forward_pre_hook(ranges.before, prepend=True))
                self._hooks.append(layer.register_forward_hook(ranges.after, prepend=True))

    def settle(self) -> None:
        """Leave the trained ranges to the layers, and the layers alone."""
        for ranges in self._ranges:
            ranges.set_input_range()
            if ranges.log_weight is not None:
                ranges.layer.weight_factor = None
                ranges.layer.widen(float(ranges.log_weight.detach().exp()))
        for hook in self._hooks:
            hook.remove()


class _Ranges:
    """The ranges of one layer, as its hooks apply them."""

    def __init__(self, layer: AnalogLayer, log_input: Tensor | None, log_weight: Tensor | None) -> None:
        self.layer, self.log_input, self.log_weight = layer, log_input, log_weight

    def set_input_range(self) -> None:
        """Give the layer the trained range of its inputs."""
        if self.log_input is not None:
            self.layer.input_range = float(self.log_input.detach().exp())

    def before(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> Any:  # noqa: ANN401
        """Set the range; the layer itself divides the weights that it stores by their factor."""
        self.set_input_range()
        return None if self.log_input is None else (_Inputs.apply(inputs[0], self.log_input),)

    def after(self, layer: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> Tensor:
        """Multiply the outputs, but for the bias, by the factor on the weights."""
        if self.log_weight is not None:
            factor, bias = self.log_weight.exp(), self.layer.bias
            if bias is None:
                outputs = outputs * factor
            else:
                offset = self.layer.of_outputs(bias)
                outputs = (outputs - offset) * factor + offset
        if self.log_input is not None:
            outputs = _Outputs.apply(outputs, self.log_input, self.layer)
        return outputs


class _Inputs(Function):
    """x = s·(x/s), as far as gradients to x/s tell: −Σ x·grad to log s."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, log_range: Tensor) -> Tensor:  # noqa: ANN401
        """Pass x on."""
        ctx.save_for_backward(x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        """Gradients to x and to the log of the range."""
        (x,) = ctx.saved_tensors
        return grad, -_inner(x, grad)


class _Outputs(Function):
    """y = s·(y/s), but for the bias: Σ (y − bias)·grad to log s."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, log_range: Tensor, layer: AnalogLayer) -> Tensor:  # noqa: ANN401
        """Pass y on as a copy: what works in place may follow."""
        ctx.save_for_backward(y, layer.bias)
        ctx.layer = layer
        return y.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # noqa: ANN401
        """Gradients to y and to the log of the range."""
        y, bias = ctx.saved_tensors
        return grad, _inner(y if bias is None else y - ctx.layer.of_outputs(bias), grad), None


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Σ a·b of two tensors of one shape, a scalar; in one pass over memory where they lie alike."""
    if a.stride() == b.stride() and is_dense(a):
        return torch.dot(flat(a), flat(b))
    return (a * b).sum()
