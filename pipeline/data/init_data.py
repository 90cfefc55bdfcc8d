"""Make a data set of one's own ready for the study: `agiqa init-data DIR`.

It looks at a folder of images and its tables, says in plain lines what it took for what and why, and writes two things:
a CSV that the reader `folder` takes, where no table of the folder's is one, and the data set's block in params.yaml. It
asks nothing, and where two columns could be the same it stops. What a user made is never overwritten unasked.
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.data.columns import ROLES, Taken, role_of, take
from pipeline.data.joining import Images, Joined, folder_generators, join, read_tables
from pipeline.data.labels import WHEN_ALLOWED, DatasetError
from pipeline.data.own import own_columns, read_folder
from pipeline.data.places import plain_files
from pipeline.data.prepare import check
from pipeline.data.tables import TABLE_SUFFIXES, read_cells
from pipeline.files import write_atomically
from pipeline.layout import RATERS
from pipeline.params import Params, load_params, parse_params, plain_name
from pipeline.yaml_edit import with_values
from pipeline.yaml_file import ParamsError

LABELS = "agiqa-labels.csv"  # the table that is written
# Scales on which people rate, the smallest first.
SCALES = ((0, 1), (1, 5), (0, 5), (1, 7), (1, 9), (1, 10), (0, 10), (0, 100))
READY_MADE = ("demo", "smoke")  # names of studies that nobody chose
SHOWN = 3  # problems that are told here; `agiqa check` tells all
FEW = 30  # images of validation in a round, below which little can be chosen or calibrated by them


@dataclass(frozen=True)
class Found:
    """What a folder holds.

    Attributes:
        joined: The tables' rows.
        taken: Which of their columns is which of ours.
        folders: The generator of each row by its folder, where no column says it.
        images: Of the folder.
        scale: Lowest and highest possible score; None where columns say it.
        why: How it is known.
    """

    joined: Joined
    taken: dict[str, Taken]
    folders: list[str] | None
    images: Images
    scale: tuple[float, float] | None
    why: str

    def table(self) -> pd.DataFrame:
        """Return the CSV that the reader `folder` takes, a row an image that the tables name."""
        names = [
            name if file is None else file for name, file in zip(self.joined.names, self.joined.files, strict=True)
        ]
        columns: dict[str, Sequence[str]] = {"image": names}
        for role in ROLES:
            if role in self.taken:
                columns[ROLES[role]] = _plain_cells(role, self.taken[role])
            elif role == "generator" and self.folders is not None:
                columns["generator"] = self.folders
        return pd.DataFrame(columns, dtype=str)


def _plain_cells(role: str, taken: Taken) -> list[str]:
    """Return a column's cells; numbers with a point, and what is none as it stands, for the reader to name."""
    cells = taken.column.cells
    if role in ("generation_prompt", "generator"):
        return cells.tolist()
    numbers = taken.column.numbers
    plain = pd.to_numeric(cells, errors="coerce").notna() | numbers.isna()
    return [cell if keep else repr(number) for cell, keep, number in zip(cells, plain, numbers.tolist(), strict=True)]


def look(
    folder: Path,
    *,
    wanted: Mapping[str, str] | None = None,
    tables: Sequence[str] = (),
    scale: tuple[float, float] | None = None,
) -> Found:
    """Return what a folder holds, without writing anything.

    Args:
        folder: With images at any depth, and one or more tables.
        wanted: Columns that the user names, by ours; see `pipeline.data.columns.take`.
        tables: Names of the tables to look at, relative to the folder; empty takes all.
        scale: Lowest and highest possible score, if the user says so.

    Raises:
        DatasetError: If there are no images or tables, something is ambiguous, or no scale can be told.
    """
    wanted = dict(wanted or {})
    if not folder.is_dir():
        raise DatasetError(f"{folder} is no folder")
    images = Images.of(folder)
    if not images.files:
        raise DatasetError(f"{folder} holds no image")
    joined = join(read_tables(images, _tables(folder, tables), wanted.get("image") or None))
    taken = take(joined.columns, wanted)
    folders = None if "generator" in taken or "generator" in wanted else folder_generators(joined.files)
    if {"mos_low", "mos_high"} <= {*taken} and scale is None:
        return Found(joined, taken, folders, images, None, "as its columns say")
    taken = {role: known for role, known in taken.items() if role not in ("mos_low", "mos_high")}
    if scale is not None:
        return Found(joined, taken, folders, images, scale, "as --scale says")
    return Found(joined, taken, folders, images, *_scale(taken))


