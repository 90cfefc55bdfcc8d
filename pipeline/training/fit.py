"""Fit a model: loss, schedule, selection, and going on after a crash.

Knows nothing of MLflow, DVC or params.yaml: it takes plain values, writes into one folder, and calls back after each
epoch.
"""

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pipeline.costs import Stopwatch, peak_memory_mb
from pipeline.files import write_atomically
from pipeline.layout import checkpoint_path
from pipeline.metrics import correlations
from pipeline.model.checkpoint import save_checkpoint
from pipeline.model.dcmpln import DCMPLN
from pipeline.model.folded import FoldedScorer, fold, image_scores
from pipeline.model.windows import WindowRule
from pipeline.training.crops import DevicePixels, EpochCrops, Subset, epoch_images
from pipeline.training.prompts import prompt_columns
from pipeline.training.ranks import ALONE, Ranks
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
        history: A row an epoch: losses, correlations, and how the prompts lie; equal for equal inputs.
        timing: A row an epoch: seconds and CPU-seconds, images a second, peak memory, and 1 where the machine was under
            load (0 elsewhere); see `pipeline.costs`. CPU-seconds are of all processes, memory of the largest.
        selected_epoch: The epoch with the best SRCC on the selecting subset; the first of equals.
    """

    history: list[dict[str, float]]
    timing: list[dict[str, float]]
    selected_epoch: int


OPTIMISERS = {"adam": torch.optim.Adam}


@dataclass(frozen=True)
class Settings:
    """How a model is trained.

    Attributes:
        select_on: Name of the subset whose SRCC picks the epoch and stops early.
        optimiser: Key of `OPTIMISERS`.
        learning_rate: Of the optimiser.
        map_rate: Learning rate of MPA and Layer F over that of text prompts and adapters; see `optimiser_of`.
        visual_rate: Likewise, of the visual prompts.
        schedule: `constant` or `cosine`.
        warmup_epochs: Epochs of linear rise.
        weight_decay: Of the optimiser (L2).
        batch_size: Images a step.
        micro_batch: Images a forward pass; see `micro_batch_for`.
        epochs: At most.
        patience: Epochs without a better SRCC before stopping; None never stops early.
        auxiliary_weight: lambda of the loss.
        ranking_weight: Of `pipeline.training.step.ranking_loss`.
        windows: Random crops of an image a step, whose scores are averaged before the loss.
        flip: Mirror half of the crops.
        seed: Of order, crops and flips.
        validation_windows: Windows an image when selecting.
        device: Where to train.
        amp: Run the towers in bfloat16.
        compiled: Compile the step with torch.compile on a GPU; on CPUs, where that gains nothing, it is ignored.

    Source: protocol of the paper as quoted: Adam, 1e-4, batch 64, 50 epochs. Deviation: the epoch is picked on
        validation images, not on the test set.
    """

    select_on: str = "validation"
    optimiser: Literal["adam"] = "adam"
    learning_rate: float = 1e-4
    map_rate: float = 1.0
    visual_rate: float = 1.0
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_epochs: int = 0
    weight_decay: float = 0.0
    batch_size: int = 64
    micro_batch: int | Literal["auto"] = "auto"
    epochs: int = 50
    patience: int | None = None
    auxiliary_weight: float = 0.1
    ranking_weight: float = 0.0
    windows: int = 1
    flip: bool = True
    seed: int = 0
    validation_windows: int = 5
    device: torch.device | str = "cpu"
    amp: bool = False
    compiled: bool = False


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training images came to.

    Attributes:
        losses: Means of the main, the auxiliary and the ranking loss over the images, shape (3,).
        predicted: Main scores as they were in training, in the order of the subset's rows, shape (N,).
        learning_rate: Of the last step.
    """

    losses: np.ndarray
    predicted: np.ndarray
    learning_rate: float


