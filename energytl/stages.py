"""What comes before a recipe's own training: digital pre-training, analog stages, the write onto the arrays.

Each goes on from the last one's weights. Trainings are kept by everything that they depend on, so that cases, seeds and
later runs that start from the same ones do not repeat them.
"""

import copy
import warnings
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn

from energytl.analog.configure import analog_layers, configure, reading
from energytl.analog.convert import calibrate, convert, to_digital
from energytl.analog.hardware import ROUNDING, Hardware
from energytl.analog.memory_format import lay_out_channels_last, runs_channels_last
from energytl.analog.programming import program_
from energytl.analog.read import Computation
from energytl.callbacks import History
from energytl.classifier import Classifier
from energytl.data import ImageData
from energytl.kept_trainings import before_fit, digest, now, only_one, take_over, tell
from energytl.models import what_fits
from energytl.optim.on_chip import Cells
from energytl.quiet import EnergytlWarning
from energytl.recipe import PRETRAIN, Case, Pretrain, Recipe, RecipeError, Stage
from energytl.results import Result, write_tensors
from energytl.streams import Stream, seed_of
from energytl.training import Row, fit, load_tensors, load_weights, several_processes

KEPT_PARTS = ("network", "analog", "cells", "rho", "history", "finished")
"""What is kept of each training."""


@dataclass
class Start:
    """What the recipe's own training starts from, besides the weights.

    Attributes:
        rho: of each layer by name, where a stage trained it.
        state: state dict of the last stage's analog network, if its arrays go on.
        cells: these arrays, if they trained on the chip.
        curves: name and training curves of each training so far.
    """

    rho: dict[str, Tensor] = field(default_factory=dict)
    state: dict[str, Any] | None = None
    cells: Cells = field(default_factory=dict)
    curves: list[Result] = field(default_factory=list)

    def apply_(self, analog: nn.Module) -> None:
        """Give a converted network with the weights all that goes on besides them."""
        if self.state is not None:
            analog.load_state_dict(self.state)
        beyond: dict[str, float] = {}
        for name, layer in analog_layers(analog).items():
            if name in self.rho:
                trained, largest = float(self.rho[name]), layer.hardware.cell.largest_rho
                layer.configure(rho=min(trained, largest))
                beyond |= {name: trained} if trained > largest * ROUNDING else {}
        if beyond:
            found = ", ".join(f"{trained:.4g} of {name or 'network'}" for name, trained in beyond.items())
            text = f"ρ was trained to {found}, more than the next hardware's cells hold: it goes on from their largest"
            warnings.warn(text, EnergytlWarning, stacklevel=2)


def before_training(case: Case, recipe: Recipe, kept: Path) -> Start:
    """Pre-train and go through all stages; the recipe's network ends with the weights of the last one.

    Args:
        case: its settings.
        recipe: what they make.
        kept: folder of finished trainings, where those with the same settings are taken from.
    """
    start, settings = Start(), case.resolved()
    for number, (name, stage) in enumerate(recipe.before.items(), 1):
        folder = kept / digest(before_fit(settings, recipe, number))
        done = folder / "network.pt"
        with only_one(folder):
            is_kept = done.is_file()
            if not is_kept:
                content = _train(case, recipe, name, number, start, folder)
                rank_zero_only(write_tensors)(done, content | {"finished": now()})
                if several_processes():
                    torch.distributed.barrier()  # the others load what the first one writes
        found = load_tensors(done, "kept training", KEPT_PARTS)
        if is_kept:
            tell(case.name, name, folder, found["finished"])
        if stage.network is None:
            take_over(recipe.network, found["network"], done)
        else:
            load_what_fits(recipe.network, found["network"])
        goes_on = isinstance(stage, Stage) and stage.on_recipes_arrays
        start.state = found["analog"] if goes_on else None
        start.cells = found["cells"] if goes_on else {}
        start.rho |= found["rho"]
        start.curves.append({"stage": name, "history": found["history"]})
    if recipe.program is not None:
        start.state, start.cells = None, {}
    seed_everything(recipe.seed, workers=True, verbose=False)
    return start


def analog_network(
    recipe: Recipe, network: nn.Module, hardware: Hardware, data: ImageData, seed: int, calibration: Computation
) -> nn.Module:
    """A digital network on analog hardware, calibrated on training images if they are there, with such reads."""
    device = next(network.parameters()).device
    example = (torch.zeros(1, *data.shape, device=device),)
    analog = convert(network, hardware, strict=recipe.strict, seed=seed_of(Stream.CONVERSION, seed), example=example)
    if hardware is recipe.hardware:
        configure(analog, recipe.layers)
    if runs_channels_last(network, data.shape):
        lay_out_channels_last(analog)
    with reading(analog, calibration):
        calibrate(analog, (images.to(device) for images in data.first_images(recipe.calibration_batches)))
    return analog


def program(recipe: Recipe, analog: nn.Module) -> None:
    """Write the network's weights onto its arrays, with the errors that the recipe asks for."""
    if recipe.program is not None:
        program_(analog, recipe.program.error, recipe.program.stuck, seed_of(Stream.PROGRAMMING, recipe.seed))


