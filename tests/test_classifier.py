"""Training: what the objective does to energy and ρ, and that seeds hold."""

import copy
import re

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.optim import lr_scheduler

from energytl import Fluctuation, Hardware, analog_layers, classifier, convert, estimate
from energytl.analog import fused
from energytl.callbacks import History, SeededEpochs
from energytl.classifier import Classifier, RunAccuracies, rehearse
from energytl.data import Digits
from energytl.models import SideBySide, mlp
from energytl.objectives import Objective, distillation_loss, hint_loss, network_energy, refuse_hints


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
    silent = Hardware(rho=rho, fluctuation=Fluctuation(intensity=0.0), sensing_noise=None)
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


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_distillation_is_the_divergence_from_the_softened_teacher(temperature):
    generator = torch.Generator().manual_seed(0)
    logits, teacher = (3 * torch.randn(20, 10, generator=generator, dtype=torch.float64) for _ in range(2))
    logits.requires_grad_()
    p, q = ((y / temperature).softmax(1) for y in (teacher, logits))
    expected = temperature**2 * (p * (p.log() - q.log())).sum(1).mean()
    loss = distillation_loss(logits, teacher, temperature)
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, temperature * (q - p).detach() / 20)


def silent_step(objective, teacher=None):
    """A silent network's batch, logits and loss."""
    torch.manual_seed(0)
    silent = Hardware(rho=3.0, fluctuation=Fluctuation(intensity=0.0), sensing_noise=None)
    network = convert(nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), silent, seed=0)
    module = Classifier(network, 2, torch.optim.SGD, objective=objective, teacher=teacher)
    module.log = lambda *args, **kwargs: None
    batch = torch.rand(8, 1, 2, 2), torch.randint(2, (8,))
    logits = network(batch[0])
    return network, batch, logits, module.training_step(batch, 0)


def test_the_loss_with_a_teacher_is_both_losses_in_proportion():
    teacher = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(4, 2))
    _, (images, labels), logits, loss = silent_step(Objective(distillation=0.3, temperature=4.0), teacher)
    target = teacher[2](images.flatten(1)).detach()  # without dropout
    torch.testing.assert_close(
        loss, 0.7 * nn.functional.cross_entropy(logits, labels) + 0.3 * distillation_loss(logits, target, 4.0)
    )
    assert all(module.training for module in teacher.modules())  # as it was
    loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_many_images_are_taught_in_bfloat16_where_that_is_fast(monkeypatch):
    torch.manual_seed(0)
    student, teacher = (nn.Sequential(nn.Flatten(), nn.Linear(4, 2)) for _ in range(2))
    with torch.no_grad():
        teacher[1].weight.mul_(10)  # so that the two are far apart
    module = Classifier(student, 2, torch.optim.SGD, objective=Objective(distillation=1.0), teacher=teacher)
    module.log = lambda *args, **kwargs: None
    batch = torch.rand(8, 1, 2, 2), torch.randint(2, (8,))

    def loss(dtype, large):
        monkeypatch.setattr(classifier, "compact_dtype", lambda: dtype)
        monkeypatch.setattr(fused, "LARGE", large)
        return float(module.training_step(batch, 0).detach())

    exact = loss(torch.float32, 1)
    assert loss(torch.bfloat16, 33) == exact  # 32 numbers are few
    assert exact != loss(torch.bfloat16, 32) == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("wish", [{"distillation": 0.5}, {"hints": ("1",), "hint_weight": 1.0}])
def test_distillation_and_hints_want_a_teacher(wish):
    with pytest.raises(ValueError, match="wants a teacher"):
        silent_step(Objective(**wish))


def test_features_that_know_nothing_of_the_teachers_are_two_variances_away():
    generator = torch.Generator().manual_seed(0)
    own, teacher = (3 + 2 * torch.randn(100, 1000, generator=generator) for _ in range(2))
    assert float(hint_loss([own], [teacher])) == pytest.approx(2, abs=0.03)
    assert float(hint_loss([own, 5 * own], [teacher, 5 * teacher])) == pytest.approx(float(hint_loss([own], [teacher])))
    assert float(hint_loss([teacher, own], [teacher, teacher])) == pytest.approx(1, abs=0.015)


