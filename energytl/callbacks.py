"""What a training run does besides training: seeds, curves, checkpoints, refusing to go on after NaN."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from energytl import seeding
from energytl.analog.configure import analog_layers
from energytl.data import ImageData
from energytl.optim.on_chip import Cells, OnChipOptimizer
from energytl.results import write_tensors
from energytl.streams import Stream


class SeededEpochs(Callback):
    """Start every epoch from (seed, epoch, rank): a resumed run goes on as the unbroken one.

    Args:
        seed: of torch's, Python's and NumPy's global generators, which dropout and image transforms use, and of the
            read noise.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seed all that draws random numbers in training."""
        seeding.begin(pl_module, Stream.TRAINING, self.seed, trainer.current_epoch, trainer.global_rank)


class History(Callback):
    """The training curves as plain numbers, kept in checkpoints: one row for each epoch and each validation within it.

    Args:
        earlier: rows of earlier trainings, which this one goes on from.

    Attributes:
        rows: dictionaries of what was logged, the number of epochs, iterations and images so far, `rho`, the mean over
            layers, and `val/accuracies` of runs side by side.
        validated: epoch and batch of the last validation.
    """

    def __init__(self, earlier: Sequence[dict[str, Any]] = ()) -> None:
        last: dict[str, Any] = earlier[-1] if earlier else {}
        self.first = {name: last.get(name, 0.0) for name in ("epoch", "step", "images")}
        self.validated: tuple[int, int] | None = None
        self.rows: list[dict[str, Any]] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what a validation in the middle of an epoch found; that at its end comes before `on_train_epoch_end`."""
        if trainer.sanity_checking:
            return
        batches = trainer.fit_loop.epoch_loop.batch_progress
        self.validated = (trainer.current_epoch, batches.current.ready)
        if not batches.is_last_batch:
            found = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
            self._note(trainer, pl_module, found)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what the epoch's end logged, and what a validation there found."""
        at = (trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_progress.current.ready)
        left_out = ("rho/",) if self.validated == at else ("rho/", "val/")
        found = {name: value for name, value in trainer.callback_metrics.items() if not name.startswith(left_out)}
        row = self._note(trainer, pl_module, found)
        layers = analog_layers(pl_module)
        for name, layer in layers.items():
            pl_module.log(f"rho/{name.removeprefix('network.')}", layer.rho.detach(), on_epoch=True, on_step=False)
        if layers:
            row["rho"] = sum(float(layer.rho.detach()) for layer in layers.values()) / len(layers)

    def _note(self, trainer: Trainer, pl_module: LightningModule, found: Mapping[str, Any]) -> dict[str, Any]:
        """A new row, after the batches that the epoch has had."""
        batches, in_epoch = trainer.fit_loop.epoch_loop.batch_progress.current.ready, int(trainer.num_training_batches)
        epochs = trainer.current_epoch + (batches / in_epoch if batches < in_epoch else 1)
        row: dict[str, Any] = {"epoch": self.first["epoch"] + epochs, "step": self.first["step"] + trainer.global_step}
        if isinstance(data := trainer.datamodule, ImageData):  # type: ignore[attr-defined]
            assert data.train_set is not None
            available, together = len(data.train_set), data.batch_size * trainer.world_size  # type: ignore[arg-type]
            images = [min(count * together, available) for count in (in_epoch, batches)]
            row["images"] = self.first["images"] + trainer.current_epoch * images[0] + images[1]
        row |= {name: float(value) for name, value in found.items()}
        accuracies = getattr(pl_module, "val_accuracies", ())
        if len(accuracies) > 1 and "val/accuracy" in row:
            row["val/accuracies"] = accuracies
        self.rows.append(row)
        return row

    def state_dict(self) -> dict[str, Any]:
        """Rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the rows of a checkpoint."""
        self.rows = list(state_dict["rows"])


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that are written whole or not at all: a full disk leaves the last one as it was."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:  # noqa: ANN401
        """Write the checkpoint beside its place, then move it there."""
        write_tensors(Path(path), checkpoint)


class SameTraining(Callback):
    """Go on only from checkpoints of the same training: of the same settings, code, data and shapes.

    Args:
        name: of all these.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def state_dict(self) -> dict[str, Any]:
        """The name."""
        return {"name": self.name}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse a checkpoint of a different name."""
        if state_dict["name"] != self.name:
            raise ValueError(
                "the checkpoint to go on from is of other settings, code or data, though the recipe reads the same "
                "(an edited network, data module or image?): run without --resume to start anew"
            )


class DivergedError(RuntimeError):
    """The loss became NaN or infinite."""


class GoOnWithCells(Callback):
    """Let on-chip training begin with the arrays of an earlier one, rather than newly drawn ones.

    Args:
        cells: of each layer by its number, as `OnChipOptimizer.cells` tells them.
    """

    def __init__(self, cells: Cells) -> None:
        self.cells = cells

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hand them over, unless a checkpoint has them already."""
        for optimizer in trainer.optimizers:
            if self.cells and trainer.global_step == 0 and isinstance(optimizer, OnChipOptimizer):
                optimizer.go_on_with(self.cells)


class ClipWeights(Callback):
    """Cut the weights of analog layers to their range after each step."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *step: Any) -> None:  # noqa: ANN401
        """Cut them; frozen ones stay."""
        for layer in analog_layers(pl_module).values():
            if layer.weight.requires_grad:
                layer.clip_weight()


class Begun(Callback):
    """Knows whether training has begun, with whatever a checkpoint brings back.

    Attributes:
        yet: whether.
    """

    yet: bool = False

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first step of all."""
        self.yet = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first step without a validation before training."""
        self.yet = True


class StopAtNaN(Callback):
    """Raise as soon as the loss is no number."""

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Look at the loss of every step."""
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor) and not torch.isfinite(loss):
            raise DivergedError(
                f"the loss became {float(loss)} in epoch {trainer.current_epoch + 1}, step {batch_idx + 1}: "
                "lower the learning rate (optimizer lr, objective.rho_lr) or objective.energy_weight"
            )
