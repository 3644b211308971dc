"""Training, digital and analog: Lightning fits whose results are kept, so that nothing is trained twice."""

import copy
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import nn

from energytl import __version__
from energytl.analog.convert import analog_layers, configure
from energytl.analog.read import Noiseless
from energytl.callbacks import ClipWeights, GoOnWithCells, History, SeededEpochs, StopAtNaN, WholeCheckpoints
from energytl.classifier import Classifier
from energytl.cost.training import Activity
from energytl.data import ImageData
from energytl.optim.on_chip import Cells, OnChipOptimizer
from energytl.recipe import PRETRAIN, Case, Fit, Recipe, RecipeError
from energytl.results import read_json, write_json, write_tensors

UNSEEN_WITHOUT_NOISE = ("fluctuation", "cell", "read", "computation", "rho")
"""Fields of the hardware that a training without fluctuation, and without a price on energy, does not see."""

Row = dict[str, Any]
"""Training curves at one time: what was logged, by its name."""

NO_METRICS = ("epoch", "step", "images", "val/accuracies")
"""Of a row, what is no curve of TensorBoard's."""

UNSEEN_OF_THE_TRAINER = ("enable_progress_bar", "log_every_n_steps", "accelerator")
"""Settings of Lightning's Trainer that do not change what is trained."""


@dataclass(frozen=True)
class Trained:
    """An analog network after a training.

    Attributes:
        energy_weight: λ of the training; 0 without one.
        state: the network's state dict; ρ and ranges are in its metadata.
        history: the curves of this training and those before it, one row for each epoch.
        activities: what on-chip arrays did.
    """

    energy_weight: float
    state: dict[str, Any]
    history: list[Row]
    activities: list[Activity]


def train(
    case: Case,
    recipe: Recipe,
    analog: nn.Module,
    teacher: nn.Module | None,
    folder: Path,
    kept: Path,
    logger: TensorBoardLogger,
    callbacks: Sequence[Callback] = (),
    cells: Cells | None = None,
    earlier: Sequence[Row] = (),
) -> list[Trained]:
    """Train the analog network once for each λ of the objective, each time from the last one's weights.

    Args:
        case: its settings.
        recipe: what they make.
        analog: the converted and calibrated network; left as the last training leaves it.
        teacher: a digital network to learn from, if the objective wants one.
        folder: where checkpoints go.
        kept: folder of finished trainings, which serve every run with the same settings, if the recipe shares them.
        logger: of the curves.
        callbacks: of Lightning, besides those of every training.
        cells: arrays to go on with, of an earlier training on the chip.
        earlier: rows that the curves begin with.

    Returns:
        The network after each training; without a training, the network as it is.
    """
    if recipe.train is None:
        return [Trained(0.0, copy.deepcopy(analog.state_dict()), [], [])]
    trained: list[Trained] = []
    history, energy_unit = History(), 0.0
    history.rows = list(earlier)
    rho = {name: float(layer.rho.detach()) for name, layer in analog_layers(analog).items()}
    weights: list[float] = []  # λ so far
    settings = case.resolved()
    configure(analog, computation=recipe.training_computation)
    for number, objective in enumerate(recipe.objective.stages()):
        weights.append(objective.price)
        done = kept / digest(_analog_settings(settings, recipe, weights))
        activities: list[Activity] = []
        with only_one(done) if recipe.share_training else nullcontext():
            if recipe.share_training and (done / "training.json").is_file():
                state = load_tensors(done / "network.pt", "trained network")
                analog.load_state_dict(state)
                if not any(weights):  # nothing trained ρ: whoever kept the network may have had another one
                    for name, layer in analog_layers(analog).items():
                        layer.configure(rho=min(rho[name], layer.hardware.cell.largest_rho))
                finished = read_json(done / "training.json")
                energy_unit, rows = finished["energy_unit"], [*earlier, *finished["history"]]
                for row in rows[len(history.rows) :]:
                    logger.log_metrics(
                        {name: value for name, value in row.items() if name not in NO_METRICS}, int(row["epoch"])
                    )
                history.rows = rows
            else:
                module = Classifier(
                    analog,
                    recipe.data.classes,
                    recipe.train.optimizer,
                    recipe.train.scheduler,
                    objective,
                    teacher,
                    energy_unit,
                    recipe.data.runs,
                )
                checkpoints = folder / "checkpoints" / f"stage_{number}" if number else folder / "checkpoints"
                stage = History(history.rows)
                optimizers = fit(
                    case, module, recipe.train, recipe.data, recipe.seed, checkpoints, logger, stage, callbacks, cells
                )
                activities = [activity for optimizer in optimizers for activity in optimizer.activities()]
                if module.ranges is not None:
                    module.ranges.settle()
                history.rows = history.rows + stage.rows
                energy_unit = float(module.energy_unit)
                if recipe.share_training and not activities:
                    rank_zero_only(write_tensors)(done / "network.pt", analog.state_dict())
                    rank_zero_only(write_json)(
                        done / "training.json",
                        {"energy_unit": energy_unit, "history": history.rows[len(earlier) :]},
                    )
                    if several_processes():
                        torch.distributed.barrier()  # all see it, or none
        seed_everything(recipe.seed, workers=True, verbose=False)
        trained.append(Trained(objective.price, copy.deepcopy(analog.state_dict()), list(history.rows), activities))
    configure(analog, computation=recipe.hardware.computation)
    return trained


