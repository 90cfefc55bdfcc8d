"""Pixels of any mode and colour space as 8-bit RGB in the colour space sRGB.

A picture that embeds the profile of another colour space (wide-gamut RGB, grey with a tone curve of its own, CMYK) is
converted to sRGB, relative colorimetric with black point compensation. A profile that is sRGB within 2 of 255 changes
nothing, and one that is damaged, or of another kind of pixels, counts as absent: pixels without a profile are sRGB.
What PNG says of colours without a profile (gAMA, cHRM, cICP) is not read.
"""

import io
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageCms

from pipeline.errors import AgiqaError

STRIP_PIXELS = 1 << 22  # that are converted at once: copies of a huge image would double its memory
_MOST_PROFILE = 1 << 24  # bytes; profiles of printers have a few million
_CLASSES = (b"mntr", b"scnr", b"prtr", b"spac")  # of profiles that describe pixels
_DEPTHS = (8, 10, 12, 14, 16)  # bits of usual cameras and scanners
_SAME = 2  # of 255, by which a profile may differ from sRGB: rounding, and the dialects of sRGB itself


class ImageError(AgiqaError):
    """An image that cannot be used.

    Attributes:
        reason: Why, in plain words, without the image's name.
    """

    def __init__(self, reason: str, name: str | None = None) -> None:
        """Join name and reason to the message."""
        super().__init__(reason if name is None else f"{name}: {reason}")
        self.reason = reason


class Conversion(NamedTuple):
    """How pixels come from a profile's colour space into sRGB.

    Attributes:
        name: What the profile calls itself.
        mode: Of the pixels that it takes: RGB, L or CMYK.
        transform: Turns an image of that mode into RGB.
    """

    name: str
    mode: str
    transform: ImageCms.ImageCmsTransform


class White(NamedTuple):
    """Which value of a deep grey picture is white, and whether it counts downwards."""

    top: float
    inverted: bool


def white_of(image: Image.Image) -> White:
    """Return what is white in a picture of one channel of more than 8 bits.

    That is the highest value of its depth. 32-bit integers have as many bits as their highest value needs, of the usual
    depths: no picture uses 32, and nothing in the file says how many it does.

    Raises:
        ImageError: If no depth can be told.
    """
    tags = image.tag_v2 if image.format == "TIFF" else {}
    inverted = tags.get(262) == 0
    bits = tags.get(258, (0,))[0]
    if image.mode == "F":
        low, high = image.getextrema()
        if not (-1 / 510 <= low <= high <= 1 + 1 / 510):  # false also for what is no number
            raise ImageError(f"holds floats from {low:g} to {high:g}: give floats in 0..1, or 8 or 16 bits a channel")
        return White(1.0, inverted)
    if image.mode != "I":
        return White(4095.0 if bits == 12 else 65535.0, inverted)
    if image.format == "PPM":  # whose reader has scaled them
        return White(65535.0, inverted=False)
    low, high = image.getextrema()
    if bits == 32 and tags.get(339, (1,))[0] == 1 and low < 0:  # unsigned values that Pillow takes for signed ones
        return White(2.0**32 - 1, inverted)
    needed = 15 if bits == 16 and low >= 0 else int(high).bit_length()  # of signed values
    if low < 0 or 0 < needed < 5:
        raise ImageError(
            f"holds integers from {low} to {high}, of which nobody knows what is white: save it with 8 or 16 bits a "
            "channel"
        )
    depth = next((depth for depth in _DEPTHS if depth >= needed), needed)
    return White(2.0 ** (15 if bits == 16 else depth) - 1, inverted)


