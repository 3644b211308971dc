"""A page of results in Markdown, from finished runs: tables, findings, figures, and how each was made."""

import json
import re
import shlex
import shutil
from itertools import takewhile
from pathlib import Path

import yaml

from energytl.recipe import flat, read
from energytl.report import readable, sound
from energytl.results import Result, finished, versions
from energytl.tables import findings, notes, tables

FIRST_FIGURES = (
    "least_energy",
    "energy_by_condition",
    "accuracy_by_condition",
    "over_time",
    "weights",
    "learning_costs",
    "convergence",
    "speed_map",
    "accuracy_energy",
    "depthwise_share",
)
"""Figures of a report that the page shows, where there are any."""

HEAD = """# Results

Made by `energytl results` from finished runs; every number in a table comes from the command above it. Energies in
paper units are Σ ρ·|w|·pulses: compare ratios. "Published" is the same ratio in the paper's table, of another network
where the text says so. ρ, and which network of a family, are chosen on images that are held out, and what is told is of
test images, by reads that no choice saw; a section measured otherwise says so in its first line. Sections that name no
law of fluctuation are of `hardware.law: paper`, without noise of sensing.
"""


def results_page(recipe_folders: list[Path], recipes: Path, page: Path) -> str:
    """Write the page, with figures beside it; return what was written, a line for each recipe.

    Sections of other recipes that a page has already stay as they are.

    Args:
        recipe_folders: logs/<recipe>, each reported already.
        recipes: folder of the recipes, whose leading comments head each section.
        page: the Markdown file; figures go beside it as <recipe>_<figure>.png.

    Raises:
        ValueError: in one line, for a folder without finished runs.
    """
    sections, lines = _sections(page), []
    for folder in recipe_folders:
        results, left_out = readable(folder) if folder.is_dir() else ({}, [])
        if not results:
            said = "; ".join(left_out) or f"{folder} holds no finished run"
            raise ValueError(f"{said}: energytl run {recipes / folder.name}.yaml first")
        results, _, unsound = sound(
            folder, results, lambda some: (tables(some), findings(some), notes(some), _made(some))
        )
        sections[folder.name] = _section(folder, results, recipes / f"{folder.name}.yaml", page.parent)
        lines += [f"{folder}: {len(results)} cases", *(f"left out: {line}" for line in left_out + unsound)]
    page.write_text("\n".join([HEAD, *sections.values()]), encoding="utf-8")
    return "\n".join([*lines, str(page)])


def _sections(page: Path) -> dict[str, str]:
    """The sections of a page by their recipe, or else their heading, in their order; none if there is no page."""
    text = page.read_text("utf-8") if page.is_file() else ""
    parts = re.split(r"^(?=## )", text, flags=re.MULTILINE)[1:]
    sections = {}
    for part in parts:
        command = re.search(r"^energytl run recipes/(\S+)\.yaml", part, re.MULTILINE)
        sections[command[1] if command else part.partition("\n")[0]] = part.rstrip() + "\n"
    return sections


def _section(folder: Path, results: dict[str, Result], recipe: Path, beside: Path) -> str:
    title, text = _comment(recipe, folder.name)
    parts = [f"## {title}", text, f"```bash\n{_command(folder, results, recipe)}\n```"]
    parts += [*(table.as_markdown() for table in tables(results)), *findings(results)]
    parts.append("\n".join(f"* {note}" for note in notes(results)))
    for name in FIRST_FIGURES:
        if (folder / f"{name}.png").is_file():
            figure = beside / f"{folder.name}_{name}.png"
            shutil.copyfile(folder / f"{name}.png", figure)
            parts.append(f"![{title}: {name.replace('_', ' ')}]({figure.name})")
    parts.append(_made(results))
    return "\n\n".join(part for part in parts if part) + "\n"


def _comment(recipe: Path, name: str) -> tuple[str, str]:
    """Title and text of the comment that a recipe begins with, without its commands."""
    lines = recipe.read_text("utf-8").splitlines() if recipe.is_file() else []
    comment = [line.removeprefix("#").strip() for line in takewhile(lambda line: line.startswith("#"), lines)]
    kept = [line for line in comment if not line.startswith("energytl ")]
    return (kept[0], "\n".join(kept[1:]).strip()) if kept else (name, "")


def _command(folder: Path, results: dict[str, Result], recipe: Path) -> str:
    """The command that repeats the runs: the recipe, with every setting that its cases ran with and it does not have.

    A file or folder is named by its kind: where it lies is another on each machine.
    """
    command = f"energytl run recipes/{recipe.name}"
    cases = {case.name: case for case in read(recipe, [])} if recipe.is_file() else {}
    changes: dict[str, None] = {}
    for name in results:
        done = [version for version in versions(folder / name) if finished(version)]
        used = flat(yaml.safe_load((done[-1] / "recipe.yaml").read_text("utf-8")))
        plain = flat(cases[name].resolved()) if name in cases else used
        for key, value in used.items():
            if key not in plain or plain[key] != value:
                option = key.removesuffix(".class_path").replace(".init_args.", ".")
                shown = value if isinstance(value, str) else json.dumps(value)
                changes[shlex.quote(f"--{option}={'PATH' if '/' in shown else shown}")] = None
    return " ".join([command, *changes])


def _said(results: dict[str, Result]) -> tuple[object, ...]:
    """All that the page says of results."""
    return tables(results), findings(results), notes(results), _made(results)


def _made(results: dict[str, Result]) -> str:
    """When, how long, with what."""
    first = next(iter(results.values()))
    seconds = sum(result["seconds"] for result in results.values())
    packages = ", ".join(f"{name} {number}" for name, number in first["versions"].items())
    dates = sorted({result["finished"][:10] for result in results.values()})
    seeds = ", ".join(map(str, sorted({result["seed"] for result in results.values()})))
    return (
        f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}, {seconds / 60:.1f} minutes of all cases together, kept "
        f"trainings not counted, seed{'s' * (',' in seeds)} {seeds}; {packages}."
    )
