"""Hand-crafted statistics: known pictures, known numbers."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from pipeline.training import statistics


def named(pixels: np.ndarray) -> dict[str, float]:
    return dict(zip(statistics.NAMES, statistics.features(pixels), strict=True))


def photo(seed: int = 0, side: int = 96) -> np.ndarray:
    generator = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(generator.normal(size=(side, side, 3)), (3, 3, 0))
    return np.clip(128 + 400 * smooth, 0, 255).astype(np.uint8)


def test_names_are_unique_and_match() -> None:
    assert len(set(statistics.NAMES)) == len(statistics.NAMES) == len(statistics.features(photo()))


def test_a_flat_picture_by_hand() -> None:
    found = named(np.full((32, 48, 3), 255, dtype=np.uint8))
    assert found["luma_mean"] == pytest.approx(1, abs=1e-6)
    assert found["bright_share"] == 1
    assert found["dark_share"] == 0
    for name in ("luma_std", "colourfulness", "luma_entropy", "noise", "gradient_p99@1", "laplacian_std@4"):
        assert found[name] == pytest.approx(0, abs=1e-6), name


def test_black_frames_are_finite() -> None:
    assert np.isfinite(statistics.features(np.zeros((256, 256, 3), dtype=np.uint8))).all()


def test_colourfulness_equals_its_published_formula() -> None:
    pixels = photo(1)
    red, green, blue = (pixels[..., k].astype(float) / 255 for k in range(3))
    rg, yb = red - green, 0.5 * (red + green) - blue
    expected = np.sqrt(rg.std() ** 2 + yb.std() ** 2) + 0.3 * np.sqrt(rg.mean() ** 2 + yb.mean() ** 2)
    assert named(pixels)["colourfulness"] == pytest.approx(expected, rel=1e-4)


def test_mscn_equals_brisques_definition() -> None:
    pixels = photo(2)
    luma = pixels.astype(float) @ [0.299, 0.587, 0.114]
    kernel = np.exp(-(np.arange(-3, 4) ** 2) / (2 * (7 / 6) ** 2))
    window = np.outer(kernel, kernel) / kernel.sum() ** 2
    mean = ndimage.correlate(luma, window)
    spread = np.sqrt(np.maximum(ndimage.correlate(luma**2, window) - mean**2, 0))
    mscn = (luma - mean) / (spread + 1)
    found = named(pixels)
    assert found["mscn_std@1"] == pytest.approx(mscn.std(), rel=0.01)
    assert found["pair_right_mean@1"] == pytest.approx((mscn[:, :-1] * mscn[:, 1:]).mean(), rel=0.02)


def test_blur_noise_and_blocks_move_what_they_should() -> None:
    clean, generator = photo(3), np.random.default_rng(0)
    blurred = ndimage.gaussian_filter(clean, (2, 2, 0))
    noisy = np.clip(clean + generator.normal(0, 20, clean.shape), 0, 255).astype(np.uint8)
    blocky = clean.reshape(12, 8, 12, 8, 3).mean((1, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    base = named(clean)
    assert named(blurred)["laplacian_std@1"] < 0.8 * base["laplacian_std@1"]
    assert named(noisy)["noise"] > 3 * base["noise"]
    assert named(blocky)["blockiness"] > 3 > base["blockiness"]


def test_too_small_a_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="image of 40x12 pixels: the statistics need 16 a side"):
        statistics.features(np.zeros((12, 40, 3), dtype=np.uint8))


def test_extract_keeps_the_order() -> None:
    pictures = [photo(seed, 32) for seed in range(3)]
    found = statistics.extract(iter(pictures), 3)
    for row, picture in zip(found, pictures, strict=True):
        np.testing.assert_array_equal(row, statistics.features(picture))


def test_what_is_larger_than_the_fields_images_is_shrunk_first() -> None:
    rng = np.random.default_rng(0)
    large = rng.integers(0, 256, (1024, 1536, 3), dtype=np.uint8)
    small = np.asarray(Image.fromarray(large).resize((768, 512), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(statistics.features(large), statistics.features(small))
    wide = rng.integers(0, 256, (40, 2000, 3), dtype=np.uint8)  # its shorter side is small, and it stays
    assert statistics.features(wide)[0] != statistics.features(wide[:, ::2])[0]
