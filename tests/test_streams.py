"""Random streams: apart by name, and what is measured moves nothing that is trained."""

from itertools import combinations

import pytest
import torch
from torch import nn

import energytl
from energytl.seeding import apart, begin
from energytl.streams import Stream, fold, seed_of


def test_no_two_streams_share_a_seed():
    """Numbers as a run has them; `fold(seed, 2, …)` was that of epoch 2 and of a confirmation."""
    places = [(), *((a,) for a in range(12)), *((a, b) for a in range(12) for b in range(4))]
    found = {(stream, *place): seed_of(stream, 0, *place) for stream in Stream for place in places}
    assert len(set(found.values())) == len(found)


@pytest.mark.parametrize(("one", "other"), [*combinations(list(Stream)[:4], 2)])
def test_reads_of_two_streams_are_uncorrelated(one, other):
    layer = energytl.convert(nn.Linear(1, 4000), seed=0)
    x, drawn = torch.ones(1, 1), []
    for stream in (one, other):
        begin(layer, stream, 0, 1, 0)
        drawn.append(
            layer(x)[0].detach() - layer.stored_weight[:, 0].detach() * layer.weight_range - layer.bias.detach()
        )
    assert abs(float(torch.corrcoef(torch.stack(drawn))[0, 1])) < 5 / 4000**0.5


def test_measuring_apart_moves_no_stream():
    layer = energytl.convert(nn.Linear(2, 2), seed=0)
    x, found = torch.ones(1, 2), []
    for times in (0, 1, 7):
        begin(layer, Stream.TRAINING, 0)
        for _ in range(times):
            with apart(layer, Stream.VALIDATION, 0):
                layer(x)
                torch.rand(3)
        found.append(torch.cat([layer(x).flatten(), torch.rand(2)]))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_seeds_of_a_stream_are_those_of_one_fold():
    assert seed_of(Stream.CHIPS, 1, 2) == fold(seed_of(Stream.CHIPS, 1), 2)
