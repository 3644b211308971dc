"""Input ranges that train beside ρ."""

from typing import Any

import torch
from torch import Tensor, nn

from energytl.analog.layers import AnalogConv2d, AnalogLayer


class TrainedRanges(nn.Module):
    """A trainable factor s on the input range of each analog layer, while training lasts.

    A layer of input range r reads f_r; f_{s·r}(x) = s·f_r(x/s), so dividing its inputs and multiplying its outputs by s
    is a range of s·r, with the straight-through gradients of rounding, cutting (Esser 2020, LSQ) and energy: a wider
    range sends fewer pulses, a tighter one rounds finer. The weights' range needs no factor of its own: the weights
    train in a fixed one, and a normalisation or the next layer takes up their scale.

    Args:
        layers: the network's analog layers, calibrated.
    """

    def __init__(self, layers: list[AnalogLayer]) -> None:
        super().__init__()
        self.log_factors = nn.ParameterList(torch.zeros((), device=layer.weight.device) for layer in layers)
        self._layers = layers
        self._hooks = [
            hook
            for layer, log_factor in zip(layers, self.log_factors, strict=True)
            for hook in (
                layer.register_forward_pre_hook(_Divide(log_factor), prepend=True),
                layer.register_forward_hook(_Multiply(log_factor), prepend=True),
            )
        ]

    def settle(self) -> None:
        """Leave the trained ranges to the layers, and the layers alone."""
        for layer, log_factor in zip(self._layers, self.log_factors, strict=True):
            assert layer.input_range is not None
            layer.input_range *= float(log_factor.detach().exp())
        for hook in self._hooks:
            hook.remove()


class _Divide:
    """Inputs of a layer, divided by its factor."""

    def __init__(self, log_factor: Tensor) -> None:
        self.log_factor = log_factor

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> Any:  # noqa: ANN401
        return (inputs[0] / self.log_factor.exp(),)


class _Multiply:
    """Outputs of a layer, multiplied by its factor, but for the bias."""

    def __init__(self, log_factor: Tensor) -> None:
        self.log_factor = log_factor

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> Tensor:
        assert isinstance(layer, AnalogLayer)
        factor = self.log_factor.exp()
        if layer.bias is None:
            return outputs * factor
        bias = layer.bias.view(-1, 1, 1) if isinstance(layer, AnalogConv2d) else layer.bias
        return (outputs - bias) * factor + bias
