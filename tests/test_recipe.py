"""Recipes: cases, overrides, and one clear line for what is wrong."""

import pytest
import torch
import yaml
from torch import nn

from energytl import BitSerialRead, Converter, MultilevelPair, Noiseless, RepeatedRead, analog_layers
from energytl.recipe import Case, RecipeError, parse, read
from energytl.run import prepare
from energytl.stages import analog_network
from energytl.study.settings import read_study

BASE = {"network": "energytl.models.lenet", "data": "energytl.data.Digits"}


@pytest.fixture
def written(tmp_path):
    def write(content, name="recipe.yaml"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False), "utf-8")
        return path

    return write


def test_a_recipe_without_cases_is_one_case_named_after_its_file(written):
    (case,) = read(written(BASE, "mine.yaml"), [])
    assert case.name == "mine"
    assert case.build().hardware.rho == 10.0


def test_cases_keep_their_order_and_differ_in_what_they_name(written):
    cases = {"z": {"hardware.rho": 2}, "a": {"hardware": {"read": "BitSerialRead"}}, "m": None}
    built = {case.name: case.build() for case in read(written(BASE | {"cases": cases}), [])}
    assert list(built) == ["z", "a", "m"]
    assert built["z"].hardware.rho == 2
    assert built["a"].hardware.read == BitSerialRead()
    assert built["a"].hardware.rho == built["m"].hardware.rho == 10


def test_a_case_with_another_class_keeps_nothing_of_the_old_ones_arguments(written):
    read_scheme = {"class_path": "energytl.RepeatedRead", "init_args": {"times": 7}}
    cases = {"a": {"hardware.read": {"class_path": "energytl.BitSerialRead"}}, "b": {}}
    built = [case.build() for case in read(written(BASE | {"hardware": {"read": read_scheme}, "cases": cases}), [])]
    assert [recipe.hardware.read for recipe in built] == [BitSerialRead(), RepeatedRead(7)]


def test_overrides_win_over_cases(written):
    path = written(BASE | {"cases": {"a": {"hardware.rho": 2}}})
    (case,) = read(path, ["--hardware.rho=3", "--trainer.accelerator=cpu"])
    assert case.build().hardware.rho == 3
    assert case.trainer_settings()["accelerator"] == "cpu"


def test_a_number_or_a_list_of_drops_and_prices(written):
    cases = {"one": {"evaluation.max_drop": 0.01, "objective.energy_weight": 0.1}}
    cases |= {"more": {"evaluation": {"max_drop": [0.01, 0.02], "budgets": [5]}, "objective.energy_weight": [0.1, 1]}}
    one, more = (case.build() for case in read(written(BASE | {"cases": cases}), []))
    assert (one.evaluation.max_drop, one.evaluation.drops, one.objective.energy_weight) == (0.01, (0.01,), 0.1)
    assert more.evaluation.drops == (0.01, 0.02)
    assert more.evaluation.budgets == (5,)
    assert [stage.energy_weight for stage in more.objective.stages()] == [0.1, 1]


def test_the_resolved_recipe_is_a_recipe_that_says_the_same(written):
    (case,) = read(written(BASE | {"train": {"epochs": 3}, "objective": {"energy_weight": 1.0e-3}}), [])
    (again,) = read(written(case.as_yaml(), "again.yaml"), [])
    assert again.resolved() == case.resolved()


