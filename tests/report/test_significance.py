"""Estimates and tests against scipy on spelled-out samples, and against cases whose answer is known."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from pipeline import jackknife
from pipeline.layout import StudyError
from pipeline.report import significance
from pipeline.report.significance import against, compare, corrected_t_p, holm, leave_out, turned


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
            frame |= {"fitted": 3 + 0.5 * (predicted - 3), "score": 3 + 0.8 * (predicted - 3)}
            tables.append(pd.DataFrame(frame).sample(frac=1, random_state=len(tables)))  # order must not matter
            srcc = stats.spearmanr(predicted.round(1), mos).statistic
            rows.append({"method": method, "round": number, "srcc": srcc, "test_images": 90, "train_images": 360})
    return pd.concat(tables, ignore_index=True), pd.DataFrame(rows)


def test_estimates_equal_scipy_without_each_group() -> None:
    predictions, _ = made(rounds=2, a=0.5, b=1.0)
    found = leave_out(predictions)
    for method in ("a", "b"):
        mine = predictions[predictions["method"] == method]
        for k, name in enumerate([None, *np.unique(predictions["group"])]):
            each = []
            for _, sample in mine[mine["group"] != name].groupby("round"):
                error, off = sample["fitted"] - sample["mos"], sample["score"] - sample["mos"]
                each.append(
                    [
                        stats.spearmanr(sample["predicted"], sample["mos"]).statistic,
                        stats.kendalltau(sample["predicted"], sample["mos"]).statistic,
                        stats.pearsonr(sample["predicted"], sample["mos"]).statistic,
                        stats.pearsonr(sample["fitted"], sample["mos"]).statistic,
                        np.sqrt((error**2).mean()),
                        np.sqrt((off**2).mean()),
                        off.abs().mean(),
                    ]
                )
            expected = np.mean(each, axis=0)
            assert [found[method][metric][k] for metric in significance.METRICS] == pytest.approx(expected, abs=1e-6)


def test_a_flat_fit_leaves_the_raw_plcc() -> None:
    predictions, _ = made(rounds=1, a=0.5)
    predictions = predictions.assign(predicted=-predictions["predicted"], fitted=3.0)
    raw = stats.pearsonr(predictions["predicted"], predictions["mos"]).statistic
    assert leave_out(predictions)["a"]["plcc"][0] == pytest.approx(raw)
    assert raw < 0


def test_an_identical_pair_ties_and_a_shifted_one_wins() -> None:
    predictions, rounds = made(rounds=5, better=0.3, same=0.3, worse=2.0)
    copy = predictions[predictions["method"] == "better"].assign(method="same")
    predictions = pd.concat([predictions[predictions["method"] != "same"], copy])
    rounds.loc[rounds["method"] == "same", "srcc"] = rounds.loc[rounds["method"] == "better", "srcc"].to_numpy()
    pairs = compare(rounds, leave_out(predictions)).set_index(["first", "second"])
    tie = pairs.loc[("better", "same")]
    assert tie[["difference", "low", "high"]].tolist() == [0, 0, 0]
    assert tie[["p_prompts", "p_rounds", "p_prompts_holm", "p_rounds_holm"]].tolist() == [1, 1, 1, 1]
    outcomes = {("better", "same"): "tie", ("better", "worse"): "win", ("same", "worse"): "win"}
    assert pairs["outcome"].to_dict() == outcomes
    other_way = compare(rounds, leave_out(predictions), ["worse", "better", "same"])
    assert other_way.iloc[0].to_dict() == pytest.approx(turned(pairs.reset_index().iloc[1].to_dict()))
    assert (other_way["first"][0], other_way["outcome"][0]) == ("worse", "loss")
    seen = against(other_way, "same")
    assert list(seen) == ["worse", "better"]
    assert [(row["first"], row["second"], row["outcome"]) for row in seen.values()] == [
        ("worse", "same", "loss"), ("better", "same", "tie"),
    ]  # fmt: skip


def test_what_holds_over_prompts_alone_is_no_win() -> None:
    predictions, rounds = made(rounds=3, better=0.3, worse=2.0)
    rounds.loc[(rounds["method"] == "worse") & (rounds["round"] == 1), "srcc"] = 0.99  # one training turned out well
    estimates = leave_out(predictions)
    pair = compare(rounds, estimates).iloc[0]
    assert pair["p_prompts"] < 0.01 < significance.LEVEL < pair["p_rounds"]
    assert pair["outcome"] == ("ahead" if pair["difference"] > 0 else "behind")
    seen = turned(pair.to_dict())
    assert {pair["outcome"], seen["outcome"]} == {"ahead", "behind"}


def test_a_single_round_never_says_more_than_on_these_trainings() -> None:
    predictions, rounds = made(rounds=1, better=0.3, worse=2.0)
    pair = compare(rounds, leave_out(predictions)).iloc[0]
    assert math.isnan(pair["p_rounds"])
    assert pair["p_prompts"] == pair["p_prompts_holm"] < 0.001
    assert pair["outcome"] == "ahead"


def test_a_round_without_a_score_is_not_tested_and_costs_the_others_nothing() -> None:
    predictions, rounds = made(rounds=3, better=0.3, worse=2.0, flat=1.0)
    gone = (predictions["method"] == "flat") & (predictions["round"] == 1)
    predictions.loc[gone, ["predicted", "fitted"]] = 0.5
    rounds.loc[(rounds["method"] == "flat") & (rounds["round"] == 1), "srcc"] = math.nan
    pairs = compare(rounds, leave_out(predictions)).set_index(["first", "second"])
    row = pairs.loc[("better", "flat")]
    assert row["outcome"] == "none"
    assert row[["low", "high", "p_prompts", "p_rounds", "p_prompts_holm", "p_rounds_holm"]].isna().all()
    each = rounds.pivot(index="round", columns="method", values="srcc")
    assert row["difference"] == pytest.approx((each["better"] - each["flat"]).dropna().mean())
    assert pairs.loc[("better", "worse"), "outcome"] in ("win", "ahead")
    assert pairs.loc[("better", "worse"), "p_prompts_holm"] == pairs.loc[("better", "worse"), "p_prompts"]


@pytest.mark.slow
def test_methods_that_differ_by_their_trainings_alone_seldom_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are trained anew in each of three rounds, now better, now worse: a winner would be chance's."""
    monkeypatch.setattr(
        jackknife, "weighted_kendall", lambda x, y, weights: np.zeros(weights.shape[1])
    )  # not looked at
    rng, trials, size = np.random.default_rng(4), 150, 58 * 3
    found = []
    for _ in range(trials):
        tables, rows = [], []
        for number in range(3):
            names = rng.choice(290, 58, replace=False).repeat(3)  # the rounds' prompts overlap
            mos = rng.normal(0, 0.7, 58).repeat(3) + rng.normal(0, 0.7, size)
            shared = rng.normal(size=size)
            for method in ("a", "b"):
                noise = math.exp(rng.normal(0, 0.3)) * (0.8 * shared + 0.6 * rng.normal(size=size))
                frame = {"method": method, "round": number, "image_id": np.arange(size).astype(str), "mos": mos}
                predicted = mos + noise
                frame |= {"group": names.astype(str), "predicted": predicted, "fitted": predicted, "score": predicted}
                tables.append(pd.DataFrame(frame))
                srcc = stats.spearmanr(predicted, mos).statistic
                rows.append({"method": method, "round": number, "srcc": srcc, "test_images": 58, "train_images": 232})
        found.append(compare(pd.DataFrame(rows), leave_out(pd.concat(tables)))["outcome"][0])
    share = pd.Series(found).value_counts(normalize=True)
    assert share.get("win", 0) + share.get("loss", 0) <= 0.05
    assert share.get("ahead", 0) + share.get("behind", 0) > 0.1  # which over prompts alone would have been called wins


