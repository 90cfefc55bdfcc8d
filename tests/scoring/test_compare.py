"""Comparisons against hand-worked cases and scipy."""

import numpy as np
import pytest
from scipy import stats

from pipeline.scoring.compare import compare
from pipeline.scoring.journal import Row


def rows(folder: str, scores: list[float | None], names: str = "abcdefghijklmnop") -> list[Row]:
    return [
        Row(f"{folder}/{name}.png", score, None if score is None else score / 5, 9, 9, "bad" if score is None else None)
        for name, score in zip(names, scores, strict=False)
    ]


def test_pairs_of_equal_names_are_compared_as_pairs() -> None:
    a, b = [1.0, 2.0, 3.0, 4.0], [0.5, 2.5, 2.0, 3.0]
    second = [Row(row.image.replace(".png", ".jpg"), row.score) for row in rows("deep/b", b)]  # whatever the suffix
    found = compare(rows("a", a), second[::-1], ("A", "B"))
    assert (found.paired, found.images, found.means) == (True, (4, 4), (2.5, 2.0))
    assert found.difference == pytest.approx(0.5)
    assert found.wins == 0.75
    expected = stats.t.interval(0.95, 3, loc=0.5, scale=np.std([0.5, -0.5, 1, 1], ddof=1) / 2)
    assert (found.low, found.high) == pytest.approx(expected)


def test_a_pair_without_a_score_on_one_side_is_left_out() -> None:
    found = compare(rows("a", [1.0, None, 3.0]), rows("b", [1.0, 2.0, 2.0]), ("A", "B"))
    assert (found.paired, found.images, found.difference, found.wins) == (True, (2, 2), 0.5, 0.75)


def test_other_sets_are_compared_as_samples() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(3, 1, 12).tolist(), generator.normal(2, 0.3, 9).tolist()
    found = compare(rows("a", [*a, None]), rows("b", b), ("A", "B"))
    assert (found.paired, found.images) == (False, (12, 9))
    assert found.wins == pytest.approx(np.mean(np.array(a)[:, None] > np.array(b)))
    se = [np.var(side, ddof=1) / len(side) for side in (a, b)]
    freedom = sum(se) ** 2 / sum(value**2 / (len(side) - 1) for value, side in zip(se, (a, b), strict=True))
    expected = stats.t.interval(0.95, freedom, loc=np.mean(a) - np.mean(b), scale=np.sqrt(sum(se)))
    assert (found.low, found.high) == pytest.approx(expected)


def test_cases_at_the_edge() -> None:
    same = compare(rows("a", [2.0, 3.0]), rows("b", [2.0, 3.0]), ("A", "B"))
    assert (same.difference, same.low, same.high, same.wins) == (0.0, 0.0, 0.0, 0.5)
    shifted = compare(rows("a", [2.0, 3.0]), rows("b", [1.0, 2.0]), ("A", "B"))
    assert (shifted.low, shifted.high, shifted.wins) == (1.0, 1.0, 1.0)
    alone = compare(rows("a", [2.0]), rows("b", [1.0, 2.5]), ("A", "B"))
    assert (alone.low, alone.high, alone.difference, alone.wins) == (None, None, 0.25, 0.5)
    with pytest.raises(ValueError, match="B has no image with a score"):
        compare(rows("a", [2.0, 1.0]), rows("b", [None]), ("A", "B"))
    with pytest.raises(ValueError, match="A has no image with a score whose counterpart has one"):
        compare(rows("a", [2.0]), rows("b", [None]), ("A", "B"))
