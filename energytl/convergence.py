"""How soon training reaches an accuracy: images until the target, over runs, and how many times sooner than another.

The measure behind "3.5 times faster than from scratch" of Athena 2024, sections 3 and 4. A run that never gets there
counts as later than all others; it is never left out.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from energytl.allowed import COUNT, SHARE, Allowed, check
from energytl.results import Result

ROUNDING = 1e-6
"""Accuracies so little below a target are at it: means of single-precision numbers are not exact."""

Key = tuple[str, str | None]
"""Method and condition of an experiment."""


@dataclass(frozen=True)
class Convergence:
    """How soon training reaches an accuracy on the test images, in images.

    Attributes:
        target: the accuracy, as a fraction.
        window: measurements that the running mean is over, which is compared with the target; 1: each by itself.
        start: lowest and highest accuracy before training of the runs that count, compared with the baseline's runs in
            the same places (of the same tasks); null: all count.
    """

    target: float
    window: int = 1
    start: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Refuse what no accuracy reaches and a mean of nothing."""
        check(self, "convergence", target=Allowed(0, 1, above=True, note="as 0.94"), window=COUNT, start=SHARE)
        if self.start is not None and not self.start[0] <= self.start[1]:
            raise ValueError(f"convergence.start is {list(self.start)}; allowed: two fractions, as [0.6, 0.8]")


@dataclass(frozen=True, eq=False)
class Group:
    """The runs of an experiment that count: of its networks and seeds, those that start in its range.

    Attributes:
        target: accuracy that is waited for.
        window: measurements of the running mean.
        start: range of the accuracy before training; None: any. It does not concern baselines.
        counted: which of all runs count, bool.
        images: training images before each measurement, int64 (T,).
        steps: training iterations before each measurement, int64 (T,).
        accuracy: on test images, float64 (R, T).
        baseline: others are compared with it.
        paper: what a paper says of it; empty: nothing.
    """

    target: float
    window: int
    start: tuple[float, float] | None
    counted: Tensor
    images: Tensor
    steps: Tensor
    accuracy: Tensor
    baseline: bool
    paper: str

    @property
    def smoothed(self) -> Tensor:
        """Running means, float64 (R, T)."""
        return smoothed(self.accuracy, self.window)

    @property
    def images_to_target(self) -> Tensor:
        """See `images_to`; float64 (R,)."""
        return images_to(self.target, self.images, self.accuracy, self.window)

    @property
    def steps_to_target(self) -> Tensor:
        """The same in iterations, float64 (R,)."""
        return images_to(self.target, self.steps, self.accuracy, self.window)

    @property
    def resolution(self) -> float:
        """Images at the first measurement after the start of training."""
        later = self.images[self.images > 0]
        return float(later[0]) if len(later) else 1.0


@dataclass(frozen=True)
class Speed:
    """An experiment compared with its baseline; see `speed_ratio`.

    Attributes:
        baseline: the method that it is compared with.
        ratio: how many times fewer images it needs.
        low: lower end of its 95 % interval.
        high: upper end.
        bound: "≥" where it is there before training, so that the ratio is at least so much; "≤" where the baseline
            is; else empty.
    """

    baseline: str
    ratio: float
    low: float
    high: float
    bound: str


def smoothed(accuracy: Tensor, window: int) -> Tensor:
    """Mean of the last `window` measurements, of all so far where there are fewer; float64 (..., T).

    Args:
        accuracy: (..., T).
        window: 1 or more.

    >>> smoothed(torch.tensor([3.0, 1.0, 2.0, 6.0]), 3).tolist()
    [3.0, 2.0, 2.0, 3.0]
    """
    sums = accuracy.double().cumsum(-1)
    before = pad(sums, (window, 0))[..., : sums.shape[-1]]
    return (sums - before) / torch.arange(1, sums.shape[-1] + 1).clamp(max=window)


