"""The report of a study: its tables, text and figures, made from what the runs wrote.

A figure or table never stands without the backbone it was made with, a leaking row never without its leak, a published
row never without its protocol, and a mean never claims an order that its interval does not carry.

Imports pipeline.files, pipeline.plots, pipeline.published, pipeline.tables.
"""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from pipeline import plots
from pipeline.files import write_atomically
from pipeline.published import not_comparable, published_cross, published_for
from pipeline.tables import REFERENCE, Study, metrics_tree, paired_differences, read_study, shared, summarise

ABSENT = "n/a"


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
) -> list[Path]:
    """Read the study and write its report.

    Args:
        out: Folder to write: summary.csv, rounds.csv, generators.csv, differences.csv, cross.csv, curves.csv,
            timing.csv, metrics.json, summary.md, and as PNG and SVG comparison, curves-<dataset>, generators-<dataset>.
            Figures of data sets that an earlier report knew are removed; other files are left alone.
        name: Name of the study.
        datasets: Names of the study's data sets.
        methods: Variants and baselines.
        rounds: Round numbers.
        generated: Those of the data sets that the project makes itself.
        runs: Folder of `<dataset>/<method>/round-<r>/{train,evaluate}`.
        splits: Folder of `<dataset>/audit.json`.
        prepared: Folder of `<dataset>/card.json`.

    Returns:
        The files written, sorted. The same runs give the same bytes in all of them; timing.csv tells how long the
        trainings took and so differs where they were run again.

    Raises:
        FileNotFoundError: If a named run, audit or card is not there.
        ValueError: If a file does not fit its place; see `pipeline.tables.read_study`.
    """
    out = Path(out)
    study = read_study(datasets, methods, rounds, runs, splits, prepared)
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
    texts = {file: table.to_csv(index=False, na_rep=ABSENT, float_format="%.6g") for file, table in tables.items()}
    texts["metrics.json"] = json.dumps(metrics_tree(summary), indent=2, allow_nan=False) + "\n"
    texts["summary.md"] = markdown(study, summary, differences, name, generated)
    for file, text in texts.items():
        write_atomically(out / file, text.encode())
    written = [*(out / file for file in texts), *_draw(out, study, summary)]
    for pattern in ("curves-*.png", "curves-*.svg", "generators-*.png", "generators-*.svg"):
        for stale in set(out.glob(pattern)) - set(written):
            stale.unlink()
    return sorted(written)


def markdown(
    study: Study, summary: pd.DataFrame, differences: pd.DataFrame, name: str, generated: Sequence[str] = ()
) -> str:
    """Return the report's text, ready for a README. Pictures are named as `write_report` names them.

    Args:
        study: The study.
        summary: Result of `pipeline.tables.summarise`.
        differences: Result of `pipeline.tables.paired_differences`.
        name: Name of the study, for the title.
        generated: Those of the data sets that the project makes itself.
    """
    parts = [
        f"# Study: {name}",
        _protocol(study.rounds),
        f"![SRCC of every method: rounds, mean and 95 % interval. {_caption(summary)}](comparison.png)",
    ]
    for dataset in dict.fromkeys(summary["dataset"]):
        rows = summary[summary["dataset"] == dataset]
        ours = differences[differences["dataset"] == dataset]
        target = study.rounds.loc[study.rounds["dataset"] == dataset, "target"].iloc[0]
        parts += [f"## {dataset}", _data_line(study, dataset, target), _audit_line(study, dataset), _method_table(rows)]
        parts += [overlap_sentence(rows), *_caveats(rows, dataset in generated)]
        if not ours.empty:
            parts += [f"### {dataset}: against `{REFERENCE}`, paired by round", *_difference_part(ours, rows)]
        parts += [f"### {dataset}: by generator", *_generator_part(study, rows, dataset)]
        if (study.history["dataset"] == dataset).any():
            trained = rows[rows["kind"] != "baseline"]
            parts += [f"### {dataset}: training", f"![SRCC by epoch. {_caption(trained)}](curves-{dataset}.png)"]
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
    text = f"Highest mean SRCC: `{best['method']}`, {_figure(best['srcc_mean'])}"
    others = clean[clean["method"] != best["method"]]
    if others.empty:
        return f"{text}; there is no other row without leaks to compare it with."
    below = others["srcc_high"] < best["srcc_low"]
    apart, meets = list(others.loc[below, "method"]), list(others.loc[~below, "method"])
    text += f". Its 95 % interval, {_interval(best['srcc_low'], best['srcc_high'])}, "
    if not meets:
        return f"{text}lies above {_that(apart)} of {_names(apart)}."
    text += f"overlaps {_that(meets)} of {_names(meets)}, so these intervals do not put it ahead of {_them(meets)}"
    return f"{text}; it lies above {_that(apart)} of {_names(apart)}." if apart else f"{text}."


