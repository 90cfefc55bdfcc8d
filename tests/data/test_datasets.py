"""Whoever reads them, labels end in one table: checked, sorted and complete."""

from pathlib import Path

import numpy as np
import pytest
from made_labels import agiqa3k_table

from pipeline.data import demo
from pipeline.data.datasets import read_labels
from pipeline.data.labels import COLUMNS, DatasetError


def test_scores_off_the_scale_and_rows_that_stand_twice_are_problems(tmp_path: Path) -> None:
    table = agiqa3k_table(["a_x_000.jpg", "a_x_001.jpg", "a_x_001.jpg", "a_x_002.jpg", "a_x_003.jpg"])
    table.loc[3, "mos_quality"], table.loc[4, "mos_align"] = 7.5, np.nan
    table.to_csv(tmp_path / "data.csv", index=False)
    labels = read_labels("agiqa3k", tmp_path)
    assert labels.rows["image_id"].tolist() == ["a_x_000.jpg"]
    assert sorted((problem.kind, problem.image, problem.detail) for problem in labels.problems) == [
        ("bad_label", "a_x_002.jpg", "quality is 7.5, not in 0..5"),
        ("bad_label", "a_x_003.jpg", "alignment is nan, not in 0..5"),
        ("duplicate_name", "a_x_001.jpg", "stands 2 times, with quality 1.475 and 2.450"),
    ]


def test_rows_are_sorted_and_what_was_not_published_is_nan(tmp_path: Path) -> None:
    agiqa3k_table(["b_x_000.jpg", "a_x_000.jpg"]).to_csv(tmp_path / "data.csv", index=False)
    rows = read_labels("agiqa3k", tmp_path).rows
    assert rows.columns.tolist() == COLUMNS
    assert rows["image_id"].tolist() == ["a_x_000.jpg", "b_x_000.jpg"]
    assert rows.index.tolist() == [0, 1]
    assert rows["prompt_group"].tolist() == rows["generation_prompt"].tolist()  # the reader says nothing else
    assert rows["authenticity"].isna().all()
    assert rows["authenticity_std"].dtype == np.float64


def test_a_data_set_knows_who_rated_it(tmp_path: Path) -> None:
    for name in ("published", "own", "drawn"):
        (tmp_path / name).mkdir()
    agiqa3k_table(["a_x_000.jpg"]).to_csv(tmp_path / "published/data.csv", index=False)
    (tmp_path / "own/mos.csv").write_text("image,mos\na.png,2\nb.png,3\n")
    for name in "ab":
        (tmp_path / f"own/{name}.png").write_bytes(b"")
    demo.generate(tmp_path / "drawn", seed=1, prompts=1, size=64, progress=False)
    own = {"folder": tmp_path / "own", "scale": (0, 5)}
    for found, who in (
        (read_labels("agiqa3k", tmp_path / "published"), "people"),
        (read_labels("folder", **own), "people"),
        (read_labels("folder", **own, raters="simulated"), "simulated"),
        (read_labels("demo", tmp_path / "drawn"), "simulated"),
    ):
        assert found.raters == who
        assert set(found.rows["raters"]) == {who}


def test_a_data_set_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="none does not exist: run the download stage first"):
        read_labels("agiqa3k", tmp_path / "none")
