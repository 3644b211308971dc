"""From a search's trials: its front as a table, figures, one HTML page, a CSV and TensorBoard's hyperparameters."""

import csv
import html
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from filelock import FileLock
from matplotlib.figure import Figure
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState
from torch.utils.tensorboard import SummaryWriter

from energytl.parser import said_by
from energytl.report import as_png, html_figures, html_page
from energytl.study.confirm import CONFIRMED, FRONT, confirm_front, read_front, write_front
from energytl.study.figures import search_figures
from energytl.study.front import Point, front, hypervolumes, points
from energytl.study.quantities import QUANTITIES
from energytl.study.search import STUDY, Search, stagnates, wanted_quantities
from energytl.study.settings import Settings, StudyError, read_settings, read_varied
from energytl.study.storage import DATABASE, OLD_JOURNAL, error_of, open_storage, slots
from energytl.tables import Table, quantity

CAPTIONS = {
    "front": "The front, and all other points as the trials found them, with few reads.",
    "hypervolume": "Hypervolume after each finished trial: share of the box between the best and the worst value of "
    "each objective (costs on a logarithmic scale) that is dominated.",
    "importances": "How much of each objective's variance over the trials a parameter explains.",
    "parallel_coordinates": "Each line is a trial: what varied, and what came out; in colour the front.",
}

TENSORBOARD = "tensorboard"
"""Folder of a search with its hyperparameters and figures for TensorBoard."""


@dataclass(frozen=True)
class Findings:
    """What a search has found.

    Attributes:
        known: its trials.
        found: its points.
        kept: the front that was written, or if none was, that of the trials.
        importances: of each parameter, by objective.
    """

    known: list[FrozenTrial]
    found: list[Point]
    kept: list[Point]
    importances: dict[str, dict[str, float]]


def confirmed_report(search: Search) -> str:
    """Measure the front again, write it as recipes, and report; see `search_report`."""
    try:
        with _one_at_a_time(search.folder):
            write_front(search, confirm_front(search))
        return search_report(search.folder, search.url)
    except OSError as error:
        raise StudyError(
            f"{said_by(error)}; what is finished is kept: once this is mended (a full disk has room), the same command "
            "goes on"
        ) from error


def _one_at_a_time(folder: Path) -> FileLock:
    """Commands that end together write the front and the report one after the other."""
    return FileLock(folder / "report.lock", mode=0o666)


def search_report(folder: Path, url: str | None = None) -> str:
    """Write report.html, PNGs, trials.csv and TensorBoard events; return the table for the terminal.

    Args:
        folder: of the search.
        url: of the storage, if it is not the folder's SQLite file.

    Raises:
        StudyError: in one line, if there is no finished trial, or a file of the search holds something else.
    """
    if url is None and not any((folder / name).is_file() for name in (DATABASE, OLD_JOURNAL)):
        raise StudyError(f"the trials of {folder} lie elsewhere: name the storage with --storage URL")
    with _one_at_a_time(folder):
        return _report(folder, url)


def _report(folder: Path, url: str | None) -> str:
    settings = read_settings(folder / STUDY)
    folder = folder.resolve()
    with open_storage(url, folder) as storage:
        if folder.name not in optuna.get_all_study_names(storage):
            raise StudyError(f"the storage holds no search {folder.name!r}: has the folder been renamed?")
        trials = optuna.load_study(study_name=folder.name, storage=storage)
        known, importances = trials.get_trials(), _importances(settings, trials)
    found = points(settings, known)
    if not found:
        raise StudyError(f"{folder} has no finished trial")
    unread: list[str] = []
    try:
        written = read_front(settings, folder)
    except StudyError as error:
        written, unread = None, [str(error)]
    findings = Findings(known, found, front(found) if written is None else written, importances)
    figures = search_figures(settings, read_varied(settings), found, findings.kept, findings.importances)
    pictures = {name: as_png(figure) for name, figure in figures.items()}
    for name, png in pictures.items():
        (folder / f"{name}.png").write_bytes(png)
    table, lines = (
        front_table(settings, findings, written is not None),
        [*notes(settings, findings), *unread],
    )
    said = "\n".join(f"<li>{html.escape(line)}</li>" for line in lines)
    body = f"{table.as_html()}\n<ul>{said}</ul>\n{html_figures(pictures, CAPTIONS)}"
    (folder / "report.html").write_text(html_page(f"{folder.name}: search", folder.name, body), encoding="utf-8")
    _write_csv(settings, folder / "trials.csv", findings)
    _write_tensorboard(settings, folder, findings, figures)
    return "\n\n".join([table.as_text(), "\n".join(lines)])


