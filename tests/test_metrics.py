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


def test_the_logistic_fit_recovers_a_rising_logistic() -> None:
    predicted = np.linspace(-3, 5, 120)
    mos = 4.2 / (1 + np.exp(-(predicted - 1.3) / 1.1)) + 0.4
    np.testing.assert_allclose(metrics.fit_logistic(100 * predicted + 7, mos), mos, atol=1e-4)


@pytest.mark.parametrize("count", [30, 300])
def test_scores_that_fall_keep_their_sign(count: int) -> None:
    generator = np.random.default_rng(count)
    mos = generator.normal(3, 1, count)
    predicted = -mos + generator.normal(0, 0.1, count)
    fitted = metrics.fit_logistic(predicted, mos)
    assert fitted == pytest.approx(np.full(count, mos.mean()))
    found = metrics.summary(predicted, fitted, mos)
    assert found["srcc"] < -0.97
    assert found["plcc_logistic"] == found["plcc"] == pytest.approx(stats.pearsonr(predicted, mos).statistic)
    assert found["rmse"] == pytest.approx(mos.std())


@pytest.mark.parametrize("count", [2, 5, 10, 27, 50, 100, 300])
@pytest.mark.parametrize("truth", ["line", "bend", "noise"])
def test_no_number_of_images_makes_the_fit_a_step(count: int, truth: str) -> None:
    """A step maps nearly all scores to one of two values; where the truth is a line, it costs next to nothing."""
    generator, worse = np.random.default_rng(count), []
    for _ in range(12):
        predicted = generator.normal(size=count)
        clean = {"line": predicted, "bend": 3 * expit(1.5 * predicted), "noise": 0 * predicted}[truth]
        mos = clean + generator.normal(0, 0.8, count)
        fitted = metrics.fit_logistic(predicted, mos)
        order = np.argsort(predicted)
        assert (np.diff(fitted[order]) >= -1e-9).all()
        line = stats.linregress(predicted, mos)
        straight = line.intercept + line.slope * predicted
        if line.slope > 0:
            assert metrics.rmse(fitted, mos) <= metrics.rmse(straight, mos) + 1e-6
            # No tenth of a standard deviation of the scores takes a third of the rise or more.
            gaps = np.diff(predicted[order]) / predicted.std()
            rises = np.diff(fitted[order]) / np.ptp(fitted)
            assert (rises[gaps < 0.1] < 1 / 3).all()
        if truth == "line":
            worse.append(metrics.rmse(fitted, clean) ** 2 - metrics.rmse(straight, clean) ** 2)
    if truth == "line":
        assert np.sqrt(0.8**2 + max(0, np.mean(worse))) < 1.02 * 0.8  # of new opinions


def test_a_fit_is_monotonic_and_no_worse_than_a_constant(scores: tuple[np.ndarray, np.ndarray]) -> None:
    predicted, mos = (np.tile(values, 3) for values in scores)
    mapped = metrics.fit_logistic(predicted, mos)
    assert metrics.rmse(mapped, mos) <= mos.std() + 1e-9
    assert (np.diff(mapped[np.argsort(predicted, kind="stable")]) >= -1e-9).all()


def test_the_logistic_fit_is_as_good_as_a_search_over_all_four_parameters() -> None:
    rng = np.random.default_rng(3)
    for slope in (0.5, 1.0, 2.0):  # nearly straight, bent, bent more
        predicted = rng.normal(0, 1, 300)
        mos = 4 * expit(slope * predicted) + rng.normal(0, 0.3, 300)

        def residual(b: np.ndarray, predicted: np.ndarray = predicted, mos: np.ndarray = mos) -> np.ndarray:
            return (b[0] - b[1]) * expit((predicted - b[2]) / abs(b[3])) + b[1] - mos

        free = optimize.least_squares(residual, [mos.max(), mos.min(), 0.0, 1.0], method="lm", max_nfev=4000)
        best = np.sqrt(2 * free.cost / 300)
        assert metrics.rmse(metrics.fit_logistic(predicted, mos), mos) <= best + 1e-7


def test_rmse_by_hand() -> None:
    assert metrics.rmse(np.array([1.0, 2.0]), np.array([4.0, 6.0])) == pytest.approx(np.sqrt(12.5))


