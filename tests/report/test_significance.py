"""Resamples and tests against scipy on spelled-out samples, and against cases whose answer is known."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from pipeline.layout import StudyError
from pipeline.report import significance
from pipeline.report.significance import against, bootstrap_p, compare, corrected_t_p, holm, interval, resample, turned


def made(rounds: int = 3, images: int = 90, groups: int = 30, **noise: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predictions of methods that see the MOS through so much noise, and their rows of `Results.runs`."""
    rng = np.random.default_rng(5)
    tables, rows = [], []
    for number in range(rounds):
        mos = rng.normal(3, 1, images).round(1)  # with ties
        shared = rng.normal(0, 1, images)
        for method, level in noise.items():
            predicted = mos + level * shared + 0.05 * (level > 0) * rng.normal(0, 1, images)
            frame = {"method": method, "round": number, "image_id": [f"{k:03d}" for k in range(images)], "mos": mos}
            frame |= {"group": [f"g{(k + number) % groups}" for k in range(images)], "predicted": predicted.round(1)}
            frame |= {"fitted": 3 + 0.5 * (predicted - 3)}
            tables.append(pd.DataFrame(frame).sample(frac=1, random_state=len(tables)))  # order must not matter
            srcc = stats.spearmanr(predicted.round(1), mos).statistic
            rows.append({"method": method, "round": number, "srcc": srcc, "test_images": 90, "train_images": 360})
    return pd.concat(tables, ignore_index=True), pd.DataFrame(rows)


def test_resamples_equal_scipy_on_the_spelled_out_sample() -> None:
    predictions, _ = made(rounds=2, a=0.5, b=1.0)
    found = resample(predictions, resamples=5, seed=3)
    names = np.unique(predictions["group"])
    drawn = np.random.default_rng(3).multinomial(len(names), np.full(len(names), 1 / len(names)), size=5)
    for method in ("a", "b"):
        for k in range(5):
            times = dict(zip(names, drawn[k], strict=True))
            each = []
            for _, rows in predictions[predictions["method"] == method].groupby("round"):
                sample = rows.loc[rows.index.repeat(rows["group"].map(times))]
                error = sample["fitted"] - sample["mos"]
                each.append(
                    [
                        stats.spearmanr(sample["predicted"], sample["mos"]).statistic,
                        stats.pearsonr(sample["fitted"], sample["mos"]).statistic,
                        stats.kendalltau(sample["predicted"], sample["mos"]).statistic,
                        np.sqrt((error**2).mean()),
                    ]
                )
            expected = np.mean(each, axis=0)
            assert [found[method][metric][k] for metric in significance.METRICS] == pytest.approx(expected, abs=1e-6)


def test_an_identical_pair_ties_and_a_shifted_one_wins() -> None:
    predictions, rounds = made(rounds=5, better=0.3, same=0.3, worse=2.0)
    copy = predictions[predictions["method"] == "better"].assign(method="same")
    predictions = pd.concat([predictions[predictions["method"] != "same"], copy])
    rounds.loc[rounds["method"] == "same", "srcc"] = rounds.loc[rounds["method"] == "better", "srcc"].to_numpy()
    pairs = compare(rounds, resample(predictions)).set_index(["first", "second"])
    tie = pairs.loc[("better", "same")]
    assert tie[["difference", "low", "high"]].tolist() == [0, 0, 0]
    assert tie[["p_prompts", "p_rounds", "p_prompts_holm", "p_rounds_holm"]].tolist() == [1, 1, 1, 1]
    assert not tie["over_rounds"]
    assert pairs.loc[("better", "worse"), "over_rounds"]
    outcomes = {("better", "same"): "tie", ("better", "worse"): "win", ("same", "worse"): "win"}
    assert pairs["outcome"].to_dict() == outcomes
    other_way = compare(rounds, resample(predictions), ["worse", "better", "same"])
    assert other_way.iloc[0].to_dict() == pytest.approx(turned(pairs.reset_index().iloc[1].to_dict()))
    assert (other_way["first"][0], other_way["outcome"][0]) == ("worse", "loss")
    seen = against(other_way, "same")
    assert list(seen) == ["worse", "better"]
    assert [(row["first"], row["second"], row["outcome"]) for row in seen.values()] == [
        ("worse", "same", "loss"), ("better", "same", "tie"),
    ]  # fmt: skip


