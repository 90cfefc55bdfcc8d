"""Prepared images as one memory-mapped file, without torch and without decoding."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.errors import AgiqaError
from pipeline.layout import MANIFEST, PIXELS


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
            AgiqaError: If the file is shorter than the images that it should hold.
        """
        self.path = Path(path)
        self._bytes = np.memmap(self.path, dtype=np.uint8, mode="r")
        self.offsets = np.asarray(offsets, dtype=np.int64)
        self.heights, self.widths = np.asarray(heights, dtype=np.int64), np.asarray(widths, dtype=np.int64)
        needed = int((self.offsets + self.heights * self.widths * 3).max(initial=0))
        if needed > self._bytes.size:
            raise AgiqaError(
                f"{path} holds {self._bytes.size} bytes, and the manifest speaks of {needed}: prepare it anew"
            )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.offsets)

    def __getitem__(self, index: int) -> np.ndarray:
        """Return image `index`, shape (H, W, 3), uint8."""
        start, height, width = int(self.offsets[index]), int(self.heights[index]), int(self.widths[index])
        return self._bytes[start : start + height * width * 3].reshape(height, width, 3)


def open_prepared(folder: str | Path) -> tuple[pd.DataFrame, PixelPack]:
    """Return a prepared data set: its manifest, a row an image, and the decoded pixels in the same order."""
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: run `dvc repro preprocess` first")
    manifest = pd.read_parquet(path)
    pack = PixelPack(folder / PIXELS, manifest["pixel_offset"], manifest["height"], manifest["width"])
    return manifest, pack
