"""Writes what stages leave of a run, with the functions that they write it with, and reads what MLflow shows of it."""

import json
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from pipeline import layout
from pipeline.files import write_json
from pipeline.study import runs
from pipeline.tracking import entries, live, mirror, store

STUDY = "small"
HISTORY = [
    {"epoch": 1, "learning_rate": 1e-4, "loss": 0.31, "loss_main": 0.3, "loss_auxiliary": 0.1, "train_srcc": 0.41,
     "train_plcc": 0.42, "train_krcc": 0.33, "validation_srcc": 0.4, "validation_plcc": 0.44, "validation_krcc": 0.35},
    {"epoch": 2, "learning_rate": 1e-4, "loss": 1 / 7, "loss_main": 0.1, "loss_auxiliary": 0.09, "train_srcc": 0.75,
     "train_plcc": 0.72, "train_krcc": 0.63, "validation_srcc": 0.8, "validation_plcc": 0.7, "validation_krcc": 0.6},
    {"epoch": 3, "learning_rate": 1e-5, "loss": 0.13, "loss_main": 0.1, "loss_auxiliary": 0.08, "train_srcc": 0.76,
     "train_plcc": 0.73, "train_krcc": 0.64, "validation_srcc": 0.6, "validation_plcc": 0.5, "validation_krcc": 0.4},
]  # fmt: skip
TIMING = [
    {"epoch": e, "seconds": 2.5 * e, "cpu_seconds": 4.5 * e, "images_per_second": 40.0 + e, "peak_memory_mb": 900.0,
     "under_load": int(e == 2)}
    for e in (1, 2, 3)
]  # fmt: skip
ABOUT = {
    "experiment": STUDY, "git_commit": "c0ffee" * 6 + "abcd", "git_dirty": True, "dvc_exp_name": None,
    "started": "2026-03-01T10:00:00+00:00", "device": "cpu", "threads": 2, "torch": "2.13.0",
}  # fmt: skip
ENDED = {"ended": "2026-03-01T10:01:00+00:00", "seconds": 60.0,
         "cost": {"seconds": 15.0, "cpu_seconds": 27.0, "under_load": True}}  # fmt: skip
METRICS = {
    "test": {"n": 120, "groups": 12, "srcc": 0.71, "krcc": 0.52, "plcc": 0.69, "srcc_low": 0.6, "plcc_logistic": 0.7,
             "rmse": 0.6, "rmse_calibrated": 0.65, "mae_calibrated": 0.5, "coverage": 0.88, "band_width": 1.9,
             "unfamiliar": 0.0},
    "generator": {"sd1.5": {"n": 60, "srcc": 0.5, "score_mean": 2.5, "rmse_calibrated": 0.55, "coverage": 0.93},
                  "early (v2)": {"n": 60, "srcc": None, "coverage": 0.83}},
    "cross": {"other": {"n": 99, "srcc": 0.31}},
    "cost": {
        "seconds": 2.0,
        "cpu_seconds": 3.5,
        "images_per_second": 60.0,
        "peak_memory_mb": 700.0,
        "under_load": False,
    },
}  # fmt: skip


def make_record(
    dataset: str = "demo", method: str = "dcmpln", round_index: int = 0, split: str = "round"
) -> dict[str, Any]:
    """Return record.json of a training that selected the second of three epochs."""
    return {
        "dataset": dataset, "method": method, "kind": "variant", "round": round_index, "split": split, "seed": 7,
        "split_rule": "random", "select_on": "validation", "selected_epoch": 2, "epochs_run": 3,
        "leaks": ["random split"], "shuffled_labels": False, "target": "quality", "auxiliary_target": None,
        "backbone": {"name": "tiny", "pretrained": None, "weights_sha256": "5" * 64, "origin": "in-house"},
        "trainable_parameters": 1234, "checkpoint_bytes": 800,
        "params": {"train.learning_rate": 1e-4, "train.flip": True, "texts.main": ["good photo.", "bad photo."]},
        "inputs": {"manifest_md5": "a" * 32, "splits_md5": "b" * 32},
        "images": {"train": 400, "validation": 80, "test": 120},
        "validation": {"srcc": 0.77, "plcc": 0.72, "krcc": None},  # from all windows, where the history's is from few
    }  # fmt: skip


def folder_of(root: Path, record: Mapping[str, Any]) -> Path:
    """Return the folder of a record's run."""
    return root / layout.run_folder(*entries.which_run(record))


def write_train(root: Path, record: Mapping[str, Any], run_id: str, epochs: int = 3) -> Path:
    """Write what the train stage leaves, and return the run's folder."""
    folder = folder_of(root, record) / "train"
    write_json(folder / "record.json", record)
    write_json(folder / "run.json", {**ABOUT, **ENDED, "run_id": run_id})
    runs.write_table(folder / "history.csv", HISTORY[:epochs])
    runs.write_table(folder / "timing.csv", TIMING[:epochs])
    for epoch in range(1, epochs + 1):
        write_weights(folder, record, epoch)
    return folder.parent


def write_baseline(root: Path, run_id: str, method: str = "linear_probe") -> Path:
    """Write what the baseline stage leaves, but for the evaluation, and return the run's folder."""
    record = make_record(method=method) | {
        "kind": "baseline", "selected_epoch": 0, "epochs_run": 0, "trainable_parameters": None, "select_on": None,
        "validation": {"srcc": 0.5},
    }  # fmt: skip
    del record["split"]
    folder = folder_of(root, record) / "train"
    folder.mkdir(parents=True)
    write_weights(folder, record, 0)
    runs.write_table(folder / "history.csv", [{"epoch": 0, "train_srcc": 0.6, "validation_srcc": 0.5}])
    write_json(folder / "record.json", record)
    write_json(folder / "run.json", {**ABOUT, **ENDED, "run_id": run_id})
    return folder.parent


