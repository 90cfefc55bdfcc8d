"""Where files lie: worked out by hand, and held against dvc.yaml, which names the same paths a second time."""

import re
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from pipeline import layout
from pipeline.study import runs

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
ITEM = {"dataset": "photos", "variant": "dcmpln", "method": "dcmpln", "baseline": "linear_probe", "round": "4"}
RUN, DRAWN = layout.run_folder("photos", "dcmpln", 4), layout.run_folder("photos", "dcmpln", 4, "random")


def paths(stage: str, kind: str) -> set[str]:
    """Return a stage's dependencies or outputs for `ITEM`, the code's left out."""
    body = STAGES[stage].get("do", STAGES[stage])
    filled = [re.sub(r"\$\{item\.?(\w*)\}", lambda found: ITEM[found[1] or "dataset"], path) for path in body[kind]]
    return {path for path in filled if not path.startswith("data/code/")}


def words(*expected: Path) -> set[str]:
    return {path.as_posix() for path in expected}


def test_paths_are_these() -> None:
    assert Path("runs/photos/dcmpln/round-4") == RUN
    assert Path("runs/photos/dcmpln/random-4") == DRAWN
    assert layout.input_paths("photos", 4) == (
        Path("data/prepared/photos/manifest.parquet"), Path("data/splits/photos/round-4.csv")
    )  # fmt: skip
    assert layout.input_paths("photos", 4, "random")[1] == Path("data/splits/photos/random-4.csv")
    assert layout.checkpoint_path(RUN / "train", 7) == RUN / "train/checkpoints/epoch-007.safetensors"
    assert layout.checkpoint_name(1234) == "epoch-1234.safetensors"


def test_dvc_yaml_names_what_the_layout_names() -> None:
    manifest, split = layout.input_paths("photos", 4)
    drawn_split = layout.input_paths("photos", 4, "random")[1]
    assert paths("preprocess", "outs") == words(manifest.parent)
    assert paths("split", "outs") == words(split.parent) == words(drawn_split.parent)
    assert paths("train", "deps") == words(manifest.parent, split)
    assert paths("train", "outs") == words(RUN / layout.TRAIN)
    assert paths("train_random", "deps") == words(manifest.parent, drawn_split)
    assert paths("train_random", "outs") == words(DRAWN / layout.TRAIN)
    assert words(RUN / layout.TRAIN / layout.RECORD) <= paths("evaluate", "deps")
    assert paths("evaluate", "outs") == words(RUN / layout.EVALUATE)
    trained = words(RUN / layout.TRAIN, DRAWN / layout.TRAIN)
    assert paths("audit", "deps") == trained | words(manifest.parent, split, drawn_split)
    assert paths("audit", "outs") == words(RUN / layout.AUDIT, DRAWN / layout.AUDIT, DRAWN / layout.EVALUATE)
    # Model and evaluation in one: DVC removes both before the stage, so that they always fit each other.
    assert paths("baseline", "outs") == words(layout.run_folder("photos", "linear_probe", 4).parent)
    assert words(layout.RUNS) <= paths("report", "deps")
    # What features cost stands apart from them: a baseline depends on both, and the index on features alone.
    made = words(layout.features_path("photos"), layout.feature_times_path("photos"))
    assert paths("features", "outs") == made <= paths("baseline", "deps")
    assert layout.FEATURES not in layout.FEATURE_TIMES.parents


def test_who_rated_is_said_in_words_and_files_of_earlier_versions_were_rated_by_people() -> None:
    assert layout.rated_by({"raters": "simulated"}) == "simulated raters"
    assert layout.rated_by({"raters": "people"}) == layout.rated_by({}) == "people"
    assert layout.mos_label("quality", {"raters": "simulated"}) == "quality MOS of simulated raters"
    assert layout.mos_label("quality", {}) == "quality MOS"


def test_the_root_is_dvcs_where_dvc_runs_us(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert layout.repository_root() == in_tmp
    monkeypatch.setenv("DVC_ROOT", str(in_tmp / "other"))
    assert layout.repository_root() == in_tmp / "other"


def test_leaks_are_said_in_words() -> None:
    assert layout.leaks("grouped", "validation") == []
    assert layout.leaks("random", "test") == ["random split", "epoch selected on test"]
    assert layout.leaks("random", None) == ["random split"]


@pytest.mark.parametrize(
    ("changes", "bars"),
    [
        ({}, []),
        ({"leaks": ["random split", "epoch selected on test"]}, ["random split", "epoch selected on test"]),
        ({"shuffled_labels": True}, ["shuffled labels"]),
        ({"kind": "baseline"}, []),
        ({"leaks": ["random split"], "shuffled_labels": True}, ["random split", "shuffled labels"]),
    ],
)
def test_what_bars_a_champion(changes: dict[str, object], bars: list[str]) -> None:
    assert layout.bars_champion({"kind": "variant", "leaks": [], "shuffled_labels": False, **changes}) == bars


def test_weights_are_found_by_epoch(tmp_path: Path) -> None:
    assert layout.weights_files(tmp_path) == {}
    for name in (layout.checkpoint_name(2), layout.checkpoint_name(10), "epoch-003.safetensors.partial", "notes.txt"):
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        (tmp_path / "checkpoints" / name).touch()
    folder = tmp_path / "checkpoints"
    assert layout.weights_files(tmp_path) == {
        2: folder / "epoch-002.safetensors", 10: folder / "epoch-010.safetensors"
    }  # fmt: skip


def test_validation_numbers_are_the_selected_epochs(tmp_path: Path) -> None:
    rows = [
        {"epoch": 1, "loss": 0.5, "validation_srcc": 0.25, "validation_plcc": 0.5},
        {"epoch": 2, "loss": 0.4, "validation_srcc": float("nan"), "validation_plcc": 0.75},
    ]
    runs.write_table(tmp_path / layout.HISTORY, rows)
    assert layout.validation_numbers(tmp_path, 1) == {"srcc": 0.25, "plcc": 0.5}
    assert layout.validation_numbers(tmp_path, 2) == {"plcc": 0.75}
    assert layout.validation_numbers(tmp_path, 3) == {}


def test_a_backbone_is_shown_with_its_weights() -> None:
    label = layout.backbone_label
    assert label({"name": "ViT-B-32", "pretrained": "openai", "origin": "pretrained"}) == "ViT-B-32 (openai weights)"
    assert label({"name": "tiny", "pretrained": None, "origin": "in-house"}) == "tiny (in-house weights)"
    assert label({"name": "tiny", "pretrained": None, "origin": "random"}) == "tiny (random weights)"
