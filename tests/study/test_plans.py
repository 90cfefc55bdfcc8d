"""From params.yaml and files to a training: what it may see, how it is to train, and what it says of itself."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from made_parts import write_params, write_prepared
from scipy.stats import spearmanr

from pipeline.calibration import calibrate
from pipeline.layout import StudyError, checkpoint_name
from pipeline.model.checkpoint import load_checkpoint
from pipeline.model.checkpoint_file import calibration_of
from pipeline.model.folded import image_scores
from pipeline.params import Params, Train, load_params
from pipeline.study import plans
from pipeline.study.subsets import round_seed
from pipeline.training.fit import Settings


@pytest.fixture
def study(in_tmp: Path, tiny_config: Path) -> Path:
    """Return a folder with params.yaml and a prepared data set, in which the test runs."""
    write_prepared(in_tmp)
    write_params(in_tmp, tiny_config, backbone__seed=1)
    return in_tmp


def seen(params: Params, variant: str = "dcmpln") -> dict[str, Any]:
    manifest = pd.read_parquet("data/prepared/demo/manifest.parquet")
    rows = {name: np.arange(24)[place::4] for place, name in enumerate(["validation", "test", "train"])}
    return plans.training_subsets(params, variant, manifest, None, rows, seed=3)


def test_a_training_sees_labelled_train_and_validation_images_alone(study: Path) -> None:
    found = seen(load_params())
    assert list(found) == ["train", "validation"]
    quality = (np.linspace(1.4, 4.6, 24) - 1) / 4
    for name, place in (("train", 2), ("validation", 0)):
        np.testing.assert_allclose(found[name].main, quality[place::4])
        np.testing.assert_allclose(found[name].auxiliary, quality[::-1][place::4])


def test_the_test_subset_is_there_only_where_it_selects(study: Path, tiny_config: Path) -> None:
    write_params(study, tiny_config, train__select_on="test")
    assert list(seen(load_params())) == ["train", "validation", "test"]


def test_shuffled_labels_are_the_same_labels_dealt_out_anew_and_alike(study: Path) -> None:
    params = load_params()
    plain, dealt = seen(params), seen(params, "shuffled")
    for name, subset in plain.items():
        assert sorted(dealt[name].main) == sorted(subset.main)
        assert dealt[name].main.tolist() != subset.main.tolist()
        np.testing.assert_allclose(dealt[name].main + dealt[name].auxiliary, 1)  # both tasks' labels of one image


def test_a_missing_auxiliary_score_is_masked_or_the_main_one_as_params_say(study: Path, tiny_config: Path) -> None:
    for fallback in ("none", "main"):
        write_params(study, tiny_config, targets__auxiliary="authenticity", targets__fallback=fallback)
        subset = seen(load_params())["train"]
        expected = subset.main if fallback == "main" else np.full(6, np.nan)
        np.testing.assert_array_equal(subset.auxiliary, expected)
    write_params(study, tiny_config, targets__main="authenticity")
    with pytest.raises(StudyError, match=r"targets\.main is 'authenticity', which train images of this data"):
        seen(load_params())


def test_every_setting_comes_from_params(tiny_config: Path) -> None:
    """No key of `train` is lost on the way: each is given a value that is not the setting's default."""
    values = {
        "optimiser": "adam", "learning_rate": 0.02, "schedule": "cosine", "warmup_epochs": 3, "weight_decay": 0.1,
        "batch_size": 6, "micro_batch": 2, "epochs": 7, "patience": 4, "auxiliary_weight": 0.7, "flip": False,
        "select_on": "test", "ranking_weight": 0.3, "windows": 3, "map_rate": 0.2, "visual_rate": 0.3,
    }  # fmt: skip
    others = {"seed": 9, "device": "cuda", "amp": "auto", "compile": "auto", "processes": 2, "threads": 1}
    assert values.keys() | others.keys() == Train.model_fields.keys()
    found = plans.training_settings(Train(**values, **others), 8, torch.device("cuda"), seed=11)
    assert {key: getattr(found, key) for key in values} == values
    told = {"seed": 11, "validation_windows": 8, "device": torch.device("cuda"), "amp": True, "compiled": True}
    assert {key: getattr(found, key) for key in told} == told
    assert {field.name for field in dataclasses.fields(Settings)} == values.keys() | told.keys()
    assert not plans.training_settings(Train(**values, **others), 8, torch.device("cpu"), seed=11).amp
    off = Train(**values, **others | {"amp": "off", "compile": "off"})
    found = plans.training_settings(off, 8, torch.device("cuda"), seed=11)
    assert (found.amp, found.compiled) == (False, False)


