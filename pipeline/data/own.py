"""The reader of a data set of anyone's own: images at any depth and one CSV."""

import difflib
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.data.labels import ATTRIBUTES, IMAGE_SUFFIXES, DatasetError, Labels, Problem
from pipeline.data.places import find, is_side_file, nearest, plain_files, shortened
from pipeline.data.tables import OWN_COLUMNS, TABLE_SUFFIXES, read_table

# What people write for numbers, and what to do about it.
_NUMBER_HINTS = {
    r"[-+]?\d+,\d+": ": write a point for the comma",
    r"[-+]?\d{1,3}(?:[ ,.'\u00a0\u202f\u2009\u2019]\d{3})+(?:[.,]\d+)?": ": write it without separators of thousands",
    r"[-+]?[\d.,]+\s*%": ": write the number alone, without %",
    r"[-+]?[\d.,]+\s*/\s*\d+": ": write the score alone",
}
_OWN_TEXTS, _SCALE = ("image", "generation_prompt", "generator"), ("mos_low", "mos_high")


def read_folder(folder: Path, labels_file: str | None, scale: tuple[float, float] | None) -> Labels:
    """Read a data set of one's own: images at any depth, and a CSV whose first row names OWN_COLUMNS."""
    path = _own_table(folder, labels_file)
    table = read_table(path)
    separator = table.attrs["separator"]
    columns, notes = own_columns(path, list(table.columns))
    table = pd.DataFrame({ours: table[theirs] for ours, theirs in columns.items()})
    # A column without any cell is as good as none, and a row without any (the end of many files) is no row.
    table = table.drop(columns=[name for name in columns if name != "quality" and (table[name] == "").all()])
    table = table[(table != "").any(axis=1)]  # of the columns that are read
    if "image" not in table:
        raise DatasetError(f"{path}: column {columns['image']!r} is empty")
    numbers = table.index.to_series()  # of the row, as a spreadsheet counts
    names = table["image"].where(table["image"] != "", "row " + numbers.astype(str))
    faults: dict[int, list[Problem]] = {}

    def report(kind: str, row: int, detail: str) -> None:
        faults.setdefault(row, []).append(Problem(kind, names[row], f"row {numbers[row]}: {detail}"))

    for column in [name for name in table if name not in _OWN_TEXTS]:
        values = as_numbers(table[column], separator)
        for row in table.index[values.isna()]:
            text = table.loc[row, column]
            if text:
                hint = next((hint for shape, hint in _NUMBER_HINTS.items() if re.fullmatch(shape, text)), "")
                report("bad_label", row, f"{columns[column]} is {shortened(text)!r}, which is no number{hint}")
            elif column == "quality" or not column.endswith("_std"):
                report("bad_label", row, f"{columns[column]} is empty")
        table[column] = values
    if scale is not None:
        table = table.assign(**{name: value for name, value in zip(_SCALE, scale, strict=True) if name not in table})
    if not {*_SCALE} <= {*table}:
        found = f"{table['quality'].min():g} to {table['quality'].max():g}"
        raise DatasetError(
            f"{path}: nothing says on which scale `{columns['quality']}` is (its values run from {found}): give the "
            "lowest and highest possible score, as `scale` of the data set or as columns mos_low and mos_high"
        )
    _one_scale(path, table, scale)
    files, wrong = _own_files(table["image"], folder, path.parent)
    for row, detail in wrong.items():
        report("missing", row, detail)
    low, high = table["mos_low"], table["mos_high"]
    for attribute in [name for name in ATTRIBUTES if name in table]:
        for row in table.index[(table[attribute] < low) | (table[attribute] > high)]:
            value = table.loc[row, attribute]
            report("bad_label", row, f"{columns[attribute]} is {value:g}, not in {low[row]:g}..{high[row]:g}")
    for name in [column for column in table if column.endswith("_std")]:
        for row in table.index[table[name] < 0]:
            report("bad_label", row, f"{columns[name]} is {table.loc[row, name]:g}, and no spread is below 0")
    for file, group in pd.Series(files).groupby(pd.Series(files)):
        for row in group.index if len(group) > 1 else []:
            others = ", ".join(str(numbers[other]) for other in group.index if other != row)
            report("duplicate_name", row, f"{file} stands in row {others}, too")
    good = [row for row in table.index if row not in faults]
    table, file = table.loc[good], pd.Series(files, dtype=object).reindex(good)
    prompts = table.get("generation_prompt", pd.Series("", table.index))
    if without := int((prompts == "").sum()):
        notes.append(
            f"{without} of {len(table)} images have no generation prompt: each is a group of its own, and no rule can "
            "tell which of them are of one prompt"
        )
    rows = table.drop(columns="image").assign(
        image_id=file,
        file=file,
        generation_prompt=prompts,
        prompt_group=prompts.where(prompts != "", "no prompt: " + file),
        generator=table.get("generator", pd.Series("", table.index)).replace("", "unknown"),
    )
    return Labels(rows, [problem for row in sorted(faults) for problem in faults[row]], notes)


