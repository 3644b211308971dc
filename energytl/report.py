"""From finished runs alone: summary.json, a table, figures as PNG, and one HTML page that needs nothing else."""

import base64
import html
from io import BytesIO
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from energytl.cost.training import TRAINING_NOT_MODELLED
from energytl.plots import figures
from energytl.results import Result, latest_results, summarise, write_json

CAPTIONS = {
    "accuracy_energy": "Accuracy against energy per image: median over reads, bars from lower to upper quartile.",
    "energy_by_layer": "Total energy of each layer by component.",
    "paper_energy_by_layer": "Energy of the cells alone, in the paper's units, by layer.",
    "rho_by_layer": "Energy coefficient ρ of each layer after training and scaling.",
    "training": "Training of the analog network, by epoch.",
    "training_on_chip": "Training on the chip: accuracy by epoch (dashed: digital training), and its energy.",
}

COLUMNS = (
    "case",
    "accuracy %",
    "quartiles",
    "digital %",
    "quantised %",
    "energy (paper)",
    "cells' energy",
    "total energy",
    "latency",
    "cells",
    "reads",
)

TRAINING_COLUMNS = ("case", "images", "pulses", "column reads", "pulses' energy", "reads' energy", "total", "time")

STYLE = """body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#222}
table{border-collapse:collapse;font-size:.9rem;display:block;overflow-x:auto}
th,td{padding:.3rem .7rem;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap}
th:first-child,td:first-child{text-align:left}img{max-width:100%}figure{margin:2rem 0}figcaption{color:#555}"""


def report(recipe_folder: Path, cases: list[str] | None = None) -> str:
    """Write summary.json, report.html and a PNG for each figure beside the runs; return the table for the terminal.

    Args:
        recipe_folder: logs/<recipe>.
        cases: only these, in this order; None: all that have a finished run.

    Raises:
        ValueError: in one line, if there is no finished run.
    """
    if not recipe_folder.is_dir():
        raise ValueError(f"{recipe_folder} is not a folder of runs, as logs/<recipe>")
    results = latest_results(recipe_folder)
    if cases is not None:
        results = {case: results[case] for case in cases if case in results}
    if not results:
        raise ValueError(f"{recipe_folder} holds no finished run (no <case>/version_<n>/result.json)")
    write_json(recipe_folder / "summary.json", summarise(results))
    pictures = {name: _png(figure) for name, figure in figures(results).items()}
    for name, png in pictures.items():
        (recipe_folder / f"{name}.png").write_bytes(png)
    (recipe_folder / "report.html").write_text(_page(recipe_folder.name, results, pictures), encoding="utf-8")
    return table(results)


def table(results: dict[str, Result]) -> str:
    """The summary of all cases as aligned text."""
    rows = [COLUMNS, *(_row(case, result) for case, result in results.items())]
    training: list[tuple[str, ...]] = [TRAINING_COLUMNS, *_training_rows(results)]
    second = ["", "training on the chip", aligned(training), ""] if len(training) > 1 else []
    return "\n".join([aligned(rows), *second, *_notes(results)])


def aligned(rows: list[tuple[str, ...]]) -> str:
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


def quantity(value: float | None, unit: str) -> str:
    """A number with unit and prefix, three digits; None is what it is.

    >>> quantity(1.234e-6, "J"), quantity(None, "J")
    ('1.23 µJ', 'not modelled')
    """
    if value is None:
        return "not modelled"
    return EngFormatter(unit, places=2)(value)


def _row(case: str, result: Result) -> tuple[str, ...]:
    def percent(key: str) -> str:
        return "not measured" if result[key] is None else f"{100 * result[key]:.2f}"

    return (
        case,
        percent("accuracy_median"),
        "" if result["accuracy_q25"] is None else f"{percent('accuracy_q25')}-{percent('accuracy_q75')}",
        percent("accuracy_digital"),
        percent("accuracy_quantised"),
        "not modelled" if result["energy_paper"] is None else f"{result['energy_paper']:.3g}",
        quantity(result["energy_cell_j"], "J"),
        quantity(result["energy_total_j"], "J"),
        quantity(result["latency_s"], "s"),
        f"{result['cells']:,}",
        f"{result['reads']:,}",
    )


def _training_rows(results: dict[str, Result]) -> list[tuple[str, ...]]:
    """What training on the chip cost, of the cases that trained so."""
    rows: list[tuple[str, ...]] = []
    for case, result in results.items():
        if "training_pulses" in result:
            reads = [result[f"training_energy_{part}_j"] for part in ("forward", "backward", "column_reads")]
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
                )
            )
    return rows


def _notes(results: dict[str, Result]) -> list[str]:
    """What a reader must know about the numbers."""
    notes = [
        f"{case}: not reached: less accurate than allowed even at the largest ρ; its numbers are at the trained ρ"
        for case, result in results.items()
        if result["reached"] is False
    ]
    chips = [
        f"{case}: {100 * result['accuracy_chips_median']:.2f} % "
        f"({100 * result['accuracy_chips_q25']:.2f}-{100 * result['accuracy_chips_q75']:.2f})"
        for case, result in results.items()
        if result.get("accuracies_chips")
    ]
    if chips:
        notes.append("with every cell's state held for the life of a chip: " + "; ".join(chips))
    least = next(iter(results.values()))
    notes.append("not modelled: " + "; ".join(least["not_modelled"]))
    if _training_rows(results):
        notes.append("not modelled in training on the chip: " + "; ".join(TRAINING_NOT_MODELLED))
    return notes


def _page(name: str, results: dict[str, Result], pictures: dict[str, bytes]) -> str:
    def cells(row: tuple[str, ...], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"

    rows = "\n".join(cells(_row(case, result), "td") for case, result in results.items())
    shown = "\n".join(
        f'<figure><img alt="{html.escape(CAPTIONS[picture])}" '
        f'src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        f"<figcaption>{html.escape(CAPTIONS[picture])}</figcaption></figure>"
        for picture, png in pictures.items()
    )
    training = _training_rows(results)
    if training:
        body = "\n".join(cells(row, "td") for row in training)
        shown = (
            f"<h2>Training on the chip</h2><table><thead>{cells(TRAINING_COLUMNS, 'th')}</thead><tbody>\n{body}\n"
            f"</tbody></table>\n{shown}"
        )
    notes = "\n".join(f"<li>{html.escape(note)}</li>" for note in _notes(results))
    made = "\n".join(
        f"<li>{html.escape(case)}: seed {result['seed']}, {result['seconds']} s, finished {result['finished']}, "
        + html.escape(", ".join(f"{package} {number}" for package, number in result["versions"].items()))
        + "</li>"
        for case, result in results.items()
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(name)}: energy and accuracy</title>
<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>
<h1>{html.escape(name)}</h1>
<p>Accuracy (median over reads of all test images) and cost of one image.</p>
<table><thead>{cells(COLUMNS, "th")}</thead><tbody>
{rows}
</tbody></table>
<ul>{notes}</ul>
{shown}
<h2>How it was made</h2><ul>{made}</ul>
</body></html>
"""


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
