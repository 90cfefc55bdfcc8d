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

from pipeline.cli import main
from pipeline.scoring.scorer import Scorer, load_scorer
from pipeline.serving.http import make_app

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
