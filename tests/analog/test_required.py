"""What is asked of an analog network is refused of a digital one, and of one that reads nothing."""

import pytest
import torch
from torch import nn

import energytl
from energytl.analog.configure import unchanging


class Uncalled(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 2)

    def forward(self, x):
        return nn.functional.linear(x, self.a.weight, self.a.bias)


ASKED = {
    "estimate": lambda network: energytl.estimate(network, torch.ones(1, 4)),
    "calibrate": lambda network: energytl.calibrate(network, [torch.ones(1, 4)]),
    "configure": lambda network: energytl.configure(network, rho=2.0),
    "estimate_batch_norm": lambda network: energytl.estimate_batch_norm(network, [torch.ones(1, 4)], 0),
    "unchanging": lambda network: unchanging(network).__enter__(),
}


DIGITAL = [nn.Sequential(nn.Linear(4, 2)), nn.ReLU(), energytl.to_digital(energytl.convert(nn.Linear(4, 2)))]


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("network", DIGITAL)
def test_a_digital_network_is_refused_in_one_line(asked, network):
    with pytest.raises(ValueError, match=f"{type(network).__name__} has no analog layers: convert it first"):
        ASKED[asked](network)


def test_a_network_that_reads_nothing_has_no_cost():
    with pytest.raises(ValueError, match=r"Uncalled does not call its analog layers \(a\): nothing is read"):
        energytl.estimate(energytl.convert(Uncalled()), torch.ones(1, 4))
