"""What a score is worth, against pandas on predictions.csv alone; and studies that do not know it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_study import make_study

from pipeline.report import worth
from pipeline.report.report import write_report
from pipeline.report.results import Results, read_results
from pipeline.report.summaries import summarise

METHODS = ("dcmpln", "no_mpa", "shuffled", "handcrafted")
KEYS = ("rmse_calibrated", "mae_calibrated", "coverage", "band_width", "unfamiliar")


def predictions(root: Path, method: str) -> list[pd.DataFrame]:
    return [pd.read_csv(root / f"runs/demo/{method}/round-{r}/evaluate/predictions.csv") for r in range(3)]


def by_hand(table: pd.DataFrame) -> list[float]:
    """The numbers of KEYS."""
    off = (table["score"] - table["mos"]).abs()
    inside = (table["mos"] >= table["low"]) & (table["mos"] <= table["high"])
    width = (table["high"] - table["low"]).mean()
    return [np.sqrt((off**2).mean()), off.mean(), inside.mean(), width, table["unfamiliar"].mean()]


def cells(root: Path, name: str) -> dict[str, list[str]]:
    lines = [line for line in (root / f"out/tables/{name}.md").read_text().splitlines() if line.startswith("| ")][2:]
    rows = [[cell.strip() for cell in line.removeprefix("|").removesuffix("|").split(" | ")] for line in lines]
    return {row[0]: row[1:] for row in rows}


def read(root: Path, methods: tuple[str, ...] = METHODS) -> Results:
    folders = (root / "runs", root / "data/splits", root / "data/prepared")
    return read_results(["demo"], methods, (0, 1, 2), *folders)


def test_the_table_of_methods_follows_from_the_predictions(reported: Path) -> None:
    found = pd.read_csv(reported / "out/tables/score-demo.csv").set_index("method")
    shown = cells(reported, "score-demo")
    for method in METHODS:
        each = np.array([by_hand(table) for table in predictions(reported, method)])
        mean, std = each.mean(axis=0), each.std(axis=0, ddof=1)
        assert found.loc[method, list(KEYS)].tolist() == pytest.approx(mean, rel=1e-5)
        assert found.loc[method, [f"{key}_std" for key in KEYS]].tolist() == pytest.approx(std, abs=1e-5)
        assert shown[method][0] == f"{mean[0]:.3f} ± {std[0]:.3f}"
        assert shown[method][2] == f"{100 * mean[2]:.1f} ± {100 * std[2]:.1f} %"
    assert found["rmse_calibrated"].is_monotonic_increasing
    assert [method for method in METHODS if "champion" in shown[method][-1]] == ["dcmpln"]


def test_the_table_of_generators_follows_from_the_predictions(reported: Path) -> None:
    found = pd.read_csv(reported / "out/tables/score-generators-demo.csv")
    shown = cells(reported, "score-generators-demo")
    assert set(found.loc[found["champion"], "method"]) == {"dcmpln"}
    for method in METHODS:
        tables = predictions(reported, method)
        for name in ("gan", "early diffusion", "late diffusion"):
            parts = [table[table["generator"] == name] for table in tables]
            mos, score = (np.mean([part[column].mean() for part in parts]) for column in ("mos", "score"))
            mean = np.mean([by_hand(part) for part in parts], axis=0)
            row = found[(found["method"] == method) & (found["generator"] == name)].iloc[0]
            expected = [len(parts[0]), mos, score, score - mos, *mean]
            columns = ["n", "mos_mean", "score_mean", "bias", *KEYS]
            assert row[columns].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)
            if method == "dcmpln":
                numbers = [f"{mos:.3f}", f"{score:.3f}", f"{score - mos:+.3f}", f"{mean[0]:.3f}"]
                assert shown[name] == ["20", *numbers, f"{100 * mean[2]:.1f} %"]
    mean = np.mean([by_hand(table) for table in predictions(reported, "dcmpln")], axis=0)
    assert shown["all images"][-2:] == [f"{mean[0]:.3f}", f"{100 * mean[2]:.1f} %"]


def test_the_champion_is_the_best_on_validation_baselines_included(reported: Path) -> None:
    results = read(reported)
    told = results.runs["method"].map({"dcmpln": 0.5, "no_mpa": 0.6, "shuffled": 0.9, "handcrafted": 0.7})
    rows = summarise(results.runs.assign(validation_srcc=told))
    assert worth.champion(rows)["method"] == "handcrafted"
    leaking = rows.assign(leaks=np.where(rows["method"] == "handcrafted", "random split", ""))
    assert worth.champion(leaking)["method"] == "no_mpa"
    lacking = rows.assign(coverage_mean=rows["coverage_mean"].where(rows["method"] != "handcrafted"))
    assert worth.champion(lacking) is None  # and no other method in its place
    assert [table.name for table in worth.score_tables(results, lacking)] == ["score-demo"]
    assert worth.score_tables(results, rows)[1].caption.startswith("demo: what a score of `handcrafted` is worth")


def test_a_round_without_calibrated_scores_leaves_no_mean_of_the_others(reported: Path) -> None:
    runs = read(reported).runs
    lacks = (runs["method"] == "no_mpa") & (runs["round"] == 1)
    rows = summarise(runs.assign(coverage=runs["coverage"].mask(lacks))).set_index("method")
    assert rows["coverage_mean"].isna().to_dict() == {name: name == "no_mpa" for name in METHODS}


def test_a_study_of_an_earlier_version_is_still_reported(tmp_path: Path) -> None:
    few = ("dcmpln", "handcrafted")
    make_study(tmp_path, ("demo",), few, gallery=1, calibrated=False)
    assert not {"score", "low", "high", "unfamiliar"} & set(predictions(tmp_path, "dcmpln")[0])
    write_report(
        tmp_path / "out", "old", ["demo"], few, (0, 1, 2), generated=["demo"],
        runs=tmp_path / "runs", splits=tmp_path / "data/splits", prepared=tmp_path / "data/prepared",
    )  # fmt: skip
    results = read(tmp_path, few)
    assert results.predictions["score"].isna().all()
    assert results.generators["score_mean"].isna().all()
    text = (tmp_path / "out/summary.md").read_text()
    assert "`dvc repro` computes what a score is worth." in text
    assert "champion" not in text
    assert cells(tmp_path, "main-demo")["dcmpln"][5:7] == ["—", "—"]
    row = pd.read_csv(tmp_path / "out/tables/main-demo.csv").set_index("method").loc["dcmpln"]
    assert np.isnan(row["rmse_calibrated"])
    assert row["rmse"] > 0
    assert not list((tmp_path / "out").glob("**/score-*"))
    assert not list((tmp_path / "out").glob("band-*"))
    said = (tmp_path / "out/index.html").read_text()
    assert "after the logistic fit on these very test images" in said
    assert "</strong>, fitted " in said
