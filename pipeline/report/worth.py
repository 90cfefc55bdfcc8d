"""What a score is worth to somebody who has no MOS: how far it is off, and whether its band holds what it promises.

Everything here is of the calibrated score, which `agiqa score` tells. Its curve, its bands and the limit of what counts
as unfamiliar come from training and validation images alone, so that test images judge them as new images would.
"""

from typing import Any

import pandas as pd

from pipeline.layout import LEVEL
from pipeline.report import words
from pipeline.report.formats import Table
from pipeline.report.results import Results
from pipeline.report.summaries import CALIBRATED
from pipeline.report.tables import best_row

ABOUT = (
    "A score on the MOS scale is the model's raw score through a curve that was fitted on validation images, and the "
    f"band around it is to hold the MOS of {LEVEL} in 100 images like those, prompt by prompt. No test image had a "
    "part in either, so the test images tell what a score is worth to those who score images of their own. An image "
    "counts as unfamiliar where its features are unlike the training images', which is so of about one in fifty "
    "validation images; of such an image nobody knows what its band is worth."
)


def champion(rows: pd.DataFrame) -> dict[str, Any] | None:
    """Return the row of the champion, the best on validation, if it has calibrated scores in all rounds; else None.

    Args:
        rows: The data set's rows of `pipeline.report.summaries.summarise`.
    """
    best = best_row(rows, by="validation_srcc_mean")
    return None if best is None or pd.isna(best["coverage_mean"]) else best


def score_tables(results: Results, rows: pd.DataFrame) -> list[Table]:
    """Return one data set's methods by the error of what users are told, and its champion's generators.

    Args:
        results: What the runs wrote.
        rows: The data set's rows of `pipeline.report.summaries.summarise`.

    Returns:
        No table where no method has calibrated scores in all rounds, as in studies of earlier versions; the first one
        alone where the champion has none.
    """
    if rows["coverage_mean"].isna().all():
        return []
    best = champion(rows)
    return [_methods(rows, best), *([] if best is None else [_generators(results, rows, best)])]


def _methods(rows: pd.DataFrame, best: dict[str, Any] | None) -> Table:
    dataset = str(rows["dataset"].iloc[0])
    lines, marks = [], []
    ordered = rows.sort_values("rmse_calibrated_mean", kind="stable")
    for row in ordered.to_dict("records"):
        is_best = best is not None and row["method"] == best["method"]
        said = [words.remarks(row), "champion: the best on validation" if is_best else ""]
        lines.append(
            [
                row["method"],
                *(words.spread(row[f"{key}_mean"], row[f"{key}_std"]) for key in ("rmse_calibrated", "mae_calibrated")),
                words.percent(row["coverage_mean"], row["coverage_std"]),
                words.spread(row["band_width_mean"], row["band_width_std"]),
                words.percent(row["unfamiliar_mean"], row["unfamiliar_std"]),
                "; ".join(part for part in said if part),
            ]
        )
        marks.append(
            "leaks" if row["leaks"] else "best" if is_best else "" if row["kind"] == "variant" else row["kind"]
        )
    numbers = {key: ordered[f"{key}_mean"] for key in CALIBRATED}
    numbers |= {f"{key}_std": ordered[f"{key}_std"] for key in CALIBRATED}
    heads = ["Method", "RMSE", "MAE", f"Coverage of the {LEVEL} % band", "Width of the band", "Unfamiliar", "Remarks"]
    return Table(
        f"score-{dataset}",
        words.titled(f"{dataset}: what a score is worth, on the test images", rows),
        heads,
        lines,
        marks,
        ordered[["dataset", "method", "kind", "leaks", "rounds"]].assign(level=LEVEL, **numbers),
        "Mean ± standard deviation over the rounds; RMSE, MAE and width in units of the MOS, the least error first. "
        f"Coverage: of how many test images the MOS lies in the band; far below {LEVEL} % the bands promise too much, "
        "far above they are wider than need be. A narrow band is worth nothing without its coverage.",
        words.backbones(rows),
    )


def _generators(results: Results, rows: pd.DataFrame, best: dict[str, Any]) -> Table:
    dataset, method = str(rows["dataset"].iloc[0]), best["method"]
    own = rows[rows["method"] == method]
    table = results.generators[results.generators["dataset"] == dataset]
    table = table.assign(bias=table["score_mean"] - table["mos_mean"])
    columns = ["n", "mos_mean", "score_mean", "bias", *CALIBRATED]
    means = table.groupby(["method", "generator"], sort=False)[columns].mean()
    runs = results.predictions[(results.predictions["dataset"] == dataset) & (results.predictions["method"] == method)]
    whole = runs.groupby("round").agg(n=("mos", "size"), mos=("mos", "mean"), score=("score", "mean")).mean()
    mine = means.loc[method].sort_values("mos_mean", ascending=False, kind="stable")

    def line(name: str, n: float, mos: float, score: float, rmse: float, coverage: float) -> list[str]:
        cells = [words.figure(mos), words.figure(score), words.figure(score - mos, "+"), words.figure(rmse)]
        return [name, f"{n:.0f}", *cells, words.percent(coverage)]

    keys = ["n", "mos_mean", "score_mean", "rmse_calibrated", "coverage"]
    lines = [line(str(name), *row) for name, row in zip(mine.index, mine[keys].to_numpy(), strict=True)]
    lines.append(line("all images", *whole, best["rmse_calibrated_mean"], best["coverage_mean"]))
    heads = ["Generator", "Images a round", "Mean MOS", "Mean score", "Error of the mean", "RMSE"]
    return Table(
        f"score-generators-{dataset}",
        words.titled(f"{dataset}: what a score of `{method}` is worth, by generator", own),
        [*heads, f"Coverage of the {LEVEL} % band"],
        lines,
        [""] * len(mine) + ["total"],
        means.reset_index().assign(dataset=dataset, champion=lambda frame: frame["method"] == method),
        f"Means over the rounds, in units of the MOS, of `{method}`, the champion: the best on validation. A "
        "band holds its share over all images, and promises nothing of each generator by itself: where the mean is "
        "off, so are the bands. The CSV has every method.",
        words.backbones(own),
    )
