"""What comes before a recipe's own training: pre-training, analog stages, the write, frozen layers; runs at once."""

import copy
from functools import cache
from typing import NamedTuple

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.utils.data import TensorDataset

from energytl import analog_layers, callbacks
from energytl import recipe as recipe_module
from energytl import run as run_module
from energytl.cli import main
from energytl.data import Digits
from energytl.evaluation import run_accuracies
from energytl.optim import array as array_module
from energytl.quiet import EnergytlWarning
from energytl.recipe import Case, RecipeError, read
from energytl.run import prepare, run_case
from energytl.stages import before_training, freeze

pytestmark = pytest.mark.usefixtures("one_thread")


def small(hidden: int = 6, classes: int = 10, norm: bool = False) -> nn.Module:
    """A network of 16 inputs, so that nothing is compiled: layers 2 and 4, or with a norm as layer 3, 2 and 5."""
    norms = [nn.BatchNorm1d(hidden)] if norm else []
    return nn.Sequential(
        nn.AvgPool2d(7), nn.Flatten(), nn.Linear(16, hidden), *norms, nn.ReLU(), nn.Linear(hidden, classes)
    )


class Halves(Digits):
    """Digits of five classes."""

    def __init__(self, batch_size: int = 100, seed: int = 0) -> None:
        super().__init__(batch_size, 0, seed)
        self.classes = 5

    def load(self):
        return tuple(TensorDataset(images, labels // 2) for images, labels in (s.tensors for s in super().load()))


def of(path, **settings):
    return {"class_path": path, "init_args": settings}


def network(**settings):
    return of("test_stages.small", **settings)


def digits(**settings):
    return of("energytl.data.Digits", **{"batch_size": 100} | settings)


def reduced(**settings):
    few = {"projections": 1, "train_images": 60, "test_images": 20}
    return of("energytl.tasks.Reduced", images=digits(), **few | settings)


def side_by_side(runs):
    return of("energytl.models.SideBySide", features=8, classes=2, runs=runs)


def chip(kind="PulsedSGD", lr=0.1, device="reram_om", epochs=1, **settings):
    made = of(f"energytl.optim.{kind}", lr=lr, device=of(f"energytl.devices.presets.{device}"), **settings)
    return {"epochs": epochs, "optimizer": made}


def sgd(lr=0.1, epochs=1):
    return {"epochs": epochs, "optimizer": of("torch.optim.SGD", lr=lr)}


def error(std):
    return {"error": of("energytl.GaussianWrite", std=std)}


TRAINER = {"accelerator": "cpu", "enable_progress_bar": False, "num_sanity_val_steps": 0}
TRAINER |= {"limit_train_batches": 2, "limit_val_batches": 1}
UNROUNDED = {"rho": 5.0, "weights": {"bits": None}}
SETTINGS = {
    "network": network(),
    "data": digits(),
    "hardware": UNROUNDED,
    "evaluation": None,
    "calibration_batches": 1,
    "trainer": TRAINER,
}


class Spy(Callback):
    """The analog network as its training finds and leaves it."""

    def __init__(self, interrupt):
        self.interrupt = interrupt

    def on_train_start(self, trainer, pl_module):
        self.network = pl_module.network
        self.began = self.weights()

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.interrupt:
            raise KeyboardInterrupt

    def on_train_end(self, trainer, pl_module):
        self.ended = self.weights()
        weights = {id(layer.weight): name for name, layer in analog_layers(self.network).items()}
        (optimizer,) = trainer.optimizers
        self.states = {weights[id(w)]: state for w, state in optimizer.state.items() if id(w) in weights}

    def weights(self):
        return {name: tensor.clone() for name, tensor in self.network.state_dict().items()}


class Ran(NamedTuple):
    result: dict
    trainings: int
    spy: Spy


class Runner:
    """Runs recipes of one case, all in a folder of their own."""

    def __init__(self, folder):
        self.folder = folder

    def cases(self, settings):
        path = self.folder / "tiny.yaml"
        path.write_text(yaml.safe_dump(SETTINGS | settings, sort_keys=False), "utf-8")
        return read(path, [])

    def __call__(self, settings, name="tiny", resume=False, interrupt=None, kept=""):
        (case,), spies = self.cases(settings), []

        def watch(recipe):
            spies.append(Spy(interrupt))
            return spies

        with pytest.MonkeyPatch.context() as patch:
            fits = counted(patch)
            patch.setattr(run_module, "_record", lambda *_: None)  # figures take longer than training
            result = run_case(case, 0, self.folder / kept / name, resume, watch)
        return Ran(result, len(fits), *spies)

    def before(self, settings):
        """What a recipe's own training starts from, its network and the number of trainings it took, for each case."""
        found = []
        for case in self.cases(settings):
            with pytest.MonkeyPatch.context() as patch:
                fits = counted(patch)
                recipe = prepare(case, needs_data=True)
                start = before_training(case, recipe, self.folder / "trained")
            found.append((start, recipe.network, len(fits)))
        return found

    def count(self, settings):
        return [trainings for _, _, trainings in self.before(settings)]

    def kept(self, kept=""):
        """What is kept of each training but when, the oldest first."""
        files = sorted((self.folder / kept / "trained").glob("*/network.pt"), key=lambda path: path.stat().st_mtime_ns)
        found = [torch.load(path, weights_only=True) for path in files]
        return [{name: part for name, part in one.items() if name != "finished"} for one in found]


def counted(patch):
    fit, fits = Trainer.fit, []
    patch.setattr(array_module, "fused", lambda function, *_: function)  # compiling takes longer than all these tests

    def counting(*args, **kwargs):
        fits.append(1)
        return fit(*args, **kwargs)

    patch.setattr(Trainer, "fit", counting)
    return fits


def once(method):
    """A method of cases that is called once for all of the same settings."""
    found = {}

    def told(case):
        settings = repr(case.settings)
        if settings not in found:
            found[settings] = method(case)
        return copy.copy(found[settings])

    return told


def parsed(parse):
    """A parser that reads each text once."""
    parse = cache(parse)
    return lambda text, overrides: parse(text, tuple(overrides)).clone()


@pytest.fixture(scope="module", autouse=True)
def read_once():
    """Reading and writing recipes takes longer than most of these trainings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe_module, "parse", parsed(recipe_module.parse))
        for name in ("as_yaml", "trainer_settings"):
            patch.setattr(Case, name, once(getattr(Case, name)))
        yield


@pytest.fixture
def run(tmp_path):
    return Runner(tmp_path)


def same(first, second):
    """Whether nested dictionaries and lists hold the same tensors and numbers."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second, strict=True))
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


def refused(call, *arguments):
    with pytest.raises(RecipeError) as raised:
        call(*arguments)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# Pre-training of something else


HALVES = {"epochs": 1, "data": of("test_stages.Halves"), "network": network(classes=5, norm=True)}


def test_what_a_network_of_other_classes_learnt_goes_on_but_for_its_head(run):
    settings = {"network": network(norm=True), "pretrain": HALVES}
    ((_, found, trainings),) = run.before(settings)
    (kept,) = run.kept()
    (case,) = run.cases(settings)
    anew, learnt, found = prepare(case, needs_data=True).network.state_dict(), kept["network"], found.state_dict()
    assert trainings == 1
    assert learnt["5.weight"].shape == (5, 6)
    for name, tensor in found.items():
        body = not name.startswith("5.")
        assert torch.equal(tensor, learnt[name] if body else anew[name])
        assert not body or not torch.equal(tensor, anew[name])  # statistics of the norm, too
    result = run(settings | {"train": sgd(lr=0.0)})
    assert all(torch.equal(result.spy.began[name], found[name]) for name in found)
    (stage,) = result.result["stages"]
    assert stage["stage"] == "pretrain"
    assert [row["epoch"] for row in stage["history"]] == [1.0]


@pytest.mark.parametrize("halves", [False, True])
def test_what_has_learnt_other_data_says_nothing_of_a_digital_network_of_this(run, halves):
    evaluation = {"reads": 1, "images": 200, "max_drop": None, "cost_batches": 1}
    pretrain = HALVES if halves else sgd(lr=0.0)  # at chance either way
    settings = {"network": network(norm=True), "pretrain": pretrain, "train": sgd(), "evaluation": evaluation}
    found = run(settings).result["accuracy_digital"]
    assert found is None if halves else 0 <= found < 0.3


@pytest.mark.parametrize("norm", [False, True])  # whose count of batches has the same shape everywhere
def test_networks_without_anything_in_common(run, norm):
    other = HALVES | {"network": network(hidden=7, classes=5, norm=norm)}
    (case,) = run.cases({"network": network(norm=norm), "pretrain": other})
    says = refused(prepare, case, True)  # before anything trains
    assert says.startswith("case tiny: ")
    assert "Sequential has no parameter in common, by name and shape, with the network trained before" in says


def test_check_says_that_data_of_a_stage_is_missing(run, capsys):
    missing = of("energytl.data.MNIST", root="nowhere")
    path = run.folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(SETTINGS | {"stages": {"first": sgd() | {"data": missing}}}), "utf-8")
    assert main(["check", str(path)]) == 2
    assert "set --stages.first.data.root to a folder" in capsys.readouterr().out


# What is kept


STAGE = sgd() | {"seed": 7, "data": digits()}
CHAIN = {"pretrain": STAGE, "stages": {"first": STAGE, "second": STAGE}}


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    run = Runner(tmp_path_factory.mktemp("chain"))
    run.first = run.before(CHAIN)
    return run


def test_seeds_share_what_does_not_depend_on_them(chain):
    ((start, first, trainings),) = chain.first
    assert trainings == 3
    assert [curves["stage"] for curves in start.curves] == ["pretrain", "first", "second"]
    again = chain.before(CHAIN | {"seeds": [0, 1, 2]})
    assert [trainings for _, _, trainings in again] == [0, 0, 0]
    for found, other, _ in again:
        assert same(dict(other.state_dict()), dict(first.state_dict()))
        assert same(vars(found), vars(start))


def changed(*places, **what):
    """The chain with other settings in some of its trainings."""
    stages = {name: STAGE | (what if name in places else {}) for name in ("first", "second")}
    return {"pretrain": STAGE | (what if "pretrain" in places else {}), "stages": stages}


ROUNDED = {"rho": 5.0, "weights": {"bits": 6}}


@pytest.mark.parametrize(
    ("change", "trainings"),
    [
        (changed("pretrain", **sgd(epochs=2)), 3),
        ({"network": network(hidden=5)}, 3),
        ({"trainer": TRAINER | {"limit_train_batches": 1}}, 3),
        (changed("first", data=digits(seed=1), **sgd(lr=0.2)), 2),
        (changed("first", hardware=UNROUNDED), 2),
        ({"hardware": ROUNDED}, 2),
        (changed("second", training_computation="Noiseless"), 1),
        (changed("second", objective={"energy_weight": 0.5}), 1),
        ({"stages": {"first": STAGE}}, 0),
        ({"stages": {"other name": STAGE, "another": STAGE, "third": STAGE}}, 1),
    ],
)
def test_what_a_training_depends_on_trains_it_and_those_after_it_anew(chain, change, trainings):
    assert chain.count(CHAIN | change) == [trainings]


@pytest.mark.parametrize(
    "change",
    [
        {"train": sgd(lr=0.3), "objective": {"energy_weight": 0.3}, "frozen": ["2"], "convergence": {"target": 0.9}},
        {"program": error(0.1), "seed": 5, "evaluation": {"reads": 1}, "data": digits(batch_size=70, seed=3)},
    ],
)
def test_what_comes_later_trains_nothing_anew(chain, change):
    assert chain.count(CHAIN | change) == [0]


def test_without_seeds_of_their_own_trainings_are_each_seeds(run):
    pretrain = sgd() | {"data": digits()}
    assert run.count({"pretrain": pretrain, "seeds": [0, 1]}) == [1, 1]
    assert run.count({"pretrain": pretrain | {"seed": 7}, "seeds": [0, 1]}) == [1, 0]
    assert run.count({"pretrain": pretrain | {"seed": 1}, "seeds": [5, 6]}) == [0, 0]  # what seed 1 has trained


def test_seeds_and_networks_share_the_pretraining_of_a_network_of_its_own(run):
    settings = {"network": network(norm=True), "pretrain": HALVES | {"seed": 7}, "seeds": [0, 1]}
    assert run.count(settings) == [1, 0]
    ((_, found, trainings),) = run.before(settings | {"network": network(), "seeds": [2]})
    (kept,) = run.kept()
    assert trainings == 0
    assert torch.equal(found[2].weight, kept["network"]["2.weight"])


def test_heads_that_start_anew_are_each_seeds_and_so_is_what_learns_them(run):
    stages = {"first": STAGE}
    settings = {"network": network(norm=True), "pretrain": HALVES | {"seed": 7}, "stages": stages, "seeds": [0, 1]}
    (_, first, _), (_, other, trainings) = run.before(settings)
    assert trainings >= 1  # the stage
    assert not torch.equal(first[5].weight, other[5].weight)


@pytest.mark.parametrize("own", [None, network(classes=5)], ids=["recipe's", "its own"])
def test_random_weights_come_from_the_pretrainings_own_seed(tmp_path, own):
    pretrain = sgd() | {"data": of("test_stages.Halves") if own else digits(), "network": own}
    bodies = []
    for recipe, seed in ((0, 7), (1, 7), (0, None), (1, None)):
        folder = tmp_path / f"{recipe} {seed}"
        folder.mkdir()
        ((_, found, trainings),) = Runner(folder).before({"pretrain": pretrain | {"seed": seed}, "seed": recipe})
        assert trainings == 1
        bodies.append(found[2].weight.detach())
    assert torch.equal(bodies[0], bodies[1])
    assert not any(torch.equal(bodies[0], body) for body in bodies[2:])
    assert not torch.equal(*bodies[2:])


def test_random_weights_of_a_network_of_its_own_do_not_depend_on_the_recipes(tmp_path):
    learnt = []
    for classes in (10, 5):
        folder = tmp_path / f"{classes}"
        folder.mkdir()
        data = digits() if classes == 10 else of("test_stages.Halves")
        settings = {"network": network(classes=classes, norm=True), "data": data, "pretrain": HALVES | {"seed": 7}}
        ((_, found, trainings),) = Runner(folder).before(settings)
        assert trainings == 1
        learnt.append(found[2].weight.detach())
    assert torch.equal(*learnt)


# Analog stages


def test_weights_are_cut_to_their_range_after_each_step(run):
    hardware = UNROUNDED | {"weights": {"bits": None, "range": 0.1}}
    found = {}
    for clip in (False, True):
        stage = sgd(lr=0.5) | {"hardware": hardware, "clip_weights": clip}
        ((_, network, _),) = run.before({"stages": {"aware": stage}})
        found[clip] = torch.cat([layer.weight.detach().flatten() for layer in (network[2], network[4])]).abs().max()
    assert found[True] == pytest.approx(0.1)
    assert found[False] > 0.2


PRICE = {"energy_weight": 0.5, "rho_lr": 0.3}


OTHER = {"rho": 20.0, "weights": {"bits": 4}}


@pytest.mark.parametrize(
    ("hardware", "price"), [(None, PRICE), (OTHER, PRICE), (OTHER, {})], ids=["price", "price, other hardware", "free"]
)
def test_weights_and_what_was_trained_of_rho_go_on(run, hardware, price):
    stage = sgd() | {"hardware": hardware, "objective": price}
    result, trainings, spy = run({"stages": {"first": stage}, "train": sgd(lr=0.0)})
    (kept,) = run.kept()
    assert trainings == 2
    names = [name for name in spy.began if name.endswith(("weight", "bias"))]
    assert len(names) == 4
    for weights in (spy.began, kept["analog"]):
        assert all(torch.equal(weights[name], kept["network"][name]) for name in names)
    rho = [layer["rho"] for layer in result["layers"]]
    assert rho == pytest.approx([float(kept["rho"][name]) for name in ("2", "4")] if price else [5.0, 5.0], rel=1e-5)
    assert not price or all(abs(value - start) > 0.5 for value in rho for start in (5.0, 20.0))
    assert result["history"][0]["rho"] == pytest.approx(sum(rho) / 2, rel=1e-5)


def test_rho_goes_on_through_a_stage_that_leaves_it(run):
    stages = {"first": sgd() | {"objective": PRICE, "hardware": {"rho": 20.0}}, "second": sgd() | {"hardware": ROUNDED}}
    result, _, _ = run({"stages": stages | {"third": sgd()}, "train": sgd()})
    kept = run.kept()
    assert [sorted(found["rho"]) for found in kept] == [["2", "4"], [], []]
    assert [layer["rho"] for layer in result["layers"]] == pytest.approx([float(v) for v in kept[0]["rho"].values()])
    assert result["stages"][1]["history"][0]["rho"] == pytest.approx(result["stages"][0]["history"][0]["rho"])


def test_a_trained_rho_that_the_next_cells_cannot_hold_is_named(run):
    stage = sgd() | {"objective": PRICE, "hardware": {"rho": 20.0}}
    small = {"rho": 5.0, "cell": {"g_min_siemens": 8.0e-6, "g_max_siemens": 15.0e-6}}
    with pytest.warns(EnergytlWarning, match=r"ρ was trained to \S+ of 2, \S+ of 4, more than the next"):
        result, _, _ = run({"stages": {"first": stage}, "hardware": small, "train": sgd(lr=0.0)})
    assert [layer["rho"] for layer in result["layers"]] == pytest.approx([7.0, 7.0])


def test_a_shared_training_keeps_the_rho_of_the_stage_before_it(run):
    settings = {"stages": {"first": sgd() | {"objective": PRICE}}, "train": sgd(), "share_training": True}
    first, again = run(settings), run(settings)
    assert again.trainings == 0
    rho = [[layer["rho"] for layer in ran.result["layers"]] for ran in (first, again)]
    assert rho[1] == pytest.approx(rho[0])


def test_a_stage_with_a_network_of_its_own(run):
    stage = sgd() | {"data": of("test_stages.Halves"), "network": network(classes=5)}
    result = run({"stages": {"first": stage}, "train": sgd(lr=0.0)})
    (kept,) = run.kept()
    assert torch.equal(result.spy.began["2.weight"], kept["network"]["2.weight"])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"stages": {"pretrain": sgd()}}, "stages: pretrain is the digital training before them; give the stage"),
        (
            {"stages": {"a": sgd() | {"objective": {"energy_weight": [0, 1]}}}},
            "objective.energy_weight of a stage is one number",
        ),
        ({"pretrain": sgd() | {"data": reduced()}}, "pretrain: the network Sequential does not take images of shape"),
        (
            {"stages": {"a": sgd(), "b": sgd() | {"data": of("test_stages.Halves")}}},
            "b: the network Sequential gives (10,) numbers for an image; the data has 5 classes",
        ),
        ({"stages": {"a": sgd() | {"network": network(classes=5)}}}, "a: the network Sequential gives (5,) numbers"),
        (
            {"stages": {"a": sgd() | {"network": network(hidden=7, classes=5), "data": of("test_stages.Halves")}}},
            "Sequential has no parameter in common, by name and shape",
        ),
        ({"stages": {"a": chip() | {"hardware": {"rho": 5.0}}}}, "are rounded, but pulses leave them anywhere"),
    ],
)
def test_stages_that_cannot_run_are_refused_before_anything_trains(run, settings, says):
    (case,) = run.cases({"pretrain": sgd()} | settings)
    assert says in refused(prepare, case, True)


