"""From a raw score to the MOS that it stands for, and how far off that may be: fitted on validation images alone.

A model's raw score orders images; how it lies on the MOS scale is an accident of the training. The map here is small
enough for a dozen images: two numbers, rising, smooth, and inside the scale everywhere. The band around a score is
conformal: it assumes no distribution, only that the images to come are like the validation images, prompt by prompt.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import expit, logit

from pipeline.errors import AgiqaError
from pipeline.layout import LEVEL, PERCENTS

# Of the map, a standard deviation of the scores: nine tenths of its rise take 2.2 of them, so few images make no step
STEEPEST = 2.0
FOLDS = 50  # at most, in which prompt groups are left out; more gain nothing and cost seconds


@dataclass(frozen=True)
class Calibration:
    """A map from raw scores to MOS, with the half-widths of its bands.

    mos(s) = low + (high - low) / (1 + exp(-(offset + slope s)))

    Attributes:
        offset, slope: Of the map; a slope of 0 gives every image the same MOS, for scores that tell nothing.
        low, high: Of the MOS scale.
        half_widths: Of the band at each of `PERCENTS`, in MOS; None where too few prompt groups vouch for that level,
            so that the band is the whole scale.
        images, groups: Of validation, that it was fitted on.
    """

    offset: float
    slope: float
    low: float
    high: float
    half_widths: tuple[float | None, ...]
    images: int
    groups: int

    def to_mos(self, raw: np.ndarray) -> np.ndarray:
        """Return the MOS that raw scores stand for, of the same shape."""
        return self.low + (self.high - self.low) * expit(self.offset + self.slope * np.asarray(raw, dtype=np.float64))

    def band(self, mos: np.ndarray, level: int = LEVEL) -> tuple[np.ndarray, np.ndarray]:
        """Return the lower and the upper end of the band around calibrated scores, cut to the scale.

        Args:
            mos: From `to_mos`, any shape.
            level: In percent, one of `PERCENTS`: so many of new images' MOS lie inside.

        Raises:
            AgiqaError: If the level is another.
        """
        if level not in PERCENTS:
            raise AgiqaError(f"level is {level!r}: whole percents from {PERCENTS[0]} to {PERCENTS[-1]} are known")
        half = self.half_widths[level - PERCENTS[0]]
        half = self.high - self.low if half is None else half
        mos = np.asarray(mos, dtype=np.float64)
        return np.maximum(self.low, mos - half), np.minimum(self.high, mos + half)

    def record(self) -> dict[str, Any]:
        """Return plain values for a checkpoint's record."""
        return asdict(self) | {"half_widths": list(self.half_widths)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Calibration":
        """Return the calibration of a record that `pipeline.model.record` has checked."""
        return cls(**(dict(record) | {"half_widths": tuple(record["half_widths"])}))


def told_mos(raw: np.ndarray, calibration: Calibration | None, low: float, high: float) -> np.ndarray:
    """Return what is told as the MOS of raw scores, of the same shape.

    Args:
        raw: Scores, higher is better.
        calibration: Of the model that gave them; None stretches scores of 0..1 over the scale: a rank, and no more.
        low: Of the MOS scale.
        high: Likewise.
    """
    return low + np.asarray(raw) * (high - low) if calibration is None else calibration.to_mos(raw)


def calibrate(raw: np.ndarray, mos: np.ndarray, groups: np.ndarray, low: float, high: float) -> Calibration:
    """Fit map and bands on validation images.

    The map is the least-squares fit of its two numbers. A band's half-width is a quantile of the residuals that each
    prompt group has under a map fitted without it. Each group weighs as much as any other, shared by its images, and a
    last share belongs to the image to come, of which nothing is known: 1 / (m + 1), where m counts independent images.
    Images of one prompt are alike, so m lies between the groups and the images, where their residuals put it.

    Args:
        raw: Scores of all windows, shape (n,), higher is better, on any scale.
        mos: Mean opinion scores, shape (n,).
        groups: Prompt group of each image, shape (n,).
        low: Of the MOS scale.
        high: Likewise.

    Raises:
        AgiqaError: If there is no image, or a value is not finite or outside of the scale.

    Source: the map is Platt's sigmoid ("Probabilistic outputs for support vector machines", 1999) between the ends of
        the scale; the VQEG's logistic has its ends free, which a few images cannot place. The bands: Lee, Barber and
        Willett, "Distribution-free inference with hierarchical data", 2023, with cross-validation for the split, as in
        Barber et al., "Predictive inference with the jackknife+", Annals of Statistics 49, 2021. Deviation: theirs
        gives the last share 1 / (K + 1), K groups; never too little, and too much where images of one prompt differ.
    """
    raw, mos = np.asarray(raw, dtype=np.float64), np.asarray(mos, dtype=np.float64)
    groups = np.asarray(groups)
    if not len(raw):
        raise AgiqaError("there is no validation image to calibrate on")
    if not (np.isfinite(raw).all() and (mos >= low).all() and (mos <= high).all()):
        raise AgiqaError(f"calibration wants finite scores, and MOS between {low:g} and {high:g}")
    share = (mos - low) / (high - low)
    offset, slope = _fit(raw, share)
    names, member = np.unique(groups, return_inverse=True)
    residuals = np.full(len(raw), math.inf)
    folds = member % min(FOLDS, len(names))
    for fold in np.unique(folds):
        held = folds == fold
        if not held.all():
            a, b = _fit(raw[~held], share[~held])
            residuals[held] = np.abs(expit(a + b * raw[held]) - share[held]) * (high - low)
    weights = 1 / np.bincount(member)[member]
    weights /= weights.sum() * (1 + 1 / _independent(residuals, member))
    order = np.argsort(residuals, kind="stable")
    reached = np.cumsum(weights[order])
    halves = [_first(residuals[order], reached, percent / 100) for percent in PERCENTS]
    return Calibration(offset, slope, float(low), float(high), tuple(halves), len(raw), len(names))


def _independent(residuals: np.ndarray, member: np.ndarray) -> float:
    """Return how many independent images the residuals amount to: all if groups tell nothing, the groups if all.

    Source: Kish's design effect, with the intraclass correlation of a one-way analysis of variance.
    """
    counts = np.bincount(member)
    groups, images = len(counts), len(member)
    if not 1 < groups < images or not np.isfinite(residuals).all():
        return float(groups)
    means = np.bincount(member, residuals) / counts
    between = counts @ (means - residuals.mean()) ** 2 / (groups - 1)
    within = ((residuals - means[member]) ** 2).sum() / (images - groups)
    size = (images - (counts @ counts) / images) / (groups - 1)
    alike = (between - within) / (between + (size - 1) * within) if between > 0 else 0.0
    return images / (1 + (images / groups - 1) * float(np.clip(alike, 0, 1)))


def _first(residuals: np.ndarray, reached: np.ndarray, level: float) -> float | None:
    """Return the smallest residual whose cumulative weight reaches the level; None if none does."""
    place = int(np.searchsorted(reached, level - 1e-12))
    return float(residuals[place]) if place < len(residuals) and math.isfinite(residuals[place]) else None


def _fit(raw: np.ndarray, share: np.ndarray) -> tuple[float, float]:
    """Return offset and slope of the sigmoid through (raw, share); the slope is never negative."""
    from scipy.optimize import least_squares  # imported here: scoring fits nothing

    centre, spread = raw.mean(), raw.std()
    mean = float(np.clip(share.mean(), 1e-3, 1 - 1e-3))
    standard = (raw - centre) / spread if spread > 0 else np.zeros(len(raw))
    if not standard @ (share - share.mean()) > 0:
        return float(logit(mean)), 0.0
    start = [logit(mean), min(float(standard @ (share - mean)) / len(raw) / (mean * (1 - mean)), STEEPEST)]
    found = least_squares(
        lambda b: expit(b[0] + b[1] * standard) - share, start, bounds=([-12, 0], [12, STEEPEST]), x_scale=[1, 0.5]
    ).x
    slope = float(found[1] / spread)
    return float(found[0] - slope * centre), slope
