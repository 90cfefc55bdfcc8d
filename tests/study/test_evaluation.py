"""From scores to one run's numbers, against pandas and scipy."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import linregress, spearmanr

from pipeline.costs import Spent
from pipeline.layout import StudyError
from pipeline.study import evaluation


@pytest.fixture
def manifest() -> pd.DataFrame:
    generator = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "image_id": [f"{k}.png" for k in range(40)],
            "generator": ["a"] * 20 + ["b"] * 17 + ["c"] * 3,
            "generation_prompt": [f"p{k % 10}" for k in range(40)],
            "quality": generator.uniform(1, 5, 40),
            "quality_std": 0.4,
        }
    )


def test_predictions_are_the_asked_rows_in_order(manifest: pd.DataFrame) -> None:
    groups = pd.Series([f"g{k % 10}" for k in range(40)])
    rows = np.array([3, 8, 39])
    found = evaluation.predictions_table(manifest, groups, rows, np.array([0.1, 0.2, 0.3]), "quality")
    assert found["image_id"].tolist() == ["3.png", "8.png", "39.png"]
    assert found["group"].tolist() == ["g3", "g8", "g9"]
    assert found["mos"].tolist() == manifest["quality"].iloc[rows].tolist()
    assert found["predicted"].tolist() == [0.1, 0.2, 0.3]


def test_the_fit_is_a_column_that_the_numbers_rest_on(manifest: pd.DataFrame) -> None:
    groups = pd.Series([f"g{k % 10}" for k in range(40)])
    predicted = 7 + 2 * manifest["quality"].to_numpy() + np.random.default_rng(1).normal(0, 1, 40)
    table = evaluation.predictions_table(manifest, groups, np.arange(40), predicted, "quality")
    fitted, mos = table["fitted"], table["mos"]
    line = linregress(predicted, mos)  # which 40 images get in place of a logistic
    assert fitted.to_numpy() == pytest.approx(line.intercept + line.slope * predicted)
    found = evaluation.evaluate(table.assign(fitted=mos + 1))
    assert found["plcc_logistic"] == pytest.approx(1)  # of the column, whatever it holds
    assert found["rmse"] == pytest.approx(1)
    assert found["plcc"] == pytest.approx(line.rvalue)


def test_a_score_that_is_not_finite_names_its_image(manifest: pd.DataFrame) -> None:
    with pytest.raises(StudyError, match=r"the score of 8\.png is not finite"):
        evaluation.predictions_table(
            manifest, pd.Series(["g"] * 40), np.array([3, 8]), np.array([0.1, np.nan]), "quality"
        )


def test_cost_is_a_rate_and_a_peak_in_mb() -> None:
    found = evaluation.cost(Spent(4.0, 6.5, False), 10)
    assert (found["seconds"], found["cpu_seconds"], found["images_per_second"]) == (4.0, 6.5, 2.5)
    assert found["under_load"] is False
    assert found["peak_memory_mb"] * 2**20 >= 10 * 2**20  # an interpreter with pandas takes more


def test_what_reads_features_pays_for_them() -> None:
    features = {"seconds_per_image": 0.5, "cpu_seconds_per_image": 0.75, "under_load": True, "peak_memory_mb": 1e6}
    found = evaluation.cost(Spent(0.01, 0.01, False), 10, features)
    assert found == {
        "seconds": 5.01, "cpu_seconds": 7.51, "under_load": True, "images_per_second": pytest.approx(10 / 5.01),
        "peak_memory_mb": 1e6,
    }  # fmt: skip


def test_numbers_equal_scipys_overall_and_by_generator(manifest: pd.DataFrame) -> None:
    groups = pd.Series([f"g{k % 10}" for k in range(40)])
    predicted = manifest["quality"].to_numpy() + np.random.default_rng(1).normal(0, 1, 40)
    table = evaluation.predictions_table(manifest, groups, np.arange(40), predicted, "quality")
    found = evaluation.evaluate(table)
    assert (found["n"], found["groups"]) == (40, 10)
    assert found["srcc"] == pytest.approx(spearmanr(predicted, manifest["quality"]).statistic)
    assert found["srcc_low"] < found["srcc"] < found["srcc_high"]
    by = evaluation.by_generator(table)
    assert by["b"]["srcc"] == pytest.approx(spearmanr(predicted[20:37], manifest["quality"][20:37]).statistic)
    assert by["b"]["mos_mean"] == pytest.approx(manifest["quality"][20:37].mean())
    assert by["c"] == {
        "n": 3,
        "srcc": None,
        "mos_mean": pytest.approx(manifest["quality"][37:].mean()),
        "predicted_mean": pytest.approx(predicted[37:].mean()),
    }


@pytest.mark.parametrize("count", [1, 2, 40])
def test_what_has_no_value_is_null_and_never_an_error(manifest: pd.DataFrame, count: int) -> None:
    groups, rows = pd.Series([f"g{k % 10}" for k in range(40)]), np.arange(count)
    table = evaluation.predictions_table(manifest, groups, rows, np.full(count, 0.1), "quality")
    found = evaluation.evaluate(table)
    numbers = {"n": count, "groups": min(count, 10)}
    assert {key: value for key, value in found.items() if value is not None} == numbers | {"rmse": found["rmse"]}
    assert found["rmse"] == pytest.approx(manifest["quality"][:count].std(ddof=0))
    assert all(generator["srcc"] is None for generator in evaluation.by_generator(table).values())


def test_two_groups_without_one_of_which_nothing_varies_have_no_interval(manifest: pd.DataFrame) -> None:
    groups = pd.Series(["one"] * 39 + ["other"])
    predicted = np.append(np.full(39, 0.5), 0.7)
    found = evaluation.evaluate(evaluation.predictions_table(manifest, groups, np.arange(40), predicted, "quality"))
    assert found["srcc"] == pytest.approx(spearmanr(predicted, manifest["quality"]).statistic)
    assert found["srcc_low"] is found["srcc_high"] is None


def test_the_scatter_shows_every_image_and_the_fit_in_order(
    tmp_path: Path, manifest: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    predicted = np.random.default_rng(2).normal(0, 1, 40)
    table = manifest.assign(mos=manifest["quality"], predicted=predicted, fitted=3 + predicted)
    figures = []
    monkeypatch.setattr(evaluation, "save", lambda figure, path: figures.append(figure))
    for columns in (list(table), [name for name in table if name != "generator"]):
        evaluation.scatter(table[columns], tmp_path / "s.svg", "title", "quality MOS (0 to 5)")
    for figure, clouds in zip(figures, (3, 1), strict=True):
        (axes,) = figure.axes
        assert len(axes.collections) == clouds
        points = np.concatenate([cloud.get_offsets() for cloud in axes.collections])
        assert sorted(points.tolist()) == sorted(table[["predicted", "mos"]].to_numpy().tolist())
        (line,) = axes.lines
        assert line.get_xdata().tolist() == sorted(predicted)
        assert line.get_ydata().tolist() == [3 + value for value in sorted(predicted)]
        assert axes.get_ylabel() == "quality MOS (0 to 5)"
