"""The fast tower against the plain model: scores and gradients over random towers, depths, sizes and strides."""

from pathlib import Path

import numpy as np
import pytest
import torch
from made_parts import sizes_for, tower_of

from pipeline.model.backbone import Backbone
from pipeline.model.dcmpln import DCMPLN
from pipeline.model.folded import fold, image_scores
from pipeline.model.tower import FastTower
from pipeline.model.windows import WindowRule, cut, normalise, window_origins


@pytest.mark.parametrize("seed", range(12))
def test_features_equal_the_plain_tower(tmp_path: Path, seed: int) -> None:
    backbone = tower_of(tmp_path, seed)
    depth, length = sizes_for(seed, backbone)
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(3, 3, backbone.image_size, backbone.image_size, generator=generator)
    prompts = torch.randn(2, depth, length, backbone.image_width, generator=generator)
    tower = FastTower(backbone.image_tower())
    tokens = tower.tokens(tower.embed(images))
    with torch.no_grad():
        found = tower(tokens, prompts)
        expected = torch.cat([backbone.encode_image(images, group) for group in prompts])
    torch.testing.assert_close(found / expected.abs().max(), expected / expected.abs().max(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_windows_share_patches_exactly(tmp_path: Path, seed: int) -> None:
    backbone = tower_of(tmp_path, seed)
    draw = np.random.default_rng([seed, 2])
    size = backbone.image_size
    pixels = draw.integers(0, 256, (size + int(draw.integers(0, 40)), size + int(draw.integers(0, 40)), 3)).astype(
        "uint8"
    )
    stride = int(draw.choice([backbone.patch_size, 2 * backbone.patch_size, 5]))
    rule = WindowRule(size, stride, "all", "clip", mean=(0.5,) * 3, std=(0.25,) * 3)
    origins = window_origins(*pixels.shape[:2], rule)
    tower = FastTower(backbone.image_tower())
    image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    windows = torch.from_numpy(cut(pixels, origins, size)).permute(0, 3, 1, 2).float() / 255
    torch.testing.assert_close(
        tower.window_tokens(image, origins), tower.tokens(tower.embed(windows)), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("seed", range(6))
def test_whole_images_score_as_the_plain_model_scores_their_windows(tmp_path: Path, seed: int) -> None:
    backbone = tower_of(tmp_path, 40 + seed)
    depth, length = sizes_for(seed, backbone)
    draw = np.random.default_rng([seed, 3])
    torch.manual_seed(seed)
    model = DCMPLN(backbone, prompt_depth=depth, prompt_length=length, prompt_std=0.5)
    size, patch = backbone.image_size, backbone.patch_size
    rule = WindowRule(size, int(draw.choice([patch, 2 * patch, 5])), "all", "clip", (0.5,) * 3, (0.25,) * 3)
    sides = size + draw.integers(0, 30, (3, 2))
    images = [draw.integers(0, 256, (*side, 3)).astype(np.uint8) for side in sides]
    found = image_scores(fold(model), images, 3, rule, batch=int(draw.integers(3, 20)))
    for image, score in zip(images, found, strict=True):
        windows = normalise(cut(image, window_origins(*image.shape[:2], rule), size), rule)
        with torch.no_grad():
            assert score == pytest.approx(float(model(windows)[0].double().mean()), abs=1e-5)


def test_the_real_size(vit_b_32: Backbone) -> None:
    images, prompts = torch.randn(1, 3, 224, 224), 0.02 * torch.randn(1, 12, 8, 768)
    tower = FastTower(vit_b_32.image_tower())
    with torch.no_grad():
        found, expected = tower(tower.tokens(tower.embed(images)), prompts), vit_b_32.encode_image(images, prompts[0])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
