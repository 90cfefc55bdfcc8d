"""All stages end to end on a small demo, as DVC calls them: same bits, no test label astray, killed and resumed."""

import hashlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from made_parts import write_params
from PIL import Image
from scipy.stats import spearmanr

from pipeline.data.pixels import open_prepared
from pipeline.files import file_md5
from pipeline.layout import checkpoint_name
from pipeline.model.backbone import Backbone
from pipeline.model.windows import WindowRule, cut, normalise, window_origins
from pipeline.params import load_params
from pipeline.study import build

pytestmark = pytest.mark.slow  # A whole study each, in seconds to a minute: CI runs them.
ROOT = Path(__file__).resolve().parent.parent
VARIANTS, BASELINES = ("dcmpln", "clip_agiqa"), ("clip_iqa", "linear_probe", "handcrafted")


def stage(name: str, **arguments: object) -> None:
    words = [word for key, value in arguments.items() for word in (f"--{key}", str(value))]
    importlib.import_module(f"stages.{name}").main(words)


def enter(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.chdir(folder)
    patch.delenv("DVC_ROOT", raising=False)
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_config: Path) -> Path:
    """Return a folder in which every stage has run."""
    folder = tmp_path_factory.mktemp("study")
    write_params(folder, tiny_config)
    with pytest.MonkeyPatch.context() as patch:
        enter(folder, patch)
        for name in ("download", "preprocess", "split", "features"):
            stage(name, dataset="demo")
        stage("index")
        for baseline in BASELINES:
            stage("baseline", dataset="demo", baseline=baseline)
            stage("evaluate", dataset="demo", method=baseline)
        for number in (0, 1):
            for variant in VARIANTS:
                stage("train", dataset="demo", variant=variant, round=number)
                stage("evaluate", dataset="demo", method=variant, round=number)
            stage("train", dataset="demo", variant="dcmpln", round=number, split="random")
            stage("evaluate", dataset="demo", method="dcmpln", round=number, split="random")
            stage("audit", dataset="demo", variant="dcmpln", round=number)
        stage("report")
        importlib.import_module("stages.mirror").main(["--finished"])
    torch.use_deterministic_algorithms(False)
    return folder


