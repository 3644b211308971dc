"""The hardware of one layer in one frozen record."""

import math
from dataclasses import dataclass

from energytl.analog.mapping import Mapping, OneCell, WeightFormat
from energytl.analog.read import Computation, InputFormat, Moments, ReadScheme, SingleRead
from energytl.devices.cell import Cell
from energytl.devices.fluctuation import Fluctuation


@dataclass(frozen=True)
class Hardware:
    """What a network runs on. The default: normal telegraph noise, 5-bit inputs and weights, single reads.

    Attributes:
        fluctuation: how a cell fluctuates.
        cell: voltage, read length and conductance window of a cell.
        mapping: how a weight is laid down in cells.
        weights: how finely weights are rounded.
        inputs: how finely inputs are rounded.
        read: what the hardware does to read.
        computation: how the simulation draws the outcome.
        rho: energy coefficient ρ that every layer starts from: conductance, in µS, of the layer's full range.
    """

    fluctuation: Fluctuation = Fluctuation()
    cell: Cell = Cell()
    mapping: Mapping = OneCell()
    weights: WeightFormat = WeightFormat()
    inputs: InputFormat = InputFormat()
    read: ReadScheme = SingleRead()
    computation: Computation = Moments()
    rho: float = 10.0

    def __post_init__(self) -> None:
        """Refuse a ρ that is no energy coefficient."""
        if not 0 < self.rho < math.inf:
            raise ValueError(f"hardware.rho is {self.rho}; allowed: above 0 (µS of a full-range weight)")
