"""From scores to the numbers of one run: overall, per generator, and on other data sets."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pipeline import costs, metrics
from pipeline.calibration import Calibration
from pipeline.drawing import BLACK, BLUE, cycle_styles, house_style, put_title, save
from pipeline.layout import StudyError

LEAST_IN_GENERATOR = 5  # images below which a correlation within a generator says nothing


def predictions_table(
    manifest: pd.DataFrame,
    groups: pd.Series,
    rows: np.ndarray,
    predicted: np.ndarray,
    target: str,
    calibration: Calibration | None = None,
    unfamiliar: np.ndarray | None = None,
) -> pd.DataFrame:
    """Return predictions.csv.

    Args:
        manifest: Of the data set that was scored.
        groups: Split group of every image, indexed by manifest row.
        rows: Manifest rows that were scored, shape (n,).
        predicted: The method's raw scores, higher is better, shape (n,).
        target: The mean opinion score to compare with.
        calibration: Of the method, fitted on validation images; None leaves out what follows from it.
        unfamiliar: Whether each image is unlike the training images, shape (n,); likewise.

    Returns:
        A row an image: image_id, generator, generation_prompt, group, mos, mos_std, predicted, and `fitted`, the
        prediction on the MOS scale after the one logistic fit on these very images that everything downstream reads;
        then `score`, what a user is told, the calibrated prediction, with `low` and `high`, the ends of its band at
        `layout.LEVEL`, and `unfamiliar`.

    Raises:
        StudyError: If a score is not finite; names the first such image.
    """
    if not np.isfinite(predicted).all():
        first = manifest["image_id"].iloc[rows[np.flatnonzero(~np.isfinite(predicted))[0]]]
        raise StudyError(f"the score of {first} is not finite")
    part = manifest.iloc[rows]
    mos = part[target].to_numpy()
    told: dict[str, np.ndarray] = {}
    if calibration is not None:
        told["score"] = calibration.to_mos(predicted)
        told["low"], told["high"] = calibration.band(told["score"])
    if unfamiliar is not None:
        told["unfamiliar"] = unfamiliar
    return pd.DataFrame(
        {
            "image_id": part["image_id"].to_numpy(),
            "generator": part["generator"].to_numpy(),
            "generation_prompt": part["generation_prompt"].to_numpy(),
            "group": groups.iloc[rows].to_numpy(),
            "mos": mos,
            "mos_std": part[f"{target}_std"].to_numpy(),
            "predicted": predicted,
            "fitted": metrics.fit_logistic(predicted, mos),
            **told,
        }
    )


def evaluate(predictions: pd.DataFrame) -> dict[str, float | None]:
    """Return the run's test numbers: n, groups, correlations, RMSE after the logistic fit, and 95 % intervals.

    Args:
        predictions: From `predictions_table`.

    Returns:
        Numbers by name; None for what has no value, as every correlation of scores that are all equal. With calibrated
        scores also rmse_calibrated and mae_calibrated, their error as a user meets it, `coverage`, the share of images
        whose MOS lies in the band, band_width, its mean width in MOS, and `unfamiliar`, the share so marked.
    """
    columns = ("predicted", "fitted", "mos", "group")
    predicted, fitted, mos, groups = (predictions[column].to_numpy() for column in columns)
    return {
        "n": len(predictions),
        "groups": int(predictions["group"].nunique()),
        **metrics.summary(predicted, fitted, mos),
        **metrics.intervals(predicted, mos, groups),
        **told(predictions),
    }


def told(predictions: pd.DataFrame) -> dict[str, float]:
    """Return how good what users are told is: see `evaluate`; empty without calibrated scores."""
    if "score" not in predictions:
        return {}
    score, mos, low, high = (predictions[column].to_numpy() for column in ("score", "mos", "low", "high"))
    found = {
        "rmse_calibrated": metrics.rmse(score, mos),
        "mae_calibrated": float(np.abs(score - mos).mean()),
        "coverage": float(((low <= mos) & (mos <= high)).mean()),
        "band_width": float((high - low).mean()),
    }
    return found | ({"unfamiliar": float(predictions["unfamiliar"].mean())} if "unfamiliar" in predictions else {})


def cost(spent: costs.Spent, images: int, features: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what scoring cost; the peak memory is this process's so far.

    Args:
        spent: By the scoring itself.
        images: That were scored.
        features: What the features that it reads cost an image, as `pipeline.costs.an_image`; they are charged, and
            their pass's peak memory counts. None: it reads pixels.
    """
    peak = costs.peak_memory_mb()
    if features is not None:
        spent, peak = costs.charged(spent, images, features), max(peak, features["peak_memory_mb"])
    return {**spent._asdict(), "images_per_second": images / spent.seconds, "peak_memory_mb": peak}


def by_generator(predictions: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Return each generator's number of images, mean MOS, mean score, and SRCC within (None where too few or tied).

    With calibrated scores also their mean, score_mean, and what `told` says of the generator's images.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, part in predictions.groupby("generator", sort=True):
        varies = all(metrics.has_spread(part[column].to_numpy()) for column in ("predicted", "mos"))
        enough = len(part) >= LEAST_IN_GENERATOR and varies
        found[str(name)] = {
            "n": len(part),
            "srcc": metrics.srcc(part["predicted"].to_numpy(), part["mos"].to_numpy()) if enough else None,
            "mos_mean": float(part["mos"].mean()),
            "predicted_mean": float(part["predicted"].mean()),
            **({"score_mean": float(part["score"].mean()), **told(part)} if "score" in part else {}),
        }
    return found


def scatter(predictions: pd.DataFrame, path: str | Path, title: str, mos_label: str) -> None:
    """Draw predicted score against MOS for every image, with the logistic fit that PLCC is computed after.

    Args:
        predictions: Columns predicted (unitless, higher is better), fitted and mos, a row per image; a generator
            column, if there is one, gives each generator its colour and shape.
        path: File to write; its suffix (.png or .svg) says the format.
        title: Title of the figure.
        mos_label: Label of the MOS axis, with its scale: "quality MOS (0 to 5)".

    Raises:
        ValueError: If the suffix is another.
    """
    with house_style():
        figure = Figure(figsize=(6.4, 4.4), layout="constrained")
        axes = figure.subplots()
        if "generator" in predictions:
            for style, (name, rows) in zip(cycle_styles(), predictions.groupby("generator", sort=True), strict=False):
                axes.scatter(rows["predicted"], rows["mos"], s=12, alpha=0.65, linewidths=0, label=str(name), **style)
        else:
            axes.scatter(predictions["predicted"], predictions["mos"], s=12, alpha=0.65, linewidths=0, color=BLUE)
        line = predictions.sort_values("predicted", kind="stable")
        axes.plot(line["predicted"], line["fitted"], color=BLACK, lw=1.6, label="logistic fit")
        axes.set(xlabel="predicted score", ylabel=mos_label)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", markerscale=1.6)
        put_title(figure, title)
        save(figure, path)
