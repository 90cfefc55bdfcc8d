"""Every table against a recomputation from predictions.csv alone."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from pipeline.report import tables

METHODS = ("dcmpln", "no_mpa", "shuffled", "handcrafted")


def predictions(root: Path, dataset: str, method: str, folder: str = "round-{}/evaluate") -> list[pd.DataFrame]:
    return [
        pd.read_csv(root / "runs" / dataset / method / folder.format(number) / "predictions.csv") for number in range(3)
    ]


def srcc(tables: list[pd.DataFrame]) -> np.ndarray:
    return np.array([table["predicted"].rank().corr(table["mos"].rank()) for table in tables])


def table(root: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(root / "out" / "tables" / f"{name}.csv", na_values=[""])


@pytest.mark.parametrize("dataset", ["agiqa3k", "demo"])
def test_the_main_table_follows_from_the_predictions(reported: Path, dataset: str) -> None:
    found = table(reported, f"main-{dataset}").set_index("method")
    for method in METHODS:
        tables = predictions(reported, dataset, method)
        lines = [stats.linregress(one["predicted"], one["mos"]) for one in tables]
        fits = zip(tables, lines, strict=True)
        expected = {
            "srcc": srcc(tables),
            "krcc": [stats.kendalltau(one["predicted"], one["mos"]).statistic for one in tables],
            "plcc": [abs(line.rvalue) for line in lines],
            "rmse": [np.sqrt(((t["mos"] - f.intercept - f.slope * t["predicted"]) ** 2).mean()) for t, f in fits],
            "plcc_raw": [one["predicted"].corr(one["mos"]) for one in tables],
            "rmse_calibrated": [np.sqrt(((one["score"] - one["mos"]) ** 2).mean()) for one in tables],
            "mae_calibrated": [(one["score"] - one["mos"]).abs().mean() for one in tables],
        }
        for metric, values in expected.items():
            row = found.loc[method]
            assert row[metric] == pytest.approx(np.mean(values), rel=1e-5)
            assert row[f"{metric}_std"] == pytest.approx(np.std(values, ddof=1), rel=1e-4)
            assert row[f"{metric}_low"] < row[metric] < row[f"{metric}_high"]
        assert "in-house" in found.loc[method, "backbone"] or method == "handcrafted"
    ours = found[found["kind"] != "published"]
    assert list(ours.index) == list(ours["srcc"].sort_values(ascending=False).index)
    assert (found["kind"] == "published").any() == (dataset == "agiqa3k")


def test_the_interval_over_prompts_is_that_of_a_plain_loop(reported: Path) -> None:
    tables = predictions(reported, "demo", "handcrafted")
    names = np.unique(np.concatenate([one["group"] for one in tables]))
    without = np.array([srcc([one[one["group"] != name] for one in tables]).mean() for name in names])
    mean, count = srcc(tables).mean(), len(names)
    error = np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum())
    half = stats.t.ppf(0.975, count - 1) * error / (1 - mean**2)
    expected = np.tanh(np.arctanh(mean) + np.array([-half, half]))
    row = table(reported, "main-demo").set_index("method").loc["handcrafted"]
    assert row[["srcc_low", "srcc_high"]].tolist() == pytest.approx(expected, abs=1e-5)


def test_the_ablation_follows_from_the_predictions(reported: Path) -> None:
    found = table(reported, "ablation-demo").set_index("method")
    assert list(found.index) == ["dcmpln", "no_mpa"]  # the paper's order, without control and baseline
    differences = srcc(predictions(reported, "demo", "no_mpa")) - srcc(predictions(reported, "demo", "dcmpln"))
    row = found.loc["no_mpa"]
    assert row["difference"] == pytest.approx(differences.mean(), abs=1e-6)
    half = stats.t.ppf(0.975, 2) * np.sqrt((1 / 3 + 60 / 200) * differences.var(ddof=1))
    assert row[["rounds_low", "rounds_high"]].tolist() == pytest.approx(
        [differences.mean() - half, differences.mean() + half], rel=1e-4
    )
    tests = table(reported, "tests-demo").set_index(["first", "second"]).loc[("dcmpln", "no_mpa")]
    assert row[["prompts_low", "prompts_high"]].tolist() == pytest.approx([-tests["high"], -tests["low"]])
    assert tests["p_rounds"] == pytest.approx(
        2 * stats.t.sf(abs(differences.mean()) / np.sqrt((1 / 3 + 60 / 200) * differences.var(ddof=1)), 2), rel=1e-4
    )
    cells = re.search(r"^\| no_mpa \| (.*) \|$", (reported / "out/tables/ablation-demo.md").read_text(), re.M).group(1)
    assert cells.startswith("yes | no | yes | yes | ")
    assert f" | {differences.mean():+.3f} | " in cells


def test_the_leak_audit_follows_from_the_predictions(reported: Path) -> None:
    places = {
        ("grouped", "validation"): "round-{}/evaluate",
        ("grouped", "test"): "round-{}/audit",
        ("random", "validation"): "random-{}/evaluate",
        ("random", "test"): "random-{}/audit",
    }
    each = {place: srcc(predictions(reported, "agiqa3k", "dcmpln", folder)) for place, folder in places.items()}
    clean = each[("grouped", "validation")]
    found = table(reported, "audit")
    found = found[found["dataset"] == "agiqa3k"].set_index(["split", "picked_on"])
    for place, values in each.items():
        assert found.loc[place, "srcc"] == pytest.approx(values.mean(), rel=1e-5)
        assert found.loc[place, "srcc_std"] == pytest.approx(values.std(ddof=1), rel=1e-4)
        if values is not clean:
            assert found.loc[place, "worth"] == pytest.approx((values - clean).mean(), abs=1e-6)
            assert found.loc[place, "low"] < found.loc[place, "worth"] < found.loc[place, "high"]
    points = {place: f"{100 * (values - clean).mean():+.1f} points" for place, values in each.items()}
    rows = (reported / "out/tables/audit-agiqa3k-dcmpln.md").read_text().splitlines()
    assert points[("grouped", "test")] in rows[4]
    assert rows[6].split(" | ")[1] == points[("random", "validation")]
    assert f"both: {points[('random', 'test')]}" in rows[6]
    long = [line for line in (reported / "out/tables/audit.md").read_text().splitlines() if line.startswith("| dcmpln")]
    assert [("LEAKS" in line) for line in long] == [False, True, True, True] * 2


def test_generators_and_their_ranking_follow_from_the_predictions(reported: Path) -> None:
    tables = predictions(reported, "demo", "no_mpa")
    means = [one.groupby("generator")[["predicted", "mos"]].mean() for one in tables]
    ranking = np.mean([stats.spearmanr(one["predicted"], one["mos"]).statistic for one in means])
    found = table(reported, "generators-demo")
    found = found[found["method"] == "no_mpa"].set_index("generator")
    assert set(found["ranking_srcc"].round(6)) == {round(ranking, 6)}
    within = [one[one["generator"] == "gan"] for one in tables]
    assert found.loc["gan", "srcc"] == pytest.approx(srcc(within).mean(), rel=1e-5)
    assert found.loc["gan", "mos_mean"] == pytest.approx(np.mean([one["mos"].mean() for one in within]), rel=1e-5)


def test_bins_hold_equally_many_images_in_order() -> None:
    frame = pd.DataFrame({"method": "m", "x": np.arange(20.0)[::-1], "y": np.arange(20.0)[::-1] * 2})
    bins = tables.binned(frame, "x", "y")
    assert bins["n"].tolist() == [2] * 10
    assert bins["x"].tolist() == [0.5 + 2 * k for k in range(10)]
    assert bins["y"].tolist() == [1 + 4 * k for k in range(10)]
    assert bins["error"].tolist() == pytest.approx([1.0] * 10)  # two values 2 apart: s = sqrt(2), over sqrt(2)


def test_the_best_row_leaks_nothing_and_is_no_control() -> None:
    rows = pd.DataFrame(
        {
            "method": list("abcde"), "kind": ["variant", "variant", "control", "baseline", "variant"],
            "leaks": ["", "random split", "", "", ""], "srcc_mean": [0.5, 0.9, 0.8, 0.7, 0.6],
            "validation_srcc_mean": [0.6, 0.9, 0.9, 0.4, np.nan],
        }
    )  # fmt: skip
    assert tables.best_row(rows, by="validation_srcc_mean")["method"] == "a"
    assert tables.best_row(rows)["method"] == "d"
    assert tables.best_row(rows, ["variant"])["method"] == "e"
    assert tables.best_row(rows[1:3]) is None
