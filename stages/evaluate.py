"""Score the test images with what `train` or `baseline` has made; here alone, and in `audit`, are test labels read.

The test images of every other data set of the study, in the same round, are scored as well. MLflow hears of it from
`report` or `mirror`, which bring all files over.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline import baselines, evaluation, gallery, metrics, plots, rounds, runs
from pipeline.files import replaced_folder, write_json
from pipeline.params import Params, load_params

Scores = Callable[[str, np.ndarray], np.ndarray]  # a data set's name and manifest rows (n,) to raw scores (n,)
Show = Callable[[Path, pd.DataFrame], None]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--method", required=True)
    parser.add_argument("--round", type=int, required=True)
    parser.add_argument("--split", choices=["round", "random"], default="round")
    parser.add_argument("--params", default="params.yaml")
    arguments = parser.parse_args(argv)
    params, dataset, split = load_params(arguments.params), arguments.dataset, arguments.split
    run = runs.run_folder(dataset, arguments.method, arguments.round, split)
    record = json.loads((run / "train" / "record.json").read_text())
    scores, show = _methods(params, record, run / "train")
    target = params.targets.main
    found: dict[str, object] = {"cross": {}}
    others = [name for name in params.study.datasets if name != dataset and split == "round"]
    with replaced_folder(run / "evaluate") as out:
        for other in [dataset, *others]:
            manifest_path, split_path = rounds.input_paths(other, arguments.round, split)
            manifest = pd.read_parquet(manifest_path)
            rows, groups = rounds.open_split(split_path, manifest)
            started = time.perf_counter()
            predicted = scores(other, rows["test"])
            seconds = time.perf_counter() - started
            predictions = evaluation.predictions_table(manifest, groups, rows["test"], predicted, target)
            if other == dataset:
                predictions.to_csv(out / "predictions.csv", index=False)
                found["test"] = evaluation.evaluate(predictions, params.evaluate.bootstrap, params.evaluate.seed)
                found["generator"] = evaluation.by_generator(predictions)
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                found["cost"] = {"seconds": seconds, "images_per_second": len(predictions) / seconds}
                found["cost"]["peak_memory_mb"] = peak  # of the process so far
                label = rounds.backbone_label(record["backbone"])
                title = f"{dataset}: {arguments.method}, {split} {arguments.round}\nbackbone {label}"
                plots.scatter(predictions, out / "scatter.png", title, f"{target} MOS")
                show(out / "gallery", predictions)
            else:
                (out / "cross").mkdir(exist_ok=True)
                predictions.to_csv(out / "cross" / f"{other}.csv", index=False)
                numbers = metrics.summary(predictions["predicted"].to_numpy(), predictions["mos"].to_numpy())
                found["cross"][other] = {"n": len(predictions), **numbers}
        found["validation"] = rounds.validation_numbers(run / "train", record["selected_epoch"])
        write_json(out / "metrics.json", found)


def _methods(params: Params, record: Mapping[str, Any], train_folder: Path) -> tuple[Scores, Show]:
    """Return what scores images with a run's result, and what shows some of them (nothing for a baseline)."""
    if record["kind"] == "variant":
        from pipeline import study  # imported here: brings in torch, which no baseline needs

        judge = study.Judge.of(params, record, train_folder)
        return judge.scores, lambda folder, table: gallery.write_gallery(
            folder, table, params.evaluate.gallery, judge.images(), judge.quality_maps()
        )

    def from_features(dataset: str, rows: np.ndarray) -> np.ndarray:
        features = rounds.read_features(dataset, pd.read_parquet(rounds.input_paths(dataset, record["round"])[0]))
        return baselines.predict(train_folder, {key: value[rows] for key, value in features.items()})

    return from_features, lambda folder, table: None


if __name__ == "__main__":
    main()
