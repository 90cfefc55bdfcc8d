"""The data card shows every data set, whatever its images are."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.data import card


@pytest.mark.parametrize(("raters", "said"), [("people", "rated by people"), ("simulated", "by simulated raters")])
def test_the_data_card_says_who_rated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raters: str, said: str) -> None:
    titles: list[str] = []
    monkeypatch.setattr(card, "put_title", lambda figure, title: titles.append(title))
    manifest = pd.DataFrame({"generator": ["a"] * 2, "quality": [1.0, 4.0], "alignment": np.nan, "authenticity": np.nan,
                             "mos_low": 0.0, "mos_high": 5.0, "raters": raters})  # fmt: skip
    card.data_card(manifest, [np.zeros((20, 20, 3), np.uint8)] * 2, tmp_path / "card.svg", "toy")
    assert said in titles[0]
    assert ("people" in titles[0]) == (raters == "people")


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
