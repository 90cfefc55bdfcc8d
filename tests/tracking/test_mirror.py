"""MLflow through its own client as the oracle: what it shows, after kills, restarts, and rebuilding from files."""

import csv
import hashlib
import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.params import Study
from pipeline.tracking import entries, live, mirror, models, store

STUDY = "small"
HISTORY = [
    {"epoch": 1, "learning_rate": 1e-4, "loss": 0.31, "loss_main": 0.3, "loss_auxiliary": 0.1, "train_srcc": 0.41,
     "train_plcc": 0.42, "train_krcc": 0.33, "validation_srcc": 0.4, "validation_plcc": 0.44, "validation_krcc": 0.35},
    {"epoch": 2, "learning_rate": 1e-4, "loss": 1 / 7, "loss_main": 0.1, "loss_auxiliary": 0.09, "train_srcc": 0.75,
     "train_plcc": 0.72, "train_krcc": 0.63, "validation_srcc": 0.8, "validation_plcc": 0.7, "validation_krcc": 0.6},
    {"epoch": 3, "learning_rate": 1e-5, "loss": 0.13, "loss_main": 0.1, "loss_auxiliary": 0.08, "train_srcc": 0.76,
     "train_plcc": 0.73, "train_krcc": 0.64, "validation_srcc": 0.6, "validation_plcc": 0.5, "validation_krcc": 0.4},
]  # fmt: skip
TIMING = [{"epoch": e, "seconds": 2.5 * e, "images_per_second": 40.0 + e, "peak_memory_mb": 900.0} for e in (1, 2, 3)]
ABOUT = {
    "experiment": STUDY, "git_commit": "c0ffee" * 6 + "abcd", "git_dirty": True, "dvc_exp_name": None,
    "started": "2026-03-01T10:00:00+00:00", "device": "cpu", "threads": 2, "torch": "2.13.0",
}  # fmt: skip
METRICS = {
    "test": {"n": 120, "groups": 12, "srcc": 0.71, "krcc": 0.52, "plcc": 0.69, "srcc_low": 0.6},
    "validation": {"srcc": 0.805},
    "generator": {"sd1.5": {"n": 60, "srcc": 0.5}},
    "cross": {"other": {"n": 99, "srcc": 0.31}},
}


def make_record(dataset: str = "demo", method: str = "dcmpln", round_index: int = 0) -> dict[str, Any]:
    return {
        "dataset": dataset, "method": method, "kind": "variant", "round": round_index, "seed": 7,
        "split_rule": "random", "select_on": "validation", "selected_epoch": 2, "epochs_run": 3,
        "leaks": ["random split"], "shuffled_labels": False, "target": "quality", "auxiliary_target": None,
        "backbone": {"name": "tiny", "pretrained": None, "weights_sha256": "5" * 64, "origin": "in-house"},
        "trainable_parameters": 1234, "checkpoint_bytes": 800,
        "params": {"train.learning_rate": 1e-4, "train.flip": True, "texts.main": ["good photo.", "bad photo."]},
        "inputs": {"manifest_md5": "a" * 32, "splits_md5": "b" * 32},
        "images": {"train": 400, "validation": 80, "test": 120},
    }  # fmt: skip


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_train(root: Path, record: Mapping[str, Any], run_id: str, epochs: int = 3) -> Path:
    """Write what a finished training leaves, as the stages' contract says, and return its run folder."""
    run_dir = root / "runs" / record["dataset"] / record["method"] / f"round-{record['round']}"
    folder = run_dir / "train"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps(record))
    about = {**ABOUT, "run_id": run_id, "ended": "2026-03-01T10:01:00+00:00", "seconds": 60.0}
    (folder / "run.json").write_text(json.dumps(about))
    write_csv(folder / "history.csv", HISTORY[:epochs])
    write_csv(folder / "timing.csv", TIMING[:epochs])
    for epoch in range(1, epochs + 1):
        write_weights(folder, record, epoch)
    return run_dir


def work_of(root: Path, record: Mapping[str, Any]) -> Path:
    return root / "work" / record["method"]


