"""The mirror in MLflow of what the stages wrote; the only module that knows MLflow, beside the model that it serves.

Files are the truth: everything that MLflow shows can be rebuilt from runs/ and reports/. So its database may be deleted
at any time, `python -m stages.mirror` fills a new one, and a store that cannot be written never stops a training: the
functions that stages call warn, and a later mirror makes up for it.

    start_run     before the first epoch, or to go on after a crash
    log_epoch     after each epoch
    finish_run    when the train folder is complete; also adds whatever the calls above could not
    log_report    when the report is complete
    mirror        all of it again, from files alone; what is already there is left alone
    log_champion  the model to use, as one that MLflow loads and serves

and back again, `fetch_checkpoint` gives the checkpoint file behind an MLflow URI.

A run is known by its MLflow id. Ids cannot be chosen, so a rebuilt run keeps its first id in the tag `agiqa.run_id`,
and every function finds it under either.

Imports nothing of ours. MLflow is imported inside the functions: it costs 3 s, and most stages never need it.
"""

import csv
import hashlib
import json
import logging
import math
import os
import re
import socket
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from filelock import FileLock
from tqdm import tqdm

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Metric, Run
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)

# MLflow reads these when it is imported. Whatever the user has set stays.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # the default of 7 would hold up a training for minutes at every epoch
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # of files that lie on this machine
}
LOCK_SECONDS = 120

# MLflow's limits on what it takes (mlflow.utils.validation).
KEY_LENGTH, PARAM_LENGTH, TAG_LENGTH, DIGEST_LENGTH = 250, 6000, 8000, 36

# Tags that only this module reads.
KIND = "agiqa.kind"  # "study" on the parent run
RUN_ID = "agiqa.run_id"  # the id in run.json, where MLflow gave the rebuilt run another
IDENTITY = "agiqa.identity"  # hash of what the run computes: a killed run is gone on with only if this is equal
PROCESS = "agiqa.process"  # who writes it: "host:pid"
MIRRORED = "agiqa.mirrored_"  # + train, evaluate or report: hash of the files that are in MLflow completely

# What pipeline.served_model imports; a served model asks for the versions that it was made with.
SERVED_WITH = ("mlflow", "numpy", "pandas", "pillow", "torch", "tqdm")

TRAIN_FILES = ("record.json", "run.json", "history.csv", "timing.csv")


class _Epoch(NamedTuple):
    """One row of history.csv with what belongs to it; `milliseconds` is when it was over."""

    history: Mapping[str, Any]
    timing: Mapping[str, Any]
    checkpoint: Path | None
    milliseconds: int


# The store


def tracking_uri(root: str | Path) -> str:
    """Return where MLflow writes: MLFLOW_TRACKING_URI if set, else mlflow.db in the repository's root.

    Args:
        root: Of the main repository. Under `dvc exp run --temp` and `dvc queue` that is not the working folder.
    """
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(root).resolve() / 'mlflow.db'}"


@contextmanager
def open_store(root: str | Path) -> Iterator["MlflowClient"]:
    """Hand out a client of the store, created if need be, while no other process of ours writes to it.

    SQLite takes one writer, and fails at once where two that read both begin to write; so writers queue at a file lock.

    Args:
        root: Of the main repository; holds mlflow.db, mlartifacts/ and .work/mlflow.lock.

    Raises:
        OSError: If the lock is not free within two minutes, or a file cannot be written.
        Exception: Whatever MLflow raises about a store that it cannot open.
    """
    root = Path(root).resolve()
    (root / ".work").mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".work" / "mlflow.lock", timeout=LOCK_SECONDS):
        client = _client(tracking_uri(root))
        if isinstance(client, Exception):
            raise client
        yield client


@cache  # one try a process: MLflow spends minutes on retries before it gives up on a database
def _client(uri: str) -> "MlflowClient | Exception":
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it lists every one of sixty migrations
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of SQLAlchemy, about MLflow
        from mlflow import MlflowClient  # imported here: costs 3 s

        try:
            if uri.startswith("sqlite:///"):
                _create_database(Path(uri.removeprefix("sqlite:///")))
            # Named, or MLflow would take whatever registry this process, if it uses MLflow itself, has set for all.
            return MlflowClient(uri, registry_uri=os.environ.get("MLFLOW_REGISTRY_URI") or uri)
        except Exception as error:  # raised by every later call, too
            return error


