"""Each data set's quirks end here: published label files in, one table of labelled images out.

A reader never decodes an image and never drops a row in silence: what is odd comes back as a problem or a note. The
reader `folder` takes a data set of anyone's own: images and one CSV.

Imports nothing of ours.
"""

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

ATTRIBUTES = ("quality", "alignment", "authenticity")
IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".webp", ".avif", ".heic", ".heif", ".gif", ".bmp", ".tif", ".tiff", ".jp2", ".ppm",
)  # fmt: skip
COLUMNS = [
    "image_id", "file", "generation_prompt", "prompt_group", "generator",
    *(column for attribute in ATTRIBUTES for column in (attribute, f"{attribute}_std")),
    "mos_low", "mos_high",
]  # fmt: skip


class DatasetError(ValueError):
    """Label files that are missing or not what they should be."""


class Problem(NamedTuple):
    """One finding about one image.

    Attributes:
        kind: missing, unlabelled, unreadable, duplicate_name, duplicate_image or bad_label.
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
    """

    rows: pd.DataFrame
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    licence: str = "none stated"


def read_labels(
    reader: str,
    folder: str | Path,
    *,
    labels_file: str | None = None,
    scale: tuple[float, float] | None = None,
) -> Labels:
    """Read a data set's labels.

    Args:
        reader: demo, agiqa3k, agiqa1k, aigciqa2023 or folder.
        folder: The unpacked data set; its label file may lie at any depth.
        labels_file: For the reader `folder`: its CSV, relative to `folder`; None takes the only one.
        scale: For the reader `folder`: lowest and highest possible MOS; None reads the columns mos_low and mos_high.

    Returns:
        One row per labelled image whose name is unambiguous, sorted by image id, and what was odd.

    Raises:
        DatasetError: If a label file is missing, ambiguous, or lacks a column.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DatasetError(f"{folder} does not exist: run the download stage first")
    labels = _read_folder(folder, labels_file, scale) if reader == "folder" else READERS[reader](folder)
    rows = labels.rows.reset_index(drop=True)
    for attribute in ATTRIBUTES:
        for column in (attribute, f"{attribute}_std"):
            rows[column] = rows[column].astype(np.float64) if column in rows else np.nan
    if "prompt_group" not in rows:
        rows["prompt_group"] = rows["generation_prompt"]
    rows = _without_repeats(_without_bad_labels(rows, labels.problems), labels.problems)
    labels.rows = rows.sort_values("image_id", kind="stable").reset_index(drop=True)[COLUMNS]
    return labels


def _without_bad_labels(rows: pd.DataFrame, problems: list[Problem]) -> pd.DataFrame:
    bad = pd.Series(False, index=rows.index)
    for attribute in ATTRIBUTES:
        values = rows[attribute]
        if attribute != "quality" and values.isna().all():
            continue  # the data set has no such score at all
        outside = values.isna() | (values < rows["mos_low"]) | (values > rows["mos_high"])
        for row in rows[outside].itertuples():
            low, high = row.mos_low, row.mos_high
            problems.append(
                Problem(
                    "bad_label", row.image_id, f"{attribute} is {getattr(row, attribute)}, not in {low:g}..{high:g}"
                )
            )
        bad |= outside
    return rows[~bad]


def _without_repeats(rows: pd.DataFrame, problems: list[Problem]) -> pd.DataFrame:
    repeated = rows["image_id"].duplicated(keep=False)
    for name, group in rows[repeated].groupby("image_id"):
        scores = " and ".join(f"{value:.3f}" for value in group["quality"])
        problems.append(Problem("duplicate_name", str(name), f"stands {len(group)} times, with quality {scores}"))
    return rows[~repeated]


def _only(folder: Path, name: str) -> Path:
    found = sorted(path for path in folder.rglob("*") if path.name.lower() == name.lower() and path.is_file())
    if not found:
        raise DatasetError(f"{folder} holds no {name}, which has the labels: the archive is incomplete or another one")
    if len(found) > 1:
        places = ", ".join(str(path.relative_to(folder)) for path in found)
        raise DatasetError(f"{folder} holds {name} {len(found)} times ({places}): keep the right one")
    return found[0]


def _table(path: Path, columns: list[str]) -> pd.DataFrame:
    table = pd.read_excel(path) if path.suffix == ".xlsx" else pd.read_csv(path)
    missing = [column for column in columns if column not in table]
    if missing:
        raise DatasetError(f"{path} lacks column {missing[0]!r}; it has {', '.join(map(str, table.columns))}")
    texts = ("name", "Image", "prompt", "Prompt")
    for column in columns:
        if column in texts and table[column].isna().any():
            raise DatasetError(f"{path}: row {int(np.flatnonzero(table[column].isna())[0]) + 2} has no {column}")
    return table


def _files(rows: pd.Series, folder: Path, base: Path) -> list[str]:
    """Return each image's path relative to `folder`: beside the labels or in a folder below them."""
    known: dict[str, list[Path]] = {}
    for path in sorted(base.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
            known.setdefault(path.name, []).append(path)
    files = []
    for name in rows:
        found = known.get(str(name), [base / str(name)])
        if len(found) > 1:
            raise DatasetError(f"{base} holds {name} in {len(found)} folders: keep one")
        files.append(found[0].relative_to(folder).as_posix())
    return files


def _read_demo(folder: Path) -> Labels:
    path = _only(folder, "labels.csv")
    columns = ["name", "prompt", "generator", "mos_quality", "std_quality", "mos_align", "std_align"]
    table = _table(path, columns)
    rows = pd.DataFrame(
        {
            "image_id": table["name"].astype(str),
            "file": _files(table["name"], folder, path.parent),
            "generation_prompt": table["prompt"].astype(str),
            "generator": table["generator"].astype(str),
            "quality": table["mos_quality"],
            "quality_std": table["std_quality"],
            "alignment": table["mos_align"],
            "alignment_std": table["std_align"],
            "mos_low": 0.0,
            "mos_high": 5.0,
        }
    )
    return Labels(rows, notes=["made by this project: drawn pictures, simulated raters"], licence="MIT")


def _read_agiqa3k(folder: Path) -> Labels:
    path = _only(folder, "data.csv")
    table = _table(path, ["name", "prompt", "mos_quality", "std_quality", "mos_align", "std_align"])
    names = table["name"].astype(str)
    parts = names.str.extract(r"^(?P<generator>.+)_(?P<setting>[A-Za-z]+)_(?P<index>\d+)\.[A-Za-z]+$")
    if parts.isna().any(axis=None):
        first = names[parts.isna().any(axis=1)].iloc[0]
        raise DatasetError(f"{path}: {first!r} is not named <generator>_<setting>_<index>.jpg")
    rows = pd.DataFrame(
        {
            "image_id": names,
            "file": _files(names, folder, path.parent),
            "generation_prompt": table["prompt"].astype(str),
            "generator": parts["generator"],
            "quality": table["mos_quality"],
            "quality_std": table["std_quality"],
            "alignment": table["mos_align"],
            "alignment_std": table["std_align"],
            "mos_low": 0.0,
            "mos_high": 5.0,
        }
    )
    highest = int(parts["index"].astype(int).max())
    notes = []
    for (generator, setting), group in parts.groupby(["generator", "setting"]):
        absent = sorted(set(range(highest + 1)) - set(group["index"].astype(int)))
        if absent:
            shown = ", ".join(f"{index:03d}" for index in absent)
            notes.append(f"{generator}_{setting} was published without {len(absent)} of {highest + 1} images: {shown}")
    return Labels(rows, notes=notes, licence="MIT")


def _read_agiqa1k(folder: Path) -> Labels:
    path = _only(folder, "AIGC_MOS_Zscore.xlsx")
    table = _table(path, ["Image", "Prompt", "MOS"])
    prompts = table["Prompt"].astype(str)
    rows = pd.DataFrame(
        {
            "image_id": table["Image"].astype(str),
            "file": _files(table["Image"], folder, path.parent),
            "generation_prompt": prompts,
            # object, action and place; the last part is the style, and its two versions are one scene
            "prompt_group": prompts.str.rsplit(",", n=1).str[0],
            "generator": table["Image"].astype(str).str.split("_").str[0],
            "quality": table["MOS"],
            "mos_low": 0.0,
            "mos_high": 5.0,
        }
    )
    notes = [
        "prompts come from the Prompt column: the index map of the README is wrong for every dreamStudio row",
        "images of one object, action and place form one prompt group, whatever their style",
        "no alignment score was published",
        "AIGC_all.csv, if present, is on another scale and is not read",
    ]
    return Labels(rows, notes=notes, licence="MIT")


AIGCIQA_GENERATORS = ("Controlnet", "DALLE", "Glide", "Lafite", "stable-diffusion", "Unidiffuser")
_AIGCIQA_SCORES = {"quality": "mosz1.mat", "authenticity": "mosz2.mat", "alignment": "mosz3.mat"}
_AIGCIQA_COLUMNS = {"quality": "quality_mos", "authenticity": "authenticity_mos", "alignment": "correspondence_mos"}
_AIGCIQA_COUNT, _AIGCIQA_PER_GENERATOR, _AIGCIQA_PER_PROMPT = 2400, 400, 4


def _read_aigciqa2023(folder: Path) -> Labels:
    notes = []
    tables = sorted(path for path in folder.rglob("*.csv") if path.name.lower() == "aigciqa2023.csv")
    has_matrices = any(path.name.lower() == "mosz1.mat" for path in folder.rglob("*.mat"))
    if has_matrices:
        scores = {name: _matrix(_only(folder, file)) for name, file in _AIGCIQA_SCORES.items()}
        notes.append("scores come from mosz1.mat (quality), mosz2.mat (authenticity) and mosz3.mat (correspondence)")
    elif tables:
        table = _table(_only(folder, "AIGCIQA2023.csv"), ["name", "prompt", *_AIGCIQA_COLUMNS.values()])
        number = table["name"].astype(str).str.extract(r"^(\d+)\.png$")[0]
        if number.isna().any() or sorted(number.astype(int)) != list(range(_AIGCIQA_COUNT)):
            raise DatasetError(f"{tables[0]}: column name must hold 0.png to {_AIGCIQA_COUNT - 1}.png, once each")
        table = table.assign(number=number.astype(int)).sort_values("number")
        scores = {name: table[column].to_numpy(dtype=float) for name, column in _AIGCIQA_COLUMNS.items()}
        notes.append(
            "scores come from AIGCIQA2023.csv; its std are of raw ratings, on another scale than MOS, and left out"
        )
    else:
        raise DatasetError(f"{folder} holds neither mosz1.mat .. mosz3.mat nor AIGCIQA2023.csv, which have the labels")
    index = np.arange(_AIGCIQA_COUNT)
    prompt_index = index % _AIGCIQA_PER_GENERATOR // _AIGCIQA_PER_PROMPT
    prompts = _aigciqa_prompts(folder, tables, notes)
    rows = pd.DataFrame(
        {
            "image_id": [f"{number}.png" for number in index],
            "file": _aigciqa_files(folder, notes),
            "generation_prompt": [prompts[prompt] for prompt in prompt_index],
            "generator": [AIGCIQA_GENERATORS[number // _AIGCIQA_PER_GENERATOR] for number in index],
            **scores,
            "mos_low": 0.0,
            "mos_high": 100.0,
        }
    )
    return Labels(rows, notes=notes)


def _matrix(path: Path) -> np.ndarray:
    from scipy.io import loadmat

    content = loadmat(path)
    if "MOSz" not in content or content["MOSz"].size != _AIGCIQA_COUNT:
        found = {key: value.shape for key, value in content.items() if not key.startswith("__")}
        raise DatasetError(f"{path} must hold MOSz with {_AIGCIQA_COUNT} scores; it holds {found}")
    return content["MOSz"].astype(float).ravel()


def _aigciqa_prompts(folder: Path, tables: list[Path], notes: list[str]) -> list[str]:
    count = _AIGCIQA_PER_GENERATOR // _AIGCIQA_PER_PROMPT
    if tables:
        table = _table(tables[0], ["name", "prompt"]).assign(
            number=lambda t: t["name"].str.split(".").str[0].astype(int)
        )
        by_index = table.groupby(table["number"] % _AIGCIQA_PER_GENERATOR // _AIGCIQA_PER_PROMPT)["prompt"]
        unequal = by_index.nunique()
        if (unequal != 1).any():
            raise DatasetError(f"{tables[0]}: prompt {int(unequal.index[unequal != 1][0])} has several texts")
        return by_index.first().astype(str).tolist()
    sheets = sorted(path for path in folder.rglob("*.xlsx") if path.name.lower() == "aigciqa2023_prompts.xlsx")
    if sheets:
        table = pd.read_excel(sheets[0], header=None)  # the file has no header row
        if len(table) != count:
            raise DatasetError(f"{sheets[0]} has {len(table)} rows, not {count} prompts")
        return table.iloc[:, -1].astype(str).tolist()
    notes.append("no file holds the prompts' texts: they are named by number, which is all that the split needs")
    return [f"prompt {number:03d}" for number in range(count)]


def _aigciqa_files(folder: Path, notes: list[str]) -> list[str]:
    """Return the 2,400 files in both published layouts: allimg/N.png, or Image/<generator>/PPP-K.png."""
    flat = {path.name: path for path in folder.rglob("*.png") if re.fullmatch(r"\d+\.png", path.name)}
    nested = {
        (path.parent.name.lower(), path.name): path
        for path in folder.rglob("*.png")
        if re.fullmatch(r"\d{3}-[1-4]\.png", path.name)
    }
    if nested and not flat:
        notes.append("images lie in folders by generator (PPP-K.png); their ids are those of the flat layout (N.png)")
    files = []
    for number in range(_AIGCIQA_COUNT):
        generator = AIGCIQA_GENERATORS[number // _AIGCIQA_PER_GENERATOR]
        prompt, place = divmod(number % _AIGCIQA_PER_GENERATOR, _AIGCIQA_PER_PROMPT)
        name = f"{prompt:03d}-{place + 1}.png"
        found = flat.get(f"{number}.png") or nested.get((generator.lower(), name))
        absent = f"Image/{generator}/{name}" if nested and not flat else f"allimg/{number}.png"
        files.append(found.relative_to(folder).as_posix() if found else absent)
    return files


READERS: dict[str, Callable[[Path], Labels]] = {
    "demo": _read_demo,
    "agiqa3k": _read_agiqa3k,
    "agiqa1k": _read_agiqa1k,
    "aigciqa2023": _read_aigciqa2023,
}


# Columns of the reader `folder`, and the names under which they may stand.
OWN_COLUMNS = {
    "image": ("image", "file", "filename", "path", "name"),
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
_OWN_TEXTS, _SCALE = ("image", "generation_prompt", "generator"), ("mos_low", "mos_high")


def _read_folder(folder: Path, labels_file: str | None, scale: tuple[float, float] | None) -> Labels:
    """Read a data set of one's own: images at any depth, and a CSV whose first row names OWN_COLUMNS."""
    path = _own_table(folder, labels_file)
    table = read_cells(path)
    columns, notes = _own_columns(path, list(table.columns))
    table = pd.DataFrame({ours: table[theirs] for ours, theirs in columns.items()})
    # A column without any cell is as good as none, and a row without any (the end of many files) is no row.
    table = table.drop(columns=[name for name in columns if name != "quality" and (table[name] == "").all()])
    table = table[(table != "").any(axis=1)]
    if "image" not in table:
        raise DatasetError(f"{path}: column {columns['image']!r} is empty")
    numbers = table.index.to_series() + 2  # of the row, as a spreadsheet counts
    names = table["image"].where(table["image"] != "", "row " + numbers.astype(str))
    faults: dict[int, list[Problem]] = {}

    def report(kind: str, row: int, detail: str) -> None:
        faults.setdefault(row, []).append(Problem(kind, names[row], f"row {numbers[row]}: {detail}"))

    for column in [name for name in table if name not in _OWN_TEXTS]:
        values = pd.to_numeric(table[column], errors="coerce").replace([np.inf, -np.inf], np.nan)
        for row in table.index[values.isna()]:
            text = table.loc[row, column]
            if text:
                hint = ": write a point for the comma" if re.fullmatch(r"[-+]?\d+,\d+", text) else ""
                report("bad_label", row, f"{columns[column]} is {text!r}, which is no number{hint}")
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


def _own_table(folder: Path, labels_file: str | None) -> Path:
    if labels_file is not None:
        path = folder / labels_file
        if not path.is_file():
            raise DatasetError(f"{path} does not exist: `labels` names the CSV relative to the data set's folder")
        return path
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".csv" and path.is_file())
    if not found:
        raise DatasetError(f"{folder} holds no CSV with the labels: it needs one with the columns image and mos")
    if len(found) > 1:
        places = ", ".join(path.relative_to(folder).as_posix() for path in found)
        raise DatasetError(f"{folder} holds {len(found)} CSV files ({places}): say under `labels` which one it is")
    return found[0]


def read_cells(path: Path) -> pd.DataFrame:
    """Return a CSV's cells as text, without blanks around them; between them stand commas, semicolons or tabs.

    Raises:
        DatasetError: If the file is no UTF-8 text, or no table with a row of column names and one below it.
    """
    try:
        header = path.read_text(encoding="utf-8-sig").split("\n", 1)[0]
        separator = max(",;\t", key=header.count)
        table = pd.read_csv(
            path, sep=separator, dtype=str, keep_default_na=False, skip_blank_lines=False, encoding="utf-8-sig"
        )
    except UnicodeDecodeError:
        raise DatasetError(f"{path} is no UTF-8 text: save it as `CSV UTF-8`") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DatasetError(f"{path} is no table with one row of column names: {str(error).strip()}") from None
    if not isinstance(table.index, pd.RangeIndex):
        raise DatasetError(f"{path} has more cells in its rows than column names in its first row")
    if table.empty:
        raise DatasetError(f"{path} has no row below its column names")
    return table.fillna("").apply(lambda column: column.str.strip())


def _own_columns(path: Path, names: list[str]) -> tuple[dict[str, str], list[str]]:
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
            raise DatasetError(f"{path}: {column} must hold one value in all rows, and holds {sorted(values)}")
        if scale is not None and values[0] != scale[place]:
            raise DatasetError(f"{path}: {column} is {values[0]:g}, and `scale` of the data set says {scale[place]:g}")
    if not table["mos_low"].iloc[0] < table["mos_high"].iloc[0]:
        raise DatasetError(f"{path}: mos_low must be below mos_high")


def _own_files(names: pd.Series, folder: Path, base: Path) -> tuple[dict[int, str], dict[int, str]]:
    """Return, by row, each image's path relative to `folder`, or what is wrong with its name.

    A name is a path from the CSV, or that of a file in one of the folders.
    """
    known: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            known.setdefault(path.name, []).append(path)
    files: dict[int, str] = {}
    wrong: dict[int, str] = {}
    inside = folder.resolve()
    for row, name in names.items():
        if not name:
            wrong[row] = "no image is named"
            continue
        path = base / name.replace("\\", "/")
        if not path.resolve().is_relative_to(inside):
            wrong[row] = f"{name} lies outside the data set's folder: name images relative to the CSV"
        elif path.is_file():
            files[row] = path.resolve().relative_to(inside).as_posix()
        elif len(found := known.get(name, [])) == 1:
            files[row] = found[0].relative_to(folder).as_posix()
        elif found:
            wrong[row] = f"{name} lies in {len(found)} folders: write its path"
        else:
            near = difflib.get_close_matches(Path(name).name, list(known), n=1, cutoff=0.9)
            wrong[row] = f"{name} does not exist" + (f"; is it {near[0]}?" if near else "")
    return files, wrong
