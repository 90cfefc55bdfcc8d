"""What a training tells MLflow while it runs."""

import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.tracking import entries
from pipeline.tracking.mirror import mirror_train
from pipeline.tracking.store import EPOCH_PATIENCE, open_store, or_warn

# What stages call


def start_run(
    root: str | Path, study: str, record: Mapping[str, Any], run: Mapping[str, Any], resume_run_id: str | None = None
) -> str:
    """Open the run of a training that begins, or open its earlier run again if it goes on after a crash.

    A run is gone on with if it is `resume_run_id`, or else if its process died on this machine before it could leave
    its id anywhere; in both cases only if it computes the same thing (data set, method, round, params, inputs).

    Args:
        root: Of the main repository.
        study: Name of the study, which is the experiment's.
        record: What record.json will hold, as far as it is known.
        run: What run.json will hold, as far as it is known: git_commit, git_dirty, dvc_exp_name, started, device ...
        resume_run_id: Id that an earlier start of this training returned.

    Returns:
        The id for run.json. Where the store cannot be written, one made up here, under which `finish_run` and `mirror`
        file the run later.
    """
    with or_warn(f"the run {entries.run_name(record)}"), open_store(root) as client:
        experiment_id, parent_id = entries.study_ids(client, root, study)
        found = entries.find_run(client, resume_run_id, experiment_id) if resume_run_id else None
        if found is not None and found.data.tags.get(entries.IDENTITY) != entries.identity_of(record):
            found = None
        if found is None:
            found = entries.abandoned_run(client, experiment_id, entries.identity_of(record))
        if found is None:
            started = entries.in_milliseconds(run["started"]) if run.get("started") else None
            found = entries.create_run(client, experiment_id, parent_id, record, resume_run_id, started)
        else:
            client.update_run(found.info.run_id, status="RUNNING")
            if "error" in found.data.tags:
                client.delete_tag(found.info.run_id, "error")
        entries.write_description(client, found, record, run)
        client.set_tag(found.info.run_id, entries.PROCESS, entries.this_process())
        if client.get_run(parent_id).info.status != "RUNNING":
            client.update_run(parent_id, status="RUNNING")
        return found.info.run_id
    return resume_run_id or uuid.uuid4().hex


def log_epoch(
    root: str | Path,
    run_id: str,
    history_row: Mapping[str, Any],
    timing_row: Mapping[str, Any] | None = None,
    checkpoint: str | Path | None = None,
) -> None:
    """Log an epoch: its metrics at that step, and its folded checkpoint as a logged model with the same metrics.

    Logging an epoch again changes nothing; an epoch that came out differently replaces its model and adds its values.

    Args:
        root: Of the main repository.
        run_id: From `start_run`.
        history_row: A row of history.csv. `sections.of_epoch` says what each column is called.
        timing_row: A row of timing.csv.
        checkpoint: The epoch's weights file, which becomes the model's artifact.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
    """
    checkpoint = None if checkpoint is None else Path(checkpoint)
    if checkpoint is not None and not checkpoint.is_file():
        raise FileNotFoundError(f"checkpoint {checkpoint} of epoch {history_row['epoch']} does not exist")
    epoch_number = int(float(history_row["epoch"]))
    with (
        or_warn(f"epoch {epoch_number} of run {run_id}"),
        open_store(root, patience=EPOCH_PATIENCE) as client,
    ):
        run = entries.find_run(client, run_id)
        if run is not None:  # otherwise start_run has warned already
            epoch = entries.Epoch(history_row, timing_row or {}, checkpoint, time.time_ns() // 1_000_000)
            entries.write_epochs(client, run, [epoch])


def finish_run(root: str | Path, study: str, train_dir: str | Path) -> None:
    """Close the run of a complete train folder, after adding what is in its files and not yet in MLflow.

    Args:
        root: Of the main repository.
        study: Name of the study.
        train_dir: runs/<dataset>/<method>/round-<r>/train with record.json, run.json, history.csv, timing.csv and the
            checkpoints. A run that was never started, such as a baseline's, is created here.
    """
    with or_warn(f"the end of {train_dir}"), open_store(root) as client:
        mirror_train(client, *entries.study_ids(client, root, study), Path(train_dir))


def fail_run(root: str | Path, run_id: str, reason: str, status: str = "FAILED") -> None:
    """Mark a run that stops with an error; starting it again with its id opens it again.

    Args:
        root: Of the main repository.
        run_id: From `start_run`.
        reason: Shown as the tag `error`.
        status: FAILED, or KILLED where the user stopped it.
    """
    with or_warn(f"the failure of run {run_id}"), open_store(root) as client:
        run = entries.find_run(client, run_id)
        if run is not None:
            client.set_tag(run.info.run_id, "error", entries.shortened(reason, entries.TAG_LENGTH))
            client.set_terminated(run.info.run_id, status=status)
