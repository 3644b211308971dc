"""Cases of a recipe in several processes."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from energytl.cli import main
from energytl.results import latest_results, new_version, read_json, write_json

SETTINGS = {
    "network": {"class_path": "energytl.models.mlp", "init_args": {"hidden": [8]}},
    "data": {"class_path": "energytl.data.Digits", "init_args": {"batch_size": 500}},
    "train": {"epochs": 1},
    "evaluation": {"reads": 2, "images": 200, "cost_batches": 1},
    "trainer": {"enable_progress_bar": False, "limit_val_batches": 1},
}


CASES = {"few": {"hardware.rho": 2.0}, "many": {"hardware.rho": 50.0}, "hopeless": {"evaluation.max_drop": 0.01}}


def run(folder, name, workers, *options):
    recipe = folder / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(SETTINGS | {"cases": CASES}, sort_keys=False), "utf-8")
    code = main(["run", str(recipe), "--workers", str(workers), "--out", str(folder / name), *options])
    return code, folder / name / "tiny"


@pytest.mark.usefixtures("one_thread")
def test_workers_find_what_one_process_finds_and_say_what_fails(tmp_path, capsys):
    alone, plain = run(tmp_path, "alone", 1, "--case", "few", "--case", "many")
    capsys.readouterr()
    together, folder = run(tmp_path, "together", 2)
    assert (alone, together) == (0, 2)
    expected, found = latest_results(plain), latest_results(folder)
    assert list(found) == ["few", "many"]
    for case, result in expected.items():
        for key in ("accuracies", "accuracy_quantised", "energy_paper"):
            assert found[case][key] == pytest.approx(result[key], rel=1e-3, abs=0.03), (case, key)  # other threads
    assert (folder / "few.log").is_file()
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("energytl: case hopeless: evaluation.max_drop asks for")


@pytest.mark.parametrize("workers", ["0", "-1"])
def test_workers_are_one_or_more(tmp_path, capsys, workers):
    code, _ = run(tmp_path, "out", workers)
    assert code == 2
    assert f"--workers is {workers}; allowed: 1 or more" in capsys.readouterr().err


def test_a_worker_that_is_killed_is_told_in_one_line(tmp_path):
    (tmp_path / "deadly.py").write_text(
        "import os, signal\nfrom torch import nn\nfrom energytl.models import mlp\n\n\n"
        "def network() -> nn.Module:\n"
        "    import multiprocessing\n\n"
        "    if multiprocessing.parent_process() is not None:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return mlp(hidden=[8])\n",
        "utf-8",
    )
    recipe = tmp_path / "tiny.yaml"
    settings = SETTINGS | {"network": "deadly.network", "cases": {"a": {}, "b": {}}}
    recipe.write_text(yaml.safe_dump(settings, sort_keys=False), "utf-8")
    command = [sys.executable, "-m", "energytl.cli", "run", str(recipe), "--workers", "2", "--out", str(tmp_path)]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == 2
    assert "Traceback" not in killed.stderr
    said = "energytl: a worker was killed, as for want of memory; to go on, repeat the command with --resume"
    assert killed.stderr.strip().splitlines()[-1] == said


def test_two_that_write_at_once_get_a_file_and_a_version_each(tmp_path):
    """As two reports or two runs at once; every writer succeeds, and the file is one of theirs."""
    contents = [{"writer": number, "padding": "x" * 20_000} for number in range(4)]

    def write(content: dict) -> list[str]:
        for _ in range(20):
            write_json(tmp_path / "summary.json", content)
        return [new_version(tmp_path / "case").name for _ in range(20)]

    with ThreadPoolExecutor(4) as threads:
        made = [name for names in threads.map(write, contents) for name in names]
    assert read_json(tmp_path / "summary.json") in contents
    assert sorted(made) == sorted(f"version_{number}" for number in range(80))
    assert {path.name for path in tmp_path.iterdir()} == {"summary.json", "case"}


def test_workers_end_with_the_command_that_is_killed(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, time\nfrom energytl.workers import pool_of\n"
        "if __name__ == '__main__':\n"
        "    pool = pool_of(1)\n"
        "    pool.submit(print, 'begun', flush=True).result()\n"
        "    pool.submit(time.sleep, 600)\n"
        "    os.kill(os.getpid(), 9)\n",
        "utf-8",
    )
    killed = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=1200, check=False)
    assert (killed.returncode, killed.stdout) == (-9, "begun\n")  # read to its end: the worker holds it no longer
