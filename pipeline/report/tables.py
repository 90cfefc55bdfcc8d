"""The tables of a report: each with its numbers, the cells that readers see, and what its rows must be marked with.

One table serves the page, CSV, Markdown and LaTeX, so that they cannot disagree. Cells are plain text; a row that leaks
says so in its remarks wherever it is written.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pipeline import jackknife
from pipeline.layout import rated_by
from pipeline.report import words
from pipeline.report.formats import Table
from pipeline.report.published import (
    BEST_ON_TEST,
    ON_VALIDATION,
    PROMPT_DISJOINT,
    RANDOM,
    fits,
    not_comparable,
    published_cross,
    published_for,
)
from pipeline.report.results import Results
from pipeline.report.significance import METRICS, against
from pipeline.report.summaries import HABITS, REFERENCE, all_leaks, generator_ranking, leak_worth

BINS = 10
PUBLISHED = "published"
# Of the main table, by metric. Three families: of raw scores, of scores fitted to test, of what a user is told.
HEADS = {
    **{"srcc": "SRCC", "krcc": "KRCC", "plcc_raw": "PLCC, raw", "plcc": "PLCC, fitted on test"},
    **{"rmse": "RMSE, fitted on test", "rmse_calibrated": "RMSE, calibrated", "mae_calibrated": "MAE, calibrated"},
}
PARTS = {"auxiliary": "Auxiliary task", "mpa": "MPA", "layer_f": "Layer F", "adapter": "Image adapter"}


def main_table(
    results: Results,
    rows: pd.DataFrame,
    estimates: dict[str, dict[str, np.ndarray]],
    target: str,
    generated: bool,
) -> Table:
    """Return every method of one data set, best mean SRCC first, and what others published on it.

    Args:
        results: What the runs wrote.
        rows: The data set's rows of `pipeline.report.summaries.summarise`.
        estimates: Of the data set, from `pipeline.report.significance.leave_out`.
        target: The MOS that is predicted.
        generated: Whether the project makes the data set itself, so that nothing can be published on it.
    """
    dataset = str(rows["dataset"].iloc[0])
    best, who = best_row(rows), rated_by(results.cards[dataset])
    lines, marks, numbers = [], [], []
    for row in rows.sort_values("srcc_mean", ascending=False, kind="stable").to_dict("records"):
        runs = results.runs[(results.runs["dataset"] == dataset) & (results.runs["method"] == row["method"])]
        values: dict[str, Any] = {"method": row["method"], "kind": row["kind"], "year": None}
        cells = []
        for metric, scale in METRICS.items():
            low, high = jackknife.interval(estimates[row["method"]][metric], scale)
            mean, std = row[f"{metric}_mean"], row[f"{metric}_std"]
            values |= {metric: mean, f"{metric}_std": std, f"{metric}_low": low, f"{metric}_high": high}
            known = not math.isnan(mean)
            cells.append(f"{words.spread(mean, std)} {words.interval(low, high)}" if known else words.ABSENT)
        values |= {"protocol": protocol_of(runs), "backbone": row["backbone"], "remarks": words.remarks(row)}
        numbers.append(values)
        lines.append([row["method"], *cells, values["protocol"], values["remarks"]])
        is_best = best is not None and row["method"] == best["method"]
        marks.append(
            "leaks" if row["leaks"] else "best" if is_best else "" if row["kind"] == "variant" else row["kind"]
        )
    origins, leaks = list(rows["backbone_origin"]), all_leaks(rows)
    others = [] if generated else published_for(dataset, target)
    for row in others:
        reasons = not_comparable(row.split, row.selection, origins, leaks)
        said = f"published{f' {row.year}' if row.year else ''}: {row.source} [{row.tag}]; "
        said += f"not comparable: {', '.join(reasons)}" if reasons else "comparable"
        said += f"; {row.note}" if row.note else ""
        values = {"method": row.method, "kind": PUBLISHED, "year": row.year, "srcc": row.srcc, "plcc": row.plcc}
        numbers.append(values | {"protocol": row.protocol, "backbone": None, "remarks": said})
        figures = {"srcc": f"{row.srcc:.4f}", "plcc": f"{row.plcc:.4f}"}
        lines.append([row.method, *(figures.get(metric, words.ABSENT) for metric in METRICS), row.protocol, said])
        marks.append(PUBLISHED)
    note = (
        "Mean ± standard deviation over the rounds; in brackets, the 95 % interval of the mean by a jackknife over the "
        "prompt groups of all rounds' test images. Raw: of the scores as they are. Fitted on test: the field's "
        "convention, after a logistic fit to the MOS of the very test images, which no user of a model has; the "
        "jackknife keeps the fit. Calibrated: of the score that a user is told, whose curve was fitted on validation "
        "images alone. RMSE and MAE are in units of the MOS."
    )
    if others:
        note += (
            " Published PLCC stands under the convention; whether such a fit came before it, as far as our sources "
            f"tell: {fits(others)}. [V]: read in the named source or computed from its files; [2nd]: quoted by a third "
            "party."
        )
    return Table(
        f"main-{dataset}",
        words.titled(f"{dataset}, {target}: agreement with {who} on the test images", rows),
        ["Method", *(HEADS[metric] for metric in METRICS), "Protocol", "Remarks"],
        lines,
        marks,
        pd.DataFrame(numbers).assign(dataset=dataset, target=target),
        note,
        words.backbones(rows),
    )


def tests_table(pairs: pd.DataFrame, rows: pd.DataFrame) -> Table:
    """Return the paired tests of one data set.

    Args:
        pairs: From `pipeline.report.significance.compare`.
        rows: The data set's rows of `pipeline.report.summaries.summarise`.
    """
    dataset = str(rows["dataset"].iloc[0])
    leaking = set(rows.loc[rows["leaks"] != "", "method"])
    lines = [
        [
            f"{row['first']} - {row['second']}",
            words.figure(row["difference"], "+"),
            words.interval(row["low"], row["high"], "+"),
            *(_p(row[key]) for key in ("p_prompts", "p_prompts_holm", "p_rounds", "p_rounds_holm")),
            words.OUTCOMES[row["outcome"]],
            ("LEAKS" if {row["first"], row["second"]} & leaking else ""),
        ]
        for row in pairs.to_dict("records")
    ]
    heads = ["Pair", "SRCC difference", "95 % over prompts", "p, prompts", "Holm", "p, rounds", "Holm", "First method"]
    heads += ["Remarks"]
    marks = ["leaks" if {row["first"], row["second"]} & leaking else "" for row in pairs.to_dict("records")]
    text = words.titled(f"{dataset}: paired tests between all methods", rows)
    note = (
        "A win or loss needs both corrected p to be at most 0.05; with the first alone, it is one on these trainings."
    )
    numbers = pairs.assign(dataset=dataset)
    return Table(f"tests-{dataset}", text, heads, lines, marks, numbers, note, words.backbones(rows))


def ablation_table(
    rows: pd.DataFrame, differences: pd.DataFrame, pairs: pd.DataFrame, settings: Mapping[str, Mapping[str, Any]]
) -> Table | None:
    """Return the variants of one data set in the paper's order against the full model; None without it or them.

    Args:
        rows: The data set's rows of `pipeline.report.summaries.summarise`.
        differences: The data set's rows of `pipeline.report.summaries.paired_differences`.
        pairs: From `pipeline.report.significance.compare`.
        settings: Of each method, its params by dotted key, for the parts that it has.
    """
    dataset = str(rows["dataset"].iloc[0])
    variants = rows[rows["kind"] == "variant"]
    if REFERENCE not in set(variants["method"]) or len(variants) < 2:
        return None
    tested = against(pairs, REFERENCE)
    known = differences.set_index("method").to_dict("index")
    lines, numbers = [], []
    for row in variants.to_dict("records"):
        method = row["method"]
        has = [settings.get(method, {}).get(f"variant.{part}") for part in PARTS]
        cells = [words.ABSENT if part is None else "yes" if part else "no" for part in has]
        cells += [words.spread(row[f"{metric}_mean"], row[f"{metric}_std"]) for metric in ("srcc", "plcc")]
        values = {"method": method, "srcc": row["srcc_mean"], "srcc_std": row["srcc_std"], "leaks": row["leaks"]}
        if method == REFERENCE:
            lines.append([method, *cells, "reference", "", "", "", words.remarks(row)])
        else:
            over, test = known[method], tested[method]
            values |= {"difference": over["difference_mean"], "rounds_low": over["low"], "rounds_high": over["high"]}
            values |= {"prompts_low": test["low"], "prompts_high": test["high"]}
            values |= {key: test[key] for key in ("p_prompts_holm", "p_rounds_holm", "outcome")}
            lines.append(
                [
                    *(method, *cells, words.figure(over["difference_mean"], "+")),
                    words.interval(over["low"], over["high"], "+"),
                    words.interval(test["low"], test["high"], "+"),
                    words.OUTCOMES[test["outcome"]],
                    words.remarks(row),
                ]
            )
        numbers.append(values)
    heads = ["Variant", *PARTS.values(), "SRCC", "PLCC", f"Difference to {REFERENCE}"]
    heads += ["95 % over rounds", "95 % over prompts"]
    return Table(
        f"ablation-{dataset}",
        words.titled(f"{dataset}: what each part of the model is worth", variants),
        [*heads, "Tests", "Remarks"],
        lines,
        ["leaks" if leaks else "" for leaks in variants["leaks"]],
        pd.DataFrame(numbers).assign(dataset=dataset),
        "Negative: behind the full model. An interval that contains 0 shows no difference in either direction. Tests: "
        "win, tie or loss against the full model; on these trainings: over prompts, but not over rounds.",
        words.backbones(variants),
    )


def leak_tables(results: Results, summary: pd.DataFrame) -> list[Table]:
    """Return the leak audit: all scores with what each habit is worth, then a 2 x 2 table of each audited variant.

    Args:
        results: What the runs wrote.
        summary: From `pipeline.report.summaries.summarise`, for backbones.

    Returns:
        No table where the study has no leak audit.
    """
    if results.leaks.empty:
        return []
    worth = leak_worth(results.leaks, results.runs)
    lines, marks, numbers, grids = [], [], [], []
    for (dataset, method), group in results.leaks.groupby(["dataset", "method"], sort=False):
        own = summary[(summary["dataset"] == dataset) & (summary["method"] == method)]
        mean = group.groupby(["split", "picked_on"])[["srcc", "plcc"]].mean()
        std = group.groupby(["split", "picked_on"])[["srcc", "plcc"]].std(ddof=1)
        habits = worth[(worth["dataset"] == dataset) & (worth["method"] == method)].set_index(["split", "picked_on"])
        cells = {}
        for place in HABITS:
            values = {"dataset": dataset, "method": method, "split": place[0], "picked_on": place[1]}
            values |= {"srcc": mean.loc[place, "srcc"], "srcc_std": std.loc[place, "srcc"]}
            values |= {"plcc": mean.loc[place, "plcc"], "plcc_std": std.loc[place, "plcc"]}
            habit = habits.loc[place].to_dict() if place in habits.index else None
            if habit:
                values |= {"worth": habit["worth"], "low": habit["low"], "high": habit["high"], "leaks": habit["leaks"]}
            numbers.append(values)
            score = words.spread(values["srcc"], values["srcc_std"])
            cells[place] = score + (" LEAKS" if habit else "")
            lines.append(
                [
                    *(f"{method} on {dataset}", SPLIT_WORDS[place[0]], place[1], score),
                    words.spread(values["plcc"], values["plcc_std"]),
                    words.figure(habit["worth"], "+") if habit else "clean",
                    words.interval(habit["low"], habit["high"], "+") if habit else "",
                    f"LEAKS: {habit['leaks']}" if habit else "",
                ]
            )
            marks.append("leaks" if habit else "")
        points = {place: _points(habits.loc[place, "worth"]) for place in HABITS[1:]}
        again = mean.loc[("random", "test"), "srcc"] - mean.loc[("random", "validation"), "srcc"]
        third = mean.loc[("random", "test"), "srcc"] - mean.loc[("grouped", "test"), "srcc"]
        grid = [
            ["prompt-disjoint split", *(cells[place] for place in HABITS[:2]), points[HABITS[1]]],
            ["random split", *(cells[place] for place in HABITS[2:]), _points(again)],
            ["the random split is worth", points[HABITS[2]], _points(third)],
        ]
        grid[2].append(f"both: {points[HABITS[3]]}")
        grids.append(
            Table(
                f"audit-{dataset}-{method}",
                words.titled(f"{dataset}, {method}: SRCC by split and by what picked the epoch", own),
                ["", "Epoch picked on validation", "Epoch picked on test", "Picking on test is worth"],
                grid,
                ["", "leaks", "total"],
                pd.DataFrame(numbers[-4:]),
                "Mean ± standard deviation over the rounds. A point is 0.01 of SRCC.",
                words.backbones(own),
            )
        )
    audited = summary[summary["method"].isin(results.leaks["method"])]
    long = Table(
        "audit",
        words.titled("The same models by clean and by leaking habits", audited),
        ["Model", "Split", "Epoch picked on", "SRCC", "PLCC", "Worth in SRCC", "95 % over rounds", "Remarks"],
        lines,
        marks,
        pd.DataFrame(numbers),
        "Worth: mean difference to the clean score of the same round.",
        words.backbones(audited),
    )
    return [*grids, long]


def cross_table(results: Results, summary: pd.DataFrame) -> Table | None:
    """Return what each model scores on the other data sets, and what others published; None for one data set."""
    if results.cross.empty:
        return None
    lines, marks, numbers = [], [], []
    for (dataset, method, other), group in results.cross.groupby(["dataset", "method", "tested_on"], sort=False):
        row = summary[(summary["dataset"] == dataset) & (summary["method"] == method)].iloc[0]
        values = {"method": method, "kind": row["kind"], "trained_on": dataset, "tested_on": other}
        cells = []
        for metric in ("srcc", "plcc", "krcc", "rmse"):
            mean, std = group[metric].mean(), group[metric].std(ddof=1)
            values |= {metric: mean, f"{metric}_std": std}
            cells.append(words.spread(mean, std))
        said = words.remarks(row.to_dict() | {"without_value": int(group["srcc"].isna().sum())})
        numbers.append(values | {"remarks": said})
        lines.append([method, dataset, other, *cells, said])
        marks.append("leaks" if row["leaks"] else "" if row["kind"] == "variant" else row["kind"])
    if set(results.runs["target"]) == {"quality"}:
        origins, leaks = list(summary["backbone_origin"]), all_leaks(summary)
        for row in published_cross(list(dict.fromkeys(summary["dataset"]))):
            reasons = not_comparable(row.split, row.selection, origins, leaks)
            said = f"published{f' {row.year}' if row.year else ''}: {row.source} [{row.tag}], {row.protocol}; "
            said += f"not comparable: {', '.join(reasons)}" if reasons else "comparable"
            values = {"method": row.method, "kind": PUBLISHED, "trained_on": row.trained_on, "tested_on": row.tested_on}
            numbers.append(values | {"srcc": row.srcc, "remarks": said})
            lines.append([row.method, row.trained_on, row.tested_on, f"{row.srcc:.3f}", *[words.ABSENT] * 3, said])
            marks.append(PUBLISHED)
    heads = ["Method", "Trained on", "Tested on", "SRCC", "PLCC", "KRCC", "RMSE", "Remarks"]
    text = words.titled("Trained on one data set, tested on another's test images", summary)
    note, backbone = "Mean ± standard deviation over the rounds.", words.backbones(summary)
    return Table("cross", text, heads, lines, marks, pd.DataFrame(numbers), note, backbone)


def generator_tables(results: Results, rows: pd.DataFrame) -> list[Table]:
    """Return one data set's generators: mean predictions beside its mean MOS, and SRCC among each one's images.

    Args:
        results: What the runs wrote.
        rows: The data set's rows of `pipeline.report.summaries.summarise`.
    """
    dataset = str(rows["dataset"].iloc[0])
    table = results.generators[results.generators["dataset"] == dataset]
    methods = list(rows["method"])
    means = table.groupby(["generator", "method"])[["n", "mos_mean", "fitted_mean", "srcc"]].mean()
    who = rated_by(results.cards[dataset])
    order = table.groupby("generator")["mos_mean"].mean().sort_values(ascending=False, kind="stable").index
    ranking = generator_ranking(table).set_index("method")
    ranks = [words.figure(ranking.loc[method, "srcc_mean"]) for method in methods]
    predicted, within = [], []
    for name in order:
        first = means.loc[(name, methods[0])]
        start = [str(name), f"{first['n']:.0f}", words.figure(first["mos_mean"])]
        predicted.append([*start, *(words.figure(means.loc[(name, method), "fitted_mean"]) for method in methods)])
        within.append([*start, *(words.figure(means.loc[(name, method), "srcc"]) for method in methods)])
    predicted.append(["SRCC over generators", "", "", *ranks])
    heads = ["Generator", "Images a round", "Mean MOS", *methods]
    numbers = means.reset_index().assign(dataset=dataset)
    return [
        Table(
            f"generators-{dataset}",
            words.titled(f"{dataset}: mean prediction of each generator's test images, on the MOS scale", rows),
            heads,
            predicted,
            [""] * len(order) + ["total"],
            numbers.merge(ranking["srcc_mean"].rename("ranking_srcc"), left_on="method", right_index=True),
            f"Means over the rounds. SRCC over generators: do the means rank the {len(order)} generators as {who} do? "
            "With so few to rank, steps of it are coarse.",
            words.backbones(rows),
        ),
        Table(
            f"within-{dataset}",
            words.titled(f"{dataset}: SRCC among the test images of one generator, mean over the rounds", rows),
            heads,
            within,
            [""] * len(order),
            numbers,
            backbone=words.backbones(rows),
        ),
    ]


def binned(predictions: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    """Return means in bins of equally many images, per method, over all rounds.

    Args:
        predictions: Of one data set: method and the two columns.
        x: Column that the images are ordered and binned by.
        y: Column to average.

    Returns:
        A row per method x bin: n, x, y (means) and error (standard error of y's mean).
    """
    rows = []
    for method, group in predictions.groupby("method", sort=False):
        ordered = group.sort_values(x, kind="stable")
        for part in np.array_split(np.arange(len(ordered)), min(BINS, len(ordered))):
            values = ordered.iloc[part]
            error = values[y].std(ddof=1) / math.sqrt(len(part)) if len(part) > 1 else 0.0
            rows.append((method, len(part), values[x].mean(), values[y].mean(), error))
    return pd.DataFrame(rows, columns=["method", "n", "x", "y", "error"])


def best_row(
    rows: pd.DataFrame, kinds: Sequence[str] = ("variant", "baseline"), by: str = "srcc_mean"
) -> dict[str, Any] | None:
    """Return the row of the highest mean SRCC among those of these kinds without leaks; None without any.

    Args:
        rows: The data set's rows of `pipeline.report.summaries.summarise`.
        kinds: Of methods.
        by: srcc_mean, on test; or validation_srcc_mean, which finds the champion, as `agiqa score` and MLflow do.
    """
    able = rows[(rows["leaks"] == "") & rows["kind"].isin(kinds) & rows[by].notna()]
    return None if able.empty else able.loc[able[by].idxmax()].to_dict()


SPLIT_WORDS = {"grouped": PROMPT_DISJOINT, "random": RANDOM}


def protocol_of(runs: pd.DataFrame) -> str:
    """Return in the words of published rows how our runs split the data and chose their epoch."""
    chosen = {"validation": ON_VALIDATION, "test": BEST_ON_TEST}
    splits = [SPLIT_WORDS[rule] for rule in dict.fromkeys(runs["split_rule"])]
    selections = [chosen[name] for name in dict.fromkeys(runs["select_on"]) if isinstance(name, str)]
    return ", ".join([*splits, *selections])


def settings_table(results: Results) -> Table | None:
    """Return every value that the variants were trained with, a column a variant; None where no variant was."""
    trained = [name for name in dict.fromkeys(results.history["method"]) if results.settings[name]]
    if not trained:
        return None
    keys = sorted({key for name in trained for key in results.settings[name]})
    lines = [[key, *(json.dumps(results.settings[name].get(key)) for name in trained)] for key in keys]
    text = "The values of params.yaml that each variant was trained with."
    return Table(
        "settings", text, ["Key", *trained], lines, [""] * len(lines), pd.DataFrame(lines, columns=["key", *trained])
    )


def trimmed(table: Table) -> Table:
    """Return the table without its remarks where no row has one."""
    if table.columns[-1] != "Remarks" or any(row[-1] for row in table.rows):
        return table
    return table._replace(columns=table.columns[:-1], rows=[row[:-1] for row in table.rows])


def _points(worth: float) -> str:
    return words.ABSENT if math.isnan(worth) else f"{100 * worth + 0.0:+.1f} points"


def _p(value: float) -> str:
    return words.ABSENT if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"
