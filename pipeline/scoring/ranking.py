"""Which images of a group are the best, and which of them the model cannot tell apart."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from pipeline.scoring.journal import Row


@dataclass(frozen=True)
class Ranked:
    """An image's place in its group.

    Attributes:
        group: The folder, or the value of a CSV's column.
        order: From 1, the best, by score alone; images of equal scores share it.
        place: From 1, shared by images whose scores lie within the band of the first of them.
        tie: Whether another image shares the place.
        row: The image and its score.
    """

    group: str
    order: int
    place: int
    tie: bool
    row: Row


def rank(rows: Sequence[Row], groups: Sequence[str]) -> list[Ranked]:
    """Return the scored images, group by group in the order of their first image, best first.

    The best image opens place 1. Whichever comes next by score shares the place while its score is not below the low
    end of the band of the image that opened it; the first that is opens the next place, numbered by its order. So a
    chain of neighbours, each within the band of the one before, does not tie the best to the worst. Without a band only
    equal scores share a place.

    Args:
        rows: Images; those without a score are left to whoever reports errors.
        groups: Each image's group.
    """
    members: dict[str, list[Row]] = {}
    for row, group in zip(rows, groups, strict=True):
        if row.score is not None:
            members.setdefault(group, []).append(row)
    found = []
    for group, images in members.items():
        orders = stats.rankdata([-row.score for row in images], method="min").astype(int)
        best_first = [int(index) for index in np.argsort(orders, kind="stable")]
        places = []
        least = np.inf  # the score below which the next place opens
        for index in best_first:
            row = images[index]
            if row.score < least:
                place, least = int(orders[index]), row.score if row.low is None else row.low
            places.append(place)
        for index, place in zip(best_first, places, strict=True):
            found.append(Ranked(group, int(orders[index]), place, places.count(place) > 1, images[index]))
    return found


def best(ranked: Sequence[Ranked], top: int) -> tuple[list[Ranked], dict[str, int]]:
    """Return the first `top` of each group by score, with all whose score equals that of the last, and what is lost.

    Args:
        ranked: From `rank`.
        top: From 1.

    Returns:
        Those; and how many others of each group share a place with one of them, for groups where any does.
    """
    kept = [one for one in ranked if one.order <= top]
    shown = {(one.group, one.place) for one in kept}
    lost: dict[str, int] = {}
    for one in ranked:
        if one.order > top and (one.group, one.place) in shown:
            lost[one.group] = lost.get(one.group, 0) + 1
    return kept, lost
