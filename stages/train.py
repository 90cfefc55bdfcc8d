"""Train one variant on one round of one data set, and keep every epoch's folded checkpoint.

Several processes may share one training, one a GPU: this stage starts them itself, as `train.processes` says, or is one
of those that torchrun has started.

A killed training goes on from its last finished epoch. Test labels are read only under `train.select_on: test`, which
reproduces a common published habit and is labelled as leaking wherever its results are shown.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pipeline import costs, layout
from pipeline.files import replaced_folder, write_json
from pipeline.params import load_params
from pipeline.study import plans, runs
from pipeline.tracking import live
from pipeline.training import launch
from pipeline.training.fit import STATE_FILE
from pipeline.training.ranks import together


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
    section = params.train_for(arguments.variant)
    count = launch.processes_to_start(section.processes, section.device)
    if count > 1:
        launch.launch("stages.train", sys.argv[1:] if argv is None else argv, count)
        return
    with together(section.device) as ranks:
        plan = plans.plan_training(params, *which, ranks)
        if not ranks.first:
            _train_along(plan)
            return
        out = layout.run_folder(*which) / layout.TRAIN
        root = layout.repository_root()
        with runs.resumable(root, out, runs.key_of(plan.record, plan.inputs, Path("stages", "train.py"))) as folder:
            done = (folder / "results").is_dir()  # it was killed after its end, before DVC took it up
            ranks.tell(None if done else str(folder.resolve()))
            if not done:
                _train(plan, folder, root, params.study.name)
    live.finish_run(root, params.study.name, out)


def _train_along(plan: plans.TrainingPlan) -> None:
    """Take this process's share of what the first one does in `_train`."""
    folder = plan.ranks.tell(None)
    if folder is not None:
        fitted = plan.fit(Path(folder))
        plan.calibrate(layout.checkpoint_path(Path(folder), fitted.selected_epoch))


def _train(plan: plans.TrainingPlan, folder: Path, root: Path, name: str) -> None:
    run = runs.begin(folder, plan.machine, name)
    run["run_id"] = live.start_run(root, name, plan.record, run, run["run_id"])
    write_json(folder / layout.RUN, run)
    try:
        fitted = plan.fit(folder, partial(live.log_epoch, root, run["run_id"]))
    except BaseException as error:
        plan.ranks.end_in_peace()
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
