"""What a user means by files, folders, patterns, lists and tables: one list of images to score.

Nothing is opened here, and nothing that a user named is left out in silence: what cannot be an image keeps its place in
the list with the reason.
"""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from pipeline.data.labels import IMAGE_SUFFIXES, DatasetError
from pipeline.data.own import read_cells
from pipeline.errors import AgiqaError

PATH_COLUMNS = ("image", "path", "file", "filename", "name", "image_path")


class InputError(AgiqaError):
    """Arguments that name no image."""


@dataclass(frozen=True)
class Item:
    """One image to score.

    Attributes:
        path: As the user would write it.
        fault: Why it cannot be scored, if that is already known.
        cells: What else its row of a CSV holds.
    """

    path: str
    fault: str | None = None
    cells: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Gathered:
    """What was found.

    Attributes:
        items: In the order of the arguments; within a folder by name.
        passed_over: Files in folders that carry no suffix of an image, counted by suffix.
    """

    items: list[Item]
    passed_over: Counter[str]


def gather(arguments: Sequence[str], *, column: str | None = None, listed: IO[bytes] | None = None) -> Gathered:
    """Return the images that arguments name.

    Args:
        arguments: Files; folders, which are searched at every depth; patterns such as `out/**/*.png`; CSV files with a
            column of paths, which start from the CSV's folder; and `-` for a list on standard input, a path a line (or
            separated by zero bytes).
        column: The CSV's column; None takes the first of PATH_COLUMNS that it has.
        listed: Standard input.

    Raises:
        InputError: If a pattern or a folder holds no image, a CSV no such column, or nothing is named at all.
    """
    items: list[Item] = []
    passed_over: Counter[str] = Counter()
    for argument in arguments:
        path = Path(argument)
        if argument == "-" and listed is not None:
            found = [Item(name) for name in _lines(listed.read())]
            if not found:
                raise InputError("standard input lists no image: write a path a line")
        elif _is_folder(path):
            found = list(_in_folder(argument, passed_over, ()))
            if not found:
                raise InputError(f"folder {argument} holds no image ({', '.join(IMAGE_SUFFIXES)})")
        elif path.suffix.lower() == ".csv":
            found = _in_table(path, column)
        elif not os.path.lexists(argument) and glob.has_magic(argument):
            names = sorted(glob.glob(argument, recursive=True))
            if not names:
                raise InputError(f"no file matches {argument!r}")
            found = []
            for name in names:
                found += _in_folder(name, passed_over, ()) if _is_folder(Path(name)) else [Item(name)]
        else:
            found = [Item(argument)]  # whether it is there and an image is told when it is opened
        items += found
    if not items:
        raise InputError("no image is named: give files, folders, patterns, a CSV, or - for a list on standard input")
    return Gathered(items, passed_over)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _lines(content: bytes) -> Iterable[str]:
    separator = b"\0" if b"\0" in content else b"\n"
    return [os.fsdecode(line) for line in content.split(separator) if line.strip(b"\r\n ")]


def _in_folder(folder: str, passed_over: Counter[str], above: tuple[tuple[int, int], ...]) -> Iterable[Item]:
    """Yield a folder's images, then those of the folders in it; links are followed unless they lead in a circle."""
    try:
        status = os.stat(folder)
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        yield Item(folder, f"is a folder that cannot be read: {error.strerror}")
        return
    above = (*above, (status.st_dev, status.st_ino))
    inner = []
    for entry in entries:
        if _is_folder(Path(entry.path)):
            target = os.stat(entry.path)
            if (target.st_dev, target.st_ino) in above:
                yield Item(entry.path, "is a link that leads in a circle, back to a folder that it lies in")
            else:
                inner.append(entry.path)
        elif entry.name.lower().endswith(IMAGE_SUFFIXES):
            yield Item(entry.path)
        else:
            passed_over[Path(entry.name).suffix.lower() or "no suffix"] += 1
    for path in inner:
        yield from _in_folder(path, passed_over, above)


def _in_table(path: Path, column: str | None) -> list[Item]:
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    try:
        table = read_cells(path)
    except DatasetError as error:
        raise InputError(str(error)) from None
    known = {name.strip().lower(): name for name in table.columns}
    wanted = [column.strip().lower()] if column else list(PATH_COLUMNS)
    chosen = next((known[name] for name in wanted if name in known), None)
    if chosen is None:
        raise InputError(
            f"{path} has no column {column or ' or '.join(PATH_COLUMNS)}; it has {', '.join(table.columns)}: name the "
            "column of the paths with --column"
        )
    items = []
    for number, row in enumerate(table.to_dict("records"), 2):
        name = row[chosen]
        if name:
            items.append(Item(str(path.parent / name), cells=row))
        else:
            items.append(Item(f"{path}, row {number}", "names no image", row))
    return items
