"""Noise of sensing a column's charge: of the cells' resistance, and of the amplifier that integrates their currents.

Unlike the cells' fluctuation it does not shrink with the conductance that a weight is stored at, so it says how little
a cell may conduct and still be read.
"""

from dataclasses import dataclass

from scipy.constants import Boltzmann

from energytl.allowed import Allowed, check


@dataclass(frozen=True)
class SensingNoise:
    """Noise that a read has beside the cells' fluctuation.

    Attributes:
        temperature_kelvin: of cells and amplifier.
        capacitor_farad: on which the charge of a read is integrated; its kT/C noise is that of every conversion. The
            default holds, at 1 V, what 128 cells of 40 µS give in 10 ns at 0.2 V when half of them are driven. 0: none.

    >>> round(SensingNoise().amplifier_charge_variance ** 0.5 / 1.602e-19)  # in electrons
    898
    """

    temperature_kelvin: float = 300.0
    capacitor_farad: float = 5e-12

    def __post_init__(self) -> None:
        """Refuse what is no noise."""
        kelvin, farad = Allowed(0, 1000, above=True, note="K"), Allowed(0, 1e-3, note="F, not pF")
        check(self, "sensing_noise", temperature_kelvin=kelvin, capacitor_farad=farad)

    def thermal_charge_variance(self, read_s: float) -> float:
        """Variance of the charge of a read, C² for each S on the line, driven or not, by thermal noise: 2kT·t.

        The current's variance is 4kT·G·f (Nyquist 1928) in the bandwidth f = 1/(2t) of an integration over t.

        Args:
            read_s: t.
        """
        return 2 * Boltzmann * self.temperature_kelvin * read_s

    @property
    def amplifier_charge_variance(self) -> float:
        """Variance of the charge of a conversion, C², by the capacitor's switch: kT·C."""
        return Boltzmann * self.temperature_kelvin * self.capacitor_farad