def images_to(target: float, images: Tensor, accuracy: Tensor, window: int = 1) -> Tensor:
    """Training images at which the smoothed accuracy first is at the target, float64 (R,); inf: never.

    A running mean belongs to the last measurement in it: nothing is known before it is measured.

    Args:
        target: a fraction.
        images: before each measurement, (T,).
        accuracy: of each run, (R, T).
        window: measurements of the running mean.

    >>> images_to(0.9, torch.tensor([0, 100, 200]), torch.tensor([[0.5, 0.9, 0.8], [0.5, 0.6, 0.7]]), 1).tolist()
    [100.0, inf]
    """
    there = smoothed(accuracy, window) >= target - ROUNDING
    return torch.where(there.any(-1), images.double()[there.int().argmax(-1)], math.inf)


def order_quantile(values: Tensor, share: float) -> Tensor:
    """A quantile over the last dimension of values that may be inf, float64 (...).

    It lies at share·(n−1) among the n sorted values. Between two of them it is interpolated if both are finite; it is
    inf if one of them is, as an even number's median between a run that gets there and one that never does.

    Args:
        values: (..., n).
        share: 0 to 1.

    >>> order_quantile(torch.tensor([[3.0, 1.0, 2.0, 8.0], [1.0, 1.0, torch.inf, torch.inf]]), 0.5).tolist()
    [2.5, inf]
    """
    ordered = values.double().sort(-1).values
    place = share * (ordered.shape[-1] - 1)
    low, high = ordered[..., math.floor(place)], ordered[..., math.ceil(place)]
    return torch.where(high.isinf(), high, low + (place - math.floor(place)) * (high - low))


