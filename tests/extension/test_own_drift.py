"""A law of drift of one's own, by public names alone."""

from dataclasses import dataclass

import torch

import energytl


@dataclass(frozen=True)
class Halving(energytl.DriftLaw):
    """Conductances halve every hour."""

    longest_s: float = 86_400.0

    def at(self, siemens, time_s, cell, generator):
        return siemens * 0.5 ** (time_s / 3600)


def test_reads_and_conductances_follow_it():
    hardware = energytl.Hardware(
        mapping=energytl.DifferentialPair(), drift=energytl.Drift(Halving()), computation=energytl.Noiseless()
    )
    layer, x = energytl.convert(torch.nn.Linear(6, 3, bias=False), hardware), torch.rand(4, 6)
    layer(x)
    with energytl.reading(layer, time_s=7200.0), torch.no_grad():
        late, cells = layer(x), energytl.conductances(layer)[""][0]
    with torch.no_grad():
        early, fresh = layer(x), energytl.conductances(layer)[""][0]
    factor = 0.5**2 / 0.5 ** (1 / 3600)
    assert torch.allclose(late, early * factor, rtol=1e-4, atol=1e-6)
    assert torch.allclose(cells, fresh * factor, rtol=1e-4)
