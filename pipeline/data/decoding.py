"""An image file of anyone's, or pixels of any kind, as RGB bytes: the same function for training and for scoring.

Without torch: a tensor is known by its methods, so that no stage imports torch to decode.
"""

import base64
import errno
import hashlib
import io
import os
import re
import stat
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

import numpy as np
from PIL import ExifTags, Image, ImageOps

from pipeline.data import mending
from pipeline.data.colours import ImageError, White, is_deep, rgb, white_of
from pipeline.data.places import nearest
from pipeline.files import lfs_pointer

if TYPE_CHECKING:
    from torch import Tensor

# Formats of pixels that Pillow decodes by itself or by a plug-in; of the others, some run programs (EPS).
FORMATS = (
    "JPEG", "PNG", "WEBP", "AVIF", "HEIF", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "PPM", "TGA", "ICO", "PCX", "QOI",
)  # fmt: skip
MOST_PIXELS = 150_000_000  # 12,000 x 12,000 pass
LEAST_SIDE = 16  # pixels; what is smaller shows nothing that could be judged


class Opened(NamedTuple):
    """An image's pixels, and what was done to their colours.

    Attributes:
        pixels: RGB in sRGB, shape (H, W, 3), uint8.
        profile: Name of the embedded profile from whose colour space they were converted; None if they were not.
    """

    pixels: np.ndarray
    profile: str | None


def open_image(
    source: "str | Path | bytes | IO[bytes] | Image.Image | np.ndarray | Tensor",
    *,
    max_bytes: int | None = None,
    max_pixels: int | None = MOST_PIXELS,
) -> np.ndarray:
    """Return an image as RGB, shape (H, W, 3), uint8, in the orientation that a viewer shows.

    Transparent pixels stand on white; 16-bit channels keep their upper half; of an animation the first frame counts.
    Colours are those of sRGB: an embedded profile of another colour space is converted (see `pipeline.data.colours`).
    Damaged side data, such as EXIF, XMP, a profile or a PNG's texts, is passed over, and so is a JPEG's missing end if
    no pixel misses with it.

    Args:
        source: A path, or an image file's bytes or binary stream, in any format of `FORMATS` that this Pillow reads; a
            PIL image; an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); or a tensor (1, H, W), (3, H, W) or
            (4, H, W). Arrays and tensors hold uint8, or floats in 0..1.
        max_bytes: Largest file that is read; None means any.
        max_pixels: Largest H W that is decoded; None means any that Pillow decodes (179 million). It is checked before
            anything is decoded.

    Raises:
        ImageError: If the source is no image, damaged, too large, or has a side below LEAST_SIDE.
        TypeError: If `source` is none of the above.
    """
    return opened(source, max_bytes=max_bytes, max_pixels=max_pixels).pixels


def opened(
    source: "str | Path | bytes | IO[bytes] | Image.Image | np.ndarray | Tensor",
    *,
    max_bytes: int | None = None,
    max_pixels: int | None = MOST_PIXELS,
) -> Opened:
    """Return what `open_image` returns, and which profile was converted."""
    if isinstance(source, np.ndarray) or _is_tensor(source):
        return Opened(_from_array(source, max_pixels), None)
    if isinstance(source, Image.Image):
        return _decoded(source, max_pixels, None, ours=False)
    if isinstance(source, str | Path):
        return _from_path(Path(source), max_bytes, max_pixels)
    if isinstance(source, bytes | bytearray | memoryview):
        if max_bytes is not None and len(source) > max_bytes:
            raise ImageError(_too_long(len(source), max_bytes))
        return _from_stream(io.BytesIO(source), max_pixels, None)
    if hasattr(source, "read"):
        content = source.read(-1 if max_bytes is None else max_bytes + 1)
        return opened(content, max_bytes=max_bytes, max_pixels=max_pixels)
    kind = type(source).__name__
    raise TypeError(f"an image is a path, bytes, a binary stream, a PIL image, an array or a tensor, and this a {kind}")


def image_size(source: str | Path | bytes) -> tuple[int, int]:
    """Return (width, height) as the header of an image file, or of its bytes, states; (0, 0) where it is unreadable."""
    try:
        if not isinstance(source, bytes) and not stat.S_ISREG(Path(source).stat().st_mode):
            return 0, 0  # opening a pipe would wait for ever
        with (
            io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as stream,
            Image.open(mending.view(stream), formats=_formats()) as image,
        ):
            return image.size
    except Exception:  # whatever is wrong with it, open_image says so
        return 0, 0


