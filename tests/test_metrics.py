"""Metrics against scipy, plain loops and hand-worked numbers."""

import itertools
import re

import numpy as np
import pytest
from scipy import optimize, stats
from scipy.special import expit

from pipeline import metrics
from pipeline.errors import AgiqaError


@pytest.fixture
def scores() -> tuple[np.ndarray, np.ndarray]:
    """Return 40 scores and MOS with ties in both."""
    generator = np.random.default_rng(3)
    mos = generator.integers(0, 12, 40) / 2.4
    return np.round(mos + generator.normal(0, 1.2, 40), 1), mos


def test_correlations_by_hand() -> None:
    predicted, mos = np.array([1.0, 2.0, 3.0, 5.0]), np.array([1.0, 3.0, 2.0, 4.0])
    assert metrics.srcc(predicted, mos) == pytest.approx(1 - 6 * 2 / (4 * 15))  # one swap of neighbours
    assert metrics.krcc(predicted, mos) == pytest.approx((5 - 1) / 6)
    assert metrics.plcc(predicted, mos) == pytest.approx(5.5 / np.sqrt(8.75 * 5))


def test_kendall_equals_counting_pairs(scores: tuple[np.ndarray, np.ndarray]) -> None:
    predicted, mos = scores
    signs = [
        (np.sign(predicted[i] - predicted[j]), np.sign(mos[i] - mos[j]))
        for i, j in itertools.combinations(range(40), 2)
    ]
    total = sum(a * b for a, b in signs)
    expected = total / np.sqrt(sum(a != 0 for a, _ in signs) * sum(b != 0 for _, b in signs))
    assert metrics.krcc(predicted, mos) == pytest.approx(expected)


def test_spearman_is_pearson_of_average_ranks(scores: tuple[np.ndarray, np.ndarray]) -> None:
    ranks = [np.array([(x < v).sum() + ((x == v).sum() + 1) / 2 for v in x]) for x in scores]
    assert metrics.srcc(*scores) == pytest.approx(np.corrcoef(*ranks)[0, 1])


def test_the_logistic_fit_recovers_a_logistic_and_either_direction() -> None:
    predicted = np.linspace(-3, 5, 60)
    mos = 4.2 / (1 + np.exp(-(predicted - 1.3) / 0.8)) + 0.4
    for direction in (1, -1):
        np.testing.assert_allclose(metrics.fit_logistic(direction * 100 * predicted + 7, mos), mos, atol=1e-4)


def test_the_logistic_fit_is_no_worse_than_a_constant_and_monotonic(scores: tuple[np.ndarray, np.ndarray]) -> None:
    predicted, mos = scores
    mapped = metrics.fit_logistic(predicted, mos)
    assert metrics.rmse(mapped, mos) <= mos.std() + 1e-9
    steps = np.diff(mapped[np.argsort(predicted, kind="stable")])
    assert (steps >= -1e-9).all() or (steps <= 1e-9).all()


def test_the_logistic_fit_is_as_good_as_a_search_over_all_four_parameters() -> None:
    rng = np.random.default_rng(3)
    for slope in (0.5, 3.0, -3.0):  # nearly straight, bent, falling
        predicted = rng.normal(0, 1, 300)
        mos = 4 * expit(slope * predicted) + rng.normal(0, 0.3, 300)

        def residual(b: np.ndarray, predicted: np.ndarray = predicted, mos: np.ndarray = mos) -> np.ndarray:
            return (b[0] - b[1]) * expit((predicted - b[2]) / abs(b[3])) + b[1] - mos

        free = optimize.least_squares(residual, [mos.max(), mos.min(), 0.0, np.sign(slope)], method="lm", max_nfev=4000)
        falling = optimize.least_squares(residual, [mos.min(), mos.max(), 0.0, 1.0], method="lm", max_nfev=4000)
        best = np.sqrt(2 * min(free.cost, falling.cost) / 300)
        assert metrics.rmse(metrics.fit_logistic(predicted, mos), mos) <= best + 1e-7


def test_rmse_by_hand() -> None:
    assert metrics.rmse(np.array([1.0, 2.0]), np.array([4.0, 6.0])) == pytest.approx(np.sqrt(12.5))


def test_summary_survives_perfectly_separated_classes() -> None:
    predicted, mos = np.array([0.0, 0.1, 0.2, 5.0, 5.1, 5.2]), np.array([1.0, 1.0, 1.0, 4.0, 4.0, 4.0])
    found = metrics.summary(predicted, metrics.fit_logistic(predicted, mos), mos)
    assert found["plcc_logistic"] == pytest.approx(1, abs=1e-3)
    assert all(np.isfinite(value) for value in found.values())


def test_the_bootstrap_equals_a_plain_loop(scores: tuple[np.ndarray, np.ndarray]) -> None:
    predicted, mos = scores
    groups = np.array([f"g{i // 4}" for i in range(40)])[::-1]
    found = metrics.bootstrap(predicted, mos, groups, resamples=60, seed=9)
    generator, names, drawn = np.random.default_rng(9), sorted(set(groups)), []
    for _ in range(60):
        rows = np.concatenate([np.flatnonzero(groups == names[pick]) for pick in generator.integers(10, size=10)])
        drawn.append(stats.spearmanr(predicted[rows], mos[rows]).statistic)
    assert (found["srcc_low"], found["srcc_high"]) == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])))


def test_groups_widen_the_interval() -> None:
    """Ten copies of each of 8 images carry no more than 8 images do."""
    generator = np.random.default_rng(0)
    mos = generator.normal(size=8)
    predicted = mos + generator.normal(size=8)
    copies = [np.repeat(values, 10) for values in (predicted, mos)]
    width = {}
    for name, groups in (("group", np.repeat(np.arange(8), 10)), ("image", np.arange(80))):
        found = metrics.bootstrap(*copies, groups, resamples=300, seed=1)
        width[name] = found["srcc_high"] - found["srcc_low"]
    assert width["group"] > 2 * width["image"]


@pytest.mark.parametrize(
    ("predicted", "mos", "message"),
    [
        ([1.0], [1.0], "a correlation needs at least 2 images, got 1"),
        ([1.0, np.nan], [1.0, 2.0], "predicted[1] is not finite"),
        ([1.0, 2.0], [3.0, 3.0], "mos is 3 for all 2 images: a correlation needs a spread"),
    ],
)
def test_refusals_name_the_fault(predicted: list[float], mos: list[float], message: str) -> None:
    with pytest.raises(AgiqaError, match=re.escape(message)):
        metrics.srcc(np.array(predicted), np.array(mos))


def test_shapes_that_differ_are_a_fault_of_ours() -> None:
    message = "predicted has shape (2,) and mos (1,): both must be (n,)"
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        metrics.srcc(np.array([1.0, 2.0]), np.array([1.0]))
    assert not isinstance(caught.value, AgiqaError)


def test_equal_scores_give_no_number_that_could_be_selected() -> None:
    found = metrics.correlations("validation", np.full(5, 0.5), np.arange(5.0))
    assert sorted(found) == ["validation_krcc", "validation_plcc", "validation_srcc"]
    assert all(np.isnan(value) for value in found.values())
