"""The picture of a quality map: grey under colours, with their scale below."""

import io

import numpy as np
from matplotlib import colormaps
from PIL import Image

from pipeline.scoring.maps import VIRIDIS, draw_map


def to_mos(raw: np.ndarray) -> np.ndarray:
    return 1 + 4 * raw


def test_a_maps_colours_run_from_its_worst_to_its_best() -> None:
    drawn = np.full((100, 300), 0.25, np.float32)
    drawn[:, 200:] = 0.75
    drawn[:, :10] = np.nan
    whole = np.asarray(Image.open(io.BytesIO(draw_map(np.zeros((100, 300, 3), np.uint8), drawn, to_mos))))
    assert whole.shape == (128, 300, 3)
    assert (whole[50, 5] == 0).all()  # no window reaches there
    assert whole[50, 100].argmax() == 2  # the dark end of viridis is blue
    assert whole[50, 250, 0] > 100 > whole[50, 250, 2]  # its bright end yellow


def test_a_map_of_one_score_is_of_one_colour_and_a_narrow_one_has_room_for_its_scale() -> None:
    pixels = np.full((40, 30, 3), 100, np.uint8)
    whole = np.asarray(Image.open(io.BytesIO(draw_map(pixels, np.full((40, 30), 0.5, np.float32), to_mos))))
    assert whole.shape == (68, 260, 3)
    assert len(np.unique(whole[:40, :30].reshape(-1, 3), axis=0)) == 1
    assert (whole[:40, 30:] == 255).all()
    assert (whole[40:] < 255).any()  # the scale's words and colours


def test_the_image_shows_through_the_colours() -> None:
    pixels = np.zeros((20, 300, 3), np.uint8)
    pixels[:, 150:] = 200
    whole = np.asarray(Image.open(io.BytesIO(draw_map(pixels, np.full((20, 300), 0.5, np.float32), to_mos))))
    assert (whole[5, 200].astype(int) - whole[5, 50] == 90).all()  # 0.45 of the grey's difference


def test_the_colours_are_matplotlibs() -> None:
    assert (colormaps["viridis"](np.arange(256), bytes=True)[:, :3] == VIRIDIS).all()
