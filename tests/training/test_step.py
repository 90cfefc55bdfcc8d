"""One training step against the plain model's own scores, loss and gradients."""

import math
from pathlib import Path

import pytest
import torch
from made_parts import model_of, sizes_for, tower_of, unfoldable

from pipeline.model.backbone import Backbone
from pipeline.model.dcmpln import DCMPLN, Constants
from pipeline.model.tower import FastTower
from pipeline.training.step import batch_step, micro_batch_for, ranking_loss, score_tasks, task_losses


def gradients(model: DCMPLN, micro_batch: int, auxiliary: torch.Tensor) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images, target = torch.randn(6, 3, 32, 32, generator=generator), torch.rand(6, generator=generator)
    model.zero_grad()
    batch_step(model, lambda a, b: images[a:b], target, auxiliary, auxiliary_weight=0.1, micro_batch=micro_batch)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("micro_batch", [6, 4, 1])
@pytest.mark.parametrize("switches", [{}, {"mpa": False}, {"adapter": False}, {"adapter_shared": True}])
def test_gradients_are_those_of_the_plain_loss(tiny_backbone: Backbone, micro_batch: int, switches: dict) -> None:
    compare_gradients(model_of(tiny_backbone, **switches), micro_batch)


def test_gradients_of_a_tower_that_cannot_be_folded_are_those_of_the_plain_loss(tmp_path: Path) -> None:
    compare_gradients(model_of(unfoldable(tmp_path)), micro_batch=4)


def compare_gradients(model: DCMPLN, micro_batch: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images, target = torch.randn(6, 3, 32, 32, generator=generator), torch.rand(6, generator=generator)
    auxiliary = torch.tensor([0.2, math.nan, 0.9, 0.4, math.nan, 0.6])
    main, other = model(images)
    there = ~auxiliary.isnan()
    loss = (main - target).square().mean() + 0.1 * (other[there] - auxiliary[there]).square().mean()
    model.zero_grad()
    loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    found = gradients(model, micro_batch, auxiliary)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = gradient.abs().max()
        assert scale > 0
        torch.testing.assert_close(found[name] / scale, gradient / scale, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("micro_batch", [6, 4, 1])
@pytest.mark.parametrize(("windows", "ranking_weight"), [(3, 0.0), (1, 0.5), (3, 0.5)])
def test_windows_and_ranking_give_the_gradients_of_one_pass(
    tiny_backbone: Backbone, micro_batch: int, windows: int, ranking_weight: float
) -> None:
    """The oracle scores all windows at once, means by hand, and takes Pearson's correlation from torch.corrcoef."""
    model, generator = model_of(tiny_backbone, prompt_std=0.5), torch.Generator().manual_seed(0)
    images, target = torch.randn(6 * windows, 3, 32, 32, generator=generator), torch.rand(6, generator=generator)
    auxiliary = torch.tensor([0.2, math.nan, 0.9, 0.4, math.nan, 0.6])
    there = ~auxiliary.isnan()
    main, other = (torch.stack([scores[k::windows] for k in range(windows)]).mean(dim=0) for scores in model(images))
    terms = [
        (main - target).square().mean(), (other[there] - auxiliary[there]).square().mean(),
        1 - torch.corrcoef(torch.stack([main, target]))[0, 1],
    ]  # fmt: skip
    model.zero_grad()
    (terms[0] + 0.1 * terms[1] + ranking_weight * terms[2]).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    losses, scores = batch_step(
        model, lambda a, b: images[a * windows : b * windows], target, auxiliary, auxiliary_weight=0.1,
        micro_batch=micro_batch, windows=windows, ranking_weight=ranking_weight,
    )  # fmt: skip
    torch.testing.assert_close(scores, main.detach(), atol=1e-5, rtol=0)
    shown = [float(term.detach()) for term in terms[:2]] + [float(terms[2].detach()) if ranking_weight else 0.0]
    assert losses.tolist() == pytest.approx(shown, abs=1e-4)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = gradient.abs().max()
        assert scale > 0
        torch.testing.assert_close(found[name] / scale, gradient / scale, atol=1e-4, rtol=1e-4, msg=name)


def test_the_ranking_loss_is_least_in_order_and_asks_nothing_where_there_is_none() -> None:
    target = torch.tensor([0.1, 0.4, 0.7])
    for scores, loss in (([0.2, 0.3, 0.4], 0.0), ([0.4, 0.3, 0.2], 2.0), ([0.2, 0.5, 0.2], 1.0)):
        assert float(ranking_loss(torch.tensor(scores), target)) == pytest.approx(loss, abs=1e-5)
    for scores, targets in (([0.5, 0.5, 0.5], [0.1, 0.4, 0.7]), ([0.1, 0.9, 0.5], [0.3, 0.3, 0.3]), ([0.4], [0.7])):
        given = torch.tensor(scores, requires_grad=True)
        loss = ranking_loss(given, torch.tensor(targets))
        loss.backward()
        assert given.grad.isfinite().all()
        assert float(loss.detach()) == (1.0 if len(set(targets)) > 1 else 0.0)
        assert len(set(targets)) > 1 or not given.grad.any()


def test_missing_auxiliary_labels_are_masked_not_filled_in(tiny_backbone: Backbone) -> None:
    main, other = torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1])
    loss = task_losses(main, other, torch.tensor([0.5, 0.0]), torch.tensor([math.nan, 0.3]), (2, 1))
    assert [float(part) for part in loss] == pytest.approx([0.125, 0.04])
    # With no label at all the adapter of the auxiliary task, which nothing else uses, gets no gradient.
    without = gradients(model_of(tiny_backbone), 6, torch.full((6,), math.nan))
    assert not any(name.startswith("auxiliary_adapter") for name in without)
    assert any(name.startswith("auxiliary_prompts") for name in without)  # through Layer F


