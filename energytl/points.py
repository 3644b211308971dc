"""The points of a case: an accuracy and its cost, each at the least energy that some accuracy needs, or at a budget."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from energytl.analog.convert import analog_layers, configure, estimate_batch_norm
from energytl.analog.layers import AnalogLayer
from energytl.analog.noise import fold
from energytl.analog.read import Noiseless
from energytl.cost.estimate import Cost, estimate, mean_cost
from energytl.data import ImageData
from energytl.devices.variation import Variation
from energytl.evaluation import (
    Batches,
    Evaluation,
    accuracies,
    chip_draws,
    drop_interval,
    every,
    exact_draw,
    noiseless_draw,
    quartiles,
    ranks,
    read_draws,
    same_accuracy,
    top_accuracies,
)
from energytl.frontier import Curve, RhoScale, confirm, own_best, refine, refuting_reads, trace
from energytl.recipe import Recipe
from energytl.results import Result
from energytl.training import Trained

BELOW = 0.02
"""How far below the lowest accuracy that is asked for a curve is measured."""

BINS = 81
"""Of a histogram of weights; odd, so that 0 has one of its own."""

LEAST_FACTOR = 1e-4
"""Smallest common factor on ρ that is tried."""

NEAR = 0.01
"""How far below its target a network's best accuracy on few images may be, for all of them to be asked."""

FEW_IMAGES = 10_000
"""Images that one measurement of the search sees, by several reads where there are fewer."""

BUDGET_ROUNDS = 3
"""How often what a budget's ρ spends is measured, and ρ put right."""


@dataclass
class Candidate:
    """A trained network among which a point chooses.

    Attributes:
        trained: its weights and ρ.
        energies: of each layer at the trained ρ, paper units.
        scale: of its ρ.
        curve: accuracy on few images against the factor on ρ.
        shifts: what all images' accuracy was above it, as measured so far.
    """

    trained: Trained
    energies: list[float]
    scale: RhoScale
    curve: Curve
    shifts: list[float] = field(default_factory=list)


