"""Is the difference real: prompt groups left out, paired tests between methods, and their correction for many pairs.

Two sources of chance are kept apart. Which prompts stood in test is met by a jackknife over prompt groups, which leaves
the same group out of all methods and all rounds, so that differences are paired and a group that two rounds test moves
both. Which images trained the model, and with which seed, is met by a t-test over the rounds whose variance is
corrected for the rounds' common images. A win or a loss needs both. Where the first test alone finds a difference, it
is one of these trainings, and others may well turn it: a tie of two methods that are trained anew differs in every
study.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import stdtr

from pipeline import jackknife
from pipeline.layout import StudyError


class Evidence(NamedTuple):
    """What the tests of one data set rest on, and what they found.

    Attributes:
        estimates: By method and metric; see `pipeline.report.significance.leave_out`.
        pairs: See `pipeline.report.significance.compare`.
    """

    estimates: dict[str, dict[str, np.ndarray]]
    pairs: pd.DataFrame


LEVEL = 0.05  # family-wise, over all pairs of one data set
# Metrics, and the scale on which their intervals are made.
METRICS = {
    "srcc": jackknife.CORRELATION,
    "krcc": jackknife.CORRELATION,
    "plcc_raw": jackknife.CORRELATION,
    "plcc": jackknife.CORRELATION,
    "rmse": jackknife.POSITIVE,
    "rmse_calibrated": jackknife.POSITIVE,
    "mae_calibrated": jackknife.POSITIVE,
}


def leave_out(predictions: pd.DataFrame) -> dict[str, dict[str, np.ndarray]]:
    """Return every method's metrics, averaged over the rounds, from all prompt groups and without each one.

    Args:
        predictions: Of one data set: columns method, round, image_id, group, mos, predicted, fitted (prediction on
            the MOS scale; the fit is held fixed) and score (calibrated; NaN where there is none), a row an image. The
            methods of one round have the same images.

    Returns:
        By method, in the order of `predictions`: srcc, krcc, plcc_raw, plcc (of fitted; of predicted where the fit is
        flat), rmse (of fitted), rmse_calibrated and mae_calibrated (of score; errors in units of MOS), each of shape
        (1 + G,), see `pipeline.jackknife.group_weights`. A round without a value, as of equal scores, is left out of
        the mean; NaN where none has one.
    """
    weights_of_all = jackknife.group_weights(predictions["group"].to_numpy(dtype=str))
    methods = list(dict.fromkeys(predictions["method"]))
    found: dict[str, dict[str, list[np.ndarray]]] = {name: {metric: [] for metric in METRICS} for name in methods}
    for _, part in predictions.assign(place=np.arange(len(predictions))).groupby("round", sort=True):
        one = part[part["method"] == part["method"].iloc[0]].sort_values("image_id", kind="stable")
        weights, mos = weights_of_all[one["place"].to_numpy()], one["mos"].to_numpy(dtype=float)  # (n, 1 + G), (n,)
        mos_ranks = jackknife.weighted_ranks(mos, weights)
        for method, rows in part.groupby("method", sort=False):
            rows = rows.sort_values("image_id", kind="stable")
            predicted, fitted = rows["predicted"].to_numpy(dtype=float), rows["fitted"].to_numpy(dtype=float)
            after = fitted if np.ptp(fitted) > 0 else predicted
            scores = found[str(method)]
            ranks = jackknife.weighted_ranks(predicted, weights)
            scores["srcc"].append(jackknife.weighted_correlation(ranks, mos_ranks, weights))
            scores["krcc"].append(jackknife.weighted_kendall(predicted, mos, weights))
            for name, values in (("plcc_raw", predicted), ("plcc", after)):
                scores[name].append(jackknife.weighted_correlation(values[:, None], mos[:, None], weights))
            error, off = fitted - mos, np.abs(rows["score"].to_numpy(dtype=float) - mos)
            with np.errstate(invalid="ignore"):  # a round may hold no other group
                share = weights / weights.sum(axis=0)
            scores["rmse"].append(np.sqrt(error**2 @ share))
            scores["rmse_calibrated"].append(np.sqrt(off**2 @ share))
            scores["mae_calibrated"].append(off @ share)
    return {name: {metric: _mean(values) for metric, values in scores.items()} for name, scores in found.items()}


def compare(
    runs: pd.DataFrame, estimates: dict[str, dict[str, np.ndarray]], methods: Sequence[str] | None = None
) -> pd.DataFrame:
    """Return the paired tests of SRCC between all methods of one data set.

    Args:
        runs: Rows of one data set of `pipeline.report.results.Results.runs`: method, round, srcc, test_images,
            train_images.
        estimates: From `leave_out`.
        methods: Which to compare, in the order to list; None: all of `runs`.

    Returns:
        A row per unordered pair: first, second, difference (mean SRCC of first minus second), low and high (its 95 %
        interval over prompts), p_prompts (the jackknife's t-test over prompt groups), p_rounds (corrected t-test; NaN
        for a single round), each with Holm's correction over all pairs as p_prompts_holm and p_rounds_holm; and
        outcome, of the first. `win` and `loss`: both corrected p are at most LEVEL. `ahead` and `behind`:
        p_prompts_holm alone is, so that the difference is one of these trainings. `tie`: it is not. `none`: a round has
        no SRCC, so that nothing is tested; the difference is that of the other rounds.

    Raises:
        StudyError: If two methods do not have the same rounds.
    """
    methods = list(dict.fromkeys(runs["method"])) if methods is None else list(methods)
    rounds = {name: set(rows["round"]) for name, rows in runs.groupby("method")}
    every = set().union(*rounds.values())
    lacking = [name for name in methods if rounds[name] != every]
    if lacking:
        raise StudyError(f"{lacking[0]} lacks a round that another method has: a paired test needs the same rounds")
    table = runs.pivot(index="round", columns="method", values="srcc")
    ratio = float((runs["test_images"] / runs["train_images"]).mean())
    rows = []
    for first, second in itertools.combinations(methods, 2):
        differences = (table[first] - table[second]).to_numpy()
        there = differences[~np.isnan(differences)]
        found = (float(there.mean()) if len(there) else math.nan, *[math.nan] * 4)
        if len(there) == len(differences):
            between = estimates[first]["srcc"] - estimates[second]["srcc"]
            limits = np.clip(jackknife.interval(between), -2, 2)  # what two correlations can differ by
            p_prompts = jackknife.p_value(between)
            found = (found[0], *limits, p_prompts, corrected_t_p(differences, ratio))
        rows.append((first, second, *found))
    columns = ["first", "second", "difference", "low", "high", "p_prompts", "p_rounds"]
    pairs = pd.DataFrame(rows, columns=columns)
    for test in ("p_prompts", "p_rounds"):
        pairs[f"{test}_holm"] = holm(pairs[test].to_numpy(dtype=float))
    over_prompts, over_rounds = pairs["p_prompts_holm"] <= LEVEL, pairs["p_rounds_holm"] <= LEVEL
    better = pairs["difference"] > 0
    firm, here = np.where(better, "win", "loss"), np.where(better, "ahead", "behind")
    found_there = np.where(over_prompts, np.where(over_rounds, firm, here), "tie")
    pairs["outcome"] = np.where(pairs["p_prompts"].isna(), "none", found_there)
    return pairs


OPPOSITE = {"win": "loss", "loss": "win", "ahead": "behind", "behind": "ahead", "tie": "tie", "none": "none"}


def turned(pair: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of `compare` as seen from its second method: what first minus second says of second minus first."""
    sides = {"first": pair["second"], "second": pair["first"], "outcome": OPPOSITE[pair["outcome"]]}
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

    NaN, which test nothing, stay NaN and do not count.

    Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 6, 1979.
    """
    order = np.argsort(p, kind="stable")[: int((~np.isnan(p)).sum())]  # NaN are sorted to the end
    adjusted = np.full(len(p), math.nan)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return adjusted


def _mean(values: list[np.ndarray]) -> np.ndarray:
    """Mean over the rounds, shape (1 + G,), of those that have a value from all groups."""
    there = [value for value in values if not np.isnan(value[0])]
    return np.mean(there, axis=0) if there else np.full(len(values[0]), math.nan)
