"""From finished runs alone: summary.json, a table, figures as PNG, and one HTML page that needs nothing else."""

import base64
import html
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

from matplotlib.figure import Figure

from energytl.convergence import Convergence
from energytl.origin import described
from energytl.plots import figures
from energytl.results import Result, in_order, read_result, result_files, summarise, write_json
from energytl.tables import findings, notes, tables

CAPTIONS = {
    "convergence": "Accuracy on test images while training: median over runs and quartiles; dashed: the target.",
    "speed_map": "How many times fewer images than the baseline until the target, with 95 % intervals; blue: fewer; "
    "framed: what the paper tells of.",
    "over_time": "Accuracy some time after programming: median over chips, or reads, and the least and the largest.",
    "accuracy_energy": "Accuracy against energy per image: median over reads (of several seeds: over the seeds), bars "
    "from lower to upper quartile; thin lines: the drop on the images held out, by which the points were chosen.",
    "least_energy": "Least energy that keeps the accuracy, here and as published; bars: its seeds; open: not "
    "reached (at the own best), or missed on test images.",
    "energy_by_condition": "Least energy of each method under each condition; bars: its seeds; open: not "
    "reached (at the own best), or missed on test images.",
    "accuracy_by_condition": "Accuracy of each method under each condition: median and range over chips or reads.",
    "weights": "What the cells of the last layer hold.",
    "depthwise_share": "Share of the depthwise layers.",
    "energy_by_layer": "Total energy of each layer by component.",
    "paper_energy_by_layer": "Energy of the cells alone, in the paper's units, by layer.",
    "rho_by_layer": "Energy coefficient ρ of each layer after training and scaling.",
    "training": "Training of the analog network.",
    "learning_costs": "Accuracy after learning on the chip against the energy of reading an image, and what "
    "learning took: median and quartiles.",
    "training_on_chip": "Training on the chip: accuracy (dashed: digital training), and its energy.",
}

STYLE = """body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:92rem;padding:0 1rem;color:#222}
p,ul,figure,img{max-width:min(100%,72rem)}
table{margin:1rem 0;border-collapse:collapse;font-size:.9rem;display:block;overflow-x:auto}
th,td{padding:.3rem .6rem;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap}
th{white-space:normal;vertical-align:bottom}
th:first-child,td:first-child{text-align:left}figure{margin:2rem 0}figcaption{color:#555}"""


def report(recipe_folder: Path, cases: list[str] | None = None, target: float | None = None) -> str:
    """Write summary.json, report.html and a PNG for each figure beside the runs; return the table for the terminal.

    Args:
        recipe_folder: logs/<recipe>.
        cases: only these, in this order; None: all that have a finished run.
        target: accuracy of which it is told how soon training reached it; None: that of the recipe's convergence.

    Raises:
        ValueError: in one line, if there is no finished run, or for a target of which nothing is known.
    """
    if not recipe_folder.is_dir():
        raise ValueError(f"{recipe_folder} is not a folder of runs, as logs/<recipe>")
    results, left_out = readable(recipe_folder, cases)
    if not results:
        nothing = f"{recipe_folder} holds no finished run (no <case>/version_<n>/result.json)"
        raise ValueError("; ".join(left_out) or nothing)
    if target is not None:
        measured = [result["convergence"] for result in results.values() if result.get("convergence")]
        if not measured:
            raise ValueError(f"--target: {recipe_folder} has no run whose recipe asks for convergence")
        for curves in measured:
            curves["target"] = Convergence(target).target

    def shown(kept: dict[str, Result]) -> tuple[Any, dict[str, bytes], str]:
        pictures = {name: as_png(figure) for name, figure in figures(kept).items()}
        return summarise(kept), pictures, _page(recipe_folder.name, kept, pictures)

    results, (summary, pictures, page), unsound = sound(recipe_folder, results, shown)
    left_out += unsound
    write_json(recipe_folder / "summary.json", summary)
    for name, png in pictures.items():
        (recipe_folder / f"{name}.png").write_bytes(png)
    remarks = "".join(f"<p>left out: {html.escape(line)}</p>" for line in left_out)
    page = page.replace("</h1>", f"</h1>{remarks}", 1)
    (recipe_folder / "report.html").write_text(page, encoding="utf-8", errors="replace")
    return "\n".join([text(results), *(f"left out: {line}" for line in left_out)])


