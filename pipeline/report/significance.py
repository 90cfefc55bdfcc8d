"""Is the difference real: resampled prompt groups, paired tests between methods, and their correction for many pairs.

Two sources of chance are kept apart. Which prompts stood in test is met by a bootstrap over prompt groups, with one
draw for all methods and all rounds, so that differences are paired and a group that two rounds test moves both. Which
images trained the model, and with which seed, is met by a t-test over the rounds whose variance is corrected for the
rounds' common images. The first decides who wins, since a few rounds can hardly decide anything; the second says which
wins hold over other splits and trainings, too.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import stdtr

from pipeline.layout import StudyError


class Evidence(NamedTuple):
    """What the resampling found on one data set.

    Attributes:
        draws: By method and metric; see `pipeline.report.significance.resample`.
        pairs: See `pipeline.report.significance.compare`.
    """

    draws: dict[str, dict[str, np.ndarray]]
    pairs: pd.DataFrame


LEVEL = 0.05  # family-wise, over all pairs of one data set
RESAMPLES = 2000  # at least; see `enough`
KENDALL_RESAMPLES = 400  # Kendall's pairs cost the square of the images
METRICS = ("srcc", "plcc", "krcc", "rmse")


def resample(predictions: pd.DataFrame, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """Return every method's metrics, averaged over the rounds, in bootstrap resamples of the prompt groups.

    The groups of all rounds' test images are drawn with replacement, as many as there are. An image counts as often in
    its round as its group was drawn. A round without spread in a resample is left out of that resample's mean.

    Args:
        predictions: Of one data set: columns method, round, image_id, group, mos, predicted and fitted (prediction on
            the MOS scale; the fit is held fixed), a row an image. The methods of one round have the same images.
        resamples: Number of resamples.
        seed: Of the draws.

    Returns:
        By method, in the order of `predictions`: srcc, plcc (of fitted), krcc (only the first KENDALL_RESAMPLES draws)
        and rmse (of fitted, in units of MOS), each of shape (resamples,).

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13; cluster resampling.
    """
    names, codes = np.unique(predictions["group"].to_numpy(dtype=str), return_inverse=True)
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples).T.astype(float)
    methods = list(dict.fromkeys(predictions["method"]))
    found: dict[str, dict[str, list[np.ndarray]]] = {name: {metric: [] for metric in METRICS} for name in methods}
    for _, part in predictions.assign(code=codes).groupby("round", sort=True):
        one = part[part["method"] == part["method"].iloc[0]].sort_values("image_id", kind="stable")
        weights, mos = drawn[one["code"].to_numpy()], one["mos"].to_numpy(dtype=float)  # (n, resamples), (n,)
        mos_ranks = weighted_ranks(mos, weights)
        for method, rows in part.groupby("method", sort=False):
            rows = rows.sort_values("image_id", kind="stable")
            predicted, fitted = rows["predicted"].to_numpy(dtype=float), rows["fitted"].to_numpy(dtype=float)
            scores = found[str(method)]
            scores["srcc"].append(weighted_correlation(weighted_ranks(predicted, weights), mos_ranks, weights))
            scores["plcc"].append(weighted_correlation(fitted[:, None], mos[:, None], weights))
            scores["krcc"].append(weighted_kendall(predicted, mos, weights[:, :KENDALL_RESAMPLES]))
            with np.errstate(invalid="ignore"):  # a resample may hold no image of this round
                scores["rmse"].append(np.sqrt((fitted - mos) ** 2 @ weights / weights.sum(axis=0)))
    return {name: {metric: _mean(values) for metric, values in scores.items()} for name, scores in found.items()}


def enough(methods: int) -> int:
    """Return how many resamples the tests between so many methods need.

    The smallest p that B resamples can give is 2 / (B + 1). Times the number of pairs, Holm's first step, it must stay
    well below LEVEL, or no difference however large could be found.
    """
    pairs = methods * (methods - 1) // 2
    return max(RESAMPLES, math.ceil(4 * pairs / LEVEL))


def interval(draws: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of resampled values, shape (resamples,); NaN are left out."""
    tail = 100 * (1 - level) / 2
    low, high = np.nanpercentile(draws, [tail, 100 - tail])
    return float(low), float(high)


