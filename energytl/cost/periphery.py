"""The circuits around an array: converters, row drivers, shift-and-add. Energies per event, times per conversion."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

from energytl.allowed import COUNT, Allowed, check
from energytl.crossbar.converter import Converter

NOT_MODELLED = (
    "input buffers, bus and network on chip",
    "digital layers: normalisation, activation, pooling, softmax, products of activations in attention",
    "energy of wires, leakage, clock",
)
"""What no number of energytl contains."""

SILENT_SENSING = "noise of sensing (hardware.sensing_noise is null): thermal, of amplifiers; it bounds ρ from below"
"""What accuracy does not contain without it."""

IDEAL_WIRES = "what wires take from a read (hardware.arrays.wire_ohm is 0)"
"""What accuracy does not contain without their resistance."""

IDEAL_CONVERTERS = "rounding by the converters (hardware.converter is null: accuracy is that of ideal ones)"
"""What accuracy does not contain without converters of its own, however many bits are priced."""

ISAAC_CONVERSION_J = {4: 0.79e-12, 5: 0.99e-12, 6: 1.20e-12, 7: 1.42e-12, 8: 1.667e-12}


class ConverterCost(ABC):
    """What an analog-digital converter at the foot of the columns takes; a frozen record, with its bits among them."""

    bits: int

    @abstractmethod
    def conversion_j(self) -> float:
        """Energy of one conversion, J."""

    @abstractmethod
    def conversion_s(self) -> float:
        """Time of one conversion, s."""


@dataclass(frozen=True)
class IsaacConverter(ConverterCost):
    """The 32 nm successive-approximation converter of ISAAC (Shafiee, ISCA 2016); (bits + 1) ns (NeuroSim).

    >>> IsaacConverter(8).conversion_j()
    1.667e-12
    """

    bits: int = 8

    def __post_init__(self) -> None:
        """Refuse widths without a published energy."""
        check(self, "converter")
        if self.bits not in ISAAC_CONVERSION_J:
            raise ValueError(f"converter.bits is {self.bits}; allowed: 4 to 8 (or use WaldenConverter)")

    def conversion_j(self) -> float:  # noqa: D102
        return ISAAC_CONVERSION_J[self.bits]

    def conversion_s(self) -> float:  # noqa: D102
        return (self.bits + 1) * 1e-9


@dataclass(frozen=True)
class WaldenConverter(ConverterCost):
    """A converter of energy figure-of-merit·2^bits; the default, 25 fJ a step, is the median of Murmann's survey.

    >>> round(WaldenConverter(4).conversion_j() * 1e15)
    400
    """

    bits: int = 8
    step_j: float = 25e-15

    def __post_init__(self) -> None:
        """Refuse what is no converter."""
        check(self, "converter", bits=Allowed(1, 24), step_j=Allowed(0, 1, above=True, note="J"))

    def conversion_j(self) -> float:  # noqa: D102
        return self.step_j * 2.0**self.bits

    def conversion_s(self) -> float:  # noqa: D102
        return (self.bits + 1) * 1e-9


@dataclass(frozen=True)
class Periphery:
    """What stands around the arrays.

    Attributes:
        converter: energy and time of one conversion; its bits are those of `hardware.converter`, if that has any.
        columns_per_converter: columns that take turns at one converter (NeuroSim: 8).
        row_driver_j: energy of driving one row for one read, J (ISAAC: 0.417 pJ).
        shift_add_j: energy of one 16-bit shift-and-add, J (ISAAC: 0.021 pJ), one a conversion.
    """

    converter: ConverterCost = IsaacConverter()
    columns_per_converter: int = 8
    row_driver_j: float = 0.417e-12
    shift_add_j: float = 0.021e-12

    def converter_of(self, converter: Converter | None) -> ConverterCost:
        """The cost of the converter that accuracy knows: of its bits, if it is not an ideal one."""
        return self.converter if converter is None else replace(self.converter, bits=converter.bits)  # type: ignore[type-var]

    def __post_init__(self) -> None:
        """Refuse what is no periphery."""
        drive = dict.fromkeys(("row_driver_j", "shift_add_j"), Allowed(0, 1, note="J"))
        check(self, "periphery", columns_per_converter=COUNT, **drive)
