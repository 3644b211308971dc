"""What the command line writes where: encodings, signals, full disks, bars, warnings."""

import errno
import io
import os
import re
import resource
import signal
import subprocess
import sys
import warnings
from urllib.error import URLError

import pytest
import torch
import yaml
from torch._dynamo.exc import TorchDynamoException

from energytl import cli
from energytl.analog.fused import fused
from energytl.progress import Bar
from energytl.quiet import EnergytlWarning, quiet_libraries
from energytl.results import write_json, write_tensors

SETTINGS = {
    "network": {"class_path": "energytl.models.mlp", "init_args": {"hidden": [4]}},
    "data": {"class_path": "energytl.data.Digits", "init_args": {"batch_size": 1000}},
    "train": {"epochs": 1},
    "evaluation": {"reads": 2, "images": 50},
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(SETTINGS), "utf-8")
    return path


# encodings


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1"])
def test_output_that_is_not_utf8_is_written_with_replacements(recipe, monkeypatch, encoding):
    output = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", output)
    assert cli.main(["cost", str(recipe)]) == 0
    output.flush()
    text = output.buffer.getvalue().decode(encoding)
    assert "all layers" in text
    assert "? (" in text  # ρ in µS


def test_names_that_are_not_utf8_do_not_spoil_a_report(synthetic, tmp_path, monkeypatch, capsys):
    version = tmp_path / os.fsdecode(b"tin\xff") / "a" / "version_0"
    version.mkdir(parents=True)
    write_json(version / "result.json", synthetic([(0.01, 3.0, True)]))
    output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", output)
    assert cli.main(["report", str(version.parents[1])]) == 0
    assert (version.parents[1] / "report.html").read_bytes().count(b"tin?") == 2


# files


def test_a_place_that_cannot_take_the_report_is_found_before_anything_trains(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "run_cases", failing(AssertionError("trained")))
    (tmp_path / "tiny" / "summary.json").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    places = {tmp_path: "tiny/summary.json is a folder", tmp_path / "file": "choose another place with --out"}
    for place, says in places.items():
        assert cli.main(["run", str(recipe), "--out", str(place)]) == 2
        assert says in capsys.readouterr().err
    monkeypatch.setattr(cli.os, "access", lambda *_: False)
    assert cli.main(["run", str(recipe), "--out", str(tmp_path / "other")]) == 2
    assert re.search("Permission denied: '.*other/tiny': choose another place", capsys.readouterr().err)
    trained = recipe.with_name("trained.yaml")
    trained.write_text(recipe.read_text())
    assert cli.main(["run", str(trained), "--out", str(tmp_path)]) == 2
    assert "trained.yaml: a folder called trained lies beside those of recipes" in capsys.readouterr().err


def failing(error):
    def fail(*_, **__):
        raise error

    return fail


FILE_ERRORS = {
    "full": (
        lambda out: OSError(errno.ENOSPC, "No space left", str(out / "x.pt")),
        ["make room", "--resume", "is kept"],
    ),
    "quota": (lambda out: OSError(errno.EDQUOT, "Disk quota exceeded", "/elsewhere"), ["make room", "--out"]),
    "read-only": (lambda out: OSError(errno.EROFS, "Read-only", str(out / "x")), ["choose another place with --out"]),
    "a file in the place of a folder": (lambda out: FileExistsError(errno.EEXIST, "File exists", str(out)), ["--out"]),
}
OTHER_ERRORS = {
    "an unreadable input": lambda out: PermissionError(errno.EACCES, "Permission denied", "/data/cat.png"),
    "no connection": lambda out: URLError("no route to host"),
    "no such file": lambda out: FileNotFoundError(errno.ENOENT, "No such file", str(out / "x")),
    "an image": lambda out: OSError("image file is truncated"),
}


