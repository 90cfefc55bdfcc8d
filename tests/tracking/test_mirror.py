"""MLflow rebuilt from files, with its own client as the oracle, and dvc.lock as DVC itself writes it."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import ROOT
from made_runs import (
    ABOUT,
    HISTORY,
    STUDY,
    TIMING,
    client_of,
    content_of,
    experiment_of,
    folder_of,
    history_of,
    in_processes,
    make_record,
    runs_of,
    train_live,
    write_baseline,
    write_evaluation,
    write_train,
)

from pipeline import layout
from pipeline.params import Study
from pipeline.tracking import entries, live, mirror


@pytest.mark.slow
def test_rebuilding_from_files_equals_the_live_record(root: Path, make_root: Callable[[str], Path]) -> None:
    for record in (make_record(), make_record(method="main_only", round_index=10)):
        live_id, _ = train_live(root, record)
    report = root / "reports" / "study"
    report.mkdir(parents=True)
    (report / "metrics.json").write_text(json.dumps({"demo": {"dcmpln": {"srcc": 0.71}}}))
    (report / "index.html").write_text("<title>Report</title>")
    assert mirror.mirror(root, STUDY, root / "runs", report)["reports"] == 1
    counts = mirror.mirror(root, STUDY, root / "runs", report)
    assert counts == {"runs": 2, "created": 0, "epochs": 0, "evaluations": 0, "reports": 0, "skipped": 0}
    before = content_of(root)
    assert before[STUDY]["metrics"] == {"mean/demo/dcmpln/srcc": [(0, 0.71)]}
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


def test_runs_of_dead_processes_do_not_seem_to_run_on(root: Path) -> None:
    def start_and_die() -> None:
        live.start_run(root, STUDY, make_record(), ABOUT)
        os.kill(os.getpid(), signal.SIGKILL)

    in_processes(start_and_die)
    alive = live.start_run(root, STUDY, make_record(method="alive"), ABOUT)
    mirror.mirror(root, STUDY, root / "runs")
    assert runs_of(root)["demo/dcmpln/round-0"].info.status == "KILLED"
    assert client_of(root).get_run(alive).info.status == "RUNNING"


def test_a_run_that_another_machine_left_is_over_once_its_result_is_here(root: Path) -> None:
    """Of its process nothing can be known; that of another computation may be at work."""
    client, started = client_of(root), {}
    for method in ("dcmpln", "other"):
        started[method] = live.start_run(root, STUDY, make_record(method=method), ABOUT)
        client.set_tag(started[method], entries.PROCESS, "elsewhere:1")
    write_train(root, make_record(), "e" * 32)
    mirror.mirror(root, STUDY, root / "runs")
    assert client.get_run(started["dcmpln"]).info.status == "KILLED"
    assert client.get_run(started["other"]).info.status == "RUNNING"
    finished = entries.find_run(client, "e" * 32)
    assert finished.info.status == "FINISHED"


def test_a_baseline_is_mirrored_from_its_files_alone(root: Path) -> None:
    run_dir = write_baseline(root, "f" * 32)
    write_evaluation(run_dir, {"test": {"srcc": 0.44}})
    assert mirror.mirror(root, STUDY, root / "runs")["created"] == 1
    shown = content_of(root)["demo/linear_probe/round-0"]
    assert shown["metrics"]["val/srcc"] == shown["metrics"]["val/selected_srcc"] == [(0, 0.5)]
    assert "train/loss" not in shown["metrics"]
    assert shown["artifacts"][0] == ["train/history.csv", "train/record.json", "train/run.json"]
    (model,) = client_of(root).search_logged_models([experiment_of(root)], "metrics.`test/srcc` > 0.4")
    assert model.name == "demo-linear_probe-round-0-epoch-000"
    assert (model.tags["kind"], model.tags["selected"]) == ("baseline", "true")
    (held,) = (root / "mlartifacts" / STUDY / "models" / model.model_id / "artifacts").iterdir()
    assert held.name == "epoch-000.safetensors"
    assert held.read_bytes() == layout.checkpoint_path(run_dir / "train", 0).read_bytes()


def test_a_model_that_comes_later_gets_the_evaluations_numbers(root: Path, tmp_path: Path) -> None:
    """As it goes in a store that was filled before baselines had models there."""
    run_dir = write_baseline(root, "f" * 32)
    write_evaluation(run_dir)
    model = layout.checkpoint_path(run_dir / "train", 0).rename(tmp_path / "model")
    mirror.mirror(root, STUDY, root / "runs")
    assert not client_of(root).search_logged_models([experiment_of(root)])
    model.rename(layout.checkpoint_path(run_dir / "train", 0))
    counts = mirror.mirror(root, STUDY, root / "runs")
    assert (counts["created"], counts["epochs"], counts["evaluations"]) == (0, 1, 1)
    assert len(client_of(root).search_logged_models([experiment_of(root)], "metrics.`test/srcc` > 0.7")) == 1


def test_new_results_of_an_old_run_are_added(root: Path) -> None:
    _, run_dir = train_live(root, make_record())
    write_evaluation(run_dir, {"test": {"srcc": 0.65, "krcc": 0.52}})
    assert mirror.mirror(root, STUDY, root / "runs")["evaluations"] == 1
    run = runs_of(root)["demo/dcmpln/round-0"]
    assert run.data.metrics["test/srcc"] == 0.65
    history = history_of(root, run)
    assert (sorted(history["test/srcc"]), history["test/krcc"]) == ([(0, 0.65), (0, 0.71)], [(0, 0.52)])


def test_lost_artifacts_are_put_back(root: Path) -> None:
    train_live(root, make_record())
    before = content_of(root)
    shutil.rmtree(root / "mlartifacts")
    assert mirror.mirror(root, STUDY, root / "runs")["epochs"] == 3
    assert content_of(root) == before


@pytest.fixture
def take_up(root: Path) -> Callable[..., None]:
    """Return what writes dvc.lock for stages, as `dvc repro` does after it ran them: DVC itself, from our dvc.yaml."""

    def dvc(*words: str) -> None:
        command = [sys.executable, "-m", "dvc", *words]
        subprocess.run(command, cwd=root, check=True, capture_output=True, env={**os.environ, "DVC_NO_ANALYTICS": "1"})

    params = yaml.safe_load((ROOT / "params" / "demo.yaml").read_text())
    params["study"] |= {"variants": ["dcmpln"], "baselines": ["linear_probe"], "rounds": [0], "audit": ["dcmpln"]}
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    shutil.copy(ROOT / "dvc.yaml", root)
    for name in (
        "code/train.json", "code/evaluate.json", "code/audit.json", "code/baseline.json", "index/round-0.json",
        "features/demo.npz", "feature-times/demo.json", "prepared/demo/manifest.parquet",
        "splits/demo/round-0.csv", "splits/demo/random-0.csv",
    ):  # fmt: skip
        (root / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "data" / name).write_text(name)
    dvc("init", "--no-scm", "-q")
    return lambda *stages: dvc("commit", "-f", "-q", *stages)


@pytest.mark.slow
def test_an_evaluation_of_an_earlier_training_is_left_out(
    root: Path, take_up: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    ours, drawn = make_record(), make_record(split="random")
    for record in (ours, drawn):
        write_evaluation(write_train(root, record, uuid.uuid4().hex))
        (folder_of(root, record) / "audit").mkdir()
    write_evaluation(write_baseline(root, "b" * 32))
    stages = {"train@demo-dcmpln-0", "train_random@demo-dcmpln-0"}
    later = {"evaluate@demo-dcmpln-0", "audit@demo-dcmpln-0", "baseline@demo-linear_probe"}
    take_up(*stages, *later)

    def mirrored() -> tuple[int, int]:
        counts = mirror.mirror(root, STUDY, root / "runs", strict=True)
        return counts["evaluations"], counts["skipped"]

    assert mirrored() == (3, 0)
    # Trained anew, and stopped before anything was evaluated.
    for record in (ours, drawn):
        write_train(root, {**record, "checkpoint_md5": "of other weights"}, uuid.uuid4().hex)
    take_up(*stages)
    assert mirrored() == (0, 2)
    for place in ("round-0", "random-0"):
        folder = root / "runs/demo/dcmpln" / place / "evaluate"
        assert f"{folder} is of an earlier training, so it is not mirrored: run `dvc repro`" in caplog.messages
    take_up(*later)
    assert mirrored() == (2, 0)
    # A new training that came out alike is no reason to evaluate anew, for DVC neither.
    write_train(root, {**ours, "checkpoint_md5": "of other weights"}, uuid.uuid4().hex)
    take_up("train@demo-dcmpln-0")
    assert mirrored() == (1, 0)


def test_an_evaluation_that_nothing_vouches_for_is_left_out(root: Path, take_up: Callable[..., None]) -> None:
    """As it would be if dvc.yaml called the record otherwise than the layout does."""
    write_evaluation(write_train(root, make_record(), "e" * 32))
    stages = (root / "dvc.yaml").read_text()
    (root / "dvc.yaml").write_text(stages.replace("train/record.json", "train/history.csv"))
    take_up("train@demo-dcmpln-0", "evaluate@demo-dcmpln-0")
    assert mirror.mirror(root, STUDY, root / "runs")["skipped"] == 1


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


def test_the_documented_command_rebuilds_a_deleted_database(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from stages import mirror

    study = Study(name=STUDY, datasets=["demo"], variants=["dcmpln"], baselines=[], rounds=[0, 1], audit=[])
    monkeypatch.setattr(mirror, "load_params", lambda path: SimpleNamespace(study=study))
    champions = {"agiqa-demo": "1"}  # tests/serving has the real ones
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
