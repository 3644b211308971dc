"""torch optimizers that train analog layers by pulses, and everything else by plain gradient descent.

    optimizer = energytl.optim.CTTv2(model.parameters(), lr=0.05, device=energytl.devices.presets.reram_om())

Weights of analog layers live on arrays of pulsed cells, whose states are in the optimizer's state; a layer's weight
is what its cells show, in units of its `weight_range`. When a weight is stepped first, its cells are drawn and
programmed with it. Everything random comes from the optimizer's seed and its own step count, so that a resumed run
goes on bit for bit.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from energytl.analog.layers import AnalogLayer, layers_of
from energytl.analog.mapping import SMALLEST_RANGE
from energytl.analog.samples import Samples, collect
from energytl.cost.training import Activity
from energytl.devices.pulsed import PulsedDevice
from energytl.optim.array import CellArray
from energytl.optim.on_chip import Cells, OnChipOptimizer, refuse_changes
from energytl.optim.pulses import Lines, PulseTrain
from energytl.streams import Stream, seed_of

State = dict[str, Any]

FAST = ("fast", "chop", "mean", "past")
"""What belongs to Tiki-Taka's array A in a weight's state."""


class PulsedOptimizer(OnChipOptimizer):
    """What all optimizers on pulsed cells share: who trains on chip, samples, randomness.

    A pulse needs an input and an error: what else reaches a weight's gradient (the price of energy, a tied layer) is
    not carried out, and gradients are not clipped; the price of energy still moves ρ.

    Attributes:
        fuse: compute large arrays in fused kernels (torch.compile).

    Args:
        params: parameters or groups of them; those that are weights of analog layers train on chip, all others by
            plain gradient descent with the group's lr.
        lr: learning rate.
        device: kind of cell.
        exact: apply samples one after the other, each finding the state that the last one left; else a mini-batch at
            once (see `CellArray.train_aggregated_`).
        train: pulse trains.
        seed: of cells and pulses; None draws it from torch's global generator.

    Raises:
        ValueError: if no parameter is a weight of an analog layer.
    """

    _step_supports_amp_scaling = True  # so that a GradScaler says what it scaled by

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        device: PulsedDevice,
        exact: bool,
        train: PulseTrain,
        seed: int | None,
    ) -> None:
        require_pulsed("device", device)
        self.device, self.exact, self.train = device, exact, train
        self.fuse = True
        seed = int(torch.randint(2**62, ())) if seed is None else seed
        self.samples: dict[Tensor, Samples] = {}
        self.earlier: Cells = {}
        super().__init__(params, lr, {"seed": seed, "on": repr(device), "by": repr(self)})

    def take_up(self, weight: Tensor, layers: list[AnalogLayer]) -> None:  # noqa: D102
        layer = layers[0]
        name = f"layer {layer.index} (weight {tuple(weight.shape)})"
        if layer.hardware.rounds:
            raise ValueError(
                f"the weights of {name} are rounded, but pulses leave them anywhere: convert with weights: "
                "{bits: null} (WeightFormat(bits=None)), and a mapping without levels of its own"
            )
        refuse_changes(layer)
        if layer.weight_range <= SMALLEST_RANGE and not weight.any():
            raise ValueError(
                f"the weights of {name} are all 0, so its cells have no range: start from random ones, or set the "
                "layer's weight_range"
            )
        assert isinstance(weight, nn.Parameter)  # as layers have
        self.samples[weight] = collect(weight)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget gradients and samples."""
        super().zero_grad(set_to_none)
        for samples in self.samples.values():
            samples.batches.clear()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # noqa: ANN401
        """Send the pulses of the samples since the last step.

        Args:
            closure: called once, before; computes the loss and its gradients.

        Raises:
            ValueError: for inputs or errors that are not finite, scaled losses, ranges that changed, networks that
                compute digitally, and with several processes, whose arrays would drift apart.
        """
        if getattr(self, "grad_scale", None) is not None:  # how torch's GradScaler hands over its scale
            raise ValueError("the loss is scaled (precision 16-mixed), and pulses would be, too: use bf16-mixed or 32")
        return super().step(closure)

    def update(self, parameter: Tensor, group: dict[str, Any], number: int) -> None:  # noqa: D102
        if parameter in self.samples:
            if parameter.grad is not None and not self.samples[parameter].batches:
                raise ValueError(
                    f"a weight {tuple(parameter.shape)} that trains on chip got a gradient, but no samples: "
                    "train the converted network, not the digital one that shares its weights"
                )
            self._pulse(parameter, group, number)
        elif parameter.grad is not None:
            parameter.add_(parameter.grad, alpha=-group["lr"])

    def _pulse(self, weight: Tensor, group: dict[str, Any], number: int) -> None:
        samples, state = self.samples[weight], self.state[weight]
        for layer, x, d in samples.batches:
            groups, rows, outputs = layer.matrix_shape
            shape, seed = (groups, outputs, rows), group["seed"]
            if not state:
                start = torch.Generator(weight.device).manual_seed(seed_of(Stream.PULSED_CELLS, seed, number))
                held = weight.detach().float().reshape(shape) / layer.weight_range
                slots = torch.zeros((), dtype=torch.float64, device=weight.device)
                state.update({"steps": 0, "samples": 0, "slots": slots, "range": layer.weight_range})
                state.update(self.program(shape, held, start))
                self._take_over(layer, state)
                array = CellArray.of(state["slow"])
                show(layer, array.show_(self.device, start))
            if state["range"] != layer.weight_range:
                raise ValueError(
                    f"layer {layer.index} has the range {layer.weight_range:g} now, but its cells were programmed for "
                    f"{state['range']:g}: change it before training, or make a new optimizer"
                )
            state["steps"] += 1
            generator = torch.Generator(weight.device).manual_seed(seed_of(Stream.PULSES, seed, number, state["steps"]))
            lines = lines_of(layer, x, d)
            extremes = lines.x_max.sum() + lines.d_max.sum()
            if not torch.isfinite(extremes):
                what = "inputs x" if not torch.isfinite(lines.x_max).all() else "errors d"
                raise ValueError(
                    f"layer {layer.index} (weight {tuple(weight.shape)}) got {what} that are not finite in step "
                    f"{state['steps']}: look at the loss, or lower lr"
                )
            state["samples"] += lines.samples
            if float(extremes) and group["lr"]:
                state["slots"] += self.learn(state, layer, lines, len(x), group["lr"], generator)
        samples.batches.clear()

    def cells(self) -> Cells:  # noqa: D102
        kept = {}
        for weight, state in self.state.items():
            layers = layers_of(weight) if isinstance(weight, nn.Parameter) and state else []
            if layers:
                names = ("slow", *FAST, "range")
                arrays = {name: state[name] for name in names if name in state}
                kept[layers[0].index] = arrays | {"on": repr(self.device), "algorithm": self.fast_kind}
        return kept

    def go_on_with(self, cells: Cells) -> None:
        """Begin with these arrays.

        A new A is drawn if it is of other cells, or was used by another algorithm, which may have turned its signs.

        Raises:
            ValueError: if they are of another device.
        """
        for index, arrays in cells.items():
            if arrays["on"] != repr(self.device):
                raise ValueError(
                    f"the arrays of layer {index} are of {arrays['on']}, the optimizer's device is {self.device}: take "
                    "the same, or write the weights onto new arrays (program)"
                )
        self.earlier = cells

    @property
    def fast_kind(self) -> str:
        """Whose array A it is, if there is one: another training that says the same can go on with it."""
        return type(self).__name__

    def _take_over(self, layer: AnalogLayer, state: State) -> None:
        """Put the arrays of an earlier training in the place of new ones; their pulses are counted from 0."""
        earlier = self.earlier.get(layer.index)
        if earlier is None:
            return
        if earlier["range"] != layer.weight_range or earlier["slow"]["state"].shape != state["slow"]["state"].shape:
            raise ValueError(
                f"layer {layer.index} has another shape or range than its arrays were programmed for: write it onto "
                "new ones (program)"
            )
        for name in ("slow", *(FAST if earlier["algorithm"] == self.fast_kind else ())):
            if name in earlier and name in state:
                state[name] = tree_map(lambda tensor: tensor.to(layer.weight.device, copy=True), earlier[name])
                if isinstance(state[name], dict):  # an array
                    state[name]["pulses"].zero_()

    @abstractmethod
    def program(self, shape: tuple[int, ...], weights: Tensor, generator: torch.Generator) -> State:
        """Draw the arrays of one layer and program the weights, (G, O, K) in units of the range."""

    @abstractmethod
    def learn(
        self, state: State, layer: AnalogLayer, lines: Lines, images: int, lr: float, generator: torch.Generator
    ) -> Tensor:
        """Change the arrays, in the state, and the layer's weight by one mini-batch; the slots of its pulse trains."""

    def activities(self) -> list[Activity]:  # noqa: D102
        found = []
        for weight, state in self.state.items():
            layers = layers_of(weight) if isinstance(weight, nn.Parameter) and state else []
            if not layers:
                continue
            found.append(
                Activity(
                    layer=layers[0].index,
                    outputs=len(weight),
                    samples=state["samples"],
                    slots=float(state["slots"]),
                    pulses=sum(float(state[name]["pulses"]) for name in ("fast", "slow") if name in state),
                    column_reads=state.get("reads", 0),
                    pulse_s=self.device.pulse_s,
                    pulse_j=self.device.pulse_j,
                    groups=layers[0].matrix_shape[0],
                )
            )
        return found


