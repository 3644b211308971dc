"""The Tiki-Taka family: gradients gather on a fast array A, and slowly move the weights on an array C.

A receives the pulses of every sample and is read column by column; around its symmetry point pulses up and down
cancel, so that A forgets what was noise. What is read moves C, which alone serves forward and backward passes:
directly (TTv1, Gokmen & Haensch 2020), through a digital integrator H that sends C one pulse when it crosses a
threshold (TTv2, Gokmen 2021; Athena 2024, fig. 2), with signs that change so that an offset of A cancels (c-TTv2,
Rasch 2024), or with that offset measured and subtracted (AGAD, Rasch 2024).

Arrays are (…, O, K): … arrays of O outputs and K inputs, whose columns belong to the inputs.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from energytl.devices.pulsed import PulsedDevice
from energytl.optim.array import CellArray
from energytl.optim.pulses import ExpectedPulses, PulseTrain, coincidences

Reader = Callable[[Tensor], Tensor]
"""Weights of some columns (…, O, m) → what reading them returns."""


@dataclass
class Pair:
    """The two arrays of a layer and what belongs to them in the digital unit; methods of TikiTaka change it.

    Attributes:
        fast, slow: the arrays A and C.
        buffer: H (…, O, K), or a scalar 0 where the algorithm has none.
        chop: signs of A's columns, (…, 1, K).
        mean, past: AGAD's running mean of the reads and the mean of the last period; else scalars 0.
        images: images so far.
        reads: column reads so far.
    """

    fast: CellArray
    slow: CellArray
    buffer: Tensor
    chop: Tensor
    mean: Tensor
    past: Tensor
    images: int = 0
    reads: int = 0

    @property
    def columns(self) -> int:
        """Columns K."""
        return self.slow.state.shape[-1]


@dataclass(frozen=True)
class Event:
    """Reads of some columns, each once.

    Attributes:
        columns: their numbers (m,).
        sweeps: how often each was read before (m,).
    """

    columns: Tensor
    sweeps: Tensor


@dataclass(frozen=True)
class TikiTaka(ABC):
    """When columns are read, and what a read does.

    Attributes:
        every: images between two reads of a column (Athena 2024: 10).
    """

    every: int = 1

    def __post_init__(self) -> None:
        """Refuse a schedule without reads."""
        if self.every < 1:
            raise ValueError(f"every is {self.every}; allowed: 1 or more images")

    def new(self, shape: tuple[int, ...], device: PulsedDevice, generator: torch.Generator) -> Pair:
        """Two arrays that hold 0, drawn from the generator."""
        none = torch.zeros((), device=generator.device)
        full = torch.zeros(shape, device=generator.device)
        return Pair(
            fast=CellArray.new(device, shape, generator),
            slow=CellArray.new(device, shape, generator),
            buffer=full if self.buffered else none,
            chop=torch.ones((*shape[:-2], 1, shape[-1]), device=generator.device),
            mean=full.clone() if self.referenced else none,
            past=full.clone() if self.referenced else none,
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
        pulses: ExpectedPulses,
        images: int,
        lr: float,
        device: PulsedDevice,
        read: Reader,
        generator: torch.Generator,
        fuse: bool = False,
    ) -> Tensor:
        """A mini-batch at once: first all pulses on A, then the reads that fell due; the columns of C that may move."""
        pulses.net.mul_(pair.chop)
        pair.fast.train_aggregated_(pulses, device, generator, fuse)
        return self.transfer_(pair, self.due(pair, images), lr, device, read, generator)

    def learn_in_order_(
        self,
        pair: Pair,
        counts: Callable[[int, int], Tensor],
        samples: int,
        images: int,
        lr: float,
        device: PulsedDevice,
        read: Reader,
        generator: torch.Generator,
    ) -> Tensor:
        """A mini-batch, sample by sample, every read at its own time; the columns of C that may move.

        A read concerns one column: so first all columns get the pulses that come before their read, then all are
        read, then those columns get the pulses that come after.

        Args:
            pair: the arrays.
            counts: (first, last) → signed pulse numbers of these samples, (…, samples, O, K), without choppers.
            samples: number of samples, equally many for each image.
            images: number of images; so few that no column is read twice.
            lr: scale of what is read.
            device: kind of cell.
            read: reads columns.
            generator: of all noise.
        """
        first_read = self.every - pair.images % self.every
        reads = self.due(pair, images)
        if reads > pair.columns:
            raise ValueError(f"{reads} reads of {pair.columns} columns in one call; allowed: each column once")
        where = pair.chop.device
        numbers = torch.arange(reads, device=where)
        columns = (pair.reads + numbers) % pair.columns
        ends = (first_read + numbers * self.every) * (samples // images)  # samples before each column's read
        before = pair.chop.clone()
        rest: list[Tensor] = []

        def early(first: int, last: int) -> Tensor:
            pulses = counts(first, last).mul_(before.unsqueeze(-3))
            if reads and first_read + (reads - 1) * self.every < images or reads > 1:
                read_columns = pulses.index_select(-1, columns)
                late = (torch.arange(first, last, device=where).unsqueeze(-1) >= ends).unsqueeze(-2)
                rest.append(read_columns * late)
                pulses.index_copy_(-1, columns, read_columns * ~late)
            return pulses

        pair.fast.train_(early, samples, device, generator)
        changed = self.transfer_(pair, reads, lr, device, read, generator)
        if rest:
            late_pulses = torch.cat(rest, -3) * (before * pair.chop).index_select(-1, columns).unsqueeze(-3)
            part = pair.fast.columns(columns)
            part.train_(lambda first, last: late_pulses[..., first:last, :, :], samples, device, generator)
            pair.fast.put_(columns, part)
        return changed

    def transfer_(
        self, pair: Pair, reads: int, lr: float, device: PulsedDevice, read: Reader, generator: torch.Generator
    ) -> Tensor:
        """Read so many columns of A, one after the other, and move C by what they show; the numbers of these columns."""
        where = pair.chop.device
        changed = torch.arange(pair.reads, pair.reads + min(reads, pair.columns), device=where) % pair.columns
        while reads:
            together = min(reads, pair.columns)
            numbers = torch.arange(pair.reads, pair.reads + together, device=where)
            event = Event(numbers % pair.columns, numbers // pair.columns)
            columns = pair.fast.columns(event.columns)
            columns.settle_(device, generator)
            pair.fast.put_(event.columns, columns)
            self.move_(pair, event, read(columns.weights()), lr, device, generator)
            pair.reads += together
            reads -= together
        return changed

    @abstractmethod
    def move_(
        self, pair: Pair, event: Event, seen: Tensor, lr: float, device: PulsedDevice, generator: torch.Generator
    ) -> None:
        """What one event does with the values seen (…, O, m)."""


@dataclass(frozen=True)
class TTv1(TikiTaka):
    """C gets a pulsed update by what is read: E[ΔC_k] = lr·A_k (Gokmen & Haensch 2020).

    Attributes:
        train: pulse trains of that update.
    """

    train: PulseTrain = field(default_factory=PulseTrain)
    buffered = False

    def move_(  # noqa: D102
        self, pair: Pair, event: Event, seen: Tensor, lr: float, device: PulsedDevice, generator: torch.Generator
    ) -> None:
        one_hot = torch.ones((*seen.shape[:-2], seen.shape[-1], 1), device=seen.device)
        counts = coincidences(one_hot, -seen.mT, lr / device.dw_min, self.train, generator)
        numbers = counts.squeeze(-1).mT
        columns = pair.slow.columns(event.columns)
        columns.train_(lambda first, last: numbers.unsqueeze(-3), 1, device, generator)
        columns.settle_(device, generator)
        pair.slow.put_(event.columns, columns)


@dataclass(frozen=True)
class Integrating(TikiTaka, ABC):
    """H_k += lr·(what is seen); where |H| reaches θ, C gets one pulse of H's sign and H keeps a share.

    Attributes:
        threshold: θ in units of the device's dw_min.
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
        self, pair: Pair, event: Event, seen: Tensor, lr: float, device: PulsedDevice, generator: torch.Generator
    ) -> None:
        signal, may_fire = self.signal_(pair, event, seen, generator)
        theta = self.threshold * device.dw_min
        buffer = torch.add(pair.buffer.index_select(-1, event.columns), signal, alpha=lr)
        direction = (buffer.sign() * (buffer.abs() >= theta)) * may_fire
        pair.buffer.index_copy_(-1, event.columns, torch.where(direction != 0, self.kept * buffer, buffer))
        columns = pair.slow.columns(event.columns)
        columns.pulse_(direction, device, generator)
        columns.settle_(device, generator)
        pair.slow.put_(event.columns, columns)

    @abstractmethod
    def signal_(
        self, pair: Pair, event: Event, seen: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | bool]:
        """What is added to H, and whether pulses may be sent; keeps the choppers."""


