"""Which images of two sets are of one prompt, by rules whose choice the output names.

Images of one prompt are alike, and a prompt may be easy or hard for both sets: so what is independent are prompts, and
differences within one are sharper than differences at large.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.data.labels import normalise_prompt
from pipeline.data.tables import OWN_COLUMNS, column_of
from pipeline.scoring.gather import InputError, Item, values_of


@dataclass(frozen=True)
class Grouping:
    """Which images are of one prompt.

    Attributes:
        by: column: a cell of its row names an image's prompt; folder: images of one folder are of one prompt; name:
            images of equal names are, and nothing tells which images of a set are.
        labels: The prompt of each image, of both sets.
        column: The column's name, if there is one.
    """

    by: Literal["column", "folder", "name"]
    labels: tuple[list[str], list[str]]
    column: str | None = None


def group_by_prompt(first: Sequence[Item], second: Sequence[Item], by: str | None = None) -> Grouping:
    """Return which images of two sets are of one prompt.

    Args:
        first: Images of one set.
        second: Of the other.
        by: `folder`, `name` or a column of both CSVs. None takes the first that holds: a column for prompts that every
            image of both sets has a text in; folders, if every image of both lies in one below its set's; names.

    Returns:
        Labels: the text, compared as the study's splits compare prompts; the folder's path below the set's folder,
        which is the lowest that holds all its images; or the path below that without suffix.

    Raises:
        InputError: If `by` is given and an image has no such value.
    """
    sides = (first, second)
    if by not in (None, "folder", "name"):
        cells = [values_of(items, by) for items in sides]
        for items, texts in zip(sides, cells, strict=True):
            if "" in texts:
                raise InputError(f"--by is {by!r}, a column in which {items[texts.index('')].path} has no text")
        return Grouping("column", _plain(cells), by)
    if by is None:
        cells = [[_prompt(item) for item in items] for items in sides]
        if all(text for texts in cells for text in texts):
            return Grouping("column", _plain(cells), column_of(first[0].cells, OWN_COLUMNS["generation_prompt"]))
    names = [_names(items) for items in sides]
    folders = [[os.path.dirname(name) for name in each] for each in names]
    flat = sum(not folder for each in folders for folder in each)
    if by == "folder" and flat:
        raise InputError(f"--by is folder, and {flat} of the images lie in no folder below that of their set")
    if by == "folder" or (by is None and not flat):
        return Grouping("folder", (folders[0], folders[1]))
    return Grouping("name", (names[0], names[1]))


def _prompt(item: Item) -> str:
    column = column_of(item.cells, OWN_COLUMNS["generation_prompt"])
    return "" if column is None else item.cells[column]


def _plain(cells: Sequence[Sequence[str]]) -> tuple[list[str], list[str]]:
    first, second = ([normalise_prompt(text) for text in texts] for texts in cells)
    return first, second


def _names(items: Sequence[Item]) -> list[str]:
    """Return each image's path below the folder that all have in common, without suffix."""
    paths = [os.path.abspath(item.path) for item in items]
    base = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.splitext(os.path.relpath(path, base))[0] for path in paths]