def require_pulsed(name: str, device: object) -> None:
    """Refuse what is no pulsed device.

    Raises:
        TypeError: in one line.
    """
    if not isinstance(device, PulsedDevice):
        raise TypeError(f"{name} is {device!r}; allowed: a pulsed device, as energytl.devices.presets.reram_om()")


def lines_of(layer: AnalogLayer, x: Tensor, d: Tensor) -> Lines:
    """Lines of a layer's arrays (G, O, K) for its padded inputs and the gradients of its outputs, in float32."""
    x, d = x.float(), d.float()
    groups, rows, _ = layer.matrix_shape
    weight = layer.weight.detach().float()

    def correlate(x: Tensor, d: Tensor) -> Tensor:
        own = layer.outputs_per_group(d)
        gradient = layer.multiply_backward(d, x, weight[: groups * own], False, True)[1]
        assert gradient is not None
        return gradient.reshape(groups, own, rows)

    def shares(d: Tensor) -> Tensor:
        sums = layer.unfold_outputs(d).sum((0, 1))  # (G, O)
        return (sums / sums.sum(-1, keepdim=True)).nan_to_num(0.0).unsqueeze(-1)

    def matrices() -> tuple[Tensor, Tensor]:
        parts = (layer.unfold(x), layer.unfold_outputs(d))  # (N, L, G, ·)
        inputs, errors = (part.permute(2, 0, 1, 3).flatten(1, 2) for part in parts)
        return inputs, errors

    extremes = layer.largest_input(x), layer.largest_output(d)
    return Lines(x, d, *extremes, correlate, layer.sum_outputs, shares, matrices, len(x) * layer.count_positions(x))


def show(layer: AnalogLayer, weights: Tensor, first: int = 0) -> None:
    """Let a layer compute with what the cells of its array show: (G, O, columns), from the first column on."""
    weight = layer.weight.detach()
    groups, rows, outputs = layer.matrix_shape
    matrix = weight.reshape(groups, outputs, rows)
    matrix.narrow(-1, first, weights.shape[-1]).copy_(weights.mul_(layer.weight_range))
    if matrix.data_ptr() != weight.data_ptr():  # as of a network in channels last
        weight.copy_(matrix.view(weight.shape))
