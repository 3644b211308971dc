"""The LightningModule: steps, metrics, optimizer. Everything else is called from here, not written here."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from energytl.analog.configure import analog_layers
from energytl.analog.fused import compact_dtype, is_large
from energytl.analog.inference import inference
from energytl.analog.layers import AnalogLayer
from energytl.analog.read import Computation
from energytl.cost.energy import counting_pulses
from energytl.objectives import Objective, distillation_loss, hint_loss, hinted, network_energy, noting_outputs
from energytl.optim.on_chip import OnChipOptimizer
from energytl.ranges import TrainedRanges
from energytl.seeding import apart
from energytl.streams import Stream


class RunAccuracies(Metric):
    """Accuracy of each of several runs side by side.

    Args:
        runs: how many.

    >>> metric = RunAccuracies(2)
    >>> metric.update(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.tensor([[0, 0]]))
    >>> metric.compute()
    tensor([1., 0.])
    """

    right: Tensor
    seen: Tensor

    def __init__(self, runs: int) -> None:
        super().__init__()
        self.add_state("right", torch.zeros(runs), "sum")
        self.add_state("seen", torch.zeros(()), "sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count the images of a batch: logits (N, classes, runs), labels (N, runs)."""
        self.right += (logits.argmax(1) == labels).sum(0)
        self.seen += len(labels)

    def compute(self) -> Tensor:
        """Share of images classified correctly, (runs,)."""
        return self.right / self.seen


