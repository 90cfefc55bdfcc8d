"""MLflow through its own client as the oracle: what it shows of a run, an epoch and a checkpoint."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from made_runs import (
    ABOUT,
    HISTORY,
    STUDY,
    client_of,
    experiment_of,
    history_of,
    make_record,
    mlflow_at,
    runs_of,
    train_live,
    write_weights,
)  # fmt: skip

from pipeline.tracking import entries, live, store


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
        "mlflow.source.name": "stages/train.py", "mlflow.source.type": "LOCAL",
        "group": "dcmpln on demo (random split)",
        "mlflow.note.content": "Data set demo, rated by people. "
        "Backbone tiny with in-house weights. LEAKS: random split.",
        "params_md5": hashlib.md5(json.dumps(make_record()["params"], sort_keys=True).encode()).hexdigest(),
    }  # fmt: skip
    assert {key: run.data.tags.get(key) for key in expected} == expected
    assert {entry.dataset.name: entry.dataset.digest for entry in run.inputs.dataset_inputs} == {
        "demo/manifest": "a" * 32, "demo/splits": "b" * 32
    }  # fmt: skip
    history = history_of(root, run)
    assert history["val/srcc"] == [(1, 0.4), (2, 0.8), (3, 0.6)]
    assert history["train/loss"] == [(1, 0.31), (2, 1 / 7), (3, 0.13)]
    assert history["cost/epoch_images_per_second"] == [(1, 41.0), (2, 42.0), (3, 43.0)]
    assert {key: run.data.metrics[key] for key in ("test/srcc", "test/n", "val/selected_srcc", "cross/other/srcc")} == {
        "test/srcc": 0.71, "test/n": 120, "val/selected_srcc": 0.77, "cross/other/srcc": 0.31
    }  # fmt: skip
    assert history["cost/epoch_seconds"] == [(1, 2.5), (2, 5.0), (3, 7.5)]
    assert history["cost/epoch_cpu_seconds"] == [(1, 4.5), (2, 9.0), (3, 13.5)]
    assert history["cost/epoch_under_load"] == [(1, 0.0), (2, 1.0), (3, 0.0)]
    costs = {
        "train_seconds": 15, "train_cpu_seconds": 27, "train_under_load": 1, "evaluate_seconds": 2,
        "evaluate_cpu_seconds": 3.5, "evaluate_images_per_second": 60, "evaluate_peak_memory_mb": 700,
        "evaluate_under_load": 0, "trainable_parameters": 1234, "checkpoint_bytes": 800,
    }  # fmt: skip
    assert {key: run.data.metrics[f"cost/{key}"] for key in costs} == costs
    assert {key.partition("/")[0] for key in history} == {
        "train", "val", "test", "generator", "cross", "cost", "images"
    }  # fmt: skip
    assert "cost" not in run.data.tags
    assert dict(history["val/srcc"])[2] == 0.8  # of the selected epoch, but from few windows
    assert "val/selected_krcc" not in history
    assert run.data.metrics["generator/sd1.5/srcc"] == 0.5
    parent = runs_of(root)[STUDY]
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    local = client_of(root).download_artifacts(run_id, "evaluate/predictions.csv")
    assert Path(local).read_text().startswith("image_id,predicted")


def test_a_run_on_simulated_raters_says_so(root: Path) -> None:
    run_id, _ = train_live(root, make_record() | {"raters": "simulated"}, epochs=2)
    tags = client_of(root).get_run(run_id).data.tags
    assert tags["raters"] == "simulated"
    assert tags["mlflow.note.content"].startswith("Data set demo, rated by simulated raters. Backbone tiny")
    models = client_of(root).search_logged_models([experiment_of(root)])
    assert {model.tags["raters"] for model in models} == {"simulated"}
    assert not [value for value in tags.values() if "people" in value or "human" in value]


def test_a_checkpoint_is_found_by_its_metrics_and_downloaded(root: Path) -> None:
    import mlflow

    train_live(root, make_record())
    with mlflow_at(store.tracking_uri(root)):
        found = mlflow.search_logged_models(
            experiment_ids=[experiment_of(root)], filter_string="metrics.`val/srcc` > 0.5", output_format="list"
        )
        assert {model.name for model in found} == {"demo-dcmpln-round-0-epoch-002", "demo-dcmpln-round-0-epoch-003"}
        (best,) = mlflow.search_logged_models(
            experiment_ids=[experiment_of(root)],
            filter_string="metrics.`test/srcc` > 0.7 AND tags.selected = 'true' AND params.epoch = '2'",
            output_format="list",
        )
        folder = Path(mlflow.artifacts.download_artifacts(f"models:/{best.model_id}"))
        assert (folder / "epoch-002.safetensors").read_bytes() == b"weights of dcmpln 0 2"
        assert best.tags["leaks"] == "random split"
        assert mlflow.register_model(f"models:/{best.model_id}", "scorer").version == 1


def test_a_tag_that_repeats_a_param_goes_and_models_keep_it(root: Path) -> None:
    record = make_record() | {"raters": "people"}
    before = live.start_run(root, STUDY, record, ABOUT)
    assert client_of(root).get_run(before).data.tags["select_on"] == "validation"  # as an earlier version wrote it
    record["params"] |= {"train.select_on": "validation", "targets.main": "alignment", "backbone.name": "tiny"}
    with store.open_store(root) as client:
        entries.write_description(client, client.get_run(before), record, ABOUT)
    tags = client_of(root).get_run(before).data.tags
    assert not {"select_on", "backbone_name"} & set(tags)
    assert (tags["target"], tags["backbone_origin"]) == ("quality", "in-house")  # told otherwise, or by nothing else
    live.log_epoch(root, before, HISTORY[0], None, write_weights(root / "work", record, 1))
    (model,) = client_of(root).search_logged_models([experiment_of(root)])
    assert (model.tags["select_on"], model.tags["backbone_name"]) == ("validation", "tiny")


def test_values_beyond_mlflows_limits_are_shortened(root: Path) -> None:
    record = make_record()
    record["params"] = {"k" * 300: 1, "long": "x" * 7000, "odd key: 50%": 2}
    run_id = live.start_run(root, STUDY, record, ABOUT)
    params = client_of(root).get_run(run_id).data.params
    assert params["odd key: 50_"] == "2"
    assert params["long"].startswith("xxx")
    assert params["long"].endswith(f"... md5 {hashlib.md5(b'x' * 7000).hexdigest()}")
    assert sorted(len(key) for key in params) == [4, 12, 250]


def test_a_run_is_named_by_its_folder() -> None:
    record = make_record()
    assert entries.run_name(record) == "demo/dcmpln/round-0"
    assert entries.run_name(make_record(round_index=3, split="random")) == "demo/dcmpln/random-3"
    del record["split"]  # as a baseline's
    assert entries.run_name(record) == "demo/dcmpln/round-0"


def test_only_a_process_of_this_machine_is_known_to_be_dead() -> None:
    host = entries.this_process().rpartition(":")[0]
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    assert entries.is_dead(f"{host}:{dead.pid}")
    assert not entries.is_dead(entries.this_process())
    assert not entries.is_dead(f"elsewhere:{dead.pid}")
    assert not entries.is_dead("")


class Beaten:
    """A client of a server that another worker reaches first: it makes the experiment, then the parent run."""

    def __init__(self, client: object) -> None:
        self.client, self.searches, self.looked = client, 0, False

    def __getattr__(self, name: str) -> object:
        return getattr(self.client, name)

    def get_experiment_by_name(self, name: str) -> object:
        if not self.looked:
            self.looked = True
            self.first = self.client.create_experiment(name)
            return None
        return self.client.get_experiment_by_name(name)

    def search_runs(self, *arguments: object, **options: object) -> list:
        self.searches += 1
        if self.searches == 2:
            parent = self.client.create_run(self.first, run_name=STUDY, tags={entries.KIND: "study"})
            self.parent = parent.info.run_id
        return self.client.search_runs(*arguments, **options)


def test_of_workers_that_begin_at_once_one_makes_the_study(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Beaten(client_of(root))
    monkeypatch.setattr(entries, "tracking_uri", lambda _: "http://127.0.0.1:5000")
    assert entries.study_ids(client, root, STUDY) == (client.first, client.parent)
    assert client.searches == 2
    assert entries.study_ids(client, root, STUDY) == (client.first, client.parent)


def test_a_study_without_a_parent_run_gets_one_after_a_while(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_of(root)
    experiment_id = client.create_experiment(STUDY)
    monkeypatch.setattr(entries, "tracking_uri", lambda _: "http://127.0.0.1:5000")
    monkeypatch.setattr(entries, "PARENT_SECONDS", 0.1)
    found, parent = entries.study_ids(client, root, STUDY)
    assert found == experiment_id
    assert client.get_run(parent).data.tags[entries.KIND] == "study"