def _create_database(path: Path) -> None:
    """Create an empty SQLite store under a side name first: one half made by a killed process cannot be repaired."""
    if path.exists():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore  # imported here: costs 1 s

    logger.info("creating the MLflow store %s (some seconds, once)", path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    for leftover in (partial, partial.with_name(partial.name + "-journal")):
        leftover.unlink(missing_ok=True)
    SqlAlchemyStore(f"sqlite:///{partial}", str(path.parent / "mlartifacts")).engine.dispose()
    partial.replace(path)


@contextmanager
def or_warn(what: str, *, strict: bool = False) -> Iterator[None]:
    """Turn a store's failure into a warning; a mistake in our own code stays an error."""
    try:
        yield
    except Exception as error:
        kinds = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
        if strict or not (isinstance(error, OSError) or kinds & {"mlflow", "sqlalchemy", "alembic"}):
            raise
        logger.warning(
            "MLflow does not show %s: %s: %s. Nothing is lost, the files hold all of it; "
            "`python -m stages.mirror` adds it once the store can be written.",
            what, type(error).__name__, str(error).strip().partition("\n")[0][:300],
        )  # fmt: skip


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
    with or_warn(f"the run {_run_name(record)}"), open_store(root) as client:
        experiment_id, parent_id = _study(client, root, study)
        found = _find_run(client, resume_run_id, experiment_id) if resume_run_id else None
        if found is not None and found.data.tags.get(IDENTITY) != _identity(record):
            found = None
        if found is None:
            found = _abandoned_run(client, experiment_id, _identity(record))
        if found is None:
            started = _milliseconds(run["started"]) if run.get("started") else None
            found = _create_run(client, experiment_id, parent_id, record, resume_run_id, started)
        else:
            client.update_run(found.info.run_id, status="RUNNING")
            if "error" in found.data.tags:
                client.delete_tag(found.info.run_id, "error")
        _write_description(client, found, record, run)
        client.set_tag(found.info.run_id, PROCESS, _this_process())
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
        history_row: A row of history.csv. `validation_...` is logged as `val_...`; empty and NaN values are left out.
        timing_row: A row of timing.csv.
        checkpoint: The epoch's weights file, which becomes the model's artifact.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
    """
    checkpoint = None if checkpoint is None else Path(checkpoint)
    if checkpoint is not None and not checkpoint.is_file():
        raise FileNotFoundError(f"checkpoint {checkpoint} of epoch {history_row['epoch']} does not exist")
    with or_warn(f"epoch {int(float(history_row['epoch']))} of run {run_id}"), open_store(root) as client:
        run = _find_run(client, run_id)
        if run is not None:  # otherwise start_run has warned already
            epoch = _Epoch(history_row, timing_row or {}, checkpoint, time.time_ns() // 1_000_000)
            _write_epochs(client, run, [epoch])


def finish_run(root: str | Path, study: str, train_dir: str | Path) -> None:
    """Close the run of a complete train folder, after adding what is in its files and not yet in MLflow.

    Args:
        root: Of the main repository.
        study: Name of the study.
        train_dir: runs/<dataset>/<method>/round-<r>/train with record.json, run.json, history.csv, timing.csv and the
            checkpoints. A run that was never started, such as a baseline's, is created here.
    """
    with or_warn(f"the end of {train_dir}"), open_store(root) as client:
        _mirror_train(client, *_study(client, root, study), Path(train_dir))


def fail_run(root: str | Path, run_id: str, reason: str, status: str = "FAILED") -> None:
    """Mark a run that stops with an error; starting it again with its id opens it again.

    Args:
        root: Of the main repository.
        run_id: From `start_run`.
        reason: Shown as the tag `error`.
        status: FAILED, or KILLED where the user stopped it.
    """
    with or_warn(f"the failure of run {run_id}"), open_store(root) as client:
        run = _find_run(client, run_id)
        if run is not None:
            client.set_tag(run.info.run_id, "error", _shortened(reason, TAG_LENGTH))
            client.set_terminated(run.info.run_id, status=status)


def log_report(root: str | Path, study: str, report_dir: str | Path) -> None:
    """Log a report's files into the study's parent run, with every number of its metrics.json, and close that run.

    Args:
        root: Of the main repository.
        study: Name of the study.
        report_dir: Such as reports/study.
    """
    with or_warn(f"the report {report_dir}"), open_store(root) as client:
        _mirror_report(client, _study(client, root, study)[1], Path(report_dir))


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
    could not be logged while they ran. Runs whose process died are marked KILLED.

    Args:
        root: Of the main repository.
        study: Name of the study.
        runs_dir: Folder of `<dataset>/<method>/round-<r>/`.
        report_dir: Folder of the report, if there is one.
        names: The study's runs, as `<dataset>/<method>/round-<r>`; what earlier studies left in `runs_dir` is passed
            over. None takes all.
        strict: Raise if the store cannot be written, where otherwise a warning does.

    Returns:
        Counts of what was found (`runs`) and what was written: `created` runs, `epochs`, `evaluations`, `reports`, and
        `skipped` folders that are incomplete or out of date, each with a warning.
    """
    runs_dir = Path(runs_dir)
    counts: Counter[str] = Counter(dict.fromkeys(("runs", "created", "epochs", "evaluations", "reports", "skipped"), 0))
    folders = [folder.parent for split in ("round", "random") for folder in runs_dir.glob(f"*/*/{split}-*/train")]
    folders = [folder for folder in folders if names is None or folder.relative_to(runs_dir).as_posix() in names]
    stale, on_disk = _stale_evaluations(runs_dir), set()
    with or_warn("what is on disk", strict=strict):
        with open_store(root) as client:
            experiment_id, parent_id = _study(client, root, study)
            known = _known_runs(client, experiment_id)
        for folder in tqdm(
            sorted(folders, key=_natural), desc="mirror to MLflow", unit="run", delay=1, dynamic_ncols=True
        ):
            missing = [name for name in TRAIN_FILES[:3] if not (folder / "train" / name).is_file()]
            if missing:
                counts["skipped"] += 1
                logger.warning("%s/train has no %s, so it is not mirrored: run `dvc repro`", folder, ", ".join(missing))
                continue
            with open_store(root) as client:  # taken anew for each run: a training that logs an epoch need not wait
                run, written = _mirror_train(client, experiment_id, parent_id, folder / "train", known)
                if folder.resolve() in stale:
                    written["skipped"] += 1
                    logger.warning(
                        "%s/evaluate is of an earlier training, so it is not mirrored: run `dvc repro`", folder
                    )
                elif (folder / "evaluate" / "metrics.json").is_file():
                    written["evaluations"] += _mirror_evaluation(client, run, folder)
            counts.update(written)
            on_disk.add(run.info.run_id)
        with open_store(root) as client:
            for run in known.values():
                is_running = run.info.status == "RUNNING" and run.info.run_id not in on_disk
                if is_running and _is_dead(run.data.tags.get(PROCESS, "")):
                    client.set_terminated(run.info.run_id, status="KILLED")
            if report_dir is not None and Path(report_dir).is_dir():
                counts["reports"] += _mirror_report(client, parent_id, Path(report_dir))
    return dict(counts)


def fetch_checkpoint(uri: str, root: str | Path) -> Path:
    """Return the checkpoint file behind an MLflow URI, downloaded unless the store lies on this machine.

    Args:
        uri: `models:/<name>@<alias>`, `models:/<name>/<version>`, `models:/<model id>`, or `runs:/<run id>/<path>`.
        root: Of the main repository; see `tracking_uri`.

    Raises:
        ValueError: If nothing is behind the URI, or not exactly one checkpoint.
    """
    store = tracking_uri(root)
    client = _client(store)
    if isinstance(client, Exception):
        raise ValueError(f"{uri}: the MLflow store {store} cannot be opened: {client}") from client
    from mlflow.artifacts import download_artifacts

    try:
        location = uri
        while location.startswith(("models:/", "runs:/")):
            location = _location(client, location)
        found = Path(download_artifacts(artifact_uri=location, tracking_uri=store))
    except Exception as error:  # MLflow raises its own and those of every kind of store
        raise ValueError(f"{uri} leads to nothing in the MLflow store {store}: {error}") from error
    files = [found] if found.is_file() else sorted(found.rglob("*.safetensors"))
    files = [path for path in files if path.suffix == ".safetensors"]
    if len(files) != 1:
        names = ", ".join(path.name for path in files[:3]) or "none"
        raise ValueError(f"{uri} must hold one checkpoint (.safetensors), and holds {len(files)}: {names}")
    return files[0]


def _location(client: "MlflowClient", uri: str) -> str:
    """Return where the artifacts behind a URI lie; asked of this client, since `mlflow` itself has one global store."""
    scheme, name = uri.split(":/", 1)
    name = name.lstrip("/")
    if scheme == "runs":
        run_id, _, path = name.partition("/")
        return f"{client.get_run(run_id).info.artifact_uri}/{path}"
    if "@" in name:
        model, alias = name.rsplit("@", 1)
        return client.get_model_version_download_uri(model, client.get_model_version_by_alias(model, alias).version)
    if "/" in name:
        return client.get_model_version_download_uri(*name.rsplit("/", 1))
    return client.get_logged_model(name).artifact_location


def log_champion(
    root: str | Path, study: str, train_dir: str | Path, make_program: Callable[[Path, Path], None]
) -> str:
    """Register the selected epoch of a training as `models:/agiqa-<data set>@champion`, an MLflow pyfunc model.

    The model holds the checkpoint, the scorer as a program, a copy of our package, signature, input example and pinned
    requirements, so that `mlflow.pyfunc.load_model` and `mlflow models serve` need nothing else. Where this checkpoint
    is the champion already, nothing is done.

    Args:
        root: Of the main repository.
        study: Name of the study.
        train_dir: runs/<dataset>/<method>/round-<r>/train of the champion.
        make_program: Writes the scorer of a checkpoint (first argument) as a torch.export program (second); called
            only if the champion is new.

    Returns:
        The version that has the alias.

    Raises:
        FileNotFoundError: If the selected epoch has no checkpoint.
        ValueError: If the training has no selected epoch, or has leaks or shuffled labels: such a model is no champion.
        Exception: Whatever MLflow raises about a store that cannot be written.
    """
    train_dir = Path(train_dir)
    record = _read_json(train_dir / "record.json", "dataset", "method", "round", "selected_epoch")
    about = _read_json(train_dir / "run.json", "run_id")
    if record.get("leaks") or record.get("shuffled_labels"):
        reason = "; ".join(record.get("leaks") or ["shuffled labels"])
        raise ValueError(f"{train_dir} cannot be the champion: {reason}")
    checkpoint = train_dir / "checkpoints" / f"epoch-{int(record['selected_epoch']):03d}.safetensors"
    if not checkpoint.is_file():
        raise FileNotFoundError(f"checkpoint {checkpoint} of the selected epoch does not exist: run `dvc repro`")
    name, sha256 = f"agiqa-{record['dataset']}", _sha256(checkpoint)
    with open_store(root) as client:
        champion = _champion(client, name)
        if champion is not None and champion.tags.get("sha256") == sha256:
            return str(champion.version)
    with TemporaryDirectory() as folder:
        make_program(checkpoint, Path(folder) / "scorer.pt2")
        _save_served_model(Path(folder) / "model", {"checkpoint": checkpoint, "program": Path(folder) / "scorer.pt2"})
        with open_store(root) as client:
            experiment_id, _ = _study(client, root, study)
            run = _find_run(client, about["run_id"], experiment_id)
            run_id = None if run is None else run.info.run_id
            tags = {key: _text(record[key]) for key in ("dataset", "method", "round", "target") if key in record}
            tags |= {f"backbone_{key}": _text(record["backbone"].get(key)) for key in ("name", "origin")}
            tags |= {"sha256": sha256, "file": checkpoint.name}
            model = client.create_logged_model(
                experiment_id, name=name, source_run_id=run_id, tags=tags, model_type="pyfunc",
                params={"epoch": str(record["selected_epoch"])},
            )  # fmt: skip
            client.log_model_artifacts(model.model_id, str(Path(folder) / "model"))
            client.finalize_logged_model(model.model_id, "READY")
            if not client.search_registered_models(f"name = '{name}'"):
                client.create_registered_model(name, description=f"Scorers trained on {record['dataset']}.")
            registered = client.create_model_version(
                name, model.artifact_location, run_id=run_id, tags=tags, model_id=model.model_id,
                description=f"{_run_name(record)}, epoch {record['selected_epoch']}. Backbone "
                f"{record['backbone'].get('name')} with {record['backbone'].get('origin')} weights.",
            )  # fmt: skip
            client.set_registered_model_alias(name, "champion", registered.version)
            return str(registered.version)


def _champion(client: "MlflowClient", name: str) -> "ModelVersion | None":
    from mlflow.exceptions import MlflowException  # imported here: costs 3 s

    try:
        return client.get_model_version_by_alias(name, "champion")
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None  # no such model, or no such alias


def _save_served_model(path: Path, artifacts: Mapping[str, Path]) -> None:
    """Save pipeline.served_model with its artifacts as an MLflow pyfunc model.

    Our package goes into the model as code: a requirement would have to name an index that has it, and there is none.
    """
    package = Path(__file__).parent
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MLflow about its own examples and type hints, at its import as well
        import mlflow.pyfunc
        from mlflow.models import ModelSignature
        from mlflow.types import ColSpec, Schema

        # `binary` makes MLflow's server decode base64, and lets bytes and text pass in Python.
        outputs = Schema([ColSpec("double", key) for key in ("raw", "mos")])
        inputs = Schema([ColSpec("binary", "image")])
        mlflow.pyfunc.save_model(
            path,
            python_model=str(package / "served_model.py"),
            artifacts={name: str(file) for name, file in artifacts.items()},
            code_paths=[str(package)],
            signature=ModelSignature(inputs, outputs),
            input_example=_input_example(),
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in SERVED_WITH],
            model_config={"read_paths": "locally"},
        )


