"""Score the test images with what `train` or `baseline` has made; here alone, and in `audit`, are test labels read.

The test images of every other data set of the study, in the same round, are scored as well. MLflow hears of it from
`mirror`, which brings all files over.
"""

import argparse
from collections.abc import Sequence

import pandas as pd
from tqdm import tqdm

from pipeline import costs, layout, metrics
from pipeline.files import replaced_folder, write_json
from pipeline.params import Params, load_params
from pipeline.study import evaluation, subsets
from pipeline.study.entrants import enter


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
    entrant = enter(params, run / layout.TRAIN)
    record = entrant.record
    found: dict[str, object] = {"cross": {}}
    others = [name for name in params.study.datasets if name != dataset and split == "round"]
    with replaced_folder(run / layout.EVALUATE) as out:
        for other in [dataset, *others]:
            manifest_path, split_path = layout.input_paths(other, number, split)
            rows, groups = subsets.open_split(split_path, manifest := pd.read_parquet(manifest_path))
            watch = costs.Stopwatch()
            predicted, features = entrant.scored(other, rows["test"])
            spent = watch.read(on_cpu=entrant.on_cpu)
            scored = (manifest, groups, rows["test"], predicted, target)
            if other == dataset:
                told = (entrant.calibration, entrant.unfamiliar(features))
                predictions = evaluation.predictions_table(*scored, *told)
                found["cost"] = evaluation.cost(spent, len(predicted), entrant.feature_cost)
                predictions.to_csv(out / layout.PREDICTIONS, index=False)
                found["test"] = evaluation.evaluate(predictions)
                found["generator"] = evaluation.by_generator(predictions)
                title = f"{dataset}: {method}, {split} {number}\n{layout.made_with(record)}"
                evaluation.scatter(predictions, out / "scatter.png", title, layout.mos_label(target, record))
                entrant.show(out / "gallery", predictions)
            else:  # its MOS may be on another scale, of which the calibration knows nothing
                predictions = evaluation.predictions_table(*scored)
                (out / "cross").mkdir(exist_ok=True)
                predictions.to_csv(out / "cross" / f"{other}.csv", index=False)
                columns = (predictions[column].to_numpy() for column in ("predicted", "fitted", "mos"))
                found["cross"][other] = {"n": len(predictions), **metrics.summary(*columns)}
        found["validation"] = layout.validation_numbers(run / layout.TRAIN, record["selected_epoch"])
        write_json(out / layout.METRICS, found)


if __name__ == "__main__":
    main()
