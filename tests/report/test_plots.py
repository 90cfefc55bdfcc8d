"""Figures: they show every point they are given, and equal numbers give equal bytes."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.data import card
from pipeline.study import evaluation


@pytest.fixture
def predictions() -> pd.DataFrame:
    generator = np.random.default_rng(0)
    mos = generator.uniform(0, 5, 60)
    return pd.DataFrame(
        {"mos": mos, "predicted": mos / 5 + generator.normal(0, 0.1, 60), "generator": np.repeat(["a", "b", "c"], 20)}
    )


def test_equal_numbers_give_equal_bytes(predictions: pd.DataFrame, tmp_path: Path) -> None:
    for name in ("1.png", "2.png", "1.svg", "2.svg"):
        evaluation.scatter(predictions, tmp_path / name, "title", "quality MOS (0 to 5)")
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()
    assert (tmp_path / "1.svg").read_bytes() == (tmp_path / "2.svg").read_bytes()
    with Image.open(tmp_path / "1.png") as picture:
        assert min(picture.size) > 400
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 50


def test_every_image_is_a_point(predictions: pd.DataFrame, tmp_path: Path) -> None:
    evaluation.scatter(predictions, tmp_path / "s.svg", "title", "MOS")
    text = (tmp_path / "s.svg").read_text()
    groups = re.findall(r'<g id="PathCollection_\d+">(.*?)\n   </g>', text, re.S)
    assert sum(group.count("<use ") for group in groups) >= 60
    assert "Date" not in text


def test_an_unknown_format_is_refused(predictions: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="jpeg"):
        evaluation.scatter(predictions, tmp_path / "s.jpeg", "title", "MOS")


def test_the_data_card_shows_pictures_of_any_size(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    manifest = pd.DataFrame(
        {
            "generator": np.repeat(["a", "b"], 9), "quality": generator.uniform(0, 5, 18), "alignment": np.nan,
            "authenticity": np.nan, "mos_low": 0.0, "mos_high": 5.0,
        }
    )  # fmt: skip
    images = [generator.integers(0, 255, (20 + k, 30, 3), dtype=np.uint8) for k in range(18)]
    card.data_card(manifest, images, tmp_path / "card.png", "toy")
    with Image.open(tmp_path / "card.png") as picture:
        assert picture.width > 800
