"""The points of a case: an accuracy and its cost, each at the least energy that some accuracy needs, or at a budget.

**What is chosen, on which images.** ρ, and the network of a family, are chosen on images that are held out: neither
any training nor the test sees them (`energytl.data.ImageData.hold_out`). A point of the drop d is the least ρ at
which the expected accuracy of a read, on these images, is the digital network's on the same images minus d,
estimated without bias by the curve of some 27 reads (`energytl.frontier`). So no single read decides, and no margin
is added: a choice is as often a little too accurate as not accurate enough. If even the largest ρ does not get
there, nothing is *found*, and the least ρ near the case's own best accuracy stands for the point.

**What is told, and of what.** Accuracy, its drop d̂ below the digital network's, and the drop's 95 % interval are
those of the test images, by fresh reads with a random stream of their own, at a ρ that is fixed by then: no choice
saw the images, or the reads. As nothing is selected by them, they are unbiased whatever the choice was. The
interval is that of d̂ at the ρ chosen, for other images of the same kind and other reads.

**When a drop is reached.** If the choice found it, and the test images do not refute it: the interval of d̂ begins
at d or below, so that d̂ is not above d by more than chance (one-sided, 2.5 %). Held-out and test images differ by
chance, too: of n images each, on which digital and analog network disagree with a probability q, the drop differs
by √(2q/n) between them; so of networks with just the drop d one in 12 is not confirmed with as many images on both
sides (1.96/√2 standard errors), fewer with more held out.

What is left of a choice's luck is in the images held out: networks of a family, and drops, are compared on the same
ones. It does not reach what is told.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from energytl.analog.configure import analog_layers, reading
from energytl.analog.convert import estimate_batch_norm
from energytl.analog.layers import AnalogLayer
from energytl.analog.read import Noiseless
from energytl.cost.estimate import Cost, estimate, mean_cost
from energytl.data import ImageData
from energytl.evaluation import (
    Evaluation,
    Judged,
    accuracies,
    chip_draws,
    draws_at,
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
from energytl.frontier import OWN_BEST, Curve, RhoScale, search, trace
from energytl.recipe import Recipe
from energytl.results import Result
from energytl.seeding import apart
from energytl.streams import Stream, seed_of
from energytl.training import Trained

BELOW = 0.02
"""How far below the lowest accuracy that is asked for a curve is measured."""

BINS = 81
"""Of a histogram of weights; odd, so that 0 has one of its own."""

LEAST_FACTOR = 1e-4
"""Smallest common factor on ρ that is tried."""

BUDGET_ROUNDS, BUDGET_MISSED = 8, 1e-3
"""How often, at most, what a budget's ρ spends is measured, and ρ put right; and by how much it may be missed."""


@dataclass
class Candidate:
    """A trained network among which a point chooses.

    Attributes:
        number: among the case's.
        trained: its weights and ρ.
        energies: of each layer at the trained ρ, paper units.
        scale: of its ρ.
        curve: accuracy on the images held out against the factor on ρ.
    """

    number: int
    trained: Trained
    energies: list[float]
    scale: RhoScale
    curve: Curve


@dataclass(frozen=True)
class Choice:
    """A network, and the ρ at which it is read.

    Attributes:
        candidate: the network.
        log_factor: on its trained ρ.
        drop: below the digital accuracy, on the images held out, as estimated.
        found: whether that is the drop that was asked; None if none was.
    """

    candidate: Candidate
    log_factor: float
    drop: float
    found: bool | None = None

    @property
    def energy(self) -> float:
        """In paper units, as estimated from that at the trained ρ."""
        return self.candidate.scale.energy(self.candidate.energies, self.log_factor)


