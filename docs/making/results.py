"""Take a finished study's report into results/, and write what docs/results.md and the README quote of it.

    python docs/making/results.py REPORT NAME       such as: reports/study agiqa3k
    python docs/making/results.py                   writes the quotes anew from what results/ holds

A report of the same name is replaced, so that a new study takes the place of an older one in every table.
"""

import argparse
import csv
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(DOCS / "making")]

import marked  # noqa: E402

ROOT, RESULTS = DOCS.parent, DOCS.parent / "results"
COLOURS = 128  # of a figure's palette: lines and letters on white look the same, at a third of the bytes


def owner(name: str) -> str:
    """Return who owns the lines between the markers of a study's quotes."""
    return f"docs/making/results.py, {name}"


def take(report: Path, name: str) -> None:
    """Copy of a report what a reader of the repository needs: its text, the figures in it, and the main tables."""
    out = RESULTS / name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    text = (report / "summary.md").read_text(encoding="utf-8")
    text = re.sub(r"^The same report with .*\n\n", "", text, flags=re.M)  # the page itself is not copied
    (out / "summary.md").write_text(text, encoding="utf-8")
    for figure in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
        small(report / figure, out / figure)
    for table in [report / "summary.csv", *report.glob("tables/main-*.csv"), *report.glob("tables/tests-*.csv")]:
        shutil.copyfile(table, out / table.name)
    shutil.copyfile(out / "comparison.png", DOCS / "images" / f"results-{name}.png")


def small(source: Path, target: Path) -> None:
    """Write a figure with a palette."""
    with Image.open(source) as image:
        image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(target, optimize=True)


def rows(name: str) -> list[dict[str, str]]:
    """Return the rows of a report's main tables, best first, ours before those that others published."""
    found = []
    for path in sorted((RESULTS / name).glob("main-*.csv")):
        with path.open(newline="", encoding="utf-8") as stream:
            found += list(csv.DictReader(stream))
    return found


def ours(name: str, columns: Sequence[str]) -> str:
    """Return the study's own rows as Markdown, mean and standard deviation over the rounds."""
    titles = {
        "srcc": "SRCC", "interval": "95 % of SRCC", "plcc": "PLCC", "krcc": "KRCC",
        "rmse_calibrated": "RMSE, calibrated",
    }  # fmt: skip
    kept = [row for row in rows(name) if row["kind"] != "published"]
    lines = [
        f"| method | backbone | {' | '.join(titles[key] for key in columns)} |",
        "| --- | --- |" + " ---: |" * len(columns),
    ]
    for row in kept:
        what = "control" if "control" in row["remarks"] else row["kind"]
        cells = [
            f"{float(row['srcc_low']):.3f} to {float(row['srcc_high']):.3f}" if key == "interval"
            else f"{float(row[key]):.3f} ± {float(row[key + '_std']):.3f}"
            for key in columns
        ]  # fmt: skip
        lines.append(f"| `{row['method']}` ({what}) | {row['backbone']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def published(name: str, *, known: bool) -> str:
    """Return the rows that others published as Markdown; `known` keeps those whose protocol is known."""
    lines = ["| published | SRCC | PLCC | protocol that the code really used |", "| --- | ---: | ---: | --- |"]
    for row in rows(name):
        if row["kind"] == "published" and not (known and row["protocol"] == "unknown"):
            year = f" ({row['year']})" if row["year"] else ""
            scores = [f"{float(row[key]):.4f}" for key in ("srcc", "plcc")]
            lines.append(f"| {row['method']}{year} | {' | '.join(scores)} | {row['protocol']} |")
    return "\n".join(lines)


def answer(name: str) -> str:
    """Return the sentences that the report opens with, one a data set."""
    text = (RESULTS / name / "summary.md").read_text(encoding="utf-8")
    return re.search(r"^## The answer\n\n(.*?)\n\n", text, re.M | re.S).group(1)


def quotes(name: str) -> dict[Path, str]:
    """Return what each page quotes of a report."""
    caption = "SRCC on the test images by method: rounds, mean and 95 % interval"
    parts = [
        "The report's own sentences:",
        re.sub(r"^- |^", "> ", answer(name), flags=re.M),
        ours(name, ["srcc", "interval", "plcc", "krcc", "rmse_calibrated"]),
        f"![{caption}](images/results-{name}.png)",
    ]
    others = any(row["kind"] == "published" for row in rows(name))
    if others:
        parts.append(published(name, known=False))
    found = {DOCS / "results.md": "\n\n".join(parts)}
    if owner(name) in (ROOT / "README.md").read_text(encoding="utf-8"):
        readme = [ours(name, ["srcc", "plcc", "rmse_calibrated"])] + [published(name, known=True)] * others
        found[ROOT / "README.md"] = "\n\n".join(readme)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Take a report, if one is named, and write all quotes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path, nargs="?", help="reports/study of a finished study")
    parser.add_argument("name", nargs="?", help="folder of results/ that it replaces")
    arguments = parser.parse_args(argv)
    if (arguments.report is None) != (arguments.name is None):
        parser.error("give the report's folder and a name, or neither")
    if arguments.report is not None:
        take(arguments.report, arguments.name)
    for folder in sorted(RESULTS.iterdir()):
        for page, text in quotes(folder.name).items():
            marked.write(page, owner(folder.name), text)


if __name__ == "__main__":
    main()
