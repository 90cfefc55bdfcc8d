"""Fit one baseline on every round of one data set. It reads training and validation labels, never test labels.

A fit takes a second, so one process serves all rounds. MLflow hears of it from `mirror`, which brings all files over:
importing MLflow takes longer than the fit.
"""

import argparse
import uuid
from collections.abc import Sequence

from tqdm import tqdm

from pipeline import costs, layout
from pipeline.files import replaced_folder, write_json
from pipeline.metrics import correlations
from pipeline.params import load_params
from pipeline.study import runs, subsets
from pipeline.study.baselines import BaselinePlan, plan_baseline
from pipeline.study.metric_scores import metric_scores
from pipeline.training import baselines


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--baseline", required=True)
    parser.add_argument("--params", default="params.yaml")
    arguments = parser.parse_args(argv)
    params, dataset, method = load_params(arguments.params), arguments.dataset, arguments.baseline
    if (metric := layout.pyiqa_metric(method)) is not None:
        features = metric_scores(params, dataset, metric).cost
    elif method in baselines.MADE_BY:
        features = subsets.feature_times(dataset)[baselines.MADE_BY[method]]
    else:
        parser.error(f"--baseline is {method!r}; known: {', '.join(baselines.MADE_BY)}, {layout.PYIQA}NAME")
    for number in tqdm(params.study.rounds, f"{dataset}/{method}", unit="round", dynamic_ncols=True):
        plan = plan_baseline(params, dataset, method, number)
        with replaced_folder(layout.run_folder(dataset, method, number) / layout.TRAIN) as folder:
            run = runs.begin(folder, {"device": "cpu"}, params.study.name)
            watch = costs.Stopwatch()
            model = _fit(method, plan, params.baselines)
            # What learns nothing reads nothing to learn from.
            learned_from = sum(map(len, plan.rows.values())) if model else 0
            cost = costs.charged(watch.read(), learned_from, features)
            checkpoint = layout.checkpoint_path(folder, 0)
            plan.save(checkpoint, model)
            row: dict[str, float] = {"epoch": 0}
            for name in ("train", "validation"):
                found = baselines.predict(checkpoint, plan.features(name))
                row |= correlations(name, found, plan.targets[name])
            runs.write_table(folder / layout.HISTORY, [row])
            record = plan.finished_record(checkpoint)
            write_json(folder / layout.RECORD, record)
            # By which MLflow will know it: a fit that is made anew and comes out alike is the same run there.
            run["run_id"] = uuid.uuid5(uuid.NAMESPACE_OID, f"{params.study.name} {record} {row}").hex
            write_json(folder / layout.RUN, runs.end(run, cost))


def _fit(method: str, plan: BaselinePlan, section: object) -> dict[str, object]:
    if baselines.learns_nothing(method):
        return {}
    train, validation = (
        (baselines.reads(method, plan.features(name), section.linear_probe.features), plan.targets[name])
        for name in ("train", "validation")
    )
    if method == "linear_probe":
        return baselines.fit_linear_probe(train, validation, section.linear_probe.alphas)
    return baselines.fit_handcrafted(train, seed=plan.record["seed"], **section.handcrafted.model_dump())


if __name__ == "__main__":
    main()