def front_table(settings: Settings, findings: Findings, written: bool) -> Table:
    """A row for each point of the front; with the names of its recipes if they were written."""
    names = wanted_quantities(settings)
    head = ("recipe", "trial", *(QUANTITIES[name].label for name in names), *map(_key, settings.vary))
    rows = [head]
    for number, point in enumerate(findings.kept, start=1):
        cells = [_cell(name, point.numbers[name]) for name in names]
        if point.quartiles is not None and "accuracy" in names:
            low, high = (100 * end for end in point.quartiles)
            cells[names.index("accuracy")] += f" ({low:.2f} to {high:.2f})"
        values = [_value(point.params[key]) for key in settings.vary]
        rows.append((f"{FRONT}/{number:02d}.yaml" if written else "", str(point.number), *cells, *values))
    return Table("front", rows)


def notes(settings: Settings, findings: Findings) -> list[str]:
    """What a reader must know about the search."""
    counted = slots(findings.known)
    states = Counter(trial.state for trial in counted)
    errors = {trial.number: error for trial in counted if (error := error_of(trial)) is not None}
    waiting = states[TrialState.RUNNING] + states[TrialState.WAITING]
    repeated = sum("killed" in trial.user_attrs for trial in counted)
    same = sum("same_as" in trial.user_attrs for trial in counted if trial.state == TrialState.COMPLETE)
    parts = [f"{len(findings.found)} measured"] + [
        f"{count} {what}"
        for count, what in (
            (states[TrialState.PRUNED], "stopped in training"),
            (same, "with values measured before"),
            (len(errors), "failed"),
            (waiting, "not finished"),
        )
        if count
    ]
    lines = [f"{len(counted)} trials: {', '.join(parts)}" + (f"; {repeated} of them repeated" if repeated else "")]
    if stagnates(settings, findings.known) and settings.stop:
        lines.append(
            f"stopped: the last {settings.stop.trials} trials added no more than {100 * settings.stop.gain:g} % of the "
            "hypervolume (stop)"
        )
    lines.append(f"hypervolume {hypervolumes(findings.found)[-1]:.4f} of the box of all points")
    if not findings.kept:
        lines.append("no point keeps to the constraints, so there is no front")
    elif all(point.quartiles is not None for point in findings.kept) and settings.confirm:
        reads = settings.confirm.reads
        lines.append(
            f"the front was measured again with {reads} other reads a point, chosen on the images held out and told of "
            f"test images, which no trial saw; its runs lie in {CONFIRMED}/"
        )
    else:
        lines.append("the front was not measured again: its accuracies are the best of many and so a little too good")
    broken = sum(not point.feasible for point in findings.found)
    if broken:
        lines.append(f"{broken} points break a constraint")
    for objective, shares in findings.importances.items():
        most = ", ".join(f"{_key(name)} {100 * share:.0f} %" for name, share in list(shares.items())[:3])
        lines.append(f"{QUANTITIES[objective].label} varies most with {most}")
    share = overhead(findings.known)
    if share is not None:
        lines.append(f"overhead of the search: {100 * share:.1f} % of the time that the trials took")
    lines += [f"trial {number} failed: {error}" for number, error in list(errors.items())[:5]]
    return lines