def _input_example() -> "pd.DataFrame":
    import io

    import numpy as np
    import pandas as pd
    from PIL import Image

    y, x = np.mgrid[0:96, 0:96]
    png = io.BytesIO()
    Image.fromarray(np.stack([x * 2, y * 2, 255 - x - y], axis=2).astype(np.uint8)).save(png, "PNG")
    return pd.DataFrame({"image": [png.getvalue()]})


# Studies and runs


def _study(client: "MlflowClient", root: str | Path, study: str) -> tuple[str, str]:
    """Return the ids of the study's experiment and of its parent run, created if need be."""
    experiment = client.get_experiment_by_name(study)
    if experiment is None:
        # A server keeps artifacts where it likes; beside a database of ours they lie in the repository's root.
        on_server = tracking_uri(root).startswith("http")
        location = None if on_server else (Path(root).resolve() / "mlartifacts" / study).as_uri()
        tags = {"mlflow.experimentKind": "custom_model_development"}  # the UI's view of runs, not of LLM traces
        experiment_id = client.create_experiment(study, artifact_location=location, tags=tags)
    else:
        experiment_id = experiment.experiment_id
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment_id)
    parents = client.search_runs([experiment_id], f"tags.`{KIND}` = 'study'", max_results=1)
    if parents:
        return experiment_id, parents[0].info.run_id
    return experiment_id, client.create_run(experiment_id, run_name=study, tags={KIND: "study"}).info.run_id


