"""Folded scores against the model, and images of any size."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from made_parts import model_of, unfoldable
from scipy.stats import spearmanr

from pipeline.errors import AgiqaError
from pipeline.model import folded
from pipeline.model.backbone import Backbone
from pipeline.model.dcmpln import DCMPLN
from pipeline.model.folded import fold, image_scores, lay_out, quality_map, quantise, window_scores
from pipeline.model.linear import int8_bits
from pipeline.model.windows import WindowRule, cut, normalise, spread, window_origins

RULE = WindowRule(32, 24, "all", "clip", mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))


class MeanBrightness(torch.nn.Module):
    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return windows.mean(dim=(1, 2, 3))


@pytest.mark.parametrize("task", ["main", "auxiliary"])
@pytest.mark.parametrize("switches", [{}, {"mpa": False}, {"adapter": False}, {"prompt_depth": 1}, {"prompt_depth": 2}])
def test_folded_equals_unfolded(tiny_backbone: Backbone, task: str, switches: dict[str, object]) -> None:
    torch.manual_seed(1)
    model = DCMPLN(tiny_backbone, **{"prompt_depth": 3, "prompt_length": 4, **switches})
    for parameter in model.trainable_parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    images = torch.randn(6, 3, 32, 32)
    scores = model(images)[0 if task == "main" else 1].detach()
    assert scores.std() > 1e-4
    torch.testing.assert_close(fold(model, task)(images), scores, atol=1e-5, rtol=0)


def test_folded_scores_do_not_follow_later_training(tiny_backbone: Backbone) -> None:
    torch.manual_seed(1)
    model, images = DCMPLN(tiny_backbone, prompt_depth=3), torch.randn(2, 3, 32, 32)
    scorer = fold(model)
    before = scorer(images)
    with torch.no_grad():
        for parameter in model.trainable_parameters():
            parameter.add_(1.0)
    assert torch.equal(scorer(images), before)
    assert all(value.numel() < 1e6 for value in scorer.constants().values())


def test_only_a_task_that_is_there_folds(tiny_backbone: Backbone) -> None:
    model = DCMPLN(tiny_backbone, auxiliary=False, mpa=False, layer_f=False, prompt_depth=3)
    with pytest.raises(ValueError, match="no auxiliary task to fold"):
        fold(model, "auxiliary")


def test_an_images_score_is_the_mean_of_its_windows(tiny_backbone: Backbone) -> None:
    torch.manual_seed(1)
    scorer = fold(DCMPLN(tiny_backbone, prompt_depth=3))
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, shape, dtype=np.uint8) for shape in [(40, 90, 3), (32, 32, 3), (20, 50, 3)]]
    scores = image_scores(scorer, iter(images), 3, RULE, batch=4)
    for image, score in zip(images[:2], scores, strict=False):
        windows = cut(image, window_origins(*image.shape[:2], RULE), 32)
        assert score == pytest.approx(float(scorer(normalise(windows, RULE)).double().mean()), abs=1e-6)
    assert np.isfinite(scores).all()


def test_scores_do_not_depend_on_batch_or_neighbours(tiny_backbone: Backbone) -> None:
    torch.manual_seed(1)
    scorer = fold(DCMPLN(tiny_backbone, prompt_depth=3))
    images = list(np.random.default_rng(0).integers(0, 256, (5, 60, 60, 3), dtype=np.uint8))
    together = image_scores(scorer, iter(images), 5, RULE, batch=7)
    alone = [image_scores(scorer, iter([image]), 1, RULE, batch=64)[0] for image in images]
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_quality_map_lays_scores_where_their_windows_are() -> None:
    pixels = np.zeros((32, 56, 3), np.uint8)
    pixels[:, 32:] = 255  # the left window is black, the right one 3/4 white
    rule = WindowRule(32, 24, "all", "clip", mean=(0.0,) * 3, std=(1.0,) * 3)
    drawn = quality_map(MeanBrightness(), pixels, rule)
    np.testing.assert_allclose(drawn[:, :24], 0.0, atol=1e-6)
    np.testing.assert_allclose(drawn[:, 24:32], 0.375, atol=1e-6)  # both windows
    np.testing.assert_allclose(drawn[:, 32:], 0.75, atol=1e-6)
    reference = quality_map(
        MeanBrightness(),
        np.zeros((32, 50, 3), np.uint8),
        WindowRule(32, 24, "reference", "clip", (0.0,) * 3, (1.0,) * 3),
    )
    assert np.isnan(reference[:, 32:]).all()


def test_a_bfloat16_tower_drifts_little_and_scores_in_float32(tiny_backbone: Backbone) -> None:
    torch.manual_seed(0)
    scorer = fold(DCMPLN(tiny_backbone, prompt_depth=3, prompt_length=2))
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (40 + k, 50, 3), dtype=np.uint8) for k in range(3)]
    rule = WindowRule(32, 24, "all", "clip", mean=(0.5,) * 3, std=(0.25,) * 3)
    exact = image_scores(scorer, images, 3, rule)
    drifted = image_scores(scorer, images, 3, rule, autocast=True)
    assert 0 < np.abs(exact - drifted).max() < 0.02
    prepared = scorer.prepare(torch.randn(3, 40, 40), [(0, 0), (8, 8)])
    assert scorer.score_prepared(prepared, autocast=True)[0].dtype == torch.float32


def test_an_image_taken_in_parts_scores_as_a_whole(tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    scorer = fold(DCMPLN(tiny_backbone, prompt_depth=3))
    pixels = np.random.default_rng(0).integers(0, 256, (150, 170, 3), dtype=np.uint8)
    origins = window_origins(150, 170, RULE)
    expected = scorer(normalise(cut(pixels, origins, 32), RULE)).double().numpy()
    for limit in (1, 32 * 100, 60 * 170, 1 << 22):
        monkeypatch.setattr(folded, "PART_PIXELS", limit)
        for batch in (3, 64):
            found = [one.windows for one in window_scores(scorer, [pixels, pixels[:40]], RULE, batch=batch)]
            np.testing.assert_allclose(found[0], expected, atol=1e-6)
            assert len(found[1]) == len(window_origins(40, 170, RULE))
    few = window_scores(scorer, [pixels], RULE, windows=5)[0].windows
    np.testing.assert_allclose(few, [expected[origins.index(one)] for one in spread(origins, 5)], atol=1e-6)
    assert window_scores(scorer, [], RULE) == []


@pytest.mark.parametrize("cover", ["all", "reference"])
def test_a_quality_map_is_the_mean_over_the_windows_of_a_pixel(tiny_backbone: Backbone, cover: str) -> None:
    torch.manual_seed(1)
    scorer = fold(DCMPLN(tiny_backbone, prompt_depth=3))
    rule = WindowRule(32, 13, cover, "clip", mean=(0.5,) * 3, std=(0.25,) * 3)
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    sums, counts = np.zeros((70, 90)), np.zeros((70, 90))
    for top, left in window_origins(70, 90, rule):
        sums[top : top + 32, left : left + 32] += float(scorer(normalise(cut(pixels, [(top, left)], 32), rule)))
        counts[top : top + 32, left : left + 32] += 1
    with np.errstate(invalid="ignore"):
        expected = sums / counts
    found = quality_map(scorer, pixels, rule, batch=7)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.isnan(found).any() == (cover == "reference")
    scores = window_scores(scorer, [pixels], rule)[0].windows
    for step in (2, 3, 7, 40):
        np.testing.assert_allclose(lay_out(scores, 70, 90, rule, step), expected[::step, ::step], atol=1e-6)


@pytest.mark.parametrize("bits", [8, 7])
@pytest.mark.parametrize("depth", [1, 3])
def test_int8_drifts_little_and_ranks_alike(tiny_backbone: Backbone, depth: int, bits: int) -> None:
    if bits > int8_bits():
        pytest.skip("products of eight bits saturate on this processor")
    torch.manual_seed(0)
    scorer = fold(DCMPLN(tiny_backbone, prompt_depth=depth, prompt_length=2))
    generator = np.random.default_rng(0)
    images = [(generator.integers(0, 256, (40, 48, 3)) * level).astype(np.uint8) for level in np.linspace(0.1, 1, 24)]
    exact, found = (image_scores(one, images, len(images), RULE) for one in (scorer, quantise(scorer, bits)))
    assert 0 < np.abs(exact - found).max() < 0.01
    assert spearmanr(exact, found).statistic > 0.98
    np.testing.assert_array_equal(image_scores(scorer, images, len(images), RULE), exact)  # it is left as it was


def test_int8_is_refused_where_the_tower_cannot_be_folded(tmp_path: Path) -> None:
    scorer = fold(model_of(unfoldable(tmp_path)))
    with pytest.raises(AgiqaError, match="the image tower of gelu-by-tanh has layers that cannot be folded"):
        quantise(scorer)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_tower_that_cannot_be_folded_scores_as_the_plain_model(tmp_path: Path, autocast: bool) -> None:
    model = model_of(unfoldable(tmp_path))
    scorer = fold(model)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = model(normalise(cut(pixels, window_origins(50, 70, RULE), 32), RULE))[0].numpy()
    found = window_scores(scorer, [pixels], RULE, autocast=autocast)[0].windows
    np.testing.assert_allclose(found, expected, atol=0.02 if autocast else 1e-6)
    assert np.abs(found - expected).max() > 0 or not autocast


def test_int8_is_refused_off_the_cpu(tiny_backbone: Backbone) -> None:
    scorer = fold(DCMPLN(tiny_backbone, prompt_depth=3))
    scorer.backbone = copy.deepcopy(tiny_backbone).to("meta")  # stands for a GPU
    with pytest.raises(ValueError, match="int8 is for CPUs, and the backbone is on meta"):
        quantise(scorer)