def _from_path(path: Path, max_bytes: int | None, max_pixels: int | None) -> Opened:
    name = printable(path)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageError("is a folder", name)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("is no plain file (a pipe, a socket or a device)", name)
        if max_bytes is not None and status.st_size > max_bytes:
            raise ImageError(_too_long(status.st_size, max_bytes), name)
        with path.open("rb") as stream:
            return _from_stream(stream, max_pixels, name)
    except FileNotFoundError:
        raise ImageError(
            "is a link to nothing" if path.is_symlink() else f"does not exist{nearest(path)}", name
        ) from None
    except PermissionError:
        raise ImageError("may not be read: permission denied", name) from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ImageError("cannot exist: its name is too long for a file's", name) from None
        if error.errno == errno.ELOOP:
            raise ImageError("is a link that leads in a circle", name) from None
        raise ImageError(f"cannot be read: {error.strerror or error}", name) from None
    except ValueError as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"is no path: {error}", name) from None  # a zero byte in it


def printable(path: str | Path) -> str:
    """Return a path as text that any file takes: bytes that are no UTF-8 are spelt out in hexadecimal."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _too_long(size: int, limit: int) -> str:
    return f"has {size:,} bytes, and {limit:,} are allowed"


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


class _DamagedError(ImageError):
    """An image that the decoder cannot read."""


def _from_stream(stream: IO[bytes], max_pixels: int | None, name: str | None) -> Opened:
    try:
        view = mending.view(stream)
    except ValueError as error:
        raise ImageError(f"is damaged: {error}", name) from None
    try:
        return _from_file(view, stream, max_pixels, name)
    except _DamagedError:
        if (mended := mending.without_side_data(stream)) is not None:
            try:
                return _from_file(mended, stream, max_pixels, name)
            except _DamagedError:
                view = mended
        if (found := _without_end(view, stream, max_pixels, name)) is not None:
            return found
        raise


def _without_end(view: IO[bytes], whole: IO[bytes], max_pixels: int | None, name: str | None) -> Opened | None:
    """Return the image of a JPEG that lacks nothing but its end marker; None of any other file."""
    found, digests = None, set()
    try:
        for attempt in mending.ended(view):
            found = None  # one at a time is in memory
            found = _from_file(attempt, whole, max_pixels, name)
            digests.add(hashlib.sha256(found.pixels).digest())
            if len(digests) > 1:
                return None
    except _DamagedError:
        return None
    return found


def _from_file(view: IO[bytes], whole: IO[bytes], max_pixels: int | None, name: str | None) -> Opened:
    try:
        with Image.open(view, formats=_formats()) as image:
            return _decoded(image, max_pixels, name, ours=True)
    except Image.UnidentifiedImageError:
        whole.seek(0)
        raise _DamagedError(_what_it_is(whole.read(512)), name) from None
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"may be a decompression bomb: {error}", name) from None
    except Exception as error:  # a damaged header makes Pillow raise nearly anything
        raise _DamagedError(_damage(error), name) from None


def _what_it_is(start: bytes) -> str:
    """Return in words what a file is that is no image, by its first bytes."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        return "is empty (0 bytes)"
    if pointer := lfs_pointer(start):
        return pointer
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml", b"<svg")):
        kind = "an SVG drawing" if b"<svg" in text else "a web page saved under an image's name"
        return f"is {kind}, not an image of pixels"
    if start[4:8] == b"ftyp" and start[8:12] in (b"heic", b"heix", b"heif", b"mif1", b"msf1"):
        return "is HEIC, which this Pillow does not read: convert it to JPEG or PNG"
    if start[4:8] == b"ftyp" and start[8:12] in (b"avif", b"avis"):
        return "is AVIF, which this Pillow does not read: convert it to JPEG or PNG"
    if start.startswith((b"%PDF", b"PK\x03\x04", b"%!PS")) or start[4:8] == b"ftyp":
        return "is a document, an archive or a film, not an image"
    return "is no image in a format that is read here, or its beginning is damaged"