class Points:
    """Measures the points of one case on its test images, and chooses them on others.

    Args:
        label: of progress bars.
        analog: the network, whose weights and ρ each measurement sets.
        recipe: the case's.
        test: test images.
        held_out: images to choose on; None, if the evaluation chooses nothing.
    """

    def __init__(self, label: str, analog: nn.Module, recipe: Recipe, test: Judged, held_out: Judged | None) -> None:
        assert recipe.evaluation is not None
        self.label, self.analog, self.recipe = label, analog, recipe
        self.evaluation: Evaluation = recipe.evaluation
        self.test, self._held_out = test, held_out
        self._without_noise: dict[int, float] = {}
        self._set_to: tuple[int, float] | None = None
        device = next(analog.parameters()).device
        self.norm_images = [images.to(device) for images in recipe.data.first_images(self.evaluation.norm_batches)]

    @property
    def held_out(self) -> Judged:
        """The images on which points are chosen."""
        assert self._held_out is not None
        return self._held_out

    def measure(self, trained: list[Trained]) -> tuple[list[Result], list[dict[str, Any]]]:
        """All points that the evaluation asks for, and the curves on which they were chosen.

        Args:
            trained: the network after each of its trainings; without drops and budgets the last one is measured.
        """
        drops, budgets = self.evaluation.drops, self.evaluation.budgets
        if not drops and not budgets:
            self._load(trained[-1])
            self._estimate_norms()
            nothing_asked = {"drop": None, "found": None, "drop_held_out": None, "reached": None, "rho_factor": 1.0}
            return [nothing_asked | self._told(trained[-1])], []
        candidates = [self._candidate(number, network) for number, network in enumerate(trained)]
        found = [self._for_drop(candidates, drop) for drop in drops]
        choices = [cheapest(own, drop, found) for own, drop in zip(found, drops, strict=True)]
        choices += [self._for_budget(candidates, budget) for budget in budgets]
        told: dict[tuple[int, float], Result] = {}
        points = []
        for asked, choice in zip([*drops, *budgets], choices, strict=True):
            place = choice.candidate.number, choice.log_factor
            if place not in told:
                told[place] = self._at(choice)
            result = told[place]
            point: Result = {"drop": None, "found": choice.found, "drop_held_out": choice.drop, "reached": None}
            if choice.found is None:
                point["budget"] = asked
            else:
                point |= {"drop": asked, "reached": choice.found and result["accuracy_drop_low"] <= asked}
            points.append(point | result)
        return points, [row for c in candidates for row in curve_rows(c, self.held_out.accuracy)]

    def _candidate(self, number: int, trained: Trained) -> Candidate:
        self._load(trained)
        self._estimate_norms()
        layers = price(self.analog, self.recipe.data, self.evaluation.cost_batches, self.recipe).layers
        energies, scale = [float(layer.energy_paper or 0.0) for layer in layers], RhoScale(self.analog)
        floor = self.held_out.accuracy - max(self.evaluation.drops) - BELOW if self.evaluation.drops else math.inf
        spending = [scale.spending(energies, budget) for budget in self.evaluation.budgets]
        needed = min(spending, default=math.inf)
        lowest = min(math.log(LEAST_FACTOR), needed)
        name = f", λ = {trained.energy_weight:g}" if trained.energy_weight else ""
        read_at = self._read_at(number, scale, f"{self.label}{name}: curve")
        return Candidate(number, trained, energies, scale, trace(read_at, scale.highest, floor, lowest, needed))

    def _read_at(self, number: int, scale: RhoScale, label: str) -> Callable[[float, int], float]:
        """Accuracy on the images held out of the n-th read of the number-th network, which is loaded."""

        def read_at(log_factor: float, n: int) -> float:
            self._set(number, scale, log_factor)
            (draw,) = read_draws(1, seed_of(Stream.SEARCH_RHO, self.recipe.seed, number, n))
            return accuracies(self.analog, self.held_out.batches, [draw], label)[0]

        return read_at

    def _for_drop(self, candidates: list[Candidate], drop: float) -> Choice:
        """The least energy with an accuracy just so far below the digital one, or that of the own best."""
        target = self.held_out.accuracy - drop

        def expected(candidate: Candidate) -> float:
            log_factor = candidate.curve.least(target)
            factor = candidate.scale.highest if log_factor is None else log_factor
            return candidate.scale.energy(candidate.energies, factor)

        label = f"{self.label}: least ρ for {100 * drop:g} % drop"
        for candidate in sorted(candidates, key=expected):
            log_factor = self._search(candidate, lambda curve: target, label)
            if log_factor is not None:
                return Choice(candidate, log_factor, drop, found=True)
        best = max(candidates, key=lambda c: c.curve.best)
        label = f"{self.label}: least ρ for its own best accuracy"
        log_factor = self._search(best, lambda curve: curve.best - OWN_BEST, label)
        assert log_factor is not None  # the best is at the highest factor
        return Choice(best, log_factor, self.held_out.accuracy - best.curve.at(log_factor), found=False)

    def _search(self, candidate: Candidate, target: Callable[[Curve], float], label: str) -> float | None:
        self._load(candidate.trained)
        read_at = self._read_at(candidate.number, candidate.scale, label)
        candidate.curve, log_factor = search(candidate.curve, target, read_at)
        return log_factor

    def _for_budget(self, candidates: list[Candidate], budget: float) -> Choice:
        """The most accurate network that spends so much."""
        factors = [c.scale.spending(c.energies, budget) for c in candidates]
        chosen = max(range(len(candidates)), key=lambda i: candidates[i].curve.at(factors[i]))
        candidate, log_factor = candidates[chosen], factors[chosen]
        self._load(candidate.trained)
        slope, before = 1.0, (0.0, 0.0)  # of ln energy: noise enlarges activations, so it is not just that of ln ρ
        for number in range(BUDGET_ROUNDS):
            self._set(candidate.number, candidate.scale, log_factor)
            cost = price(self.analog, self.recipe.data, self.evaluation.cost_batches, self.recipe)
            assert cost.energy_paper is not None  # there are test images
            over = math.log(cost.energy_paper / budget)
            if abs(over) < BUDGET_MISSED:
                break
            if number and log_factor != before[0]:
                slope = min(max((over - before[1]) / (log_factor - before[0]), 0.2), 2.0)
            before = log_factor, over
            log_factor = min(log_factor - over / slope, candidate.scale.highest)
        return Choice(candidate, log_factor, self.held_out.accuracy - candidate.curve.at(log_factor))

    def _load(self, trained: Trained) -> None:
        self.analog.load_state_dict(trained.state)
        self._set_to = None

    def _set(self, number: int, scale: RhoScale, log_factor: float) -> None:
        """All ρ of the loaded network scaled, with norms that know how reads fluctuate there."""
        if (number, log_factor) != self._set_to:
            scale.set(log_factor)
            self._estimate_norms()
            self._set_to = number, log_factor

    def _estimate_norms(self) -> None:
        if self.norm_images:
            estimate_batch_norm(self.analog, self.norm_images, seed_of(Stream.BATCH_NORM, self.recipe.seed))

    def _at(self, choice: Choice) -> Result:
        """What is told of a choice."""
        self._load(choice.candidate.trained)
        self._set(choice.candidate.number, choice.candidate.scale, choice.log_factor)
        return {"rho_factor": math.exp(choice.log_factor)} | self._told(choice.candidate.trained)

    def _told(self, trained: Trained) -> Result:
        """Accuracy on test images, by reads that nothing was chosen by, and cost of the network as it now is."""
        seed, evaluation = self.recipe.seed, self.evaluation
        fresh = read_draws(evaluation.reads, seed_of(Stream.CONFIRMATION, seed) + evaluation.first_read)
        reads = ranks(self.analog, self.test.batches, fresh, f"{self.label}: evaluating")
        low, median, high = quartiles(top_accuracies(reads))
        drop, drop_low, drop_high = drop_interval(self.test.right, reads == 0)
        hardware = self.recipe.hardware
        own = [layer.hardware for layer in analog_layers(self.analog).values()]
        noisy = any(not isinstance(each.computation, Noiseless) or bool(each.changes) for each in own)
        draws = chip_draws(self.analog, evaluation.chips, seed_of(Stream.CHIPS, seed))
        apart = ranks(self.analog, self.test.batches, draws, f"{self.label}: chips") if draws else reads[:0]
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
            result[f"accuracy_digital_top{k}"] = float((self.test.digital < k).double().mean())
            if chips:
                result[f"accuracies_chips_top{k}"] = top_accuracies(apart, k)
        if evaluation.searched:
            chosen_by = read_draws(evaluation.reads, seed_of(Stream.CHOICE, seed) + evaluation.first_read)
            found = accuracies(self.analog, self.held_out.batches, chosen_by, f"{self.label}: images held out")
            result["accuracy_held_out"] = quartiles(found)[1]
        if evaluation.times_s:
            result["over_time"] = [self._over_time(time_s) for time_s in evaluation.times_s]
        if evaluation.histograms:
            result["histograms"] = {name: histogram(layer) for name, layer in analog_layers(self.analog).items()}
        if evaluation.exact_images:
            result["exact"] = self._exact(reads)
        cost = price(self.analog, self.recipe.data, evaluation.cost_batches, self.recipe)
        result["law"] = hardware.law
        if any(each.changes for each in own):
            result["varies"] = True
        if trained.activities:
            cost = cost.with_training(trained.activities, self.recipe.periphery)
        return result | cost_numbers(cost)

    def _over_time(self, time_s: float) -> Result:
        """Accuracies some time after programming; the same chips and reads at every time."""
        evaluation, seed = self.evaluation, seed_of(Stream.OVER_TIME, self.recipe.seed)
        draws = draws_at(time_s, evaluation.reads, evaluation.chips, seed)
        found = accuracies(self.analog, self.test.batches, draws, f"{self.label}: after {time_s:g} s")
        return {"time_s": time_s, "accuracies": found}

    def _quantised(self, trained: Trained) -> float:
        """Accuracy without fluctuation, of cells as they should be, by norms of such reads; the same at every ρ."""
        if id(trained) not in self._without_noise:
            with reading(self.analog, Noiseless(), as_written=True):
                self._estimate_norms()
                found = accuracies(self.analog, self.test.batches, [noiseless_draw()], f"{self.label}: without noise")
            self._estimate_norms()
            self._without_noise[id(trained)] = found[0]
        return self._without_noise[id(trained)]

    def _exact(self, reads: Tensor) -> dict[str, float | int]:
        """One read of some test images with a state for every cell, beside the reads by moments of the same images."""
        stride = max(1, len(self.test.digital) // self.evaluation.exact_images)
        draws = [exact_draw(seed_of(Stream.EXACT, self.recipe.seed))]
        exact = ranks(self.analog, every(self.test.batches, stride), draws, f"{self.label}: exact")[0] == 0
        difference, error = same_accuracy(exact, reads[:, ::stride] == 0)
        accuracy = float(exact.double().mean())
        return {"images": len(exact), "accuracy": accuracy, "difference": difference, "standard_error": error}


def cheapest(own: Choice, drop: float, others: list[Choice]) -> Choice:
    """The choice for a drop, or that for another drop which by its estimate loses no more, for less energy."""
    enough = [own] if own.found else []
    enough += [other for other in others if other is not own and other.drop <= drop]
    return replace(min(enough, key=lambda choice: choice.energy), found=True) if enough else own


def curve_rows(candidate: Candidate, digital: float) -> list[dict[str, Any]]:
    """Energy, accuracy and drop below the digital one at the knots of a network's curve, as plain numbers."""
    curve = candidate.curve
    return [
        {
            "network": candidate.number,
            "energy_weight": candidate.trained.energy_weight,
            "energy_paper": candidate.scale.energy(candidate.energies, log_factor),
            "accuracy": accuracy,
            "drop": digital - accuracy,
        }
        for log_factor, accuracy in zip(curve.knots, curve.rising, strict=True)
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
    """Cost for one image: the mean over so many batches, spread over the test set; of a blank image without data.

    Its reads are always the same, and those of a training or a measurement go on as if there had been none.
    """
    device = next(analog.parameters()).device
    with apart(analog, Stream.COST, recipe.seed):
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