def write_weights(folder: Path, record: Mapping[str, Any], epoch: int) -> Path:
    path = folder / "checkpoints" / f"epoch-{epoch:03d}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(f"weights of {record['method']} {record['round']} {epoch}".encode())
    return path


def write_evaluation(run_dir: Path, metrics: Mapping[str, Any] = METRICS) -> None:
    (run_dir / "evaluate" / "cross").mkdir(parents=True, exist_ok=True)
    (run_dir / "evaluate" / "metrics.json").write_text(json.dumps(metrics))
    (run_dir / "evaluate" / "predictions.csv").write_text("image_id,predicted\na,0.5\n")
    (run_dir / "evaluate" / "cross" / "other.csv").write_text("image_id,predicted\nb,0.4\n")


def train_live(root: Path, record: Mapping[str, Any], epochs: int = 3) -> tuple[str, Path]:
    """Do what the train and evaluate stages do."""
    run_id = live.start_run(root, STUDY, record, ABOUT)
    for row, timing in zip(HISTORY[:epochs], TIMING[:epochs], strict=True):
        live.log_epoch(root, run_id, row, timing, write_weights(work_of(root, record), record, int(row["epoch"])))
    run_dir = write_train(root, record, run_id, epochs)
    live.finish_run(root, STUDY, run_dir / "train")
    write_evaluation(run_dir)
    name = run_dir.relative_to(root / "runs").as_posix()
    mirror.mirror(root, STUDY, root / "runs", names={name}, strict=True)
    return run_id, run_dir


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store made once, as that takes seconds, and by two processes at once, as `dvc queue start -j 2` may."""
    root = tmp_path_factory.mktemp("store")

    def make() -> None:
        with store.open_store(root) as client:
            assert client.search_experiments()

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert in_processes(make, make) == [0, 0]
    assert sorted(path.name for path in root.iterdir()) == [".work", "mlflow.db"]
    return root / "mlflow.db"


@pytest.fixture
def make_root(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Return a maker of repository roots with an empty store each."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def make(name: str) -> Path:
        root = tmp_path / name
        root.mkdir()
        shutil.copy(empty_store, root / "mlflow.db")
        return root

    return make


@pytest.fixture
def root(make_root: Callable[[str], Path]) -> Path:
    return make_root("a folder #1")  # a URI must not trip over its name


def client_of(root: Path) -> Any:
    with store.open_store(root) as client:
        return client


def experiment_of(root: Path) -> str:
    return client_of(root).get_experiment_by_name(STUDY).experiment_id


def runs_of(root: Path) -> dict[str, Any]:
    """Return all runs by name, failing if two share one."""
    client = client_of(root)
    runs = [client.get_run(run.info.run_id) for run in client.search_runs([experiment_of(root)])]
    by_name = {run.info.run_name: run for run in runs}
    assert len(by_name) == len(runs)
    return by_name


def history_of(root: Path, run: Any) -> dict[str, list[tuple[int, float]]]:
    client = client_of(root)
    return {
        key: sorted((entry.step, entry.value) for entry in client.get_metric_history(run.info.run_id, key))
        for key in run.data.metrics
    }


def content_of(root: Path) -> dict[str, Any]:
    """Return everything that MLflow shows of a study, without the ids and clocks that it makes up itself."""
    client, runs, shown = client_of(root), runs_of(root), {}
    for name, run in runs.items():
        models = client.search_logged_models([experiment_of(root)], f"source_run_id = '{run.info.run_id}'")
        own = ("mlflow.parentRunId", entries.RUN_ID, entries.PROCESS)
        names = {model.model_id: model.name for model in models}
        assert all(model.status == "READY" for model in models)
        shown[name] = {
            "status": run.info.status,
            "parent": [other for other, run_there in runs.items()
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


def test_a_run_shows_everything_about_it(root: Path) -> None:
    run_id, _ = train_live(root, make_record())
    run = client_of(root).get_run(run_id)
    assert run.info.run_name == "demo/dcmpln/round-0"
    assert run.info.status == "FINISHED"
    assert run.data.params == {
        "train.learning_rate": "0.0001", "train.flip": "true", "texts.main": '["good photo.", "bad photo."]'
    }  # fmt: skip
    expected = {
        "git_commit": ABOUT["git_commit"], "git_dirty": "true", "dvc_exp_name": "none", "dataset": "demo",
        "method": "dcmpln", "kind": "variant", "round": "0", "leaks": "random split", "manifest_md5": "a" * 32,
        "splits_md5": "b" * 32, "backbone_name": "tiny", "backbone_weights_sha256": "5" * 64,
        "backbone_origin": "in-house", "mlflow.source.git.commit": ABOUT["git_commit"],
        "mlflow.note.content": "Backbone tiny with in-house weights. LEAKS: random split.",
        "params_md5": hashlib.md5(json.dumps(make_record()["params"], sort_keys=True).encode()).hexdigest(),
    }  # fmt: skip
    assert {key: run.data.tags.get(key) for key in expected} == expected
    assert {entry.dataset.name: entry.dataset.digest for entry in run.inputs.dataset_inputs} == {
        "demo/manifest": "a" * 32, "demo/splits": "b" * 32
    }  # fmt: skip
    history = history_of(root, run)
    assert history["val_srcc"] == [(1, 0.4), (2, 0.8), (3, 0.6)]
    assert history["loss"] == [(1, 0.31), (2, 1 / 7), (3, 0.13)]
    assert history["images_per_second"] == [(1, 41.0), (2, 42.0), (3, 43.0)]
    assert {key: run.data.metrics[key] for key in ("test_srcc", "test_n", "selected_val_srcc", "cross_other_srcc")} == {
        "test_srcc": 0.71, "test_n": 120, "selected_val_srcc": 0.805, "cross_other_srcc": 0.31
    }  # fmt: skip
    assert run.data.metrics["generator_sd1.5_srcc"] == 0.5
    assert run.data.metrics["trainable_parameters"] == 1234
    parent = runs_of(root)[STUDY]
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    local = client_of(root).download_artifacts(run_id, "evaluate/predictions.csv")
    assert Path(local).read_text().startswith("image_id,predicted")


def test_a_checkpoint_is_found_by_its_metrics_and_downloaded(root: Path) -> None:
    import mlflow

    train_live(root, make_record())
    mlflow.set_tracking_uri(store.tracking_uri(root))
    found = mlflow.search_logged_models(
        experiment_ids=[experiment_of(root)], filter_string="metrics.val_srcc > 0.5", output_format="list"
    )
    assert {model.name for model in found} == {"demo-dcmpln-round-0-epoch-002", "demo-dcmpln-round-0-epoch-003"}
    (best,) = mlflow.search_logged_models(
        experiment_ids=[experiment_of(root)],
        filter_string="metrics.test_srcc > 0.7 AND tags.selected = 'true' AND params.epoch = '2'",
        output_format="list",
    )
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{best.model_id}"))
    assert (folder / "epoch-002.safetensors").read_bytes() == b"weights of dcmpln 0 2"
    assert best.tags["leaks"] == "random split"
    assert mlflow.register_model(f"models:/{best.model_id}", "scorer").version == 1


def test_rebuilding_from_files_equals_the_live_record(
    root: Path, make_root: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for record in (make_record(), make_record(method="main_only", round_index=10)):
        live_id, _ = train_live(root, record)
    report = root / "reports" / "study"
    report.mkdir(parents=True)
    (report / "metrics.json").write_text(json.dumps({"demo": {"dcmpln": {"srcc": 0.71}}}))
    (report / "summary.md").write_text("# Summary\n")
    mirror.log_report(root, STUDY, report)
    counts = mirror.mirror(root, STUDY, root / "runs", report)
    assert counts == {"runs": 2, "created": 0, "epochs": 0, "evaluations": 0, "reports": 0, "skipped": 0}
    before = content_of(root)
    assert before[STUDY]["metrics"] == {"demo_dcmpln_srcc": [(0, 0.71)]}
    assert before[STUDY]["status"] == "FINISHED"

    new = make_root("new")
    counts = mirror.mirror(new, STUDY, root / "runs", report, strict=True)
    assert counts == {"runs": 2, "created": 2, "epochs": 6, "evaluations": 2, "reports": 1, "skipped": 0}
    assert content_of(new) == before
    rebuilt = runs_of(new)["demo/main_only/round-10"]
    assert rebuilt.info.run_id != live_id
    assert rebuilt.data.tags[entries.RUN_ID] == live_id
    assert rebuilt.info.start_time == 1772359200000
    assert rebuilt.info.end_time == 1772359260000

    counts = mirror.mirror(new, STUDY, root / "runs", report, strict=True)
    assert counts == {"runs": 2, "created": 0, "epochs": 0, "evaluations": 0, "reports": 0, "skipped": 0}
    live.log_epoch(new, live_id, HISTORY[1], TIMING[1])  # the first id leads to the rebuilt run
    assert content_of(new) == before


def test_a_killed_training_goes_on_as_one_run(root: Path) -> None:
    record = make_record()
    note = root / "run-id"

    def train_and_die() -> None:
        run_id = live.start_run(root, STUDY, record, ABOUT)
        note.write_text(run_id)
        for row, timing in zip(HISTORY[:2], TIMING[:2], strict=True):
            live.log_epoch(root, run_id, row, timing, write_weights(work_of(root, record), record, int(row["epoch"])))
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_processes(train_and_die) == [-signal.SIGKILL]
    killed = note.read_text()
    assert client_of(root).get_run(killed).info.status == "RUNNING"
    run_id = live.start_run(root, STUDY, record, ABOUT, resume_run_id=killed)
    assert run_id == killed
    for row, timing in zip(HISTORY[1:], TIMING[1:], strict=True):  # epoch 2 was not saved before the kill
        live.log_epoch(root, run_id, row, timing, write_weights(work_of(root, record), record, int(row["epoch"])))
    live.finish_run(root, STUDY, write_train(root, record, run_id) / "train")
    shown = content_of(root)["demo/dcmpln/round-0"]
    assert shown["status"] == "FINISHED"
    assert shown["metrics"]["val_srcc"] == [(1, 0.4), (2, 0.8), (3, 0.6)]
    assert sorted(step for step, _ in shown["outputs"]) == [1, 2, 3]
    assert len(shown["models"]) == 3


def test_a_run_killed_before_it_could_note_its_id_is_taken_up_again(root: Path) -> None:
    def start_and_die() -> None:
        live.start_run(root, STUDY, make_record(), ABOUT)
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_processes(start_and_die, start_and_die) == [-signal.SIGKILL] * 2
    (orphan,) = (run.info.run_id for name, run in runs_of(root).items() if name != STUDY)
    other = make_record()
    other["params"] = {"train.learning_rate": 0.5}
    assert live.start_run(root, STUDY, other, ABOUT) != orphan
    assert live.start_run(root, STUDY, other, ABOUT, resume_run_id=orphan) != orphan
    assert live.start_run(root, STUDY, make_record(), ABOUT) == orphan
    # Its process lives now, so somebody else's equal training gets a run of its own.
    assert live.start_run(root, STUDY, make_record(), ABOUT) != orphan


def test_runs_of_dead_processes_do_not_seem_to_run_on(root: Path) -> None:
    def start_and_die() -> None:
        live.start_run(root, STUDY, make_record(), ABOUT)
        os.kill(os.getpid(), signal.SIGKILL)

    in_processes(start_and_die)
    alive = live.start_run(root, STUDY, make_record(method="alive"), ABOUT)
    mirror.mirror(root, STUDY, root / "runs")
    assert runs_of(root)["demo/dcmpln/round-0"].info.status == "KILLED"
    assert client_of(root).get_run(alive).info.status == "RUNNING"


def test_an_epoch_that_came_out_differently_replaces_the_first(root: Path) -> None:
    record = make_record()
    run_id = live.start_run(root, STUDY, record, ABOUT)
    first = root / "first.safetensors"
    first.write_bytes(b"of a state that was lost")
    live.log_epoch(root, run_id, {**HISTORY[0], "loss": 9.0}, TIMING[0], first)
    live.finish_run(root, STUDY, write_train(root, record, run_id, epochs=1) / "train")
    run = client_of(root).get_run(run_id)
    assert run.data.metrics["loss"] == 0.31
    (model,) = client_of(root).search_logged_models([experiment_of(root)])
    assert model.tags["sha256"] == hashlib.sha256(b"weights of dcmpln 0 1").hexdigest()
    assert {entry.value for entry in model.metrics if entry.key == "loss"} == {0.31}
    before = history_of(root, run)
    mirror.mirror(root, STUDY, root / "runs")
    assert history_of(root, client_of(root).get_run(run_id)) == before


def test_a_failed_run_says_why_and_can_go_on(root: Path) -> None:
    run_id = live.start_run(root, STUDY, make_record(), ABOUT)
    live.fail_run(root, run_id, "loss is nan at epoch 1, step 4 of 7")
    run = client_of(root).get_run(run_id)
    assert (run.info.status, run.data.tags["error"]) == ("FAILED", "loss is nan at epoch 1, step 4 of 7")
    assert live.start_run(root, STUDY, make_record(), ABOUT, resume_run_id=run_id) == run_id
    run = client_of(root).get_run(run_id)
    assert run.info.status == "RUNNING"
    assert "error" not in run.data.tags


def test_a_baseline_is_mirrored_from_its_files_alone(root: Path) -> None:
    record = make_record(method="linear_probe") | {"kind": "baseline", "selected_epoch": 0}
    run_dir = write_train(root, record, "f" * 32, epochs=1)
    shutil.rmtree(run_dir / "train" / "checkpoints")
    (run_dir / "train" / "timing.csv").unlink()
    (run_dir / "train" / "baseline.skops").write_bytes(b"ridge")
    row = dict.fromkeys(HISTORY[0], "") | {"epoch": 0, "validation_srcc": 0.5}
    write_csv(run_dir / "train" / "history.csv", [row])
    write_evaluation(run_dir, {"test": {"srcc": 0.44}})
    assert mirror.mirror(root, STUDY, root / "runs")["created"] == 1
    shown = content_of(root)["demo/linear_probe/round-0"]
    assert shown["metrics"]["val_srcc"] == [(0, 0.5)]
    assert "loss" not in shown["metrics"]
    (model,) = client_of(root).search_logged_models([experiment_of(root)], "metrics.test_srcc > 0.4")
    assert model.name == "demo-linear_probe-round-0-epoch-000"


def test_new_results_of_an_old_run_are_added(root: Path) -> None:
    _, run_dir = train_live(root, make_record())
    write_evaluation(run_dir, {"test": {"srcc": 0.65, "krcc": 0.52}})
    assert mirror.mirror(root, STUDY, root / "runs")["evaluations"] == 1
    run = runs_of(root)["demo/dcmpln/round-0"]
    assert run.data.metrics["test_srcc"] == 0.65
    history = history_of(root, run)
    assert (sorted(history["test_srcc"]), history["test_krcc"]) == ([(0, 0.65), (0, 0.71)], [(0, 0.52)])


def test_lost_artifacts_are_put_back(root: Path) -> None:
    train_live(root, make_record())
    before = content_of(root)
    shutil.rmtree(root / "mlartifacts")
    assert mirror.mirror(root, STUDY, root / "runs")["epochs"] == 3
    assert content_of(root) == before


def test_an_evaluation_of_an_earlier_training_is_left_out(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_dir = write_train(root, make_record(), "e" * 32)
    write_evaluation(run_dir)
    place = "runs/demo/dcmpln/round-0"
    lock = """
        schema: '2.0'
        stages:
          train@demo-dcmpln-0:
            cmd: python -m stages.train
            outs: [{path: PLACE/train, md5: new.dir}]
          evaluate@demo-dcmpln-0:
            cmd: python -m stages.evaluate
            deps: [{path: PLACE/train, md5: USED.dir}]
            outs: [{path: PLACE/evaluate, md5: some.dir}]
        """.replace("PLACE", place)
    (root / "dvc.lock").write_text(lock.replace("USED", "old"))
    counts = mirror.mirror(root, STUDY, root / "runs")
    assert (counts["created"], counts["evaluations"], counts["skipped"]) == (1, 0, 1)
    expected = f"{root / place}/evaluate is of an earlier training, so it is not mirrored: run `dvc repro`"
    assert expected in caplog.messages
    (root / "dvc.lock").write_text(lock.replace("USED", "new"))
    assert mirror.mirror(root, STUDY, root / "runs")["evaluations"] == 1


def test_what_other_studies_left_on_disk_is_passed_over(root: Path) -> None:
    write_train(root, make_record(), "e" * 32, epochs=1)
    write_train(root, make_record(method="other"), "f" * 32, epochs=1)
    assert mirror.mirror(root, STUDY, root / "runs", names={"demo/dcmpln/round-0"})["runs"] == 1
    assert sorted(runs_of(root)) == ["demo/dcmpln/round-0", STUDY]
    # Another study shares the run that DVC took from its cache: the id is known, but in the first study's experiment.
    assert mirror.mirror(root, "larger", root / "runs")["created"] == 2
    assert mirror.mirror(root, "larger", root / "runs")["created"] == 0


def test_a_half_written_folder_is_named(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_dir = write_train(root, make_record(), "e" * 32)
    (run_dir / "train" / "run.json").unlink()
    assert mirror.mirror(root, STUDY, root / "runs")["skipped"] == 1
    assert f"{run_dir}/train has no run.json, so it is not mirrored: run `dvc repro`" in caplog.messages
    (run_dir / "train" / "run.json").write_text('{"run_id": ')
    with pytest.raises(ValueError, match=re.escape(f"{run_dir / 'train' / 'run.json'} is not JSON: ")):
        mirror.mirror(root, STUDY, root / "runs")
    (run_dir / "train" / "run.json").write_text('{"run_id": null}')
    with pytest.raises(ValueError, match=re.escape("run.json has no 'run_id'; run the stage that writes it again")):
        mirror.mirror(root, STUDY, root / "runs")


def test_values_beyond_mlflows_limits_are_shortened(root: Path) -> None:
    record = make_record()
    record["params"] = {"k" * 300: 1, "long": "x" * 7000, "odd key: 50%": 2}
    run_id = live.start_run(root, STUDY, record, ABOUT)
    params = client_of(root).get_run(run_id).data.params
    assert params["odd key: 50_"] == "2"
    assert params["long"].startswith("xxx")
    assert params["long"].endswith(f"... md5 {hashlib.md5(b'x' * 7000).hexdigest()}")
    assert sorted(len(key) for key in params) == [4, 12, 250]


def test_a_store_that_cannot_be_written_stops_no_training(
    make_root: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_root("b")
    (root / "file").write_text("")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'file' / 'folder' / 'mlflow.db'}")
    record = make_record()
    run_id = live.start_run(root, STUDY, record, ABOUT)
    assert re.fullmatch("[0-9a-f]{32}", run_id)
    live.log_epoch(root, run_id, HISTORY[0], TIMING[0], write_weights(root / "work", record, 1))
    run_dir = write_train(root, record, run_id)
    live.finish_run(root, STUDY, run_dir / "train")
    warned = [message for message in caplog.messages if message.startswith("MLflow does not show")]
    assert len(warned) == 3
    assert warned[0].startswith("MLflow does not show the run demo/dcmpln/round-0: NotADirectoryError: ")
    assert warned[0].endswith(
        "Nothing is lost, the files hold all of it; `python -m stages.mirror` adds it once the store can be written."
    )
    with pytest.raises(NotADirectoryError):
        mirror.mirror(root, STUDY, root / "runs", strict=True)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert mirror.mirror(root, STUDY, root / "runs", strict=True)["epochs"] == 3
    assert runs_of(root)["demo/dcmpln/round-0"].data.tags[entries.RUN_ID] == run_id


def test_mistakes_in_a_call_are_errors(root: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(f"checkpoint {root / 'no'} of epoch 1 does not exist")):
        live.log_epoch(root, "a" * 32, HISTORY[0], TIMING[0], root / "no")
    with pytest.raises(ValueError, match=re.escape("run_id \"' or 1=1\" is no id of MLflow's")):
        live.log_epoch(root, "' or 1=1", HISTORY[0])


def test_the_documented_command_rebuilds_a_deleted_database(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from stages import mirror

    study = Study(name=STUDY, datasets=["demo"], variants=["dcmpln"], baselines=[], rounds=[0, 1], audit=[])
    monkeypatch.setattr(mirror, "load_params", lambda path: SimpleNamespace(study=study))
    champions = {"agiqa-demo": "1"}  # tests/test_registration.py and test_served_model.py have the real ones
    monkeypatch.setattr(mirror, "register_champions", lambda *words, **options: champions)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(root)
    with pytest.raises(
        SystemExit, match=re.escape("runs/ holds no run of study 'small': run `dvc pull` or `dvc repro`")
    ):
        mirror.main([])
    write_evaluation(write_train(root, make_record(), "e" * 32))
    caplog.set_level(logging.INFO)
    mirror.main([])
    added = "1 created, 3 epochs, 1 evaluations, 0 reports"
    assert f"experiment 'small' in sqlite:///{root}/mlflow.db: 1 runs on disk, added: {added}" in caplog.messages
    assert "models:/agiqa-demo@champion is version 1" in caplog.messages


def test_two_processes_fill_one_store(root: Path) -> None:
    one, two = make_record(method="one"), make_record(method="two")
    assert in_processes(lambda: train_live(root, one), lambda: train_live(root, two)) == [0, 0]
    shown = content_of(root)
    assert sorted(shown) == ["demo/one/round-0", "demo/two/round-0", STUDY]
    assert [len(run["models"]) for _, run in sorted(shown.items())] == [3, 3, 0]
    assert shown["demo/two/round-0"]["metrics"]["val_srcc"] == [(1, 0.4), (2, 0.8), (3, 0.6)]


def test_logging_of_others_is_left_alone(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train_live(root, make_record())
    assert logging.getLogger().level == logging.WARNING
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""


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
        process.join(60)
    return [process.exitcode for process in processes]


def test_a_checkpoint_comes_back_by_every_kind_of_uri(root: Path) -> None:
    run_id, run_dir = train_live(root, make_record())
    client = client_of(root)
    model = client.search_logged_models([experiment_of(root)], "name = 'demo-dcmpln-round-0-epoch-002'")[0]
    expected = (run_dir / "train" / "checkpoints" / "epoch-002.safetensors").read_bytes()
    client.create_registered_model("agiqa-demo")
    version = client.create_model_version("agiqa-demo", model.artifact_location, run_id, model_id=model.model_id)
    client.set_registered_model_alias("agiqa-demo", "champion", version.version)
    client.log_artifact(run_id, str(run_dir / "train" / "checkpoints" / "epoch-002.safetensors"), "kept")
    for uri in (
        f"models:/{model.model_id}",
        f"models:/agiqa-demo/{version.version}",
        "models:/agiqa-demo@champion",
        f"runs:/{run_id}/kept",
        f"runs:/{run_id}/kept/epoch-002.safetensors",
    ):
        assert models.fetch_checkpoint(uri, root).read_bytes() == expected, uri
    for uri, message in {
        "models:/nobody@champion": "leads to nothing in the MLflow store",
        f"runs:/{run_id}/nothing": "leads to nothing in the MLflow store",
        f"runs:/{run_id}/train": r"must hold one checkpoint \(.safetensors\), and holds 0: none",
    }.items():
        with pytest.raises(ValueError, match=message):
            models.fetch_checkpoint(uri, root)