def test_a_users_own_network_and_device(written, tmp_path, monkeypatch):
    (tmp_path / "my_lab.py").write_text(
        "import torch.nn as nn\n"
        "from energytl import Fluctuation\n"
        "def my_network(width: int = 8) -> nn.Module:\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))\n"
        "def my_device(intensity: float = 1.0) -> Fluctuation:\n"
        "    return Fluctuation(intensity=intensity, floor=0.01)\n",
        "utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    network = {"class_path": "my_lab.my_network", "init_args": {"width": 4}}
    content = BASE | {"network": network, "hardware": {"fluctuation": {"class_path": "my_lab.my_device"}}}
    (case,) = read(written(content), [])
    recipe = case.build()
    assert isinstance(recipe.network, nn.Sequential)
    assert recipe.network[1].out_features == 4
    assert recipe.hardware.fluctuation.floor == 0.01


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hardwar": {"rho": 1}}, "unknown key hardwar.rho; did you mean hardware.rho"),
        ({"hardware": {"roh": 1}}, "roh"),
        ({"hardware": {"rho": "high"}}, "hardware.rho: expected float"),
        ({"hardware": {"cell": {"read_s": "10ns"}}}, "hardware.cell.read_s: expected float"),
        ({"train": {"epochs": "two"}}, "train.epochs: expected int"),
        ({"hardware": {"read": "Sideways"}}, "hardware.read"),
        ({"network": "energytl.models.nothing"}, "network"),
        ({"trainer": {"max_epochs": 3}}, "max_epochs"),
        ({"cases": {"a/b": {}}}, "case name 'a/b'"),
        ({"cases": ["a"]}, "cases must map names"),
        (
            {"train": {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lrr": 1}}}},
            "train.optimizer: unknown key lrr",
        ),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(written, change, says):
    with pytest.raises(RecipeError) as raised:
        read(written(BASE | change), [])
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "recipe.yaml" in str(raised.value)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("--hardware.rho=-1", "hardware.rho is -1.0; allowed: above 0"),
        ("--hardware.inputs.bits=0", "inputs.bits is 0; allowed: 1 to 16"),
        ("--hardware.weights.bits=1", "weights.bits is 1; allowed: 2 to 16"),
        ("--hardware.fluctuation.correlation=2", "fluctuation.correlation is 2.0; allowed: 0 to 1"),
        ("--objective.energy_weight=-1", "objective.energy_weight is -1.0"),
        ("--evaluation.reads=0", "evaluation.reads is 0; allowed: 1 to 1000000"),
        ("--evaluation.max_drop=1.5", "evaluation.max_drop is 1.5"),
        ("--evaluation.max_drop=[0.01,1.5]", "evaluation.max_drop is 1.5; allowed: 0 up to 1"),
        ("--evaluation.max_drop=[-0.1]", "evaluation.max_drop is -0.1"),
        ("--evaluation.budgets=[100,0]", "evaluation.budgets is 0.0; allowed: above 0"),
        ("--evaluation.budgets=[-1]", "evaluation.budgets is -1.0; allowed: above 0"),
        ("--evaluation.held_out=0", "evaluation.held_out is 0; allowed: 1 to 1000000"),
        ("--objective.energy_weight=[]", "objective.energy_weight is an empty list"),
        ("--objective.energy_weight=[0.1,-1]", "objective.energy_weight is -1.0; allowed: 0 or more"),
        ("--objective.activity=-1", "objective.activity is -1; allowed: 0 to 1000000"),
        ("--objective.distillation=1.5", "objective.distillation is 1.5; allowed: 0 to 1"),
        ("--objective.temperature=0", "objective.temperature is 0.0; allowed: above 0"),
        ("--objective.hint_weight=-1", "objective.hint_weight is -1.0; allowed: 0 or more"),
        ("--objective.hint_weight=1", "objective.hint_weight is nothing without objective.hints; set both or none"),
        ("--objective.hints=[conv1]", "objective.hints is nothing without objective.hint_weight"),
        ("--hardware.arrays.rows=0", "arrays.rows is 0"),
        ("--calibration_batches=0", "calibration_batches is 0"),
        ("--data.batch_size=0", "data.batch_size is 0"),
        ("--train.epochs=0", "epochs is 0; allowed: 1 to 1000000"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(written, override, says):
    with pytest.raises(RecipeError) as raised:
        for case in read(written(BASE), [override]):
            case.build()
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", ["network: [1", "just words", "\x00"])
def test_a_file_that_is_no_recipe(written, content):
    with pytest.raises(RecipeError, match=r"recipe\.yaml"):
        read(written(content), [])


def test_a_missing_file(tmp_path):
    with pytest.raises(RecipeError, match="not found"):
        read(tmp_path / "none.yaml", [])


def test_a_recipe_takes_from_its_base_what_it_does_not_say_anew(written):
    first = {
        "network": "energytl.models.mlp",
        "data": "energytl.data.Digits",
        "hardware": {"rho": 2.0, "weights": {"bits": 4}},
        "cases": {"A": {"seed": 1}, "B": {}},
    }
    second = {"hardware": {"rho": 3.0}, "calibration_batches": 2}
    written(first, "first.yaml")
    written(second, "second.yaml")
    path = written({"base": ["first.yaml", "second.yaml"], "seed": 7})
    settings = {case.name: case.resolved() for case in read(path, [])}
    assert {name: case["seed"] for name, case in settings.items()} == {"A": 1, "B": 7}
    for case in settings.values():
        assert (case["hardware"]["rho"], case["hardware"]["weights"]["bits"]) == (3.0, 4)
        assert case["calibration_batches"] == 2


@pytest.mark.parametrize(
    ("recipes", "says"),
    [
        ({"recipe.yaml": {"base": "nowhere.yaml"}}, "nowhere.yaml not found, the base of"),
        ({"b.yaml": {"base": "recipe.yaml"}, "recipe.yaml": {"base": "b.yaml"}}, "is its own base"),
    ],
)
def test_a_base_that_is_not_there_or_goes_in_a_circle_is_one_line(written, recipes, says):
    *_, path = [written(content, name) for name, content in recipes.items()]
    with pytest.raises(RecipeError, match=says):
        read(path, [])


# seeds


def test_every_case_is_run_with_every_seed(written):
    cases = {"a": {"hardware.rho": 2}, "b": {"method": "named", "seed": 9}, "c": None}
    found = read(written(BASE | {"seeds": [3, 0], "seed": 5, "cases": cases}), [])
    names = ["a, seed 3", "a, seed 0", "b, seed 3", "b, seed 0", "c, seed 3", "c, seed 0"]
    assert [case.name for case in found] == names
    settings = {case.name: case.resolved() for case in found}
    assert [settings[name]["seed"] for name in names] == [3, 0, 3, 0, 3, 0]
    assert [settings[name]["method"] for name in names] == ["a", "a", "named", "named", "c", "c"]
    assert [settings[name]["hardware"]["rho"] for name in names] == [2, 2, 10, 10, 10, 10]
    assert [settings[name]["data"]["init_args"]["seed"] for name in names] == [3, 0, 3, 0, 3, 0]
    assert [case.name for case in read(written(BASE | {"seeds": [3, 0], "cases": cases}), [], only="b, seed 0")] == [
        "b, seed 0"
    ]


def test_the_seed_of_the_data_moves_along(written):
    data = {"class_path": "energytl.data.Digits", "init_args": {"seed": 100}}
    other = {"data.init_args.seed": 200}
    found = read(written(BASE | {"data": data, "seeds": [0, 2], "cases": {"a": {}, "b": other}}), [])
    assert [case.build().data.seed for case in found] == [100, 102, 200, 202]
    pretrain = {"pretrain": {"data": data, "seed": 1}, "stages": {"s": {"data": data}}}
    (built,) = (case.build() for case in read(written(BASE | pretrain | {"seeds": [2]}), []))
    assert (built.data.seed, built.pretrain.data.seed, built.stages["s"].data.seed) == (2, 100, 100)
    assert (built.seed, built.pretrain.seed, built.stages["s"].seed) == (2, 1, None)
    (again,) = read(written(found[3].as_yaml(), "again.yaml"), [])
    assert again.resolved() == found[3].resolved()  # it does not move twice


def test_a_file_without_cases_has_one_for_each_seed(written):
    found = read(written(BASE | {"seeds": [0, 1]}, "mine.yaml"), [])
    assert [(case.name, case.settings.method, case.settings.seed) for case in found] == [
        ("mine, seed 0", "mine", 0),
        ("mine, seed 1", "mine", 1),
    ]
    (case,) = read(written(BASE | {"seed": 4}, "mine.yaml"), [])
    assert (case.name, case.settings.method, case.settings.data.init_args.seed) == ("mine", None, 0)


def test_seeds_come_from_a_base_and_no_override_changes_them_all(written):
    written(BASE | {"seeds": [0, 1]}, "base.yaml")
    path = written({"base": "base.yaml", "cases": {"a": {}}})
    assert [case.settings.seed for case in read(path, [])] == [0, 1]
    with pytest.raises(RecipeError, match="has seeds, which --seed cannot change: change the list, or choose cases"):
        read(path, ["--seed=7"])
    assert [case.settings.seed for case in read(written({"base": "base.yaml", "seeds": [5]}), [])] == [5]


def test_a_method_of_the_whole_file_stays(written):
    cases = {"a": {}, "b": {"method": "own"}}
    found = read(written(BASE | {"method": "named", "seeds": [0], "cases": cases}), [])
    assert [case.settings.method for case in found] == ["named", "own"]


@pytest.mark.parametrize(
    "seeds", [0, "0, 1", [], [-1], [0.5], ["one"], [None], {"a": 1}, [[0]], [1, 0, 1], [True], [2, False]], ids=str
)
def test_seeds_that_are_no_list_of_different_numbers_are_said_in_one_line(written, seeds):
    says = r"seeds is .*; allowed: a list of different whole numbers, as \[0, 1, 2\]$"
    with pytest.raises(RecipeError, match=says) as raised:
        read(written(BASE | {"seeds": seeds}), [])
    assert "\n" not in str(raised.value)
    assert "recipe.yaml" in str(raised.value)


def test_runs_side_by_side_are_not_evaluated(written):
    data = {"class_path": "energytl.tasks.Reduced", "init_args": {"images": "energytl.data.Digits"}}
    with pytest.raises(RecipeError) as raised:
        read(written(BASE | {"data": data}), [])[0].build()
    says = "evaluation is of one network, but 50 runs train side by side: set evaluation: null"
    assert str(raised.value) == f"case recipe: {says}"
    assert read(written(BASE | {"data": data, "evaluation": None}), [])[0].build().data.runs == 50


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"pretrain": {"epochs": 0}}, "epochs is 0; allowed: 1 to 1000000"),
        ({"stages": {"a": {"epochs": 0}}}, "epochs is 0; allowed: 1 to 1000000"),
        (
            {"program": {"error": {"class_path": "energytl.GaussianWrite", "init_args": {"std": -1}}}},
            "program.error.std is -1",
        ),
        (
            {
                "program": {
                    "error": {"class_path": "energytl.GaussianWrite", "init_args": {"std": 0}},
                    "stuck": {"hrs": 2},
                }
            },
            "stuck.hrs is 2.0; allowed: 0 to 1",
        ),
        ({"frozen": ["fc1"]}, "frozen is about training, but train is null: leave it out"),
        ({"convergence": {"target": 0.9}}, "convergence is about training, but train is null: leave it out"),
        (
            {"evaluation": {"times_s": [1, 86400]}},
            "evaluation.times_s requires cells that change: set",
        ),
        ({"evaluation": {"times_s": [0.1]}}, "evaluation.times_s is 0.1; allowed: 1 or more"),
        (
            {"evaluation": {"times_s": [1e6]}, "hardware": {"drift": {"law": "RramRelaxation"}}},
            "drift.time_s is 1e+06; RramRelaxation was measured to 172800 s",
        ),
    ],
    ids=str,
)
def test_trainings_and_writes_that_cannot_be_are_said_in_one_line(written, settings, says):
    with pytest.raises(RecipeError) as raised:
        read(written(BASE | settings), [])[0].build()
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


# what is written otherwise than it would be read


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("hardware: {rho: 2.0}\nseed: 1\nhardware: {chip: 1}\n", "line 6: the key hardware stands twice"),
        ("cases:\n  a: {}\n  a: {seed: 1}\n", "line 6: the key a stands twice"),
        ("cases: {1: {}, '1': {}}\n", "the key 1 stands twice"),
        ("hardwear: {}\n", "unknown key hardwear; did you mean hardware?"),
        ("hardware: {weight: {}}\n", "hardware: unknown key weight; there are fluctuation"),
        ("stages: {a: {nonsense: {}}}\n", "stages.a: unknown key nonsense; there are epochs"),
        ("stages: {a: {hardware: {cell: {read_volts: {}}}}}\n", "unknown key read_volts"),
        ("train: {epochz: 3}\n", "train: unknown key epochz; there are epochs"),
        ("cases: {a: {cases: {b: {}}}}\n", "case a: cases belongs to the file, not to a case"),
        ("cases: {a: {base: r.yaml}}\n", "case a: base belongs to the file"),
        ("cases: {a: {seeds: [1]}}\n", "case a: seeds belongs to the file"),
        ("hardware: &h {weights: *h}\n", "an alias stands within what it names"),
        ("seed: null\n", "seed is None; allowed: a whole number"),
        ("base: 3\n", "base is 3; allowed: the name of a recipe beside it"),
        ('cases: {"a\\x07b": {}}\n', r"the case name 'a\x07b' has characters that no terminal shows"),
        ('cases: {"a\\e[31mb": {}}\n', r"the case name 'a\x1b[31mb' has characters"),
        ('cases: {"a\\u202eb": {}}\n', r"the case name 'a\u202eb' has characters"),
        (f"cases: {{{'long' * 60}: {{}}}}\n", "is too long for a folder; allowed: 200 bytes"),
        ("cases: {summary.json: {}}\n", "the case name summary.json is that of a file of the report"),
        ("cases: {report.HTML: {}}\n", "the case name report.HTML is that of a file of the report"),
        ("cases: {training.png: {}}\n", "the case name training.png is that of a file of the report"),
        ("hardware: {fluctuation: strong}\n", "there is no Fluctuation 'strong'; there are: energytl.Fluctuation, "),
        ("hardware: {fluctuation: strong}\n", "energytl.devices.presets.strong"),
        ("hardware: {read: BitSerial}\n", "energytl.BitSerialRead, energytl.RepeatedRead, energytl.SingleRead"),
        ("stages: {a: {hardware: {mapping: Pair}}}\n", "there is no Mapping 'Pair'; there are: energytl.BitCells"),
        (
            "train: {optimizer: Adamm}\n",
            "train.optimizer: there is no Optimizer 'Adamm'; there are: energytl.optim.AGAD",
        ),
        ("train: {scheduler: StepLRR}\n", "torch.optim.lr_scheduler.StepLR"),
        ("train: {epochs: null}\n", "train.epochs is None; allowed: a whole number"),
    ],
)
def test_what_would_be_read_otherwise_than_it_is_meant_is_refused(written, text, says):
    with pytest.raises(RecipeError) as raised:
        [case.build() for case in read(written(yaml.safe_dump(BASE) + "evaluation: null\n" + text), [])]
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_bases_and_studies_are_read_as_strictly(written):
    written(yaml.safe_dump(BASE) + "seed: 1\nseed: 2\n", "base.yaml")
    with pytest.raises(RecipeError, match=r"base\.yaml cannot be read: line 4: the key seed stands twice"):
        read(written({"base": "base.yaml"}), [])
    path = written("recipe: recipe.yaml\nvary: {seed: [1, 2]}\nvary: {seed: [1, 3]}\n", "study.yaml")
    with pytest.raises(RecipeError, match=r"study\.yaml cannot be read: line 3: the key vary stands twice"):
        read_study(path, [])


