"""Ranges of inputs and weights that train beside ρ."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from energytl.analog.layers import AnalogConv2d, AnalogLayer


class TrainedRanges(nn.Module):
    """Trainable factors on the ranges of each analog layer, of its inputs or its weights, while training lasts.

    A layer of input range r reads f_r; f_{s·r}(x) = s·f_r(x/s), so dividing its inputs and multiplying its outputs by s
    is a range of s·r, with the straight-through gradients of rounding, cutting (Esser 2020, LSQ) and energy: a wider
    range sends fewer pulses, a tighter one rounds finer. Likewise for its weights, whose wider range takes less
    conductance, and fluctuates more.

    Args:
        layers: the network's analog layers, calibrated.
        inputs: whether the ranges of inputs train.
        weights: whether those of weights do, but for weights that do not train.
    """

    def __init__(self, layers: list[AnalogLayer], *, inputs: bool = True, weights: bool = False) -> None:
        super().__init__()
        self.log_input_factors, self.log_weight_factors = nn.ParameterList(), nn.ParameterList()
        self._factors, self._hooks = [], []
        for layer in layers:
            zero = torch.zeros((), device=layer.weight.device)
            log_input = nn.Parameter(zero) if inputs else None
            log_weight = nn.Parameter(zero.clone()) if weights and layer.weight.requires_grad else None
            if log_input is not None:
                self.log_input_factors.append(log_input)
            if log_weight is not None:
                self.log_weight_factors.append(log_weight)
                layer.weight_factor = partial(torch.exp, log_weight)
            if log_input is not None or log_weight is not None:
                factors = _Factors(layer, log_input, log_weight)
                self._factors.append(factors)
                self._hooks.append(layer.register_forward_pre_hook(factors.before, prepend=True))
                self._hooks.append(layer.register_forward_hook(factors.after, prepend=True))

    def settle(self) -> None:
        """Leave the trained ranges to the layers, and the layers alone."""
        for factors in self._factors:
            layer = factors.layer
            if factors.log_input is not None:
                assert layer.input_range is not None
                layer.input_range *= float(factors.log_input.detach().exp())
            if factors.log_weight is not None:
                layer.weight_factor = None
                layer.widen(float(factors.log_weight.detach().exp()))
        for hook in self._hooks:
            hook.remove()


class _Factors:
    """The factors of one layer, as its hooks apply them."""

    def __init__(self, layer: AnalogLayer, log_input: Tensor | None, log_weight: Tensor | None) -> None:
        self.layer, self.log_input, self.log_weight = layer, log_input, log_weight

    def before(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> Any:  # noqa: ANN401
        """Divide its inputs; the layer itself divides the weights that it stores."""
        return None if self.log_input is None else (inputs[0] / self.log_input.exp(),)

    def after(self, layer: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> Tensor:
        """Multiply its outputs, but for the bias."""
        factor = torch.stack([log for log in (self.log_input, self.log_weight) if log is not None]).sum().exp()
        if self.layer.bias is None:
            return outputs * factor
        bias = self.layer.bias.view(-1, 1, 1) if isinstance(layer, AnalogConv2d) else self.layer.bias
        return (outputs - bias) * factor + bias
