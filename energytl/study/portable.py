"""Recipes that run from any folder: their files by absolute paths, with where the user's own modules lie."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from energytl.origin import is_users


def portable(settings: dict[str, Any]) -> dict[str, Any]:
    """The same recipe for any working folder: names of files, and of folders of data, that are there are absolute.

    Args:
        settings: resolved ones, whose paths are relative to the working folder.

    >>> portable({"seed": 0, "weights": "nowhere.pt"})
    {'seed': 0, 'weights': 'nowhere.pt'}
    """
    folders = sorted({folder for path in _class_paths(settings) if (folder := _module_folder(path))})
    return ({"import_from": folders} if folders else {}) | _absolute(settings, in_data=False)


def _absolute(node: Any, in_data: bool) -> Any:  # noqa: ANN401
    if isinstance(node, dict):
        return {key: _absolute(value, in_data or key == "data") for key, value in node.items()}
    if isinstance(node, list):
        return [_absolute(value, in_data) for value in node]
    if isinstance(node, str) and node:
        path = Path(node)
        try:
            return str(path.resolve()) if path.is_file() or (in_data and path.is_dir()) else node
        except OSError:  # a text too long for a name
            return node
    return node


def _class_paths(node: Any) -> Iterator[str]:  # noqa: ANN401
    """All class paths in settings."""
    if isinstance(node, dict):
        if isinstance(node.get("class_path"), str):
            yield node["class_path"]
        for value in node.values():
            yield from _class_paths(value)
    elif isinstance(node, list):
        for value in node:
            yield from _class_paths(value)


def _module_folder(class_path: str) -> str | None:
    """Where Python found a user's module; None for an installed one."""
    file = getattr(sys.modules.get(class_path.partition(".")[0]), "__file__", None)
    if file is None or not is_users(file):
        return None
    path = Path(file)
    return str((path.parent.parent if path.name == "__init__.py" else path.parent).resolve())
