"""Training: what the objective does to energy and ρ, and that seeds hold."""

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from energytl import Fluctuation, Hardware, analog_layers, convert
from energytl.callbacks import History, SeededEpochs
from energytl.classifier import Classifier
from energytl.data import Digits
from energytl.models import mlp
from energytl.objectives import Objective, network_energy


def train(objective, epochs=2, seed=0, rho=1.0):
    torch.manual_seed(3)
    network = convert(mlp(hidden=(16,)), Hardware(rho=rho), seed=1)
    data, history = Digits(batch_size=200), History()
    module = Classifier(network, 10, lambda groups: torch.optim.Adam(groups, lr=1e-3), objective=objective)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        enable_progress_bar=False,
        callbacks=[SeededEpochs(seed), history],
        limit_val_batches=1,
        **quiet,
    )
    trainer.fit(module, datamodule=data)
    return network, history.rows


def rho_of(network):
    return [float(layer.rho.detach()) for layer in analog_layers(network).values()]


def test_without_a_price_rho_stays():
    network, _ = train(Objective())
    assert rho_of(network) == pytest.approx([1.0, 1.0])


def test_a_price_lowers_the_energy_and_a_higher_price_more():
    energies = []
    for weight in (0.05, 2.0):
        network, rows = train(Objective(energy_weight=weight, rho_lr=0.05))
        assert rows[-1]["train/energy"] < rows[0]["train/energy"]
        energies.append(float(network_energy(analog_layers(network).values()).detach()))
    assert energies[1] < energies[0]


@pytest.mark.parametrize("rho", [1.0, 10.0])
@pytest.mark.parametrize("relative", [True, False])
def test_the_loss_is_the_tasks_plus_the_price_of_the_energy(rho, relative):
    silent = Hardware(rho=rho, fluctuation=Fluctuation(intensity=0.0))
    network = convert(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), silent, seed=0)
    module = Classifier(network, 2, torch.optim.SGD, objective=Objective(energy_weight=0.25, relative=relative))
    module.log = lambda *args, **kwargs: None
    batch = torch.rand(8, 1, 2, 2), torch.randint(2, (8,))
    task = nn.functional.cross_entropy(network(batch[0]), batch[1])
    energy = rho * (network[1].stored_weight.abs().sum())  # one position
    torch.testing.assert_close(module.training_step(batch, 0) - task, torch.tensor(0.25) if relative else 0.25 * energy)
    with torch.no_grad():
        network[1].log_rho.add_(1.0)  # relative to the start, not to the present
    expected = 0.25 * torch.e if relative else 0.25 * torch.e * energy
    torch.testing.assert_close(module.training_step(batch, 1) - task, torch.as_tensor(expected).float())


def test_the_same_seed_trains_the_same_network():
    first, second, third = (train(Objective(energy_weight=0.1), 1, seed)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], third[name]) for name in first)


def test_rho_is_a_group_of_its_own_without_weight_decay():
    network = convert(mlp(hidden=(4,)))
    module = Classifier(
        network,
        10,
        lambda groups: torch.optim.SGD(groups, lr=0.1, weight_decay=0.5),
        objective=Objective(energy_weight=1.0, rho_lr=0.3),
    )
    weights, rho = module.configure_optimizers().param_groups
    assert (weights["lr"], weights["weight_decay"]) == (0.1, 0.5)
    assert (rho["lr"], rho["weight_decay"]) == (0.3, 0.0)
    assert [id(parameter) for parameter in rho["params"]] == [id(layer.log_rho) for layer in module.layers]