def as_numbers(texts: pd.Series, separator: str) -> pd.Series:
    """Return texts as finite numbers, NaN where one is none.

    Where commas do not part cells, a column without points may have commas for them, as spreadsheets of many languages
    write.
    """
    with_comma = texts.str.fullmatch(r"[-+]?\d*,\d+(?:[eE][-+]?\d+)?")
    if separator != "," and with_comma.any() and not texts.str.contains(".", regex=False).any():
        texts = texts.where(~with_comma, texts.str.replace(",", ".", regex=False))
    return pd.to_numeric(texts, errors="coerce").replace([np.inf, -np.inf], np.nan)


def _own_table(folder: Path, labels_file: str | None) -> Path:
    if labels_file is not None:
        path = folder / labels_file
        if not path.is_file():
            raise DatasetError(f"{path} does not exist: `labels` names the CSV relative to the data set's folder")
        return path
    found = [path for path in plain_files(folder) if path.suffix.lower() in TABLE_SUFFIXES]
    if not found:
        raise DatasetError(f"{folder} holds no CSV with the labels: it needs one with the columns image and mos")
    if len(found) > 1:
        places = ", ".join(path.relative_to(folder).as_posix() for path in found)
        raise DatasetError(f"{folder} holds {len(found)} CSV files ({places}): say under `labels` which one it is")
    return found[0]


def own_columns(path: Path, names: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return the file's name of each of our columns that it has, and a note of those that are not read."""
    known = {alias: ours for ours, aliases in OWN_COLUMNS.items() for alias in aliases}
    found: dict[str, str] = {}
    ignored = []
    for name in names:
        ours = known.get(name.strip().lower())
        if ours is None:
            near = difflib.get_close_matches(name.strip().lower(), list(known), n=1, cutoff=0.8)
            if near:
                raise DatasetError(
                    f"{path}: column {name!r} is not known; is it {near[0]!r}? If it is something else, rename it"
                )
            ignored.append(name)
        elif ours in found:
            raise DatasetError(f"{path}: columns {found[ours]!r} and {name!r} mean the same: keep one")
        else:
            found[ours] = name
    for needed, example in (("image", "image"), ("quality", "mos")):
        if needed not in found:
            raise DatasetError(f"{path} lacks the column {example!r}; it has {', '.join(map(repr, names))}")
    return found, [f"columns that are not read: {', '.join(ignored)}"] if ignored else []


def _one_scale(path: Path, table: pd.DataFrame, scale: tuple[float, float] | None) -> None:
    for column, place in (("mos_low", 0), ("mos_high", 1)):
        values = table[column].dropna().unique()
        if len(values) != 1:
            held = ", ".join(f"{value:g}" for value in sorted(values)[:5]) or "none"
            raise DatasetError(f"{path}: {column} must hold one value in all rows, and holds {held}")
        if scale is not None and values[0] != scale[place]:
            raise DatasetError(f"{path}: {column} is {values[0]:g}, and `scale` of the data set says {scale[place]:g}")
    if not table["mos_low"].iloc[0] < table["mos_high"].iloc[0]:
        raise DatasetError(f"{path}: mos_low must be below mos_high")


def _own_files(names: pd.Series, folder: Path, base: Path) -> tuple[dict[int, str], dict[int, str]]:
    """Return, by row, each image's path relative to `folder`, or what is wrong with its name.

    A name is a path from the CSV, or that of a file in one of the folders.
    """
    known: dict[str, list[Path]] = {}
    for path in plain_files(folder):
        known.setdefault(path.name, []).append(path)
    near = [os.path.relpath(path, base) for paths in known.values() for path in paths if _may_be_meant(path)]
    files: dict[int, str] = {}
    wrong: dict[int, str] = {}
    for row, name in names.items():
        if not name:
            wrong[row] = "no image is named"
            continue
        spelt = base / name.replace("\\", "/")
        try:
            path = find(base, name)
            inside = _inside(path or spelt, folder)
            is_file = path is not None and path.is_file()
        except (OSError, ValueError, RuntimeError):  # too long, or links that lead in a circle
            wrong[row] = f"{shortened(name)!r} cannot be opened as a path"
            continue
        if inside is None:
            wrong[row] = f"{name} lies outside the data set's folder: name images relative to the CSV"
        elif is_side_file(inside.parts):
            wrong[row] = f"{name} is hidden, or a copy that a system or a program made: it is no part of a data set"
        elif is_file:
            files[row] = inside.as_posix()
        elif len(found := known.get(name, [])) == 1:
            files[row] = found[0].relative_to(folder).as_posix()
        elif found:
            wrong[row] = f"{name} lies in {len(found)} folders: write its path"
        else:
            wrong[row] = f"{shortened(name)} does not exist{nearest(spelt, near)}"
    return files, wrong


def _may_be_meant(path: Path) -> bool:
    return path.suffix.lower().strip() in IMAGE_SUFFIXES or not path.suffix


def _inside(path: Path, folder: Path) -> Path | None:
    """Return a path relative to a folder, or None if it lies elsewhere."""
    for place, top in (
        (Path(os.path.abspath(path)), Path(os.path.abspath(folder))),
        (path.resolve(), folder.resolve()),
    ):
        if place.is_relative_to(top):
            return place.relative_to(top)
    return None
