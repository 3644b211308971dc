"""An error of writing of one's own, by public names alone."""

from dataclasses import dataclass

import torch

import energytl


@dataclass(frozen=True)
class Weak(energytl.WriteError):
    """Every cell reaches nine tenths of its value."""

    def written(self, targets, scale, generator):
        return 0.9 * targets


def test_reads_follow_it_on_every_mapping():
    for mapping in (energytl.OneCell(), energytl.DifferentialPair(), energytl.BitSlices(2), energytl.MultilevelPair()):
        outputs = []
        for programming in (None, Weak()):
            hardware = energytl.Hardware(mapping=mapping, programming=programming, computation=energytl.Noiseless())
            torch.manual_seed(0)
            layer = energytl.convert(torch.nn.Linear(6, 3, bias=False), hardware)
            outputs.append(layer(torch.rand(4, 6, generator=torch.Generator().manual_seed(1))))
        assert torch.allclose(outputs[1], 0.9 * outputs[0], rtol=1e-4, atol=1e-6)
