"""The parts of a split that others made: two tables of images and prompts, and the image files that they name."""

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from pipeline.data.decoding import printable
from pipeline.data.labels import IMAGE_SUFFIXES
from pipeline.data.places import find, nearest, plain_files
from pipeline.data.tables import IMAGE_COLUMNS, OWN_COLUMNS, TABLE_SUFFIXES, column_of, near_column, read_table
from pipeline.errors import AgiqaError

# What published splits call their columns beyond what a data set of one's own may.
PROMPT_COLUMNS = (*OWN_COLUMNS["generation_prompt"], "prompts", "text", "caption", "text_prompt")
NAME_COLUMNS = (*IMAGE_COLUMNS, "image_name", "img", "img_name", "img_path", "file_name", "filepath", "images")
_ROLE = re.compile(
    r"(?<![^\W\d_])(?:(?P<train>train(?:ing)?)|(?P<test>test(?:ing)?)|(?P<val>val(?:id(?:ation)?)?))(?![^\W\d_])",
    re.IGNORECASE,
)


class SplitTableError(AgiqaError):
    """Tables of a split that cannot be compared."""


def find_pairs(folder: Path) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """Return the splits in a folder, at any depth, and the tables that have a part's name and no counterpart.

    Two tables are a split if their paths differ in one word alone, which is `train` in one and `test` or `val` in the
    other: `train.csv` and `test.csv` of one folder, `x-train.csv` and `x-test.csv`, `train/1.csv` and `val/1.csv`. The
    word may be `training`, `testing`, `valid` or `validation`; the last one in a path counts.

    Raises:
        SplitTableError: If there is none.
    """
    seen: list[Path] = []
    parts: dict[tuple[str, str], dict[str, Path]] = {}
    for path in plain_files(folder):
        name = path.relative_to(folder).as_posix()
        found = list(_ROLE.finditer(name))
        if found and path.suffix.lower() in (*TABLE_SUFFIXES, ".txt"):
            around = name[: found[-1].start()], name[found[-1].end() :]
            parts.setdefault(around, {})[found[-1].lastgroup] = path
            seen.append(path)
    pairs = [(part["train"], part[role]) for part in parts.values() for role in ("test", "val")
             if "train" in part and role in part]  # fmt: skip
    paired = {path for pair in pairs for path in pair}
    if not pairs:
        raise SplitTableError(
            f"{folder} holds no split: two tables whose paths differ in the word train, and test or val, such as "
            "train.csv and test.csv, or x-train.csv and x-val.csv"
        )
    return pairs, [path for path in seen if path not in paired]


def read_part(path: Path, prompt_column: str | None = None, image_column: str | None = None) -> pd.DataFrame:
    """Read the table of one part of a split.

    A table whose first row names an image file has no column names: its columns are called 1, 2 and so on, the images
    are those of the first column of image files, and the prompts those of the only other column of words.

    Args:
        path: CSV in any dialect that `pipeline.data.tables` reads.
        prompt_column: Column of the prompts; None takes the first of PROMPT_COLUMNS.
        image_column: Column of the images; None takes the first of NAME_COLUMNS, and there may be none.

    Returns:
        Columns prompt, image and generator, all text, empty where the table says nothing; the index is the row's number
        as a spreadsheet counts.

    Raises:
        SplitTableError: If the file or a column is missing, or no row has a prompt.
        DatasetError: If the file is no table.
    """
    if not path.is_file():
        raise SplitTableError(f"{path} does not exist{nearest(path)}")
    table = read_table(path)
    nameless = any(name.lower().endswith(IMAGE_SUFFIXES) for name in table.columns)
    if nameless:
        first = pd.DataFrame([list(table.columns)], index=[table.index[0] - 1])
        table = pd.concat([first, table.set_axis(range(len(table.columns)), axis=1)])
        table.columns = [str(number + 1) for number in table.columns]
        images = [name for name in table if table[name].str.lower().str.endswith(IMAGE_SUFFIXES).all()]
        words = [name for name in table if name not in images and _is_text(table[name])]
        usual = {"prompt": words if len(words) == 1 else (), "image": images[:1]}
    else:
        usual = {"prompt": PROMPT_COLUMNS, "image": NAME_COLUMNS}
    found = {}
    for what, asked in (("prompt", prompt_column), ("image", image_column)):
        found[what] = column_of(table.columns, [asked] if asked else usual[what])
        if found[what] is None and (asked or what == "prompt"):
            wanted = repr(asked) if asked else " or ".join(map(repr, PROMPT_COLUMNS))
            held = f"{len(table.columns)} columns without names" if nameless else ", ".join(map(repr, table.columns))
            near = near_column(asked or "prompt", table.columns)
            raise SplitTableError(
                f"{path} has no column {wanted}; it has {held}{near}: name the column with --{what}-column"
                + (", 1 for the first" if nameless else "")
            )
    if (table[found["prompt"]] == "").all():
        raise SplitTableError(f"{path}: column {found['prompt']!r} is empty: name another with --prompt-column")
    generator = column_of(table.columns, OWN_COLUMNS["generator"])
    empty = pd.Series("", table.index, dtype=object)
    return pd.DataFrame(
        {
            "prompt": table[found["prompt"]],
            "image": empty if found["image"] is None else table[found["image"]].map(_plain_name),
            "generator": empty if generator is None or generator in found.values() else table[generator],
        }
    )


def _is_text(cells: pd.Series) -> bool:
    return bool(pd.to_numeric(cells, errors="coerce").isna().any()) and bool(cells.str.contains(r"[^\W\d_]").any())


def _plain_name(name: str) -> str:
    return unicodedata.normalize("NFC", name.replace("\\", "/").removeprefix("./"))


def name_images(train: pd.DataFrame, test: pd.DataFrame) -> None:
    """Put the generator before images' names, in place, where one name stands for images of several generators."""
    both = pd.concat([train, test])
    if both["generator"].ne("").all() and both.groupby("image")["generator"].nunique().max() > 1:
        for part in (train, test):
            part["image"] = (part["generator"] + "/" + part["image"]).where(part["image"] != "", "")


def find_files(names: Iterable[str], folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Return each named image's file, and what is wrong with the names that have none.

    A name is a path from the folder on, the end of one path in it, or the file name of one file in it.
    """
    known: dict[str, list[Path]] = {}
    for path in plain_files(folder):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            known.setdefault(_plain_name(path.name).casefold(), []).append(path)
    files, faults = {}, {}
    for name in names:
        try:
            path = find(folder, name)
        except (OSError, ValueError):  # too long for a path, or links that lead in a circle
            path = None
        alike = known.get(name.rsplit("/", 1)[-1].casefold(), [])
        ends = [other for other in alike if _plain_name(other.as_posix()).casefold().endswith("/" + name.casefold())]
        one = next((found for found in (ends, alike) if len(found) == 1), None)
        if path is not None and path.is_file():
            files[name] = path
        elif one is not None:
            files[name] = one[0]
        elif alike:
            faults[name] = f"lies in {len(alike)} folders of {printable(folder)}: write its path"
        else:
            faults[name] = f"does not exist in {printable(folder)}{nearest(folder / name)}"
    return files, faults
