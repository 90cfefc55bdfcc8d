"""How well scores agree with MOS: correlations, the VQEG logistic fit, and intervals over prompt groups."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats
from scipy.optimize import least_squares
from scipy.special import expit

from pipeline import jackknife
from pipeline.errors import AgiqaError

# Of the logistic fit: the images from which it has four parameters, and its smallest b4 in standard deviations of the
# scores, at which nine tenths of its rise take 2.4 of them.
LINE_BELOW, LEAST_WIDTH = 100, 0.4


def srcc(predicted: np.ndarray, mos: np.ndarray) -> float:
    """Return Spearman's rank correlation between scores and MOS.

    Args:
        predicted: Predicted quality, shape (n,), unitless, higher is better.
        mos: Mean opinion scores, shape (n,), on the data set's own scale.

    Returns:
        SRCC in [-1, 1]; NaN if n < 2 or either input is constant, which leaves nothing to correlate.

    Raises:
        ValueError: If shapes differ.
        AgiqaError: If there is no image, or a value is not finite.

    Source: scipy.stats.spearmanr; ties take average ranks.
    """
    return _correlation(stats.spearmanr, predicted, mos)


def krcc(predicted: np.ndarray, mos: np.ndarray) -> float:
    """Return Kendall's tau-b between scores and MOS; arguments and errors as `srcc`.

    Source: scipy.stats.kendalltau.
    """
    return _correlation(stats.kendalltau, predicted, mos)


def plcc(predicted: np.ndarray, mos: np.ndarray) -> float:
    """Return Pearson's linear correlation between scores and MOS as they are; arguments and errors as `srcc`.

    Source: scipy.stats.pearsonr.
    """
    return _correlation(stats.pearsonr, predicted, mos)


def fit_logistic(predicted: np.ndarray, mos: np.ndarray) -> np.ndarray:
    """Return the scores mapped to the MOS scale by the rising four-parameter logistic of the VQEG.

    f(s) = (b1 - b2) / (1 + exp(-(s - b3) / b4)) + b2 with b1 > b2 and b4 > 0, fitted by least squares from three
    slopes. Higher scores are to mean higher quality, so the curve rises or is flat, and never turns scores round.

    Args:
        predicted: Scores, shape (n,).
        mos: Mean opinion scores, shape (n,).

    Returns:
        Mapped scores in units of MOS, shape (n,). The mean MOS throughout where raw PLCC is not positive or has no
        value: such scores say nothing of the MOS that a rising curve could tell.

    Raises:
        ValueError: If shapes differ.
        AgiqaError: If there is no image, or a value is not finite.

    Source: VQEG, Final Report (FR-TV Phase II), 2003; as used by the papers of this field before PLCC and RMSE. The
    search is over b3 and b4 alone: Golub and Pereyra, "Variable Projection", SIAM J. Numerical Analysis 10, 1973.
    Deviations: the curve does not fall. Four parameters of few images make a step between two values, so below
    LINE_BELOW images a straight line takes its place, and b4 is at least LEAST_WIDTH standard deviations of the scores.
    """
    predicted, mos = _checked(predicted, mos)
    raw = plcc(predicted, mos)
    if not raw > 0:
        return np.full(len(mos), mos.mean())
    standard = (predicted - predicted.mean()) / predicted.std()  # so that one starting point serves scores of any range
    if len(mos) < LINE_BELOW:
        return mos.mean() + raw * mos.std() * standard

    def curve(b: np.ndarray) -> np.ndarray:
        shape = expit((standard - b[0]) / math.hypot(b[1], LEAST_WIDTH))
        shape -= shape.mean()
        square = shape @ shape
        # b1 and b2 stand linearly, so their best values follow from the shape. Searching for them too takes a hundred
        # times as long where the curve is nearly straight, and stops short of the minimum.
        return mos.mean() + (max(0.0, shape @ mos / square) if square > 1e-18 else 0.0) * shape

    starts = ([0.0, 1.0], [0.0, 0.3], [0.0, 3.0])
    fits = [least_squares(lambda b: curve(b) - mos, start, method="lm", max_nfev=1000) for start in starts]
    return curve(min(fits, key=lambda fit: fit.cost).x)


def rmse(predicted: np.ndarray, mos: np.ndarray) -> float:
    """Return the root mean squared error in units of MOS; map the scores with `fit_logistic` first."""
    predicted, mos = np.asarray(predicted, dtype=np.float64), np.asarray(mos, dtype=np.float64)
    return float(np.sqrt(np.mean((predicted - mos) ** 2)))


def summary(predicted: np.ndarray, fitted: np.ndarray, mos: np.ndarray) -> dict[str, float | None]:
    """Return srcc, krcc, plcc, plcc_logistic and rmse, the last two of the fitted scores.

    Args:
        predicted: Scores, shape (n,).
        fitted: The same after `fit_logistic`, shape (n,).
        mos: Mean opinion scores, shape (n,).

    Returns:
        None for what has no value: every correlation of a single image, of equal scores or of equal MOS. Where the fit
        is flat, plcc_logistic is the raw PLCC, which keeps the sign of scores that fall as the MOS rises.

    Raises:
        ValueError, AgiqaError: As `fit_logistic`.
    """
    raw = plcc(predicted, mos)
    after = plcc(fitted, mos)
    found = {
        "srcc": srcc(predicted, mos),
        "krcc": krcc(predicted, mos),
        "plcc": raw,
        "plcc_logistic": raw if math.isnan(after) else after,
        "rmse": rmse(fitted, mos),
    }
    return {name: None if math.isnan(value) else value for name, value in found.items()}


def intervals(predicted: np.ndarray, mos: np.ndarray, groups: np.ndarray) -> dict[str, float | None]:
    """Return 95 % intervals of SRCC and raw PLCC over groups: see `pipeline.jackknife`.

    Args:
        predicted: Scores, shape (n,).
        mos: Mean opinion scores, shape (n,).
        groups: Group of each image, shape (n,).

    Returns:
        srcc_low, srcc_high, plcc_low, plcc_high; None where there are fewer than two groups, or where without one of
        them the correlation has no value.

    Raises:
        ValueError: As `fit_logistic`; also if `groups` has another length.
        AgiqaError: As `fit_logistic`.
    """
    predicted, mos = _checked(predicted, mos)
    groups = np.asarray(groups)
    if groups.shape != predicted.shape:
        raise ValueError(f"groups has shape {groups.shape}, and the scores have {predicted.shape}")
    weights = jackknife.group_weights(groups)
    ranks = (jackknife.weighted_ranks(values, weights) for values in (predicted, mos))
    values = {
        "srcc": jackknife.weighted_correlation(*ranks, weights),
        "plcc": jackknife.weighted_correlation(predicted[:, None], mos[:, None], weights),
    }
    found: dict[str, float | None] = {}
    for name, estimates in values.items():
        for side, limit in zip(("low", "high"), jackknife.interval(estimates, jackknife.CORRELATION), strict=True):
            found[f"{name}_{side}"] = None if math.isnan(limit) else limit
    return found


def correlations(prefix: str, predicted: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Return SRCC, PLCC and KRCC under `<prefix>_...`, NaN where they have no value, so that none is selected."""
    functions = {"srcc": srcc, "plcc": plcc, "krcc": krcc}
    return {f"{prefix}_{name}": function(predicted, target) for name, function in functions.items()}


def has_spread(values: np.ndarray) -> bool:
    """Return whether there are two different values, without which nothing correlates."""
    return len(values) > 1 and bool(np.ptp(values) > 0)


def _correlation(function: Callable[..., Any], predicted: np.ndarray, mos: np.ndarray) -> float:
    predicted, mos = _checked(predicted, mos)
    return float(function(predicted, mos).statistic) if has_spread(predicted) and has_spread(mos) else math.nan


def _checked(predicted: np.ndarray, mos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    predicted, mos = np.asarray(predicted, dtype=np.float64), np.asarray(mos, dtype=np.float64)
    if predicted.shape != mos.shape or predicted.ndim != 1:
        raise ValueError(f"predicted has shape {predicted.shape} and mos {mos.shape}: both must be (n,)")
    if not len(predicted):
        raise AgiqaError("there is no image to compare scores and opinions of")
    for name, values in (("predicted", predicted), ("mos", mos)):
        if not np.isfinite(values).all():
            raise AgiqaError(f"{name}[{int(np.flatnonzero(~np.isfinite(values))[0])}] is not finite")
    return predicted, mos
