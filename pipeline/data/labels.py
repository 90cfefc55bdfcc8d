"""What a reader of labels hands on: one table of labelled images, its problems and its notes."""

import re
import unicodedata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import AgiqaError
from pipeline.layout import Raters

if TYPE_CHECKING:
    import pandas as pd

ATTRIBUTES = ("quality", "alignment", "authenticity")
IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".webp", ".avif", ".heic", ".heif", ".gif", ".bmp", ".tif", ".tiff", ".jp2", ".ppm",
)  # fmt: skip
COLUMNS = [
    "image_id", "file", "generation_prompt", "prompt_group", "generator",
    *(column for attribute in ATTRIBUTES for column in (attribute, f"{attribute}_std")),
    "mos_low", "mos_high", "raters",
]  # fmt: skip


def normalise_prompt(text: str) -> str:
    """Return a generation prompt without what does not make it another one: case, spacing, width forms, edge marks."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"\s+", " ", plain).strip(" .,;:!?\"'")


class DatasetError(AgiqaError):
    """Label files that are missing or not what they should be."""


class Problem(NamedTuple):
    """One finding about one image.

    Attributes:
        kind: missing, unlabelled, unreadable, duplicate_name, duplicate_image, bad_label or no_spread.
        image: The image's name as the label file, or the folder, has it.
        detail: What is wrong with it.
    """

    kind: str
    image: str
    detail: str


# What happens to an image when params allow its problem; without leave the stage stops.
WHEN_ALLOWED = {
    "missing": "its row is left out",
    "unlabelled": "the file is left out",
    "unreadable": "it is left out",
    "duplicate_name": "all rows of the name are left out, since nobody knows whose score is whose",
    "duplicate_image": "the images stay; the split keeps them in one subset",
    "bad_label": "its row is left out",
    "no_spread": "the score stays; a model cannot be trained on it, nor compared with it",
}


@dataclass
class Labels:
    """What a reader found.

    Attributes:
        rows: A row an image, with COLUMNS; `file` is relative to the data set's folder, and `prompt_group` is the text
            that makes two images of one prompt.
        problems: Findings that someone must know of before training.
        notes: What the reader did about the data set's known oddities, in plain words.
        licence: As its publisher states it.
        raters: Who gave the scores; becomes a column of the manifest, and from there on no text may say otherwise.
    """

    rows: "pd.DataFrame"
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    licence: str = "none stated"
    raters: Raters = "people"