def order_quartiles(values: Tensor) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile by `order_quantile`: "never" (inf) is later than everything.

    >>> order_quartiles(torch.tensor([300.0, 100.0, torch.inf, 200.0, torch.inf]))
    (200.0, 300.0, inf)
    """
    low, median, high = (float(order_quantile(values, share)) for share in (0.25, 0.5, 0.75))
    return low, median, high


def speed_ratio(
    scratch: Tensor, transfer: Tensor, resolution: float, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """How many times fewer images the second group needs: median(scratch)/median(transfer), and its 95 % interval.

    The interval is that of the percentile bootstrap: both groups are resampled, independently of each other, runs
    counting as independent (Efron and Tibshirani 1993, chapter 13). Of one run there is no interval: it is NaN.

    Runs that are there before training (0 images) count as there at the first measurement after its start, so that
    the ratio is a lower bound where most of `transfer` are. Where the median of scratch never gets there the ratio is
    inf, where that of transfer does not it is 0, where neither does it is NaN; a resample of this last kind may lie
    anywhere, and widens the interval to both sides.

    Args:
        scratch: images until the target of each run, (R0,); inf: never.
        transfer: the same of the other group, (R1,).
        resolution: images at the first measurement after the start of training, above 0.
        resamples: of the bootstrap.
        seed: of the bootstrap; its two groups take this one and the next.

    >>> speed_ratio(torch.tensor([600.0]), torch.tensor([200.0]), 100)
    (3.0, nan, nan)
    """
    scratch, transfer = scratch.double().clamp(min=resolution), transfer.double().clamp(min=resolution)
    ratio = float(order_quantile(scratch, 0.5) / order_quantile(transfer, 0.5))
    if min(len(scratch), len(transfer)) < 2:
        return ratio, math.nan, math.nan
    first = _resampled(tuple(scratch.tolist()), resamples, seed)
    second = _resampled(tuple(transfer.tolist()), resamples, seed + 1)
    ratios = first / second
    low = order_quantile(ratios.nan_to_num(0.0, math.inf), 0.025)
    high = order_quantile(ratios.nan_to_num(math.inf, math.inf), 0.975)
    return ratio, float(low), float(high)


def experiments(results: dict[str, Result]) -> dict[Key, dict[str, Result]]:
    """The cases of each experiment, by method and condition; a case without a method is its own.

    Cases of the same method and condition are one experiment if they differ in their seed. Where some of them do not,
    each is an experiment of its own, with its name as the method.

    >>> found = experiments({name: {"method": "A", "condition": None, "seed": int(name)} for name in ("1", "2")})
    >>> {key: list(cases) for key, cases in found.items()}
    {('A', None): ['1', '2']}
    """
    together: dict[Key, dict[str, Result]] = {}
    for case, result in results.items():
        together.setdefault((result.get("method") or case, result.get("condition")), {})[case] = result
    found: dict[Key, dict[str, Result]] = {}
    for key, cases in together.items():
        if len({result["seed"] for result in cases.values()}) == len(cases):
            found[key] = cases
        else:
            found |= {(case, key[1]): {case: result} for case, result in cases.items()}
    return found


def groups(results: dict[str, Result]) -> dict[Key, Group]:
    """The runs of each experiment that measured its convergence, if any of them counts.

    Raises:
        ValueError: in one line, if cases of one experiment differ in target, window, or when they measured.
    """
    measured = {case: result for case, result in results.items() if result.get("convergence")}
    found = {}
    for key, cases in experiments(measured).items():
        (first, one), *others = cases.items()
        same = {name: one["convergence"].get(name) for name in ("target", "window", "start", "images", "steps")}
        for case, other in others:
            for name, value in same.items():
                if other["convergence"].get(name) != value:
                    raise ValueError(
                        f"{first} and {case} are one method under one condition, but their convergence.{name} differ"
                    )
        runs = [torch.tensor(result["convergence"]["accuracy"], dtype=torch.float64) for result in cases.values()]
        accuracy, baseline = torch.cat(runs), any(result.get("baseline") for result in cases.values())
        counted = torch.ones(len(accuracy), dtype=torch.bool)
        if same["start"] is not None and not baseline:
            lowest, highest = same["start"]
            counted = (accuracy[:, 0] >= lowest - ROUNDING) & (accuracy[:, 0] <= highest + ROUNDING)
        if not counted.any():
            continue
        found[key] = Group(
            target=same["target"],
            window=same["window"],
            start=None if same["start"] is None else tuple(same["start"]),
            counted=counted,
            images=torch.tensor(same["images"]),
            steps=torch.tensor(same["steps"]),
            accuracy=accuracy[counted],
            baseline=baseline,
            paper=next((result["paper"] for result in cases.values() if result.get("paper")), ""),
        )
    return found


def speeds(found: dict[Key, Group]) -> dict[Key, Speed]:
    """What is no baseline, each compared with the fastest baseline of the same target, if there is one.

    A baseline of the same condition goes before one without condition.
    """
    made = {}
    for (method, condition), own in found.items():
        rivals = {
            key: group
            for key, group in found.items()
            if group.baseline and (group.target, group.window, group.start) == (own.target, own.window, own.start)
        }
        near = {key: group for key, group in rivals.items() if key[1] == condition}
        near = near or {key: group for key, group in rivals.items() if key[1] is None}
        if near and not own.baseline:
            name, _ = best = min(near, key=lambda key: _median(near[key].images_to_target))
            scratch, transfer = near[best].images_to_target, own.images_to_target
            if len(scratch) == len(own.counted):  # the same tasks
                scratch = scratch[own.counted]
            resolution = max(near[best].resolution, own.resolution)
            ratio = speed_ratio(scratch, transfer, resolution)
            bounds = [_median(times) < _median(times.clamp(min=resolution)) for times in (scratch, transfer)]
            bound = {(True, False): "≤", (False, True): "≥"}.get((bounds[0], bounds[1]), "")
            made[method, condition] = Speed(name, *ratio, bound)
    return made


@lru_cache(maxsize=256)
def _resampled(values: tuple[float, ...], resamples: int, seed: int) -> Tensor:
    """Medians of resamples, float64 (resamples,); kept, as tables and figures of a report ask for the same."""
    generator = torch.Generator().manual_seed(seed)
    picked = torch.randint(len(values), (resamples, len(values)), generator=generator)
    return order_quantile(torch.tensor(values, dtype=torch.float64)[picked], 0.5)


def _median(values: Tensor) -> float:
    return float(order_quantile(values, 0.5))
