"""Numbers over the rounds: means with intervals, paired differences, what leaks are worth, orders of generators."""

import math

import numpy as np
import pandas as pd
from scipy.special import stdtrit
from scipy.stats import rankdata

REFERENCE = "dcmpln"

# Our column: the key under "test" in an evaluation's metrics.json. PLCC is by convention taken after the logistic fit.
METRICS = {"srcc": "srcc", "plcc": "plcc_logistic", "plcc_raw": "plcc", "krcc": "krcc", "rmse": "rmse"}
# Likewise, under the same keys, of the score that users are told; earlier versions left them out.
CALIBRATED = ("rmse_calibrated", "mae_calibrated", "coverage", "band_width", "unfamiliar")

# Split and what picked the epoch: the clean way, then what published code does.
HABITS = (("grouped", "validation"), ("grouped", "test"), ("random", "validation"), ("random", "test"))


def summarise(runs: pd.DataFrame) -> pd.DataFrame:
    """Return mean, std, median and interval over the rounds of each data set x method.

    Args:
        runs: `Results.runs`.

    Returns:
        A row per data set x method in the order of `runs`. Per metric (srcc, plcc after the logistic fit, plcc_raw,
        krcc, rmse in units of MOS): `_mean`, `_std` (n - 1; NaN for a single round) and `_median`. `srcc_low` and
        `srcc_high` bound the 95 % interval, and `interval` says of what kind it is: see `mean_interval`; a single
        round has the jackknife's interval of its own test images. `without_value` counts the rounds without an SRCC,
        as where all scores are equal; the others alone make the mean. Of CALIBRATED `_mean` and `_std`, NaN unless all
        rounds have them, and likewise validation_srcc_mean, by which the champion is chosen.
    """
    rows = []
    for (dataset, method), group in runs.groupby(["dataset", "method"], sort=False):
        first = group.iloc[0]
        row = {"dataset": dataset, "method": method, "kind": first["kind"], "rounds": len(group)}
        for metric in METRICS:
            row[f"{metric}_mean"] = group[metric].mean()
            row[f"{metric}_std"] = group[metric].std(ddof=1)
            row[f"{metric}_median"] = group[metric].median()
        for key in CALIBRATED:
            row[f"{key}_mean"], row[f"{key}_std"] = group[key].mean(skipna=False), group[key].std(ddof=1, skipna=False)
        row["validation_srcc_mean"] = group["validation_srcc"].mean(skipna=False)
        if len(group) > 1:
            ratio = float((group["test_images"] / group["train_images"]).mean())
            row["srcc_low"], row["srcc_high"] = mean_interval(group["srcc"].dropna().to_numpy(), ratio)
            row["interval"] = "corrected t over rounds"
        else:
            row["srcc_low"], row["srcc_high"] = first["srcc_low"], first["srcc_high"]
            row["interval"] = "jackknife over prompt groups"
        row["without_value"] = int(group["srcc"].isna().sum())
        row["selected_epoch_mean"] = float(group["selected_epoch"].astype(float).mean())
        row["leaks"] = "; ".join(all_leaks(group))
        row |= {key: first[key] for key in ("backbone", "backbone_origin", "trainable_parameters", "checkpoint_bytes")}
        rows.append(row)
    summary = pd.DataFrame(rows).astype({"trainable_parameters": "Int64", "checkpoint_bytes": "Int64"})
    return summary.astype({"selected_epoch_mean": float})


def mean_interval(
    values: np.ndarray, test_per_train: float, bounds: tuple[float, float] = (-1.0, 1.0)
) -> tuple[float, float]:
    """Return the 95 % interval of a mean over random splits, corrected for the splits' overlap.

    The rounds of a study share most of their images, so their spread understates the uncertainty; the variance of the
    mean is therefore taken as s^2 (1/n + test/train) in place of s^2/n.

    Args:
        values: One value per round, shape (n,).
        test_per_train: Number of test images per training image.
        bounds: Range the values can take; the interval is cut to it.

    Returns:
        Lower and upper limit; NaN for fewer than two values.

    Source: Nadeau and Bengio, "Inference for the Generalization Error", Machine Learning 52, 2003, equation 9.
    """
    count = len(values)
    if count < 2:
        return math.nan, math.nan
    half = float(stdtrit(count - 1, 0.975)) * math.sqrt((1 / count + test_per_train) * float(np.var(values, ddof=1)))
    mean = float(np.mean(values))
    return max(bounds[0], mean - half), min(bounds[1], mean + half)


