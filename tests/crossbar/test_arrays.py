"""How a matrix is cut into arrays."""

import pytest

from energytl.crossbar.arrays import Arrays, rows_in_arrays


@pytest.mark.parametrize("rows", [1, 7, 9, 64, 128, 576])
@pytest.mark.parametrize(("channels", "area"), [(1, 1), (300, 1), (16, 9), (3, 49), (64, 9), (2, 500)])
def test_arrays_hold_all_rows_evenly_and_no_more_than_fit(channels, area, rows):
    found = rows_in_arrays(channels, area, rows)
    assert sum(found) == channels * area
    assert max(found) <= rows
    unit = area if area <= rows else 1
    assert max(found) - min(found) in (0, unit)
    assert all(part % unit == 0 for part in found)
    fewest = -(-channels * area // (rows // unit * unit))
    assert len(found) == fewest


@pytest.mark.parametrize("name", ["rows", "columns"])
def test_what_is_no_array_is_refused(name):
    with pytest.raises(ValueError, match=rf"arrays\.{name} is 0"):
        Arrays(**{name: 0})
