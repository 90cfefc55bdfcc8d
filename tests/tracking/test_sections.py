"""What each number of a run is called, by hand, and that MLflow folds and takes it."""

import re
from pathlib import Path

from made_runs import ENDED, METRICS, STUDY, client_of, make_record, runs_of, train_live

from pipeline.tracking import sections


def test_what_users_are_told_has_names_of_its_own_and_the_study_says_which(root: Path) -> None:
    run_id, _ = train_live(root, make_record())
    found = client_of(root).get_run(run_id).data.metrics
    told = {key: value for key, value in found.items() if re.search("calibrated|coverage|band|unfamiliar|score", key)}
    assert told == {
        "test/rmse_calibrated": 0.65, "test/mae_calibrated": 0.5, "test/coverage": 0.88, "test/band_width": 1.9,
        "test/unfamiliar": 0.0, "generator/sd1.5/score_mean": 2.5, "generator/sd1.5/rmse_calibrated": 0.55,
        "generator/sd1.5/coverage": 0.93, "generator/early _v2_/coverage": 0.83,
    }  # fmt: skip
    note = runs_of(root)[STUDY].data.tags["mlflow.note.content"]
    assert "band of 90 %" in note
    named = set(re.findall(r"`((?:test|val/selected)/?_?\w+[a-z])`", note))
    assert named <= set(found)
    assert {key for key in told if key.startswith("test/")} <= named
    for key in ("val/selected_", "val/", "generator/", "cross/", "cost/", "images/", "train/"):
        assert any(name.startswith(key) for name in found)
        assert f"`{key}" in note


def test_every_number_lies_in_a_section() -> None:
    history = {
        "epoch": 3, "learning_rate": "0.1", "loss": "0.5", "loss_main": "", "train_srcc": 0.4, "validation_srcc": 0.3,
        "validation_plcc": float("nan"), "test_srcc": 0.2, "auxiliary_prompt_norm_last": 7, "note": "good",
    }  # fmt: skip
    assert sections.of_epoch(history, {"epoch": 3, "seconds": "2.5"}) == {
        "train/learning_rate": 0.1, "train/loss": 0.5, "train/srcc": 0.4, "val/srcc": 0.3, "test/epoch_srcc": 0.2,
        "prompts/auxiliary_prompt_norm_last": 7.0, "cost/epoch_seconds": 2.5,
    }  # fmt: skip
    told = sections.of_training(make_record() | {"checkpoint_bytes": None}, ENDED)
    assert told == {
        "cost/train_seconds": 15.0, "cost/train_cpu_seconds": 27.0, "cost/train_under_load": 1.0,
        "cost/trainable_parameters": 1234.0, "images/train": 400.0, "images/validation": 80.0, "images/test": 120.0,
    }  # fmt: skip
    assert sections.of_training({}, {"seconds": 60.0}) == {"cost/train_seconds": 60.0}
    evaluated = sections.of_evaluation(METRICS | {"validation": {"srcc": 0.77, "krcc": None}})
    assert evaluated["val/selected_srcc"] == 0.77
    assert evaluated["cost/evaluate_seconds"] == 2.0
    assert "val/selected_krcc" not in evaluated
    assert all("/" in name for name in evaluated)
    assert sections.of_report({"demo": {"dcmpln": {"srcc": 0.6}}}) == {"mean/demo/dcmpln/srcc": 0.6}


def test_a_generators_name_is_one_part_of_a_path() -> None:
    values = {"generator": {"a/b": {"n": 1}, "..": {"n": 2}, "": {"n": 3}, "sd1.5": {"n": "word"}}}
    assert sections.finite_numbers(values) == {"generator/a_b/n": 1.0, "generator/_/n": 3.0}
