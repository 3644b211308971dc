"""Tables and sentences from results: plain numbers in, text, HTML and Markdown out."""

import html
import math
import re
import statistics
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from itertools import compress

import torch
from matplotlib.ticker import EngFormatter

from energytl.convergence import Group, Key, Speed, experiments, groups, order_quartiles, speeds
from energytl.cost.training import TRAINING_NOT_MODELLED
from energytl.frontier import OWN_BEST
from energytl.results import Result

COLUMNS = (
    "case",
    "accuracy %",
    "quartiles",
    "drop % (95 %)",
    "digital %",
    "quantised %",
    "energy (paper)",
    "cells' energy",
    "total energy",
    "latency",
    "cells",
    "reads",
)

POINT_COLUMNS = (
    "drop",
    "case",
    "accuracy %",
    "quartiles",
    "drop % (95 %)",
    "quantised %",
    "λ",
    "energy (paper)",
    "cells' energy",
    "total energy",
)

TRAINING_COLUMNS = ("case", "images", "pulses", "column reads", "pulses' energy", "reads' energy", "total", "time")

FEW_SENTENCES = 8
"""So many comparisons of convergence are said one by one; of more, the largest and the smallest of each method."""

SEEDS = re.compile(r", \d+ seeds$")
"""How the name of a row of several seeds ends."""

TOP = re.compile(r"accuracy_top\d+")
"""Results that are top-k accuracies."""

NOT_FOUND, MISSED = "not found", "missed"
"""Why a drop is not reached: the choice found no ρ for it, or the test images refute the one that it found."""

Row = tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Rows of text under a head.

    Attributes:
        title: above it; may be empty.
        rows: the first is the head.
    """

    title: str
    rows: list[Row]

    def as_text(self) -> str:
        """Aligned columns."""
        return f"{self.title}\n{aligned(self.rows)}" if self.title else aligned(self.rows)

    def as_html(self) -> str:
        """A heading and a table."""

        def line(row: Row, tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"

        head, *body = self.rows
        title = f"<h2>{html.escape(self.title)}</h2>" if self.title else ""
        lines = "\n".join(line(row, "td") for row in body)
        return f"{title}<table><thead>{line(head, 'th')}</thead><tbody>\n{lines}\n</tbody></table>"

    def as_markdown(self) -> str:
        """A table of GitHub's Markdown, its title in bold."""

        def plain(text: str) -> str:
            return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")

        head, *body = ("| " + " | ".join(map(plain, row)) + " |" for row in self.rows)
        lines = "\n".join([head, "|" + "---|" * len(self.rows[0]), *body])
        return f"**{plain(self.title)}**\n\n{lines}" if self.title else lines


def tables(results: dict[str, Result]) -> list[Table]:
    """All tables that these results fill."""
    merged = merge_seeds(results)
    made = [
        convergence(results),
        least_energies(results),
        Table("every point", [POINT_COLUMNS, *_point_rows(results)]),
        _single_points(merged),
        accuracies(results),
        over_time(results),
        Table("training on the chip", _training_rows(merged)),
    ]
    return [table for table in made if len(table.rows) > 1]


def over_time(results: dict[str, Result]) -> Table:
    """Accuracy some time after programming: the median, and the least and the largest, over chips or else reads."""
    shown = {row: point["over_time"] for row, point in _named_points(results) if point.get("over_time")}
    times = sorted({found["time_s"] for several in shown.values() for found in several})
    rows: list[Row] = [("case", *(f"% after {duration(time_s)}" for time_s in times))]
    for row, several in shown.items():
        told = {found["time_s"]: [100 * value for value in found["accuracies"]] for found in several}
        cells = [
            f"{statistics.median(told[t]):.2f} ({min(told[t]):.2f}-{max(told[t]):.2f})" if t in told else ""
            for t in times
        ]
        rows.append((row, *cells))
    return Table("accuracy over time", rows)


def _named_points(results: dict[str, Result]) -> list[tuple[str, Result]]:
    """Every point, with the case's name and, of several, what it was asked for."""
    named = []
    for case, result in results.items():
        points = result.get("points") or [result]
        for point in points:
            asked = "" if len(points) == 1 else f", {_asked_for(point)}"
            named.append((case + asked, point))
    return named


def duration(seconds: float) -> str:
    """A time in the largest unit that it fills.

    >>> duration(1), duration(86400), duration(31536000), duration(90)
    ('1 s', '1 d', '1 a', '1.5 min')
    """
    units = {"a": 31_536_000, "d": 86_400, "h": 3_600, "min": 60, "s": 1}
    name = next((unit for unit, length in units.items() if seconds >= length), "s")
    return f"{seconds / units[name]:.3g} {name}"


