"""Reports of what earlier runs left: damaged results are named and left out, and nothing of them is taken for HTML."""

import copy
import json
import shutil

import pytest

from energytl import cli
from energytl.report import report
from energytl.results_page import results_page


@pytest.fixture
def runs(synthetic, tmp_path):
    """runs(**results): a folder of runs with these cases; True stands for a sound result."""

    def write(**results):
        folder = tmp_path / "logs" / "tiny"
        shutil.rmtree(folder, ignore_errors=True)
        for order, (case, content) in enumerate(results.items()):
            version = folder / case / "version_0"
            version.mkdir(parents=True)
            text = content if isinstance(content, str) else json.dumps(content | {"case": case, "order": order})
            (version / "result.json").write_text(text, encoding="utf-8", errors="surrogateescape")
            (version / "recipe.yaml").write_text("seed: 0\n")
        return folder

    return write


@pytest.fixture
def result(synthetic):
    return synthetic([(0.01, 3.0, True), (0.02, 2.0, True)]) | {"accuracy_quantised": 0.9}


def test_results_that_are_none_are_named_and_the_rest_is_reported(runs, result):
    others = {"list": "[1, 2]", "text": "half a res", "bytes": "\udcff", "empty": "{}", "number": "3"}
    others["order"] = json.dumps(result | {"order": "first"})
    folder = runs(good=result, **others)
    said = report(folder)
    assert list(json.loads((folder / "summary.json").read_text())) == ["good"]
    page = (folder / "report.html").read_text("utf-8")
    for case in others:
        line = f"left out: {folder / case / 'version_0' / 'result.json'}"
        assert said.count(line) == page.count(line) == 1


def test_a_result_without_any_one_of_its_fields_is_reported_or_named(runs, result, monkeypatch):
    monkeypatch.setattr("energytl.report.figures", lambda results: {})  # they take most of the time
    parts = {"": [result], "points": result["points"], "layers": result["layers"]}
    for part, (first, *_) in parts.items():
        for key in first:
            damaged = copy.deepcopy(result)
            for one in damaged[part] if part else [damaged]:
                del one[key]
            folder = runs(good=result, bad=damaged)
            said = report(folder)
            named = f"left out: {folder / 'bad' / 'version_0' / 'result.json'} has no {key}" in said
            shown = list(json.loads((folder / "summary.json").read_text()))
            assert shown == (["good"] if named else ["good", "bad"]), (part, key)


def test_another_kind_of_value_is_left_out_of_report_and_page(runs, result, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("energytl.report.figures", lambda results: {})
    folder = runs(good=result, strange=result | {"layers": 5}, older=result | {"versions": None})
    assert cli.main(["report", str(folder)]) == 0
    out = capsys.readouterr().out
    assert f"left out: {folder}/strange/version_0/result.json is no result (TypeError: " in out
    assert f"left out: {folder}/older/version_0/result.json is no result (" in out
    said = results_page([folder], tmp_path, tmp_path / "page.md")
    assert f"{folder}: 1 cases" in said
    assert said.count("left out: ") == 2


def test_nothing_sound_is_one_line_that_names_the_files(runs, result, capsys):
    folder = runs(a="{}", b="[]")
    assert cli.main(["report", str(folder)]) == 2
    assert "b/version_0/result.json has no order" in capsys.readouterr().err


def test_what_a_result_says_is_no_html(runs, result):
    markup = "<img src=x onerror=alert(1)>"
    folder = runs(good=result | {"finished": markup, "seconds": markup, "seed": markup, "versions": {markup: markup}})
    report(folder)
    page = (folder / "report.html").read_text("utf-8")
    assert markup not in page
    assert "&lt;img" in page