@pytest.mark.parametrize("switches", [{}, {"mpa": False}, {"adapter": False}, {"adapter_shared": True}])
@pytest.mark.parametrize("seed", range(3))
def test_scores_and_gradients_equal_the_plain_models(tmp_path: Path, seed: int, switches: dict) -> None:
    backbone = tower_of(tmp_path, 20 + seed)
    depth, length = sizes_for(seed, backbone)
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


def test_a_pass_holds_what_suits_the_device(tiny_backbone: Backbone, vit_b_32: Backbone) -> None:
    """12 images of ViT-B/32, that is 12 x 50 tokens of 768, on CPUs; the whole batch where it is small or on a GPU."""
    assert [micro_batch_for(vit_b_32, "cpu", size) for size in (64, 8)] == [12, 8]
    assert micro_batch_for(vit_b_32, "cuda", 64) == 64
    assert micro_batch_for(tiny_backbone, "cpu", 10_000) == 12 * 50 * 768 // (17 * 64)
    assert [micro_batch_for(vit_b_32, device, 64, windows=4) for device in ("cpu", "cuda")] == [3, 16]
    assert [micro_batch_for(vit_b_32, device, 64, windows=100) for device in ("cpu", "cuda")] == [1, 1]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("folds", [True, False])
def test_scores_are_made_in_float32_from_whatever_the_tower_gives(tmp_path: Path, folds: bool, autocast: bool) -> None:
    """The oracle takes the tower's features out of autocast and works the score by hand."""
    backbone = tower_of(tmp_path, 21) if folds else unfoldable(tmp_path)
    tower = backbone.fast_tower()
    assert (tower is not None) == folds
    model = model_of(backbone, prompt_depth=1)
    images = torch.randn(4, 3, backbone.image_size, backbone.image_size)
    tasks = [Constants(*(part.detach() for part in task)) for task in model.constants()]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = score_tasks(model, tower, images, *tasks)
        if folds:
            prompts = torch.stack([task.visual_prompts for task in tasks])
            features = tower(tower.tokens(tower.embed(images)), prompts).chunk(2)
        else:
            features = [backbone.encode_image(images, task.visual_prompts) for task in tasks]
    for score, task, given, adapter in zip(
        found, tasks, features, (model.main_adapter, model.auxiliary_adapter), strict=True
    ):
        assert score.dtype == torch.float32
        given = given.double()
        down, up = adapter.down.weight.double(), adapter.up.weight.double()
        adapted = 0.2 * ((given @ down.T).relu() @ up.T).relu() + 0.8 * given
        cosines = adapted / adapted.norm(dim=1, keepdim=True) @ task.text_features.double().T
        expected = (backbone.logit_scale.double().exp() * (cosines[:, 0] - cosines[:, 1])).sigmoid()
        torch.testing.assert_close(score.double(), expected, atol=1e-5, rtol=0)  # bfloat16 would be 1e-3 off
