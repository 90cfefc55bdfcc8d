"""Models in MLflow: the file behind a URI, and the champion as a model that MLflow loads and serves."""

import re
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pipeline import layout
from pipeline.errors import AgiqaError
from pipeline.files import file_sha256
from pipeline.tracking import entries
from pipeline.tracking.store import PATIENCE, client_of, first_line, open_store, shown, tracking_uri

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion

# What pipeline.serving.served imports; a served model asks for the versions that it was made with.
SERVED_WITH = ("mlflow", "numpy", "pandas", "pillow", "torch", "tqdm")


def fetch_checkpoint(uri: str, root: str | Path) -> Path:
    """Return the checkpoint file behind an MLflow URI, downloaded unless the store lies on this machine.

    Args:
        uri: `models:/<name>@<alias>`, `models:/<name>/<version>` with a number or `latest`, `models:/<model id>`, or
            `runs:/<run id>/<path>`.
        root: Of the main repository; see `tracking_uri`.

    Raises:
        AgiqaError: If nothing is behind the URI, or not exactly one checkpoint.
    """
    store = tracking_uri(root)
    try:
        client = client_of(store)
        from mlflow.artifacts import download_artifacts  # imported here: costs 3 s

        location = uri
        while location.startswith(("models:/", "runs:/")):
            location = _location(client, location)
        found = Path(download_artifacts(artifact_uri=location, tracking_uri=store))
    except AgiqaError as error:
        raise AgiqaError(f"{uri}: {error}") from error
    except Exception as error:  # MLflow raises its own and those of every kind of store
        raise AgiqaError(f"{uri} leads to nothing in the MLflow store {shown(store)}: {first_line(error)}") from error
    files = [found] if found.is_file() else sorted(found.rglob("*.safetensors"))
    files = [path for path in files if path.suffix == ".safetensors"]
    if len(files) != 1:
        names = ", ".join(path.name for path in files[:3]) or "none"
        raise AgiqaError(f"{uri} must hold one checkpoint (.safetensors), and holds {len(files)}: {names}")
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
        return client.get_model_version_download_uri(model, _version(client, model, alias, is_alias=True))
    if "/" in name:
        model, version = name.rsplit("/", 1)
        return client.get_model_version_download_uri(model, _version(client, model, version, is_alias=False))
    return client.get_logged_model(name).artifact_location


def _version(client: "MlflowClient", model: str, word: str, *, is_alias: bool) -> str:
    """Return the number of a registered model's version by an alias, by `latest`, or by itself."""
    held = {found.name: found for found in client.search_registered_models(max_results=1000)}
    if model not in held:
        names = ", ".join(sorted(held)[:10]) or "none"
        raise AgiqaError(f"the MLflow store has no registered model {model!r}; it has: {names}")
    versions = [str(found.version) for found in client.search_model_versions(f"name = '{model}'", max_results=1000)]
    versions.sort(key=int)
    aliases = {alias: str(version) for alias, version in held[model].aliases.items()}
    if is_alias and word in aliases:
        return aliases[word]
    if not is_alias and word == "latest" and versions:
        return versions[-1]
    if not is_alias and word in versions:
        return word
    ways = [f"models:/{model}@{alias}" for alias in sorted(aliases)]
    ways += [f"models:/{model}/{version}" for version in ["latest", *versions[-1:]] if versions]
    what = "alias" if is_alias else "version"
    raise AgiqaError(f"{model} has no {what} {word!r}; what it has: {', '.join(ways) or 'nothing'}")


