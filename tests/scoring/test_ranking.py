"""Places against hand-worked cases: equal scores, bands, chains of neighbours, and the best few."""

import numpy as np

from pipeline.scoring.journal import Row
from pipeline.scoring.ranking import best, rank


def rows(scores: list[float | None], half: float | None = None) -> list[Row]:
    return [
        Row(f"x/{name}.png", score, low=None if None in (half, score) else max(0.0, score - half))
        for name, score in zip("abcdefgh", scores, strict=False)
    ]


def test_places_are_within_groups_and_equal_scores_share_one() -> None:
    images = rows([1.0, 3.0, None, 3.0, 2.0, 5.0])
    found = rank(images, ["p", "p", "p", "p", "p", "q"])
    assert [(one.group, one.order, one.place, one.tie, one.row.image) for one in found] == [
        ("p", 1, 1, True, "x/b.png"), ("p", 1, 1, True, "x/d.png"), ("p", 3, 3, False, "x/e.png"),
        ("p", 4, 4, False, "x/a.png"), ("q", 1, 1, False, "x/f.png"),
    ]  # fmt: skip
    kept, lost = best(rank(images, ["p"] * 6), 2)
    assert [one.row.image for one in kept] == ["x/f.png", "x/b.png", "x/d.png"]
    assert lost == {}
    assert rank([], []) == []


def test_scores_within_the_band_of_the_first_share_its_place() -> None:
    found = rank(rows([3.2, 3.9, 2.9, 3.1, 2.0, 2.1], half=0.8), ["p"] * 6)
    assert [(one.order, one.place, one.tie, one.row.score) for one in found] == [
        (1, 1, True, 3.9), (2, 1, True, 3.2), (3, 1, True, 3.1), (4, 4, True, 2.9), (5, 4, True, 2.1),
        (6, 6, False, 2.0),
    ]  # fmt: skip


def test_a_chain_of_neighbours_does_not_tie_the_best_to_the_worst() -> None:
    found = rank(rows([4.0, 3.5, 3.0, 2.5, 2.0], half=0.5), ["p"] * 5)
    assert [one.place for one in found] == [1, 1, 3, 3, 5]
    assert [one.tie for one in found] == [True, True, True, True, False]


def test_places_do_not_depend_on_the_order_of_the_images() -> None:
    random = np.random.default_rng(0)
    images = rows([4.0, 3.5, 3.4, 2.5, 2.2, 0.3, 0.2], half=0.5)
    expected = rank(images, ["p"] * 7)
    for _ in range(20):
        assert rank([images[index] for index in random.permutation(7)], ["p"] * 7) == expected


def test_the_best_few_name_what_shares_their_places() -> None:
    ranked = rank(rows([3.9, 3.2, 3.1, 1.0, 4.0, 1.0, 3.9], half=0.8), ["p"] * 4 + ["q"] * 3)
    kept, lost = best(ranked, 1)
    assert [(one.group, one.row.score) for one in kept] == [("p", 3.9), ("q", 4.0)]
    assert lost == {"p": 2, "q": 1}
    assert best(ranked, 3)[1] == {}