def work_of(root: Path, record: Mapping[str, Any]) -> Path:
    """Return where a training that is not done keeps its checkpoints."""
    return root / "work" / record["method"]


def write_weights(folder: Path, record: Mapping[str, Any], epoch: int) -> Path:
    """Write bytes that stand for an epoch's weights."""
    path = layout.checkpoint_path(folder, epoch)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(f"weights of {record['method']} {record['round']} {epoch}".encode())
    return path


def write_evaluation(run_dir: Path, metrics: Mapping[str, Any] = METRICS) -> None:
    """Write what the evaluate stage leaves, whose validation numbers are the record's."""
    train, out = run_dir / "train", run_dir / "evaluate"
    selected = json.loads((train / "record.json").read_text())["selected_epoch"]
    write_json(out / "metrics.json", {**metrics, "validation": layout.validation_numbers(train, selected)})
    runs.write_table(out / "predictions.csv", [{"image_id": "a", "predicted": 0.5}])
    (out / "cross").mkdir(exist_ok=True)
    runs.write_table(out / "cross" / "other.csv", [{"image_id": "b", "predicted": 0.4}])


def train_live(root: Path, record: Mapping[str, Any], epochs: int = 3) -> tuple[str, Path]:
    """Do what the train, evaluate and report stages do, and return the run's id and folder."""
    run_id = live.start_run(root, STUDY, record, ABOUT)
    for row, timing in zip(HISTORY[:epochs], TIMING[:epochs], strict=True):
        live.log_epoch(root, run_id, row, timing, write_weights(work_of(root, record), record, int(row["epoch"])))
    run_dir = write_train(root, record, run_id, epochs)
    live.finish_run(root, STUDY, run_dir / "train")
    write_evaluation(run_dir)
    name = run_dir.relative_to(root / "runs").as_posix()
    mirror.mirror(root, STUDY, root / "runs", names={name}, strict=True)
    return run_id, run_dir


def client_of(root: Path) -> Any:
    """Return MLflow's own client of the store in a root."""
    with store.open_store(root) as client:
        return client


def experiment_of(root: Path) -> str:
    """Return the id of the study's experiment."""
    return client_of(root).get_experiment_by_name(STUDY).experiment_id


def runs_of(root: Path) -> dict[str, Any]:
    """Return all runs by name, failing if two share one."""
    client = client_of(root)
    found = [client.get_run(run.info.run_id) for run in client.search_runs([experiment_of(root)])]
    by_name = {run.info.run_name: run for run in found}
    assert len(by_name) == len(found)
    return by_name


def history_of(root: Path, run: Any) -> dict[str, list[tuple[int, float]]]:
    """Return every value of every metric of a run, with its step."""
    client = client_of(root)
    return {
        key: sorted((entry.step, entry.value) for entry in client.get_metric_history(run.info.run_id, key))
        for key in run.data.metrics
    }


def content_of(root: Path) -> dict[str, Any]:
    """Return everything that MLflow shows of a study, without the ids and clocks that it makes up itself."""
    client, found, shown = client_of(root), runs_of(root), {}
    for name, run in found.items():
        models = client.search_logged_models([experiment_of(root)], f"source_run_id = '{run.info.run_id}'")
        own = ("mlflow.parentRunId", entries.RUN_ID, entries.PROCESS)
        names = {model.model_id: model.name for model in models}
        assert all(model.status == "READY" for model in models)
        shown[name] = {
            "status": run.info.status,
            "parent": [other for other, run_there in found.items()
                       if run_there.info.run_id == run.data.tags.get("mlflow.parentRunId")],
            "tags": {key: value for key, value in run.data.tags.items() if key not in own},
            "params": run.data.params,
            "metrics": history_of(root, run),
            "inputs": sorted((i.dataset.name, i.dataset.digest, i.dataset.source) for i in run.inputs.dataset_inputs),
            "outputs": sorted((output.step, names[output.model_id]) for output in run.outputs.model_outputs)
            if run.outputs else [],
            "models": {
                model.name: (
                    model.tags, model.params,
                    sorted((entry.key, entry.step, entry.value) for entry in model.metrics),
                    sorted(entry.path for entry in client.list_logged_model_artifacts(model.model_id)),
                )
                for model in models
            },
            "artifacts": [sorted(entry.path for entry in client.list_artifacts(run.info.run_id, folder))
                          for folder in ("train", "evaluate", "evaluate/cross", "report")],
        }  # fmt: skip
        assert len(names) == len(shown[name]["models"])
    return shown


def in_processes(*functions: Callable[[], object]) -> list[int | None]:
    """Run functions at once in processes of their own, and return their exit codes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401 (once here, or seconds in each process)

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=function) for function in functions]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12's, of forking beside threads
        for process in processes:
            process.start()
    for process in processes:
        process.join(180)
    return [process.exitcode for process in processes]


@contextmanager
def mlflow_at(uri: str) -> Iterator[None]:
    """Point MLflow's own functions at a store for a while.

    They note it in the environment, too, for child processes: a later test would take that store for its own.
    """
    import mlflow

    with patch.dict(os.environ):  # all of it comes back
        try:
            mlflow.set_tracking_uri(uri)
            mlflow.set_registry_uri(uri)
            yield
        finally:
            mlflow.set_registry_uri("")
            mlflow.set_tracking_uri(None)
