"""Means, intervals and differences over the rounds against hand-worked values and simulations."""

import math

import numpy as np
import pandas as pd
import pytest
from made_study import made_runs
from scipy import stats

from pipeline.report.summaries import (
    HABITS,
    generator_ranking,
    leak_worth,
    mean_interval,
    metrics_tree,
    paired_differences,
    summarise,
)


def test_mean_std_median_by_hand() -> None:
    row = summarise(made_runs(dcmpln=[0.5, 0.7, 0.6, 0.8])).iloc[0]
    assert row["rounds"] == 4
    assert row["srcc_mean"] == pytest.approx(0.65)
    assert row["srcc_std"] == pytest.approx(math.sqrt(0.05 / 3))  # deviations .15 .05 .05 .15, squares .05 in all
    assert row["srcc_median"] == pytest.approx(0.65)
    assert row["selected_epoch_mean"] == pytest.approx(3.5)
    assert row["interval"] == "corrected t over rounds"


def test_interval_by_hand() -> None:
    # s = .01; variance of the mean .0001 (1/3 + 40/160) = 5.8333e-5; t(2, .975) = 4.302653
    low, high = mean_interval(np.array([0.69, 0.70, 0.71]), 40 / 160)
    assert (low, high) == (pytest.approx(0.667138, abs=1e-6), pytest.approx(0.732862, abs=1e-6))
    # s^2 = .005; variance of the mean .005 (1/2 + .25) = .00375; t(1, .975) = 12.7062; .95 - 12.7062 x .0612372
    assert mean_interval(np.array([0.9, 1.0]), 0.25) == (pytest.approx(0.171907, abs=1e-5), 1.0)
    assert np.isnan(mean_interval(np.array([0.5]), 0.25)).all()  # a single round has none


def test_interval_covers_the_mean_of_overlapping_splits() -> None:
    # Each round's score is a common part (the shared images) plus its own; plain t intervals cover far too rarely.
    rng = np.random.default_rng(0)
    count, ratio = 5, 0.25
    share = ratio / (1 + ratio)  # correlation of two rounds that Nadeau and Bengio assume: test / (train + test)
    covered = 0
    for _ in range(2000):
        values = math.sqrt(share) * rng.normal() + math.sqrt(1 - share) * rng.normal(size=count)
        low, high = mean_interval(values, ratio, (-math.inf, math.inf))
        covered += low <= 0 <= high
    assert 0.93 < covered / 2000 < 0.97


def test_a_single_round_has_no_std_and_the_interval_over_prompts() -> None:
    summary = summarise(made_runs(dcmpln=[0.6]))
    row = summary.iloc[0]
    assert math.isnan(row["srcc_std"])
    assert (row["srcc_low"], row["srcc_high"]) == (pytest.approx(0.5), pytest.approx(0.65))
    assert row["interval"] == "jackknife over prompt groups"
    assert metrics_tree(summary) == {"demo": {"dcmpln": {"srcc": 0.6, "plcc": 0.6, "krcc": 0.6, "rmse": 0.6}}}


def test_metrics_tree_is_short() -> None:
    tree = metrics_tree(summarise(made_runs(dcmpln=[0.5, 0.7], no_mpa=[0.4, 0.4])))
    assert list(tree["demo"]) == ["dcmpln", "no_mpa"]
    expected = {"srcc": 0.6, "srcc_std": 0.141421, "plcc": 0.6, "krcc": 0.6, "rmse": 0.6}
    assert tree["demo"]["dcmpln"] == expected
    assert tree["demo"]["no_mpa"]["srcc_std"] == 0


def test_paired_differences_by_hand() -> None:
    # Differences -.1, +.2, +.2: mean .1, s = sqrt(.03), half = 4.302653 sqrt(.03 (1/3 + 1/4))
    rounds = made_runs(dcmpln=[0.6, 0.5, 0.4], no_mpa=[0.5, 0.7, 0.6])
    row = paired_differences(rounds.sample(frac=1, random_state=3)).iloc[0]
    assert (row["method"], row["rounds"], row["rounds_better"]) == ("no_mpa", 3, 2)
    assert row["difference_mean"] == pytest.approx(0.1)
    assert (row["difference_min"], row["difference_max"]) == (pytest.approx(-0.1), pytest.approx(0.2))
    assert (row["low"], row["high"]) == (pytest.approx(0.1 - 0.569187, abs=1e-5), pytest.approx(0.669187, abs=1e-5))
    alone = paired_differences(made_runs(dcmpln=[0.6], no_mpa=[0.5]))
    assert alone[["low", "high"]].isna().all(axis=None)
    assert paired_differences(made_runs(no_mpa=[0.5, 0.6])).empty


def test_a_leak_of_any_round_stands_once() -> None:
    rounds = made_runs(dcmpln=[0.5, 0.6, 0.7]).assign(
        leaks=["", "random split", "random split; epoch selected on test"]
    )
    assert summarise(rounds).iloc[0]["leaks"] == "random split; epoch selected on test"


def test_what_a_leak_is_worth_by_hand() -> None:
    # Gains .1, .2, .3 over the clean score of the same round: mean .2, s = .1, half = 4.302653 x .1 sqrt(1/3 + 1/4)
    clean, picked = [0.5, 0.6, 0.4], [0.6, 0.8, 0.7]
    leaks = pd.DataFrame(
        {
            "dataset": "demo", "method": "dcmpln", "round": number, "split": split, "picked_on": subset,
            "leaks": "" if (split, subset) == HABITS[0] else f"{split} {subset}",
            "srcc": picked[number] if (split, subset) == ("grouped", "test") else clean[number],
        }
        for number in range(3)
        for split, subset in HABITS
    )  # fmt: skip
    found = leak_worth(leaks.sample(frac=1, random_state=1), made_runs(dcmpln=clean))
    assert list(zip(found["split"], found["picked_on"], strict=True)) == list(HABITS[1:])
    row = found.iloc[0]
    assert row["leaks"] == "grouped test"
    assert row[["worth", "clean_mean", "srcc_mean", "srcc_std"]].tolist() == pytest.approx([0.2, 0.5, 0.7, 0.1])
    half = stats.t.ppf(0.975, 2) * 0.1 * math.sqrt(1 / 3 + 1 / 4)
    assert row[["low", "high"]].tolist() == pytest.approx([0.2 - half, 0.2 + half])
    assert found["worth"].tolist()[1:] == [0, 0]


def test_generators_are_ranked_as_scipy_ranks_them() -> None:
    table = pd.DataFrame(
        {
            "dataset": "demo", "method": np.repeat(["a", "b"], 8), "round": np.tile(np.repeat([0, 1], 4), 2),
            "generator": list("wxyz") * 4, "mos_mean": [1.0, 2, 3, 4] * 4,
            "predicted_mean": [1.0, 2, 3, 4, 2, 1, 3, 4, *[5.0] * 4, 4, 3, 2, 1],
        }
    )  # fmt: skip
    found = generator_ranking(table).set_index("method")
    second = stats.spearmanr([2, 1, 3, 4], [1, 2, 3, 4]).statistic
    assert found.loc["a", "srcc_mean"] == pytest.approx((1 + second) / 2)
    assert found.loc["a", ["generators", "rounds"]].tolist() == [4, 2]
    assert found.loc["b", "srcc_mean"] == pytest.approx(-1)  # the round of equal means ranks nothing
    two = generator_ranking(table[table["generator"].isin(["w", "x"])])
    assert two["srcc_mean"].isna().all()  # any two generators are in order or not