def least_energies(results: dict[str, Result]) -> Table:
    """The least energy of each case for each accuracy drop, in the layout of Wang 2021, tables 1 and 2.

    Beside it how many times it is below the best baseline's, here and as published; of several seeds the median of
    such ratios, each within a seed, and the least and the largest. Where a network does not get there, the least energy
    of its own best accuracy, with its drop in brackets, as in the paper's table 2; where no baseline does, the ratio
    says so. One drop alone is a table only where there are baselines.
    """
    merged, cases_of = merge_seeds(results), _cases_by_row(results)
    shown = {
        case: result
        for case, result in merged.items()
        if at_drops(result) and (_points(result) or any(map(at_drops, _rivals(merged, case))))
    }
    drops = sorted({point["drop"] for result in shown.values() for point in at_drops(result)})
    compared = any(result.get("baseline") for result in shown.values())
    published = compared and any(map(published_energies, shown.values()))
    head = ["case"]
    for drop in drops:
        head += [f"energy at {100 * drop:g} % drop", *["below baselines"] * compared, *["published"] * published]
    rows: list[Row] = [(*head, "cells", "latency")]
    for case, result in shown.items():
        row = [case]
        by_drop = {point["drop"]: point for point in at_drops(result)}
        for drop in drops:
            point = by_drop.get(drop)
            row.append("" if point is None else _energy(point))
            ratio = ", ".join(_times(_below_baselines(results, cases_of[case], drop)))
            row += [ratio and ratio + _of_own_best(results, cases_of[case], drop, " (own best)")] * compared
            row += [_published_ratio(merged, case, drop)] * published
        rows.append((*row, f"{result['cells']:,}", quantity(result["latency_s"], "s")))
    return Table("least energy, paper units", rows)


def merge_seeds(results: dict[str, Result]) -> dict[str, Result]:
    """One result for each experiment: of several seeds the median of every number, under one name, also of each point.

    The accuracy's quartiles are those over the seeds, of their medians; its drop has no interval. A point is found, and
    reached, if with most seeds it is; the energies of those that do not reach it then count as larger than any. All
    that is no number, as the layers, is that of the first seed.
    Cases that were not asked for the same points stay as they are.
    """
    return {
        row: _merged(list(cases.values())) if len(cases) > 1 else cases[row]
        for row, cases in _cases_by_row(results).items()
    }


def convergence(results: dict[str, Result]) -> Table:
    """How soon training reached the target, a row for each method and condition; see `energytl.convergence`."""
    found = groups(results)
    compared = speeds(found)
    targets = list(dict.fromkeys(target_text(group) for group in found.values()))
    one = targets[0] if len(targets) == 1 else "the target"
    baselines = list(dict.fromkeys(speed.baseline for speed in compared.values()))
    rival = baselines[0] if len(baselines) == 1 else "the best baseline"

    columns: dict[str, Callable[[Key, Group], str]] = {
        "case": lambda key, group: key[0],
        "condition": lambda key, group: key[1] or "",
        "target": lambda key, group: target_text(group) if len(targets) > 1 else "",
        "runs": lambda key, group: _runs(group),
        "before training %": _before_training,
        f"images to {one.partition(' (')[0]}": lambda key, group: _when(order_quartiles(group.images_to_target)[1]),
        "quartiles": lambda key, group: _when_quartiles(group),
        "iterations": _iterations,
        "never": _never,
        f"times faster than {rival} (95 %)": lambda key, group: speed_text(compared.get(key)),
        "final %": lambda key, group: f"{_final(group)[1]:.2f}",
        "final quartiles": lambda key, group: "{0:.2f}-{2:.2f}".format(*_final(group)) if _several(group) else "",
        "in the paper": lambda key, group: group.paper,
    }
    rows = [tuple(make(key, group) for make in columns.values()) for key, group in found.items()]
    return Table(f"training until {one}", without_empty_columns([tuple(columns), *rows]))


def target_text(group: Group) -> str:
    """The target in words, as "94 % (mean of 3 measurements)"."""
    remarks = [f"mean of {group.window} measurements"] if group.window > 1 else []
    if group.start is not None:
        remarks.append("of runs that start at {:g} to {:g} %".format(*(100 * bound for bound in group.start)))
    said = f" ({'; '.join(remarks)})" if remarks else ""
    return f"{100 * group.target:g} %{said}"


def _runs(group: Group) -> str:
    """How many runs count, of how many."""
    return f"{len(group.accuracy)}" + ("" if group.counted.all() else f" of {len(group.counted)}")


def speed_text(speed: Speed | None, between: str = " ") -> str:
    """A ratio with its interval, as "2.9× (2.3 to 3.6)"; where it is only a bound, with that end alone.

    Args:
        speed: None is empty.
        between: between the ratio and its interval.

    >>> speed_text(Speed("scratch", 2.94, 2.31, 3.6, "")), speed_text(Speed("scratch", 10.0, 8.0, 12.0, "≥"))
    ('2.9× (2.3 to 3.6)', '≥ 10× (≥ 8.0)')
    """
    if speed is None:
        return ""
    if math.isnan(speed.ratio):
        return "neither"
    if math.isinf(speed.ratio):
        return f"{speed.baseline} never"
    ratio = f"{speed.bound} {_two_digits(speed.ratio)}×" if speed.bound else f"{_two_digits(speed.ratio)}×"
    interval = _speed_interval(speed)
    return f"{ratio}{between}{interval}" if interval else ratio


