"""What the noise of sensing adds to partial sums and to outputs, in units of weights.

A cell of the full range that is fully driven for one read gives the charge Q = V·ρ·1 µS·t. A variance of the charge of
a column is one of what it stands for, divided by Q²: so weights that are stored at next to nothing are read badly.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from energytl.devices.fluctuation import SIEMENS_PER_RHO

if TYPE_CHECKING:
    from energytl.analog.read import Array


def output_variance(array: "Array") -> Tensor:
    """Of the outputs, Σ_p u_p²·Σ_s σ_s²·Σ_t Var, (O,), in units of one integer input times a full weight, squared.

    Var are those of `sums_variance`, with its phases p, arrays t and columns s, of significance σ_s.
    """
    units = array.scheme.conversions(array.inputs)
    significances = array.significances if _apart(array) else (1.0,)
    squares = array.weight.new_tensor(significances).square()
    each = sum(unit**2 * sums_variance(array, phase).sum(0) for phase, unit in enumerate(units))
    return torch.tensordot(squares, each, 1)


def sums_variance(array: "Array", phase: int) -> Tensor:
    """Of the partial sums of a phase, (arrays, S, O), in units of one step of the drive times a full cell, squared.

    (2kT·ΣG·t·Σ_r q_r² + kT·C·q²)/Q²: q_r are the steps of the drive that the charge of a full drive stands for, in each
    of the reads r whose charge is converted in this phase, q those of the whole phase. G counts all cells of a column.

    Args:
        array: the layer's cells.
        phase: number of what is converted apart, among `ReadScheme.conversions`.
    """
    assert array.sensing_noise is not None
    noise, cell, scheme = array.sensing_noise, array.cell, array.scheme
    units, charges = scheme.conversions(array.inputs), scheme.charges(array.inputs)
    own = charges[phase : phase + 1] if len(charges) == len(units) else charges
    steps = sum((charge / units[phase]) ** 2 for charge in own)
    full = cell.read_volt * cell.read_s * SIEMENS_PER_RHO  # at ρ = 1
    thermal = noise.thermal_charge_variance(cell.read_s) / full**2 * steps
    amplifier = noise.amplifier_charge_variance / full**2 * scheme.drive_levels(array.inputs) ** 2
    return (thermal * _siemens(array) + amplifier) / array.rho**2


def _siemens(array: "Array") -> Tensor:
    """Σ_k Σ_c s_c²·G_kc of what is sensed together: of each array, column that is sensed apart and output (t, S, O)."""
    held = array.cell.g_min_siemens + array.rho * SIEMENS_PER_RHO * array.stored.abs()
    columns = array.mapping.sensed_variances(held, array.weights).flatten(2)
    idle = array.mapping.idle_cells(array.weights) * array.cell.g_min_siemens
    return torch.stack([(rows + idle).sum(-1) for rows in columns.split(array.arrays, -1)])


def _apart(array: "Array") -> bool:
    return array.mapping.conversions_per_output(array.weights) == len(array.significances)
