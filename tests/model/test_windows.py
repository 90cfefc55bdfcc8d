"""Windows of images of any size, worked by hand."""

import itertools
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_parts import noise
from PIL import Image

from pipeline.model.torchvision_shim import ensure_torchvision_imports
from pipeline.model.windows import (
    NORMALISATION,
    WindowRule,
    cut,
    normalise,
    resize,
    resized_sides,
    spread,
    window_batches,
    window_origins,
)


def rule(size: int = 4, stride: int = 3, cover: str = "all") -> WindowRule:
    return WindowRule(size, stride, cover, "clip", mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))


@pytest.mark.parametrize(
    ("side", "stride", "cover", "starts"),
    [
        (512, 64, "all", [0, 64, 128, 192, 256, 288]),  # 288 = 512 - 224, flush
        (512, 64, "reference", [0, 64, 128, 192, 256]),
        (256, 64, "all", [0, 32]),
        (256, 64, "reference", [0]),  # the predecessor sees only the top left of a 256 image
        (224, 64, "all", [0]),
        (288, 64, "all", [0, 64]),
    ],
)
def test_window_starts_at_the_papers_sizes(side: int, stride: int, cover: str, starts: list[int]) -> None:
    origins = window_origins(side, 224, rule(224, stride, cover))
    assert origins == [(start, 0) for start in starts]
    assert window_origins(side, side, rule(224, stride, cover)) == [(top, left) for top in starts for left in starts]


