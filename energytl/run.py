"""The whole flow on one page: recipe → data → digital network → convert → train → evaluate → cost → result."""

import hashlib
import json
import platform
import sys
import time
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import nn

from energytl.analog.convert import calibrate, configure, convert
from energytl.analog.inference import inference
from energytl.analog.noise import fold
from energytl.callbacks import History, SeededEpochs, StopAtNaN, WholeCheckpoints
from energytl.classifier import Classifier
from energytl.cost.estimate import Cost, estimate, mean_cost
from energytl.cost.training import Activity
from energytl.data import ImageData
from energytl.evaluation import (
    Evaluation,
    accuracies,
    chip_draws,
    digital_accuracy,
    least_rho_factor,
    noiseless_draw,
    quartiles,
    read_draws,
)
from energytl.optim.pulsed_optimizer import PulsedOptimizer
from energytl.plots import case_figures
from energytl.recipe import Case, Fit, Recipe, RecipeError
from energytl.results import (
    Result,
    finished,
    new_version,
    read_json,
    version_number,
    versions,
    write_json,
    write_tensors,
)


def run_case(case: Case, order: int, recipe_folder: Path, resume: bool) -> Result:
    """Train, evaluate and price one case; everything about it lies in a version folder of its own.

    Args:
        case: what to run.
        order: its place among the recipe's cases.
        recipe_folder: logs/<recipe>.
        resume: take up the latest version, if it has the same settings: return its result if it is finished,
            else go on from its last checkpoint.
    """
    folder = _version_folder(case, recipe_folder / case.name, resume)
    if finished(folder):
        return dict(read_json(folder / "result.json"))
    started = time.monotonic()
    recipe = prepare(case, needs_data=True)
    digital = recipe.network
    if recipe.pretrain is not None:
        _pretrain(case, recipe, digital, recipe_folder)
    device = _device(case)
    accuracy_digital = None
    if recipe.evaluation is not None:
        test = recipe.data.test_dataloader(recipe.evaluation.images)
        accuracy_digital = digital_accuracy(digital.to(device), test, f"{case.name}: digital")
        if recipe.evaluation.max_drop is not None:
            _refuse_chance(case, accuracy_digital - recipe.evaluation.max_drop, recipe.data.classes)
    analog = prepare_analog(recipe, digital).to(device)
    history = History()
    activities: list[Activity] = []
    logger = TensorBoardLogger(
        recipe_folder.parent,
        f"{recipe_folder.name}/{case.name}",
        version=version_number(folder),
        default_hp_metric=False,
    )
    if recipe.train is not None:
        configure(analog, computation=recipe.training_computation)
        module = Classifier(
            analog, recipe.data.classes, recipe.train.optimizer, recipe.train.scheduler, recipe.objective
        )
        activities = _fit(case, module, recipe.train, recipe, folder / "checkpoints", logger, history)
        configure(analog, computation=recipe.hardware.computation)
    result: Result = {"case": case.name, "order": order, "recipe": recipe_folder.name}
    result |= _measure(case.name, analog.to(device), recipe, accuracy_digital, activities)
    if accuracy_digital is not None and _untrained(recipe, accuracy_digital):
        result["accuracy_digital"] = None  # no number to compare with
    result |= {
        "history": history.rows,
        "seed": recipe.seed,
        "seconds": round(time.monotonic() - started, 1),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in ("energytl", "torch", "lightning", "torchvision")}
        | {"python": platform.python_version()},
    }
    _record(logger, case, folder, result)
    return result


def _untrained(recipe: Recipe, accuracy_digital: float) -> bool:
    """Whether the analog network is trained from a digital one that nobody trained before: near chance it is."""
    from_scratch = recipe.train is not None and recipe.pretrain is None and recipe.weights is None
    return from_scratch and accuracy_digital <= 1.5 / recipe.data.classes


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
    recipe = case.build()
    try:
        _device(case)
    except (MisconfigurationException, ImportError, RuntimeError, ValueError) as error:
        raise RecipeError(f"case {case.name}: trainer: {error}") from error
    load_weights(recipe.network, recipe.weights)
    missing = recipe.data.present()
    if needs_data and missing and (recipe.pretrain or recipe.train or recipe.evaluation):
        raise RecipeError(f"case {case.name}: {missing}")
    if (recipe.pretrain or recipe.train) and not missing and recipe.data.train_set is recipe.data.test_set:
        raise RecipeError(f"case {case.name}: the data has no images to train on, only those to test with")
    try:
        with inference(recipe.network):
            outputs = recipe.network(torch.zeros(1, *recipe.data.shape))
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        raise RecipeError(
            f"case {case.name}: the network does not take images of shape {recipe.data.shape}: {error}"
        ) from error
    if outputs.shape != (1, recipe.data.classes):
        raise RecipeError(
            f"case {case.name}: the network gives {tuple(outputs.shape[1:])} numbers for an image; the data has "
            f"{recipe.data.classes} classes: set the network's classes"
        )
    try:
        analog = convert(recipe.network, recipe.hardware, strict=recipe.strict, seed=0)
        if recipe.train is not None:  # settings of the optimizer are checked where it is made
            train, classes = recipe.train, recipe.data.classes
            Classifier(analog, classes, train.optimizer, train.scheduler, recipe.objective).configure_optimizers()
    except (ValueError, TypeError) as error:
        raise RecipeError(f"case {case.name}: {error}") from error
    layers = estimate(analog, torch.zeros(1, *recipe.data.shape), None, blank=True).layers
    unread = [layer.name for layer in layers if layer.positions == 0]
    if unread and recipe.strict:
        raise RecipeError(
            f"case {case.name}: {', '.join(unread)} would stay digital: never called, their weights are "
            "used directly or not at all. Call these layers, remove them, or set strict: false"
        )
    return recipe


