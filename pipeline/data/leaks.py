"""What the test part of a split that others made shares with its training part: `agiqa audit-split`.

Prompts are compared as this project's own splits compare them (`pipeline.data.labels.normalise_prompt`), images by name
and, where the files are at hand, by bytes, pixels and look (`pipeline.data.likeness`). Whether two prompts in other
words mean the same is not judged.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from pipeline.data.decoding import ImageError, printable
from pipeline.data.labels import normalise_prompt
from pipeline.data.likeness import BITS, NEAR, Fingerprint, distances, fingerprint
from pipeline.data.parts import SplitTableError, find_files, find_pairs, name_images, read_part
from pipeline.data.places import nearest, shortened
from pipeline.files import write_atomically, write_json

# What a leak is, and how a count of them reads; files in the order from the surest to the least sure.
KINDS = {
    "prompt": "test prompts also stand in train",
    "name": "test images also stand in train, by name",
    "bytes": "test images are files of train under another name",
    "pixels": "test images have the pixels of a file of train, in other bytes",
    "near": f"test images look like one of train (at most {NEAR} of {BITS} bits of a perceptual hash apart)",
}
SHOWN = 5  # leaks of a kind on the terminal; --out has all


class Leak(NamedTuple):
    """One prompt or image of test that train has, too.

    Attributes:
        kind: One of KINDS.
        test: The prompt, or the image's name, as test writes it.
        train: As train writes it; of several the nearest, then the first.
        test_rows: Rows of test that have it, counted as a spreadsheet counts.
        train_rows: Likewise all rows of train.
        distance: Bits between the two perceptual hashes, for the kind `near`.
    """

    kind: str
    test: str
    train: str
    test_rows: list[int]
    train_rows: list[int]
    distance: int | None = None


@dataclass
class Audit:
    """What one split shares.

    Attributes:
        train: Its table.
        test: Likewise.
        images: Rows of train and of test.
        leaks: In the order of KINDS, then of test's rows.
        compared: Distinct prompts or images of test that were compared, by kind.
        touched: Rows of test whose prompt also stands in train.
        faults: Images that could not be compared, and why.
        notes: What was not compared, in plain words.
    """

    train: Path
    test: Path
    images: tuple[int, int]
    leaks: list[Leak] = field(default_factory=list)
    compared: dict[str, int] = field(default_factory=dict)
    touched: int = 0
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def compare(
    train: pd.DataFrame, test: pd.DataFrame, paths: tuple[Path, Path], prints: Mapping[str, Fingerprint] | None = None
) -> Audit:
    """Return what test shares with train.

    Args:
        train: From `read_part`, then `name_images`.
        test: Likewise.
        paths: Of the two tables.
        prints: By image name, of every image that could be read; None compares no files.
    """
    found = Audit(*paths, (len(train), len(test)))
    plain = [part["prompt"].map(normalise_prompt) for part in (train, test)]
    found.leaks += _shared("prompt", *plain, train["prompt"], test["prompt"], found)
    found.touched = sum(len(leak.test_rows) for leak in found.leaks)
    for path, keys in zip(paths, plain, strict=True):
        if without := int((keys == "").sum()):
            found.notes.append(f"{without} of {len(keys)} rows of {printable(path)} have no prompt, and share none")
    missing = [path for path, part in zip(paths, (train, test), strict=True) if (part["image"] == "").all()]
    if missing:
        found.notes.append(f"images are not compared, since {printable(missing[0])} names none")
        return found
    found.leaks += _shared("name", train["image"], test["image"], train["image"], test["image"], found)
    if prints is not None:
        found.leaks += _shared_files(train, test, prints, found)
    return found


def _rows_by(keys: pd.Series) -> dict[str, list[int]]:
    """Return the rows of every key, in their order; an empty key is none."""
    rows: dict[str, list[int]] = {}
    for row, key in keys.items():
        if key:
            rows.setdefault(key, []).append(int(row))
    return rows


def _shared(
    kind: str, train: pd.Series, test: pd.Series, train_texts: pd.Series, test_texts: pd.Series, found: Audit
) -> list[Leak]:
    theirs, ours = _rows_by(train), _rows_by(test)
    found.compared[kind] = len(ours)
    return [
        Leak(kind, test_texts[rows[0]], train_texts[theirs[key][0]], rows, theirs[key])
        for key, rows in ours.items()
        if key in theirs
    ]


def _shared_files(
    train: pd.DataFrame, test: pd.DataFrame, prints: Mapping[str, Fingerprint], found: Audit
) -> Iterator[Leak]:
    theirs, ours = (
        {name: rows for name, rows in _rows_by(part["image"]).items() if name in prints} for part in (train, test)
    )
    names = np.array([name for name in theirs if prints[name].look is not None], dtype=object)
    looks = np.array([prints[name].look for name in names], dtype=np.uint64).reshape(len(names), BITS // 64)
    by_digest: dict[bytes, list[str]] = {}
    for name in theirs:
        for digest in (prints[name].content, prints[name].pixels):
            by_digest.setdefault(digest, []).append(name)
    leaks: dict[str, list[Leak]] = {"bytes": [], "pixels": [], "near": []}
    for name, rows in ours.items():
        mine = prints[name]
        told = {name}  # what shares more than a look is told once, as that
        for kind, digest in (("bytes", mine.content), ("pixels", mine.pixels)):
            same = [other for other in by_digest.get(digest, []) if other not in told]
            told.update(same)
            if same:
                leaks[kind].append(Leak(kind, name, same[0], rows, _all_rows(same, theirs)))
        if mine.look is None or not len(names):
            continue
        apart = distances(mine.look, looks)
        close = [place for place in np.flatnonzero(apart <= NEAR) if names[place] not in told]
        if close:
            close.sort(key=lambda place: apart[place])
            like = [str(names[place]) for place in close]
            leaks["near"].append(Leak("near", name, like[0], rows, _all_rows(like, theirs), int(apart[close[0]])))
    found.compared |= dict.fromkeys(leaks, len(ours))
    return (leak for kind in leaks.values() for leak in kind)


def _all_rows(names: Iterable[str], rows: Mapping[str, list[int]]) -> list[int]:
    return sorted(row for name in names for row in rows[name])


def fingerprints(names: Sequence[str], folder: Path) -> tuple[dict[str, Fingerprint], dict[str, str]]:
    """Return every named image's fingerprint, and why an image has none; a bar shows how far it is.

    Raises:
        SplitTableError: If the folder does not exist, or holds none of the images.
    """
    if not folder.is_dir():
        raise SplitTableError(f"--images is {folder}, which is no folder{nearest(folder)}")
    files, faults = find_files(names, folder)
    if names and not files:
        raise SplitTableError(f"--images is {folder}, which holds none of the images, such as {shortened(names[0])!r}")
    prints: dict[str, Fingerprint] = {}
    with tqdm(files.items(), "reading images", unit="image", delay=1, dynamic_ncols=True) as bar:
        for name, path in bar:
            try:
                prints[name] = fingerprint(path)
            except ImageError as error:
                faults[name] = error.reason
            except OSError as error:
                faults[name] = f"cannot be read: {error.strerror or error}"
    return prints, faults


# The command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `agiqa audit-split` takes."""
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        metavar="FOLDER",
        help="of splits: train.csv and test.csv or val.csv, and the like",
    )
    parser.add_argument("--train", type=Path, metavar="FILE", help="or one split: the table of its training part (CSV)")
    parser.add_argument("--test", type=Path, metavar="FILE", help="and that of its test part")
    parser.add_argument("--images", type=Path, metavar="DIR", help="compare the image files in DIR, too")
    parser.add_argument("--prompt-column", metavar="NAME", help="default: prompt, text, caption and the like")
    parser.add_argument("--image-column", metavar="NAME", help="default: name, image, path, filename and the like")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all that is shared to FILE (.csv or .json)")


