"""What a training run does besides training: seeds, curves, checkpoints, refusing to go on after NaN."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from energytl.analog.convert import analog_layers
from energytl.analog.noise import fold
from energytl.results import write_tensors


class SeededEpochs(Callback):
    """Start every epoch from (seed, epoch, rank): a resumed run goes on as the unbroken one.

    Args:
        seed: of torch's global generator, which dropout and image transforms use, and of the read noise.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seed all that draws random numbers in training."""
        seeds = (self.seed, trainer.current_epoch, trainer.global_rank)
        torch.manual_seed(fold(*seeds) % 2**63)
        for layer in analog_layers(pl_module).values():
            layer.noise.reseed(*seeds, 1)  # a stream apart from torch's own


class History(Callback):
    """The training curves as plain numbers: one row for each epoch, kept in checkpoints.

    Args:
        earlier: rows of earlier trainings, which this one goes on from.

    Attributes:
        rows: dictionaries of what was logged, the number of iterations, and `rho`, the mean over layers.
    """

    def __init__(self, earlier: Sequence[dict[str, float]] = ()) -> None:
        self.first_epoch, self.first_step = (earlier[-1]["epoch"], earlier[-1]["step"]) if earlier else (0.0, 0.0)
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what the epoch's end logged; validation has run."""
        row = {"epoch": self.first_epoch + trainer.current_epoch + 1, "step": self.first_step + trainer.global_step}
        logged = trainer.callback_metrics.items()
        row |= {name: float(value) for name, value in logged if not name.startswith("rho/")}
        layers = analog_layers(pl_module)
        for name, layer in layers.items():
            pl_module.log(f"rho/{name.removeprefix('network.')}", layer.rho.detach(), on_epoch=True, on_step=False)
        if layers:
            row["rho"] = sum(float(layer.rho.detach()) for layer in layers.values()) / len(layers)
        self.rows.append(row)

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


class DivergedError(RuntimeError):
    """The loss became NaN or infinite."""


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
