"""From finished runs alone: summary.json, a table, figures as PNG, and one HTML page that needs nothing else."""

import base64
import html
from io import BytesIO
from pathlib import Path

from matplotlib.figure import Figure

from energytl.convergence import Convergence
from energytl.plots import figures
from energytl.results import Result, latest_results, summarise, write_json
from energytl.tables import findings, notes, tables

CAPTIONS = {
    "convergence": "Accuracy on test images while training: median over runs and quartiles; dashed: the target.",
    "speed_map": "How many times fewer images than the baseline until the target, with 95 % intervals; blue: fewer; "
    "framed: what the paper tells of.",
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
    results = latest_results(recipe_folder)
    if cases is not None:
        results = {case: results[case] for case in cases if case in results}
    if not results:
        raise ValueError(f"{recipe_folder} holds no finished run (no <case>/version_<n>/result.json)")
    if target is not None:
        measured = [result["convergence"] for result in results.values() if result.get("convergence")]
        if not measured:
            raise ValueError(f"--target: {recipe_folder} has no run whose recipe asks for convergence")
        for curves in measured:
            curves["target"] = Convergence(target).target
    write_json(recipe_folder / "summary.json", summarise(results))
    pictures = {name: as_png(figure) for name, figure in figures(results).items()}
    for name, png in pictures.items():
        (recipe_folder / f"{name}.png").write_bytes(png)
    (recipe_folder / "report.html").write_text(_page(recipe_folder.name, results, pictures), encoding="utf-8")
    return text(results)


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
    made = "\n".join(
        f"<li>{html.escape(case)}: seed {result['seed']}, {result['seconds']} s, finished {result['finished']}, "
        + html.escape(", ".join(f"{package} {number}" for package, number in result["versions"].items()))
        + "</li>"
        for case, result in results.items()
    )
    body = f"""<p>Accuracy (median over reads of all test images) and cost of one image.</p>
{filled}
{said}
<ul>{remarks}</ul>
{html_figures(pictures, CAPTIONS)}
<h2>How it was made</h2><ul>{made}</ul>"""
    return html_page(f"{name}: energy and accuracy", name, body)
