"""The two ways in which Dong 2018, §IV, trains the last layer of a network on memory cells, as torch optimizers.

    optimizer = energytl.optim.ResetPair(model.parameters(), lr=0.1)

Set is abrupt and leads to the highest conductance; reset leads down, by one pulse to a level (multilevel cells) or by
many small ones (analog cells). Cells get their pulses one after the other, as the paper counts time: 1.7·10⁶ pulses of
100 ns are 170 ms. Both train by the gradients of weights, so all that has a gradient plays a part.
"""

import weakref
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from energytl.analog.layers import AnalogLayer
from energytl.analog.mapping import ResetCells
from energytl.cost.training import Activity
from energytl.optim.on_chip import OnChipOptimizer, refuse_changes

State = dict[str, Any]
Stages = tuple[tuple[float, float], ...]
"""(share of the pulses, share of the conductance range) of each stage of a reset, high state first; (): linear."""

PULSE_S = 100e-9
"""Length of a pulse, s (Dong 2018, §IV B)."""

PULSE_J = 5.1e-12
"""Energy of a pulse, J (assumption: 1.6 V, as §II resets with, across 20 µS for 100 ns)."""

SAME_LEVEL = 1e-6
"""Levels that differ by less, in units of the highest, are one."""


def write_pulses(levels: Tensor) -> Tensor:
    """Pulses that write cells: a set to the highest level, and a reset unless that is the target (Dong 2018, §II).

    Args:
        levels: targets in units of the highest, −1..1, any shape.

    >>> write_pulses(torch.tensor([0.0, 0.125, 1.0]))
    tensor([2, 2, 1])
    """
    return 2 - (levels.abs() >= 1 - SAME_LEVEL).long()


def reset_conductance(pulses: Tensor, states: int, stages: Stages = ()) -> Tensor:
    """Conductance after so many reset pulses from the high state: 1 down to 0 after `states`, any shape, float64.

    Linear within each stage. The paper says that there are three, of different speed and range (Dong 2018, §II), but
    gives no numbers.

    >>> reset_conductance(torch.tensor([0, 50, 200]), 200)
    tensor([1.0000, 0.7500, 0.0000], dtype=torch.float64)
    >>> reset_conductance(torch.tensor([0, 50, 200]), 200, ((0.25, 0.5), (0.75, 0.5)))
    tensor([1.0000, 0.5000, 0.0000], dtype=torch.float64)
    """
    return 1 - _along(pulses.double() / states, stages)


def resets_to(conductance: Tensor, states: int, stages: Stages = ()) -> Tensor:
    """Reset pulses from the high state that come nearest to a conductance 0..1; the inverse of reset_conductance.

    >>> resets_to(torch.tensor([1.0, 0.5, 0.0]), 200, ((0.25, 0.5), (0.75, 0.5)))
    tensor([  0,  50, 200], dtype=torch.int32)
    """
    turned = tuple((height, width) for width, height in stages)
    return (states * _along(1 - conductance.double(), turned)).round().int()


def _along(way: Tensor, stages: Stages) -> Tensor:
    """Height after a share of the way up stairs of (width, height), both summing to 1; () is a ramp."""
    if not stages:
        return way
    start, height = 0.0, torch.zeros_like(way)
    for width, rise in stages:
        height += rise * ((way - start) / width).clamp(0, 1)
        start += width
    return height


def reset_pairs(resets: Tensor, steps: Tensor, states: int, stages: Stages = ()) -> tuple[Tensor, Tensor, Tensor]:
    """Move weights W = G⁺ − G⁻ by resets alone: up by pulses to G⁻, down by pulses to G⁺ (Dong 2018, §IV B).

    A pair at the range's end stays there. Where a cell has no states left for all its pulses although the pair is not
    at the end, both are set, and one is reset to the difference wanted (an assumption: the paper does not say).

    Args:
        resets: pulses that G⁺ and G⁻ got since they were set, 0..states, (2, *shape), int32.
        steps: pulses up (above 0) or down, each meant to be 1/states of a cell's conductance range; shape, int32.
        states: pulses from the highest conductance to the lowest.
        stages: of a reset; the pulses sent do not depend on them, what they do does.

    Returns:
        The new counts, the pulses of each cell, both (2, *shape), and which pairs were set anew, shape.

    >>> resets = torch.tensor([[0, 3], [0, 2]], dtype=torch.int32)  # W = 0 and −1 of 3 states
    >>> [t.tolist() for t in reset_pairs(resets, torch.tensor([1, 2], dtype=torch.int32), 3)]
    [[[0, 0], [1, 1]], [[0, 1], [1, 2]], [False, True]]
    """
    none, up = torch.zeros_like(steps), steps > 0
    plus, minus = resets
    before, other = torch.where(up, minus, plus), torch.where(up, plus, minus)
    after = before + steps.abs()
    renewed = (after > states) & (other > 0)
    sent = after.clamp(max=states) - before
    pulses = torch.stack([torch.where(up, none, sent), torch.where(up, sent, none)])
    high, low = reset_conductance(resets, states, stages)
    wanted = (high - low + steps.double() / states).clamp(-1, 1)
    anew = resets_to(1 - wanted.abs(), states, stages)
    programmed = torch.stack([torch.where(wanted < 0, anew, none), torch.where(wanted > 0, anew, none)])
    return (
        torch.where(renewed, programmed, resets + pulses),
        torch.where(renewed, programmed + 1, pulses),
        renewed,
    )


