"""The Tiki-Taka family: gradients gather on a fast array A, and slowly move the weights on an array C.

A receives the pulses of every sample and is read column by column; around its symmetry point pulses up and down
cancel, so that A forgets what was noise. What is read moves C, which alone serves forward and backward passes:
directly (TTv1, Gokmen & Haensch 2020), through a digital integrator H that sends C one pulse when it crosses a
threshold (TTv2, Gokmen 2021; Athena 2024, fig. 2), with signs that change so that an offset of A cancels (c-TTv2,
Rasch 2024), or with that offset measured and subtracted (AGAD, Rasch 2024).

Arrays are (…, O, K): … arrays of O outputs and K inputs, whose columns belong to the inputs.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from energytl.devices.pulsed import PulsedDevice
from energytl.optim.array import CellArray
from energytl.optim.pulses import ExpectedPulses, Lines, PulseRates, PulseTrain, coincidences

Reader = Callable[[Tensor], Tensor]
"""Weights of some columns (…, O, m) → what reading them returns."""


class Devices(NamedTuple):
    """Kinds of cells.

    Attributes:
        fast: of the array A.
        slow: of the array C.
    """

    fast: PulsedDevice
    slow: PulsedDevice


@dataclass
class Waiting:
    """Moments of the pulses that each column of A got since it was read last.

    Nobody sees a column before it is read, so its pulses wait till then: carried out together, they cost next to
    nothing. Σm² is kept as one number for each column and each output's share of it.

    Attributes:
        numbers: Σ m and Σ ±m, (2, …, O, K).
        power: Σ m² over outputs (…, 1, K).
        shares: running mean of the outputs' shares of Σ m², (…, O, 1).
        slot: running mean of 1/BL, a scalar.
    """

    numbers: Tensor
    power: Tensor
    shares: Tensor
    slot: Tensor

    @classmethod
    def new(cls, shape: tuple[int, ...], device: torch.device) -> "Waiting":
        """No pulses."""
        *arrays, outputs, columns = shape
        sizes = ((2, *shape), (*arrays, 1, columns), (*arrays, outputs, 1), ())
        return cls(*(torch.zeros(size, device=device) for size in sizes))

    def add_(self, lines: Lines, rates: PulseRates, recent: float) -> None:
        """Take up the pulses of a mini-batch; `recent` is its weight in the running means."""
        self.numbers[0] += lines.correlate(rates.x.abs(), rates.d.abs())
        self.numbers[1] -= lines.correlate(rates.x, rates.d)
        squares = rates.d.square()
        self.power += lines.correlate(rates.x.square(), lines.sum_outputs(squares))
        weight = recent if bool(self.slot) else 1.0
        self.shares.lerp_(lines.shares(squares), weight)
        self.slot.lerp_(rates.slot, weight)

    def take_(self, first: int, number: int, samples: float) -> ExpectedPulses:
        """The pulses of some columns, which wait no longer; of so many samples."""
        numbers, power = (t.narrow(-1, first, number) for t in (self.numbers, self.power))
        total, net = numbers.clone()
        taken = ExpectedPulses(total, net, power * self.shares, self.slot, samples)
        numbers.zero_()
        power.zero_()
        return taken


@dataclass
class Pair:
    """The two arrays of a layer and what belongs to them in the digital unit; methods of TikiTaka change it.

    Attributes:
        fast, slow: the arrays A and C.
        buffer: H (…, O, K), or a scalar 0 where the algorithm has none.
        chop: signs of A's columns, (…, 1, K).
        mean, past: AGAD's running mean of the reads and the mean of the last period; else scalars 0.
        waiting: pulses on A that are not carried out yet, in mode `aggregated`; else None.
        images: images so far.
        reads: column reads so far.
    """

    fast: CellArray
    slow: CellArray
    buffer: Tensor
    chop: Tensor
    mean: Tensor
    past: Tensor
    waiting: Waiting | None = None
    images: int = 0
    reads: int = 0

    @property
    def columns(self) -> int:
        """Columns K."""
        return self.slow.state.shape[-1]

    def next_event(self, reads: int) -> "Event":
        """The next reads of neighbouring columns, at most so many."""
        sweep, first = divmod(self.reads, self.columns)
        return Event(first, min(reads, self.columns - first), sweep)


@dataclass(frozen=True)
class Event:
    """One read each of neighbouring columns.

    Attributes:
        first: the first column.
        number: how many.
        sweep: how often each was read before.
    """

    first: int
    number: int
    sweep: int

    def of(self, tensor: Tensor) -> Tensor:
        """These columns of a tensor (…, K), sharing its memory."""
        return tensor.narrow(-1, self.first, self.number)


Shown = tuple[int, Tensor]
"""First column, and what C's cells show from there on (…, O, columns), after pulses may have moved them."""