class Classifier(LightningModule):
    """Trains a classifier, digital or analog.

    Args:
        network: images → logits.
        classes: number of classes.
        optimizer: parameter groups → optimizer; ρ is a group of its own, without weight decay.
        scheduler: optimizer → schedule, stepped after each epoch; ReduceLROnPlateau after each that was validated, by
            val/loss, or in its mode max by val/accuracy.
        objective: price of energy, distillation and hints, for an analog network.
        teacher: digital network whose outputs and features the objective may want, with the network's modules.
        energy_unit: what λ is the price of; 0 takes the energy of the first batch, or 1, as the objective says.
        runs: independent networks side by side, of which logits are (N, classes, runs) and labels (N, runs).
        measured: how validation sees the reads, however training does; None: as training.
        seed: of validation's own random stream: measuring more often trains the same network.

    Attributes:
        val_accuracies: of each of several runs, at the last validation.
    """

    def __init__(
        self,
        network: nn.Module,
        classes: int,
        optimizer: Callable[[Iterable[Any]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        objective: Objective | None = None,
        teacher: nn.Module | None = None,
        energy_unit: float = 0.0,
        runs: int = 1,
        measured: Computation | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.network = network
        self.measured, self.seed = measured, seed
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.objective = objective or Objective()
        if self.objective.wants_teacher and teacher is None:
            raise ValueError("the objective wants a teacher, the digital network, for its distillation or hints")
        if teacher is not None:
            teacher = teacher.to(memory_format=torch.channels_last)  # its products are faster so
        self._teacher = [teacher]  # in a list, so that it is no child
        both = network, network if teacher is None else teacher
        self._hinted, self._teachers_hinted = [[*hinted(one, self.objective.hints).values()] for one in both]
        self.layers = list(analog_layers(network).values())
        for layer in self.layers:  # before a strategy wraps the module: it waits for the gradients of what wants one
            layer.log_rho.requires_grad_(self.objective.trains_rho and layer.weight.requires_grad)
        rates = self.objective.range_lr, self.objective.weight_range_lr
        self.ranges = TrainedRanges(self.layers, inputs=rates[0] > 0, weights=rates[1] > 0) if any(rates) else None
        self.train_accuracy = MulticlassAccuracy(classes, average="micro")
        self.val_accuracy = MulticlassAccuracy(classes, average="micro")
        self.runs = runs
        self.run_accuracies = RunAccuracies(runs)
        self.val_accuracies: list[float] = []
        self._measuring = ExitStack()
        self._validated: dict[str, float] = {}
        self.register_buffer("energy_unit", torch.tensor(energy_unit))
        self.energy_unit: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Images → logits."""
        logits: Tensor = self.network(x)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Task loss with what the teacher adds + λ·energy."""
        images, labels = batch
        price = self.objective.price
        counted = min(self.objective.activity, len(images)) if price else 0
        nothing: AbstractContextManager[list[Tensor]] = nullcontext([])
        counting = counting_pulses(self.layers, counted) if counted else nothing
        with counting as energies, noting_outputs(self._hinted) as features:
            logits = self(images)
        loss = self._task_loss(images, logits, labels, features)
        self.train_accuracy(logits, labels)
        self.log("train/task_loss", loss, on_step=False, on_epoch=True)
        self.log("train/accuracy", self.train_accuracy, on_step=False, on_epoch=True, prog_bar=True)
        if price:
            energy = torch.stack(energies).sum() / counted if counted else network_energy(self.layers)
            energy = energy / self.runs
            if self.energy_unit == 0:
                self.energy_unit.copy_(energy.detach() if self.objective.relative else torch.ones(()))
            self.log("train/energy", energy.detach(), on_step=False, on_epoch=True)
            loss = loss + price * energy / self.energy_unit
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True)
        return loss * self.runs  # to each run's weights the gradient of its own loss

    def _task_loss(self, images: Tensor, logits: Tensor, labels: Tensor, features: list[Tensor]) -> Tensor:
        """Cross entropy with the labels, and distance to the teacher in the objective's proportion; with its hints."""
        share, (teacher,) = self.objective.distillation, self._teacher
        loss = F.cross_entropy(logits, labels)
        if not self.objective.wants_teacher:
            return loss
        assert teacher is not None
        fast = is_large(images) and compact_dtype() != torch.float32
        with (
            inference(teacher),
            torch.autocast("cpu", compact_dtype()) if fast else nullcontext(),
            noting_outputs(self._teachers_hinted) as hints,
        ):
            target = teacher.to(images.device)(images)
        if share:
            target = target.float() if fast else target
            loss = (1 - share) * loss + share * distillation_loss(logits, target, self.objective.temperature)
        return loss + self.objective.hint_weight * hint_loss(features, hints) if self.objective.hints else loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Accuracy and loss on held-out images."""
        images, labels = batch
        logits = self(images)
        self.val_accuracy(logits, labels)
        self.log("val/loss", F.cross_entropy(logits, labels))
        self.log("val/accuracy", self.val_accuracy, prog_bar=True)
        if self.runs > 1:
            self.run_accuracies.update(logits, labels)

    def on_validation_start(self) -> None:
        """Leave the streams of training where they stand, and read as the hardware does."""
        trainer = self.trainer
        epoch: Any = trainer.fit_loop.epoch_progress.current  # typed as what it extends
        seeds = self.seed, epoch.processed, self.global_step, self.global_rank
        self._measuring.enter_context(apart(self.network, Stream.VALIDATION, *seeds))
        if self.measured is not None:
            self._measuring.enter_context(_computing(self.layers, self.measured))

    def on_validation_epoch_end(self) -> None:
        """Keep the accuracy of each of several runs."""
        if self.runs > 1:
            self.val_accuracies = self.run_accuracies.compute().tolist()
            self.run_accuracies.reset()

    def on_validation_end(self) -> None:
        """Go on where training stood; note what a schedule may follow."""
        self._measuring.close()
        if not self.trainer.sanity_checking:
            found = self.trainer.callback_metrics
            self._validated = {name: float(found[name]) for name in FOLLOWED.values()}

    def on_train_epoch_end(self) -> None:
        """Step a schedule that follows a measurement, before the checkpoint is written: Lightning would do so after."""
        for config in self.trainer.lr_scheduler_configs if self._validated else ():
            if isinstance(config.scheduler, ReduceLROnPlateau):
                config.scheduler.step(self._validated[FOLLOWED[config.scheduler.mode]])
        self._validated = {}

    def lr_scheduler_step(self, scheduler: LRScheduler, metric: Any | None) -> None:  # noqa: ANN401
        """Step any other schedule."""
        if not isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer and its schedule, as Lightning takes them."""
        optimizer, scheduler = self.make_both()
        if scheduler is None:
            return optimizer
        if isinstance(scheduler, ReduceLROnPlateau):
            config = {"scheduler": scheduler, "reduce_on_plateau": False}  # see on_train_epoch_end
            return [optimizer], [config]  # type: ignore[return-value]  # Lightning takes dictionaries, too
        return [optimizer], [scheduler]

    def make_both(self) -> tuple[Optimizer, LRScheduler | None]:
        """The optimizer, of weights in one group, log ρ in another, if it has a price; and its schedule."""
        rho = [layer.log_rho for layer in self.layers if layer.log_rho.requires_grad]
        own = {id(parameter) for parameter in rho}
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.network.parameters() if p.requires_grad and id(p) not in own]}
        ]
        if rho:
            groups.append({"params": rho, "lr": self.objective.rho_lr, "weight_decay": 0.0})
        if self.ranges is not None:
            inputs, weights = [*self.ranges.log_input_ranges], [*self.ranges.log_weight_factors]
            rated = (inputs, self.objective.range_lr), (weights, self.objective.weight_range_lr)
            groups += [{"params": logs, "lr": rate, "weight_decay": 0.0} for logs, rate in rated if logs]
        own_rates = [group["lr"] for group in groups[1:]]
        optimizer = self.make_optimizer(groups)
        if self.layers and isinstance(optimizer, torch.optim.LBFGS):
            raise ValueError(
                "optimizer LBFGS calls its closure several times a step, but every call reads other noise, and pulses "
                "cannot be taken back: use one that takes one gradient a step, as torch.optim.Adam"
            )
        if self.objective.weight_range_lr and isinstance(optimizer, OnChipOptimizer):
            raise ValueError(
                f"objective.weight_range_lr is {self.objective.weight_range_lr}, but {type(optimizer).__name__} moves "
                "the weights of arrays whose range is given: set it to 0"
            )
        if self.make_scheduler is None:
            return optimizer, None
        scheduler = self.make_scheduler(optimizer)
        for group, rate in zip(optimizer.param_groups[1:], own_rates, strict=True):
            if group.get("initial_lr", rate) != rate:
                raise ValueError(
                    f"scheduler {type(scheduler).__name__} sets one learning rate for all, but objective.rho_lr or a "
                    f"range's asks for {rate}: use one that scales each parameter's own, e.g. torch.optim.lr_scheduler."
                    "CosineAnnealingLR"
                )
        return optimizer, scheduler