def accuracies(results: dict[str, Result]) -> Table:
    """What cases say of their accuracy beyond the first table: among k outputs, over chips, and on paper.

    What a paper says of a case that measured its convergence stands with that.
    """
    columns: dict[str, Callable[[Result], str]] = {}
    for k in sorted({int(key[12:]) for result in results.values() for key in result if TOP.fullmatch(key)}):
        columns[f"top-{k} %"] = partial(_if_there, f"accuracy_top{k}")
    columns |= {"chips": _chips, "median of chips %": _chips_median, "range %": _chips_range}
    columns["in the paper"] = lambda result: "" if result.get("convergence") else result.get("paper") or ""
    rows = [tuple(make(result) for make in columns.values()) for result in results.values()]
    if not any(map(any, rows)):
        return Table("", [("case",)])
    lines: list[Row] = [("case", "accuracy %", *columns)]
    for (case, result), row in zip(results.items(), rows, strict=True):
        lines.append((case, _percent(result, "accuracy_median"), *row))
    return Table("accuracy", without_empty_columns(lines))


def below_baselines(results: dict[str, Result], case: str, drop: float) -> float | None:
    """How many times a case's least energy at a drop is below that of its seed's best baseline; above 1 is better.

    None without baselines, or where the case does not reach that accuracy. Where no baseline does, the comparison is
    with those whose choice found it; where none did, with the least energy that any needs for its own best accuracy.
    """
    own = next((point for point in at_drops(results[case]) if point["drop"] == drop), None)
    rivals = _rivals_points(results, case, drop)
    for there in ("reached", "found"):  # what only the test images refute was chosen as the case's own point was
        rivals = [point for point in rivals if point[there]] or rivals
    if own is None or not own["reached"] or not rivals:
        return None
    return float(min(point["energy_paper"] for point in rivals) / own["energy_paper"])


def at_drops(result: Result) -> list[Result]:
    """A case's points at an accuracy drop."""
    return [point for point in result.get("points") or [] if point["drop"] is not None]


def published_energies(result: Result) -> dict[float, float]:
    """What a paper reports at each drop; nothing if the drops are not as many as its numbers, as after an override."""
    drops, energies = [point["drop"] for point in at_drops(result)], result.get("published") or []
    return dict(zip(drops, energies, strict=True)) if len(drops) == len(energies) else {}


def notes(results: dict[str, Result]) -> list[str]:
    """What a reader must know about the numbers."""
    merged = merge_seeds(results)
    lines = [*_choice_notes(results), *_not_reached_notes(merged), *_single_training_notes(results)]
    if any(result.get("accuracies_chips") for result in results.values()):
        lines.append("chips: of each, every cell keeps one state for its life, and its own deviation if cells vary")
    if any(result.get("varies") for result in results.values()):
        lines.append(
            "where cells vary, accuracy, quartiles and drops are those of one chip; quantised: cells as written"
        )
    lines += [*_convergence_notes(results), *_exact_notes(results)]
    if len(merged) < len(results):
        searched = any(point["drop"] is not None for r in merged.values() for point in r.get("points") or [])
        lines.append(
            f"of several seeds: medians over them{', and the least and the largest energy' * searched}; what figures "
            "show of layers, iterations and the search is the first's"
        )
    lines += _shared_and_own({case: (LAWS[r["law"]],) for case, r in merged.items() if "law" in r}, "")
    lines += _shared_and_own({case: tuple(r["not_modelled"]) for case, r in merged.items()}, "not modelled")
    if len(_training_rows(results)) > 1:
        lines.append("not modelled in training on the chip: " + "; ".join(TRAINING_NOT_MODELLED))
    return lines


LAWS = {
    "paper": "ρ·|w| alone fluctuates (hardware.law: paper): idle cells, and what cells conduct beside it, do not",
    "cell": "whole cells fluctuate, idle ones too (hardware.law: cell)",
}


def _shared_and_own(said: dict[str, tuple[str, ...]], head: str) -> list[str]:
    """What is said of all cases in one line, and what is said of some only, with their names.

    >>> _shared_and_own({"a": ("x", "y"), "b": ("x",)}, "not modelled")
    ['not modelled: x', 'not modelled in a: y']
    """
    lines = []
    for what in dict.fromkeys(what for words in said.values() for what in words):
        cases = [case for case, words in said.items() if what in words]
        where = "" if len(cases) == len(said) else f" in {', '.join(cases)}"
        lines.append((head + where, what))
    heads = dict.fromkeys(place for place, _ in lines)
    joined = [(place.strip(), "; ".join(what for own, what in lines if own == place)) for place in heads]
    return [f"{place}: {what}" if place else what for place, what in joined]


