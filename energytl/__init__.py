"""energytl: energy-aware, robust neural networks on analog in-memory hardware.

recipe → data → digital network → convert → train → evaluate → cost → result.json and TensorBoard → report

    analog = energytl.convert(net, energytl.Hardware(rho=5.0))
    cost = energytl.estimate(analog, images)
    optimizer = energytl.optim.CTTv2(analog.parameters(), lr=0.1, device=energytl.devices.presets.reram_om())
"""

from energytl.quiet import interrupted_quietly

interrupted_quietly()  # before the imports that take seconds

from energytl import optim
from energytl.analog.configure import analog_layers, configure, reading
from energytl.analog.convert import calibrate, convert, estimate_batch_norm, to_digital
from energytl.analog.hardware import Hardware
from energytl.analog.held import conductances
from energytl.analog.mapping import (
    BitCells,
    BitSlices,
    DifferentialPair,
    Mapping,
    MultilevelCell,
    MultilevelPair,
    OneCell,
    ResetCells,
    WeightFormat,
)
from energytl.analog.programming import program_
from energytl.analog.read import (
    BitSerialRead,
    Exact,
    Frozen,
    InputFormat,
    Moments,
    Noiseless,
    ReadScheme,
    RepeatedRead,
    SingleRead,
)
from energytl.analog.remaining import left_digital, why_digital
from energytl.cost.estimate import Cost, LayerCost, estimate
from energytl.cost.periphery import IsaacConverter, Periphery, WaldenConverter
from energytl.crossbar.arrays import Arrays
from energytl.crossbar.converter import CalibratedRange, Converter, FullRange, GranularRange
from energytl.devices import presets  # noqa: F401  as energytl.devices.presets
from energytl.devices.cell import Cell
from energytl.devices.drift import CmoHfoxRelaxation, Drift, DriftLaw, PcmDrift, RramRelaxation
from energytl.devices.fluctuation import Fluctuation
from energytl.devices.programming import (
    Falcone2025,
    GaussianWrite,
    Milo2021,
    Nandakumar2019,
    Stuck,
    Variation,
    Wan2022,
    WriteError,
)
from energytl.devices.sensing import SensingNoise

__version__ = "0.1.0"

__all__ = [
    "Arrays",
    "BitCells",
    "BitSerialRead",
    "BitSlices",
    "CalibratedRange",
    "Cell",
    "CmoHfoxRelaxation",
    "Converter",
    "Cost",
    "DifferentialPair",
    "Drift",
    "DriftLaw",
    "Exact",
    "Falcone2025",
    "Fluctuation",
    "Frozen",
    "FullRange",
    "GaussianWrite",
    "GranularRange",
    "Hardware",
    "InputFormat",
    "IsaacConverter",
    "LayerCost",
    "Mapping",
    "Milo2021",
    "Moments",
    "MultilevelCell",
    "MultilevelPair",
    "Nandakumar2019",
    "Noiseless",
    "OneCell",
    "PcmDrift",
    "Periphery",
    "ReadScheme",
    "RepeatedRead",
    "ResetCells",
    "RramRelaxation",
    "SensingNoise",
    "SingleRead",
    "Stuck",
    "Variation",
    "WaldenConverter",
    "Wan2022",
    "WeightFormat",
    "WriteError",
    "analog_layers",
    "calibrate",
    "conductances",
    "configure",
    "convert",
    "estimate",
    "estimate_batch_norm",
    "left_digital",
    "optim",
    "program_",
    "reading",
    "to_digital",
    "why_digital",
]
