"""Score the test images with what `train` or `baseline` has made; here alone, and in `audit`, are test labels read.

The test images of every other data set of the study, in the same round, are scored as well. MLflow hears of it from
`mirror`, which brings all files over.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from pipeline import costs, layout, metrics
from pipeline.files import replaced_folder, write_json
from pipeline.params import Params, load_params
from pipeline.study import evaluation, gallery, subsets
from pipeline.training import baselines

Scores = Callable[[str, np.ndarray], np.ndarray]  # a data set's name and manifest rows (n,) to raw scores (n,)
Show = Callable[[Path, pd.DataFrame], None]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--method", required=True)
    parser.add_argument("--round", type=int, help="left out: every round of the study, one after the other")
    parser.add_argument("--split", choices=["round", "random"], default="round")
    parser.add_argument("--params", default="params.yaml")
    arguments = parser.parse_args(argv)
    params = load_params(arguments.params)
    numbers = params.study.rounds if arguments.round is None else [arguments.round]
    for number in tqdm(numbers, "evaluate", unit="round", dynamic_ncols=True, disable=len(numbers) == 1):
        _evaluate(params, arguments.dataset, arguments.method, number, arguments.split)


def _evaluate(params: Params, dataset: str, method: str, number: int, split: str) -> None:
    run, target = layout.run_folder(dataset, method, number, split), params.targets.main
    record = json.loads((run / layout.TRAIN / layout.RECORD).read_text())
    scores, show, on_cpu, features = _methods(params, record, run / layout.TRAIN)
    found: dict[str, object] = {"cross": {}}
    others = [name for name in params.study.datasets if name != dataset and split == "round"]
    with replaced_folder(run / layout.EVALUATE) as out:
        for other in [dataset, *others]:
            manifest_path, split_path = layout.input_paths(other, number, split)
            rows, groups = subsets.open_split(split_path, manifest := pd.read_parquet(manifest_path))
            watch = costs.Stopwatch()
            predicted = scores(other, rows["test"])
            cost = evaluation.cost(watch.read(on_cpu=on_cpu), len(predicted), features)
            predictions = evaluation.predictions_table(manifest, groups, rows["test"], predicted, target)
            if other == dataset:
                found["cost"] = cost
                predictions.to_csv(out / layout.PREDICTIONS, index=False)
                found["test"] = evaluation.evaluate(predictions)
                found["generator"] = evaluation.by_generator(predictions)
                title = f"{dataset}: {method}, {split} {number}\nbackbone {layout.backbone_label(record['backbone'])}"
                evaluation.scatter(predictions, out / "scatter.png", title, layout.mos_label(target, record))
                show(out / "gallery", predictions)
            else:
                (out / "cross").mkdir(exist_ok=True)
                predictions.to_csv(out / "cross" / f"{other}.csv", index=False)
                columns = (predictions[column].to_numpy() for column in ("predicted", "fitted", "mos"))
                found["cross"][other] = {"n": len(predictions), **metrics.summary(*columns)}
        found["validation"] = layout.validation_numbers(run / layout.TRAIN, record["selected_epoch"])
        write_json(out / layout.METRICS, found)


def _methods(params: Params, record: Mapping[str, Any], train_folder: Path) -> tuple[Scores, Show, bool, Any]:
    """Return what scores images, what shows some of them, whether processors do it, and the cost of features read."""
    if record["kind"] == "variant":
        from pipeline.study.judge import Judge  # imported here: brings in torch, which no baseline needs

        judging = Judge.of(params, record, train_folder)

        def show(folder: Path, table: pd.DataFrame) -> None:
            gallery.write_gallery(folder, table, params.evaluate.gallery, judging.images(), judging.quality_maps())

        return judging.scores, show, judging.on_cpu, None

    def from_features(dataset: str, rows: np.ndarray) -> np.ndarray:
        features = subsets.read_features(dataset, pd.read_parquet(layout.input_paths(dataset, record["round"])[0]))
        return baselines.predict(train_folder, {key: value[rows] for key, value in features.items()})

    features = subsets.feature_times(record["dataset"])[baselines.MADE_BY[record["method"]]]
    return from_features, lambda folder, table: None, True, features


if __name__ == "__main__":
    main()
