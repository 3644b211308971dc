"""The command line as a user types it, on a recipe that trains in seconds."""

import importlib
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml

import energytl
from energytl import callbacks, cli, convert, results
from energytl.devices.fit import respond
from energytl.devices.pulsed import SoftBounds
from energytl.models import mlp

SETTINGS = {
    "network": {"class_path": "energytl.models.mlp", "init_args": {"hidden": [16]}},
    "data": {"class_path": "energytl.data.Digits", "init_args": {"batch_size": 250}},
    "pretrain": {"epochs": 3},
    "train": {"epochs": 3},
    "hardware": {"rho": 0.5},
    "evaluation": {"reads": 3, "chips": 2, "images": 200},
    "cases": {
        "traditional": {"training_computation": "Noiseless", "train.epochs": 1},
        "A+B+C": {"objective.energy_weight": 0.2, "hardware.read": "BitSerialRead"},
    },
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(SETTINGS, sort_keys=False), "utf-8")
    return path


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    assert cli.main(["run", str(recipe), "--out", str(out)]) == 0
    return out / "tiny"


def plain(folder):
    """A result without what differs from run to run."""
    return {key: value for key, value in results.read_json(folder).items() if key not in ("seconds", "finished")}


def test_summary_holds_plain_numbers_for_every_case(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert list(summary) == ["traditional", "A+B+C"]
    for row in summary.values():
        assert set(row) == set(results.SUMMARY_KEYS)
        assert all(isinstance(value, float | int) for value in row.values())
        assert 0.3 < row["accuracy_q25"] <= row["accuracy_median"] <= row["accuracy_q75"] <= 1
        assert row["cells"] == 784 * 16 + 16 * 10
    assert [row["reads"] for row in summary.values()] == [2, 10]


def test_a_run_leaves_recipe_result_events_and_checkpoints(finished):
    version = finished / "A+B+C" / "version_0"
    assert {path.name for path in version.iterdir()} >= {"recipe.yaml", "result.json", "checkpoints", "hparams.yaml"}
    assert list(version.glob("events.out.tfevents.*"))
    assert len(json.loads((version / "result.json").read_text())["history"]) == 3


def test_the_energy_term_lowers_the_energy(finished):
    history = results.read_json(finished / "A+B+C" / "version_0" / "result.json")["history"]
    assert history[-1]["train/energy"] < history[0]["train/energy"]


def test_a_checkpoint_loads_safely_and_brings_back_rho(finished):
    version = finished / "A+B+C" / "version_0"
    content = torch.load(version / "checkpoints" / "last.ckpt", weights_only=True)
    state = content["state_dict"]
    analog = torch.nn.ModuleDict({"network": convert(mlp(hidden=(16,)))})
    analog.load_state_dict({**state}, strict=False)
    rho = [layer["rho"] for layer in results.read_json(version / "result.json")["layers"]]
    named = type(state)((name, tensor) for name, tensor in state.items() if name.startswith("network."))
    named._metadata = state._metadata
    analog.load_state_dict(named)
    assert [float(analog["network"][i].rho.detach()) for i in (1, 3)] == pytest.approx(rho, rel=1e-6)


def test_report_is_made_from_finished_runs_alone(finished, capsys):
    before = (finished / "summary.json").read_text()
    for made in (*finished.glob("*.png"), finished / "report.html", finished / "summary.json"):
        made.unlink()
    assert cli.main(["report", str(finished)]) == 0
    assert (finished / "summary.json").read_text() == before
    page = (finished / "report.html").read_text("utf-8")
    assert "A+B+C" in page
    assert page.count("data:image/png;base64,") == len(list(finished.glob("*.png"))) == 5
    assert "not modelled: input buffers" in capsys.readouterr().out


def test_tensorboard_has_curves_hyperparameters_and_figures(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags = {"scalars": set(), "images": set()}
    sessions = 0
    for path in (finished / "A+B+C" / "version_0").glob("events*"):
        events = EventAccumulator(str(path)).Reload()
        for kind in tags:
            tags[kind] |= set(events.Tags()[kind])
        sessions += "_hparams_/session_start_info" in events.summary_metadata
    assert {"train/loss", "val/accuracy", "train/energy", "rho/1", "result/accuracy_median"} <= tags["scalars"]
    assert {"energy_by_layer", "rho_by_layer"} <= tags["images"]
    assert sessions == 1


def test_nothing_finished_is_overwritten_and_pretraining_is_not_repeated(recipe, finished, monkeypatch):
    first = (finished / "traditional" / "version_0" / "result.json").read_bytes()
    stages = []
    fit = callbacks.Trainer.fit
    monkeypatch.setattr(callbacks.Trainer, "fit", lambda *a, **k: (stages.append(a), fit(*a, **k))[1])
    arguments = ["run", str(recipe), "--out", str(finished.parent), "--case", "traditional"]
    assert cli.main(arguments) == 0
    assert len(stages) == 1
    assert (finished / "traditional" / "version_0" / "result.json").read_bytes() == first
    again = plain(finished / "traditional" / "version_1" / "result.json")
    assert again == plain(finished / "traditional" / "version_0" / "result.json")
    assert cli.main([*arguments, "--resume"]) == 0
    assert len(stages) == 1
    assert not (finished / "traditional" / "version_2").exists()


@pytest.mark.parametrize("steps", [20, 70], ids=["while pre-training", "while training"])
def test_an_interrupted_run_resumes_to_the_same_result(recipe, finished, tmp_path, monkeypatch, capsys, steps):
    arguments = ["run", str(recipe), "--out", str(tmp_path), "--case", "A+B+C"]
    watched = callbacks.StopAtNaN.on_train_batch_end
    seen = []

    def interrupt(*values):
        seen.append(1)
        if len(seen) == steps:
            raise KeyboardInterrupt
        watched(*values)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.StopAtNaN, "on_train_batch_end", interrupt)
        assert cli.main(arguments) == 130
    assert "--resume" in capsys.readouterr().err
    assert not (tmp_path / "tiny" / "summary.json").exists()
    assert cli.main([*arguments, "--resume"]) == 0
    unbroken = plain(finished / "A+B+C" / "version_0" / "result.json")
    assert plain(tmp_path / "tiny" / "A+B+C" / "version_0" / "result.json") == unbroken


def test_a_checkpoint_that_is_damaged_or_of_something_else_is_named(recipe, tmp_path, capsys):
    arguments = ["run", str(recipe), "--out", str(tmp_path), "--case", "A+B+C"]
    assert cli.main(arguments) == 0
    version = tmp_path / "tiny" / "A+B+C" / "version_0"
    (version / "result.json").unlink()
    last = version / "checkpoints" / "last.ckpt"
    whole = torch.load(last, weights_only=True)
    other = {name: tensor for name, tensor in whole["state_dict"].items() if "weight" not in name}
    for content, says in (
        (None, "cannot be read: not a file of torch.save, or damaged"),
        ({"state_dict": {}}, "has no optimizer_states, but holds a dictionary of state_dict"),
        (whole | {"state_dict": other}, "is of another training"),
        (whole | {"loops": {"fit_loop": 3}}, "is of another training"),
    ):
        last.write_bytes(b"half a checkpoint") if content is None else torch.save(content, last)
        assert cli.main([*arguments, "--resume"]) == 2
        line = one_line(capsys)
        assert f"checkpoint {last} {says}" in line


def one_line(capsys):
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("energytl: ")
    return error


def test_a_loss_that_is_no_number_stops_the_run(recipe, tmp_path, capsys):
    optimizer = ["--pretrain.optimizer=torch.optim.SGD", "--pretrain.optimizer.lr=1.0e+12"]
    assert cli.main(["run", str(recipe), "--out", str(tmp_path), *optimizer]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("energytl: ")]
    assert re.search(r"the loss became (nan|inf) in epoch 1, step \d+: lower the learning rate", lines[-1])


def test_a_full_disk_is_said_and_leaves_whole_files(recipe, tmp_path, monkeypatch, capsys):
    def full(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results.torch, "save", full)
    assert cli.main(["run", str(recipe), "--out", str(tmp_path)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("energytl: ")]
    assert "No space left on device" in lines[-1]
    assert "--resume" in lines[-1]
    assert not list(tmp_path.rglob("*.ckpt"))
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--weights", "none.pt"], "weights none.pt not found"),
        (["--weights", __file__], "not a file of torch.save, or damaged"),
        (["--network", "energytl.models.resnet20"], "does not take images of shape (1, 28, 28)"),
        (["--network.classes", "5"], "gives (5,) numbers for an image"),
        (["--network", "torch.nn.Flatten"], "gives (784,) numbers"),
        (["--data", "energytl.data.MNIST", "--data.root", "nowhere"], "data.root nowhere holds no readable MNIST"),
        (["--case", "D"], "--case: no case 'D'; there are: traditional, A+B+C"),
        (["--hardware.rho", "-1"], "hardware.rho is -1.0"),
        (["--train.epochs", "0"], "epochs is 0; allowed: 1 to 1000000"),
        (["--seed", "-1"], "seed is -1; allowed: 0 to"),
        (["--trainer.accelerator", "tpu"], "trainer: "),
        (["--objective.hints=[layer9]", "--objective.hint_weight=1"], "layer9 is no module of the network; allowed: "),
    ],
)
def test_what_a_user_can_mend_is_said_before_anything_runs(recipe, tmp_path, capsys, arguments, says):
    assert cli.main(["run", str(recipe), "--out", str(tmp_path), *arguments]) == 2
    assert says in one_line(capsys)
    assert not list(tmp_path.iterdir())