def levels_of_cells(layer: AnalogLayer) -> Tensor:
    """What a layer's cells hold, in units of the highest level, (cells a weight, *weight.shape); detached.

    Of a pair that its mapping stores as one number, both cells. Sign cells are not among them; a weight that only
    turns its sign counts as written.
    """
    mapping, weights = layer.hardware.mapping, layer.hardware.weights
    stored = mapping.stored(layer.stored_weight.detach(), weights)
    return torch.cat([stored.clamp(min=0), (-stored).clamp(min=0)]) if mapping.idle_cells(weights) else stored


class Passes:
    """A forward hook that counts the inputs whose gradients reach a layer's weight.

    Attributes:
        layer: the layer that got them last; None in copies, which count for nobody.
        samples: images times output positions since they were last fetched.
    """

    def __init__(self, layer: AnalogLayer | None = None) -> None:
        self.layer, self.samples = layer, 0

    def __call__(self, layer: AnalogLayer, inputs: tuple[Tensor, ...], outputs: Tensor) -> None:
        """Count them in the backward pass, if there is one."""
        if self.layer is not None and outputs.requires_grad and layer.weight.requires_grad:
            samples = outputs.numel() // len(layer.weight)
            outputs.register_hook(lambda _: self._count(layer, samples))

    def _count(self, layer: AnalogLayer, samples: int) -> None:
        self.layer, self.samples = layer, self.samples + samples

    def fetch(self) -> int:
        """The samples so far, which are forgotten."""
        samples, self.samples = self.samples, 0
        return samples

    def __reduce__(self) -> tuple[type["Passes"], tuple[()]]:
        return Passes, ()


class TransferOptimizer(OnChipOptimizer):
    """What both ways share: which layers they train, samples, writes. All other parameters are trained by plain SGD.

    Args:
        params: parameters or groups of them; those that are weights of analog layers train on chip.
        lr: learning rate.
        settings: see OnChipOptimizer.
        pulse_s, pulse_j: length and energy of a pulse, s and J.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, settings: dict[str, Any], pulse_s: float, pulse_j: float
    ) -> None:
        for name, value in (("pulse_s", pulse_s), ("pulse_j", pulse_j)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value}; allowed: 0 or more")
        self.pulse_s, self.pulse_j = pulse_s, pulse_j
        self.passes: dict[Tensor, Passes] = {}
        super().__init__(params, lr, {**settings, "by": repr(self)})

    def take_up(self, weight: Tensor, layers: list[AnalogLayer]) -> None:  # noqa: D102
        fitting = [layer for layer in layers if self.holds(layer)]
        if not fitting:
            raise ValueError(
                f"the weights of layer {layers[0].index} (weight {tuple(weight.shape)}) have no levels that "
                f"{type(self).__name__} could write: {self.advice}"
            )
        refuse_changes(fitting[0])
        self.passes[weight] = Passes(fitting[0])
        for layer in fitting:
            hook = layer.register_forward_hook(self.passes[weight])
            weakref.finalize(self, hook.remove)

    advice: str
    """How to convert a network whose weights the optimizer can write."""

    @abstractmethod
    def holds(self, layer: AnalogLayer) -> bool:
        """Whether the cells of this optimizer hold the weights of such a layer."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget gradients and samples."""
        super().zero_grad(set_to_none)
        for passes in self.passes.values():
            passes.samples = 0

    def update(self, parameter: Tensor, group: dict[str, Any], number: int) -> None:  # noqa: D102
        if parameter.grad is None:
            return
        state = self.state[parameter]
        if parameter not in self.passes:
            self.descend(parameter, parameter.grad, state, group)
            return
        passes = self.passes[parameter]
        assert passes.layer is not None
        state["samples"] = state.get("samples", 0) + passes.fetch()
        self.learn(parameter, parameter.grad, passes.layer, state, group)

    def descend(self, parameter: Tensor, gradient: Tensor, state: State, group: dict[str, Any]) -> None:
        """A step of plain SGD."""
        parameter.add_(gradient, alpha=-group["lr"])

    @abstractmethod
    def learn(self, weight: Tensor, gradient: Tensor, layer: AnalogLayer, state: State, group: dict[str, Any]) -> None:
        """Change a layer's cells and its weight by one gradient; `writes` of each cell are in the state."""

    @abstractmethod
    def pulses(self, state: State) -> int:
        """Pulses of all cells of one weight so far."""

    def activities(self) -> list[Activity]:  # noqa: D102
        found = []
        for weight, passes in self.passes.items():
            state = self.state.get(weight)
            if state and passes.layer is not None:
                pulses = self.pulses(state)
                found.append(
                    Activity(
                        layer=passes.layer.index,
                        outputs=len(weight),
                        samples=state["samples"],
                        slots=pulses,
                        pulses=pulses,
                        column_reads=0,
                        pulse_s=self.pulse_s,
                        pulse_j=self.pulse_j,
                        most_writes=int(state["writes"].max()),
                    )
                )
        return found


