"""Which of two sets of images is better, and how surely."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from pipeline.errors import AgiqaError
from pipeline.scoring.journal import Row


@dataclass(frozen=True)
class Comparison:
    """Two sets of images side by side, on the MOS scale.

    Attributes:
        names: What the user calls them.
        images: Scored images of each.
        means: Mean score of each.
        difference: First mean minus second.
        low, high: 95 % interval of the difference; None with fewer than two images on a side.
        wins: How often an image of the first set beats its counterpart of the second, a tie counting half.
        paired: Whether counterparts are files of equal names, else all pairs are compared.
        method: In words, with its assumption.
    """

    names: tuple[str, str]
    images: tuple[int, int]
    means: tuple[float, float]
    difference: float
    low: float | None
    high: float | None
    wins: float
    paired: bool
    method: str


def compare(first: Sequence[Row], second: Sequence[Row], names: tuple[str, str]) -> Comparison:
    """Compare two sets of images by their scores.

    If every image of the one set has its namesake in the other (the same path below the set's folder, whatever the
    suffix), images are compared in pairs, which is far sharper where names stand for prompts.

    Args:
        first: Images of one set; those without a score are left out, in pairs with their counterpart.
        second: Of the other.
        names: What the user calls the sets.

    Raises:
        AgiqaError: If a set has no scored image.

    Source: Welch's t interval, or the t interval of paired differences (scipy.stats); the share of wins of unpaired
        sets is the Mann-Whitney U over the number of pairs.
    """
    keys = _keys(first), _keys(second)
    paired = len(set(keys[0])) == len(keys[0]) and sorted(keys[0]) == sorted(keys[1])
    if paired:
        others = {key: row.score for key, row in zip(keys[1], second, strict=True)}
        pairs = [(row.score, others[key]) for key, row in zip(keys[0], first, strict=True)]
        whole = np.array([pair for pair in pairs if None not in pair], dtype=float).reshape(-1, 2)
        a, b = whole.T
    else:
        a, b = (np.array([row.score for row in side if row.score is not None]) for side in (first, second))
    for name, values in zip(names, (a, b), strict=True):
        if not len(values):
            raise AgiqaError(f"{name} has no image with a score" + (" whose counterpart has one" if paired else ""))
    low = high = None
    varies = np.ptp(a - b) > 0 if paired else np.ptp(a) > 0 or np.ptp(b) > 0
    if not varies and min(len(a), len(b)) > 1:
        low = high = float(a.mean() - b.mean())
    elif min(len(a), len(b)) > 1:
        test = stats.ttest_rel(a, b) if paired else stats.ttest_ind(a, b, equal_var=False)
        low, high = map(float, test.confidence_interval(0.95))
    if paired:
        wins = float(np.mean(a > b) + np.mean(a == b) / 2)
        method = "t interval of the differences of pairs, taking pairs as independent"
    else:
        wins = float(stats.mannwhitneyu(a, b).statistic / (len(a) * len(b)))
        method = "Welch's t interval, taking images as independent"
    means = (float(a.mean()), float(b.mean()))
    return Comparison(names, (len(a), len(b)), means, means[0] - means[1], low, high, wins, paired, method)


def _keys(rows: Sequence[Row]) -> list[str]:
    """Return each image's path below the folder that all have in common, without suffix."""
    paths = [os.path.abspath(row.image) for row in rows]
    base = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.splitext(os.path.relpath(path, base))[0] for path in paths]