def test_the_t_test_by_hand_and_by_scipy() -> None:
    # mean .02, s = .01; error .01 sqrt(1/3 + 1/4) = .0076376; t = 2.61861 with 2 degrees of freedom
    assert corrected_t_p(np.array([0.01, 0.02, 0.03]), 0.25) == pytest.approx(2 * stats.t.sf(2.61861, 2), abs=1e-6)
    values = np.array([0.3, -0.1, 0.2, 0.4])
    assert corrected_t_p(values, 0.0) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)  # no overlap: the plain one
    assert corrected_t_p(np.zeros(3), 0.25) == 1
    assert corrected_t_p(np.full(3, 0.25), 0.25) == 0


def test_holm_by_hand() -> None:
    # sorted .005 .01 .03 .04 times 4 3 2 1 = .02 .03 .06 .04, never falling: .02 .03 .06 .06
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.6, 0.7])) == pytest.approx([1, 1])
    assert holm(np.array([0.04, np.nan, 0.03])) == pytest.approx([0.06, np.nan, 0.06], nan_ok=True)
    assert holm(np.array([])).shape == (0,)


def test_methods_of_unequal_rounds_are_refused() -> None:
    predictions, rounds = made(rounds=2, a=0.3, b=2.0)
    with pytest.raises(StudyError, match="b lacks a round that another method has: a paired test needs the same"):
        compare(rounds.iloc[:-1], leave_out(predictions))