def paired_differences(runs: pd.DataFrame, reference: str = REFERENCE) -> pd.DataFrame:
    """Return each method's SRCC minus the reference's, paired by round (both saw the same split).

    Args:
        runs: `Results.runs`.
        reference: Method that the others are compared with.

    Returns:
        A row per data set x other method: rounds, difference_mean, difference_min, difference_max, rounds_better (in
        how many rounds the method was ahead), low and high (95 % interval as `mean_interval`; NaN for one round).
        Data sets without the reference have no rows.
    """
    columns = ["dataset", "method", "kind", "leaks", "rounds", "difference_mean", "difference_min", "difference_max"]
    rows = []
    for dataset, group in runs.groupby("dataset", sort=False):
        base = group[group["method"] == reference].set_index("round")["srcc"]
        if base.empty:
            continue
        for method, other in group[group["method"] != reference].groupby("method", sort=False):
            difference = (other.set_index("round")["srcc"] - base).to_numpy()
            ratio = float((other["test_images"] / other["train_images"]).mean())
            difference = difference[~np.isnan(difference)]  # of the rounds in which both have a value
            ends = (difference.mean(), difference.min(), difference.max()) if len(difference) else [math.nan] * 3
            spread = (*ends, int((difference > 0).sum()), *mean_interval(difference, ratio, (-2.0, 2.0)))
            rows.append((dataset, method, other["kind"].iloc[0], "; ".join(all_leaks(other)), len(difference), *spread))
    return pd.DataFrame(rows, columns=[*columns, "rounds_better", "low", "high"])


def leak_worth(leaks: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Return how much SRCC each leaking habit adds to a clean score of the same variant, paired by round.

    Args:
        leaks: `Results.leaks`.
        runs: `Results.runs`, for the sizes of the subsets.

    Returns:
        A row per data set x audited variant x habit, the habits as in HABITS after the clean one: split, picked_on,
        leaks, rounds, srcc_mean, srcc_std, clean_mean, worth (mean difference to the clean score), low and high (its
        95 % interval as `mean_interval`; NaN for one round).
    """
    rows = []
    for (dataset, method), group in leaks.groupby(["dataset", "method"], sort=False):
        table = group.pivot(index="round", columns=["split", "picked_on"], values="srcc")
        clean = table[HABITS[0]]
        sizes = runs[(runs["dataset"] == dataset) & (runs["method"] == method)]
        ratio = float((sizes["test_images"] / sizes["train_images"]).mean())
        for split, picked_on in HABITS[1:]:
            values = table[(split, picked_on)]
            worth = (values - clean).to_numpy()
            low, high = mean_interval(worth[~np.isnan(worth)], ratio, (-2.0, 2.0))
            habit = "; ".join(all_leaks(group[(group["split"] == split) & (group["picked_on"] == picked_on)]))
            spread = (len(worth), values.mean(), values.std(ddof=1), clean.mean(), pd.Series(worth).mean(), low, high)
            rows.append((dataset, method, split, picked_on, habit, *spread))
    columns = ["dataset", "method", "split", "picked_on", "leaks", "rounds", "srcc_mean", "srcc_std", "clean_mean"]
    return pd.DataFrame(rows, columns=[*columns, "worth", "low", "high"])


def generator_ranking(generators: pd.DataFrame) -> pd.DataFrame:
    """Return how well each method ranks the generators: SRCC between their mean predictions and mean MOS.

    Args:
        generators: `Results.generators`.

    Returns:
        A row per data set x method: generators (how many), rounds, srcc_mean and srcc_std over the rounds. NaN where
        fewer than 3 generators, or means that are all equal, leave nothing to rank.
    """
    rows = []
    for (dataset, method), group in generators.groupby(["dataset", "method"], sort=False):
        each = []
        for _, one in group.groupby("round"):
            ranks = rankdata(one["predicted_mean"]), rankdata(one["mos_mean"])
            able = len(one) > 2 and all(np.ptp(rank) > 0 for rank in ranks)
            each.append(float(np.corrcoef(*ranks)[0, 1]) if able else math.nan)
        values = pd.Series(each)
        rows.append((dataset, method, group["generator"].nunique(), len(each), values.mean(), values.std(ddof=1)))
    return pd.DataFrame(rows, columns=["dataset", "method", "generators", "rounds", "srcc_mean", "srcc_std"])


def metrics_tree(summary: pd.DataFrame) -> dict[str, dict[str, dict[str, float]]]:
    """Return the numbers that `dvc metrics` shows: data set, method, then srcc, srcc_std, plcc, krcc, rmse, CALIBRATED.

    Args:
        summary: Result of `summarise`. What has no value, as the srcc_std of a single round, is not written.
    """
    tree: dict[str, dict[str, dict[str, float]]] = {}
    for row in summary.to_dict("records"):
        values = {"srcc": row["srcc_mean"], "srcc_std": row["srcc_std"]}
        values |= {metric: row[f"{metric}_mean"] for metric in ("plcc", "krcc", "rmse", *CALIBRATED)}
        kept = {key: round(float(value), 6) for key, value in values.items() if not math.isnan(value)}
        tree.setdefault(row["dataset"], {})[row["method"]] = kept
    return tree


def all_leaks(rows: pd.DataFrame) -> list[str]:
    """Return the leaks of the rows, each once."""
    return list(dict.fromkeys(leak for leaks in rows["leaks"] for leak in leaks.split("; ") if leak))
