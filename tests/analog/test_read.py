"""Every read against its law: moments from a digital layer's Jacobian, and states enumerated one by one."""

import copy
import dataclasses
import math
from functools import cache, partial
from itertools import product

import pytest
import torch
from scipy import stats
from torch import nn
from torch.func import functional_call

import energytl
from energytl import (
    BitCells,
    BitSerialRead,
    BitSlices,
    Cell,
    DifferentialPair,
    Exact,
    Fluctuation,
    Frozen,
    InputFormat,
    Moments,
    MultilevelPair,
    Noiseless,
    OneCell,
    RepeatedRead,
    SingleRead,
    configure,
    convert,
)
from energytl.analog.read import read_variance_of_inputs
from energytl.devices.programming import Variation

Hardware = partial(energytl.Hardware, law="paper", sensing_noise=None)
"""What is calculated by hand below."""

pytestmark = pytest.mark.usefixtures("one_thread")

RHO = 1.0  # low, so that a full-range weight fluctuates by an eighth
NOISE = Fluctuation(intensity=1.0, floor=0.0015, saturation=0.5, corner_siemens=0.33e-6)
IMAGES = 4000
LEVELS = 31

LAYERS = {  # dozens of cells for each output: the sum over a handful is far from normal
    "linear": (lambda: nn.Linear(36, 4), (36,)),
    "tokens": (lambda: nn.Linear(36, 3), (3, 36)),
    "strided": (lambda: nn.Conv2d(8, 2, 3, stride=2, padding=1), (8, 5, 5)),
    "grouped": (lambda: nn.Conv2d(8, 4, 3, groups=2), (8, 4, 4)),
}
SCHEMES = [SingleRead(), RepeatedRead(5), BitSerialRead()]
VARIANCE = {  # of a read of the integers 0..31, in units of a², if all reads are independent (Wang 2021, eq. 16-17)
    SingleRead(): [n**2 for n in range(32)],
    RepeatedRead(5): [n**2 / 5 for n in range(32)],
    BitSerialRead(): [sum(4**p for p in range(5) if n >> p & 1) for n in range(32)],
}

every_layer = pytest.mark.parametrize("layer", LAYERS)
every_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
every_correlation = pytest.mark.parametrize("correlation", [0.0, 0.5])


@cache
def digital_and_image(layer):
    make, shape = LAYERS[layer]
    torch.manual_seed(0)
    return make(), torch.rand(shape) - 0.25


def analog(layer, computation, scheme=SCHEMES[0], correlation=0.0, mapping=OneCell(), of="paper", seed=0):
    noise = dataclasses.replace(NOISE, correlation=correlation)
    hardware = Hardware(rho=RHO, fluctuation=noise, law=of, mapping=mapping, read=scheme, computation=computation)
    network = convert(digital_and_image(layer)[0], hardware, seed=seed)
    network.input_range = 1.0
    return network


@cache
def outcomes(layer, computation, scheme, correlation, mapping=OneCell(), of="paper", images=IMAGES):
    """Outputs (images, M) for as many copies of one image."""
    image = digital_and_image(layer)[1]
    network = analog(layer, computation, scheme, correlation, mapping, of)
    with torch.no_grad():
        return network(image.expand(images, *image.shape)).flatten(1)


def amplitude(magnitude, rho=RHO, idle=0.0):
    """Standard deviation of a read of one cell, by hand; idle: µS of an empty one."""
    return (magnitude + idle / rho) * (0.0015 + 0.5 / (1 + (rho * magnitude + idle) / 0.33))