def rgb(image: Image.Image, white: White) -> tuple[np.ndarray, str | None]:
    """Return a loaded PIL image's pixels, shape (H, W, 3), uint8, and the name of the profile that was converted."""
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    conversion = _conversion_of(image)
    rows = max(1, STRIP_PIXELS // width)
    for start in range(0, height, rows):
        strip = image.crop((0, start, width, min(start + rows, height)))
        pixels[start : start + rows] = _rgb_strip(strip, white, conversion)
    return pixels, conversion.name if conversion else None


def is_deep(image: Image.Image) -> bool:
    """Tell whether an image has one channel of more than 8 bits, whose values Pillow would clip at 255."""
    return image.mode.startswith("I") or image.mode == "F"


def _rgb_strip(image: Image.Image, white: White, conversion: Conversion | None) -> np.ndarray:
    clear = None
    if is_deep(image):
        values = np.asarray(image, dtype=np.float64)
        if image.mode == "F" and not np.isfinite(values).all():
            raise ImageError("holds floats that are no finite numbers")
        if white.top > 2**31:
            values = np.where(values < 0, values + 2.0**32, values)
        clear = values == image.info["transparency"] if isinstance(image.info.get("transparency"), int) else None
        grey = (values * (255 / white.top)).round().clip(0, 255).astype(np.uint8)
        grey = 255 - grey if white.inverted else grey
        if conversion is None:
            return (grey if clear is None else np.where(clear, np.uint8(255), grey))[..., None]
        image = Image.fromarray(grey)
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        whole = image.convert("RGBA")
        if conversion is not None:
            whole = _converted(image, conversion)
            whole.putalpha(image.convert("RGBA").getchannel("A"))
        return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), whole).convert("RGB"))
    if image.mode == "LAB":
        return np.asarray(ImageCms.applyTransform(image, _from_lab()))
    if conversion is None:
        return np.asarray(image.convert("RGB"))
    pixels = np.asarray(_converted(image, conversion))
    return pixels if clear is None else np.where(clear[..., None], np.uint8(255), pixels)


def _converted(image: Image.Image, conversion: Conversion) -> Image.Image:
    if "transparency" in image.info:
        image = image.convert("RGBA")  # so that a palette's colours, and not its alpha, are read
    if image.mode != conversion.mode:
        image = image.convert("RGB").convert(conversion.mode)
    return ImageCms.applyTransform(image, conversion.transform)


# Profiles


def _conversion_of(image: Image.Image) -> Conversion | None:
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or not 128 < len(profile) <= _MOST_PROFILE or image.mode == "LAB":
        return None
    mode = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}.get(profile[16:20])
    fits = {"RGB": image.mode != "CMYK", "L": mode == "L" and _is_grey(image), "CMYK": image.mode == "CMYK"}
    return _conversion(profile, mode) if mode is not None and fits[mode] else None


def _is_grey(image: Image.Image) -> bool:
    """Tell whether pixels are grey; those of 16 bits with transparency are RGBA to Pillow."""
    if image.mode == "RGBA":
        red, green, blue = (image.getchannel(name) for name in "RGB")
        return all(ImageChops.difference(red, other).getbbox() is None for other in (green, blue))
    return image.mode in ("1", "L", "LA", "La") or is_deep(image)


@lru_cache(maxsize=16)
def _conversion(profile: bytes, mode: str) -> Conversion | None:
    """Return how to convert pixels of a profile; None if it is sRGB, or damaged."""
    if profile[12:16] not in _CLASSES:
        return None
    flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
    if mode == "L":
        flags |= ImageCms.Flags.NOOPTIMIZE  # the quick way is off by 10 of 255 in the shadows
    try:
        opened = ImageCms.getOpenProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(
            opened,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=flags,
        )
        given = _probe(mode)
        found = np.asarray(ImageCms.applyTransform(given, transform)).astype(int)
        name = ImageCms.getProfileDescription(opened)
    except Exception:  # littleCMS and its binding raise many kinds of a damaged profile
        return None
    if found[0, -1].min() - found[0, 0].max() < 128:  # what maps white to dark, or black to bright, is damaged
        return None
    if mode != "CMYK" and np.abs(found - np.asarray(given.convert("RGB")).astype(int)).max() <= _SAME:
        return None
    name = "".join(letter for letter in name if letter.isprintable()).strip()[:60]
    return Conversion(name or "a profile without a name", mode, transform)


def _probe(mode: str) -> Image.Image:
    """Return colours from all over a mode's space, in one row from black to white."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    if mode == "CMYK":
        return Image.fromarray(np.array([[[255] * 4, [0, 0, 0, 128], [0] * 4]], np.uint8), "CMYK")
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    return Image.fromarray(np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(1, -1, 3))


@lru_cache(maxsize=1)
def _from_lab() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