def optimiser_of(model: DCMPLN, settings: Settings) -> torch.optim.Optimizer:
    """Return the optimiser, whose groups carry the `factor` of their learning rate.

    Adam moves every number by about the learning rate a step, whatever its size: a rate that suits the prompts and
    adapters of a weak backbone moves the wide maps of MPA and Layer F so far within an epoch that all prompts of a
    depth become one (mean cosine .99999, norm 200). They may learn more slowly, and so may the visual prompts, which
    change what the tower sees where text prompts change what it is asked.

    Deviation from the paper, which names one rate: only where `map_rate` or `visual_rate` is not 1.
    """
    factors = {id(parameter): settings.map_rate for parameter in model.map_parameters()}
    factors |= {id(parameter): settings.visual_rate for parameter in model.visual_parameters()}
    by_factor: dict[float, list[torch.nn.Parameter]] = {}
    for parameter in model.trainable_parameters():
        by_factor.setdefault(factors.get(id(parameter), 1.0), []).append(parameter)
    groups = [{"params": parameters, "factor": factor} for factor, parameters in by_factor.items()]
    return OPTIMISERS[settings.optimiser](
        groups, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )


def fit(
    model: DCMPLN,
    train: Subset,
    selectors: Mapping[str, Subset],
    rule: WindowRule,
    folder: Path,
    record: dict[str, Any],
    settings: Settings,
    *,
    on_epoch: Callable[[dict[str, float], dict[str, float], Path], None] | None = None,
    label: str = "train",
    ranks: Ranks = ALONE,
) -> Fitted:
    """Train a model, keeping every epoch's folded checkpoint and one state to resume from.

    After a crash the same call goes on after the last finished epoch and ends with the same bits as an unbroken run:
    the order, crops and flips of an epoch depend on (seed, epoch) alone.

    Several processes that make this call share every batch and every image of the selectors. Each of them returns what
    one process would, but for the rounding of sums, and the first alone writes.

    Args:
        model: The model, its learned parts freshly drawn.
        train: Images to learn from.
        selectors: Subsets that are scored after each epoch, by name; `settings.select_on` must be one of them.
        rule: Crop size and normalisation, and the windows of the scoring.
        folder: Gets `checkpoints/`, one file an epoch, and the state; must belong to this very training.
        record: What each checkpoint says of itself; see `save_checkpoint`.
        settings: How to train.
        on_epoch: Called with history row, timing row and checkpoint path after each epoch that ran here, in the first
            process.
        label: Shown at the progress bar.
        ranks: The processes that train together.

    Returns:
        History, timing and the selected epoch.

    Raises:
        TrainingError: If a loss is not finite (names epoch and step), or no epoch can be selected (says so
            as early as it can be known).
        RankError: If another process has ended or hangs, or the processes' models differ.
    """
    device, key = settings.device, f"{settings.select_on}_srcc"
    refuse_targets(settings.select_on, selectors[settings.select_on].main)
    model.to(device)
    optimiser = optimiser_of(model, settings)
    history, timing = _resume(folder / STATE_FILE, model, optimiser, device)
    ranks.refuse_difference("finished epochs and model", _fingerprint(model, len(history)), device)
    step = step_of(model, settings, ranks)
    pixels = DevicePixels.if_it_fits(train.pack, train.rows, rule, device)
    bar = tqdm(
        total=settings.epochs * len(train.rows), initial=len(history) * len(train.rows), desc=label, unit="image",
        dynamic_ncols=True, disable=not ranks.first,
    )  # fmt: skip
    with bar:
        while len(history) < settings.epochs and not is_stuck(history, key, settings.patience):
            epoch, watch = len(history) + 1, Stopwatch()
            crops = EpochCrops(
                train.pack, train.rows, rule, flip=settings.flip, seed=(settings.seed, epoch), windows=settings.windows
            )
            images = epoch_images(crops, pixels, rule, device)
            done = run_epoch(
                step, optimiser, train, crops.order, images, settings, epoch=epoch, label=label, on_images=bar.update
            )
            seconds = watch.read().seconds
            ranks.refuse_difference("model", _fingerprint(model, epoch), device)

            scorer = fold(model)
            row = _losses_row(epoch, done, train, settings, has_auxiliary=model.auxiliary_prompts is not None)
            row |= correlations("train", done.predicted, train.main)
            for name, subset in selectors.items():
                row |= correlations(name, _scores_of(scorer, subset, rule, settings, ranks), subset.main)
            refuse_equal_scores(row, key)
            row |= prompt_columns(model, scorer.visual_prompts)
            history.append(row)
            timing.append({"epoch": epoch, **_cost(watch, ranks, len(train.rows) / seconds, device)})
            if not ranks.first:
                continue
            checkpoint = checkpoint_path(folder, epoch)
            save_checkpoint(checkpoint, scorer, {**record, "epoch": epoch})
            _save_state(folder / STATE_FILE, model, optimiser, history, timing)
            bar.set_postfix({key: f"{row[key]:.3f}", "loss": f"{row['loss']:.4f}"}, refresh=False)
            if on_epoch is not None:
                on_epoch(row, timing[-1], checkpoint)
    return Fitted(history, timing, select_epoch(history, key))


