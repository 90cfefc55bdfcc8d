"""One table in three formats: CSV, Markdown and LaTeX."""

import re
from typing import NamedTuple

import pandas as pd

from pipeline.report import words


class Table(NamedTuple):
    """One table.

    Attributes:
        name: Stem of its files.
        caption: What it shows, with leaks.
        columns: Heads; the first column names the row.
        rows: Cells as text.
        marks: What each row is: "" for nothing special, best, leaks, published, control, baseline, or total (a row
            that sums up and stays last).
        numbers: The same in full, for CSV.
        note: What a reader must know to read it; empty if nothing.
        backbone: What its rows were made with, for files that stand alone; empty if nothing.
    """

    name: str
    caption: str
    columns: list[str]
    rows: list[list[str]]
    marks: list[str]
    numbers: pd.DataFrame
    note: str = ""
    backbone: str = ""

    @property
    def alone(self) -> str:
        """The caption where the table stands alone: with its backbone."""
        return f"{self.caption} {self.backbone}." if self.backbone else self.caption


# Files


def csv(table: Table) -> str:
    """Return the table's numbers in full as CSV."""
    return table.numbers.to_csv(index=False, float_format="%.6g")


def markdown(table: Table) -> str:
    """Return the table with its caption as Markdown."""
    parts = [f"**{table.alone}**", words.markdown_table(table.columns, table.rows, numeric_columns(table))]
    return "\n\n".join([*parts, *([table.note] if table.note else [])]) + "\n"


def latex(table: Table) -> str:
    """Return the table as a LaTeX float in the style of booktabs."""
    numeric = set(numeric_columns(table))
    layout = "".join("r" if column in numeric else "l" for column in range(len(table.columns)))
    lines = [" & ".join(_tex(cell) for cell in line) + r" \\" for line in (table.columns, *table.rows)]
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_tex(table.alone)}}}",
            rf"\label{{tab:{table.name}}}",
            rf"\begin{{tabular}}{{{layout}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            *([rf"\par\smallskip\footnotesize {_tex(table.note)}"] if table.note else []),
            r"\end{table}",
            "",
        ]
    )


def numeric_columns(table: Table) -> list[int]:
    """Return which columns hold numbers, so that they are aligned to the right."""
    found = []
    for column in range(1, len(table.columns)):
        there = [row[column] for row in table.rows if row[column] not in ("", "reference", "clean")]
        cells = [cell for cell in there if cell != words.ABSENT]
        if there and all(re.match(r"(both: |< )?\[?[+-]?\d", cell) for cell in cells):
            found.append(column)
    return found


def _tex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
    special |= {words.ABSENT: "---"} | {character: f"\\{character}" for character in "&%$#_{}"}
    escaped = "".join(special.get(character, character) for character in text)
    return re.sub(r"(?<![\w.])-(?=\d)", "$-$", escaped)
