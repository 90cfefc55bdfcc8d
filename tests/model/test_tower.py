"""The fast tower against the plain model: scores and gradients over random towers, depths, sizes and strides."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.model.backbone import Backbone
from pipeline.model.dcmpln import DCMPLN, Constants
from pipeline.model.folded import fold, image_scores
from pipeline.model.loading import load_backbone
from pipeline.model.tower import FastTower
from pipeline.model.windows import WindowRule, cut, normalise, window_origins
from pipeline.training.step import score_tasks


def tower_of(folder: Path, seed: int) -> Backbone:
    """Build random towers whose norms and scales are not at their neutral values."""
    draw = np.random.default_rng(seed)
    patch, side = int(draw.choice([4, 8, 14])), int(draw.integers(2, 5))
    config = {
        "embed_dim": int(draw.choice([16, 48])),
        "quick_gelu": bool(draw.integers(2)),
        "vision_cfg": {
            "image_size": patch * side, "layers": int(draw.integers(1, 5)), "width": 64 * int(draw.integers(1, 3)),
            "head_width": 32, "patch_size": patch, "no_ln_pre": bool(draw.integers(2)),
            "ls_init_value": 0.3 if draw.integers(2) else None,
        },
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 4},
    }  # fmt: skip
    name = f"random-{seed}"
    (folder / f"{name}.json").write_text(json.dumps(config))
    backbone = load_backbone(name, config=folder / f"{name}.json", seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in backbone.visual.named_parameters():
            if "ln_" in key or key.endswith(("bias", "gamma")):
                value.add_(0.3 * torch.randn(value.shape, generator=generator))
    return backbone


def settings(seed: int, backbone: Backbone) -> tuple[int, int]:
    draw = np.random.default_rng([seed, 1])
    return int(draw.integers(1, min(backbone.image_layers, backbone.text_layers) + 1)), int(draw.integers(1, 6))


@pytest.mark.parametrize("seed", range(12))
def test_features_equal_the_plain_tower(tmp_path: Path, seed: int) -> None:
    backbone = tower_of(tmp_path, seed)
    depth, length = settings(seed, backbone)
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


@pytest.mark.parametrize("switches", [{}, {"mpa": False}, {"adapter": False}, {"adapter_shared": True}])
@pytest.mark.parametrize("seed", range(3))
def test_scores_and_gradients_equal_the_plain_models(tmp_path: Path, seed: int, switches: dict) -> None:
    backbone = tower_of(tmp_path, 20 + seed)
    depth, length = settings(seed, backbone)
    torch.manual_seed(seed)
    model = DCMPLN(backbone, prompt_depth=depth, prompt_length=length, prompt_std=0.5, **switches)
    images, target = torch.randn(4, 3, backbone.image_size, backbone.image_size), torch.rand(4)

    def gradients(scores: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
        model.zero_grad()
        ((scores[0] - target).square().mean() + 0.1 * (scores[1] - target).square().mean()).backward()
        return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}

    plain = model(images)
    fast = score_tasks(model, FastTower(backbone.image_tower()), images, *model.constants())
    for one, other in zip(plain, fast, strict=True):
        torch.testing.assert_close(other, one, atol=1e-5, rtol=0)
    expected, found = gradients(plain), gradients(fast)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        scale = value.abs().max().clamp_min(1e-8)
        torch.testing.assert_close(found[name] / scale, value / scale, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("seed", range(6))
def test_whole_images_score_as_the_plain_model_scores_their_windows(tmp_path: Path, seed: int) -> None:
    backbone = tower_of(tmp_path, 40 + seed)
    depth, length = settings(seed, backbone)
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


def test_both_passes_of_a_training_step_trace_without_a_break(tiny_backbone: Backbone) -> None:
    """What torch.compile makes of them on a GPU is one graph; here only the tracing is tried, without a compiler."""
    torch.manual_seed(0)
    model = DCMPLN(tiny_backbone, prompt_depth=3, prompt_length=2)
    images, tower = torch.randn(2, 3, 32, 32), FastTower(tiny_backbone.image_tower())
    expected = [Constants(*(part.detach() for part in task)) for task in model.constants()]
    traced = torch.compile(model.constants, backend="eager", fullgraph=True)()
    for task, plain in zip(traced, expected, strict=True):
        torch.testing.assert_close(tuple(task), tuple(plain), atol=1e-6, rtol=0)
    found = torch.compile(score_tasks, backend="eager", fullgraph=True)(model, tower, images, *expected)
    expected = score_tasks(model, tower, images, *expected)
    torch.testing.assert_close(tuple(found), tuple(expected), atol=1e-6, rtol=0)


def test_one_task_alone(tiny_backbone: Backbone) -> None:
    model = DCMPLN(tiny_backbone, auxiliary=False, mpa=False, layer_f=False, prompt_depth=2)
    images = torch.randn(2, 3, 32, 32)
    found = score_tasks(model, FastTower(tiny_backbone.image_tower()), images, *model.constants())
    torch.testing.assert_close(found.main, model(images)[0], atol=1e-5, rtol=0)
    assert found.auxiliary is None


def test_the_real_size(vit_b_32: Backbone) -> None:
    images, prompts = torch.randn(1, 3, 224, 224), 0.02 * torch.randn(1, 12, 8, 768)
    tower = FastTower(vit_b_32.image_tower())
    with torch.no_grad():
        found, expected = tower(tower.tokens(tower.embed(images)), prompts), vit_b_32.encode_image(images, prompts[0])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
