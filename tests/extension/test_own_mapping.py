"""A mapping of one's own, by public names alone: a weight in two equal cells of its sign."""

from dataclasses import dataclass

import torch

import energytl


@dataclass(frozen=True)
class Twice(energytl.Mapping):
    """Two cells that hold the weight, each counted half: half the variance of one."""

    def cells_per_weight(self, weights):
        return 2

    def conversions_per_output(self, weights):
        return 1

    def significances(self, weights):
        return (0.5, 0.5)

    def stored(self, u, weights):
        return torch.stack([u, u])


def test_it_halves_the_variance_and_doubles_the_cells():
    deviations = []
    for mapping in (energytl.OneCell(), Twice()):
        torch.manual_seed(0)
        hardware = energytl.Hardware(mapping=mapping, sensing_noise=None, rho=2.0)
        layer, x = energytl.convert(torch.nn.Linear(40, 3), hardware, seed=0), torch.rand(1, 40).expand(4000, -1)
        energytl.calibrate(layer, [x])
        with torch.no_grad():
            deviations.append(layer(x).std(0))
        assert energytl.estimate(layer, x[:1]).cells == 40 * 3 * len(mapping.significances(None))
    assert torch.allclose(deviations[0] / deviations[1], torch.tensor(2.0).sqrt(), rtol=0.08)