def _tables(folder: Path, names: Sequence[str]) -> list[Path]:
    if names:
        for name in names:
            if not (folder / name).is_file():
                raise DatasetError(f"--table {name}: {folder / name} does not exist; it is relative to the folder")
        return [folder / name for name in names]
    found = [path for path in plain_files(folder) if path.suffix.lower() in TABLE_SUFFIXES]
    others = [path for path in found if path != folder / LABELS]  # ours is made of them
    if not found:
        sheets = [path.name for path in plain_files(folder) if path.suffix.lower() in (".xlsx", ".xls", ".ods")]
        hint = f": save {sheets[0]} there as `CSV UTF-8`" if sheets else ""
        raise DatasetError(f"{folder} holds no CSV or TSV with the images' scores{hint}")
    return others or found


def _scale(taken: Mapping[str, Taken]) -> tuple[tuple[float, float], str]:
    scores = [taken[role].column.numbers for role in ("quality", "alignment", "authenticity") if role in taken]
    low, high = min(part.min() for part in scores), max(part.max() for part in scores)
    held = f"{low:g} to {high:g}"
    fitting = [scale for scale in SCALES if scale[0] <= low and high <= scale[1]]
    if not fitting:
        raise DatasetError(f"the scores run from {held}, which no usual scale holds: say --scale LOW HIGH")
    return fitting[0], f"the smallest usual scale that holds {held}; another: --scale LOW HIGH"


def needed_csv(found: Found) -> tuple[str | None, bytes | None]:
    """Return what `labels` of the data set must say, and the CSV to write, each None where it needs none.

    A table of the user's that the reader takes just as it was understood here stays the only one.
    """
    folder, joined = found.images.folder, found.joined
    if found.folders is None and len(joined.mains) == 1 and _is_read_alike(folder / joined.mains[0], found):
        tables = [path for path in plain_files(folder) if path.suffix.lower() in TABLE_SUFFIXES]
        return (None if len(tables) == 1 else joined.mains[0]), None
    return LABELS, found.table().to_csv(index=False, lineterminator="\n").encode()


def _is_read_alike(path: Path, found: Found) -> bool:
    """Tell whether the reader `folder` takes a table's columns for what they were taken here, and finds its images."""
    joined = found.joined
    wanted = {"image": joined.image} | {role: known.column.name for role, known in found.taken.items()}
    if any(known.column.table != joined.mains[0] for known in found.taken.values()):
        return False
    try:
        if own_columns(path, list(read_cells(path).columns))[0] != wanted:
            return False
        labels = read_folder(found.images.folder, joined.mains[0], found.scale)
    except DatasetError:
        return False
    missing = sum(problem.kind == "missing" for problem in labels.problems)
    return missing == joined.files.count(None) and {*labels.rows["file"]} <= {*joined.files}


