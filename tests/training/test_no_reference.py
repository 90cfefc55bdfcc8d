"""Metrics of pyiqa's: turned so that higher is better, by name, and told in a line where they cannot be had."""

import importlib.util
import sys
from importlib.metadata import version
from pathlib import Path

import made_pyiqa
import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.training.no_reference import MetricError, installed, load_metric

IS_HERE = importlib.util.find_spec("pyiqa") is not None


@pytest.fixture
def stub(tmp_path: Path) -> object:
    with pytest.MonkeyPatch.context() as patch:
        made_pyiqa.install(tmp_path / "site", patch)
        yield
        sys.modules.pop("pyiqa", None)


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


@pytest.mark.usefixtures("stub")
def test_higher_is_better_of_every_metric(pixels: np.ndarray) -> None:
    shares = pixels.astype(np.float64) / 255
    light, grain = load_metric("light"), load_metric("grain")
    assert installed() == "pyiqa 9.9"
    assert (light.lower_better, grain.lower_better) == (False, True)
    assert light.score(pixels) == pytest.approx(shares.mean(), rel=1e-5)
    assert grain.score(pixels) == pytest.approx(-100 * np.abs(np.diff(shares, axis=1)).mean(), rel=1e-5)


@pytest.mark.usefixtures("stub")
def test_what_is_drawn_at_random_is_drawn_alike_and_draws_nothing_from_others(pixels: np.ndarray) -> None:
    torch.manual_seed(5)
    dice, before = load_metric("dice", seed=3), torch.get_rng_state()
    assert dice.score(pixels) == dice.score(pixels) != load_metric("dice", seed=4).score(pixels)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.usefixtures("stub")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "grian",
            r"^pyiqa_grian is no metric of pyiqa 9\.9 that judges an image .*; did you mean pyiqa_grain\?$",
        ),
        ("xyzzy", r"judges an image by itself; pyiqa\.list_models\('NR'\) lists those it has$"),
        ("fid", r"^pyiqa_fid is no metric of pyiqa 9\.9 that judges an image by itself"),
        (
            "far",
            r"^pyiqa_far needs weights that pyiqa 9\.9 downloads on first use, .* \(URLError: .*run once",
        ),
        ("broken", r"^pyiqa 9\.9 cannot make its metric broken: KeyError: '?state_dict"),
    ],
)
def test_what_cannot_be_had_is_told_in_a_line(name: str, said: str) -> None:
    with pytest.raises(MetricError, match=said) as error:
        load_metric(name)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("stub")
def test_a_score_is_one_number(pixels: np.ndarray) -> None:
    with pytest.raises(MetricError, match=r"^pyiqa_twice gives 2 numbers an image, and a score is one$"):
        load_metric("twice").score(pixels)


@pytest.mark.skipif(IS_HERE, reason="pyiqa is installed")
def test_without_pyiqa_the_extra_is_named() -> None:
    with pytest.raises(MetricError, match=r"needs the package pyiqa, which is not here: pip install pyiqa, the extra"):
        load_metric("piqe")


@pytest.mark.skipif(not IS_HERE, reason="the extra `pyiqa` is not installed")
@pytest.mark.parametrize(("name", "sign"), [("piqe", -1), ("entropy", 1)])
def test_real_metrics_without_weights_score_as_pyiqa_does(name: str, sign: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    ramp = np.linspace(0, 255, 128)[None, :, None] + rng.normal(0, 12, (96, 128, 3))
    pixels = ramp.clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    metric = load_metric(name, device="cpu")
    import pyiqa

    assert installed() == f"pyiqa {version('pyiqa')}"
    expected = pyiqa.create_metric(name, device="cpu")(str(tmp_path / "a.png")).item()
    assert metric.score(pixels) == pytest.approx(sign * expected, rel=1e-5)


@pytest.mark.skipif(not IS_HERE, reason="the extra `pyiqa` is not installed")
def test_a_real_metric_whose_weights_are_out_of_reach_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    load_metric("entropy", device="cpu")  # imports pyiqa
    from pyiqa.utils import download_util

    monkeypatch.setattr(download_util, "DEFAULT_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: (_ for _ in ()).throw(OSError("no network here")))
    with pytest.raises(MetricError, match=r"^pyiqa_brisque needs weights that pyiqa .* downloads on first use"):
        load_metric("brisque", device="cpu")
