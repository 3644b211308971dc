"""Stochastic pulse trains: how an outer product of inputs x and errors d becomes coincidences of pulses.

Every line of an array sends a train of random pulses, with a probability that grows with |x_j| or |d_i|; a cell gets
a pulse in each slot in which both its lines fire, downwards where x_j·d_i > 0. So its expected change is −λ·x_j·d_i
(Gokmen & Vlasov 2016). Rates here are λ/Δw_min: pulses for each unit of x·d.

Shapes: S samples of K inputs x (…, S, K) and O errors d (…, S, O); an array is (…, O, K); … are arrays.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from energytl.analog.noise import uniform_int16

TRAINS_AT_ONCE = 2**22
"""How many lines times slots are drawn at once."""


@dataclass(frozen=True)
class PulseTrain:
    """How long trains are, and how probability is shared between the two lines.

    Attributes:
        longest: longest train, in slots.
        managed_length: a train is as long as its largest pulse number k asks for, min(⌈k⌉, longest); else longest.
        managed_lines: the largest input and the largest error of a sample get equal probabilities.
    """

    longest: int = 31
    managed_length: bool = True
    managed_lines: bool = True

    def __post_init__(self) -> None:
        """Refuse trains without slots."""
        if not isinstance(self.longest, int) or self.longest < 1:
            raise ValueError(f"train.longest is {self.longest}; allowed: whole numbers of slots, 1 or more")


@dataclass(frozen=True)
class Lines:
    """Inputs and errors of one array's samples, in whatever layout its layer has.

    Attributes:
        x, d: inputs and errors.
        x_max, d_max: largest magnitudes of each sample; both broadcast to d.
        correlate: (f(x), g(d)) → Σ over samples of their outer products, (…, O, K).
        sum_outputs: errors → their sums over the O outputs, of which `correlate` makes (…, 1, K).
        shares: errors → each output's share of their sum, (…, O, 1).
        matrices: → x as (…, S, K) and d as (…, S, O).
        samples: S.
    """

    x: Tensor
    d: Tensor
    x_max: Tensor
    d_max: Tensor
    correlate: Callable[[Tensor, Tensor], Tensor]
    sum_outputs: Callable[[Tensor], Tensor]
    shares: Callable[[Tensor], Tensor]
    matrices: Callable[[], tuple[Tensor, Tensor]]
    samples: int


def dense_lines(x: Tensor, d: Tensor) -> Lines:
    """Lines of samples that are matrices already: x (…, S, K), d (…, S, O)."""
    return Lines(
        x=x,
        d=d,
        x_max=x.abs().amax(-1, keepdim=True),
        d_max=d.abs().amax(-1, keepdim=True),
        correlate=lambda x, d: d.mT @ x,
        sum_outputs=lambda d: d.sum(-1, keepdim=True),
        shares=lambda d: (d.sum(-2) / d.sum((-2, -1))[..., None]).nan_to_num(0.0).unsqueeze(-1),
        matrices=lambda: (x, d),
        samples=x.shape[-2],
    )


@dataclass(frozen=True)
class Drive:
    """How one sample's lines are driven; tensors that broadcast to its errors.

    Attributes:
        length: slots of the train.
        x_factor, d_factor: probabilities are min(1, x_factor·|x|) and min(1, d_factor·|d|).
    """

    length: Tensor
    x_factor: Tensor
    d_factor: Tensor


def drive(x_max: Tensor, d_max: Tensor, rate: Tensor | float, train: PulseTrain) -> Drive:
    """Train lengths and line factors (Gokmen & Vlasov 2016; Gokmen et al. 2017, update management).

    With k = rate·max|x|·max|d|: length BL = min(⌈k⌉, longest) or longest, factors A·B = rate/BL. Managed, both largest
    lines have the probability √(k/BL); what k exceeds the longest train by is cut off at the errors.

    >>> d = drive(torch.tensor(1.0), torch.tensor(0.5), 8.0, PulseTrain())
    >>> float(d.length), round(float(d.x_factor * 1.0), 3), round(float(d.d_factor * 0.5), 3)
    (4.0, 1.0, 1.0)
    """
    wanted = rate * x_max * d_max
    longest = torch.full((), float(train.longest), device=wanted.device)
    length = wanted.ceil().clamp(1, train.longest) if train.managed_length else longest.expand_as(wanted)
    both = (rate / length) ** 0.5
    if not train.managed_lines:
        return Drive(length, both, both)
    cut = d_max * (longest / wanted).clamp(max=1)
    ratio = (x_max / cut).sqrt()
    return Drive(length, (both / ratio).nan_to_num(0.0, 0.0), (both * ratio).nan_to_num(0.0, 0.0))


@dataclass(frozen=True)
class ExpectedPulses:
    """Moments of the pulse numbers of some samples; m is the expected number of one sample and cell.

    Attributes:
        total: Σ m, pulses up and down, (…, O, K).
        net: Σ ±m, up pulses minus down pulses, (…, O, K).
        power: Σ m², (…, O, K) or what broadcasts to it.
        slot: mean of 1/BL, so that the variance of a sample's number is m − m²·slot; a scalar.
        samples: number of samples.
    """

    total: Tensor
    net: Tensor
    power: Tensor
    slot: Tensor
    samples: float


@dataclass(frozen=True)
class PulseRates:
    """What expected numbers are made of: m = |x|·|d| with errors d scaled to pulses, and cut where trains are full.

    Attributes:
        x, d: inputs and scaled errors, in their layer's layout.
        slot: see ExpectedPulses.
        slots: slots of all trains, one after the other, a scalar.
    """

    x: Tensor
    d: Tensor
    slot: Tensor
    slots: Tensor


def pulse_rates(lines: Lines, rate: Tensor | float, train: PulseTrain) -> PulseRates:
    """Errors scaled such that x·d is a number of pulses: BL·p·q of each sample and cell."""
    driven = drive(lines.x_max, lines.d_max, rate, train)
    x, d = lines.x, _cut(lines.d, driven.d_factor)
    if not train.managed_lines:
        x = _cut(x, driven.x_factor)
    largest = (rate * lines.x_max * lines.d_max).square()
    slot = ((largest / driven.length).sum() / largest.sum()).nan_to_num(1.0)
    per_slot = driven.x_factor * driven.d_factor * driven.length
    return PulseRates(x, d * per_slot, slot, driven.length.mean() * lines.samples)


def expected_pulses(lines: Lines, rates: PulseRates) -> ExpectedPulses:
    """Moments of a mini-batch's pulse numbers, by three products like that of a weight's gradient."""
    return ExpectedPulses(
        total=lines.correlate(rates.x.abs(), rates.d.abs()),
        net=lines.correlate(rates.x, rates.d).neg_(),
        power=lines.correlate(rates.x.square(), rates.d.square()),
        slot=rates.slot,
        samples=float(lines.samples),
    )


def _cut(values: Tensor, factor: Tensor) -> Tensor:
    """Values where factor·|values| would be a probability above 1, cut to 1."""
    end = 1 / factor
    return values.clamp(-end, end)


def coincidences(x: Tensor, d: Tensor, rate: Tensor | float, train: PulseTrain, generator: torch.Generator) -> Tensor:
    """Random signed pulse numbers of each sample and cell, up positive; (…, S, O, K).

    In every slot each line fires or not; cells of one row or column share their line's pulses.
    """
    rows, columns = trains(x, d, rate, train, generator)
    return (rows.mT @ columns).neg_()


def trains(
    x: Tensor, d: Tensor, rate: Tensor | float, train: PulseTrain, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Random trains of the errors' lines (…, S, slots, O) and of the inputs' (…, S, slots, K): −1, 0 or 1."""
    driven = drive(x.abs().amax(-1, keepdim=True), d.abs().amax(-1, keepdim=True), rate, train)
    slots = int(driven.length.max()) if train.managed_length else train.longest
    in_train = torch.arange(slots, device=x.device).unsqueeze(-1) < driven.length.unsqueeze(-1)
    return _trains(d, driven.d_factor, slots, generator) * in_train, _trains(x, driven.x_factor, slots, generator)