def run_epoch(
    step: Callable[..., tuple[Tensor, Tensor]],
    optimiser: torch.optim.Optimizer,
    train: Subset,
    order: np.ndarray,
    images: Callable[[int, int], Tensor],
    settings: Settings,
    *,
    epoch: int,
    label: str,
    on_images: Callable[[int], object],
) -> Epoch:
    """Take one step a batch over all training images.

    Args:
        step: `batch_step`, told of the model and of how to pass images through it.
        optimiser: Of the model's learned parts.
        train: Images to learn from.
        order: Places in `train.rows` in the order of this epoch, shape (N,).
        images: Gives the normalised crops of the images start..stop of that order.
        settings: How to train.
        epoch: From 1.
        label: Of the training, for errors.
        on_images: Called with the number of images after each step.

    Raises:
        TrainingError: If a loss is not finite; names epoch and step.
    """
    device, count, size = settings.device, len(train.rows), settings.batch_size
    steps = math.ceil(count / size)
    # Whatever the epoch needs is on the device before its first step: a small copy in between makes a GPU idle.
    main_targets = torch.as_tensor(train.main[order], dtype=torch.float32, device=device)
    auxiliary_targets = torch.as_tensor(train.auxiliary[order], dtype=torch.float32, device=device)
    labelled = np.isfinite(train.auxiliary[order])
    losses: list[Tensor] = []
    predicted: list[Tensor] = []
    rates: list[float] = []
    for number, start in enumerate(range(0, count, size)):
        part = slice(start, min(start + size, count))
        rates.append(learning_rate_at(
            (epoch - 1) * steps + number, settings.epochs * steps, settings.warmup_epochs * steps,
            settings.learning_rate, settings.schedule,
        ))  # fmt: skip
        for group in optimiser.param_groups:
            group["lr"] = rates[-1] * group["factor"]
        optimiser.zero_grad(set_to_none=True)
        step_losses, scores = step(
            lambda a, b, start=start: images(start + a, start + b), main_targets[part], auxiliary_targets[part],
            labelled=int(labelled[part].sum()),
        )  # fmt: skip
        optimiser.step()
        losses.append(step_losses)
        predicted.append(scores)
        # A GPU is asked once an epoch, and so never waits for us.
        if torch.device(device).type == "cpu" or part.stop == count:
            _refuse_bad_losses(losses, rates, f"epoch {epoch}", steps, label)
        on_images(part.stop - part.start)
    ordered = np.empty(count)
    ordered[order] = torch.cat(predicted).cpu().numpy()
    images_a_step = np.diff([*range(0, count, size), count])
    means = np.average(torch.stack(losses).double().cpu().numpy(), axis=0, weights=images_a_step)
    return Epoch(means, ordered, rates[-1])