# Arrays that go on


def arrays(ran, which="slow"):
    return {name: state[which] for name, state in ran.spy.states.items()}


def apart_from_pulses(array):
    return {name: tensor for name, tensor in array.items() if name != "pulses"}


def assert_went_on(found, cells, which="slow"):
    for array, layer in zip(found.values(), cells.values(), strict=True):
        assert same(apart_from_pulses(array), apart_from_pulses(layer[which]))


def test_arrays_go_on_as_the_stage_left_them_and_pulses_are_counted_anew(run):
    chain = {"first": chip(), "second": chip(lr=0.05)}
    ran = run({"stages": chain, "train": chip(lr=0.0)})
    first, second = run.kept()
    assert ran.trainings == 3
    assert_went_on(arrays(ran), second["cells"])
    for name, (index, layer) in zip(("2", "4"), second["cells"].items(), strict=True):
        slow, earlier = layer["slow"], first["cells"][index]["slow"]
        assert not torch.equal(slow["state"], earlier["state"])
        assert torch.equal(slow["up"], earlier["up"])  # the same cells
        assert float(slow["pulses"]) > 0 and float(arrays(ran)[name]["pulses"]) == 0
        assert torch.equal(ran.spy.began[f"{name}.weight"], ran.spy.ended[f"{name}.weight"])
        assert torch.equal(ran.spy.began[f"{name}.weight"], second["network"][f"{name}.weight"])
    assert ran.result["training_pulses"] == 0
    assert ran.result["training_images"] == 200


