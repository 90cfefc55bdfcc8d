"""Measure what it is worth to choose the epoch on test: judge trainings at the epoch that is best there.

Many published codes do so, and a result got that way is no estimate of anything; it is labelled as leaking wherever it
shows. Every epoch's checkpoint scores the test images with the validation's few windows, and the best one with all. So
it goes for the training on the study's own split, and for that on the random one.
"""

import argparse
import json
import math
from collections.abc import Sequence

import pandas as pd

from pipeline import layout
from pipeline.files import replaced_folder, write_json
from pipeline.metrics import correlations
from pipeline.params import Params, load_params
from pipeline.study import evaluation, judge, subsets
from pipeline.training.schedule import select_epoch


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--variant", required=True)
    parser.add_argument("--round", type=int, required=True)
    parser.add_argument("--params", default="params.yaml")
    arguments = parser.parse_args(argv)
    params = load_params(arguments.params)
    for split in ("round", "random"):
        _audit(params, arguments.dataset, arguments.variant, arguments.round, split)


def _audit(params: Params, dataset: str, variant: str, number: int, split: str) -> None:
    run = layout.run_folder(dataset, variant, number, split)
    record = json.loads((run / layout.TRAIN / layout.RECORD).read_text())
    manifest_path, split_path = layout.input_paths(dataset, number, split)
    manifest = pd.read_parquet(manifest_path)
    rows, groups = subsets.open_split(split_path, manifest)
    mos = manifest[params.targets.main].to_numpy()[rows["test"]]
    judging = judge.Judge.of(params, record, run / layout.TRAIN)
    epochs = []
    for epoch in range(1, record["epochs_run"] + 1):
        scores = judging.scores(dataset, rows["test"], epoch=epoch, windows=params.validation.windows)
        epochs.append({"epoch": epoch, **correlations("test", scores, mos)})
    # Where no epoch has an SRCC on test, as under equal opinions, there is nothing to pick on it.
    able = any(math.isfinite(row["test_srcc"]) for row in epochs)
    selected = select_epoch(epochs, "test_srcc") if able else record["selected_epoch"]
    scores = judging.scores(dataset, rows["test"], epoch=selected)
    predictions = evaluation.predictions_table(manifest, groups, rows["test"], scores, params.targets.main)
    with replaced_folder(run / layout.AUDIT) as out:
        predictions.to_csv(out / layout.PREDICTIONS, index=False)
        found = {
            "selected_epoch": selected,
            "selected_on": "test",
            "split_rule": record["split_rule"],
            "epochs": [{key: value if math.isfinite(value) else None for key, value in row.items()} for row in epochs],
            "test": evaluation.evaluate(predictions),
            "leaks": layout.leaks(record["split_rule"], "test"),
        }
        write_json(out / layout.METRICS, found)


if __name__ == "__main__":
    main()
