"""What code stands behind class paths."""

import sys

import pytest

from energytl.source import made_by


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_network_a.py").write_text("import json\nfrom own_parts_a.blocks import wide\n")
    (tmp_path / "own_parts_a").mkdir()
    (tmp_path / "own_parts_a" / "__init__.py").write_text("")
    (tmp_path / "own_parts_a" / "blocks.py").write_text("from . import deep\ndef wide():\n    return 1\n")
    (tmp_path / "own_parts_a" / "deep.py").write_text("import own_network_a  # a circle\n")
    (tmp_path / "own_parts_a" / "apart.py").write_text("")
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith(("own_network_a", "own_parts_a"))]:
        del sys.modules[name]


SETTINGS = {"network": {"class_path": "own_network_a.net"}, "file": "own_network_a", "optimizer": "torch.optim.Adam"}


def test_modules_of_ones_own_count_with_all_that_they_import(folder):
    first = made_by(SETTINGS)
    own = {"own_network_a", "own_parts_a", "own_parts_a.blocks", "own_parts_a.deep"}
    assert set(first) == own | {"energytl", "torch", "torchvision"}
    assert made_by(SETTINGS) == first
    (folder / "own_parts_a" / "apart.py").write_text("changed = 1\n")
    assert made_by(SETTINGS) == first
    (folder / "own_parts_a" / "deep.py").write_text("changed = 1\n")
    assert made_by(SETTINGS) == first | {"own_parts_a.deep": made_by(SETTINGS)["own_parts_a.deep"]} != first


def test_installed_packages_count_by_their_version():
    found = made_by(["scipy.stats.norm", "json.dumps", "energytl.data.Digits", "no_such_module_a.thing", "1.5"])
    assert set(found) == {"scipy", "energytl", "torch", "torchvision"}
