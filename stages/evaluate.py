"""Score the test images with what `train` or `baseline` has made: the one place where test labels are read.

The test images of every other data set of the study, in the same round, are scored as well. MLflow hears of it from
`report` or `mirror`, which bring all files over.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline import baselines, evaluation, metrics, plots, rounds, runs
from pipeline.files import replaced_folder, write_json
from pipeline.params import Params, load_params

Scores = Callable[[str, pd.DataFrame, np.ndarray], np.ndarray]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--method", required=True)
    parser.add_argument("--round", type=int, required=True)
    parser.add_argument("--params", default="params.yaml")
    arguments = parser.parse_args(argv)
    params, dataset = load_params(arguments.params), arguments.dataset
    run = runs.run_folder(dataset, arguments.method, arguments.round)
    record = json.loads((run / "train" / "record.json").read_text())
    scores = _scores(params, record, run / "train")
    target = params.targets.main
    found: dict[str, object] = {"cross": {}}
    with replaced_folder(run / "evaluate") as out:
        for other in [dataset, *(name for name in params.study.datasets if name != dataset)]:
            manifest_path, split_path = rounds.input_paths(other, arguments.round)
            manifest = pd.read_parquet(manifest_path)
            rows, groups = rounds.open_split(split_path, manifest)
            predictions = evaluation.predictions_table(
                manifest, groups, rows["test"], scores(other, manifest, rows["test"]), target
            )
            if other == dataset:
                predictions.to_csv(out / "predictions.csv", index=False)
                found["test"] = evaluation.evaluate(predictions, params.evaluate.bootstrap, params.evaluate.seed)
                found["generator"] = evaluation.by_generator(predictions)
                label = rounds.backbone_label(record["backbone"])
                title = f"{dataset}: {arguments.method}, round {arguments.round}\nbackbone {label}"
                plots.scatter(predictions, out / "scatter.png", title, f"{target} MOS")
            else:
                (out / "cross").mkdir(exist_ok=True)
                predictions.to_csv(out / "cross" / f"{other}.csv", index=False)
                numbers = metrics.summary(predictions["predicted"].to_numpy(), predictions["mos"].to_numpy())
                found["cross"][other] = {"n": len(predictions), **numbers}
        found["validation"] = rounds.validation_numbers(run / "train", record["selected_epoch"])
        write_json(out / "metrics.json", found)


def _scores(params: Params, record: Mapping[str, Any], train_folder: Path) -> Scores:
    """Return what scores images with a run's result: a data set's name, its manifest and rows (n,) to scores (n,)."""
    if record["kind"] == "variant":
        from pipeline import study  # imported here: brings in torch, which no baseline needs

        return study.test_scores(params, record, train_folder)

    def from_features(dataset: str, manifest: pd.DataFrame, rows: np.ndarray) -> np.ndarray:
        features = rounds.read_features(dataset, manifest)
        return baselines.predict(train_folder, {key: value[rows] for key, value in features.items()})

    return from_features


if __name__ == "__main__":
    main()
