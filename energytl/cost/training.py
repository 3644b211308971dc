"""What training on the chip costs: pulses, the reads of forward and backward passes, the reads of the fast array."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace

from energytl.cost.periphery import Periphery

TRAINING_NOT_MODELLED = (
    "the digital unit: integrator, memory of full-precision weights, loss, normalisation",
    "lines that fire without a coincidence",
    "the cells' own share in a column read",
    "digital layers' training",
    "writing the weights onto the arrays before training (MultilevelRefresh and ResetPair count it)",
)
"""What no number of training contains."""


@dataclass(frozen=True)
class Activity:
    """What one layer's arrays did in training, as its optimizer counted it.

    Attributes:
        layer: number of the layer in its network.
        outputs: outputs of all groups together.
        samples: inputs that its arrays were trained with: images times output positions.
        slots: slots of all pulse trains, one after the other; pulses that go to one cell at a time are a slot each.
        pulses: pulses that cells got, of all arrays (expected numbers, where a mini-batch is applied at once).
        column_reads: reads of a column of the fast array.
        pulse_s, pulse_j: length and energy of a pulse, s and J.
        most_writes: writes of the cell that was written most often, for its endurance; 0: not counted.
        groups: arrays of which a column is read at a time.
    """

    layer: int
    outputs: int
    samples: int
    slots: float
    pulses: float
    column_reads: int
    pulse_s: float
    pulse_j: float
    most_writes: int = 0
    groups: int = 1


@dataclass(frozen=True)
class TrainingCost:
    """Cost of a whole training; None stands for "not modelled".

    Assumption: the transposed read of a backward pass costs what the forward read does; the first layer that trains has
    none, nor have those before it. What is left out stands in TRAINING_NOT_MODELLED.

    Attributes:
        images: images trained on.
        pulses: pulses that cells got.
        column_reads: reads of columns of the fast arrays.
        energy_pulses_j: pulses × the device's energy of a pulse.
        energy_forward_j, energy_backward_j: reads of the passes, circuits included.
        energy_column_reads_j: converters and row drivers of the column reads.
        latency_s: passes, pulse trains, column reads and their writes, one after the other.
        most_writes: writes of the cell that was written most often; 0: not counted.
    """

    images: int
    pulses: float
    column_reads: int
    energy_pulses_j: float
    energy_forward_j: float | None
    energy_backward_j: float | None
    energy_column_reads_j: float | None
    latency_s: float
    most_writes: int = 0

    @property
    def energy_j(self) -> float | None:
        """All joules that are modelled; None without a periphery."""
        parts = [getattr(self, field.name) for field in fields(self) if field.name.startswith("energy_")]
        return None if None in parts else math.fsum(parts)

    def of_one(self, runs: int) -> "TrainingCost":
        """The cost of one of several equal networks that trained side by side: its share of pulses and energies."""
        parts = {name: value for name, value in asdict(self).items() if name.startswith("energy_") and value}
        shared = {name: value / runs for name, value in parts.items()}
        return replace(self, pulses=self.pulses / runs, **shared)

    def numbers(self) -> dict[str, float | int | None]:
        """Plain numbers by the keys of result.json."""
        counted = {name: value for name, value in asdict(self).items() if name != "most_writes" or value}
        return {f"training_{name}": value for name, value in counted.items()} | {"training_energy_j": self.energy_j}


def training_cost(
    activities: Iterable[Activity],
    positions: list[int],
    image_energies_j: list[float | None],
    image_latencies_s: list[float],
    periphery: Periphery | None,
) -> TrainingCost:
    """Sum up what the arrays of all layers did.

    Args:
        activities: of the layers that trained on chip.
        positions: output positions of one image in each layer of the network.
        image_energies_j: energy of one image's forward pass in each layer, J, circuits included; None: not modelled.
        image_latencies_s: its time, s.
        periphery: the circuits around the arrays, or None.

    >>> activity = Activity(0, 2, samples=10, slots=20.0, pulses=100.0, column_reads=1, pulse_s=1e-7, pulse_j=1e-12)
    >>> cost = training_cost([activity], [1], [1e-9], [1e-8], None)
    >>> round(cost.energy_pulses_j * 1e12), cost.energy_j, round(cost.latency_s * 1e9)
    (100, None, 2300)
    """
    activities = list(activities)
    images = max((activity.samples // max(1, positions[activity.layer]) for activity in activities), default=0)
    later = 1 + min((activity.layer for activity in activities), default=0)  # from here on errors go back
    forward = [None if energy is None else images * energy for energy in image_energies_j]
    column_reads_j = latency_s = 0.0
    for activity in activities:
        conversion_j = conversion_s = row_driver_j = 0.0
        if periphery:
            conversion_j = periphery.converter.conversion_j() + periphery.shift_add_j
            conversion_s = periphery.columns_per_converter * periphery.converter.conversion_s()
            row_driver_j = periphery.row_driver_j
        column_reads_j += activity.column_reads * (activity.outputs * conversion_j + activity.groups * row_driver_j)
        write_s = 2 * activity.pulse_s  # what rises, then what falls
        latency_s += activity.slots * activity.pulse_s + activity.column_reads * (conversion_s + write_s)
    latency_s += images * (math.fsum(image_latencies_s) + math.fsum(image_latencies_s[later:]))
    return TrainingCost(
        images=images,
        pulses=math.fsum(activity.pulses for activity in activities),
        column_reads=sum(activity.column_reads for activity in activities),
        energy_pulses_j=math.fsum(activity.pulses * activity.pulse_j for activity in activities),
        energy_forward_j=_sum(forward),
        energy_backward_j=_sum(forward[later:]),
        energy_column_reads_j=column_reads_j if periphery else None,
        latency_s=latency_s,
        most_writes=max((activity.most_writes for activity in activities), default=0),
    )


def _sum(values: list[float | None]) -> float | None:
    return None if None in values else math.fsum(value for value in values if value is not None)
