"""The front of a search: its points, which of them nothing dominates, and the volume that they dominate."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import moocore
import numpy as np
from optuna.trial import FrozenTrial, TrialState

from energytl.study.quantities import QUANTITIES
from energytl.study.settings import Settings


@dataclass(frozen=True)
class Point:
    """A finished trial.

    Attributes:
        number: of the trial.
        params: its values of what varies, as the storage has them.
        numbers: its quantities.
        losses: of the objectives, all better where smaller.
        feasible: whether it keeps to the constraints.
        quartiles: of the accuracy over many reads, if it was measured with many.
    """

    number: int
    params: dict[str, Any]
    numbers: dict[str, float]
    losses: tuple[float, ...]
    feasible: bool
    quartiles: tuple[float, float] | None = None


def points(settings: Settings, known: Sequence[FrozenTrial]) -> list[Point]:
    """Finished trials in their order, each set of values once."""
    first: dict[frozenset[tuple[str, Any]], Point] = {}
    for trial in known:
        values = frozenset(trial.params.items())
        if trial.state == TrialState.COMPLETE and values not in first:
            first[values] = point(settings, trial.number, trial.params, trial.user_attrs["numbers"])
    return list(first.values())


def point(settings: Settings, number: int, params: dict[str, Any], numbers: dict[str, float]) -> Point:
    """A trial with these quantities."""
    losses = tuple(QUANTITIES[name].loss(numbers[name]) for name in settings.objectives)
    feasible = all(bound.violation(name, numbers[name]) <= 0 for name, bound in settings.constraints.items())
    return Point(number, params, numbers, losses, feasible)


def front(found: Sequence[Point], near: tuple[float, ...] = ()) -> list[Point]:
    """The feasible points that nothing dominates, by their last objective.

    Args:
        found: all points.
        near: for each objective, so much better a point is taken for than it is, among the others as they are.
    """
    feasible = [candidate for candidate in found if candidate.feasible]
    if not feasible:
        return []
    losses = np.array([candidate.losses for candidate in feasible])
    taken_for = losses - np.array(near or 0.0)
    kept = [
        candidate
        for candidate, own in zip(feasible, taken_for, strict=True)
        if not ((losses <= own).all(1) & (losses < own).any(1)).any()
    ]
    return sorted(kept, key=lambda candidate: candidate.losses[::-1])


def hypervolumes(found: Sequence[Point]) -> list[float]:
    """Share of the box between the best and the worst of each objective that is dominated, after each point.

    The box is that of all points so far, so that the last entry compares with itself only; 0 before the first
    feasible one.
    """
    if not found:
        return []
    losses = np.array([candidate.losses for candidate in found])
    best, worst = losses.min(0), losses.max(0)
    scaled = (losses - best) / np.where(worst > best, worst - best, 1.0)
    volume = moocore.Hypervolume(ref=np.full(losses.shape[1], 1.0 + 1e-9))
    history, kept = [], np.empty((0, losses.shape[1]))
    for candidate, own in zip(found, scaled, strict=True):
        if candidate.feasible:
            kept = moocore.filter_dominated(np.vstack([kept, own]))
        history.append(float(volume(kept)) if len(kept) else 0.0)
    return history
