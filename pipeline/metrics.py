"""How well scores agree with human opinion: correlations, the VQEG logistic fit, and intervals over prompt groups."""

import math

import numpy as np
from scipy import stats
from scipy.optimize import least_squares
from scipy.special import expit

from pipeline.errors import AgiqaError


def srcc(predicted: np.ndarray, mos: np.ndarray) -> float:
    """Return Spearman's rank correlation between scores and MOS.

    Args:
        predicted: Predicted quality, shape (n,), unitless, higher is better.
        mos: Mean opinion scores, shape (n,), on the data set's own scale.

    Returns:
        SRCC in [-1, 1].

    Raises:
        ValueError: If shapes differ.
        AgiqaError: If n < 2, a value is not finite, or either input is constant: the data leave nothing to correlate.

    Source: scipy.stats.spearmanr; ties take average ranks.
    """
    return float(stats.spearmanr(*_checked(predicted, mos)).statistic)


def krcc(predicted: np.ndarray, mos: np.ndarray) -> float:
    """Return Kendall's tau-b between scores and MOS; arguments and errors as `srcc`.

    Source: scipy.stats.kendalltau.
    """
    return float(stats.kendalltau(*_checked(predicted, mos)).statistic)


def plcc(predicted: np.ndarray, mos: np.ndarray) -> float:
    """Return Pearson's linear correlation between scores and MOS as they are; arguments and errors as `srcc`.

    Source: scipy.stats.pearsonr.
    """
    return float(stats.pearsonr(*_checked(predicted, mos)).statistic)


def fit_logistic(predicted: np.ndarray, mos: np.ndarray) -> np.ndarray:
    """Return the scores mapped to the MOS scale by the monotonic four-parameter logistic of the VQEG.

    f(s) = (b1 - b2) / (1 + exp(-(s - b3) / |b4|)) + b2, fitted by least squares from three slopes.

    Args:
        predicted: Scores, shape (n,).
        mos: Mean opinion scores, shape (n,).

    Returns:
        Mapped scores in units of MOS, shape (n,).

    Raises:
        ValueError, AgiqaError: As `srcc`.

    Source: VQEG, Final Report (FR-TV Phase II), 2003; as used by the papers of this field before PLCC and RMSE. The
    search is over b3 and b4 alone: Golub and Pereyra, "Variable Projection", SIAM J. Numerical Analysis 10, 1973.
    """
    predicted, mos = _checked(predicted, mos)
    centre, spread = predicted.mean(), predicted.std()
    standard = (predicted - centre) / spread  # so that one starting point serves scores of any range

    def curve(b: np.ndarray) -> np.ndarray:
        # The lower bound keeps the slope finite where classes separate perfectly.
        shape = expit((standard - b[0]) / max(abs(b[1]), 1e-3))
        shape -= shape.mean()
        square = shape @ shape
        # b1 and b2 stand linearly, so their best values follow from the shape, rising or falling. Searching for them
        # too takes a hundred times as long where the curve is nearly straight, and stops short of the minimum.
        return mos.mean() + (shape @ mos / square if square > 1e-18 else 0.0) * shape

    starts = ([0.0, 1.0], [0.0, 0.3], [0.0, 3.0])
    fits = [least_squares(lambda b: curve(b) - mos, start, method="lm", max_nfev=1000) for start in starts]
    return curve(min(fits, key=lambda fit: fit.cost).x)


def rmse(predicted: np.ndarray, mos: np.ndarray) -> float:
    """Return the root mean squared error in units of MOS; map the scores with `fit_logistic` first."""
    predicted, mos = np.asarray(predicted, dtype=np.float64), np.asarray(mos, dtype=np.float64)
    return float(np.sqrt(np.mean((predicted - mos) ** 2)))


