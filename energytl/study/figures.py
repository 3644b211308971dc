"""Figures of a search: projections of the front, hypervolume, importances, parallel coordinates."""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from energytl.plots import label_decades, panels
from energytl.study.front import Point, hypervolumes
from energytl.study.quantities import QUANTITIES
from energytl.study.settings import Choice, Range, Settings


def search_figures(
    settings: Settings,
    varied: dict[str, Range | Choice],
    found: Sequence[Point],
    kept: Sequence[Point],
    importances: dict[str, dict[str, float]],
) -> dict[str, Figure]:
    """The figures of a search, by name.

    Args:
        settings: of the study.
        varied: what varies.
        found: all points.
        kept: the front.
        importances: of each parameter, by objective.
    """
    figures = {
        "front": front_projections(settings, found, kept),
        "hypervolume": hypervolume_by_trial(found),
        "parallel_coordinates": parallel_coordinates(settings, varied, found, kept),
    }
    if importances:
        figures["importances"] = parameter_importances(importances)
    return figures


def front_projections(settings: Settings, found: Sequence[Point], kept: Sequence[Point]) -> Figure:
    """All points and the front, a panel for each pair of objectives."""
    pairs = list(combinations(settings.objectives, 2))
    figure, row = panels(len(pairs), height=4.4)
    for axes, (y, x) in zip(row, pairs, strict=True):
        groups: dict[str, tuple[list[Point], dict[str, Any]]] = {
            "breaks a constraint": ([p for p in found if not p.feasible], {"marker": "x", "color": "silver"}),
            "trial, few reads": ([p for p in found if p.feasible], {"marker": "o", "color": "silver"}),
            "front": (list(kept), {"marker": "o", "color": "C0", "zorder": 3}),
        }
        for label, (shown, style) in groups.items():
            if shown:
                axes.scatter([p.numbers[x] for p in shown], [p.numbers[y] for p in shown], label=label, **style)
        if len(pairs) == 1:
            line = sorted(kept, key=lambda p: p.numbers[x])
            axes.step([p.numbers[x] for p in line], [p.numbers[y] for p in line], where="post", color="C0", linewidth=1)
        for name in (x, y):
            _scale(axes, "x" if name == x else "y", name)
        axes.grid(alpha=0.3)
    row[0].legend(fontsize="small")
    return figure


def hypervolume_by_trial(found: Sequence[Point]) -> Figure:
    """Share of the box of all objectives that is dominated after each trial."""
    figure, (axes,) = panels(1)
    axes.step(range(1, len(found) + 1), hypervolumes(found), where="post")
    axes.set(xlabel="finished trials", ylabel="hypervolume (share of the box of all points)")
    axes.grid(alpha=0.3)
    return figure


def parameter_importances(importances: dict[str, dict[str, float]]) -> Figure:
    """How much of an objective's variance each parameter explains, bars."""
    names = sorted(next(iter(importances.values())), key=lambda name: sum(i.get(name, 0) for i in importances.values()))
    figure, (axes,) = panels(1, height=1.2 + 0.45 * len(names))
    height = 0.8 / len(importances)
    for number, (objective, shares) in enumerate(importances.items()):
        places = [place + (number - (len(importances) - 1) / 2) * height for place in range(len(names))]
        axes.barh(places, [shares.get(name, 0.0) for name in names], height, label=QUANTITIES[objective].label)
    axes.set_yticks(range(len(names)), [_short(name) for name in names])
    axes.set_xlabel("importance (share of the variance, fANOVA)")
    axes.legend(fontsize="small", loc="lower right")
    return figure


def parallel_coordinates(
    settings: Settings, varied: dict[str, Range | Choice], found: Sequence[Point], kept: Sequence[Point]
) -> Figure:
    """A line a trial through its parameters and objectives; the front in colour."""
    names = [*varied, *settings.objectives]
    figure = Figure(figsize=(max(6.0, 1.5 * len(names)), 4.6), layout="constrained")
    axes = figure.subplots()
    columns = {name: _column(name, varied.get(name), found) for name in names}
    on_front = {point.number for point in kept}
    for point in sorted(found, key=lambda point: point.number in on_front):
        heights = [columns[name][0][point.number] for name in names]
        chosen = point.number in on_front
        axes.plot(range(len(names)), heights, color="C0" if chosen else "silver", linewidth=1.4 if chosen else 0.6)
    for place, name in enumerate(names):
        axes.axvline(place, color="black", linewidth=0.8)
        for height, text in columns[name][1]:
            axes.annotate(text, (place, height), (3, 0), textcoords="offset points", fontsize=7, va="center")
    axes.set_xticks(range(len(names)), [_short(n) if n in varied else QUANTITIES[n].label for n in names], rotation=20)
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(names) - 0.6)
    return figure


def _column(
    name: str, varied: Range | Choice | None, found: Sequence[Point]
) -> tuple[dict[int, float], list[tuple[float, str]]]:
    """Height 0..1 of each trial on one axis, and the axis' labels."""
    if isinstance(varied, Choice):
        options = [Choice.name(value) for value in varied.values]
        heights = {text: place / (len(options) - 1) for place, text in enumerate(options)}
        return {p.number: heights[p.params[name]] for p in found}, [(h, _short(text)) for text, h in heights.items()]
    values = {p.number: float(p.params[name] if varied else p.numbers[name]) for p in found}
    log = varied.log if varied else QUANTITIES[name].logarithmic
    low, high = (float(varied.low), float(varied.high)) if varied else (min(values.values()), max(values.values()))

    def height(value: float) -> float:
        if high <= low:
            return 0.5
        return (math.log(value / low) / math.log(high / low)) if log else (value - low) / (high - low)

    return {number: height(value) for number, value in values.items()}, [(0.0, f"{low:.3g}"), (1.0, f"{high:.3g}")]


def _scale(axes: Axes, which: str, name: str) -> None:
    """Label and scale of an axis with a quantity."""
    quantity = QUANTITIES[name]
    axis = axes.xaxis if which == "x" else axes.yaxis
    axes.set(**{f"{which}label": quantity.label})
    if quantity.logarithmic:
        axes.set(**{f"{which}scale": "log"})
    if quantity.unit:
        label_decades(axis, quantity.unit)
    elif not quantity.logarithmic:
        axis.set_major_formatter(PercentFormatter(1.0))


def _short(name: str) -> str:
    """The end of a dotted key or class path, which tells it from others."""
    return ".".join(name.replace("init_args.", "").split(".")[-2:])
