"""Results as plain numbers: where runs lie, JSON in and out, the summary of all cases.

logs/<recipe>/<case>/version_<n>/ holds recipe.yaml, result.json, TensorBoard events and checkpoints/;
logs/<recipe>/summary.json maps each case to the numbers of its latest finished version.
"""

import json
import os
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

SUMMARY_KEYS = (
    "accuracy_median",
    "accuracy_q25",
    "accuracy_q75",
    "accuracy_digital",
    "accuracy_quantised",
    "energy_paper",
    "energy_cell_j",
    "energy_total_j",
    "latency_s",
    "cells",
    "reads",
)
"""Keys of a case in summary.json. Accuracies are fractions, energies are per image, null is "not modelled"."""

POINT_KEYS = (
    "drop",
    "found",
    "drop_held_out",
    "reached",
    "rho_factor",
    "energy_weight",
    "accuracy_median",
    "accuracy_q25",
    "accuracy_q75",
    "accuracy_drop",
    "accuracy_drop_low",
    "accuracy_drop_high",
    "accuracy_quantised",
    "energy_paper",
    "energy_cell_j",
    "energy_total_j",
)
"""Keys of a point in summary.json, where a case has several: what its accuracy may lose; whether the choice found a ρ
for that, what it loses by the choice's estimate, and whether the test images bear it out (see `energytl.points`); the
factor on the trained ρ, λ of its training; on test images the accuracy and its drop with a 95 % interval; energies."""

TRAINING_KEYS = ("training_energy_j", "training_latency_s", "training_pulses")
"""The same of cases that trained on the chip: of the whole training."""

Result = dict[str, Any]


def write_json(path: Path, content: Any) -> None:  # noqa: ANN401
    """Write all of a file or nothing: a full disk leaves the old one."""
    with whole_file(path) as file:
        file.write((json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def write_tensors(path: Path, content: Any) -> None:  # noqa: ANN401
    """torch.save, all of the file or nothing.

    Raises:
        OSError: if it cannot be written, as on a full disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        torch.save(content, file)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes its place when all of it is on the disk; its own name is no other writer's.

    Raises:
        OSError: naming the file, if it cannot be written.
    """
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save makes a RuntimeError of a failed write
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from error
    finally:
        part.unlink(missing_ok=True)


def read_json(path: Path, keys: Collection[str] = ()) -> Any:  # noqa: ANN401
    """Content of a JSON file, which must have these keys.

    Raises:
        ValueError: in one line, for a file that is not JSON, or something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); remove it or run its case again") from error
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise ValueError(f"{path} has no {missing[0]}; remove it or run its case again")
    return content


BEGINNINGS = {
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"version https://git-lfs": "a pointer of Git LFS, which `git lfs pull` replaces by the file",
    b"\x1f\x8b": "packed by gzip",
    b"{": "JSON",
}
"""How files begin that are often found in the place of others, and what they are."""


def looks_like(path: Path) -> str:
    """What a file is that is not what was expected, as "it is a web page"; empty if its beginning does not say."""
    with path.open("rb") as file:
        first = file.read(64).lstrip().lower()
    if not first:
        return "it is empty"
    return next((f"it is {kind}" for start, kind in BEGINNINGS.items() if first.startswith(start)), "")


def versions(case_folder: Path) -> list[Path]:
    """The version folders of a case, oldest first."""
    found = [path for path in case_folder.glob("version_*") if path.name[8:].isdecimal()]
    return sorted(found, key=version_number)


def version_number(folder: Path) -> int:
    """The n of version_n."""
    return int(folder.name.removeprefix("version_"))


def new_version(case_folder: Path) -> Path:
    """A version folder that does not exist yet, made."""
    while True:
        taken = versions(case_folder)
        folder = case_folder / f"version_{version_number(taken[-1]) + 1 if taken else 0}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue  # another run was quicker
        return folder


def finished(version: Path) -> bool:
    """Whether a version has its result."""
    return (version / "result.json").is_file()


def result_files(recipe_folder: Path) -> dict[str, Path]:
    """The result.json of the latest finished version of each case, by its name."""
    files = {}
    for folder in sorted(path for path in recipe_folder.iterdir() if path.is_dir()):
        done = [version for version in versions(folder) if finished(version)]
        if done:
            files[folder.name] = done[-1] / "result.json"
    return files


def read_result(path: Path) -> Result:
    """A case's result.

    Raises:
        ValueError: in one line, for a file that holds none.
    """
    result: Result = read_json(path, ("order",))
    if not isinstance(result["order"], int):
        raise ValueError(f"{path}: order is {result['order']!r}; remove it or run its case again")
    return result


def latest_results(recipe_folder: Path) -> dict[str, Result]:
    """The result of the latest finished version of each case, in the order in which the recipe names them."""
    return in_order({case: read_result(path) for case, path in result_files(recipe_folder).items()})


def in_order(results: dict[str, Result]) -> dict[str, Result]:
    """Results in the order in which the recipe names their cases."""
    return dict(sorted(results.items(), key=lambda item: item[1]["order"]))


def summarise(results: dict[str, Result]) -> dict[str, dict[str, Any]]:
    """What summary.json holds."""
    keys = SUMMARY_KEYS + TRAINING_KEYS
    summary: dict[str, dict[str, Any]] = {}
    for case, result in results.items():
        summary[case] = {key: result[key] for key in keys if key in result}
        if len(result.get("points", ())) > 1:
            summary[case]["points"] = [{key: point[key] for key in POINT_KEYS} for point in result["points"]]
    return summary
