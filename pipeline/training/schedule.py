"""When to learn how fast, which epoch to keep, and when to stop. Without torch."""

import math

from pipeline.errors import AgiqaError


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
