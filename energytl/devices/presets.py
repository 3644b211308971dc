"""Published devices, each with its source. A preset is a plain record: change a field with dataclasses.replace."""

from energytl.devices.cell import Cell
from energytl.devices.fluctuation import Fluctuation


def weak(correlation: float = 0.0) -> Fluctuation:
    """Half the normal telegraph noise (the factor is our assumption: Wang 2021, fig. 10 gives none)."""
    return Fluctuation(intensity=0.5, correlation=correlation)


def normal(correlation: float = 0.0) -> Fluctuation:
    """ΔG = 0.1662 µS + 0.0015·G (He et al., DAC 2019), saturating at low conductance (Ielmini 2010)."""
    return Fluctuation(correlation=correlation)


def strong(correlation: float = 0.0) -> Fluctuation:
    """Twice the normal telegraph noise (the factor is our assumption: Wang 2021, fig. 10 gives none)."""
    return Fluctuation(intensity=2.0, correlation=correlation)


def mnsim_cell() -> Cell:
    """The cell of MNSIM: 0.15 V, 1 MΩ to 10 kΩ, 3.16 ns a read."""
    return Cell(read_volt=0.15, read_s=3.16e-9, g_min_siemens=1e-6, g_max_siemens=1e-4)
