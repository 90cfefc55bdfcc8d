"""Fit a model: loss, schedule, selection, and going on after a crash.

Knows nothing of MLflow, DVC or params.yaml: it takes plain values, writes into one folder, and calls back after each
epoch.
"""

import io
import math
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pipeline.files import write_atomically
from pipeline.layout import checkpoint_name
from pipeline.metrics import correlations
from pipeline.model.checkpoint import save_checkpoint
from pipeline.model.dcmpln import DCMPLN
from pipeline.model.folded import fold, image_scores
from pipeline.model.windows import WindowRule
from pipeline.training.crops import DevicePixels, EpochCrops, Subset, epoch_images
from pipeline.training.schedule import (
    TrainingError,
    is_stuck,
    learning_rate_at,
    refuse_equal_scores,
    refuse_targets,
    select_epoch,
)
from pipeline.training.step import batch_step, micro_batch_for, score_tasks

STATE_FILE = "state.pt"


@dataclass(frozen=True)
class Fitted:
    """What training came to.

    Attributes:
        history: A row an epoch: losses and correlations; equal for equal inputs.
        timing: A row an epoch: seconds, images a second, peak memory.
        selected_epoch: The epoch with the best SRCC on the selecting subset; the first of equals.
    """

    history: list[dict[str, float]]
    timing: list[dict[str, float]]
    selected_epoch: int