@pytest.mark.parametrize(("program", "hardware"), [(error(0.0), None), (None, UNROUNDED)], ids=["program", "hardware"])
def test_what_is_programmed_or_on_other_hardware_goes_to_new_arrays(run, program, hardware):
    stage = chip() | {"hardware": hardware}
    ran = run({"stages": {"first": stage}, "program": program, "train": chip(lr=0.0)})
    (kept,) = run.kept()
    for array, layer in zip(arrays(ran).values(), kept["cells"].values(), strict=True):
        assert not torch.equal(array["up"], layer["slow"]["up"])


def test_arrays_of_another_device_are_refused_by_both_names(run):
    with pytest.raises(ValueError, match="the arrays of layer 0 are of") as raised:
        run({"stages": {"first": chip()}, "train": chip(device="reram_hfo2")})
    assert "\n" not in str(raised.value)
    assert "of SoftBoundsReference(dw_min=0.0949" in str(raised.value)
    assert "the optimizer's device is SoftBoundsReference(dw_min=0.4622" in str(raised.value)
    assert run({"stages": {"first": chip()}, "train": chip(device="reram_hfo2"), "program": error(0.0)}).trainings == 1


@pytest.mark.parametrize(
    ("before", "after"), [("AGAD", "Hybrid"), ("CTTv2", "CTTv2"), ("CTTv2", "TTv2"), ("PulsedSGD", "TTv2")]
)
def test_only_the_same_algorithm_goes_on_with_its_fast_array(run, before, after):
    ran = run({"stages": {"first": chip(before)}, "train": chip(after, lr=0.0)})
    (kept,) = run.kept()
    assert_went_on(arrays(ran), kept["cells"])
    for state, earlier in zip(ran.spy.states.values(), kept["cells"].values(), strict=True):
        assert ("fast" in state) == (after != "Hybrid")
        if before == after:
            assert_went_on(arrays(ran, "fast"), kept["cells"], "fast")
            assert float(earlier["fast"]["pulses"]) > 0 == float(state["fast"]["pulses"])
            assert (earlier["chop"] < 0).any()
            assert torch.equal(state["chop"], earlier["chop"])
        elif after == "TTv2":
            assert (state["chop"] == 1).all()
            for name in {"slow", "fast"} & set(earlier):
                for part in ("up", "down", "upper", "lower"):
                    assert state["fast"][part].shape == earlier[name][part].shape
                    assert not torch.equal(state["fast"][part], earlier[name][part])


