"""torch optimizers that train analog layers by pulses, and everything else by plain gradient descent.

    optimizer = energytl.optim.CTTv2(model.parameters(), lr=0.05, device=energytl.devices.presets.reram_om())

Weights of analog layers live on arrays of pulsed cells, whose states are in the optimizer's state; a layer's weight
is what its cells show, in units of its `weight_range`. When a weight is stepped first, its cells are drawn and
programmed with it. Everything random comes from the optimizer's seed and its own step count, so that a resumed run
goes on bit for bit.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from energytl.analog.layers import AnalogLayer, layer_of
from energytl.analog.noise import fold
from energytl.analog.read import Noiseless
from energytl.analog.samples import Samples, collect
from energytl.devices.pulsed import PulsedDevice
from energytl.optim import tiki_taka
from energytl.optim.array import CellArray
from energytl.optim.column_read import ColumnRead
from energytl.optim.pulses import Lines, PulseTrain, counts_in_order, expected_pulses, pulse_rates
from energytl.optim.tiki_taka import Event, Pair, TikiTaka, Waiting

State = dict[str, Any]


class PulsedOptimizer(torch.optim.Optimizer, ABC):
    """What all on-chip optimizers share: who trains on chip, samples, randomness, checkpoints.

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

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        device: PulsedDevice,
        exact: bool,
        train: PulseTrain,
        seed: int | None,
    ) -> None:
        if not 0 <= lr < float("inf"):
            raise ValueError(f"lr is {lr}; allowed: 0 or more")
        self.device, self.exact, self.train = device, exact, train
        self.fuse = True
        seed = int(torch.randint(2**62, ())) if seed is None else seed
        self.samples: dict[Tensor, Samples] = {}
        super().__init__(params, {"lr": lr, "seed": seed, "on": repr(device), "by": repr(self)})
        if not self.samples:
            raise ValueError(
                "none of the parameters is the weight of an analog layer: convert the network (energytl.convert) "
                "before its parameters go to the optimizer"
            )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take up a group; weights of analog layers hand over their samples from now on."""
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            if layer_of(parameter) is not None:
                self.samples[parameter] = collect(parameter)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget gradients and samples."""
        super().zero_grad(set_to_none)
        for samples in self.samples.values():
            samples.batches.clear()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]  # noqa: ANN401
        """Send the pulses of the samples since the last step.

        Args:
            closure: called once, before; computes the loss and its gradients.

        Raises:
            ValueError: for inputs or errors that are not finite.
            RuntimeError: with several processes, whose arrays would drift apart.
        """
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            processes = torch.distributed.get_world_size()
            if processes > 1:
                raise RuntimeError(f"on-chip training runs in one process, not {processes}: set trainer.devices to 1")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        number = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter in self.samples:
                    self._pulse(parameter, group, number)
                elif parameter.grad is not None:
                    parameter.add_(parameter.grad, alpha=-group["lr"])
                number += 1
        return loss

    def _pulse(self, weight: nn.Parameter, group: dict[str, Any], number: int) -> None:
        samples, state = self.samples[weight], self.state[weight]
        for layer, x, d in samples.batches:
            groups, rows, outputs = layer.matrix_shape
            shape, seed = (groups, outputs, rows), group["seed"]
            if not state:
                start = torch.Generator(weight.device).manual_seed(fold(seed, number))
                held = weight.detach().float().reshape(shape) / layer.weight_range
                state.update({"steps": 0, **self.program(shape, held, start)})
                show(layer, CellArray.of(state["slow"]))
            state["steps"] += 1
            generator = torch.Generator(weight.device).manual_seed(fold(seed, number, state["steps"]))
            lines = lines_of(layer, x, d)
            extremes = lines.x_max.sum() + lines.d_max.sum()
            if not torch.isfinite(extremes):
                what = "inputs x" if not torch.isfinite(lines.x_max).all() else "errors d"
                raise ValueError(
                    f"layer {layer.index} (weight {tuple(weight.shape)}) got {what} that are not finite in step "
                    f"{state['steps']}: look at the loss, or lower lr"
                )
            if float(extremes) and group["lr"]:
                self.learn(state, layer, lines, len(x), group["lr"], generator)
        samples.batches.clear()

    @abstractmethod
    def program(self, shape: tuple[int, ...], weights: Tensor, generator: torch.Generator) -> State:
        """Draw the arrays of one layer and program the weights, (G, O, K) in units of the range."""

    @abstractmethod
    def learn(
        self, state: State, layer: AnalogLayer, lines: Lines, images: int, lr: float, generator: torch.Generator
    ) -> None:
        """Change the arrays, in the state, and the layer's weight by one mini-batch."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: if it was trained on another device or with other settings.
        """
        for saved in state_dict["param_groups"]:
            for key, own, name in (("on", repr(self.device), "device"), ("by", repr(self), "settings")):
                if saved.get(key) != own:
                    raise ValueError(
                        f"the checkpoint's {name} is {saved.get(key)}, this optimizer's {own}: go on with the same, "
                        "or start anew"
                    )
        super().load_state_dict(state_dict)
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        indices = [index for group in state_dict["param_groups"] for index in group["params"]]
        for index, parameter in zip(indices, parameters, strict=True):  # torch would cast states to the weight's type
            if index in state_dict["state"]:
                self.state[parameter] = _copied(state_dict["state"][index], parameter.device)

    @abstractmethod
    def __repr__(self) -> str:
        """The algorithm and its settings, on one line."""


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
    ) -> None:
        array = CellArray.of(state["slow"])
        rate = lr / (layer.weight_range * self.device.dw_min)
        if self.exact:
            x, d = lines.matrices()
            counts = counts_in_order(x, d, rate, self.train, generator)
            array.train_(counts, x.shape[-2], self.device, generator, self.fuse)
        else:
            pulses, unchopped = expected_pulses(lines, rate, self.train), torch.ones((1, 1, 1), device=lines.x.device)
            array.train_aggregated_(pulses, unchopped, self.device, generator, self.fuse)
        show(layer, array)

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
    ) -> None:
        array, buffer = CellArray.of(state["slow"]), state["buffer"]
        buffer.sub_(lines.correlate(lines.x, lines.d), alpha=lr / layer.weight_range)
        theta = self.threshold * self.device.dw_min
        counts = (buffer / theta).trunc().clamp(-self.train.longest, self.train.longest)
        buffer.sub_(counts, alpha=theta)
        array.train_(lambda first, last: counts.unsqueeze(-3), 1, self.device, generator, self.fuse)
        show(layer, array)

    def __repr__(self) -> str:
        return f"Hybrid(threshold={self.threshold}, train={self.train})"


