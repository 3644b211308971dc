"""The points of a case, on a small network and real digits."""

import copy
import math
import statistics

import pytest
import torch
from torch import nn

from energytl import (
    Cell,
    DifferentialPair,
    Drift,
    Hardware,
    MultilevelPair,
    Noiseless,
    PcmDrift,
    analog_layers,
    calibrate,
    configure,
    convert,
    estimate_batch_norm,
)
from energytl.data import Digits
from energytl.devices.programming import Variation
from energytl.evaluation import Evaluation, Judged, accuracies, digital_ranks, read_draws
from energytl.frontier import RhoScale
from energytl.models import mlp
from energytl.points import Choice, Points, cheapest, price
from energytl.recipe import Recipe
from energytl.streams import Stream, seed_of
from energytl.training import Trained

IMAGES = 500


@pytest.fixture(scope="module")
def data():
    digits = Digits(batch_size=250)
    digits.hold_out(400, of_training=True, seed=0)
    return digits


def learnt(network, data):
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(6):
        for x, labels in data.train_dataloader():
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(x), labels).backward()
            optimizer.step()
    return network.eval()


@pytest.fixture(scope="module")
def digital(data):
    torch.manual_seed(0)
    return learnt(mlp(hidden=(16,)), data)


@pytest.fixture(scope="module")
def with_norm(data):
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(784, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10)
    return learnt(nn.Sequential(*layers), data)


def trained(network, energy_weight=0.0):
    return Trained(energy_weight, copy.deepcopy(network.state_dict()), [], [])


@pytest.fixture
def measure(data, digital):
    """measure(evaluation, change): points and curves of the network, and of `change`d copies of it."""

    def measured(*changes, rho=2.0, hardware=None, network=digital, **evaluation):
        recipe = Recipe(
            network=network,
            data=data,
            hardware=hardware or Hardware(rho=rho),
            evaluation=Evaluation(**{"reads": 3, "images": IMAGES, "cost_batches": 2} | evaluation),
        )
        analog = convert(copy.deepcopy(network), recipe.hardware, seed=0)
        calibrate(analog, [next(iter(data.train_dataloader()))[0]])
        networks = []
        for number, change in enumerate(changes or (lambda network: None,)):
            changed = copy.deepcopy(analog)
            with torch.no_grad():
                change(changed)
            networks.append(trained(changed, float(number)))
        test, held_out = list(data.test_dataloader(IMAGES)), list(data.held_out_dataloader())
        judged = (Judged(images, digital_ranks(network, images, "")) for images in (test, held_out))
        points = Points("case", analog, recipe, *judged)
        return *points.measure(networks), points

    return measured


def test_without_drops_and_budgets_the_last_network_is_measured_as_it_was_trained(measure):
    (point,), curves, _ = measure(lambda n: configure(n, rho=9.0), lambda n: configure(n, rho=0.3))
    assert (point["drop"], point["reached"], point["rho_factor"], point["energy_weight"]) == (None, None, 1.0, 1.0)
    assert [layer["rho"] for layer in point["layers"]] == pytest.approx([0.3, 0.3], rel=1e-5)
    assert len(point["accuracies"]) == 3
    assert curves == []


def test_every_drop_is_a_point_and_a_larger_one_takes_less_energy(measure):
    drops = (0.01, 0.05, 0.2)
    points, curves, measured = measure(max_drop=drops)
    assert [(point["drop"], point["found"], point["drop_held_out"]) for point in points] == [
        (drop, True, drop) for drop in drops
    ]
    energies = [point["energy_paper"] for point in points]
    assert energies[0] > energies[1] > energies[2]
    for point in points:
        assert point["accuracy_drop_low"] < point["accuracy_drop"] < point["accuracy_drop_high"]
        mean = sum(point["accuracies"]) / len(point["accuracies"])
        assert point["accuracy_drop"] == pytest.approx(measured.test.accuracy - mean)
        assert point["reached"] == (point["accuracy_drop_low"] <= point["drop"])
        assert "exact" not in point
    energies = [row["energy_paper"] for row in curves]
    assert energies == sorted(energies)
    assert curves[0]["accuracy"] < measured.held_out.accuracy - 0.2
    assert all(row["energy_weight"] == 0 for row in curves)


