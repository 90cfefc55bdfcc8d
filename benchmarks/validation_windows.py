"""Show how many windows an image the validation needs: do few rank the epochs as all do?

Run from the repository root of a finished study: `python benchmarks/validation_windows.py --dataset agiqa3k`. It scores
the validation images of each named run with every epoch's checkpoint, with few windows and with all, and writes
benchmarks/validation_windows.md. No test image and no test label is read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # so that the script runs without the package installed

from pipeline.data.pixels import open_prepared  # noqa: E402
from pipeline.layout import input_paths  # noqa: E402
from pipeline.model.checkpoint import load_checkpoint  # noqa: E402
from pipeline.model.folded import image_scores  # noqa: E402
from pipeline.model.windows import window_origins  # noqa: E402
from pipeline.params import load_params  # noqa: E402
from pipeline.study import build  # noqa: E402
from pipeline.study.subsets import open_split, scaled_mos  # noqa: E402


def epoch_scores(dataset: str, method: str, round_index: int, counts: Sequence[int]) -> pd.DataFrame:
    """Return the validation SRCC of every epoch (rows) by windows an image (columns; the last one is all)."""
    params = load_params()
    manifest_path, split_path = input_paths(dataset, round_index)
    manifest, pack = open_prepared(manifest_path.parent)
    rows, _ = open_split(split_path, manifest)
    validation = rows["validation"]
    target = scaled_mos(manifest, params.targets.main)[validation]
    backbone = build.make_backbone(params)
    rule = build.make_window_rule(params, backbone)
    everything = max(len(window_origins(*pack[row].shape[:2], rule)) for row in validation)
    folder = Path("runs", dataset, method, f"round-{round_index}", "train", "checkpoints")
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        scorer, _, record = load_checkpoint(path, backbone, rule)
        found[record["epoch"]] = {
            count: spearmanr(
                image_scores(
                    scorer, (pack[row] for row in validation), len(validation), rule, windows=count,
                    label=f"{method}, round {round_index}, epoch {record['epoch']}, {count} windows",
                ),
                target,
            ).statistic
            for count in [*counts, everything]
        }  # fmt: skip
    return pd.DataFrame.from_dict(found, orient="index")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--methods", nargs="+", default=["dcmpln"])
    parser.add_argument("--rounds", type=int, nargs="+", default=[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 5, 9])
    arguments = parser.parse_args(argv)
    lines = [
        f"Data set {arguments.dataset}, validation images only. Agreement: Spearman's correlation, over the epochs of "
        "a run, of the SRCC with few windows and with all. Loss: how far the epoch that few windows pick falls short "
        "of the best one, in SRCC with all windows.",
        "",
        "| run | epochs | windows an image | agreement | loss |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for method in arguments.methods:
        for number in arguments.rounds:
            table = epoch_scores(arguments.dataset, method, number, arguments.counts)
            everything = table.iloc[:, -1]
            for count in table.columns[:-1]:
                agreement = spearmanr(table[count], everything).statistic
                loss = everything.max() - everything.iloc[int(np.argmax(table[count]))]
                run = f"{method}, round {number}"
                lines.append(
                    f"| {run} | {len(table)} | {count} of {table.columns[-1]} | {agreement:.2f} | {loss:.3f} |"
                )
    (HERE / "validation_windows.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
