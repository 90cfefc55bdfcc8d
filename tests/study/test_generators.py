"""The error of a generator's mean: by hand, from a checkpoint, from a run, and in simulation."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from pipeline.layout import StudyError
from pipeline.study.generators import USUAL, GeneratorError, error_of, generator_error

MEASURED = {
    "a": {"n": 9, "mos_mean": 2.0, "score_mean": 2.3},
    "b": {"n": 9, "mos_mean": 3.0, "score_mean": 2.6},
}
KNOWN = GeneratorError(pytest.approx(np.sqrt((0.09 + 0.16) / 2)), 2)


def test_the_error_is_the_root_mean_square() -> None:
    assert error_of(MEASURED) == KNOWN
    assert error_of({"a": MEASURED["a"]}) is None
    assert error_of({name: {"n": 9, "mos_mean": 2.0} for name in "abc"}) is None  # scores that are not calibrated
    assert error_of({}) is None


def test_its_reach_is_that_of_two_errors() -> None:
    assert GeneratorError(0.3, 6).reach() == pytest.approx(stats.t.ppf(0.975, 6) * np.hypot(0.3, 0.3))
    assert GeneratorError(0.0, 2).reach() == 0


def test_a_checkpoint_may_carry_it(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    assert generator_error({"generator_error": 0.25, "generators": 4}, path) == (0.25, 4)
    assert generator_error({"generator_error": 0.0}, path) == (0.0, USUAL)
    assert generator_error({}, path) is None


def test_the_run_of_a_study_knows_it(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "photos" / "dcmpln" / "round-0"
    checkpoints = run / "train" / "checkpoints"
    checkpoints.mkdir(parents=True)
    chosen = checkpoints / "epoch-002.safetensors"
    assert generator_error({}, chosen) is None  # no record
    (run / "train" / "record.json").write_text(json.dumps({"selected_epoch": 2, "validation": {"srcc": 0.5}}))
    assert generator_error({}, chosen) is None  # not yet evaluated
    (run / "evaluate").mkdir()
    metrics = run / "evaluate" / "metrics.json"
    metrics.write_text(json.dumps({"validation": {"srcc": 0.5}, "generator": MEASURED}))
    assert generator_error({}, chosen) == KNOWN
    link = tmp_path / "best.safetensors"
    link.symlink_to(chosen)
    chosen.touch()
    assert generator_error({}, link) == KNOWN
    assert generator_error({"generator_error": 0.1, "generators": 3}, chosen) == (0.1, 3)  # what it carries comes first
    assert generator_error({}, checkpoints / "epoch-001.safetensors") is None
    metrics.write_text(json.dumps({"validation": {"srcc": 0.4}, "generator": MEASURED}))
    assert generator_error({}, chosen) is None  # of an earlier training
    for damaged in ("{", "[]", '{"generator": {}}', '{"validation": {"srcc": 0.5}, "generator": {"a": 1, "b": 2}}'):
        metrics.write_text(damaged)
        with pytest.raises(StudyError, match=r"metrics\.json or the run's record is damaged"):
            generator_error({}, chosen)


@pytest.mark.parametrize("generators", [2, 6])
@pytest.mark.parametrize("error", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("images", [10, 1000])
def test_two_generators_of_equal_truth_are_seldom_told_apart(generators: int, error: float, images: int) -> None:
    """The error is estimated on 60 test images each; then a model compares two new generators of the same MOS."""
    draws, spread = 4000, 0.5
    random = np.random.default_rng(0)
    measured = random.normal(0, np.hypot(error, spread / np.sqrt(60)), (draws, generators))
    reach = np.array([error_of({
        str(place): {"mos_mean": 0.0, "score_mean": value} for place, value in enumerate(row)
    }).reach() for row in measured])  # fmt: skip
    noise = spread * np.sqrt(2 / images)
    difference = random.normal(0, np.hypot(np.sqrt(2) * error, noise), draws)
    half = stats.t.ppf(0.975, images - 1) * noise * np.sqrt(random.chisquare(images - 1, draws) / (images - 1))
    false = np.mean(np.abs(difference) > np.hypot(half, reach))
    assert false <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / draws)
