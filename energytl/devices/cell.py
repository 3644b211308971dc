"""The electrical side of one memory cell: the voltage and the length of a read, the conductance window."""

from dataclasses import dataclass

from energytl.allowed import Allowed, check


@dataclass(frozen=True)
class Cell:
    """A resistive memory cell and how it is read.

    Attributes:
        read_volt: read voltage, V (assumption: 0.2 V).
        read_s: length of one read, s: of a full-scale input in a single read and of one bit in a bit-serial
            read (assumption: 10 ns; Wang 2021 has 1 ns on CIFAR-10 and 5 ns on ImageNet).
        g_min_siemens: conductance of an empty cell (assumption: 8 µS).
        g_max_siemens: largest conductance (assumption: 90 µS). ρ up to g_max − g_min, in µS, is inside the window.

    >>> round(Cell().largest_rho)
    82
    """

    read_volt: float = 0.2
    read_s: float = 10e-9
    g_min_siemens: float = 8e-6
    g_max_siemens: float = 90e-6

    def __post_init__(self) -> None:
        """Refuse what is not a cell."""
        volt, second = Allowed(0, 1e3, above=True, note="V"), Allowed(0, 1e3, above=True, note="s")
        siemens = Allowed(0, 1, above=True, below=True, note="siemens, not µS")
        check(self, "cell", read_volt=volt, read_s=second, g_max_siemens=siemens)
        if not 0 <= self.g_min_siemens < self.g_max_siemens:
            raise ValueError(
                f"cell.g_min_siemens is {self.g_min_siemens}; allowed: 0 up to g_max_siemens = {self.g_max_siemens}"
            )

    @property
    def largest_rho(self) -> float:
        """The ρ whose full-range weight just fills the conductance window."""
        return (self.g_max_siemens - self.g_min_siemens) * 1e6
