"""Train one variant on one round of one data set, and keep every epoch's folded checkpoint.

A killed training goes on from its last finished epoch. Test labels are read only under `train.select_on: test`, which
reproduces a common published habit and is labelled as leaking wherever its results are shown.
"""

import argparse
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pipeline import costs, layout
from pipeline.files import replaced_folder, write_json
from pipeline.params import load_params
from pipeline.study import plans, runs
from pipeline.tracking import live
from pipeline.training.fit import STATE_FILE


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--variant", required=True)
    parser.add_argument("--round", type=int, required=True)
    parser.add_argument("--split", choices=["round", "random"], default="round")
    parser.add_argument("--params", default="params.yaml")
    arguments = parser.parse_args(argv)
    params = load_params(arguments.params)
    which = (arguments.dataset, arguments.variant, arguments.round, arguments.split)
    plan = plans.plan_training(params, *which)
    out = layout.run_folder(*which) / layout.TRAIN
    root = layout.repository_root()
    with runs.resumable(root, out, runs.key_of(plan.record, plan.inputs, Path("stages", "train.py"))) as folder:
        if not (folder / "results").is_dir():  # else it was killed after its end, before DVC took it up
            _train(plan, folder, root, params.study.name)
    live.finish_run(root, params.study.name, out)


def _train(plan: plans.TrainingPlan, folder: Path, root: Path, name: str) -> None:
    run = runs.begin(folder, plan.machine, name)
    run["run_id"] = live.start_run(root, name, plan.record, run, run["run_id"])
    write_json(folder / layout.RUN, run)
    try:
        fitted = plan.fit(folder, partial(live.log_epoch, root, run["run_id"]))
    except BaseException as error:
        status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        live.fail_run(root, run["run_id"], f"{type(error).__name__}: {error}", status)
        raise
    with replaced_folder(folder / "results") as results:
        shutil.copytree(folder / layout.CHECKPOINTS, results / layout.CHECKPOINTS)
        runs.write_table(results / layout.HISTORY, fitted.history)
        runs.write_table(results / layout.TIMING, fitted.timing)
        validation = plan.calibrate(results / layout.CHECKPOINTS / layout.checkpoint_name(fitted.selected_epoch))
        write_json(results / layout.RECORD, plan.finished_record(fitted, results / layout.CHECKPOINTS, validation))
        write_json(results / layout.RUN, runs.end(run, costs.total(fitted.timing)))
    (folder / STATE_FILE).unlink()
    shutil.rmtree(folder / layout.CHECKPOINTS)


if __name__ == "__main__":
    main()
