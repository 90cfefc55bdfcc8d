"""Training: exact gradients, the same bits after a crash, and labels that must not matter."""

import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_parts import RULE, SAID, bright_images, bright_subsets, model_of, pack_of, unfoldable

from pipeline.data.pixels import PixelPack
from pipeline.layout import checkpoint_name
from pipeline.model.backbone import Backbone
from pipeline.model.checkpoint import load_checkpoint, read_record
from pipeline.model.dcmpln import antonym_score
from pipeline.model.folded import image_scores
from pipeline.model.windows import cut, normalise, window_origins
from pipeline.training import fit as fit_module
from pipeline.training.crops import DevicePixels, Subset
from pipeline.training.fit import Fitted, Settings, fit, optimiser_of, run_epoch
from pipeline.training.schedule import TrainingError, refuse_equal_scores, select_epoch


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> PixelPack:
    """Return the pack of `bright_images`."""
    return pack_of(tmp_path_factory.mktemp("pack"), bright_images())


def run(backbone: Backbone, pack: PixelPack, folder: Path, on_epoch: Any = None, **changes: Any) -> Fitted:
    train, validation = bright_subsets(pack)
    settings = {"epochs": 3, "batch_size": 8, "learning_rate": 0.01, "seed": 5, "validation_windows": 1}
    return fit(
        model_of(backbone),
        train,
        {"validation": validation},
        RULE,
        folder,
        {"windows": RULE.record(), **SAID},
        Settings(**(settings | changes)),
        on_epoch=on_epoch,
    )


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
    assert [path.name for _, _, path in seen] == [checkpoint_name(epoch) for epoch in range(1, 7)]
    assert [read_record(path)["epoch"] for _, _, path in seen] == list(range(1, 7))
    assert fitted.selected_epoch == select_epoch(fitted.history, "validation_srcc")
    columns = ["epoch", "seconds", "cpu_seconds", "images_per_second", "peak_memory_mb", "under_load"]
    assert all(list(row) == columns and row["cpu_seconds"] > 0 for row in fitted.timing)
    assert {row["under_load"] for row in fitted.timing} <= {0, 1}
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
    train, validation = bright_subsets(pack)
    plain = run(tiny_backbone, pack, tmp_path / "plain")
    fitted = fit(
        model_of(tiny_backbone), train, {"validation": validation, "test": validation}, RULE, tmp_path / "both",
        {"windows": RULE.record(), **SAID},
        Settings(select_on="test", epochs=3, batch_size=8, learning_rate=0.01, seed=5, validation_windows=1),
    )  # fmt: skip
    columns = plain.history[0].keys()
    assert [{key: row[key] for key in columns} for row in fitted.history] == plain.history
    assert {"test_srcc", "test_plcc", "test_krcc"} <= fitted.history[0].keys()


def test_windows_and_the_ranking_term_train_in_any_parts(
    tiny_backbone: Backbone, pack: PixelPack, tmp_path: Path
) -> None:
    """18 images in batches of 8 leave a last one of two; parts of three end within them."""
    changes = {"windows": 3, "ranking_weight": 0.2, "batch_size": 8}
    whole = run(tiny_backbone, pack, tmp_path / "whole", micro_batch=8, **changes)
    parts = run(tiny_backbone, pack, tmp_path / "parts", micro_batch=3, **changes)
    for one, other in zip(whole.history, parts.history, strict=True):
        terms = one["loss_main"] + 0.1 * one["loss_auxiliary"] + 0.2 * one["loss_ranking"]
        assert one["loss"] == pytest.approx(terms)
        assert other["loss"] == pytest.approx(one["loss"], rel=0.02)
    assert whole.history[-1]["loss"] < 0.5 * whole.history[0]["loss"]
    assert "loss_ranking" not in run(tiny_backbone, pack, tmp_path / "without", epochs=1).history[0]


def test_maps_and_visual_prompts_learn_at_rates_of_their_own(tiny_backbone: Backbone) -> None:
    """Adam's first step moves each number by its learning rate, whatever the gradient."""
    model = model_of(tiny_backbone)
    optimiser = optimiser_of(model, Settings(learning_rate=0.01, map_rate=0.1, visual_rate=0.3))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for group in optimiser.param_groups:
        group["lr"] = 0.01 * group["factor"]
    for parameter in model.trainable_parameters():
        parameter.grad = torch.ones_like(parameter)
    optimiser.step()
    moved = {name: float((before[name] - value.detach()).max()) for name, value in model.named_parameters()}
    maps = {name for name in moved if name.startswith(("mpa.", "layer_f."))}
    visual = {name for name in moved if name.endswith("prompts.visual")}
    others = {name for name in moved if name.endswith("prompts.text") or "adapter" in name}
    assert len(visual) == 2
    assert len(maps) > 4
    assert len(others) == 6
    assert all(moved[name] == pytest.approx(0.001, rel=1e-3) for name in maps)
    assert all(moved[name] == pytest.approx(0.003, rel=1e-3) for name in visual)
    assert all(moved[name] == pytest.approx(0.01, rel=1e-3) for name in others)
    assert not any(moved[name] for name in moved.keys() - maps - visual - others)
    assert len(optimiser_of(model, Settings()).param_groups) == 1


def test_a_loss_that_is_not_finite_names_its_step(tiny_backbone: Backbone, pack: PixelPack, tmp_path: Path) -> None:
    train, validation = bright_subsets(pack)
    train.main[3] = math.nan
    with pytest.raises(TrainingError, match=re.escape("train: loss is nan at epoch 1, step")):
        fit(model_of(tiny_backbone), train, {"validation": validation}, RULE, tmp_path, {}, Settings(epochs=1))