class MultilevelRefresh(TransferOptimizer):
    """Multilevel cells and a digital memory (Dong 2018, §IV A).

    Full-precision weights are trained by SGD, in the memory; the layer computes with what its cells hold of them.
    Before the first step all cells are written, after each step those whose level changed. A write is one programming
    of a cell, of `write_pulses` pulses.

    Args:
        params: see TransferOptimizer.
        lr: learning rate; 2 to 5 is good with one level, more unstable (Dong 2018, Fig. 12).
        momentum: of SGD.
        pulse_s, pulse_j: length and energy of a pulse, s and J.

    >>> import energytl
    >>> from torch import nn
    >>> layer = energytl.convert(nn.Linear(4, 3, bias=False))
    >>> optimizer = MultilevelRefresh(layer.parameters(), lr=0.0)
    >>> layer(torch.ones(5, 4)).sum().backward()
    >>> optimizer.step()
    >>> (activity,) = optimizer.activities()
    >>> activity.samples, activity.most_writes
    (5, 1)
    """

    advice = "convert with weights: {bits: 5}, or a mapping with levels of its own, as MultilevelPair"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.0,
        pulse_s: float = PULSE_S,
        pulse_j: float = PULSE_J,
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}; allowed: 0 up to 1")
        super().__init__(params, lr, {"momentum": momentum}, pulse_s, pulse_j)

    def holds(self, layer: AnalogLayer) -> bool:  # noqa: D102
        return layer.hardware.rounds

    def descend(self, parameter: Tensor, gradient: Tensor, state: State, group: dict[str, Any]) -> None:  # noqa: D102
        if group["momentum"]:
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter)
            gradient = state["momentum"].mul_(group["momentum"]).add_(gradient)
        parameter.add_(gradient, alpha=-group["lr"])

    def learn(  # noqa: D102
        self, weight: Tensor, gradient: Tensor, layer: AnalogLayer, state: State, group: dict[str, Any]
    ) -> None:
        if "held" not in state:
            held = levels_of_cells(layer)
            state |= {"held": held, "writes": torch.ones_like(held, dtype=torch.int32)}
            state["pulses"] = write_pulses(held).sum()
        self.descend(weight, gradient, state, group)
        held = levels_of_cells(layer)
        changed = (held - state["held"]).abs() > SAME_LEVEL
        state["held"] = held
        state["writes"] += changed
        state["pulses"] += (write_pulses(held) * changed).sum()

    def pulses(self, state: State) -> int:  # noqa: D102
        return int(state["pulses"])

    def __repr__(self) -> str:
        return "MultilevelRefresh()"