def test_case_names_are_taken_as_they_are_written(written):
    text = yaml.safe_dump(BASE) + "cases: {on: {}, off: {}, no: {}, yes: {}, null: {}, 1: {}, 1.0: {}, ρ = 0.5: {}}\n"
    assert [case.name for case in read(written(text), [])] == ["on", "off", "no", "yes", "null", "1", "1.0", "ρ = 0.5"]
    (case,) = read(written(text), [], only="off")
    assert case.name == "off"


def test_a_later_base_wins_whether_keys_are_dotted_or_nested(written):
    written(BASE | {"hardware.rho": 1.0}, "a.yaml")
    written({"hardware": {"rho": 2.0}}, "b.yaml")
    written({"hardware.rho": 3.0}, "c.yaml")
    (case,) = read(written({"base": ["a.yaml", "b.yaml", "c.yaml"]}), [])
    assert case.build().hardware.rho == 3.0


@pytest.mark.parametrize("base", ["recipe.yaml", "nowhere/../recipe.yaml", "./recipe.yaml"])
def test_a_recipe_that_is_its_own_base_by_another_name(written, base):
    with pytest.raises(RecipeError, match="is its own base") as raised:
        read(written(BASE | {"base": base}), [])
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("name", ["trained.yaml", "search.yaml"])
def test_a_recipe_does_not_take_the_folder_of_what_is_kept(written, name):
    with pytest.raises(RecipeError, match="lies beside those of recipes"):
        read(written(BASE, name), [])