def cell_variance(u, mapping, of="paper"):
    """Variance of one read of the weight u, by hand."""
    idle = 8.0 if of == "cell" else 0.0
    if isinstance(mapping, MultilevelPair):
        pairs = [(p, m) for p, m in product((0, 1, 3, 8), repeat=2) if abs(p - m - 8 * u) < 1e-5]
        return sum(amplitude(cell / 8, idle=idle) ** 2 for cell in min(pairs, key=sum))
    if not isinstance(mapping, BitSlices):
        other = amplitude(0.0, idle=idle) if isinstance(mapping, DifferentialPair) else 0.0
        return amplitude(abs(u), idle=idle) ** 2 + other**2
    integer, highest = round(abs(u) * 15), 2**mapping.cell_bits - 1
    digits = [(p, integer >> p & highest) for p in range(0, 4, mapping.cell_bits)]
    return sum((2**p * highest / 15 * amplitude(digit / highest, idle=idle)) ** 2 for p, digit in digits)


@cache
def law(layer, scheme, correlation, mapping=OneCell(), of="paper"):
    """Mean (M,) and covariance (M, M) of the outputs, and the integer input (M, T) that each cell adds to each output.

    Which integer input meets which cell is the Jacobian of torch's own layer to its weight.
    """
    digital, image = digital_and_image(layer)
    network, plain = analog(layer, Moments(), mapping=mapping), copy.deepcopy(digital).double()
    u = network.stored_weight.detach().double()
    integers = (image.double() * LEVELS).round()

    def outputs(weight, inputs):
        return functional_call(plain, {"weight": weight}, inputs.unsqueeze(0)).flatten()

    inputs = torch.autograd.functional.jacobian(lambda weight: outputs(weight, integers), u).flatten(1)
    scale = network.weight_range / LEVELS
    squares = torch.tensor([cell_variance(float(w), mapping, of) for w in u.flatten()], dtype=torch.float64) * scale**2
    independent = torch.tensor(VARIANCE[scheme], dtype=torch.float64)[inputs.abs().round().long()] @ squares
    covariance = correlation * (inputs * squares) @ inputs.T + (1 - correlation) * independent.diag()
    mean = outputs(u * network.weight_range, integers / LEVELS).detach()
    return mean, covariance, inputs


@every_layer
@every_scheme
@every_correlation
@pytest.mark.parametrize("computation", [Exact(), Moments()], ids=["exact", "moments"])
def test_mean_and_covariance_of_all_outputs_follow_the_law(layer, scheme, correlation, computation, assert_moments):
    mean, covariance, _ = law(layer, scheme, correlation)
    assert_moments(outcomes(layer, computation, scheme, correlation), mean, covariance)


@every_layer
@every_scheme
@every_correlation
def test_exact_and_moments_agree_in_distribution(layer, scheme, correlation, assert_same_distribution):
    exact, moments = (outcomes(layer, computation, scheme, correlation) for computation in (Exact(), Moments()))
    assert_same_distribution(exact, moments)


@every_layer
@every_scheme
@every_correlation
@pytest.mark.parametrize("computation", [Exact(), Moments()], ids=["exact", "moments"])
def test_reads_of_two_like_states_are_symmetric(layer, scheme, correlation, computation, assert_third_moment):
    samples = outcomes(layer, computation, scheme, correlation)
    assert_third_moment(samples, torch.zeros(samples.shape[1], dtype=torch.float64))


@pytest.mark.parametrize("correlation", [0.5, 1.0])
@pytest.mark.parametrize("layer", ["tokens", "strided", "grouped"])
def test_positions_of_one_image_share_correlated_states(layer, correlation):
    # the covariance of the law is large enough for the samples to show whether it is there
    _, covariance, _ = law(layer, SingleRead(), correlation)
    deviations = covariance.diagonal().sqrt()
    between = covariance / deviations.outer(deviations) - torch.eye(len(covariance))
    assert float(between.abs().max()) > 2 * 5 / IMAGES**0.5
    assert law(layer, SingleRead(), 0.0)[1].count_nonzero() == len(covariance)


