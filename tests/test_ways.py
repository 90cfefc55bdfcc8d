"""Command, Python, HTTP and ONNX: four ways to a score of real images, and one answer."""

import base64
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from made_parts import SAID, model_of
from PIL import Image

from pipeline.cli import main
from pipeline.model.backbone import Backbone
from pipeline.model.checkpoint import save_checkpoint
from pipeline.model.folded import fold
from pipeline.model.windows import WindowRule
from pipeline.scoring.scorer import Scorer, load_scorer
from pipeline.serving.http import make_app
from pipeline.serving.program import export_scorer

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


def compare(photos: list[Path], demo_checkpoint: Path, demo_scorer: Scorer, onnx_file: Path, tmp_path: Path) -> None:
    """Score by command, Python, HTTP and the ONNX example, which must agree."""
    python = load_scorer(demo_checkpoint, device="cpu").score(photos)

    out = tmp_path / "scores.csv"
    assert main(["score", *map(str, photos), "--checkpoint", str(demo_checkpoint), "--out", str(out)]) == 0
    command = pd.read_csv(out)

    sent = {"images": [base64.b64encode(path.read_bytes()).decode() for path in photos]}
    http = TestClient(make_app(demo_scorer)).post("/score", json=sent).json()["scores"]

    script = ROOT / "examples" / "score_with_onnxruntime.py"
    done = subprocess.run(
        [sys.executable, "-I", script, onnx_file, *photos], capture_output=True, text=True, check=True
    )
    onnx = [line.split("\t") for line in done.stdout.splitlines()]

    ways = {
        "python": python.raw,
        "command": command["raw"].to_numpy(),
        "http": np.array([row["raw"] for row in http]),
        "onnx": np.array([float(line[1].split()[1]) for line in onnx]),
    }
    for name, raw in ways.items():
        np.testing.assert_allclose(raw, python.raw, atol=1e-4, rtol=0, err_msg=name)
    np.testing.assert_allclose([row["mos"] for row in http], python.mos, atol=1e-4, rtol=0)
    assert np.ptp(python.raw) > 0.01  # images that differ, so that the comparison means something
