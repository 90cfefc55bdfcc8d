"""What one round of one data set holds: its subsets, its targets and its features, without torch.

Importing torch costs seconds, which a stage that does not compute with it should not pay.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.layout import SUBSETS, StudyError, feature_times_path, features_path


def round_seed(seed: int, round_index: int) -> int:
    """Return the seed of one round; neighbouring (seed, round) pairs give unrelated numbers."""
    return int(np.random.SeedSequence([seed, round_index]).generate_state(1)[0])


def open_split(path: str | Path, manifest: pd.DataFrame) -> tuple[dict[str, np.ndarray], pd.Series]:
    """Read one round's split.

    Args:
        path: round-<r>.csv with columns image_id, group, subset.
        manifest: Of the same data set.

    Returns:
        The manifest rows of each subset, in manifest order, and the group of every image, indexed by manifest row.

    Raises:
        StudyError: If the split and the manifest do not name the same images, or a subset is empty.
    """
    split = pd.read_csv(path, dtype=str).set_index("image_id")
    if not split.index.is_unique or set(split.index) != set(manifest["image_id"]):
        differing = sorted(set(split.index) ^ set(manifest["image_id"]))
        raise StudyError(
            f"{path} and the manifest differ in {len(differing)} images, such as {differing[:1]}: "
            "run the split stage anew"
        )
    split = split.loc[manifest["image_id"]].reset_index()
    rows = {name: np.flatnonzero(split["subset"] == name) for name in SUBSETS}
    empty = [name for name in SUBSETS if not len(rows[name])]
    if empty:
        raise StudyError(f"{path} leaves no image for {', '.join(empty)}: raise the fraction under `split`")
    return rows, split["group"]


def scaled_mos(manifest: pd.DataFrame, attribute: str) -> np.ndarray:
    """Return a mean opinion score scaled to 0..1 by its declared scale, NaN where there is none, shape (N,)."""
    low, high = manifest["mos_low"], manifest["mos_high"]
    return ((manifest[attribute] - low) / (high - low)).to_numpy(dtype=np.float64)


def raters_of(manifest: pd.DataFrame) -> str:
    """Return who gave a data set's scores, `people` or `simulated`; manifests of earlier versions leave it out."""
    return str(manifest["raters"].iloc[0]) if "raters" in manifest else "people"


def unscaled_mos(share: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return what `scaled_mos` has scaled on its own scale again, shape (N,), where rounding leads nothing off it."""
    return np.clip(low + share * (high - low), low, high)


def refuse_unlabelled(values: np.ndarray, attribute: str, subset: str) -> None:
    """Stop a training or a fit whose images lack the score that it is to learn.

    Args:
        values: Main target of a subset's images, shape (n,), NaN where there is none.
        attribute: Of params.yaml's `targets.main`.
        subset: Its name.

    Raises:
        StudyError: If one is NaN.
    """
    if np.isnan(values).any():
        raise StudyError(f"targets.main is {attribute!r}, which {subset} images of this data set do not have")


@dataclass(frozen=True)
class FeaturesAbout:
    """How a data set's features were computed.

    Attributes:
        backbone: Its record.
        windows: Record of the window rule.
        text_features: Of the zero-shot texts, the better first, shape (2, E); None where no baseline reads the tower.
        statistics: Names of the hand-crafted statistics; empty where no baseline reads them.
    """

    backbone: dict[str, Any]
    windows: dict[str, Any]
    text_features: np.ndarray | None
    statistics: list[str]


def features_about(dataset: str) -> FeaturesAbout:
    """Return how a data set's features were computed."""
    with np.load(features_path(dataset)) as archive:
        return FeaturesAbout(
            json.loads(str(archive["backbone"])),
            json.loads(str(archive["windows"])),
            archive.get("clip_iqa_text_features"),
            archive["handcrafted_names"].tolist() if "handcrafted_names" in archive else [],
        )


def feature_times(dataset: str) -> dict[str, Any]:
    """Return what each pass of the features stage cost, `tower` and `statistics`, each as `costs.an_image`."""
    return json.loads(feature_times_path(dataset).read_text(encoding="utf-8"))


def read_features(dataset: str, manifest: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return what the features stage computed for the study's baselines, in manifest order.

    Returns:
        Of the passes that a baseline reads: image_features and image_features_deviation, the mean and the standard
        deviation over an image's windows, each (N, E); clip_iqa (N,); handcrafted (N, K).

    Raises:
        StudyError: If the features belong to other images than the manifest.
    """
    path = features_path(dataset)
    with np.load(path) as archive:
        if archive["image_id"].tolist() != manifest["image_id"].tolist():
            raise StudyError(f"{path} and the manifest name different images: run the features stage anew")
        columns = ("image_features", "image_features_deviation", "clip_iqa", "handcrafted")
        return {key: archive[key] for key in columns if key in archive}
