"""The hardware of one layer in one frozen record."""

from dataclasses import dataclass
from typing import Literal

from energytl.allowed import Allowed, check
from energytl.analog.mapping import Mapping, OneCell, WeightFormat
from energytl.analog.read import Computation, InputFormat, Moments, ReadScheme, SingleRead
from energytl.crossbar.arrays import Arrays
from energytl.crossbar.cells import Changes
from energytl.crossbar.converter import Converter
from energytl.devices.cell import Cell
from energytl.devices.drift import Drift
from energytl.devices.fluctuation import Fluctuation
from energytl.devices.programming import Stuck, Variation, WriteError
from energytl.devices.sensing import SensingNoise

ROUNDING = 1 + 1e-6
"""A ρ that has been held in single precision may lie so much above the window that it fills."""


@dataclass(frozen=True)
class Hardware:
    """What a network runs on. The default: normal telegraph noise, 5-bit inputs and weights, single reads.

    Attributes:
        fluctuation: how a cell fluctuates.
        law: of which conductance the fluctuation is. `paper`: of ρ·|w| alone, as Wang 2021 counts, so that what holds
            nothing is silent; `cell`: of the whole cell, g_min included, idle ones too.
        cell: voltage, read length and conductance window of a cell.
        mapping: how a weight is laid down in cells.
        weights: how finely weights are rounded.
        inputs: how finely inputs are rounded.
        read: what the hardware does to read.
        sensing_noise: of the cells' resistance and of the amplifiers; None: none.
        arrays: size of the arrays that a layer's matrix is cut into.
        converter: how the partial sums of each array are converted; None: ideal converters, whatever their price.
        computation: how the simulation draws the outcome.
        programming: how cells differ from what was to be written, another way on each chip; None: not at all.
        stuck: shares of cells that stay in one state.
        drift: time since programming, what it does, and what is done about it.
        chip: number of the chip; the same number has the same deviations.
        rho: energy coefficient ρ that every layer starts from: conductance, in µS, of the layer's full range.
    """

    fluctuation: Fluctuation = Fluctuation()
    law: Literal["paper", "cell"] = "cell"
    cell: Cell = Cell()
    mapping: Mapping = OneCell()
    weights: WeightFormat = WeightFormat()
    inputs: InputFormat = InputFormat()
    read: ReadScheme = SingleRead()
    sensing_noise: SensingNoise | None = SensingNoise()
    arrays: Arrays = Arrays()
    converter: Converter | None = None
    computation: Computation = Moments()
    programming: WriteError | None = None
    stuck: Stuck = Stuck()
    drift: Drift = Drift()
    chip: int = 0
    rho: float = 10.0

    def __post_init__(self) -> None:
        """Refuse a ρ that is no energy coefficient, and what does not go together."""
        check(self, "hardware", chip=Allowed(0, 2**63 - 1))
        window = self.cell.largest_rho
        if not 0 < self.rho <= window * ROUNDING:
            raise ValueError(
                f"hardware.rho is {self.rho}; allowed: above 0 up to {window:.4g}, the µS between the cell's "
                "g_min_siemens and g_max_siemens"
            )
        varying = len(self.programming.levels) if isinstance(self.programming, Variation) else 1
        levels = len(self.mapping.cell_values) - 1
        if varying > 1 and varying != levels:
            own = f"has {levels}" if levels > 0 else "has none of its own"
            raise ValueError(
                f"hardware.programming.relative has a number for each of {varying} levels, but {self.mapping} {own}: "
                "give one number, or as many as the mapping's cells have levels"
            )
        if self.converter is not None and self.fluctuation.correlation > 0 and isinstance(self.computation, Moments):
            raise ValueError(
                f"hardware.converter: moments of partial sums are of independent reads, but fluctuation.correlation is "
                f"{self.fluctuation.correlation}: set it to 0, or the computation to Exact or Frozen"
            )
        if self.mapping.cell_values and self.weights.states is not None:
            raise ValueError(f"{self.mapping} has levels of its own: leave out weights.states")
        if not self.rounds and self.weights.range_by != "weights":
            raise ValueError("weights.range_by wants rounded weights: set weights.bits or weights.states")
        if self.weights.columns and not self.rounds:
            raise ValueError("weights.columns wants rounded weights: set weights.bits or weights.states")

    @property
    def idle_siemens(self) -> float:
        """What an empty cell conducts, S, as far as it fluctuates."""
        return self.cell.g_min_siemens if self.law == "cell" else 0.0

    @property
    def read_cells(self) -> Mapping:
        """The mapping with all cells that fluctuate, or that something happens to."""
        return self.mapping.with_idle_cells() if self.law == "cell" or self.changes.of_idle_cells else self.mapping

    @property
    def changes(self) -> Changes:
        """What happens to the cells between the target and the read."""
        return Changes(self.programming, self.stuck, self.drift, self.arrays.wire_ohm)

    @property
    def rounds(self) -> bool:
        """Whether weights are rounded, by their format or by the levels of the mapping."""
        return self.mapping.grid(self.weights) is not None
