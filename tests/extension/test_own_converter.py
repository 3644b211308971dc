"""A converter of one's own, with thresholds that are not uniform, by public names alone."""

from dataclasses import dataclass

import torch

import energytl


@dataclass(frozen=True)
class Ternary(energytl.Converter):
    """Three codes: −1, 0 and 1 times the largest step, by thresholds of a fifth of it."""

    def codes(self, steps, generator):
        return self.levels * ((steps > self.levels / 5).float() - (steps < -self.levels / 5).float())


def test_small_and_large_reads_take_its_codes():
    torch.manual_seed(0)
    hardware = energytl.Hardware(converter=Ternary(8, energytl.FullRange()), computation=energytl.Noiseless())
    layer = energytl.convert(torch.nn.Linear(64, 8, bias=False), hardware)
    few, many = torch.rand(8, 64), torch.rand(2**13, 64)  # half a million numbers
    energytl.calibrate(layer, [few])
    with torch.no_grad():
        unit = layer.input_range * layer.weight_range * 64
        for x in (few, many):
            y = layer(x) / unit
            assert set(y.round(decimals=4).unique().tolist()) <= {-1.0, 0.0, 1.0}
            ideal = energytl.to_digital(layer)(x) / unit
            assert (y[ideal.abs() < 0.19] == 0).all()