def run(arguments: argparse.Namespace) -> int:
    """Do `agiqa audit-split`; return 1 if a split leaks or an image could not be compared, else 0."""
    folder, given = arguments.folder, (arguments.train, arguments.test)
    if (folder is None) == (given == (None, None)) or (given != (None, None) and None in given):
        raise SplitTableError("give --train and --test, the tables of one split, or a folder of splits")
    pairs, alone = ([given], []) if folder is None else find_pairs(_folder(folder))
    if pairs[0][0].exists() and pairs[0][1].exists() and pairs[0][0].samefile(pairs[0][1]):
        raise SplitTableError(f"--train and --test are both {pairs[0][0]}: give the two tables of a split")
    _check_out(arguments.out, [path for pair in pairs for path in pair])
    parts = []
    for pair in pairs:
        train, test = (read_part(path, arguments.prompt_column, arguments.image_column) for path in pair)
        name_images(train, test)
        parts.append((train, test))
    prints, faults = None, {}
    if arguments.images is not None:
        for pair, tables in zip(pairs, parts, strict=True):
            for path, part in zip(pair, tables, strict=True):
                if (part["image"] == "").all():
                    raise SplitTableError(
                        f"{path} names no image, so --images has none of it: name the column with --image-column"
                    )
        names = dict.fromkeys(name for tables in parts for part in tables for name in part["image"] if name)
        prints, faults = fingerprints(list(names), arguments.images)
    audits = []
    for pair, (train, test) in zip(pairs, parts, strict=True):
        audit = compare(train, test, pair, prints)
        named = dict.fromkeys([*train["image"], *test["image"]])
        audit.faults += [f"{_shown(name)}: {faults[name]}" for name in named if name in faults]
        audits.append(audit)
        sys.stdout.write("\n".join(_told(audit, whole=arguments.out)) + "\n")
    if arguments.out is not None:
        _write(audits, arguments.out)
    if alone:
        more = ", ..." * (len(alone) > 1)
        _say(f"passed over, since without a counterpart: {len(alone)} ({printable(alone[0])}{more})")
    leaking, broken = sum(bool(audit.leaks) for audit in audits), sum(bool(audit.faults) for audit in audits)
    if len(audits) > 1:
        _say(f"{leaking} of {len(audits)} splits leak")
    if broken:
        _say("not all images could be compared: those that were named above")
    return int(leaking > 0 or broken > 0)


