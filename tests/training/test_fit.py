"""Training: exact gradients, the same bits after a crash, and labels that must not matter."""

import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from made_parts import RULE, bright_images, bright_subsets, model_of, pack_of

from pipeline.data.pixels import PixelPack
from pipeline.layout import checkpoint_name
from pipeline.model.backbone import Backbone
from pipeline.model.checkpoint import read_record
from pipeline.training.fit import Fitted, Settings, fit
from pipeline.training.schedule import TrainingError, select_epoch


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
        {"windows": RULE.record()},
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
        {"windows": RULE.record()},
        Settings(select_on="test", epochs=3, batch_size=8, learning_rate=0.01, seed=5, validation_windows=1),
    )  # fmt: skip
    columns = plain.history[0].keys()
    assert [{key: row[key] for key in columns} for row in fitted.history] == plain.history
    assert {"test_srcc", "test_plcc", "test_krcc"} <= fitted.history[0].keys()


def test_a_loss_that_is_not_finite_names_its_step(tiny_backbone: Backbone, pack: PixelPack, tmp_path: Path) -> None:
    train, validation = bright_subsets(pack)
    train.main[3] = math.nan
    with pytest.raises(TrainingError, match=re.escape("train: loss is nan at epoch 1, step")):
        fit(model_of(tiny_backbone), train, {"validation": validation}, RULE, tmp_path, {}, Settings(epochs=1))
