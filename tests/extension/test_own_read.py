"""A way to read of one's own, by public names alone: the upper bits of an input and the lower ones apart."""

from dataclasses import dataclass

import torch

import energytl


@dataclass(frozen=True)
class TwoHalves(energytl.ReadScheme):
    """Two reads, of n // 8 and of n % 8; the first counts eight times."""

    def reads(self, inputs):
        return 2

    def pulses(self, integers):
        return integers.abs() // 8 + integers.abs() % 8

    def on_time(self, integers, inputs):
        return self.pulses(integers) / 7

    def variance(self, integers, inputs):
        return 64 * (integers.abs() // 8) ** 2 + (integers.abs() % 8) ** 2

    def phases(self, integers, inputs):
        low = integers.detach().sign() * (integers.detach().abs() % 8)
        return torch.stack([integers - low, low])

    def conversions(self, inputs):
        return (8.0, 1.0)


def test_moments_are_those_of_states_drawn_one_by_one():
    hardware = energytl.Hardware(read=TwoHalves(), rho=1.0, sensing_noise=None)
    layer = energytl.convert(torch.nn.Linear(40, 3), hardware, seed=0)
    x, found = torch.rand(1, 40).expand(4000, -1), []
    energytl.calibrate(layer, [x])
    for computation in (energytl.Exact(), energytl.Moments()):
        with energytl.reading(layer, computation), torch.no_grad():
            found.append(layer(x).double())
    assert torch.allclose(found[0].std(0), found[1].std(0), rtol=5 / 4000**0.5)
    assert ((found[0].mean(0) - found[1].mean(0)).abs() < 5 * found[0].std(0) * (2 / 4000) ** 0.5).all()