def prepare_analog(recipe: Recipe, digital: nn.Module) -> nn.Module:
    """The digital network on analog hardware, calibrated on training images if they are there."""
    analog = convert(digital, recipe.hardware, strict=recipe.strict, seed=fold(recipe.seed, 1))
    if recipe.data.train_set is not None:
        recipe.data.trainer = None  # all processes calibrate on the same images
        batches = islice(recipe.data.train_dataloader(), recipe.calibration_batches)
        device = next(digital.parameters()).device
        calibrate(analog, (images.to(device) for images, _ in batches))
    return analog


def load_weights(network: nn.Module, path: str | None) -> nn.Module:
    """Load a state dict, whether bare or under `state_dict`, with or without a `module.` before its names.

    Raises:
        RecipeError: if there is no such file, or it is of another network.
    """
    if path is None:
        return network
    if not Path(path).is_file():
        raise RecipeError(f"weights {path} not found: set --weights to a state dict's file")
    content = _load(Path(path), "weights")
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise RecipeError(f"weights {path} holds no state dict")
    stripped = {name.removeprefix("module.").removeprefix("network."): tensor for name, tensor in state.items()}
    own = network.state_dict()
    shapes = [name for name in own if name in stripped and own[name].shape != stripped[name].shape]
    missing, unknown = network.load_state_dict({n: t for n, t in stripped.items() if n not in shapes}, strict=False)
    missing = [name for name in missing if name not in shapes]
    for problem, names in (("has no", missing), ("has an unknown", unknown), ("has another shape of", shapes)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise RecipeError(f"weights {path} is of another network: it {problem} {names[0]}{more}")
    return network


def _load(path: Path, what: str) -> Any:  # noqa: ANN401
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the broken file provokes
        raise RecipeError(
            f"{what} {path} cannot be read ({type(error).__name__}): not a file of torch.save, or damaged; remove or "
            "replace it"
        ) from error


def price(analog: nn.Module, data: ImageData, batches: int, recipe: Recipe) -> Cost:
    """Cost for one image: the mean over so many batches, spread over the test set; of a blank image without data."""
    device = next(analog.parameters()).device
    if data.test_set is None:
        blank = torch.zeros(1, *data.shape, device=device)
        return estimate(analog, blank, recipe.periphery, blank=True)
    spread = data.test_dataloader(batches * data.batch_size)  # the first images may all be of one class
    return mean_cost([estimate(analog, x.to(device), recipe.periphery) for x, _ in spread])


def _version_folder(case: Case, case_folder: Path, resume: bool) -> Path:
    """Where the case runs. With several processes the first one decides: it starts the others, or tells them."""
    follows, together = rank_zero_only.rank != 0, _several_processes()  # type: ignore[attr-defined]
    chosen: list[str | None] = [None]
    if not (follows and together):
        chosen = [str(_choose_version(case, case_folder, resume or follows))]
    if together:
        torch.distributed.broadcast_object_list(chosen)
    return Path(str(chosen[0]))


def _several_processes() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _choose_version(case: Case, case_folder: Path, resume: bool) -> Path:
    settings = case.as_yaml()
    if resume:
        for folder in reversed(versions(case_folder)):
            if (folder / "recipe.yaml").is_file() and (folder / "recipe.yaml").read_text("utf-8") == settings:
                return folder
        if versions(case_folder):
            print(f"{case.name}: no earlier run has these settings; starting anew", file=sys.stderr)
    folder = new_version(case_folder)
    (folder / "recipe.yaml").write_text(settings, encoding="utf-8")
    return folder


def _device(case: Case) -> torch.device:
    """Where the recipe's trainer computes; it hands networks back on the CPU."""
    settings = case.trainer_settings() | {"logger": False, "enable_checkpointing": False}
    return Trainer(**settings).strategy.root_device


def _pretrain(case: Case, recipe: Recipe, network: nn.Module, recipe_folder: Path) -> None:
    """Train the digital network, or load what the same settings have trained before."""
    assert recipe.pretrain is not None
    settings = case.resolved()
    relevant = {name: settings[name] for name in ("network", "data", "weights", "pretrain", "seed", "trainer")}
    if recipe.weights is not None:
        relevant["weights"] = hashlib.sha256(Path(recipe.weights).read_bytes()).hexdigest()
    digest = hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:16]
    folder = recipe_folder / "pretrained" / digest
    done = folder / "network.pt"
    if not done.is_file():
        module = Classifier(network, recipe.data.classes, recipe.pretrain.optimizer, recipe.pretrain.scheduler)
        _fit(case, module, recipe.pretrain, recipe, folder / "checkpoints", None, History())
        rank_zero_only(write_tensors)(done, network.state_dict())
        if _several_processes():
            torch.distributed.barrier()  # the others load what the first one writes
    load_weights(network, str(done))
    seed_everything(recipe.seed, workers=True, verbose=False)


