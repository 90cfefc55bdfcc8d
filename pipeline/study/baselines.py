"""What a baseline of one round reads and says of itself, without torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.files import file_md5
from pipeline.layout import SUBSETS, input_paths, leaks
from pipeline.params import Params
from pipeline.study.runs import used_params
from pipeline.study.subsets import (
    features_backbone,
    open_split,
    raters_of,
    read_features,
    refuse_unlabelled,
    round_seed,
    scaled_mos,
)

# The keys of params.yaml that a baseline's run uses, which its record repeats.
BASELINE_KEYS = ["backbone", "images", "split.rule", "targets.main", "baselines"]


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
        refuse_unlabelled(values, params.targets.main, name)
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
        "raters": raters_of(manifest),
        "backbone": features_backbone(dataset),
        "trainable_parameters": None,
        "params": used_params(params.model_dump(), BASELINE_KEYS),
        "inputs": {"manifest_md5": file_md5(manifest_path), "splits_md5": file_md5(split_path)},
        "images": {name: len(indices) for name, indices in rows.items()},
    }
    return BaselinePlan(record, targets, {name: rows[name] for name in targets}, read_features(dataset, manifest))
