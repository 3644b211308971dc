"""What cells hold when they are read: target → programmed → stuck → drifted → behind wires.

Values are (C, O, *rows): C cells a weight, O outputs, in units of the layer's full range, without sign. Every step is
a function of the cells' conductances and of a chip's own random numbers; each has a stream of its own, so that one more
step does not change what the others draw. Gradients pass as if nothing happened.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from energytl.crossbar.arrays import Arrays
from energytl.crossbar.wires import with_wires
from energytl.devices.drift import Drift
from energytl.devices.programming import Scale, Stuck, WriteError


@dataclass(frozen=True)
class Changes:
    """What happens to the cells of a layer.

    Attributes:
        programming: error of the write; None: none.
        stuck: cells that stay as they are.
        drift: time since, and what it does.
        wire_ohm: resistance of a wire from cell to cell, Ω.
    """

    programming: WriteError | None = None
    stuck: Stuck = Stuck()
    drift: Drift = Drift()
    wire_ohm: float = 0.0

    def __bool__(self) -> bool:
        """Whether anything happens."""
        return self.programming is not None or bool(self.stuck) or self.drift.law is not None or self.wire_ohm > 0

    @property
    def of_idle_cells(self) -> bool:
        """Whether anything happens to cells that should hold nothing."""
        written = self.programming is not None and self.programming.of_idle_cells
        return written or bool(self.stuck) or self.drift.law is not None or self.wire_ohm > 0

    def programmed(self, targets: Tensor, scale: Scale, stream: Callable[[int], torch.Generator]) -> Tensor:
        """What cells hold after programming, in units of the full range; shape of targets.

        Args:
            targets: what they should hold.
            scale: of their conductances.
            stream: number of a step → its generator.
        """
        held = targets
        if self.programming is not None:
            held = self.programming.written(held, scale, stream(0))
        if self.stuck:
            held = self.stuck.held(held, scale, stream(1))
        return held

    def aged(self, programmed: Tensor, scale: Scale, stream: Callable[[int], torch.Generator]) -> Tensor:
        """What cells hold at the time of the read; args as those of `programmed`."""
        drift = self.drift
        if drift.law is None:
            return programmed
        siemens = drift.law.at(scale.siemens(programmed), drift.time_s, scale.cell, stream(2))
        return scale.held(siemens)


def behind_wires(values: Tensor, scale: Scale, rows: tuple[int, ...], groups: int, arrays: Arrays) -> Tensor:
    """What cells seem to hold behind the wires of their arrays; shape of values, (C, O, *rows).

    The cells of an output lie in neighbouring columns, its arrays' rows in im2col order; an array holds whole outputs.

    Args:
        values: what the cells hold, in units of the full range.
        scale: of their conductances.
        rows: of each array that a group's matrix is cut into.
        groups: how many matrices the outputs belong to.
        arrays: their size and wires.
    """
    cells, outputs = values.shape[:2]
    matrix = scale.siemens(values).reshape(cells, groups, outputs // groups, -1).permute(1, 3, 2, 0)  # G, K, O, C
    together = max(1, arrays.columns // cells)
    parts = [
        torch.cat(
            [with_wires(block.flatten(2), arrays.wire_ohm).view(block.shape) for block in part.split(together, 2)], 2
        )
        for part in matrix.split(rows, 1)
    ]
    siemens = torch.cat(parts, 1).permute(3, 0, 2, 1).reshape(values.shape)
    return scale.held(siemens)