def _check_size(width: int, height: int, max_pixels: int | None, name: str | None = None) -> None:
    if max_pixels is not None and width * height > max_pixels:
        raise ImageError(f"has {width:,} x {height:,} pixels, and {max_pixels:,} are allowed in all", name)
    if min(width, height) < LEAST_SIDE:
        raise ImageError(f"has {width:,} x {height:,} pixels: images are judged from {LEAST_SIDE} a side on", name)


def _decoded(image: Image.Image, max_pixels: int | None, name: str | None, *, ours: bool) -> Opened:
    width, height = image.size
    _check_size(width, height, max_pixels, name)
    try:
        image.load()
        white = white_of(image) if is_deep(image) else White(255.0, inverted=False)
        return Opened(*rgb(_upright(image, ours=ours), white))
    except Image.DecompressionBombError:
        raise
    except ImageError as error:
        raise ImageError(error.reason, name) from None
    except MemoryError:
        raise ImageError(f"has {width:,} x {height:,} pixels, for which the memory does not suffice", name) from None
    except Exception as error:  # a damaged file makes Pillow's decoders raise nearly anything
        raise _DamagedError(_damage(error), name) from None


def _damage(error: Exception) -> str:
    if "truncated" in str(error).lower() or isinstance(error, EOFError):
        return f"is cut off: {error}"
    return f"is damaged or cut off: {type(error).__name__}: {error}"


def _upright(image: Image.Image, *, ours: bool) -> Image.Image:
    """Return a loaded PIL image as a viewer shows it; one that is `ours` is turned in place, another stays as it is."""
    try:
        if ours:
            ImageOps.exif_transpose(image, in_place=True)
        elif image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:
        pass  # damaged EXIF data: it tells no orientation, or the pixels are turned by now and it alone is not
    return image


def _is_tensor(value: object) -> bool:
    return hasattr(value, "is_floating_point") and hasattr(value, "detach")


def _from_array(values: "np.ndarray | Tensor", max_pixels: int | None) -> np.ndarray:
    is_tensor = _is_tensor(values)
    layout = "(1, H, W), (3, H, W) or (4, H, W)" if is_tensor else "(H, W), (H, W, 1), (H, W, 3) or (H, W, 4)"
    shape = tuple(values.shape)
    if is_tensor:
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()
        values = values.transpose(1, 2, 0) if values.ndim == 3 else values[None, None, None]
    elif values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.shape[2] not in (1, 3, 4) or 0 in values.shape:
        raise ImageError(f"{'a tensor' if is_tensor else 'an array'} has shape {layout}, and this one {shape}")
    _check_size(values.shape[1], values.shape[0], max_pixels)
    if values.dtype.kind == "f":
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise ImageError("holds floats outside 0..1: give pixels before normalisation, as floats in 0..1 or uint8")
        values = (values * 255).round().astype(np.uint8)
    if values.dtype != np.uint8:
        raise ImageError(f"holds {values.dtype}: give uint8, or floats in 0..1")
    if values.shape[2] == 4:
        return rgb(Image.fromarray(np.ascontiguousarray(values)), White(255.0, inverted=False))[0]
    return np.ascontiguousarray(np.broadcast_to(values, (*values.shape[:2], 3)))


def from_base64(text: str) -> bytes:
    """Return the bytes of base64 text as programs write it.

    Line breaks and blanks, the URL-safe alphabet, missing padding and a data URL's head, percent signs included, are
    all taken.

    Raises:
        ImageError: If it is not base64; says why.
    """
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().rstrip().endswith(";base64"):
            raise ImageError("is not base64: the data URL's head should end in ;base64,")
        text = unquote(text) if "%" in text else text
    text = "".join(text.split())
    if strange := re.search(r"[^A-Za-z0-9+/_=-]|=[^=]", text):
        raise ImageError(f"is not base64: {strange[0]!a} stands at character {strange.start():,}")
    url_safe = "-" in text or "_" in text
    if url_safe and ("+" in text or "/" in text):
        raise ImageError("is not base64: it mixes + and / with the URL-safe - and _")
    bare = text.rstrip("=")
    if len(bare) % 4 == 1 or len(text) - len(bare) > 2:
        raise ImageError(f"is not base64: {len(bare):,} characters and {len(text) - len(bare)} of padding")
    return base64.b64decode(bare + "=" * (-len(bare) % 4), b"-_" if url_safe else None)
