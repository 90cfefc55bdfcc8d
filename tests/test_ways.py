"""Command, Python, HTTP and ONNX: four ways to a score and its band, and one answer, whatever the method."""

import base64
import importlib
import io
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastapi.testclient import TestClient
from made_parts import SAID, TIMM_KINDS, model_of, timm_config, write_params
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from pipeline.cli import main
from pipeline.model.backbone import Backbone
from pipeline.model.checkpoint import save_checkpoint
from pipeline.model.dcmpln import score_features
from pipeline.model.folded import fold, image_scores
from pipeline.model.loading import load_backbone
from pipeline.model.windows import WindowRule
from pipeline.params import load_params
from pipeline.scoring.scorer import Scorer, ScoringError, load_scorer
from pipeline.serving.http import make_app
from pipeline.serving.program import ExportError, export_scorer
from pipeline.study.baselines import BaselinePlan
from pipeline.study.plans import plan_training
from pipeline.study.subsets import FeaturesAbout
from pipeline.training import baselines, statistics

pytestmark = pytest.mark.slow  # Networks are exported and served, one way after the other: CI runs them.
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def photos(agiqa_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return one image of each of three of AGIQA-3K's generators."""
    folder = tmp_path_factory.mktemp("agiqa3k")
    with zipfile.ZipFile(agiqa_data / "agiqa3k" / "AGIQA-3K.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.lower().endswith((".jpg", ".png")))
        first = {Path(name).name.split("_")[0]: name for name in reversed(names)}
        for name in sorted(first.values())[:3]:
            (folder / Path(name).name).write_bytes(archive.read(name))
    return sorted(folder.iterdir())


def test_four_ways_to_one_score(
    photos: list[Path], demo_checkpoint: Path, demo_scorer: Scorer, onnx_file: Path, tmp_path: Path
) -> None:
    compare(photos, demo_checkpoint, demo_scorer, onnx_file, tmp_path)


def test_four_ways_resize_alike(tiny_backbone: Backbone, tmp_path: Path) -> None:
    """Images of real sizes, drawn: shrunk to an odd side, enlarged, and already of it."""
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    rule = WindowRule(32, 24, "all", "clip", mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28), shorter_side=77)
    checkpoint, onnx_file, images = tmp_path / "epoch-001.safetensors", tmp_path / "scorer.onnx", []
    save_checkpoint(checkpoint, fold(model_of(tiny_backbone, prompt_std=0.5)), {**SAID, "windows": rule.record()})
    scorer = load_scorer(checkpoint, device="cpu")
    assert scorer.rule == rule
    export_scorer(scorer, onnx_file)
    for number, (height, width) in enumerate([(512, 768), (1023, 511), (40, 61), (77, 90)]):
        y, x = np.mgrid[0:height, 0:width]
        drawn = np.stack([127 + 120 * np.sin(x / (3 + 9 * number)), (x * y) % 256, 255 - y % 256], axis=2)
        images.append(tmp_path / f"{number}.png")
        Image.fromarray(drawn.astype(np.uint8)).save(images[-1])
    compare(images, checkpoint, scorer, onnx_file, tmp_path)
    scores = scorer.score(images, quality_maps=True)
    assert [drawn.shape for drawn in scores.maps] == [(512, 768), (1023, 511), (40, 61), (77, 90)]
    small = np.asarray(Image.open(images[0]).resize((116, 77), Image.Resampling.BICUBIC))  # 768 * 77 / 512 = 115.5
    plain = load_scorer(checkpoint, device="cpu")
    assert plain.score(small).raw == pytest.approx(scores.raw[:1], abs=1e-6)


@pytest.fixture(scope="module")
def hundred(agiqa_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a study's folder with a data set of its own, prepared and split: 100 of AGIQA-3K's images, 64 to train."""
    folder = tmp_path_factory.mktemp("hundred")
    images = folder / "photos" / "img"
    images.mkdir(parents=True)
    with zipfile.ZipFile(agiqa_data / "agiqa3k" / "AGIQA-3K.zip") as archive:
        table = pd.read_csv(io.BytesIO(archive.read("data.csv")))
        table = table[table["mos_quality"].between(0, 5) & table["mos_align"].between(0, 5)]
        table = table.sample(frac=1, random_state=0).drop_duplicates("prompt").head(100)
        for name in table["name"]:
            Image.open(io.BytesIO(archive.read(f"img/{name}"))).resize((72, 64)).save(images / f"{Path(name).stem}.png")
    names = "img/" + table["name"].str.replace(".jpg", ".png")
    labels = {"image": names, "mos": table["mos_quality"], "prompt": table["prompt"], "alignment": table["mos_align"]}
    pd.DataFrame(labels).to_csv(folder / "photos" / "labels.csv", index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_params(folder, folder / "none.json", **study_of(folder))
        for name in ("download", "preprocess", "split"):
            importlib.import_module(f"stages.{name}").main(["--dataset", "photos"])
    return folder


def study_of(folder: Path, **changes: object) -> dict[str, object]:
    """Return what `write_params` changes for one epoch on `hundred`."""
    photos = {
        "reader": "folder", "source": str(folder / "photos"), "archive": None, "sha256": None, "google_drive_id": None,
        "labels": "labels.csv", "scale": [0, 5], "allow_problems": [],
    }  # fmt: skip
    return {
        "datasets__photos": photos, "study__datasets": ["photos"], "study__rounds": [0],
        "split__validation_fraction": 0.2, "train__epochs": 1, "train__warmup_epochs": 0, **changes,
    }  # fmt: skip


@pytest.mark.parametrize("kind", TIMM_KINDS)
def test_towers_of_timm_train_on_real_images_and_score_alike_four_ways(
    kind: str, hundred: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Towers of SigLIP's (`map`) and MobileCLIP-B's (`stem`) classes, from params.yaml to the ONNX program."""
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    shutil.copytree(hundred / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    config, norm = tmp_path / f"made-{kind}.json", {"map": "siglip", "stem": "mobileclip"}[kind]
    config.write_text(json.dumps(timm_config(kind)))
    write_params(
        tmp_path, config, **study_of(hundred, backbone__name=config.stem, images__normalisation=norm),
        model__prompt_std=0.3,  # random towers hear little of the paper's small prompts
    )  # fmt: skip
    plan = plan_training(load_params("params.yaml"), "photos", "dcmpln", 0)
    assert plan.record["images"] == {"train": 64, "validation": 16, "test": 20}
    before = {key: value.clone() for key, value in plan.model.learned_state().items()}
    fitted = plan.fit(tmp_path / "run", None)
    assert [row["epoch"] for row in fitted.history] == [1]
    assert np.isfinite([fitted.history[0][key] for key in ("loss", "loss_auxiliary", "validation_srcc")]).all()
    after = plan.model.learned_state()
    assert not any(np.array_equal(after[key], before[key]) for key in before if not key.endswith("tokens"))
    checkpoint, program = tmp_path / "run" / "checkpoints" / "epoch-001.safetensors", tmp_path / "scorer.onnx"
    assert main(["export", str(program), "--checkpoint", str(checkpoint)]) == 0
    photos = sorted((hundred / "photos" / "img").iterdir())[:64]
    compare(photos, checkpoint, load_scorer(checkpoint, device="cpu"), program, tmp_path)


def compare(
    photos: list[Path], demo_checkpoint: Path, demo_scorer: Scorer, onnx_file: Path | None, tmp_path: Path
) -> None:
    """Score by command, Python, HTTP and the ONNX example, which must agree."""
    python = load_scorer(demo_checkpoint, device="cpu").score(photos)

    out = tmp_path / "scores.csv"
    assert main(["score", *map(str, photos), "--checkpoint", str(demo_checkpoint), "--out", str(out)]) == 0
    command = pd.read_csv(out)

    client, sent = TestClient(make_app(demo_scorer)), [base64.b64encode(path.read_bytes()).decode() for path in photos]
    parts = [sent[start : start + 32] for start in range(0, len(sent), 32)]  # as many files as a request may have
    http = [row for part in parts for row in client.post("/score", json={"images": part}).json()["scores"]]

    onnx: list[list[str]] = []
    if onnx_file is not None:
        script = ROOT / "examples" / "score_with_onnxruntime.py"
        done = subprocess.run(
            [sys.executable, "-I", script, onnx_file, *photos], capture_output=True, text=True, check=True
        )
        onnx = [line.split("\t") for line in done.stdout.splitlines()]

    told = [
        re.fullmatch(
            r"raw ([\d.]+)\tMOS ([\d.]+) of .*?(?:90 % band ([\d.]+) to ([\d.]+)|not calibrated)", "\t".join(line[1:])
        )
        for line in onnx
    ]
    ends = 2 if python.low is None else 4
    ways = {
        "python": [python.raw, python.mos, python.low, python.high],
        "command": [command[name].to_numpy() for name in ("raw", "score", "low", "high")],
        "http": [np.array([row[name] for row in http]) for name in ("raw", "mos", "low", "high")],
        "onnx": [np.array([float(row[place]) for row in told]) for place in range(1, ends + 1)],
    }
    if onnx_file is None:
        del ways["onnx"]
    for name, columns in ways.items():
        for found, expected in zip(columns[:ends], ways["python"], strict=False):
            np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0, err_msg=name)
    if python.unfamiliar is not None:
        assert command["unfamiliar"].tolist() == [row["unfamiliar"] for row in http] == python.unfamiliar.tolist()
    assert np.ptp(python.raw) > 0.01  # images that differ, so that the comparison means something


BASELINES = ("clip_iqa", "linear_probe", "deviation", "handcrafted")


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, np.ndarray]]:
    """Return what fits a baseline on pictures and gives its checkpoint, and the scores that its features give them."""
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    root, folder = tmp_path_factory.mktemp("baselines"), ROOT / "backbones" / "demo"
    backbone = load_backbone(
        "demo-vit", config=folder / "demo-vit.json", file=folder / "weights.safetensors", origin="in-house"
    )
    rule = WindowRule(64, 40, "all", "clip", mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))
    pictures = [drawn_picture(number) for number in range(30)]
    texts = F.normalize(backbone.encode_text(backbone.tokenize(["Good photo.", "Bad photo."])), dim=-1)

    def moments(windows: Tensor) -> Tensor:
        found = backbone.encode_image(windows)
        return torch.cat([found, found.square(), score_features(found, texts, backbone.logit_scale)[:, None]], dim=1)

    with torch.no_grad():
        found = image_scores(moments, pictures, 30, rule)
    means, squares = np.split(found[:, :-1], 2, axis=1)
    features = {
        "image_features": means, "image_features_deviation": np.sqrt(np.maximum(squares - means**2, 0)),
        "clip_iqa": found[:, -1], "handcrafted": statistics.extract(pictures, 30),
    }  # fmt: skip
    targets = np.linspace(0.1, 0.9, 30)
    about = FeaturesAbout(backbone.record(), rule.record(), texts.numpy(), list(statistics.NAMES))

    def make(name: str) -> tuple[Path, np.ndarray]:
        method = "linear_probe" if name == "deviation" else name
        probe = "mean_and_deviation" if name == "deviation" else "mean"
        model: dict[str, np.ndarray] = {}
        if method != "clip_iqa":
            read = baselines.reads(method, features, probe), targets
            model = (
                baselines.fit_handcrafted(read, learning_rate=0.1, max_iterations=20, max_depth=3, seed=0)
                if method == "handcrafted" else baselines.fit_linear_probe(read, read, [1.0])
            )  # fmt: skip
        whole = method == "handcrafted"
        said = SAID | {
            "method": method, "texts": ["Good photo.", "Bad photo."] if method == "clip_iqa" else [],
            "backbone": None if whole else about.backbone, "windows": None if whole else about.windows,
            "statistics": about.statistics if whole else None, "prompt_depth": 0, "prompt_length": 0,
            "residual_ratio": None,
        }  # fmt: skip
        rows = {subset: np.arange(30) for subset in ("train", "validation")}
        plan = BaselinePlan(
            {"method": method}, dict.fromkeys(rows, targets), rows, features, about, np.arange(30) // 2, said
        )
        path = root / name / "epoch-000.safetensors"
        plan.save(path, model)
        return path, baselines.predict(path, features)

    return make


