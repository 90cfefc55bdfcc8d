"""Image files, whole and broken, by name, made without any program that would mend them."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image


def saved(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def plain(seed: int = 0, width: int = 40, height: int = 36) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def waves(seed: int = 0, side: int = 96) -> Image.Image:
    """Return a picture of large shapes, which outlives what files do to it, unlike `plain`."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] / side
    sums = np.zeros((side, side, 3))
    for _ in range(40):
        across, down, turn, height = rng.uniform(-9, 9, 2).tolist() + rng.uniform(0, 6, 2).tolist()
        sums += height * np.sin(6.3 * (across * x + down * y) + turn)[..., None] * rng.uniform(0.2, 1, 3)
    return Image.fromarray(np.uint8(255 * (sums - sums.min()) / np.ptp(sums)))


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def claimed(width: int, height: int) -> bytes:
    """Return a PNG that claims a size and holds a row."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(999))) + chunk(b"IEND", b"")


def with_values(values: np.ndarray) -> bytes:
    return saved(Image.fromarray(values), "TIFF")


GREY = np.arange(900).reshape(30, 30)

# Each takes a seed, so that two of a kind may differ.
MADE: dict[str, Callable[[int], bytes]] = {
    "plain": lambda seed: saved(plain(seed)),
    "same": lambda seed: saved(plain(0)),
    "one": lambda seed: saved(plain(seed, 1, 1)),
    "low": lambda seed: saved(plain(seed, 400, 15)),
    "empty": lambda seed: b"",
    "half": lambda seed: saved(plain(seed), "JPEG")[:700],
    "half-png": lambda seed: saved(plain(seed))[:900],
    "bad-header": lambda seed: flipped(saved(plain(seed)), 29),
    "bad-pixels": lambda seed: flipped(saved(plain(seed)), 200),
    "bad-palette": lambda seed: flipped(saved(plain(seed).quantize(9)), 50),
    "huge": lambda seed: claimed(20_000, 20_000),
    "large": lambda seed: claimed(12_500, 12_500),
    "float-255": lambda seed: with_values((GREY % 256).astype(np.float32)),
    "float-nan": lambda seed: with_values(np.full((30, 30), np.nan, np.float32)),
    "int-mask": lambda seed: with_values((GREY % 2).astype(np.int32)),
    "int-below": lambda seed: with_values((GREY - 9).astype(np.int32)),
}
