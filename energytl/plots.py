"""Figures from results: plain numbers in, matplotlib figures out."""

import math
import statistics
from collections.abc import Callable, Iterable
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from energytl.convergence import Group, Key, groups, order_quantile, speeds
from energytl.results import Result
from energytl.tables import at_drops, depthwise_shares, merge_seeds, published_energies, speed_text

COMPONENTS = {
    "energy_cell_j": "cells",
    "energy_converter_j": "converters",
    "energy_row_driver_j": "row drivers",
    "energy_shift_add_j": "shift-and-add",
}

TRAINING_COMPONENTS = {
    "training_energy_pulses_j": "pulses",
    "training_energy_forward_j": "forward reads",
    "training_energy_backward_j": "backward reads",
    "training_energy_column_reads_j": "column reads",
}

MOST_PANELS = 6
"""Conditions that the figure of convergence shows."""

MOST_INSIDE = 10
"""Names of a legend that a panel has room for."""

FASTEST = 4.0
"""A ratio of convergence at which the colours of its map end; slower ones end at the reciprocal."""

PROGRESS = {"step": "iteration", "epoch": "epoch"}

CURVES = {
    "val/accuracy": "accuracy on test images",
    "train/task_loss": "task loss in training",
    "train/energy": "Σ α·ρ·|w|",
    "rho": "mean ρ (µS)",
}


def figures(results: dict[str, Result]) -> dict[str, Figure]:
    """The figures of a recipe, by name; those without numbers to show are left out.

    Cases that repeat an experiment with other seeds are one in the figures that do not show single runs; see
    `merge_seeds`.
    """
    makers: dict[str, Callable[[dict[str, Result]], Figure | None]] = {
        "learning_costs": learning_costs,
        "training_on_chip": training_on_chip,
        "least_energy": least_energy,
        "energy_by_condition": energy_by_condition,
        "accuracy_by_condition": accuracy_by_condition,
        "over_time": over_time,
        "weights": weights,
        "convergence": convergence,
        "speed_map": speed_map,
        "accuracy_energy": accuracy_energy,
        "depthwise_share": depthwise_share,
        "energy_by_layer": energy_by_layer,
        "paper_energy_by_layer": paper_energy_by_layer,
        "rho_by_layer": rho_by_layer,
        "training": training,
    }
    merged, of_runs = merge_seeds(results), ("convergence", "speed_map", "accuracy_by_condition", "over_time")
    made = {name: make(results if name in of_runs else merged) for name, make in makers.items()}
    return {name: figure for name, figure in made.items() if figure is not None}


def case_figures(result: Result) -> dict[str, Figure]:
    """The figures of one case, for TensorBoard; its curves are there as scalars."""
    one = {result["case"]: result}
    made = {"energy_by_layer": energy_by_layer(one), "rho_by_layer": rho_by_layer(one)}
    return {name: figure for name, figure in made.items() if figure is not None}


