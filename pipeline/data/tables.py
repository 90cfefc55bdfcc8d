"""Tables that people hand in: CSV as any editor, system or spreadsheet writes it, read as text, cell by cell.

A table is UTF-8 or UTF-16 with or without a byte order mark. Commas, semicolons, tabs or vertical bars stand between
cells, lines end in any way, and quotes may hold separators and line breaks. What cannot be read without a guess is told
with the row, counted as a spreadsheet counts.
"""

import codecs
import csv
import difflib
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.data.labels import DatasetError
from pipeline.files import lfs_pointer

if TYPE_CHECKING:
    import pandas as pd

TABLE_SUFFIXES = (".csv", ".tsv")
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
# What a column of image files may be called, the usual first, in small letters.
IMAGE_COLUMNS = ("image", "path", "file", "filename", "name", "image_path")
# Columns of a data set of one's own, and the names under which they may stand.
OWN_COLUMNS = {
    "image": IMAGE_COLUMNS,
    "quality": ("mos", "quality", "mos_quality"),
    "quality_std": ("std", "quality_std", "mos_std", "std_quality"),
    "alignment": ("alignment", "mos_align"),
    "alignment_std": ("alignment_std", "std_align"),
    "authenticity": ("authenticity",),
    "authenticity_std": ("authenticity_std",),
    "generation_prompt": ("prompt", "generation_prompt"),
    "generator": ("generator", "model"),
    "mos_low": ("mos_low",),
    "mos_high": ("mos_high",),
}
# Names that tell a row of column names, and with it the separator.
_KNOWN = {
    *IMAGE_COLUMNS, "mos", "quality", "prompt", "generator", "model", "std", "alignment", "authenticity", "mos_low",
    "mos_high", "score",
}  # fmt: skip
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
          (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
_FOREIGN = {
    b"PK\x03\x04": "a spreadsheet's or an archive's own file", b"\xd0\xcf\x11\xe0": "an old spreadsheet's own file",
    b"%PDF": "a PDF", b"<!do": "a web page", b"<htm": "a web page", b"\x89PNG": "an image", b"\xff\xd8\xff": "an image",
    b"PAR1": "a Parquet file", b"SQLi": "a database", b"\x1f\x8b": "a packed file",
}  # fmt: skip
_PROBED = 50  # rows that tell the separator
_MOST_CELL = 1 << 20  # letters


class Cells(NamedTuple):
    """A table's cells as text, without blanks around them; missing ones are empty.

    Left out are comments (`# ...` above the names, or alone in a row), a line `sep=;`, and columns without name and
    cells.

    Attributes:
        columns: Their names.
        rows: Of every row that is not empty, a cell a column.
        numbers: Of the rows, as a spreadsheet counts: 2 is the first below the names.
        separator: What stands between cells.
    """

    columns: list[str]
    rows: list[list[str]]
    numbers: list[int]
    separator: str


def read_table(path: Path) -> "pd.DataFrame":
    """Return `read_cells` as a table of text whose index is the rows' numbers; `attrs["separator"]` is the separator.

    Raises:
        DatasetError: As `read_cells`.
    """
    import pandas as pd  # imported here: a list of images to score needs none of it, and may lack it

    cells = read_cells(path)
    table = pd.DataFrame(cells.rows, columns=cells.columns, index=cells.numbers, dtype=str)
    table.attrs["separator"] = cells.separator
    return table


def read_cells(path: Path) -> Cells:
    """Return the cells of a table that someone hands in.

    Raises:
        DatasetError: If the file is no table; names the file, and the row.
    """
    text = _text(path)
    if "\0" in text:
        place = text.index("\0")
        row = 1 + len(re.findall(r"\r\n|\r|\n", text[:place]))
        raise DatasetError(f"{path}: row {row} holds a zero byte: the file is damaged, or no text")
    separator, skipped = _separator(text)
    records = list(_records(path, text, separator))
    head = next((place for place, cells in records[skipped:] if _is_head(cells)), None)
    if head is None:
        raise DatasetError(f"{path} is empty: it needs a row of column names, such as image,mos")
    names = _names(path, records[head - 1][1])
    rows, numbers = [], []
    for number, cells in records[head:]:
        if not any(cells) or (len(names) > 1 and cells[0].startswith("#") and not any(cells[1:])):
            continue
        if any(cells[len(names) :]):
            raise DatasetError(
                f"{path}: row {number} has {len(cells)} cells, and row {head} names {len(names)} columns; cells are "
                f"parted by {SEPARATORS.get(separator, repr(separator))}: put quotes around a text that holds one"
            )
        rows.append((cells + [""] * len(names))[: len(names)])
        numbers.append(number)
    if not rows:
        raise DatasetError(f"{path} has no row below its column names")
    kept = [place for place, name in enumerate(names) if name.strip() or any(cells[place] for cells in rows)]
    columns = [names[place] if names[place].strip() else f"column {place + 1}" for place in kept]
    return Cells(columns, [[cells[place] for place in kept] for cells in rows], numbers, separator)


def column_of(table_columns: Iterable[str], wanted: Sequence[str]) -> str | None:
    """Return the first column that is called as one of `wanted`, in letters of any size; None if none is."""
    known = {name.casefold(): name for name in table_columns}
    return next((known[name.strip().casefold()] for name in wanted if name.strip().casefold() in known), None)


def near_column(name: str, table_columns: Iterable[str]) -> str:
    """Return a hint, `; is it 'prompt'?`, for a column that is not there, or nothing."""
    known = {column.casefold(): column for column in table_columns}
    near = difflib.get_close_matches(name.strip().casefold(), list(known), n=1, cutoff=0.7)
    return f"; is it {known[near[0]]!r}?" if near else ""


def _text(path: Path) -> str:
    content = path.read_bytes()
    if pointer := lfs_pointer(content):
        raise DatasetError(f"{path} {pointer}")
    for start, kind in _FOREIGN.items():
        if content[: len(start)].lower() == start.lower():
            raise DatasetError(f"{path} is {kind}, not a CSV: save or export it as `CSV UTF-8`")
    coding = next((name for mark, name in _MARKS if content.startswith(mark)), None)
    if coding is None:
        even, odd = content[:4096:2].count(0), content[1:4096:2].count(0)
        wide = len(content[:4096]) // 4
        coding = "utf-16-le" if odd > wide and not even else "utf-16-be" if even > wide and not odd else "utf-8"
    try:
        return content.decode(coding)
    except UnicodeDecodeError as error:
        if coding != "utf-8":
            raise DatasetError(f"{path} is damaged {coding.upper()[:6]} text: save it as `CSV UTF-8`") from None
        row = 1 + len(re.findall(rb"\r\n|\r|\n", content[: error.start]))
        found = f"row {row} holds the byte 0x{content[error.start]:02X}"
        raise DatasetError(f"{path} is no UTF-8 text: save it as `CSV UTF-8` ({found})") from None


def _separator(text: str) -> tuple[str, int]:
    """Return what stands between a text's cells, and how many rows come before it matters.

    A line `sep=;` says so, as a spreadsheet writes it. Else it is the separator with which the first row has the most
    names that are known, then that with which all rows have as many cells, then that with the most of them: one in
    quotes, or within a column's name, counts for nothing.
    """
    first = re.match(r'[ \t]*"?sep=([^"\w\r\n ])"?[ \t]*(?:\r\n|\r|\n|$)', text, re.IGNORECASE)
    if first:
        return first[1], 1

    def fitness(separator: str) -> tuple[int, bool, int]:
        rows: list[list[str]] = []
        try:
            for cells in _parsed(text, separator):
                if _is_head(cells) or rows:
                    rows.append(_trimmed(cells))
                if len(rows) > _PROBED:
                    break
        except csv.Error:
            return 0, False, 0
        if not rows:
            return 0, False, 0
        known = sum(cell.casefold() in _KNOWN for cell in rows[0])
        return known, all(len(row) <= len(rows[0]) for row in rows[1:]), len(rows[0])

    return max(SEPARATORS, key=fitness), 0


def _parsed(text: str, separator: str) -> Iterable[list[str]]:
    """Yield a text's rows of cells; a last one of a zero byte alone shows that every quote was closed."""

    def lines() -> Iterable[str]:
        for line in io.StringIO(text, newline=""):
            yield line if line.endswith(("\n", "\r")) else line + "\n"
        yield "\0\n"

    csv.field_size_limit(_MOST_CELL)
    for cells in csv.reader(lines(), delimiter=separator, skipinitialspace=True):
        yield [_clean(cell) for cell in cells]


def _clean(cell: str) -> str:
    """Return a cell without what cannot be seen at its ends: blanks of every width, byte order marks."""
    return cell.strip().strip("\ufeff\u200b\u200e\u200f\u2060").strip()


def _trimmed(cells: list[str]) -> list[str]:
    while cells and not cells[-1]:
        cells = cells[:-1]
    return cells


def _records(path: Path, text: str, separator: str) -> Iterable[tuple[int, list[str]]]:
    """Yield every row with its number, the empty ones included."""
    number = 0
    try:
        for cells in _parsed(text, separator):
            if cells == ["\0"]:
                return
            if cells and "\0" in cells[-1]:
                raise DatasetError(f"{path}: a quote that opens in row {number + 1} is never closed")
            number += 1
            yield number, cells or [""]
    except csv.Error as error:
        raise DatasetError(f"{path}: row {number + 1} cannot be read: {error}") from None


def _is_head(cells: list[str]) -> bool:
    """Tell whether a row can be that of the column names: it is neither empty nor a comment."""
    if not any(cells):
        return False
    return not cells[0].startswith("#") or any(cell.lstrip("# ").casefold() in _KNOWN for cell in cells)


def _names(path: Path, cells: list[str]) -> list[str]:
    """Return column names, each once; a column without a name is called by as many blanks as stand before it."""
    cells = [cells[0].lstrip("# ") if cells[0].startswith("#") else cells[0], *cells[1:]]
    for place, name in enumerate(cells):
        earlier = [cell.casefold() for cell in cells[:place]]
        if name and name.casefold() in earlier:
            raise DatasetError(
                f"{path}: columns {earlier.index(name.casefold()) + 1} and {place + 1} are both named {name!r}: keep "
                "or rename one"
            )
    return [name or " " * place for place, name in enumerate(cells)]
