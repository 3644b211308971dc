"""Trainings that follow each other, and trainings that other runs take over."""

import pytest
import torch
import yaml
from lightning.pytorch import Trainer

from energytl import callbacks
from energytl import run as run_module
from energytl.kept_trainings import first_training
from energytl.models import mlp
from energytl.recipe import RecipeError, read
from energytl.run import prepare, run_case

EVALUATION = {"reads": 2, "images": 200, "cost_batches": 1}
QUIET = {"enable_progress_bar": False, "limit_val_batches": 1}
SETTINGS = {
    "network": {"class_path": "energytl.models.mlp", "init_args": {"hidden": [8]}},
    "data": {"class_path": "energytl.data.Digits", "init_args": {"batch_size": 500}},
    "pretrain": {"epochs": 2},
    "train": {"epochs": 1},
    "hardware": {"rho": 5.0},
    "evaluation": EVALUATION,
    "trainer": QUIET,
}
NOISELESS = SETTINGS | {"training_computation": "Noiseless", "share_training": True}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """run(settings, name): the result of a recipe of one case, and how many trainings it took; all share a folder."""
    folder = tmp_path_factory.mktemp("runs")
    fit, trainings = Trainer.fit, []

    def counting(*args, **kwargs):
        trainings.append(1)
        return fit(*args, **kwargs)

    def ran(settings, name="tiny", resume=False):
        (case,) = read(written(folder, settings), [])
        trainings.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "fit", counting)
            patch.setattr(run_module, "case_figures", lambda result: {})  # drawing them takes longer than training
            result = run_case(case, 0, folder / "out" / name, resume)
        return result, len(trainings)

    ran.folder = folder / "out"
    ran({key: value for key, value in SETTINGS.items() if key != "train"})  # the digital network
    return ran


def written(folder, settings):
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False), "utf-8")
    return path


def same(result):
    """What does not depend on when, and as what, a result was made."""
    return {key: value for key, value in result.items() if key not in ("case", "recipe", "seconds", "finished")}


@pytest.fixture(scope="module")
def noiseless(run):
    """The first of the runs that share a training."""
    result, trainings = run(NOISELESS, "first")
    assert trainings == 1
    return result


# several λ


def test_each_training_goes_on_from_the_last_ones_weights(run):
    settings = SETTINGS | {"train": {"epochs": 2}, "objective": {"energy_weight": [0.5, 3.0], "rho_lr": 0.1}}
    settings |= {"evaluation": EVALUATION | {"max_drop": [0.1, 0.2]}}
    family, trainings = run(settings, "family")
    assert trainings == 3  # the digital network has not seen the images held out
    rows = family["history"]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    energies = [row["train/energy"] for row in rows]
    assert energies[0] > energies[1] > energies[2] > energies[3]
    rho = [row["rho"] for row in rows]
    assert rho[0] > rho[1] > rho[2] > rho[3]
    alone, _ = run(settings | {"objective": {"energy_weight": 0.5, "rho_lr": 0.1}}, "alone")
    assert alone["history"] == rows[:2]
    assert {row["energy_weight"] for row in family["curves"]} == {0.5, 3.0}
    assert {point["energy_weight"] for point in family["points"]} <= {0.5, 3.0}


def test_a_relative_price_stays_in_units_of_the_first_trainings_start(run):
    result, _ = run(SETTINGS | {"objective": {"energy_weight": [1.0, 1.0], "rho_lr": 0.1}})
    unit = [row["train/energy"] / (row["train/loss"] - row["train/task_loss"]) for row in result["history"]]
    assert unit[1] == pytest.approx(unit[0], rel=1e-3)
    assert unit[0] > result["history"][0]["train/energy"] > 1.2 * result["history"][1]["train/energy"]