def test_a_plan_says_what_it_is_and_trains(study: Path) -> None:
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    plan = plans.plan_training(load_params(), "demo", "dcmpln", 0)
    record = plan.record
    told = {"dataset": "demo", "method": "dcmpln", "kind": "variant", "round": 0, "split": "round", "leaks": [],
            "shuffled_labels": False, "target": "quality", "auxiliary_target": "alignment", "split_rule": "grouped",
            "select_on": "validation", "images": {"train": 12, "validation": 6, "test": 6}}  # fmt: skip
    assert {key: record[key] for key in told} == told
    assert record["seed"] == plan.settings.seed == round_seed(load_params().train.seed, 0)
    assert record["params"]["train.optimiser"] == "adam"
    assert record["params"]["variant.mpa"] is True
    files = ["data/prepared/demo/manifest.parquet", "data/splits/demo/round-0.csv"]
    assert [str(path) for path in plan.inputs] == files
    hashes = [hashlib.md5(Path(file).read_bytes()).hexdigest() for file in files]
    assert list(record["inputs"].values()) == hashes
    assert record["trainable_parameters"] == sum(value.numel() for value in plan.model.learned_state().values())
    assert (plan.checkpoint_record["mos_low"], plan.checkpoint_record["mos_high"]) == (1.0, 5.0)
    assert record["raters"] == plan.checkpoint_record["raters"] == "simulated"
    fitted = plan.fit(study / "made")
    assert [row["epoch"] for row in fitted.history] == [1, 2, 3]
    checkpoint = study / "made/checkpoints" / checkpoint_name(fitted.selected_epoch)
    validation = plan.calibrate(checkpoint)
    finished = plan.finished_record(fitted, study / "made/checkpoints", validation)
    assert finished["validation"] == validation
    assert (plan.machine["processes"], plan.ranks.count) == (1, 1)
    assert finished["checkpoint_md5"] == hashlib.md5(checkpoint.read_bytes()).hexdigest()
    assert (finished["epochs_run"], finished["checkpoint_bytes"]) == (3, checkpoint.stat().st_size)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


def test_calibration_sees_the_validation_images_and_all_their_windows(study: Path) -> None:
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    plan = plans.plan_training(load_params(), "demo", "dcmpln", 0)
    fitted = plan.fit(study / "made")
    checkpoint = study / "made/checkpoints" / checkpoint_name(fitted.selected_epoch)
    plain = checkpoint.read_bytes()
    numbers = plan.calibrate(checkpoint)
    scorer, rule, record = load_checkpoint(checkpoint, plan.model.backbone)
    rows = plan.selectors["validation"].rows
    raw = image_scores(scorer, (plan.train.pack[row] for row in rows), len(rows), rule)
    manifest = pd.read_parquet("data/prepared/demo/manifest.parquet").iloc[rows]
    split = pd.read_csv("data/splits/demo/round-0.csv").set_index("image_id").loc[manifest["image_id"]]
    expected = calibrate(raw, manifest["quality"].to_numpy(), split["group"].to_numpy(), 1.0, 5.0)
    found = calibration_of(record)
    assert (found.offset, found.slope, found.images, found.groups) == pytest.approx(
        (expected.offset, expected.slope, 6, 6), rel=1e-4
    )
    assert numbers["srcc"] == pytest.approx(spearmanr(raw, manifest["quality"]).statistic)
    assert record["unfamiliar_beyond"] > 0
    assert plan.calibrate(checkpoint) == numbers  # as after a kill in between
    again = checkpoint.read_bytes()
    checkpoint.write_bytes(plain)
    plan.calibrate(checkpoint)
    assert checkpoint.read_bytes() == again
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


def test_a_random_split_is_on_record(study: Path) -> None:
    deterministic = torch.are_deterministic_algorithms_enabled()
    plan = plans.plan_training(load_params(), "demo", "clip_agiqa", 0, "random")
    torch.use_deterministic_algorithms(deterministic)
    assert (plan.record["split_rule"], plan.record["leaks"]) == ("random", ["random split"])
    assert plan.record["params"]["split.rule"] == "random"
    assert plan.checkpoint_record["leaks"] == ["random split"]
    assert plan.label == "demo/clip_agiqa/random-0"
