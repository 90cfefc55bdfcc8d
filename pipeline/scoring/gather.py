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

from pipeline.data.decoding import printable
from pipeline.data.labels import IMAGE_SUFFIXES, DatasetError
from pipeline.data.places import find, is_quality_map, is_side_file, nearest
from pipeline.data.tables import IMAGE_COLUMNS, TABLE_SUFFIXES, column_of, near_column, read_cells
from pipeline.errors import AgiqaError


class InputError(AgiqaError):
    """Arguments that name no image."""


@dataclass(frozen=True)
class Item:
    """One image to score.

    Attributes:
        path: As the user would write it.
        fault: Why it cannot be scored, if that is already known.
        cells: What else its row of a CSV holds.
        source: Where its pixels come from, if not from `path`: another path, or the bytes of the file.
    """

    path: str
    fault: str | None = None
    cells: dict[str, str] = field(default_factory=dict)
    source: str | bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Gathered:
    """What was found.

    Attributes:
        items: In the order of the arguments; within a folder by name.
        passed_over: Files in folders that carry no suffix of an image, counted by suffix.
        aside: Files and folders in folders that are hidden, or that a system or a program laid there, and quality maps
            of an earlier run.
    """

    items: list[Item]
    passed_over: Counter[str]
    aside: list[str] = field(default_factory=list)


@dataclass
class _Search:
    """What a search of folders passes, and the folder that it leaves out."""

    maps: tuple[int, int] | None = None
    passed_over: Counter[str] = field(default_factory=Counter)
    aside: list[str] = field(default_factory=list)


def gather(
    arguments: Sequence[str],
    *,
    column: str | None = None,
    listed: IO[bytes] | None = None,
    maps: Path | None = None,
) -> Gathered:
    """Return the images that arguments name.

    Args:
        arguments: Files; folders, which are searched at every depth, but for hidden files and those of systems;
            patterns such as `out/**/*.png`; tables (.csv, .tsv, .txt) with a column of paths, which start from the
            table's folder; and `-` for a list on standard input, a path a line (or
            separated by zero bytes).
        column: The CSV's column; None takes the first of IMAGE_COLUMNS that it has.
        listed: Standard input.
        maps: Folder of quality maps, which is left out where it lies in a folder that is searched.

    Raises:
        InputError: If a pattern or a folder holds no image, a CSV no such column, or nothing is named at all.
    """
    items: list[Item] = []
    search = _Search(None if maps is None else _identity(str(maps)))
    for argument in arguments:
        path = Path(argument)
        if argument == "-" and listed is not None:
            found = [Item(name) for name in _lines(listed.read())]
            if not found:
                raise InputError("standard input lists no image: write a path a line")
        elif _is_folder(path):
            found = list(_in_folder(argument, search, ()))
            if not found:
                raise InputError(f"folder {argument} holds no image ({', '.join(IMAGE_SUFFIXES)})")
        elif path.suffix.lower() in (*TABLE_SUFFIXES, ".txt"):
            found = _in_table(path, column)
        elif not os.path.lexists(argument) and glob.has_magic(argument):
            names = sorted(glob.glob(argument, recursive=True))
            if not names:
                raise InputError(f"no file matches {argument!r}")
            found = []
            for name in names:
                if _is_aside(name, _beyond(argument, name), search):
                    search.aside.append(name)
                else:
                    found += _in_folder(name, search, ()) if _is_folder(Path(name)) else [Item(name)]
        else:
            found = [Item(argument)]  # whether it is there and an image is told when it is opened
        items += found
    if not items:
        raise InputError("no image is named: give files, folders, patterns, a CSV, or - for a list on standard input")
    return Gathered(items, search.passed_over, search.aside)


def left_out(found: Gathered) -> list[str]:
    """Return in words what a search of folders left out, a line a reason."""
    lines = []
    if found.passed_over:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(found.passed_over.items()))
        lines.append(f"passed over, since their names are not those of images: {kinds}")
    if found.aside:
        shown = ", ".join(printable(path) for path in found.aside[:3]) + ", ..." * (len(found.aside) > 3)
        lines.append(f"passed over, since hidden, a system's own or quality maps: {len(found.aside)} ({shown})")
    return lines


def values_of(items: Sequence[Item], column: str) -> list[str]:
    """Return each image's cell in a column, whose name may be written in letters of any size.

    Raises:
        InputError: If an image has none.
    """
    found = [column_of(item.cells, [column]) for item in items]
    if None in found:
        known = sorted({name for item in items for name in item.cells})
        listed = ", ".join(known) or "none, since no CSV is given"
        raise InputError(
            f"--by is {column!r}, a column that not every image has; columns: {listed}{near_column(column, known)}"
        )
    return [item.cells[name] for item, name in zip(items, found, strict=True)]


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _beyond(pattern: str, name: str) -> tuple[str, ...]:
    """Return the names in a match that its pattern does not spell out."""
    spelt = set(Path(pattern).parts)
    return tuple(part for part in Path(name).parts if part not in spelt and not part.startswith("."))


def _is_aside(path: str, names: tuple[str, ...], search: _Search) -> bool:
    if is_side_file(names):
        return True
    return is_quality_map(path) or (search.maps is not None and _identity(path) == search.maps)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _lines(content: bytes) -> Iterable[str]:
    separator = b"\0" if b"\0" in content else b"\n"
    return [os.fsdecode(line) for line in content.split(separator) if line.strip(b"\r\n ")]


def _in_folder(folder: str, search: _Search, above: tuple[tuple[int, int], ...]) -> Iterable[Item]:
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
        if _is_aside(entry.path, (entry.name,), search):
            search.aside.append(entry.path)
        elif _is_folder(Path(entry.path)):
            target = os.stat(entry.path)
            if (target.st_dev, target.st_ino) in above:
                yield Item(entry.path, "is a link that leads in a circle, back to a folder that it lies in")
            else:
                inner.append(entry.path)
        elif entry.name.lower().endswith(IMAGE_SUFFIXES):
            yield Item(entry.path)
        else:
            search.passed_over[Path(entry.name).suffix.lower() or "no suffix"] += 1
    for path in inner:
        yield from _in_folder(path, search, above)


def _in_table(path: Path, column: str | None) -> list[Item]:
    if not path.is_file():
        raise InputError(f"{path} does not exist{nearest(path)}")
    try:
        table = read_cells(path)
    except DatasetError as error:
        raise InputError(str(error)) from None
    wanted = [column] if column else IMAGE_COLUMNS
    chosen = column_of(table.columns, wanted)
    if chosen is None:
        raise InputError(
            f"{path} has no column {' or '.join(wanted)}; it has {', '.join(table.columns)}"
            f"{near_column(wanted[0], table.columns)}: name the column of the paths with --column"
        )
    items = []
    for number, cells in zip(table.numbers, table.rows, strict=True):
        row = dict(zip(table.columns, cells, strict=True))
        if name := row[chosen]:
            items.append(Item(_place(path.parent, name), cells=row))
        else:
            items.append(Item(f"{path}, row {number}", "names no image", row))
    return items


def _place(folder: Path, name: str) -> str:
    try:
        found = find(folder, name)
    except (OSError, ValueError):  # what is wrong with it is told when it is opened
        found = None
    return str(found or folder / name.replace("\\", "/"))
