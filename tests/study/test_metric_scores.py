"""A metric scores every image once, whoever asks, goes on after a kill, and stands in a study as any baseline does."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import made_pyiqa
import numpy as np
import pandas as pd
import pytest
from made_parts import RULE, bright_images, write_params, write_prepared
from scipy.stats import spearmanr

from pipeline.calibration import calibrate
from pipeline.files import file_md5, write_json
from pipeline.layout import StudyError, bars_champion
from pipeline.model.checkpoint_file import calibration_of, read_checkpoint
from pipeline.params import load_params
from pipeline.scoring.scorer import ScoringError, load_scorer
from pipeline.study import metric_scores as room
from pipeline.study.champion import ChampionError, find_champion
from pipeline.study.entrants import enter
from pipeline.study.metric_scores import metric_scores
from pipeline.study.publish import publish

BACKBONE = {
    "name": "tiny-vit", "origin": "random", "pretrained": None, "weights_sha256": "5" * 64, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip


@pytest.fixture
def study(in_tmp: Path, tiny_config: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with prepared data and all that the baseline stage reads, and a package called pyiqa."""
    monkeypatch.delenv("DVC_ROOT", raising=False)
    made_pyiqa.install(in_tmp / "site", monkeypatch)
    manifest = write_prepared(in_tmp)
    manifest["quality_std"] = 0.2
    manifest.to_parquet("data/prepared/demo/manifest.parquet", index=False)
    write_params(in_tmp, tiny_config, study__baselines=["pyiqa_grain", "pyiqa_light"], study__rounds=[0])
    Path("data/features").mkdir()
    np.savez(
        "data/features/demo.npz", image_id=manifest["image_id"].to_numpy(dtype=str), backbone=json.dumps(BACKBONE),
        image_features=np.zeros((24, 2)), image_features_deviation=np.ones((24, 2)), clip_iqa=np.arange(24.0),
        handcrafted=np.zeros((24, 3)), windows=json.dumps(RULE.record()), clip_iqa_text_features=np.eye(2),
        handcrafted_names=["a", "b", "c"],
    )  # fmt: skip
    pixels = {name: file_md5(f"data/prepared/demo/{name}") for name in ("manifest.parquet", "pixels.bin")}
    write_json("data/index/round-0.json", {"prepared": {"demo": pixels}})
    yield in_tmp
    sys.modules.pop("pyiqa", None)


def pyiqa() -> ModuleType:
    return sys.modules["pyiqa"]


def light() -> np.ndarray:
    return np.array([image.astype(np.float64).mean() / 255 for image in bright_images()])


def test_every_image_is_scored_once(study: Path) -> None:
    found = metric_scores(load_params(), "demo", "light")
    np.testing.assert_allclose(found.values, light(), rtol=1e-5)
    assert found.about == {"name": "light", "package": "pyiqa 9.9", "lower_better": False}
    assert found.cost["cpu_seconds_per_image"] > 0
    again = metric_scores(load_params(), "demo", "light")
    np.testing.assert_array_equal(again.values, found.values)
    assert (again.about, again.cost) == (found.about, found.cost)
    assert pyiqa().CALLS == ["light"] * 24


def test_other_pixels_or_another_version_are_scored_anew(study: Path) -> None:
    metric_scores(load_params(), "demo", "light")
    write_json("data/index/round-0.json", {"prepared": {"demo": {"pixels.bin": "other"}}})
    metric_scores(load_params(), "demo", "light")
    about = study / "site" / "pyiqa-9.9.dist-info" / "METADATA"
    about.write_text(about.read_text().replace("9.9", "9.10"))
    importlib.invalidate_caches()
    assert metric_scores(load_params(), "demo", "light").about["package"] == "pyiqa 9.10"
    assert len(pyiqa().CALLS) == 3 * 24


def test_a_killed_pass_goes_on(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "EVERY", 0.0)

    def dies(image: object) -> object:
        if len(pyiqa().CALLS) > 10:
            raise KeyboardInterrupt
        return image.mean()

    metric_scores(load_params(), "demo", "grain")  # imports the package
    pyiqa().CALLS.clear()
    monkeypatch.setitem(pyiqa().METRICS, "light", (False, dies))
    with pytest.raises(KeyboardInterrupt):
        metric_scores(load_params(), "demo", "light")
    monkeypatch.setitem(pyiqa().METRICS, "light", (False, lambda image: image.mean()))
    found = metric_scores(load_params(), "demo", "light")
    np.testing.assert_allclose(found.values, light(), rtol=1e-5)
    assert len(pyiqa().CALLS) == 11 + 14  # the eleventh was not kept
    assert found.cost["seconds_per_image"] > 0