def test_weights_of_another_network_are_named(recipe, tmp_path, capsys):
    torch.save(mlp(hidden=(8, 8)).state_dict(), tmp_path / "other.pt")
    assert cli.main(["check", str(recipe), "--weights", str(tmp_path / "other.pt")]) == 2
    assert "is of another network: it has an unknown 5." in one_line(capsys)


def test_layers_that_would_stay_digital_are_refused(recipe, tmp_path, capsys, monkeypatch):
    (tmp_path / "my_mixer.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.embed, self.head = nn.Linear(28, 32), nn.Linear(32, 10)\n"
        "        self.mix = nn.Conv1d(28, 28, 3, padding=1)\n"
        "    def forward(self, x):\n"
        "        x = self.embed(x.squeeze(1))\n"
        "        return self.head(self.mix(x).mean(1))\n",
        "utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    arguments = ["check", str(recipe), "--case", "traditional", "--network", "my_mixer.Net"]
    assert cli.main(arguments) == 2
    assert "mix.weight" in one_line(capsys)
    assert cli.main([*arguments, "--strict", "false"]) == 0
    assert "left digital: mix.weight" in capsys.readouterr().out


def test_weights_used_without_calling_their_layer_are_refused(recipe, tmp_path, capsys, monkeypatch):
    (tmp_path / "my_shortcut.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.b = nn.Linear(784, 16), nn.Linear(16, 10)\n"
        "    def forward(self, x):\n"
        "        return nn.functional.linear(self.a(x.flatten(1)), self.b.weight)\n",
        "utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert cli.main(["check", str(recipe), "--network", "my_shortcut.Net"]) == 2
    assert "b.weight (multiplied with inputs, but not by a Linear" in one_line(capsys)


def test_a_module_beside_the_recipe_is_found(recipe, tmp_path):
    (tmp_path / "beside.py").write_text("from energytl.models import mlp as my_net\n", "utf-8")
    own = tmp_path / "own.yaml"
    own.write_text(recipe.read_text("utf-8").replace("energytl.models.mlp", "beside.my_net"), "utf-8")
    assert cli.main(["check", str(own)]) == 0


def test_another_trainer_pretrains_anew(recipe, tmp_path):
    arguments = ["run", str(recipe), "--out", str(tmp_path), "--case", "traditional"]
    assert cli.main([*arguments, "--trainer.limit_train_batches=2"]) == 0
    assert cli.main(arguments) == 0
    assert len(list((tmp_path / "trained").glob("*/network.pt"))) == 2


def test_cases_that_the_recipe_no_longer_has_leave_its_report(recipe, tmp_path):
    changed = tmp_path / "tiny.yaml"
    changed.write_text(recipe.read_text("utf-8"), "utf-8")
    arguments = ["run", str(changed), "--out", str(tmp_path), "--evaluation", "null", "--pretrain", "null"]
    trains = yaml.safe_load(changed.read_text("utf-8")) | {"train": None, "cases": {"a": {}, "b": {}}}
    changed.write_text(yaml.safe_dump(trains), "utf-8")
    assert cli.main(arguments) == 0
    changed.write_text(yaml.safe_dump(trains | {"cases": {"a": {}, "c": {}}}), "utf-8")
    assert cli.main(arguments) == 0
    assert list(json.loads((tmp_path / "tiny" / "summary.json").read_text())) == ["a", "c"]


def test_an_untrained_network_has_no_accuracy_to_keep(recipe, tmp_path, capsys):
    arguments = ["run", str(recipe), "--out", str(tmp_path), "--pretrain", "null", "--evaluation.max_drop", "0.1"]
    assert cli.main(arguments) == 2
    assert "which is chance" in capsys.readouterr().err


def test_check_says_what_would_run(recipe, capsys):
    assert cli.main(["check", str(recipe)]) == 0
    out = capsys.readouterr().out
    assert "Digits, 4000 images to train, 1000 to test" in out
    assert "2 analog; left digital: none" in out
    assert "pre-train 3 epochs, train 1 epochs" in out


def test_check_of_missing_data_tells_and_fails(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where there is no folder data
    assert (
        cli.main(["check", str(recipe), "--data", "energytl.data.CIFAR10", "--network", "energytl.models.resnet20"])
        == 2
    )
    assert "holds no readable CIFAR10" in capsys.readouterr().out


def test_a_case_without_its_seed_stands_for_all_seeds(recipe, tmp_path, capsys):
    seeded = tmp_path / "seeded.yaml"
    seeded.write_text(recipe.read_text() + "\nseeds: [3, 4]\n")
    assert cli.main(["cost", str(seeded), "--json", "--case", "traditional"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["traditional, seed 3", "traditional, seed 4"]


def test_cost_prints_the_same_keys_and_layers(recipe, capsys):
    assert cli.main(["cost", str(recipe), "--json"]) == 0
    cost = json.loads(capsys.readouterr().out)["A+B+C"]
    keys = {"energy_paper", "energy_cell_j", "energy_total_j", "latency_s", "cells", "reads"}
    assert set(cost) == keys | {"layers"}
    assert cost["energy_paper"] == pytest.approx(sum(layer["energy_paper"] for layer in cost["layers"]))
    assert cli.main(["cost", str(recipe), "--case", "A+B+C"]) == 0
    assert "all layers" in capsys.readouterr().out


def test_help_and_resolved_settings(recipe, capsys):
    assert cli.main(["run", str(recipe), "--help"]) == 0
    said = capsys.readouterr().out
    assert "--hardware" in said and "BitSerialRead" not in said
    assert len(said.splitlines()) < 60
    assert cli.main(["run", str(recipe), "--print_config"]) == 0
    assert "# case A+B+C" in capsys.readouterr().out


def test_help_of_a_key_lists_what_there_is(capsys):
    assert cli.main(["run", "--hardware.read.help"]) == 0
    said = capsys.readouterr().out
    assert "energytl.BitSerialRead" in said and "energytl.SingleRead" in said
    assert cli.main(["check", "--train.help"]) == 0
    assert "epochs = 5" in capsys.readouterr().out
    assert cli.main(["run", "--hardware.read.help=RepeatedRead"]) == 0
    assert "times = 5" in capsys.readouterr().out
    assert cli.main(["run", "--network.help"]) == 0
    assert "energytl.models.lenet" in capsys.readouterr().out


def test_the_version(capsys):
    with pytest.raises(SystemExit) as raised:
        cli.main(["--version"])
    assert raised.value.code == 0
    assert capsys.readouterr().out == f"energytl {energytl.__version__}\n"


@pytest.mark.parametrize("arguments", [["run"], ["report", "nowhere"], ["run", "none.yaml"]])
def test_wrong_usage_is_one_line(arguments, capsys):
    assert cli.main(arguments) == 2
    one_line(capsys)


def test_a_pipe_that_nobody_reads_on_is_no_error(recipe):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "energytl.cli", "check", str(recipe)]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, timeout=240)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_two_processes_train_one_network(recipe, tmp_path):
    trainer = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp"]
    command = [sys.executable, "-m", "energytl.cli", "run", str(recipe), "--out", str(tmp_path), *trainer]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("not modelled: ") == 1
    assert {path.name for path in (tmp_path / "tiny").glob("*/version_*")} == {"version_0"}
    assert len(json.loads((tmp_path / "tiny" / "summary.json").read_text())) == 2


# device fit


@pytest.fixture(scope="module")
def pulses(tmp_path_factory):
    """A measurement of 20 cells, 12 pulses up and 12 down, in siemens, the last one stuck."""
    device = SoftBounds(dw_min=0.2, cycle_noise=0.1, write_noise=0.1)
    directions = torch.tensor([1.0, -1.0]).repeat_interleave(12).unsqueeze(1).repeat(1, 20)
    shown = respond(device, directions, torch.zeros(20), torch.Generator().manual_seed(0))
    shown[:, -1] = shown[:1, -1] + 0.01 * torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, -1.0]).repeat(4)
    lines = [
        f"c{cell},{pulse},{'up' if directions[pulse, cell] > 0 else 'down'},{30e-6 + 10e-6 * float(shown[pulse, cell])}"
        for pulse in range(24)
        for cell in range(20)
    ]
    path = tmp_path_factory.mktemp("pulses") / "array.csv"
    path.write_text("\n".join(["device,pulse,direction,conductance", *lines]), "utf-8")
    return path


def test_device_fit_prints_a_device_as_a_recipe_takes_it_and_draws_it(pulses, capsys):
    assert cli.main(["device", "fit", str(pulses)]) == 0
    out = capsys.readouterr().out
    node = yaml.safe_load(out)  # what is no device is a comment
    module, _, name = node["class_path"].rpartition(".")
    device = getattr(importlib.import_module(module), name)(**node["init_args"])
    assert device.dw_min == pytest.approx(0.2, rel=0.1)
    assert device.stuck == pytest.approx(0.05)
    assert "20 devices, 480 pulses; 1 of them do not move" in out
    assert re.search(r"dw_min: 0\.\d+ +# 0\.\d+ to 0\.\d+\n", out)
    assert "the fit converged after" in out
    call = re.search(r"# (SoftBoundsReference\(.*\))", out)
    assert eval(call[1], {"SoftBoundsReference": type(device)}) == device
    assert pulses.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_device_fit_draws_where_it_is_told(pulses, tmp_path, capsys):
    assert cli.main(["device", "fit", str(pulses), "--out", str(tmp_path / "other.png")]) == 0
    assert (tmp_path / "other.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main(["device", "fit", str(pulses), "--out", str(tmp_path / "nowhere" / "other.png")]) == 2
    assert "there is no folder" in one_line(capsys)


def test_a_place_that_takes_no_figure_is_refused_before_the_fit(pulses, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("energytl.device_fit.fit", None)
    locked = tmp_path / "figure.png"
    locked.mkdir()
    for place, says in (
        (tmp_path, f"--out {tmp_path} is a folder; give a file in it, e.g. {tmp_path / 'array.png'}"),
        (locked, "is a folder"),
        (tmp_path / "x.txt", "ends with '.txt'; allowed: .png, .pdf, .svg"),
        ("/dev/full", "ends with ''; allowed"),
        (pulses, "ends with '.csv'; allowed"),
    ):
        assert cli.main(["device", "fit", str(pulses), "--out", str(place)]) == 2
        assert says in one_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "No such file or directory"),
        ("", "line 1: no column 'device'"),
        ("device,pulse,direction,conductance\n", "holds no pulses"),
        ("device,pulse,direction,conductance\na,1,left,1.0\n", "direction is 'left'; allowed: up, down (or +1, -1;"),
        ("device,pulse,direction,conductance\na,1,up,nan\n", "conductance is 'nan'; allowed: a finite number"),
        ("device,pulse,direction,conductance\na,1,up,1.0\n", "device a has 1 pulses; a fit needs 10 or more of each"),
    ],
)
def test_data_that_cannot_be_fitted_are_one_line(tmp_path, capsys, text, says):
    path = tmp_path / "data.csv"
    if text is not None:
        path.write_text(text, "utf-8")
    assert cli.main(["device", "fit", str(path)]) == 2
    assert says in one_line(capsys)
    assert not path.with_suffix(".png").exists()


