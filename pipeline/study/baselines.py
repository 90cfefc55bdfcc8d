"""What a baseline of one round reads and says of itself, without torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.calibration import calibrate
from pipeline.familiarity import familiarise
from pipeline.files import file_md5
from pipeline.layout import SUBSETS, input_paths, leaks, pyiqa_metric
from pipeline.model.checkpoint_file import write_checkpoint
from pipeline.params import Params
from pipeline.study.metric_scores import metric_scores
from pipeline.study.runs import agreement, used_params
from pipeline.study.subsets import (
    FeaturesAbout,
    features_about,
    open_split,
    raters_of,
    read_features,
    refuse_unlabelled,
    round_seed,
    scaled_mos,
    unscaled_mos,
)
from pipeline.training import baselines

# The keys of params.yaml that a baseline's run uses, which its record repeats.
BASELINE_KEYS = ["backbone", "images", "split.rule", "targets.main", "baselines"]


@dataclass(frozen=True)
class BaselinePlan:
    """A baseline that is ready to be fitted.

    Attributes:
        record: record.json as far as it is known before the fit.
        targets: Main target scaled to 0..1, shape (N,), of the train and validation images.
        rows: Manifest rows of those images, each (N,).
        columns: What the features stage computed, a row an image of the manifest; of a metric of pyiqa's its scores.
        about: How it did.
        validation_groups: Prompt group of each validation image, shape (M,).
        checkpoint_record: What the checkpoint says of itself.
    """

    record: dict[str, Any]
    targets: dict[str, np.ndarray]
    rows: dict[str, np.ndarray]
    columns: dict[str, np.ndarray]
    about: FeaturesAbout
    validation_groups: np.ndarray
    checkpoint_record: dict[str, Any]

    def features(self, subset: str) -> dict[str, np.ndarray]:
        """Return the features of one subset's images."""
        return {name: values[self.rows[subset]] for name, values in self.columns.items()}

    def save(self, checkpoint: Path, model: dict[str, np.ndarray]) -> None:
        """Write the fitted baseline with its calibration and its idea of what is familiar.

        Args:
            checkpoint: The file to write.
            model: From the fit; empty for clip_iqa and pyiqa's.
        """
        method, stored = self.record["method"], self.checkpoint_record
        write_checkpoint(checkpoint, arrays := baselines.arrays(method, model, self.about.text_features), stored)
        raw = baselines.predict(checkpoint, self.features("validation"))  # by the rounded numbers that it holds
        low, high = stored["mos_low"], stored["mos_high"]
        mos = unscaled_mos(self.targets["validation"], low, high)
        calibration = calibrate(raw, mos, self.validation_groups, low, high)
        seen = baselines.SEES.get(method)
        subsets = () if seen is None else ("train", "validation")
        familiarity = familiarise(*(self.features(subset)[seen] for subset in subsets)) if subsets else None
        write_checkpoint(checkpoint, arrays, stored, calibration, familiarity)

    def finished_record(self, checkpoint: Path) -> dict[str, Any]:
        """Return the whole record.json, which names the content of the checkpoint that `save` has written."""
        raw = baselines.predict(checkpoint, self.features("validation"))
        return self.record | {
            "validation": agreement(raw, self.targets["validation"]),
            "selected_epoch": 0,
            "epochs_run": 0,
            "checkpoint_bytes": checkpoint.stat().st_size,
            "checkpoint_md5": file_md5(checkpoint),
        }


def plan_baseline(params: Params, dataset: str, method: str, round_index: int) -> BaselinePlan:
    """Read all that one baseline needs; no label of a test image is among it."""
    manifest_path, split_path = input_paths(dataset, round_index)
    manifest = pd.read_parquet(manifest_path)
    rows, groups = open_split(split_path, manifest)
    about, name = features_about(dataset), pyiqa_metric(method)
    metric = None if name is None else metric_scores(params, dataset, name)
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
        "backbone": about.backbone if metric is None else None,
        **({} if metric is None else {"metric": metric.about}),
        "trainable_parameters": None,
        "params": used_params(params.model_dump(), BASELINE_KEYS),
        "inputs": {"manifest_md5": file_md5(manifest_path), "splits_md5": file_md5(split_path)},
        "images": {name: len(indices) for name, indices in rows.items()},
    }
    reads_network = method != "handcrafted" and metric is None
    checkpoint_record = {
        "dataset": dataset,
        "method": method,
        "round": round_index,
        "epoch": 0,
        "leaks": record["leaks"],
        "target": params.targets.main,
        "raters": record["raters"],
        "texts": list(params.baselines.clip_iqa_texts) if method == "clip_iqa" else [],
        "backbone": about.backbone if reads_network else None,
        "windows": about.windows if reads_network else None,
        "statistics": about.statistics if method == "handcrafted" else None,
        **({} if metric is None else {"metric": metric.about}),
        "prompt_depth": 0,
        "prompt_length": 0,
        "residual_ratio": None,
        "mos_low": float(manifest["mos_low"].iloc[0]),
        "mos_high": float(manifest["mos_high"].iloc[0]),
    }
    return BaselinePlan(
        record, targets, {name: rows[name] for name in targets},
        read_features(dataset, manifest) if metric is None else {baselines.METRIC: metric.values}, about,
        groups.iloc[rows["validation"]].to_numpy(), checkpoint_record,
    )  # fmt: skip
