"""Training, digital and analog: Lightning fits whose results are kept, so that nothing is trained twice."""

import copy
import math
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import nn

from energytl.analog.configure import analog_layers, configure
from energytl.callbacks import (
    Begun,
    ClipWeights,
    GoOnWithCells,
    History,
    SameTraining,
    SeededEpochs,
    StopAtNaN,
    WholeCheckpoints,
)
from energytl.classifier import Classifier
from energytl.cost.training import Activity
from energytl.data import ImageData, lazy_training
from energytl.kept_trainings import analog_settings, digest, now, only_one, take_over, tell
from energytl.optim.on_chip import Cells, OnChipOptimizer
from energytl.origin import described
from energytl.progress import TrainingBar, watched
from energytl.quiet import EnergytlWarning
from energytl.recipe import Case, Fit, Recipe, RecipeError
from energytl.results import looks_like, read_json, write_json, write_tensors
from energytl.weights import find_state, listed, read_tensors

Row = dict[str, Any]
"""Training curves at one time: what was logged, by its name."""

NO_METRICS = ("epoch", "step", "images", "val/accuracies")
"""Of a row, what is no curve of TensorBoard's."""

CHECKPOINT = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "epoch", "global_step")
"""What a checkpoint of a training holds, besides other things."""


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
    measured = digest(settings["hardware"])
    configure(analog, computation=recipe.training_computation)
    for number, objective in enumerate(recipe.objective.stages()):
        weights.append(objective.price)
        key = digest(analog_settings(settings, recipe, weights))
        done = kept / key
        activities: list[Activity] = []
        with only_one(done) if recipe.share_training else nullcontext():
            if recipe.share_training and (done / "training.json").is_file():
                found = read_json(done / "training.json", ("energy_unit", "history", "measured", "finished"))
                tell(case.name, f"training {len(weights)} on analog hardware", done, found["finished"])
                take_over(analog, load_tensors(done / "network.pt", "kept training"), done / "network.pt")
                if not any(weights):  # nothing trained ρ: whoever kept the network may have had another one
                    for name, layer in analog_layers(analog).items():
                        nn.init.constant_(layer.log_rho, math.log(rho[name] / layer.rho_start))
                energy_unit, rows = found["energy_unit"], [*earlier, *found["history"]]
                if found["measured"] != measured:
                    rows = _measured_at_the_end(case, recipe, analog, rows)
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
                    recipe.hardware.computation,
                    recipe.seed,
                )
                checkpoints = folder / "checkpoints" / f"stage_{number}" if number else folder / "checkpoints"
                stage = History(history.rows)
                optimizers = fit(
                    case,
                    module,
                    recipe.train,
                    recipe.data,
                    recipe.seed,
                    checkpoints,
                    logger,
                    stage,
                    callbacks,
                    cells,
                    key,
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
                        {
                            "energy_unit": energy_unit,
                            "history": history.rows[len(earlier) :],
                            "measured": measured,
                            "finished": now(),
                        },
                    )
                    if several_processes():
                        torch.distributed.barrier()  # all see it, or none
        seed_everything(recipe.seed, workers=True, verbose=False)
        trained.append(Trained(objective.price, copy.deepcopy(analog.state_dict()), list(history.rows), activities))
    configure(analog, computation=recipe.hardware.computation)
    return trained


