"""Checkpoints: equal scores after a round trip, and everything that must not load."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.model.backbone import Backbone
from pipeline.model.checkpoint import CheckpointError, load_checkpoint, read_record, save_checkpoint
from pipeline.model.dcmpln import DCMPLN
from pipeline.model.folded import FoldedScorer, fold
from pipeline.model.loading import load_backbone
from pipeline.model.windows import WindowRule
from pipeline.scoring.released import load_released_auxiliary

RULE = WindowRule(32, 24, "all", "clip", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
RECORD = {"windows": RULE.record(), "texts": ["good photo.", "bad photo."], "mos_low": 0.0, "mos_high": 5.0}


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


def test_released_auxiliary_prompts_load_into_clip_agiqa(agiqa_data: Path, vit_b_32: Backbone) -> None:
    path = agiqa_data / "checkpoints" / "AGIQA3k_aux.pth"
    model = DCMPLN(vit_b_32, mpa=False, adapter=False)
    unused = load_released_auxiliary(path, model)
    assert unused == ["token_prefix", "token_suffix"]
    released = torch.load(path, map_location="cpu", weights_only=True)
    assert torch.equal(model.auxiliary_prompts.text[0], released["ctx"])
    assert torch.equal(model.auxiliary_prompts.text[11], released["prompts_text.10"])
    assert torch.equal(model.auxiliary_prompts.visual[5], released["prompts_vis.5"])


def test_released_prompts_that_do_not_fit_are_refused(tiny_backbone: Backbone, tmp_path: Path) -> None:
    state = {"ctx": torch.zeros(4, 64), **{f"prompts_text.{i}": torch.zeros(4, 64) for i in range(2)},
             **{f"prompts_vis.{i}": torch.zeros(4, 64) for i in range(3)}}  # fmt: skip
    path = tmp_path / "release.pth"
    model = DCMPLN(tiny_backbone, mpa=False, adapter=False, prompt_depth=3, prompt_length=4)
    torch.save(state, path)
    assert load_released_auxiliary(path, model) == []
    with pytest.raises(ValueError, match="only a variant with auxiliary prompts and without MPA"):
        load_released_auxiliary(path, DCMPLN(tiny_backbone, prompt_depth=3))
    shallow = DCMPLN(tiny_backbone, mpa=False, prompt_depth=2, prompt_length=4)
    with pytest.raises(CheckpointError, match=r"prompts beyond depth 2 \(prompts_text.1, prompts_vis.2\)"):
        load_released_auxiliary(path, shallow)
    long = DCMPLN(tiny_backbone, mpa=False, prompt_depth=3, prompt_length=5)
    with pytest.raises(CheckpointError, match=re.escape("text prompts of shape [(4, 64)], not (5, 64)")):
        load_released_auxiliary(path, long)
    torch.save({key: value for key, value in state.items() if key != "prompts_vis.1"}, path)
    with pytest.raises(CheckpointError, match=r"lacks prompts_vis\.1: a prompt depth of 3 needs them"):
        load_released_auxiliary(path, model)
    path.write_bytes(b"not a pickle")
    with pytest.raises(CheckpointError, match="is not a plain torch state dict"):
        load_released_auxiliary(path, model)


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