USERS = """
from pathlib import Path
import torch
from torch import nn
from energytl import Fluctuation

def plain():
    return nn.Linear(1, 1)

def device(intensity=2.0):
    return Fluctuation(intensity=intensity)

def number() -> int:
    return 3

def fails() -> nn.Module:
    return {}["a"]

def no_network() -> nn.Module:
    return 3

def harm(parameters, command: str = ""):
    Path(command).touch()

class Harm:
    def __init__(self, parameters, command: str = "") -> None:
        Path(command).touch()

def fine(parameters, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr)

def steps(optimizer) -> torch.optim.lr_scheduler.StepLR:
    return torch.optim.lr_scheduler.StepLR(optimizer, 2)
"""


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"network": "users.plain"}, "does not say what it returns: write def plain(…) -> torch.nn.Module"),
        ({"hardware.fluctuation": "users.device"}, "write def device(…) -> energytl.Fluctuation"),
        ({"network": "users.number"}, "network: users.number gives no Module; there are: energytl.models."),
        ({"network": "users.fails"}, "users.py, line 17: KeyError: 'a'"),
        ({"network": "users.no_network"}, "network is 3; allowed: a Module"),
        ({"network": "broken.network"}, "SyntaxError: "),
        ({"network": "unknown_import.network"}, "No module named 'nowhere_at_all'"),
    ],
)
def test_a_users_code_that_does_not_fit_is_named(written, tmp_path, monkeypatch, settings, says):
    (tmp_path / "users.py").write_text(USERS, "utf-8")
    (tmp_path / "broken.py").write_text("def network(:\n", "utf-8")
    (tmp_path / "unknown_import.py").write_text("import nowhere_at_all\n", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RecipeError) as raised:
        read(written(BASE | {"evaluation": None} | settings), [])[0].build()
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("key", ["train.optimizer", "train.scheduler", "pretrain.optimizer", "stages.a.scheduler"])
@pytest.mark.parametrize("maker", ["os.system", "users.harm", "users.Harm", "subprocess.run"])
def test_what_makes_no_optimizer_is_refused_before_it_is_called(written, tmp_path, monkeypatch, key, maker):
    (tmp_path / "users.py").write_text(USERS, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    harm = tmp_path / "harm"
    argument = {"os.system": {"command": f"touch {harm}"}, "subprocess.run": {}}.get(maker, {"command": str(harm)})
    for value in (maker, {"class_path": maker}, {"class_path": maker, "init_args": argument}):
        with pytest.raises(RecipeError, match=key.rpartition(".")[2]):
            read(written(BASE | {"evaluation": None, key: value}), [])[0].build()
    assert not harm.exists()


def test_what_says_that_it_makes_an_optimizer_is_taken(written, tmp_path, monkeypatch):
    (tmp_path / "users.py").write_text(USERS, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    for optimizer in ("users.fine", "torch.optim.Adam", "Adam"):
        train = {"optimizer": optimizer, "scheduler": "users.steps"}
        fit = read(written(BASE | {"train": train}), [])[0].build().train
        assert isinstance(fit.optimizer([nn.Parameter(torch.zeros(1))]), torch.optim.Optimizer)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("--trainer.limit_train_batches=0", "limit_train_batches is 0"),
        ("--trainer.max_steps=null", "max_steps: expected int"),
        ("--trainer.gradient_clip_val=.nan", "gradient_clip_val is nan; allowed: a number"),
        ("--trainer.accumulate_grad_batches=0", "accumulate_grad_batches is 0; allowed: 1 to"),
    ],
)
def test_settings_of_the_trainer_with_which_nothing_trains(written, override, says):
    with pytest.raises(ValueError, match=says):
        read(written(BASE), [override])[0].trainer_settings()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"pretrain": {"seed": -1}}, "pretrain.seed is -1; allowed: 0 to 4294967295, or null"),
        ({"stages": {"a": {"hardware": {"rho": 1e5}}}}, "stages.a.hardware.rho is 100000.0; allowed: above 0 up to 82"),
        ({"data": {"class_path": "energytl.data.Digits", "init_args": {"workers": -1}}}, "data.workers is -1"),
        ({"published": [1.0, float("nan")]}, "published is nan; allowed: above 0"),
        (
            {"train": {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"weight_decay": float("nan")}}}},
            "train.optimizer.weight_decay is nan; allowed: a number",
        ),
        (
            {"train": {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": float("inf")}}}},
            "train.optimizer.lr is inf; allowed: a finite number",
        ),
        (
            {"data": {"class_path": "energytl.data.Digits", "init_args": {"seed": None}}},
            "data.seed is null; allowed: a whole number",
        ),
        ({"method": "a\x07b"}, r"method is 'a\x07b'; allowed: characters that a terminal shows"),
    ],
)
def test_a_value_is_refused_with_its_whole_key(written, settings, says):
    with pytest.raises(RecipeError) as raised:
        read(written(BASE | settings), [])[0].build()
    assert says in str(raised.value)


