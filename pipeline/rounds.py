"""What one round of one data set holds, its baselines' part included, without torch.

Importing torch costs seconds, which a stage that does not compute with it should not pay. Imports pipeline.files,
pipeline.params, pipeline.runs.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.files import file_md5
from pipeline.params import Params
from pipeline.runs import leaks, used_params

SUBSETS = ("train", "validation", "test")
# The keys of params.yaml that a baseline's run uses, which its record repeats.
BASELINE_KEYS = ["backbone", "images", "split.rule", "targets.main", "baselines"]


class StudyError(ValueError):
    """Files of the study that do not fit each other."""


def input_paths(dataset: str, round_index: int, split: str = "round") -> tuple[Path, Path]:
    """Return a data set's manifest and one round's split, relative to the repository root.

    Args:
        dataset: Its name.
        round_index: The round.
        split: `round` for the study's own split, `random` for the leaking one that the audit compares it with.
    """
    return (
        Path("data", "prepared", dataset, "manifest.parquet"),
        Path("data", "splits", dataset, f"{split}-{round_index}.csv"),
    )


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


@dataclass(frozen=True)
class BaselinePlan:
    """A baseline that is ready to be fitted.

    Attributes:
        record: record.json as far as it is known before the fit.
        targets: Main target scaled to 0..1, shape (N,), of the train and validation images.
        rows: Manifest rows of those images, each (N,).
        columns: What the features stage computed, a row an image of the manifest.
    """

    record: dict[str, Any]
    targets: dict[str, np.ndarray]
    rows: dict[str, np.ndarray]
    columns: dict[str, np.ndarray]

    def features(self, subset: str) -> dict[str, np.ndarray]:
        """Return the features of one subset's images."""
        return {name: values[self.rows[subset]] for name, values in self.columns.items()}

    def finished_record(self, model_file: Path) -> dict[str, Any]:
        """Return the whole record.json."""
        size = model_file.stat().st_size if model_file.is_file() else None
        return self.record | {"selected_epoch": 0, "epochs_run": 0, "checkpoint_bytes": size}


def plan_baseline(params: Params, dataset: str, method: str, round_index: int) -> BaselinePlan:
    """Read all that one baseline needs; no label of a test image is among it."""
    manifest_path, split_path = input_paths(dataset, round_index)
    manifest = pd.read_parquet(manifest_path)
    rows, _ = open_split(split_path, manifest)
    main = scaled_mos(manifest, params.targets.main)
    targets = {name: main[rows[name]] for name in SUBSETS[:2]}
    for name, values in targets.items():
        if np.isnan(values).any():
            raise StudyError(
                f"targets.main is {params.targets.main!r}, which {name} images of this data set do not have"
            )
    record = {
        "dataset": dataset,
        "method": method,
        "kind": "baseline",
        "round": round_index,
        "seed": round_seed(params.baselines.seed, round_index),
        "split_rule": params.split.rule,
        "select_on": None,
        "leaks": leaks(params.split.rule, None),
        "shuffled_labels": False,
        "target": params.targets.main,
        "auxiliary_target": None,
        "backbone": features_backbone(dataset),
        "trainable_parameters": None,
        "params": used_params(params.model_dump(), BASELINE_KEYS),
        "inputs": {"manifest_md5": file_md5(manifest_path), "splits_md5": file_md5(split_path)},
        "images": {name: len(indices) for name, indices in rows.items()},
    }
    return BaselinePlan(record, targets, {name: rows[name] for name in targets}, read_features(dataset, manifest))


def features_backbone(dataset: str) -> dict[str, Any]:
    """Return the record of the backbone that a data set's image features were computed with."""
    with np.load(Path("data", "features", f"{dataset}.npz")) as archive:
        return json.loads(str(archive["backbone"]))


def read_features(dataset: str, manifest: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return what the features stage computed, in manifest order: image_features, clip_iqa and handcrafted.

    Raises:
        StudyError: If the features belong to other images than the manifest.
    """
    path = Path("data", "features", f"{dataset}.npz")
    with np.load(path) as archive:
        if archive["image_id"].tolist() != manifest["image_id"].tolist():
            raise StudyError(f"{path} and the manifest name different images: run the features stage anew")
        return {key: archive[key] for key in ("image_features", "clip_iqa", "handcrafted")}


def validation_numbers(train_folder: Path, selected_epoch: int) -> dict[str, float]:
    """Return the selected epoch's validation SRCC, PLCC and KRCC; empty for a method that has none."""
    history = pd.read_csv(train_folder / "history.csv").set_index("epoch")
    row = history.loc[selected_epoch] if selected_epoch in history.index else pd.Series(dtype=float)
    prefix = "validation_"
    return {
        key.removeprefix(prefix): float(row[key]) for key in row.index if key.startswith(prefix) and pd.notna(row[key])
    }


def backbone_label(backbone: Mapping[str, Any]) -> str:
    """Return a backbone's name with whose weights it has, as every result must show it."""
    weights = {"random": "random weights", "in-house": "in-house weights"}.get(
        backbone["origin"], backbone["pretrained"]
    )
    return f"{backbone['name']} ({weights})"
