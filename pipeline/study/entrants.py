"""What scores images with a run's result, a training's network or a baseline's features, and what it tells of them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.calibration import Calibration
from pipeline.layout import RECORD, checkpoint_path, input_paths, pyiqa_metric
from pipeline.model.checkpoint_file import calibration_of, familiarity_of, read_checkpoint
from pipeline.params import Params
from pipeline.study import gallery, subsets
from pipeline.study.metric_scores import metric_scores
from pipeline.training import baselines


@dataclass(frozen=True)
class Entrant:
    """A run's result, ready to score.

    Attributes:
        record: The run's record.json.
        scored: Gives raw scores (n,) and what the method sees of the images (n, F) for a data set's manifest rows (n,).
        show: Draws some images of a table of predictions into a folder; does nothing for a baseline.
        on_cpu: Whether processors do the work.
        feature_cost: Of the features that it reads, as `pipeline.costs.an_image`; None: it reads pixels.
        checkpoint: Of the selected epoch.
        calibration: From raw score to MOS; None for a checkpoint of an earlier version.
    """

    record: Mapping[str, Any]
    scored: Callable[[str, np.ndarray], tuple[np.ndarray, np.ndarray]]
    show: Callable[[Path, pd.DataFrame], None]
    on_cpu: bool
    feature_cost: Mapping[str, Any] | None
    checkpoint: Path
    calibration: Calibration | None

    def unfamiliar(self, features: np.ndarray) -> np.ndarray | None:
        """Return whether each image is unlike the training images, shape (n,); None where the checkpoint cannot tell.

        Args:
            features: From `scored`, shape (n, F).
        """
        found = familiarity_of(self.checkpoint, *read_checkpoint(self.checkpoint), features.shape[1])
        return None if found is None else found.is_unfamiliar(features)


def enter(params: Params, train_folder: Path) -> Entrant:
    """Load a run's result.

    Args:
        params: Of the study.
        train_folder: The run's `train` folder.
    """
    record = json.loads((train_folder / RECORD).read_text())
    checkpoint = checkpoint_path(train_folder, record["selected_epoch"])
    calibration = calibration_of(read_checkpoint(checkpoint)[0])
    if record["kind"] == "variant":
        from pipeline.study.judge import Judge  # imported here: brings in torch, which no baseline needs

        judging = Judge.of(params, record, train_folder)

        def show(folder: Path, table: pd.DataFrame) -> None:
            gallery.write_gallery(folder, table, params.evaluate.gallery, judging.images(), judging.quality_maps())

        return Entrant(record, judging.scored, show, judging.on_cpu, None, checkpoint, calibration)

    if (metric := pyiqa_metric(record["method"])) is not None:

        def from_metric(dataset: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            found = metric_scores(params, dataset, metric).values[rows]
            return baselines.predict(checkpoint, {baselines.METRIC: found}), found[:, None]

        cost = metric_scores(params, record["dataset"], metric).cost
        return Entrant(record, from_metric, lambda folder, table: None, True, cost, checkpoint, calibration)

    def from_features(dataset: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        manifest = pd.read_parquet(input_paths(dataset, record["round"])[0])
        features = {key: value[rows] for key, value in subsets.read_features(dataset, manifest).items()}
        return baselines.predict(checkpoint, features), features[baselines.SEES[record["method"]]]

    cost = subsets.feature_times(record["dataset"])[baselines.MADE_BY[record["method"]]]
    return Entrant(record, from_features, lambda folder, table: None, True, cost, checkpoint, calibration)
