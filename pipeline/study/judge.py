"""A finished training as a judge of images: its checkpoints, loaded once, score any data set."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline.data.pixels import open_prepared
from pipeline.layout import checkpoint_path, input_paths
from pipeline.model.backbone import Backbone
from pipeline.model.checkpoint import load_checkpoint
from pipeline.model.folded import FoldedScorer, quality_map, window_scores
from pipeline.model.windows import WindowRule
from pipeline.params import Params
from pipeline.study.build import make_backbone, make_window_rule, prepare_torch


@dataclass(frozen=True)
class Judge:
    """A training's checkpoints, ready to score the images of any data set.

    Attributes:
        params: Of the study.
        record: The run's record.json.
        train_folder: The run's `train` folder.
        backbone: Of the study, on its device.
        rule: The window rule.
    """

    params: Params
    record: Mapping[str, Any]
    train_folder: Path
    backbone: Backbone
    rule: WindowRule

    @classmethod
    def of(cls, params: Params, record: Mapping[str, Any], train_folder: Path) -> "Judge":
        """Load the backbone on the study's device."""
        backbone = make_backbone(params).to(prepare_torch(params.train.device, params.train.threads))
        return cls(params, record, train_folder, backbone, make_window_rule(params, backbone))

    @property
    def on_cpu(self) -> bool:
        """Whether processors do the work, and no GPU."""
        return self.backbone.logit_scale.device.type == "cpu"

    def images(self) -> Callable[[str], np.ndarray]:
        """Return what gives an image of the training's own data set, shape (H, W, 3), uint8, by its id."""
        manifest, pack = open_prepared(input_paths(self.record["dataset"], self.record["round"])[0].parent)
        rows = {name: row for row, name in enumerate(manifest["image_id"])}
        return lambda image_id: pack[rows[image_id]]

    def quality_maps(self) -> Callable[[np.ndarray], np.ndarray]:
        """Return what lays the selected epoch's scores on an image; see `pipeline.model.folded.quality_map`."""
        scorer, device = self.scorer(), self.backbone.logit_scale.device
        return lambda pixels: quality_map(scorer, pixels, self.rule, device)

    def scorer(self, epoch: int | None = None) -> FoldedScorer:
        """Return the scorer of an epoch; None takes the selected one."""
        path = checkpoint_path(self.train_folder, self.record["selected_epoch"] if epoch is None else epoch)
        return load_checkpoint(path, self.backbone, self.rule)[0]

    def scores(
        self, dataset: str, rows: np.ndarray, *, epoch: int | None = None, windows: int | None = None
    ) -> np.ndarray:
        """Return raw scores, shape (n,), of manifest rows (n,) of a data set; arguments as `scored`."""
        return self.scored(dataset, rows, epoch=epoch, windows=windows)[0]

    def scored(
        self, dataset: str, rows: np.ndarray, *, epoch: int | None = None, windows: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return raw scores, shape (n,), and the tower's features, shape (n, E), of manifest rows of a data set.

        Args:
            dataset: Its name.
            rows: Manifest rows, shape (n,).
            epoch: None takes the selected one.
            windows: Windows an image; None takes all.
        """
        _, pack = open_prepared(input_paths(dataset, self.record["round"])[0].parent)
        device = self.backbone.logit_scale.device
        label = f"{self.record['dataset']}/{self.record['method']}/{self.train_folder.parent.name} scores {dataset}"
        shown = tqdm(
            rows, desc=label if epoch is None else f"{label}, epoch {epoch}", unit="image",
            dynamic_ncols=True,
        )  # fmt: skip
        found = window_scores(
            self.scorer(epoch), (pack[row] for row in shown), self.rule, windows=windows, device=device,
            autocast=self.params.train.amp == "auto" and device.type == "cuda",
        )  # fmt: skip
        return np.array([one.raw for one in found]), np.array([one.features for one in found])