@dataclass(frozen=True)
class TTv2(Integrating):
    """H integrates what is read (Gokmen 2021; Athena 2024, fig. 2)."""

    def signal_(  # noqa: D102
        self, pair: Pair, event: Event, seen: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | bool]:
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
    ) -> tuple[Tensor, Tensor | bool]:
        sign = pair.chop.index_select(-1, event.columns)
        if self.regular:
            flips = ((event.sweeps + 1) % _period(self.chop_probability) == 0).expand_as(sign)
        else:
            flips = torch.rand(sign.shape, generator=generator, device=sign.device) < self.chop_probability
        pair.chop.index_copy_(-1, event.columns, torch.where(flips, -sign, sign))
        return seen * sign, True


@dataclass(frozen=True)
class AGAD(Integrating):
    """As c-TTv2 with a regular rhythm, but A's offset is measured: the mean read of one period is subtracted in the next.

    (Rasch 2024, "analog gradient accumulation with dynamic reference"). C is left alone during the first period.

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
        if self.tail <= 0:
            raise ValueError(f"tail is {self.tail}; allowed: above 0")

    def signal_(  # noqa: D102
        self, pair: Pair, event: Event, seen: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | bool]:
        period, index = _period(self.chop_probability), event.columns
        sign, mean = pair.chop.index_select(-1, index), pair.mean.index_select(-1, index)
        starts = (event.sweeps > 0) & (event.sweeps % period == 0)
        past = torch.where(starts, mean, pair.past.index_select(-1, index))
        pair.past.index_copy_(-1, index, past)
        pair.mean.index_copy_(-1, index, torch.lerp(mean, seen, min(self.tail / period, 1.0)))
        ends = (event.sweeps + 1) % period == 0
        pair.chop.index_copy_(-1, index, torch.where(ends, -sign, sign))
        return (seen - past) * sign, event.sweeps > period


def _period(probability: float) -> int:
    return max(round(1 / probability), 2) if probability else 2**62


def _require_probability(probability: float) -> None:
    if not 0 <= probability <= 1:
        raise ValueError(f"chop_probability is {probability}; allowed: 0 to 1")
