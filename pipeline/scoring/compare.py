"""Which of two sets of images is better, and how surely."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import stdtrit

from pipeline.errors import AgiqaError
from pipeline.scoring.journal import Row
from pipeline.scoring.prompts import Grouping
from pipeline.study.generators import GeneratorError

# Groups of each set below which nothing is called shown. Of five differences all of one sign come about in one case of
# sixteen by chance, so with fewer than six only the assumption of a normal distribution could carry a verdict at 5 %.
LEAST = 6
WIDER = "Welch's t interval, or Student's if wider,"


@dataclass(frozen=True)
class Comparison:
    """Two sets of images side by side, on the MOS scale.

    A group is a prompt with all its images, a pair of equal names, or an image, as `method` says.

    Attributes:
        names: What the user calls them.
        images: Scored images of each that are compared.
        left_out: Scored images of each whose prompt, or namesake, the other set lacks; 0 of sets that are not paired.
        groups: Of each set; of paired sets the same groups.
        means: Mean over its groups of the mean score in each.
        difference: First mean minus second.
        low, high: 95 % interval of the difference over groups; None with fewer than two on a side.
        generator_error: How far off a generator's mean typically is; None if nobody measured it.
        margin: What a difference must exceed to be shown; None with fewer than LEAST groups on a side.
        conclusion: Of the first set against the second.
        wins: How often a group of the first set beats its counterpart of the second, a tie counting half.
        paired: Whether counterparts are groups of one label, else all pairs are compared.
        grouped_by: See `Grouping.by`.
        method: In words, with its assumption.
    """

    names: tuple[str, str]
    images: tuple[int, int]
    left_out: tuple[int, int]
    groups: tuple[int, int]
    means: tuple[float, float]
    difference: float
    low: float | None
    high: float | None
    generator_error: GeneratorError | None
    margin: float | None
    conclusion: Literal["better", "worse", "not shown"]
    wins: float
    paired: bool
    grouped_by: Literal["column", "folder", "name"]
    method: str


def compare(
    first: Sequence[Row],
    second: Sequence[Row],
    names: tuple[str, str],
    grouping: Grouping,
    generator_error: GeneratorError | None = None,
) -> Comparison:
    """Compare two sets of images by their scores.

    Scores are averaged within groups, and groups count alike, however many images each has. If more than half of each
    set's groups are in the other, these are compared in pairs and the rest is left out; else the sets are taken as
    samples, which errs on the side of caution where some groups are in both.

    A difference is shown if it exceeds the root of the sum of squares of two halves of 95 % intervals: that over
    groups, and the reach of the model's error of a generator's mean, if that is known. So two sets of equal truth are
    told apart in one case of twenty at most, better and worse together (tests/scoring/test_compare.py simulates it).
    What can pass it: few prompts with one image of the one set and many of the other, where nearly all of the variation
    is within prompts and skewed; of 6 prompts with 1 and 16 images, one case of twelve.

    Args:
        first: Images of one set; those without a score are left out.
        second: Of the other.
        names: What the user calls the sets.
        grouping: Which images are of one prompt.
        generator_error: Of the model.

    Raises:
        AgiqaError: If a set has no scored image.

    Source: Student's t interval of paired differences, or the wider of Student's and Welch's ("The generalization of
        Student's problem when several different population variances are involved", Biometrika 34, 1947), of means of
        clusters, as in Cameron and Miller, 2015, cited by `pipeline.jackknife`, whose interval over equal groups is the
        paired one; the share of wins of unpaired sets is the Mann-Whitney U over the number of pairs.
    """
    sides = [_group_means(rows, labels) for rows, labels in zip((first, second), grouping.labels, strict=True)]
    for name, (scores, _) in zip(names, sides, strict=True):
        if not scores:
            raise AgiqaError(f"{name} has no image with a score")
    common = [label for label in sides[0][0] if label in sides[1][0]]
    paired = 2 * len(common) > max(len(scores) for scores, _ in sides)
    kept = [common if paired else list(scores) for scores, _ in sides]
    a, b = (np.array([scores[label] for label in labels]) for labels, (scores, _) in zip(kept, sides, strict=True))
    images = [sum(counts[label] for label in labels) for labels, (_, counts) in zip(kept, sides, strict=True)]
    left_out = [sum(counts.values()) - used for used, (_, counts) in zip(images, sides, strict=True)]
    if paired:
        half = _half([a - b])
        wins = float(np.mean(a > b) + np.mean(a == b) / 2)
    else:
        half = _half([a, b])
        ordered = np.sort(b)
        beaten = np.searchsorted(ordered, a, "left") + np.searchsorted(ordered, a, "right")
        wins = float(beaten.mean() / (2 * len(b)))
    means = (float(a.mean()), float(b.mean()))
    difference = means[0] - means[1]
    margin = None
    if half is not None and min(len(a), len(b)) >= LEAST:
        margin = float(np.hypot(half, 0.0 if generator_error is None else generator_error.reach()))
    shown = margin is not None and abs(difference) > margin
    return Comparison(
        names=names,
        images=(images[0], images[1]),
        left_out=(left_out[0], left_out[1]),
        groups=(len(a), len(b)),
        means=means,
        difference=difference,
        low=None if half is None else difference - half,
        high=None if half is None else difference + half,
        generator_error=generator_error,
        margin=margin,
        conclusion=("better" if difference > 0 else "worse") if shown else "not shown",
        wins=wins,
        paired=paired,
        grouped_by=grouping.by,
        method=_method(grouping, paired, len(a), len(b), len(common)),
    )


def _group_means(rows: Sequence[Row], labels: Sequence[str]) -> tuple[dict[str, float], dict[str, int]]:
    """Return the mean score and the number of scored images of each group, in the order of their first image."""
    members: dict[str, list[float]] = {}
    for row, label in zip(rows, labels, strict=True):
        if row.score is not None:
            members.setdefault(label, []).append(row.score)
    means = {label: sum(scores) / len(scores) for label, scores in members.items()}
    return means, {label: len(scores) for label, scores in members.items()}


def _half(samples: Sequence[np.ndarray]) -> float | None:
    """Return half the 95 % interval of a mean, or of a difference of two; None with fewer than two values in one.

    Of a difference it is the wider of Welch's and Student's with one variance for both. Where a small sample of skewed
    scores meets a large one, Welch's takes chance for a difference in up to a third of all cases; where variances
    differ, Student's does; the wider of both does neither.
    """
    if min(map(len, samples)) < 2:
        return None
    sizes = np.array([len(values) for values in samples])
    variances = np.array([np.var(values, ddof=1) if np.ptp(values) > 0 else 0.0 for values in samples])
    if not variances.any():
        return 0.0
    shares = variances / sizes
    freedoms = [shares.sum() ** 2 / (shares**2 / (sizes - 1)).sum(), (sizes - 1).sum()]
    pooled = (sizes - 1) @ variances / freedoms[1] * (1 / sizes).sum()
    return float(max(stdtrit(freedoms, 0.975) * np.sqrt([shares.sum(), pooled])))


def _method(grouping: Grouping, paired: bool, first: int, second: int, common: int) -> str:
    if grouping.by == "name":
        if paired:
            return f"t interval over {first} pairs of equal names, taking pairs as independent"
        return (
            f"{WIDER} over {first} and {second} images, taking images as independent, since nothing tells which "
            f"are of one prompt ({common} names are in both sets)"
        )
    told = f"column {grouping.column}" if grouping.by == "column" else "a folder each"
    if paired:
        return f"t interval over the {first} prompts of both sets ({told})"
    return f"{WIDER} over {first} and {second} prompts ({told}), of which {common} are in both sets"
