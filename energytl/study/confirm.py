"""The front, measured again with many reads and written as recipes that are ready to run.

Trials are chosen by their accuracy on images that are held out, and so are, with more reads, those of them that stay on
the front. What is then told of these is their accuracy on test images: the best of many numbers is too good, by as much
as its luck, and no choice has seen these. So a point of the front may be dominated by another one as told.
"""

import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from energytl.parser import said_by
from energytl.progress import Bar
from energytl.recipe import Case
from energytl.results import Result, read_json, write_json
from energytl.study.front import Point, front, point, points
from energytl.study.portable import portable
from energytl.study.quantities import QUANTITIES
from energytl.study.search import Search, wanted_quantities
from energytl.study.settings import Settings, Study, StudyError
from energytl.study.trial import run_silently
from energytl.workers import limit_threads, on_own_gpu, pool_of

CONFIRMED, FRONT = "confirmed", "front"
"""Folders of a search: runs with many reads; recipes."""

OTHER_READS = 1000
"""Number of the first read of a confirmation: none of those by which a trial came to the front."""


def confirm_front(search: Search) -> list[Point]:
    """Measure the points on the front and near it with many reads; those that stay on it.

    Their networks are not trained again where the folder has the trials' trainings, but for those trained on the chip.

    Raises:
        StudyError: if none could be measured.
    """
    settings = search.study.settings
    with search.open() as trials:
        found = points(settings, trials.get_trials(deepcopy=False))
    if settings.confirm is None:
        return front(found)
    near = tuple(settings.confirm.near if name == "accuracy" else 0.0 for name in settings.objectives)
    candidates = front(found, near)
    cases = {candidate.number: confirming_case(search.study, candidate) for candidate in candidates}
    results = _results(search, cases)
    again = [
        _measured(settings, old, results[old.number], search.folder) for old in candidates if old.number in results
    ]
    if candidates and not again:
        raise StudyError(f"none of the front could be measured again; see {search.folder / CONFIRMED}")
    return [told(kept, results[kept.number]) for kept in front(again)]


def _results(search: Search, cases: dict[int, Case]) -> dict[int, Result]:
    """The results of these cases, by trial, with a bar; a case that fails is named and left out."""
    results: dict[int, Result] = {}
    workers = min(search.workers, max(1, len(cases)))
    with Bar(total=len(cases), desc="front, measured again", unit="point") as bar:

        def take(number: int, get: Any) -> None:  # noqa: ANN401
            try:
                results[number] = get()
            except BrokenProcessPool as error:
                raise StudyError(
                    "a worker was killed while the front was measured again; to go on, repeat the command"
                ) from error
            except (ValueError, RuntimeError) as error:
                bar.write(f"trial {number} could not be measured again: {said_by(error)}", file=sys.stderr)
            bar.update()

        if workers == 1:
            for number, case in cases.items():
                take(number, lambda case=case: _measure(case, search.folder, 1, 0))
            return results
        with pool_of(workers) as pool:
            started = {
                pool.submit(_measure, case, search.folder, workers, place % workers): number
                for place, (number, case) in enumerate(cases.items())
            }
            for future in as_completed(started):
                take(started[future], future.result)
    return results


def _measure(case: Case, folder: Path, workers: int, index: int) -> Result:
    """Run a case of the front, or find that it has run."""
    limit_threads(workers)
    return run_silently(on_own_gpu(case, index), folder / CONFIRMED)


def _measured(settings: Settings, old: Point, result: Result, folder: Path) -> Point:
    """A point with the numbers found now, by which it is chosen."""
    try:
        numbers = {name: QUANTITIES[name].of(result) for name in wanted_quantities(settings)}
    except (ValueError, TypeError, KeyError) as error:
        place = folder / CONFIRMED / f"{old.number:04d}"
        raise StudyError(
            f"the result in {place} is none of this search ({said_by(error)}): remove that folder, and the same "
            "command measures it again"
        ) from error
    return point(settings, old.number, old.params, numbers)


def told(kept: Point, result: Result) -> Point:
    """A point that was chosen, with its accuracy on test images, which had no part in that, and their quartiles."""
    numbers = kept.numbers | ({"accuracy": float(result["accuracy_median"])} if "accuracy" in kept.numbers else {})
    return replace(kept, numbers=numbers, quartiles=(float(result["accuracy_q25"]), float(result["accuracy_q75"])))


def write_front(search: Search, kept: Sequence[Point]) -> None:
    """A recipe for each point of the front, in its order, and front.json; those of an earlier front go."""
    folder = search.folder / FRONT
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number, kept_point in enumerate(kept, start=1):
        case = confirming_case(search.study, kept_point)
        said = ", ".join(f"{QUANTITIES[name].label} {value:.4g}" for name, value in kept_point.numbers.items())
        settings = yaml.safe_dump(portable(case.resolved()), sort_keys=False, allow_unicode=True)
        text = f"# Trial {kept_point.number} of the search {search.study.name}: {said}\n{settings}"
        (folder / f"{number:02d}.yaml").write_text(text, encoding="utf-8")
    write_json(folder / "front.json", [asdict(kept_point) for kept_point in kept])


def read_front(settings: Settings, folder: Path) -> list[Point] | None:
    """The front that was written last; None if none was.

    Raises:
        StudyError: with the file's name, if it holds something else.
    """
    path = folder / FRONT / "front.json"
    if not path.is_file():
        return None
    try:
        rows = read_json(path)
        if not isinstance(rows, list):
            raise TypeError("a list is wanted")
        return [_read_point(settings, row) for row in rows]
    except (ValueError, TypeError, KeyError) as error:
        raise StudyError(f"{path} holds no front of this search ({said_by(error)}): remove it") from error


def _read_point(settings: Settings, row: dict[str, Any]) -> Point:
    """A point as `write_front` wrote it; what follows from its numbers is calculated again."""
    numbers = {name: float(row["numbers"][name]) for name in wanted_quantities(settings)}
    params = {name: row["params"][name] for name in settings.vary}
    low_high = row["quartiles"] and tuple(map(float, row["quartiles"]))
    return replace(point(settings, int(row["number"]), params, numbers), quartiles=low_high)


def confirming_case(study: Study, candidate: Point) -> Case:
    """A trial's recipe with the reads of the confirmation, whatever the command line says of reads."""
    case = study.case(f"{candidate.number:04d}", study.values(candidate.params))
    again = study.settings.confirm
    if again is not None:
        case.settings.evaluation.reads, case.settings.evaluation.first_read = again.reads, OTHER_READS
    return case
