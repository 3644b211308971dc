"""Finished trainings that other runs take over: what each depends on, and how it is read and told of.

A kept training is found by the digest of all settings, code, data and shapes that it may depend on. What is left out of
these is named here, and why; whatever is added to a recipe counts until it is named.
"""

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import nn

from energytl.analog.read import Noiseless
from energytl.data import ImageData
from energytl.parser import said_by
from energytl.recipe import PRETRAIN, Case, Recipe, RecipeError
from energytl.source import made_by

AFTER_TRAINING = ("evaluation", "periphery")
"""Settings of the recipe that are read after the training has ended."""

SAID_ALONE = ("baseline", "method", "condition", "published", "paper", "convergence")
"""Settings that say how results are shown. (`convergence` counts the images of curves that are there anyway.)"""

CHECKED_ALONE = ("strict", "share_training")
"""Settings that refuse a run or keep its training, and change no number of it."""

TOLD_OTHERWISE = ("network", "weights", "data", "pretrain", "stages", "trainer")
"""Settings that enter by what they lead to: `before_fit` and `data_settings` add them where a training sees them."""

UNSEEN_WITHOUT_NOISE = ("fluctuation", "law", "sensing_noise", "cell", "read", "computation", "rho")
"""Fields of the hardware that a training without fluctuation, and without a price on energy, does not see."""

UNSEEN_OF_THE_TRAINER = ("enable_progress_bar", "log_every_n_steps", "accelerator")
"""Settings of Lightning's Trainer that do not change what is trained, but for the rounding of a device."""


def digest(settings: Any) -> str:  # noqa: ANN401
    """Short name of plain settings, with the code that they name."""
    whole = [settings, made_by(settings)]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]


def before_fit(settings: dict[str, Any], recipe: Recipe, trainings: int) -> list[Any]:
    """What the network depends on after the first so many trainings before the recipe's own, of all settings.

    Args:
        settings: resolved ones, as plain values.
        recipe: what they make; its data is loaded.
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
        seed = settings["seed"] if stage.seed is None else stage.seed
        data = data_settings(own["data"] or settings["data"], stage.data or recipe.data)
        parts.append({**own, "seed": seed, "data": data})
        parts.append(_shapes(stage.network or recipe.network))
        if not first:
            parts.append([own["hardware"] or settings["hardware"], settings["calibration_batches"]])
    return parts


def data_settings(settings: dict[str, Any], data: ImageData) -> Any:  # noqa: ANN401
    """What the data is: its content, and its settings, but for those of energytl's own that only say where it is."""
    if data.held and type(data).__module__.startswith("energytl."):
        return [data.content, data.batch_size, data.seed]
    return [data.content, settings]


def analog_settings(settings: dict[str, Any], recipe: Recipe, energy_weights: Sequence[float]) -> dict[str, Any]:
    """What the analog network depends on after the trainings with these λ, of all settings."""
    left_out = AFTER_TRAINING + SAID_ALONE + CHECKED_ALONE + TOLD_OTHERWISE
    relevant = {name: value for name, value in settings.items() if name not in left_out}
    if _blind(recipe, energy_weights) and recipe.convergence is None and not recipe.layers:
        relevant["hardware"] = dict(settings["hardware"])
        for name in UNSEEN_WITHOUT_NOISE:
            del relevant["hardware"][name]
        if not recipe.hardware.mapping.cell_values and not recipe.hardware.changes:
            del relevant["hardware"]["mapping"]  # it neither rounds weights nor shows which cells vary
    relevant["objective"] = {**settings["objective"], "energy_weight": energy_weights}
    relevant["network"] = [settings["network"], _shapes(recipe.network)]
    relevant["data"] = data_settings(settings["data"], recipe.data)
    relevant["before"] = before_fit(settings, recipe, 1 + len(recipe.stages))
    return relevant


def first_training(case: Case, recipe: Recipe) -> str | None:
    """Under which name the case's first training of the analog network is kept, or None if it keeps none."""
    if recipe.train is None or not recipe.share_training:
        return None
    return digest(analog_settings(case.resolved(), recipe, [recipe.objective.stages()[0].price]))


def _blind(recipe: Recipe, energy_weights: Sequence[float]) -> bool:
    """Whether nothing of the training sees fluctuation or ρ; only its validation does."""
    return isinstance(recipe.training_computation, Noiseless) and not any(energy_weights)


def _shapes(network: nn.Module) -> dict[str, Any]:
    return {name: [list(tensor.shape), str(tensor.dtype)] for name, tensor in network.state_dict().items()}


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Wait until no other run works in this folder; processes that train together work there together."""
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        yield
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        yield


def now() -> str:
    """When a training ended, to be kept with it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@rank_zero_only
def tell(case: str, what: str, folder: Path, finished: str) -> None:
    """Say in one line that a training is not repeated."""
    print(f"{case}: {what} is taken from {folder}, trained {finished}", file=sys.stderr)


def take_over(network: nn.Module, state: dict[str, Any], file: Path) -> None:
    """Give a network the kept weights, all and no others.

    Raises:
        RecipeError: naming what is missing, unknown or of a different shape.
    """
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise RecipeError(
            f"kept training {file} is of a different network ({said_by(error)}): remove its folder, and it is trained "
            "again"
        ) from error
