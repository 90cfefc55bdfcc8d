"""Hand-crafted image statistics: natural-scene statistics, sharpness and colour, without any network.

They feed the `handcrafted` baseline, the bar that a weak backbone must own up to.
"""

from collections.abc import Iterable

import numpy as np
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

from pipeline.errors import AgiqaError

SCALES = (1, 2, 4)
_DIRECTIONS = ("right", "down", "falling", "rising")
_CHANNELS = ("luma", "red_green", "yellow_blue", "saturation")
_PER_SCALE = (
    "mscn_mean", "mscn_std", "mscn_skewness", "mscn_kurtosis", "mscn_shape",
    *(f"pair_{direction}_{part}" for direction in _DIRECTIONS for part in ("mean", "left", "right")),
    "deviation_mean", "deviation_std", "deviation_p10", "deviation_p50", "deviation_p90",
    "gradient_mean", "gradient_std", "gradient_p50", "gradient_p90", "gradient_p99", "laplacian_std",
)  # fmt: skip
_COLOUR = (
    *(f"{channel}_{part}" for channel in _CHANNELS for part in ("mean", "std", "p5", "p95")),
    "colourfulness", "luma_entropy", "dark_share", "bright_share",
)  # fmt: skip
_WHOLE = ("blockiness", "detail_1_2", "detail_2_4", "noise")
NAMES: tuple[str, ...] = (*(f"{name}@{scale}" for scale in SCALES for name in _PER_SCALE), *_COLOUR, *_WHOLE)
MOST_SIDE = 512  # pixels; the images of AGIQA-3K, AGIQA-1K and AIGCIQA2023 have them
_NEAR = 1e-6


def features(pixels: np.ndarray) -> np.ndarray:
    """Return the statistics of one image.

    Args:
        pixels: Shape (H, W, 3), uint8; sides of at least 16 pixels. One whose shorter side is above `MOST_SIDE` is
            shrunk to that first (bicubic, antialiased): sharpness and noise are measured against the pixel, and say of
            a larger image other things than of those that the field's data sets hold.

    Returns:
        Statistics in the order of NAMES, shape (len(NAMES),), float64, all finite.

    Raises:
        AgiqaError: If the image is smaller.

    Source: mean-subtracted contrast-normalised coefficients and their neighbour products after BRISQUE (Mittal,
        Moorthy, Bovik, IEEE TIP 2012), with moments in place of fitted distributions; colourfulness after Hasler and
        Suesstrunk (SPIE 2003). The set as a whole is this study's own.
    """
    if min(pixels.shape[:2]) < 16:
        raise AgiqaError(f"image of {pixels.shape[1]}x{pixels.shape[0]} pixels: the statistics need 16 a side")
    rgb = _shrunk(pixels).astype(np.float32) / 255
    luma = rgb @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    found: list[float] = []
    plane, details = luma, []
    for scale in SCALES:
        numbers, detail = _scale_statistics(plane)
        found += numbers
        details.append(detail)
        if scale != SCALES[-1]:
            plane = _halved(plane)
    found += _colour_statistics(rgb, luma)
    steps = np.abs(np.diff(luma, axis=1)).mean(axis=0)
    at_blocks = steps[7::8].mean() if len(steps) >= 8 else steps.mean()
    found.append(float(at_blocks / (steps.mean() + _NEAR)))  # JPEG's 8-pixel grid
    found += [float(np.log((details[i] + _NEAR) / (details[i + 1] + _NEAR))) for i in range(2)]
    # The median of the finest diagonal differences: noise, which content hardly touches.
    diagonal = luma[:-1, :-1] - luma[1:, :-1] - luma[:-1, 1:] + luma[1:, 1:]
    found.append(float(np.median(np.abs(diagonal))))
    return np.array(found, dtype=np.float64)


def _shrunk(pixels: np.ndarray) -> np.ndarray:
    short = min(pixels.shape[:2])
    if short <= MOST_SIDE:
        return pixels
    height, width = (round(side * MOST_SIDE / short) for side in pixels.shape[:2])
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def _scale_statistics(plane: np.ndarray) -> tuple[list[float], float]:
    mean = ndimage.gaussian_filter(plane, 7 / 6, truncate=3.0)
    square = ndimage.gaussian_filter(plane * plane, 7 / 6, truncate=3.0)
    deviation = np.sqrt(np.maximum(square - mean * mean, 0))
    mscn = (plane - mean) / (deviation + 1 / 255)
    found = [*_moments(mscn), float(np.abs(mscn).mean() / (mscn.std() + _NEAR))]
    for first, second in (
        (mscn[:, :-1], mscn[:, 1:]), (mscn[:-1], mscn[1:]),
        (mscn[:-1, :-1], mscn[1:, 1:]), (mscn[1:, :-1], mscn[:-1, 1:]),
    ):  # fmt: skip
        pair = first * second
        found.append(float(pair.mean()))
        found += [float(np.sqrt(np.mean(np.square(side)))) for side in (np.minimum(pair, 0), np.maximum(pair, 0))]
    found += [float(deviation.mean()), float(deviation.std()), *np.percentile(deviation, [10, 50, 90]).tolist()]
    down, right = np.diff(plane, axis=0)[:, :-1], np.diff(plane, axis=1)[:-1]
    gradient = np.hypot(down, right)
    found += [float(gradient.mean()), float(gradient.std()), *np.percentile(gradient, [50, 90, 99]).tolist()]
    laplacian = float(ndimage.laplace(plane).std())
    return [*found, laplacian], laplacian


def _moments(values: np.ndarray) -> list[float]:
    mean, std = float(values.mean()), float(values.std())
    standard = (values - mean) / (std + _NEAR)
    cube = standard * standard * standard
    return [mean, std, float(cube.mean()), float((cube * standard).mean())]


def _halved(plane: np.ndarray) -> np.ndarray:
    height, width = (side // 2 * 2 for side in plane.shape)
    even = plane[:height, :width]
    return (even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]) / 4


def _colour_statistics(rgb: np.ndarray, luma: np.ndarray) -> list[float]:
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    red_green, yellow_blue = red - green, (red + green) / 2 - blue
    highest, lowest = rgb.max(axis=-1), rgb.min(axis=-1)
    found: list[float] = []
    for channel in (luma, red_green, yellow_blue, (highest - lowest) / (highest + 1 / 255)):
        found += [float(channel.mean()), float(channel.std()), *np.percentile(channel, [5, 95]).tolist()]
    spread = np.hypot(red_green.std(), yellow_blue.std())
    found.append(float(spread + 0.3 * np.hypot(red_green.mean(), yellow_blue.mean())))
    counts = np.histogram(luma, bins=64, range=(0, 1))[0] / luma.size
    filled = counts[counts > 0]
    return [*found, float(-(filled * np.log2(filled)).sum()), float((luma < 0.02).mean()), float((luma > 0.98).mean())]


def extract(images: Iterable[np.ndarray], total: int, label: str = "hand-crafted statistics") -> np.ndarray:
    """Return the statistics of many images, shape (total, len(NAMES)), float64, under a progress bar.

    Args:
        images: Each (H, W, 3), uint8.
        total: Their number.
        label: Shown at the bar.
    """
    bar = tqdm(images, total=total, desc=label, unit="image", dynamic_ncols=True)
    return np.stack([features(pixels) for pixels in bar])
