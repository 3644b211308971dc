"""The whole flow on one page: recipe → data → digital network → convert → train → evaluate → cost → result."""

import copy
import math
import platform
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn
from torch.utils.data import DataLoader

from energytl.analog.configure import configure
from energytl.analog.convert import convert
from energytl.analog.inference import inference
from energytl.cost.estimate import estimate
from energytl.data import ImageData
from energytl.evaluation import Batches, Judged, digital_ranks, run_accuracies
from energytl.objectives import Objective
from energytl.origin import code_line, described
from energytl.plots import case_figures
from energytl.points import Points, cost_numbers, price
from energytl.recipe import KEPT, PRETRAIN, Case, Fit, Pretrain, Recipe, RecipeError, Stage, flat
from energytl.rehearsal import first_training_batch, random_batch, refuse_test_images, refuse_trainer, refuse_training
from energytl.results import (
    POINT_KEYS,
    Result,
    finished,
    new_version,
    read_json,
    read_result,
    version_number,
    versions,
    write_json,
)
from energytl.source import made_by
from energytl.stages import analog_network, before_training, first_row, freeze, load_what_fits, program
from energytl.streams import Stream, seed_of
from energytl.training import Row, Trained, load_weights, several_processes, train

HELD_IMAGES_BYTES = 2**31
"""Images to measure on are read and transformed once and held up to this size; more are loaded anew each time."""


CODE = "code.json"
"""Of a version folder: which versions of libraries, and which files of the user's own, ran it."""


def run_case(
    case: Case,
    order: int,
    recipe_folder: Path,
    resume: bool,
    watch: Callable[[Recipe], list[Callback]] = lambda recipe: [],
) -> Result:
    """Train, evaluate and price one case; everything about it lies in a version folder of its own.

    Args:
        case: what to run.
        order: its place among the recipe's cases.
        recipe_folder: logs/<recipe>.
        resume: take up the latest version, if it has the same settings: return its result if it is finished,
            else go on from its last checkpoint.
        watch: makes callbacks that look at the training of the analog network, and may end it by an exception.
    """
    folder = _version_folder(case, recipe_folder / case.name, resume)
    if finished(folder):
        return read_result(folder / "result.json")
    started = time.monotonic()
    recipe = prepare(case, needs_data=True)
    digital = recipe.network
    kept = recipe_folder.parent / KEPT
    start = before_training(case, recipe, kept)
    device = _device(case)
    test: Judged | None = None
    held_out: Judged | None = None
    if recipe.evaluation is not None:
        loader = recipe.data.test_dataloader(recipe.evaluation.images, recipe.data.evaluation_batch)
        test = _judged(case.name, digital.to(device), recipe.data, loader)
        if recipe.evaluation.holds_out:
            held_out = _judged(case.name, digital, recipe.data, recipe.data.held_out_dataloader())
        if held_out and recipe.evaluation.drops:
            _refuse_chance(case, held_out.accuracy - max(recipe.evaluation.drops), recipe.data.classes)
    before = _accuracies("digital", recipe, digital)
    teacher = copy.deepcopy(digital) if recipe.objective.wants_teacher else None
    analog = analog_network(
        recipe, digital.to(device), recipe.hardware, recipe.data, recipe.seed, recipe.calibration
    ).to(device)
    start.apply_(analog)
    before |= _accuracies("converted", recipe, analog)
    if recipe.program is not None:
        program(recipe, analog)
        before |= _accuracies("programmed", recipe, analog)
    freeze(analog, recipe.frozen)
    logger = TensorBoardLogger(
        recipe_folder.parent,
        f"{recipe_folder.name}/{case.name}",
        version=version_number(folder),
        default_hp_metric=False,
    )
    rows = [first_row(found) for found in [*before.values()][-1:]]
    trained = train(case, recipe, analog, teacher, folder, kept, logger, watch(recipe), start.cells, rows)
    result: Result = {
        "case": case.name,
        "order": order,
        "recipe": recipe_folder.name,
        "baseline": recipe.baseline,
        "method": recipe.method,
        "condition": recipe.condition,
        "published": recipe.published,
        "paper": recipe.paper,
    }
    result |= _measure(case.name, analog.to(device), recipe, trained, test, held_out)
    if recipe.convergence is not None:
        result["convergence"] = _curves(recipe, trained[-1].history)
        result["before"] = before
    result |= {
        "stages": start.curves,
        "history": trained[-1].history,
        "seed": recipe.seed,
        "seconds": round(time.monotonic() - started, 1),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in ("energytl", "torch", "lightning", "torchvision")}
        | {"python": platform.python_version()},
    }
    _record(logger, case, folder, result)
    return result