def test_summary_survives_perfectly_separated_classes() -> None:
    predicted, mos = np.array([0.0, 0.1, 0.2, 5.0, 5.1, 5.2]), np.array([1.0, 1.0, 1.0, 4.0, 4.0, 4.0])
    found = metrics.summary(predicted, metrics.fit_logistic(predicted, mos), mos)
    assert found["plcc_logistic"] == pytest.approx(1, abs=1e-3)
    assert all(np.isfinite(value) for value in found.values())


def test_the_intervals_equal_a_plain_loop(scores: tuple[np.ndarray, np.ndarray]) -> None:
    predicted, mos = scores
    groups = np.array([f"g{i // 4}" for i in range(40)])[::-1]
    found = metrics.intervals(predicted, mos, groups)
    for name, function in (("srcc", stats.spearmanr), ("plcc", stats.pearsonr)):
        value = function(predicted, mos).statistic
        kept = [groups != group for group in set(groups)]
        without = np.array([function(predicted[rows], mos[rows]).statistic for rows in kept])
        error = np.sqrt(9 / 10 * ((without - without.mean()) ** 2).sum())
        half = stats.t.ppf(0.975, 9) * error / (1 - value**2)  # the derivative of atanh
        expected = np.tanh(np.arctanh(value) + np.array([-half, half]))
        assert (found[f"{name}_low"], found[f"{name}_high"]) == pytest.approx(tuple(expected))


def test_groups_widen_the_interval() -> None:
    """Ten copies of each of 8 images carry no more than 8 images do."""
    generator = np.random.default_rng(0)
    mos = generator.normal(size=8)
    predicted = mos + generator.normal(size=8)
    copies = [np.repeat(values, 10) for values in (predicted, mos)]
    width = {}
    for name, groups in (("group", np.repeat(np.arange(8), 10)), ("image", np.arange(80))):
        found = metrics.intervals(*copies, groups)
        width[name] = found["srcc_high"] - found["srcc_low"]
    assert width["group"] > 2 * width["image"]


@pytest.mark.parametrize(
    ("predicted", "mos", "message"),
    [
        ([], [], "there is no image to compare scores and opinions of"),
        ([1.0, np.nan], [1.0, 2.0], "predicted[1] is not finite"),
    ],
)
def test_refusals_name_the_fault(predicted: list[float], mos: list[float], message: str) -> None:
    with pytest.raises(AgiqaError, match=re.escape(message)):
        metrics.srcc(np.array(predicted), np.array(mos))


@pytest.mark.parametrize(("predicted", "mos"), [([1.0], [1.0]), ([1.0, 2.0], [3.0, 3.0]), ([0.1] * 9, np.arange(9.0))])
def test_what_cannot_correlate_has_no_value(predicted: list[float], mos: list[float]) -> None:
    scores = np.array(predicted), np.array(mos)
    assert all(np.isnan(function(*scores)) for function in (metrics.srcc, metrics.plcc, metrics.krcc))
    fitted = metrics.fit_logistic(*scores)
    assert fitted == pytest.approx(np.full(len(fitted), np.mean(mos)))
    found = metrics.summary(scores[0], fitted, scores[1])
    assert found == {**dict.fromkeys(("srcc", "krcc", "plcc", "plcc_logistic")), "rmse": np.std(mos)}


def test_shapes_that_differ_are_a_fault_of_ours() -> None:
    message = "predicted has shape (2,) and mos (1,): both must be (n,)"
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        metrics.srcc(np.array([1.0, 2.0]), np.array([1.0]))
    assert not isinstance(caught.value, AgiqaError)


def test_equal_scores_give_no_number_that_could_be_selected() -> None:
    for predicted, mos in (
        (np.full(5, 0.5), np.arange(5.0)),
        (np.arange(5.0), np.full(5, 0.5)),
        (np.ones(1), np.ones(1)),
    ):
        found = metrics.correlations("validation", predicted, mos)
        assert sorted(found) == ["validation_krcc", "validation_plcc", "validation_srcc"]
        assert all(np.isnan(value) for value in found.values())