def test_a_fast_array_of_other_cells_is_drawn_anew(run):
    hfo2 = of("energytl.devices.presets.reram_hfo2")
    ran = run({"stages": {"first": chip("CTTv2")}, "train": chip("CTTv2", lr=0.0, fast_device=hfo2)})
    (kept,) = run.kept()
    assert_went_on(arrays(ran), kept["cells"])
    for state, earlier in zip(ran.spy.states.values(), kept["cells"].values(), strict=True):
        assert (state["chop"] == 1).all()
        assert not torch.equal(state["fast"]["up"], earlier["fast"]["up"])


def test_digital_training_goes_on_with_the_weights_that_cells_show(run):
    ran = run({"stages": {"first": chip()}, "train": sgd(lr=0.0)})
    (kept,) = run.kept()
    for index, name in enumerate(("2", "4")):
        cells = kept["cells"][index]
        shown = (cells["slow"]["state"] - cells["slow"]["reference"] + cells["slow"]["offset"]) * cells["range"]
        torch.testing.assert_close(ran.spy.ended[f"{name}.weight"], shown[0])


def comparable(ran):
    result = {key: value for key, value in ran.result.items() if key not in ("case", "recipe", "seconds", "finished")}
    return [result, ran.spy.ended, ran.spy.states]


def test_an_interrupted_training_on_arrays_that_go_on_resumes_bit_for_bit(run):
    settings = {"stages": {"first": chip("TTv2")}, "train": chip("TTv2", epochs=2)}
    unbroken = run(settings, "unbroken")
    with pytest.raises(KeyboardInterrupt):
        run(settings, "broken", interrupt=1)
    resumed = run(settings, "broken", resume=True)
    assert resumed.trainings == 1
    assert same(comparable(resumed), comparable(unbroken))
    assert [row["epoch"] for row in resumed.result["history"]] == [1.0, 2.0]
    (kept,) = run.kept()
    assert not any(same(arrays(resumed)[n]["state"], kept["cells"][i]["slow"]["state"]) for i, n in enumerate("24"))