def _find_run(client: "MlflowClient", run_id: str, experiment_id: str | None = None) -> "Run | None":
    """Return the run with this id, or else the one that was rebuilt from it, or None."""
    from mlflow.exceptions import MlflowException  # imported here: costs 3 s

    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", run_id):
        raise ValueError(f"run_id {run_id!r} is no id of MLflow's: it should be 32 hexadecimal digits")
    try:
        run = client.get_run(run_id)
        if run.info.lifecycle_stage == "active" and experiment_id in (None, run.info.experiment_id):
            return run
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    places = [experiment_id] if experiment_id else [place.experiment_id for place in client.search_experiments()]
    found = client.search_runs(places, f"tags.`{RUN_ID}` = '{run_id}'", max_results=1)
    return client.get_run(found[0].info.run_id) if found else None  # a search leaves out which models a run has


def _known_runs(client: "MlflowClient", experiment_id: str) -> dict[str, "Run"]:
    """Return every run of an experiment by its id, and by the id that it was rebuilt from."""
    runs, token = [], None
    while True:
        page = client.search_runs([experiment_id], max_results=1000, page_token=token)
        runs += page
        token = page.token
        if not token:
            break
    rebuilt = {run.data.tags[RUN_ID]: run for run in runs if RUN_ID in run.data.tags}
    return rebuilt | {run.info.run_id: run for run in runs}