def _accuracies(stage: str, recipe: Recipe, network: nn.Module) -> dict[str, list[float]]:
    """Accuracy of each run before training, if the recipe asks how soon it rises."""
    if recipe.convergence is None:
        return {}
    return {stage: run_accuracies(network, recipe.data.val_dataloader(), seed_of(Stream.START, recipe.seed))}


def _curves(recipe: Recipe, history: list[Row]) -> Result:
    """Accuracy of each run against images, with what it is compared to."""
    assert recipe.convergence is not None
    measured = [row for row in history if "val/accuracy" in row]
    accuracies = [row.get("val/accuracies") or [row["val/accuracy"]] for row in measured]
    return {
        **asdict(recipe.convergence),
        "images": [int(row["images"]) for row in measured],
        "steps": [int(row["step"]) for row in measured],
        "accuracy": [list(run) for run in zip(*accuracies, strict=True)],
    }


def _judged(label: str, digital: nn.Module, data: ImageData, loader: DataLoader[tuple[Tensor, Tensor]]) -> Judged:
    """Images, held where they are not too many, and what the digital network makes of them."""
    size = len(loader.dataset) * math.prod(data.shape) * 4  # type: ignore[arg-type]
    batches: Batches = list(loader) if size <= HELD_IMAGES_BYTES else loader
    return Judged(batches, digital_ranks(digital, batches, f"{label}: digital"))


def _measure(
    label: str, analog: nn.Module, recipe: Recipe, trained: list[Trained], test: Judged | None, held_out: Judged | None
) -> Result:
    """The points of a case; the first one's numbers are the case's own."""
    if test is None:
        cost = price(analog, recipe.data, 1, recipe)
        if trained[-1].activities:
            cost = cost.with_training(trained[-1].activities, recipe.periphery)
        cost = cost.of_one(recipe.data.runs)
        return dict.fromkeys(POINT_KEYS) | {"accuracy_digital": None, "rho_factor": 1.0} | cost_numbers(cost)
    points, curves = Points(label, analog, recipe, test, held_out).measure(trained)
    accuracy_digital = None if _begins_at_chance(recipe, test.accuracy) else test.accuracy  # None: nothing to compare
    of = "training" if recipe.data.trains_without else "test"
    return points[0] | {
        "accuracy_digital": accuracy_digital,
        "points": points,
        "curves": curves,
        "tested_images": len(test.digital),
        "chosen_on": {"images": len(held_out.digital), "of": of} if held_out else None,
    }


def _begins_at_chance(recipe: Recipe, accuracy_digital: float) -> bool:
    """Whether training begins with a digital network that has not learnt this data: near chance it is."""
    before = list(recipe.before.values())
    unlearnt = before[-1].data is not None if before else recipe.weights is None
    return recipe.train is not None and unlearnt and accuracy_digital <= 1.5 / recipe.data.classes


def _refuse_chance(case: Case, target: float, classes: int) -> None:
    if target <= 1 / classes:
        raise RecipeError(
            f"case {case.name}: evaluation.max_drop asks for {100 * target:.1f} % accuracy, which is chance: train the "
            "digital network (pretrain), load weights, or set max_drop: null"
        )


