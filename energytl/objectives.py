"""What training minimises: the task's loss, a digital teacher's outputs and features, and the energy of the reads."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from energytl.allowed import ABOVE_0, COUNT_OR_0, FROM_0, SHARE, check
from energytl.analog.inference import hooked, inference
from energytl.analog.layers import AnalogLayer
from energytl.cost.energy import regularised_energy


@dataclass(frozen=True)
class Objective:
    """Task loss + λ·energy, energy = Σ_t α_t·ρ·|w_t| (Wang 2021, eq. 13) or with the real activations (eq. 19).

    Attributes:
        energy_weight: λ, 0 or more. 0 leaves the energy out and ρ as it is: without a price it would only grow. Several
            numbers train one after the other, each from the last one's weights: a family of networks, of which each
            evaluated point takes the one that needs least.
        relative: λ is in units of the energy at the start of the (first) training, so that λ = 0.1 adds 0.1 to the
            first loss whatever the network; otherwise λ is a price for each unit of energy.
        activity: images of each batch whose inputs' pulses the energy counts (eq. 19), so that training can save
            them, too. 0: every input counts the same, as in eq. 13.
        rho_lr: learning rate of log ρ.
        range_lr: learning rate of the log of each layer's input range; 0 keeps the calibrated ones. With 0.02, A+B took
            half the least energy on LeNet (recipes/wang_ranges_lenet.yaml).
        weight_range_lr: likewise of the range that its weights are mapped to; 0 keeps it. ρ and this range change
            energy and fluctuation alike, so it only matters to rounding and cutting: no clear gain in that recipe.
        distillation: share of the task loss, 0..1, that is the distance to the digital network's outputs instead of
            the labels (Hinton 2015: T²·KL of outputs softened by T).
        temperature: T.
        hints: names of modules, "layer1" or "layer?.?" for all that match, whose outputs learn from those of the same
            modules of the digital network (Romero 2015, FitNets), so that each part of the network learns to take the
            fluctuation out of what it reads.
        hint_weight: of the `hint_loss` of these in the task loss.
    """

    energy_weight: float | tuple[float, ...] = 0.0
    relative: bool = True
    activity: int = 0
    rho_lr: float = 0.02
    range_lr: float = 0.0
    weight_range_lr: float = 0.0
    distillation: float = 0.0
    temperature: float = 2.0
    hints: tuple[str, ...] = ()
    hint_weight: float = 0.0

    def __post_init__(self) -> None:
        """Refuse negative prices and rates."""
        if not self._weights:
            raise ValueError("objective.energy_weight is an empty list; give one number or more")
        rates = dict.fromkeys(("energy_weight", "rho_lr", "range_lr", "weight_range_lr", "hint_weight"), FROM_0)
        check(self, "objective", **rates, activity=COUNT_OR_0, distillation=SHARE, temperature=ABOVE_0)
        if bool(self.hints) != bool(self.hint_weight):
            given, missing = ("hints", "hint_weight") if self.hints else ("hint_weight", "hints")
            raise ValueError(f"objective.{given} is nothing without objective.{missing}; set both or none")

    @property
    def _weights(self) -> tuple[float, ...]:
        return self.energy_weight if isinstance(self.energy_weight, tuple) else (self.energy_weight,)

    @property
    def price(self) -> float:
        """λ, of an objective with one."""
        (weight,) = self._weights
        return weight

    def stages(self) -> "list[Objective]":
        """One objective for each λ.

        >>> [stage.energy_weight for stage in Objective(energy_weight=(0.1, 1.0)).stages()]
        [0.1, 1.0]
        """
        return [replace(self, energy_weight=weight) for weight in self._weights]

    @property
    def wants_teacher(self) -> bool:
        """Whether the digital network is to learn from."""
        return self.distillation > 0 or self.hint_weight > 0

    @property
    def trains_rho(self) -> bool:
        """Whether ρ is a parameter of the training."""
        return max(self._weights) > 0 and self.rho_lr > 0


def network_energy(layers: Iterable[AnalogLayer]) -> Tensor:
    """Σ_t α_t·ρ·|w_t| over the layers, a differentiable scalar; the network must have run once."""
    return sum((regularised_energy(layer) for layer in layers), start=Tensor.new_zeros(Tensor(), ()))


def distillation_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T²·KL(softmax(teacher/T) ‖ softmax(logits/T)), mean over images; both (images, classes) (Hinton 2015).

    >>> float(distillation_loss(Tensor([[1.0, 2.0]]), Tensor([[2.0, 3.0]]), 2.0))
    0.0
    """
    student, target = (logits / temperature).log_softmax(1), (teacher / temperature).log_softmax(1)
    return F.kl_div(student, target, reduction="batchmean", log_target=True) * temperature**2