def test_an_interrupted_stage_resumes_bit_for_bit(run):
    settings = {"pretrain": sgd(), "stages": {"first": chip("TTv2", epochs=2)}, "train": chip("TTv2")}
    unbroken, seen, watched = run(settings, kept="unbroken"), [], callbacks.StopAtNaN.on_train_batch_end

    def interrupt(*values):
        seen.append(1)
        if len(seen) == 6:  # of 2 steps an epoch: the second epoch of the stage
            raise KeyboardInterrupt
        watched(*values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks.StopAtNaN, "on_train_batch_end", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(settings, kept="broken")
    resumed = run(settings, kept="broken", resume=True)
    assert resumed.trainings == 2
    assert same(comparable(resumed), comparable(unbroken))
    assert same(run.kept("broken"), run.kept("unbroken"))


# Frozen layers


@pytest.mark.parametrize(
    ("patterns", "moving"),
    [
        (("2",), ["3.weight", "3.bias", "5.weight", "5.bias"]),
        (("2", "3"), ["5.weight", "5.bias"]),
        (("2.weight",), ["2.bias", "3.weight", "3.bias", "5.weight", "5.bias"]),
        (("*.bias", "5"), ["2.weight", "3.weight"]),
        (("[23]*",), ["5.weight", "5.bias"]),
        ((), ["2.weight", "2.bias", "3.weight", "3.bias", "5.weight", "5.bias"]),
    ],
)
def test_layers_are_frozen_by_patterns(patterns, moving):
    model = small(norm=True)
    freeze(model, patterns)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == moving
    frozen = [i for i in (2, 3, 5) if all(f"{i}.{part}" not in moving for part in ("weight", "bias"))]
    by_layer = [i for i in frozen if patterns and patterns[0] != "*.bias"] or [i for i in frozen if i == 5]
    assert [i for i in (2, 3, 5) if not model[i].training] == by_layer


def test_layers_within_layers_are_frozen_by_their_own_names():
    model = nn.ModuleDict({"body": nn.Sequential(small(), nn.BatchNorm1d(10)), "head": nn.Linear(10, 2)})
    freeze(model, ("body.0.2",))
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["body.0.2.weight", "body.0.2.bias"]
    freeze(model, ("body",))
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]
    assert not any(module.training for module in model["body"].modules())
    assert model["head"].training


