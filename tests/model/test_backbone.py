"""The backbone against plain open_clip, and what it refuses."""

import copy
from pathlib import Path

import pytest
import torch
from made_parts import plain_clip
from torch import Tensor

from pipeline.model.backbone import Backbone, BackboneError
from pipeline.model.dcmpln import DCMPLN
from pipeline.model.folded import fold
from pipeline.model.loading import load_backbone
from pipeline.model.torchvision_shim import ensure_torchvision_imports

ensure_torchvision_imports()
import open_clip  # noqa: E402 (the line above must come first)

TEXTS = ["good photo.", "a far longer photo of something bad."]


def pad(tokens: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(tokens, (0, length - tokens.shape[1]))


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


def test_towers_and_texts_that_prompts_cannot_use_are_refused(tiny_backbone: Backbone) -> None:
    with pytest.raises(BackboneError, match="RN50 has a ModifiedResNet image tower"):
        load_backbone("RN50")
    with pytest.raises(BackboneError, match="takes 4 tokens and 30 prompt slots, and tiny-vit has room for 24"):
        tiny_backbone.tokenize(["good photo"], slots=30)


def test_the_folded_tower_is_the_backbones_own_and_moves_with_it(tiny_config: Path) -> None:
    backbone = load_backbone("tiny-vit", config=tiny_config, seed=1)
    keys, copied = list(backbone.state_dict()), copy.deepcopy(backbone)
    tower = backbone.fast_tower()
    assert backbone.fast_tower() is tower
    assert fold(DCMPLN(backbone, prompt_depth=2))._tower() is tower
    assert copied.fast_tower() is not tower
    assert list(backbone.state_dict()) == keys  # it adds nothing to what is saved
    backbone.to("meta")  # stands for a GPU
    assert {value.device.type for value in tower.buffers()} == {"meta"}
    assert backbone.fast_tower() is tower
    assert {value.device.type for value in copied.fast_tower().buffers()} == {"cpu"}