def _abandoned_run(client: "MlflowClient", experiment_id: str, identity: str) -> "Run | None":
    """Return an unfinished run of the same computation whose process died on this machine, or None."""
    running = f"tags.`{IDENTITY}` = '{identity}' and attributes.status = 'RUNNING'"
    dead = [run for run in client.search_runs([experiment_id], running) if _is_dead(run.data.tags.get(PROCESS, ""))]
    return dead[0] if dead else None


def _create_run(
    client: "MlflowClient",
    experiment_id: str,
    parent_id: str,
    record: Mapping[str, Any],
    run_id: str | None,
    started: int | None,
) -> "Run":
    # All tags that find a run again go in with it: a process may die before its next line.
    tags = {"mlflow.parentRunId": parent_id, IDENTITY: _identity(record), PROCESS: _this_process()}
    tags |= {RUN_ID: run_id} if run_id else {}
    return client.create_run(experiment_id, start_time=started, run_name=_run_name(record), tags=tags)


def _run_name(record: Mapping[str, Any]) -> str:
    return f"{record['dataset']}/{record['method']}/{record.get('split') or 'round'}-{record['round']}"


def _identity(record: Mapping[str, Any]) -> str:
    parts = {key: record.get(key) for key in ("dataset", "method", "round", "params", "inputs")}
    return _md5(json.dumps(parts, sort_keys=True).encode())


def _this_process() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _is_dead(process: str) -> bool:
    """Whether this process ran on this machine and is gone; of other machines nothing is known."""
    host, _, pid = process.rpartition(":")
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


# What a run holds