def findings(results: dict[str, Result]) -> list[str]:
    """What the numbers say, in sentences."""
    merged = merge_seeds(results)
    return [*_speeds(results), *_gains(results), *_periphery(merged), *_conditions(results), *_depthwise(merged)]


def aligned(rows: list[Row]) -> str:
    """Rows of text in columns: the first to the left, the others to the right; the first row is the head.

    >>> print(aligned([("layer", "cells"), ("fc", "10")]))
    layer  cells
    ------------
    fc        10
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for first, *others in rows:
        right = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *right]))
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def without_empty_columns(rows: list[Row]) -> list[Row]:
    """Rows under a head, without the columns that are empty below it; without rows below it the head stays.

    >>> without_empty_columns([("layer", "bias"), ("conv", ""), ("fc", "")])
    [('layer',), ('conv',), ('fc',)]
    """
    if len(rows) == 1:
        return rows
    filled = [any(cells) for _, *cells in zip(*rows, strict=True)]
    return [tuple(compress(row, filled)) for row in rows]


def quantity(value: float | None, unit: str) -> str:
    """A number with unit and prefix, three digits; None is what it is.

    >>> quantity(1.234e-6, "J"), quantity(None, "J")
    ('1.23 µJ', 'not modelled')
    """
    if value is None:
        return "not modelled"
    return EngFormatter(unit, places=2)(value)


def _cases_by_row(results: dict[str, Result]) -> dict[str, dict[str, Result]]:
    """The cases of each row of a table, by its name: the seeds of an experiment, if asked for the same points."""
    rows: dict[str, dict[str, Result]] = {}
    for (method, condition), cases in experiments(results).items():
        asked = {
            tuple((point["drop"], point.get("budget")) for point in result.get("points") or [])
            for result in cases.values()
        }
        if len(cases) == 1 or len(asked) > 1:
            rows |= {case: {case: result} for case, result in cases.items()}
        else:
            name = f"{method}, {condition}" if condition else method
            rows[f"{name}, {len(cases)} seeds"] = cases
    return rows


def _merged(repeats: list[Result]) -> Result:
    """One result of the repeats of an experiment; see `merge_seeds`."""
    points = zip(*(result.get("points") or [] for result in repeats), strict=True)
    merged = _medians(repeats) | {"points": [_medians(list(repeated)) for repeated in points]}
    return merged | {"accuracy_drop_low": None, "accuracy_drop_high": None}


def _medians(repeats: list[Result]) -> Result:
    """The medians of repeats; where they search for the least energy, its values for all of them, too, ascending."""
    merged = dict(repeats[0])
    missed = [result.get("reached") is False for result in repeats]
    most_reach = _most_reach(repeats)
    for key in repeats[0]:
        values = [result.get(key) for result in repeats]
        if key.endswith(("_paper", "_j")) and most_reach and None not in values:
            values = [math.inf if miss else value for miss, value in zip(missed, values, strict=True)]
        numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
        if None in values:
            merged[key] = None
        elif len(numbers) == len(values):
            middle = statistics.median(numbers)
            merged[key] = round(middle) if all(isinstance(number, int) for number in numbers) else middle
            if key == "energy_paper" and merged.get("reached") is not None:
                merged["energies_paper"] = sorted(numbers)
    if merged.get("reached") is not None:
        merged |= {"reached": most_reach, "found": 2 * sum(result["found"] for result in repeats) > len(repeats)}
    medians = [result["accuracy_median"] for result in repeats]
    if None not in medians:
        low, middle, high = order_quartiles(torch.tensor(medians, dtype=torch.float64))
        merged |= {"accuracy_q25": low, "accuracy_median": middle, "accuracy_q75": high}
    return merged


def _most_reach(repeats: Collection[Result]) -> bool:
    """Whether most seeds reach their accuracy, or need not."""
    return 2 * sum(result.get("reached") is False for result in repeats) < len(repeats)


def _before_training(key: Key, group: Group) -> str:
    return f"{100 * order_quartiles(group.accuracy[:, 0])[1]:.2f}" if group.images[0] == 0 else ""


def _several(group: Group) -> bool:
    return len(group.accuracy) > 1


def _when(count: float) -> str:
    """Images or iterations as a reader says them.

    >>> _when(0.0), _when(12500.0), _when(math.inf)
    ('at once', '12,500', 'never')
    """
    if count == 0:
        return "at once"
    return "never" if math.isinf(count) else f"{count:,.0f}"


def _when_quartiles(group: Group) -> str:
    if not _several(group):
        return ""
    low, _, high = map(_when, order_quartiles(group.images_to_target))
    return low if low == high else f"{low} to {high}"


def _iterations(key: Key, group: Group) -> str:
    return "" if group.steps.equal(group.images) else _when(order_quartiles(group.steps_to_target)[1])


def _never(key: Key, group: Group) -> str:
    times = group.images_to_target
    return f"{int(times.isinf().sum())} of {len(times)}" if _several(group) else ""


def _final(group: Group) -> tuple[float, float, float]:
    """Quartiles of the last running mean, in percent."""
    return order_quartiles(100 * group.smoothed[:, -1])


def _two_digits(value: float) -> str:
    """A ratio with two digits, without an exponent.

    >>> [_two_digits(value) for value in (0.0, 0.5, 2.0, 46.1, 123.0, math.inf)]
    ['0', '0.50', '2.0', '46', '120', '∞']
    """
    if value in (0, math.inf):
        return "∞" if value else "0"
    return f"{value:#.2g}".rstrip(".") if value < 99.5 else f"{float(f'{value:.2g}'):.0f}"


def _speed_interval(speed: Speed) -> str:
    """The interval of a ratio in brackets; empty where there is none."""
    if math.isnan(speed.low):
        return ""
    low, high = _two_digits(speed.low), _two_digits(speed.high)
    return {"≥": f"(≥ {low})", "≤": f"(≤ {high})"}.get(speed.bound, f"({low} to {high})")


def _speeds(results: dict[str, Result]) -> list[str]:
    """How much sooner than their baselines methods reach the target; of many, the largest and smallest of each."""
    found = groups(results)
    compared = speeds(found)
    told = list(compared)
    if len(told) > FEW_SENTENCES:
        extremes = []
        for method in dict.fromkeys(method for method, _ in told):
            own = [key for key in told if key[0] == method and not math.isnan(compared[key].ratio)]
            extremes += [least(own, key=lambda key: compared[key].ratio) for least in (max, min) if own]
        told = list(dict.fromkeys(extremes))
    return [_speed_sentence(key, found[key], compared[key]) for key in told]


def _speed_sentence(key: Key, group: Group, speed: Speed) -> str:
    method, condition = key
    under, target = f" ({condition})" if condition else "", f"{100 * group.target:g} %"
    interval = _speed_interval(speed)
    told = f"{_two_digits(speed.ratio)} times{f' {interval}' if interval else ''}"
    told = {"≥": "at least ", "≤": "at most "}.get(speed.bound, "") + told
    if math.isnan(speed.ratio):
        return f"Neither {method} nor {speed.baseline} reaches {target} in most runs{under}."
    if speed.ratio == 0:
        return f"{method} does not reach {target} in most runs, {speed.baseline} does{under}."
    if math.isinf(speed.ratio):
        return f"{method} reaches {target}, {speed.baseline} does not in most runs{under}."
    if speed.low <= 1 <= speed.high:
        return f"{method} is not clearly faster or slower to {target} than {speed.baseline}{under}: {told}."
    if speed.ratio < 1:
        return f"{method} is slower to {target} than {speed.baseline}{under}: {told} as fast."
    return f"{method} reaches {target} in {told} fewer images than {speed.baseline}{under}."


def _convergence_notes(results: dict[str, Result]) -> list[str]:
    """What "never" and bounds mean, where there are any."""
    found = groups(results)
    lines = []
    if any(group.images_to_target.isinf().any() for group in found.values()):
        lines.append("never: not within the training; medians and quartiles count it as later than all others")
    if any(speed.bound for speed in speeds(found).values()):
        lines.append(
            "≥ and ≤: one of the two is at the target before training, and counts as there at the first measurement "
            "after its start"
        )
    return lines


def _points(result: Result) -> list[Result]:
    """The points of a case that has several."""
    points: list[Result] = result.get("points") or []
    return points if len(points) > 1 else []


def _energy(point: Result) -> str:
    energy = _paper(point)
    return energy if point["reached"] else f"{energy} ({-100 * point['accuracy_drop']:+.2f} %)"


def _times(ratios: list[float]) -> list[str]:
    """The median of ratios by seed, and their range if they differ; 0 is of what was not reached.

    >>> _times([4.0]), _times([0.0, 26.1, 302.0]), _times([])
    (['4.0×'], ['26×', 'not reached to 300×'], [])
    """
    said = [f"{_two_digits(ratio)}×" if ratio else "not reached" for ratio in ratios]
    if len(set(said)) < 2:
        return said[:1]
    least, most = said[ratios.index(min(ratios))], said[ratios.index(max(ratios))]
    return [f"{_two_digits(statistics.median(ratios))}×", f"{least} to {most}"]


def _below_baselines(results: dict[str, Result], cases: dict[str, Result], drop: float) -> list[float]:
    """`below_baselines` of the cases of a row, 0 where there is none; nothing unless most have one."""
    ratios = [below_baselines(results, case, drop) or 0.0 for case in cases]
    return ratios if 2 * ratios.count(0.0) < len(ratios) else []


def _published_ratio(results: dict[str, Result], case: str, drop: float) -> str:
    """How many times below the best baseline's a paper's number is at a drop."""
    own = published_energies(results[case]).get(drop)
    rivals = [value for result in _rivals(results, case) if (value := published_energies(result).get(drop))]
    return "".join(_times([min(rivals) / own])) if own and rivals else ""


def _rivals(results: dict[str, Result], case: str) -> list[Result]:
    """The baselines under the same condition as a case, of its seed if there are any."""
    condition, seed = results[case].get("condition"), results[case]["seed"]
    rivals = [result for result in results.values() if result.get("baseline") and result.get("condition") == condition]
    return [result for result in rivals if result["seed"] == seed] or rivals


def _rivals_points(results: dict[str, Result], case: str, drop: float) -> list[Result]:
    """What the baselines under the same condition as a case have at a drop."""
    return [point for result in _rivals(results, case) for point in at_drops(result) if point["drop"] == drop]


def _of_own_best(results: dict[str, Result], cases: dict[str, Result], drop: float, words: str) -> str:
    """These words if a ratio to the baselines at a drop is to their own best accuracy, as none of them found it."""
    compared = [case for case in cases if below_baselines(results, case, drop) is not None]
    there = [any(point["found"] for point in _rivals_points(results, case, drop)) for case in compared]
    return "" if all(there) else words


def _percent(result: Result, key: str) -> str:
    return "not measured" if result[key] is None else f"{100 * result[key]:.2f}"


def _if_there(key: str, result: Result) -> str:
    return _percent(result, key) if key in result else ""


def _chips(result: Result) -> str:
    return f"{len(result['accuracies_chips'])}" if result.get("accuracies_chips") else ""


def _chips_median(result: Result) -> str:
    return _percent(result, "accuracy_chips_median") if result.get("accuracies_chips") else ""


def _chips_range(result: Result) -> str:
    chips = result.get("accuracies_chips")
    return f"{100 * min(chips):.2f}-{100 * max(chips):.2f}" if chips else ""


def _paper(result: Result) -> str:
    """Energy in the paper's units; of several seeds the median, and the least and the largest."""
    if result["energy_paper"] is None:
        return "not modelled"
    median, seeds = f"{result['energy_paper']:.3g}", result.get("energies_paper")
    if not seeds or seeds[0] == seeds[-1]:
        return median
    return f"{median}, {seeds[0]:.3g} to {'not reached' if seeds[-1] == math.inf else f'{seeds[-1]:.3g}'}"