def test_a_drop_is_chosen_by_the_images_held_out_alone_and_told_of_the_test_images(measure, data):
    drop = 0.05
    (point,), _, measured = measure(max_drop=drop)
    scale = RhoScale(measured.analog)
    scale.set(0.0)

    def mean_of_fresh_reads(judged):
        found = accuracies(measured.analog, judged.batches, read_draws(40, 999), "")
        return sum(found) / len(found)

    chosen = measured.held_out.accuracy - mean_of_fresh_reads(measured.held_out)
    assert chosen == pytest.approx(drop, abs=0.01)  # two standard errors of ten reads of 400 images
    told = measured.test.accuracy - mean_of_fresh_reads(measured.test)
    assert point["accuracy_drop"] == pytest.approx(told, abs=5 * 0.005 / 3**0.5)


def test_what_is_told_has_no_part_in_the_choice(measure, monkeypatch):
    (found,), _, _ = measure(max_drop=0.05)
    (more,), _, _ = measure(max_drop=0.05, reads=7)
    (other,), _, _ = measure(max_drop=0.05, first_read=1000)
    assert found["rho_factor"] == more["rho_factor"] == other["rho_factor"]
    assert more["accuracies"][:3] == found["accuracies"]
    assert other["accuracies"] != found["accuracies"]
    monkeypatch.setattr("energytl.points.drop_interval", lambda digital, reads: (0.4, 0.3, 0.5))
    (refuted,), _, _ = measure(max_drop=0.05)
    assert (refuted["found"], refuted["reached"]) == (True, False)
    assert refuted["rho_factor"] == found["rho_factor"]


def test_two_drops_that_share_a_choice_are_told_alike(measure, monkeypatch):
    def shared(own, drop, others):
        return others[0]

    monkeypatch.setattr("energytl.points.cheapest", shared)
    first, second = measure(max_drop=(0.1, 0.2))[0]
    assert second == first | {"drop": 0.2}


def choice(energy, drop, found=True):
    """A choice of that energy and estimated drop; candidates are not looked at."""

    class Priced(Choice):
        energy = property(lambda self: self.log_factor)

    return Priced(None, energy, drop, found)


def test_a_drop_takes_the_choice_of_a_smaller_one_that_spends_less():
    small, middle, large = choice(5.0, 0.01), choice(9.0, 0.02), choice(3.0, 0.05)
    others = [small, middle, large]
    assert cheapest(small, 0.01, others).energy == 5.0
    assert cheapest(middle, 0.02, others).energy == 5.0
    assert cheapest(large, 0.05, others).energy == 3.0


def test_the_own_best_of_a_drop_that_was_not_found_serves_only_what_it_is_accurate_enough_for():
    own_best, found = choice(4.0, 0.03, found=False), choice(6.0, 0.05)
    assert cheapest(own_best, 0.01, [own_best, found]) is own_best
    assert cheapest(choice(9.0, 0.025, found=False), 0.02, [own_best]).found is False
    served = cheapest(found, 0.05, [own_best, found])
    assert (served.energy, served.found) == (4.0, True)


def test_a_point_has_the_costs_and_norms_of_its_own_factor_wherever_its_search_ended(measure, with_norm, monkeypatch):
    def ends_elsewhere(curve, target, read_at):
        read_at(0.0, 100)
        read_at(-3.0, 101)
        return curve, 0.0

    monkeypatch.setattr("energytl.points.search", ends_elsewhere)
    (found,), _, _ = measure(max_drop=0.2)
    (expected,), _, _ = measure()
    for key in ("energy_paper", "energy_total_j", "accuracy_quantised", "accuracies"):
        assert found[key] == expected[key]
    _, _, after = measure(network=with_norm, max_drop=0.2, norm_batches=2)
    _, _, straight = measure(network=with_norm, norm_batches=2)
    assert torch.equal(after.analog[2].running_var, straight.analog[2].running_var)


