"""How many images a data set holds and how large they are, before it is prepared."""

import io
import os
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from pipeline.data.archives import locate
from pipeline.data.demo import GENERATORS
from pipeline.data.labels import IMAGE_SUFFIXES
from pipeline.data.places import is_side_file, plain_files
from pipeline.layout import MANIFEST, PREPARED, repository_root
from pipeline.model.windows import WindowRule, resized_sides, window_origins
from pipeline.params import Params

PROBED = 25  # images of an unprepared data set whose sizes stand for all
# Images of the published data sets, and their sides in pixels, for one that is yet to be downloaded.
PUBLISHED = {"agiqa3k": (2982, 512), "agiqa1k": (1080, 512), "aigciqa2023": (2400, 512)}
BYTES = 200_000  # of an image file, where none is at hand


@dataclass(frozen=True)
class Size:
    """What is known of a data set's images.

    Attributes:
        images: Their number.
        sides: (height, width) in pixels, and which share of the images has them.
        files: Bytes of the image files.
        sample: The content of one of them, if one is at hand.
        known: How it is known, in words.
    """

    images: int
    sides: dict[tuple[int, int], float]
    files: int
    sample: bytes | None
    known: str

    @property
    def pixels(self) -> int:
        """Bytes of all images, decoded."""
        return round(self.images * sum(3 * height * width * share for (height, width), share in self.sides.items()))

    def windows(self, rule: WindowRule, most: int | None = None) -> float:
        """Return windows an image, on average, of which at most `most` are taken."""
        found = 0.0
        for (height, width), share in self.sides.items():
            count = len(window_origins(*resized_sides(height, width, rule), rule))
            found += share * (count if most is None else min(count, most))
        return found

    def subsets(self, params: Params) -> dict[str, int]:
        """Return about how many images train, validate and test in a round."""
        test = round(self.images * params.split.test_fraction)
        validation = round((self.images - test) * params.split.validation_fraction)
        return {"train": self.images - test - validation, "validation": validation, "test": test}


def size_of(params: Params, dataset: str) -> Size:
    """Return what is known of a data set's images: prepared, on disk, in an archive, or published.

    Raises:
        ArchiveError: If its `source` does not exist.
    """
    settings, root = params.datasets[dataset], repository_root()
    if settings.reader == "demo" and settings.source is None:
        side = params.demo.size
        images = params.demo.prompts * len(GENERATORS)
        return Size(images, {(side, side): 1.0}, images * 3 * side * side, None, "generated")
    manifest = PREPARED / dataset / MANIFEST
    if manifest.is_file():
        table = pd.read_parquet(manifest, columns=["height", "width"])
        counts = Counter(zip(table["height"].tolist(), table["width"].tolist(), strict=True))
        shares = {sides: count / len(table) for sides, count in counts.items()}
        return Size(len(table), shares, len(table) * BYTES, None, "as prepared")
    found = locate(dataset, settings.source, settings.archive, os.environ.get("AGIQA_DATA"), root)
    if found is None or (found.is_file() and not zipfile.is_zipfile(found)):
        images, side = PUBLISHED.get(settings.reader, (1000, 512))
        told = "to be downloaded; as published" if found is None else f"in {found.name}, unread: a guess"
        return Size(images, {(side, side): 1.0}, images * BYTES, None, told)
    return _in_folder(found) if found.is_dir() else _in_zip(found)


def _in_folder(folder: Path) -> Size:
    files = [path for path in plain_files(folder) if path.suffix.lower() in IMAGE_SUFFIXES]
    contents = [files[place].read_bytes() for place in _places(len(files))]
    return _size(len(files), contents, sum(path.stat().st_size for path in files), f"in {folder.name}")


def _in_zip(archive: Path) -> Size:
    with zipfile.ZipFile(archive) as opened:
        members = [
            member
            for member in sorted(opened.infolist(), key=lambda member: member.filename)
            if Path(member.filename).suffix.lower() in IMAGE_SUFFIXES
            and not is_side_file(tuple(part for part in member.filename.split("/") if part))
        ]
        contents = [opened.read(members[place]) for place in _places(len(members))]
    return _size(len(members), contents, sum(member.file_size for member in members), f"in {archive.name}")


def _places(count: int) -> list[int]:
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, PROBED))}) if count else []


def _size(images: int, contents: Sequence[bytes], files: int, known: str) -> Size:
    sides: Counter[tuple[int, int]] = Counter()
    sample = None
    for content in contents:
        try:
            with Image.open(io.BytesIO(content)) as image:  # reads the head alone
                width, height = image.size
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue  # `preprocess` names it
        sides[height, width] += 1
        sample = sample or content
    total = sides.total()
    shares = {key: count / total for key, count in sides.items()} or {(512, 512): 1.0}
    return Size(images, shares, files, sample, known)