@settings(deadline=None, max_examples=150)
@given(side=st.integers(1, 9), data=st.data())
def test_cover_all_leaves_no_pixel_out_and_reference_what_the_stride_leaves(side: int, data: st.DataObject) -> None:
    height, width = (data.draw(st.integers(side, 40)) for _ in range(2))
    stride = data.draw(st.integers(1, side))
    seen = np.zeros((height, width), int)
    origins = window_origins(height, width, rule(side, stride))
    for top, left in origins:
        assert 0 <= top <= height - side
        assert 0 <= left <= width - side
        seen[top : top + side, left : left + side] += 1
    assert seen.min() > 0
    assert len(set(origins)) == len(origins)
    reference = window_origins(height, width, rule(side, stride, "reference"))
    assert set(reference) <= set(origins)
    assert all(top % stride == left % stride == 0 for top, left in reference)
    assert len(reference) == ((height - side) // stride + 1) * ((width - side) // stride + 1)


def test_too_small_an_image_is_named() -> None:
    with pytest.raises(ValueError, match="image of 9x3 pixels is smaller than a window of 4"):
        window_origins(3, 9, rule())


def test_enlarge_raises_the_short_side_only_where_needed() -> None:
    image = np.zeros((10, 30, 3), np.uint8)
    assert resize(image, rule(10)) is image
    assert resize(image, rule(20)).shape == (20, 60, 3)
    assert (resized_sides(10, 30, rule(20)), resized_sides(9, 7, rule(8))) == ((20, 60), (10, 8))  # 9 * 8 / 7 = 10.3
    assert resize(np.full((1, 1, 3), 7, np.uint8), rule(4)).tolist() == np.full((4, 4, 3), 7).tolist()


@pytest.mark.parametrize(
    ("sides", "expected"),
    [((512, 512), (256, 256)), ((512, 768), (256, 384)), ((300, 257), (299, 256)), ((100, 50), (512, 256)),
     ((256, 900), (256, 900)), ((16, 1000), (256, 16000))],
)  # fmt: skip
def test_a_shorter_side_shrinks_and_enlarges_alike(sides: tuple[int, int], expected: tuple[int, int]) -> None:
    small = replace(rule(128), shorter_side=256)
    assert resized_sides(*sides, small) == expected
    assert resized_sides(*sides, replace(small, shorter_side=64)) == resized_sides(
        *sides, replace(small, shorter_side=128)
    )


def test_a_resize_is_pillows_antialiased_bicubic_and_stands_in_the_record() -> None:
    pixels, small = noise([(60, 44)])[0], replace(rule(8), shorter_side=11)
    found = resize(pixels, small)
    expected = Image.fromarray(pixels).resize((11, 15), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(found, np.asarray(expected))
    assert found.std() < 0.5 * pixels.std()  # noise is averaged, not sampled
    assert WindowRule.from_record(json.loads(json.dumps(small.record()))) == small
    assert small.record().keys() - rule().record().keys() == {"shorter_side"}
    windows, _ = next(window_batches([pixels], small, 99))
    np.testing.assert_array_equal(windows, cut(found, window_origins(15, 11, small), 8))


def test_normalise_by_hand() -> None:
    windows = np.array([[[[255, 0, 51]]]], dtype=np.uint8)
    expected = torch.tensor([(1.0 - 0.5) / 0.5, (0.0 - 0.25) / 0.25, 0.2]).view(1, 3, 1, 1)
    torch.testing.assert_close(normalise(windows, rule()), expected)


def test_window_batches_run_across_images_and_keep_owners() -> None:
    images = noise([(7, 7), (4, 4), (10, 4)])  # 4, 1 and 3 windows
    batches = list(window_batches(iter(images), rule(), batch=3))
    assert [len(windows) for windows, _ in batches] == [3, 3, 2]
    owners = np.concatenate([owner for _, owner in batches])
    assert owners.tolist() == [0, 0, 0, 0, 1, 2, 2, 2]
    expected = np.concatenate([cut(image, window_origins(*image.shape[:2], rule()), 4) for image in images])
    assert np.array_equal(np.concatenate([windows for windows, _ in batches]), expected)
    few = list(window_batches(iter(images), rule(), batch=99, count=2))
    assert few[0][1].tolist() == [0, 0, 1, 2, 2]


def test_a_rule_comes_back_from_its_record() -> None:
    assert WindowRule.from_record(json.loads(json.dumps(rule().record()))) == rule()


# Which few windows stand for an image: every grid up to nine by nine, and every number of windows


def grid(height: int, width: int) -> list[tuple[int, int]]:
    return [(10 * row, 7 * column) for row in range(height) for column in range(width)]


@pytest.mark.parametrize(("height", "width"), list(itertools.product(range(1, 10), repeat=2)))
def test_rows_and_columns_are_covered_as_evenly_as_can_be(height: int, width: int) -> None:
    origins = grid(height, width)
    for count in range(1, height * width + 2):
        found = spread(origins, count)
        assert found == sorted(set(found)) == spread(origins, count)
        assert set(found) <= set(origins)
        assert len(found) == min(count, len(origins))
        for axis, length in ((0, height), (1, width)):
            each = Counter(origin[axis] for origin in found)
            assert len(each) == min(count, length)
            assert max(each.values()) - min(each.values()) <= 1
            places = sorted(each)  # evenly spaced: gaps, and the margins at both ends, differ by one step at most
            assert np.ptp(np.diff(places)) <= (10, 7)[axis] if len(places) > 1 else True


@pytest.mark.parametrize("side", range(3, 10))
def test_no_square_is_sampled_along_its_diagonal(side: int) -> None:
    for count in range(3, 2 * side):
        rows, columns = np.array(spread(grid(side, side), count)).T
        assert abs(np.corrcoef(rows, columns)[0, 1]) < 0.85


def test_five_of_a_square_are_a_knights_moves() -> None:
    marks = [["." for _ in range(5)] for _ in range(5)]
    for row, column in spread(grid(5, 5), 5):
        marks[row // 10][column // 7] = "x"
    assert ["".join(line) for line in marks] == ["...x.", "x....", "..x..", "....x", ".x..."]


def test_one_is_the_middle_and_enough_are_all() -> None:
    assert spread(grid(5, 3), 1) == [(20, 7)]
    assert spread(grid(4, 6), 24) == spread(grid(4, 6), 99) == grid(4, 6)
    assert spread(grid(1, 25), 5) == [(0, 7 * column) for column in (2, 7, 12, 17, 22)]


@pytest.mark.parametrize(
    ("key", "name", "tag"),
    [
        ("clip", "ViT-B-32", "openai"),
        ("siglip", "ViT-B-16-SigLIP2", "webli"),
        ("siglip", "ViT-SO400M-14-SigLIP", "webli"),
        ("mobileclip", "MobileCLIP-B", "datacompdr"),
    ],
)
def test_normalisations_are_those_that_the_towers_were_trained_with(key: str, name: str, tag: str) -> None:
    ensure_torchvision_imports()
    import open_clip

    published = open_clip.get_pretrained_cfg(name, tag)
    assert NORMALISATION[key] == (tuple(published["mean"]), tuple(published["std"]))