def test_the_loss_with_hints_adds_their_weight_times_the_distance_of_the_features():
    torch.manual_seed(1)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    network, (images, labels), logits, loss = silent_step(Objective(hints=("[12]",), hint_weight=0.7), teacher)
    own, target = ([net[:upto](images).detach().flatten(1).numpy() for upto in (2, 3)] for net in (network, teacher))
    distances = [((a - b) ** 2).mean() / b.var(ddof=1) for a, b in zip(own, target, strict=True)]
    expected = float(nn.functional.cross_entropy(logits, labels).detach()) + 0.7 * sum(distances) / 2
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not network[1]._forward_hooks
    assert not teacher[1]._forward_hooks


class Attentive(nn.Module):
    """Attention over five features; it reads the weights of its output layer without calling it."""

    def __init__(self):
        super().__init__()
        self.attention, self.norm = nn.MultiheadAttention(4, 2, batch_first=True), nn.LayerNorm(4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.norm(self.attention(x, x, x)[0]))


@pytest.mark.parametrize(
    ("hint", "says"),
    [
        ("attention", "attention does not give the same tensors"),  # but a tuple
        ("attention.out_proj", "attention.out_proj does not give the same tensors"),
        ("norm", "what follows norm overwrites its output"),
        ("layer?", "is no module of the network; allowed: attention, attention.out_proj, norm, relu"),
    ],
)
def test_hints_that_cannot_be_compared_are_refused(hint, says):
    digital, images = Attentive(), torch.zeros(1, 5, 4)
    analog = convert(copy.deepcopy(digital), seed=0)
    refuse_hints(digital, analog, ["relu"], images)
    with pytest.raises(ValueError, match=re.escape(says)):
        refuse_hints(digital, analog, ["relu", hint], images)
    assert not any(module._forward_hooks for module in digital.modules())


@pytest.mark.parametrize("images", [1, 5, 8, 100])
def test_the_price_of_activity_is_that_of_the_pulses_of_some_images(images):
    objective = Objective(energy_weight=0.01, relative=False, activity=images)
    network, (x, labels), logits, loss = silent_step(objective)
    energy = estimate(network, x[:images], None).energy_paper
    expected = nn.functional.cross_entropy(logits, labels) + 0.01 * energy
    torch.testing.assert_close(loss, expected)
    task = torch.autograd.grad(nn.functional.cross_entropy(logits, labels), network[1].weight, retain_graph=True)[0]
    both = torch.autograd.grad(loss, network[1].weight, retain_graph=True)[0]
    assert (both - task).abs().max() > 0  # the first layer's own weights, and through the second one's inputs
    log_rho = [layer.log_rho for layer in analog_layers(network).values()]
    slopes = torch.autograd.grad(loss, log_rho)
    assert float(sum(slopes)) == pytest.approx(0.01 * energy, rel=1e-4)


def test_a_relative_price_of_activity_adds_its_weight_at_the_start():
    _, (_, labels), logits, loss = silent_step(Objective(energy_weight=0.2, activity=4))
    torch.testing.assert_close(loss - nn.functional.cross_entropy(logits, labels), torch.tensor(0.2))


def test_a_family_trains_one_price_at_a_time():
    family = Objective(energy_weight=(0.0, 0.5), rho_lr=0.1, distillation=0.5)
    assert family.trains_rho
    stages = family.stages()
    assert stages == [Objective(w, rho_lr=0.1, distillation=0.5) for w in (0.0, 0.5)]
    assert [(stage.price, stage.trains_rho) for stage in stages] == [(0.0, False), (0.5, True)]


# runs side by side


def steps(network, x, labels, runs=1):
    """Five steps of plain SGD, of batches of 6."""
    module = Classifier(network, 3, lambda groups: torch.optim.SGD(groups, lr=0.5), runs=runs)
    module.log = lambda *args, **kwargs: None
    optimizer = module.configure_optimizers()
    for batch in zip(x.split(6), labels.split(6), strict=True):
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        optimizer.step()


