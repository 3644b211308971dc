"""Published devices, each with its source. A preset is a plain record: change a field with dataclasses.replace."""

from dataclasses import replace

from energytl.devices.cell import Cell
from energytl.devices.fluctuation import Fluctuation
from energytl.devices.pulsed import ExponentialStep, SoftBounds, SoftBoundsReference


def weak(correlation: float = 0.0) -> Fluctuation:
    """Half the normal ΔG, well above 0.17 µS (the factor is our assumption: Wang 2021, fig. 10 gives none)."""
    return _normal_times(0.5, correlation)


def normal(correlation: float = 0.0) -> Fluctuation:
    """ΔG = 0.1662 µS + 0.0015·G (He et al., DAC 2019), saturating at low conductance (Ielmini 2010)."""
    return Fluctuation(correlation=correlation)


def strong(correlation: float = 0.0) -> Fluctuation:
    """Twice the normal ΔG, well above 0.17 µS (the factor is our assumption: Wang 2021, fig. 10 gives none)."""
    return _normal_times(2.0, correlation)


def _normal_times(factor: float, correlation: float) -> Fluctuation:
    """ΔG that many times the normal one above the corner; all saturate so that no weight is read for nothing."""
    own = normal(correlation)
    return replace(own, floor=factor * own.floor, corner_siemens=factor * own.corner_siemens)


def mnsim_cell() -> Cell:
    """The cell of MNSIM: 0.15 V, 1 MΩ to 10 kΩ, 3.16 ns a read."""
    return Cell(read_volt=0.15, read_s=3.16e-9, g_min_siemens=1e-6, g_max_siemens=1e-4)


def ideal(states: int = 1000) -> SoftBounds:
    """Soft bounds at ±1, so many steps of dw_min between them, no spread and no noise."""
    return SoftBounds(dw_min=2 / states)


def reram_om() -> SoftBoundsReference:
    """14 nm ReRAM array of optimised material, about 21 states (Gong et al., IEDM 2022; Athena 2024's devices).

    In units in which the mean range is ±1. 13.48 % of the measured cells are stuck: set `stuck` to have them.
    """
    return SoftBoundsReference(
        dw_min=0.0949,
        dw_min_spread=0.7829,
        log_normal=True,
        up_down_spread=0.01,
        cycle_noise=0.4158,
        write_noise=1.4113,
        upper_spread=0.3499,
        lower_spread=0.5695,
        reference_spread=0.05,
    )


def reram_hfo2() -> SoftBoundsReference:
    """14 nm ReRAM array of baseline HfO2, about 4 states (Gong et al., IEDM 2022).

    In units in which the mean range is ±1. 9.77 % of the measured cells are stuck: set `stuck` to have them.
    """
    return SoftBoundsReference(
        dw_min=0.4622,
        dw_min_spread=0.7125,
        log_normal=True,
        up_down_spread=0.01,
        cycle_noise=0.2174,
        write_noise=0.5841,
        upper_spread=0.4295,
        lower_spread=0.5990,
        reference_spread=0.05,
    )


def reram_soft_bounds() -> SoftBoundsReference:
    """Generic ReRAM of soft bounds, 1,000 states (loosely after Gong et al., Nature Communications 2018)."""
    return SoftBoundsReference(
        dw_min=0.002,
        dw_min_spread=0.3,
        up_down_spread=0.01,
        cycle_noise=3.75,
        write_noise=56.0,
        upper=1.25,
        lower=-0.75,
        upper_spread=0.24,
        lower_spread=0.4,
    )


def reram_exponential() -> ExponentialStep:
    """ReRAM of exponential steps, about 1,500 states (fit of Gong et al., Nature Communications 2018).

    Steps 0.00135 up and 0.0010 down, write noise 0.101 of the range.
    """
    return ExponentialStep(
        dw_min=0.001175,
        dw_min_spread=0.2,
        up_down=0.149,
        up_down_spread=0.05,
        cycle_noise=5.0,
        write_noise=86.2,
        upper_spread=0.3,
        lower_spread=0.3,
    )
