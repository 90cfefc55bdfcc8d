"""Which column of somebody's tables is what: by how it is called, and by what stands in it.

Nothing is guessed between equals: where two columns could be the same, an error names both.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from pipeline.data.labels import DatasetError
from pipeline.data.own import OWN_COLUMNS, as_numbers

# Our columns by the names under which they stand in a CSV that the reader `folder` takes, in the order of such a CSV.
ROLES = {ours: names[0] for ours, names in OWN_COLUMNS.items()}
_ALIGNMENT = {"align", "alignment", "aligned", "correspondence", "faithfulness", "consistency"}
_AUTHENTICITY = {"authenticity"}
_SPREAD = {"std", "sd", "stddev", "stdev", "deviation", "sigma"}
# Words of columns of numbers that are no score.
_NO_SCORE = {
    "id", "idx", "index", "number", "num", "no", "n", "count", "counts", "votes", "raters", "seed", "steps", "step",
    "cfg", "width", "height", "size", "low", "high", "min", "max", "lower", "upper", "ci", "var", "variance", "median",
    "rank", "fold", "split", "time", "year", "version", "scale", "range",
}  # fmt: skip
_NO_TEXT = {"id", "idx", "index", "negative", "neg", "length", "type", "category", "style", "number", "num", "hash"}
# Sets of words, the surest first: a column whose name has one of a set, and none that speaks against it.
_WORDS: dict[str, tuple[set[str], ...]] = {
    "quality": ({"mos", "quality"}, {"rating", "ratings", "score", "scores", "opinion"}),
    "generation_prompt": ({"prompt", "prompts"}, {"caption", "text", "description"}),
    "generator": ({"generator", "model", "models"}, {"method", "algorithm", "engine", "tool"}),
}
_SHARE = 0.9  # of the cells that are not empty must be numbers in a column of numbers


@dataclass(frozen=True)
class Column:
    """A column of one of the tables.

    Attributes:
        table: The table's name relative to the folder.
        name: As the table has it.
        cells: Text, a cell a row of the joined tables.
        separator: What stands between the table's cells.
        joined: How its table was joined, in words; empty for the one that holds the images' rows.
    """

    table: str
    name: str
    cells: pd.Series
    separator: str = ","
    joined: str = ""

    def __str__(self) -> str:
        return f"{self.table}: {self.name}"

    @property
    def words(self) -> list[str]:
        """The words of its name, in small letters: `MOS_std (1-5)` has mos, std, 1 and 5."""
        return re.findall(r"[^\W\d_]+|\d+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", self.name).casefold())

    @property
    def numbers(self) -> pd.Series:
        """Its cells as numbers, NaN where one is none."""
        return as_numbers(self.cells, self.separator)

    @property
    def is_numeric(self) -> bool:
        """Whether nearly all of its cells that are not empty are numbers."""
        filled = self.cells != ""
        return bool(filled.any()) and float(self.numbers[filled].notna().mean()) >= _SHARE


@dataclass(frozen=True)
class Taken:
    """A column that was taken for one of ours, and why, in plain words."""

    column: Column
    why: str


def role_of(name: str) -> str | None:
    """Return which of our columns a user means by `mos`, `quality`, `prompt` and the like; None if none."""
    return next((ours for ours, names in OWN_COLUMNS.items() if name.strip().casefold() in (*names, ours)), None)


def take(columns: Sequence[Column], wanted: Mapping[str, str]) -> dict[str, Taken]:
    """Return which column is which of ours.

    Args:
        columns: Of all tables, without that of the images' names.
        wanted: What the user says, by our names: a column as COLUMN or TABLE:COLUMN, or nothing to take none.

    Raises:
        DatasetError: If two could be the same, a wanted one is not there, or none holds the MOS.
    """
    columns = _without_twins(columns)
    taken: dict[str, Taken] = {}
    for role, which in wanted.items():
        if which and role != "image":
            taken[role] = Taken(_named(columns, role, which), "as --map says")
    for role in [role for role in ROLES if role not in wanted and role != "image"]:
        left = [column for column in columns if all(column is not known.column for known in taken.values())]
        if (found := _find(role, left)) is not None:
            taken[role] = found
    if "quality" not in taken and "quality" not in wanted:
        left = [column for column in columns if all(column is not known.column for known in taken.values())]
        numeric = [column for column in left if _may_be_score(column)]
        if found := _only("quality", numeric, "the only column of numbers that can be a score"):
            taken["quality"] = found
    if "quality" not in taken:
        names = ", ".join(str(column) for column in columns) or "none beside the images' names"
        raise DatasetError(f"no column holds the MOS: say --map mos=COLUMN; columns: {names}")
    return taken


def _find(role: str, columns: Sequence[Column]) -> Taken | None:
    fitting = [column for column in columns if _fits(role, column)]
    exact = [column for column in fitting if "_".join(column.words) in OWN_COLUMNS[role]]
    if exact:
        return _only(role, exact, "by its name")
    for words in _WORDS.get(role, ()):
        if found := _only(role, [column for column in fitting if words & {*column.words}], "by its name"):
            return found
    return _only(role, fitting, "by its name") if role not in _WORDS else None


def _fits(role: str, column: Column) -> bool:
    """Tell whether a column's name and cells allow a role; one without _WORDS must be named by them."""
    words = {*column.words}
    if "_".join(column.words) in OWN_COLUMNS[role]:
        return column.is_numeric != (role in ("generation_prompt", "generator"))
    if role in ("generation_prompt", "generator"):
        return not column.is_numeric and not words & _NO_TEXT and (column.cells != "").any()
    if role in ("mos_low", "mos_high") or not column.is_numeric:
        return False
    attribute = "alignment" if words & _ALIGNMENT else "authenticity" if words & _AUTHENTICITY else "quality"
    if role.endswith("_std"):
        return bool(words & _SPREAD) and role == f"{attribute}_std"
    if words & _SPREAD or words & _NO_SCORE:
        return False
    return role == attribute


