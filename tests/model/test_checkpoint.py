"""Checkpoints: equal scores after a round trip, and everything that must not load."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pipeline.model import checkpoint_file
from pipeline.model.backbone import Backbone
from pipeline.model.checkpoint import CheckpointError, load_checkpoint, read_record, save_checkpoint
from pipeline.model.dcmpln import DCMPLN
from pipeline.model.folded import FoldedScorer, fold
from pipeline.model.loading import load_backbone
from pipeline.model.windows import WindowRule

RULE = WindowRule(32, 24, "all", "clip", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
RECORD = {
    "windows": RULE.record(), "texts": ["good photo.", "bad photo."], "mos_low": 0.0, "mos_high": 5.0,
    "dataset": "demo", "method": "dcmpln", "target": "quality", "leaks": [],
}  # fmt: skip


@pytest.fixture
def scorer(tiny_backbone: Backbone) -> FoldedScorer:
    torch.manual_seed(0)
    return fold(DCMPLN(tiny_backbone, prompt_depth=3))


def test_round_trip_gives_equal_scores_and_equal_bytes(
    scorer: FoldedScorer, tiny_backbone: Backbone, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "a.safetensors", scorer, RECORD)
    save_checkpoint(tmp_path / "b.safetensors", scorer, dict(reversed(RECORD.items())))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    loaded, rule, record = load_checkpoint(tmp_path / "a.safetensors", tiny_backbone, RULE)
    images = torch.randn(3, 3, 32, 32)
    assert torch.equal(loaded(images), scorer(images))
    assert rule == RULE
    assert record["texts"] == RECORD["texts"]
    assert record["backbone"] == tiny_backbone.record()
    assert read_record(tmp_path / "a.safetensors") == record


def test_a_scorer_without_adapter_loads_without_one(tiny_backbone: Backbone, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.safetensors", fold(DCMPLN(tiny_backbone, adapter=False, prompt_depth=2)), RECORD)
    assert load_checkpoint(tmp_path / "a.safetensors", tiny_backbone)[0].adapter is None


def test_another_backbone_or_window_rule_is_refused(scorer: FoldedScorer, tiny_config: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.safetensors", scorer, RECORD)
    other = load_backbone("tiny-vit", config=tiny_config, seed=2)
    with pytest.raises(
        CheckpointError, match=f"backbone weights_sha256 is '{other.weights_sha256}', and it was trained"
    ):
        load_checkpoint(tmp_path / "a.safetensors", other)
    wide = WindowRule(32, 16, "reference", "imagenet", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    message = (
        "images stride is 16, and it was trained with 24; images cover is 'reference', and it was trained with 'all'"
    )
    with pytest.raises(CheckpointError, match=re.escape(message)):
        load_checkpoint(tmp_path / "a.safetensors", scorer.backbone, wide)


def test_a_resize_of_images_is_part_of_the_rule(scorer: FoldedScorer, tmp_path: Path) -> None:
    small = replace(RULE, shorter_side=48)
    save_checkpoint(tmp_path / "small.safetensors", scorer, {**RECORD, "windows": small.record()})
    assert load_checkpoint(tmp_path / "small.safetensors", scorer.backbone, small)[1] == small
    with pytest.raises(CheckpointError, match="images shorter_side is None, and it was trained with 48"):
        load_checkpoint(tmp_path / "small.safetensors", scorer.backbone, RULE)
    save_checkpoint(tmp_path / "a.safetensors", scorer, RECORD)  # as earlier versions wrote it: without the key
    assert "shorter_side" not in read_record(tmp_path / "a.safetensors")["windows"]
    with pytest.raises(CheckpointError, match="images shorter_side is 48, and it was trained with None"):
        load_checkpoint(tmp_path / "a.safetensors", scorer.backbone, small)


def test_damaged_and_foreign_files_are_refused(scorer: FoldedScorer, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.safetensors", scorer, RECORD)
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"half\.safetensors is damaged or no safetensors file"):
        read_record(tmp_path / "half.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(
        CheckpointError, match=r"foreign\.safetensors has format None, and 'agiqa-folded-1' is read here"
    ):
        read_record(tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match=r"none\.safetensors does not exist"):
        read_record(tmp_path / "none.safetensors")
    record = read_record(tmp_path / "a.safetensors")
    constants = scorer.constants() | {"text_features": torch.full((2, 32), float("nan"))}
    save_file(constants, tmp_path / "nan.safetensors", metadata={"agiqa": json.dumps(record)})
    with pytest.raises(CheckpointError, match="text_features holds values that are not finite"):
        load_checkpoint(tmp_path / "nan.safetensors", scorer.backbone)


def test_a_record_is_read_without_its_tensors(
    scorer: FoldedScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, scorer, RECORD)
    length = int.from_bytes(path.read_bytes()[:8], "little")  # the format: length of the header, header, tensors
    header = json.loads(path.read_bytes()[8 : 8 + length])
    asked = []

    class Watched:
        def __init__(self, *words: object, **options: object) -> None:
            self.file = safe_open(*words, **options)

        def __enter__(self) -> "Watched":
            self.file.__enter__()
            return self

        def __exit__(self, *error: object) -> None:
            self.file.__exit__(*error)

        def metadata(self) -> dict[str, str]:
            return self.file.metadata()

        def keys(self) -> list[str]:
            return self.file.keys()

        def get_slice(self, key: str) -> object:
            return self.file.get_slice(key)

        def get_tensor(self, key: str) -> torch.Tensor:
            asked.append(key)
            return self.file.get_tensor(key)

    monkeypatch.setattr(checkpoint_file, "safe_open", Watched)
    assert read_record(path) == json.loads(header["__metadata__"]["agiqa"])
    assert asked == []
    load_checkpoint(path, scorer.backbone)
    assert sorted(asked) == sorted(header.keys() - {"__metadata__"})


def test_another_activation_is_refused_and_records_without_one_load(
    scorer: FoldedScorer, tiny_config: Path, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "a.safetensors", scorer, RECORD)
    gelu = load_backbone("tiny-vit", config=tiny_config, activation="gelu", seed=1)
    assert gelu.weights_sha256 == scorer.backbone.weights_sha256
    with pytest.raises(CheckpointError, match="backbone quick_gelu is False, and it was trained with True"):
        load_checkpoint(tmp_path / "a.safetensors", gelu)
    record = read_record(tmp_path / "a.safetensors")
    for key in ("config", "quick_gelu", "file", "seed"):
        del record["backbone"][key]
    save_file(scorer.constants(), tmp_path / "old.safetensors", metadata={"agiqa": json.dumps(record)})
    loaded, _, _ = load_checkpoint(tmp_path / "old.safetensors", scorer.backbone)
    images = torch.randn(3, 3, 32, 32)
    assert torch.equal(loaded(images), scorer(images))
