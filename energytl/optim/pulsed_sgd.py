"""Pulses that go straight to the weights: pulsed gradient descent, and the hybrid with digital accumulation."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from energytl.analog.layers import AnalogLayer
from energytl.devices.pulsed import PulsedDevice
from energytl.optim.array import CellArray
from energytl.optim.pulsed_optimizer import PulsedOptimizer, State, show
from energytl.optim.pulses import Lines, PulseTrain, counts_in_order, expected_pulses, pulse_rates


class PulsedSGD(PulsedOptimizer):
    """Pulses go straight to the weights: E[ΔW] = −lr·d·xᵀ for cells of constant steps (Gokmen & Vlasov 2016).

    On cells whose up and down steps differ with their state, weights are drawn to the symmetry point.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        device: PulsedDevice,
        exact: bool = False,
        train: PulseTrain = PulseTrain(),
        seed: int | None = None,
    ) -> None:
        super().__init__(params, lr, device, exact, train, seed)

    def program(self, shape: tuple[int, ...], weights: Tensor, generator: torch.Generator) -> State:  # noqa: D102
        return {"slow": _programmed(self.device, shape, weights, generator).tensors()}

    def learn(  # noqa: D102
        self, state: State, layer: AnalogLayer, lines: Lines, images: int, lr: float, generator: torch.Generator
    ) -> Tensor:
        array = CellArray.of(state["slow"])
        rate = lr / (layer.weight_range * self.device.dw_min)
        rates = pulse_rates(lines, rate, self.train)
        if self.exact:
            x, d = lines.matrices()
            counts = counts_in_order(x, d, rate, self.train, generator)
            array.train_(counts, x.shape[-2], self.device, generator, self.fuse)
        else:
            pulses, unchopped = expected_pulses(lines, rates), torch.ones((1, 1, 1), device=lines.x.device)
            array.train_aggregated_(pulses, unchopped, self.device, generator, self.fuse)
        show(layer, array.show_(self.device, generator))
        return rates.slots

    def __repr__(self) -> str:
        return f"PulsedSGD(exact={self.exact}, train={self.train})"


class Hybrid(PulsedOptimizer):
    """Gradients add up digitally, weights are analog: the hybrid system (Athena 2024, fig. 1B; Ambrogio 2018).

    H −= lr·d·xᵀ/range; where |H| ≥ θ = threshold·dw_min, C gets ⌊|H|/θ⌋ pulses, at most `longest` of the train, and H
    keeps the rest.

    Args:
        threshold: θ in units of dw_min.
        others: see PulsedOptimizer.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        device: PulsedDevice,
        threshold: float = 1.0,
        train: PulseTrain = PulseTrain(),
        seed: int | None = None,
    ) -> None:
        if not 0 < threshold < float("inf"):
            raise ValueError(f"threshold is {threshold}; allowed: above 0 (in units of dw_min)")
        self.threshold = threshold
        super().__init__(params, lr, device, True, train, seed)

    def program(self, shape: tuple[int, ...], weights: Tensor, generator: torch.Generator) -> State:  # noqa: D102
        slow = _programmed(self.device, shape, weights, generator)
        return {"slow": slow.tensors(), "buffer": torch.zeros(shape, device=generator.device)}

    def learn(  # noqa: D102
        self, state: State, layer: AnalogLayer, lines: Lines, images: int, lr: float, generator: torch.Generator
    ) -> Tensor:
        array, buffer = CellArray.of(state["slow"]), state["buffer"]
        buffer.sub_(lines.correlate(lines.x, lines.d), alpha=lr / layer.weight_range)
        theta = self.threshold * self.device.dw_min
        counts = (buffer / theta).trunc().clamp(-self.train.longest, self.train.longest)
        buffer.sub_(counts, alpha=theta)
        array.train_(lambda first, last: counts.unsqueeze(-3), 1, self.device, generator, self.fuse)
        show(layer, array.show_(self.device, generator))
        return counts.abs().amax() * counts.shape[-1]  # cells are written column by column

    def __repr__(self) -> str:
        return f"Hybrid(threshold={self.threshold}, train={self.train})"


def _programmed(device: PulsedDevice, shape: tuple[int, ...], weights: Tensor, generator: torch.Generator) -> CellArray:
    array = CellArray.new(device, shape, generator)
    array.write_(weights, device, generator)
    return array