class TikiTakaOptimizer(PulsedOptimizer, ABC):
    """What TTv1, TTv2, CTTv2 and AGAD share: a fast array A beside the weights' array C.

    Args:
        algorithm: which.
        fast_rate: with auto_scale the share of the longest train that the largest pair of lines of an average sample
            uses; else λ_A, what a sample moves A by for each unit of x·d.
        auto_scale: choose λ_A by running means of the samples' max|x| and max|d|, so that the number of pulses does
            not depend on the gradient's size.
        column_read: how columns of A are read, beside the fluctuation of the layer's own hardware.
        others: see PulsedOptimizer.
    """

    memory = 0.99
    """Of the running means of auto_scale, for each mini-batch."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        device: PulsedDevice,
        algorithm: TikiTaka,
        fast_rate: float = 0.5,
        auto_scale: bool = True,
        column_read: ColumnRead = ColumnRead(),
        exact: bool = False,
        train: PulseTrain = PulseTrain(),
        seed: int | None = None,
    ) -> None:
        device.require_symmetry_point()
        if not 0 < fast_rate < float("inf"):
            raise ValueError(f"fast_rate is {fast_rate}; allowed: above 0")
        self.algorithm, self.fast_rate, self.auto_scale = algorithm, fast_rate, auto_scale
        self.column_read = column_read
        self._pairs: dict[int, Pair] = {}
        super().__init__(params, lr, device, exact, train, seed)

    def program(self, shape: tuple[int, ...], weights: Tensor, generator: torch.Generator) -> State:  # noqa: D102
        pair = self.algorithm.new(shape, self.device, generator)
        pair.slow.write_(weights, self.device, generator)
        own = {field.name: getattr(pair, field.name) for field in fields(Pair)}
        waiting = None if self.exact else vars(Waiting.new(shape, generator.device))
        return own | {"fast": pair.fast.tensors(), "slow": pair.slow.tensors(), "waiting": waiting}

    def learn(  # noqa: D102
        self, state: State, layer: AnalogLayer, lines: Lines, images: int, lr: float, generator: torch.Generator
    ) -> None:
        pair = self._pair(state)
        rate = self._rate(state, lines)
        noiseless = isinstance(layer.hardware.computation, Noiseless)
        fluctuation = None if noiseless else layer.hardware.fluctuation

        def read(weights: Tensor) -> Tensor:
            return self.column_read(weights, fluctuation, layer.rho.detach(), generator)

        if self.exact:
            events = self._learn_in_order(pair, lines, rate, images, lr, read, generator)
        else:
            rates = pulse_rates(lines, rate, self.train)
            events = self.algorithm.learn_aggregated_(pair, lines, rates, images, lr, self.device, read, generator)
        state.update(images=pair.images, reads=pair.reads)
        for event in events:
            show(layer, pair.slow, event.first, event.number)

    def _pair(self, state: State) -> Pair:
        """The state's arrays; made once, as they share the state's tensors."""
        pair = self._pairs.get(id(state))
        if pair is None or pair.slow.state is not state["slow"]["state"]:
            own = {field.name: state[field.name] for field in fields(Pair)}
            fast, slow = CellArray.of(state["fast"]), CellArray.of(state["slow"])
            waiting = None if self.exact else Waiting(**state["waiting"])
            pair = Pair(**own | {"fast": fast, "slow": slow, "waiting": waiting})
            self._pairs[id(state)] = pair
        return pair

    def _learn_in_order(
        self,
        pair: Pair,
        lines: Lines,
        rate: Tensor | float,
        images: int,
        lr: float,
        read: tiki_taka.Reader,
        generator: torch.Generator,
    ) -> list[Event]:
        x, d = lines.matrices()
        per_image = x.shape[-2] // images
        together = pair.columns * self.algorithm.every
        events = []
        for first in range(0, images, together):
            now = min(together, images - first)
            part = slice(first * per_image, (first + now) * per_image)
            counts = counts_in_order(x[..., part, :], d[..., part, :], rate, self.train, generator)
            events += self.algorithm.learn_in_order_(
                pair, counts, now * per_image, now, lr, self.device, read, generator, self.fuse
            )
        return events

    def _rate(self, state: State, lines: Lines) -> Tensor | float:
        """Pulses of A for each unit of x·d: λ_A/Δw_min."""
        if not self.auto_scale:
            return self.fast_rate / self.device.dw_min
        for name, largest in (("x_scale", lines.x_max.mean()), ("d_scale", lines.d_max.mean())):
            state[name] = torch.lerp(largest, state[name], self.memory) if name in state else largest
        rate: Tensor = self.fast_rate * self.train.longest / (state["x_scale"] * state["d_scale"])
        return rate.nan_to_num(0.0, 0.0, 0.0)

    def __repr__(self) -> str:
        return (
            f"{self.algorithm}, fast_rate={self.fast_rate}, auto_scale={self.auto_scale}, {self.column_read}, "
            f"exact={self.exact}, train={self.train}"
        )


class TTv1(TikiTakaOptimizer):
    """Tiki-Taka: C gets pulsed updates by what is read of A, lr its rate (`tiki_taka.TTv1`).

    Args:
        every: images between two reads of a column.
        others: see TikiTakaOptimizer.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, device: PulsedDevice, *, every: int = 1, **others: Any  # noqa: ANN401
    ) -> None:
        super().__init__(params, lr, device, tiki_taka.TTv1(every, others.get("train", PulseTrain())), **others)


