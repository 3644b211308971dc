"""The conductances of a network's cells, as they are held."""

from torch import Tensor, nn

from energytl.analog.configure import required_layers

BEYOND = 1.001
"""How far above the window a conductance may lie by rounding."""


def conductances(analog: nn.Module) -> dict[str, tuple[Tensor, ...]]:
    """Conductances in S of all cells of each layer, array by array, as they are held: with what was missed in writing.

    Args:
        analog: a converted network.

    Returns:
        For each layer, by name, its arrays of rows: (groups, rows, outputs, cells of a weight), idle cells last where
        the mapping lists only the others; rows in im2col order. (`Arrays.columns` cuts outputs.)

    Raises:
        ValueError: for cells that would have to conduct more than the most that the cell's window lets them.

    >>> from energytl import DifferentialPair, Hardware, convert
    >>> found = conductances(convert(nn.Linear(4, 2), Hardware(mapping=DifferentialPair())))
    >>> {name: [tuple(part.shape) for part in parts] for name, parts in found.items()}
    {'': [(1, 4, 2, 2)]}
    """
    found = {}
    for name, layer in required_layers(analog).items():
        groups, rows, outputs = layer.matrix_shape
        siemens = layer.siemens()
        highest = layer.hardware.cell.g_max_siemens
        beyond = int((siemens > highest * BEYOND).sum())
        if beyond:
            raise ValueError(
                f"layer {name or 'network'}: {beyond:,} of {siemens.numel():,} cells conduct more than the {highest:g} "
                "S of hardware.cell.g_max_siemens: lower its rho, or widen the range of its weights"
            )
        matrix = siemens.reshape(len(siemens), groups, outputs, rows).permute(1, 3, 2, 0)
        found[name] = tuple(part.contiguous() for part in matrix.split(layer.arrays, 1))
    return found
