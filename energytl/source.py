"""What a user's own Python files hold, so that results which they made are not taken for those of edited ones."""

import ast
import hashlib
import re
import sysconfig
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

LIBRARIES = ("energytl", "torch", "torchvision")
"""What every network depends on. Their versions stand for them, the first two numbers of the others' than energytl."""

INSTALLED = ("site-packages", "dist-packages")
"""Folders of installed packages, for which their versions stand."""


def made_by(settings: Any) -> dict[str, str]:  # noqa: ANN401
    """Versions and digests of all code that plain settings name by class paths.

    A user's own module counts by the content of its file, and so does each of the user's own modules that it imports,
    or that those import, to any depth, wherever the import stands; of an installed package its version counts. What is
    imported by a computed name, read from other files, or built elsewhere, is not seen.

    Args:
        settings: nested dictionaries and lists; all words of the form `a.b` in them are tried as paths.

    Returns:
        Versions by package and SHA-256 of files by module.

    >>> sorted(made_by({"class_path": "torch.optim.Adam"}))
    ['energytl', 'torch', 'torchvision']
    """
    found = {name: version(name) for name in LIBRARIES}
    found |= {name: ".".join(number.split(".")[:2]) for name, number in found.items() if name != "energytl"}
    waiting, seen = [*_paths(settings)], set(LIBRARIES)
    while waiting:
        name = waiting.pop()
        for module, file in _files(name):
            if module in seen:
                continue
            seen.add(module)
            if _is_installed(file):
                top = module.split(".")[0]
                found |= {package: version(package) for package in _distributions().get(top, [])}
            else:
                content = file.read_bytes()
                found[module] = hashlib.sha256(content).hexdigest()
                waiting += _imports(content, module, file.name == "__init__.py")
    return found


def _paths(settings: Any) -> Iterator[str]:  # noqa: ANN401
    """All words in nested settings that may be class paths."""
    if isinstance(settings, dict | list | tuple):
        for part in settings.values() if isinstance(settings, dict) else settings:
            yield from _paths(part)
    elif isinstance(settings, str) and re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", settings):
        yield settings


def _files(path: str) -> Iterator[tuple[str, Path]]:
    """Name and file of each module on a dotted path, packages first; none of Python's own, of energytl and torch."""
    top, *rest = path.split(".")
    if top in LIBRARIES:
        return
    try:
        spec = find_spec(top)
    except ValueError:  # a module that was not imported from a file
        return
    if spec is None:
        return
    file, folders, name = (
        Path(spec.origin or ""),
        [Path(folder) for folder in spec.submodule_search_locations or ()],
        top,
    )
    if file.is_relative_to(sysconfig.get_path("stdlib")) and not _is_installed(file):
        return
    if file.suffix == ".py":
        yield top, file
    name = top
    for part in rest:
        name = f"{name}.{part}"
        inner = [folder / part for folder in folders]
        files = [file for folder in inner for file in (folder / "__init__.py", folder.with_suffix(".py"))]
        yield from ((name, file) for file in files if file.is_file())
        folders = [folder for folder in inner if folder.is_dir()]


def _is_installed(file: Path) -> bool:
    return any(folder in file.parts for folder in INSTALLED)


def _imports(content: bytes, module: str, is_package: bool) -> Iterator[str]:
    """Dotted paths that a module's source imports."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):  # a file that is never imported, or not yet
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            start = [*above, *(node.module.split(".") if node.module else [])]
            yield from (".".join([*start, alias.name]) for alias in node.names)


@cache
def _distributions() -> dict[str, list[str]]:
    """Installed distributions by the packages that they hold."""
    return {name: list(found) for name, found in packages_distributions().items()}