class TTv2(TikiTakaOptimizer):
    """Tiki-Taka with a digital integrator H, lr the scale of what it adds up (`tiki_taka.TTv2`).

    Args:
        every: images between two reads of a column.
        threshold: of H, in units of dw_min.
        kept: share of H that stays when a pulse is sent.
        others: see TikiTakaOptimizer.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        device: PulsedDevice,
        *,
        every: int = 1,
        threshold: float = 1.0,
        kept: float = 0.0,
        **others: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(params, lr, device, tiki_taka.TTv2(every, threshold, kept), **others)


class CTTv2(TikiTakaOptimizer):
    """TTv2 with choppers: signs of A's columns change, so that its offset averages out (`tiki_taka.CTTv2`).

    Args:
        every: images between two reads of a column.
        threshold: of H, in units of dw_min.
        kept: share of H that stays when a pulse is sent.
        chop_probability: probability, at each read, that the column's sign changes.
        regular: change it in a regular rhythm instead.
        others: see TikiTakaOptimizer.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        device: PulsedDevice,
        *,
        every: int = 1,
        threshold: float = 1.0,
        kept: float = 0.0,
        chop_probability: float = 0.05,
        regular: bool = False,
        **others: Any,  # noqa: ANN401
    ) -> None:
        algorithm = tiki_taka.CTTv2(every, threshold, kept, chop_probability, regular)
        super().__init__(params, lr, device, algorithm, **others)