def _write_description(client: "MlflowClient", run: "Run", record: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write params, tags and data set inputs; those that are there already change nothing."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag  # imported here: costs 3 s

    params = {_key(key): _shortened(_text(value), PARAM_LENGTH) for key, value in record.get("params", {}).items()}
    client.log_batch(
        run.info.run_id,
        params=[Param(key, value) for key, value in params.items() if key not in run.data.params],
        tags=[RunTag(key, _shortened(value, TAG_LENGTH)) for key, value in _description(record, about).items()],
    )
    inputs = []
    images = json.dumps({"images": record["images"]}, sort_keys=True) if "images" in record else None
    for kind, source in (("manifest", "data/prepared/{}/manifest.parquet"), ("splits", "data/splits/{}")):
        digest = record.get("inputs", {}).get(f"{kind}_md5")
        if digest:
            source_json = json.dumps({"uri": source.format(record["dataset"])})
            name = f"{record['dataset']}/{kind}"
            dataset = Dataset(name, digest[:DIGEST_LENGTH], "local", source_json, profile=images)
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", kind)]))
    if inputs:
        client.log_inputs(run.info.run_id, inputs)


def _description(record: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, str]:
    """Return a run's tags: everything of record.json and run.json that is no param and no measurement."""
    backbone, leaks = record.get("backbone") or {}, record.get("leaks")
    values = {key: value for key, value in record.items() if not isinstance(value, (dict, list))}
    for measured in ("trainable_parameters", "checkpoint_bytes"):
        values.pop(measured, None)
    values |= {f"backbone_{key}": value for key, value in backbone.items()}
    values |= dict(record.get("inputs", {}))
    values |= {key: value for key, value in about.items() if key not in ("run_id", "started", "ended", "seconds")}
    values["leaks"] = "; ".join(leaks) if leaks else "none"
    values["params_md5"] = _md5(json.dumps(record.get("params", {}), sort_keys=True).encode())
    if about.get("git_commit"):
        values["mlflow.source.git.commit"] = about["git_commit"]
    note = f"Backbone {backbone.get('name')} with {backbone.get('origin')} weights."
    note += f" LEAKS: {values['leaks']}." if leaks else ""
    note += " Trained on shuffled labels, as a control." if record.get("shuffled_labels") else ""
    values["mlflow.note.content"] = note
    return {_key(key): "none" if value is None else _text(value) for key, value in values.items()}


def _write_epochs(client: "MlflowClient", run: "Run", epochs: Sequence[_Epoch]) -> int:
    """Write metrics and models of these epochs where they are missing or differ, and return how many that were."""
    from mlflow.entities import LoggedModelOutput, Metric  # imported here: costs 3 s

    filter_string = f"source_run_id = '{run.info.run_id}'"
    if len(epochs) == 1:
        filter_string += f" AND name = '{_model_name(run, epochs[0])}'"
    models = {model.name: model for model in _search_models(client, run, filter_string)}
    shown = {output.model_id for output in run.outputs.model_outputs} if run.outputs else set()
    wanted: list[Metric] = []
    used: dict[str, LoggedModel] = {}
    changed: set[int] = set()
    for epoch in epochs:
        step = int(float(epoch.history["epoch"]))
        model_id = None
        if epoch.checkpoint is not None:
            model, is_new = _put_model(client, run, epoch, models.get(_model_name(run, epoch)))
            model_id = model.model_id
            used[model_id] = model
            changed |= {step} if is_new or model_id not in shown else set()
        wanted += [
            Metric(_key(name), value, epoch.milliseconds, step, model_id=model_id)
            for name, value in _numbers(epoch.history, renamed={"validation": "val"}).items()
        ]
        wanted += [
            Metric(_key(name), value, epoch.milliseconds, step)
            for name, value in _numbers(epoch.timing, renamed={"seconds": "epoch_seconds"}).items()
        ]
    changed |= {metric.step for metric in _put_metrics(client, run, wanted, used)}
    for model in used.values():  # only now: a model that is READY has its metrics
        if model.status != "READY":
            client.finalize_logged_model(model.model_id, "READY")
    outputs = [
        LoggedModelOutput(model.model_id, int(model.params["epoch"])) for model in used.values()
        if model.model_id not in shown
    ]  # fmt: skip
    if outputs:
        client.log_outputs(run.info.run_id, outputs)
    return len(changed)


def _put_model(
    client: "MlflowClient", run: "Run", epoch: _Epoch, model: "LoggedModel | None"
) -> tuple["LoggedModel", bool]:
    """Return the epoch's logged model, holding exactly this checkpoint, and whether anything had to be written."""
    assert epoch.checkpoint is not None
    sha256 = _sha256(epoch.checkpoint)
    if model is not None and model.tags.get("sha256") != sha256:
        client.delete_logged_model(model.model_id)
        model = None
    elif model is not None and client.list_logged_model_artifacts(model.model_id):
        return model, model.status != "READY"
    if model is None:
        step = str(int(float(epoch.history["epoch"])))
        tags = {key: run.data.tags[key] for key in _MODEL_TAGS if key in run.data.tags}
        model = client.create_logged_model(
            run.info.experiment_id,
            name=_model_name(run, epoch),
            source_run_id=run.info.run_id,
            tags={**tags, "sha256": sha256, "file": epoch.checkpoint.name},
            params={"epoch": step, "step": step},
        )
    client.log_model_artifact(model.model_id, str(epoch.checkpoint))
    return model, True


_MODEL_TAGS = (
    "dataset", "method", "kind", "round", "backbone_name", "backbone_origin", "leaks", "shuffled_labels", "select_on",
)  # fmt: skip


def _model_name(run: "Run", epoch: _Epoch) -> str:
    """Return such as demo-dcmpln-round-0-epoch-001: model names take no slash, colon, dot, percent or quote."""
    name = f"{run.info.run_name}/epoch-{int(float(epoch.history['epoch'])):03d}"
    return re.sub(r"[/:.%\"']", "-", name)


def _search_models(client: "MlflowClient", run: "Run", filter_string: str) -> list["LoggedModel"]:
    models, token = [], None
    while True:
        page = client.search_logged_models([run.info.experiment_id], filter_string, max_results=100, page_token=token)
        models += page
        token = page.token
        if not token:
            return models


def _put_metrics(
    client: "MlflowClient", run: "Run", wanted: Iterable["Metric"], models: Mapping[str, "LoggedModel"]
) -> list["Metric"]:
    """Write the metrics that the run, or the model that they belong to, lacks or holds with another value.

    A value that the run holds is sent on to its model under the run's own time stamp: so MLflow does not store it a
    second time in the run.
    """
    from mlflow.entities import Metric  # imported here: costs 3 s

    wanted = list(wanted)
    in_run = {
        (key, entry.step): entry
        for key in {metric.key for metric in wanted} & set(run.data.metrics)
        for entry in sorted(client.get_metric_history(run.info.run_id, key), key=lambda entry: entry.timestamp)
    }
    in_models = {
        (entry.model_id, entry.key, entry.step): entry.value
        for model in models.values()
        for entry in model.metrics or []
    }
    lacking = []
    for metric in wanted:
        entry = in_run.get((metric.key, metric.step))
        if entry is None:
            lacking.append(metric)
        elif not _same(entry.value, metric.value):  # of two values at one step, MLflow shows the later
            later = max(metric.timestamp, entry.timestamp + 1)
            lacking.append(Metric(metric.key, metric.value, later, metric.step, model_id=metric.model_id))
        elif metric.model_id is not None and not _same(
            in_models.get((metric.model_id, metric.key, metric.step), math.nan), entry.value
        ):
            lacking.append(Metric(entry.key, entry.value, entry.timestamp, entry.step, model_id=metric.model_id))
    client.log_batch(run.info.run_id, metrics=lacking)
    return lacking


def _same(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)  # a file may hold fewer digits than the live call


# From files


def _mirror_train(
    client: "MlflowClient",
    experiment_id: str,
    parent_id: str,
    folder: Path,
    known: Mapping[str, "Run"] | None = None,
) -> tuple["Run", Counter[str]]:
    """Bring a train folder into MLflow, and return its run and counts of what was written."""
    counts: Counter[str] = Counter(runs=1)
    record = _read_json(folder / "record.json", "dataset", "method", "round")
    about = _read_json(folder / "run.json", "run_id", "started", "ended")
    history, weights = _read_csv(folder / "history.csv"), _weights(folder)
    sizes = json.dumps({epoch: [path.name, path.stat().st_size] for epoch, path in weights.items()}, sort_keys=True)
    digest = _files_md5([folder / name for name in TRAIN_FILES], sizes)
    started = _milliseconds(about["started"])
    run = (known or {}).get(about["run_id"]) or _find_run(client, about["run_id"], experiment_id)
    if run is None:
        run = _create_run(client, experiment_id, parent_id, record, about["run_id"], started)
        counts["created"] += 1
    elif run.data.tags.get(MIRRORED + "train") == digest and client.list_artifacts(run.info.run_id, "train"):
        return run, counts

    run_id = run.info.run_id
    _write_description(client, run, record, about)
    run = client.get_run(run_id)  # with the tags that its models take over
    timing = {int(float(row["epoch"])): row for row in _read_csv(folder / "timing.csv")}
    epochs, over = [], started
    for row in history:
        epoch = int(float(row["epoch"]))
        over += int(1000 * float(timing.get(epoch, {}).get("seconds") or 0))
        epochs.append(_Epoch(row, timing.get(epoch, {}), weights.get(epoch), over))
    counts["epochs"] += _write_epochs(client, run, epochs)
    totals = {key: record.get(key) for key in ("trainable_parameters", "checkpoint_bytes")}
    totals |= {"train_seconds": about.get("seconds")}
    totals |= {f"images_{subset}": count for subset, count in record.get("images", {}).items()}
    _put_totals(client, run, _numbers(totals), None, _milliseconds(about["ended"]))
    selected = _selected_model(client, run, record)
    if selected is not None:
        client.set_logged_model_tags(selected.model_id, {"selected": "true"})
    for name in TRAIN_FILES:
        if (folder / name).is_file():
            client.log_artifact(run_id, str(folder / name), "train")
    client.set_terminated(run_id, "FINISHED", end_time=_milliseconds(about["ended"]))
    client.set_tag(run_id, MIRRORED + "train", digest)
    return client.get_run(run_id), counts


def _mirror_evaluation(client: "MlflowClient", run: "Run", run_dir: Path) -> int:
    """Bring an evaluate folder into its run, its numbers to the selected epoch's model too; return whether it wrote.

    metrics.json's `test` becomes test_srcc ..., `validation` selected_val_srcc ... (all windows, unlike the per-epoch
    val_srcc), `cross` cross_<dataset>_srcc ..., `generator` generator_<name>_srcc ...
    """
    folder = run_dir / "evaluate"
    digest = _files_md5(sorted(path for path in folder.rglob("*") if path.is_file()), run_dir.name)
    if run.data.tags.get(MIRRORED + "evaluate") == digest and client.list_artifacts(run.info.run_id, "evaluate"):
        return 0
    numbers = _numbers(_read_json(folder / "metrics.json"), renamed={"validation": "selected_val"})
    selected = _selected_model(client, run, _read_json(run_dir / "train" / "record.json"))
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
        path = folder / "metrics.json"
        numbers = _numbers(_read_json(path)) if path.is_file() else {}
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
    wanted = [Metric(_key(key), value, milliseconds, 0, model_id=model_id) for key, value in numbers.items()]
    _put_metrics(client, run, wanted, models)


def _selected_model(client: "MlflowClient", run: "Run", record: Mapping[str, Any]) -> "LoggedModel | None":
    epoch = _Epoch({"epoch": record.get("selected_epoch") or 0}, {}, None, 0)
    filter_string = f"source_run_id = '{run.info.run_id}' AND name = '{_model_name(run, epoch)}'"
    models = _search_models(client, run, filter_string)
    return models[0] if models else None


def _weights(folder: Path) -> dict[int, Path]:
    """Return the weights files of a train folder by epoch; a baseline's single one is epoch 0."""
    found = {0: next(iter(sorted(folder.glob("baseline.*"))), None)}
    for path in sorted((folder / "checkpoints").glob("epoch-*")):
        if match := re.fullmatch(r"epoch-(\d+)\.\w+", path.name):
            found[int(match[1])] = path
    return {epoch: path for epoch, path in found.items() if path is not None}


def _stale_evaluations(runs_dir: Path) -> set[Path]:
    """Return the run folders whose evaluate folder was made from another train folder, as dvc.lock tells."""
    lock = runs_dir.resolve().parent / "dvc.lock"
    if not lock.is_file():
        return set()
    import yaml  # imported here: only the mirror needs it

    safe_loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one takes a tenth of the time
    stages = (yaml.load(lock.read_bytes(), safe_loader) or {}).get("stages", {}).values()
    trained = {out["path"]: out.get("md5") for stage in stages for out in stage.get("outs", [])}
    stale = set()
    for stage in stages:
        for out in stage.get("outs", []):
            run = out["path"].removesuffix("/evaluate")
            used = [entry.get("md5") for entry in stage.get("deps", []) if entry["path"] == f"{run}/train"]
            if run != out["path"] and used and used[0] != trained.get(f"{run}/train"):
                stale.add((lock.parent / run).resolve())
    return stale


# Values


def _numbers(values: Mapping[str, Any], renamed: Mapping[str, str] | None = None) -> dict[str, float]:
    """Return the finite numbers of nested values as one level, `outer_inner`, with first words renamed."""
    numbers: dict[str, float] = {}
    for key, value in values.items():
        name = key
        for old, new in (renamed or {}).items():
            if key == old or key.startswith(old + "_"):
                name = new + key.removeprefix(old)
        if isinstance(value, Mapping):
            numbers |= {f"{name}_{inner}": number for inner, number in _numbers(value).items()}
        elif key != "epoch" and value is not None and value != "":
            try:
                number = float(value)
            except (TypeError, ValueError):  # a word is no measurement
                continue
            if math.isfinite(number):
                numbers[name] = number
    return numbers


def _key(name: str) -> str:
    """Return a key as MLflow takes it: letters, digits and _-./: and space, at most 250."""
    return _shortened(re.sub(r"[^\w\-./: ]", "_", name), KEY_LENGTH)


def _shortened(text: str, limit: int) -> str:
    """Return a text within a limit; what is cut off still counts, by its md5."""
    return text if len(text) <= limit else f"{text[: limit - 40]}... md5 {_md5(text.encode())}"[:limit]


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _files_md5(paths: Sequence[Path], also: str) -> str:
    parts = [also] + [f"{path.name} {_md5(path.read_bytes())}" for path in paths if path.is_file()]
    return _md5("\n".join(parts).encode())


def _milliseconds(moment: str) -> int:
    return int(datetime.fromisoformat(moment).timestamp() * 1000)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort round-10 after round-9."""
    return [(int(part or 0), word) for word, part in re.findall(r"(\D+)(\d*)", path.as_posix())]


def _read_json(path: Path, *needed: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}; run the stage that writes it again") from error
    for key in needed:
        if values.get(key) is None:
            raise ValueError(f"{path} has no {key!r}; run the stage that writes it again")
    return values


def _read_csv(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))