@dataclass(frozen=True)
class TikiTaka(ABC):
    """When columns are read, and what a read does.

    Attributes:
        every: images from one column's read to the next column's (Athena 2024: 10); so a column is read again after
            `every` times as many images as there are columns. An image is what the first dimension of inputs counts.
    """

    every: int = 1

    def __post_init__(self) -> None:
        """Refuse a schedule without reads."""
        if not isinstance(self.every, int) or self.every < 1:
            raise ValueError(f"every is {self.every}; allowed: whole numbers of images, 1 or more")

    def new(self, shape: tuple[int, ...], devices: Devices, generator: torch.Generator) -> Pair:
        """Two arrays that hold 0, drawn from the generator."""
        none = torch.zeros((), device=generator.device)
        full = torch.zeros(shape, device=generator.device)
        return Pair(
            fast=CellArray.new(devices.fast, shape, generator),
            slow=CellArray.new(devices.slow, shape, generator),
            buffer=full if self.buffered else none,
            chop=torch.ones((*shape[:-2], 1, shape[-1]), device=generator.device),
            mean=full.half() if self.referenced else none,  # what a converter of 9 bits returns fits in float16
            past=full.half() if self.referenced else none,
        )

    buffered = True
    referenced = False

    def due(self, pair: Pair, images: int) -> int:
        """Reads that fall due within so many more images; the images are counted."""
        before = pair.images // self.every
        pair.images += images
        return pair.images // self.every - before

    def learn_aggregated_(
        self,
        pair: Pair,
        lines: Lines,
        rates: PulseRates,
        images: int,
        lr: float,
        devices: Devices,
        read: Reader,
        generator: torch.Generator,
    ) -> list[Shown]:
        """A mini-batch at once: its pulses wait for the next read of their column; what C shows where it moved."""
        if pair.waiting is None:
            pair.waiting = Waiting.new(tuple(pair.slow.state.shape), pair.chop.device)
        pair.waiting.add_(lines, rates, min(1.0, images / (self.every * pair.columns)))
        return self.transfer_(pair, self.due(pair, images), lr, devices, read, generator, lines.samples / images)

    def learn_in_order_(
        self,
        pair: Pair,
        counts: Callable[[int, int], Tensor],
        samples: int,
        images: int,
        lr: float,
        devices: Devices,
        read: Reader,
        generator: torch.Generator,
        fuse: bool = False,
        active: Tensor | None = None,
    ) -> list[Shown]:
        """A mini-batch, sample by sample, every read at its own time; what C shows where it moved.

        A read concerns one column: so first all columns get the pulses that come before their read, then all are
        read, then those columns get the pulses that come after.

        Args:
            pair: the arrays.
            counts: (first, last) → signed pulse numbers of these samples, (…, samples, O, K), without choppers.
            samples: number of samples, equally many for each image.
            images: number of images; so few that no column is read twice.
            lr: scale of what is read.
            devices: kinds of cells.
            read: reads columns.
            generator: of all noise.
            fuse: compute in fused kernels.
            active: numbers of the columns that `counts` is of, rising; the others get no pulses; None: all.
        """
        first_read = self.every - pair.images % self.every
        reads = self.due(pair, images)
        if reads > pair.columns:
            raise ValueError(f"{reads} reads of {pair.columns} columns in one call; allowed: each column once")
        where, before = pair.chop.device, pair.chop.clone()
        order = torch.arange(reads, device=where)
        read_columns = (pair.reads + order) % pair.columns
        ends = torch.full((pair.columns,), samples, device=where)
        ends[read_columns] = (first_read + order * self.every) * (samples // images)
        if active is None:
            active = torch.arange(pair.columns, device=where)
        pulsed = read_columns[torch.isin(read_columns, active)]
        places = torch.searchsorted(active, pulsed)
        of_read_columns: list[Tensor] = []

        def noted(first: int, last: int) -> Tensor:
            numbers = counts(first, last)
            if len(pulsed) and first_read < images:
                of_read_columns.append(numbers.index_select(-1, places))
            return numbers

        if len(active):
            part = pair.fast if len(active) == pair.columns else pair.fast.chosen(active)
            part.train_(noted, samples, devices.fast, generator, fuse, before.index_select(-1, active), ends[active])
            pair.fast.put_chosen_(active, part)
        moved = self.transfer_(pair, reads, lr, devices, read, generator)
        if of_read_columns:
            rest = torch.cat(of_read_columns, -3)
            rest *= (torch.arange(samples, device=where).unsqueeze(-1) >= ends[pulsed]).unsqueeze(-2)
            part, signs = pair.fast.chosen(pulsed), pair.chop.index_select(-1, pulsed)
            part.train_(partial(_samples, rest), samples, devices.fast, generator, fuse, signs)
            pair.fast.put_chosen_(pulsed, part)
        return moved

    def transfer_(
        self,
        pair: Pair,
        reads: int,
        lr: float,
        devices: Devices,
        read: Reader,
        generator: torch.Generator,
        per_image: float = 1.0,
    ) -> list[Shown]:
        """Read so many columns of A, one after the other, and move C by what they show; what C shows where it moved.

        Pulses that wait for their column are of so many samples per image.
        """
        moved: list[Shown] = []
        samples = per_image * min(pair.images, self.every * pair.columns)
        while reads:
            event = pair.next_event(reads)
            columns = pair.fast.columns(event.first, event.number)
            if pair.waiting is not None:
                pulses = pair.waiting.take_(event.first, event.number, samples)
                columns.train_aggregated_(pulses, event.of(pair.chop), devices.fast, generator)
            shown = columns.show_(devices.fast, generator)
            pair.fast.put_(event.first, columns)
            weights = self.move_(pair, event, read(shown), lr, devices, generator)
            if weights is not None:
                moved.append((event.first, weights))
            pair.reads += event.number
            reads -= event.number
        return moved

    @abstractmethod
    def move_(
        self, pair: Pair, event: Event, seen: Tensor, lr: float, devices: Devices, generator: torch.Generator
    ) -> Tensor | None:
        """What one event does with the values seen (…, O, m); what C's columns show then, None if nothing moved."""


@dataclass(frozen=True)
class TTv1(TikiTaka):
    """C gets a pulsed update by what is read: E[ΔC_k] = lr·A_k (Gokmen & Haensch 2020).

    Attributes:
        train: pulse trains of that update.
    """

    train: PulseTrain = field(default_factory=PulseTrain)
    buffered = False

    def move_(  # noqa: D102
        self, pair: Pair, event: Event, seen: Tensor, lr: float, devices: Devices, generator: torch.Generator
    ) -> Tensor | None:
        one_hot = torch.ones((*seen.shape[:-2], seen.shape[-1], 1), device=seen.device)
        counts = coincidences(one_hot, -seen.mT, lr / devices.slow.dw_min, self.train, generator)
        numbers = counts.squeeze(-1).mT
        columns = pair.slow.columns(event.first, event.number)
        columns.train_(lambda first, last: numbers.unsqueeze(-3), 1, devices.slow, generator)
        shown = columns.show_(devices.slow, generator)
        pair.slow.put_(event.first, columns)
        return shown


@dataclass(frozen=True)
class Integrating(TikiTaka, ABC):
    """H_k += lr·(what is seen); where |H| reaches θ, C gets one pulse of H's sign and H keeps a share of its value.

    Attributes:
        threshold: θ in units of dw_min of C's device.
        kept: share of H that stays when a pulse is sent.
    """

    threshold: float = 1.0
    kept: float = 0.0

    def __post_init__(self) -> None:
        """Refuse thresholds that fire without a signal."""
        super().__post_init__()
        if not 0 < self.threshold < float("inf"):
            raise ValueError(f"threshold is {self.threshold}; allowed: above 0 (in units of dw_min)")
        if not 0 <= self.kept < 1:
            raise ValueError(f"kept is {self.kept}; allowed: 0 up to, not including, 1")

    def move_(  # noqa: D102
        self, pair: Pair, event: Event, seen: Tensor, lr: float, devices: Devices, generator: torch.Generator
    ) -> Tensor | None:
        signal, may_fire = self.signal_(pair, event, seen, generator)
        theta = self.threshold * devices.slow.dw_min
        buffer = event.of(pair.buffer).add_(signal, alpha=lr)
        if not may_fire:
            return None
        fires = buffer.abs() >= theta
        if not fires.any():
            return None
        direction = buffer.sign() * fires
        buffer.copy_(torch.where(fires, self.kept * buffer, buffer))
        columns = pair.slow.columns(event.first, event.number)
        columns.pulse_(direction, devices.slow, generator)
        shown = columns.show_(devices.slow, generator)
        pair.slow.put_(event.first, columns)
        return shown

    @abstractmethod
    def signal_(self, pair: Pair, event: Event, seen: Tensor, generator: torch.Generator) -> tuple[Tensor, bool]:
        """What is added to H, and whether pulses may be sent; keeps the choppers."""


@dataclass(frozen=True)
class TTv2(Integrating):
    """H integrates what is read (Gokmen 2021; Athena 2024, fig. 2)."""

    def signal_(  # noqa: D102
        self, pair: Pair, event: Event, seen: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, bool]:
        return seen, True


@dataclass(frozen=True)
class CTTv2(Integrating):
    """The sign of A's pulses and reads changes column by column, so that an offset of A averages out (Rasch 2024).

    Attributes:
        chop_probability: probability, at each read, that the column's sign changes.
        regular: change it every 1/chop_probability reads instead of at random.
    """

    chop_probability: float = 0.05
    regular: bool = False

    def __post_init__(self) -> None:
        """Refuse what is no probability."""
        super().__post_init__()
        _require_probability(self.chop_probability)

    def signal_(  # noqa: D102
        self, pair: Pair, event: Event, seen: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, bool]:
        sign = event.of(pair.chop)
        signal = seen * sign
        if not self.regular:
            flips = torch.rand(sign.shape, generator=generator, device=sign.device) < self.chop_probability
            sign.copy_(torch.where(flips, -sign, sign))
        elif (event.sweep + 1) % _period(self.chop_probability) == 0:
            sign.neg_()
        return signal, True


@dataclass(frozen=True)
class AGAD(Integrating):
    """As c-TTv2 with a regular rhythm, but A's offset is measured: a period's mean read is subtracted in the next.

    Analog gradient accumulation with dynamic reference (Rasch 2024). C is left alone during the first period.

    Attributes:
        chop_probability: the sign changes every 1/chop_probability reads of a column, at least every second.
        tail: weight of a period's last reads in the running mean: its rate is tail/period, at most 1.
    """

    chop_probability: float = 0.1
    tail: float = 5.0
    referenced = True

    def __post_init__(self) -> None:
        """Refuse what is no probability."""
        super().__post_init__()
        _require_probability(self.chop_probability)
        if self.chop_probability == 0:
            raise ValueError(
                "chop_probability is 0; allowed: above 0, as AGAD measures its reference between two changes"
            )
        if self.tail <= 0:
            raise ValueError(f"tail is {self.tail}; allowed: above 0")

    def signal_(  # noqa: D102
        self, pair: Pair, event: Event, seen: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, bool]:
        period = max(_period(self.chop_probability), 2)
        sign, mean, past = (event.of(tensor) for tensor in (pair.chop, pair.mean, pair.past))
        if event.sweep and event.sweep % period == 0:
            past.copy_(mean)
        signal = (seen - past) * sign
        mean.lerp_(seen.to(mean.dtype), min(self.tail / period, 1.0))
        if (event.sweep + 1) % period == 0:
            sign.neg_()
        return signal, event.sweep > period


def _samples(numbers: Tensor, first: int, last: int) -> Tensor:
    return numbers[..., first:last, :, :]


def _period(probability: float) -> int:
    return math.ceil(1 / probability) if probability else 2**62


def _require_probability(probability: float) -> None:
    if not 0 <= probability <= 1:
        raise ValueError(f"chop_probability is {probability}; allowed: 0 to 1")
