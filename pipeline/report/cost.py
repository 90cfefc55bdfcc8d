"""The table of costs: what each method costs by itself, on the clock and of processors, and where a load showed."""

from typing import Any

import pandas as pd

from pipeline.costs import SLACK
from pipeline.report import words
from pipeline.report.formats import Table
from pipeline.report.results import Results

NOTE = (
    "Seconds on the clock, and of processors (CPU: user and system, all threads). Training: all epochs with their "
    "validation, or a baseline's fit; scoring: the data set's own test images, all windows. A baseline is charged for "
    "the features of the images that it fits on and scores, though the study computes them once for all rounds. Means "
    "over the rounds, the largest peak of memory of the process."
)
LOAD_NOTE = (
    f" Under load: more tasks than {SLACK:g} a processor wanted one, or the clock ran over {SLACK:g} times as long as "
    "the processors worked; such seconds on the clock, and images a second, tell of the machine's other work as well."
)


def cost_table(results: Results, summary: pd.DataFrame) -> Table:
    """Return what each method costs a round: parameters, bytes, seconds, images a second, memory.

    Args:
        results: What the runs wrote.
        summary: From `pipeline.report.summaries.summarise`.
    """
    merged = results.costs.merge(
        results.timing[["dataset", "method", "round", "images_per_second", "peak_memory_mb"]],
        how="left",
        on=["dataset", "method", "round"],
    )
    averaged = ["train_seconds", "train_cpu_seconds", "images_per_second", "scoring_seconds", "scoring_cpu_seconds"]
    averaged += ["scoring_images_per_second"]
    memory = ["peak_memory_mb", "scoring_peak_memory_mb"]
    loads = ["train_under_load", "scoring_under_load"]
    lines, numbers = [], []
    for (dataset, method), group in merged.groupby(["dataset", "method"], sort=False):
        row = summary[(summary["dataset"] == dataset) & (summary["method"] == method)].iloc[0]
        values = (
            {"dataset": dataset, "method": method} | group[averaged].mean().to_dict() | group[memory].max().to_dict()
        )
        values |= {key: row[key] for key in ("trainable_parameters", "checkpoint_bytes")}
        values |= {"device": ", ".join(dict.fromkeys(group["device"]))}
        values |= {f"rounds_{key}": int(group[key].sum()) for key in loads}
        numbers.append(values)
        lines.append(
            [
                f"{method} on {dataset}",
                _count(values["trainable_parameters"]),
                _count(values["checkpoint_bytes"], 1000, " kB"),
                words.seconds(values["train_seconds"]),
                words.seconds(values["train_cpu_seconds"]),
                words.rate(values["images_per_second"]),
                _count(values["peak_memory_mb"], 1, " MB"),
                words.seconds(values["scoring_seconds"]),
                words.seconds(values["scoring_cpu_seconds"]),
                words.rate(values["scoring_images_per_second"]),
                _count(values["scoring_peak_memory_mb"], 1, " MB"),
                load_remark(*(int(group[key].sum()) for key in loads), len(group)),
            ]
        )
    all_of = {key: words.seconds(merged[key].sum(min_count=len(merged))) for key in averaged}
    total = ["all runs", "", "", all_of["train_seconds"], all_of["train_cpu_seconds"], "", ""]
    total += [all_of["scoring_seconds"], all_of["scoring_cpu_seconds"], "", "", ""]
    heads = ["Model", "Trainable parameters", "Checkpoint", "Training", "Training, CPU", "Images/s", "Peak memory"]
    heads += ["Scoring", "Scoring, CPU", "Images/s, scoring", "Peak memory, scoring", "Remarks"]
    device = ", ".join(dict.fromkeys(str(name) for name in results.costs["device"]))
    return Table(
        "cost",
        words.titled(f"What each method costs by itself, a round on {device}", summary),
        heads,
        [*lines, total],
        [""] * len(lines) + ["total"],
        pd.DataFrame(numbers),
        NOTE + (LOAD_NOTE if merged[loads].any(axis=None) else ""),
        words.backbones(summary),
    )


def load_remark(training: int, scoring: int, rounds: int) -> str:
    """Return in how many rounds the machine was under load while training and while scoring; empty if in none."""
    of = f" in {{}} of {rounds} rounds" if rounds > 1 else ""
    counts = (("training", training), ("scoring", scoring))
    return "; ".join(f"{what} under load{of.format(count)}" for what, count in counts if count)


def _count(value: Any, unit: float = 1, word: str = "") -> str:
    return words.ABSENT if value is None or pd.isna(value) else f"{float(value) / unit:,.0f}{word}"
