"""Decoded pixels, windows and crops: what the network is shown, and in which order.

The study's pixels are decoded once, by the preprocess stage, and read from there through a memory map. Whoever scores
images of his own decodes them by the same function, `open_image`. Imports nothing of ours.
"""

import errno
import io
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import pandas as pd
import torch
from PIL import ExifTags, Image
from torch import Tensor

Cover = Literal["all", "reference"]

# Formats of pixels that Pillow decodes by itself or by a plug-in; of the others, some run programs (EPS).
FORMATS = (
    "JPEG", "PNG", "WEBP", "AVIF", "HEIF", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "PPM", "TGA", "ICO", "PCX", "QOI",
)  # fmt: skip
MOST_PIXELS = 150_000_000  # 12,000 x 12,000 pass
STRIP_PIXELS = 1 << 22  # that are converted at once


class ImageError(ValueError):
    """An image that cannot be used.

    Attributes:
        reason: Why, in plain words, without the image's name.
    """

    def __init__(self, reason: str, name: str | None = None) -> None:
        """Join name and reason to the message."""
        super().__init__(reason if name is None else f"{name}: {reason}")
        self.reason = reason


def open_image(
    source: str | Path | bytes | IO[bytes] | Image.Image | np.ndarray | Tensor,
    *,
    max_bytes: int | None = None,
    max_pixels: int | None = MOST_PIXELS,
) -> np.ndarray:
    """Return an image as RGB, shape (H, W, 3), uint8, in the orientation that a viewer shows.

    Transparent pixels stand on white; 16-bit channels keep their upper half; of an animation the first frame counts.

    Args:
        source: A path, or an image file's bytes or binary stream, in any format of `FORMATS` that this Pillow reads; a
            PIL image; an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); or a tensor (1, H, W), (3, H, W) or
            (4, H, W). Arrays and tensors hold uint8, or floats in 0..1.
        max_bytes: Largest file that is read; None means any.
        max_pixels: Largest H W that is decoded; None means any that Pillow decodes (179 million). It is checked before
            anything is decoded.

    Raises:
        ImageError: If the source is no image, damaged, or too large.
        TypeError: If `source` is none of the above.
    """
    if isinstance(source, Tensor | np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, Image.Image):
        return _decoded(source, max_pixels, None)
    if isinstance(source, str | Path):
        return _from_path(Path(source), max_bytes, max_pixels)
    if isinstance(source, bytes | bytearray | memoryview):
        if max_bytes is not None and len(source) > max_bytes:
            raise ImageError(_too_long(len(source), max_bytes))
        return _from_stream(io.BytesIO(source), max_pixels, None)
    if hasattr(source, "read"):
        content = source.read(-1 if max_bytes is None else max_bytes + 1)
        return open_image(content, max_bytes=max_bytes, max_pixels=max_pixels)
    kind = type(source).__name__
    raise TypeError(f"an image is a path, bytes, a binary stream, a PIL image, an array or a tensor, and this a {kind}")


def image_size(path: str | Path) -> tuple[int, int]:
    """Return (width, height) as an image file's header states them, or (0, 0) where it cannot be read."""
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):  # opening a pipe would wait for ever
            return 0, 0
        with Image.open(path, formats=_formats()) as opened:
            return opened.size
    except Exception:  # whatever is wrong with it, open_image says so
        return 0, 0


def _from_path(path: Path, max_bytes: int | None, max_pixels: int | None) -> np.ndarray:
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
        raise ImageError("is a link to nothing" if path.is_symlink() else "does not exist", name) from None
    except PermissionError:
        raise ImageError("may not be read: permission denied", name) from None
    except OSError as error:
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


def _from_stream(stream: IO[bytes], max_pixels: int | None, name: str | None) -> np.ndarray:
    try:
        with Image.open(stream, formats=_formats()) as opened:
            return _decoded(opened, max_pixels, name)
    except Image.UnidentifiedImageError:
        stream.seek(0)
        raise ImageError(_what_it_is(stream.read(512)), name) from None
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"may be a decompression bomb: {error}", name) from None
    except Exception as error:  # a damaged header makes Pillow raise nearly anything
        raise ImageError(_damage(error), name) from None