# Parts of the text


def _protocol(rounds: pd.DataFrame) -> str:
    numbers = sorted(set(rounds["round"]))
    rules = {
        "grouped": "no generation prompt and no image stands in two subsets",
        "random": "images drawn at random, so generation prompts are shared between the subsets (leaking)",
    }
    split = "; ".join(f"`{rule}`, {rules.get(rule, 'unknown')}" for rule in dict.fromkeys(rounds["split_rule"]))
    selections = " and ".join(name for name in dict.fromkeys(rounds["select_on"]) if isinstance(name, str))
    count = f"{len(numbers)} round{'s' if len(numbers) > 1 else ''}"
    text = (
        f"{count} ({', '.join(str(number) for number in numbers)}), each a split of its own. Split rule: {split}. "
        + (f"The epoch is chosen on {selections}{' (leaking)' if 'test' in selections else ''}. " if selections else "")
        + "PLCC and RMSE are taken after "
        "the logistic fit; RMSE is in units of the MOS. "
    )
    if len(numbers) == 1:
        return (
            f"{text}One round has no spread over rounds: std is n/a, and the 95 % interval of SRCC is a bootstrap over "
            "the test images' prompt groups."
        )
    return (
        f"{text}± is the standard deviation over the rounds (n - 1). The 95 % interval of the mean SRCC is a t "
        "interval over the rounds, widened because the rounds share images (Nadeau and Bengio, 2003)."
    )


def _data_line(study: Study, dataset: str, target: str) -> str:
    rounds = study.rounds[study.rounds["dataset"] == dataset]
    first = rounds.iloc[0]
    names = study.generators.loc[study.generators["dataset"] == dataset, "generator"].nunique()
    images = f"{first['train_images']:,} images to train, {first['validation_images']:,} to validate"
    return (
        f"Target: {target} MOS{_scale(study.cards[dataset])}. {images} and {first['test_images']:,} to test in round "
        f"{first['round']}, from {names} generator{'s' if names > 1 else ''}."
    )


def _audit_line(study: Study, dataset: str) -> str:
    audit = study.audits[dataset]
    numbers = sorted(set(study.rounds.loc[study.rounds["dataset"] == dataset, "round"]))
    counts = [shared(audit, number) for number in numbers]
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
    random = audit.get("random_rule_would_share", {})
    pairs = [random[str(number)] for number in numbers if str(number) in random]
    if pairs:
        prompts, images = (_range(pair[key] for pair in pairs) for key in ("shared_prompts", "shared_images"))
        text += f" A random split would share {prompts} prompts and {images} identical images."
    return text


def _method_table(rows: pd.DataFrame) -> str:
    able = rows[(rows["leaks"] == "") & (rows["kind"] != "control")]
    best = None if able.empty else able["srcc_mean"].idxmax()
    header = ["Method", "Backbone", "SRCC", "median", "95 % interval", "PLCC", "KRCC", "RMSE", "Rounds", "Epoch"]
    header.append("Remarks")
    lines = []
    for index, row in rows.sort_values("srcc_mean", ascending=False, kind="stable").iterrows():
        srcc = _spread(row["srcc_mean"], row["srcc_std"])
        lines.append(
            [
                f"`{row['method']}`",
                row["backbone"],
                f"**{srcc}**" if index == best else srcc,
                _figure(row["srcc_median"]),
                _interval(row["srcc_low"], row["srcc_high"]),
                *(_spread(row[f"{metric}_mean"], row[f"{metric}_std"]) for metric in ("plcc", "krcc", "rmse")),
                str(row["rounds"]),
                ABSENT if math.isnan(row["selected_epoch_mean"]) else f"{row['selected_epoch_mean']:.1f}",
                _remarks(row),
            ]
        )
    return _table(header, lines, right=range(2, 10))


def _caveats(rows: pd.DataFrame, generated: bool) -> list[str]:
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


def _difference_part(ours: pd.DataFrame, rows: pd.DataFrame) -> list[str]:
    header = ["Method", "mean difference", "smallest to largest", "95 % interval", "Rounds ahead", "Remarks"]
    lines = [
        [
            f"`{row['method']}`",
            f"{_figure(row['difference_mean'], '+')}",
            f"{_figure(row['difference_min'], '+')} to {_figure(row['difference_max'], '+')}",
            _interval(row["low"], row["high"], "+"),
            f"{row['rounds_better']} of {row['rounds']}",
            _remarks(row),
        ]
        for row in ours.to_dict("records")
    ]
    backbones = rows.loc[rows["method"].isin([*ours["method"], REFERENCE])]
    note = f"{_backbones(backbones)}. Negative: behind `{REFERENCE}`."
    if len(ours) and int(ours["rounds"].max()) > 1:
        note += " An interval that contains 0 shows no difference in either direction."
    return [_table(header, lines, right=range(1, 5)), note]


