"""Weights in the files of other tools: loaded, or refused by a line that says what the file holds; never executed."""

import argparse
import functools
import os
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from energytl.kept_trainings import take_over
from energytl.quiet import EnergytlWarning
from energytl.recipe import RecipeError
from energytl.results import read_json
from energytl.training import load_tensors, load_weights


def made() -> nn.Sequential:
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(1, 2, 3), norm=nn.BatchNorm2d(2), fc=nn.Linear(8, 3)))


SOURCE = made()
STATE = SOURCE.state_dict()


class Options(dict):
    """As Lightning's hyperparameters."""


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.ModuleList([SOURCE])


class Payload:
    def __init__(self, function, argument):
        self.reduced = function, (argument,)

    def __reduce__(self):
        return self.reduced


def prefixed(prefix: str) -> dict:
    return {prefix + name: tensor for name, tensor in STATE.items()}


SOUND = {
    "bare": STATE,
    "Lightning": {"state_dict": prefixed("model."), "hyper_parameters": Options(lr=0.1), "epoch": 3},
    "Lightning with DDP inside": {"state_dict": prefixed("net.module.")},
    "timm": {"state_dict": STATE, "args": argparse.Namespace(lr=0.1), "metric": np.float64(81.9), "arch": "x"},
    "Hugging Face": prefixed("backbone."),
    "torchvision's references": {"model": prefixed("module."), "optimizer": {"state": {0: {"m": torch.zeros(2)}}}},
    "torch.compile": prefixed("_orig_mod."),
    "torch.compile within DDP": {"model_state_dict": prefixed("module._orig_mod.")},
    "FSDP": {name.replace(".", "._fsdp_wrapped_module."): tensor for name, tensor in STATE.items()},
    "a lambda's partial": {"net": STATE, "schedule": functools.partial(max, 1)},
    "numpy's state and a defaultdict": {"ema": STATE, "rng": np.random.get_state(), "seen": defaultdict(list)},
    "an array": {"network": {"weights": STATE}, "history": np.arange(5.0), "kind": np.dtype("f4")},
    "a whole module": SOURCE,
    "a whole module of a user's class": {"model": Wrapped()},
    "half precision": {name: tensor.half() for name, tensor in STATE.items()},
}


@pytest.mark.parametrize("name", SOUND)
@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "old format"])
def test_sound_files_load(tmp_path, name, new_format):
    if "module" in name and not new_format:
        pytest.skip("torch's old format has no modules that can be read without their classes")
    torch.save(SOUND[name], tmp_path / "w.pth", _use_new_zipfile_serialization=new_format)
    loaded = load_weights(made(), str(tmp_path / "w.pth")).state_dict()
    assert list(loaded) == list(STATE)
    for own, wanted in zip(loaded.values(), STATE.values(), strict=True):
        assert torch.equal(own, wanted.half().float() if name == "half precision" else wanted)


def test_files_of_safetensors_load(tmp_path):
    save_file(prefixed("model."), tmp_path / "model.safetensors")
    loaded = load_weights(made(), str(tmp_path / "model.safetensors"))
    assert torch.equal(loaded.fc.weight, SOURCE.fc.weight)


def test_what_of_several_is_loaded_is_said(tmp_path):
    averaged = AveragedModel(SOURCE)
    torch.save({"state_dict": STATE, "state_dict_ema": averaged.module.state_dict()}, tmp_path / "w.pth")
    with pytest.warns(EnergytlWarning, match=r"what is loaded is state_dict; state_dict_ema is not"):
        load_weights(made(), str(tmp_path / "w.pth"))
    torch.save(averaged.state_dict(), tmp_path / "w.pth")
    with pytest.warns(EnergytlWarning, match="n_averaged is not"):
        load_weights(made(), str(tmp_path / "w.pth"))


OTHERS = {
    "a file of something else": ({"epoch": 3, "lr": 0.1}, "holds no state dict, but a dictionary of epoch, lr"),
    "a number": (3, "holds no state dict, but an object of type int"),
    "another network": (
        {"encoder.conv1.weight": torch.zeros(3)},
        "of another network: it has no conv.weight and 7 more (it holds a dictionary of encoder.conv1.weight)",
    ),
    "a longer network": ({**STATE, "fc2.weight": torch.zeros(3)}, "it has an unknown fc2.weight"),
    "other sizes": ({"model": {**STATE, "fc.weight": torch.zeros(5, 8)}}, "another shape of fc.weight"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_refused_says_what_the_file_holds(tmp_path, name):
    content, says = OTHERS[name]
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(RecipeError) as refused:
        load_weights(made(), str(tmp_path / "w.pth"))
    assert str(refused.value).startswith(f"weights {tmp_path / 'w.pth'} ")
    assert says in str(refused.value)
    assert "damaged" not in str(refused.value)


FILES = {
    "a web page": (b"<!DOCTYPE html><html>404</html>", "it is a web page"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    "empty": (b"", "it is empty"),
    "text": (b"weights", "not a file of torch.save, or damaged"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_none_of_torch_say_what_they_are(tmp_path, name):
    content, says = FILES[name]
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(RecipeError, match=f"weights .*w.pth cannot be read: .*{says}") as refused:
        load_weights(made(), str(tmp_path / "w.pth"))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "old format"])
@pytest.mark.parametrize("function", [exec, os.system, Path.touch], ids=lambda function: function.__name__)
def test_a_payload_never_runs(tmp_path, function, new_format):
    ran = tmp_path / "ran"
    argument = {exec: f"open({str(ran)!r}, 'w').close()", os.system: f"touch {ran}", Path.touch: ran}[function]
    content = {"state_dict": STATE, "x": Payload(function, argument)}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=new_format)
    try:
        load_weights(made(), str(tmp_path / "w.pth"))
    except RecipeError as refused:
        assert "are not loaded; save network.state_dict() alone" in str(refused) or "blocked" in str(refused)
    assert not ran.exists()


def test_kept_files_of_other_content_are_named(tmp_path):
    path = tmp_path / "network.pt"
    for content in ([1, 2], {"fc.weight": torch.zeros(2)}, {"a": 3}):
        torch.save(content, path)
        with pytest.raises(RecipeError, match=f"kept training {path} is of a different network"):
            take_over(made(), load_tensors(path, "kept training"), path)
        with pytest.raises(RecipeError, match=f"checkpoint {path} has no epoch, but holds"):
            load_tensors(path, "checkpoint", ("epoch",))
    torch.save(STATE, path)
    take_over(made(), load_tensors(path, "kept training"), path)


def test_json_of_other_content_is_named(tmp_path):
    path = tmp_path / "training.json"
    for text, says in (("[1]", "has no history"), ('{"energy_unit": 1}', "has no history"), ("{", "is not JSON")):
        path.write_text(text)
        with pytest.raises(ValueError, match=f"{path} {says}"):
            read_json(path, ("history",))
