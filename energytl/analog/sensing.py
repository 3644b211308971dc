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

    Var are those of `sums_variances`, with its phases p, arrays t and columns s, of significance σ_s.
    """
    units = array.scheme.conversions(array.inputs)
    significances = array.significances if array.mapping.senses_apart(array.weights) else (1.0,)
    squares = array.weight.new_tensor(significances).square()
    each = sum(unit**2 * sums.sum(0) for unit, sums in zip(units, sums_variances(array), strict=True))
    return torch.tensordot(squares, each, 1)


def sums_variances(array: "Array") -> list[Tensor]:
    """Of the partial sums of each phase of a read that is converted apart, as `_sums_variance` has them."""
    siemens = _siemens(array)
    return [_sums_variance(array, phase, siemens) for phase in range(len(array.scheme.conversions(array.inputs)))]


def _sums_variance(array: "Array", phase: int, siemens: Tensor) -> Tensor:
    """Of the partial sums of a phase, (arrays, S, O), in units of one step of the drive times a full cell, squared.

    (2kT·ΣG·t·Σ_r q_r² + kT·C·q²)/Q²: q_r are the steps of the drive that the charge of a full drive stands for, in each
    of the reads r whose charge is converted in this phase, q those of the whole phase. G counts all cells of a column.

    Args:
        array: the layer's cells.
        phase: number of what is converted apart, among `ReadScheme.conversions`.
        siemens: ΣG, (arrays, S, O).
    """
    assert array.sensing_noise is not None
    noise, cell, scheme = array.sensing_noise, array.cell, array.scheme
    units, charges = scheme.conversions(array.inputs), scheme.charges(array.inputs)
    own = charges[phase : phase + 1] if len(charges) == len(units) else charges
    steps = sum((charge / units[phase]) ** 2 for charge in own)
    full = cell.read_volt * cell.read_s * SIEMENS_PER_RHO  # at ρ = 1
    thermal = noise.thermal_charge_variance(cell.read_s) / full**2 * steps
    amplifier = noise.amplifier_charge_variance / full**2 * scheme.drive_levels(array.inputs) ** 2
    return (thermal * siemens + amplifier) / array.rho**2


def _siemens(array: "Array") -> Tensor:
    """Σ_k Σ_c s_c²·G_kc of what is sensed together: of each array, column that is sensed apart and output (t, S, O)."""
    held = array.cell.g_min_siemens + array.rho * SIEMENS_PER_RHO * array.stored.abs()
    columns = array.mapping.sensed_variances(held, array.weights).flatten(2)
    idle = array.mapping.idle_cells(array.weights) * array.cell.g_min_siemens
    return torch.stack([(rows + idle).sum(-1) for rows in columns.split(array.arrays, -1)])
