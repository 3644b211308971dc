"""The LightningModule: steps, metrics, optimizer. Everything else is called from here, not written here."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics.classification import MulticlassAccuracy

from energytl.analog.convert import analog_layers
from energytl.objectives import Objective, network_energy


class Classifier(LightningModule):
    """Trains a classifier, digital or analog.

    Args:
        network: images → logits.
        classes: number of classes.
        optimizer: parameter groups → optimizer; ρ is a group of its own, without weight decay.
        scheduler: optimizer → schedule, stepped after each epoch.
        objective: price of energy, for an analog network.
    """

    def __init__(
        self,
        network: nn.Module,
        classes: int,
        optimizer: Callable[[Iterable[Any]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        objective: Objective | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.objective = objective or Objective()
        self.layers = list(analog_layers(network).values())
        for layer in self.layers:  # before a strategy wraps the module: it waits for the gradients of what wants one
            layer.log_rho.requires_grad_(self.objective.trains_rho)
        self.train_accuracy = MulticlassAccuracy(classes, average="micro")
        self.val_accuracy = MulticlassAccuracy(classes, average="micro")
        self.register_buffer("energy_unit", torch.zeros(()))  # what λ is the price of: Σ α·ρ·|w| at the start, or 1
        self.energy_unit: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Images → logits."""
        logits: Tensor = self.network(x)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Task loss + λ·energy."""
        images, labels = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels)
        self.train_accuracy(logits, labels)
        self.log("train/task_loss", loss, on_step=False, on_epoch=True)
        self.log("train/accuracy", self.train_accuracy, on_step=False, on_epoch=True, prog_bar=True)
        if self.objective.energy_weight:
            energy = network_energy(self.layers)
            if self.energy_unit == 0:
                self.energy_unit.copy_(energy.detach() if self.objective.relative else torch.ones(()))
            self.log("train/energy", energy.detach(), on_step=False, on_epoch=True)
            loss = loss + self.objective.energy_weight * energy / self.energy_unit
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Accuracy and loss on held-out images."""
        images, labels = batch
        logits = self(images)
        self.val_accuracy(logits, labels)
        self.log("val/loss", F.cross_entropy(logits, labels))
        self.log("val/accuracy", self.val_accuracy, prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Weights in one group, log ρ in another, if it has a price."""
        rho = [layer.log_rho for layer in self.layers]
        own = {id(parameter) for parameter in rho}
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.network.parameters() if p.requires_grad and id(p) not in own]}
        ]
        if rho and self.objective.trains_rho:
            groups.append({"params": rho, "lr": self.objective.rho_lr, "weight_decay": 0.0})
        optimizer = self.make_optimizer(groups)
        if self.layers and isinstance(optimizer, torch.optim.LBFGS):
            raise ValueError(
                "optimizer LBFGS calls its closure several times a step, but every call reads other noise, and pulses "
                "cannot be taken back: use one that takes one gradient a step, as torch.optim.Adam"
            )
        if self.make_scheduler is None:
            return optimizer
        return [optimizer], [self.make_scheduler(optimizer)]