def _may_be_score(column: Column) -> bool:
    if not _fits("quality", column):
        return False
    numbers = column.numbers.dropna()
    counts = numbers.is_unique and (numbers % 1 == 0).all() and len(numbers) > 10  # as numbers of rows do
    return numbers.nunique() > 1 and not counts


def _only(role: str, columns: Sequence[Column], why: str) -> Taken | None:
    """Return the one column, or None if there is none.

    Raises:
        DatasetError: If there are several.
    """
    if len(columns) > 1:
        shown = " and ".join([", ".join(map(repr, map(str, columns[:-1]))), repr(str(columns[-1]))])
        name = columns[0].name if [column.name for column in columns].count(columns[0].name) == 1 else str(columns[0])
        flag = f"--map {ROLES[role]}='{name.replace(': ', ':')}'" if re.search(r"[^\w.:]", name) else (
            f"--map {ROLES[role]}={name}"
        )  # fmt: skip
        raise DatasetError(f"{shown} could {'both' if len(columns) == 2 else 'all'} be the {_called(role)}: say {flag}")
    return Taken(columns[0], why) if columns else None


def _called(role: str) -> str:
    return {"quality": "MOS", "generation_prompt": "prompt"}.get(role, ROLES[role])


def _named(columns: Collection[Column], role: str, which: str) -> Column:
    found = [
        column
        for column in columns
        if which.casefold() in (column.name.casefold(), f"{column.table}:{column.name}".casefold())
    ]
    if not found:
        names = ", ".join(repr(column.name) for column in columns)
        raise DatasetError(f"--map {ROLES[role]}={which}: no table has this column; they have {names}")
    if len(found) > 1:
        tables = ", ".join(f"{column.table}:{column.name}" for column in found)
        raise DatasetError(f"--map {ROLES[role]}={which}: several tables have this column: say one of {tables}")
    return found[0]


def _without_twins(columns: Sequence[Column]) -> list[Column]:
    """Return the columns without those that stand in two tables under one name with the same cells."""
    kept: list[Column] = []
    for column in columns:
        if not any(one.name.casefold() == column.name.casefold() and one.cells.equals(column.cells) for one in kept):
            kept.append(column)
    return kept
