"""Comparisons against hand-worked cases, scipy, and simulations of sets that are alike or not."""

from typing import Literal

import numpy as np
import pytest
from scipy import stats

from pipeline.jackknife import group_weights, interval
from pipeline.scoring.compare import LEAST, Comparison, compare
from pipeline.scoring.journal import Row
from pipeline.scoring.prompts import Grouping
from pipeline.study.generators import GeneratorError

Scores = list[float | None]


def rows(scores: Scores) -> list[Row]:
    return [Row("x.png", score) for score in scores]


def compared(
    a: Scores,
    b: Scores,
    labels: tuple[list[str], list[str]] | None = None,
    by: Literal["column", "folder", "name"] = "name",
    error: GeneratorError | None = None,
) -> Comparison:
    """Compare scores, by default in pairs in the order of the lists."""
    labels = labels or ([str(place) for place in range(len(a))], [str(place) for place in range(len(b))])
    column = "prompt" if by == "column" else None
    return compare(rows(a), rows(b), ("A", "B"), Grouping(by, labels, column), error)


def test_pairs_of_equal_names_are_compared_as_pairs() -> None:
    a, b = [1.0, 2.0, 3.0, 4.0], [0.5, 2.5, 2.0, 3.0]
    found = compared(a, b[::-1], (list("abcd"), list("dcba")))
    assert (found.paired, found.images, found.groups, found.means) == (True, (4, 4), (4, 4), (2.5, 2.0))
    assert (found.difference, found.wins, found.left_out) == (pytest.approx(0.5), 0.75, (0, 0))
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(tuple(expected))
    assert found.method == "t interval over 4 pairs of equal names, taking pairs as independent"
    assert (found.conclusion, found.margin) == ("not shown", None)  # four are too few for any


def test_an_image_without_a_score_takes_its_counterpart_along() -> None:
    found = compared([1.0, None, 3.0], [1.0, 2.0, 2.0])
    assert (found.paired, found.images, found.left_out) == (True, (2, 2), (0, 1))
    assert (found.difference, found.wins) == (0.5, 0.75)


def test_prompts_count_alike_however_many_images_they_have() -> None:
    random = np.random.default_rng(0)
    counts = [1, 5, 2, 9, 1, 3, 4]
    first = [(f"p{place}", score) for place, count in enumerate(counts) for score in random.normal(3, 1, count)]
    second = [(f"p{place}", score) for place, count in enumerate(counts[::-1]) for score in random.normal(2, 1, count)]
    labels = [label for label, _ in first], [label for label, _ in second]
    found = compared([score for _, score in first], [score for _, score in second], labels, "column")
    means = [
        np.array([np.mean([score for label, score in side if label == f"p{place}"]) for place in range(7)])
        for side in (first, second)
    ]
    assert (found.paired, found.images, found.groups) == (True, (25, 25), (7, 7))
    assert found.means == pytest.approx([values.mean() for values in means])
    assert (found.low, found.high) == pytest.approx(tuple(stats.ttest_rel(*means).confidence_interval(0.95)))
    assert found.method == "t interval over the 7 prompts of both sets (column prompt)"
    weights = group_weights(np.arange(7))  # the project's jackknife over prompts is the same interval
    estimates = (means[0] - means[1]) @ weights / weights.sum(axis=0)
    assert (found.low, found.high) == pytest.approx(interval(estimates))


def test_prompts_of_one_set_alone_are_left_out() -> None:
    labels = list("aabcdx"), list("abbcdyz")
    found = compared([1.0, 3.0, 2.0, 3.0, 4.0, 9.0], [1.0, 1.0, 2.0, 3.0, 3.0, 0.0, 0.0], labels, "folder")
    assert (found.paired, found.images, found.groups, found.left_out) == (True, (5, 5), (4, 4), (1, 2))
    assert found.difference == pytest.approx(np.mean([1.0, 0.5, 0.0, 1.0]))
    assert found.wins == (3 + 0.5) / 4
    assert found.method == "t interval over the 4 prompts of both sets (a folder each)"


