"""The front, measured again with many reads and written as recipes that are ready to run."""

import multiprocessing
import shutil
from collections.abc import Sequence
from pathlib import Path

from energytl.recipe import Case
from energytl.results import Result, latest_results
from energytl.run import run_case
from energytl.study.front import Point, front, point, points
from energytl.study.quantities import QUANTITIES
from energytl.study.search import Search, limit_threads, wanted_quantities
from energytl.study.settings import Settings, Study
from energytl.study.trial import silently

CONFIRMED, FRONT = "confirmed", "front"
"""Folders of a search: runs with many reads; recipes."""


def confirm_front(search: Search) -> list[Point]:
    """Measure the points on the front and near it with many reads; those that stay on it.

    Their networks are not trained again: they are taken from the trials' trainings, but for those trained on the chip.
    """
    settings = search.study.settings
    found = points(settings, search.open().get_trials(deepcopy=False))
    if settings.confirm is None:
        return front(found)
    near = tuple(settings.confirm.near if name == "accuracy" else 0.0 for name in settings.objectives)
    candidates = front(found, near)
    cases = [_case(search.study, candidate) for candidate in candidates]
    jobs = [(case, search.folder, search.workers) for case in cases]
    if search.workers == 1:
        for job in jobs:
            _measure(*job)
    else:
        with multiprocessing.get_context("spawn").Pool(search.workers) as pool:
            pool.starmap(_measure, jobs, chunksize=1)
    return front(confirmed_points(settings, search.folder, candidates))


def confirmed_points(settings: Settings, folder: Path, candidates: Sequence[Point]) -> list[Point]:
    """Those of these points that were measured again, with the numbers found then."""
    results = confirmed_results(folder)
    wanted = wanted_quantities(settings)
    return [
        point(settings, old.number, old.params, {name: QUANTITIES[name].of(results[old.number]) for name in wanted})
        for old in candidates
        if old.number in results
    ]


def confirmed_results(folder: Path) -> dict[int, Result]:
    """Results with many reads, by trial."""
    runs = folder / CONFIRMED
    return {int(name): result for name, result in latest_results(runs).items()} if runs.is_dir() else {}


def write_front(search: Search, kept: Sequence[Point]) -> list[Path]:
    """A recipe for each point of the front, in its order; those of an earlier front go."""
    folder = search.folder / FRONT
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    paths = []
    for number, candidate in enumerate(kept, start=1):
        case = _case(search.study, candidate)
        said = ", ".join(f"{QUANTITIES[name].label} {value:.4g}" for name, value in candidate.numbers.items())
        path = folder / f"{number:02d}.yaml"
        path.write_text(
            f"# Trial {candidate.number} of the search {search.study.name}: {said}\n{case.as_yaml()}", "utf-8"
        )
        paths.append(path)
    return paths


def _case(study: Study, candidate: Point) -> Case:
    """A trial's recipe, with the reads of the confirmation."""
    again = study.settings.confirm
    reads = {"evaluation.reads": again.reads} if again else {}
    return study.case(f"{candidate.number:04d}", study.values(candidate.params) | reads)


def _measure(case: Case, folder: Path, workers: int) -> None:
    """Run a case of the front, or find that it has run."""
    limit_threads(workers)
    runs = folder / CONFIRMED
    with silently(runs / f"{case.name}.log"):
        run_case(case, int(case.name), runs, resume=True)