@pytest.mark.parametrize("amp", [False, True])
def test_a_tower_that_cannot_be_folded_trains_and_its_checkpoint_scores(
    pack: PixelPack, tmp_path: Path, amp: bool
) -> None:
    """The oracle scores with open_clip's own tower and the checkpoint's constants, window by window."""
    backbone = unfoldable(tmp_path)
    assert backbone.fast_tower() is None
    fitted = run(backbone, pack, tmp_path / "run", epochs=6, amp=amp)
    assert fitted.history[-1]["loss_main"] < 0.7 * fitted.history[0]["loss_main"]
    scorer, _, _ = load_checkpoint(tmp_path / "run/checkpoints" / checkpoint_name(6), backbone, RULE)
    images = [pack[row] for row in range(0, 24, 4)]
    found = image_scores(scorer, images, 6, RULE, autocast=amp)
    for image, score in zip(images, found, strict=True):
        with torch.no_grad():
            windows = normalise(cut(image, window_origins(40, 40, RULE), 32), RULE)
            features = scorer.adapter(backbone.encode_image(windows, scorer.visual_prompts))
            expected = antonym_score(features, scorer.text_features, backbone.logit_scale).mean()
        assert score == pytest.approx(float(expected), abs=0.02 if amp else 1e-6)


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
    train, validation = bright_subsets(pack)
    few = Subset(pack, validation.rows[:count], np.full(count, 0.5), validation.auxiliary[:count])
    with pytest.raises(TrainingError, match=re.escape(message)):
        fit(model_of(tiny_backbone), train, {"validation": few}, RULE, tmp_path, {}, Settings(epochs=1))
    assert not list(tmp_path.iterdir())


def test_equal_scores_are_told_after_the_first_epoch() -> None:
    refuse_equal_scores({"epoch": 1, "k": 0.1}, "k")
    refuse_equal_scores({"epoch": 2, "k": math.nan}, "k")  # of a training that has an epoch to fall back on
    with pytest.raises(TrainingError, match="k has no value after epoch 1: every score is the same; lower train"):
        refuse_equal_scores({"epoch": 1, "k": math.nan}, "k")


@pytest.mark.parametrize("amp", [False, True])
def test_device_pixels_train_as_the_pack_does(
    tiny_backbone: Backbone, pack: PixelPack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, amp: bool
) -> None:
    """On a GPU the images lie there and are cut there; here the CPU stands for it."""
    from_pack = run(tiny_backbone, pack, tmp_path / "pack", amp=amp)
    held = []

    def force(cls: type, *arguments: Any) -> DevicePixels:
        held.append(cls(*arguments))
        return held[-1]

    monkeypatch.setattr(DevicePixels, "if_it_fits", classmethod(force))
    assert run(tiny_backbone, pack, tmp_path / "device", amp=amp).history == from_pack.history
    assert len(held) == 1
    for path in (tmp_path / "pack/checkpoints").iterdir():
        assert path.read_bytes() == (tmp_path / "device/checkpoints" / path.name).read_bytes()


def test_an_epoch_by_hand(tiny_backbone: Backbone, pack: PixelPack) -> None:
    """Two batches of 12 and 6 images whose losses are told: their mean weighs images, and scores find their rows."""
    train, _ = bright_subsets(pack)
    order = np.random.default_rng(0).permutation(18)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([{"params": [weight], "factor": 1.0}], lr=1.0)
    seen, moved = [], []

    def step(images: Any, main: torch.Tensor, auxiliary: torch.Tensor, *, labelled: int) -> tuple[torch.Tensor, ...]:
        seen.append((images(0, len(main)), labelled, optimiser.param_groups[0]["lr"]))
        torch.testing.assert_close(auxiliary, 1 - main)
        weight.grad = torch.ones(1)
        return torch.tensor([float(len(seen)), 0.0, 1.0]), main

    settings = Settings(batch_size=12, epochs=2, warmup_epochs=1, learning_rate=0.1)
    done = run_epoch(
        step, optimiser, train, order, lambda start, stop: (start, stop), settings,
        epoch=1, label="x", on_images=moved.append,
    )  # fmt: skip
    assert seen == [((0, 12), 12, 0.05), ((12, 18), 6, 0.1)]
    assert moved == [12, 6]
    assert done.losses.tolist() == [pytest.approx((12 * 1.0 + 6 * 2.0) / 18), 0.0, 1.0]
    np.testing.assert_allclose(done.predicted, train.main, atol=1e-7)
    assert done.learning_rate == 0.1
    assert weight.tolist() == [pytest.approx(-0.15)]


def test_the_optimiser_is_the_one_that_is_asked_for(
    tiny_backbone: Backbone, pack: PixelPack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}

    def watched(parameters: Any, **options: Any) -> torch.optim.Optimizer:
        asked.update(options)
        return torch.optim.Adam(parameters, **options)

    assert {"adam": torch.optim.Adam} == fit_module.OPTIMISERS
    monkeypatch.setitem(fit_module.OPTIMISERS, "adam", watched)
    run(tiny_backbone, pack, tmp_path, epochs=1, learning_rate=0.02, weight_decay=0.3)
    assert asked == {"lr": 0.02, "weight_decay": 0.3, "fused": True}
    with pytest.raises(KeyError, match="sgd"):
        run(tiny_backbone, pack, tmp_path, epochs=1, optimiser="sgd")