def _digital(result: Result) -> str:
    at_chance = result["accuracy_digital"] is None and result["accuracy_median"] is not None
    return "at chance" if at_chance else _percent(result, "accuracy_digital")


def _quartiles(result: Result) -> str:
    if result["accuracy_q25"] is None:
        return ""
    return f"{_percent(result, 'accuracy_q25')}-{_percent(result, 'accuracy_q75')}"


def _drop(result: Result) -> str:
    """How far below the digital accuracy, with its interval if of one seed."""
    low, high = result["accuracy_drop_low"], result["accuracy_drop_high"]
    interval = "" if low is None else f" ({100 * low:.2f} to {100 * high:.2f})"
    return _percent(result, "accuracy_drop") + interval


def _single_points(results: dict[str, Result]) -> Table:
    """A row for each case that has one point alone; the drop's column where one is asked."""
    rows = [_row(case, result) for case, result in results.items() if not _points(result)]
    return Table("", without_empty_columns([COLUMNS, *rows]))


def _row(case: str, result: Result) -> Row:
    return (
        case,
        _percent(result, "accuracy_median"),
        _quartiles(result),
        "" if result.get("drop") is None else _drop(result),
        _digital(result),
        _percent(result, "accuracy_quantised"),
        _paper(result),
        quantity(result["energy_cell_j"], "J"),
        quantity(result["energy_total_j"], "J"),
        quantity(result["latency_s"], "s"),
        f"{result['cells']:,}",
        f"{result['reads']:,}",
    )