def test_device_wants_an_action_and_no_unknown_words(pulses, capsys):
    for arguments in (["device"], ["device", "fit"], ["device", "fit", str(pulses), "--rho=1"]):
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        assert stopped.value.code == 2


def test_conductances_are_written_with_what_lies_where(tmp_path, capsys):
    recipe, out = tmp_path / "r.yaml", tmp_path / "cells.npz"
    recipe.write_text(
        "network: energytl.models.lenet\ndata: energytl.data.Digits\n"
        "hardware: {mapping: DifferentialPair, programming: Wan2022, arrays: {rows: 64}}\n"
    )
    assert cli.main(["export", str(recipe), f"--out={out}"]) == 0
    found = np.load(out)
    layout = json.loads(str(found["layout"]))
    (layers,) = layout["cases"].values()
    first = layers[next(iter(layers))]
    assert layout["unit"] == "S" and first["significances"] == [1.0, -1.0]
    siemens = found[first["arrays"][0]]
    assert siemens.ndim == 4 and siemens.shape[-1] == 2
    assert 0 <= siemens.min() < 8e-6 < siemens.max() < 90e-6  # empty cells miss 8 µS, too
    for words, says in (
        (["export", str(recipe), f"--out={out}"], "exists"),
        (["export", str(recipe), "--out=x"], ".npz"),
    ):
        assert cli.main(words) == 2
        assert says in capsys.readouterr().err
