"""The backbone against plain open_clip, and what it refuses."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY
from safetensors.torch import save_file
from torch import Tensor

from pipeline.model.backbone import Backbone, BackboneError
from pipeline.model.loading import load_backbone, rebuild_backbone
from pipeline.model.torchvision_shim import ensure_torchvision_imports

ensure_torchvision_imports()
import open_clip  # noqa: E402 (the line above must come first)

TEXTS = ["good photo.", "a far longer photo of something bad."]


def plain_clip(config: Path, seed: int) -> torch.nn.Module:
    open_clip.add_model_config(config)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return open_clip.create_model(config.stem).eval()


def pad(tokens: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(tokens, (0, length - tokens.shape[1]))


def test_open_clip_imports_in_a_fresh_process() -> None:
    code = "from pipeline.model.torchvision_shim import ensure_torchvision_imports as e; e(); e()"
    code += "; import open_clip, torchvision"
    subprocess.run([sys.executable, "-W", "error::ImportWarning", "-c", code], check=True, timeout=120)


def test_without_prompts_features_are_open_clips_own(tiny_config: Path, tiny_backbone: Backbone) -> None:
    clip = plain_clip(tiny_config, seed=1)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(tiny_backbone.encode_image(images), clip.encode_image(images), atol=1e-5, rtol=1e-5)
        tokens = open_clip.get_tokenizer("tiny-vit")(TEXTS)
        expected = clip.encode_text(tokens)
        torch.testing.assert_close(
            tiny_backbone.encode_text(tiny_backbone.tokenize(TEXTS)), expected, atol=1e-5, rtol=1e-5
        )
        torch.testing.assert_close(tiny_backbone.encode_text(tokens), expected, atol=1e-5, rtol=1e-5)


def test_a_real_tower_equals_open_clip(vit_b_32: Backbone) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        clip = open_clip.create_model("ViT-B-32").eval()
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(vit_b_32.encode_image(images), clip.encode_image(images), atol=1e-4, rtol=1e-4)
    assert (vit_b_32.image_width, vit_b_32.text_width, vit_b_32.embed_dim) == (768, 512, 512)
    assert (vit_b_32.image_layers, vit_b_32.text_layers, vit_b_32.image_size) == (12, 12, 224)


def test_prompts_that_repeat_words_change_nothing(tiny_backbone: Backbone) -> None:
    """Prompts equal to a word's embedding, at depth 1, give the feature of the text that holds that word."""
    words = tiny_backbone.tokenize(["photo photo good photo."])
    prompts = tiny_backbone.token_embedding(words[0, 1:3])[None]  # (1, 2, D_t)
    with torch.no_grad():
        with_prompts = tiny_backbone.encode_text(tiny_backbone.tokenize(["good photo."], slots=2), prompts)
        torch.testing.assert_close(with_prompts, tiny_backbone.encode_text(words), atol=1e-6, rtol=1e-6)