def hint_loss(features: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean over the places of mean (feature - teacher)² / variance of the teacher's; shapes in pairs the same.

    Romero 2015 (FitNets, eq. 3) takes the squared distance; in units of the variance, no place outweighs the others. A
    place where the teacher is constant counts as it is.

    >>> float(hint_loss([Tensor([1.0, 2.0, 3.0])], [Tensor([3.0, 2.0, 1.0])]))  # 8/3 over 1
    2.6666667461395264
    >>> float(hint_loss([Tensor([1.0, 2.0])], [Tensor([0.0, 0.0])]))
    2.5
    """
    distances = []
    for own, digital in zip(features, teacher, strict=True):
        variance = digital.float().var()
        distances.append(F.mse_loss(own, digital.float()) / torch.where(variance > 0, variance, 1.0))
    return torch.stack(distances).mean()


def hinted(network: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Module]:
    """The modules of a network whose names match, in the network's order.

    Raises:
        ValueError: if a pattern matches none.

    >>> hinted(nn.Sequential(nn.ReLU(), nn.Linear(2, 1)), ["[1-9]"])
    {'1': Linear(in_features=2, out_features=1, bias=True)}
    """
    modules = {name: module for name, module in network.named_modules() if name}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in modules):
            outer = ", ".join(name for name in modules if name.count(".") < 2)
            raise ValueError(
                f"objective.hints: {pattern} is no module of the network; allowed: {outer}, their parts, and patterns"
            )
    return {name: module for name, module in modules.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}


def refuse_hints(digital: nn.Module, analog: nn.Module, patterns: Sequence[str], images: Tensor) -> None:
    """Refuse modules whose outputs for these images cannot be compared.

    Raises:
        ValueError: if a module does not give the same tensors in both networks (attention reads the weights of some
            without calling them), or what follows it overwrites them in place.
    """
    taught = _output_shapes(digital, patterns, images)
    for name, shapes in _output_shapes(analog, patterns, images).items():
        if not shapes or None in shapes or shapes != taught.get(name):
            raise ValueError(
                f"objective.hints: {name} does not give the same tensors in the digital and the analog network; name a "
                "module around it"
            )


def _output_shapes(network: nn.Module, patterns: Sequence[str], images: Tensor) -> dict[str, list[torch.Size | None]]:
    """Shapes of each hinted module's outputs, one a call; None for what is no tensor."""
    names = {module: name for name, module in hinted(network, patterns).items()}
    outputs: dict[str, list[tuple[Any, int]]] = {name: [] for name in names.values()}

    def note(module: nn.Module, _: tuple[Tensor, ...], output: Any) -> None:  # noqa: ANN401
        outputs[names[module]].append((output, getattr(output, "_version", 0)))

    with inference(network), hooked(names, note):
        network(images)
    for name, calls in outputs.items():
        if any(getattr(output, "_version", 0) != version for output, version in calls):
            raise ValueError(f"objective.hints: what follows {name} overwrites its output; name the module around both")
    return {name: [getattr(output, "shape", None) for output, _ in calls] for name, calls in outputs.items()}


@contextmanager
def noting_outputs(modules: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """While it is open, each call of one of these modules appends its output."""
    outputs: list[Tensor] = []
    with hooked(modules, lambda _, inputs, output: outputs.append(output)):
        yield outputs
