"""The study's headline as one chart: every method by its SRCC with its interval, the best on top.

Page and figure draw the same lines, so that they cannot disagree. A published result is a line only where it can be set
against ours, and then with its protocol.
"""

import math
from typing import NamedTuple

import pandas as pd
from matplotlib.ticker import MaxNLocator

from pipeline.report import words
from pipeline.report.published import Published, not_comparable
from pipeline.report.summaries import all_leaks

PUBLISHED = "published"


class Line(NamedTuple):
    """One line of the chart.

    Attributes:
        method: Its name.
        kind: variant, control, baseline or published.
        srcc: Mean over the rounds, or as published; NaN where there is none.
        low: Lower end of the mean's 95 % interval; NaN for published ones.
        high: Its upper end.
        rounds: SRCC of each round that has one.
        leaks: What leaks; empty if nothing.
        protocol: Of a published one, how it split the data and chose its epoch; empty for ours.
    """

    method: str
    kind: str
    srcc: float
    low: float
    high: float
    rounds: tuple[float, ...]
    leaks: str = ""
    protocol: str = ""

    @property
    def remark(self) -> str:
        """What must stand beside the method wherever the line does."""
        return f"LEAKS: {self.leaks}" if self.leaks else self.protocol


class Chart(NamedTuple):
    """The lines of one data set, best first; `interval` says of what kind the intervals are.

    `apart` counts published results that cannot be set against ours.
    """

    dataset: str
    lines: list[Line]
    interval: str
    apart: int

    @property
    def ends(self) -> tuple[float, float]:
        """Ends of the axis: they hold all values, and nothing that no correlation can be."""
        first, *_, last = self._round_numbers()
        return max(-1.0, first), min(1.0, last)

    @property
    def ticks(self) -> list[float]:
        """Round numbers between the ends."""
        low, high = self.ends
        return [tick for tick in self._round_numbers() if low <= tick <= high]

    def place(self, value: float) -> float:
        """Return where a value lies between the ends, in percent."""
        low, high = self.ends
        return round(100 * (value - low) / (high - low), 3)

    def _round_numbers(self) -> list[float]:
        """From below the least value of all lines to above the greatest."""
        values = [value for line in self.lines for value in (line.srcc, line.low, line.high, *line.rounds)]
        known = [value for value in values if not math.isnan(value)] or [0.0, 1.0]
        return [round(float(tick), 6) for tick in MaxNLocator(nbins=5).tick_values(min(known), max(known))]

    @property
    def note(self) -> str:
        """How to read it, and what is left out of it."""
        rounds = ", every round" if any(len(line.rounds) > 1 for line in self.lines) else ""
        text = f"Mean, 95 % interval ({self.interval}){rounds}."
        if self.apart:
            many = "results are" if self.apart > 1 else "result is"
            text += f" {self.apart} published {many} not comparable: see the table."
        return text


def chart_of(rows: pd.DataFrame, runs: pd.DataFrame, published: list[Published]) -> Chart:
    """Return the chart of one data set.

    Args:
        rows: The data set's rows of `pipeline.report.summaries.summarise`.
        runs: `Results.runs`.
        published: What is published on the data set and target.
    """
    dataset = str(rows["dataset"].iloc[0])
    mine = runs[runs["dataset"] == dataset]
    lines = [
        Line(
            *(row["method"], row["kind"], row["srcc_mean"], row["srcc_low"], row["srcc_high"]),
            tuple(mine.loc[mine["method"] == row["method"], "srcc"].dropna()),
            row["leaks"],
        )
        for row in rows.to_dict("records")
    ]
    origins, leaks = list(rows["backbone_origin"]), all_leaks(rows)
    fair = [row for row in published if not not_comparable(row.split, row.selection, origins, leaks)]
    lines += [
        Line(row.method, PUBLISHED, row.srcc, math.nan, math.nan, (), protocol=f"{PUBLISHED}, {row.protocol}")
        for row in fair
    ]
    lines.sort(key=lambda line: (math.isnan(line.srcc), -line.srcc if line.srcc == line.srcc else 0.0))
    return Chart(dataset, lines, str(rows["interval"].iloc[0]), len(published) - len(fair))


def spoken(chart: Chart) -> str:
    """Return the chart for those who do not see it."""
    each = [
        f"{line.method} ({'; '.join(part for part in (line.kind, line.remark) if part)}) {words.figure(line.srcc)} "
        + words.interval(line.low, line.high) * (line.kind != PUBLISHED)
        for line in chart.lines
    ]
    return f"SRCC of every method on {chart.dataset}, best first: " + ", ".join(part.strip() for part in each)
