"""The files behind URIs, and what may not become the champion; tests/serving has the one that does."""

import io
from pathlib import Path

import pytest
from made_runs import STUDY, client_of, experiment_of, make_record, train_live, write_train
from PIL import Image

from pipeline.errors import AgiqaError
from pipeline.tracking import models


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
        "models:/agiqa-demo/latest",
        f"runs:/{run_id}/kept",
        f"runs:/{run_id}/kept/epoch-002.safetensors",
    ):
        assert models.fetch_checkpoint(uri, root).read_bytes() == expected, uri
    has = "what it has: models:/agiqa-demo@champion, models:/agiqa-demo/latest, models:/agiqa-demo/1"
    for uri, message in {
        "models:/nobody@champion": "^models:/nobody@champion: the MLflow store has no registered model 'nobody'; "
        "it has: agiqa-demo$",
        "models:/nobody/latest": "^models:/nobody/latest: the MLflow store has no registered model 'nobody'; it has: ",
        "models:/agiqa-demo@best": f"^models:/agiqa-demo@best: agiqa-demo has no alias 'best'; {has}$",
        "models:/agiqa-demo@latest": f"^models:/agiqa-demo@latest: agiqa-demo has no alias 'latest'; {has}$",
        "models:/agiqa-demo/9": f"^models:/agiqa-demo/9: agiqa-demo has no version '9'; {has}$",
        "models:/agiqa-demo/Production": f"agiqa-demo has no version 'Production'; {has}$",
        "models:/agiqa-demo/LATEST": f"agiqa-demo has no version 'LATEST'; {has}$",
        "models:/agiqa-demo/": f"agiqa-demo has no version ''; {has}$",
        "models:/m-0": "^models:/m-0 leads to nothing in the MLflow store sqlite:///[^\n]*$",
        f"runs:/{run_id}/nothing": "leads to nothing in the MLflow store",
        f"runs:/{run_id}/train": r"must hold one checkpoint \(.safetensors\), and holds 0: none",
    }.items():
        with pytest.raises(ValueError, match=message):
            models.fetch_checkpoint(uri, root)


def test_latest_is_the_newest_version_and_not_the_champion(root: Path) -> None:
    run_id, run_dir = train_live(root, make_record())
    client = client_of(root)
    client.create_registered_model("agiqa-demo")
    for epoch in [1] * 10 + [3]:
        found = client.search_logged_models([experiment_of(root)], f"name = 'demo-dcmpln-round-0-epoch-00{epoch}'")[0]
        client.create_model_version("agiqa-demo", found.artifact_location, run_id, model_id=found.model_id)
    client.set_registered_model_alias("agiqa-demo", "champion", "2")
    held = run_dir / "train" / "checkpoints" / "epoch-003.safetensors"
    assert models.fetch_checkpoint("models:/agiqa-demo/latest", root).read_bytes() == held.read_bytes()


def never(checkpoint: Path, path: Path) -> None:
    raise AssertionError("no program is made of what is no champion")


def test_no_leaking_shuffled_or_incomplete_training_becomes_champion(tmp_path: Path) -> None:
    clean = make_record() | {"leaks": []}

    def refused(record: dict[str, object], reason: str) -> None:
        folder = write_train(tmp_path, record, "a" * 32, epochs=1) / "train"
        with pytest.raises(AgiqaError, match=reason):
            models.log_champion(tmp_path, STUDY, folder, never)

    refused(clean | {"leaks": ["epoch selected on test"]}, "train cannot be the champion: epoch selected on test$")
    refused(clean | {"shuffled_labels": True}, "cannot be the champion: shuffled labels$")
    refused(clean | {"leaks": None}, r"record\.json has no 'leaks'; run the stage that writes it again")
    refused(clean, r"epoch-002\.safetensors of the selected epoch does not exist: run `dvc repro`")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]  # no store is made for it


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_the_champions_model_holds_its_runs_results_and_source(root: Path) -> None:
    run_id, run_dir = train_live(root, make_record() | {"leaks": []})
    client = client_of(root)
    client.log_metric(run_id, "test/epoch_srcc", 0.9, step=3)  # as of a variant that looks at test images
    assert models.log_champion(root, STUDY, run_dir / "train", lambda checkpoint, path: None) == "1"
    (model,) = client.search_logged_models([experiment_of(root)], "name = 'agiqa-demo'")
    held = {entry.key: entry.value for entry in model.metrics}
    assert (held["val/selected_srcc"], held["test/srcc"]) == (0.77, 0.71)
    assert {key.partition("/")[0] for key in held} == {"val", "test"}
    assert not {"val/srcc", "test/epoch_srcc"} & set(held)
    assert model.tags["mlflow.source.name"] == "stages/train.py"
    assert client.get_registered_model("agiqa-demo").description.startswith(
        "Scorers trained on demo, rated by people. The champion is version 1. Validation SRCC 0.7700: demo/dcmpln/"
    )


def test_the_example_image_is_a_picture() -> None:
    (png,) = models.input_example()["image"]
    assert len(png) < 3000
    with Image.open(io.BytesIO(png)) as image:
        assert (image.format, image.size, image.mode) == ("PNG", (96, 96), "RGB")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_model_is_saved_from_and_in_a_folder_with_a_percent_sign(tmp_path: Path) -> None:
    folder = tmp_path / "feature%2Fx"
    folder.mkdir()
    held = {"checkpoint": folder / "epoch-001.safetensors", "program": folder / "scorer.pt2"}
    for path in held.values():
        path.write_text(path.name)
    models._save_served_model(folder / "model", held)
    assert {path.name: path.read_text() for path in (folder / "model" / "artifacts").iterdir()} == {
        path.name: path.name for path in held.values()
    }