def test_a_score_that_is_no_number_is_named(study: Path) -> None:
    with pytest.raises(StudyError, match=r"^pyiqa_lost has no finite score for 00\.png of demo$"):
        metric_scores(load_params(), "demo", "lost")


def test_pixels_are_told_by_the_index(study: Path) -> None:
    Path("data/index/round-0.json").unlink()
    with pytest.raises(StudyError, match=r"round-0\.json does not exist: run `dvc repro index` first"):
        metric_scores(load_params(), "demo", "light")


@pytest.mark.parametrize("method", ["pyiqa_grain", "pyiqa_light"])
def test_it_stands_in_a_study_as_any_baseline_does(study: Path, method: str) -> None:
    from stages import baseline, evaluate

    baseline.main(["--dataset", "demo", "--baseline", method])
    evaluate.main(["--dataset", "demo", "--method", method])
    run = Path("runs/demo") / method / "round-0"
    record = json.loads((run / "train" / "record.json").read_text())
    scores = metric_scores(load_params(), "demo", method.removeprefix("pyiqa_")).values
    mos = pd.read_parquet("data/prepared/demo/manifest.parquet")["quality"].to_numpy()
    validation, test = slice(0, 24, 4), slice(1, 24, 4)
    assert record["kind"] == "baseline"
    assert record["backbone"] is None
    assert record["metric"]["package"] == "pyiqa 9.9"
    assert record["validation"]["srcc"] == pytest.approx(spearmanr(scores[validation], mos[validation]).statistic)
    table = pd.read_csv(run / "evaluate" / "predictions.csv")
    np.testing.assert_allclose(table["predicted"], scores[test])
    checkpoint = run / "train" / "checkpoints" / "epoch-000.safetensors"
    stored, arrays = read_checkpoint(checkpoint)
    expected = calibrate(scores[validation], mos[validation], np.arange(6), 1.0, 5.0)
    for part in ("offset", "slope", "low", "high", "images", "groups"):
        assert getattr(calibration_of(stored), part) == pytest.approx(getattr(expected, part))
    assert arrays == {}
    np.testing.assert_allclose(table["score"], expected.to_mos(scores[test]))
    found = json.loads((run / "evaluate" / "metrics.json").read_text())
    assert found["test"]["srcc"] == pytest.approx(spearmanr(scores[test], mos[test]).statistic)
    assert "unfamiliar" not in found["test"]  # it sees no features of an image
    assert found["cost"]["cpu_seconds"] > 0  # of the pass, though the scores were at hand
    entrant = enter(load_params(), run / "train")
    assert entrant.feature_cost == metric_scores(load_params(), "demo", method.removeprefix("pyiqa_")).cost
    assert [method.removeprefix("pyiqa_")] * 24 == pyiqa().CALLS


def test_it_is_compared_with_and_never_given_away(study: Path) -> None:
    from stages import baseline, evaluate

    baseline.main(["--dataset", "demo", "--baseline", "pyiqa_light"])
    evaluate.main(["--dataset", "demo", "--method", "pyiqa_light"])
    train = Path("runs/demo/pyiqa_light/round-0/train")
    record = json.loads((train / "record.json").read_text())
    assert bars_champion(record) == ["a metric of pyiqa 9.9, others' work"]
    with pytest.raises(ChampionError, match="holds no trained model"):
        find_champion(".", "demo")
    write_json("data/prepared/demo/card.json", {"dataset": "demo"})
    write_json("data/splits/demo/audit.json", {"rounds": {"0": {}}})
    with pytest.raises(StudyError, match=r"is not to be given away: a metric of pyiqa 9\.9, others' work"):
        publish(Path(), "demo", ["pyiqa_light"], 0, Path("out"))
    with pytest.raises(ScoringError, match=r"is the metric light of pyiqa 9\.9, .* score with that package$"):
        load_scorer(train / "checkpoints" / "epoch-000.safetensors")


def test_a_baseline_that_nobody_knows_ends_its_stage(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from stages import baseline

    with pytest.raises(SystemExit):
        baseline.main(["--dataset", "demo", "--baseline", "niqe"])
    assert "--baseline is 'niqe'; known: clip_iqa, linear_probe, handcrafted, pyiqa_NAME" in capsys.readouterr().err
