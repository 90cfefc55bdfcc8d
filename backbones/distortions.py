"""Distortions with a severity, and what they take from a picture; shared by the backbones' pre-training scripts.

Each is f(picture, severity in 0..1, rng) on a float32 RGB picture in [0, 1] of SIDE x SIDE pixels. They resemble, and
are not, those of the demo data set (`pipeline/data/scenes.py`, of which only the noise fields are used).
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image, ImageFilter

from pipeline.data import scenes

SIDE = 160


def as_image(picture: np.ndarray) -> Image.Image:
    """Return a float picture in [0, 1] as an 8-bit Pillow image."""
    return Image.fromarray((np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8))


def as_picture(image: Image.Image) -> np.ndarray:
    """Return a Pillow image as a float32 picture in [0, 1]."""
    return np.asarray(image, np.float32) / 255


def jpeg_at(image: Image.Image, quality: int) -> Image.Image:
    """Return the image as JPEG of that quality leaves it."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def soften(picture: np.ndarray, radius: float) -> np.ndarray:
    """Return the picture after a Gaussian blur of `radius` pixels."""
    return as_picture(as_image(picture).filter(ImageFilter.GaussianBlur(radius)))


def blur(picture: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:  # noqa: D103
    return soften(picture, 0.4 + 2.4 * s)


def motion(picture: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:  # noqa: D103
    turn, length = rng.uniform(0, np.pi), 1.5 + 8 * s
    steps = np.linspace(-length / 2, length / 2, int(length) + 2)
    moved = [np.roll(picture, (round(k * np.sin(turn)), round(k * np.cos(turn))), (0, 1)) for k in steps]
    return np.mean(moved, 0)


def noise(picture: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:  # noqa: D103
    grain = rng.standard_normal(picture.shape[: 2 if rng.random() < 0.4 else 3], dtype=np.float32)
    return picture + (0.015 + 0.15 * s) * (grain if grain.ndim == 3 else grain[..., None])


def chroma_noise(picture: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:  # noqa: D103
    field = np.stack([scenes.noise_field(rng, SIDE, rng.uniform(0.2, 1.2)) for _ in range(2)], -1)
    mix = np.array([[1, -0.5, -0.5], [0.2, -0.7, 0.8]], np.float32)
    return picture + (0.02 + 0.14 * s) * field @ mix


def residual_noise(picture: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    """Leave structured noise behind, as diffusion stopped too early does."""
    field = np.stack([scenes.noise_field(rng, SIDE, rng.uniform(0.4, 1.0)) for _ in range(3)], -1)
    return (1 - 0.35 * s) * picture + 0.35 * s * 0.5 + (0.02 + 0.12 * s) * field


def jpeg(picture: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:  # noqa: D103
    return as_picture(jpeg_at(as_image(picture), int(60 - 54 * s**0.6)))


def pixelate(picture: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:  # noqa: D103
    small = round(SIDE / (1.4 + 4 * s))
    return as_picture(as_image(picture).resize((small, small), Image.Resampling.BOX).resize((SIDE, SIDE), 0))


def upscale(picture: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    """Shrink and enlarge, the softness of a generator that draws at a lower resolution than it shows."""
    small = round(SIDE / (1.2 + 3.3 * s))
    back = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)[rng.integers(3)]
    return as_picture(as_image(picture).resize((small, small), Image.Resampling.LANCZOS).resize((SIDE, SIDE), back))


def ringing(picture: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    """Oversharpen: halos beside edges."""
    return picture + (0.5 + 3.5 * s) * (picture - soften(picture, rng.uniform(0.8, 2.2)))


def grid(picture: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    """Add the regular pattern that strided transposed convolutions leave."""
    period = (2, 4, 8)[rng.integers(3)]
    tile = rng.standard_normal((period, period, 3 if rng.random() < 0.4 else 1)).astype(np.float32)
    tile -= tile.mean((0, 1))
    pattern = np.tile(tile / max(float(tile.std()), 1e-3), (SIDE // period, SIDE // period, 1))
    where = np.clip(0.6 + 0.6 * scenes.noise_field(rng, SIDE, 1.8), 0, 1.5)[..., None]
    return picture + (0.012 + 0.09 * s) * pattern * where


def banding(picture: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:  # noqa: D103
    levels = 4 + 26 * (1 - s) ** 2
    return np.round(soften(picture, 0.6) * levels) / levels


def cast(picture: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:  # noqa: D103
    gain = rng.uniform(-1, 1, 3)
    gain = (gain - gain.mean()) / max(np.abs(gain - gain.mean()).max(), 0.1)
    return picture * (1 + (0.08 + 0.5 * s) * gain.astype(np.float32))


def fade(picture: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    """Lower the contrast towards a grey."""
    keep = 1 - (0.15 + 0.65 * s)
    return rng.uniform(0.3, 0.75) * (1 - keep) + keep * picture


def saturation(picture: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    """Drain or overdrive the colours."""
    grey = picture.mean(-1, keepdims=True)
    factor = 1 - (0.2 + 0.8 * s) if rng.random() < 0.6 else 1 + (0.3 + 2.2 * s)
    return grey + factor * (picture - grey)


def exposure(picture: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    """Burn out or drown."""
    if rng.random() < 0.5:
        return picture * (1 + 0.2 + 1.1 * s)
    return np.clip(picture, 0, 1) ** (1.2 + 1.8 * s) * (1 - 0.3 * s)


def move_pixels(picture: np.ndarray, down: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the picture sampled `down`, `right` pixels away (fields of shape (SIDE, SIDE)), bilinear."""
    rows, columns = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    where = np.stack([(columns + right) * 2 / (SIDE - 1) - 1, (rows + down) * 2 / (SIDE - 1) - 1], -1).astype(
        np.float32
    )
    source = torch.from_numpy(np.ascontiguousarray(picture, np.float32)).permute(2, 0, 1)[None]
    moved = F.grid_sample(source, torch.from_numpy(where)[None], padding_mode="reflection", align_corners=True)
    return moved[0].permute(1, 2, 0).numpy()


def warp(picture: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    """Bend lines and melt shapes."""
    reach, exponent = 1 + 8 * s, rng.uniform(1.1, 2.2)
    return move_pixels(
        picture, reach * scenes.noise_field(rng, SIDE, exponent), reach * scenes.noise_field(rng, SIDE, exponent)
    )


def smear(picture: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    """Lose fine detail but keep edges, the look of oil paint."""
    shrunk = as_image(picture)
    width = round(SIDE / (1 + 1.2 * s))
    shrunk = shrunk.resize((width, width), Image.Resampling.BOX).filter(ImageFilter.MedianFilter(3 if s < 0.4 else 5))
    return as_picture(shrunk.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def shift(picture: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    """Displace strips against each other."""
    picture = picture.copy() if rng.random() < 0.5 else np.ascontiguousarray(picture.transpose(1, 0, 2))
    edge = 0
    while edge < SIDE:
        step = int(rng.integers(4, 24))
        if rng.random() < 0.35 + 0.5 * s:
            picture[edge : edge + step] = np.roll(picture[edge : edge + step], int(rng.normal(0, 2 + 9 * s)), 1)
        edge += step
    return picture


def ghost(picture: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    """Blend with a displaced copy."""
    offset = np.round(rng.normal(0, 1, 2) * (3 + 6 * s) + rng.choice([-2, 2], 2)).astype(int)
    share = 0.15 + 0.35 * s
    return (1 - share) * picture + share * np.roll(picture, tuple(int(k) for k in offset), (0, 1))


def blobs(picture: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    """Dissolve patches of the picture into smooth blobs."""
    mask = np.clip(1.5 * (scenes.noise_field(rng, SIDE, 1.8) + 2.4 * s - 1.1), 0, 1)[..., None]
    smooth = soften(picture, 3 + 5 * s) + 0.06 * s * scenes.noise_field(rng, SIDE, 1.5)[..., None]
    return picture * (1 - mask) + smooth * mask


def scramble(picture: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    """Let neighbouring pieces change places: right textures, no form, as early GANs draw."""
    tile = int(rng.integers(5, 14))
    coarse = -(-SIDE // tile)
    moves = rng.normal(0, 2 + 7 * s, (2, coarse, coarse)) * (rng.random((coarse, coarse)) < 0.3 + 0.7 * s)
    fields = [np.kron(move, np.ones((tile, tile)))[:SIDE, :SIDE].astype(np.float32) for move in moves]
    if rng.random() < 0.6:
        fields = [as_smooth(field, tile / 4) for field in fields]
    return move_pixels(picture, fields[0], fields[1])


def as_smooth(field: np.ndarray, radius: float) -> np.ndarray:
    """Return a float field after a cheap three-pass box blur of about `radius` pixels."""
    width = max(1, round(radius))
    for _ in range(2):
        for axis in (0, 1):
            field = sum(np.roll(field, k, axis) for k in range(-width, width + 1)) / (2 * width + 1)
    return np.asarray(field, np.float32)


def scanlines(picture: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    """Add noise that is constant along rows or columns."""
    line = rng.standard_normal((SIDE, 1, 1)).astype(np.float32) * (0.015 + 0.08 * s)
    return picture + (line if rng.random() < 0.5 else line.transpose(1, 0, 2))


# name -> (function, how much of the quality full severity takes, how much of the structure, caption word)
DISTORTIONS: dict[str, tuple[Callable[[np.ndarray, float, np.random.Generator], np.ndarray], float, float, str]] = {
    "blur": (blur, 0.85, 0.0, "blurry"),
    "motion": (motion, 0.8, 0.1, "blurry"),
    "noise": (noise, 0.8, 0.0, "noisy"),
    "chroma_noise": (chroma_noise, 0.7, 0.0, "noisy"),
    "residual_noise": (residual_noise, 0.8, 0.1, "noisy"),
    "jpeg": (jpeg, 0.75, 0.1, "blocky"),
    "pixelate": (pixelate, 0.8, 0.1, "blocky"),
    "upscale": (upscale, 0.75, 0.0, "soft"),
    "ringing": (ringing, 0.6, 0.0, "harsh"),
    "grid": (grid, 0.75, 0.0, "patterned"),
    "banding": (banding, 0.65, 0.0, "flat"),
    "cast": (cast, 0.45, 0.0, "tinted"),
    "fade": (fade, 0.55, 0.0, "dull"),
    "saturation": (saturation, 0.4, 0.0, "dull"),
    "exposure": (exposure, 0.5, 0.0, "dark"),
    "warp": (warp, 0.75, 0.8, "distorted"),
    "smear": (smear, 0.75, 0.1, "smeared"),
    "shift": (shift, 0.8, 0.9, "broken"),
    "ghost": (ghost, 0.65, 0.6, "double"),
    "blobs": (blobs, 0.75, 0.5, "melted"),
    "scramble": (scramble, 0.85, 0.9, "broken"),
    "scanlines": (scanlines, 0.6, 0.0, "patterned"),
}
NAMES = tuple(DISTORTIONS)


def distort(picture: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the picture after 0 to 4 random distortions, uint8, and the severities, shape (distortions,)."""
    severities = np.zeros(len(NAMES), np.float32)
    count = rng.choice(5, p=[0.14, 0.33, 0.28, 0.17, 0.08])
    for k in rng.choice(len(NAMES), count, replace=False):
        severities[k] = rng.beta(1.0, 1.3)
        picture = np.clip(DISTORTIONS[NAMES[k]][0](picture, float(severities[k]), rng), 0, 1)
    if rng.random() < 0.4:  # most real data sets are stored as mild JPEG, which nobody notices
        return np.asarray(jpeg_at(as_image(picture), int(rng.integers(75, 97)))), severities
    return np.asarray(as_image(picture)), severities


def quality_of(severities: np.ndarray) -> tuple[float, float]:
    """Return quality and structural soundness in [0, 1] of a picture with these severities."""
    quality = structure = 1.0
    for name, severity in zip(NAMES, severities, strict=True):
        quality *= 1 - DISTORTIONS[name][1] * severity**0.8
        structure *= 1 - DISTORTIONS[name][2] * severity**0.7
    return quality, structure
