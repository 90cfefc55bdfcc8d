"""Several tables about the images of one folder become one: a row an image, whatever each table calls it.

A table that names images is joined over the image, one that names none over a column that it shares with another (such
as the number of a prompt). Tables of equal columns that name different images stand below each other. No row of a
table is lost in silence: a row that names no image stays, and two rows of one image are an error.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.data.columns import Column
from pipeline.data.labels import IMAGE_SUFFIXES, DatasetError
from pipeline.data.places import is_quality_map, plain_files
from pipeline.data.tables import IMAGE_COLUMNS, read_table

_PARTS = {"train", "test", "val", "valid", "validation", "training", "testing"}
_SHARE = 0.5  # of a column's cells must name images, if it is to be that of the images


@dataclass
class Images:
    """A folder's images, and how tables name them.

    Attributes:
        folder: Where they lie.
        files: Their paths relative to it, sorted.
    """

    folder: Path
    files: list[str]
    _by_name: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> "Images":
        """Return the images of a folder, at every depth."""
        found = [
            path.relative_to(folder).as_posix()
            for path in plain_files(folder)
            if path.suffix.lower() in IMAGE_SUFFIXES and not is_quality_map(path)
        ]
        images = cls(folder, found)
        for file in found:
            name = file.rsplit("/", 1)[-1].casefold()
            for key in {name, os.path.splitext(name)[0]}:
                images._by_name.setdefault(key, []).append(file)
        return images

    def find(self, cell: str, beside: Sequence[str] = ()) -> str | None:
        """Return the file that a cell names, by its path or the end of it, with or without a suffix; None if none is.

        Args:
            cell: As a table has it.
            beside: The other cells of the row: of several files of one name, the one whose folder is called as one of
                them is meant.
        """
        parts = [part for part in cell.replace("\\", "/").casefold().split("/") if part not in ("", ".")]
        if not parts:
            return None
        written, known = parts[:-1], self._by_name.get(parts[-1], [])
        found = [file for file in known if _ends(_folders(file), written)]
        # A path that was written on another machine begins with folders that are not here.
        found = found or [file for file in known if _ends(written, _folders(file))]
        if len(found) > 1:
            called = {text.casefold() for text in beside}
            found = [file for file in found if called & {*_folders(file)}] or found
        return found[0] if len(found) == 1 else None


def _folders(file: str) -> list[str]:
    return file.casefold().split("/")[:-1]


def _ends(path: list[str], end: list[str]) -> bool:
    return len(end) <= len(path) and path[len(path) - len(end) :] == end


@dataclass
class Table:
    """One table as it was read.

    Attributes:
        name: Relative to the folder.
        cells: From `read_table`.
        image: Its column of images, or None.
        files: The image of each row, None where it names none; empty without such a column.
    """

    name: str
    cells: pd.DataFrame
    image: str | None = None
    files: list[str | None] = field(default_factory=list)

    @property
    def separator(self) -> str:
        """What stands between its cells."""
        return self.cells.attrs["separator"]


@dataclass(frozen=True)
class Joined:
    """What the tables say together.

    Attributes:
        files: The image of each row, None where the row's name leads to none, shape (N,).
        names: As the table has them, shape (N,).
        mains: The tables whose rows these are.
        image: Their column of images.
        columns: All others; each has N cells, and belongs to the main table or to one that was joined to it.
        unused: Tables that could not be joined, and why.
        keys: Columns over which tables without images were joined.
    """

    files: list[str | None]
    names: list[str]
    mains: list[str]
    image: str
    columns: list[Column]
    unused: list[str]
    keys: list[str] = field(default_factory=list)


def read_tables(images: Images, paths: Sequence[Path], image_column: str | None) -> list[Table]:
    """Read tables, and find in each the column that names images.

    Args:
        images: Of the folder.
        paths: Of the tables.
        image_column: What it is called, if the user says so; a table without it has none.

    Raises:
        DatasetError: If one is no table, or two of its columns name different images.
    """
    tables = []
    for path in paths:
        table = Table(path.relative_to(images.folder).as_posix(), read_table(path))
        names = list(table.cells.columns)
        if image_column is not None:
            names = [name for name in names if image_column.casefold() in (
                name.casefold(), f"{table.name}:{name}".casefold())]  # fmt: skip
        found = {name: _files_of(images, table.cells, name) for name in names}
        shares = {name: _share(name, files) for name, files in found.items()}
        best = max(shares.values(), default=0.0)
        if best >= _SHARE or (image_column is not None and names):
            called = [name for name in names if name.casefold() in IMAGE_COLUMNS and shares[name] >= _SHARE]
            likely = called or [name for name in names if shares[name] == best]
            if different := [name for name in likely[1:] if found[name] != found[likely[0]]]:
                raise DatasetError(
                    f"{table.name}: columns {likely[0]!r} and {different[0]!r} both name images: say --map "
                    f"image={likely[0]}"
                )
            table.image = likely[0]
            table.files = found[table.image]
        tables.append(table)
    for table in tables:  # the number of a prompt names an image, too, where files are called by numbers
        others = [other for other in tables if other.image is not None and other.image != table.image]
        if image_column is None and any(table.image in other.cells for other in others):
            table.image, table.files = None, []
    if image_column is not None and all(table.image is None for table in tables):
        raise DatasetError(f"--map image={image_column}: no table has this column")
    return tables


def _share(name: str, files: Sequence[str | None]) -> float:
    """Return how many rows name an image, as a share; in a column that is not called so, each image counts once."""
    found = [file for file in files if file is not None]
    return (len(found) if name.casefold() in IMAGE_COLUMNS else len({*found})) / len(files)


def _files_of(images: Images, cells: pd.DataFrame, name: str) -> list[str | None]:
    others = cells.drop(columns=name).to_numpy().tolist()
    return [images.find(cell, beside) for cell, beside in zip(cells[name], others, strict=True)]


def join(tables: Sequence[Table]) -> Joined:
    """Return one row an image of the table with the most images, with what the others say of it.

    Raises:
        DatasetError: If no table names images, or one names an image in two rows.
    """
    stacked = _stacked([table for table in tables if table.image is not None])
    if not stacked:
        shown = "; ".join(f"{table.name} has {', '.join(map(repr, table.cells.columns))}" for table in tables)
        raise DatasetError(f"no column names images of the folder: say --map image=COLUMN; {shown}")
    for table in stacked:
        _refuse_repeats(table)
    main = max(stacked, key=lambda table: sum(file is not None for file in table.files))
    frames = [(main.name, main.cells.drop(columns=main.image), main.separator, "")]
    waiting = [table for table in stacked if table is not main]
    waiting += [table for table in tables if table.image is None]
    unused, keys = [], []
    for table in waiting:
        if table.image is not None:
            rows = {file: row for row, file in enumerate(table.files) if file is not None}
            places = [rows.get(file) if file is not None else None for file in main.files]
            how, cells = f"joined over the image, {table.image}", table.cells.drop(columns=table.image)
        else:
            key = _shared_key(table, frames)
            if key is None:
                unused.append(f"{table.name}: it names no image, and shares no column with a table that does")
                continue
            rows = {cell: row for row, cell in enumerate(table.cells[key])}
            of = next(frame[key] for _, frame, _, _ in frames if key in frame)
            places = [rows.get(cell) for cell in of]
            how, cells = f"joined over {key}", table.cells.drop(columns=key)
        if not any(place is not None for place in places):
            unused.append(f"{table.name}: it says nothing of the images of {main.name}")
            continue
        if table.image is None:
            keys.append(key)
        frames.append((table.name, _at(cells, places), table.separator, how))
    columns = [
        Column(name, column, frame[column].reset_index(drop=True), separator, how)
        for name, frame, separator, how in frames
        for column in frame
    ]
    names = main.cells[main.image].tolist()
    return Joined(main.files, names, main.name.split(" and "), str(main.image), columns, unused, keys)


def _stacked(tables: Sequence[Table]) -> list[Table]:
    """Return the tables, those of equal columns that name different images as one."""
    groups: dict[tuple[str, ...], list[Table]] = {}
    for table in tables:
        groups.setdefault((str(table.image), table.separator, *sorted(table.cells.columns)), []).append(table)
    found = []
    for group in groups.values():
        if len(group) == 1:
            found.append(group[0])
            continue
        of: dict[str, str] = {}
        for table in group:
            for file in filter(None, table.files):
                if of.setdefault(file, table.name) != table.name:
                    raise DatasetError(
                        f"{of[file]} and {table.name} have the same columns and both name {file}: say with --table "
                        "which of them to take"
                    )
        cells = pd.concat([table.cells for table in group])
        cells.attrs["separator"] = group[0].separator
        files = [file for table in group for file in table.files]
        found.append(Table(" and ".join(table.name for table in group), cells, group[0].image, files))
    return found


def _refuse_repeats(table: Table) -> None:
    rows: dict[str, int] = {}
    for number, file in zip(table.cells.index, table.files, strict=True):
        if file is not None and rows.setdefault(file, number) != number:
            raise DatasetError(
                f"{table.name}: rows {rows[file]} and {number} are both of {file}: it takes one row an image; where "
                "each is a rater's, put their mean there, and their standard deviation beside it as std"
            )


def _shared_key(table: Table, frames: Sequence[tuple[str, pd.DataFrame, str, str]]) -> str | None:
    """Return the column of a table without images by which its rows are those of the others, or None."""
    for _, frame, _, _ in frames:
        for name in table.cells.columns:
            if name in frame and table.cells[name].is_unique and frame[name].isin(table.cells[name]).any():
                return name
    return None


def _at(cells: pd.DataFrame, places: Sequence[int | None]) -> pd.DataFrame:
    """Return a table's rows at these places; empty cells where there is none."""
    padded = np.vstack([cells.to_numpy(dtype=object), np.full((1, cells.shape[1]), "", dtype=object)])
    rows = [len(cells) if place is None else place for place in places]
    return pd.DataFrame(padded[rows], columns=cells.columns, dtype=str)


def folder_generators(files: Sequence[str | None]) -> list[str] | None:
    """Return the generator of each image by the folder that holds it, or None where folders tell no generators apart.

    The folder is the first, seen from the top, in which images part ways; empty for an image that lies above. Folders
    of the parts of a split (train, test) tell no generator, nor does one for nearly every image.

    Args:
        files: Relative paths; None where a row names no image.
    """
    tops = [file.split("/")[:-1] for file in files if file is not None]
    depth = next(
        (n for n, names in enumerate(zip(*tops, strict=False)) if len({*names}) > 1), min(map(len, tops), default=0)
    )
    called = {folder for top in tops for folder in top[depth : depth + 1]}
    if len(called) < 2 or len(called) > len(tops) / 2 or {name.casefold() for name in called} & _PARTS:
        return None
    return ["" if file is None else "".join(file.split("/")[:-1][depth : depth + 1]) for file in files]