def _folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise SplitTableError(f"{folder} is no folder{nearest(folder)}; for one split, give --train and --test")
    return folder


def _check_out(out: Path | None, tables: Sequence[Path]) -> None:
    if out is None:
        return
    if out.suffix.lower() not in (".csv", ".json"):
        raise SplitTableError(f"--out is {out}: its name must end in .csv or .json, which says the kind of file")
    if out.is_dir() or any(path.resolve() == out.resolve() for path in tables):
        what = "a folder" if out.is_dir() else "also an input"
        raise SplitTableError(f"--out is {out}, which is {what}: name another file")


def _say(text: str) -> None:
    sys.stderr.write(f"agiqa: {text}\n")


def _told(audit: Audit, whole: Path | None) -> Iterator[str]:
    """Yield the lines that say what one split shares, counts first."""
    train, test = audit.images
    yield f"{printable(audit.train)} ({train} images) and {printable(audit.test)} ({test} images)"
    by_kind = {kind: [leak for leak in audit.leaks if leak.kind == kind] for kind in audit.compared}
    for kind, compared in audit.compared.items():
        more = f"; {audit.touched} of {test} test images are of them" if kind == "prompt" else ""
        yield f"  {len(by_kind[kind])} of {compared} {KINDS[kind]}{more}"
    for note in audit.notes:
        yield f"  note: {note}"
    for leaks in by_kind.values():
        for leak in leaks[:SHOWN]:
            yield f"    {leak.kind:6}  {_line(leak)}"
        if len(leaks) > SHOWN:
            where = f"all of them are in {printable(whole)}" if whole else "--out FILE.csv has all"
            yield f"    {leaks[0].kind:6}  ... and {len(leaks) - SHOWN} more: {where}"
    for fault in audit.faults[:SHOWN]:
        yield f"    not compared: {fault}"
    if len(audit.faults) > SHOWN:
        yield f"    not compared: ... and {len(audit.faults) - SHOWN} more"


def _line(leak: Leak) -> str:
    if leak.kind == "prompt":
        return f"{_shown(leak.test)}: {len(leak.test_rows)} in test, {len(leak.train_rows)} in train"
    if leak.kind == "name":
        return f"{_shown(leak.test)}: row {leak.test_rows[0]} of test, row {leak.train_rows[0]} of train"
    apart = "" if leak.distance is None else f", {leak.distance} bits apart"
    return f"{_shown(leak.test)} is {_shown(leak.train)} of train{apart}"


def _shown(text: str) -> str:
    """Return a text in one line that cannot move the cursor."""
    line = shortened(" ".join(printable(text).split()))
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in line)


def _write(audits: Sequence[Audit], out: Path) -> None:
    splits = [(printable(audit.train), printable(audit.test), audit) for audit in audits]
    if out.suffix.lower() == ".csv":
        rows = [
            (*tables, *leak[:3], " ".join(map(str, leak.test_rows)), " ".join(map(str, leak.train_rows)), leak.distance)
            for *tables, audit in splits
            for leak in audit.leaks
        ]
        frame = pd.DataFrame(rows, columns=["train_table", "test_table", *Leak._fields])
        frame["distance"] = frame["distance"].astype("Int64")
        write_atomically(out, frame.to_csv(index=False, lineterminator="\n").encode())
        return
    document = []
    for train, test, audit in splits:
        shared = {kind: sum(leak.kind == kind for leak in audit.leaks) for kind in audit.compared}
        document.append(
            {
                "train_table": train,
                "test_table": test,
                "train_images": audit.images[0],
                "test_images": audit.images[1],
                "shared": shared,
                "compared": audit.compared,
                "test_images_of_shared_prompts": audit.touched,
                "notes": audit.notes,
                "not_compared": audit.faults,
                "leaks": [leak._asdict() for leak in audit.leaks],
            }
        )
    write_json(out, {"splits": document})
