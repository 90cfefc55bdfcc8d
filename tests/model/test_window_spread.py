"""Which few windows stand for an image: every grid up to nine by nine, and every number of windows."""

import itertools
from collections import Counter

import numpy as np
import pytest

from pipeline.model.windows import spread


def grid(height: int, width: int) -> list[tuple[int, int]]:
    return [(10 * row, 7 * column) for row in range(height) for column in range(width)]


@pytest.mark.parametrize(("height", "width"), list(itertools.product(range(1, 10), repeat=2)))
def test_rows_and_columns_are_covered_as_evenly_as_can_be(height: int, width: int) -> None:
    origins = grid(height, width)
    for count in range(1, height * width + 2):
        found = spread(origins, count)
        assert found == sorted(set(found)) == spread(origins, count)
        assert set(found) <= set(origins)
        assert len(found) == min(count, len(origins))
        for axis, length in ((0, height), (1, width)):
            each = Counter(origin[axis] for origin in found)
            assert len(each) == min(count, length)
            assert max(each.values()) - min(each.values()) <= 1
            places = sorted(each)  # evenly spaced: gaps, and the margins at both ends, differ by one step at most
            assert np.ptp(np.diff(places)) <= (10, 7)[axis] if len(places) > 1 else True


@pytest.mark.parametrize("side", range(3, 10))
def test_no_square_is_sampled_along_its_diagonal(side: int) -> None:
    for count in range(3, 2 * side):
        rows, columns = np.array(spread(grid(side, side), count)).T
        assert abs(np.corrcoef(rows, columns)[0, 1]) < 0.85


def test_five_of_a_square_are_a_knights_moves() -> None:
    marks = [["." for _ in range(5)] for _ in range(5)]
    for row, column in spread(grid(5, 5), 5):
        marks[row // 10][column // 7] = "x"
    assert ["".join(line) for line in marks] == ["...x.", "x....", "..x..", "....x", ".x..."]


def test_one_is_the_middle_and_enough_are_all() -> None:
    assert spread(grid(5, 3), 1) == [(20, 7)]
    assert spread(grid(4, 6), 24) == spread(grid(4, 6), 99) == grid(4, 6)
    assert spread(grid(1, 25), 5) == [(0, 7 * column) for column in (2, 7, 12, 17, 22)]