def _measured_at_the_end(case: Case, recipe: Recipe, analog: nn.Module, rows: list[Row]) -> list[Row]:
    """Curves of a training that was watched on hardware which it did not see: their end alone, measured on its own."""
    rows = [{name: value for name, value in row.items() if not name.startswith("val/")} for row in rows]
    assert recipe.train is not None
    computation, data = recipe.hardware.computation, recipe.data
    module = Classifier(
        analog, data.classes, recipe.train.optimizer, runs=data.runs, measured=computation, seed=recipe.seed
    )
    trainer = Trainer(**case.trainer_settings(), logger=False, enable_checkpointing=False, enable_model_summary=False)
    with _own_types(analog):
        trainer.validate(module, datamodule=data, verbose=False)
    found = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    return [*rows[:-1], rows[-1] | found]


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
    key: str = "",
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
        key: name of all that the training depends on; checkpoints of a different one are refused.
    """
    seed_everything(seed, workers=True, verbose=False)
    last = checkpoints / "last.ckpt"
    if last.is_file():
        load_tensors(last, "checkpoint", CHECKPOINT)  # refuses a damaged file in one line
    options = case.trainer_settings()
    if last.is_file() and options["max_steps"] != -1:
        raise RecipeError(
            f"trainer.max_steps is {options['max_steps']}: Lightning does not go on from {last} as it would have "
            "without a break; run without --resume or remove the file, and give epochs instead to resume"
        )
    plugins = options.pop("plugins") or []
    begun = Begun()
    bars = options.pop("enable_progress_bar") is not False and watched()
    trainer = Trainer(
        **options,
        plugins=[*(plugins if isinstance(plugins, list) else [plugins]), WholeCheckpoints()],
        max_epochs=settings.epochs,
        logger=logger or False,
        default_root_dir=checkpoints.parent,
        enable_model_summary=False,
        enable_progress_bar=bars,
        callbacks=[
            SameTraining(key),
            begun,
            SeededEpochs(seed),
            GoOnWithCells(cells or {}),
            history,
            StopAtNaN(),
            *[ClipWeights()] * settings.clip_weights,
            ModelCheckpoint(checkpoints, filename="last", save_on_train_epoch_end=True, enable_version_counter=False),
            *[TrainingBar()] * bars,
            *callbacks,
        ],
    )
    with _own_types(module.network), lazy_training(data):
        try:
            trainer.fit(module, datamodule=data, ckpt_path=str(last) if last.is_file() else None, weights_only=True)
        except SystemExit as error:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from error
        except Exception as error:
            if begun.yet or not last.is_file() or isinstance(error, RecipeError):
                raise
            raise RecipeError(f"checkpoint {last} is of another training ({described(error)}); remove it") from error
    return [optimizer for optimizer in trainer.optimizers if isinstance(optimizer, OnChipOptimizer)]


@contextmanager
def _own_types(network: nn.Module) -> Iterator[None]:
    """Give parameters and buffers their own types again, of which Lightning's precisions of one type leave nothing."""
    tensors = [*network.parameters(), *network.buffers()]
    types = [tensor.dtype for tensor in tensors]
    try:
        yield
    finally:
        for tensor, own in zip(tensors, types, strict=True):
            tensor.data = tensor.data.to(own)


def load_weights(network: nn.Module, path: str | None) -> nn.Module:
    """Load a state dict: bare, or in a checkpoint of Lightning, timm, Hugging Face, DDP or torch.compile.

    Raises:
        RecipeError: if there is no such file, or it is of another network; in one line that says what it holds.
    """
    if path is None:
        return network
    if not Path(path).is_file():
        raise RecipeError(f"weights {path} not found: set --weights to a state dict's file")
    content = _read(Path(path), "weights", read_tensors)
    own = network.state_dict()
    try:
        state, where, beside = find_state(content, own)
    except ValueError as error:
        raise RecipeError(f"weights {path} holds {error}, but {listed(content)}") from error
    found = f" (it holds {listed(content)}{f'; read: its {where}' if where else ''})"
    shapes = [name for name in own if name in state and own[name].shape != state[name].shape]
    missing, unknown = network.load_state_dict({n: t for n, t in state.items() if n not in shapes}, strict=False)
    missing = [name for name in missing if name not in shapes]
    for problem, names in (("has no", missing), ("has an unknown", unknown), ("has another shape of", shapes)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise RecipeError(f"weights {path} is of another network: it {problem} {names[0]}{more}{found}")
    if beside:
        more = f" and {len(beside) - 1} more" if len(beside) > 1 else ""
        text = f"weights {path}: what is loaded is {where or 'what fits'}; {beside[0]}{more} is not"
        warnings.warn(text, EnergytlWarning, stacklevel=2)
    return network


def load_tensors(path: Path, what: str, keys: Collection[str] = ()) -> Any:  # noqa: ANN401
    """What torch.save wrote, on the CPU.

    Args:
        path: of the file.
        what: it is, for messages.
        keys: that it must hold.

    Raises:
        RecipeError: in one line, for a file that it did not write, a damaged one, or one of something else.
    """
    content = _read(path, what, partial(torch.load, map_location="cpu", weights_only=True))
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise RecipeError(f"{what} {path} has no {missing[0]}, but holds {listed(content)}; remove it")
    return content


def _read(path: Path, what: str, reader: Callable[[Path], Any]) -> Any:  # noqa: ANN401
    try:
        return reader(path)
    except Exception as error:  # torch.load raises whatever the broken file provokes
        said = re.search(r"(WeightsUnpickler error|Trying to load)[^\n]*", str(error))
        reason = looks_like(path) or (str(error) if isinstance(error, ValueError) else "")
        damaged = f"not a file of torch.save, or damaged ({said[0] if said else described(error)[:100]}); replace it"
        raise RecipeError(f"{what} {path} cannot be read: {reason or damaged}") from error


def several_processes() -> bool:
    """Whether this is one of several processes that train together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()
