"""Training: exact gradients, the same bits after a crash, and labels that must not matter."""

import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data.pixels import PixelPack
from pipeline.model.backbone import Backbone
from pipeline.model.checkpoint import read_record
from pipeline.model.dcmpln import DCMPLN
from pipeline.model.windows import WindowRule, normalise
from pipeline.training.crops import Subset
from pipeline.training.fit import fit
from pipeline.training.schedule import TrainingError, learning_rate_at, refuse_equal_scores, select_epoch
from pipeline.training.step import batch_step, task_losses

RULE = WindowRule(32, 32, "all", "clip", mean=(0.5,) * 3, std=(0.25,) * 3)
WINDOWS = RULE.record()


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> PixelPack:
    """Return 24 images of 40x40 whose brightness is their quality."""
    generator = np.random.default_rng(0)
    levels = np.linspace(30, 220, 24)
    images = np.clip(generator.normal(levels[:, None, None, None], 12, (24, 40, 40, 3)), 0, 255).astype(np.uint8)
    path = tmp_path_factory.mktemp("pack") / "pixels.bin"
    path.write_bytes(images.tobytes())
    return PixelPack(path, np.arange(24) * 4800, [40] * 24, [40] * 24)


def subsets(pack: PixelPack, auxiliary: float | None = None) -> tuple[Subset, Subset]:
    quality = np.linspace(0.1, 0.9, 24)
    other = quality[::-1].copy() if auxiliary is None else np.full(24, auxiliary)
    held_out = np.arange(0, 24, 4)
    train = np.setdiff1d(np.arange(24), held_out)
    return Subset(pack, train, quality[train], other[train]), Subset(pack, held_out, quality[held_out], other[held_out])


def model_of(backbone: Backbone, **switches: Any) -> DCMPLN:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return DCMPLN(backbone, **{"prompt_depth": 3, "prompt_length": 2, **switches})


def run(backbone: Backbone, pack: PixelPack, folder: Path, **changes: Any) -> Any:
    train, validation = subsets(pack)
    settings = {"epochs": 3, "batch_size": 8, "learning_rate": 0.01, "seed": 5, "validation_windows": 1}
    return fit(
        model_of(backbone),
        train,
        {"validation": validation},
        RULE,
        folder,
        {"windows": WINDOWS},
        **(settings | changes),
    )


def gradients(model: DCMPLN, micro_batch: int, auxiliary: torch.Tensor) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images, target = torch.randn(6, 3, 32, 32, generator=generator), torch.rand(6, generator=generator)
    model.zero_grad()
    batch_step(model, lambda a, b: images[a:b], target, auxiliary, auxiliary_weight=0.1, micro_batch=micro_batch)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("micro_batch", [6, 4, 1])
@pytest.mark.parametrize("switches", [{}, {"mpa": False}, {"adapter": False}, {"adapter_shared": True}])
def test_gradients_are_those_of_the_plain_loss(tiny_backbone: Backbone, micro_batch: int, switches: dict) -> None:
    model = model_of(tiny_backbone, **switches)
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


def test_missing_auxiliary_labels_are_masked_not_filled_in(tiny_backbone: Backbone) -> None:
    main, other = torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1])
    loss = task_losses(main, other, torch.tensor([0.5, 0.0]), torch.tensor([math.nan, 0.3]), (2, 1))
    assert [float(part) for part in loss] == pytest.approx([0.125, 0.04])
    # With no label at all the adapter of the auxiliary task, which nothing else uses, gets no gradient.
    without = gradients(model_of(tiny_backbone), 6, torch.full((6,), math.nan))
    assert not any(name.startswith("auxiliary_adapter") for name in without)
    assert any(name.startswith("auxiliary_prompts") for name in without)  # through Layer F


def test_schedule_by_hand() -> None:
    assert [learning_rate_at(step, 10, 2, 1.0, "constant") for step in (0, 1, 2, 9)] == [0.5, 1.0, 1.0, 1.0]
    assert learning_rate_at(6, 10, 2, 1.0, "cosine") == pytest.approx(0.5)
    assert learning_rate_at(2, 10, 2, 1.0, "cosine") == 1.0
    assert 0 < learning_rate_at(9, 10, 2, 1.0, "cosine") < 0.05


def test_training_learns_keeps_every_epoch_and_leaves_the_backbone(
    tiny_backbone: Backbone, pack: PixelPack, tmp_path: Path
) -> None:
    before = {key: value.clone() for key, value in tiny_backbone.state_dict().items()}
    seen = []
    fitted = run(
        tiny_backbone, pack, tmp_path, epochs=6, on_epoch=lambda row, timing, path: seen.append((row, timing, path))
    )
    assert fitted.history[-1]["loss_main"] < 0.5 * fitted.history[0]["loss_main"]
    assert max(row["validation_srcc"] for row in fitted.history) > 0.8
    assert [path.name for _, _, path in seen] == [f"epoch-{epoch:03d}.safetensors" for epoch in range(1, 7)]
    assert [read_record(path)["epoch"] for _, _, path in seen] == list(range(1, 7))
    assert fitted.selected_epoch == select_epoch(fitted.history, "validation_srcc")
    assert all(torch.equal(before[key], value) for key, value in tiny_backbone.state_dict().items())


