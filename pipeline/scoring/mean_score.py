"""The mean score of many images as a `torchmetrics.Metric`, to log while a generator trains.

    from pipeline import MeanScore

    metric = MeanScore("hf:owner/name")
    metric.update(images)  # (N, 3, H, W), uint8, or floats in 0..1
    metric.compute()  # mean MOS that people would give them

Needs the extra `metrics`.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.model.torchvision_shim import ensure_torchvision_imports
from pipeline.scoring.scorer import Scorer, ScoringError, load_scorer

ensure_torchvision_imports()  # torchmetrics imports torchvision
try:
    from torchmetrics import Metric
except ImportError as error:
    raise ScoringError(
        f"MeanScore needs a package that is missing ({error.name}): pip install torchmetrics, the extra `metrics`"
    ) from error


class MeanScore(Metric):
    """The mean of calibrated scores, on the MOS scale of the data set that the model was trained on.

    What is kept is a sum and a count, so that processes and parts, however unequal, give the mean over all images. The
    scorer stays on its own device; `to` moves the sums alone.

    Attributes:
        scorer: Scores the images.
        total: Sum of the scores so far, (), float64.
        count: Images so far, (), int64.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    total: Tensor
    count: Tensor

    def __init__(self, scorer: Scorer | str | Path = "auto", *, device: str = "auto", **kwargs: Any) -> None:
        """Load the scorer.

        Args:
            scorer: A scorer, or the place of a model, as `load_scorer` takes it.
            device: Of the scorer, where a place is given.
            **kwargs: Of `torchmetrics.Metric`, such as `dist_sync_on_step`.

        Raises:
            ScoringError: If the model was never calibrated: a mean of its scores would be no MOS.
            AgiqaError: As `load_scorer`.
        """
        super().__init__(**kwargs)
        self.scorer = scorer if isinstance(scorer, Scorer) else load_scorer(scorer, device=device)
        if self.scorer.calibration is None:
            raise ScoringError(
                f"{self.scorer.path} was never calibrated, so a mean of its scores is no MOS: choose another model"
            )
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, images: Tensor) -> None:
        """Score images and add them up.

        Args:
            images: Shape (N, 3, H, W), uint8, or floats in 0..1, which are rounded to the pixels that a PNG would hold.

        Raises:
            ScoringError: If they have another shape.
            ImageError: If an image cannot be used; names its place among them.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ScoringError(f"images have the shape (N, 3, H, W), and these {tuple(images.shape)}")
        scores = self.scorer.score(list(images)).mos
        self.total += float(scores.sum())
        self.count += len(scores)

    def compute(self) -> Tensor:
        """Return the mean score over all images since the last reset, (), float64; NaN if there were none."""
        return self.total / self.count
