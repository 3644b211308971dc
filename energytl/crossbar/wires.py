"""Wires: the drop of voltage along rows and columns, to first order, as cells of less conductance.

Rows are driven at column 0, columns are held at 0 V and sensed below the last row; every segment between two cells, and
the one before the first or after the last, has the resistance r. Of a drive V_n of each row, cell (n, j) sees

    V_n − r·V_n·Σ_{m≤j} Σ_{k≥m} G_nk − r·Σ_{m≥n} Σ_{i≤m} G_ij·V_i

to first order in r. What a column loses so is linear in the drives, too: of the current of row n, its column's own drop
takes V_n·G_nj·r·Σ_i G_ij·(N − max(i, n)). So all of it is a smaller cell.
"""

from torch import Tensor

LARGEST_DROP = 0.2
"""Share of a cell's current, lost to wires, from which on first order is refused."""


def wire_losses(siemens: Tensor, ohm: float) -> Tensor:
    """The share of each cell's current that wires take, to first order; (…, N rows, M columns), as siemens.

    Args:
        siemens: conductances of the cells of one array, rows from the first to the one beside the sensing end.
        ohm: r, of a segment.

    >>> import torch
    >>> wire_losses(torch.full((2, 2), 1e-3), 10.0)  # 2 and 3 segments of a row, 3 and 2 of a column, 10 mV a volt each
    tensor([[0.0500, 0.0600],
            [0.0400, 0.0500]])
    """
    beyond = siemens.flip(-1).cumsum(-1).flip(-1)  # Σ_{k≥m}
    above = siemens.cumsum(-2)  # Σ_{i≤m}
    return ohm * (beyond.cumsum(-1) + above.flip(-2).cumsum(-2).flip(-2))


def with_wires(siemens: Tensor, ohm: float) -> Tensor:
    """The conductances that cells seem to have behind their wires, G/(1 + loss): first order, and never below 0.

    Args are those of `wire_losses`.

    Raises:
        ValueError: where the largest loss is beyond `LARGEST_DROP`.
    """
    losses = wire_losses(siemens, ohm)
    largest = float(losses.detach().amax())
    if largest > LARGEST_DROP:
        raise ValueError(
            f"arrays.wire_ohm is {ohm:g}: wires take up to {largest:.0%} of a cell's current, and what is calculated "
            f"here holds to {LARGEST_DROP:.0%}; allowed: shorter wires (arrays.rows, arrays.columns), less resistance, "
            "cells that conduct less"
        )
    return siemens / (1 + losses)