def _asked_for(point: Result) -> str:
    return f"budget {point['budget']:.3g}" if point["drop"] is None else f"{100 * point['drop']:g} %"


def _point_rows(results: dict[str, Result]) -> list[Row]:
    rows: list[Row] = []
    points = [(case, point) for case, result in results.items() for point in _points(result)]
    for case, point in sorted(points, key=lambda item: math.inf if item[1]["drop"] is None else item[1]["drop"]):
        wanted = _asked_for(point)
        rows.append(
            (
                wanted + {"": "", NOT_FOUND: " not reached", MISSED: " missed"}[missing(point)],
                case,
                _percent(point, "accuracy_median"),
                _quartiles(point),
                _drop(point),
                _percent(point, "accuracy_quantised"),
                f"{point['energy_weight']:g}",
                _paper(point),
                quantity(point["energy_cell_j"], "J"),
                quantity(point["energy_total_j"], "J"),
            )
        )
    return rows


def _training_rows(results: dict[str, Result]) -> list[Row]:
    """What training on the chip cost, of the cases that trained so, under a head."""
    writes = any("training_most_writes" in result for result in results.values())
    rows: list[Row] = [(*TRAINING_COLUMNS, *(["most writes of a cell"] if writes else []))]
    for case, result in results.items():
        if "training_pulses" in result:
            reads = [result[f"training_energy_{part}_j"] for part in ("forward", "backward", "column_reads")]
            most = result.get("training_most_writes")
            rows.append(
                (
                    case,
                    f"{result['training_images']:,}",
                    f"{result['training_pulses']:.3g}",
                    f"{result['training_column_reads']:,}",
                    quantity(result["training_energy_pulses_j"], "J"),
                    quantity(None if None in reads else sum(reads), "J"),
                    quantity(result["training_energy_j"], "J"),
                    quantity(result["training_latency_s"], "s"),
                    *([f"{most:,}" if most else "not counted"] if writes else []),
                )
            )
    return rows


