"""When to learn how fast, which epoch to keep, and when to stop. Without torch."""

import math

import numpy as np

from pipeline.errors import AgiqaError
from pipeline.metrics import has_spread


class TrainingError(AgiqaError):
    """Training that cannot go on."""


def learning_rate_at(step: int, steps: int, warmup: int, base: float, schedule: str) -> float:
    """Return the learning rate of a step.

    Args:
        step: From 0.
        steps: Of the whole training.
        warmup: Steps of linear rise to `base`.
        base: Highest rate.
        schedule: `constant`, or `cosine` down to zero after the warm-up.
    """
    if step < warmup:
        return base * (step + 1) / warmup
    if schedule == "constant":
        return base
    return base * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def refuse_targets(subset: str, targets: np.ndarray) -> None:
    """Stop a training before it begins, where no epoch of it could be selected.

    Args:
        subset: Name of the subset that selects.
        targets: Its main scores, shape (n,).

    Raises:
        TrainingError: If they have no spread.
    """
    if not has_spread(targets):
        what = f"all {len(targets)} images have the same main score" if len(targets) > 1 else "it has a single image"
        raise TrainingError(f"no epoch can be selected on {subset}: {what}, and a correlation needs a spread")


def refuse_equal_scores(row: dict[str, float], key: str) -> None:
    """Stop a training after its first epoch, whose every score on the selecting subset is the same.

    Args:
        row: Of the history.
        key: Of the metric that selects.

    Raises:
        TrainingError: If the first epoch has no finite `key`.
    """
    if row["epoch"] == 1 and not math.isfinite(row[key]):
        raise TrainingError(f"{key} has no value after epoch 1: every score is the same; lower train.learning_rate")


def select_epoch(history: list[dict[str, float]], key: str) -> int:
    """Return the epoch with the highest `key`, the first of equals.

    Raises:
        TrainingError: If no epoch has a finite value.
    """
    finite = [row for row in history if math.isfinite(row[key])]
    if not finite:
        raise TrainingError(f"no epoch has a finite {key}: every score is the same; lower train.learning_rate")
    return int(max(finite, key=lambda row: row[key])["epoch"])


def is_stuck(history: list[dict[str, float]], key: str, patience: int | None) -> bool:
    """Return whether the last `patience` epochs brought nothing better than those before them."""
    if patience is None or len(history) <= patience:
        return False
    values = [row[key] if math.isfinite(row[key]) else -math.inf for row in history]
    return max(values[-patience:]) <= max(values[:-patience])