@pytest.mark.parametrize("name", [*FILE_ERRORS, *OTHER_ERRORS])
def test_advice_fits_the_kind_of_error(recipe, tmp_path, monkeypatch, capsys, name):
    make, says = FILE_ERRORS.get(name, (OTHER_ERRORS.get(name), []))
    error = make(tmp_path / "out")
    monkeypatch.setattr(cli, "prepare", lambda *_, **__: None)
    monkeypatch.setattr(cli, "run_cases", failing(error))
    assert cli.main(["run", str(recipe), "--out", str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("energytl: ")
    assert all(part in line for part in [*says, *([error.filename] if error.filename else [])])
    assert ("--out" in line) == bool(says)
    assert ("make room" in line) == (error.errno in (errno.ENOSPC, errno.EDQUOT))


def test_a_report_on_a_full_disk_has_advice_without_resume(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "report", failing(OSError(errno.ENOSPC, "No space left on device")))
    assert cli.main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err.strip().endswith(": make room, then repeat the command")


@pytest.mark.parametrize("name", ["x.json", "x.pt"])
def test_a_write_that_fails_names_its_file_and_leaves_nothing(tmp_path, name):
    write = write_json if name == "x.json" else write_tensors
    content = list(range(50_000)) if name == "x.json" else torch.zeros(200_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as failed:
            write(tmp_path / name, content)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (failed.value.errno, failed.value.filename) == (errno.EFBIG, str(tmp_path / name))
    assert not list(tmp_path.iterdir())


# signals


def test_a_terminated_run_says_how_to_go_on(recipe, tmp_path, monkeypatch, capfd):
    killed = []
    monkeypatch.setattr(cli.os, "kill", lambda process, number: killed.append((process, number)))
    monkeypatch.setattr(cli, "prepare", lambda *_, **__: None)
    monkeypatch.setattr(cli, "run_cases", lambda *_: signal.raise_signal(signal.SIGTERM))
    monkeypatch.setattr(cli, "report", lambda *_: "")
    before = signal.getsignal(signal.SIGTERM)
    assert cli.main(["run", str(recipe), "--out", str(tmp_path)]) == 0  # as nothing was killed here
    assert killed == [(os.getpid(), signal.SIGTERM)]
    assert "energytl: terminated; to go on, repeat the command with --resume" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_interrupt_while_modules_are_imported_is_one_line(tmp_path):
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt\n")
    folders = os.pathsep.join([str(tmp_path), *sys.path])

    def started(*words):
        command = [sys.executable, *words]
        return subprocess.run(command, env={"PYTHONPATH": folders}, capture_output=True, text=True, check=False)

    command = started("-m", "energytl.cli", "check", "r.yaml")
    assert (command.returncode, command.stderr.strip()) == (130, "energytl: interrupted")
    assert "Traceback" in started("-c", "import energytl").stderr


# bars


def test_no_bar_off_a_terminal_and_bars_on_standard_error(recipe, tmp_path, monkeypatch, capsys):
    arguments = ["run", str(recipe), "--out", str(tmp_path)]
    monkeypatch.setattr(cli, "report", lambda *_: "")
    assert cli.main(arguments) == 0
    said = capsys.readouterr()
    assert "it/s" not in said.out + said.err
    assert "%|" not in said.out + said.err
    monkeypatch.setattr("energytl.training.watched", lambda: True)
    monkeypatch.setattr("energytl.progress.watched", lambda: True)
    assert cli.main(arguments) == 0
    said = capsys.readouterr()
    assert "it/s" not in said.out
    assert "Epoch 0" in said.err
    assert "tiny: evaluating" in said.err


def test_a_bar_off_a_terminal_still_counts(capsys):
    with Bar(total=2, desc="x") as bar:
        bar.update()
        bar.set_postfix(failed=0)
    assert list(Bar([1, 2], "y")) == [1, 2]
    assert capsys.readouterr() == ("", "")


# warnings


def test_own_warnings_are_one_line_and_those_of_libraries_none(capsys):
    with warnings.catch_warnings():
        quiet_libraries()
        for _ in range(2):
            warnings.warn("reads run slower", EnergytlWarning, stacklevel=1)
            warnings.warn("of a library", UserWarning, stacklevel=1)
            warnings.warn("of a library", DeprecationWarning, stacklevel=1)
    assert capsys.readouterr().err == "energytl: warning: reads run slower\n"


def test_kernels_that_cannot_be_compiled_are_warned_of_once(monkeypatch, capsys):
    def uncompiled(function, **_):
        def call(*_):
            raise TorchDynamoException("No working C++ compiler found\n  in torch")

        return call

    monkeypatch.setattr(torch, "compile", uncompiled)
    with warnings.catch_warnings():
        quiet_libraries()
        for function in (abs, int):
            assert fused.__wrapped__(function)(-1) == function(-1)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "energytl: warning: torch.compile cannot fuse kernels here, so reads run slower: No working C++ compiler found"
    ]
