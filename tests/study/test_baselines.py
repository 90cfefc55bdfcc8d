"""What a baseline of one round reads and says of itself; test labels are not among it."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_parts import write_params, write_prepared

from pipeline.layout import StudyError
from pipeline.params import load_params
from pipeline.study.baselines import plan_baseline
from pipeline.study.subsets import round_seed

BACKBONE = {"name": "tiny-vit", "origin": "random"}


@pytest.fixture
def study(in_tmp: Path, tiny_config: Path) -> Path:
    """Return a folder with params.yaml, a prepared data set and its features, in which the test runs."""
    manifest = write_prepared(in_tmp)
    write_params(in_tmp, tiny_config)
    Path("data/features").mkdir()
    np.savez(
        "data/features/demo.npz", image_id=manifest["image_id"].to_numpy(dtype=str), backbone=json.dumps(BACKBONE),
        image_features=np.arange(48.0).reshape(24, 2), image_features_deviation=np.ones((24, 2)),
        clip_iqa=np.arange(24.0), handcrafted=np.ones((24, 3)),
    )  # fmt: skip
    return in_tmp


def test_a_baseline_gets_features_and_targets_of_its_subsets(study: Path) -> None:
    plan = plan_baseline(load_params(), "demo", "linear_probe", 0)
    train = [k for k in range(24) if k % 4 > 1]
    assert plan.features("train")["clip_iqa"].tolist() == train
    assert plan.features("validation")["image_features"].tolist() == [[2.0 * k, 2.0 * k + 1] for k in range(0, 24, 4)]
    np.testing.assert_allclose(plan.targets["train"], (np.linspace(1.4, 4.6, 24)[train] - 1) / 4)
    assert plan.targets.keys() == plan.rows.keys() == {"train", "validation"}


def test_its_record_says_what_it_is(study: Path) -> None:
    plan = plan_baseline(load_params(), "demo", "linear_probe", 0)
    told = {"dataset": "demo", "method": "linear_probe", "kind": "baseline", "round": 0, "leaks": [],
            "target": "quality", "auxiliary_target": None, "backbone": BACKBONE, "trainable_parameters": None,
            "select_on": None, "raters": "simulated", "images": {"train": 12, "validation": 6, "test": 6}}  # fmt: skip
    assert {key: plan.record[key] for key in told} == told
    assert plan.record["seed"] == round_seed(load_params().baselines.seed, 0)
    assert plan.record["params"]["baselines.clip_iqa_texts"] == ["Good photo.", "Bad photo."]
    assert plan.finished_record(study / "none")["checkpoint_bytes"] is None
    (study / "model.npz").write_bytes(b"12345")
    finished = plan.finished_record(study / "model.npz")
    assert (finished["selected_epoch"], finished["epochs_run"], finished["checkpoint_bytes"]) == (0, 0, 5)


def test_test_labels_are_not_read(study: Path, tiny_config: Path) -> None:
    expected = plan_baseline(load_params(), "demo", "linear_probe", 0)
    path = Path("data/prepared/demo/manifest.parquet")
    manifest = pd.read_parquet(path)
    manifest.loc[1::4, "quality"] = np.nan
    manifest.to_parquet(path, index=False)
    found = plan_baseline(load_params(), "demo", "linear_probe", 0)
    for name, values in expected.targets.items():
        np.testing.assert_array_equal(found.targets[name], values)
    manifest.loc[0, "quality"] = np.nan
    manifest.to_parquet(path, index=False)
    with pytest.raises(StudyError, match=r"targets\.main is 'quality', which validation images of this data set do"):
        plan_baseline(load_params(), "demo", "linear_probe", 0)