def prepare(case: Case, needs_data: bool) -> Recipe:
    """The recipe, built and seeded, its data and weights loaded, if they are there.

    Args:
        case: what to build.
        needs_data: raise if training or evaluation wants data that is not there.

    Raises:
        RecipeError: for what could not run through: a wrong setting, weights of another network, a network that does
            not take the images, layers that would stay digital.
    """
    if not 0 <= case.settings.seed < 2**32:
        raise RecipeError(f"case {case.name}: seed is {case.settings.seed}; allowed: 0 to 4294967295")
    seed_everything(case.settings.seed, workers=True, verbose=False)
    try:
        recipe = case.build()
    except RecipeError:
        raise
    except Exception as error:  # a user's own class may raise anything
        raise RecipeError(f"case {case.name}: {described(error)}") from error
    try:
        _device(case)
    except Exception as error:  # Lightning and its plugins raise whatever they meet
        raise RecipeError(f"case {case.name}: trainer: {described(error)}") from error
    load_weights(recipe.network, recipe.weights)
    missing = missing_data(recipe)
    if needs_data and missing and (recipe.pretrain or recipe.stages or recipe.train or recipe.evaluation):
        raise RecipeError(f"case {case.name}: {missing}")
    own = recipe.train is not None or (recipe.evaluation is not None and recipe.evaluation.norm_batches > 0)
    trained = [stage.data or recipe.data for stage in recipe.before.values()] + [recipe.data] * own
    if not missing and any(data.train_set is data.test_set for data in trained):
        raise RecipeError(f"case {case.name}: the data has no images to train on, only those to test with")
    try:
        if not missing:
            _hold_out(recipe)
        _refuse_other_shapes(recipe.network, recipe.data)
        if recipe.evaluation is not None and not missing:
            refuse_test_images(recipe.data, recipe.evaluation)
        for name, stage in recipe.before.items():
            _refuse_stage(case, recipe, name, stage)
        digital, example = copy.deepcopy(recipe.network), (torch.zeros(1, *recipe.data.shape),)
        analog = convert(digital, recipe.hardware, strict=recipe.strict, seed=0, example=example)
        configure(analog, recipe.layers)
        if recipe.program is not None:
            program(recipe, analog)  # refuses what it cannot write
        freeze(analog, recipe.frozen)
        if not any(parameter.requires_grad for parameter in analog.parameters()):
            raise RecipeError("frozen leaves nothing to train: set train: null, or leave some layers out")
        layers = estimate(analog, torch.zeros(1, *recipe.data.shape), None, blank=True).layers
        unread = [layer.name for layer in layers if layer.positions == 0]
        if unread and recipe.strict:
            raise RecipeError(
                f"{', '.join(unread)} would stay digital: never called, their weights are used directly or not at "
                "all. Call these layers, remove them, or set strict: false"
            )
        if recipe.train is not None:
            objective = recipe.objective.stages()[0]
            _rehearse(case, recipe.train, analog, digital, objective, recipe.data, recipe.convergence is not None)
    except Exception as error:  # a user's network and data may raise anything
        raise RecipeError(f"case {case.name}: {described(error)}") from error
    return recipe


def _hold_out(recipe: Recipe) -> None:
    """Set apart the images on which the evaluation, or a search, chooses, if it does.

    They are training images only where the digital network learns in this recipe: weights from elsewhere may have
    learnt from all of them, and what a network knows by heart says little of the drop on new images.
    """
    if recipe.evaluation is None or not recipe.evaluation.holds_out:
        return
    of_training = recipe.weights is None and recipe.pretrain is not None
    recipe.data.hold_out(recipe.evaluation.held_out, of_training, recipe.data.seed)
    recipe.data.watched = recipe.data.held_out if recipe.evaluation.searched else None
    for stage in recipe.before.values():
        if of_training and type(stage.data) is type(recipe.data):  # the same images, in other batches
            stage.data.hold_out(recipe.evaluation.held_out, of_training, recipe.data.seed)


def _refuse_stage(case: Case, recipe: Recipe, name: str, stage: Pretrain) -> None:
    """Refuse, before anything trains, a training before the recipe's own that could not run."""
    network, data = copy.deepcopy(stage.network or recipe.network), stage.data or recipe.data
    try:
        _refuse_other_shapes(network, data)
        if stage.network is not None:
            load_what_fits(copy.deepcopy(recipe.network), stage.network.state_dict())
        objective = stage.objective if isinstance(stage, Stage) else None
        learner = network
        if isinstance(stage, Stage):
            hardware, example = stage.hardware or recipe.hardware, (torch.zeros(1, *data.shape),)
            learner = convert(network, hardware, strict=recipe.strict, seed=0, example=example)
        _rehearse(case, stage, learner, network, objective, data)
    except Exception as error:  # a user's network and data may raise anything
        raise RecipeError(f"{name}: {described(error)}") from error