def readable(recipe_folder: Path, cases: list[str] | None = None) -> tuple[dict[str, Result], list[str]]:
    """The latest results of these cases, or of all, in their order, and a line for each that cannot be read."""
    results, left_out, files = {}, [], result_files(recipe_folder)
    for case in files if cases is None else cases:
        if case in files:
            try:
                results[case] = read_result(files[case])
            except (ValueError, OSError) as error:
                left_out.append(described(error))
    return in_order(results) if cases is None else results, left_out


Made = TypeVar("Made")


def sound(
    recipe_folder: Path, results: dict[str, Result], make: Callable[[dict[str, Result]], Made]
) -> tuple[dict[str, Result], Made, list[str]]:
    """What can be made of the results, or, where some lack something, of all others.

    Args:
        recipe_folder: where they lie.
        results: of its cases.
        make: what is made of several.

    Returns:
        The results that it was made of, what was made, and a line for each result that was left out.

    Raises:
        ValueError: in one line, if nothing is left.
    """
    left_out: list[str] = []
    try:
        return results, make(results), left_out
    except Exception as error:  # a field that is missing shows wherever it is needed
        kept = {}
        for case, result in results.items():
            try:
                make({case: result})
                kept[case] = result
            except Exception as own:
                lacks = f"has no {own.args[0]}" if isinstance(own, KeyError) else f"is no result ({described(own)})"
                left_out.append(f"{result_files(recipe_folder)[case]} {lacks}; run its case again")
        if len(kept) == len(results):
            raise
        if not kept:
            raise ValueError("; ".join(left_out)) from error
        return kept, make(kept), left_out


def text(results: dict[str, Result]) -> str:
    """Tables, findings and notes of all cases for the terminal."""
    blocks = [table.as_text() for table in tables(results)]
    return "\n\n".join([*blocks, "\n".join([*findings(results), *notes(results)])])


def html_page(title: str, heading: str, body: str) -> str:
    """A page that needs no other file."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>
<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>
<h1>{html.escape(heading)}</h1>
{body}
</body></html>
"""


def html_figures(pictures: dict[str, bytes], captions: dict[str, str]) -> str:
    """PNGs with their captions."""
    return "\n".join(
        f'<figure><img alt="{html.escape(captions[name])}" '
        f'src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        f"<figcaption>{html.escape(captions[name])}</figcaption></figure>"
        for name, png in pictures.items()
    )


def as_png(figure: Figure) -> bytes:
    """A figure's picture."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _page(name: str, results: dict[str, Result], pictures: dict[str, bytes]) -> str:
    filled = "\n".join(table.as_html() for table in tables(results))
    said = "".join(f"<p>{html.escape(finding)}</p>" for finding in findings(results))
    remarks = "\n".join(f"<li>{html.escape(note)}</li>" for note in notes(results))
    made = "\n".join(f"<li>{html.escape(_how_made(case, result))}</li>" for case, result in results.items())
    body = f"""<p>Accuracy (median over reads of all test images) and cost of one image.</p>
{filled}
{said}
<ul>{remarks}</ul>
{html_figures(pictures, CAPTIONS)}
<h2>How it was made</h2><ul>{made}</ul>"""
    return html_page(f"{name}: energy and accuracy", name, body)


def _how_made(case: str, result: Result) -> str:
    packages = ", ".join(f"{package} {number}" for package, number in result["versions"].items())
    return f"{case}: seed {result['seed']}, {result['seconds']} s, finished {result['finished']}, {packages}"
