"""The jackknife against scipy on spelled-out samples, and against populations whose correlation is known."""

import math

import numpy as np
import pytest
from scipy import stats

from pipeline import jackknife
from pipeline.jackknife import CORRELATION, POSITIVE, error, group_weights, interval, p_value


def test_weights_leave_one_group_out_each() -> None:
    assert group_weights(np.array(["b", "a", "b"])).T.tolist() == [[1, 1, 1], [1, 0, 1], [0, 1, 0]]


def test_many_groups_are_left_out_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jackknife, "MOST_BLOCKS", 3)
    weights = group_weights(np.array(list("abcdea")))
    assert weights[:, 1:].tolist() == [[0, 1, 1], [1, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1], [0, 1, 1]]


def test_the_error_of_a_mean_is_the_known_one() -> None:
    """Of a mean of single values, the jackknife gives s / sqrt(n) exactly, and Student's interval and test."""
    values = np.random.default_rng(0).normal(0.4, 1, 12)
    estimates = np.array([values.mean(), *(np.delete(values, k).mean() for k in range(12))])
    assert error(estimates) == pytest.approx(stats.sem(values))
    assert interval(estimates) == pytest.approx(stats.t.interval(0.95, 11, values.mean(), stats.sem(values)))
    assert p_value(estimates) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


def test_an_interval_stays_within_its_scale() -> None:
    # sd of .9, .98 with G = 2: sqrt(1/2 * 2 * .04^2) = .04; t(1) = 12.706
    estimates = np.array([0.94, 0.9, 0.98])
    half = 12.706204736 * 0.04
    assert interval(estimates) == pytest.approx((0.94 - half, 0.94 + half))
    z = half / (1 - 0.94**2)
    expected = math.tanh(math.atanh(0.94) - z), math.tanh(math.atanh(0.94) + z)
    assert interval(estimates, CORRELATION) == pytest.approx(expected)
    assert interval(estimates, POSITIVE) == pytest.approx((0.94 * math.exp(-half / 0.94), 0.94 * math.exp(half / 0.94)))
    assert interval(np.ones(4), CORRELATION) == (1, 1)


def test_p_and_interval_agree() -> None:
    rng = np.random.default_rng(2)
    for _ in range(200):
        estimates = np.append(0.02, 0.02 + rng.normal(0, 0.002, 20) * rng.uniform(0.5, 2))
        low, high = interval(estimates)
        assert (p_value(estimates) < 0.05) == (not low <= 0 <= high)
    assert p_value(np.zeros(5)) == 1
    assert p_value(np.full(5, 0.1)) == 0


@pytest.mark.parametrize("estimates", [[0.5, 0.4], [math.nan, 0.1, 0.2], [0.5, math.nan, 0.4, 0.5]])
def test_what_has_no_error_has_no_interval(estimates: list[float]) -> None:
    assert all(math.isnan(limit) for limit in interval(np.array(estimates), CORRELATION))
    assert math.isnan(p_value(np.array(estimates)))


def test_weighted_correlations_equal_scipy_on_the_spelled_out_sample() -> None:
    rng = np.random.default_rng(3)
    x, y = (rng.integers(0, 9, 40).astype(float) for _ in range(2))  # with ties
    weights = rng.integers(0, 4, (40, 6)).astype(float)
    ranks = (jackknife.weighted_ranks(values, weights) for values in (x, y))
    found = (
        jackknife.weighted_correlation(*ranks, weights),
        jackknife.weighted_correlation(x[:, None], y[:, None], weights),
        jackknife.weighted_kendall(x, y, weights),
    )
    for values, function in zip(found, (stats.spearmanr, stats.pearsonr, stats.kendalltau), strict=True):
        for k, value in enumerate(values):
            spelled = [np.repeat(side, weights[:, k].astype(int)) for side in (x, y)]
            assert value == pytest.approx(function(*spelled).statistic, abs=1e-6)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_no_spread_means_the_same_on_any_scale(scale: float) -> None:
    y, weights = np.arange(4.0)[:, None], np.ones((4, 1))
    assert np.isnan(jackknife.weighted_correlation(np.full((4, 1), 0.1 * scale), y, weights)).all()
    assert jackknife.weighted_correlation(y * scale + scale, y, weights) == pytest.approx(1)


@pytest.mark.parametrize("groups", [20, 58])
def test_intervals_cover_the_truth(groups: int) -> None:
    """Prompts of one to sixteen images that share half their variance; two scores that are equally good.

    The same studies gave percentile intervals of 300 resamples .905 to .943 at 58 groups, and BCa ones .89 to .92.
    """
    rng, trials = np.random.default_rng(groups), 300
    truth = 6 / math.pi * math.asin(0.6 / 2)  # Spearman's of a normal pair with Pearson's 0.6
    covered = np.zeros(2)
    for _ in range(trials):
        sizes = np.minimum(rng.geometric(1 / 4, groups), 16)
        group = np.repeat(np.arange(groups), sizes)

        def normal(group: np.ndarray = group) -> np.ndarray:
            return math.sqrt(0.5) * rng.normal(size=groups)[group] + math.sqrt(0.5) * rng.normal(size=len(group))

        mos, shared, weights = normal(), normal(), group_weights(group)
        ranks, estimates = jackknife.weighted_ranks(mos, weights), []
        for _ in range(2):
            score = 0.6 * mos + 0.8 * (math.sqrt(0.7) * shared + math.sqrt(0.3) * normal())
            estimates.append(jackknife.weighted_correlation(jackknife.weighted_ranks(score, weights), ranks, weights))
        limits = interval(estimates[0], CORRELATION), interval(estimates[0] - estimates[1])
        covered += [low <= value <= high for (low, high), value in zip(limits, (truth, 0), strict=True)]
    assert (covered / trials >= 0.935).all(), covered / trials
