"""What a run, an epoch and a checkpoint are in MLflow, and how each is found again.

Files are the truth: everything that MLflow shows can be rebuilt from runs/ and reports/. So its database may be deleted
at any time, `python -m stages.mirror` fills a new one, and a store that cannot be written never stops a training: what
stages call (tracking.live) warns, and a later mirror makes up for it.

A run is known by its MLflow id. Ids cannot be chosen, so a rebuilt run keeps its first id in the tag `agiqa.run_id`,
and every function finds it under either. MLflow is imported inside the functions of this wing: it costs 3 s, and most
stages never need it.
"""

import hashlib
import json
import math
import os
import re
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline import layout
from pipeline.errors import AgiqaError
from pipeline.files import file_sha256
from pipeline.tracking import sections, view
from pipeline.tracking.store import tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Metric, Run

# MLflow's limits on what it takes (mlflow.utils.validation).
KEY_LENGTH, PARAM_LENGTH, TAG_LENGTH, DIGEST_LENGTH = 250, 6000, 8000, 36

# Tags that only this module reads.
KIND = "agiqa.kind"  # "study" on the parent run
RUN_ID = "agiqa.run_id"  # the id in run.json, where MLflow gave the rebuilt run another
IDENTITY = "agiqa.identity"  # hash of what the run computes: a killed run is gone on with only if this is equal
PARENT_SECONDS = 5  # that the one who created an experiment on a server has for its parent run
PROCESS = "agiqa.process"  # who writes it: "host:pid"


# Tags that say what a param says already, by that param: only where their values differ does a run carry both.
REPEATED = {
    "select_on": "train.select_on", "split_rule": "split.rule", "target": "targets.main",
    "auxiliary_target": "targets.auxiliary", "shuffled_labels": "variant.shuffle_labels",
    "backbone_name": "backbone.name", "backbone_origin": "backbone.origin", "backbone_seed": "backbone.seed",
    "backbone_pretrained": "backbone.pretrained", "backbone_file": "backbone.file",
}  # fmt: skip


class Epoch(NamedTuple):
    """One row of history.csv with what belongs to it; `milliseconds` is when it was over."""

    history: Mapping[str, Any]
    timing: Mapping[str, Any]
    checkpoint: Path | None
    milliseconds: int


# Studies and runs


def study_ids(client: "MlflowClient", root: str | Path, study: str) -> tuple[str, str]:
    """Return the ids of the study's experiment and of its parent run, created if need be.

    Workers on several machines have no lock in common, but a server lets one of them alone create an experiment: that
    one creates the parent run as well, and the others wait for it.
    """
    from mlflow.exceptions import MlflowException  # imported here: costs 3 s

    on_server, is_first = tracking_uri(root).startswith("http"), False
    experiment = client.get_experiment_by_name(study)
    if experiment is None:
        # A server keeps artifacts where it likes; beside a database of ours they lie in the repository's root.
        location = None if on_server else (Path(root).resolve() / "mlartifacts" / study).as_uri()
        try:
            experiment_id = client.create_experiment(study, artifact_location=location, tags=view.EXPERIMENT_TAGS)
            is_first = True
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment_id = client.get_experiment_by_name(study).experiment_id
    else:
        experiment_id = experiment.experiment_id
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment_id)
        for key, value in view.EXPERIMENT_TAGS.items():
            if experiment.tags.get(key) != value:
                client.set_experiment_tag(experiment_id, key, value)
    until = time.monotonic() + (0 if is_first or not on_server else PARENT_SECONDS)
    while not (parents := client.search_runs([experiment_id], f"tags.`{KIND}` = 'study'", max_results=1)):
        if time.monotonic() >= until:
            break
        time.sleep(0.5)
    tags = {
        KIND: "study", "mlflow.note.content": sections.NOTE, "mlflow.source.type": "LOCAL",
        "mlflow.source.name": "dvc.yaml",
    }  # fmt: skip
    if not parents:
        return experiment_id, client.create_run(experiment_id, run_name=study, tags=tags).info.run_id
    for key, value in tags.items():
        if parents[0].data.tags.get(key) != value:
            client.set_tag(parents[0].info.run_id, key, value)
    return experiment_id, parents[0].info.run_id


def find_run(client: "MlflowClient", run_id: str, experiment_id: str | None = None) -> "Run | None":
    """Return the run with this id, or else the one that was rebuilt from it, or None."""
    from mlflow.exceptions import MlflowException  # imported here: costs 3 s

    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", run_id):
        raise AgiqaError(f"run_id {run_id!r} is no id of MLflow's: it should be 32 hexadecimal digits")
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


def known_runs(client: "MlflowClient", experiment_id: str) -> dict[str, "Run"]:
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


