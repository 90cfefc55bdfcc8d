"""The figures of a report: which there are, on what numbers, under which titles."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from tqdm import tqdm

from pipeline.drawing import cycle_styles
from pipeline.layout import LEVEL, mos_label, rated_by
from pipeline.report import plots, words, worth
from pipeline.report.chart import Chart
from pipeline.report.results import Results
from pipeline.report.tables import binned


class Picture(NamedTuple):
    """A figure that stands as PNG and SVG in the report's folder.

    Attributes:
        name: Stem of its files.
        title: What it shows, in few words.
        alt: What it shows, for those who do not see it, with leaks.
        caption: How to read it, with leaks.
        backbone: What it was made with, for where it stands alone.
    """

    name: str
    title: str
    alt: str
    caption: str
    backbone: str


Plan = list[tuple[Picture, Callable[..., None]]]  # each figure, and what draws it to `paths`


def draw(
    out: Path, results: Results, summary: pd.DataFrame, pairs: Mapping[str, pd.DataFrame], charts: Sequence[Chart]
) -> list[Picture]:
    """Draw all figures of the study into a folder.

    Args:
        out: The folder.
        results: What the runs wrote.
        summary: Result of `pipeline.report.summaries.summarise`.
        pairs: By data set, the tests from `pipeline.report.significance.compare`.
        charts: Of each data set, from `pipeline.report.chart.chart_of`.
    """
    looks = dict(zip(sorted(set(results.generators["generator"])), cycle_styles(), strict=False))
    plan = [_comparison(summary, charts)]
    plan += [] if results.cross.empty else [_cross(results, summary)]
    for dataset in dict.fromkeys(summary["dataset"]):
        plan += _of(results, summary[summary["dataset"] == dataset], pairs[dataset], dataset, looks)
    for picture, job in tqdm(plan, desc="drawing figures", unit="figure"):
        job(paths=[out / f"{picture.name}{suffix}" for suffix in (".png", ".svg")])
    return [picture for picture, _ in plan]


def _headed(title: str, rows: pd.DataFrame) -> str:
    """The title that stands in a figure's files, which are taken out of the page: with backbone and leaks."""
    return f"{title}\n{'. '.join(part for part in (words.backbones(rows), words.leaks(rows)) if part)}"


def _comparison(summary: pd.DataFrame, charts: Sequence[Chart]) -> tuple[Picture, Callable[..., None]]:
    title = "SRCC on the test images"
    return Picture(
        "comparison",
        title,
        words.titled("SRCC of every method on the test images, best first: rounds, mean and 95 % interval", summary),
        words.titled("The study's headline", summary),
        words.backbones(summary),
    ), partial(plots.comparison, charts, title=_headed(title, summary))


def _cross(results: Results, summary: pd.DataFrame) -> tuple[Picture, Callable[..., None]]:
    own = results.runs.assign(tested_on=results.runs["dataset"])
    both = pd.concat([own, results.cross])[["method", "dataset", "tested_on", "srcc"]]
    means = both.rename(columns={"dataset": "trained_on"}).groupby(
        ["method", "trained_on", "tested_on"], sort=False, as_index=False
    )
    title = "SRCC between data sets"
    return Picture(
        "cross",
        title,
        words.titled("Heat map of SRCC by data set trained on and data set tested on, a panel per method", summary),
        words.titled("Trained on rows, tested on columns; mean SRCC over the rounds", summary),
        words.backbones(summary),
    ), partial(plots.cross_matrix, means["srcc"].mean(), title=_headed(title, summary))


