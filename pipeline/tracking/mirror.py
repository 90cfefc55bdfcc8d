"""Everything that MLflow shows, rebuilt from files alone; what is already there is left alone."""

import csv
import json
import re
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from pipeline import layout
from pipeline.files import file_md5
from pipeline.tracking import entries, sections
from pipeline.tracking.store import ASKED_PATIENCE, PATIENCE, logger, open_store, or_warn

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

MIRRORED = "agiqa.mirrored_"  # + train, evaluate or report: hash of the files that are in MLflow completely

NEEDED = (layout.RECORD, layout.RUN, layout.HISTORY)
TRAIN_FILES = (*NEEDED, layout.TIMING)  # a baseline has no epochs to time


def mirror(
    root: str | Path,
    study: str,
    runs_dir: str | Path,
    report_dir: str | Path | None = None,
    *,
    names: Collection[str] | None = None,
    strict: bool = False,
) -> dict[str, int]:
    """Bring everything on disk into MLflow; what is already there is left alone.

    Serves a deleted database, a clone that pulled its results, stages that DVC restored from its cache, and runs that
    could not be logged while they ran. Runs whose process died are marked KILLED, as are those of other machines where
    another run has computed the same.

    Args:
        root: Of the main repository.
        study: Name of the study.
        runs_dir: Folder of `<dataset>/<method>/round-<r>/`.
        report_dir: Folder of the report, if there is one.
        names: The study's runs, as `<dataset>/<method>/round-<r>`; what earlier studies left in `runs_dir` is passed
            over. None takes all.
        strict: Somebody asked for it: wait longer for other writers, and raise StoreError if the store cannot be
            written, where otherwise a warning does.

    Returns:
        Counts of what was found (`runs`) and what was written: `created` runs, `epochs`, `evaluations`, `reports`, and
        `skipped` folders that are incomplete or out of date, each with a warning.
    """
    runs_dir = Path(runs_dir)
    counts: Counter[str] = Counter(dict.fromkeys(("runs", "created", "epochs", "evaluations", "reports", "skipped"), 0))
    splits = ("round", "random")
    folders = [folder.parent for split in splits for folder in runs_dir.glob(f"*/*/{split}-*/{layout.TRAIN}")]
    folders = [folder for folder in folders if names is None or folder.relative_to(runs_dir).as_posix() in names]
    stale, on_disk, done = _stale_evaluations(runs_dir), set(), set()
    patience = ASKED_PATIENCE if strict else PATIENCE
    with or_warn("what is on disk", strict=strict):
        with open_store(root, patience=patience) as client:
            experiment_id, parent_id = entries.study_ids(client, root, study)
            known = entries.known_runs(client, experiment_id)
        for folder in tqdm(
            sorted(folders, key=_natural), desc="mirror to MLflow", unit="run", delay=1, dynamic_ncols=True
        ):
            train, evaluation = folder / layout.TRAIN, folder / layout.EVALUATE
            missing = [name for name in NEEDED if not (train / name).is_file()]
            if missing:
                counts["skipped"] += 1
                logger.warning("%s has no %s, so it is not mirrored: run `dvc repro`", train, ", ".join(missing))
                continue
            # Taken anew for each run: a training that logs an epoch need not wait.
            with open_store(root, patience=patience) as client:
                run, written = mirror_train(client, experiment_id, parent_id, train, known)
                if evaluation.resolve() in stale:
                    written["skipped"] += 1
                    logger.warning("%s is of an earlier training, so it is not mirrored: run `dvc repro`", evaluation)
                elif (evaluation / layout.METRICS).is_file():
                    written["evaluations"] += _mirror_evaluation(client, run, folder)
            counts.update(written)
            on_disk.add(run.info.run_id)
            done.add(run.data.tags.get(entries.IDENTITY))
        with open_store(root, patience=patience) as client:
            for run in known.values():
                is_running = run.info.status == "RUNNING" and run.info.run_id not in on_disk
                process = run.data.tags.get(entries.PROCESS, "")
                # Of a process on another machine nothing is known, but that what it computed is here by now.
                is_over = run.data.tags.get(entries.IDENTITY) in done and not entries.is_here(process)
                if is_running and (is_over or entries.is_dead(process)):
                    client.set_terminated(run.info.run_id, status="KILLED")
            if report_dir is not None and Path(report_dir).is_dir():
                counts["reports"] += _mirror_report(client, parent_id, Path(report_dir))
            elif client.get_run(parent_id).info.status == "RUNNING":
                client.set_terminated(parent_id)
    return dict(counts)


