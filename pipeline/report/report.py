"""The report of a study: its tables, text and figures, made from what the runs wrote.

What it says stands once, and is written as a page that needs no network and as Markdown; every table of it also stands
alone as CSV, Markdown and LaTeX.
A file of a figure or table never stands without the backbone it was made with, which the page names once for all; a
leaking row never without its leak, a published row never without its protocol, and a mean never claims an order that
its interval does not carry.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from pipeline.files import write_atomically
from pipeline.report import (
    chart,
    cost,
    figures,
    formats,
    page,
    published,
    sections,
    significance,
    tables,
    text,
    words,
    worth,
)
from pipeline.report.results import Results, read_results
from pipeline.report.summaries import metrics_tree, paired_differences, summarise

OURS = ("comparison", "cross", "curves", "generators", "outcomes", "scatter", "band", "calibration", "residuals")


def write_report(
    out: str | Path,
    name: str,
    datasets: Sequence[str],
    methods: Sequence[str],
    rounds: Sequence[int],
    *,
    generated: Sequence[str] = (),
    runs: str | Path = "runs",
    splits: str | Path = "data/splits",
    prepared: str | Path = "data/prepared",
    audited: Sequence[str] = (),
    lock: str | None = None,
    citation: str | None = None,
) -> list[Path]:
    """Read the study and write its report.

    Args:
        out: Folder to write. index.html, the page; summary.md, the same as Markdown; tables/, their tables as CSV,
            Markdown and LaTeX; plots/, the mean curve of each variant for DVC's viewers; summary.csv, rounds.csv,
            generators.csv, differences.csv, cross.csv, curves.csv, timing.csv, metrics.json; srcc.json, the few of its
            numbers that fit `dvc exp show`; and the figures as PNG and SVG. Figures and tables of data sets that an
            earlier report knew are removed; other files are left alone.
        name: Name of the study.
        datasets: Names of the study's data sets.
        methods: Variants and baselines.
        rounds: Round numbers.
        generated: Those of the data sets that the project makes itself.
        runs: Folder of `<dataset>/<method>/round-<r>/{train,evaluate}`.
        splits: Folder of `<dataset>/audit.json`.
        prepared: Folder of `<dataset>/card.json`.
        audited: The variants whose leaks the study measures.
        lock: From `pipeline.report.citation.lock_md5`.
        citation: Text of CITATION.cff.

    Returns:
        The files written, sorted. The same runs give the same bytes in all of them; timing.csv, the table of costs, the
        page and summary.md tell how long the trainings took and so differ where they were run again.

    Raises:
        FileNotFoundError: If a named run, split audit or card is not there.
        StudyError: If a file does not fit its place; see `pipeline.report.results.read_results`.
    """
    out = Path(out)
    results = read_results(datasets, methods, rounds, runs, splits, prepared, audited)
    summary, differences = summarise(results.runs), paired_differences(results.runs)
    tables = {
        "summary.csv": summary,
        "rounds.csv": results.runs,
        "generators.csv": results.generators,
        "differences.csv": differences,
        "cross.csv": results.cross,
        "curves.csv": results.history,
        "timing.csv": results.timing,
    }
    texts = {file: table.to_csv(index=False, float_format="%.6g") for file, table in tables.items()}
    texts |= {
        f"plots/{dataset}-{method}.csv": rows.to_csv(index=False, float_format="%.6g")
        for dataset, method, rows in mean_curves(results.history)
    }
    numbers = metrics_tree(summary)
    texts["metrics.json"] = json.dumps(numbers, indent=2, allow_nan=False) + "\n"
    srcc = {
        dataset: {method: round(row["srcc"], 4) for method, row in rows.items() if "srcc" in row}
        for dataset, rows in numbers.items()
    }
    texts["srcc.json"] = json.dumps(srcc, indent=2, allow_nan=False) + "\n"
    evidence = {dataset: _evidence(results, dataset) for dataset in tqdm(datasets, "testing", unit="data set")}
    shown = _tables(results, summary, differences, evidence, generated)
    for table in shown:
        kinds = (("csv", formats.csv), ("md", formats.markdown), ("tex", formats.latex))
        texts |= {f"tables/{table.name}.{suffix}": write(table) for suffix, write in kinds}
    charts = [_chart(results, summary, dataset, dataset in generated) for dataset in datasets]
    drawn = figures.draw(out, results, summary, {dataset: found.pairs for dataset, found in evidence.items()}, charts)
    about = {"generated": generated, "audited": audited, "lock": lock, "citation": citation}
    said, badge = sections.arrange(results, summary, evidence, shown, drawn, charts, **about), words.backbones(summary)
    texts |= {"index.html": page.render(out, name, badge, said), "summary.md": text.render(name, badge, said)}
    for file, content in texts.items():
        write_atomically(out / file, content.encode())
    written = [out / file for file in texts] + [out / f"{f.name}{suffix}" for f in drawn for suffix in (".png", ".svg")]
    patterns = [f"{kind}{end}" for kind in OURS for end in (".png", ".svg", "-*.png", "-*.svg")]
    for pattern in (*patterns, "plots/*.csv", *(f"tables/*.{suffix}" for suffix in ("csv", "md", "tex"))):
        for stale in set(out.glob(pattern)) - set(written):
            stale.unlink()
    return sorted(written)


def _evidence(results: Results, dataset: str) -> significance.Evidence:
    predictions = results.predictions[results.predictions["dataset"] == dataset]
    runs = results.runs[results.runs["dataset"] == dataset]
    estimates = significance.leave_out(predictions)
    return significance.Evidence(estimates, significance.compare(runs, estimates))


def _chart(results: Results, summary: pd.DataFrame, dataset: str, generated: bool) -> chart.Chart:
    target = results.runs.loc[results.runs["dataset"] == dataset, "target"].iloc[0]
    others = [] if generated else published.published_for(dataset, target)
    return chart.chart_of(summary[summary["dataset"] == dataset], results.runs, others)


def mean_curves(history: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
    """Return data set, variant, and its epochs' train_srcc and validation_srcc, mean over the rounds that got there."""
    columns = ["train_srcc", "validation_srcc"]
    return [
        (str(dataset), str(method), rows.groupby("epoch", as_index=False)[columns].mean())
        for (dataset, method), rows in history.groupby(["dataset", "method"], sort=False)
    ]


def _tables(
    results: Results,
    summary: pd.DataFrame,
    differences: pd.DataFrame,
    evidence: dict[str, significance.Evidence],
    generated: Sequence[str],
) -> list[formats.Table]:
    found: list[formats.Table | None] = []
    for dataset, (estimates, pairs) in evidence.items():
        rows = summary[summary["dataset"] == dataset]
        target = results.runs.loc[results.runs["dataset"] == dataset, "target"].iloc[0]
        found.append(tables.main_table(results, rows, estimates, target, dataset in generated))
        found.append(None if pairs.empty else tables.tests_table(pairs, rows))
        found.append(
            tables.ablation_table(rows, differences[differences["dataset"] == dataset], pairs, results.settings)
        )
        found += tables.generator_tables(results, rows)
        found += worth.score_tables(results, rows)
    found += tables.leak_tables(results, summary)
    found += [tables.cross_table(results, summary), cost.cost_table(results, summary), tables.settings_table(results)]
    return [tables.trimmed(table) for table in found if table is not None]
