"""pipeline.gallery: which images are shown, and how a map is coloured."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.study.gallery import HIGH_COLOUR, LOW_COLOUR, SIDE, choose, colours, write_gallery


def table(count: int = 40) -> pd.DataFrame:
    """Predictions on a straight line through the MOS, but for two images that are far off."""
    mos = np.linspace(1, 4, count)
    predicted = mos / 5
    if count > 30:
        predicted[10], predicted[30] = 0.8, 0.2  # at MOS 1.77 far too high, at 3.31 far too low
    return pd.DataFrame(
        {
            "image_id": [f"{k:02d}.png" for k in range(count)],
            "generator": "one",
            "generation_prompt": "a hill",
            "mos": mos,
            "predicted": predicted,
            "fitted": 5 * predicted,
        }
    )


def test_the_worst_come_first_and_the_best_span_the_scale() -> None:
    found = choose(table(), 4)
    first = found[found["rank"] == 0].set_index("kind")["image_id"]
    assert (first["over"], first["under"]) == ("10.png", "30.png")
    best = found[found["kind"] == "best"]
    assert list(np.searchsorted([9.5, 19.5, 29.5], best["image_id"].str[:2].astype(int))) == [0, 1, 2, 3]
    assert not set(best["image_id"]) & {"10.png", "30.png"}


def test_errors_are_of_the_number_that_a_user_is_told() -> None:
    """One image off by far after the fit, another one in its score: the latter is what is wrong."""
    told = table(27).assign(score=lambda rows: rows["mos"] + 0.1)
    told.loc[5, "fitted"], told.loc[9, "score"] = 9.0, 0.5
    found = choose(told, 2)
    assert list(found.columns)[5:7] == ["fitted", "score"]
    assert found[found["kind"] == "under"]["image_id"].tolist() == ["09.png"]
    assert "score" not in choose(table(27), 2)


def test_no_more_than_there_is() -> None:
    found = choose(table(5), 9)
    assert found.groupby("kind").size()["best"] == 5  # all are predicted rightly
    assert (found[found["kind"] == "over"]["fitted"] > found[found["kind"] == "over"]["mos"]).all()
    assert choose(table(5 * 4), 0).empty


@pytest.mark.parametrize("count", [3, 5, 27, 40])
def test_no_image_stands_under_two_headings(count: int) -> None:
    rng = np.random.default_rng(count)
    for _ in range(30):
        noisy = table(count).assign(fitted=rng.normal(2.5, 1, count).round(1))
        found = choose(noisy, 6)
        assert found["image_id"].is_unique
        error = (found["fitted"] - found["mos"]).abs()
        worst_of_best = error[found["kind"] == "best"].max()
        assert (error[found["kind"] != "best"] > worst_of_best).all()


def test_colours_by_hand() -> None:
    found = colours(np.array([[0.0, 0.5, 1.0, 0.75, np.nan, 7.0]]), 0.0, 1.0)[0]
    assert found.tolist() == [
        [*LOW_COLOUR, 115],  # 0.45 x 255, at the low end
        [*HIGH_COLOUR, 0],  # the middle is clear
        [*HIGH_COLOUR, 115],
        [*HIGH_COLOUR, 57],
        [*HIGH_COLOUR, 0],  # where there is no score
        [*HIGH_COLOUR, 115],  # beyond the range
    ]


def test_pictures_and_maps_fit_each_other(tmp_path: Path) -> None:
    pixels = np.zeros((300, 600, 3), dtype=np.uint8)
    pixels[:, 300:] = 255
    halves = np.repeat([[0.0, 1.0]], 300, axis=0).repeat(300, axis=1)
    write_gallery(tmp_path, table(), 2, lambda name: pixels, lambda image: halves)
    found = pd.read_csv(tmp_path / "gallery.csv")
    assert list(found["kind"]) == ["best", "best", "over", "over", "under", "under"]
    with Image.open(tmp_path / found["picture"][0]) as picture, Image.open(tmp_path / found["map"][0]) as overlay:
        assert picture.size == overlay.size == (SIDE, SIDE // 2)
        assert overlay.getpixel((10, 10))[:3] == LOW_COLOUR
        assert overlay.getpixel((SIDE - 10, 10))[:3] == HIGH_COLOUR
    assert found["map_low"][0] == pytest.approx(np.percentile(table()["predicted"], 5))
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_gallery(tmp_path, table(), 2, lambda name: pixels, lambda image: halves)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first
    assert Image.open(io.BytesIO(first["best-0.jpg"])).format == "JPEG"