def compare(
    runs: pd.DataFrame, draws: dict[str, dict[str, np.ndarray]], methods: Sequence[str] | None = None
) -> pd.DataFrame:
    """Return the paired tests of SRCC between all methods of one data set.

    Args:
        runs: Rows of one data set of `pipeline.report.results.Results.runs`: method, round, srcc, test_images,
            train_images.
        draws: From `resample`.
        methods: Which to compare, in the order to list; None: all of `runs`.

    Returns:
        A row per unordered pair: first, second, difference (mean SRCC of first minus second), low and high (95 % of the
        resampled differences), p_prompts (bootstrap over prompt groups), p_rounds (corrected t-test; NaN for a single
        round), each with Holm's correction over all pairs as p_prompts_holm and p_rounds_holm; outcome (of first, by
        p_prompts_holm <= LEVEL: win, tie or loss) and over_rounds (whether p_rounds_holm <= LEVEL, too).

    Raises:
        StudyError: If two methods do not have the same rounds.
    """
    methods = list(dict.fromkeys(runs["method"])) if methods is None else list(methods)
    table = runs.pivot(index="round", columns="method", values="srcc")[methods]
    if table.isna().any(axis=None):
        lacking = table.columns[table.isna().any()][0]
        raise StudyError(f"{lacking} lacks a round that another method has: a paired test needs the same rounds")
    ratio = float((runs["test_images"] / runs["train_images"]).mean())
    rows = []
    for first, second in itertools.combinations(methods, 2):
        differences = (table[first] - table[second]).to_numpy()
        resampled = draws[first]["srcc"] - draws[second]["srcc"]
        low, high = interval(resampled)
        p_prompts, p_rounds = bootstrap_p(resampled), corrected_t_p(differences, ratio)
        rows.append((first, second, float(differences.mean()), low, high, p_prompts, p_rounds))
    columns = ["first", "second", "difference", "low", "high", "p_prompts", "p_rounds"]
    pairs = pd.DataFrame(rows, columns=columns)
    for test in ("p_prompts", "p_rounds"):
        pairs[f"{test}_holm"] = holm(pairs[test].to_numpy())
    real = pairs["p_prompts_holm"] <= LEVEL
    pairs["outcome"] = np.where(real, np.where(pairs["difference"] > 0, "win", "loss"), "tie")
    pairs["over_rounds"] = real & (pairs["p_rounds_holm"] <= LEVEL)
    return pairs