def test_a_pattern_that_nothing_fits_names_the_parts(run):
    message = r"frozen: no layer fits 'first\*'; the network's parts: 0, 1, 2, 3, 4$"
    with pytest.raises(ValueError, match=message):
        freeze(small(), ("2", "first*"))
    (case,) = run.cases({"frozen": ["2", "first*"], "train": sgd()})
    assert refused(prepare, case, False).startswith("case tiny: frozen: no layer fits 'first*'; the network's parts: 0")
    (case,) = run.cases({"frozen": ["2"]})
    assert "frozen is about training, but train is null" in refused(case.build)


@pytest.mark.parametrize("train", [sgd(epochs=2), chip("CTTv2", epochs=2, lr=0.5)], ids=["digital", "chip"])
def test_frozen_layers_stay_bit_for_bit_and_only_they(run, train):
    settings = {"network": network(norm=True), "train": train}
    part = run(settings | {"frozen": ["2", "3"]}).spy
    whole = run(settings).spy
    kept = [name for name in part.began if name[0] in "23"]
    assert "3.running_mean" in kept
    assert all(torch.equal(part.began[name], part.ended[name]) for name in kept)
    assert not any(torch.equal(part.began[name], part.ended[name]) for name in ("5.weight", "5.bias"))
    assert not any(torch.equal(whole.began[name], whole.ended[name]) for name in part.began)
    assert not part.network[3].training and part.network[5].training


def test_stages_train_what_the_recipe_freezes(run):
    ran = run({"stages": {"first": sgd()}, "train": sgd(), "frozen": ["2"]})
    (case,) = run.cases({})
    start = prepare(case, needs_data=True).network.state_dict()
    (kept,) = run.kept()
    assert not torch.equal(kept["network"]["2.weight"], start["2.weight"])
    assert torch.equal(kept["network"]["2.weight"], ran.spy.ended["2.weight"])


def test_a_price_leaves_the_rho_of_frozen_layers(run):
    result, _, _ = run({"train": sgd(), "objective": PRICE, "frozen": ["2"]})
    first, last = (layer["rho"] for layer in result["layers"])
    assert first == pytest.approx(5.0)
    assert last < 4.5


@pytest.mark.parametrize(
    ("frozen", "train", "says"),
    [
        (["*"], sgd(), "frozen leaves nothing to train"),
        (["*weight"], chip(), "before its parameters go to the optimizer, and leave some out of frozen"),
    ],
    ids=["all", "all on chip"],
)
def test_training_with_nothing_to_train_is_refused_before_it_starts(run, frozen, train, says):
    (case,) = run.cases({"frozen": frozen, "train": train})
    assert says in refused(prepare, case, True)


def overwriting() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.ReLU(inplace=True))


@pytest.mark.parametrize("where", ["train", "stage"])
def test_hints_that_do_not_last_are_refused_before_anything_trains(run, where):
    hints = {"objective": {"hints": ["1"], "hint_weight": 1.0}}
    settings = {"train": sgd()} | hints if where == "train" else {"stages": {"a": sgd() | hints}}
    (case,) = run.cases({"network": "test_stages.overwriting"} | settings)
    assert "what follows 1 overwrites its output" in refused(prepare, case, True)


def test_a_stage_learns_from_hints_alone(run):
    wish = {"hints": ["2"], "hint_weight": 2.0}
    plain, hinted = (run({"stages": {"a": sgd(lr=0.0) | extra}}).result for extra in ({}, {"objective": wish}))
    losses = [result["stages"][0]["history"][-1]["train/task_loss"] for result in (plain, hinted)]
    assert losses[1] > losses[0] + 1e-4  # reads fluctuate: no feature is quite the digital one


