"""Random crops against the images that they were cut from, on the host and where a device holds them."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from made_parts import noise, pack_of
from PIL import Image

from pipeline.model.windows import WindowRule
from pipeline.training.crops import DevicePixels, EpochCrops, epoch_images


def rule(size: int = 4, stride: int = 3, cover: str = "all") -> WindowRule:
    return WindowRule(size, stride, cover, "clip", mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))


def test_epoch_crops_are_real_crops_seeded_and_free_of_the_batch_size(tmp_path: Path) -> None:
    images = noise([(8, 9)] * 20)
    pack = pack_of(tmp_path, images)
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


def test_crops_of_one_window_are_those_of_the_draws_by_hand(tmp_path: Path) -> None:
    """Order, places, flips, drawn in this order and of these shapes since the first version: the bits must not move."""
    images = noise([(8, 9), (6, 4), (12, 7), (5, 5)], seed=1)
    generator = np.random.default_rng([3, 1])
    order, places, flips = generator.permutation(4), generator.random((4, 2)), generator.random(4) < 0.5
    crops = EpochCrops(pack_of(tmp_path, images), np.arange(4), rule(), flip=True, seed=(3, 1))
    assert crops.order.tolist() == order.tolist()
    for image, (down, across), flip, found in zip(images, places, flips, crops.crops(np.arange(4)), strict=True):
        top, left = int(down * (image.shape[0] - 3)), int(across * (image.shape[1] - 3))
        crop = image[top : top + 4, left : left + 4]
        np.testing.assert_array_equal(found, crop[:, ::-1] if flip else crop)


def test_several_windows_of_an_image_lie_side_by_side_each_with_its_own_place_and_flip(tmp_path: Path) -> None:
    images = noise([(8, 9)] * 6)
    pack, rows = pack_of(tmp_path, images), np.array([5, 3, 1])
    crops = EpochCrops(pack, rows, rule(), flip=True, seed=(3, 1), windows=8)
    whole = crops.crops(np.arange(3))
    assert whole.shape == (24, 4, 4, 3)
    flips = []
    for number, crop in enumerate(whole):
        image = images[rows[number // 8]]
        places = [image[top : top + 4, left : left + 4] for top in range(5) for left in range(6)]
        flips.append(any(np.array_equal(crop, place[:, ::-1]) for place in places))
        assert flips[-1] or any(np.array_equal(crop, place) for place in places)
    assert len({crop.tobytes() for crop in whole}) > 18
    assert all(0 < sum(flips[k : k + 8]) < 8 for k in (0, 8, 16))
    by_image = epoch_images(crops, None, rule(), "cpu")
    torch.testing.assert_close(torch.cat([by_image(0, 1), by_image(1, 3)]), by_image(0, 3), atol=0, rtol=0)
    held = epoch_images(crops, DevicePixels(pack, rows, rule(), "cpu"), rule(), "cpu")
    torch.testing.assert_close(held(1, 3), by_image(1, 3), atol=0, rtol=0)


def test_crops_cut_on_a_device_are_the_hosts(tmp_path: Path) -> None:
    pack = pack_of(tmp_path, noise([(40, 60), (33, 32), (20, 90), (32, 32)], seed=4))  # the third is enlarged
    rows = np.array([3, 1, 0, 2])
    held = DevicePixels(pack, rows, rule(32), "cpu")
    for epoch in range(5):
        epoch_crops = EpochCrops(pack, rows, rule(32), flip=True, seed=(epoch,))
        found = epoch_crops.on_device(held)
        for start, stop in ((0, 4), (1, 3)):
            expected = epoch_crops.crops(epoch_crops.order[start:stop])
            np.testing.assert_array_equal(found(start, stop).numpy(), expected)
    assert DevicePixels.if_it_fits(pack, rows, rule(32), "cpu") is None


def test_crops_come_from_the_resized_image_on_host_and_device(tmp_path: Path) -> None:
    """Pillow's own resize is the oracle, and each crop is a part of it."""
    pack, rows = pack_of(tmp_path, noise([(40, 60), (33, 20)], seed=4)), np.array([1, 0])
    small = replace(rule(8), shorter_side=12)
    expected = [np.asarray(Image.fromarray(pack[row]).resize(size, Image.Resampling.BICUBIC))
                for row, size in ((1, (12, 20)), (0, (18, 12)))]  # fmt: skip
    crops = EpochCrops(pack, rows, small, flip=False, seed=(1,), windows=2)
    for number, crop in enumerate(crops.crops(np.arange(2))):
        image = expected[number // 2]
        places = itertools.product(range(image.shape[0] - 7), range(image.shape[1] - 7))
        assert any(np.array_equal(crop, image[top : top + 8, left : left + 8]) for top, left in places)
    held = crops.on_device(DevicePixels(pack, rows, small, "cpu"))
    np.testing.assert_array_equal(held(0, 2).numpy(), crops.crops(crops.order))


def test_an_epochs_images_are_its_crops_in_order_and_normalised(tmp_path: Path) -> None:
    """Worked by hand: (pixel / 255 - mean) / std of each channel."""
    pack = pack_of(tmp_path, noise([(9, 12), (8, 8), (10, 7)]))
    rows = np.arange(3)
    crops = EpochCrops(pack, rows, rule(), flip=True, seed=(2,))
    cut = crops.crops(crops.order).transpose(0, 3, 1, 2) / 255
    expected = (cut - np.reshape([0.5, 0.25, 0.0], (3, 1, 1))) / np.reshape([0.5, 0.25, 1.0], (3, 1, 1))
    for pixels in (None, DevicePixels(pack, rows, rule(), "cpu")):
        found = epoch_images(crops, pixels, rule(), "cpu")
        torch.testing.assert_close(found(0, 3), torch.from_numpy(expected).float(), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(found(1, 2), found(0, 3)[1:2], atol=0, rtol=0)
