"""Wires to first order, against the nodal analysis of the whole circuit and against another simulator."""

import json

import numpy as np
import pytest
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.linalg import spsolve

from energytl import Arrays, DifferentialPair, Hardware, Noiseless, WeightFormat, convert
from energytl.crossbar.wires import wire_losses, with_wires


def nodal(siemens, volts, ohm):
    """Column currents of the circuit: rows driven at column 0, columns held at 0 V below the last row."""
    rows, columns = siemens.shape
    wire = 1 / ohm
    row_node = np.arange(rows * columns).reshape(rows, columns)
    column_node = row_node + rows * columns
    edges = [
        (row_node[:, 1:], row_node[:, :-1], wire),
        (column_node[1:], column_node[:-1], wire),
        (row_node, column_node, siemens),
    ]
    i, j, g = [], [], []
    for one, other, conductance in edges:
        one, other, conductance = (np.broadcast_to(x, one.shape).ravel() for x in (one, other, conductance))
        i += [one, other, one, other]
        j += [one, other, other, one]
        g += [conductance, conductance, -conductance, -conductance]
    for node in (row_node[:, 0], column_node[-1]):  # to the source, to ground
        i, j, g = [*i, node], [*j, node], [*g, np.full(node.shape, wire)]
    size = 2 * rows * columns
    matrix = coo_matrix((np.concatenate(g), (np.concatenate(i), np.concatenate(j))), (size, size)).tocsc()
    source = np.zeros(size)
    source[row_node[:, 0]] = wire * volts
    return spsolve(matrix, source)[column_node[-1]] * wire


@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (128, 128), (128, 32), (3, 1)])
@pytest.mark.parametrize("largest", [0.01, 0.05, 0.15])
def test_currents_are_those_of_the_circuit(rows, columns, largest):
    rng = np.random.default_rng(0)
    siemens = rng.uniform(1e-6, 50e-6, (rows, columns))
    ohm = largest / float(wire_losses(torch.from_numpy(siemens), 1.0).max())
    volts = 0.2 * rng.uniform(0, 1, rows) * (rng.uniform(size=rows) < 0.7)
    exact, ideal = nodal(siemens, volts, ohm), volts @ siemens
    found = volts @ with_wires(torch.from_numpy(siemens), ohm).numpy()
    within = 0.01 if largest <= 0.05 else 0.02
    assert np.abs(found - exact).max() < within * np.abs(ideal).max()
    assert largest < 0.05 or np.abs(ideal - exact).max() > 2 * np.abs(found - exact).max()


def test_the_losses_of_a_few_cells_by_hand():
    siemens = torch.tensor([[1.0, 2.0], [3.0, 4.0]]) * 1e-3
    row = torch.tensor([[3.0, 3 + 2], [7, 7 + 4]])
    column = torch.tensor([[1.0 + 4, 2 + 6], [4, 6]])
    assert torch.allclose(wire_losses(siemens, 10.0), (row + column) * 1e-2)


def test_wires_that_take_too_much_are_refused_with_the_largest_loss():
    with pytest.raises(ValueError, match=r"arrays\.wire_ohm is 50: wires take up to 826% of a cell's current"):
        with_wires(torch.full((128, 128), 10e-6), 50.0)


def test_currents_are_those_of_another_simulator(reference):
    within, compared = {0.05: 0.01, 0.2: 0.03}, 0
    for array in json.loads((reference / "ir_drop.json").read_text("utf-8"))["arrays"]:
        siemens = torch.tensor(array["G_uS"], dtype=torch.float64) * 1e-6
        for result in array["results"]:
            ohm, volts = result["R_row"], torch.tensor(array["inputs_V"][result["input"]], dtype=torch.float64)
            loss = float(wire_losses(siemens, ohm).max())
            if ohm != result["R_col"] or loss > 0.2:
                continue
            found, ideal = volts @ with_wires(siemens, ohm) * 1e6, volts @ siemens * 1e6
            limit = next(error for largest, error in within.items() if loss <= largest)
            error = (found - torch.tensor(result["I_uA"], dtype=torch.float64)).abs().max()
            assert float(error / ideal.max()) < limit
            compared += 1
    assert compared >= 4


@pytest.mark.parametrize("groups", [1, 2])
def test_a_layers_arrays_lose_what_wires_take_from_each(groups):
    """Array by array and by hand, from the conductances that the layer says it holds."""
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(4, 6, 3, groups=groups, bias=False)
    hardware = {"rho": 40.0, "mapping": DifferentialPair(), "computation": Noiseless(), "weights": WeightFormat(6)}
    size = {"rows": 20, "columns": 4}
    ideal, wired = (
        convert(conv, Hardware(arrays=Arrays(**size, wire_ohm=ohm), **hardware), seed=0) for ohm in (0.0, 30.0)
    )
    siemens, rows = ideal.siemens().double(), ideal.arrays
    expected = torch.zeros(6, 4 // groups * 9, dtype=torch.float64)
    together = {
        1: [(0, 2), (2, 4), (4, 6)],
        2: [(0, 2), (2, 3), (3, 5), (5, 6)],
    }  # an array holds two outputs of a group
    for first, last in together[groups]:
        start = 0
        for count in rows:
            block = siemens.flatten(2)[:, first:last, start : start + count]  # cells, outputs, rows
            seen = with_wires(block.permute(2, 1, 0).flatten(1), 30.0).view(count, last - first, 2)
            expected[first:last, start : start + count] = ((seen[..., 0] - seen[..., 1]) / 40e-6).T
            start += count
    x = torch.rand(3, 4, 5, 5)
    for layer in (ideal, wired):
        layer.input_range = 1.0
    found = wired._held(wired.weight).weight / wired.weight_range
    assert torch.allclose(found.flatten(1).double(), expected, atol=1e-5)
    assert float((wired(x) - ideal(x)).detach().norm() / ideal(x).detach().norm()) > 0.01
