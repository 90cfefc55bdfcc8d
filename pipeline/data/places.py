"""Files as users name them, and files that nobody means: hidden ones, and what systems lay beside one's own.

One rule for archives, data sets and folders of images to score: what is a side file to one of them is so to all.
"""

import difflib
import os
import re
import stat
import unicodedata
from functools import lru_cache
from pathlib import Path

# Folders and files, in small letters, that systems and programs lay beside one's own: Macs, Windows, NAS boxes, Picasa.
_SIDE = {
    "__macosx", "icon\r", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "@eadir", "@tmp", "#recycle",
    "#snapshot", "$recycle.bin", "recycler", "system volume information", "lost+found", "network trash folder",
    "temporary items", "__pycache__",
}  # fmt: skip
MAP_MARK = b"agiqa quality map"  # the PNG text Software of pictures that are drawn of scores
_MOST_COMPARED = 1000  # names in a folder in which one that is nearly the same is looked for


def is_side_file(parts: tuple[str, ...]) -> bool:
    """Tell whether a path is hidden, a system's own or a program's copy, and so no part of a data set.

    Args:
        parts: Its names from the top of the data set, folder or archive on.
    """
    return any(part.startswith((".", "~$")) or part.casefold() in _SIDE for part in parts)


def plain_files(folder: Path) -> list[Path]:
    """Return a folder's files at every depth, without side files."""
    return sorted(
        path for path in folder.rglob("*") if not is_side_file(path.relative_to(folder).parts) and path.is_file()
    )


def find_link(folder: Path) -> Path | None:
    """Return a link in a folder, at any depth, or None: a data set is copied, and a link would lead out of the copy."""
    return next(
        (p for p in sorted(folder.rglob("*")) if p.is_symlink() and not is_side_file(p.relative_to(folder).parts)), None
    )


def is_quality_map(path: str | Path) -> bool:
    """Tell whether a file is a picture that this project drew of scores, by the mark in it."""
    if not os.fspath(path).lower().endswith(".png"):
        return False
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
            return False
        with open(path, "rb") as stream:
            return b"tEXtSoftware\0" + MAP_MARK in stream.read(256)
    except (OSError, ValueError):
        return False


def shortened(name: str) -> str:
    """Return a text that fits into a message."""
    return name if len(name) <= 80 else f"{name[:60]}... ({len(name)} letters)"


def find(base: Path, name: str) -> Path | None:
    """Return the file that a table, wherever it was written, names relative to its folder; None if there is none.

    A backslash separates folders as on Windows, unless a file of that very name lies there. Letters with accents are
    the same in one piece and in two, as a Mac writes them.

    Raises:
        OSError: If the name cannot be one, or links lead in a circle.
        ValueError: Likewise.
    """
    for spelt in dict.fromkeys((name, name.replace("\\", "/"))):
        path = base / spelt
        if _exists(path):
            return path
        if not spelt.isascii() and (found := _composed_otherwise(path)) is not None:
            return found
    return None


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _composed_otherwise(path: Path) -> Path | None:
    found = Path(path.anchor)
    for part in path.parts[len(found.parts) :]:
        if not _exists(found / part):
            composed = _composed(part)
            near = [name for name in _names(found) if not name.isascii() and _composed(name) == composed]
            if len(near) != 1:
                return None
            part = near[0]
        found /= part
    return found


def nearest(path: Path, among: list[str] | None = None) -> str:
    """Return a hint, `; is it 0000.PNG?`, for a file that does not exist, or nothing.

    Args:
        path: What does not exist.
        among: Names or paths that may be meant; None takes those of the files beside it.
    """
    name, names = path.name, _names(path.parent) if among is None else among
    found = _near(name, tuple(names))
    if found is None:
        return ""
    shown = found if found.isprintable() and found != name else ascii(found)
    return f"; is it {shown}?"


def _near(name: str, names: tuple[str, ...]) -> str | None:
    by_name, by_key, by_stem = _index(names)
    wanted = _folded(name)
    stem, suffix = os.path.splitext(wanted)
    found = by_key.get(wanted) or by_stem.get(wanted)
    if not found and re.fullmatch(r"\.\w{1,5}", suffix):
        found = by_stem.get(stem)
    if not found and len(by_name) <= _MOST_COMPARED:
        close = difflib.get_close_matches(name, list(by_name), n=1, cutoff=0.9)
        found = by_name[close[0]] if close else None
    return min(found) if found else None


@lru_cache(maxsize=4)
def _index(names: tuple[str, ...]) -> tuple[dict[str, list[str]], dict[str, list[str]], dict[str, list[str]]]:
    """Return paths by their last name, by what eyes see of it, and by that without its suffix."""
    by_name: dict[str, list[str]] = {}
    by_key: dict[str, list[str]] = {}
    by_stem: dict[str, list[str]] = {}
    for path in names:
        name = os.path.basename(path)
        by_name.setdefault(name, []).append(path)
        by_key.setdefault(_folded(name), []).append(path)
        by_stem.setdefault(os.path.splitext(_folded(name))[0], []).append(path)
    return by_name, by_key, by_stem


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _folded(name: str) -> str:
    """Return a name without what eyes do not tell apart: case, the way of composing, blanks at the ends."""
    return unicodedata.normalize("NFKC", name).casefold().strip()


def _names(folder: Path) -> tuple[str, ...]:
    try:
        return _listed(os.path.abspath(folder), os.stat(folder).st_mtime_ns)
    except (OSError, ValueError):
        return ()


@lru_cache(maxsize=64)
def _listed(folder: str, changed: int) -> tuple[str, ...]:
    """Return the names in a folder as it was when it `changed` last."""
    return tuple(sorted(name for name in os.listdir(folder) if not is_side_file((name,))))