def test_image_prompts_equal_a_hand_written_pass(tiny_backbone: Backbone) -> None:
    """Slots are refilled before layers 1..L-1, and live on after the last prompted layer."""
    visual, images = tiny_backbone.visual, torch.randn(2, 3, 32, 32)
    prompts = torch.randn(2, 4, 64)
    with torch.no_grad():
        patches = visual.conv1(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([visual.class_embedding.expand(2, 1, -1), patches], 1) + visual.positional_embedding
        tokens = visual.ln_pre(torch.cat([tokens, prompts[0].expand(2, -1, -1)], 1))
        first = visual.transformer.resblocks[0](tokens)
        second = visual.transformer.resblocks[1](torch.cat([first[:, :17], prompts[1].expand(2, -1, -1)], 1))
        third = visual.transformer.resblocks[2](second)  # the slots' outputs are kept: L = 2 of 3 layers
        expected = visual.ln_post(third[:, 0]) @ visual.proj
        torch.testing.assert_close(tiny_backbone.encode_image(images, prompts), expected, atol=1e-5, rtol=1e-5)


def test_weights_stay_frozen_and_in_evaluation_mode(tiny_backbone: Backbone) -> None:
    assert not any(parameter.requires_grad for parameter in tiny_backbone.parameters())
    assert not tiny_backbone.train().training


def test_random_weights_follow_the_seed_and_leave_the_global_one_alone(tiny_config: Path) -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first = load_backbone("tiny-vit", config=tiny_config, seed=1)
    assert torch.rand(1) == expected
    assert first.weights_sha256 == load_backbone("tiny-vit", config=tiny_config, seed=1).weights_sha256
    assert first.weights_sha256 != load_backbone("tiny-vit", config=tiny_config, seed=2).weights_sha256
    assert first.origin == "random"


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_file_round_trip(tiny_config: Path, tiny_backbone: Backbone, tmp_path: Path, suffix: str) -> None:
    state = {key: value.contiguous() for key, value in plain_clip(tiny_config, seed=1).state_dict().items()}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    loaded = load_backbone("tiny-vit", config=tiny_config, file=path, origin="in-house", seed=9)
    assert loaded.weights_sha256 == tiny_backbone.weights_sha256
    told_apart = {"pretrained": None, "origin": "random", "file": None, "seed": 1}
    assert loaded.record()["file"] == str(path)
    assert loaded.record() | told_apart == tiny_backbone.record()


def test_reduced_vocabulary_is_expanded_and_guarded(tiny_config: Path, tmp_path: Path) -> None:
    state = plain_clip(tiny_config, seed=1).state_dict()
    rows = open_clip.get_tokenizer("tiny-vit")(["good bad photo."])[0].unique()
    full = state["token_embedding.weight"]
    save_file(
        {**{key: value.contiguous() for key, value in state.items()},
         "token_embedding.weight": full[rows].contiguous(), "token_embedding.rows": rows.int()},
        tmp_path / "small.safetensors",
    )  # fmt: skip
    backbone = load_backbone("tiny-vit", config=tiny_config, file=tmp_path / "small.safetensors", origin="in-house")
    torch.testing.assert_close(backbone.token_embedding.weight[rows], full[rows])
    message = "text 'good elephant' uses 'elephant', which the reduced vocabulary of tiny-vit (small.safetensors)"
    with pytest.raises(BackboneError, match=re.escape(message)):
        backbone.tokenize(["good elephant"])


def test_refusals_say_what_would_be_right(tiny_config: Path, tmp_path: Path, tiny_backbone: Backbone) -> None:
    with pytest.raises(BackboneError, match=r"backbone\.name is 'ViT-Z', which open_clip does not know"):
        load_backbone("ViT-Z")
    with pytest.raises(
        BackboneError, match=r"backbone\.pretrained is 'opnai', which ViT-B-32 does not have; it has: .*openai"
    ):
        load_backbone("ViT-B-32", pretrained="opnai")
    with pytest.raises(BackboneError, match="ViT-B-32 openai was trained with 'quickgelu': use that, or null"):
        load_backbone("ViT-B-32", pretrained="openai", activation="gelu")
    with pytest.raises(BackboneError, match="RN50 has a ModifiedResNet image tower"):
        load_backbone("RN50")
    with pytest.raises(BackboneError, match="takes 4 tokens and 30 prompt slots, and tiny-vit has room for 24"):
        tiny_backbone.tokenize(["good photo"], slots=30)
    (tmp_path / "other.json").write_text(json.dumps(TINY))
    with pytest.raises(BackboneError, match=re.escape("backbone.config is other.json, and backbone.name 'tiny-vit'")):
        load_backbone("tiny-vit", config=tmp_path / "other.json")
    save_file({"visual.proj": torch.zeros(2, 2)}, tmp_path / "bad.safetensors")
    with pytest.raises(
        BackboneError, match=r"does not fit the towers: it lacks .*; it has other shapes of visual\.proj"
    ):
        load_backbone("tiny-vit", config=tiny_config, file=tmp_path / "bad.safetensors", origin="in-house")


def test_published_weights_without_network_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("offline")

    monkeypatch.setattr(open_clip.factory, "download_pretrained", no_network)
    message = (
        r"the weights of ViT-B-32 openai could not be downloaded .*set backbone\.file to .*activation to quickgelu"
    )
    with pytest.raises(BackboneError, match=message):
        load_backbone("ViT-B-32", pretrained="openai")


def test_a_backbone_is_rebuilt_from_its_record(tiny_config: Path, tiny_backbone: Backbone, tmp_path: Path) -> None:
    random = json.loads(json.dumps(tiny_backbone.record()))
    assert rebuild_backbone(random).weights_sha256 == tiny_backbone.weights_sha256
    state = {key: value.contiguous() for key, value in plain_clip(tiny_config, seed=4).state_dict().items()}
    (tmp_path / "here").mkdir()
    save_file(state, tmp_path / "here" / "w.safetensors")
    trained = load_backbone(
        "tiny-vit", config=tiny_config, file=tmp_path / "here" / "w.safetensors", origin="in-house", activation="gelu"
    )
    record = json.loads(json.dumps(trained.record())) | {"file": "here/w.safetensors"}
    rebuilt = rebuild_backbone(record, folders=[tmp_path / "nowhere", tmp_path])
    assert rebuilt.record() == trained.record()  # the activation, too, though the configuration says QuickGELU
    assert rebuild_backbone(record, file=tmp_path / "here" / "w.safetensors").weights_sha256 == record["weights_sha256"]
    message = f"trained with here/w.safetensors, and there is no {tmp_path}/nowhere/here/w.safetensors. Give the file"
    with pytest.raises(BackboneError, match=re.escape(message)):
        rebuild_backbone(record, folders=[tmp_path / "nowhere"])
    save_file(plain_clip(tiny_config, seed=5).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(BackboneError, match=r"other\.safetensors are not those that the checkpoint was trained with"):
        rebuild_backbone(record, file=tmp_path / "other.safetensors")
    with pytest.raises(BackboneError, match=r"cannot be built: the weights of ViT-B-32 openai could not be downloaded"):
        rebuild_backbone({"name": "ViT-B-32", "pretrained": "openai", "origin": "pretrained", "quick_gelu": True})


def test_records_of_earlier_versions_find_the_backbones_folder(tiny_config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "backbones" / "own"
    folder.mkdir(parents=True)
    (folder / "tiny-vit.json").write_text(tiny_config.read_text())
    save_file(plain_clip(tiny_config, seed=6).state_dict(), folder / "w.safetensors")
    trained = load_backbone(
        "tiny-vit", config=folder / "tiny-vit.json", file=folder / "w.safetensors", origin="in-house"
    )
    new = ("config", "quick_gelu", "file", "seed")
    old = {key: value for key, value in trained.record().items() if key not in new}
    assert rebuild_backbone(old, folders=[tmp_path]).record() == trained.record()
    old |= {"name": "ViT-B-32"}
    with pytest.raises(BackboneError, match="did not record the activation"):
        rebuild_backbone(old, file=folder / "w.safetensors")