def counts_in_order(
    x: Tensor, d: Tensor, rate: Tensor | float, train: PulseTrain, generator: torch.Generator
) -> Callable[[int, int], Tensor]:
    """(first, last) → `coincidences` of those samples; asked for in order, drawn block by block.

    In bfloat16 where the machine multiplies that faster: it holds numbers up to 256 exactly.
    """
    fast = x.device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    compact = torch.bfloat16 if fast and train.longest <= 256 else torch.float32
    block = max(1, TRAINS_AT_ONCE // (train.longest * (x[..., 0, :].numel() + d[..., 0, :].numel())))
    start, end, rows, columns = 0, 0, x, d

    def counts(first: int, last: int) -> Tensor:
        nonlocal start, end, rows, columns
        if last > end:
            start, end = first, min(max(first + block, last), x.shape[-2])
            drawn = trains(x[..., start:end, :], d[..., start:end, :], rate, train, generator)
            rows, columns = drawn[0].neg_().to(compact), drawn[1].to(compact)
        part = slice(first - start, last - start)
        return rows[..., part, :, :].mT @ columns[..., part, :, :]

    return counts


def _trains(values: Tensor, factor: Tensor, slots: int, generator: torch.Generator) -> Tensor:
    """Trains of sign(value) with probability min(1, factor·|value|), else 0: (…, S, slots, lines).

    By 16-bit random numbers and thresholds rounded at random, so that the mean probability is exact.
    """
    shape = (*values.shape[:-1], slots, values.shape[-1])
    count = values[..., 0].numel() * slots * values.shape[-1]
    uniform = uniform_int16(count, generator).view(shape)
    dither = torch.rand(values.shape, generator=generator, device=values.device)
    threshold = ((factor * values.abs()).clamp_(max=1) * 2.0**16).add_(dither).floor_()
    signs = values.sign() * (threshold > 0)
    threshold = threshold.sub_(2**15 + 1).clamp_(-(2.0**15), 2.0**15 - 1).to(torch.int16)
    return (uniform <= threshold.unsqueeze(-2)) * signs.unsqueeze(-2)