class ResetPair(TransferOptimizer):
    """Analog cells, updated in place without a digital memory (Dong 2018, §IV B).

    A weight is W = (G⁺ − G⁻)·range of two cells of n states above their lowest, so ±range in steps of range/n. Before
    the first step both cells are at their highest conductance and are reset to the weight. ΔW = −lr·gradient is rounded
    to range/n, and what rounds to 0 is lost; the rest is sent as pulses, see `reset_pairs`. Every pulse counts as a
    write of its cell.

    The controller sends ΔW·n/range pulses whatever the state, so with `stages` a pulse moves more in one than in
    another; weights then lie between the n steps, and the layer rounds them in its reads.

    Args:
        params: see TransferOptimizer; layers want weights of equal steps: {bits: null, states: 200, range: 2.0}.
        lr: learning rate.
        rounding: of ΔW: to the nearest step, or down in magnitude.
        stages: (share of the pulses, share of the conductance range) of each stage of a reset, from the high state
            down, both summing to 1; (): linear. The paper gives no numbers: they are yours.
        pulse_s, pulse_j: length and energy of a pulse, s and J.

    >>> import energytl
    >>> from torch import nn
    >>> weights = energytl.WeightFormat(bits=None, states=200, range=2.0)
    >>> hardware = energytl.Hardware(mapping=energytl.ResetCells(), weights=weights)
    >>> layer = energytl.convert(nn.Linear(1, 1, bias=False), hardware)
    >>> _ = nn.init.constant_(layer.weight, 0.5)
    >>> optimizer = ResetPair(layer.parameters(), lr=0.1)
    >>> layer(torch.ones(1, 1)).sum().backward()
    >>> optimizer.step()
    >>> round(float(layer.weight.detach()), 6), optimizer.activities()[0].pulses  # 50 to the start, 10 down
    (0.4, 60)
    """

    advice = "convert with mapping: ResetCells and weights: {bits: null, states: 200, range: 2.0}"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        rounding: Literal["nearest", "down"] = "nearest",
        stages: Stages = (),
        pulse_s: float = PULSE_S,
        pulse_j: float = PULSE_J,
    ) -> None:
        if rounding not in ("nearest", "down"):
            raise ValueError(f"rounding is {rounding!r}; allowed: nearest, down")
        self.rounding, self.stages = rounding, tuple((float(share), float(fall)) for share, fall in stages)
        sums = [sum(column) for column in zip(*self.stages, strict=True)]
        if min((min(stage) for stage in self.stages), default=1) <= 0 or not all(
            abs(total - 1) < 1e-6 for total in sums
        ):
            raise ValueError(
                f"stages is {self.stages}; allowed: (share of the pulses, share of the conductance range) of each, "
                "above 0, both summing to 1"
            )
        super().__init__(params, lr, {}, pulse_s, pulse_j)

    def holds(self, layer: AnalogLayer) -> bool:  # noqa: D102
        return isinstance(layer.hardware.mapping, ResetCells) and layer.hardware.rounds

    def learn(  # noqa: D102
        self, weight: Tensor, gradient: Tensor, layer: AnalogLayer, state: State, group: dict[str, Any]
    ) -> None:
        states = layer.hardware.weights.levels
        span = torch.as_tensor(layer.weight_range, dtype=torch.float64, device=weight.device)
        if layer.column_ranges is not None:
            span = span * layer.column_ranges
        name = f"layer {layer.index} (weight {tuple(weight.shape)})"
        if not torch.isfinite(gradient).all():
            raise ValueError(f"{name} got a gradient that is not finite: look at the loss, or lower lr")
        if "resets" not in state:
            wanted = (weight.double() / span * states).round().clamp(-states, states) / states
            anew = resets_to(1 - wanted.abs(), states, self.stages)
            resets = torch.stack([anew * (wanted < 0), anew * (wanted > 0)])
            state |= {
                "resets": resets,
                "writes": resets.clone(),
                "sets": torch.zeros((), dtype=torch.int64, device=weight.device),
            }
            state |= {"range": span, "states": states}
        if state["states"] != states or not torch.equal(state["range"], span):
            raise ValueError(
                f"{name} has another range or number of states than its cells were programmed for: change it before "
                "training, or make a new optimizer"
            )
        wanted = gradient.double() * (-group["lr"] * states / span)
        steps = (wanted.round() if self.rounding == "nearest" else wanted.trunc()).clamp(-2 * states, 2 * states).int()
        state["resets"], pulses, renewed = reset_pairs(state["resets"], steps, states, self.stages)
        state["writes"] += pulses
        state["sets"] += 2 * renewed.sum()
        high, low = reset_conductance(state["resets"], states, self.stages)
        weight.copy_((high - low) * span)

    def pulses(self, state: State) -> int:  # noqa: D102
        return int(state["writes"].sum())

    def __repr__(self) -> str:
        return f"ResetPair(rounding={self.rounding!r}, stages={self.stages})"