def missing(point: Result) -> str:
    """Why a point does not reach its drop: NOT_FOUND or MISSED; empty if it does, or none was asked."""
    if point["reached"] is not False:
        return ""
    return MISSED if point["found"] else NOT_FOUND


def _choice_notes(results: dict[str, Result]) -> list[str]:
    """On which images points were chosen, and on which they are told."""
    images = dict.fromkeys(
        (chosen["images"], chosen["of"], result["tested_images"])
        for result in results.values()
        if (chosen := result.get("chosen_on"))
    )
    return [
        f"ρ, and which network of a family, were chosen on {count:,} images held out from "
        f"{'training' if of == 'training' else 'the test, as the weights may have learnt from all others'}; accuracies "
        f"and drops are told of {tested:,} test images, by reads that no choice saw"
        for count, of, tested in images
    ]


def _single_training_notes(results: dict[str, Result]) -> list[str]:
    """Which rows are one training."""
    rows = _cases_by_row(results)
    single = [row for row, cases in rows.items() if len(cases) == 1 and _trained(next(iter(cases.values())))]
    if not single:
        return []
    which = "each case" if len(single) == len(rows) else "; ".join(single)
    return [f"one training: {which}; other seeds, processors and numbers of threads train otherwise"]


def _trained(result: Result) -> bool:
    """Whether a network of the case was trained."""
    return bool(result["history"] or result.get("stages"))


def _not_reached_notes(results: dict[str, Result]) -> list[str]:
    """Which cases miss which accuracy drop, and how."""
    explained = {
        NOT_FOUND: (
            "reached",
            "on the images held out less accurate than that even at the largest ρ; what is shown is the least energy "
            f"within {100 * OWN_BEST:g} % of the case's own best accuracy",
        ),
        MISSED: ("borne out", "found on the images held out, but on test images the drop's whole interval is above it"),
    }
    asked: dict[float, dict[str, str]] = {}
    for case, result in results.items():
        for point in result.get("points") or [result]:
            if point.get("drop") is not None:
                asked.setdefault(point["drop"], {})[case] = missing(point)
    lines = []
    for drop, cases in sorted(asked.items()):
        for kind, (verb, reason) in explained.items():
            if named := [SEEDS.sub(" (most seeds)", case) for case, why in cases.items() if why == kind]:
                who = f"is {verb} by no case" if len(named) == len(cases) else f"is not {verb} by {'; '.join(named)}"
                lines.append(f"{100 * drop:g} % drop {who}: {reason}")
    return lines


def _exact_notes(results: dict[str, Result]) -> list[str]:
    """Whether reads with a state for every cell agree with the moments."""
    checked = []
    for case, result in results.items():
        exacts = [point["exact"] for point in result.get("points") or [] if "exact" in point]
        checked += [(case, exact) for n, exact in enumerate(exacts) if exact not in exacts[:n]]  # drops may share one
    if not checked:
        return []
    worst = max(checked, key=lambda item: abs(item[1]["difference"]) / max(item[1]["standard_error"], 1e-9))
    within = sum(abs(exact["difference"]) <= 1.96 * exact["standard_error"] for _, exact in checked)
    return [
        f"read once more with a state for every cell and read ({worst[1]['images']} images a point): {within} of "
        f"{len(checked)} points within their 95 % interval of the reads by moments; farthest: {worst[0]}, "
        f"{100 * worst[1]['difference']:+.2f} ± {196 * worst[1]['standard_error']:.2f} %"
    ]


def _gains(results: dict[str, Result]) -> list[str]:
    """How far below the baselines each case is, at each drop."""
    sentences = []
    for row, cases in _cases_by_row(results).items():
        first = next(iter(cases.values()))
        if first.get("baseline") or first.get("condition"):
            continue
        parts, missed = [], f", which it does not reach{' with every seed' * (len(cases) > 1)}"
        for drop in [point["drop"] for point in at_drops(first)]:
            where = f"{100 * drop:g} % drop{_of_own_best(results, cases, drop, missed)}"
            parts += _ratio_said(_below_baselines(results, cases, drop), where)
        if parts:
            once = " (one training)" * (len(cases) == 1 and _trained(first))
            what = f"the energy of {first.get('method') or row}, in paper units{once}"
            sentences.append(f"The best baseline takes {', '.join(parts)} {what}.")
    return sentences