@pytest.mark.parametrize("override", ["--see=5", "--hardware.rh=5"])
def test_keys_are_not_abbreviated(written, override):
    with pytest.raises(RecipeError, match="unknown key"):
        read(written(BASE), [override])


LAYERED = """
network: energytl.models.lenet
data: energytl.data.Digits
hardware: {converter: {bits: 6}, mapping: {class_path: MultilevelPair, init_args: {levels: [1, 3]}}}
layers:
  conv1: {converter.bits: 8, mapping.levels: [1, 2, 4]}
  fc*: {read: BitSerialRead, inputs.bits: 7}
  fc3: {converter: null}
"""


def test_layers_have_hardware_of_their_own(tmp_path):
    case = Case("a", parse(LAYERED))
    recipe = case.build()
    assert recipe.layers["conv1"] == {"converter": Converter(8), "mapping": MultilevelPair((1, 2, 4))}
    assert parse(case.as_yaml()).layers == case.settings.layers  # its keys are patterns, whatever their dots
    analog = analog_network(recipe, recipe.network, recipe.hardware, recipe.data, 0, Noiseless())
    found = {name: layer.hardware for name, layer in analog_layers(analog).items()}
    bits = {name: hardware.converter and hardware.converter.bits for name, hardware in found.items()}
    assert bits == {"conv1": 8, "conv2": 6, "fc1": 6, "fc2": 6, "fc3": None}
    assert {name: hardware.inputs.bits for name, hardware in found.items()} == {
        **{"conv1": 5, "conv2": 5, "fc1": 7, "fc2": 7, "fc3": 7}
    }
    assert found["conv2"] == recipe.hardware


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("conv*1.x: {chip: 1}", "no layer is called 'conv*1.x'; there are: conv1, conv2, fc1, fc2, fc3"),
        ("conv1: {converter.bit: 8}", "layers.conv1: hardware.converter: unknown key bit; there are bits, range"),
        ("conv1: {converter.bits: 1}", "layers.conv1: converter.bits is 1; allowed: 2 to 24"),
        ("conv1: {read: Bitserial}", "layers.conv1: hardware.read: there is no ReadScheme 'Bitserial'; there are:"),
    ],
)
def test_what_is_no_hardware_of_a_layer_is_refused_with_its_pattern(written, says):
    text = LAYERED.partition("layers:")[0] + f"layers: {{{written}}}\n"
    with pytest.raises((RecipeError, ValueError)) as error:
        prepare(Case("a", parse(text)), needs_data=False)
    assert says in str(error.value) and "\n" not in str(error.value)