def _fit(
    case: Case,
    module: Classifier,
    fit: Fit,
    recipe: Recipe,
    checkpoints: Path,
    logger: TensorBoardLogger | None,
    history: History,
) -> list[Activity]:
    """Train with a checkpoint after each epoch, going on from the last one that is there; what on-chip arrays did."""
    last = checkpoints / "last.ckpt"
    if last.is_file():
        _load(last, "checkpoint")  # refuses a damaged file in one line
    settings = case.trainer_settings()
    plugins = settings.pop("plugins") or []
    trainer = Trainer(
        **settings,
        plugins=[*(plugins if isinstance(plugins, list) else [plugins]), WholeCheckpoints()],
        max_epochs=fit.epochs,
        logger=logger or False,
        default_root_dir=checkpoints.parent,
        enable_model_summary=False,
        callbacks=[
            SeededEpochs(recipe.seed),
            history,
            StopAtNaN(),
            ModelCheckpoint(checkpoints, filename="last", save_on_train_epoch_end=True, enable_version_counter=False),
        ],
    )
    try:
        trainer.fit(module, datamodule=recipe.data, ckpt_path=str(last) if last.is_file() else None, weights_only=True)
    except SystemExit as error:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from error
    return [
        activity
        for optimizer in trainer.optimizers
        if isinstance(optimizer, PulsedOptimizer)
        for activity in optimizer.activities()
    ]


def _measure(
    label: str, analog: nn.Module, recipe: Recipe, accuracy_digital: float | None, activities: list[Activity]
) -> Result:
    """Accuracy and cost of a trained network, as plain numbers."""
    evaluation = recipe.evaluation
    result: Result = dict.fromkeys(("accuracy_median", "accuracy_q25", "accuracy_q75", "accuracy_quantised"))
    result |= {"accuracy_digital": accuracy_digital, "rho_factor": 1.0, "reached": None}
    if evaluation is not None and accuracy_digital is not None:
        test = recipe.data.test_dataloader(evaluation.images)
        if evaluation.max_drop is not None:
            factor = _scale_rho(label, analog, recipe, evaluation, accuracy_digital - evaluation.max_drop)
            result |= {"rho_factor": factor or 1.0, "reached": factor is not None}
        draws = [
            noiseless_draw(),
            *read_draws(analog, evaluation.reads, fold(recipe.seed, 2)),
            *chip_draws(evaluation.chips, fold(recipe.seed, 3)),
        ]
        quantised, *rest = accuracies(analog, test, draws, f"{label}: evaluating")
        reads, chips = rest[: evaluation.reads], rest[evaluation.reads :]
        low, median, high = quartiles(reads)
        result |= {"accuracy_median": median, "accuracy_q25": low, "accuracy_q75": high}
        result |= {"accuracy_quantised": quantised, "accuracies": reads, "accuracies_chips": chips}
        if chips:
            low, median, high = quartiles(chips)
            result |= {"accuracy_chips_median": median, "accuracy_chips_q25": low, "accuracy_chips_q75": high}
    cost = price(analog, recipe.data, evaluation.cost_batches if evaluation else 1, recipe)
    if activities:
        cost = cost.with_training(activities, recipe.periphery)
    return result | cost.numbers() | {"layers": cost.rows(), "not_modelled": list(cost.not_modelled)}


def _scale_rho(label: str, analog: nn.Module, recipe: Recipe, evaluation: Evaluation, target: float) -> float | None:
    batches = list(recipe.data.test_dataloader(evaluation.images))

    def accurate(stream: int) -> bool:
        draws = read_draws(analog, evaluation.reads, fold(recipe.seed, stream))
        lower_quartile, _, _ = quartiles(accuracies(analog, batches, draws, f"{label}: least ρ"))
        return lower_quartile >= target

    return least_rho_factor(analog, partial(accurate, 4), partial(accurate, 5))


@rank_zero_only
def _record(logger: TensorBoardLogger, case: Case, folder: Path, result: Result) -> None:
    """TensorBoard's hyperparameters and figures, then result.json, with which the case is finished."""
    metrics = {name: value for name, value in result.items() if isinstance(value, float | int) and name != "order"}
    settings = {name: value for name, value in _flat(case.resolved()).items() if value is not None}
    logger.log_hyperparams(settings, {f"result/{name}": value for name, value in metrics.items()})
    for name, figure in case_figures(result).items():
        logger.experiment.add_figure(name, figure)
    logger.finalize("success")
    write_json(folder / "result.json", result)


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