def fit(
    case: Case,
    module: Classifier,
    settings: Fit,
    data: ImageData,
    seed: int,
    checkpoints: Path,
    logger: TensorBoardLogger | None,
    history: History,
    callbacks: Sequence[Callback] = (),
    cells: Cells | None = None,
) -> list[OnChipOptimizer]:
    """Train with a checkpoint after each epoch, going on from the last one that is there; the on-chip optimizers.

    Args:
        case: settings of the trainer.
        module: what is trained; in place.
        settings: how.
        data: on what.
        seed: of the order of images, and of all noise.
        checkpoints: their folder.
        logger: of the curves.
        history: keeps them.
        callbacks: of Lightning, besides those of every training.
        cells: arrays to go on with, of an earlier training on the chip.
    """
    last = checkpoints / "last.ckpt"
    if last.is_file():
        load_tensors(last, "checkpoint")  # refuses a damaged file in one line
    options = case.trainer_settings()
    plugins = options.pop("plugins") or []
    trainer = Trainer(
        **options,
        plugins=[*(plugins if isinstance(plugins, list) else [plugins]), WholeCheckpoints()],
        max_epochs=settings.epochs,
        logger=logger or False,
        default_root_dir=checkpoints.parent,
        enable_model_summary=False,
        callbacks=[
            SeededEpochs(seed),
            GoOnWithCells(cells or {}),
            history,
            StopAtNaN(),
            *[ClipWeights()] * settings.clip_weights,
            ModelCheckpoint(checkpoints, filename="last", save_on_train_epoch_end=True, enable_version_counter=False),
            *callbacks,
        ],
    )
    try:
        trainer.fit(module, datamodule=data, ckpt_path=str(last) if last.is_file() else None, weights_only=True)
    except SystemExit as error:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from error
    return [optimizer for optimizer in trainer.optimizers if isinstance(optimizer, OnChipOptimizer)]


def load_weights(network: nn.Module, path: str | None) -> nn.Module:
    """Load a state dict, whether bare or under `state_dict`, with or without a `module.` before its names.

    Raises:
        RecipeError: if there is no such file, or it is of another network.
    """
    if path is None:
        return network
    if not Path(path).is_file():
        raise RecipeError(f"weights {path} not found: set --weights to a state dict's file")
    content = load_tensors(Path(path), "weights")
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


def load_tensors(path: Path, what: str) -> Any:  # noqa: ANN401
    """What torch.save wrote, on the CPU.

    Raises:
        RecipeError: in one line, for a file that it did not write, or a damaged one.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the broken file provokes
        raise RecipeError(
            f"{what} {path} cannot be read ({type(error).__name__}): not a file of torch.save, or damaged; remove or "
            "replace it"
        ) from error


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Wait until no other run works in this folder; processes that train together work there together."""
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        yield
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        yield


def several_processes() -> bool:
    """Whether this is one of several processes that train together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def before_fit(settings: dict[str, Any], recipe: Recipe, trainings: int) -> list[Any]:
    """What the network depends on after the first so many trainings before the recipe's own, of all settings.

    Args:
        settings: resolved ones, as plain values.
        recipe: what they make.
        trainings: how many of pretrain and stages.
    """
    trainer = {name: value for name, value in settings["trainer"].items() if name not in UNSEEN_OF_THE_TRAINER}
    if isinstance(trainer["devices"], list):
        trainer["devices"] = len(trainer["devices"])
    weights = settings["weights"]
    if recipe.weights is not None:
        weights = hashlib.sha256(Path(recipe.weights).read_bytes()).hexdigest()
    parts: list[Any] = [trainer, weights]
    untrained = [settings["network"], settings["seed"]]  # weights that the recipe's network begins with
    for name, stage in [*recipe.before.items()][:trainings]:
        first = name == PRETRAIN
        own = settings[name] if first else settings["stages"][name]
        if first and (stage.network is None or recipe.weights is not None):
            parts.append(settings["network"])
        elif not first and (recipe.pretrain is None or recipe.pretrain.network is not None):
            parts.append(untrained)
        parts.append({**own, "seed": settings["seed"] if stage.seed is None else stage.seed})
        parts.append(data_settings(own["data"] or settings["data"], stage.data or recipe.data))
        if not first:
            parts.append([own["hardware"] or settings["hardware"], settings["calibration_batches"], __version__])
    return parts


def data_settings(settings: dict[str, Any], data: ImageData) -> Any:  # noqa: ANN401
    """What the data is: its settings, or what says more."""
    return data.identity() or settings


def first_training(case: Case, recipe: Recipe) -> str | None:
    """Under which name the case's first training of the analog network is kept, or None if it keeps none."""
    if recipe.train is None or not recipe.share_training:
        return None
    return digest(_analog_settings(case.resolved(), recipe, [recipe.objective.stages()[0].price]))


def _analog_settings(settings: dict[str, Any], recipe: Recipe, energy_weights: list[float]) -> dict[str, Any]:
    """What the analog network depends on after the trainings with these λ, of all settings."""
    names = ("network", "training_computation", "train", "calibration_batches", "program", "frozen", "seed")
    relevant = {name: settings[name] for name in names}
    relevant["hardware"] = dict(settings["hardware"])
    if isinstance(recipe.training_computation, Noiseless) and not any(energy_weights):
        for name in UNSEEN_WITHOUT_NOISE:
            del relevant["hardware"][name]
        if not recipe.hardware.mapping.cell_values and not any(recipe.hardware.variation.levels):
            del relevant["hardware"]["mapping"]  # it neither rounds weights nor shows which cells vary
    relevant["objective"] = {**settings["objective"], "energy_weight": energy_weights}
    relevant["energytl"] = __version__
    relevant["data"] = data_settings(settings["data"], recipe.data)
    relevant["before"] = before_fit(settings, recipe, 1 + len(recipe.stages))
    return relevant


def digest(settings: Any) -> str:  # noqa: ANN401
    """Short name of plain settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
