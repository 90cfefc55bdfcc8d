"""The answer of a study: which method is best, in a sentence that claims no more than its tests carry.

With it stands what else is shown, and what the data do not carry.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from pipeline import jackknife
from pipeline.layout import LEVEL
from pipeline.report import significance, words, worth
from pipeline.report.chart import Chart
from pipeline.report.figures import Picture
from pipeline.report.formats import Table
from pipeline.report.significance import Evidence
from pipeline.report.tables import best_row


class Verdict(NamedTuple):
    """What is shown on one data set. In all texts `code` and **strong** are marked as in Markdown.

    Attributes:
        lead: The answer, a sentence.
        bounds: The intervals of the best method's score; empty where none is best.
        shown: What else is shown.
        lacks: What the data do not carry, a part of a sentence each.
    """

    lead: str
    bounds: str
    shown: list[str]
    lacks: list[str]


class Answer(NamedTuple):
    """One data set's verdict with what carries it; chart and table are None where a report has none."""

    dataset: str
    verdict: Verdict
    chart: Chart | None
    table: Table | None


class Headline(NamedTuple):
    """The answers on all data sets, and the figure, in files, that has all their charts; None where none was drawn."""

    answers: list[Answer]
    picture: Picture | None


def verdict(rows: pd.DataFrame, evidence: Evidence, generated: bool, who: str = "people") -> Verdict:
    """Return the best method of one data set, what is shown of it, and what is not.

    Args:
        rows: The data set's rows of `pipeline.report.summaries.summarise`.
        evidence: Of the data set.
        generated: Whether the project makes the data set itself.
        who: Who rated its images.
    """
    dataset, best = str(rows["dataset"].iloc[0]), best_row(rows)
    caveats = words.caveats(rows, generated)[: 1 if generated else 0]
    if best is None:
        why = "every one leaks" if (rows["leaks"] != "").all() else "none without leaks has a score"
        return Verdict(f"On **{dataset}** no method is named best: {why}.", "", caveats, _beyond(rows, who))
    method = best["method"]
    outcomes = _outcomes(rows, evidence, method)
    low, high = jackknife.interval(evidence.estimates[method]["srcc"], jackknife.CORRELATION)
    bounds = f"95 % over prompts {words.interval(low, high)}"
    if best["rounds"] > 1:
        bounds += f"; over rounds {words.interval(best['srcc_low'], best['srcc_high'])}"
    shown = [*_best_variant(rows, evidence, best), *_told(rows), *caveats]
    return Verdict(_lead(dataset, best, outcomes), bounds, shown, [*_lacks(best, outcomes), *_beyond(rows, who)])


def _outcomes(rows: pd.DataFrame, evidence: Evidence, method: str) -> dict[str, list[str]]:
    """By outcome for the method, the methods without leaks that it was tested against."""
    clean = set(rows.loc[rows["leaks"] == "", "method"])
    found: dict[str, list[str]] = {outcome: [] for outcome in significance.OPPOSITE}
    for other, test in significance.against(evidence.pairs, method).items():
        if other in clean:
            found[significance.turned(test)["outcome"]].append(other)
    return found


def _lead(dataset: str, best: Mapping[str, Any], outcomes: Mapping[str, Sequence[str]]) -> str:
    """The answer in a sentence: best without reserve only where the tests put the method ahead of all others."""
    method, score = f"**`{best['method']}`**", f"SRCC {score_of(best)}"
    others = [name for names in outcomes.values() for name in names]
    if others and len(outcomes["win"]) == len(others):
        shown = f"ahead of {'all ' * (len(others) > 3)}{_few(others)} over prompts, splits and trainings"
        return f"On **{dataset}** {method} is the best method: {score}, {shown}."
    places = [
        ("win", "ahead of {} over prompts, splits and trainings"),
        ("ahead", "ahead of {} on these trainings alone"),
        ("loss", "behind {} over prompts, splits and trainings"),
        ("behind", "behind {} on these trainings alone"),
        ("tie", "not shown to differ from {}"),
    ]
    said = [text.format(_few(outcomes[outcome])) for outcome, text in places if outcomes[outcome]]
    joined = f", {', '.join(said[:-1])} and {said[-1]}" if len(said) > 1 else "".join(f", {text}" for text in said)
    return f"On **{dataset}** {method} has the highest mean: {score}{joined}."


def _few(methods: Sequence[str]) -> str:
    """Name a few methods and count many, which chart, tests and what is not shown name."""
    return words.listed(methods) if len(methods) <= 3 else f"{len(methods)} others"


def _best_variant(rows: pd.DataFrame, evidence: Evidence, best: Mapping[str, Any]) -> list[str]:
    """A sentence on the best variant, where a baseline has the highest mean."""
    variant = best_row(rows, ["variant"])
    if best["kind"] == "variant":
        return []
    if variant is None:
        lacks = "without leaks and with a score" if (rows["kind"] == "variant").any() else "at all"
        return [f"`{best['method']}` is a baseline; the study has no variant {lacks}."]
    found = _outcomes(rows, evidence, best["method"])
    outcome = next((name for name, methods in found.items() if variant["method"] in methods), "none")
    ends = {
        "win": "a difference over prompts, splits and trainings",
        "ahead": "a difference that the tests confirm on these trainings alone",
    }
    proof = "beats" if outcome == "win" else "scores higher than"
    end = ends.get(outcome, "a difference that the tests do not confirm")
    return [
        f"**The baseline `{best['method']}` {proof} every variant**, of which `{variant['method']}` is the best, SRCC "
        f"{score_of(variant)}: {end}."
    ]


def _told(rows: pd.DataFrame) -> list[str]:
    """A sentence on what users are told, where the champion's scores are calibrated."""
    champion = worth.champion(rows)
    if champion is None:
        return []
    level, off = words.percent(champion["coverage_mean"]), words.figure(champion["rmse_calibrated_mean"])
    return [
        f"What a user is told, by the champion `{champion['method']}`, the best on validation: its calibrated score is "
        f"off by {off} MOS (RMSE) on the test images, and its {LEVEL} % band holds {level} of them."
    ]


def _lacks(best: Mapping[str, Any], outcomes: Mapping[str, Sequence[str]]) -> list[str]:
    """What the tests leave open of the best method."""
    method, found = f"`{best['method']}`", []
    if outcomes["tie"]:
        found.append(f"any difference between {method} and {words.listed(outcomes['tie'])}")
    here = [*outcomes["ahead"], *outcomes["behind"]]
    if here:
        why = "one round cannot tell" if best["rounds"] == 1 else "the rounds do not tell"
        found.append(f"the order of {method} and {words.listed(here)} for other splits and trainings, which {why}")
    if outcomes["none"]:
        found.append(f"anything about {words.listed(outcomes['none'])}, which lacks a score in some round")
    return found


def _beyond(rows: pd.DataFrame, who: str) -> list[str]:
    """What no study on these images and these weights can show."""
    found = []
    if set(rows["backbone_origin"]) & {"in-house", "random"}:
        found.append("what any method reaches on CLIP's published weights")
    found.append("anything about images, prompts and generators unlike these")
    return found + ([] if who == "people" else [f"how anyone but the {who} of this data set would rate an image"])


def score_of(row: Mapping[str, Any]) -> str:
    """Return the mean SRCC, with its spread where there is one."""
    alone = pd.isna(row["srcc_std"])
    return words.figure(row["srcc_mean"]) if alone else words.spread(row["srcc_mean"], row["srcc_std"])