@every_scheme
@pytest.mark.parametrize("mapping", [DifferentialPair(), BitCells(), BitSlices(2), MultilevelPair()], ids=repr)
@pytest.mark.parametrize("computation", [Exact(), Moments()], ids=["exact", "moments"])
@pytest.mark.parametrize("of", ["paper", "cell"])
def test_other_mappings_follow_the_law_of_their_cells(mapping, scheme, computation, of, assert_moments):
    mean, covariance, _ = law("strided", scheme, 0.5, mapping, of)
    assert_moments(outcomes("strided", computation, scheme, 0.5, mapping, of), mean, covariance)


@every_layer
@every_scheme
def test_whole_cells_fluctuate_alike_drawn_one_by_one_and_by_moments(
    layer, scheme, assert_moments, assert_same_distribution
):
    mean, covariance, _ = law(layer, scheme, 0.0, DifferentialPair(), "cell")
    found = [outcomes(layer, way, scheme, 0.0, DifferentialPair(), "cell") for way in (Exact(), Moments())]
    assert_same_distribution(*found)
    for samples in found:
        assert_moments(samples, mean, covariance)


def test_an_empty_cell_fluctuates_as_he_measured_and_the_more_the_less_a_full_one_conducts():
    """ΔG = 0.166 µS + 0.0015·G (He et al., DAC 2019), which the saturation lowers by 2 % at 8 µS."""
    for rho in (0.1, 1.0, 10.0):
        layer = convert(nn.Linear(1, 50_000, bias=False), Hardware(rho=rho, law="cell", computation=Exact()), seed=0)
        layer.input_range, layer.weight_range = 1.0, 1.0
        with torch.no_grad():
            layer.weight.zero_()
            siemens = layer(torch.ones(1, 1)).std() * rho * 1e-6
        assert float(siemens) == pytest.approx(0.166e-6 + 0.0015 * 8e-6, rel=0.03)


@pytest.mark.parametrize("mapping", [OneCell(), BitCells(), MultilevelPair()], ids=repr)
def test_reads_fluctuate_around_what_the_cells_of_the_chip_hold(mapping, assert_moments, assert_same_distribution):
    network, image = analog("linear", Noiseless(), BitSerialRead(), 0.0, mapping), digital_and_image("linear")[1]
    nominal = network(image).detach()
    network.configure(programming=Variation(0.3), chip=3)
    held = network(image).detach()
    assert (held - nominal).abs().max() > 0.01
    network.configure(chip=4)
    assert not torch.allclose(network(image), held)
    network.configure(chip=3)
    images, found = image.expand(IMAGES, -1), []
    for computation in (Exact(), Moments()):
        network.configure(computation=computation)
        with torch.no_grad():
            found.append(network(images))
    assert_same_distribution(*found)
    assert_moments(found[1], held.double(), found[0].double().T.cov())


def test_exact_reads_have_the_third_moment_of_unlike_states(assert_third_moment):
    # offsets 0 and 1 at 3/4 and 1/4 have E[c³] = 2/√3
    digital, image = digital_and_image("linear")
    layer = convert(copy.deepcopy(digital), Hardware(rho=RHO), seed=0)
    states = dataclasses.replace(NOISE, offsets=(0.0, 1.0), probabilities=(0.75, 0.25))
    layer.configure(fluctuation=states, computation=Exact())
    layer.input_range = 1.0
    with torch.no_grad():
        samples = layer(image.abs().expand(20_000, -1))
    inputs = (image.abs() * LEVELS).round() / LEVELS * layer.weight_range
    weight = layer.stored_weight.detach()  # a state moves the conductance: of a negative weight, downwards
    third = (amplitude(weight.abs()) * weight.sign() * inputs).double().pow(3).sum(1) * 2 / 3**0.5
    assert_third_moment(samples, third)


@pytest.mark.parametrize("states_at_once", [1, 1000])
def test_a_batch_may_be_read_in_parts(states_at_once, assert_moments):
    mean, covariance, _ = law("strided", SingleRead(), 0.5)
    assert_moments(outcomes("strided", Exact(states_at_once), SingleRead(), 0.5, images=1000), mean, covariance)


