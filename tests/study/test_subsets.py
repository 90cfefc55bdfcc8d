"""A round's subsets, targets and features, and what does not fit each other."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_parts import write_prepared

from pipeline.layout import StudyError
from pipeline.study import subsets


def test_rows_are_those_of_the_split_in_the_order_of_the_manifest(tmp_path: Path) -> None:
    manifest = write_prepared(tmp_path)
    path = tmp_path / "data/splits/demo/round-0.csv"
    split = pd.read_csv(path)
    split.sample(frac=1, random_state=0).to_csv(path, index=False)
    rows, groups = subsets.open_split(path, manifest)
    assert {name: found.tolist() for name, found in rows.items()} == {
        "train": [k for k in range(24) if k % 4 > 1], "validation": [0, 4, 8, 12, 16, 20],
        "test": [1, 5, 9, 13, 17, 21],
    }  # fmt: skip
    assert groups.tolist() == [f"g{k}" for k in range(24)]


def test_splits_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    manifest = write_prepared(tmp_path)
    path = tmp_path / "data/splits/demo/round-0.csv"
    with pytest.raises(StudyError, match="and the manifest differ in 1 images"):
        subsets.open_split(path, manifest.iloc[1:])
    text = path.read_text()
    path.write_text(text.replace("validation", "train"))
    with pytest.raises(StudyError, match="leaves no image for validation"):
        subsets.open_split(path, manifest)
    path.write_text(text + text.splitlines()[-1] + "\n")  # an image twice
    with pytest.raises(StudyError, match="and the manifest differ"):
        subsets.open_split(path, manifest)


def test_rounds_have_seeds_of_their_own() -> None:
    seeds = {subsets.round_seed(seed, number) for seed in range(20) for number in range(20)}
    assert len(seeds) == 400


def test_scores_are_scaled_by_the_declared_scale() -> None:
    manifest = pd.DataFrame({"quality": [0.0, 2.5, np.nan], "mos_low": 0.0, "mos_high": 5.0})
    np.testing.assert_array_equal(subsets.scaled_mos(manifest, "quality"), [0.0, 0.5, np.nan])
    manifest = pd.DataFrame({"quality": [1.0, 2.0, 5.0], "mos_low": 1.0, "mos_high": 5.0})
    np.testing.assert_array_equal(subsets.scaled_mos(manifest, "quality"), [0.0, 0.25, 1.0])


def test_features_come_back_for_the_same_images_alone(in_tmp: Path) -> None:
    manifest = pd.DataFrame({"image_id": ["a.png", "b.png"]})
    columns = {
        "image_features": np.eye(2), "image_features_deviation": np.eye(2) / 2, "clip_iqa": np.array([0.1, 0.9]),
        "handcrafted": np.ones((2, 3)),
    }  # fmt: skip
    Path("data/features").mkdir(parents=True)
    backbone = {"name": "tiny-vit", "origin": "random"}
    np.savez(
        "data/features/demo.npz", image_id=np.array(["a.png", "b.png"]), backbone=json.dumps(backbone),
        windows=json.dumps({"stride": 3}), clip_iqa_text_features=np.eye(2), handcrafted_names=["a", "b", "c"],
        **columns,
    )  # fmt: skip
    found = subsets.read_features("demo", manifest)
    assert found.keys() == columns.keys()
    for name, values in columns.items():
        np.testing.assert_array_equal(found[name], values)
    about = subsets.features_about("demo")
    assert (about.backbone, about.windows, about.statistics) == (backbone, {"stride": 3}, ["a", "b", "c"])
    np.testing.assert_array_equal(about.text_features, np.eye(2))
    Path("data/feature-times").mkdir()
    Path("data/feature-times/demo.json").write_text('{"tower": {"seconds_per_image": 0.5}}')
    assert subsets.feature_times("demo") == {"tower": {"seconds_per_image": 0.5}}
    with pytest.raises(StudyError, match="and the manifest name different images: run the features stage anew"):
        subsets.read_features("demo", manifest.iloc[::-1])
