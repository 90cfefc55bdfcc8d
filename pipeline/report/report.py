"""The report of a study: its tables, text and figures, made from what the runs wrote.

Besides text for a README there is one page that needs no network, and every table of it as CSV, Markdown and LaTeX.
A figure or table never stands without the backbone it was made with, a leaking row never without its leak, a published
row never without its protocol, and a mean never claims an order that its interval does not carry.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from pipeline.files import write_atomically
from pipeline.report import figures, formats, page, significance, tables, words
from pipeline.report.published import not_comparable, published_cross, published_for
from pipeline.report.results import Study, read_study
from pipeline.report.summaries import REFERENCE, metrics_tree, paired_differences, summarise

OURS = ("comparison", "cross", "curves", "generators", "outcomes", "scatter", "calibration", "residuals")


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
    audit: Sequence[str] = (),
    lock: str | None = None,
    citation: str | None = None,
) -> list[Path]:
    """Read the study and write its report.

    Args:
        out: Folder to write. index.html, the page; tables/, its tables as CSV, Markdown and LaTeX; summary.md, text for
            a README; plots/, the mean curve of each variant for DVC's viewers; summary.csv, rounds.csv,
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
        audit: The variants whose leaks the study measures.
        lock: From `pipeline.report.citation.lock_md5`.
        citation: Text of CITATION.cff.

    Returns:
        The files written, sorted. The same runs give the same bytes in all of them; timing.csv, the table of costs and
        the page tell how long the trainings took and so differ where they were run again.

    Raises:
        FileNotFoundError: If a named run, audit or card is not there.
        ValueError: If a file does not fit its place; see `pipeline.report.results.read_study`.
    """
    out = Path(out)
    study = read_study(datasets, methods, rounds, runs, splits, prepared, audit)
    summary, differences = summarise(study.rounds), paired_differences(study.rounds)
    tables = {
        "summary.csv": summary,
        "rounds.csv": study.rounds,
        "generators.csv": study.generators,
        "differences.csv": differences,
        "cross.csv": study.cross,
        "curves.csv": study.history,
        "timing.csv": study.timing,
    }
    texts = {
        file: table.to_csv(index=False, na_rep=words.ABSENT, float_format="%.6g") for file, table in tables.items()
    }
    texts |= {
        f"plots/{dataset}-{method}.csv": rows.to_csv(index=False, float_format="%.6g")
        for dataset, method, rows in mean_curves(study.history)
    }
    numbers = metrics_tree(summary)
    texts["metrics.json"] = json.dumps(numbers, indent=2, allow_nan=False) + "\n"
    srcc = {
        dataset: {method: round(row["srcc"], 4) for method, row in rows.items()} for dataset, rows in numbers.items()
    }
    texts["srcc.json"] = json.dumps(srcc, indent=2, allow_nan=False) + "\n"
    texts["summary.md"] = markdown(study, summary, differences, name, generated)
    evidence = {dataset: _evidence(study, dataset) for dataset in tqdm(datasets, "resampling", unit="data set")}
    shown = _tables(study, summary, differences, evidence, generated)
    for table in shown:
        kinds = (("csv", formats.csv), ("md", formats.markdown), ("tex", formats.latex))
        texts |= {f"tables/{table.name}.{suffix}": write(table) for suffix, write in kinds}
    drawn = figures.draw(out, study, summary, {dataset: found.pairs for dataset, found in evidence.items()})
    hashes = {"lock": lock, "citation": citation}
    texts["index.html"] = page.render(
        out, name, study, summary, evidence, shown, drawn, generated=generated, audit=audit, **hashes
    )
    for file, text in texts.items():
        write_atomically(out / file, text.encode())
    written = [out / file for file in texts] + [out / f"{f.name}{suffix}" for f in drawn for suffix in (".png", ".svg")]
    patterns = [f"{kind}{end}" for kind in OURS for end in (".png", ".svg", "-*.png", "-*.svg")]
    for pattern in (*patterns, "plots/*.csv", *(f"tables/*.{suffix}" for suffix in ("csv", "md", "tex"))):
        for stale in set(out.glob(pattern)) - set(written):
            stale.unlink()
    return sorted(written)


def markdown(
    study: Study, summary: pd.DataFrame, differences: pd.DataFrame, name: str, generated: Sequence[str] = ()
) -> str:
    """Return the report's text, ready for a README. Pictures are named as `write_report` names them.

    Args:
        study: The study.
        summary: Result of `pipeline.report.summaries.summarise`.
        differences: Result of `pipeline.report.summaries.paired_differences`.
        name: Name of the study, for the title.
        generated: Those of the data sets that the project makes itself.
    """
    parts = [
        f"# Study: {name}",
        words.protocol(study.rounds),
        f"![SRCC of every method: rounds, mean and 95 % interval. {words.caption(summary)}](comparison.png)",
    ]
    for dataset in dict.fromkeys(summary["dataset"]):
        rows = summary[summary["dataset"] == dataset]
        ours = differences[differences["dataset"] == dataset]
        target = study.rounds.loc[study.rounds["dataset"] == dataset, "target"].iloc[0]
        parts += [
            f"## {dataset}",
            words.data_line(study, dataset, target),
            words.audit_line(study, dataset),
            _method_table(rows),
        ]
        parts += [overlap_sentence(rows), *words.caveats(rows, dataset in generated)]
        if not ours.empty:
            parts += [f"### {dataset}: against `{REFERENCE}`, paired by round", *_difference_part(ours, rows)]
        parts += [f"### {dataset}: by generator", *_generator_part(study, rows, dataset)]
        if (study.history["dataset"] == dataset).any():
            trained = rows[rows["kind"] != "baseline"]
            parts += [f"### {dataset}: training", f"![SRCC by epoch. {words.caption(trained)}](curves-{dataset}.png)"]
        parts += [f"### {dataset}: published results, {target}", *_published_part(rows, dataset, target, generated)]
    if not study.cross.empty:
        parts += ["## Trained on one data set, tested on another", *_cross_part(study, summary)]
    return "\n\n".join(parts) + "\n"


def overlap_sentence(summary: pd.DataFrame) -> str:
    """Say in plain words which clean method has the best mean SRCC and whose intervals overlap its own.

    Args:
        summary: Rows of one data set. Leaking rows and shuffled-label controls can't be best.
    """
    clean = summary[summary["leaks"] == ""]
    able = clean[clean["kind"] != "control"]
    if able.empty:
        return "No row is free of leaks, so none is named best."
    best = able.loc[able["srcc_mean"].idxmax()]
    text = f"Highest mean SRCC: `{best['method']}`, {words.figure(best['srcc_mean'])}"
    others = clean[clean["method"] != best["method"]]
    if others.empty:
        return f"{text}; there is no other row without leaks to compare it with."
    below = others["srcc_high"] < best["srcc_low"]
    apart, meets = list(others.loc[below, "method"]), list(others.loc[~below, "method"])
    text += f". Its 95 % interval, {words.interval(best['srcc_low'], best['srcc_high'])}, "
    if not meets:
        return f"{text}lies above {_that(apart)} of {words.listed(apart)}."
    text += (
        f"overlaps {_that(meets)} of {words.listed(meets)}, so these intervals do not put it ahead of {_them(meets)}"
    )
    return f"{text}; it lies above {_that(apart)} of {words.listed(apart)}." if apart else f"{text}."


# Parts of the text


def _method_table(rows: pd.DataFrame) -> str:
    able = rows[(rows["leaks"] == "") & (rows["kind"] != "control")]
    best = None if able.empty else able["srcc_mean"].idxmax()
    header = ["Method", "Backbone", "SRCC", "median", "95 % interval", "PLCC", "KRCC", "RMSE", "Rounds", "Epoch"]
    header.append("Remarks")
    lines = []
    for index, row in rows.sort_values("srcc_mean", ascending=False, kind="stable").iterrows():
        srcc = words.spread(row["srcc_mean"], row["srcc_std"])
        lines.append(
            [
                f"`{row['method']}`",
                row["backbone"],
                f"**{srcc}**" if index == best else srcc,
                words.figure(row["srcc_median"]),
                words.interval(row["srcc_low"], row["srcc_high"]),
                *(words.spread(row[f"{metric}_mean"], row[f"{metric}_std"]) for metric in ("plcc", "krcc", "rmse")),
                str(row["rounds"]),
                words.ABSENT if math.isnan(row["selected_epoch_mean"]) else f"{row['selected_epoch_mean']:.1f}",
                words.remarks(row),
            ]
        )
    return words.markdown_table(header, lines, right=range(2, 10))


def _difference_part(ours: pd.DataFrame, rows: pd.DataFrame) -> list[str]:
    header = ["Method", "mean difference", "smallest to largest", "95 % interval", "Rounds ahead", "Remarks"]
    lines = [
        [
            f"`{row['method']}`",
            f"{words.figure(row['difference_mean'], '+')}",
            f"{words.figure(row['difference_min'], '+')} to {words.figure(row['difference_max'], '+')}",
            words.interval(row["low"], row["high"], "+"),
            f"{row['rounds_better']} of {row['rounds']}",
            words.remarks(row),
        ]
        for row in ours.to_dict("records")
    ]
    backbones = rows.loc[rows["method"].isin([*ours["method"], REFERENCE])]
    note = f"{words.backbones(backbones)}. Negative: behind `{REFERENCE}`."
    if len(ours) and int(ours["rounds"].max()) > 1:
        note += " An interval that contains 0 shows no difference in either direction."
    return [words.markdown_table(header, lines, right=range(1, 5)), note]


def _generator_part(study: Study, rows: pd.DataFrame, dataset: str) -> list[str]:
    table = study.generators[study.generators["dataset"] == dataset]
    methods = list(rows["method"])
    lines = []
    order = table.groupby("generator")["mos_mean"].mean().sort_values(ascending=False, kind="stable").index
    for name in order:
        group = table[table["generator"] == name]
        per_round = group.drop_duplicates("round")
        srcc = group.groupby("method")["srcc"].mean()
        cells = [words.figure(srcc.get(method, math.nan)) for method in methods]
        lines.append([name, f"{per_round['n'].mean():.0f}", words.figure(per_round["mos_mean"].mean()), *cells])
    header = ["Generator", "images a round", "mean MOS", *(f"`{method}`" for method in methods)]
    return [
        f"SRCC among the test images of one generator, mean over the rounds. {words.caption(rows)}.",
        words.markdown_table(header, lines, right=range(1, len(header))),
        f"![Mean prediction against mean MOS of each generator on {dataset}. {words.caption(rows)}]"
        f"(generators-{dataset}.png)",
    ]


def _published_part(rows: pd.DataFrame, dataset: str, target: str, generated: Sequence[str]) -> list[str]:
    if dataset in generated:
        return ["None: the project makes this data set itself."]
    known = published_for(dataset, target)
    if not known:
        return [f"No published row for {target} on {dataset} is known to this report."]
    origins, leaks = list(rows["backbone_origin"]), words.all_leaks(rows)
    lines = [
        [
            row.method,
            str(row.year or words.ABSENT),
            f"{row.srcc:.4f}",
            f"{row.plcc:.4f}",
            row.protocol + (f" ({row.note})" if row.note else ""),
            f"{row.source} [{row.tag}]",
            words.comparable(not_comparable(row.split, row.selection, origins, leaks)),
        ]
        for row in known
    ]
    notes = "[V]: read in the named source or computed from its files; [2nd]: quoted by a third party."
    if dataset in ("agiqa3k", "aigciqa2023") and target == "quality":
        notes += " The paper's own figures for DCMPLN could not be found in public sources, so it has no row."
    header = ["Method", "Year", "SRCC", "PLCC", "Protocol it really used", "Source", "Comparable with our rows"]
    able = rows[(rows["leaks"] == "") & (rows["kind"] != "control")]
    intro = f"Our rows: {words.caption(rows)}."
    if not able.empty:
        best = able.loc[able["srcc_mean"].idxmax()]
        srcc, plcc = (words.spread(best[f"{metric}_mean"], best[f"{metric}_std"]) for metric in ("srcc", "plcc"))
        intro = (
            f"Our row of the highest mean SRCC, for reference: `{best['method']}`, SRCC {srcc}, PLCC {plcc}; backbone "
            f"{best['backbone']}; protocol prompt-disjoint"
            f"{', best epoch on validation' if best['kind'] == 'variant' else ''}."
        )
    return [intro, words.markdown_table(header, lines, right=range(1, 4)), notes]


def _cross_part(study: Study, summary: pd.DataFrame) -> list[str]:
    header = ["Method", "Backbone", "Trained on", "Tested on", "SRCC", "PLCC", "KRCC", "RMSE", "Rounds", "Remarks"]
    lines = []
    for (dataset, method, other), group in study.cross.groupby(["dataset", "method", "tested_on"], sort=False):
        row = summary[(summary["dataset"] == dataset) & (summary["method"] == method)].iloc[0]
        spreads = [words.spread(group[m].mean(), group[m].std(ddof=1)) for m in ("srcc", "plcc", "krcc", "rmse")]
        lines.append([f"`{method}`", row["backbone"], dataset, other, *spreads, str(len(group)), words.remarks(row)])
    parts = [words.markdown_table(header, lines, right=range(4, 9))]
    origins, leaks = list(summary["backbone_origin"]), words.all_leaks(summary)
    published = [
        [
            row.method,
            str(row.year or words.ABSENT),
            row.trained_on,
            row.tested_on,
            f"{row.srcc:.3f}",
            row.protocol,
            f"{row.source} [{row.tag}]",
            words.comparable(not_comparable(row.split, row.selection, origins, leaks)),
        ]
        for row in published_cross(list(dict.fromkeys(summary["dataset"])))
    ]
    if published and set(study.rounds["target"]) == {"quality"}:
        header = ["Method", "Year", "Trained on", "Tested on", "SRCC", "Protocol", "Source", "Comparable with our rows"]
        parts += ["Published, quality:", words.markdown_table(header, published, right=(1, 4))]
    return parts


# What the page shows


def _evidence(study: Study, dataset: str) -> significance.Evidence:
    predictions = study.predictions[study.predictions["dataset"] == dataset]
    rounds = study.rounds[study.rounds["dataset"] == dataset]
    draws = significance.resample(predictions, significance.enough(predictions["method"].nunique()))
    return significance.Evidence(draws, significance.compare(rounds, draws))


def mean_curves(history: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
    """Return data set, variant, and its epochs' train_srcc and validation_srcc, mean over the rounds that got there."""
    columns = ["train_srcc", "validation_srcc"]
    return [
        (str(dataset), str(method), rows.groupby("epoch", as_index=False)[columns].mean())
        for (dataset, method), rows in history.groupby(["dataset", "method"], sort=False)
    ]


def _tables(
    study: Study,
    summary: pd.DataFrame,
    differences: pd.DataFrame,
    evidence: dict[str, significance.Evidence],
    generated: Sequence[str],
) -> list[formats.Table]:
    found: list[formats.Table | None] = []
    for dataset, (draws, pairs) in evidence.items():
        rows = summary[summary["dataset"] == dataset]
        target = study.rounds.loc[study.rounds["dataset"] == dataset, "target"].iloc[0]
        found.append(tables.main_table(study, rows, draws, target, dataset in generated))
        found.append(None if pairs.empty else tables.tests_table(pairs, rows))
        found.append(tables.ablation_table(rows, differences[differences["dataset"] == dataset], pairs, study.settings))
        found += tables.generator_tables(study, rows)
    found += tables.leak_tables(study, summary)
    found += [tables.cross_table(study, summary), tables.cost_table(study, summary), tables.settings_table(study)]
    return [tables.trimmed(table) for table in found if table is not None]


def _that(methods: list[str]) -> str:
    return "that" if len(methods) == 1 else "those"


def _them(methods: list[str]) -> str:
    return "it" if len(methods) == 1 else "them"
