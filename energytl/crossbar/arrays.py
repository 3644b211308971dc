"""Arrays of finite size: which rows of a layer's matrix lie in which array. Accuracy and cost both ask here."""

from dataclasses import dataclass

from energytl.allowed import COUNT, Allowed, check


@dataclass(frozen=True)
class Arrays:
    """The size of one array of cells.

    Attributes:
        rows: rows of one array; a matrix of more inputs is cut, and the partial sums of each part are converted.
        columns: columns of one array; rows are driven once for each array of columns.
        wire_ohm: resistance of a wire from one cell to the next, Ω (0.35 in aihwkit, up to 3); see `crossbar.wires`.
    """

    rows: int = 128
    columns: int = 128
    wire_ohm: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is no array."""
        check(self, "arrays", rows=COUNT, columns=COUNT, wire_ohm=Allowed(0, 1e6, note="Ω"))


def rows_in_arrays(channels: int, area: int, rows: int) -> tuple[int, ...]:
    """How many rows of a matrix lie in each array, in im2col order (channel, kernel row, kernel column).

    As few arrays as possible, filled as evenly as possible. A channel of a convolution is not cut where a whole one
    fits into an array, so that the arrays' partial sums are those of a grouped convolution.

    Args:
        channels: input channels of the matrix (inputs, of a linear layer).
        area: rows of one channel: elements of the kernel (1, of a linear layer).
        rows: rows of one array.

    Returns:
        Rows of each array, summing to channels·area, the larger ones first.

    >>> rows_in_arrays(300, 1, 128), rows_in_arrays(32, 9, 128), rows_in_arrays(1, 300, 128)
    ((100, 100, 100), (99, 99, 90), (100, 100, 100))
    """
    unit = area if area <= rows else 1
    units = channels * area // unit
    arrays = -(-units // (rows // unit))
    share, more = divmod(units, arrays)
    return tuple(unit * (share + (number < more)) for number in range(arrays))
