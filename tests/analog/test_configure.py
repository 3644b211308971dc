"""Hardware layer by layer, and reading a network in another way for a while."""

import pytest
import torch
from torch import nn

import energytl
from energytl import (
    BitSerialRead,
    Converter,
    Drift,
    Frozen,
    FullRange,
    Hardware,
    InputFormat,
    Moments,
    Noiseless,
    PcmDrift,
    SingleRead,
    Wan2022,
    analog_layers,
    configure,
    convert,
    estimate,
    reading,
)
from energytl.evaluation import accuracies, chip_draws, noiseless_draw


@pytest.fixture
def network():
    torch.manual_seed(0)
    blocks = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    hardware = Hardware(converter=Converter(8, FullRange()), drift=Drift(PcmDrift()), programming=Wan2022())
    net = convert(nn.Sequential(nn.Linear(6, 8), blocks, nn.Linear(8, 3)), hardware, seed=0)
    net(torch.rand(4, 6))
    return net


def test_patterns_change_the_layers_that_they_name(network):
    configure(
        network,
        {"0": {"converter.bits": 6}, "1.*": {"read": BitSerialRead(), "inputs.bits": 7}, "1.1": {"inputs.bits": 3}},
        chip=5,
    )
    found = {name: layer.hardware for name, layer in analog_layers(network).items()}
    assert [found[name].converter.bits for name in ("0", "1.0", "1.1", "2")] == [6, 8, 8, 8]
    assert [type(found[name].read) for name in ("0", "1.0", "1.1", "2")] == [
        *(SingleRead, BitSerialRead, BitSerialRead, SingleRead)
    ]
    assert [found[name].inputs.bits for name in ("0", "1.0", "1.1", "2")] == [5, 7, 3, 5]
    assert {hardware.chip for hardware in found.values()} == {5}


def test_costs_are_those_of_each_layers_own_hardware(network):
    before = {layer.name: layer for layer in estimate(network, torch.rand(4, 6)).layers}
    configure(network, {"1.0": {"read": BitSerialRead()}})
    after = {layer.name: layer for layer in estimate(network, torch.rand(4, 6)).layers}
    assert after["1.0"].reads == 5 * before["1.0"].reads
    assert all(after[name].reads == before[name].reads for name in ("0", "1.1", "2"))


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        ({"conv*": {"chip": 1}}, r"no layer is called 'conv\*'; there are: 0, 1\.0, 1\.1, 2"),
        ({"0": {"convertor": None}}, r"0: convertor: Hardware has no convertor; allowed: fluctuation, "),
        ({"0": {"converter.bit": 3}}, r"0: converter\.bit: Converter has no bit; allowed: bits, range"),
        ({"0": {"converter.bits": 1}}, r"converter\.bits is 1; allowed: 2 to 24"),
        ({"0": {"stuck.hrs": 2}}, r"stuck\.hrs is 2; allowed: 0 to 1"),
    ],
)
def test_what_cannot_be_changed_is_refused_by_name(network, layers, says):
    with pytest.raises(ValueError, match=says):
        configure(network, layers)


def test_a_part_of_what_is_not_there_is_refused(network):
    configure(network, converter=None)
    with pytest.raises(ValueError, match=r"2: converter\.bits: there is no part of None; allowed: to set all of it"):
        configure(network, {"2": {"converter.bits": 3}})


def test_reading_leaves_every_layer_and_stream_as_they_were(network):
    configure(network, {"0": {"computation": Noiseless(), "chip": 4}, "2": {"drift.time_s": 5.0}})
    before, x = [layer.hardware for layer in analog_layers(network).values()], torch.rand(4, 6)
    noise = network[0].noise
    place = noise.seed, noise.position
    with reading(network, Frozen(), seed=1, chip=3, time_s=86_400.0):
        changed = [layer.hardware for layer in analog_layers(network).values()]
        assert {(h.computation, h.chip, h.drift.time_s) for h in changed} == {(Frozen(), 3, 86_400.0)}
        first = network(x)
    assert [layer.hardware for layer in analog_layers(network).values()] == before
    assert (noise.seed, noise.position) == place
    with reading(network, Frozen(), seed=1, chip=3, time_s=86_400.0):
        assert torch.equal(network(x), first)
    with reading(network, Frozen(), seed=1, chip=3):
        assert not torch.allclose(network(x), first, rtol=1e-3)
    with pytest.raises(RuntimeError, match="stop"), reading(network, Noiseless()):
        raise RuntimeError("stop")
    assert [layer.hardware for layer in analog_layers(network).values()] == before


def test_cells_are_read_as_they_should_have_been_written(network):
    clear, x = convert(energytl.to_digital(network), Hardware(computation=Noiseless()), seed=0), torch.rand(4, 6)
    clear.load_state_dict(network.state_dict())
    configure(network, converter=None)
    with reading(network, Noiseless(), as_written=True):
        assert torch.allclose(network(x), clear(x), atol=1e-6)
    with reading(network, Noiseless()):
        assert not torch.allclose(network(x), clear(x), atol=1e-3)


def test_evaluating_leaves_layers_of_several_kinds_as_they_were(network):
    """It once wrote the first layer's settings to all of them, for good."""
    configure(network, {"1.0": {"computation": Noiseless()}, "2": {"chip": 7, "inputs": InputFormat(8)}})
    before = [layer.hardware for layer in analog_layers(network).values()]
    batches = [(torch.rand(4, 6), torch.tensor([0, 1, 2, 0]))]
    accuracies(network, batches, [noiseless_draw(), *chip_draws(network, 2, 0)], "")
    assert [layer.hardware for layer in analog_layers(network).values()] == before


def test_a_time_without_a_law_is_refused():
    layer = convert(nn.Linear(2, 2), Hardware(computation=Moments()))
    with pytest.raises(ValueError, match=r"time_s requires hardware whose cells change"), reading(layer, time_s=5.0):
        pass
    assert layer.hardware == Hardware(computation=Moments())