@pytest.fixture
def prepared(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with the data prepared and nothing trained."""
    for name in ("data", "params.yaml"):
        source = finished / name
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, tmp_path / name)
    enter(tmp_path, monkeypatch)
    return tmp_path


def test_every_method_has_its_files(finished: Path) -> None:
    for method in (*VARIANTS, *BASELINES):
        run = finished / "runs" / "demo" / method / "round-1"
        record = json.loads((run / "train" / "record.json").read_text())
        assert (record["method"], record["round"], record["leaks"]) == (method, 1, [])
        test = json.loads((run / "evaluate" / "metrics.json").read_text())["test"]
        table = pd.read_csv(run / "evaluate" / "predictions.csv")
        assert test["srcc"] == pytest.approx(spearmanr(table["predicted"], table["mos"]).statistic)
        assert (run / "evaluate" / "scatter.png").stat().st_size > 5_000
    folder = finished / "runs/demo/dcmpln/round-0/train/checkpoints"
    checkpoints = sorted(path.name for path in folder.iterdir())
    assert checkpoints == [checkpoint_name(epoch) for epoch in (1, 2, 3)]


def test_what_evaluate_depends_on_names_all_that_it_reads(finished: Path) -> None:
    """In dvc.yaml it depends on the training's record and the round's index alone."""
    params = yaml.safe_load((finished / "params.yaml").read_text())
    for variant in VARIANTS:
        folder = finished / "runs" / "demo" / variant / "round-1" / "train"
        record = json.loads((folder / "record.json").read_text())
        selected = folder / "checkpoints" / checkpoint_name(record["selected_epoch"])
        assert record["checkpoint_md5"] == hashlib.md5(selected.read_bytes()).hexdigest()
        for section in ("backbone", "images", "targets"):
            for key, value in params[section].items():
                assert record["params"][f"{section}.{key}"] == value
    data = finished / "data"
    index = json.loads((data / "index/round-1.json").read_text())
    assert index["evaluate"] == params["evaluate"]
    assert index["splits"] == {"demo": hashlib.md5((data / "splits/demo/round-1.csv").read_bytes()).hexdigest()}
    assert index["prepared"]["demo"] == {
        name: hashlib.md5((data / "prepared/demo" / name).read_bytes()).hexdigest()
        for name in ("manifest.parquet", "pixels.bin")
    }
    features = json.loads((data / "index/features.json").read_text())
    assert features == {"demo": hashlib.md5((data / "features/demo.npz").read_bytes()).hexdigest()}


def test_the_audit_takes_the_epoch_that_is_best_on_test_and_says_so(finished: Path) -> None:
    split = pd.read_csv(finished / "data/splits/demo/random-0.csv").set_index("image_id")["subset"]
    for folder, leaks in (
        ("round-0", ["epoch selected on test"]),
        ("random-0", ["random split", "epoch selected on test"]),
    ):
        run = finished / "runs/demo/dcmpln" / folder
        found = json.loads((run / "audit/metrics.json").read_text())
        assert found["leaks"] == leaks
        by_epoch = {row["epoch"]: row["test_srcc"] for row in found["epochs"]}
        assert list(by_epoch) == [1, 2, 3]
        assert by_epoch[found["selected_epoch"]] == max(by_epoch.values())
        table = pd.read_csv(run / "audit/predictions.csv")
        assert found["test"]["srcc"] == pytest.approx(spearmanr(table["predicted"], table["mos"]).statistic)
        if folder == "random-0":
            assert sorted(table["image_id"]) == sorted(split[split == "test"].index)
    record = json.loads((finished / "runs/demo/dcmpln/random-0/train/record.json").read_text())
    assert (record["split_rule"], record["leaks"]) == ("random", ["random split"])
    assert record["params"]["split.rule"] == "random"


def test_the_audits_epoch_is_the_evaluations_where_both_chose_alike(finished: Path) -> None:
    """Same checkpoint, same windows: the audit may differ from the evaluation by its choice alone."""
    for folder in ("round-0", "round-1", "random-0", "random-1"):
        run = finished / "runs/demo/dcmpln" / folder
        chosen = json.loads((run / "train/record.json").read_text())["selected_epoch"]
        if chosen == json.loads((run / "audit/metrics.json").read_text())["selected_epoch"]:
            audit, own = (pd.read_csv(run / name / "predictions.csv") for name in ("audit", "evaluate"))
            assert {"score", "low", "high", "unfamiliar"} == {*own.columns} - {*audit.columns}
            pd.testing.assert_frame_equal(audit, own[audit.columns], check_exact=True)


def test_the_report_sweeps_what_a_killed_stage_left(finished: Path, prepared: Path) -> None:
    """DVC may bring the stage's result from its cache, and then nobody else clears it."""
    shutil.copytree(finished / "runs", prepared / "runs", dirs_exist_ok=True)
    left = prepared / "runs/demo/dcmpln/round-0/evaluate.partial"
    left.mkdir()
    (left / "predictions.csv").write_text("x")
    stage("report")
    assert not left.exists()


def test_the_gallery_shows_the_largest_errors(finished: Path) -> None:
    folder = finished / "runs/demo/dcmpln/round-0/evaluate/gallery"
    table = pd.read_csv(folder / "gallery.csv")
    assert (table["score"] - table["mos"])[table["kind"] == "over"].min() > 0
    told = pd.read_csv(folder.parent / "predictions.csv").set_index("image_id")["score"]
    assert table["score"].tolist() == pytest.approx(told[table["image_id"]].tolist())
    for row in table.itertuples():
        with Image.open(folder / row.picture) as picture, Image.open(folder / row.map) as overlay:
            assert (picture.size, overlay.size, overlay.mode) == ((64, 64), (64, 64), "RGBA")


def test_the_reports_champion_is_the_one_that_scores(finished: Path) -> None:
    """The report may not import what chooses it, so it chooses by the same rule anew."""
    chosen = json.loads((finished / "reports/champions.json").read_text())["demo"]["run"].split("/")[1]
    table = pd.read_csv(finished / "reports/study/tables/score-generators-demo.csv")
    assert set(table.loc[table["champion"], "method"]) == {chosen}
    runs = [json.loads((finished / f"runs/demo/{chosen}/round-{r}/evaluate/metrics.json").read_text()) for r in (0, 1)]
    found = pd.read_csv(finished / "reports/study/tables/score-demo.csv").set_index("method").loc[chosen]
    for key in ("rmse_calibrated", "mae_calibrated", "coverage", "band_width", "unfamiliar"):
        assert found[key] == pytest.approx(sum(run["test"][key] for run in runs) / 2, rel=1e-5)


def test_test_images_are_those_of_the_split(finished: Path) -> None:
    split = pd.read_csv(finished / "data/splits/demo/round-0.csv").set_index("image_id")["subset"]
    table = pd.read_csv(finished / "runs/demo/dcmpln/round-0/evaluate/predictions.csv")
    assert sorted(table["image_id"]) == sorted(split[split == "test"].index)


def towers(finished: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Backbone, WindowRule]:
    """Enter the finished study, and return its backbone and window rule."""
    enter(finished, monkeypatch)
    params = load_params()
    backbone = build.make_backbone(params)
    return backbone, build.make_window_rule(params, backbone)


def test_predictions_equal_the_plain_tower_with_the_selected_epochs_windows(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oracle takes the checkpoint's constants alone: open_clip's layers, adapter and softmax, image by image."""
    from pipeline.model.checkpoint import load_checkpoint

    backbone, rule = towers(finished, monkeypatch)
    run = finished / "runs/demo/dcmpln/round-0"
    epoch = json.loads((run / "train/record.json").read_text())["selected_epoch"]
    scorer, _, _ = load_checkpoint(run / "train/checkpoints" / checkpoint_name(epoch), backbone, rule)
    monkeypatch.setattr(Backbone, "fast_tower", lambda self: pytest.fail("the oracle runs the fast tower"))
    manifest, pack = open_prepared("data/prepared/demo")
    row_of = dict(zip(manifest["image_id"], range(len(manifest)), strict=True))
    table = pd.read_csv(run / "evaluate/predictions.csv").head(6)
    with torch.no_grad():
        for row in table.itertuples():
            pixels = pack[row_of[row.image_id]]
            windows = normalise(cut(pixels, window_origins(*pixels.shape[:2], rule), rule.size), rule)
            features = scorer.adapter(backbone.encode_image(windows, scorer.visual_prompts))
            features = features / features.norm(dim=1, keepdim=True)
            logits = backbone.logit_scale.exp() * features @ scorer.text_features.T
            assert float(logits.softmax(dim=1)[:, 0].mean()) == pytest.approx(row.predicted, abs=1e-5)


def test_features_are_means_and_deviations_over_an_images_windows(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oracle is open_clip's own tower on one image's windows."""
    backbone, rule = towers(finished, monkeypatch)
    _, pack = open_prepared("data/prepared/demo")
    with np.load(finished / "data/features/demo.npz") as found, torch.no_grad():
        for row in (0, 7):
            windows = cut(pack[row], window_origins(*pack[row].shape[:2], rule), rule.size)
            features = backbone.encode_image(normalise(windows, rule)).numpy()
            assert len(features) > 1
            np.testing.assert_allclose(found["image_features"][row], features.mean(axis=0), atol=1e-5)
            np.testing.assert_allclose(found["image_features_deviation"][row], features.std(axis=0), atol=1e-5)


def test_the_report_and_mlflow_hold_the_same_numbers(finished: Path) -> None:
    from mlflow import MlflowClient

    table = pd.read_csv(finished / "reports/study/rounds.csv").set_index(["method", "round"])
    client = MlflowClient(f"sqlite:///{finished / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    found = {run.info.run_name: run.data.metrics.get("test/srcc") for run in runs}
    for (method, number), row in table.iterrows():
        assert found[f"demo/{method}/round-{number}"] == pytest.approx(row["srcc"], abs=1e-5)
    random = [run for run in runs if "/random-" in run.info.run_name]
    assert [run.data.tags["leaks"] for run in random] == ["random split"] * 2
    assert len(runs) == len(table) + len(random) + 1
    champion = client.get_model_version_by_alias("agiqa-demo", "champion")
    clean = pd.DataFrame([
        {"method": run.data.tags["method"], "id": run.info.run_id, "srcc": run.data.metrics["val/selected_srcc"]}
        for run in runs if run.data.tags.get("leaks") == "none" and "val/selected_srcc" in run.data.metrics
        and "method" in run.data.tags
    ])  # fmt: skip
    method = clean.groupby("method")["srcc"].mean().idxmax()
    best = clean[clean["method"] == method].set_index("id")["srcc"].idxmax()
    assert champion.run_id == best


def test_equal_params_give_equal_bits(finished: Path, prepared: Path) -> None:
    stage("train", dataset="demo", variant="dcmpln", round=1)
    one, other = (folder / "runs/demo/dcmpln/round-1/train" for folder in (finished, prepared))
    for name in ("history.csv", "checkpoints/epoch-003.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    timing, run = pd.read_csv(other / "timing.csv"), json.loads((other / "run.json").read_text())
    assert run["cost"]["cpu_seconds"] == pytest.approx(timing["cpu_seconds"].sum())
    assert run["cost"]["seconds"] == pytest.approx(timing["seconds"].sum())
    assert 0 < run["cost"]["seconds"] <= run["seconds"]


def test_test_labels_reach_nothing_but_evaluate(finished: Path, prepared: Path) -> None:
    """With every test label turned upside down, training and baselines give the same bits."""
    path = prepared / "data/prepared/demo/manifest.parquet"
    manifest = pd.read_parquet(path)
    split = pd.read_csv(prepared / "data/splits/demo/round-0.csv").set_index("image_id")["subset"]
    test = manifest["image_id"].map(split).eq("test")
    for column in ("quality", "alignment"):
        manifest.loc[test, column] = 5 - manifest.loc[test, column]
    manifest.to_parquet(path, index=False)
    stage("train", dataset="demo", variant="dcmpln", round=0)
    stage("baseline", dataset="demo", baseline="linear_probe")
    for name in ("dcmpln/round-0/train/history.csv", "linear_probe/round-0/train/checkpoints/epoch-000.safetensors"):
        one, other = (folder / "runs/demo" / name for folder in (finished, prepared))
        assert file_md5(one) == file_md5(other)
    stage("evaluate", dataset="demo", method="linear_probe", round=0)
    one, other = (
        json.loads((folder / "runs/demo/linear_probe/round-0/evaluate/metrics.json").read_text())["test"]["srcc"]
        for folder in (finished, prepared)
    )
    assert one == pytest.approx(-other)


def test_baselines_are_charged_for_their_features_and_nothing_but_times_changes(finished: Path, prepared: Path) -> None:
    stage("features", dataset="demo")
    assert file_md5(prepared / "data/features/demo.npz") == file_md5(finished / "data/features/demo.npz")
    times = json.loads((prepared / "data/feature-times/demo.json").read_text())
    assert set(times) == {"tower", "statistics"}
    for baseline, made_by in (("clip_iqa", "tower"), ("linear_probe", "tower"), ("handcrafted", "statistics")):
        stage("baseline", dataset="demo", baseline=baseline)
        stage("evaluate", dataset="demo", method=baseline)
        one, other = (folder / "runs/demo" / baseline / "round-0" for folder in (finished, prepared))
        found, again = (json.loads((run / "evaluate/metrics.json").read_text()) for run in (one, other))
        features, images = times[made_by], json.loads((other / "train/record.json").read_text())["images"]
        cost = again.pop("cost")
        assert cost["seconds"] > images["test"] * features["seconds_per_image"] > 0
        assert cost["cpu_seconds"] > images["test"] * features["cpu_seconds_per_image"] > 0
        assert cost["images_per_second"] == pytest.approx(images["test"] / cost["seconds"])
        assert cost["peak_memory_mb"] >= features["peak_memory_mb"]
        fit = json.loads((other / "train/run.json").read_text())["cost"]["cpu_seconds"]
        learned_from = images["train"] + images["validation"]
        assert (fit > learned_from * features["cpu_seconds_per_image"]) == (baseline != "clip_iqa")
        assert again == {key: value for key, value in found.items() if key != "cost"}
        files = {path.relative_to(one).as_posix() for path in one.rglob("*") if path.is_file()}
        for name in files - {"evaluate/metrics.json", "train/run.json"}:
            assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_a_baseline_that_is_fitted_anew_is_the_same_run_unless_something_changed(
    finished: Path, prepared: Path, tiny_config: Path
) -> None:
    def run_ids(folder: Path) -> list[str]:
        runs = folder / "runs/demo/linear_probe"
        return [json.loads((runs / f"round-{number}/train/run.json").read_text())["run_id"] for number in (0, 1)]

    stage("baseline", dataset="demo", baseline="linear_probe")
    assert run_ids(prepared) == run_ids(finished)
    assert len(set(run_ids(prepared))) == 2
    write_params(prepared, tiny_config, study__name="another")
    stage("baseline", dataset="demo", baseline="linear_probe")
    assert set(run_ids(prepared)).isdisjoint(run_ids(finished))


def test_a_training_killed_with_sigkill_goes_on_and_ends_alike(finished: Path, prepared: Path) -> None:
    words = [sys.executable, "-m", "stages.train", "--dataset", "demo", "--variant", "dcmpln", "--round", "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(words, cwd=prepared, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300  # a busy machine takes its time
    while not list(prepared.glob(".work/train/*/checkpoints/epoch-001.safetensors")):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (prepared / "runs/demo/dcmpln/round-0/train/record.json").exists()
    done = subprocess.run(words, cwd=prepared, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    one, other = (folder / "runs/demo/dcmpln/round-0/train" for folder in (finished, prepared))
    for name in ("history.csv", "checkpoints/epoch-003.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{prepared / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert sorted((run.info.run_name, run.info.status) for run in runs if "/" in run.info.run_name) == [
        ("demo/dcmpln/round-0", "FINISHED")
    ]


def test_shuffled_labels_and_leaks_are_on_record(prepared: Path, tiny_config: Path) -> None:
    write_params(
        prepared, tiny_config, train__select_on="test", train__epochs=2, study__variants=["shuffled"], study__audit=[]
    )
    stage("train", dataset="demo", variant="shuffled", round=0)
    record = json.loads((prepared / "runs/demo/shuffled/round-0/train/record.json").read_text())
    assert (record["shuffled_labels"], record["leaks"]) == (True, ["epoch selected on test"])
    assert "test_srcc" in pd.read_csv(prepared / "runs/demo/shuffled/round-0/train/history.csv")


def test_code_names_every_script(in_tmp: Path) -> None:
    for name in ("pipeline", "stages"):
        shutil.copytree(ROOT / name, in_tmp / name, ignore=shutil.ignore_patterns("__pycache__"))
    stage("code")
    scripts = {path.stem for path in Path("stages").glob("[!_]*.py")}
    assert {path.stem for path in Path("data/code").iterdir()} == scripts
    assert "pipeline/model/dcmpln.py" in json.loads(Path("data/code/train.json").read_text())
    assert "pipeline/model/dcmpln.py" not in json.loads(Path("data/code/split.json").read_text())
