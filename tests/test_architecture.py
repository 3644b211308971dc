"""The house rules that a program can check: imports go one way, the style holds, nothing reads the environment."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import energytl

PACKAGE = Path(energytl.__file__).parent
LAYERS = (
    ("allowed", "quiet", "source", "origin", "progress", "streams", "strict_yaml"),
    ("devices",),
    ("crossbar",),
    ("analog",),
    ("cost",),
    ("objectives", "optim", "ranges", "data", "models", "results", "seeding", "weights"),
    ("classifier", "callbacks", "convergence", "evaluation", "frontier", "tables", "tasks"),
    ("parser", "plots", "recipe", "report", "device_fit"),
    ("kept_trainings", "training", "points", "rehearsal", "results_page", "features"),
    ("stages",),
    ("run",),
    ("workers",),
    ("study",),
    ("cli",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def sources() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            if name and name.startswith("energytl."):
                imported = name.split(".")[1]
                own = part(path)
                assert imported == own or LEVEL[imported] < LEVEL[own] or LEVEL[imported] == LEVEL[own], (
                    f"{own} imports {name}"
                )


def test_every_part_has_its_place():
    assert {part(path) for path in sources()} == set(LEVEL)


def test_parts_of_one_level_do_not_import_each_other_in_a_circle():
    run = [sys.executable, "-c", "import energytl.cli"]
    assert subprocess.run(run, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_command_line_touches_the_environment(path):
    assert part(path) == "cli" or "environ" not in path.read_text("utf-8")


def test_style():
    root = PACKAGE.parent
    for command in (["check"], ["format", "--check"]):
        result = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "energytl", "tests"],
            cwd=root,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr


def test_top_level_is_fixed():
    tracked = subprocess.run(["git", "ls-files"], cwd=PACKAGE.parent, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in tracked.stdout.splitlines()}
    allowed = {"pyproject.toml", "energytl", "recipes", "search", "tests", "logs", "README.md", "LICENSE"}
    assert {name for name in top if not name.startswith(".")} <= allowed