def log_champion(
    root: str | Path,
    study: str,
    train_dir: str | Path,
    make_program: Callable[[Path, Path], None],
    *,
    patience: float = PATIENCE,
) -> str:
    """Register the selected epoch of a training as `models:/agiqa-<data set>@champion`, an MLflow pyfunc model.

    The model holds the checkpoint, the scorer as a program, a copy of our package, signature, input example and pinned
    requirements, so that `mlflow.pyfunc.load_model` and `mlflow models serve` need nothing else. Where this checkpoint
    is the champion already, nothing is done.

    Args:
        root: Of the main repository.
        study: Name of the study.
        train_dir: runs/<dataset>/<method>/round-<r>/train of the champion.
        make_program: Writes the scorer of a checkpoint (first argument) as a torch.export program (second), or nothing
            where it is no network; called only if the champion is new.
        patience: Seconds to wait for another writer.

    Returns:
        The version that has the alias.

    Raises:
        AgiqaError: If the training has no selected epoch or lacks its checkpoint, or if it may not be a champion: see
            `layout.bars_champion`.
        StoreError: If the store cannot be read or written.
    """
    train_dir = Path(train_dir)
    said = ("dataset", "method", "round", "selected_epoch", "kind", "leaks", "shuffled_labels")
    record = entries.read_json(train_dir / layout.RECORD, *said)
    about = entries.read_json(train_dir / layout.RUN, "run_id")
    if bars := layout.bars_champion(record):
        raise AgiqaError(f"{train_dir} cannot be the champion: {'; '.join(bars)}")
    checkpoint = layout.checkpoint_path(train_dir, record["selected_epoch"])
    if not checkpoint.is_file():
        raise AgiqaError(f"checkpoint {checkpoint} of the selected epoch does not exist: run `dvc repro`")
    name, sha256 = f"agiqa-{record['dataset']}", file_sha256(checkpoint)
    srcc = layout.validation_numbers(train_dir, record["selected_epoch"]).get("srcc")
    worth = "none" if srcc is None else f"{srcc:.4f}"
    about_it = (
        f"Validation SRCC {worth}: {entries.run_name(record)}, epoch {record['selected_epoch']}, trained on the scores "
        f"of {layout.rated_by(record)}. Backbone {record['backbone'].get('name')} with "
        f"{record['backbone'].get('origin')} weights."
    )
    with open_store(root, patience=patience) as client:
        champion = _champion(client, name)
        if champion is not None and champion.tags.get("sha256") == sha256:
            _describe(client, name, str(champion.version), worth, about_it, record)  # an earlier version told less
            return str(champion.version)
    with TemporaryDirectory() as folder:
        make_program(checkpoint, Path(folder) / "scorer.pt2")
        program = Path(folder) / "scorer.pt2"
        artifacts = {"checkpoint": checkpoint} | ({"program": program} if program.is_file() else {})
        _save_served_model(Path(folder) / "model", artifacts)
        with open_store(root, patience=patience) as client:
            experiment_id, _ = entries.study_ids(client, root, study)
            run = entries.find_run(client, about["run_id"], experiment_id)
            run_id = None if run is None else run.info.run_id
            told = [key for key in ("dataset", "method", "round", "target", "raters") if key in record]
            tags = {"validation_srcc": worth} | {key: entries.as_text(record[key]) for key in told}
            tags |= {f"backbone_{key}": entries.as_text(record["backbone"].get(key)) for key in ("name", "origin")}
            tags |= {"sha256": sha256, "file": checkpoint.name}
            source = {key: run.data.tags[key] for key in entries.SOURCE if key in run.data.tags} if run else {}
            model = client.create_logged_model(
                experiment_id, name=name, source_run_id=run_id, tags=tags | source, model_type="pyfunc",
                params={"epoch": str(record["selected_epoch"])},
            )  # fmt: skip
            client.log_model_artifacts(model.model_id, str(Path(folder) / "model"))
            client.finalize_logged_model(model.model_id, "READY")
            if run is not None:
                _put_results(client, run, model)
            if not client.search_registered_models(f"name = '{name}'"):
                client.create_registered_model(name)
            registered = client.create_model_version(
                name, model.artifact_location, run_id=run_id, tags=tags, model_id=model.model_id, description=about_it
            )
            version = str(registered.version)
            client.set_registered_model_alias(name, "champion", version)
            _describe(client, name, version, worth, about_it, record)
            return version


def _put_results(client: "MlflowClient", run: "Run", model: "LoggedModel") -> None:
    """Give a model the results of its run's selected epoch, which MLflow shows on the page of its version."""
    from mlflow.entities import Metric  # imported here: costs 3 s

    results = [
        Metric(key, value, 0, 0, model_id=model.model_id)
        for key, value in run.data.metrics.items()
        if re.match(r"(val/selected_|test/(?!epoch_))", key)
    ]
    entries.put_metrics(client, run, results, {model.model_id: model})


def _describe(
    client: "MlflowClient", name: str, version: str, worth: str, about_it: str, record: Mapping[str, Any]
) -> None:
    """Say on the pages of a registered model and of its champion's version what the champion is worth."""
    who = f"Scorers trained on {record['dataset']}, rated by {layout.rated_by(record)}."
    text = f"{who} The champion is version {version}. {about_it}"
    if client.get_registered_model(name).description != text:
        client.update_registered_model(name, description=text)
    held = client.get_model_version(name, version)
    if held.description != about_it:
        client.update_model_version(name, version, description=about_it)
    if held.tags.get("validation_srcc") != worth:
        client.set_model_version_tag(name, version, "validation_srcc", worth)


def _champion(client: "MlflowClient", name: str) -> "ModelVersion | None":
    from mlflow.exceptions import MlflowException  # imported here: costs 3 s

    try:
        return client.get_model_version_by_alias(name, "champion")
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None  # no such model, or no such alias


def _save_served_model(path: Path, artifacts: Mapping[str, Path]) -> None:
    """Save pipeline.serving.served with its artifacts as an MLflow pyfunc model.

    Our package goes into the model as code: a requirement would have to name an index that has it, and there is none.
    """
    package = Path(__file__).parents[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MLflow about its own examples and type hints, at its import as well
        import mlflow.pyfunc
        from mlflow.models import ModelSignature
        from mlflow.types import ColSpec, Schema

        # `binary` makes MLflow's server decode base64, and lets bytes and text pass in Python.
        told = [ColSpec("double", key) for key in ("raw", "mos", "low", "high")]
        outputs = Schema([*told, ColSpec("boolean", "unfamiliar")])
        inputs = Schema([ColSpec("binary", "image")])
        mlflow.pyfunc.save_model(
            path,
            python_model=str(package / "serving" / "served.py"),
            artifacts={name: file.resolve().as_uri() for name, file in artifacts.items()},  # it unescapes a path
            code_paths=[str(package)],
            signature=ModelSignature(inputs, outputs),
            input_example=input_example(),
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in SERVED_WITH],
            model_config={"read_paths": "locally"},
        )


def input_example() -> "pd.DataFrame":
    """Return a table with one small picture, as a served model takes it."""
    import io

    import numpy as np
    import pandas as pd
    from PIL import Image

    y, x = np.mgrid[0:96, 0:96]
    png = io.BytesIO()
    Image.fromarray(np.stack([x * 2, y * 2, 255 - x - y], axis=2).astype(np.uint8)).save(png, "PNG")
    return pd.DataFrame({"image": [png.getvalue()]})
