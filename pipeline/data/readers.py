"""The published data sets' label files and their quirks, each in a reader of its own."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.data.labels import IMAGE_SUFFIXES, DatasetError, Labels

_TEXTS = ("name", "Image", "prompt", "Prompt", "generator")


def _only(folder: Path, name: str) -> Path:
    found = sorted(path for path in folder.rglob("*") if path.name.lower() == name.lower() and path.is_file())
    if not found:
        raise DatasetError(f"{folder} holds no {name}, which has the labels: the archive is incomplete or another one")
    if len(found) > 1:
        places = ", ".join(str(path.relative_to(folder)) for path in found)
        raise DatasetError(f"{folder} holds {name} {len(found)} times ({places}): keep the right one")
    return found[0]


def _opened(read: Callable[[], Any], path: Path) -> Any:
    """Return what `read` makes of a file; whatever libraries raise of a damaged one becomes one kind of error."""
    try:
        return read()
    except OSError:
        raise
    except Exception as error:
        raise DatasetError(f"{path} is damaged, or not what its name says: {type(error).__name__}: {error}") from error


def _table(path: Path, columns: list[str]) -> pd.DataFrame:
    """Return a table with whole text columns and numbers in all others, which may be missing."""
    read = pd.read_excel if path.suffix.lower() == ".xlsx" else pd.read_csv
    table = _opened(lambda: read(path), path)
    missing = [column for column in columns if column not in table]
    if missing:
        raise DatasetError(f"{path} lacks column {missing[0]!r}; it has {', '.join(map(str, table.columns))}")
    for column in columns:
        empty = table[column].isna()
        if column in _TEXTS:
            if empty.any():
                raise DatasetError(f"{path}: row {int(np.flatnonzero(empty)[0]) + 2} has no {column}")
            continue
        numbers = pd.to_numeric(table[column], errors="coerce")
        if (strange := numbers.isna() & ~empty).any():
            row = int(np.flatnonzero(strange)[0])
            raise DatasetError(
                f"{path}: row {row + 2} has the {column} {table[column].iloc[row]!r}, which is no number"
            )
        table[column] = numbers
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


def _quality_and_alignment(table: pd.DataFrame) -> dict[str, pd.Series | float]:
    """Return both scores as AGIQA-3K publishes them, and as the demo, which writes its labels in the same columns."""
    return {
        "quality": table["mos_quality"],
        "quality_std": table["std_quality"],
        "alignment": table["mos_align"],
        "alignment_std": table["std_align"],
        "mos_low": 0.0,
        "mos_high": 5.0,
    }


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
            **_quality_and_alignment(table),
        }
    )
    notes = ["made by this project: drawn pictures, simulated raters"]
    return Labels(rows, notes=notes, licence="MIT", raters="simulated")


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
            **_quality_and_alignment(table),
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

    content = _opened(lambda: loadmat(path), path)
    if "MOSz" not in content or content["MOSz"].size != _AIGCIQA_COUNT:
        found = {key: value.shape for key, value in content.items() if not key.startswith("__")}
        raise DatasetError(f"{path} must hold MOSz with {_AIGCIQA_COUNT} scores; it holds {found}")
    return content["MOSz"].astype(float).ravel()


def _aigciqa_prompts(folder: Path, tables: list[Path], notes: list[str]) -> list[str]:
    count = _AIGCIQA_PER_GENERATOR // _AIGCIQA_PER_PROMPT
    if tables:
        table = _table(tables[0], ["name", "prompt"])
        number = table["name"].astype(str).str.extract(r"^(\d+)\.")[0]
        if number.isna().any():
            raise DatasetError(f"{tables[0]}: {table.loc[number.isna(), 'name'].iloc[0]!r} is not named <number>.png")
        by_index = table.groupby(number.astype(int) % _AIGCIQA_PER_GENERATOR // _AIGCIQA_PER_PROMPT)["prompt"]
        unequal = by_index.nunique()
        if (unequal != 1).any():
            raise DatasetError(f"{tables[0]}: prompt {int(unequal.index[unequal != 1][0])} has several texts")
        return by_index.first().astype(str).tolist()
    sheets = sorted(path for path in folder.rglob("*.xlsx") if path.name.lower() == "aigciqa2023_prompts.xlsx")
    if sheets:
        table = _opened(lambda: pd.read_excel(sheets[0], header=None), sheets[0])  # the file has no header row
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
