"""The words of a report: cells, captions and sentences that its tables, figures and sections share.

A number is written in one way wherever it stands. What is shown always names its leaks; whatever may stand alone, such
as a file, names its backbone as well, which the page names once for all.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from pipeline.layout import rated_by
from pipeline.metrics import LINE_BELOW
from pipeline.report.results import Results, shared
from pipeline.report.summaries import all_leaks

ABSENT = "—"
# How the outcomes of `pipeline.report.significance.compare` are written.
OUTCOMES = {
    **{"win": "win", "loss": "loss", "tie": "tie", "none": ABSENT},
    **{"ahead": "ahead on these trainings", "behind": "behind on these trainings"},
}


def protocol(runs: pd.DataFrame) -> str:
    """Return how the runs split the data and chose their epoch, and what ± and the intervals are."""
    numbers = sorted(set(runs["round"]))
    rules = {
        "grouped": "no generation prompt and no image stands in two subsets",
        "random": "images drawn at random, so generation prompts are shared between the subsets (leaking)",
    }
    split = "; ".join(f"`{rule}`, {rules.get(rule, 'unknown')}" for rule in dict.fromkeys(runs["split_rule"]))
    selections = " and ".join(name for name in dict.fromkeys(runs["select_on"]) if isinstance(name, str))
    count = f"{len(numbers)} round{'s' if len(numbers) > 1 else ''}"
    text = (
        f"{count} ({', '.join(str(number) for number in numbers)}), each a split of its own. Split rule: {split}. "
        + (f"The epoch is chosen on {selections}{' (leaking)' if 'test' in selections else ''}. " if selections else "")
        + "PLCC and RMSE follow the field's convention where nothing else is said: they are taken after a logistic fit "
        f"(a straight line below {LINE_BELOW} test images) on the very test images. Errors are in units of the MOS. "
    )
    if len(numbers) == 1:
        return (
            f"{text}One round has no spread over rounds: no standard deviation is shown, and the 95 % interval of "
            "SRCC is a jackknife's over the test images' prompt groups."
        )
    return (
        f"{text}± is the standard deviation over the rounds (n - 1). The 95 % interval of the mean SRCC is a t "
        "interval over the rounds, widened because the rounds share images (Nadeau and Bengio, 2003)."
    )


def data_line(results: Results, dataset: str, target: str) -> str:
    """Return what is predicted, on which scale, and how many images each subset holds."""
    first = results.runs[results.runs["dataset"] == dataset].iloc[0]
    names = results.generators.loc[results.generators["dataset"] == dataset, "generator"].nunique()
    card = results.cards[dataset]
    images = f"{first['train_images']:,} images to train, {first['validation_images']:,} to validate"
    return (
        f"Target: {target} MOS{scale(card)}, rated by {rated_by(card)}. {images} and {first['test_images']:,} to test "
        f"in round {first['round']}, from {names} generator{'s' if names > 1 else ''}."
    )


def split_audit_line(results: Results, dataset: str) -> str:
    """Return what the split audit counted, and what a random split would share."""
    split_audit = results.split_audits[dataset]
    numbers = sorted(set(results.runs.loc[results.runs["dataset"] == dataset, "round"]))
    counts = [shared(split_audit, number) for number in numbers]
    if any(any(count) for count in counts):
        each = ", ".join(f"round {number}: {p} and {i}" for number, (p, i) in zip(numbers, counts, strict=True))
        text = (
            f"Split audit: **LEAKS**. Prompts and identical images of test that train or validation also hold: {each}."
        )
    else:
        which = "every round" if len(numbers) > 1 else f"round {numbers[0]}"
        text = (
            f"Split audit: in {which}, 0 generation prompts and 0 identical images of test also stand in train or "
            "validation."
        )
    random = split_audit.get("random_rule_would_share", {})
    pairs = [random[str(number)] for number in numbers if str(number) in random]
    if pairs:
        prompts, images = (span(pair[key] for pair in pairs) for key in ("shared_prompts", "shared_images"))
        text += f" A random split would share {prompts} prompts and {images} identical images."
    return text


def caveats(rows: pd.DataFrame, generated: bool) -> list[str]:
    """Return what a backbone that is not a published one keeps these rows from showing; empty for one that is."""
    origins = set(rows["backbone_origin"])
    text = []
    if generated and "in-house" in origins:
        text.append(
            "The in-house backbone was pre-trained on images of the same procedure that makes this data set, with a "
            "quality objective. On this data set even a row without training, such as `clip_iqa`, is therefore "
            "in-domain and supervised, and not zero-shot."
        )
    if origins & {"in-house", "random"}:
        words = " and ".join(origin for origin in ("in-house", "random") if origin in origins)
        text.append(
            f"The backbone's weights are {words}. These rows compare methods on one common backbone; they are no "
            "estimate of what the methods reach on published CLIP weights."
        )
    return text


def backbones(rows: pd.DataFrame) -> str:
    """Return the backbones of the rows and whose weights they hold."""
    names = [name for name in dict.fromkeys(rows["backbone"]) if name != "none"]
    if not names:
        return "No backbone"
    without = list(rows.loc[rows["backbone"] == "none", "method"].drop_duplicates())
    text = f"Backbone{'s' if len(names) > 1 else ''}: {'; '.join(names)}"
    return text + (f"; none in {', '.join(without)}" if without else "")


def leaks(rows: pd.DataFrame) -> str:
    """Return which rows leak and how, or nothing: what must stand wherever a result is shown."""
    leaking = rows[rows["leaks"] != ""]
    every = len(leaking) == len(rows) > 1
    methods = "every row" if every else ", ".join(dict.fromkeys(leaking["method"]))
    return f"LEAKS in {methods}: {'; '.join(all_leaks(rows))}" if methods else ""


def titled(text: str, rows: pd.DataFrame) -> str:
    """Return a sentence, without its stop, and behind it the leaks of the rows that it is of."""
    return ". ".join(part for part in (text, leaks(rows)) if part) + "."


def train_below_validation(history: pd.DataFrame) -> str:
    """Return why train lies below validation in some epoch, as a further sentence; empty where it never does.

    Args:
        history: Of one data set, as `pipeline.report.results.Results` has it.
    """
    methods = list(dict.fromkeys(history.loc[history["train_srcc"] < history["validation_srcc"], "method"]))
    if not methods:
        return ""
    return (
        f" In {listed(methods)} train lies below validation in some epochs, which is no fault: training images are "
        "scored by the random crops (`train.windows` an image) that they are learned from, while the prompts still "
        "change, validation images after the epoch by more windows, whose mean is steadier."
    )


def scale(card: dict[str, Any]) -> str:
    """Return the range of the MOS in brackets, or nothing where the data card does not say."""
    low, high = card.get("mos_low"), card.get("mos_high")
    return "" if low is None or high is None else f" ({low:g} to {high:g})"


def remarks(row: Mapping[str, Any]) -> str:
    """Return what marks a row: its leaks, whether it is a control or a baseline, and rounds that have no value."""
    kinds = {"control": "control: trained on shuffled labels", "baseline": "baseline"}
    found = [f"LEAKS: {row['leaks']}"] if row["leaks"] else []
    found += [kinds[row["kind"]]] if row["kind"] in kinds else []
    return "; ".join([*found, *without_value(row.get("without_value", 0), row.get("rounds", 0))])


def without_value(count: int, rounds: int) -> list[str]:
    """Return in words that so many of the rounds have no correlation; empty where all have one."""
    what = f"{count} of {rounds} rounds" if rounds > 1 else "the round"
    return [f"no correlation in {what}: the scores or the MOS are all equal"] if count else []


def figure(value: float, sign: str = "") -> str:
    """Return a number with three decimals; `sign` of + shows the sign of positive ones too."""
    if math.isnan(value):
        return ABSENT
    return f"{round(float(value), 3) + 0.0:{sign}.3f}"  # + 0.0 turns -0.0 into 0.0


def seconds(value: float) -> str:
    """Return a span in seconds; one that would read as none is less than a tenth, and an unknown one a mark."""
    if math.isnan(value):
        return ABSENT
    return f"{value:,.1f} s" if value >= 0.05 else "< 0.1 s"


def rate(value: float) -> str:
    """Return a speed in images a second: whole from 10 on, below with two digits that count, so that none reads 0.

    A mark where it is unknown, or none at all.
    """
    if math.isnan(value) or value <= 0:
        return ABSENT
    return f"{value:,.{max(0, 1 - math.floor(math.log10(value)))}f}"


def spread(mean: float, std: float) -> str:
    """Return mean ± std, or one mark where there is not even a mean."""
    return ABSENT if math.isnan(mean) else f"{figure(mean)} ± {figure(std)}"


def percent(mean: float, std: float | None = None) -> str:
    """Return a share in percent, ± its std if given, or one mark where there is not even a mean."""
    if math.isnan(mean):
        return ABSENT
    spreads = "" if std is None else f" ± {ABSENT if math.isnan(std) else f'{100 * std:.1f}'}"
    return f"{100 * mean:.1f}{spreads} %"


def interval(low: float, high: float, sign: str = "") -> str:
    """Return an interval in brackets."""
    return ABSENT if math.isnan(low) or math.isnan(high) else f"[{figure(low, sign)}, {figure(high, sign)}]"


def span(values: Iterable[int]) -> str:
    """Return the smallest to the largest of some counts."""
    ordered = sorted(values)
    return f"{ordered[0]:,}" if ordered[0] == ordered[-1] else f"{ordered[0]:,} to {ordered[-1]:,}"


def listed(methods: Iterable[str]) -> str:
    """Return the methods as words: `a`, `b` and `c`."""
    quoted = [f"`{method}`" for method in methods]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def markdown_text(text: str) -> str:
    """Return a cell that others may have named, without what Markdown takes for HTML, a link or a new cell."""
    text = re.sub(r"&(?=#?\w+;)", "&amp;", text)
    text = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text)
    return " ".join(text.replace("|", "\\|").replace("](", "]\\(").splitlines())


def markdown_table(header: list[str], lines: list[list[str]], right: Iterable[int] = ()) -> str:
    """Return a Markdown table; `right` lists the columns to align right."""
    right = set(right)
    rule = ["---:" if column in right else "---" for column in range(len(header))]
    cells = [[markdown_text(cell) for cell in line] for line in (header, *lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (cells[0], rule, *cells[1:]))