@pytest.mark.parametrize("runs", [2, 7])
def test_each_run_trains_as_it_would_alone(runs):
    torch.manual_seed(0)
    together = SideBySide(features=4, classes=3, runs=runs)
    x, labels = torch.randn(30, runs, 4), torch.randint(3, (30, runs))
    start = together.layer.weight.detach().clone().view(runs, 3, 4)
    steps(together, x.view(30, 4 * runs, 1, 1), labels, runs)
    for run in range(runs):
        alone = nn.Linear(4, 3, bias=False)
        with torch.no_grad():
            alone.weight.copy_(start[run])
        steps(alone, x[:, run], labels[:, run])
        trained = together.layer.weight.view(runs, 3, 4)[run]
        torch.testing.assert_close(trained, alone.weight)
        assert (trained - start[run]).abs().max() > 0.1


def test_accuracies_of_runs_are_those_of_their_images_in_batches_of_any_size():
    torch.manual_seed(0)
    logits, labels, metric = torch.randn(20, 3, 4), torch.randint(3, (20, 4)), RunAccuracies(4)
    for _ in range(2):  # once more, from nothing
        for part in zip(logits.split([13, 6, 1]), labels.split([13, 6, 1]), strict=True):
            metric.update(*part)
        expected = (logits.argmax(1) == labels).double().mean(0).float()
        torch.testing.assert_close(metric.compute(), expected)
        assert len(set(expected.tolist())) > 1
        metric.reset()


def test_validation_keeps_the_accuracy_of_each_run():
    torch.manual_seed(0)
    logits, labels = torch.randn(10, 3, 4), torch.randint(3, (10, 4))
    module = Classifier(nn.Identity(), 3, torch.optim.SGD, runs=4)
    module.log = lambda *args, **kwargs: None
    for part in ((logits, labels), (logits[:3], labels[:3])):  # another validation forgets the last
        module.validation_step((part[0][:2], part[1][:2]), 0)
        module.validation_step((part[0][2:], part[1][2:]), 1)
        module.on_validation_epoch_end()
        expected = (part[0].argmax(1) == part[1]).double().mean(0)
        assert module.val_accuracies == pytest.approx(expected.tolist())


# schedules


def rehearsed(schedule, epochs=3, validated=True, optimizer=torch.optim.Adam, price=0.0):
    network = convert(nn.Linear(4, 2), seed=0) if price else nn.Linear(4, 2)
    objective = Objective(energy_weight=price, rho_lr=0.3)
    module = Classifier(network, 2, lambda p: optimizer(p, lr=0.1), schedule, objective)
    rehearse(module, epochs, validated)
    return module


@pytest.mark.parametrize(
    ("schedule", "settings", "says"),
    [
        (lr_scheduler.ReduceLROnPlateau, {"validated": False}, "ReduceLROnPlateau follows val/loss, but nothing is"),
        (lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=50), {}, "is 50, but it is stepped once an epoch"),
        (lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, cycle_momentum=False), {}, "step_size_up of CyclicLR is 2000"),
        (
            lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=3),
            {"optimizer": torch.optim.Adagrad},
            "optimizer must support momentum",
        ),
        (lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=3), {"price": 1.0}, "asks for 0.3"),
        (lambda o: lr_scheduler.LambdaLR(o, lambda e: 1 / (e - 2)), {}, "fails within 3 epochs: "),
    ],
)
def test_schedules_that_fail_or_do_nothing_are_refused(schedule, settings, says):
    with pytest.raises(ValueError, match=says):
        rehearsed(schedule, **settings)


@pytest.mark.parametrize(
    "schedule",
    [
        lr_scheduler.ReduceLROnPlateau,
        lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=3),
        lambda o: lr_scheduler.CosineAnnealingLR(o, 3),
    ],
)
def test_schedules_that_work_are_not(schedule):
    rehearsed(schedule)