class AGAD(TikiTakaOptimizer):
    """Choppers with a measured reference instead of a programmed symmetry point (`tiki_taka.AGAD`).

    Args:
        every: images between two reads of a column.
        threshold: of H, in units of dw_min.
        kept: share of H that stays when a pulse is sent.
        chop_probability: the sign changes every 1/chop_probability reads of a column.
        tail: weight of a period's last reads in its mean.
        others: see TikiTakaOptimizer.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        device: PulsedDevice,
        *,
        every: int = 1,
        threshold: float = 1.0,
        kept: float = 0.0,
        chop_probability: float = 0.1,
        tail: float = 5.0,
        **others: Any,  # noqa: ANN401
    ) -> None:
        algorithm = tiki_taka.AGAD(every, threshold, kept, chop_probability, tail)
        super().__init__(params, lr, device, algorithm, **others)


def lines_of(layer: AnalogLayer, x: Tensor, d: Tensor) -> Lines:
    """Lines of a layer's arrays (G, O, K) for its padded inputs and the gradients of its outputs, in float32."""
    x, d = x.float(), d.float()
    groups, rows, outputs = layer.matrix_shape
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
    return Lines(x, d, *extremes, correlate, layer.sum_outputs, shares, matrices)


def _programmed(
    device: PulsedDevice, shape: tuple[int, ...], weights: Tensor, generator: torch.Generator
) -> CellArray:
    array = CellArray.new(device, shape, generator)
    array.write_(weights, device, generator)
    return array


def show(layer: AnalogLayer, array: CellArray, first: int = 0, number: int | None = None) -> None:
    """Let a layer compute with what the cells of its array show: all of them, or some neighbouring columns."""
    weight = layer.weight.detach().view(array.state.shape)
    if number is not None:
        array, weight = array.columns(first, number), weight.narrow(-1, first, number)
    weight.copy_(array.weights().mul_(layer.weight_range))


def _copied(saved: Any, device: torch.device) -> Any:  # noqa: ANN401
    """Tensors in nested dictionaries, copied to a device, all else as it is."""
    if isinstance(saved, dict):
        return {name: _copied(value, device) for name, value in saved.items()}
    return saved.to(device, copy=True) if isinstance(saved, Tensor) else saved
