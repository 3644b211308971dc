"""Monte Carlo accuracy, and what can be said from a finite number of images and reads."""

import pytest
import torch
from torch import nn

from energytl import Frozen, Hardware, Moments, MultilevelPair, Noiseless, analog_layers, configure, convert
from energytl.devices.programming import Variation
from energytl.evaluation import (
    Draw,
    Evaluation,
    accuracies,
    chip_draws,
    digital_ranks,
    drop_interval,
    every,
    noiseless_draw,
    rank,
    ranks,
    read_draws,
    same_accuracy,
    top_accuracies,
)


@pytest.fixture
def task():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 4))
    x = torch.rand(200, 8)
    with torch.no_grad():
        labels = network.eval()(x).argmax(1)
    return network, [(x[:120], labels[:120]), (x[120:], labels[120:])]


def test_a_rank_counts_the_classes_that_come_before_the_own_one():
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randint(0, 6, (300, 8), generator=generator).float()  # with ties
    labels = torch.randint(0, 8, (300,), generator=generator)
    found = rank(outputs, labels)
    order = outputs.argsort(dim=1, descending=True, stable=True)
    assert torch.equal(order.gather(1, found.unsqueeze(1)).squeeze(1), labels)
    assert torch.equal(found == 0, outputs.argmax(1) == labels)
    assert rank(torch.full((1, 4), float("nan")), torch.tensor([2])).item() == 4  # top-4 of four, and still wrong


def test_chips_differ_in_what_their_cells_hold_and_reads_do_not(task):
    network, batches = task
    hardware = Hardware(mapping=MultilevelPair(), programming=Variation(0.5), computation=Noiseless())
    analog = convert(network, hardware, seed=0)
    chips = accuracies(analog, batches, chip_draws(analog, 5, seed=3), "")
    assert len(set(chips)) > 2
    assert accuracies(analog, batches, chip_draws(analog, 5, seed=3), "") == chips
    reads = accuracies(analog, batches, read_draws(3, seed=3), "")
    assert len(set(reads)) == 1  # all on the network's own chip, without noise
    assert reads[0] == accuracies(analog, batches, [Draw(Noiseless(), 0, chip=0)], "")[0]
    frozen = chip_draws(configure(analog, computation=Moments()), 2, seed=3)
    assert frozen == [Draw(Frozen(chip=3), 0, chip=3), Draw(Frozen(chip=4), 0, chip=4)]


def test_the_teacher_itself_is_always_right(task):
    network, batches = task
    assert top_accuracies(digital_ranks(network, batches, "")[None]) == [1.0]


def test_draws_are_reproducible_and_differ_by_their_seed(task):
    network, batches = task
    analog = convert(network, Hardware(rho=0.3), seed=0)
    draws = [*read_draws(3, seed=5), *chip_draws(analog, 2, seed=5), noiseless_draw()]
    first = accuracies(analog, batches, draws, "")
    analog(batches[0][0])
    assert accuracies(analog, batches, draws, "") == first
    assert accuracies(analog, batches, draws[::-1], "") == first[::-1]
    assert len(set(first[:3])) > 1
    assert max(first[:5]) < first[5]


def test_measuring_leaves_the_network_as_it_was(task):
    network, batches = task
    analog = convert(network, seed=0).train()
    analog[2].eval()
    accuracies(analog, batches, [Draw(Frozen(), 1), Draw(Noiseless(), 1)], "")
    assert analog.training
    assert not analog[2].training
    assert {layer.hardware.computation for layer in analog_layers(analog).values()} == {Moments()}


def test_which_images_are_right_is_known_for_every_draw(task):
    network, batches = task
    analog = convert(network, Hardware(rho=0.3), seed=0)
    draws = [noiseless_draw(), *read_draws(2, seed=5)]
    right = ranks(analog, batches, draws, "") == 0
    assert (right.shape, right.dtype) == ((3, 200), torch.bool)
    assert right.double().mean(1).tolist() == accuracies(analog, batches, draws, "")
    with torch.no_grad():
        configure(analog.eval(), computation=Noiseless())
        expected = torch.cat([analog(x).argmax(1) == labels for x, labels in batches])
    assert torch.equal(right[0], expected)
    wrong = [(x, (labels + 1) % 4) for x, labels in batches]
    assert digital_ranks(network, wrong, "").min() > 0