def _of(results: Results, rows: pd.DataFrame, pairs: pd.DataFrame, dataset: str, looks: plots.Looks) -> Plan:
    """The figures of one data set; `looks` are those of the study's generators."""
    mine = {
        name: frame[frame["dataset"] == dataset]
        for name, frame in results._asdict().items()
        if isinstance(frame, pd.DataFrame)
    }
    target = mine["runs"]["target"].iloc[0]
    who = rated_by(results.cards[dataset])
    label = f"{mos_label(target, results.cards[dataset])}{words.scale(results.cards[dataset])}"
    plan: Plan = []

    def add(
        kind: str, says: str, reads: str, job: Callable[..., None], title: str, of: pd.DataFrame | None = None
    ) -> None:
        shown = rows if of is None else of
        about = f"{dataset}: {title}"
        alt, reads = words.titled(f"{dataset}: {says}", shown), words.titled(reads.removesuffix("."), shown)
        picture = Picture(f"{kind}-{dataset}", about, alt, reads, words.backbones(shown))
        plan.append((picture, partial(job, title=_headed(about, shown))))

    if not pairs.empty:
        add(
            "outcomes",
            "matrix of wins, ties and losses between all methods, with SRCC differences",
            "Read a row: does this method win, tie or lose against the one of the column, and by how much SRCC? "
            "Ahead or behind, paler and hatched: on these trainings alone.",
            partial(plots.outcomes, pairs),
            "SRCC: wins, ties and losses, family-wise 5 %; hatched: on these trainings",
        )
    means = mine["generators"].groupby(["method", "generator"], sort=False)[["mos_mean", "fitted_mean"]].mean()
    add(
        "generators",
        "mean prediction against mean MOS of each generator, a panel per method",
        f"Means over the rounds. On the dotted line the model rates a generator as {who} do.",
        partial(plots.generators, means.reset_index(), mos_label=label, looks=looks),
        "mean prediction against mean MOS, by generator",
    )
    number = int(mine["runs"]["round"].min())
    add(
        "scatter",
        f"predicted score against MOS of every test image of round {number}, with the logistic fit",
        f"Every test image of round {number}; scores on each method's own scale, with the logistic fit to the MOS.",
        partial(
            plots.scatters, mine["predictions"][mine["predictions"]["round"] == number], mos_label=label, looks=looks
        ),
        f"predicted against MOS, round {number}",
    )
    best = worth.champion(rows)
    if best is not None:
        method = best["method"]
        told = mine["predictions"][mine["predictions"]["method"] == method]
        each = mine["generators"][mine["generators"]["method"] == method]
        order = each.groupby("generator")["mos_mean"].mean().sort_values(ascending=False, kind="stable").index
        each = each.set_index("generator").loc[order, ["coverage"]].reset_index()
        add(
            "band",
            f"score of {method} against MOS with its {LEVEL} % band in round {number}, and the share of each "
            "generator's images that lie in the band",
            f"`{method}` is the champion, the best on validation. Left: every test image of round {number}, by the "
            f"score that a user is told; the band is to hold {LEVEL} in 100. Right: of all rounds, how much of each "
            "generator it holds, the best rated on top; left of the line its bands promise too much.",
            partial(plots.bands, told[told["round"] == number], each, mos_label=label, looks=looks),
            f"score of {method} and its band, round {number}",
            rows[rows["method"] == method],
        )
    # A fit on the very images is calibrated by construction; what users are told need not be.
    is_told = bool(mine["predictions"]["score"].notna().all())
    shown, word = ("score", "score") if is_told else ("fitted", "prediction")
    whose = "score that a user is told" if is_told else "prediction after the logistic fit on these very images"
    add(
        "calibration",
        f"mean MOS against mean {word} in tenths of the test images, a panel per method",
        f"Test images of all rounds in tenths by the {whose}: above the dotted line, {who} rate them higher than the "
        "model.",
        partial(plots.binned, binned(mine["predictions"], shown, "mos"), labels=(word, label), identity=True),
        "calibration of the score" if is_told else "calibration after the logistic fit on test",
    )
    if not mine["history"].empty:
        add(
            "curves",
            "SRCC on train and validation by epoch, every round, a panel per variant",
            "Every round thin, their mean thick; the chosen epochs ringed. Epochs are judged by `validation.windows` "
            "windows an image; the chosen one's own validation numbers, which choose the champion, are of all windows."
            + words.train_below_validation(mine["history"]),
            partial(plots.training_curves, mine["history"], mine["runs"]),
            "SRCC by epoch",
            rows[rows["method"].isin(mine["history"]["method"])],
        )
    known = mine["predictions"].dropna(subset=["mos_std"])
    if known["mos_std"].nunique() > 1:
        known = known.assign(error=(known[shown] - known["mos"]).abs())
        add(
            "residuals",
            "mean absolute error against the standard deviation of the ratings, a panel per method",
            f"Test images of all rounds in tenths by how much {who} disagree: does the model err there, too? The error "
            f"is that of the {whose}.",
            partial(
                plots.binned,
                binned(known, "mos_std", "error"),
                labels=("MOS standard deviation", "mean |error|"),
                identity=False,
            ),
            f"error against disagreement of {who}",
        )
    return plan