def _ratio_said(ratios: list[float], where: str) -> list[str]:
    """A ratio in a sentence, with its place and range in brackets; nothing if there is none."""
    median_and_range = _times(ratios)
    return [f"{median_and_range[0]} ({'; '.join([where, *median_and_range[1:]])})"] if median_and_range else []


def _periphery(results: dict[str, Result]) -> list[str]:
    """Which case is the cheapest in the paper's units, in the cells' joules, and with the circuits around the cells."""
    asked = dict.fromkeys((result.get("condition"), p["drop"]) for result in results.values() for p in at_drops(result))
    sentences = []
    for condition, drop in asked:
        reached = {
            case: point
            for case, result in results.items()
            for point in at_drops(result)
            if (result.get("condition"), point["drop"]) == (condition, drop)
            and point["reached"]
            and point["energy_total_j"] is not None
        }
        if len(reached) > 1:
            paper = min(reached, key=lambda case: reached[case]["energy_paper"])
            cells, total = (
                min(reached, key=lambda case: (reached[case][energy], case != paper))
                for energy in ("energy_cell_j", "energy_total_j")
            )
            more = reached[paper]["energy_total_j"] / reached[total]["energy_total_j"]
            share = reached[total]["energy_cell_j"] / reached[total]["energy_total_j"]
            paper, cells, total = (results[case].get("method") or case for case in (paper, cells, total))
            said = f"At {100 * drop:g} % drop{f' ({condition})' * bool(condition)} {paper} spends least"
            others = f"{cells} in the cells' joules and {f'{total} ' * (total != cells)}with converters and drivers"
            sentences.append(
                f"{said}: in paper units, in the cells' joules and in total."
                if paper == cells == total
                else f"{said} in paper units, {others}, where {paper} takes {_two_digits(more)} times as much; "
                f"cells are {100 * share:.2g} % of {total}'s total."
            )
    return sentences


def _conditions(results: dict[str, Result]) -> list[str]:
    """How the ratio between two methods changes with the condition; in total energy if the paper's does not change."""
    by_method: dict[str, dict[str, dict[int, Result]]] = {}
    for result in results.values():
        points = [point for point in at_drops(result) if point["energy_paper"] is not None]
        if result.get("method") and result.get("condition") and points:
            conditions = by_method.setdefault(result["method"], {})
            conditions.setdefault(result["condition"], {})[result["seed"]] = points[0]
    if len(by_method) < 2:
        return []
    energy, unit = "energy_paper", "in paper units"
    if all(map(_all_alike, by_method.values())):
        energy, unit = "energy_total_j", "in joules with converters and drivers"
    first, *others = by_method
    sentences = []
    for other in others:
        parts = []
        for condition in [condition for condition in by_method[first] if condition in by_method[other]]:
            own, its = by_method[first][condition], by_method[other][condition]
            ratios = [own[seed][energy] / its[seed][energy] for seed in own if seed in its]
            short = [name for name, points in ((first, own), (other, its)) if not _most_reach(points.values())]
            parts += _ratio_said(ratios, condition + (f", not reached by {' and '.join(short)}" if short else ""))
        if parts:
            compared = [*by_method[first].values(), *by_method[other].values()]
            once = " (one training)" * (max(map(len, compared)) == 1 and any(map(_trained, results.values())))
            sentences.append(f"{first} takes {', '.join(parts)} the energy of {other}, {unit}{once}.")
    return sentences


def _all_alike(conditions: dict[str, dict[int, Result]]) -> bool:
    """Whether several conditions leave a method the same energies in paper units, and its total is modelled."""
    energies = [{seed: point["energy_paper"] for seed, point in points.items()} for points in conditions.values()]
    modelled = all(point["energy_total_j"] is not None for points in conditions.values() for point in points.values())
    return modelled and len(energies) > 1 and all(energy == energies[0] for energy in energies)


def _depthwise(results: dict[str, Result]) -> list[str]:
    """What depthwise layers take of the whole."""
    sentences = []
    for case, result in results.items():
        shares = depthwise_shares(result)
        if shares and shares["cells"] > 0:
            parts = ", ".join(f"{100 * share:.2g} % of the {name}" for name, share in shares.items())
            sentences.append(f"{case}: depthwise layers take {parts}.")
    return sentences


def depthwise_shares(result: Result) -> dict[str, float]:
    """Share of the layers with several groups in cells, reads, and energies that are modelled; by their names."""
    layers = result["layers"]
    measures: dict[str, Callable[[Result], float | None]] = {
        "cells": lambda layer: layer["cells"],
        "cells' energy": lambda layer: layer["energy_cell_j"],
        "latency": lambda layer: layer["latency_s"],
        "total energy": lambda layer: layer["energy_total_j"],
    }
    shares = {}
    for name, measure in measures.items():
        values = [measure(layer) for layer in layers]
        known = [value for value in values if value is not None]
        if len(known) == len(layers) and sum(known) > 0:
            parts = [value for value, layer in zip(known, layers, strict=True) if layer["groups"] > 1]
            shares[name] = sum(parts) / sum(known)
    return shares
