"""TTv1, TTv2, c-TTv2 and AGAD as torch optimizers; the algorithms stand in `energytl.optim.tiki_taka`."""

from abc import ABC
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from energytl.analog.layers import AnalogLayer
from energytl.analog.read import Noiseless
from energytl.devices.pulsed import PulsedDevice
from energytl.optim import tiki_taka
from energytl.optim.array import CellArray
from energytl.optim.column_read import ColumnRead
from energytl.optim.pulsed_optimizer import PulsedOptimizer, State, require_pulsed, show
from energytl.optim.pulses import Lines, PulseTrain, counts_in_order, pulse_rates
from energytl.optim.tiki_taka import Devices, Pair, Shown, TikiTaka, Waiting

MOSTLY = 0.9
"""Share of inputs that are not always zero from which on all columns are worked on, rather than those alone."""


class TikiTakaOptimizer(PulsedOptimizer, ABC):
    """What TTv1, TTv2, CTTv2 and AGAD share: a fast array A beside the weights' array C.

    Args:
        device: kind of cell of C.
        algorithm: which.
        fast_device: kind of cell of A, of pulses as long and of the same energy; None: as C's.
        fast_rate: with auto_scale the share of the longest train that the largest pair of lines of an average sample
            uses; else λ_A, what a sample moves A by for each unit of x·d.
        auto_scale: choose λ_A by running means of the samples' max|x| and max|d|, for each group of a layer, so that
            the number of pulses does not depend on the gradient's size.
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
        fast_device: PulsedDevice | None = None,
        fast_rate: float = 0.1,
        auto_scale: bool = True,
        column_read: ColumnRead = ColumnRead(),
        exact: bool = False,
        train: PulseTrain = PulseTrain(),
        seed: int | None = None,
    ) -> None:
        self.devices = Devices(device if fast_device is None else fast_device, device)
        require_pulsed("device", device)
        require_pulsed("fast_device", self.devices.fast)
        self.devices.fast.require_symmetry_point("device" if fast_device is None else "fast_device")
        pulses = [(kind.pulse_s, kind.pulse_j) for kind in self.devices]
        if pulses[0] != pulses[1]:
            raise ValueError(
                f"fast_device has pulses (pulse_s, pulse_j) of {pulses[0]}, device of {pulses[1]}: give both the same, "
                "as they are counted together"
            )
        if not 0 < fast_rate < float("inf"):
            raise ValueError(f"fast_rate is {fast_rate}; allowed: above 0")
        self.algorithm, self.fast_rate, self.auto_scale = algorithm, fast_rate, auto_scale
        self.column_read = column_read
        self._pairs: dict[int, Pair] = {}
        super().__init__(params, lr, device, exact, train, seed)

    def program(self, shape: tuple[int, ...], weights: Tensor, generator: torch.Generator) -> State:  # noqa: D102
        pair = self.algorithm.new(shape, self.devices, generator)
        pair.slow.write_(weights, self.device, generator)
        own = {field.name: getattr(pair, field.name) for field in fields(Pair)}
        waiting = None if self.exact else vars(Waiting.new(shape, generator.device))
        return own | {"fast": pair.fast.tensors(), "slow": pair.slow.tensors(), "waiting": waiting}

    def learn(  # noqa: D102
        self, state: State, layer: AnalogLayer, lines: Lines, images: int, lr: float, generator: torch.Generator
    ) -> Tensor:
        pair = self._pair(state)
        rate = self._rate(state, layer, lines)
        rates = pulse_rates(lines, layer.of_arrays(rate), self.train)
        hardware = layer.hardware
        fluctuation = None if isinstance(hardware.computation, Noiseless) else hardware.fluctuation

        def read(weights: Tensor) -> Tensor:
            return self.column_read(weights, fluctuation, layer.rho.detach(), generator, hardware.idle_siemens)

        if self.exact:
            moved = self._learn_in_order(pair, lines, rate.view(-1, 1, 1), images, lr, read, generator)
        else:
            moved = self.algorithm.learn_aggregated_(pair, lines, rates, images, lr, self.devices, read, generator)
        state.update(images=pair.images, reads=pair.reads)
        for first, weights in moved:
            show(layer, weights, first)
        return rates.slots

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
        rate: Tensor,
        images: int,
        lr: float,
        read: tiki_taka.Reader,
        generator: torch.Generator,
    ) -> list[Shown]:
        x, d = lines.matrices()
        per_image, active = x.shape[-2] // images, None
        fires = (x != 0).any(-2).flatten(0, -2).any(0)
        if x.shape[-1] * MOSTLY > fires.sum():  # images have margins
            active = fires.nonzero().squeeze(-1)
            x = x.index_select(-1, active)
        together = pair.columns * self.algorithm.every
        moved = []
        for first in range(0, images, together):
            now = min(together, images - first)
            part = slice(first * per_image, (first + now) * per_image)
            counts = counts_in_order(x[..., part, :], d[..., part, :], rate, self.train, generator)
            moved += self.algorithm.learn_in_order_(
                pair, counts, now * per_image, now, lr, self.devices, read, generator, self.fuse, active
            )
        return moved

    def _rate(self, state: State, layer: AnalogLayer, lines: Lines) -> Tensor:
        """Pulses of A for each unit of x·d: λ_A/Δw_min of its cells, of each of the layer's arrays, (G,) or (1,)."""
        if not self.auto_scale:
            return torch.full((1,), self.fast_rate / self.devices.fast.dw_min, device=layer.weight.device)
        for name, extremes in (("x_scale", lines.x_max), ("d_scale", lines.d_max)):
            largest = layer.mean_of_arrays(extremes)
            state[name] = torch.lerp(largest, state[name], self.memory) if name in state else largest
        rate: Tensor = self.fast_rate * self.train.longest / (state["x_scale"] * state["d_scale"])
        return rate.nan_to_num(0.0, 0.0, 0.0)

    @property
    def fast_kind(self) -> str:  # noqa: D102
        return f"{super().fast_kind}{self._fast_device}"

    @property
    def _fast_device(self) -> str:
        return "" if self.devices.fast == self.devices.slow else f", fast_device={self.devices.fast}"

    def __repr__(self) -> str:
        return (
            f"{self.algorithm}{self._fast_device}, fast_rate={self.fast_rate}, auto_scale={self.auto_scale}, "
            f"{self.column_read}, exact={self.exact}, train={self.train}"
        )


