"""Windows, crops and packs, worked by hand."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.images import (
    DevicePixels,
    EpochCrops,
    PixelPack,
    WindowRule,
    cut,
    enlarge,
    normalise,
    spread,
    window_batches,
    window_origins,
)  # fmt: skip


def rule(size: int = 4, stride: int = 3, cover: str = "all") -> WindowRule:
    return WindowRule(size, stride, cover, "clip", mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))


def pack_of(tmp_path: Path, shapes: list[tuple[int, int]], seed: int = 0) -> tuple[PixelPack, list[np.ndarray]]:
    generator = np.random.default_rng(seed)
    images = [generator.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in shapes]
    (tmp_path / "pixels.bin").write_bytes(b"".join(image.tobytes() for image in images))
    offsets = np.cumsum([0, *(image.size for image in images[:-1])])
    return PixelPack(tmp_path / "pixels.bin", offsets, [s[0] for s in shapes], [s[1] for s in shapes]), images


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


def test_cover_all_leaves_no_pixel_out() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        height, width = generator.integers(4, 40, 2)
        stride = int(generator.integers(1, 5))
        seen = np.zeros((height, width), bool)
        for top, left in window_origins(height, width, rule(4, stride)):
            seen[top : top + 4, left : left + 4] = True
        assert seen.all()


def test_too_small_an_image_is_named() -> None:
    with pytest.raises(ValueError, match="image of 9x3 pixels is smaller than a window of 4"):
        window_origins(3, 9, rule())


def test_spread_takes_both_ends() -> None:
    origins = [(0, left) for left in range(25)]
    assert spread(origins, 5) == [(0, 0), (0, 6), (0, 12), (0, 18), (0, 24)]
    assert spread(origins, 1) == [(0, 12)]
    assert spread(origins, 99) == origins


def test_enlarge_raises_the_short_side_only_where_needed() -> None:
    image = np.zeros((10, 30, 3), np.uint8)
    assert enlarge(image, 10) is image
    assert enlarge(image, 20).shape == (20, 60, 3)
    assert enlarge(np.full((1, 1, 3), 7, np.uint8), 4).tolist() == np.full((4, 4, 3), 7).tolist()


def test_normalise_by_hand() -> None:
    windows = np.array([[[[255, 0, 51]]]], dtype=np.uint8)
    expected = torch.tensor([(1.0 - 0.5) / 0.5, (0.0 - 0.25) / 0.25, 0.2]).view(1, 3, 1, 1)
    torch.testing.assert_close(normalise(windows, rule()), expected)


def test_pack_gives_back_every_image_and_refuses_a_short_file(tmp_path: Path) -> None:
    pack, images = pack_of(tmp_path, [(5, 7), (4, 4), (9, 6)])
    assert len(pack) == 3
    for index, image in enumerate(images):
        assert np.array_equal(pack[index], image)
    (tmp_path / "pixels.bin").write_bytes(b"123")
    with pytest.raises(ValueError, match=re.escape("pixels.bin holds 3 bytes, and the manifest speaks of 48")):
        PixelPack(tmp_path / "pixels.bin", [0], [4], [4])


def test_window_batches_run_across_images_and_keep_owners(tmp_path: Path) -> None:
    pack, images = pack_of(tmp_path, [(7, 7), (4, 4), (10, 4)])  # 4, 1 and 3 windows
    batches = list(window_batches(iter(images), rule(), batch=3))
    assert [len(windows) for windows, _ in batches] == [3, 3, 2]
    owners = np.concatenate([owner for _, owner in batches])
    assert owners.tolist() == [0, 0, 0, 0, 1, 2, 2, 2]
    expected = np.concatenate([cut(image, window_origins(*image.shape[:2], rule()), 4) for image in images])
    assert np.array_equal(np.concatenate([windows for windows, _ in batches]), expected)
    few = list(window_batches((pack[i] for i in range(3)), rule(), batch=99, count=2))
    assert few[0][1].tolist() == [0, 0, 1, 2, 2]


def test_epoch_crops_are_real_crops_seeded_and_free_of_the_batch_size(tmp_path: Path) -> None:
    pack, images = pack_of(tmp_path, [(8, 9)] * 20)
    rows = np.arange(20)
    first = EpochCrops(pack, rows, rule(), flip=True, seed=(3, 1))
    again = EpochCrops(pack, rows, rule(), flip=True, seed=(3, 1))
    other = EpochCrops(pack, rows, rule(), flip=True, seed=(3, 2))
    assert sorted(first.order.tolist()) == list(range(20))
    assert first.order.tolist() == again.order.tolist() != other.order.tolist()
    whole = first.crops(np.arange(20))
    assert np.array_equal(whole, np.concatenate([again.crops(np.arange(7)), again.crops(np.arange(7, 20))]))
    flipped = 0
    for crop, image in zip(whole, images, strict=True):
        places = [image[top : top + 4, left : left + 4] for top in range(5) for left in range(6)]
        plain = any(np.array_equal(crop, place) for place in places)
        mirrored = any(np.array_equal(crop, place[:, ::-1]) for place in places)
        assert plain or mirrored
        flipped += mirrored
    assert 3 <= flipped <= 17
    assert not any(EpochCrops(pack, rows, rule(), flip=False, seed=(1,))._flips)


def test_crops_cut_on_a_device_are_the_hosts(tmp_path: Path) -> None:
    generator = np.random.default_rng(4)
    shapes = [(40, 60), (33, 32), (20, 90), (32, 32)]  # the third is enlarged
    images = [generator.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    (tmp_path / "pixels.bin").write_bytes(b"".join(image.tobytes() for image in images))
    offsets = np.concatenate([[0], np.cumsum([image.size for image in images])[:-1]])
    pack = PixelPack(tmp_path / "pixels.bin", offsets, *zip(*shapes, strict=True))
    rows = np.array([3, 1, 0, 2])
    held = DevicePixels(pack, rows, 32, "cpu")
    for epoch in range(5):
        epoch_crops = EpochCrops(pack, rows, rule(32), flip=True, seed=(epoch,))
        found = epoch_crops.on_device(held)
        for start, stop in ((0, 4), (1, 3)):
            expected = epoch_crops.crops(epoch_crops.order[start:stop])
            np.testing.assert_array_equal(found(start, stop).numpy(), expected)
    assert DevicePixels.if_it_fits(pack, rows, 32, "cpu") is None