class Points:
    """Measures the points of one case on its test images.

    Args:
        label: of progress bars.
        analog: the network, whose weights and ρ each measurement sets.
        recipe: the case's.
        test: test images.
        digital: the rank of their classes in the digital network's outputs, (images,).
    """

    def __init__(self, label: str, analog: nn.Module, recipe: Recipe, test: Batches, digital: Tensor) -> None:
        assert recipe.evaluation is not None
        self.label, self.analog, self.recipe = label, analog, recipe
        self.evaluation: Evaluation = recipe.evaluation
        self.test, self.digital_ranks, self.digital = test, digital, digital == 0
        self.accuracy_digital = float(self.digital.double().mean())
        stride = max(1, len(digital) // self.evaluation.search_images)
        self.few = every(test, stride)
        self.accuracy_digital_few = float(self.digital[::stride].double().mean())
        self._without_noise: dict[int, float] = {}
        self._log_factor: float | None = None
        device = next(analog.parameters()).device
        self.norm_images = [images.to(device) for images in recipe.data.first_images(self.evaluation.norm_batches)]

    def measure(self, trained: list[Trained]) -> tuple[list[Result], list[dict[str, Any]]]:
        """All points that the evaluation asks for, and the curves on which they were searched.

        Args:
            trained: the network after each of its trainings; without drops and budgets the last one is measured.
        """
        drops, budgets = self.evaluation.drops, self.evaluation.budgets
        if not drops and not budgets:
            return [self._at_trained(trained[-1])], []
        candidates = [self._candidate(network) for network in trained]
        found = [self._at_drop(candidates, drop) for drop in drops]
        points = [self._cheapest(own, found) for own in found]
        points += [self._at_budget(candidates, budget) for budget in budgets]
        return points, [row for number, candidate in enumerate(candidates) for row in curve_rows(number, candidate)]

    def _candidate(self, trained: Trained) -> Candidate:
        self._load(trained)
        self._estimate_norms()
        layers = price(self.analog, self.recipe.data, self.evaluation.cost_batches, self.recipe).layers
        energies, scale = [float(layer.energy_paper or 0.0) for layer in layers], RhoScale(self.analog)
        floor = self.accuracy_digital_few - max(self.evaluation.drops) - BELOW if self.evaluation.drops else math.inf
        spending = [scale.spending(energies, budget) for budget in self.evaluation.budgets]
        needed = min(spending, default=math.inf)
        lowest = min(math.log(LEAST_FACTOR), needed)
        name = f", λ = {trained.energy_weight:g}" if trained.energy_weight else ""
        accuracy_at = self._accuracy_at(scale, self.few, 4, f"{self.label}{name}: curve")
        return Candidate(trained, energies, scale, trace(accuracy_at, scale.highest, floor, lowest, needed))

    def _accuracy_at(self, scale: RhoScale, images: Batches, stream: int, label: str) -> Callable[[float], float]:
        """Accuracy at a log factor: the mean of as many reads as see FEW_IMAGES, but no more than can refute one."""
        count = len(self.digital) if images is self.test else sum(len(labels) for _, labels in self.few)
        reads = min(refuting_reads(self.evaluation.reads), -(-FEW_IMAGES // count)) if images is self.test else 1

        def measured(log_factor: float) -> float:
            self._set(scale, log_factor)
            seed = fold(self.recipe.seed, stream, round(1e6 * log_factor) % 2**32)
            found = accuracies(self.analog, images, read_draws(self.analog, reads, seed), label)
            return sum(found) / len(found)

        return measured

    def _at_trained(self, trained: Trained) -> Result:
        self._load(trained)
        self._estimate_norms()
        reads = self._reads(2)
        return {"drop": None, "reached": None, "rho_factor": 1.0} | self._result(trained, reads)

    def _at_drop(self, candidates: list[Candidate], drop: float) -> Result:
        """The least energy with an accuracy at most so far below the digital one, or that of the own best."""
        target = self.accuracy_digital - drop
        shift = self.accuracy_digital - self.accuracy_digital_few

        def expected(candidate: Candidate) -> float:
            log_factor = candidate.curve.least(target - shift)
            return candidate.scale.energy(
                candidate.energies, candidate.scale.highest if log_factor is None else log_factor
            )

        reaching = [c for c in candidates if c.curve.rising[-1] >= target - shift - NEAR]
        for candidate in sorted(reaching, key=expected):
            self._load(candidate.trained)
            label = f"{self.label}: least ρ for {100 * drop:g} % drop"
            accuracy_at = self._accuracy_at(candidate.scale, self.test, 5, label)
            start = refine(candidate.curve, target, accuracy_at, candidate.shifts)
            found = None
            if start is not None:
                reads_at = self._confirming(candidate.scale, target, label)
                found = confirm(candidate.curve, start, target, reads_at)
            if found is not None:
                log_factor, reads = found
                return {"drop": drop, "reached": True} | self._scaled(candidate, log_factor, reads)
        best = max(candidates, key=lambda c: c.curve.rising[-1])
        self._load(best.trained)
        accuracy_at = self._accuracy_at(best.scale, self.test, 5, f"{self.label}: least ρ for its own best accuracy")
        lowest, highest = best.curve.log_factors[0], best.curve.log_factors[-1]
        return {"drop": drop, "reached": False} | self._scaled(best, own_best(lowest, highest, accuracy_at))

    def _cheapest(self, own: Result, others: list[Result]) -> Result:
        """The point of a drop, or one of another drop that is accurate enough for less energy."""
        target = self.accuracy_digital - own["drop"]
        enough = [own] * own["reached"]
        enough += [point for point in others if point is not own and point["accuracy_q25"] >= target]
        if not enough:
            return own
        return min(enough, key=lambda point: point["energy_paper"]) | {"drop": own["drop"], "reached": True}

    def _confirming(self, scale: RhoScale, target: float, label: str) -> Callable[[float, int, Tensor | None], Tensor]:
        error = math.sqrt(target * (1 - target) / len(self.digital))  # reads of the same images mostly differ by less

        def reads_at(log_factor: float, attempt: int, few: Tensor | None) -> Tensor:
            """As many reads as can refute a factor, or one if this is far from the target; given them, all."""
            self._set(scale, log_factor)
            seed = fold(self.recipe.seed, 2, attempt) + self.evaluation.first_read
            draws = read_draws(self.analog, self.evaluation.reads, seed)
            found = torch.empty(0, len(self.digital), dtype=torch.long) if few is None else few
            for upto in (1, refuting_reads(len(draws))) if few is None else (len(draws),):
                if more := draws[len(found) : upto]:
                    found = torch.cat([found, ranks(self.analog, self.test, more, f"{label}, confirming")])
                if all(abs(accuracy - target) > error for accuracy in top_accuracies(found)):
                    break
            return found

        return reads_at

    def _at_budget(self, candidates: list[Candidate], budget: float) -> Result:
        """The most accurate network that spends so much."""
        factors = [c.scale.spending(c.energies, budget) for c in candidates]
        chosen = max(range(len(candidates)), key=lambda i: candidates[i].curve.at(factors[i]))
        candidate, log_factor = candidates[chosen], factors[chosen]
        self._load(candidate.trained)
        for _ in range(BUDGET_ROUNDS):  # noise enlarges activations, so energy is not just proportional to ρ
            self._set(candidate.scale, log_factor)
            cost = price(self.analog, self.recipe.data, self.evaluation.cost_batches, self.recipe)
            assert cost.energy_paper is not None  # there are test images
            log_factor = min(log_factor + math.log(budget / cost.energy_paper), candidate.scale.highest)
        return {"drop": None, "budget": budget, "reached": None} | self._scaled(candidate, log_factor)

    def _reads(self, stream: int) -> Tensor:
        first = self.evaluation.first_read
        draws = read_draws(self.analog, self.evaluation.reads, fold(self.recipe.seed, stream) + first)
        return ranks(self.analog, self.test, draws, f"{self.label}: evaluating")

    def _load(self, trained: Trained) -> None:
        self.analog.load_state_dict(trained.state)
        self._log_factor = None

    def _set(self, scale: RhoScale, log_factor: float) -> None:
        """All ρ of the loaded network scaled, with norms that know how reads fluctuate there."""
        if log_factor != self._log_factor:
            scale.set(log_factor)
            self._estimate_norms()
            self._log_factor = log_factor

    def _estimate_norms(self) -> None:
        if self.norm_images:
            estimate_batch_norm(self.analog, self.norm_images, fold(self.recipe.seed, 10))

    def _scaled(self, candidate: Candidate, log_factor: float, reads: Tensor | None = None) -> Result:
        """The network at a factor, with the reads that confirmed it there, or new ones."""
        self._set(candidate.scale, log_factor)  # a search may have ended at another
        reads = self._reads(2) if reads is None else reads
        return {"rho_factor": math.exp(log_factor)} | self._result(candidate.trained, reads)

    def _result(self, trained: Trained, reads: Tensor) -> Result:
        """Accuracy and cost of the network as it now is, as plain numbers."""
        seed, evaluation = self.recipe.seed, self.evaluation
        low, median, high = quartiles(top_accuracies(reads))
        drop, drop_low, drop_high = drop_interval(self.digital, reads == 0)
        hardware = self.recipe.hardware
        noisy = not isinstance(hardware.computation, Noiseless) or any(hardware.variation.levels)
        draws = chip_draws(self.analog, evaluation.chips, fold(seed, 3))
        apart = ranks(self.analog, self.test, draws, f"{self.label}: chips") if draws else reads[:0]
        chips = top_accuracies(apart)
        result: Result = {
            "energy_weight": trained.energy_weight,
            "accuracy_median": median,
            "accuracy_q25": low,
            "accuracy_q75": high,
            "accuracy_drop": drop,
            "accuracy_drop_low": drop_low,
            "accuracy_drop_high": drop_high,
            "accuracy_quantised": self._quantised(trained) if noisy else top_accuracies(reads)[0],
            "accuracies": top_accuracies(reads),
            "accuracies_chips": chips,
        }
        if chips:
            low, median, high = quartiles(chips)
            result |= {"accuracy_chips_median": median, "accuracy_chips_q25": low, "accuracy_chips_q75": high}
        for k in evaluation.top:
            result[f"accuracy_top{k}"] = quartiles(top_accuracies(reads, k))[1]
            result[f"accuracy_digital_top{k}"] = float((self.digital_ranks < k).double().mean())
            if chips:
                result[f"accuracies_chips_top{k}"] = top_accuracies(apart, k)
        if evaluation.histograms:
            result["histograms"] = {name: histogram(layer) for name, layer in analog_layers(self.analog).items()}
        if evaluation.exact_images:
            result["exact"] = self._exact(reads)
        cost = price(self.analog, self.recipe.data, evaluation.cost_batches, self.recipe)
        if any(hardware.variation.levels):
            result["varies"] = True
        if trained.activities:
            cost = cost.with_training(trained.activities, self.recipe.periphery)
        return result | cost_numbers(cost)

    def _quantised(self, trained: Trained) -> float:
        """Accuracy without fluctuation and variation, by norms that have seen neither; the same at every ρ."""
        if id(trained) not in self._without_noise:
            hardware = self.recipe.hardware
            configure(self.analog, computation=Noiseless(), variation=Variation())
            self._estimate_norms()
            found = accuracies(self.analog, self.test, [noiseless_draw()], f"{self.label}: without noise")
            configure(self.analog, computation=hardware.computation, variation=hardware.variation)
            self._estimate_norms()
            self._without_noise[id(trained)] = found[0]
        return self._without_noise[id(trained)]

    def _exact(self, reads: Tensor) -> dict[str, float | int]:
        """One read of some test images with a state for every cell, beside the reads by moments of the same images."""
        stride = max(1, len(self.digital) // self.evaluation.exact_images)
        draws = [exact_draw(fold(self.recipe.seed, 6))]
        exact = ranks(self.analog, every(self.test, stride), draws, f"{self.label}: exact")[0] == 0
        difference, error = same_accuracy(exact, reads[:, ::stride] == 0)
        accuracy = float(exact.double().mean())
        return {"images": len(exact), "accuracy": accuracy, "difference": difference, "standard_error": error}


def curve_rows(number: int, candidate: Candidate) -> list[dict[str, Any]]:
    """Energy and accuracy of the search on the number-th trained network, as plain numbers."""
    curve = candidate.curve
    return [
        {
            "network": number,
            "energy_weight": candidate.trained.energy_weight,
            "energy_paper": candidate.scale.energy(candidate.energies, log_factor),
            "accuracy": accuracy,
        }
        for log_factor, accuracy in zip(curve.log_factors, curve.accuracies, strict=True)
    ]


def histogram(layer: AnalogLayer) -> dict[str, Any]:
    """How often a layer's cells hold which weight: counts in BINS equal bins of ± its largest, in the weights' unit."""
    held = (layer.stored_weight.detach() * layer.weight_range).cpu()
    if layer.column_ranges is not None:
        held = held * layer.column_ranges.cpu()
    largest = max(float(held.abs().max()), 1e-12)
    edge = largest * (1 + 1 / BINS)
    return {"edge": edge, "counts": held.histc(BINS, -edge, edge).int().tolist()}


def price(analog: nn.Module, data: ImageData, batches: int, recipe: Recipe) -> Cost:
    """Cost for one image: the mean over so many batches, spread over the test set; of a blank image without data."""
    device = next(analog.parameters()).device
    if data.test_set is None:
        blank = torch.zeros(1, *data.shape, device=device)
        cost = estimate(analog, blank, recipe.periphery, blank=True)
    else:
        spread = data.test_dataloader(batches * data.batch_size)  # the first images may all be of one class
        cost = mean_cost([estimate(analog, x.to(device), recipe.periphery) for x, _ in spread])
    return replace(cost, not_modelled=cost.not_modelled + data.not_modelled)


def cost_numbers(cost: Cost) -> Result:
    """A network's cost as plain numbers, its layers' too."""
    return cost.numbers() | {"layers": cost.rows(), "not_modelled": list(cost.not_modelled)}