# From files


def mirror_train(
    client: "MlflowClient",
    experiment_id: str,
    parent_id: str,
    folder: Path,
    known: Mapping[str, "Run"] | None = None,
) -> tuple["Run", Counter[str]]:
    """Bring a train folder into MLflow, and return its run and counts of what was written."""
    counts: Counter[str] = Counter(runs=1)
    record = entries.read_json(folder / layout.RECORD, "dataset", "method", "round")
    about = entries.read_json(folder / layout.RUN, "run_id", "started", "ended")
    history, weights = _read_csv(folder / layout.HISTORY), layout.weights_files(folder)
    sizes = json.dumps({epoch: [path.name, path.stat().st_size] for epoch, path in weights.items()}, sort_keys=True)
    digest = _files_md5([folder / name for name in TRAIN_FILES], sizes)
    started = entries.in_milliseconds(about["started"])
    run = (known or {}).get(about["run_id"]) or entries.find_run(client, about["run_id"], experiment_id)
    if run is None:
        run = entries.create_run(client, experiment_id, parent_id, record, about["run_id"], started)
        counts["created"] += 1
    elif run.data.tags.get(MIRRORED + "train") == digest and client.list_artifacts(run.info.run_id, "train"):
        return run, counts

    run_id = run.info.run_id
    if MIRRORED + "evaluate" in run.data.tags:  # the selected epoch's model may be new, and then lacks its numbers
        client.delete_tag(run_id, MIRRORED + "evaluate")
    entries.write_description(client, run, record, about)
    run = client.get_run(run_id)  # with the tags that its models take over
    timing = {int(float(row["epoch"])): row for row in _read_csv(folder / layout.TIMING)}
    epochs, over = [], started
    for row in history:
        epoch = int(float(row["epoch"]))
        over += int(1000 * float(timing.get(epoch, {}).get("seconds") or 0))
        epochs.append(entries.Epoch(row, timing.get(epoch, {}), weights.get(epoch), over))
    counts["epochs"] += entries.write_epochs(client, run, epochs)
    _put_totals(client, run, sections.of_training(record, about), None, entries.in_milliseconds(about["ended"]))
    selected = _selected_model(client, run, record)
    if selected is not None:
        client.set_logged_model_tags(selected.model_id, {"selected": "true"})
    for name in TRAIN_FILES:
        if (folder / name).is_file():
            client.log_artifact(run_id, str(folder / name), "train")
    client.set_terminated(run_id, "FINISHED", end_time=entries.in_milliseconds(about["ended"]))
    client.set_tag(run_id, MIRRORED + "train", digest)
    return client.get_run(run_id), counts


