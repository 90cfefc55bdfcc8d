"""A run's result scores test images as its checkpoint does, and says what a user would be told."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from made_parts import RULE, SAID, bright_images, model_of, write_params, write_prepared

from pipeline import layout
from pipeline.calibration import calibrate
from pipeline.familiarity import familiarise
from pipeline.files import write_json
from pipeline.model.backbone import Backbone
from pipeline.model.checkpoint import save_checkpoint
from pipeline.model.checkpoint_file import write_checkpoint
from pipeline.model.folded import fold, window_scores
from pipeline.params import load_params
from pipeline.study.build import make_window_rule
from pipeline.study.entrants import enter
from pipeline.study.evaluation import predictions_table
from pipeline.training import baselines

ROWS = np.array([2, 9, 20])
TRAIN = Path("runs/demo")


def test_a_training_is_judged_by_its_network(in_tmp: Path, tiny_config: Path, tiny_backbone: Backbone) -> None:
    manifest = write_prepared(in_tmp)
    write_params(in_tmp, tiny_config, backbone__seed=1)
    params, folder = load_params(), TRAIN / "dcmpln/round-0/train"
    rule, scorer = make_window_rule(params, tiny_backbone), fold(model_of(tiny_backbone))
    found = window_scores(scorer, bright_images(), rule)
    raw, features = np.array([one.raw for one in found]), np.array([one.features for one in found])
    mos = manifest["quality"].to_numpy()
    calibration, familiarity = calibrate(raw, mos, np.arange(24), 1.0, 5.0), familiarise(features[:12], features[12:])
    record = {"windows": rule.record(), **SAID, "mos_low": 1.0}
    save_checkpoint(layout.checkpoint_path(folder, 2), scorer, record, calibration, familiarity)
    about = {"dataset": "demo", "method": "dcmpln", "kind": "variant", "round": 0, "selected_epoch": 2}
    write_json(folder / "record.json", about)
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    entrant = enter(params, folder)
    predicted, seen = entrant.scored("demo", ROWS)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    np.testing.assert_allclose(predicted, raw[ROWS], atol=1e-6)
    np.testing.assert_allclose(seen, features[ROWS], atol=1e-5)
    assert entrant.calibration == calibration
    assert entrant.unfamiliar(seen).tolist() == familiarity.is_unfamiliar(features[ROWS]).tolist()
    assert (entrant.feature_cost, entrant.on_cpu) == (None, True)
    manifest["quality_std"] = 0.3
    groups = pd.Series([f"g{row}" for row in range(24)])
    table = predictions_table(manifest, groups, ROWS, predicted, "quality", calibration, entrant.unfamiliar(seen))
    np.testing.assert_allclose(table["score"], calibration.to_mos(raw[ROWS]), atol=1e-5)
    low, high = calibration.band(calibration.to_mos(raw[ROWS]))
    np.testing.assert_allclose(table[["low", "high"]], np.stack([low, high], axis=1), atol=1e-5)


def test_a_baseline_is_judged_by_features_and_charged_for_them(in_tmp: Path, tiny_config: Path) -> None:
    manifest = write_prepared(in_tmp)
    write_params(in_tmp, tiny_config)
    rng = np.random.default_rng(0)
    columns = {
        "image_features": rng.normal(size=(24, 4)), "image_features_deviation": np.ones((24, 4)),
        "clip_iqa": rng.uniform(size=24), "handcrafted": rng.normal(size=(24, 3)),
    }  # fmt: skip
    Path("data/features").mkdir()
    np.savez(
        layout.features_path("demo"), image_id=manifest["image_id"].to_numpy(dtype=str), backbone="{}", windows="{}",
        clip_iqa_text_features=np.eye(2), handcrafted_names=["a", "b", "c"], **columns,
    )  # fmt: skip
    times = {"tower": {"seconds_per_image": 0.5}, "statistics": {"seconds_per_image": 0.1}}
    Path("data/feature-times").mkdir()
    Path("data/feature-times/demo.json").write_text(json.dumps(times))
    folder = TRAIN / "linear_probe/round-0/train"
    weights = np.array([1.0, -1.0, 0.5, 0.0])
    about = {
        "name": "tiny", "pretrained": None, "origin": "random", "weights_sha256": "5" * 64, "image_size": 32,
        "patch_size": 8,
    }  # fmt: skip
    said = SAID | {
        "method": "linear_probe", "texts": [], "backbone": about, "windows": RULE.record(), "residual_ratio": None,
        "prompt_depth": 0, "prompt_length": 0,
    }  # fmt: skip
    arrays = baselines.arrays("linear_probe", {"weights": weights, "bias": np.array(0.25)}, np.eye(2))
    write_checkpoint(layout.checkpoint_path(folder, 0), arrays, said)
    record = {"dataset": "demo", "method": "linear_probe", "kind": "baseline", "round": 0, "selected_epoch": 0}
    write_json(folder / "record.json", record)
    entrant = enter(load_params(), folder)
    predicted, seen = entrant.scored("demo", ROWS)
    np.testing.assert_allclose(predicted, columns["image_features"][ROWS] @ weights + 0.25, atol=1e-6)
    np.testing.assert_array_equal(seen, columns["image_features"][ROWS])
    assert entrant.feature_cost == times["tower"]
    assert entrant.calibration is None
    assert entrant.unfamiliar(seen) is None
    assert entrant.show(in_tmp / "none", pd.DataFrame()) is None
    assert not (in_tmp / "none").exists()


def test_a_run_without_its_checkpoint_is_told(in_tmp: Path, tiny_config: Path) -> None:
    write_params(in_tmp, tiny_config)
    record = {"dataset": "demo", "method": "dcmpln", "kind": "variant", "round": 0, "selected_epoch": 3}
    write_json(TRAIN / "dcmpln/round-0/train/record.json", record)
    with pytest.raises(ValueError, match=r"epoch-003\.safetensors does not exist"):
        enter(load_params(), TRAIN / "dcmpln/round-0/train")