def _generator_part(study: Study, rows: pd.DataFrame, dataset: str) -> list[str]:
    table = study.generators[study.generators["dataset"] == dataset]
    methods = list(rows["method"])
    lines = []
    order = table.groupby("generator")["mos_mean"].mean().sort_values(ascending=False, kind="stable").index
    for name in order:
        group = table[table["generator"] == name]
        per_round = group.drop_duplicates("round")
        srcc = group.groupby("method")["srcc"].mean()
        cells = [_figure(srcc.get(method, math.nan)) for method in methods]
        lines.append([name, f"{per_round['n'].mean():.0f}", _figure(per_round["mos_mean"].mean()), *cells])
    header = ["Generator", "images a round", "mean MOS", *(f"`{method}`" for method in methods)]
    return [
        f"SRCC among the test images of one generator, mean over the rounds. {_caption(rows)}.",
        _table(header, lines, right=range(1, len(header))),
        f"![Mean prediction against mean MOS of each generator on {dataset}. {_caption(rows)}]"
        f"(generators-{dataset}.png)",
    ]


def _published_part(rows: pd.DataFrame, dataset: str, target: str, generated: Sequence[str]) -> list[str]:
    if dataset in generated:
        return ["None: the project makes this data set itself."]
    known = published_for(dataset, target)
    if not known:
        return [f"No published row for {target} on {dataset} is known to this report."]
    origins, leaks = list(rows["backbone_origin"]), _leaks(rows)
    lines = [
        [
            row.method,
            str(row.year or ABSENT),
            f"{row.srcc:.4f}",
            f"{row.plcc:.4f}",
            row.protocol + (f" ({row.note})" if row.note else ""),
            f"{row.source} [{row.tag}]",
            _comparable(not_comparable(row.split, row.selection, origins, leaks)),
        ]
        for row in known
    ]
    notes = "[V]: read in the named source or computed from its files; [2nd]: quoted by a third party."
    if dataset in ("agiqa3k", "aigciqa2023") and target == "quality":
        notes += " The paper's own figures for DCMPLN could not be found in public sources, so it has no row."
    header = ["Method", "Year", "SRCC", "PLCC", "Protocol it really used", "Source", "Comparable with our rows"]
    able = rows[(rows["leaks"] == "") & (rows["kind"] != "control")]
    intro = f"Our rows: {_caption(rows)}."
    if not able.empty:
        best = able.loc[able["srcc_mean"].idxmax()]
        srcc, plcc = (_spread(best[f"{metric}_mean"], best[f"{metric}_std"]) for metric in ("srcc", "plcc"))
        intro = (
            f"Our row of the highest mean SRCC, for reference: `{best['method']}`, SRCC {srcc}, PLCC {plcc}; backbone "
            f"{best['backbone']}; protocol prompt-disjoint"
            f"{', best epoch on validation' if best['kind'] == 'variant' else ''}."
        )
    return [intro, _table(header, lines, right=range(1, 4)), notes]


def _cross_part(study: Study, summary: pd.DataFrame) -> list[str]:
    header = ["Method", "Backbone", "Trained on", "Tested on", "SRCC", "PLCC", "KRCC", "RMSE", "Rounds", "Remarks"]
    lines = []
    for (dataset, method, other), group in study.cross.groupby(["dataset", "method", "tested_on"], sort=False):
        row = summary[(summary["dataset"] == dataset) & (summary["method"] == method)].iloc[0]
        spreads = [_spread(group[m].mean(), group[m].std(ddof=1)) for m in ("srcc", "plcc", "krcc", "rmse")]
        lines.append([f"`{method}`", row["backbone"], dataset, other, *spreads, str(len(group)), _remarks(row)])
    parts = [_table(header, lines, right=range(4, 9))]
    origins, leaks = list(summary["backbone_origin"]), _leaks(summary)
    published = [
        [
            row.method,
            str(row.year or ABSENT),
            row.trained_on,
            row.tested_on,
            f"{row.srcc:.3f}",
            row.protocol,
            f"{row.source} [{row.tag}]",
            _comparable(not_comparable(row.split, row.selection, origins, leaks)),
        ]
        for row in published_cross(list(dict.fromkeys(summary["dataset"])))
    ]
    if published and set(study.rounds["target"]) == {"quality"}:
        header = ["Method", "Year", "Trained on", "Tested on", "SRCC", "Protocol", "Source", "Comparable with our rows"]
        parts += ["Published, quality:", _table(header, published, right=(1, 4))]
    return parts


