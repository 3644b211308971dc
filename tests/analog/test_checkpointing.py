"""Random reads and torch's machinery: recomputation, compilation, processes, a resume in plain PyTorch."""

import copy
import io

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from energytl import (
    BitSerialRead,
    Exact,
    Fluctuation,
    Frozen,
    Hardware,
    InputFormat,
    Moments,
    Noiseless,
    WeightFormat,
    analog_layers,
    calibrate,
    convert,
)
from energytl.analog.samples import collect

pytestmark = pytest.mark.usefixtures("one_thread")

COMPUTATIONS = [Noiseless(), Moments(), Frozen(), Frozen(chip=1), Exact()]
every_computation = pytest.mark.parametrize("computation", COMPUTATIONS, ids=repr)


def network(computation, **hardware):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 3),
    )
    noise = Fluctuation(correlation=0.3 if computation == Moments() else 0.0)
    analog = convert(net, Hardware(rho=0.2, fluctuation=noise, computation=computation, **hardware), seed=5)
    return calibrate(analog, [images()])


def images(count=3):
    return torch.rand(count, 2, 6, 6, generator=torch.Generator().manual_seed(1))


def nested(net, x):
    inner = lambda part, x: checkpoint(part, x, use_reentrant=False)  # noqa: E731
    return checkpoint(lambda x: inner(net[3:], inner(net[:3], x)), x, use_reentrant=False)


WAYS = {
    "plain": lambda net, x: net(x),
    "not reentrant": lambda net, x: checkpoint(net, x, use_reentrant=False),
    "reentrant": lambda net, x: checkpoint(net, x, use_reentrant=True),
    "sequential": lambda net, x: checkpoint_sequential(net, 3, x, use_reentrant=False),
    "nested": nested,
}


def outputs_and_gradients(analog, way, batches):
    """Of the sum over batches, so that parts are computed again in another order than at first."""
    torch.manual_seed(2)
    analog[0].noise.reseed(7)
    outputs = [WAYS[way](analog, x) for x in batches]
    sum(y.square().sum() for y in outputs).backward()
    gradients = [parameter.grad for parameter in analog.parameters()] + [x.grad for x in batches]
    analog.zero_grad()
    return [y.detach() for y in outputs], gradients


@every_computation
@pytest.mark.parametrize("way", list(WAYS)[1:])
def test_what_is_computed_again_finds_the_same_states(computation, way):
    analog, found = network(computation), []
    for each in ("plain", way):
        batches = [images().requires_grad_(), images().requires_grad_()]  # the same images, other reads
        found.append(outputs_and_gradients(analog, each, batches))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
    assert not isinstance(computation, Moments | Exact) or not torch.equal(*found[0][0])


@pytest.mark.parametrize("way", ["not reentrant", pytest.param("reentrant", marks=pytest.mark.slow)])
def test_large_reads_are_computed_again_as_they_were(way):
    torch.manual_seed(0)
    analog, found = convert(nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU()), Hardware(rho=0.2), seed=0), []
    analog[0].input_range = 1.0
    for each in ("plain", way):
        x = torch.rand(64, 8, 24, 24, generator=torch.Generator().manual_seed(0))
        found.append(outputs_and_gradients(analog, each, [x.requires_grad_()]))
        torch.manual_seed(0)
    plain, again = found
    torch.testing.assert_close(again[0], plain[0])
    for ours, theirs in zip(again[1], plain[1], strict=True):
        assert float((ours - theirs).norm()) <= 1e-5 * float(theirs.norm())


@pytest.mark.parametrize("way", ["not reentrant", "reentrant", "nested"])
def test_samples_for_arrays_are_handed_over_once(way):
    handed = []
    for each in ("plain", way):
        analog = network(Moments(), weights=WeightFormat(bits=None))
        layers = list(analog_layers(analog).values())
        kept = [collect(layer.weight) for layer in layers]
        outputs_and_gradients(analog, each, [images().requires_grad_()])
        handed.append([(x, d) for samples in kept for _, x, d in samples.batches])
    assert len(handed[0]) == 3
    torch.testing.assert_close(handed[1], handed[0], rtol=0, atol=0)


@pytest.mark.parametrize("reentrant", [True, False])
def test_without_torchs_state_a_recomputation_is_refused(reentrant):
    analog = network(Moments())
    y = checkpoint(analog, images().requires_grad_(), use_reentrant=reentrant, preserve_rng_state=False)
    with pytest.raises(RuntimeError, match="preserve_rng_state=True"):
        y.sum().backward()


def test_torchs_seed_decides_no_states():
    analog, found = network(Moments()).eval(), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        analog[0].noise.reseed(0)
        found += [analog(images()), analog(images())]
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[5])
    assert not torch.equal(found[0], found[1])


@every_computation
def test_compiled_networks_read_as_others(computation):
    analog = network(computation).eval()
    with torch.no_grad():
        analog[0].noise.reseed(3)
        expected = analog(images())
        analog[0].noise.reseed(3)
        torch._dynamo.reset()
        found = torch.compile(analog, backend="eager")(images())
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("tokens", [False, True])
@every_computation
def test_every_parameter_of_a_process_gets_its_gradient(computation, tokens, tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(inplace=True), nn.Linear(8, 2))
        analog = convert(net, Hardware(computation=computation), seed=0)
        x = torch.rand(16, 3, 4) if tokens else torch.rand(16, 4)
        wrapped = nn.parallel.DistributedDataParallel(calibrate(analog, [x]))
        for _ in range(3):
            wrapped(x).square().mean().backward()
    finally:
        dist.destroy_process_group()
    still = isinstance(computation, Noiseless)
    assert all((layer.log_rho.grad == 0) == still for layer in analog_layers(analog).values())


@pytest.mark.parametrize("computation", [Moments(), Frozen(), Exact()], ids=repr)
@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_a_resume_in_plain_torch_is_exact(computation, optimizer):
    def made():
        analog = network(computation, inputs=InputFormat(6, follows=True), read=BitSerialRead())
        return analog, optimizer(analog.parameters(), lr=0.01, weight_decay=0.01)

    def step(analog, optimizer):
        optimizer.zero_grad()
        loss = analog(images()).square().mean()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    first, torchs = made(), None
    for _ in range(2):
        step(*first)
    file = io.BytesIO()
    torch.save([first[0].state_dict(), first[1].state_dict(), torch.get_rng_state()], file)
    file.seek(0)
    unbroken = [step(*first) for _ in range(20)]
    second = made()
    *states, torchs = torch.load(file, weights_only=True)
    for part, state in zip(second, states, strict=True):
        part.load_state_dict(state)
    torch.set_rng_state(torchs)
    assert [step(*second) for _ in range(20)] == unbroken
    assert len(set(unbroken)) == 20


def test_a_copy_of_the_state_holds_the_place_in_the_stream():
    analog, other = network(Moments()).eval(), network(Moments()).eval()
    analog(images())
    other.load_state_dict(copy.deepcopy(analog.state_dict()))
    assert torch.equal(other(images()), analog(images()))