FOLLOWED = {"min": "val/loss", "max": "val/accuracy"}
"""What ReduceLROnPlateau follows, by its mode."""


def rehearse(module: Classifier, epochs: int, validated: bool) -> None:
    """Make the optimizer and go through its schedule once, without training.

    Args:
        module: its parameters stay as they are.
        epochs: of the training.
        validated: whether there are validations.

    Raises:
        ValueError: for an optimizer or a schedule that could not be used, or would not do in these epochs what it is
            for.
    """
    scheduler = module.make_both()[1]
    if scheduler is None:
        return
    kind = type(scheduler).__name__
    if isinstance(scheduler, ReduceLROnPlateau):
        if not validated:
            raise ValueError(
                f"scheduler {kind} follows {FOLLOWED[scheduler.mode]}, but nothing is validated: leave trainer."
                f"limit_val_batches and check_val_every_n_epoch as they are, or use a scheduler that follows nothing"
            )
        return
    if isinstance(scheduler, OneCycleLR) and scheduler.total_steps != epochs:
        raise ValueError(
            f"scheduler.total_steps of {kind} is {scheduler.total_steps}, but it is stepped once an epoch, after each "
            f"of {epochs}: set total_steps: {epochs}"
        )
    if isinstance(scheduler, CyclicLR) and (rise := scheduler.total_size * scheduler.step_ratio) > epochs:
        raise ValueError(
            f"scheduler.step_size_up of {kind} is {rise:g}, but it is stepped once an epoch, after each of {epochs}: "
            f"set step_size_up to {epochs} or less"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that nothing was trained in between
            for _ in range(epochs):
                module.lr_scheduler_step(scheduler, None)
    except Exception as error:  # whatever a user's own schedule raises
        raise ValueError(f"scheduler {kind} fails within {epochs} epochs: {' '.join(str(error).split())}") from error


@contextmanager
def _computing(layers: list[AnalogLayer], computation: Computation) -> Iterator[None]:
    """While it is open, reads are computed so."""
    before = [layer.hardware.computation for layer in layers]
    for layer in layers:
        layer.configure(computation=computation)
    try:
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            layer.configure(computation=own)