def test_an_interrupted_second_training_resumes_to_the_same_result(run):
    settings = SETTINGS | {"objective": {"energy_weight": [0.5, 3.0]}}
    unbroken, _ = run(settings, "unbroken")
    seen, watched = [], callbacks.StopAtNaN.on_train_batch_end

    def interrupt(*values):
        seen.append(1)
        if len(seen) == 12:  # of 8 steps an epoch
            raise KeyboardInterrupt
        watched(*values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks.StopAtNaN, "on_train_batch_end", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(settings, "broken")
    resumed, _ = run(settings, "broken", resume=True)
    assert same(resumed) == same(unbroken)


# shared trainings


def test_what_was_trained_serves_later_runs_and_other_recipes(run, noiseless):
    again, trainings = run(NOISELESS, "first")
    assert trainings == 0
    other, trainings = run(NOISELESS | {"method": "named otherwise"}, "other")
    assert trainings == 0
    assert same(again) == same(noiseless)
    assert same(other) == same(noiseless) | {"method": "named otherwise"}


def test_a_family_is_shared_training_by_training(run):
    settings = SETTINGS | {"share_training": True}
    first, trainings = run(settings | {"objective": {"energy_weight": [0.5, 3.0]}}, "first")
    assert trainings == 2
    longer, trainings = run(settings | {"objective": {"energy_weight": [0.5, 3.0, 0.0]}}, "longer")
    assert trainings == 1  # the third one
    assert longer["history"][:2] == first["history"]
    again, trainings = run(settings | {"objective": {"energy_weight": [0.5, 3.0, 0.0]}}, "again")
    assert trainings == 0
    assert same(again) == same(longer)  # whose last training, without a price, keeps ρ as the one before left it
    assert again["layers"][0]["rho"] < 4.9


def test_what_training_without_noise_does_not_see_does_not_make_it_train_anew(run, noiseless):
    hardware = {"rho": 2.0, "read": "BitSerialRead", "mapping": "DifferentialPair"}
    hardware |= {"fluctuation": {"intensity": 2.0}, "cell": {"read_volt": 0.3}}
    result, trainings = run(NOISELESS | {"hardware": hardware}, "other")
    assert trainings == 0
    assert [layer["rho"] for layer in result["layers"]] == pytest.approx([2.0, 2.0], rel=1e-5)
    assert result["cells"] == 2 * noiseless["cells"]
    assert result["reads"] == 5 * noiseless["reads"]
    (row,), (first,) = result["history"], noiseless["history"]
    assert seen(row) == seen(first)
    anew, trainings = run(NOISELESS | {"hardware": hardware, "share_training": False}, "anew")
    assert trainings == 1
    assert seen(anew["history"][0]) == seen(row)
    assert row["val/loss"] != first["val/loss"]  # of its own hardware, not of the first one's
    error = (0.5 / 500) ** 0.5  # at most, of the difference of two reads of 500 images
    assert abs(row["val/accuracy"] - anew["history"][0]["val/accuracy"]) < 5 * error


def seen(row):
    """What training itself logs."""
    return {name: value for name, value in row.items() if not name.startswith("val/") and name != "rho"}


def test_calibration_sees_fluctuation_only_where_training_does(run, noiseless):
    def loss(**settings):
        result, _ = run(NOISELESS | {"share_training": False} | settings, "other")
        return result["history"][-1]["train/loss"]

    cells = {"rho": 0.05, "read": "BitSerialRead"}
    assert loss(hardware=cells) == noiseless["history"][-1]["train/loss"]
    assert loss(hardware=cells, training_computation="Moments") != loss(training_computation="Moments")
    untrained = [run(SETTINGS | {"train": None, "hardware": {"rho": rho}}, "other")[0] for rho in (0.05, 5.0)]
    assert untrained[0]["accuracy_quantised"] == untrained[1]["accuracy_quantised"]


@pytest.mark.parametrize(
    "change",
    [
        {"objective": {"energy_weight": 0.5}},
        {"hardware": {"rho": 5.0, "weights": {"bits": 6}}},
        {"hardware": {"rho": 5.0, "inputs": {"bits": 4}}},
        {"hardware": {"rho": 5.0, "mapping": {"class_path": "MultilevelPair", "init_args": {"levels": [1, 3, 8]}}}},
        {"hardware": {"rho": 5.0, "mapping": {"class_path": "MultilevelPair", "init_args": {"levels": [1]}}}},
        {"train": {"epochs": 2}},
        {"calibration_batches": 1},
    ],
    ids=str,
)
def test_what_training_sees_makes_it_train_anew(run, noiseless, change):
    assert run(NOISELESS | change, "other")[1] == 1


@pytest.mark.parametrize("change", [{"training_computation": "Moments"}, {"objective": {"energy_weight": 0.1}}])
def test_training_with_noise_or_a_price_sees_the_hardware(run, noiseless, change):
    for rho in (5.0, 2.0):
        assert run(NOISELESS | change | {"hardware": {"rho": rho}}, "other")[1] == 1


def test_trainings_are_shared_only_where_the_recipe_asks_for_it(run):
    settings = NOISELESS | {"calibration_batches": 2}
    for _ in range(2):
        assert run(settings | {"share_training": False})[1] == 1
    assert run(settings)[1] == 1  # none was kept
    assert run(settings)[1] == 0


@pytest.mark.parametrize(
    ("changes", "is_kept"),
    [({}, True), ({"method": "other"}, True), ({"seed": 1}, False), ({"objective": {"temperature": 3.0}}, False)],
)
def test_a_first_training_has_the_name_under_which_it_is_kept(run, noiseless, changes, is_kept):
    (case,) = read(written(run.folder, NOISELESS | changes), [])
    name = first_training(case, prepare(case, needs_data=True))
    assert (run.folder / "trained" / name / "network.pt").is_file() == is_kept


@pytest.mark.parametrize("changes", [{"share_training": False}, {"train": None}])
def test_what_keeps_no_training_has_no_name_for_it(run, changes):
    (case,) = read(written(run.folder, NOISELESS | changes), [])
    assert first_training(case, prepare(case, needs_data=True)) is None


def test_training_on_the_chip_is_not_shared_so_that_what_it_cost_is_known(run):
    device = {"class_path": "energytl.devices.pulsed.SoftBounds", "init_args": {"dw_min": 0.01}}
    optimizer = {"class_path": "energytl.optim.PulsedSGD", "init_args": {"lr": 0.1, "device": device}}
    settings = NOISELESS | {"train": {"epochs": 1, "optimizer": optimizer}, "hardware.weights.bits": None}
    for _ in range(2):
        result, trainings = run(settings | {"trainer": QUIET | {"limit_train_batches": 1}, "pretrain": None})
        assert trainings == 1
        assert result["training_pulses"] > 0


def test_a_damaged_shared_network_is_named(run):
    before = set(run.folder.glob("trained/*/training.json"))
    settings = NOISELESS | {"calibration_batches": 3}
    run(settings)
    (done,) = set(run.folder.glob("trained/*/training.json")) - before
    (done.parent / "network.pt").write_bytes(b"half a network")
    with pytest.raises(RecipeError, match=f"kept training {done.parent}/network.pt cannot be read"):
        run(settings)


@pytest.mark.parametrize("what", ["network", "data"])
def test_an_edited_module_trains_anew_and_a_reused_one_is_told(run, tmp_path, monkeypatch, capsys, what):
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"edited_{what}_a"
    lines = {
        "network": "from torch.nn import Linear, Module, Sequential, Flatten\n"
        "def made() -> Module:\n    return Sequential(Flatten(), Linear(784, 10))",
        "data": "from energytl.data import Digits\nclass made(Digits):\n    pass",
    }[what]
    (tmp_path / f"{name}.py").write_text(lines + "\n")
    settings = SETTINGS | {what: f"{name}.made", "train": None, "evaluation": None, "pretrain": {"epochs": 1}}
    assert run(settings)[1] == 1
    capsys.readouterr()
    assert run(settings)[1] == 0
    assert f"tiny: pretrain is taken from {run.folder}/trained/" in capsys.readouterr().err
    (tmp_path / f"{name}.py").write_text(lines + "\n# edited\n")
    assert run(settings)[1] == 1


def test_a_finished_run_of_an_edited_module_is_not_taken_for_a_new_one(run, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "edited_after_the_run.py"
    module.write_text("from energytl.data import Digits\nclass made(Digits):\n    pass\n")
    settings = SETTINGS | {"data": "edited_after_the_run.made", "train": None, "evaluation": None}
    first, _ = run(settings, "rerun", resume=True)
    assert run(settings, "rerun", resume=True)[0]["finished"] == first["finished"]
    module.write_text(module.read_text() + "# edited\n")
    capsys.readouterr()
    run(settings, "rerun", resume=True)
    assert "was run by other code; starting anew" in capsys.readouterr().err
    assert len(list((run.folder / "rerun").glob("tiny/version_*"))) == 2


@pytest.mark.parametrize("fault", ["no history", "no weight"])
def test_a_kept_pretraining_of_other_content_is_named(run, fault):
    settings = SETTINGS | {"train": None, "evaluation": None, "pretrain": {"epochs": 1, "seed": 5 + len(fault)}}
    before = set(run.folder.glob("trained/*/network.pt"))
    run(settings)
    (file,) = set(run.folder.glob("trained/*/network.pt")) - before
    content = torch.load(file, weights_only=True)
    if fault == "no history":
        del content["history"]
    else:
        del content["network"][next(iter(content["network"]))]
    torch.save(content, file)
    with pytest.raises(RecipeError, match=f"kept training {file} (has no history|is of a different network)"):
        run(settings)


# the teacher


@pytest.mark.parametrize("distillation", [0.0, 0.5])
def test_preparing_a_case_leaves_its_network_in_training_mode(tmp_path, distillation):
    (case,) = read(written(tmp_path, SETTINGS | {"objective": {"distillation": distillation}}), [])
    network = prepare(case, needs_data=True).network
    assert all(module.training for module in network.modules())


@pytest.mark.parametrize("objective", [{"distillation": 1.0}, {"hints": ["1"], "hint_weight": 30.0}])
def test_distillation_and_hints_pull_towards_the_digital_network(run, tmp_path, objective):
    torch.manual_seed(0)
    torch.save(mlp(hidden=(8,)).state_dict(), tmp_path / "random.pt")  # a teacher of nothing
    settings = SETTINGS | {"weights": str(tmp_path / "random.pt"), "pretrain": None}
    own, _ = run(settings)
    taught, _ = run(settings | {"objective": objective})
    assert taught["history"][-1]["train/accuracy"] < own["history"][-1]["train/accuracy"] - 0.05


# images held out


def test_what_is_chosen_is_chosen_on_images_that_no_training_saw_and_a_kept_training_knows_how_many(run, monkeypatch):
    seen = []
    fit = Trainer.fit

    def noting(self, *args, datamodule, **kwargs):
        seen.append({image.numpy().tobytes() for image, _ in datamodule.train_set})
        chosen.append({image.numpy().tobytes() for image, _ in datamodule.held_out})
        return fit(self, *args, datamodule=datamodule, **kwargs)

    chosen: list[set[bytes]] = []
    settings = SETTINGS | {"share_training": True, "evaluation": EVALUATION | {"max_drop": 0.2, "held_out": 600}}
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "fit", noting)
        (case,) = read(written(run.folder.parent, settings), [])
        result = run_case(case, 0, run.folder / "held_out", False)
    assert len(seen) == 2  # the digital network, and the analog one
    assert all(len(images) == 3400 for images in seen)
    assert all(len(images) == 600 for images in chosen)
    assert not set.union(*seen) & set.union(*chosen)
    assert result["chosen_on"] == {"images": 600, "of": "training"}
    assert result["tested_images"] == 200
    assert run(settings, "again")[1] == 0
    others = settings | {"evaluation": settings["evaluation"] | {"held_out": 601}}
    assert run(others, "others")[1] == 2
    nothing_chosen = {key: value for key, value in settings.items() if key != "evaluation"} | {"evaluation": EVALUATION}
    plain, _ = run(nothing_chosen, "plain")
    assert plain["history"] != result["history"]  # trained on all images
    assert plain["chosen_on"] is None


def test_a_pre_training_on_the_same_data_in_other_batches_does_not_see_the_images_held_out(run):
    pretrain = SETTINGS["pretrain"] | {"data": {"class_path": "energytl.data.Digits", "init_args": {"batch_size": 100}}}
    settings = SETTINGS | {"pretrain": pretrain, "evaluation": EVALUATION | {"max_drop": 0.2}}
    (case,) = read(written(run.folder.parent, settings), [])
    recipe = prepare(case, needs_data=True)
    before = {image.numpy().tobytes() for image, _ in recipe.pretrain.data.train_set}
    held_out = {image.numpy().tobytes() for image, _ in recipe.data.held_out}
    assert (len(before), len(held_out)) == (3200, 800)
    assert not before & held_out


def test_weights_that_may_know_the_training_images_choose_on_test_images_that_are_not_told_of(run, tmp_path):
    torch.save(mlp(hidden=(8,)).state_dict(), tmp_path / "weights.pt")
    evaluation = {"reads": 2, "budgets": [100.0], "cost_batches": 1}
    settings = SETTINGS | {"weights": str(tmp_path / "weights.pt"), "pretrain": None, "evaluation": evaluation}
    (case,) = read(written(tmp_path, settings), [])
    recipe = prepare(case, needs_data=True)
    assert [len(images) for images in (recipe.data.train_set, recipe.data.held_out, recipe.data.test_set)] == [
        4000,
        500,
        500,
    ]
    result, _ = run(settings | {"train": None}, "weights")
    assert result["chosen_on"] == {"images": 500, "of": "test"}
    assert result["tested_images"] == 500


def test_more_images_than_there_are_cannot_be_held_out(run):
    settings = SETTINGS | {"evaluation": EVALUATION | {"max_drop": 0.2, "held_out": 4000}}
    (case,) = read(written(run.folder.parent, settings), [])
    with pytest.raises(RecipeError, match=r"evaluation\.held_out is 4000; allowed: 1 to 3999 of 4000 training images"):
        prepare(case, needs_data=True)


def test_a_run_that_a_search_chooses_by_is_measured_and_watched_on_images_held_out(run):
    (case,) = read(written(run.folder.parent, SETTINGS | {"evaluation": EVALUATION | {"searched": True}}), [])
    recipe = prepare(case, needs_data=True)
    watched = torch.cat([labels for _, labels in recipe.data.val_dataloader()])
    assert torch.equal(watched, torch.tensor([label for _, label in recipe.data.held_out]))
    result = run_case(case, 0, run.folder / "searched", False)
    assert abs(result["accuracy_held_out"] - result["accuracy_median"]) < 5 * (0.5 / 200) ** 0.5
    assert result["chosen_on"] == {"images": 800, "of": "training"}
