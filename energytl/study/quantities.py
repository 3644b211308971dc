"""What a search can aim at or bound: numbers of a result, which of them are better large, and how they are scaled."""

import math
from dataclasses import dataclass

from energytl.results import Result


@dataclass(frozen=True)
class Quantity:
    """One number of a result.

    Attributes:
        key: of result.json.
        label: for tables and axes.
        unit: of the number; empty for plain counts.
        larger_is_better: else smaller is.
        logarithmic: compared by its logarithm, since it spans decades.
    """

    key: str
    label: str
    unit: str = ""
    larger_is_better: bool = False
    logarithmic: bool = True

    def of(self, result: Result) -> float:
        """The number in a result.

        Raises:
            ValueError: if it is not modelled there, or not positive where its logarithm is wanted.
        """
        value = result.get(self.key)
        if value is None:
            raise ValueError(f"{self.key} is not modelled in this recipe, so it cannot be searched or bounded")
        if self.logarithmic and not value > 0:
            raise ValueError(f"{self.key} is {value}: nothing to compare on a logarithmic scale")
        return float(value)

    def loss(self, value: float) -> float:
        """The number as what is to be minimised: its (logarithm's) value, with the sign turned if large is better.

        >>> QUANTITIES["accuracy"].loss(0.9), QUANTITIES["energy_paper"].loss(1000.0)
        (-0.9, 3.0)
        """
        scaled = math.log10(value) if self.logarithmic else value
        return -scaled if self.larger_is_better else scaled


QUANTITIES = {
    "accuracy": Quantity("accuracy_held_out", "accuracy", larger_is_better=True, logarithmic=False),
    "energy_paper": Quantity("energy_paper", "energy (paper units)"),
    "energy_cell": Quantity("energy_cell_j", "cells' energy", "J"),
    "energy_total": Quantity("energy_total_j", "total energy", "J"),
    "latency": Quantity("latency_s", "latency", "s"),
    "cells": Quantity("cells", "cells"),
    "training_energy": Quantity("training_energy_j", "training energy", "J"),
    "training_latency": Quantity("training_latency_s", "training time", "s"),
}
"""By the names that study files use. Accuracy is that of the images held out, by which a search chooses. Energies and
latency are of one image, those of a training of all of it."""
