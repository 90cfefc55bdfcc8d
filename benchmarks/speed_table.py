"""The table of docs/speed.md, made of benchmarks/results.csv.

`benchmarks/speed.py` writes both; `python benchmarks/speed_table.py` makes the table anew from numbers that are there.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "docs" / "making"))

import marked  # noqa: E402

RESULTS, PAGE = HERE / "results.csv", HERE.parent / "docs" / "speed.md"
OWNER = "benchmarks/speed.py"
COLUMNS = {
    "what": "what",
    "backbone": "backbone",
    "threads": "threads",
    "ours_ms": "time",
    "vs_open_clip": "than open_clip's forward",
    "vs_predecessor": "than the predecessor",
    "of_matrix_rate": "of the matrix rate",
    "int8_speedup": "int8 than that",
    "ms_a_window": "a window",
    "peak_gb": "memory",
    "load": "load",
}


def read(path: Path = RESULTS) -> list[dict[str, str]]:
    """Return the rows of results.csv, as text."""
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return the rows as Markdown, with the machine named above them."""
    machines = sorted({row["machine"] for row in rows})
    lines = [
        f"Machine: {'; '.join(machines)}. Random weights.",
        "",
        f"| {' | '.join(COLUMNS.values())} |",
        "| --- | --- |" + " ---: |" * (len(COLUMNS) - 2),
    ]
    lines += [f"| {' | '.join(cell(key, row.get(key, '')) for key in COLUMNS)} |" for row in rows]
    return "\n".join(lines)


def cell(key: str, value: str) -> str:
    """Return a value with its unit; nothing where it was not measured."""
    if not value or key in ("what", "backbone", "threads"):
        return value
    number = float(value)
    if key in ("ours_ms", "ms_a_window"):
        return duration(number)
    if key == "of_matrix_rate":
        return f"{number:.0%}"
    return {"peak_gb": f"{number:.2f} GB", "load": f"{number:.1f}"}.get(key, f"{number:.2f} x")


def duration(milliseconds: float) -> str:
    """Return a time in the unit that suits it."""
    if milliseconds < 1e3:
        return f"{milliseconds:.0f} ms"
    return f"{milliseconds / 1e3:.2f} s" if milliseconds < 6e4 else f"{milliseconds / 6e4:.1f} min"


def write() -> None:
    """Put the table into the page."""
    marked.write(PAGE, OWNER, table(read()))


if __name__ == "__main__":
    write()
