"""What several test modules share: the real data where it is at hand, and small backbones."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a hub that cannot be reached fails at once, not after 46 s of retries
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MPLBACKEND", "Agg")

ROOT = Path(__file__).resolve().parent.parent

TINY = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 64, "head_width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 3},
}


@pytest.fixture(scope="session")
def agiqa_data() -> Path:
    """Return the folder of the real data sets, or skip."""
    folder = os.environ.get("AGIQA_DATA")
    if not folder:
        pytest.skip("AGIQA_DATA is not set: it names the folder of the real data sets")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an open_clip configuration of towers that run in milliseconds."""
    path = tmp_path_factory.mktemp("config") / "tiny-vit.json"
    path.write_text(json.dumps(TINY))
    return path


@pytest.fixture(scope="session")
def tiny_backbone(tiny_config: Path) -> object:
    """Return a shared random backbone; it is frozen, so sharing is safe."""
    from pipeline.backbone import load_backbone

    return load_backbone("tiny-vit", config=tiny_config, seed=1)


@pytest.fixture(scope="session")
def vit_b_32() -> object:
    """Return the paper's towers with random weights."""
    from pipeline.backbone import load_backbone

    return load_backbone("ViT-B-32", seed=5)


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a made-up study of two data sets, one of them with published results, and its report in out.

    Read it only: it is shared.
    """
    from made_study import make_study

    from pipeline.reporting import write_report

    root = tmp_path_factory.mktemp("reported")
    methods, datasets = ("dcmpln", "no_mpa", "shuffled", "handcrafted"), ("agiqa3k", "demo")
    make_study(root, datasets, methods, audit=["dcmpln"], gallery=2)
    write_report(
        root / "out", "toy_study", datasets, methods, (0, 1, 2), generated=["demo"], audit=["dcmpln"], lock="c" * 32,
        runs=root / "runs", splits=root / "data/splits", prepared=root / "data/prepared",
        citation=(ROOT / "CITATION.cff").read_text(),
    )  # fmt: skip
    return root


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Run the test in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