def first_row(accuracies: list[float]) -> Row:
    """The row of the training curves before the first epoch, of one run or several."""
    row: Row = {"epoch": 0.0, "step": 0.0, "images": 0.0, "val/accuracy": sum(accuracies) / len(accuracies)}
    return row | ({"val/accuracies": accuracies} if len(accuracies) > 1 else {})


def freeze(network: nn.Module, patterns: tuple[str, ...]) -> None:
    """Take layers out of training by their names: their parameters, and the statistics of norms.

    Args:
        network: whose modules are frozen; in place.
        patterns: names of modules or parameters, * for anything.

    Raises:
        ValueError: for a pattern that nothing fits.

    >>> network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> freeze(network, ("0",))
    >>> [parameter.requires_grad for parameter in network.parameters()]
    [False, False, True, True]
    """
    for pattern in patterns:
        modules = [module for name, module in network.named_modules() if name and fnmatch(name, pattern)]
        parameters = [p for name, p in network.named_parameters() if fnmatch(name, pattern)]
        if not modules and not parameters:
            known = ", ".join(name for name, _ in network.named_children())
            raise ValueError(f"frozen: no layer fits {pattern!r}; the network's parts: {known}")
        for module in modules:
            module.requires_grad_(False).eval()
        for parameter in parameters:
            parameter.requires_grad_(False)


def load_what_fits(network: nn.Module, state: dict[str, Any]) -> None:
    """Take all parameters and buffers of a state dict that the network has, too, by name and shape.

    Raises:
        RecipeError: if there are none.
    """
    fitting = what_fits(network, state)
    if not any(name in fitting for name, _ in network.named_parameters()):
        raise RecipeError(
            f"{type(network).__name__} has no parameter in common, by name and shape, with the network trained before "
            "it: give pretrain.network and network the same layers but for the last"
        )
    network.load_state_dict(fitting, strict=False)


def _train(case: Case, recipe: Recipe, name: str, number: int, start: Start, folder: Path) -> dict[str, Any]:
    """One training, the number-th, from the weights that the recipe's network has; what is kept of it."""
    stage = recipe.before[name]
    seed = recipe.seed if stage.seed is None else stage.seed
    if isinstance(stage, Stage):
        seed = seed_of(Stream.STAGE, seed, number) % 2**32  # cells and pulses are not those of another training
    data = stage.data or recipe.data
    network = _learner(case, recipe, name, stage)
    checkpoints, history = folder / "checkpoints", History()
    if not isinstance(stage, Stage):
        network.to(memory_format=torch.channels_last)  # a step in four fifths of the time, MobileNet's in two thirds
        module = Classifier(network, data.classes, stage.optimizer, stage.scheduler, runs=data.runs, seed=seed)
        fit(case, module, stage, data, seed, checkpoints, None, history, key=folder.name)
        network.to(memory_format=torch.contiguous_format)
        return {"network": network.state_dict(), "analog": None, "cells": {}, "rho": {}, "history": history.rows}
    teacher = copy.deepcopy(network) if stage.objective.wants_teacher else None
    hardware, computation = stage.hardware or recipe.hardware, stage.training_computation
    analog = analog_network(recipe, network, hardware, data, seed, computation)
    going_on = start if stage.on_recipes_arrays else Start(start.rho)
    going_on.apply_(analog)
    configure(analog, computation=computation)
    module = Classifier(
        analog,
        data.classes,
        stage.optimizer,
        stage.scheduler,
        stage.objective,
        teacher,
        runs=data.runs,
        measured=hardware.computation,
        seed=seed,
    )
    optimizers = fit(case, module, stage, data, seed, checkpoints, None, history, cells=going_on.cells, key=folder.name)
    if module.ranges is not None:
        module.ranges.settle()
    trained = stage.objective.trains_rho
    return {
        "network": to_digital(analog).state_dict(),
        "analog": analog.state_dict(),
        "cells": {index: cells for optimizer in optimizers for index, cells in optimizer.cells().items()},
        "rho": {name: layer.rho.detach() for name, layer in analog_layers(analog).items()} if trained else {},
        "history": history.rows,
    }


def _learner(case: Case, recipe: Recipe, name: str, stage: Pretrain) -> nn.Module:
    """The digital network with which a training begins: the recipe's, or the stage's own with what fits of its weights.

    Its random weights come from the training's seed alone, whatever else the recipe makes.
    """
    first = name == PRETRAIN
    if stage.network is None and (stage.seed is None or not first):
        return load_weights(recipe.network, recipe.weights) if first else recipe.network
    settings = case.settings.clone()
    if stage.network is not None:
        settings.network = (settings.pretrain if first else settings.stages[name]).network
    seed_everything(recipe.seed if stage.seed is None else stage.seed, workers=True, verbose=False)
    network = Case(case.name, settings).build().network
    if stage.network is None:
        return load_weights(network, recipe.weights)
    if not first or recipe.weights is not None:
        load_what_fits(network, recipe.network.state_dict())
    return network