def step_of(model: DCMPLN, settings: Settings, ranks: Ranks = ALONE) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return `batch_step` for this model, which still wants a batch's images and targets."""
    device, size = settings.device, settings.micro_batch
    passes: dict[str, Any] = {}
    if settings.compiled and torch.device(device).type != "cpu":  # the first steps of a process pay a minute for it
        passes = {"constants": torch.compile(model.constants), "score": torch.compile(score_tasks)}
    return partial(
        batch_step,
        model,
        auxiliary_weight=settings.auxiliary_weight,
        ranking_weight=settings.ranking_weight,
        windows=settings.windows,
        micro_batch=(
            micro_batch_for(model.backbone, device, settings.batch_size, settings.windows) if size == "auto" else size
        ),
        autocast=settings.amp,
        ranks=ranks,
        **passes,
    )


def _losses_row(epoch: int, done: Epoch, train: Subset, settings: Settings, *, has_auxiliary: bool) -> dict[str, float]:
    """Return the part of a history row that the losses give; the auxiliary one is NaN where nothing was learned."""
    main, auxiliary, ranking = done.losses.tolist()
    shown = has_auxiliary and bool(np.isfinite(train.auxiliary).any())
    total = main + settings.auxiliary_weight * auxiliary + settings.ranking_weight * ranking
    return {
        "epoch": epoch, "learning_rate": done.learning_rate, "loss": total, "loss_main": main,
        "loss_auxiliary": auxiliary if shown else math.nan,
        **({"loss_ranking": ranking} if settings.ranking_weight else {}),
    }  # fmt: skip


def _scores_of(scorer: FoldedScorer, subset: Subset, rule: WindowRule, settings: Settings, ranks: Ranks) -> np.ndarray:
    """Return a held-out subset's scores by a few windows an image, shape (N,); each process scores its share."""
    start, stop = ranks.share(len(subset.rows))
    rows = subset.rows[start:stop]
    own = np.zeros(0)
    if len(rows):
        own = image_scores(
            scorer, (subset.pack[row] for row in rows), len(rows), rule,
            windows=settings.validation_windows, device=settings.device, autocast=settings.amp,
        )  # fmt: skip
    return ranks.joined(own, len(subset.rows), settings.device)


def _fingerprint(model: DCMPLN, epochs: int) -> np.ndarray:
    """Return numbers that tell one state of a training from another: sums over what is learned, and the epochs done."""
    learned = [parameter.detach().double() for parameter in model.trainable_parameters()]
    sums = torch.stack([part for value in learned for part in (value.sum(), value.square().sum())])
    return np.append(sums.cpu().numpy(), epochs)


def _cost(watch: Stopwatch, ranks: Ranks, images_per_second: float, device: torch.device | str) -> dict[str, float]:
    """Return the rest of a timing row, of all processes together."""
    spent = watch.read(on_cpu=torch.device(device).type == "cpu")
    own = np.array([[spent.cpu_seconds, _peak_memory_mb(device), spent.under_load]], dtype=float)
    every = ranks.joined(own, ranks.count, device)
    return {
        "seconds": spent.seconds,
        "cpu_seconds": float(every[:, 0].sum()),
        "images_per_second": images_per_second,
        "peak_memory_mb": float(every[:, 1].max()),
        "under_load": int(every[:, 2].max()),
    }


Rows = list[dict[str, float]]


def _resume(
    file: Path, model: DCMPLN, optimiser: torch.optim.Optimizer, device: torch.device | str
) -> tuple[Rows, Rows]:
    """Return history and timing of the epochs that are done, and put model and optimiser where they ended."""
    if not file.is_file():
        return [], []
    state = torch.load(file, map_location=device, weights_only=True)
    model.load_learned_state(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return state["history"], state["timing"]


def _save_state(file: Path, model: DCMPLN, optimiser: torch.optim.Optimizer, history: Rows, timing: Rows) -> None:
    buffer = io.BytesIO()
    state = {"model": model.learned_state(), "optimiser": optimiser.state_dict()}
    torch.save({**state, "history": history, "timing": timing}, buffer)
    write_atomically(file, buffer.getvalue())


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
    return peak_memory_mb()  # of the process so far
