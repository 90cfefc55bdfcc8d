"""What a training tells MLflow while it runs: killed, gone on with, failed, and called wrongly."""

import hashlib
import os
import re
import signal
from pathlib import Path

import pytest
from made_runs import (
    ABOUT,
    HISTORY,
    STUDY,
    TIMING,
    client_of,
    content_of,
    experiment_of,
    history_of,
    in_processes,
    make_record,
    runs_of,
    work_of,
    write_train,
    write_weights,
)

from pipeline.tracking import live, mirror


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
    assert shown["metrics"]["val/srcc"] == [(1, 0.4), (2, 0.8), (3, 0.6)]
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


def test_an_epoch_that_came_out_differently_replaces_the_first(root: Path) -> None:
    record = make_record()
    run_id = live.start_run(root, STUDY, record, ABOUT)
    first = root / "first.safetensors"
    first.write_bytes(b"of a state that was lost")
    live.log_epoch(root, run_id, {**HISTORY[0], "loss": 9.0}, TIMING[0], first)
    live.finish_run(root, STUDY, write_train(root, record, run_id, epochs=1) / "train")
    run = client_of(root).get_run(run_id)
    assert run.data.metrics["train/loss"] == 0.31
    (model,) = client_of(root).search_logged_models([experiment_of(root)])
    assert model.tags["sha256"] == hashlib.sha256(b"weights of dcmpln 0 1").hexdigest()
    assert {entry.value for entry in model.metrics if entry.key == "train/loss"} == {0.31}
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


def test_mistakes_in_a_call_are_errors(root: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(f"checkpoint {root / 'no'} of epoch 1 does not exist")):
        live.log_epoch(root, "a" * 32, HISTORY[0], TIMING[0], root / "no")
    with pytest.raises(ValueError, match=re.escape("run_id \"' or 1=1\" is no id of MLflow's")):
        live.log_epoch(root, "' or 1=1", HISTORY[0])