@pytest.mark.parametrize("computation", [Exact(), Exact(1000), Moments()], ids=["exact", "in parts", "moments"])
@every_correlation
def test_images_of_a_batch_fluctuate_independently(computation, correlation, assert_moments):
    mean, covariance, _ = law("tokens", SingleRead(), correlation)
    samples = outcomes("tokens", computation, SingleRead(), correlation)[:, 0].view(-1, 4)
    assert_moments(samples, mean[:1].expand(4), covariance[0, 0] * torch.eye(4, dtype=torch.float64))


# One cell of full range, read with the integer 21 = 10101b: every outcome can be listed.


def listed(parts, correlation):
    """Outcomes and probabilities of Σ part·(1 + a·state), a state being the held one with probability √c."""
    together, found = correlation**0.5, {}
    for states in product((-1, 1), repeat=len(parts)):
        outcome = sum(part * (1 + amplitude(1) * state) for part, state in zip(parts, states, strict=True)) / LEVELS
        probability = 0.0
        for held in (-1, 1):
            chance = 0.5
            for state in states:
                chance *= together * (state == held) + (1 - together) / 2
            probability += chance
        found[round(outcome, 5)] = found.get(round(outcome, 5), 0) + probability
    return found


@pytest.mark.parametrize("correlation", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    ("scheme", "parts"),
    [(SingleRead(), [21]), (RepeatedRead(3), [7, 7, 7]), (BitSerialRead(), [16, 4, 1])],
    ids=repr,
)
def test_exact_reads_of_one_cell_are_the_listed_ones(scheme, parts, correlation):
    cell = nn.Linear(1, 1, bias=False)
    nn.init.ones_(cell.weight)
    noise = dataclasses.replace(NOISE, correlation=correlation)
    layer = convert(cell, Hardware(rho=RHO, fluctuation=noise, read=scheme, computation=Exact()), seed=0)
    layer.input_range, count = 1.0, 20_000
    with torch.no_grad():
        values, counts = layer(torch.full((count, 1), 21 / LEVELS)).unique(return_counts=True)
    expected = {value: p for value, p in sorted(listed(parts, correlation).items()) if p > 0}
    frequency = dict.fromkeys(expected, 0)
    for value, seen in zip(values.tolist(), counts.tolist(), strict=True):
        nearest = min(expected, key=lambda outcome: abs(outcome - value))
        assert value == pytest.approx(nearest, abs=1e-5)  # the listed ones are rounded to five digits
        frequency[nearest] += seen
    assert stats.chisquare(list(frequency.values()), [count * p for p in expected.values()]).pvalue > 1e-6


@pytest.mark.parametrize(
    "sign",
    [1, -1],
)
@pytest.mark.parametrize("computation", [Exact(), Frozen()], ids=["exact", "frozen"])
def test_a_read_never_changes_the_sign_of_a_weight(computation, sign):
    cells = nn.Linear(1, 100, bias=False)
    nn.init.constant_(cells.weight, float(sign))
    noise = Fluctuation(intensity=100.0, offsets=(0.0, 1.0), probabilities=(0.75, 0.25))
    layer = convert(cells, Hardware(rho=RHO, fluctuation=noise, computation=computation), seed=0)
    with torch.no_grad():
        read = layer(torch.ones(1, 1))
    assert (read * sign >= -1e-6).all()  # single precision
    assert read.unique().numel() == 2


# Variances by brute force


@every_scheme
@pytest.mark.parametrize("correlation", [0.0, 0.25, 1.0])
def test_variance_mixes_held_and_independent_reads_of_every_integer(scheme, correlation):
    integers = torch.arange(32, dtype=torch.float64)
    expected = [correlation * n**2 + (1 - correlation) * VARIANCE[scheme][n] for n in range(32)]
    for sign in (1, -1):
        found = read_variance_of_inputs(sign * integers, scheme, InputFormat(5), correlation, held=False)
        assert found.tolist() == pytest.approx(expected)
    rest = read_variance_of_inputs(integers, scheme, InputFormat(5), correlation, held=True)
    assert rest.tolist() == pytest.approx([e - correlation * n**2 for n, e in enumerate(expected)])