def _mirror_evaluation(client: "MlflowClient", run: "Run", run_dir: Path) -> int:
    """Bring an evaluate folder into its run, its numbers to the selected epoch's model too; return whether it wrote.

    All of them are scored with all windows of an image. So val/selected_srcc differs from that epoch's val/srcc, for
    which a training scores as many windows as the param `validation.windows` says; in runs of earlier versions it is
    the same number once more. `sections.NOTE` says what each metric is.
    """
    folder = run_dir / layout.EVALUATE
    digest = _files_md5(sorted(path for path in folder.rglob("*") if path.is_file()), run_dir.name)
    if run.data.tags.get(MIRRORED + "evaluate") == digest and client.list_artifacts(run.info.run_id, "evaluate"):
        return 0
    numbers = sections.of_evaluation(entries.read_json(folder / layout.METRICS))
    selected = _selected_model(client, run, entries.read_json(run_dir / layout.TRAIN / layout.RECORD))
    _put_totals(client, run, numbers, selected, run.info.end_time or time.time_ns() // 1_000_000)
    client.log_artifacts(run.info.run_id, str(folder), "evaluate")
    client.set_tag(run.info.run_id, MIRRORED + "evaluate", digest)
    return 1


def _mirror_report(client: "MlflowClient", parent_id: str, folder: Path) -> int:
    """Bring a report into the study's parent run, and return whether that took any writing."""
    parent = client.get_run(parent_id)
    digest = _files_md5(sorted(path for path in folder.rglob("*") if path.is_file()), "report")
    written = 0
    if parent.data.tags.get(MIRRORED + "report") != digest or not client.list_artifacts(parent_id, "report"):
        path = folder / layout.METRICS
        numbers = sections.of_report(entries.read_json(path)) if path.is_file() else {}
        _put_totals(client, parent, numbers, None, time.time_ns() // 1_000_000)
        client.log_artifacts(parent_id, str(folder), "report")
        client.set_tag(parent_id, MIRRORED + "report", digest)
        written = 1
    if written or parent.info.status == "RUNNING":
        client.set_terminated(parent_id)
    return written


def _put_totals(
    client: "MlflowClient", run: "Run", numbers: Mapping[str, float], model: "LoggedModel | None", milliseconds: int
) -> None:
    """Write numbers that belong to no epoch: step 0 of the run, and of a model if given."""
    from mlflow.entities import Metric  # imported here: costs 3 s

    models = {} if model is None else {model.model_id: model}
    model_id = None if model is None else model.model_id
    wanted = [
        Metric(entries.entry_key(key), value, milliseconds, 0, model_id=model_id) for key, value in numbers.items()
    ]
    entries.put_metrics(client, run, wanted, models)


def _selected_model(client: "MlflowClient", run: "Run", record: Mapping[str, Any]) -> "LoggedModel | None":
    epoch = entries.Epoch({"epoch": record.get("selected_epoch") or 0}, {}, None, 0)
    filter_string = f"source_run_id = '{run.info.run_id}' AND name = '{entries.model_name(run, epoch)}'"
    models = entries.search_models(client, run, filter_string)
    return models[0] if models else None


def _stale_evaluations(runs_dir: Path) -> set[Path]:
    """Return the evaluate folders that were made from another training than the one beside them, as dvc.lock tells.

    `evaluate` depends on the training's record, which names the selected checkpoint's content, and `audit`, which
    evaluates the trainings under random splits, on the whole train folder. Where a stage depends on neither, nothing
    vouches for its evaluation. A baseline's is not judged: its one stage makes model and evaluation, after DVC has
    removed what an earlier one left.
    """
    lock = runs_dir.resolve().parent / layout.LOCK
    if not lock.is_file():
        return set()
    stages = layout.locked_stages(lock).values()
    made = {out["path"]: out.get("md5") for stage in stages for out in stage.get("outs", [])}
    stale = set()
    for stage in stages:
        used = {entry["path"]: entry.get("md5") for entry in stage.get("deps", [])}
        for folder in (Path(out["path"]) for out in stage.get("outs", [])):
            if folder.name != layout.EVALUATE:
                continue
            train = folder.parent / layout.TRAIN
            record, present = used.get((train / layout.RECORD).as_posix()), lock.parent / train / layout.RECORD
            if record is not None:
                fits = present.is_file() and file_md5(present) == record
            else:
                fits = train.as_posix() in used and used[train.as_posix()] == made.get(train.as_posix())
            if not fits:
                stale.add((lock.parent / folder).resolve())
    return stale


def _files_md5(paths: Sequence[Path], also: str) -> str:
    parts = [sections.EDITION, also] + [
        f"{path.name} {entries.md5_of(path.read_bytes())}" for path in paths if path.is_file()
    ]
    return entries.md5_of("\n".join(parts).encode())


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort round-10 after round-9."""
    return [(int(part or 0), word) for word, part in re.findall(r"(\D+)(\d*)", path.as_posix())]


def _read_csv(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))
