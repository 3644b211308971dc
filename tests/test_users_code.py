"""Users' modules that raise: one line that names their file and line, whatever they raise and wherever."""

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from energytl import cli
from energytl.origin import code_line, described, users_line, with_line

HEAD = """
from collections.abc import Iterable
from typing import Any
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset
from energytl.data import Digits, ImageData


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(784, 10)

    def forward(self, x):
        return self.a(x.flatten(1))
"""


def network(body: str) -> str:
    return f"class N(Net):\n    def forward(self, x):\n        {body}\n"


def data(body: str) -> str:
    return f"class D(Digits):\n    def load(self):\n        {body}\n"


def optimizer(body: str) -> str:
    head = "def __init__(self, params: Iterable[Any], lr: float = 0.1):\n        super().__init__(params, lr)"
    return f"class O(torch.optim.SGD):\n    {head}\n{body}\n"


SET = """class S(Dataset):
    def __len__(self):
        return 100
    def __getitem__(self, i):
        return [][i]
"""

PARTS = {
    "raises KeyError": (network("return {}['fc']"), "network=N", "KeyError: 'fc'"),
    "gives a tuple": (network("return self.a(x.flatten(1)), x"), "network=N", "gives a tuple"),
    "has no attribute": (network("return self.head(x)"), "network=N", "AttributeError: 'N' object has no"),
    "views channels last": (
        network("return self.a(x.mT.view(len(x), -1))"),
        "network=N",
        "view size is not compatible",
    ),
    "syntax": ("def N(:\n    pass\n", "network=N", "SyntaxError"),
    "import": ("import nothing_there\n", "network=N", "nothing_there"),
    "constructor": ("def N() -> nn.Module:\n    return [][3]\n", "network=N", "IndexError: list index"),
    "own exception": ("class Own(Exception):\n    pass\n" + network("raise Own"), "network=N", ": Own"),
    "only in training": (
        network("return self.a(x.flatten(1)) if not self.training else {}[1]"),
        "network=N",
        "KeyError: 1",
    ),
    "data that does not load": (data("return {}['images']"), "data=D", "KeyError: 'images'"),
    "data that loads nonsense": (data("return int('many'), 1"), "data=D", "invalid literal for int()"),
    "data set": (SET + data("return S(), S()"), "data=D", "IndexError: list index"),
    "optimizer": (optimizer("        self.x = {}['momentum']"), "train.optimizer=O", "KeyError: 'momentum'"),
    "optimizer's step": (
        optimizer("    def step(self, closure=None):\n        return 1 / 0"),
        "train.optimizer=O",
        "ZeroDivisionError: division by zero",
    ),
}


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """check(module text, words): `energytl check` of a recipe with parts of a module of that text; code, its line."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(
        "network: {class_path: energytl.models.mlp, init_args: {hidden: [8]}}\ndata: energytl.data.Digits\n"
        "train: {epochs: 1}\nevaluation: {reads: 2}\n"
    )

    def run(module: str, text: str, *words: str):
        (tmp_path / f"{module}.py").write_text(text)
        code = cli.main(["check", "r.yaml", *words])
        said = capsys.readouterr()
        return code, (said.out + said.err).strip().splitlines()

    return run


@pytest.mark.parametrize("name", PARTS)
def test_what_users_code_raises_is_one_line_with_its_place(check, name):
    text, word, says = PARTS[name]
    module = "own_" + "".join(letter for letter in name if letter.isalpha())
    key, part = word.split("=")
    code, lines = check(module, HEAD + text, f"--{key}={module}.{part}")
    assert code == 2
    said = [line for line in lines if says in line]
    assert len(said) == 1
    assert f"{module}.py, line " in said[0]
    assert "Traceback" not in "\n".join(lines)


def test_debug_shows_the_traceback_above_the_line(check):
    text, _, says = PARTS["raises KeyError"]
    code, lines = check("own_debug", HEAD + text, "--network=own_debug.N", "--debug")
    assert code == 2
    assert says in lines[-1]
    assert "return {}['fc']" in "\n".join(lines[:-1])


class Broken(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, place):
        raise KeyError("label")


def test_what_a_data_worker_raises_is_said_as_if_it_were_here():
    with pytest.raises(KeyError) as caught:
        next(iter(DataLoader(Broken(), num_workers=1)))
    assert described(caught.value) == "KeyError: 'label'"
    line = Broken.__getitem__.__code__.co_firstlineno + 1
    assert with_line(caught.value).endswith(f"test_users_code.py, line {line})")


def test_a_callers_line_is_not_to_blame():
    with pytest.raises(ValueError) as caught:
        cli.read(cli.Path("nowhere.yaml"), [])
    assert users_line(caught.value) is None
    assert code_line(torch.optim.SGD) == "SGD"