# The write, and how soon training rises


def written(run, std, **settings):
    """Written minus wanted weights of the wide layer in units of its range; written ones likewise; the whole run."""
    wide = {"network": network(hidden=600), "program": error(std), "train": sgd(lr=0.0)} | settings
    ran = run(wide)
    (case,) = run.cases(wide)
    wanted = prepare(case, needs_data=True).network.state_dict()
    layer = analog_layers(ran.spy.network)["2"]
    found = ran.spy.began["2.weight"].double() / layer.weight_range
    assert torch.equal(ran.spy.began["2.bias"], wanted["2.bias"])
    return found - wanted["2.weight"].double() / layer.weight_range, found, ran


def test_written_weights_miss_by_the_error_and_stay_in_the_range(run):
    differences, found, _ = written(run, 0.05)
    count = differences.numel()
    assert count == 9600
    assert abs(float(differences.std()) - 0.05) < 5 * 0.05 / (2 * count) ** 0.5
    assert abs(float(differences.mean())) < 5 * 0.05 / count**0.5
    assert float(found.abs().max()) <= 1
    other, _, _ = written(run, 0.05, seed=1)
    assert abs(torch.corrcoef(torch.stack([differences.flatten(), other.flatten()]))[0, 1]) < 5 / count**0.5
    again, _, _ = written(run, 0.05)
    assert torch.equal(differences, again)
    _, found, _ = written(run, 0.5)
    clipped = found.abs() > 1 - 1e-6
    assert float(found.abs().max()) <= 1 + 1e-6
    assert 0.04 < float(clipped.double().mean()) < 0.2


def test_accuracies_before_training_are_told_and_the_last_one_begins_the_curves(run):
    settings = {"convergence": {"target": 0.9}, "train": sgd()}
    settings |= {"pretrain": sgd(lr=0.5, epochs=4) | {"data": digits(batch_size=10)}}
    settings |= {"trainer": TRAINER | {"limit_train_batches": 100}}
    result, _, _ = run(settings | {"program": error(3.0)})
    before = result["before"]
    assert list(before) == ["digital", "converted", "programmed"]
    (kept,) = run.kept()
    digital, data = small(), Digits()
    digital.load_state_dict(kept["network"])
    data.setup()
    right = digital(data.test_set.tensors[0]).argmax(1) == data.test_set.tensors[1]
    assert before["digital"] == [pytest.approx(float(right.double().mean()), abs=1e-9)]
    assert before["digital"][0] > 0.5
    assert abs(before["converted"][0] - before["digital"][0]) < 0.2
    assert before["programmed"][0] < before["converted"][0] - 0.1
    found = result["history"][0]
    assert found == {"epoch": 0.0, "step": 0.0, "images": 0.0, "val/accuracy": before["programmed"][0]}
    assert result["convergence"]["accuracy"][0][0] == before["programmed"][0]
    unwritten = run(settings).result
    assert list(unwritten["before"]) == ["digital", "converted"]
    assert unwritten["before"]["converted"] == before["converted"]
    assert unwritten["history"][0]["val/accuracy"] == before["converted"][0]


CONVERGENCE = {"convergence": {"target": 0.9, "window": 2}, "train": sgd(epochs=2)}


def curves(run, trainer, batch_size=100, **settings):
    settings = {"data": digits(batch_size=batch_size), "trainer": TRAINER | trainer} | settings
    return run(CONVERGENCE | settings).result


@pytest.mark.parametrize(
    ("trainer", "batch_size", "images", "steps", "epochs"),
    [
        (
            {"limit_train_batches": 4, "val_check_interval": 2},
            100,
            [0, 200, 400, 600, 800],
            [0, 2, 4, 6, 8],
            [0, 0.5, 1, 1.5, 2],
        ),
        (
            {"limit_train_batches": 1.0, "val_check_interval": 0.25},
            1000,
            [1000 * i for i in range(9)],
            list(range(9)),
            [i / 4 for i in range(9)],
        ),
        ({"limit_train_batches": 1.0}, 1600, [0, 4000, 8000], [0, 3, 6], [0, 1, 2]),
        (
            {"limit_train_batches": 1.0, "val_check_interval": 1},
            1600,
            [0, 1600, 3200, 4000, 5600, 7200, 8000],
            list(range(7)),
            [0, 1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2],
        ),
        ({"limit_train_batches": 4, "accumulate_grad_batches": 2}, 100, [0, 400, 800], [0, 2, 4], [0, 1, 2]),
    ],
    ids=["few batches", "share of an epoch", "part of a batch", "part of a batch within", "accumulated"],
)
def test_curves_against_images(run, trainer, batch_size, images, steps, epochs):
    result = curves(run, trainer, batch_size)
    found = result["convergence"]
    assert (found["target"], found["window"]) == (0.9, 2)
    assert found["images"] == images
    assert [row["images"] for row in result["history"]] == images
    assert found["steps"] == steps
    assert [row["epoch"] for row in result["history"]] == pytest.approx(epochs)
    assert [row["val/accuracy"] for row in result["history"]] == found["accuracy"][0]
    assert [len(found["accuracy"]), len(found["accuracy"][0])] == [1, len(images)]
    within = [row for row in result["history"][1:] if row["epoch"] % 1]
    assert all(set(row) == {"epoch", "step", "images", "val/loss", "val/accuracy"} for row in within)


