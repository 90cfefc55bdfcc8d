"""What is given away: checkpoints that score as the study's, and a card that says what the study found, and no more."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from made_published import a_run, published_study

from pipeline import layout
from pipeline.files import file_md5
from pipeline.layout import StudyError
from pipeline.model.checkpoint_file import read_checkpoint
from pipeline.study import publish
from pipeline.study.champion import ChampionError, find_champion, find_shipped


@pytest.fixture
def study(in_tmp: Path) -> Path:
    return published_study(in_tmp)


def test_the_card_says_what_the_study_found(study: Path) -> None:
    out = study / "models/photos"
    parser = argparse.ArgumentParser()
    publish.add_arguments(parser)
    words = ["photos", "--method", "probe", "--method", "handcrafted", "--out", "models/photos"]
    assert publish.run(parser.parse_args(words)) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "card.json", "handcrafted.safetensors", "probe.safetensors"
    ]  # fmt: skip
    card = json.loads((out / "card.json").read_text())
    assert [model["test"]["srcc"] for model in card["models"]] == [0.6, 0.7]
    assert [model["rounds"]["srcc"] for model in card["models"]] == pytest.approx([0.55, 0.8])
    assert card["split"]["test_images"] == ["a", "b"]
    assert card["models"][0]["generator_error"] == pytest.approx(np.sqrt((0.3**2 + 0.4**2) / 2))
    for model in card["models"]:
        given = out / model["file"]
        assert model["md5"] == file_md5(given)
        record, arrays = read_checkpoint(given)
        told, held = read_checkpoint(
            layout.checkpoint_path(layout.run_folder("photos", model["method"], 0) / "train", 0)
        )
        assert record == told | {"generator_error": model["generator_error"], "generators": 2}
        for name, values in held.items():
            np.testing.assert_array_equal(arrays[name], values)
    text = (out / "README.md").read_text()
    for said in (
        "on the scale 0 to 5, as people rated\nphotos (licence: MIT)", "**handcrafted**", "60 training images of 30",
        "| handcrafted | 0.700 (0.600 to 0.800) | 0.500 (0.400 to 0.600) | 0.700 | 0.550 | 91 % | 2.20 | 2 % | 0.800 |",
        "| glide | 10 | 2.00 | 2.30 | - | 0.60 | 90 % |", "probe 0.35, handcrafted 0.35 MOS",
    ):  # fmt: skip
        assert said in text
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    publish.run(parser.parse_args(words))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_what_leaks_or_was_changed_is_not_given_away(study: Path) -> None:
    with pytest.raises(StudyError, match="the study has no such run"):
        publish.publish(study, "photos", ["dcmpln"], 0, study / "out")
    a_run(study, "leaky", 0, 0.9, leaks=["epoch selected on test"])
    with pytest.raises(StudyError, match="is not to be given away: epoch selected on test"):
        publish.publish(study, "photos", ["leaky"], 0, study / "out")
    a_run(study, "other", 0, 0.9, checkpoint_md5="0" * 32)
    with pytest.raises(StudyError, match="is not the checkpoint that was judged: run `dvc repro`"):
        publish.publish(study, "photos", ["other"], 0, study / "out")
    (a_run(study, "fresh", 0, 0.9) / "evaluate/metrics.json").unlink()
    with pytest.raises(StudyError, match=r"metrics\.json does not exist: the study is not finished"):
        publish.publish(study, "photos", ["fresh"], 0, study / "out")
    assert not (study / "out").exists()


def test_the_better_of_what_came_with_a_repository_is_found(study: Path, tmp_path: Path) -> None:
    assert find_shipped(study) is None
    publish.publish(study, "photos", ["probe", "handcrafted"], 0, study / "models/photos")
    assert find_shipped(study) == study / "models/photos/handcrafted.safetensors"
    assert find_shipped(study, "photos", "probe") == study / "models/photos/probe.safetensors"
    assert find_shipped(study, "drawings") is None
    (study / "models/photos/card.json").write_text("{")
    with pytest.raises(ChampionError, match=r"card\.json is damaged \(.*\): restore it from git"):
        find_shipped(study)


def test_simulated_raters_make_nobodys_choice(in_tmp: Path) -> None:
    a_run(in_tmp, "handcrafted", 0, 0.9, raters="simulated")
    with pytest.raises(ChampionError, match=r"learned from simulated raters, so none .* such as auto:photos"):
        find_champion(in_tmp)
    assert find_champion(in_tmp, "photos").is_file()
