"""What several test modules share: the real data where it is at hand, and small backbones."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a hub that cannot be reached fails at once, not after 46 s of retries
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MPLBACKEND", "Agg")
if "PYTEST_XDIST_WORKER" in os.environ:  # a process a core: see the Makefile
    os.environ.setdefault("OMP_NUM_THREADS", "1")

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
    from pipeline.model.loading import load_backbone

    return load_backbone("tiny-vit", config=tiny_config, seed=1)


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_backbone: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint alone in a folder, as someone may have sent it; windows of 32 at stride 24, MOS 1 to 5."""
    import torch

    from pipeline.model.checkpoint import save_checkpoint
    from pipeline.model.dcmpln import DCMPLN
    from pipeline.model.folded import fold
    from pipeline.model.windows import WindowRule

    path = tmp_path_factory.mktemp("given") / "epoch-007.safetensors"
    torch.manual_seed(3)
    model = DCMPLN(tiny_backbone, prompt_depth=3, prompt_length=2)
    for parameter in model.trainable_parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    rule = WindowRule(32, 24, "all", "clip", mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))
    record = {
        "dataset": "photos", "method": "dcmpln", "round": 1, "leaks": [], "target": "quality",
        "texts": ["good photo.", "bad photo."], "windows": rule.record(), "mos_low": 1.0, "mos_high": 5.0,
    }  # fmt: skip
    save_checkpoint(path, fold(model), record)
    return path


@pytest.fixture(scope="session")
def vit_b_32() -> object:
    """Return the paper's towers with random weights."""
    from pipeline.model.loading import load_backbone

    return load_backbone("ViT-B-32", seed=5)


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a made-up study of two data sets, one of them with published results, and its report in out.

    Read it only: it is shared.
    """
    from made_study import make_study

    from pipeline.report.report import write_report

    root = tmp_path_factory.mktemp("reported")
    methods, datasets = ("dcmpln", "no_mpa", "shuffled", "handcrafted"), ("agiqa3k", "demo")
    make_study(root, datasets, methods, audited=["dcmpln"], gallery=2)
    write_report(
        root / "out", "toy_study", datasets, methods, (0, 1, 2), generated=["demo"], audited=["dcmpln"], lock="c" * 32,
        runs=root / "runs", splits=root / "data/splits", prepared=root / "data/prepared",
        citation=(ROOT / "CITATION.cff").read_text(),
    )  # fmt: skip
    return root


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Run the test in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def demo_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint on the demo's own backbone, with prompts that were drawn and never trained.

    Its calibration is made up, and nothing but noise is familiar to it.
    """
    import numpy as np
    import torch

    from pipeline.calibration import Calibration
    from pipeline.familiarity import familiarise
    from pipeline.model.checkpoint import save_checkpoint
    from pipeline.model.dcmpln import DCMPLN
    from pipeline.model.folded import fold, window_scores
    from pipeline.model.loading import load_backbone
    from pipeline.model.windows import WindowRule

    folder = ROOT / "backbones" / "demo"
    backbone = load_backbone(
        "demo-vit", config=folder / "demo-vit.json", file=folder / "weights.safetensors", origin="in-house"
    )
    torch.manual_seed(3)
    model = DCMPLN(backbone, prompt_depth=3, prompt_length=4, prompt_std=0.1)
    with torch.no_grad():
        model.main_adapter.up.weight.normal_(std=0.1)  # at torch's small start an adapter that is left out hardly shows
    rule = WindowRule(64, 48, "all", "clip", mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))
    path = tmp_path_factory.mktemp("checkpoint") / "epoch-001.safetensors"
    record = {"windows": rule.record(), "texts": ["good photo.", "bad photo."], "dataset": "demo", "method": "dcmpln",
              "round": 0, "epoch": 1, "target": "quality", "leaks": [], "mos_low": 1.0, "mos_high": 5.0,
              "raters": "simulated"}  # fmt: skip
    scorer = fold(model)
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 70, 3), dtype=np.uint8)
    features = np.array([one.features for one in window_scores(scorer, noise, rule)])
    halves = tuple(None if percent > 96 else 0.012 * percent for percent in range(50, 100))
    calibration = Calibration(-1.2, 3.1, 1.0, 5.0, halves, images=90, groups=28)
    save_checkpoint(path, scorer, record, calibration, familiarise(features[:40], features[40:]))
    return path


@pytest.fixture(scope="session")
def demo_scorer(demo_checkpoint: Path) -> object:
    """Return the scorer of `demo_checkpoint`."""
    from pipeline.scoring.scorer import load_scorer

    return load_scorer(demo_checkpoint, device="cpu")


@pytest.fixture(scope="session")
def onnx_file(demo_scorer: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return `demo_scorer` as ONNX, or skip."""
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    from pipeline.serving.program import export_scorer

    path = tmp_path_factory.mktemp("onnx") / "scorer.onnx"
    export_scorer(demo_scorer, path)
    return path


@pytest.fixture(scope="session")
def program_file(demo_scorer: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return `demo_scorer` as a torch.export program."""
    from pipeline.serving.program import export_scorer

    path = tmp_path_factory.mktemp("program") / "scorer.pt2"
    export_scorer(demo_scorer, path)
    return path


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return image files of several formats and shapes: wide, upright, smaller than a window, transparent, turned."""
    import numpy as np
    from PIL import Image

    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(5)
    y, x = np.mgrid[0:150, 0:230]
    waves = np.stack([127 + 120 * np.sin(x / 9), 127 + 120 * np.cos(y / 5), (x * y) % 256], axis=2)
    noise = rng.integers(0, 256, (90, 71, 3))
    images = {
        "waves.png": Image.fromarray(waves.astype(np.uint8)),
        "noise.webp": Image.fromarray(noise.astype(np.uint8)),
        "small.png": Image.fromarray(waves[:40, :31].astype(np.uint8)),
        "clear.png": Image.fromarray(np.dstack([waves, x]).astype(np.uint8), "RGBA"),
        "turned.jpg": Image.fromarray(waves[:80].astype(np.uint8)),
    }
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: a viewer turns it by 90 degrees
    for name, image in images.items():
        options = {"exif": turned} if name == "turned.jpg" else {"lossless": True} if name == "noise.webp" else {}
        image.save(folder / name, **options)
    return [folder / name for name in images]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Return a made-up Hugging Face Hub that huggingface_hub talks to, with a token and an empty cache.

    Processes of their own find it by their environment, this one by the constants that were read from it.
    """
    from huggingface_hub import constants
    from made_hub import TOKEN, Hub

    with Hub() as made:
        for name, value in {
            "HF_ENDPOINT": made.url, "HF_HUB_CACHE": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf-home"),
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "ENDPOINT", made.url)
        template = made.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        yield made


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Let torch take one thread, as a lane of the scoring and a process of the pre-training do."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