# Figures


def _draw(out: Path, study: Study, summary: pd.DataFrame) -> list[Path]:
    jobs = [("comparison", "")]
    jobs += [("curves", dataset) for dataset in dict.fromkeys(study.history["dataset"])]
    jobs += [("generators", dataset) for dataset in dict.fromkeys(study.generators["dataset"])]
    written = []
    for kind, dataset in tqdm(jobs, desc="drawing figures", unit="figure"):
        paths = [out / f"{kind}{'-' if dataset else ''}{dataset}{suffix}" for suffix in (".png", ".svg")]
        rows = summary[summary["dataset"] == dataset] if dataset else summary
        if kind == "comparison":
            plots.comparison(summary, study.rounds, paths, f"SRCC on the test images\n{_caption(rows)}")
        elif kind == "curves":
            history = study.history[study.history["dataset"] == dataset]
            chosen = study.rounds[study.rounds["dataset"] == dataset]
            trained = rows[rows["method"].isin(history["method"])]
            plots.training_curves(history, chosen, paths, f"{dataset}: SRCC by epoch\n{_caption(trained)}")
        else:
            table = study.generators[study.generators["dataset"] == dataset]
            means = table.groupby(["method", "generator"], sort=False)[["mos_mean", "fitted_mean"]].mean().reset_index()
            target = study.rounds.loc[study.rounds["dataset"] == dataset, "target"].iloc[0]
            label = f"{target} MOS{_scale(study.cards[dataset])}"
            title = f"{dataset}: mean prediction against mean MOS, by generator\n{_caption(rows)}"
            plots.generators(means, paths, title, label)
        written += paths
    return written


# Words and cells


def _backbones(rows: pd.DataFrame) -> str:
    names = [name for name in dict.fromkeys(rows["backbone"]) if name != "none"]
    if not names:
        return "No backbone"
    without = list(rows.loc[rows["backbone"] == "none", "method"].drop_duplicates())
    text = f"Backbone{'s' if len(names) > 1 else ''}: {'; '.join(names)}"
    return text + (f" (none in {', '.join(without)})" if without else "")


def _caption(rows: pd.DataFrame) -> str:
    """The backbone, and the leaks if any: what must stand wherever a result is shown."""
    leaking = rows[rows["leaks"] != ""]
    every = len(leaking) == len(rows) > 1
    methods = "every row" if every else ", ".join(dict.fromkeys(leaking["method"]))
    return _backbones(rows) + (f". LEAKS in {methods}: {'; '.join(_leaks(rows))}" if methods else "")


def _scale(card: dict[str, Any]) -> str:
    low, high = card.get("mos_low"), card.get("mos_high")
    return "" if low is None or high is None else f" ({low:g} to {high:g})"


def _leaks(rows: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(leak for leaks in rows["leaks"] for leak in leaks.split("; ") if leak))


def _remarks(row: "pd.Series | dict[str, Any]") -> str:
    words = {"control": "control: trained on shuffled labels", "baseline": "baseline"}
    remarks = [f"**LEAKS**: {row['leaks']}"] if row["leaks"] else []
    return "; ".join([*remarks, *([words[row["kind"]]] if row["kind"] in words else [])])


def _comparable(reasons: list[str]) -> str:
    return f"no: {', '.join(reasons)}" if reasons else "yes"


def _figure(value: float, sign: str = "") -> str:
    if math.isnan(value):
        return ABSENT
    return f"{round(float(value), 3) + 0.0:{sign}.3f}"  # + 0.0 turns -0.0 into 0.0


def _spread(mean: float, std: float) -> str:
    return f"{_figure(mean)} ± {_figure(std)}"


def _interval(low: float, high: float, sign: str = "") -> str:
    return ABSENT if math.isnan(low) or math.isnan(high) else f"[{_figure(low, sign)}, {_figure(high, sign)}]"


def _range(values: Iterable[int]) -> str:
    ordered = sorted(values)
    return f"{ordered[0]:,}" if ordered[0] == ordered[-1] else f"{ordered[0]:,} to {ordered[-1]:,}"


def _names(methods: Iterable[str]) -> str:
    quoted = [f"`{method}`" for method in methods]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def _that(methods: list[str]) -> str:
    return "that" if len(methods) == 1 else "those"


def _them(methods: list[str]) -> str:
    return "it" if len(methods) == 1 else "them"


def _table(header: list[str], lines: list[list[str]], right: Iterable[int] = ()) -> str:
    """A Markdown table; `right` lists the columns to align right."""
    right = set(right)
    rule = ["---:" if column in right else "---" for column in range(len(header))]
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in (header, *lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (cells[0], rule, *cells[1:]))