class Killed(BaseException):
    """Stands for a process that is killed: nothing of ours catches it."""


@pytest.mark.parametrize("fatal", [1, 2])
def test_a_killed_training_ends_with_the_same_bits(
    tiny_backbone: Backbone, pack: PixelPack, tmp_path: Path, fatal: int
) -> None:
    whole = run(tiny_backbone, pack, tmp_path / "whole")

    def die(row: dict, *_: object) -> None:
        if row["epoch"] == fatal:
            raise Killed

    with pytest.raises(Killed):
        run(tiny_backbone, pack, tmp_path / "broken", on_epoch=die)
    ran = []
    resumed = run(tiny_backbone, pack, tmp_path / "broken", on_epoch=lambda row, *_: ran.append(row["epoch"]))
    assert ran == list(range(fatal + 1, 4))
    assert resumed.history == whole.history
    for path in (tmp_path / "whole" / "checkpoints").iterdir():
        assert path.read_bytes() == (tmp_path / "broken" / "checkpoints" / path.name).read_bytes()


def test_a_kill_while_the_state_is_written_keeps_the_last_whole_one(
    tiny_backbone: Backbone, pack: PixelPack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tiny_backbone, pack, tmp_path / "whole")
    synced, count = os.fsync, [0]

    def die_at_second_state(descriptor: int) -> None:
        count[0] += 1
        if count[0] == 4:  # each epoch writes a checkpoint and a state
            raise Killed
        synced(descriptor)

    monkeypatch.setattr(os, "fsync", die_at_second_state)
    with pytest.raises(Killed):
        run(tiny_backbone, pack, tmp_path / "broken")
    monkeypatch.undo()
    assert run(tiny_backbone, pack, tmp_path / "broken").history == whole.history


def test_early_stop_counts_epochs_without_a_better_one(
    tiny_backbone: Backbone, pack: PixelPack, tmp_path: Path
) -> None:
    fitted = run(tiny_backbone, pack, tmp_path, epochs=9, patience=2, learning_rate=1e-9)
    best = fitted.selected_epoch
    assert len(fitted.history) == best + 2 < 9


def test_labels_of_other_subsets_change_nothing(tiny_backbone: Backbone, pack: PixelPack, tmp_path: Path) -> None:
    """Selection on validation must not see test labels: with them among the selectors only extra columns appear."""
    train, validation = subsets(pack)
    plain = run(tiny_backbone, pack, tmp_path / "plain")
    fitted = fit(
        model_of(tiny_backbone), train, {"validation": validation, "test": validation}, RULE, tmp_path / "both",
        {"windows": WINDOWS}, select_on="test", epochs=3, batch_size=8, learning_rate=0.01, seed=5,
        validation_windows=1,
    )  # fmt: skip
    columns = plain.history[0].keys()
    assert [{key: row[key] for key in columns} for row in fitted.history] == plain.history
    assert {"test_srcc", "test_plcc", "test_krcc"} <= fitted.history[0].keys()


def test_a_loss_that_is_not_finite_names_its_step(tiny_backbone: Backbone, pack: PixelPack, tmp_path: Path) -> None:
    train, validation = subsets(pack)
    train.main[3] = math.nan
    with pytest.raises(TrainingError, match=re.escape("train: loss is nan at epoch 1, step")):
        fit(model_of(tiny_backbone), train, {"validation": validation}, RULE, tmp_path, {"windows": WINDOWS}, epochs=1)


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (1, "no epoch can be selected on validation: it has a single image, and a correlation needs a spread"),
        (4, "no epoch can be selected on validation: all 4 images have the same main score, and a correlation needs"),
    ],
)
def test_what_no_epoch_can_be_selected_on_is_told_before_the_first(
    tiny_backbone: Backbone, pack: PixelPack, tmp_path: Path, count: int, message: str
) -> None:
    train, validation = subsets(pack)
    few = Subset(pack, validation.rows[:count], np.full(count, 0.5), validation.auxiliary[:count])
    with pytest.raises(TrainingError, match=re.escape(message)):
        fit(model_of(tiny_backbone), train, {"validation": few}, RULE, tmp_path, {"windows": WINDOWS}, epochs=1)
    assert not list(tmp_path.iterdir())


def test_equal_scores_are_told_after_the_first_epoch() -> None:
    refuse_equal_scores({"epoch": 1, "k": 0.1}, "k")
    refuse_equal_scores({"epoch": 2, "k": math.nan}, "k")  # of a training that has an epoch to fall back on
    with pytest.raises(TrainingError, match="k has no value after epoch 1: every score is the same; lower train"):
        refuse_equal_scores({"epoch": 1, "k": math.nan}, "k")


def test_an_epoch_without_a_finite_score_is_never_selected() -> None:
    history = [{"epoch": 1, "k": math.nan}, {"epoch": 2, "k": 0.3}, {"epoch": 3, "k": 0.3}]
    assert select_epoch(history, "k") == 2
    with pytest.raises(TrainingError, match="no epoch has a finite k"):
        select_epoch(history[:1], "k")


def test_crops_reach_the_model_normalised(pack: PixelPack) -> None:
    assert float(normalise(pack[23][None, :32, :32], RULE).mean()) == pytest.approx((220 / 255 - 0.5) / 0.25, abs=0.05)