def test_every_read_of_a_choice_has_noise_of_its_own(measure, monkeypatch):
    seeds = []
    real = read_draws

    def noted(reads, seed):
        seeds.extend(seed + number for number in range(reads))
        return real(reads, seed)

    monkeypatch.setattr("energytl.points.read_draws", noted)
    measure(lambda network: None, lambda network: None, max_drop=(0.05, 0.2))
    assert len(seeds) > 50
    told = seeds[-3:]
    assert len(set(seeds[:-6])) == len(seeds) - 6
    assert not set(told) & set(seeds[:-6])


def test_one_drop_is_one_point(measure):
    (alone,), _, _ = measure(max_drop=0.05)
    (first,), _, _ = measure(max_drop=(0.05,))
    assert alone == first
    assert alone["drop"] == 0.05


def test_a_drop_that_no_rho_keeps_is_not_reached_and_shows_the_least_energy_of_the_own_best(measure):
    def spoil(network):
        for layer in analog_layers(network).values():
            layer.weight[::3] = 0

    (lost, again, kept), curves, measured = measure(spoil, max_drop=(0.01, 0.011, 0.8))
    assert [point["found"] for point in (lost, again, kept)] == [False, False, True]
    assert not lost["reached"]
    assert not again["reached"]
    assert lost["accuracy_drop"] > 0.01
    best = max(row["accuracy"] for row in curves)
    for point in (lost, again):
        assert measured.held_out.accuracy - point["drop_held_out"] == pytest.approx(best, abs=0.01)
        assert point["accuracy_median"] == pytest.approx(best, abs=5 * math.sqrt(0.25 / 250))
    assert lost["energy_paper"] < curves[-1]["energy_paper"]
    assert kept["energy_paper"] < lost["energy_paper"]
    assert kept["reached"]


def test_budgets_are_spent_and_more_of_them_is_more_accurate(measure):
    points, curves, _ = measure(budgets=(3.0e3, 3.0e5))
    assert [(point["drop"], point["found"], point["reached"], point["budget"]) for point in points] == [
        (None, None, None, 3.0e3),
        (None, None, None, 3.0e5),
    ]
    for point in points:
        assert point["energy_paper"] == pytest.approx(point["budget"], rel=0.01)
    assert points[0]["accuracy_median"] < points[1]["accuracy_median"]
    assert curves[0]["energy_paper"] <= 3.0e3


def test_a_budget_is_spent_though_fluctuation_enlarges_activations(measure):
    def silence(network):  # hidden neurons that only fluctuation lifts above zero; what they drive spends most
        network[1].bias.sub_(5)
        network[1].log_rho.sub_(3)
        network[3].log_rho.add_(3)

    (point,), _, _ = measure(silence, budgets=(1.0,), cost_batches=10)  # few: which neurons fluctuation lifts is chance
    assert point["energy_paper"] == pytest.approx(1.0, rel=0.01)  # 3 % off if energy were proportional to ρ


def test_a_large_budget_does_not_end_the_search_for_a_drop(measure):
    (alone,), _, _ = measure(max_drop=0.2)
    (drop, _), _, _ = measure(max_drop=0.2, budgets=(1.0e6,))
    assert drop["energy_paper"] == pytest.approx(alone["energy_paper"], rel=0.05)


def test_a_point_takes_the_network_of_a_family_that_needs_least(measure):
    def waste(network):  # four of five cells of each input hold weights that cancel out
        network[3].weight_range *= 4

    def spoil(network):
        network[3].weight.mul_(0)

    (point,), curves, _ = measure(waste, lambda network: None, spoil, max_drop=0.1)
    (alone,), _, _ = measure(lambda network: None, max_drop=0.1)
    assert point["energy_weight"] == 1.0
    assert point["energy_paper"] == pytest.approx(alone["energy_paper"], rel=0.25)  # chosen by other reads
    (wasteful,), _, _ = measure(waste, max_drop=0.1)
    assert wasteful["energy_paper"] > 1.5 * point["energy_paper"]
    assert list(dict.fromkeys(row["energy_weight"] for row in curves)) == [0, 1, 2]


