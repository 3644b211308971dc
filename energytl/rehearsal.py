"""What would fail in training or evaluation for a reason that is known before, found by a first step on few images."""

import warnings
from collections.abc import Sized
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from energytl.analog.configure import analog_layers
from energytl.classifier import Classifier, rehearse
from energytl.data import ImageData
from energytl.evaluation import Evaluation
from energytl.objectives import Objective, refuse_hints
from energytl.recipe import Fit

Batch = tuple[Tensor, Tensor]
"""Images (N, …) and labels (N,), or (N, runs)."""

FEW = 2
"""Images of a rehearsed step."""


def first_training_batch(data: ImageData) -> Batch:
    """The first training batch, if it is what the data promises.

    Raises:
        ValueError: for no images, another shape or type, or labels that are no classes.
    """
    return _first(data, data.train_dataloader(), "training")


def refuse_test_images(data: ImageData, evaluation: Evaluation) -> None:
    """Refuse an evaluation that asks for what the test images do not have.

    Raises:
        ValueError: for fewer images, or fewer classes, than are asked for; for what is no batch of images.
    """
    count = _count(data.test_set)
    _first(data, data.test_dataloader(), "test")
    for key in ("images", "exact_images"):
        wanted = getattr(evaluation, key)
        if wanted is not None and wanted > count:
            raise ValueError(f"evaluation.{key} is {wanted}; allowed: at most {count}, the test images that there are")
    if evaluation.top and max(evaluation.top) >= data.classes:
        raise ValueError(f"evaluation.top has {max(evaluation.top)}; allowed: below {data.classes}, the classes")
    if evaluation.drops and max(evaluation.drops) >= 1 - 1 / data.classes:
        raise ValueError(
            f"evaluation.max_drop is {max(evaluation.drops)}; allowed: below {1 - 1 / data.classes:.3g}, which leaves "
            f"no more than chance of {data.classes} classes"
        )


def refuse_trainer(settings: dict[str, Any], epochs: int, batches: int, convergence: bool) -> None:
    """Refuse limits of Lightning's Trainer that leave nothing to train or to measure, and weights in float16.

    Args:
        settings: of the trainer.
        epochs: of the training.
        batches: that an epoch has.
        convergence: whether validations are waited for.

    Raises:
        ValueError: naming the setting.
    """
    interval, limit = settings["val_check_interval"], settings["limit_train_batches"]
    every = settings["check_val_every_n_epoch"]
    if isinstance(limit, int) and not isinstance(limit, bool):
        batches = min(batches, limit)
    elif limit is not None:
        batches = int(batches * limit)
    if settings["precision"] == "16-true":
        raise ValueError(
            "trainer.precision is 16-true: in float16 small updates of weights are lost, and Adam divides by 0; "
            "allowed: 16-mixed, bf16-mixed, bf16-true, 32, 64"
        )
    if batches < 1:
        raise ValueError(f"trainer.limit_train_batches is {limit}; allowed: what leaves a batch, or null for all")
    if isinstance(interval, int) and interval > batches and every is not None:
        raise ValueError(
            f"trainer.val_check_interval is {interval}; allowed: at most {batches}, the batches of an epoch"
        )
    unmeasured = settings["limit_val_batches"] == 0 or (every is not None and every > epochs)
    if convergence and unmeasured:
        raise ValueError(
            "convergence waits for validations, but there are none: set trainer.limit_val_batches above 0 and "
            f"trainer.check_val_every_n_epoch to at most {epochs}"
        )


def refuse_training(
    network: nn.Module,
    digital: nn.Module,
    settings: Fit,
    objective: Objective | None,
    data: ImageData,
    batch: Batch,
    validated: bool,
) -> None:
    """Take the first step of a training, and its schedule to the last epoch; what fails there fails now.

    Args:
        network: a copy of what is trained; its weights are changed.
        digital: a copy of the digital network, for what the objective compares with it.
        settings: of the training.
        objective: of an analog network's.
        data: what is learnt.
        batch: of it; so few images are enough.
        validated: whether there are validations, which some schedules follow.

    Raises:
        Exception: whatever the step raises.
    """
    for layer in analog_layers(network).values():
        layer.input_range = 1.0  # any: nothing is calibrated yet
        layer.configure(converter=None)
    if objective is not None and objective.hints:
        refuse_hints(digital, network, objective.hints, torch.zeros(1, *data.shape))
    teacher = digital if objective is not None and objective.wants_teacher else None
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of steps outside a Trainer
        module = Classifier(
            network, data.classes, settings.optimizer, settings.scheduler, objective, teacher, runs=data.runs
        ).train()
        optimizer, _ = module.make_both()
        images, labels = (part[: _images_of_the_smallest_batch(data)] for part in batch)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = module.training_step((images, labels), 0)
            loss.backward()
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]
        rehearse(module, settings.epochs, validated)


def random_batch(data: ImageData) -> Batch:
    """Images and labels of the promised shapes, where the data is not there."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros((FEW, data.runs) if data.runs > 1 else FEW, dtype=torch.long)
    return torch.rand(FEW, *data.shape, generator=generator), labels


def _images_of_the_smallest_batch(data: ImageData) -> int:
    """One, where the last batch of an epoch has a single image, which batch norm may refuse; else a few."""
    alone = data.train_set is not None and _count(data.train_set) % data.batch_size == 1
    return 1 if alone and not data.train_dataloader().drop_last else FEW


def _first(data: ImageData, loader: DataLoader[Any], what: str) -> Batch:
    """The first batch of a loader, if it is what the data promises."""
    with torch.random.fork_rng(devices=[]):
        batch = next(iter(loader), None)
    if batch is None:
        raise ValueError(
            f"{_name(data)} gives no {what} batch: it has {_count(loader.dataset)} images, a batch has "
            f"{loader.batch_size}{', and drop_last leaves out the rest' if loader.drop_last else ''}"
        )
    pair = isinstance(batch, tuple | list) and len(batch) == 2
    if not (pair and all(isinstance(part, Tensor) for part in batch)):
        raise ValueError(f"a {what} batch of {_name(data)} is a {type(batch).__name__}; allowed: images and labels")
    images, labels = batch
    if images.shape[1:] != data.shape or not images.is_floating_point():
        raise ValueError(
            f"{what} images of {_name(data)} have shape {tuple(images.shape[1:])} and {images.dtype}; allowed: "
            f"{tuple(data.shape)}, its `shape`, in floating point"
        )
    each = (len(images), data.runs) if data.runs > 1 else (len(images),)
    if labels.shape != each or labels.is_floating_point():
        raise ValueError(
            f"{what} labels of {_name(data)} have shape {tuple(labels.shape)} and {labels.dtype}; allowed: {each}, "
            "whole numbers"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= data.classes:
        raise ValueError(
            f"{what} labels of {_name(data)} lie between {int(labels.min())} and {int(labels.max())}; allowed: 0 to "
            f"{data.classes - 1}, as its `classes` is {data.classes}"
        )
    return images, labels


def _name(data: ImageData) -> str:
    return type(data).__name__


def _count(images: Any) -> int:  # noqa: ANN401
    return len(images) if isinstance(images, Sized) else 0