class TTv1(TikiTakaOptimizer):
    """Tiki-Taka: C gets pulsed updates by what is read of A, lr its rate (`tiki_taka.TTv1`).

    Args:
        every: images from one column's read to the next column's.
        train: pulse trains, of A's updates and of C's.
        others: see TikiTakaOptimizer.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        device: PulsedDevice,
        *,
        every: int = tiki_taka.TikiTaka.every,
        train: PulseTrain = PulseTrain(),
        **others: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(params, lr, device, tiki_taka.TTv1(every, train), train=train, **others)


class TTv2(TikiTakaOptimizer):
    """Tiki-Taka with a digital integrator H, lr the scale of what it adds up (`tiki_taka.TTv2`).

    Args:
        every: images from one column's read to the next column's.
        threshold: of H, in units of the device's dw_min.
        kept: share of H that stays when a pulse is sent.
        others: see TikiTakaOptimizer.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        device: PulsedDevice,
        *,
        every: int = tiki_taka.TikiTaka.every,
        threshold: float = tiki_taka.Integrating.threshold,
        kept: float = tiki_taka.Integrating.kept,
        **others: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(params, lr, device, tiki_taka.TTv2(every, threshold, kept), **others)


class CTTv2(TikiTakaOptimizer):
    """TTv2 with choppers: signs of A's columns change, so that its offset averages out (`tiki_taka.CTTv2`).

    Args:
        every: images from one column's read to the next column's.
        threshold: of H, in units of the device's dw_min.
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
        every: int = tiki_taka.TikiTaka.every,
        threshold: float = tiki_taka.Integrating.threshold,
        kept: float = tiki_taka.Integrating.kept,
        chop_probability: float = tiki_taka.CTTv2.chop_probability,
        regular: bool = tiki_taka.CTTv2.regular,
        **others: Any,  # noqa: ANN401
    ) -> None:
        algorithm = tiki_taka.CTTv2(every, threshold, kept, chop_probability, regular)
        super().__init__(params, lr, device, algorithm, **others)


class AGAD(TikiTakaOptimizer):
    """Choppers with a measured reference instead of a programmed symmetry point (`tiki_taka.AGAD`).

    Args:
        every: images from one column's read to the next column's.
        threshold: of H, in units of the device's dw_min.
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
        every: int = tiki_taka.TikiTaka.every,
        threshold: float = tiki_taka.Integrating.threshold,
        kept: float = tiki_taka.Integrating.kept,
        chop_probability: float = tiki_taka.AGAD.chop_probability,
        tail: float = tiki_taka.AGAD.tail,
        **others: Any,  # noqa: ANN401
    ) -> None:
        algorithm = tiki_taka.AGAD(every, threshold, kept, chop_probability, tail)
        super().__init__(params, lr, device, algorithm, **others)
