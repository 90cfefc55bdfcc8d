"""The data card shows every data set, whatever its images are."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from pipeline.data import card


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
