"""From scores to the numbers of one run: overall, per generator, and on other data sets.

Imports pipeline.metrics.
"""

import resource
from typing import Any

import numpy as np
import pandas as pd

from pipeline import metrics

LEAST_IN_GENERATOR = 5  # images below which a correlation within a generator says nothing


def predictions_table(
    manifest: pd.DataFrame, groups: pd.Series, rows: np.ndarray, predicted: np.ndarray, target: str
) -> pd.DataFrame:
    """Return predictions.csv.

    Args:
        manifest: Of the data set that was scored.
        groups: Split group of every image, indexed by manifest row.
        rows: Manifest rows that were scored, shape (n,).
        predicted: The method's raw scores, higher is better, shape (n,).
        target: The mean opinion score to compare with.

    Returns:
        A row an image: image_id, generator, generation_prompt, group, mos, mos_std, predicted.

    Raises:
        ValueError: If a score is not finite; names the first such image.
    """
    if not np.isfinite(predicted).all():
        first = manifest["image_id"].iloc[rows[np.flatnonzero(~np.isfinite(predicted))[0]]]
        raise ValueError(f"the score of {first} is not finite")
    part = manifest.iloc[rows]
    return pd.DataFrame(
        {
            "image_id": part["image_id"].to_numpy(),
            "generator": part["generator"].to_numpy(),
            "generation_prompt": part["generation_prompt"].to_numpy(),
            "group": groups.iloc[rows].to_numpy(),
            "mos": part[target].to_numpy(),
            "mos_std": part[f"{target}_std"].to_numpy(),
            "predicted": predicted,
        }
    )


def evaluate(predictions: pd.DataFrame, resamples: int, seed: int) -> dict[str, float]:
    """Return the run's test numbers: n, groups, correlations, RMSE after the logistic fit, and 95 % intervals.

    Args:
        predictions: From `predictions_table`.
        resamples: Bootstrap resamples of whole prompt groups.
        seed: Of the bootstrap.
    """
    predicted, mos = predictions["predicted"].to_numpy(), predictions["mos"].to_numpy()
    groups = predictions["group"].to_numpy()
    return {
        "n": len(predictions),
        "groups": int(predictions["group"].nunique()),
        **metrics.summary(predicted, mos),
        **metrics.bootstrap(predicted, mos, groups, resamples=resamples, seed=seed),
    }


def cost(seconds: float, images: int) -> dict[str, float]:
    """Return what scoring cost; the peak memory is this process's so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "images_per_second": images / seconds, "peak_memory_mb": peak}


def by_generator(predictions: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Return each generator's number of images, mean MOS, mean score, and SRCC within (None where too few or tied)."""
    found: dict[str, dict[str, Any]] = {}
    for name, part in predictions.groupby("generator", sort=True):
        varies = part["predicted"].nunique() > 1 and part["mos"].nunique() > 1
        enough = len(part) >= LEAST_IN_GENERATOR and varies
        found[str(name)] = {
            "n": len(part),
            "srcc": metrics.srcc(part["predicted"].to_numpy(), part["mos"].to_numpy()) if enough else None,
            "mos_mean": float(part["mos"].mean()),
            "predicted_mean": float(part["predicted"].mean()),
        }
    return found
