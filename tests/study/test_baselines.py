"""What a baseline of one round reads and says of itself; test labels are not among it."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_parts import RULE, write_params, write_prepared
from scipy.stats import spearmanr

from pipeline.calibration import calibrate
from pipeline.layout import StudyError
from pipeline.model.checkpoint_file import calibration_of, familiarity_of, read_checkpoint
from pipeline.params import load_params
from pipeline.study.baselines import plan_baseline
from pipeline.study.subsets import round_seed
from pipeline.training import baselines

BACKBONE = {
    "name": "tiny-vit", "origin": "random", "pretrained": None, "weights_sha256": "5" * 64, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
TEXTS = np.array([[0.6, 0.8], [-0.8, 0.6]], dtype=np.float32)


@pytest.fixture
def study(in_tmp: Path, tiny_config: Path) -> Path:
    """Return a folder with params.yaml, a prepared data set and its features, in which the test runs."""
    manifest = write_prepared(in_tmp)
    write_params(in_tmp, tiny_config)
    Path("data/features").mkdir()
    np.savez(
        "data/features/demo.npz", image_id=manifest["image_id"].to_numpy(dtype=str), backbone=json.dumps(BACKBONE),
        image_features=np.arange(48.0).reshape(24, 2), image_features_deviation=np.ones((24, 2)),
        clip_iqa=np.arange(24.0), handcrafted=np.random.default_rng(0).normal(size=(24, 3)),
        windows=json.dumps(RULE.record()), clip_iqa_text_features=TEXTS, handcrafted_names=["a", "b", "c"],
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


@pytest.mark.parametrize("method", ["clip_iqa", "linear_probe", "handcrafted"])
def test_its_checkpoint_scores_alone_and_is_calibrated_on_validation(study: Path, method: str) -> None:
    plan = plan_baseline(load_params(), "demo", method, 0)
    train, validation = (plan.features(name) for name in ("train", "validation"))
    model = {}
    if method == "linear_probe":
        seen = [
            (part["image_features"], plan.targets[name])
            for name, part in (("train", train), ("validation", validation))
        ]
        model = baselines.fit_linear_probe(*seen, [1.0])
    if method == "handcrafted":
        model = baselines.fit_handcrafted(
            (train["handcrafted"], plan.targets["train"]), learning_rate=0.1, max_iterations=5, max_depth=2, seed=0
        )
    path = study / "epoch-000.safetensors"
    plan.save(path, model)
    first = path.read_bytes()
    plan.save(path, model)
    assert path.read_bytes() == first
    record, arrays = read_checkpoint(path)
    raw = baselines.predict(path, validation)
    mos = 1 + 4 * plan.targets["validation"]
    expected = calibrate(raw, mos, plan.validation_groups, 1.0, 5.0)
    assert calibration_of(record) == expected
    assert (expected.images, expected.groups) == (6, 6)
    width = train[baselines.SEES[method]].shape[1]
    assert familiarity_of(path, record, arrays, width).limit > 0
    finished = plan.finished_record(path)
    assert (finished["selected_epoch"], finished["epochs_run"]) == (0, 0)
    assert finished["checkpoint_bytes"] == len(first)
    assert finished["checkpoint_md5"] == hashlib.md5(first).hexdigest()
    assert finished["validation"]["srcc"] == pytest.approx(spearmanr(raw, mos).statistic)
    texts = ["Good photo.", "Bad photo."] if method == "clip_iqa" else []
    told = {"method": method, "texts": texts, "statistics": ["a", "b", "c"] if method == "handcrafted" else None}
    assert {key: record[key] for key in told} == told
    assert record["backbone"] == (None if method == "handcrafted" else BACKBONE)
    assert record["windows"] == (None if method == "handcrafted" else RULE.record())


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
