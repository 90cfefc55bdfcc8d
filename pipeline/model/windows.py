"""How an image of any size becomes windows of the backbone's size, as pixels and as normalised tensors.

torch is imported with the first tensor: where windows lie is asked where nothing else needs it.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# (mean, std) per channel of pixel values in 0..1, by the towers that were trained with it. `imagenet` is what the
# predecessor feeds CLIP.
NORMALISATION: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "mobileclip": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}

Cover = Literal["all", "reference"]


@dataclass(frozen=True)
class WindowRule:
    """How an image of any size is cut into windows.

    Attributes:
        size: Side of a window in pixels; the backbone's input size.
        stride: Step between windows in pixels.
        cover: `all` adds a last window flush with the right and bottom edges where the stride does not reach them;
            `reference` drops the rest, as the predecessor does.
        normalisation: Key of `pipeline.model.windows.NORMALISATION`.
        mean, std: Per channel, of pixel values in 0..1.
        shorter_side: Pixels that an image's shorter side is resized to before it is cut; None leaves its size.
    """

    size: int
    stride: int
    cover: Cover
    normalisation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shorter_side: int | None = None

    def record(self) -> dict[str, object]:
        """Return the rule as plain values for a checkpoint's preprocessing record; without a resize it has no key."""
        return {
            "window_size": self.size,
            "stride": self.stride,
            "cover": self.cover,
            "normalisation": self.normalisation,
            "mean": list(self.mean),
            "std": list(self.std),
            **({} if self.shorter_side is None else {"shorter_side": self.shorter_side}),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "WindowRule":
        """Return the rule that `record()` described."""
        return cls(
            size=record["window_size"], stride=record["stride"], cover=record["cover"],
            normalisation=record["normalisation"], mean=tuple(record["mean"]), std=tuple(record["std"]),
            shorter_side=record.get("shorter_side"),
        )  # fmt: skip


def window_origins(height: int, width: int, rule: WindowRule) -> list[tuple[int, int]]:
    """Return the (top, left) corners of an image's windows, row by row.

    Args:
        height: Of the resized image in pixels, at least `rule.size`.
        width: Likewise.
        rule: Window size, stride and cover.

    Raises:
        ValueError: If a side is smaller than a window; `resize` the image first.
    """
    if min(height, width) < rule.size:
        raise ValueError(f"image of {width}x{height} pixels is smaller than a window of {rule.size}: resize it first")
    return [(top, left) for top in _starts(height, rule) for left in _starts(width, rule)]


def _starts(length: int, rule: WindowRule) -> list[int]:
    last = length - rule.size
    starts = list(range(0, last + 1, rule.stride))
    if rule.cover == "all" and starts[-1] != last:
        starts.append(last)
    return starts


def spread(origins: list[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """Return `count` of the windows, evenly spread over both axes of their grid; one is the middle one.

    As many rows and columns as can be have a window, evenly spaced, and none has two windows more than another.

    Args:
        origins: All of an image, from `window_origins`.
        count: At least 1; all are returned where there are no more.

    Returns:
        Those taken, row by row. The same for the same grid.

    Source: the columns follow the rows in the order of multiples of the golden ratio, the most even sequence in one
    dimension (Kronecker's), so that neighbours in one axis are far apart in the other.
    """
    if count >= len(origins):
        return origins
    tops, lefts = (sorted(set(side)) for side in zip(*origins, strict=True))
    rows, columns = _middles(tops, count), _middles(lefts, count)
    golden = np.argsort(np.argsort((np.arange(len(rows)) + 0.5) * (math.sqrt(5) - 1) / 2 % 1))
    # Diagonals of the grid, wrapped round. A whole turn comes back to its start and is then shifted by a column, so
    # that all cells are met once, and every row and every column in turn.
    turn = math.lcm(len(rows), len(columns))
    steps = range(count)
    return sorted((rows[golden[k % len(rows)]], columns[(k + k // turn) % len(columns)]) for k in steps)


def _middles(values: list[int], count: int) -> list[int]:
    """Return the middles of `count` equal parts of sorted values; all values where they are no more."""
    count = min(count, len(values))
    return [values[(2 * k + 1) * len(values) // (2 * count)] for k in range(count)]


def resize(pixels: np.ndarray, rule: WindowRule) -> np.ndarray:
    """Return the image at the size at which it is cut, as `resized_sides` says; the image itself where that is its own.

    Pillow's bicubic filter, which is antialiased where it shrinks: CLIP's own preprocessing.

    Args:
        pixels: Shape (H, W, 3), uint8.
        rule: Its `shorter_side` is what the shorter side gets; without one, only images below a window are enlarged.
    """
    height, width = resized_sides(*pixels.shape[:2], rule)
    if (height, width) == pixels.shape[:2]:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def resized_sides(height: int, width: int, rule: WindowRule) -> tuple[int, int]:
    """Return the (height, width) that `resize` gives an image of these sides; neither is below a window's."""
    short = min(height, width)
    target = max(rule.size, short if rule.shorter_side is None else rule.shorter_side)
    if target == short:
        return height, width
    return max(target, round(height * target / short)), max(target, round(width * target / short))


def cut(pixels: np.ndarray, origins: Iterable[tuple[int, int]], size: int) -> np.ndarray:
    """Return the windows at `origins`, shape (N, size, size, 3), uint8."""
    return np.stack([pixels[top : top + size, left : left + size] for top, left in origins])


def normalise(windows: "np.ndarray | Tensor", rule: WindowRule, device: "torch.device | str" = "cpu") -> "Tensor":
    """Return model input, shape (N, 3, size, size), float32, from windows (N, size, size, 3), uint8."""
    import torch

    if isinstance(windows, np.ndarray):
        windows = np.ascontiguousarray(windows)
        # torch warns of read-only memory maps
        windows = torch.from_numpy(windows if windows.flags.writeable else windows.copy())
    raw = windows.to(device, non_blocking=True)
    scale, shift = _scale_and_shift(rule.mean, rule.std, torch.device(device))
    return raw.permute(0, 3, 1, 2).float().mul_(scale).sub_(shift)


@cache  # made anew for each batch, it would be a copy that a GPU waits for
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], device: "torch.device"
) -> "tuple[Tensor, Tensor]":
    """Return what makes (x / 255 - mean) / std one multiply-add a value, each of shape (3, 1, 1)."""
    import torch

    scale = torch.tensor([1 / (255 * part) for part in std], device=device)
    shift = torch.tensor([part / deviation for part, deviation in zip(mean, std, strict=True)], device=device)
    return scale.view(3, 1, 1), shift.view(3, 1, 1)


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
        fitting = resize(pixels, rule)
        origins = window_origins(*fitting.shape[:2], rule)
        if count is not None:
            origins = spread(origins, count)
        for start in range(0, len(origins), batch):  # an image of thousands of windows is never held whole
            part = origins[start : start + batch]
            windows.append(cut(fitting, part, rule.size))
            owners.append(np.full(len(part), index))
            held += len(part)
            while held >= batch:
                all_windows, all_owners = np.concatenate(windows), np.concatenate(owners)
                yield all_windows[:batch], all_owners[:batch]
                windows, owners, held = [all_windows[batch:]], [all_owners[batch:]], held - batch
    if held:
        yield np.concatenate(windows), np.concatenate(owners)
