"""Recipes of a front run from anywhere."""

import sys

import yaml

from energytl.recipe import read
from energytl.study.portable import portable

MODULE = "from torch import nn\n\n\ndef net() -> nn.Module:\n    return nn.Linear(2, 2)\n"

RECIPE = """
network: my_portable_nets.net
weights: net.pt
data: {class_path: energytl.data.ImageFolder, init_args: {train: images, test: nowhere, size: 8}}
evaluation: null
method: images
"""


def test_a_recipe_is_found_with_its_files_and_modules_from_another_folder(tmp_path, monkeypatch):
    source, elsewhere = tmp_path / "recipes", tmp_path / "logs" / "front"
    for folder in (source / "images" / "cat", elsewhere):
        folder.mkdir(parents=True)
    (source / "my_portable_nets.py").write_text(
        "from torch import nn\ndef net() -> nn.Module:\n    return nn.Linear(2, 2)\n"
    )
    (source / "net.pt").touch()
    (source / "r.yaml").write_text(RECIPE)
    monkeypatch.chdir(source)
    monkeypatch.syspath_prepend(source)
    case = read(source / "r.yaml", [])[0]
    settings = portable(case.resolved())
    assert settings["import_from"] == [str(source)]
    (elsewhere / "01.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    monkeypatch.chdir("/")
    monkeypatch.delitem(sys.modules, "my_portable_nets")
    monkeypatch.setattr("sys.path", [place for place in sys.path if place != str(source)])
    again = read(elsewhere / "01.yaml", [])[0].resolved()
    assert again["weights"] == str(source / "net.pt")
    assert again["data"]["init_args"]["train"] == str(source / "images")
    assert again["data"]["init_args"]["test"] == "nowhere"
    assert again["method"] == "images"
    assert {key: again[key] for key in ("network", "hardware")} == {
        key: case.resolved()[key] for key in ("network", "hardware")
    }