@every_scheme
def test_variance_is_that_of_the_phases(scheme):
    # Σ over reads of (input of the read)², whatever the scheme
    integers = torch.arange(-31.0, 32.0, dtype=torch.float64)
    phases = scheme.phases(integers, InputFormat(5))
    assert len(phases) == scheme.reads(InputFormat(5))
    torch.testing.assert_close(phases.sum(0), integers)
    torch.testing.assert_close(phases.square().sum(0), scheme.variance(integers, InputFormat(5)))


@pytest.mark.parametrize(
    ("scheme", "reads", "pulses", "on_time"),
    [
        (SingleRead(), 1, lambda n: n, lambda n: n / 31),
        (RepeatedRead(5), 5, lambda n: 5 * n, lambda n: 5 * n / 31),
        (BitSerialRead(), 5, lambda n: bin(n).count("1"), lambda n: bin(n).count("1")),
    ],
    ids=["single", "repeated", "bit-serial"],
)
def test_reads_pulses_and_on_time_of_every_integer(scheme, reads, pulses, on_time):
    integers = torch.arange(32, dtype=torch.float64)
    assert scheme.reads(InputFormat(5)) == reads
    assert scheme.pulses(-integers).tolist() == [pulses(n) for n in range(32)]
    assert scheme.on_time(-integers, InputFormat(5)).tolist() == pytest.approx([on_time(n) for n in range(32)])


# Frozen states


@every_layer
def test_frozen_states_have_the_law_of_reads_that_correlate_fully(layer, assert_moments, assert_same_distribution):
    image = digital_and_image(layer)[1].unsqueeze(0)
    network, count = analog(layer, Frozen()), 2000
    with torch.no_grad():
        samples = []
        for seed in range(count):
            network.noise.reseed(seed)
            samples.append(network(image).flatten())
    mean, covariance, _ = law(layer, SingleRead(), 1.0)
    assert_moments(torch.stack(samples), mean, covariance)
    assert_same_distribution(torch.stack(samples), outcomes(layer, Exact(), SingleRead(), 1.0))


@every_layer
def test_frozen_states_are_held_within_a_batch_and_drawn_anew_for_the_next(layer):
    image = digital_and_image(layer)[1].double()
    network = copy.deepcopy(analog(layer, Frozen())).double()
    digital = copy.deepcopy(digital_and_image(layer)[0]).double()
    with torch.no_grad():
        first, second = (network(torch.stack([image] * 3)) for _ in range(2))
        # a product's rows may be summed in any order: |sum − Σ| ≤ n·ε·Σ|terms| (Higham 2002, eq. 4.4), a read is ≤ 2|w|
        bounds = {
            name: 2 * parameter.abs().amax().expand_as(parameter) for name, parameter in digital.named_parameters()
        }
        terms = digital.weight[0].numel() + 1
        bound = (
            2 * terms * torch.finfo(torch.float64).eps * functional_call(digital, bounds, image.abs().unsqueeze(0))[0]
        )
    assert ((first - first[0]).abs() <= bound).all()
    assert ((first - second).abs() > bound).any(0).all()


def test_a_chip_is_the_same_in_every_call_and_under_every_seed():
    image = digital_and_image("strided")[1].unsqueeze(0)
    chips = [analog("strided", Frozen(chip), seed=seed) for chip, seed in ((3, 0), (3, 1), (4, 0))]
    third, again, fourth = (chip(image) for chip in chips)
    assert torch.equal(third, again)
    assert torch.equal(third, chips[0](image))
    assert not torch.equal(third, fourth)