def overhead(known: Sequence[FrozenTrial]) -> float | None:
    """Time that workers spent between and around their trials, as a share of the trials' own; None if unknown.

    Each worker's time is that from its first trial's start to its last one's end; the wait for other workers at the
    end of a search is not in it. Unknown where one process tells of several at once, as on Ray.
    """
    spans: dict[str, list[FrozenTrial]] = {}
    for trial in known:
        if trial.datetime_start and trial.datetime_complete and {"seconds", "worker"} <= {*trial.user_attrs}:
            spans.setdefault(trial.user_attrs["worker"], []).append(trial)
    own = sum(trial.user_attrs["seconds"] for trials in spans.values() for trial in trials)
    if not own:
        return None
    whole = 0.0
    for trials in spans.values():
        starts = [trial.datetime_start for trial in trials if trial.datetime_start]
        ends = [trial.datetime_complete for trial in trials if trial.datetime_complete]
        whole += (max(ends) - min(starts)).total_seconds()
    return whole / own - 1 if whole >= own else None


def _importances(settings: Settings, trials: optuna.Study) -> dict[str, dict[str, float]]:
    """Of each parameter for each objective; empty where the trials do not tell."""
    found = {}
    for number, objective in enumerate(settings.objectives):
        values = {t.values[number] for t in trials.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))}
        if len(values) < 4:  # nothing to explain
            continue

        def target(trial: FrozenTrial, number: int = number) -> float:
            return float(trial.values[number])

        found[objective] = get_param_importances(trials, evaluator=FanovaImportanceEvaluator(seed=0), target=target)
    return found


def _write_csv(settings: Settings, path: Path, findings: Findings) -> None:
    on_front = {point.number for point in findings.kept}
    quantities = wanted_quantities(settings)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        head = ["trial", "state", "front", *quantities, *settings.vary, "seconds", "error"]
        writer.writerow([_plain(cell) for cell in head])
        for trial in findings.known:
            attributes = trial.user_attrs
            numbers = [attributes.get("numbers", {}).get(name, "") for name in quantities]
            values = [trial.params.get(key, "") for key in settings.vary]
            state = "surplus" if attributes.get("surplus") else trial.state.name.lower()
            chosen = "yes" if trial.number in on_front else ""
            said = [attributes.get("seconds", ""), error_of(trial) or ""]
            writer.writerow([_plain(cell) for cell in (trial.number, state, chosen, *numbers, *values, *said)])


def _plain(cell: object) -> object:
    r"""A cell that no spreadsheet takes for a formula: text that begins like one has an apostrophe before it.

    >>> _plain('=HYPERLINK("https://…")'), _plain("-1.5"), _plain(-1.5)
    ('\'=HYPERLINK("https://…")', '-1.5', -1.5)
    """
    if not isinstance(cell, str) or not cell.lstrip().startswith(("=", "+", "-", "@")):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def _write_tensorboard(settings: Settings, folder: Path, findings: Findings, figures: dict[str, Figure]) -> None:
    """A row of hyperparameters for each point, and the figures."""
    events = folder / TENSORBOARD
    shutil.rmtree(events, ignore_errors=True)
    on_front = {point.number for point in findings.kept}
    for point in findings.found:
        hyperparameters = {_key(name): point.params[name] for name in settings.vary}
        metrics = {f"result/{name}": value for name, value in point.numbers.items()}
        with SummaryWriter(str(events)) as writer:
            writer.add_hparams(
                hyperparameters | {"front": point.number in on_front}, metrics, run_name=f"trial_{point.number:04d}"
            )
    with SummaryWriter(str(events)) as writer:
        for name, figure in figures.items():
            writer.add_figure(f"search/{name}", figure)
        for number, volume in enumerate(hypervolumes(findings.found), start=1):
            writer.add_scalar("search/hypervolume", volume, number)


def _key(name: str) -> str:
    return name.replace("init_args.", "")


def _cell(name: str, value: float) -> str:
    if name == "accuracy":
        return f"{100 * value:.2f} %"
    unit = QUANTITIES[name].unit
    return quantity(value, unit) if unit else f"{value:.3g}"


def _value(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
