"""Training on the chip in any Lightning module."""

import pytest
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer


class Module(LightningModule):
    """Any Lightning module."""

    def __init__(self, network, optimizer_of):
        super().__init__()
        self.network, self.optimizer_of = network, optimizer_of

    def training_step(self, batch, _):
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self):
        return self.optimizer_of(self.network)


@pytest.fixture
def fit():
    """Train network by the optimizer that optimizer_of makes for it; Lightning's trainer."""

    def train(network, optimizer_of, loader, epochs, **how):
        quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
        trainer = Trainer(accelerator="cpu", max_epochs=epochs, enable_progress_bar=False, **quiet)
        trainer.fit(Module(network, optimizer_of), loader, **how)
        return trainer

    return train