def turned(pair: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of `compare` as seen from its second method: what first minus second says of second minus first."""
    outcome = {"win": "loss", "tie": "tie", "loss": "win"}[pair["outcome"]]
    sides = {"first": pair["second"], "second": pair["first"], "outcome": outcome}
    return dict(pair) | sides | {"difference": -pair["difference"], "low": -pair["high"], "high": -pair["low"]}


def against(pairs: pd.DataFrame, reference: str) -> dict[str, dict[str, Any]]:
    """Return the tests of every other method against one, by method and as method minus reference.

    Args:
        pairs: From `compare`.
        reference: The one method.
    """
    rows = pairs.to_dict("records")
    rows = [
        turned(row) if row["first"] == reference else row for row in rows if reference in (row["first"], row["second"])
    ]
    return {row["first"]: row for row in rows}


def bootstrap_p(resampled: np.ndarray) -> float:
    """Return the two-sided p of "the difference is 0" from resampled differences, shape (resamples,).

    Twice the smaller tail, with the observed sample counted as one resample, so that p is never 0.

    Source: Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 4.2.
    """
    resampled = resampled[~np.isnan(resampled)]
    tail = min((resampled <= 0).sum(), (resampled >= 0).sum())
    return min(1.0, 2 * (1 + int(tail)) / (1 + len(resampled)))


def corrected_t_p(differences: np.ndarray, test_per_train: float) -> float:
    """Return the two-sided p of "the mean difference is 0" over random splits that share images.

    Args:
        differences: One per round, shape (n,).
        test_per_train: Number of test images per training image.

    Returns:
        p in [0, 1]; 1 where all differences are 0, NaN for a single round.

    Source: Nadeau and Bengio, "Inference for the Generalization Error", Machine Learning 52, 2003: the variance of the
    mean is s^2 (1/n + test/train).
    """
    count = len(differences)
    if count < 2:
        return math.nan
    mean, spread = float(np.mean(differences)), float(np.std(differences, ddof=1))
    if mean == 0:
        return 1.0
    error = math.sqrt(1 / count + test_per_train) * spread
    return 0.0 if error == 0 else 2 * float(stdtr(count - 1, -abs(mean) / error))


def holm(p: np.ndarray) -> np.ndarray:
    """Return p values, shape (m,), adjusted so that rejecting those <= a has a family-wise error of at most a.

    All NaN stay NaN.

    Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 6, 1979.
    """
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def weighted_ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mid-ranks that `values`, shape (n,), have where each stands as often as `weights`, (n, B), say.

    Returns:
        Ranks, shape (n, B), less their weighted mean.
    """
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(values[order]) > 0])
    tied = np.add.reduceat(weights[order], starts, axis=0)  # (distinct values, B)
    ranks = np.cumsum(tied, axis=0)
    ranks -= (tied + ranks[-1]) / 2  # (tied - 1) / 2 below the last of its ties; the mean rank is (total + 1) / 2
    place = np.empty(len(values), dtype=np.intp)
    place[order] = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(values)]))
    return ranks[place]


def weighted_correlation(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation under each column of weights, shape (B,); NaN where one side has no spread.

    Args:
        x: Values, shape (n, B), or (n, 1) for the same in every column.
        y: As `x`.
        weights: How often each row counts, shape (n, B).
    """

    def total(values: np.ndarray) -> np.ndarray:
        if values.shape[1] == 1:
            return values[:, 0] @ weights
        return np.einsum("nb,nb->b", values, weights)

    count = weights.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_x, mean_y = total(x) / count, total(y) / count
        product = total(x * y) / count - mean_x * mean_y
        spread_x, spread_y = total(x * x) / count - mean_x**2, total(y * y) / count - mean_y**2
        found = product / np.sqrt(spread_x * spread_y)
    return np.where((spread_x > 1e-12) & (spread_y > 1e-12), found, np.nan)


def weighted_kendall(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return Kendall's tau-b of `x` and `y`, shape (n,), under each column of weights, (n, B); NaN without spread."""
    weights = weights.astype(np.float32)  # whole numbers: exact up to 2^24 pairs

    def pairs(signs: np.ndarray) -> np.ndarray:
        return np.einsum("nb,nb->b", weights, signs.astype(np.float32) @ weights, dtype=float)

    sign_x, sign_y = (np.sign(values[:, None] - values[None, :]).astype(np.int8) for values in (x, y))
    concordant, untied_x, untied_y = pairs(sign_x * sign_y), pairs(np.abs(sign_x)), pairs(np.abs(sign_y))
    with np.errstate(invalid="ignore"):
        return concordant / np.sqrt(untied_x * untied_y)


def _mean(values: list[np.ndarray]) -> np.ndarray:
    """Mean over the rounds, shape (B,), of those that have a value."""
    stacked = np.array(values)
    there = ~np.isnan(stacked)
    with np.errstate(invalid="ignore"):
        return np.where(there, stacked, 0).sum(axis=0) / there.sum(axis=0)