def with_data_set(text: str, params: Params, name: str, block: Mapping[str, Any], *, overwrite: bool = False) -> str:
    """Return the text of params.yaml with a data set more, which is studied.

    It takes the demo's place in `study.datasets` and stands behind any other. `study.name` follows it, unless somebody
    chose one.

    Args:
        text: Of the file.
        params: The same, checked.
        name: Of the data set.
        block: What `datasets.<name>` is to say.
        overwrite: Replace a block of this name that says something else.

    Raises:
        ParamsError: If there is such a block, or the file cannot be changed in its place.
    """
    changes: dict[tuple[str, ...], Any] = {}
    known = params.datasets.get(name)
    if known is not None and known.reader != "folder":
        raise ParamsError(
            f"datasets.{name} is the ready-made data set of the reader {known.reader}: say another --name"
        )
    try:
        plain_name(name)
    except ValueError as error:
        raise ParamsError(f"--name {name}: {error}") from None
    raw = params.model_dump()
    raw["datasets"][name] = dict(block)
    wanted = parse_params(raw).dataset(name)
    if known is not None and known != wanted and not overwrite:
        raise ParamsError(
            f"datasets.{name} is there and says something else: say another --name, or --overwrite to replace it"
        )
    if known != wanted:
        changes["datasets", name] = dict(block)
    study = params.study
    if name not in study.datasets:
        changes["study", "datasets"] = [name] if study.datasets == ["demo"] else [*study.datasets, name]
    if study.name != name and (study.name in READY_MADE or [study.name] == study.datasets):
        changes["study", "name"] = name
    return with_values(text, changes)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `agiqa init-data`."""
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="images at any depth, and one or more CSV or TSV tables"
    )
    parser.add_argument(
        "--map", action="append", default=[], metavar="OURS=COLUMN",
        help=f"what a column is, such as mos=rating or prompt=texts.csv:caption; nothing after = takes none; "
        f"ours: {', '.join(ROLES.values())}",
    )  # fmt: skip
    parser.add_argument(
        "--scale", type=float, nargs=2, metavar=("LOW", "HIGH"), help="lowest and highest possible score"
    )
    parser.add_argument("--table", nargs="+", default=[], metavar="FILE", help="look at these tables of DIR alone")
    parser.add_argument("--name", help="of the data set; default: that of DIR")
    parser.add_argument(
        "--allow", nargs="+", default=[], choices=sorted(WHEN_ALLOWED), metavar="PROBLEM",
        help=f"go on with problems of these kinds: {', '.join(WHEN_ALLOWED)}",
    )  # fmt: skip
    parser.add_argument("--raters", choices=sorted(RATERS), help="who gave the scores; default: people")
    parser.add_argument("--overwrite", action="store_true", help="replace a block and a CSV of the same name")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="default: params.yaml")


def run(options: argparse.Namespace) -> int:
    """Make a data set ready; return 1 if it has problems that are not allowed, else 0."""
    folder, path = options.folder, options.params
    params = load_params(path)
    found = look(
        folder, wanted=_wanted(options.map), tables=options.table, scale=options.scale and tuple(options.scale)
    )
    _tell(found)
    name = options.name or _plain_name(folder)
    labels, csv = needed_csv(found)
    block = {"reader": "folder", "source": folder.as_posix()}
    if labels is not None:
        block["labels"] = labels
    if found.scale is not None:
        block["scale"] = [int(value) if value == int(value) else value for value in found.scale]
    if options.raters is not None:
        block["raters"] = options.raters
    if options.allow:
        block["allow_problems"] = options.allow
    text = path.read_bytes().decode()
    changed = with_data_set(text, params, name, block, overwrite=options.overwrite)
    if (
        csv is not None
        and (folder / LABELS).is_file()
        and (folder / LABELS).read_bytes() != csv
        and not options.overwrite
    ):
        raise DatasetError(
            f"{folder / LABELS} is there and says something else: move it away, or say --overwrite to replace it"
        )
    if csv is not None:
        write_atomically(folder / LABELS, csv)
        _say(f"wrote {folder / LABELS}: {len(found.joined.files)} rows")
    if changed != text:
        write_atomically(path, changed.encode())
    after = load_params(path)
    _say(
        f"{'wrote' if changed != text else 'nothing to change in'} {path}: data set {name}, "
        f"study.datasets: [{', '.join(after.study.datasets)}], study.name: {after.study.name}"
    )
    return _check(after, name, found)


def _wanted(given: Sequence[str]) -> dict[str, str]:
    wanted = {}
    for one in given:
        ours, equals, column = one.partition("=")
        role = role_of(ours)
        if not equals or role is None:
            raise DatasetError(f"--map {one}: say OURS=COLUMN, where ours is one of {', '.join(ROLES.values())}")
        if role in ("image", "quality") and not column:
            raise DatasetError(f"--map {one}: a data set needs its {ROLES[role]}: name a column")
        wanted[role] = column
    return wanted


def _plain_name(folder: Path) -> str:
    name = re.sub(r"[^A-Za-z0-9]+", "_", folder.resolve().name).strip("_")[:64]
    if not name:
        raise DatasetError(f"{folder.resolve().name!r} has no letter that a data set's name may have: say --name")
    return name


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _tell(found: Found) -> None:
    """Say what was taken for what, and why."""
    joined, count = found.joined, len(found.joined.files)
    named = count - joined.files.count(None)
    _say(f"{found.images.folder}: {len(found.images.files)} images; {count} rows in {' and '.join(joined.mains)}")
    lines = [("image", joined.image, f"names {named} of {len(found.images.files)} images")]
    for role, known in ((role, found.taken[role]) for role in ROLES if role in found.taken):
        column = known.column
        shown = column.name if column.table in (joined.mains[0], " and ".join(joined.mains)) else str(column)
        lines.append((ROLES[role], shown, known.why + f"; {column.joined}" * bool(column.joined)))
    if found.folders is not None:
        names = sorted({name for name in found.folders if name})
        few = ", ".join(names[:6]) + ", ..." * (len(names) > 6)
        lines.append(("generator", "(folder)", f"no column says it; {len(names)} folders hold the images: {few}"))
    if found.scale is not None:
        lines.append(("scale", "{:g} to {:g}".format(*found.scale), found.why))
    read = [known.column for known in found.taken.values()]
    others = [
        str(column)
        for column in joined.columns
        if column.name not in joined.keys and all(column is not one for one in read)
    ]
    width = max(len(shown) for _, shown, _ in lines)
    for ours, shown, why in lines:
        _say(f"  {ours:<14} {shown:<{width}}  {why}")
    for passed in [*([", ".join(others)] if others else []), *joined.unused]:
        _say(f"  {'not read':<14} {passed}")
    if "generation_prompt" not in found.taken:
        _say(
            "  no prompts: each image is a group of its own in the splits, and no rule can tell which are of one prompt"
        )


def _check(params: Params, name: str, found: Found) -> int:
    """Check the data set as the study will, and say what comes next."""
    settings, folder = params.datasets[name], found.images.folder
    labels, manifest = check("folder", folder, labels_file=settings.labels, scale=settings.scale)
    bad = [problem for problem in labels.problems if problem.kind not in settings.allow_problems]
    if bad:
        for problem in bad[:SHOWN]:
            _say(f"{problem.kind:16} {problem.image}: {problem.detail}")
        kinds = " ".join(sorted({problem.kind for problem in bad}))
        table = "" if settings.labels is None else f"/{settings.labels}"
        scale = "" if settings.scale is None else " --scale {:g} {:g}".format(*settings.scale)
        _say(
            f"{len(bad)} problems stop the study; all of them: agiqa check {folder}{table}{scale}. Mend them, or go on "
            f"without: --allow {kinds} --overwrite"
        )
        return 1
    _say(f"no problem: {len(manifest)} images in {manifest['prompt_group'].nunique()} prompt groups")
    split = params.split
    validation = round(len(manifest) * (1 - split.test_fraction) * split.validation_fraction)
    if validation < FEW:
        _say(
            f"note: some {validation} images will choose the epoch and calibrate the scores: few; "
            f"split.validation_fraction is {split.validation_fraction:g}, and .3 would be better"
        )
    _say("next: agiqa plan says what will run and how long; dvc repro runs it")
    return 0