def test_a_win_over_prompts_need_not_hold_over_rounds() -> None:
    predictions, rounds = made(rounds=3, better=0.3, worse=2.0)
    rounds.loc[(rounds["method"] == "worse") & (rounds["round"] == 1), "srcc"] = 0.99  # one training turned out well
    pair = compare(rounds, resample(predictions)).iloc[0]
    assert pair["p_prompts"] < 0.01 < significance.LEVEL < pair["p_rounds"]
    assert (pair["outcome"], pair["over_rounds"]) == ("win", False)


def test_a_single_round_has_the_bootstrap_alone() -> None:
    predictions, rounds = made(rounds=1, better=0.3, worse=2.0)
    pair = compare(rounds, resample(predictions)).iloc[0]
    assert math.isnan(pair["p_rounds"])
    assert pair["p_prompts"] == pair["p_prompts_holm"] == 2 / (significance.RESAMPLES + 1)
    assert (pair["outcome"], pair["over_rounds"]) == ("win", False)


def test_the_t_test_by_hand_and_by_scipy() -> None:
    # mean .02, s = .01; error .01 sqrt(1/3 + 1/4) = .0076376; t = 2.61861 with 2 degrees of freedom
    assert corrected_t_p(np.array([0.01, 0.02, 0.03]), 0.25) == pytest.approx(2 * stats.t.sf(2.61861, 2), abs=1e-6)
    values = np.array([0.3, -0.1, 0.2, 0.4])
    assert corrected_t_p(values, 0.0) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)  # no overlap: the plain one
    assert corrected_t_p(np.zeros(3), 0.25) == 1
    assert corrected_t_p(np.full(3, 0.25), 0.25) == 0


def test_the_bootstrap_p_by_hand() -> None:
    assert bootstrap_p(np.array([1.0, 2.0, 3.0, -1.0])) == 2 * 2 / 5
    assert bootstrap_p(np.array([1.0] * 99)) == 2 / 100
    assert bootstrap_p(np.zeros(10)) == 1
    assert interval(np.append(np.arange(101.0), np.nan)) == pytest.approx((2.5, 97.5))


def test_holm_by_hand() -> None:
    # sorted .005 .01 .03 .04 times 4 3 2 1 = .02 .03 .06 .04, never falling: .02 .03 .06 .06
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.6, 0.7])) == pytest.approx([1, 1])
    assert holm(np.array([])).shape == (0,)


@pytest.mark.parametrize("methods", [1, 2, 7, 12, 20])
def test_there_are_enough_resamples_to_find_a_difference(methods: int) -> None:
    count = significance.enough(methods)
    assert count >= significance.RESAMPLES
    pairs = methods * (methods - 1) // 2
    assert bootstrap_p(np.ones(count)) * pairs <= significance.LEVEL / 2


def test_methods_of_unequal_rounds_are_refused() -> None:
    predictions, rounds = made(rounds=2, a=0.3, b=2.0)
    with pytest.raises(StudyError, match="b lacks a round that another method has: a paired test needs the same"):
        compare(rounds.iloc[:-1], resample(predictions))


def test_the_interval_covers_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of one group share an error; 95 % intervals over groups hold the population's SRCC about that often."""
    monkeypatch.setattr(significance, "KENDALL_RESAMPLES", 1)  # not looked at here
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(120):
        group = np.repeat(np.arange(60), 3)
        mos = rng.normal(0, 1, 60)[group] + rng.normal(0, 0.5, 180)
        predicted = mos + rng.normal(0, 1, 60)[group] + rng.normal(0, 0.5, 180)
        frame = {"method": "m", "round": 0, "image_id": np.arange(180).astype(str), "group": group.astype(str)}
        table = pd.DataFrame(frame | {"mos": mos, "predicted": predicted, "fitted": predicted})
        low, high = interval(resample(table, resamples=200, seed=trial)["m"]["srcc"])
        covered += (
            low <= 6 / math.pi * math.asin(math.sqrt(0.5) / 2) <= high
        )  # Spearman's of a normal pair with rho^2 = .5
    assert 0.86 <= covered / 120 <= 0.99