def test_chips_have_the_law_of_frozen_states(assert_moments):
    image = digital_and_image("strided")[1].unsqueeze(0)
    with torch.no_grad():
        network = analog("strided", Frozen())
        samples = [configure(network, computation=Frozen(chip))(image).flatten() for chip in range(1000)]
    mean, covariance, _ = law("strided", SingleRead(), 1.0)
    assert_moments(torch.stack(samples), mean, covariance)


def test_equal_layers_of_one_chip_have_states_of_their_own():
    layer = nn.Linear(4, 4)
    twins = nn.Sequential(layer, copy.deepcopy(layer))
    first, second = convert(twins, Hardware(computation=Frozen(chip=3), rho=RHO), seed=0)
    x = torch.rand(1, 4)
    assert not torch.equal(first(x), second(x))


# What training sees


@pytest.mark.parametrize("scheme", [SingleRead(), BitSerialRead()], ids=repr)
@pytest.mark.parametrize("computation", [Exact(), Moments()], ids=["exact", "moments"])
def test_mean_gradient_of_rho_is_the_slope_of_the_variance(scheme, computation):
    # d/d(log ρ) of E[Σ(y − ȳ)²], by central differences of the law
    network, image = analog("linear", computation, scheme), digital_and_image("linear")[1]
    mean, _, inputs = law("linear", scheme, 0.0)
    counts = torch.tensor(VARIANCE[scheme], dtype=torch.float64)[inputs.abs().long()]
    u = network.stored_weight.detach().double().flatten().abs()

    def variance(log_rho):
        return float((counts @ (amplitude(u, RHO * math.exp(log_rho)) * network.weight_range / LEVELS).square()).sum())

    expected, gradients = (variance(1e-4) - variance(-1e-4)) / 2e-4, []
    for _ in range(100):
        network.log_rho.grad = None
        (network(image.expand(100, -1)) - mean.float()).square().sum(1).mean().backward()
        gradients.append(float(network.log_rho.grad))
    found = torch.tensor(gradients)
    assert abs(float(found.mean()) - expected) <= 5 * float(found.std()) / 100**0.5


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_outputs_beside_full_scale_ones_stay_finite(scheme):
    # positions that see no input have a variance of almost nothing, next to ones that see all of it
    torch.manual_seed(0)
    network = convert(nn.Conv2d(8, 8, 3, padding=1), Hardware(rho=RHO, read=scheme), seed=0)
    image = torch.zeros(2, 8, 32, 32)
    image[:, :, 16, 16] = 1.0
    outputs = network(image)
    outputs.square().sum().backward()
    assert outputs.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
    silent = outputs[:, :, :8] - network.bias.view(-1, 1, 1)
    seen = outputs[:, :, 16, 16] - network.bias
    assert float(silent.detach().abs().max()) < 1e-3 * float(seen.detach().abs().max())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RepeatedRead(0), r"read\.times is 0; allowed: 1 to 1000"),
        (lambda: InputFormat(0), r"inputs\.bits is 0; allowed: 1 to 16"),
        (lambda: InputFormat(17), r"inputs\.bits is 17; allowed: 1 to 16"),
        (lambda: Hardware(rho=0.0), r"hardware\.rho is 0\.0; allowed: above 0"),
        (lambda: Hardware(rho=-1.0), r"hardware\.rho is -1\.0; allowed: above 0"),
        (lambda: Hardware(rho=float("nan")), r"hardware\.rho is nan; allowed: a finite number"),
        (lambda: Hardware(rho=1e5), r"hardware\.rho is 100000\.0; allowed: above 0 up to 82, the µS"),
        (lambda: Hardware(cell=Cell(g_max_siemens=17e-6)), r"hardware\.rho is 10\.0; allowed: above 0 up to 9, the µS"),
        (lambda: configure(convert(nn.Linear(2, 2)), rho=83.0), r"hardware\.rho is 83\.0; allowed: above 0 up to 82"),
    ],
)
def test_what_is_no_hardware_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