def fit(
    model: DCMPLN,
    train: Subset,
    selectors: Mapping[str, Subset],
    rule: WindowRule,
    folder: Path,
    record: dict[str, Any],
    *,
    select_on: str = "validation",
    learning_rate: float = 1e-4,
    schedule: str = "constant",
    warmup_epochs: int = 0,
    weight_decay: float = 0.0,
    batch_size: int = 64,
    micro_batch: int | Literal["auto"] = "auto",
    epochs: int = 50,
    patience: int | None = None,
    auxiliary_weight: float = 0.1,
    flip: bool = True,
    seed: int = 0,
    validation_windows: int = 5,
    device: torch.device | str = "cpu",
    amp: bool = False,
    compiled: bool = False,
    on_epoch: Callable[[dict[str, float], dict[str, float], Path], None] | None = None,
    label: str = "train",
) -> Fitted:
    """Train a model, keeping every epoch's folded checkpoint and one state to resume from.

    After a crash the same call goes on after the last finished epoch and ends with the same bits as an unbroken run:
    the order, crops and flips of an epoch depend on (seed, epoch) alone.

    Args:
        model: The model, its learned parts freshly drawn.
        train: Images to learn from.
        selectors: Subsets that are scored after each epoch, by name; `select_on` must be one of them.
        rule: Crop size and normalisation, and the windows of the scoring.
        folder: Gets checkpoints/epoch-001.safetensors ... and the state; must belong to this very training.
        record: What each checkpoint says of itself; see `save_checkpoint`.
        select_on: Name of the subset whose SRCC picks the epoch and stops early.
        learning_rate: Of Adam.
        schedule: `constant` or `cosine`.
        warmup_epochs: Epochs of linear rise.
        weight_decay: Of Adam (L2).
        batch_size: Images a step.
        micro_batch: Images a forward pass; see `micro_batch_for`.
        epochs: At most.
        patience: Epochs without a better SRCC before stopping; None never stops early.
        auxiliary_weight: lambda of the loss.
        flip: Mirror half of the crops.
        seed: Of order, crops and flips.
        validation_windows: Windows an image when selecting.
        device: Where to train.
        amp: Run the towers in bfloat16.
        compiled: Compile the step with torch.compile on a GPU; on CPUs, where that gains nothing, it is ignored.
        on_epoch: Called with history row, timing row and checkpoint path after each epoch that ran here.
        label: Shown at the progress bar.

    Returns:
        History, timing and the selected epoch.

    Raises:
        TrainingError: If a loss is not finite (names epoch and step), or no epoch can be selected (says so
            as early as it can be known).

    Source: protocol of the paper as quoted: Adam, 1e-4, batch 64, 50 epochs. Deviation: the epoch is picked on
        validation images, not on the test set.
    """
    refuse_targets(select_on, selectors[select_on].main)
    model.to(device)
    size = micro_batch_for(model.backbone, device, batch_size) if micro_batch == "auto" else micro_batch
    optimiser = torch.optim.Adam(model.trainable_parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True)
    history: list[dict[str, float]] = []
    timing: list[dict[str, float]] = []
    state_file = folder / STATE_FILE
    if state_file.is_file():
        state = torch.load(state_file, map_location=device, weights_only=True)
        model.load_learned_state(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        history, timing = state["history"], state["timing"]

    on_cpu = torch.device(device).type == "cpu"
    passes: dict[str, Any] = {}
    if compiled and not on_cpu:  # the first steps of every process pay a minute for it
        passes = {"constants": torch.compile(model.constants), "score": torch.compile(score_tasks)}
    pixels = DevicePixels.if_it_fits(train.pack, train.rows, rule.size, device)
    steps_an_epoch = math.ceil(len(train.rows) / batch_size)
    key = f"{select_on}_srcc"
    bar = tqdm(
        total=epochs * len(train.rows), initial=len(history) * len(train.rows), desc=label, unit="image",
        mininterval=1.0, dynamic_ncols=True,
    )  # fmt: skip
    with bar:
        while len(history) < epochs and not is_stuck(history, key, patience):
            epoch = len(history) + 1
            started = time.perf_counter()
            crops = EpochCrops(train.pack, train.rows, rule, flip=flip, seed=(seed, epoch))
            # Whatever the epoch needs is on the device before its first step: a small copy in between makes a GPU idle.
            images = epoch_images(crops, pixels, rule, device)
            main_targets = torch.as_tensor(train.main[crops.order], dtype=torch.float32, device=device)
            auxiliary_targets = torch.as_tensor(train.auxiliary[crops.order], dtype=torch.float32, device=device)
            labelled = np.isfinite(train.auxiliary[crops.order])
            losses, predicted, rates = [], [], []
            for step, start in enumerate(range(0, len(train.rows), batch_size)):
                part = slice(start, min(start + batch_size, len(train.rows)))
                rates.append(learning_rate_at(
                    (epoch - 1) * steps_an_epoch + step, epochs * steps_an_epoch, warmup_epochs * steps_an_epoch,
                    learning_rate, schedule,
                ))  # fmt: skip
                for group in optimiser.param_groups:
                    group["lr"] = rates[-1]
                optimiser.zero_grad(set_to_none=True)
                step_losses, scores = batch_step(
                    model,
                    lambda a, b, images=images, start=start: images(start + a, start + b),
                    main_targets[part], auxiliary_targets[part], auxiliary_weight=auxiliary_weight, micro_batch=size,
                    labelled=int(labelled[part].sum()), autocast=amp, **passes,
                )  # fmt: skip
                optimiser.step()
                losses.append(step_losses)
                predicted.append(scores)
                if on_cpu or part.stop == len(train.rows):  # a GPU is asked once an epoch, and so never waits for us
                    _refuse_bad_losses(losses, rates, f"epoch {epoch}", steps_an_epoch, label)
                bar.update(part.stop - part.start)
            ordered = np.empty(len(train.rows))
            ordered[crops.order] = torch.cat(predicted).cpu().numpy()
            counts = np.diff([*range(0, len(train.rows), batch_size), len(train.rows)])
            seconds = time.perf_counter() - started

            scorer = fold(model)
            means = np.average(torch.stack(losses).double().cpu().numpy(), axis=0, weights=counts)
            loss_main, loss_auxiliary = means.tolist()
            has_auxiliary = model.auxiliary_prompts is not None and bool(np.isfinite(train.auxiliary).any())
            row: dict[str, float] = {
                "epoch": epoch, "learning_rate": rates[-1],
                "loss": loss_main + auxiliary_weight * loss_auxiliary, "loss_main": loss_main,
                "loss_auxiliary": loss_auxiliary if has_auxiliary else math.nan,
            }  # fmt: skip
            row |= correlations("train", ordered, train.main)
            for name, subset in selectors.items():
                held_out = (subset.pack[row_index] for row_index in subset.rows)
                scores_there = image_scores(
                    scorer, held_out, len(subset.rows), rule, windows=validation_windows, device=device, autocast=amp
                )
                row |= correlations(name, scores_there, subset.main)
            refuse_equal_scores(row, key)
            history.append(row)
            timing.append(
                {"epoch": epoch, "seconds": time.perf_counter() - started,
                 "images_per_second": len(train.rows) / seconds, "peak_memory_mb": _peak_memory_mb(device)}
            )  # fmt: skip
            checkpoint = folder / "checkpoints" / checkpoint_name(epoch)
            save_checkpoint(checkpoint, scorer, {**record, "epoch": epoch})
            buffer = io.BytesIO()
            state = {"model": model.learned_state(), "optimiser": optimiser.state_dict()}
            torch.save({**state, "history": history, "timing": timing}, buffer)
            write_atomically(state_file, buffer.getvalue())
            bar.set_postfix({key: f"{row[key]:.3f}", "loss": f"{row['loss']:.4f}"}, refresh=False)
            if on_epoch is not None:
                on_epoch(row, timing[-1], checkpoint)
    return Fitted(history, timing, select_epoch(history, key))


def _refuse_bad_losses(losses: list[Tensor], rates: list[float], epoch: str, steps: int, label: str) -> None:
    """Raise if one of an epoch's losses so far is not finite."""
    totals = torch.stack(losses).sum(dim=1).tolist()
    for step, (total, rate) in enumerate(zip(totals, rates, strict=True), 1):
        if not math.isfinite(total):
            raise TrainingError(
                f"{label}: loss is {total} at {epoch}, step {step} of {steps}, learning rate {rate:g}: "
                "lower train.learning_rate"
            )


def _peak_memory_mb(device: torch.device | str) -> float:
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # of the process so far
