"""Prompted passes over timm's image towers, against open_clip's own pass and passes written by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_parts import RULE, SAID, TIMM_KINDS, model_of, plain_clip, timm_config, timm_towers

from pipeline.errors import AgiqaError
from pipeline.model.backbone import Backbone
from pipeline.model.checkpoint import load_checkpoint, read_record, save_checkpoint
from pipeline.model.dcmpln import DCMPLN
from pipeline.model.folded import fold, quantise, window_scores
from pipeline.model.image_side import BackboneError, image_features
from pipeline.model.loading import load_backbone, rebuild_backbone
from pipeline.model.torchvision_shim import ensure_torchvision_imports
from pipeline.model.windows import cut, normalise, window_origins

ensure_torchvision_imports()
import open_clip  # noqa: E402 (the line above must come first)

SIZES = {
    "ViT-B-32-SigLIP2-256": (256, 32, 768, 768, 12),
    "MobileCLIP-B": (224, 16, 768, 512, 12),
}


@pytest.fixture(params=TIMM_KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def backbone(kind: str, tmp_path: Path) -> Backbone:
    return timm_towers(tmp_path, kind)


def test_without_prompts_features_are_open_clips_own(kind: str, backbone: Backbone, tmp_path: Path) -> None:
    clip, images = plain_clip(tmp_path / f"made-{kind}.json", seed=1), torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(backbone.encode_image(images), clip.encode_image(images), atol=1e-5, rtol=0)
    assert (backbone.image_size, backbone.patch_size, backbone.image_width, backbone.image_layers) == (32, 8, 64, 3)


@pytest.mark.parametrize("name", SIZES)
def test_real_sizes_equal_open_clips_own_tower(name: str) -> None:
    """Image and text in one, since building these takes seconds; token ids stand for a text of any tokenizer."""
    vocabulary = 1000  # the table of 256,000 rows would take 0.8 GB and show nothing more
    config = open_clip.get_model_config(name)
    config["text_cfg"]["vocab_size"] = vocabulary
    clip = open_clip.CustomTextCLIP(**{key: value for key, value in config.items() if key != "custom_text"}).eval()
    backbone = Backbone(
        clip, lambda: None, name=name, pretrained=None, origin="random", config=config, quick_gelu=False
    )
    sizes = (backbone.image_size, backbone.patch_size, backbone.image_width, backbone.embed_dim, backbone.image_layers)
    assert sizes == SIZES[name]
    images = torch.randn(1, 3, backbone.image_size, backbone.image_size)
    tokens = torch.randint(1, vocabulary, (1, backbone.context_length))
    with torch.no_grad():
        torch.testing.assert_close(backbone.encode_image(images), clip.encode_image(images), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(backbone.encode_text(tokens), clip.encode_text(tokens), atol=1e-5, rtol=1e-5)
        prompted = backbone.encode_image(images, torch.randn(12, 4, backbone.image_width))
    assert prompted.shape == (1, backbone.embed_dim)
    assert prompted.isfinite().all()


def test_prompts_equal_a_hand_written_pass_and_are_not_pooled(kind: str, backbone: Backbone) -> None:
    """Slots are refilled before layers 1..L-1, and live on after the last prompted layer."""
    trunk, images, prompts = backbone.visual.trunk, torch.randn(2, 3, 32, 32), torch.randn(2, 4, 64)
    with torch.no_grad():
        tokens = trunk.patch_embed(images) + trunk.pos_embed  # neither kind gives its class token a position
        if kind == "stem":
            tokens = torch.cat([trunk.cls_token.expand(2, 1, -1), tokens], 1)
        body = tokens.shape[1]
        first = trunk.blocks[0](torch.cat([tokens, prompts[0].expand(2, -1, -1)], 1))
        second = trunk.blocks[1](torch.cat([first[:, :body], prompts[1].expand(2, -1, -1)], 1))
        third = trunk.norm(trunk.blocks[2](second)[:, :body])  # the slots' outputs are kept until here: L = 2 of 3
        expected = trunk.head(third[:, 0]) if kind == "stem" else trunk.attn_pool(third)
        torch.testing.assert_close(backbone.encode_image(images, prompts), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(image_features(backbone.visual, images, prompts), expected, atol=1e-5, rtol=0)


def test_a_model_trains_folds_and_comes_back_from_its_checkpoint(backbone: Backbone, tmp_path: Path) -> None:
    model = model_of(backbone)
    optimiser = torch.optim.SGD(model.trainable_parameters(), lr=0.1)
    images, target = torch.randn(4, 3, 32, 32), torch.tensor([0.0, 0.3, 0.6, 1.0])
    frozen = {key: value.clone() for key, value in backbone.state_dict().items()}
    losses = []
    for _ in range(3):
        main, auxiliary = model.train()(images)
        loss = ((main - target) ** 2).mean() + 0.1 * ((auxiliary - target) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert all(parameter.grad is not None for parameter in model.trainable_parameters())
    assert all(torch.equal(value, frozen[key]) for key, value in backbone.state_dict().items())  # batch norms, too

    scorer = fold(model)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = model(normalise(cut(pixels, window_origins(50, 70, RULE), 32), RULE))[0].numpy()
    np.testing.assert_allclose(window_scores(scorer, [pixels], RULE)[0].windows, expected, atol=1e-5, rtol=0)
    if backbone.fast_tower() is None:  # an attention pool reads every token
        with pytest.raises(AgiqaError, match="has layers that cannot be folded: no int8 for it"):
            quantise(scorer)
    else:
        small = window_scores(quantise(scorer), [pixels], RULE)[0].windows
        np.testing.assert_allclose(small, expected, atol=0.02, rtol=0)

    save_checkpoint(tmp_path / "one.safetensors", scorer, {"windows": RULE.record(), **SAID})
    rebuilt = rebuild_backbone(read_record(tmp_path / "one.safetensors")["backbone"])
    loaded, _, _ = load_checkpoint(tmp_path / "one.safetensors", rebuilt)
    assert np.array_equal(
        window_scores(loaded, [pixels], RULE)[0].windows, window_scores(scorer, [pixels], RULE)[0].windows
    )


def put(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return json.loads(json.dumps({**config, "vision_cfg": {**config["vision_cfg"], **changes}}))


def test_towers_that_prompts_cannot_use_are_refused() -> None:
    config = timm_config("map")
    other = put(config, timm_model_name="resnet10t", timm_pool="avg", timm_proj="linear")
    with pytest.raises(BackboneError, match="no-vit has a ResNet of timm's as its image tower; prompts need"):
        load_backbone("no-vit", config=other)
    with pytest.raises(BackboneError, match="says image_size 64, and its tower of timm's takes 32: say 32, or name"):
        load_backbone("other-size", config=put(config, image_size=64))
    with pytest.raises(BackboneError, match="has image features of 64 and text features of 48 numbers"):
        load_backbone("two-widths", config=put(config) | {"embed_dim": 48})


def test_mpa_says_which_widths_it_takes(tmp_path: Path) -> None:
    config = timm_config("map")
    config["text_cfg"] |= {"width": 48}
    backbone = load_backbone("narrow-text", config=config)
    with pytest.raises(AgiqaError, match="MPA needs tower widths in multiples of 64, and this tower is 48 wide"):
        DCMPLN(backbone, prompt_depth=2, prompt_length=2)


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16-SigLIP", "ViT-B-16-SigLIP2", "MobileCLIP-B"])
def test_the_readme_counts_parameters_rightly(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = open_clip.get_model_config(name)
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    monkeypatch.setattr("pipeline.model.backbone._hash_tensors", lambda state: "0" * 64)
    monkeypatch.setattr(Backbone, "tokenize", lambda self, texts, slots: torch.zeros(2, 12, dtype=torch.long))
    with torch.device("meta"):  # counts without taking memory or time
        backbone = Backbone(
            kind(**config), lambda: None, name=name, pretrained=None, origin="random", config=config, quick_gelu=False
        )
        model = DCMPLN(backbone)
    adapter = sum(part.numel() for part in model.main_adapter.parameters())
    counts = [
        sum(part.numel() for part in backbone.parameters()), sum(part.numel() for part in backbone.visual.parameters()),
        sum(part.numel() for part in model.trainable_parameters()),
        model.main_prompts.visual.numel() + 2 * backbone.embed_dim + adapter,
    ]  # fmt: skip
    row = " | ".join([f"| `{name}`", *(f"{count:,}" for count in counts)])
    assert f"{row} |" in (Path(__file__).resolve().parents[2] / "docs/study.md").read_text()