def drawn_picture(number: int) -> np.ndarray:
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((112 + number, 100), Image.Resampling.BICUBIC)
    noise = rng.normal(0, 1 + 2 * number, (100, 112 + number, 3))
    return (np.asarray(smooth) + noise).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_scores_every_way_as_its_features_do(
    name: str, baseline: Callable[[str], tuple[Path, np.ndarray]], tmp_path: Path
) -> None:
    checkpoint, expected = baseline(name)
    images = []
    for number in (3, 14, 27):
        images.append(tmp_path / f"{number}.png")
        Image.fromarray(drawn_picture(number)).save(images[-1])
    scorer = load_scorer(checkpoint, device="cpu")
    np.testing.assert_allclose(scorer.score(images).raw, expected[[3, 14, 27]], atol=2e-5)
    onnx_file = tmp_path / "scorer.onnx"
    if name == "handcrafted":
        with pytest.raises(ExportError, match="handcrafted is no network, so there is no program to write"):
            export_scorer(scorer, onnx_file)
        onnx_file = None
    else:
        export_scorer(scorer, onnx_file)
    compare(images, checkpoint, scorer, onnx_file, tmp_path)
    if scorer.draws_maps:
        scores = scorer.score(images, quality_maps=True)
        assert scores.maps[0].shape == (100, 115)
    else:
        with pytest.raises(
            ScoringError, match="judges an image as a whole, so it has no quality map: choose a variant"
        ):
            scorer.score(images, quality_maps=True)