def test_exact_reads_of_some_images_stand_beside_the_moments(measure):
    (point,), _, _ = measure(exact_images=50)
    exact = point["exact"]
    assert exact["images"] == 50
    assert 0 < exact["standard_error"] < 0.2
    assert abs(exact["difference"]) < 5 * exact["standard_error"]
    assert 0 < exact["accuracy"] <= 1


def test_chips_are_measured_at_the_points_rho(measure):
    points, _, _ = measure(max_drop=(0.02, 0.3), chips=3)
    assert [len(point["accuracies_chips"]) for point in points] == [3, 3]
    assert points[0]["accuracy_chips_median"] > points[1]["accuracy_chips_median"]


def test_norms_are_estimated_anew_at_the_points_rho(measure, with_norm):
    def shift(network):  # as reads of another kind would
        network[2].running_mean.add_(2 * network[2].running_var.sqrt())

    (kept,), _, _ = measure(shift, network=with_norm)
    (point,), _, points = measure(shift, network=with_norm, norm_batches=2)
    (right,), _, _ = measure(network=with_norm)
    assert kept["accuracy_q75"] < point["accuracy_q25"] - 0.02
    for accuracy in ("accuracy_median", "accuracy_quantised"):  # the latter by norms that have seen no noise
        assert point[accuracy] == pytest.approx(right[accuracy], abs=0.02)
    found = points.analog[2].running_var.clone()
    images = points.recipe.data.first_images(2)
    estimate_batch_norm(points.analog, images, seed_of(Stream.BATCH_NORM, 0))
    assert torch.equal(points.analog[2].running_var, found)
    assert points.norm_images[1].equal(images[1])


def test_a_price_is_that_of_a_blank_image_without_data(digital):
    recipe = Recipe(network=digital, data=Digits())
    cost = price(convert(digital), recipe.data, 4, recipe)
    assert cost.energy_paper is None
    assert cost.cells == 784 * 16 + 16 * 10


def test_chips_top_k_and_histograms_are_measured(measure):
    hardware = Hardware(programming=Variation(0.5), mapping=MultilevelPair(), computation=Noiseless())
    (point,), _, points = measure(hardware=hardware, chips=4, top=(2, 5), histograms=True)
    assert point["varies"]
    assert len(point["accuracies_chips"]) == 4
    assert len(set(point["accuracies_chips"])) > 1
    assert len(set(point["accuracies"])) == 1  # one chip, read without noise
    assert point["accuracy_quantised"] > max(point["accuracies_chips"])  # cells as they were written
    assert point["accuracy_median"] < point["accuracy_top2"] < point["accuracy_top5"] < 1
    assert point["accuracy_digital_top2"] > points.test.accuracy
    assert all(two > one for one, two in zip(point["accuracies_chips"], point["accuracies_chips_top2"], strict=True))
    for layer, found in zip(analog_layers(points.analog).values(), point["histograms"].values(), strict=True):
        held = layer.stored_weight.detach() * layer.weight_range
        assert sum(found["counts"]) == layer.weight.numel()
        assert found["counts"][len(found["counts"]) // 2] == int((held == 0).sum())
        assert found["counts"][-1] == int((held > float(held.max()) * 0.99).sum())


def test_accuracy_over_time_falls_as_cells_drift_and_is_put_right(measure):
    """Ten reads of phase-change cells, whose conductances fall to half and less within a year."""
    times = (1.0, 86_400.0, 31_536_000.0)
    medians = {}
    for compensation in ("none", "layer"):
        hardware = Hardware(
            rho=20.0,
            mapping=DifferentialPair(),
            cell=Cell(g_min_siemens=0.1e-6, g_max_siemens=25e-6),
            drift=Drift(PcmDrift(), compensation=compensation),
        )
        (point,), _, points = measure(hardware=hardware, times_s=times, chips=4)
        assert [found["time_s"] for found in point["over_time"]] == list(times)
        assert all(len(found["accuracies"]) == 4 for found in point["over_time"])
        medians[compensation] = [statistics.median(found["accuracies"]) for found in point["over_time"]]
        assert {layer.hardware.drift.time_s for layer in analog_layers(points.analog).values()} == {1.0}
    assert medians["none"][0] > medians["none"][2]
    assert medians["layer"][2] > medians["none"][2] - 0.02
