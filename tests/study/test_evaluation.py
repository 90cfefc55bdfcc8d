"""From scores to one run's numbers, against pandas and scipy."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

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


def test_a_score_that_is_not_finite_names_its_image(manifest: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match=r"the score of 8\.png is not finite"):
        evaluation.predictions_table(
            manifest, pd.Series(["g"] * 40), np.array([3, 8]), np.array([0.1, np.nan]), "quality"
        )


def test_cost_is_a_rate_and_a_peak_in_mb() -> None:
    found = evaluation.cost(4.0, 10)
    assert (found["seconds"], found["images_per_second"]) == (4.0, 2.5)
    assert found["peak_memory_mb"] * 2**20 >= 10 * 2**20  # an interpreter with pandas takes more


def test_numbers_equal_scipys_overall_and_by_generator(manifest: pd.DataFrame) -> None:
    groups = pd.Series([f"g{k % 10}" for k in range(40)])
    predicted = manifest["quality"].to_numpy() + np.random.default_rng(1).normal(0, 1, 40)
    table = evaluation.predictions_table(manifest, groups, np.arange(40), predicted, "quality")
    found = evaluation.evaluate(table, 100, 0)
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