def summary(predicted: np.ndarray, fitted: np.ndarray, mos: np.ndarray) -> dict[str, float]:
    """Return srcc, krcc, plcc, plcc_logistic and rmse, the last two of the fitted scores.

    Args:
        predicted: Scores, shape (n,).
        fitted: The same after `fit_logistic`, shape (n,).
        mos: Mean opinion scores, shape (n,).

    Raises:
        ValueError, AgiqaError: As `srcc`.
    """
    return {
        "srcc": srcc(predicted, mos),
        "krcc": krcc(predicted, mos),
        "plcc": plcc(predicted, mos),
        # A fit that found nothing is flat, and a flat line explains nothing.
        "plcc_logistic": plcc(fitted, mos) if np.ptp(fitted) > 0 else 0.0,
        "rmse": rmse(fitted, mos),
    }


def bootstrap(
    predicted: np.ndarray, mos: np.ndarray, groups: np.ndarray, *, resamples: int, seed: int, level: float = 0.95
) -> dict[str, float]:
    """Return percentile intervals of SRCC and raw PLCC over resampled groups.

    Images of one generation prompt are not independent, so whole groups are drawn with replacement, never images.

    Args:
        predicted: Scores, shape (n,).
        mos: Mean opinion scores, shape (n,).
        groups: Group of each image, shape (n,).
        resamples: Number of bootstrap resamples.
        seed: Of the draws.
        level: Coverage, in (0, 1).

    Returns:
        srcc_low, srcc_high, plcc_low, plcc_high.

    Raises:
        ValueError: As `srcc`; also if `groups` has another length.
        AgiqaError: As `srcc`; also if no resample has any spread.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13; cluster resampling.
    """
    predicted, mos = _checked(predicted, mos)
    groups = np.asarray(groups)
    if groups.shape != predicted.shape:
        raise ValueError(f"groups has shape {groups.shape}, and the scores have {predicted.shape}")
    _, codes = np.unique(groups, return_inverse=True)
    order = np.argsort(codes, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        drawn = np.concatenate([members[pick] for pick in generator.integers(len(members), size=len(members))])
        x, y = predicted[drawn], mos[drawn]
        if np.ptp(x) == 0 or np.ptp(y) == 0:
            continue  # a resample without spread has no correlation
        # The rank correlation is Pearson's of the ranks; the plain numpy form is ten times faster than scipy's tests.
        found.append((_pearson(stats.rankdata(x), stats.rankdata(y)), _pearson(x, y)))
    if not found:
        raise AgiqaError(f"none of {resamples} resamples of {len(members)} groups has any spread: too few groups")
    tail = 100 * (1 - level) / 2
    (srcc_low, plcc_low), (srcc_high, plcc_high) = np.percentile(found, [tail, 100 - tail], axis=0)
    return {
        "srcc_low": float(srcc_low), "srcc_high": float(srcc_high),
        "plcc_low": float(plcc_low), "plcc_high": float(plcc_high),
    }  # fmt: skip


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def _checked(predicted: np.ndarray, mos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    predicted, mos = np.asarray(predicted, dtype=np.float64), np.asarray(mos, dtype=np.float64)
    if predicted.shape != mos.shape or predicted.ndim != 1:
        raise ValueError(f"predicted has shape {predicted.shape} and mos {mos.shape}: both must be (n,)")
    if len(predicted) < 2:
        raise AgiqaError(f"a correlation needs at least 2 images, got {len(predicted)}")
    for name, values in (("predicted", predicted), ("mos", mos)):
        if not np.isfinite(values).all():
            raise AgiqaError(f"{name}[{int(np.flatnonzero(~np.isfinite(values))[0])}] is not finite")
        if np.ptp(values) == 0:
            raise AgiqaError(f"{name} is {values[0]:g} for all {len(values)} images: a correlation needs a spread")
    return predicted, mos


def correlations(prefix: str, predicted: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Return SRCC, PLCC and KRCC under `<prefix>_...`; NaN where scores are all equal, so that none is selected."""
    functions = {"srcc": srcc, "plcc": plcc, "krcc": krcc}
    if np.ptp(predicted) == 0:
        return {f"{prefix}_{name}": math.nan for name in functions}
    return {f"{prefix}_{name}": float(function(predicted, target)) for name, function in functions.items()}