def _rehearse(
    case: Case,
    settings: Fit,
    learner: nn.Module,
    digital: nn.Module,
    objective: Objective | None,
    data: ImageData,
    convergence: bool = False,
) -> None:
    """Take the first step of a training on copies, if the data is there on its images."""
    batch = random_batch(data)
    if data.train_set is not None:
        batch = first_training_batch(data)
        refuse_trainer(case.trainer_settings(), settings.epochs, len(data.train_dataloader()), convergence)
    trainer = case.settings.trainer
    validated = trainer.limit_val_batches != 0 and (trainer.check_val_every_n_epoch or 1) <= settings.epochs
    refuse_training(learner, copy.deepcopy(digital), settings, objective, data, batch, validated)


def _refuse_other_shapes(network: nn.Module, data: ImageData) -> None:
    """Refuse data that the network does not take, or whose classes are not its own."""
    name = code_line(network)
    try:
        with inference(network):
            outputs = network(torch.zeros(1, *data.shape))
    except Exception as error:  # a user's network may raise anything
        raise RecipeError(
            f"the network {name} does not take images of shape {data.shape}: {described(error)}"
        ) from error
    if not isinstance(outputs, Tensor):
        raise RecipeError(f"the network {name} gives a {type(outputs).__name__}; allowed: a tensor, a number a class")
    if outputs.shape != (1, data.classes, *[data.runs][: data.runs > 1]):
        raise RecipeError(
            f"the network {name} gives {tuple(outputs.shape[1:])} numbers for an image; the data has {data.classes} "
            f"classes{f' in {data.runs} runs' if data.runs > 1 else ''}: set the network's classes"
            f"{' and runs' if data.runs > 1 else ''}"
        )


def missing_data(recipe: Recipe) -> str | None:
    """None if all data can be loaded, else one line that says what is missing and what to do."""
    before = {name if name == PRETRAIN else f"stages.{name}": stage for name, stage in recipe.before.items()}
    for key, data in [("", recipe.data), *((f"{key}.", stage.data) for key, stage in before.items())]:
        missing = data.present() if data is not None else None
        if missing:
            return re.sub(r"(^|--)data\.", rf"\1{key}data.", missing)
    return None


def _version_folder(case: Case, case_folder: Path, resume: bool) -> Path:
    """Where the case runs. With several processes the first one decides: it starts the others, or tells them."""
    follows, together = rank_zero_only.rank != 0, several_processes()  # type: ignore[attr-defined]
    chosen: list[str | None] = [None]
    if not (follows and together):
        chosen = [str(_choose_version(case, case_folder, resume or follows))]
    if together:
        torch.distributed.broadcast_object_list(chosen)
    return Path(str(chosen[0]))


def _choose_version(case: Case, case_folder: Path, resume: bool) -> Path:
    settings, code = case.as_yaml(), made_by(case.resolved())
    if resume:
        for folder in reversed(versions(case_folder)):
            if _holds(folder / "recipe.yaml", settings.encode()):
                if (folder / CODE).is_file() and read_json(folder / CODE) == code:
                    return folder
                print(f"{case.name}: {folder} was run by other code; starting anew", file=sys.stderr)
                break
        else:
            if versions(case_folder):
                print(f"{case.name}: no earlier run has these settings; starting anew", file=sys.stderr)
    folder = new_version(case_folder)
    write_json(folder / CODE, code)
    (folder / "recipe.yaml").write_text(settings, encoding="utf-8")
    return folder


def _holds(file: Path, content: bytes) -> bool:
    return file.is_file() and file.read_bytes() == content


def _device(case: Case) -> torch.device:
    """Where the recipe's trainer computes; it hands networks back on the CPU."""
    settings = case.trainer_settings() | {"logger": False, "enable_model_summary": False, "max_epochs": 1}
    return Trainer(**settings, callbacks=[ModelCheckpoint()]).strategy.root_device


@rank_zero_only
def _record(logger: TensorBoardLogger, case: Case, folder: Path, result: Result) -> None:
    """TensorBoard's hyperparameters and figures, then result.json, with which the case is finished."""
    metrics = {name: value for name, value in result.items() if isinstance(value, float | int) and name != "order"}
    settings = {name: value for name, value in flat(case.resolved()).items() if value is not None}
    logger.log_hyperparams(settings, {f"result/{name}": value for name, value in metrics.items()})
    for name, figure in case_figures(result).items():
        logger.experiment.add_figure(name, figure)
    logger.finalize("success")
    write_json(folder / "result.json", result)