def abandoned_run(client: "MlflowClient", experiment_id: str, identity: str) -> "Run | None":
    """Return an unfinished run of the same computation whose process died on this machine, or None."""
    running = f"tags.`{IDENTITY}` = '{identity}' and attributes.status = 'RUNNING'"
    dead = [run for run in client.search_runs([experiment_id], running) if is_dead(run.data.tags.get(PROCESS, ""))]
    return dead[0] if dead else None


def create_run(
    client: "MlflowClient",
    experiment_id: str,
    parent_id: str,
    record: Mapping[str, Any],
    run_id: str | None,
    started: int | None,
) -> "Run":
    """Return a new run under its study's parent run."""
    # All tags that find a run again go in with it: a process may die before its next line.
    tags = {"mlflow.parentRunId": parent_id, IDENTITY: identity_of(record), PROCESS: this_process()}
    tags |= {RUN_ID: run_id} if run_id else {}
    return client.create_run(experiment_id, start_time=started, run_name=run_name(record), tags=tags)


def run_name(record: Mapping[str, Any]) -> str:
    """Return a run's name: <data set>/<method>/<split>-<round>."""
    return layout.run_folder(*which_run(record)).relative_to(layout.RUNS).as_posix()


def which_run(record: Mapping[str, Any]) -> tuple[str, str, int, str]:
    """Return data set, method, round and split of a record; a baseline's names no split, as it knows one alone."""
    return record["dataset"], record["method"], record["round"], record.get("split") or "round"


def identity_of(record: Mapping[str, Any]) -> str:
    """Return a hash of what a run computes."""
    parts = {key: record.get(key) for key in ("dataset", "method", "round", "params", "inputs")}
    return md5_of(json.dumps(parts, sort_keys=True).encode())


def this_process() -> str:
    """Return who writes a run: host:pid."""
    return f"{socket.gethostname()}:{os.getpid()}"


def is_here(process: str) -> bool:
    """Whether this process runs, or ran, on this machine."""
    return process.rpartition(":")[0] == socket.gethostname()


def is_dead(process: str) -> bool:
    """Whether this process ran on this machine and is gone; of other machines nothing is known."""
    pid = process.rpartition(":")[2]
    if not is_here(process) or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


# What a run holds


def write_description(client: "MlflowClient", run: "Run", record: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write params, tags and data set inputs; those that are there already change nothing."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag  # imported here: costs 3 s

    params = {
        entry_key(key): shortened(as_text(value), PARAM_LENGTH) for key, value in record.get("params", {}).items()
    }
    tags = _description(record, about)
    client.log_batch(
        run.info.run_id,
        params=[Param(key, value) for key, value in params.items() if key not in run.data.params],
        tags=[RunTag(key, shortened(value, TAG_LENGTH)) for key, value in tags.items()],
    )
    for key in run.data.tags.keys() & REPEATED.keys() - tags.keys():  # of an earlier version
        client.delete_tag(run.info.run_id, key)
    inputs = []
    images = json.dumps({"images": record["images"]}, sort_keys=True) if "images" in record else None
    dataset, _, round_index, split = which_run(record)
    manifest_path, split_path = layout.input_paths(dataset, round_index, split)
    for kind, source in (("manifest", manifest_path), ("splits", split_path.parent)):
        digest = record.get("inputs", {}).get(f"{kind}_md5")
        if digest:
            source_json = json.dumps({"uri": source.as_posix()})
            name = f"{record['dataset']}/{kind}"
            entity = Dataset(name, digest[:DIGEST_LENGTH], "local", source_json, profile=images)
            inputs.append(DatasetInput(entity, [InputTag("mlflow.data.context", kind)]))
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
    values |= {
        key: value for key, value in about.items() if key not in ("run_id", "started", "ended", "seconds", "cost")
    }
    params = record.get("params", {})
    for tag, param in REPEATED.items():
        if param in params and tag in values and values[tag] == params[param]:
            del values[tag]
    values["leaks"] = "; ".join(leaks) if leaks else "none"
    values[view.GROUP] = f"{record.get('method')} on {record.get('dataset')}" + (
        f" ({values['leaks']})" if leaks else ""
    )
    values["params_md5"] = md5_of(json.dumps(params, sort_keys=True).encode())
    values["mlflow.source.type"] = "LOCAL"
    values["mlflow.source.name"] = f"stages/{'baseline' if record.get('kind') == 'baseline' else 'train'}.py"
    if about.get("git_commit"):
        values["mlflow.source.git.commit"] = about["git_commit"]
    note = f"Data set {record['dataset']}, rated by {layout.rated_by(record)}. " if "dataset" in record else ""
    if metric := record.get("metric"):
        note += f"The metric {metric['name']} of {metric['package']}."
    else:
        note += f"Backbone {backbone.get('name')} with {backbone.get('origin')} weights."
    note += f" LEAKS: {values['leaks']}." if leaks else ""
    note += " Trained on shuffled labels, as a control." if record.get("shuffled_labels") else ""
    values["mlflow.note.content"] = note
    return {entry_key(key): "none" if value is None else as_text(value) for key, value in values.items()}


def write_epochs(client: "MlflowClient", run: "Run", epochs: Sequence[Epoch]) -> int:
    """Write metrics and models of these epochs where they are missing or differ, and return how many that were."""
    from mlflow.entities import LoggedModelOutput, Metric  # imported here: costs 3 s

    filter_string = f"source_run_id = '{run.info.run_id}'"
    if len(epochs) == 1:
        filter_string += f" AND name = '{model_name(run, epochs[0])}'"
    models = {model.name: model for model in search_models(client, run, filter_string)}
    shown = {output.model_id for output in run.outputs.model_outputs} if run.outputs else set()
    wanted: list[Metric] = []
    used: dict[str, LoggedModel] = {}
    changed: set[int] = set()
    for epoch in epochs:
        step = int(float(epoch.history["epoch"]))
        model_id, times = None, sections.of_epoch({}, epoch.timing)
        if epoch.checkpoint is not None:
            model, is_new = _put_model(client, run, epoch, models.get(model_name(run, epoch)))
            model_id = model.model_id
            used[model_id] = model
            changed |= {step} if is_new or model_id not in shown else set()
        wanted += [
            # what an epoch took is no measurement of its model
            Metric(entry_key(name), value, epoch.milliseconds, step, model_id=None if name in times else model_id)
            for name, value in (sections.of_epoch(epoch.history, {}) | times).items()
        ]
    changed |= {metric.step for metric in put_metrics(client, run, wanted, used)}
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
    client: "MlflowClient", run: "Run", epoch: Epoch, model: "LoggedModel | None"
) -> tuple["LoggedModel", bool]:
    """Return the epoch's logged model, holding exactly this checkpoint, and whether anything had to be written."""
    assert epoch.checkpoint is not None
    sha256 = file_sha256(epoch.checkpoint)
    if model is not None and model.tags.get("sha256") != sha256:
        client.delete_logged_model(model.model_id)
        model = None
    elif model is not None and client.list_logged_model_artifacts(model.model_id):
        return model, model.status != "READY"
    if model is None:
        step = str(int(float(epoch.history["epoch"])))
        held = {tag: run.data.params[param] for tag, param in REPEATED.items() if param in run.data.params}
        held |= run.data.tags
        tags = {key: held[key] for key in _MODEL_TAGS if key in held}
        model = client.create_logged_model(
            run.info.experiment_id,
            name=model_name(run, epoch),
            source_run_id=run.info.run_id,
            tags={**tags, "sha256": sha256, "file": epoch.checkpoint.name},
            params={"epoch": step, "step": step},
        )
    client.log_model_artifact(model.model_id, str(epoch.checkpoint))
    return model, True


