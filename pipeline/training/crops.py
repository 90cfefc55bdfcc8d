"""What an epoch sees: labelled subsets, their random crops, and pixels held on the device."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.data.pixels import PixelPack
from pipeline.model.windows import WindowRule, normalise, resize, resized_sides


class DevicePixels:
    """Images held on a device, resized as the rule says, so that crops are cut there and nothing waits for them.

    Attributes:
        device: Where they are.
    """

    def __init__(self, pack: PixelPack, rows: np.ndarray, rule: WindowRule, device: torch.device | str) -> None:
        """Copy images to the device.

        Args:
            pack: Decoded images.
            rows: Indices into the pack, shape (N,).
            rule: Size of the images and of the crops.
            device: Where to.
        """
        images = [resize(pack[row], rule) for row in rows]
        shapes = np.array([image.shape[:2] for image in images], dtype=np.int64).reshape(-1, 2)
        starts = np.concatenate([[0], np.cumsum(shapes.prod(axis=1))[:-1]]) if len(images) else np.zeros(0, np.int64)
        self._pixels = torch.empty((int(shapes.prod(axis=1).sum()), 3), dtype=torch.uint8, device=device)
        for start, image in zip(starts, images, strict=True):
            flat = torch.from_numpy(np.array(image).reshape(-1, 3))
            self._pixels[start : start + len(flat)] = flat.to(device, non_blocking=True)
        self._starts, self.shapes, self._size = starts, shapes, rule.size
        self.device = torch.device(device)

    @classmethod
    def if_it_fits(
        cls, pack: PixelPack, rows: np.ndarray, rule: WindowRule, device: torch.device | str
    ) -> "DevicePixels | None":
        """Return the images on a GPU if they take no more than half of its free memory; None otherwise and on CPUs."""
        if torch.device(device).type != "cuda":
            return None
        sides = zip(pack.heights[rows].tolist(), pack.widths[rows].tolist(), strict=True)
        needed = 3 * sum(math.prod(resized_sides(height, width, rule)) for height, width in sides)
        return cls(pack, rows, rule, device) if needed < torch.cuda.mem_get_info(device)[0] / 2 else None

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
    """One epoch's random crops in a seeded order: where each crop lies does not depend on the batch size.

    Each image gives `windows` crops, which lie side by side in all that is returned.
    """

    def __init__(
        self, pack: PixelPack, rows: np.ndarray, rule: WindowRule, *, flip: bool, seed: Sequence[int], windows: int = 1
    ) -> None:
        """Draw the order, the crops and the flips of a whole epoch.

        Args:
            pack: Decoded images.
            rows: Indices into the pack of the images to train on, shape (N,).
            rule: Crop size and normalisation.
            flip: Mirror half of the crops.
            seed: Numbers that name the epoch, such as (run seed, epoch).
            windows: Crops an image; each has a place and a flip of its own.
        """
        generator = np.random.default_rng(list(seed))
        self.order = generator.permutation(len(rows))
        self._places = generator.random((len(rows), windows, 2))
        self._flips = generator.random((len(rows), windows)) < (0.5 if flip else 0.0)
        self._pack, self._rows, self._rule = pack, rows, rule
        self.windows = windows

    def crops(self, positions: np.ndarray) -> np.ndarray:
        """Return the crops of `positions`, n indices into `rows`, shape (n x windows, size, size, 3), uint8."""
        size = self._rule.size
        out = np.empty((len(positions), self.windows, size, size, 3), dtype=np.uint8)
        for slot, position in enumerate(positions):
            pixels = resize(self._pack[self._rows[position]], self._rule)
            for window, (down, across) in enumerate(self._places[position]):
                top, left = int(down * (pixels.shape[0] - size + 1)), int(across * (pixels.shape[1] - size + 1))
                crop = pixels[top : top + size, left : left + size]
                out[slot, window] = crop[:, ::-1] if self._flips[position, window] else crop
        return out.reshape(-1, size, size, 3)

    def on_device(self, pixels: DevicePixels) -> Callable[[int, int], Tensor]:
        """Return what cuts the crops of `order[start:stop]` on the device that holds `rows`; equal to `crops`."""
        slots, each = np.repeat(self.order, self.windows), self.windows
        room = pixels.shapes[slots] - self._rule.size + 1
        tops, lefts = (self._places[self.order].reshape(-1, 2) * room).astype(np.int64).T
        cut_out = pixels.crops(slots, tops, lefts, self._flips[self.order].reshape(-1))
        return lambda start, stop: cut_out(each * start, each * stop)


@dataclass(frozen=True)
class Subset:
    """Labelled images of one subset.

    Attributes:
        pack: Decoded images of the whole data set.
        rows: Indices into the pack, shape (N,).
        main: Main target scaled to 0..1, shape (N,).
        auxiliary: Auxiliary target scaled to 0..1, NaN where there is none, shape (N,).
    """

    pack: PixelPack
    rows: np.ndarray
    main: np.ndarray
    auxiliary: np.ndarray


def epoch_images(
    crops: EpochCrops, pixels: DevicePixels | None, rule: WindowRule, device: torch.device | str
) -> Callable[[int, int], Tensor]:
    """Return what gives the normalised crops of the images start..stop of the epoch's order, cut where `pixels` are."""
    if pixels is None:
        return lambda start, stop: normalise(crops.crops(crops.order[start:stop]), rule, device)
    there = crops.on_device(pixels)
    return lambda start, stop: normalise(there(start, stop), rule, device)