@pytest.mark.parametrize(
    ("trainer", "images", "epochs", "validated"),
    [
        ({"limit_train_batches": 4, "val_check_interval": 3}, [0, 300, 700], [0, 0.75, 1, 1.75, 2], [0, 0.75, 1.75]),
        ({"check_val_every_n_epoch": 2}, [0, 400], [0, 1, 2], [0, 2]),
    ],
    ids=["within epochs alone", "every other epoch"],
)
def test_epochs_that_end_without_a_validation_have_no_place_in_the_curves(run, trainer, images, epochs, validated):
    result = curves(run, trainer)
    assert result["convergence"]["images"] == images
    assert [len(accuracies) for accuracies in result["convergence"]["accuracy"]] == [len(images)]
    assert [row["epoch"] for row in result["history"]] == epochs
    for name in ("val/accuracy", "val/loss"):
        assert [row["epoch"] for row in result["history"] if name in row] == validated[name == "val/loss" :]
    assert all(("train/loss" in row) == (row["epoch"] in (1, 2)) for row in result["history"])


@pytest.mark.parametrize("asked", [(True, True), (False, True), (True, False)])
def test_a_shared_training_has_the_curves_that_are_asked_for(run, asked):
    for trainings, wanted in zip((1, 0), asked, strict=True):
        ran = run(CONVERGENCE | {"share_training": True} | ({} if wanted else {"convergence": None}))
        assert ran.trainings == trainings
        assert [row["epoch"] for row in ran.result["history"]] == [0.0, 1.0, 2.0][not wanted :]


def test_a_resumed_training_has_the_curves_of_the_unbroken_one(run):
    within = {"trainer": TRAINER | {"limit_train_batches": 4, "val_check_interval": 2}}
    settings = CONVERGENCE | {"program": error(0.1)} | within
    unbroken = run(settings, "unbroken")
    with pytest.raises(KeyboardInterrupt):
        run(settings, "broken", interrupt=1)
    resumed = run(settings, "broken", resume=True)
    assert same(comparable(resumed), comparable(unbroken))


# Runs side by side


def test_runs_side_by_side_are_told_apart(run):
    settings = {"network": side_by_side(3), "data": reduced(repeats=3, batch_size=20), "stages": {"first": chip()}}
    settings |= {"program": error(0.2), "trainer": TRAINER | {"limit_train_batches": 1.0, "limit_val_batches": 1.0}}
    settings |= {"train": chip("TTv2", epochs=2), "convergence": {"target": 0.9}}
    result, _, spy = run(settings)
    assert all(len(accuracies) == 3 for accuracies in result["before"].values())
    rows, found = result["history"], result["convergence"]
    assert found["images"] == [0, 60, 120]
    assert [[run[i] for run in found["accuracy"]] for i in range(3)] == [row["val/accuracies"] for row in rows]
    assert rows[0]["val/accuracies"] == result["before"]["programmed"]
    for row in rows:
        assert row["val/accuracy"] == pytest.approx(sum(row["val/accuracies"]) / 3, abs=1e-6)
    (case,) = run.cases(settings)
    data = prepare(case, needs_data=True).data
    single = [run_accuracies(nn.Sequential(spy.network, Only(i)), data.val_dataloader()) for i in range(3)]
    assert [len(found) for found in single] == [3, 3, 3]
    assert result["cells"] == 16
    assert [layer["groups"] for layer in result["layers"]] == [1]


class Only(nn.Module):
    """The outputs of one of several runs, in all places."""

    def __init__(self, run):
        super().__init__()
        self.run = run

    def forward(self, logits):
        return logits[..., self.run : self.run + 1].expand_as(logits)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"evaluation": {"reads": 1}},
            "evaluation is of one network, but 3 runs train side by side: set evaluation: n",
        ),
        ({"network": side_by_side(2)}, "the network SideBySide does not take images of shape (24, 1, 1)"),
        (
            {"network": of("energytl.models.mlp", features=24, hidden=[], classes=2)},
            "the network Sequential gives (2,) numbers for an image; the data has 2 classes in 3 runs: set the "
            "network's classes and runs",
        ),
        (
            {"network": of("energytl.models.SideBySide", features=8, classes=3, runs=3)},
            "the network SideBySide gives (3, 3) numbers for an image; the data has 2 classes in 3 runs",
        ),
        (
            {"data": digits()},
            "the network SideBySide does not take images of shape (1, 28, 28)",
        ),
    ],
)
def test_networks_and_measurements_that_runs_do_not_go_with(run, settings, says):
    (case,) = run.cases({"network": side_by_side(3), "data": reduced(repeats=3)} | settings)
    assert says in refused(prepare, case, True)


@pytest.mark.parametrize("kind", ["mlp", "side by side"])
def test_a_single_run_trains(run, kind):
    one = {"mlp": of("energytl.models.mlp", features=8, hidden=[], classes=2), "side by side": side_by_side(1)}
    assert run({"network": one[kind], "data": reduced(repeats=1), "train": sgd()}).trainings == 1