@pytest.mark.parametrize("stride", [1, 2, 3, 7, 130, 500])
@pytest.mark.parametrize("sizes", [[5, 5, 5], [4, 1, 9, 2], [13]])
def test_every_nth_image_is_kept_across_batches(stride, sizes):
    images = torch.arange(float(sum(sizes)))
    parts = every(zip(images.split(sizes), (10 * images).split(sizes), strict=True), stride)
    assert torch.equal(torch.cat([x for x, _ in parts]), images[::stride])
    assert torch.equal(torch.cat([labels for _, labels in parts]), 10 * images[::stride])
    assert all(len(x) for x, _ in parts)


def outcomes(p, reads, generator):
    """Independent reads of images that are right with probabilities p, bool (reads, images)."""
    return torch.rand(reads, len(p), generator=generator) < p


def test_the_interval_of_a_drop_holds_the_true_one_in_95_of_100_experiments():
    generator, trials, images = torch.Generator().manual_seed(0), 2000, 400
    true_drop = 0.9 - 0.85  # digital: right on 90 % of all images; analog: mean of a uniform 0.7..1
    covered = 0
    for _ in range(trials):
        p = 0.7 + 0.3 * torch.rand(images, generator=generator)
        digital = torch.rand(images, generator=generator) < 0.9
        mean, low, high = drop_interval(digital, outcomes(p, 3, generator))
        assert low < mean < high
        covered += low <= true_drop <= high
    assert abs(covered / trials - 0.95) < 5 * (0.95 * 0.05 / trials) ** 0.5


def test_a_drop_is_the_difference_of_the_mean_accuracies():
    generator = torch.Generator().manual_seed(0)
    digital, reads = torch.rand(50, generator=generator) < 0.9, outcomes(torch.full((50,), 0.8), 4, generator)
    mean, low, high = drop_interval(digital, reads)
    assert mean == pytest.approx(float(digital.double().mean() - reads.double().mean()))
    assert (low + high) / 2 == pytest.approx(mean, abs=1e-6)
    assert drop_interval(digital, digital.expand(3, -1)) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("reads", [2, 5])
def test_the_difference_between_exact_reads_and_moments_has_its_standard_error(reads):
    generator, trials = torch.Generator().manual_seed(0), 2000
    p = torch.rand(300, generator=generator).pow(0.2)  # most images are nearly certain
    z = torch.empty(trials, dtype=torch.float64)
    for trial in range(trials):
        exact, moments = outcomes(p, 1, generator)[0], outcomes(p, reads, generator)
        difference, error = same_accuracy(exact, moments)
        z[trial] = difference / error
    assert abs(float(z.mean())) < 5 / trials**0.5
    assert abs(float(z.square().mean()) - 1) < 5 * (2 / trials) ** 0.5


def test_other_probabilities_of_the_exact_reads_are_seen():
    generator = torch.Generator().manual_seed(0)
    p = torch.full((2000,), 0.8)
    difference, error = same_accuracy(outcomes(p - 0.1, 1, generator)[0], outcomes(p, 5, generator))
    assert difference / error < -5


def test_one_drop_several_or_none_are_asked_for():
    assert Evaluation().drops == ()
    assert Evaluation(max_drop=0.01).drops == (0.01,)
    assert Evaluation(max_drop=(0.01, 0.02)).drops == (0.01, 0.02)


def test_exact_images_want_two_reads_to_compare_with():
    with pytest.raises(ValueError, match=r"evaluation\.exact_images wants evaluation\.reads of 2 or more"):
        Evaluation(reads=1, exact_images=10)