def _what_it_is(start: bytes) -> str:
    """Return in words what a file is that is no image, by its first bytes."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        return "is empty (0 bytes)"
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


def _decoded(image: Image.Image, max_pixels: int | None, name: str | None) -> np.ndarray:
    width, height = image.size
    if max_pixels is not None and width * height > max_pixels:
        raise ImageError(f"has {width:,} x {height:,} pixels, and {max_pixels:,} are allowed in all", name)
    try:
        return _rgb(image)
    except Image.DecompressionBombError:
        raise
    except MemoryError:
        raise ImageError(f"has {width:,} x {height:,} pixels, for which the memory does not suffice", name) from None
    except Exception as error:  # a damaged file makes Pillow's decoders raise nearly anything
        raise ImageError(_damage(error), name) from None


def _damage(error: Exception) -> str:
    if "truncated" in str(error).lower() or isinstance(error, EOFError):
        return f"is cut off: {error}"
    return f"is damaged or cut off: {type(error).__name__}: {error}"


# How EXIF's orientations 2 to 8 turn stored pixels (H, W, 3) into what a viewer shows.
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: pixels[::-1].transpose(1, 0, 2),
    7: lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
    8: lambda pixels: pixels[:, ::-1].transpose(1, 0, 2),
}


def _rgb(image: Image.Image) -> np.ndarray:
    """Return a PIL image's pixels, converted strip by strip: copies of a huge image would double its memory."""
    width, height = image.size
    if not width or not height:
        raise ImageError("has no pixel")
    image.load()
    top = 65535.0
    if image.mode == "F":
        top = max(float(image.getextrema()[1]), 1.0)
    pixels = np.empty((height, width, 3), np.uint8)
    rows = max(1, STRIP_PIXELS // width)
    for start in range(0, height, rows):
        strip = image.crop((0, start, width, min(start + rows, height)))
        pixels[start : start + rows] = _rgb_strip(strip, top)
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # damaged EXIF data says nothing of the orientation, and a viewer shows the pixels as they are
        turn = None
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


def _rgb_strip(image: Image.Image, top: float) -> np.ndarray:
    if image.mode.startswith("I") or image.mode == "F":  # Pillow would clip 16-bit values at 255
        values = np.asarray(image, dtype=np.float64)
        return (values * (255 / top)).round().clip(0, 255).astype(np.uint8)[..., None]
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def _from_array(values: np.ndarray | Tensor, max_pixels: int | None) -> np.ndarray:
    is_tensor = isinstance(values, Tensor)
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
    if max_pixels is not None and values.shape[0] * values.shape[1] > max_pixels:
        raise ImageError(f"has {values.shape[1]:,} x {values.shape[0]:,} pixels, and {max_pixels:,} are allowed in all")
    if values.dtype.kind == "f":
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise ImageError("holds floats outside 0..1: give pixels before normalisation, as floats in 0..1 or uint8")
        values = (values * 255).round().astype(np.uint8)
    if values.dtype != np.uint8:
        raise ImageError(f"holds {values.dtype}: give uint8, or floats in 0..1")
    if values.shape[2] == 4:
        return _rgb(Image.fromarray(np.ascontiguousarray(values)))
    return np.ascontiguousarray(np.broadcast_to(values, (*values.shape[:2], 3)))


@dataclass(frozen=True)
class WindowRule:
    """How an image of any size is cut into windows.

    Attributes:
        size: Side of a window in pixels; the backbone's input size.
        stride: Step between windows in pixels.
        cover: `all` adds a last window flush with the right and bottom edges where the stride does not reach them;
            `reference` drops the rest, as the predecessor does.
        normalisation: Key of `pipeline.backbone.NORMALISATION`.
        mean, std: Per channel, of pixel values in 0..1.
    """

    size: int
    stride: int
    cover: Cover
    normalisation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def record(self) -> dict[str, object]:
        """Return the rule as plain values for a checkpoint's preprocessing record."""
        return {
            "window_size": self.size,
            "stride": self.stride,
            "cover": self.cover,
            "normalisation": self.normalisation,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "WindowRule":
        """Return the rule that `record()` described."""
        return cls(
            size=record["window_size"], stride=record["stride"], cover=record["cover"],
            normalisation=record["normalisation"], mean=tuple(record["mean"]), std=tuple(record["std"]),
        )  # fmt: skip


class PixelPack:
    """Decoded images of one data set behind a memory map.

    `pack[i]` is the i-th image, shape (H, W, 3), uint8, read-only, without a copy.
    """

    def __init__(self, path: str | Path, offsets: Sequence[int], heights: Sequence[int], widths: Sequence[int]) -> None:
        """Map the file.

        Args:
            path: pixels.bin: RGB bytes of all images, each (H, W, 3) in C order.
            offsets: First byte of each image.
            heights: In pixels.
            widths: In pixels.

        Raises:
            ValueError: If the file is shorter than the images that it should hold.
        """
        self.path = Path(path)
        self._bytes = np.memmap(self.path, dtype=np.uint8, mode="r")
        self.offsets = np.asarray(offsets, dtype=np.int64)
        self.heights, self.widths = np.asarray(heights, dtype=np.int64), np.asarray(widths, dtype=np.int64)
        needed = int((self.offsets + self.heights * self.widths * 3).max(initial=0))
        if needed > self._bytes.size:
            raise ValueError(
                f"{path} holds {self._bytes.size} bytes, and the manifest speaks of {needed}: prepare it anew"
            )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.offsets)

    def __getitem__(self, index: int) -> np.ndarray:
        """Return image `index`, shape (H, W, 3), uint8."""
        start, height, width = int(self.offsets[index]), int(self.heights[index]), int(self.widths[index])
        return self._bytes[start : start + height * width * 3].reshape(height, width, 3)


def window_origins(height: int, width: int, rule: WindowRule) -> list[tuple[int, int]]:
    """Return the (top, left) corners of an image's windows, row by row.

    Args:
        height: Of the image in pixels, at least `rule.size`.
        width: Likewise.
        rule: Window size, stride and cover.

    Raises:
        ValueError: If a side is smaller than a window; enlarge the image first.
    """
    if min(height, width) < rule.size:
        raise ValueError(f"image of {width}x{height} pixels is smaller than a window of {rule.size}: enlarge it first")
    return [(top, left) for top in _starts(height, rule) for left in _starts(width, rule)]


def _starts(length: int, rule: WindowRule) -> list[int]:
    last = length - rule.size
    starts = list(range(0, last + 1, rule.stride))
    if rule.cover == "all" and starts[-1] != last:
        starts.append(last)
    return starts


def spread(origins: list[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """Return `count` of the windows, evenly spread over their row-by-row order, both ends included."""
    if count >= len(origins):
        return origins
    picks = np.linspace(0, len(origins) - 1, count).round().astype(int) if count > 1 else [len(origins) // 2]
    return [origins[pick] for pick in picks]


def enlarge(pixels: np.ndarray, size: int) -> np.ndarray:
    """Return the image with its short side raised to `size` (bicubic) if it is below; else the image itself.

    Args:
        pixels: Shape (H, W, 3), uint8.
        size: Smallest allowed side in pixels.
    """
    height, width = enlarged_sides(*pixels.shape[:2], size)
    if (height, width) == pixels.shape[:2]:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def enlarged_sides(height: int, width: int, size: int) -> tuple[int, int]:
    """Return the (height, width) that `enlarge` gives an image of these sides."""
    short = min(height, width)
    if short >= size:
        return height, width
    return max(size, round(height * size / short)), max(size, round(width * size / short))


def cut(pixels: np.ndarray, origins: Iterable[tuple[int, int]], size: int) -> np.ndarray:
    """Return the windows at `origins`, shape (N, size, size, 3), uint8."""
    return np.stack([pixels[top : top + size, left : left + size] for top, left in origins])


def normalise(windows: np.ndarray | Tensor, rule: WindowRule, device: torch.device | str = "cpu") -> Tensor:
    """Return model input, shape (N, 3, size, size), float32, from windows (N, size, size, 3), uint8."""
    if isinstance(windows, np.ndarray):
        windows = np.ascontiguousarray(windows)
        # torch warns of read-only memory maps
        windows = torch.from_numpy(windows if windows.flags.writeable else windows.copy())
    raw = windows.to(device, non_blocking=True)
    scale, shift = _scale_and_shift(rule.mean, rule.std, torch.device(device))
    return raw.permute(0, 3, 1, 2).float().mul_(scale).sub_(shift)


@cache  # made anew for each batch, it would be a copy that a GPU waits for
def _scale_and_shift(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return what makes (x / 255 - mean) / std one multiply-add a value, each of shape (3, 1, 1)."""
    scale = torch.tensor([1 / (255 * part) for part in std], device=device)
    shift = torch.tensor([part / deviation for part, deviation in zip(mean, std, strict=True)], device=device)
    return scale.view(3, 1, 1), shift.view(3, 1, 1)


class DevicePixels:
    """Images held on a device, enlarged where a crop needs it, so that crops are cut there and nothing waits for them.

    Attributes:
        device: Where they are.
    """

    def __init__(self, pack: PixelPack, rows: np.ndarray, size: int, device: torch.device | str) -> None:
        """Copy images to the device.

        Args:
            pack: Decoded images.
            rows: Indices into the pack, shape (N,).
            size: Side of the crops in pixels.
            device: Where to.
        """
        images = [enlarge(pack[row], size) for row in rows]
        shapes = np.array([image.shape[:2] for image in images], dtype=np.int64).reshape(-1, 2)
        starts = np.concatenate([[0], np.cumsum(shapes.prod(axis=1))[:-1]]) if len(images) else np.zeros(0, np.int64)
        self._pixels = torch.empty((int(shapes.prod(axis=1).sum()), 3), dtype=torch.uint8, device=device)
        for start, image in zip(starts, images, strict=True):
            flat = torch.from_numpy(np.array(image).reshape(-1, 3))
            self._pixels[start : start + len(flat)] = flat.to(device, non_blocking=True)
        self._starts, self.shapes, self._size = starts, shapes, size
        self.device = torch.device(device)

    @classmethod
    def if_it_fits(
        cls, pack: PixelPack, rows: np.ndarray, size: int, device: torch.device | str
    ) -> "DevicePixels | None":
        """Return the images on a GPU if they take no more than half of its free memory; None otherwise and on CPUs."""
        if torch.device(device).type != "cuda":
            return None
        sides = np.stack([pack.heights[rows], pack.widths[rows]], axis=1).astype(np.float64)
        scale = np.maximum(1, size / sides.min(axis=1, keepdims=True))
        needed = 3 * float((sides * scale).prod(axis=1).sum())
        return cls(pack, rows, size, device) if needed < torch.cuda.mem_get_info(device)[0] / 2 else None

    def crops(
        self, slots: np.ndarray, tops: np.ndarray, lefts: np.ndarray, flips: np.ndarray
    ) -> Callable[[int, int], Tensor]:
        """Return what cuts crops start..stop, uint8, shape (stop - start, size, size, 3), and copies nothing to a GPU.

        Args:
            slots: Which of the images each crop is of, shape (C,), as the others.
            tops: First row of each crop in its image.
            lefts: First column.
            flips: Whether it is mirrored.
        """
        first = torch.as_tensor(self._starts[slots] + tops * self.shapes[slots, 1] + lefts, device=self.device)
        widths = torch.as_tensor(self.shapes[slots, 1], device=self.device)
        mirrored = torch.as_tensor(flips, device=self.device)
        steps = torch.arange(self._size, device=self.device)

        def cut_out(start: int, stop: int) -> Tensor:
            part = slice(start, stop)
            columns = torch.where(mirrored[part, None], self._size - 1 - steps, steps)  # (B, size)
            rows = first[part, None] + widths[part, None] * steps  # (B, size)
            return self._pixels[rows[:, :, None] + columns[:, None, :]]

        return cut_out


class EpochCrops:
    """One epoch's random crops in a seeded order: where each crop lies does not depend on the batch size."""

    def __init__(self, pack: PixelPack, rows: np.ndarray, rule: WindowRule, *, flip: bool, seed: Sequence[int]) -> None:
        """Draw the order, the crops and the flips of a whole epoch.

        Args:
            pack: Decoded images.
            rows: Indices into the pack of the images to train on, shape (N,).
            rule: Crop size and normalisation.
            flip: Mirror half of the crops.
            seed: Numbers that name the epoch, such as (run seed, epoch).
        """
        generator = np.random.default_rng(list(seed))
        self.order = generator.permutation(len(rows))
        self._places = generator.random((len(rows), 2))
        self._flips = generator.random(len(rows)) < (0.5 if flip else 0.0)
        self._pack, self._rows, self._rule = pack, rows, rule

    def crops(self, positions: np.ndarray) -> np.ndarray:
        """Return the crops of `positions` (indices into `rows`), shape (len(positions), size, size, 3), uint8."""
        size = self._rule.size
        out = np.empty((len(positions), size, size, 3), dtype=np.uint8)
        for slot, position in enumerate(positions):
            pixels = enlarge(self._pack[self._rows[position]], size)
            top = int(self._places[position, 0] * (pixels.shape[0] - size + 1))
            left = int(self._places[position, 1] * (pixels.shape[1] - size + 1))
            crop = pixels[top : top + size, left : left + size]
            out[slot] = crop[:, ::-1] if self._flips[position] else crop
        return out

    def on_device(self, pixels: DevicePixels) -> Callable[[int, int], Tensor]:
        """Return what cuts the crops of `order[start:stop]` on the device that holds `rows`; equal to `crops`."""
        room = pixels.shapes[self.order] - self._rule.size + 1
        tops, lefts = (self._places[self.order] * room).astype(np.int64).T
        return pixels.crops(self.order, tops, lefts, self._flips[self.order])


def window_batches(
    images: Iterable[np.ndarray], rule: WindowRule, batch: int, count: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cut images into windows and hand them out in full batches that run across image borders.

    Args:
        images: Each (H, W, 3), uint8, of any size.
        rule: The window rule.
        batch: Windows a batch; only the last may hold fewer.
        count: Windows an image, evenly spread; None means all.

    Yields:
        Windows (N, size, size, 3), uint8, and the index of each one's image, shape (N,).
    """
    windows, owners, held = [], [], 0
    for index, pixels in enumerate(images):
        large = enlarge(pixels, rule.size)
        origins = window_origins(*large.shape[:2], rule)
        if count is not None:
            origins = spread(origins, count)
        for start in range(0, len(origins), batch):  # an image of thousands of windows is never held whole
            part = origins[start : start + batch]
            windows.append(cut(large, part, rule.size))
            owners.append(np.full(len(part), index))
            held += len(part)
            while held >= batch:
                all_windows, all_owners = np.concatenate(windows), np.concatenate(owners)
                yield all_windows[:batch], all_owners[:batch]
                windows, owners, held = [all_windows[batch:]], [all_owners[batch:]], held - batch
    if held:
        yield np.concatenate(windows), np.concatenate(owners)


def open_prepared(folder: str | Path) -> tuple[pd.DataFrame, PixelPack]:
    """Return a prepared data set: its manifest, a row an image, and the decoded pixels in the same order."""
    folder = Path(folder)
    path = folder / "manifest.parquet"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: run `dvc repro preprocess` first")
    manifest = pd.read_parquet(path)
    pack = PixelPack(folder / "pixels.bin", manifest["pixel_offset"], manifest["height"], manifest["width"])
    return manifest, pack