SOURCE = ("mlflow.source.name", "mlflow.source.type", "mlflow.source.git.commit")  # MLflow shows these as one
_MODEL_TAGS = (
    "dataset", "method", "kind", "round", "backbone_name", "backbone_origin", "leaks", "shuffled_labels", "select_on",
    "raters", *SOURCE,
)  # fmt: skip


def model_name(run: "Run", epoch: Epoch) -> str:
    """Return such as demo-dcmpln-round-0-epoch-001: model names take no slash, colon, dot, percent or quote."""
    name = f"{run.info.run_name}/epoch-{int(float(epoch.history['epoch'])):03d}"
    return re.sub(r"[/:.%\"']", "-", name)


def search_models(client: "MlflowClient", run: "Run", filter_string: str) -> list["LoggedModel"]:
    """Return every logged model of a run's experiment that the filter finds."""
    models, token = [], None
    while True:
        page = client.search_logged_models([run.info.experiment_id], filter_string, max_results=100, page_token=token)
        models += page
        token = page.token
        if not token:
            return models


def put_metrics(
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


# Values


def entry_key(name: str) -> str:
    """Return a key as MLflow takes it: letters, digits and _-./: and space, at most 250."""
    return shortened(re.sub(r"[^\w\-./: ]", "_", name), KEY_LENGTH)


def shortened(text: str, limit: int) -> str:
    """Return a text within a limit; what is cut off still counts, by its md5."""
    return text if len(text) <= limit else f"{text[: limit - 40]}... md5 {md5_of(text.encode())}"[:limit]


def as_text(value: object) -> str:
    """Return a value as a param or a tag holds it."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def md5_of(data: bytes) -> str:
    """Return the md5 of bytes."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def in_milliseconds(moment: str) -> int:
    """Return an ISO 8601 moment in milliseconds since 1970."""
    return int(datetime.fromisoformat(moment).timestamp() * 1000)


def read_json(path: Path, *needed: str) -> dict[str, Any]:
    """Return a file's JSON object, which must have these keys."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise AgiqaError(f"{path} is not JSON: {error}; run the stage that writes it again") from error
    for key in needed:
        if values.get(key) is None:
            raise AgiqaError(f"{path} has no {key!r}; run the stage that writes it again")
    return values