def accuracy_energy(results: dict[str, Result]) -> Figure | None:
    """Accuracy (median, quartiles) of every point against energy, in the paper's units and in joules."""
    shown = {
        case: result
        for case, result in results.items()
        if result["accuracy_median"] is not None and result["energy_paper"] is not None
    }
    if not shown:
        return None
    energies = {
        "energy_paper": "energy per image, Σ ρ·|w|·pulses (paper units)",
        "energy_total_j": "total energy per image, circuits included",
    }
    energies = {
        key: label for key, label in energies.items() if all(result[key] is not None for result in shown.values())
    }
    digital = {100 * r["accuracy_digital"] for r in shown.values() if r["accuracy_digital"] is not None}
    columns = _columns(shown)
    figure, row = panels(len(energies), height=4.0 + 0.25 * -(-len(shown) // columns))
    colours = _colours(results)
    for axes, (key, label) in zip(row, energies.items(), strict=True):
        lowest = []
        for case, result in shown.items():
            points = sorted(result.get("points") or [result], key=lambda point: point[key])
            low, middle, high = (
                [100 * point[f"accuracy_{part}"] for point in points] for part in ("q25", "median", "q75")
            )
            spread = [
                [m - lo for m, lo in zip(middle, low, strict=True)],
                [hi - m for m, hi in zip(middle, high, strict=True)],
            ]
            style: dict[str, Any] = {
                "marker": "o",
                "capsize": 4,
                "linestyle": "-" if len(points) > 1 else "",
                "color": colours[case],
                "label": case,
            }
            axes.errorbar([point[key] for point in points], middle, spread, **style)
            lowest += low
            if key == "energy_paper":
                _draw_curves(axes, result, colours[case])
        if any(result.get("curves") for result in shown.values()):
            axes.set_ylim(min(lowest) - 4, max([*lowest, *digital]) + 1)
        for value in digital:
            axes.axhline(value, color="black", linewidth=0.8, linestyle="--", zorder=0)
        axes.set(xscale="log", xlabel=label, ylabel="accuracy (%)")
        if key.endswith("_j"):
            label_decades(axes.xaxis, "J")
        axes.margins(x=0.15, y=0.2)
        axes.grid(alpha=0.3)
    if digital:
        row[0].plot([], [], color="black", linewidth=0.8, linestyle="--", label="digital")
    figure.legend(*row[0].get_legend_handles_labels(), loc="outside lower center", ncols=columns)
    return figure


def _draw_curves(axes: Axes, result: Result, colour: str) -> None:
    """What the choice of the points saw, a thin line for each trained network: its drop on the images held out."""
    curves: dict[int, list[tuple[float, float]]] = {}
    for row in result.get("curves") or []:
        digital = result["accuracy_digital"]
        accuracy = row["accuracy"] if digital is None else digital - row["drop"]
        curves.setdefault(row["network"], []).append((row["energy_paper"], 100 * accuracy))
    for curve in curves.values():
        axes.plot(*zip(*curve, strict=True), color=colour, linewidth=0.7, alpha=0.6, zorder=0)


def least_energy(results: dict[str, Result]) -> Figure | None:
    """Least energy at each accuracy drop, a line a case: ours, and beside it what a paper reports, in its own unit."""
    shown = {case: points for case, result in results.items() if len(points := at_drops(result)) > 1}
    if not shown:
        return None
    published = {case: by_drop for case in shown if (by_drop := published_energies(results[case]))}
    figure, (ours, *theirs) = panels(2 if published else 1, height=4.4)
    colours = _colours(results)
    for case, points in shown.items():
        drops = [f"{100 * point['drop']:g} %" for point in points]
        energies = [point["energy_paper"] for point in points]
        ours.plot(drops, energies, color=colours[case], label=case)
        for drop, point in zip(drops, points, strict=True):
            fill = colours[case] if point["reached"] else "white"
            ours.plot(drop, point["energy_paper"], "o", color=colours[case], markerfacecolor=fill)
            _draw_seeds(ours, drop, point, colours[case])
        for axes in theirs:
            if case in published:
                axes.plot(drops, [*published[case].values()], "o-", color=colours[case], label=case)
                axes.set(title="published", ylabel="energy (the paper's unit)")
    ours.set(title="energytl", ylabel="energy (paper units)")
    for axes in (ours, *theirs):
        axes.set(yscale="log", xlabel="accuracy drop allowed")
        axes.grid(alpha=0.3)
    ours.legend(fontsize="small")
    return figure


def _draw_seeds(axes: Axes, place: str | int, point: Result, colour: str) -> None:
    """The least energies of a point's seeds, a mark each on one line, but for those that count as infinitely large."""
    energies = [energy for energy in point.get("energies_paper", []) if energy < math.inf]
    axes.plot([place] * len(energies), energies, "_-", color=colour, linewidth=1, markersize=9)


def energy_by_condition(results: dict[str, Result]) -> Figure | None:
    """Energy of the first point of each method under each condition, a line a method; in paper units and joules.

    Of several seeds the median; in paper units with the least and the largest that a seed takes.
    """
    methods: dict[str, dict[str, Result]] = {}
    for result in results.values():
        point = (result.get("points") or [result])[0]
        named = result.get("method") and result.get("condition")
        if named and point["drop"] is not None and point["energy_paper"] is not None:
            methods.setdefault(result["method"], {})[result["condition"]] = point
    if not methods:
        return None
    conditions = list(dict.fromkeys(condition for points in methods.values() for condition in points))
    energies = {"energy_paper": "energy (paper units)", "energy_total_j": "total energy, circuits included"}
    known = {k: v for k, v in energies.items() if all(p[k] is not None for m in methods.values() for p in m.values())}
    figure, row = panels(len(known), height=4.2)
    for axes, (key, label) in zip(row, known.items(), strict=True):
        for number, (method, points) in enumerate(methods.items()):
            places = [conditions.index(condition) for condition in points]
            axes.plot(places, [point[key] for point in points.values()], color=f"C{number}", label=method)
            for place, point in zip(places, points.values(), strict=True):
                fill = "white" if point["reached"] is False else f"C{number}"
                axes.plot(place, point[key], "o", color=f"C{number}", markerfacecolor=fill)
                if key == "energy_paper":
                    _draw_seeds(axes, place, point, f"C{number}")
        axes.set(yscale="log", ylabel=label)
        axes.set_xticks(range(len(conditions)), conditions)
        if key.endswith("_j"):
            label_decades(axes.yaxis, "J")
        axes.grid(alpha=0.3)
    row[0].legend(fontsize="small")
    return figure


def accuracy_by_condition(results: dict[str, Result]) -> Figure | None:
    """Accuracy of each method under each condition, a line a method: median and range over chips, or else reads.

    Those of all seeds count together. Conditions of several quantities, as "skew = 0.1", get a panel a quantity. The
    median of what has no condition is a dashed line.
    """
    methods: dict[str, dict[str, list[float]]] = {}
    always: dict[str, list[float]] = {}
    for result in results.values():
        if not result.get("method") or result["drop"] is not None or result["accuracy_median"] is None:
            continue
        measured = result.get("accuracies_chips") or result["accuracies"]
        if result.get("condition"):
            methods.setdefault(result["method"], {}).setdefault(result["condition"], []).extend(measured)
        else:
            always.setdefault(result["method"], []).extend(measured)
    if not methods:
        return None
    quantities = _quantities(dict.fromkeys(condition for points in methods.values() for condition in points))
    figure, row = panels(len(quantities), columns=3, height=4.4)
    colours = _colours(dict.fromkeys([*methods, *always]))
    for axes, (quantity, conditions) in zip(row, quantities.items(), strict=True):
        for method, points in methods.items():
            shown = [condition for condition in conditions if condition in points]
            of_method = [[100 * value for value in points[condition]] for condition in shown]
            middle = [statistics.median(values) for values in of_method]
            below = [m - min(values) for m, values in zip(middle, of_method, strict=True)]
            above = [max(values) - m for m, values in zip(middle, of_method, strict=True)]
            if shown:
                places = [conditions.index(condition) for condition in shown]
                bars = [below, above]
                axes.errorbar(places, middle, bars, color=colours[method], marker="o", capsize=4, label=method)
        for method, measured in always.items():
            label = f"{method}, in every panel" if method in methods else method
            axes.axhline(100 * statistics.median(measured), color=colours[method], linestyle="--", label=label)
        axes.set(xlabel=quantity, ylabel="accuracy (%)")
        values = [condition.removeprefix(f"{quantity} = ") for condition in conditions]
        axes.set_xticks(range(len(conditions)), values)
        if len(row) == 1 and len(conditions) > 4:
            figure.set_figwidth(11.2)
            axes.set_xticks(range(len(conditions)), values, rotation=30, ha="right")
        axes.grid(alpha=0.3)
    _same_heights(row)
    _legend_below(figure, row)
    return figure


def _quantities(conditions: Iterable[str]) -> dict[str, list[str]]:
    """Conditions by the quantity they are values of; together under no name, if that is not several for all of them.

    >>> _quantities(["skew = 0", "skew = 1", "noise = 0"])
    {'skew': ['skew = 0', 'skew = 1'], 'noise': ['noise = 0']}
    >>> _quantities(["skew = 0", "skew = 1"]), _quantities(["weak", "noise = 0"])
    ({'': ['skew = 0', 'skew = 1']}, {'': ['weak', 'noise = 0']})
    """
    found: dict[str, list[str]] = {}
    for condition in conditions:
        quantity, equals, _ = condition.partition(" = ")
        found.setdefault(quantity if equals else "", []).append(condition)
    return found if len(found) > 1 and "" not in found else {"": [name for names in found.values() for name in names]}


def over_time(results: dict[str, Result]) -> Figure | None:
    """Accuracy against the time since programming, a line a case: median and range over chips, or else reads."""
    shown = {case: result["over_time"] for case, result in results.items() if result.get("over_time")}
    if not shown:
        return None
    figure, (axes,) = panels(1)
    colours = _colours(shown)
    for case, several in shown.items():
        values = [[100 * value for value in found["accuracies"]] for found in several]
        middle = [statistics.median(each) for each in values]
        bars = [[m - min(each) for m, each in zip(middle, values, strict=True)]]
        bars.append([max(each) - m for m, each in zip(middle, values, strict=True)])
        style: dict[str, Any] = {"marker": "o", "capsize": 4, "color": colours[case], "label": case}
        axes.errorbar([found["time_s"] for found in several], middle, bars, **style)
    axes.set(xscale="log", xlabel="time since programming (s)", ylabel="accuracy (%)")
    axes.grid(alpha=0.3)
    _legend_below(figure, [axes])
    return figure


def weights(results: dict[str, Result]) -> Figure | None:
    """Histogram of what the cells of the last layer hold, a panel a case."""
    shown = {case: result["histograms"] for case, result in results.items() if result.get("histograms")}
    if not shown:
        return None
    figure, row = panels(len(shown), columns=3, height=3.2)
    for axes, (case, layers) in zip(row, shown.items(), strict=False):
        name, last = list(layers.items())[-1]
        bins, edge = len(last["counts"]), last["edge"]
        width = 2 * edge / bins
        axes.bar([-edge + (i + 0.5) * width for i in range(bins)], last["counts"], width)
        axes.set(title=f"{case}, layer {name}", xlabel="weight", ylabel="count", yscale="symlog")
        axes.set_ylim(bottom=0)
    return figure


def convergence(results: dict[str, Result]) -> Figure | None:
    """Smoothed accuracy while training, a panel a condition: median over runs and quartiles, and the target.

    What has no condition is in every panel, dash-dotted if its method has conditions, too. Of more conditions than
    there is room for, some are shown, evenly spread.
    """
    found = groups(results)
    if not found:
        return None
    conditions = _some([name for name in _conditions(found) if name is not None]) or [None]
    columns = 2 if len(conditions) == 4 else 3
    figure, row = panels(len(conditions), columns, height=3.4 if len(conditions) > 1 else 4.8)
    if len(row) == 1:
        figure.set_figwidth(8.4)
    colours = _colours(dict.fromkeys(method for method, _ in found))
    early = _early(found)
    varied = {method for method, condition in found if condition is not None}
    for axes, condition in zip(row, conditions, strict=True):
        shown = {key: group for key, group in found.items() if key[1] in (condition, None)}
        for (method, own), group in shown.items():
            everywhere = own is None and method in varied
            label, style = (f"{method}, in every panel", "-.") if everywhere else (method, "-")
            _draw_runs(axes, group, label, colours[method], style)
        for target in {group.target for group in shown.values()}:
            axes.axhline(100 * target, color="black", linewidth=0.8, linestyle="--", label="target", zorder=0)
        windows = "/".join(dict.fromkeys(str(group.window) for group in shown.values()))
        axes.set(xlabel="training images", ylabel="accuracy (%)" + (f", mean of {windows}" if windows != "1" else ""))
        axes.set_title(condition or "")
        if early:
            axes.set_xscale("symlog", linthresh=min(group.resolution for group in found.values()))
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(alpha=0.3)
    _same_heights(row)
    _legend_below(figure, row)
    return figure


def _draw_runs(axes: Axes, group: Group, label: str, colour: str, style: str) -> None:
    """Median and quartiles of the runs of a group, in percent."""
    low, middle, high = ((100 * order_quantile(group.smoothed.T, share)).tolist() for share in (0.25, 0.5, 0.75))
    images = group.images.tolist()
    axes.plot(images, middle, color=colour, label=label, linestyle=style)
    if len(group.accuracy) > 1:
        axes.fill_between(images, low, high, color=colour, alpha=0.2, linewidth=0)


def _early(found: dict[Key, Group]) -> bool:
    """Whether some experiment is at its target so early in the training that a linear axis would hide it."""
    medians = [(float(order_quantile(group.images_to_target, 0.5)), int(group.images[-1])) for group in found.values()]
    return any(0 < median < last / 20 for median, last in medians)


def _some(names: list[str | None]) -> list[str | None]:
    """So many of the names as there is room for, evenly spread, with the first and the last.

    >>> _some(list("abcdefghijk"))
    ['a', 'c', 'e', 'g', 'i', 'k']
    """
    if len(names) <= MOST_PANELS:
        return names
    return [names[round(i * (len(names) - 1) / (MOST_PANELS - 1))] for i in range(MOST_PANELS)]


def _conditions(keys: Iterable[Key]) -> list[str | None]:
    """The conditions, each once."""
    return list(dict.fromkeys(condition for _, condition in keys))


def speed_map(results: dict[str, Result]) -> Figure | None:
    """How many times fewer images each method needs than its baseline, under each condition, as colours and numbers."""
    found = groups(results)
    compared = {key: speed for key, speed in speeds(found).items() if key[1] is not None}
    conditions, methods = _conditions(compared), list(dict.fromkeys(method for method, _ in compared))
    if len(conditions) < 2:
        return None
    figure = Figure(figsize=(4 + 1.4 * len(conditions), 1.7 + 0.7 * len(methods)), layout="constrained")
    axes = figure.subplots()
    slowest = 1 / FASTEST
    colours = [[math.nan] * len(conditions) for _ in methods]
    for (method, condition), speed in compared.items():
        x, y = conditions.index(condition), methods.index(method)
        colours[y][x] = speed.ratio if math.isnan(speed.ratio) else min(max(speed.ratio, slowest), FASTEST)
        dark = colours[y][x] < slowest**0.6 or colours[y][x] > FASTEST**0.6
        said = "never" if speed.ratio == 0 else speed_text(speed, between="\n")
        if found[method, condition].paper:
            axes.add_patch(Rectangle((x - 0.47, y - 0.45), 0.94, 0.9, fill=False, edgecolor="C1", linewidth=3))
        axes.text(x, y, said, ha="center", va="center", fontsize="small", color="white" if dark else "black")
    image = axes.imshow(colours, cmap="RdBu", norm=LogNorm(slowest, FASTEST), aspect="auto")
    axes.set_facecolor("0.9")
    names = [str(condition) for condition in conditions]
    tilted = max(map(len, names)) > 16
    axes.set_xticks(range(len(names)), names, rotation=30 if tilted else 0, ha="right" if tilted else "center")
    axes.set_yticks(range(len(methods)), methods)
    rivals = list(dict.fromkeys(speed.baseline for speed in compared.values()))
    bar = figure.colorbar(
        image, ax=axes, label=f"times faster than\n{rivals[0] if len(rivals) == 1 else 'the baseline'}"
    )
    bar.set_ticks(
        [slowest, slowest**0.5, 1, FASTEST**0.5, FASTEST],
        labels=[f"≤ {slowest:g}", f"{slowest**0.5:g}", "1", f"{FASTEST**0.5:g}", f"≥ {FASTEST:g}"],
    )
    bar.ax.yaxis.set_minor_locator(NullLocator())
    return figure


def depthwise_share(results: dict[str, Result]) -> Figure | None:
    """Share of the layers with several groups in cells, latency and energy, bars for each case that has any."""
    shares = {case: depthwise_shares(result) for case, result in results.items()}
    if not any(share.get("cells", 0) > 0 for share in shares.values()):
        return None
    names = list(dict.fromkeys(name for share in shares.values() for name in share))
    figure, (axes,) = panels(1, height=4.2)
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        places = [i + (number - (len(names) - 1) / 2) * width for i in range(len(shares))]
        axes.bar(places, [100 * share.get(name, 0.0) for share in shares.values()], width, label=name)
    axes.set_xticks(range(len(shares)), list(shares), rotation=20, ha="right")
    axes.set_ylabel("share of the depthwise layers (%)")
    figure.legend(loc="outside lower center", ncols=len(names))
    return figure


def energy_by_layer(results: dict[str, Result]) -> Figure | None:
    """Joules of each layer by component, a panel a case; without joules, the paper's units."""
    shown = {case: result for case, result in results.items() if result["energy_paper"] is not None}
    if not shown:
        return None
    figure, row = panels(len(shown), columns=2, height=3.4)
    for axes, (case, result) in zip(row, shown.items(), strict=False):
        layers = result["layers"]
        places = range(len(layers))
        if all(layer["energy_total_j"] is not None for layer in layers):
            bottom = [0.0] * len(layers)
            for key, label in COMPONENTS.items():
                heights = [layer[key] for layer in layers]
                axes.bar(places, heights, bottom=bottom, label=label)
                bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
            axes.yaxis.set_major_formatter(EngFormatter("J"))
            axes.set_ylabel("energy per image")
        else:
            axes.bar(places, [layer["energy_paper"] for layer in layers], label="paper units")
            axes.set_ylabel("energy (paper units)")
        axes.set_title(case)
        _name_layers(axes, layers)
    _legend_below(figure, row)
    return figure


def paper_energy_by_layer(results: dict[str, Result]) -> Figure | None:
    """Energy of each layer in the paper's units, a line a case."""
    shown = {case: result for case, result in results.items() if result["energy_paper"] is not None}
    return _lines_by_layer(shown, "energy_paper", "Σ ρ·|w|·pulses per image", _colours(results))


def rho_by_layer(results: dict[str, Result]) -> Figure | None:
    """ρ of each layer, a line a case."""
    return _lines_by_layer(results, "rho", "ρ (µS of a full-range weight)", _colours(results))


def training(results: dict[str, Result]) -> Figure | None:
    """The curves of the analog training."""
    curves = {
        key: label for key, label in CURVES.items() if any(key in row for r in results.values() for row in r["history"])
    }
    if not curves:
        return None
    unit = _progress(results)
    figure, row = panels(len(curves), columns=2, height=3.2)
    colours = _colours(results)
    for axes, (key, label) in zip(row, curves.items(), strict=False):
        for case, result in results.items():
            points = [(point[unit], point[key]) for point in result["history"] if key in point]
            if points:
                axes.plot(*zip(*points, strict=True), marker=".", label=case, color=colours[case])
        axes.set(xlabel=PROGRESS[unit], ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if key in ("train/energy", "rho"):
            axes.set_yscale("log")
    _legend(figure, row)
    return figure


def training_on_chip(results: dict[str, Result]) -> Figure | None:
    """Accuracy by epoch of all cases, and the joules that training on the chip took, by component."""
    on_chip = {case: result for case, result in results.items() if "training_pulses" in result}
    if not on_chip:
        return None
    figure, (left, right) = panels(2, height=4.4)
    parts = {
        key: label
        for key, label in TRAINING_COMPONENTS.items()
        if all(result[key] is not None for result in on_chip.values())
    }
    colours, unit = _colours(results), _progress(results)
    for case, result in results.items():
        points = [(row[unit], 100 * row["val/accuracy"]) for row in result["history"] if "val/accuracy" in row]
        if points:
            dashed = "-" if case in on_chip else "--"
            left.plot(*zip(*points, strict=True), marker=".", linestyle=dashed, label=case, color=colours[case])
    left.set(xlabel=PROGRESS[unit], ylabel="accuracy on test images (%)")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.grid(alpha=0.3)
    _legend(figure, [left])
    bottom = [0.0] * len(on_chip)
    for key, label in parts.items():
        heights = [result[key] for result in on_chip.values()]
        right.bar(list(on_chip), heights, bottom=bottom, label=label)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    right.yaxis.set_major_formatter(EngFormatter("J"))
    right.set_ylabel("energy of the whole training")
    right.set_xticks(range(len(on_chip)), list(on_chip), rotation=30, ha="right")
    if len(on_chip) > MOST_INSIDE:
        right.set_xticks(range(len(on_chip)), list(on_chip), rotation=90, ha="center", fontsize="small")
    right.legend(fontsize="small")
    return figure


def learning_costs(results: dict[str, Result]) -> Figure | None:
    """Accuracy after learning on the chip against what reading, and what learning took; a colour for each method."""
    axes_of = {
        "energy_paper": ("energy per image, Σ ρ·|w|·pulses (paper units)", ""),
        "training_energy_j": ("energy of the training", "J"),
        "training_latency_s": ("time of the training", "s"),
    }
    merged = merge_seeds({case: result for case, result in results.items() if "training_pulses" in result})
    shown = [
        result for result in merged.values() if None not in [result.get(key) for key in ("accuracy_median", *axes_of)]
    ]
    methods = list(dict.fromkeys(result["method"] for result in shown if result.get("method")))
    if len(methods) < 2:
        return None
    figure, row = panels(len(axes_of), columns=len(axes_of))
    for axes, (key, (label, unit)) in zip(row, axes_of.items(), strict=True):
        for number, method in enumerate(methods):
            own = sorted((result for result in shown if result.get("method") == method), key=lambda result: result[key])
            low, middle, high = (
                [100 * result[f"accuracy_{part}"] for result in own] for part in ("q25", "median", "q75")
            )
            spread = [
                [m - lo for m, lo in zip(middle, low, strict=True)],
                [hi - m for m, hi in zip(middle, high, strict=True)],
            ]
            where = [result[key] for result in own]
            axes.errorbar(where, middle, spread, fmt="o", capsize=3, color=f"C{number}", label=method)
        axes.set(xscale="log", xlabel=label, ylabel="accuracy (%)")
        label_decades(axes.xaxis, unit)
        axes.grid(alpha=0.3)
    figure.legend(*row[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(methods))
    return figure


def pulse_response(
    measured: list[list[float]], fitted: list[list[float]], examples: dict[str, tuple[list[float], list[float]]]
) -> Figure:
    """What many cells show, and single ones, after each pulse.

    Args:
        measured: 5th, 50th and 95th percentile after each pulse.
        fitted: the same, of the fitted device.
        examples: of single cells by name, what they showed and their fitted curve without noise.
    """
    figure, (many, single) = panels(2)
    pulses = range(1, len(measured[0]) + 1)
    for (low, median, high), colour, label in ((measured, "C0", "measured"), (fitted, "C1", "fitted")):
        many.plot(pulses, median, color=colour, label=f"{label}, median")
        many.plot(pulses, low, pulses, high, color=colour, linewidth=0.8, linestyle="--")
        many.plot([], [], color=colour, linewidth=0.8, linestyle="--", label="5 % and 95 % of the cells")
    for number, (name, (shown, curve)) in enumerate(examples.items()):
        single.plot(pulses, shown, ".", markersize=3, color=f"C{number}", alpha=0.6)
        single.plot(pulses, curve, color=f"C{number}", label=f"device {name}")
    many.set_title("all moving devices")
    single.set_title("single devices: measured (dots), fitted without noise")
    for axes in (many, single):
        axes.set(xlabel="pulse", ylabel="state (mean range: −1 to 1)")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return figure


def _columns(names: Iterable[str]) -> int:
    """How many columns of a legend below two panels have room for these names."""
    return max(1, min(6, 100 // (6 + max(map(len, names)))))


def _progress(results: dict[str, Result]) -> str:
    """What a training's curves are drawn against: iterations, if all of them were counted."""
    return "step" if all("step" in row for result in results.values() for row in result["history"]) else "epoch"


def _colours(names: Iterable[str]) -> dict[str, str]:
    """One colour a case or method, the same in all figures; of 20 where there are more than 10."""
    order = list(names)
    size = 10 if len(order) <= 10 else 20
    colours = matplotlib.colormaps[f"tab{size}"]
    return {name: to_hex(colours(number % size)) for number, name in enumerate(order)}


def _legend(figure: Figure, row: list[Axes]) -> None:
    """A legend in each panel; one below all where a panel has no room for so many names."""
    if max(len(axes.get_legend_handles_labels()[1]) for axes in row) > MOST_INSIDE:
        _legend_below(figure, row)
    else:
        for axes in row:
            axes.legend(fontsize="small")


def _same_heights(row: list[Axes]) -> None:
    """All panels get the y axis that shows what any of them shows."""
    limits = [axes.get_ylim() for axes in row]
    for axes in row:
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


def _legend_below(figure: Figure, row: list[Axes]) -> None:
    """One legend for all panels below them, which makes the figure higher by its lines."""
    named = {label: line for axes in row for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    columns = max(1, min(6, int(8.9 * figure.get_figwidth()) // (6 + max(map(len, named)))))
    figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(named) // columns))
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=columns, fontsize="small")


def _lines_by_layer(results: dict[str, Result], key: str, label: str, colours: dict[str, str]) -> Figure | None:
    """One number of each layer: a line a case where the layers are the same, a panel for each set of layers."""
    together: dict[tuple[str, ...], dict[str, Result]] = {}
    for case, result in results.items():
        names = tuple(layer["name"] for layer in result["layers"])
        together.setdefault(names, {})[case] = result
    if not together:
        return None
    figure, row = panels(len(together), columns=2, height=3.4)
    for axes, cases in zip(row, together.values(), strict=False):
        layers: list[dict[str, Any]] = []
        for case, result in cases.items():
            layers = result["layers"]
            values = [layer[key] for layer in layers]
            axes.plot(range(len(layers)), values, marker="o", label=case, color=colours[case])
        axes.set(yscale="log", ylabel=label)
        axes.grid(alpha=0.3)
        _name_layers(axes, layers)
    _legend(figure, row)
    return figure


def label_decades(axis: Axis, unit: str) -> None:
    """Engineering labels at 1, 2 and 5 of each decade of a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(EngFormatter(unit))
    axis.set_minor_formatter(NullFormatter())


def panels(count: int, columns: int | None = None, height: float = 4.0) -> tuple[Figure, list[Axes]]:
    """A figure with so many axes, in rows of so many columns."""
    columns = min(count, columns or count)
    rows = -(-count // columns)
    figure = Figure(figsize=(5.6 * columns, height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    every = list(grid.flat)
    for unused in every[count:]:
        unused.set_visible(False)
    return figure, every[:count]


def _name_layers(axes: Axes, layers: list[dict[str, Any]]) -> None:
    few = len(layers) <= 30
    axes.set_xticks(range(len(layers)) if few else range(0, len(layers), 10))
    names = [layer["name"] or "network" for layer in layers]
    axes.set_xticklabels(names if few else names[::10], rotation=60, ha="right", fontsize="small")


matplotlib.use("agg")  # figures are written, never shown