def test_sets_of_other_prompts_are_samples_of_prompts() -> None:
    a, b = [1.0, 2.0, 4.0, 5.0, 5.0], [1.0, 2.0, 0.0]
    found = compared(a, b, (list("ppqrr"), list("xyr")), "column")
    assert (found.paired, found.images, found.groups, found.left_out) == (False, (5, 3), (3, 3), (0, 0))
    welch = stats.ttest_ind([1.5, 4.0, 5.0], b, equal_var=False)
    assert (found.low, found.high) == pytest.approx(tuple(welch.confidence_interval(0.95)))
    assert found.wins == 8 / 9
    assert found.method == (
        "Welch's t interval, or Student's if wider, over 3 and 3 prompts (column prompt), of which 1 are in both sets"
    )


def test_sets_without_prompts_are_samples_of_images() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(3, 1, 12).round(1).tolist(), random.normal(2.5, 0.5, 9).round(1).tolist()
    found = compared([*a, None], b, ([f"a{n}" for n in range(13)], [f"b{n}" for n in range(9)]))
    assert (found.paired, found.images, found.groups) == (False, (12, 9), (12, 9))
    assert found.wins == pytest.approx(stats.mannwhitneyu(a, b).statistic / (12 * 9))
    welch, student = (
        tuple(stats.ttest_ind(a, b, equal_var=equal).confidence_interval(0.95)) for equal in (False, True)
    )
    assert welch[0] > student[0]
    assert (found.low, found.high) == pytest.approx(student)
    assert found.method == (
        "Welch's t interval, or Student's if wider, over 12 and 9 images, taking images as independent, since nothing "
        "tells which are of one prompt (0 names are in both sets)"
    )
    wide = [0.0, 5.0, 2.0]
    found = compared(wide, b, (list("xyz"), [f"b{n}" for n in range(9)]))
    welch = stats.ttest_ind(wide, b, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(tuple(welch))


def test_cases_at_the_edge() -> None:
    same = compared([2.0, 3.0], [2.0, 3.0])
    assert (same.difference, same.low, same.high, same.wins) == (0.0, 0.0, 0.0, 0.5)
    shifted = compared([2.0, 3.0], [1.0, 2.0])
    assert (shifted.low, shifted.high, shifted.wins) == (1.0, 1.0, 1.0)
    alone = compared([2.0], [1.0, 2.5], (["a"], ["b", "c"]))
    assert (alone.low, alone.high, alone.difference, alone.wins) == (None, None, 0.25, 0.5)
    level = compared([2.0] * 6, [1.0] * 7, (list("abcdef"), list("tuvwxyz")))
    assert (level.low, level.high, level.conclusion) == (1.0, 1.0, "better")
    equal = compared([2.0] * 8, [2.0] * 8)
    assert (equal.margin, equal.conclusion) == (0.0, "not shown")
    with pytest.raises(ValueError, match="B has no image with a score"):
        compared([2.0, 1.0], [None])


def test_fewer_than_six_show_nothing() -> None:
    a = [3.0, 3.1, 3.2, 3.1, 3.0, 3.2]
    b = [1.0, 1.2, 1.1, 1.0, 1.2, 1.1]
    assert LEAST == 6
    assert compared(a, b).conclusion == "better"
    assert compared(b, a).conclusion == "worse"
    found = compared(a[:5], b[:5])
    assert (found.conclusion, found.margin) == ("not shown", None)
    assert found.low > 0
    many = [f"{letter}{n}" for letter in "xy" for n in range(6)]
    assert compared(a + a, b[:5], (many, list("abcde"))).conclusion == "not shown"  # on either side
    assert compared(a + a, b + b, (["one"] * 12, ["one"] * 12), "column").groups == (1, 1)  # images of one prompt


def test_a_difference_must_exceed_the_error_of_generators_too() -> None:
    a, b = [3.0, 3.1, 3.2, 3.1, 3.0, 3.2], [2.0, 2.2, 2.1, 2.0, 2.2, 2.1]
    plain = compared(a, b)
    half = (plain.high - plain.low) / 2
    assert plain.margin == pytest.approx(half)
    for value, conclusion in ((0.0, "better"), (0.25, "better"), (0.35, "not shown")):
        found = compared(a, b, error=GeneratorError(value, 6))
        assert found.margin == pytest.approx(np.sqrt(half**2 + 2 * (stats.t.ppf(0.975, 6) * value) ** 2))
        assert (found.conclusion, found.low, found.high) == (conclusion, plain.low, plain.high)
        assert found.generator_error == (value, 6)


# Sets of equal truth: a score is 3, plus its prompt's ease, plus what the prompt is to this set, plus noise.
DRAWS = 2000


def drawn(
    random: np.random.Generator, counts: np.ndarray, ease: np.ndarray, suits: float, shift: float = 0.0
) -> tuple[Scores, list[str]]:
    prompts = np.repeat(np.arange(len(counts)), counts)
    own = random.normal(0, suits, len(counts))
    scores = 3 + shift + (ease + own)[prompts] + random.normal(0, 0.3, len(prompts))
    return scores.tolist(), [f"p{prompt}" for prompt in prompts]


def verdicts(prompts: int, images: str, *, disjoint: bool = False, shift: float = 0.0, draws: int = DRAWS) -> float:
    """Return how often a verdict falls between two sets whose truth differs by `shift`."""
    random = np.random.default_rng(prompts)
    found = 0
    for _ in range(draws):
        counts = [
            np.ones(prompts, int) if images == "one" else np.full(prompts, 4) if images == "four"
            else 1 + random.geometric(0.3, prompts) * random.integers(0, 2, prompts) * 3
            for _ in "ab"
        ]  # fmt: skip
        eases = [random.normal(0, 0.7, prompts) for _ in "ab"]
        first, labels = drawn(random, counts[0], eases[0], 0.3, shift)
        second, others = drawn(random, counts[1], eases[1] if disjoint else eases[0], 0.3)
        others = [f"other {label}" for label in others] if disjoint else others
        found += compared(first, second, (labels, others), "column").conclusion != "not shown"
    return found / draws


LIMIT = 0.05 + 3 * np.sqrt(0.05 * 0.95 / DRAWS)  # better and worse together, with the error of the simulation itself


@pytest.mark.parametrize("images", ["one", "four", "uneven"])
@pytest.mark.parametrize("prompts", [2, 6, 20, 40])
def test_sets_of_equal_truth_are_seldom_told_apart(prompts: int, images: str) -> None:
    assert verdicts(prompts, images) <= LIMIT


@pytest.mark.parametrize("images", ["one", "uneven"])
@pytest.mark.parametrize("prompts", [6, 20])
def test_so_are_sets_of_other_prompts(prompts: int, images: str) -> None:
    assert verdicts(prompts, images, disjoint=True) <= LIMIT


@pytest.mark.parametrize("sizes", [(6, 6), (6, 60), (60, 6), (20, 100)])
def test_so_are_small_and_large_sets_of_skewed_scores(sizes: tuple[int, int]) -> None:
    """Most prompts are easy and a few fail: Welch's interval alone is passed in a third of cases of 6 against 60."""
    random = np.random.default_rng(0)
    names = [f"a{n}" for n in range(sizes[0])], [f"b{n}" for n in range(sizes[1])]
    found = 0
    for _ in range(DRAWS):
        sets = [(4 - 2.5 * (random.random(size) < 0.15) + random.normal(0, 0.05, size)).tolist() for size in sizes]
        found += compared(*sets, names).conclusion != "not shown"
    assert found / DRAWS <= LIMIT


def test_images_of_one_prompt_taken_as_independent_would_be_told_apart_wrongly() -> None:
    """What the grouping is for: on the same draws Welch's test over images is wrong in a third of all cases."""
    random = np.random.default_rng(0)
    wrong = 0
    for _ in range(300):
        sets = [drawn(random, np.full(12, 10), random.normal(0, 0.7, 12), 0.3)[0] for _ in "ab"]
        names = [f"a{n}" for n in range(120)], [f"b{n}" for n in range(120)]
        wrong += compared(*sets, names).conclusion != "not shown"
    assert wrong / 300 > 0.3


def test_a_clear_difference_is_found() -> None:
    assert verdicts(20, "four", shift=0.5, draws=300) > 0.95
    assert verdicts(60, "uneven", shift=0.4, draws=300) > 0.95
    assert verdicts(60, "one", shift=1.0, disjoint=True, draws=300) > 0.95
