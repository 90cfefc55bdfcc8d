"""Writing so that nobody ever sees half a file, and naming files by their bytes."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.claims import claim


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write a file so that a reader, or a crash, sees all of it or nothing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON as `json_bytes` has it."""
    write_atomically(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Return JSON that is equal for equal values, readable, and strict (no NaN)."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


@contextmanager
def replaced_folder(path: str | Path) -> Iterator[Path]:
    """Hand out an empty folder that takes the place of `path` when the block ends without an error.

    Until then this process alone may write it: see `pipeline.claims.claim`.
    """
    path = Path(path)
    with claim(path):
        temporary = path.with_name(path.name + ".partial")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        shutil.rmtree(path, ignore_errors=True)
        temporary.replace(path)


def sweep(folder: str | Path) -> None:
    """Remove what killed writers left below a folder: the unfinished twin beside an output that came some other way.

    A writer that runs again clears its own; one whose output DVC brings back from its cache never does.
    """
    for left in sorted(Path(folder).rglob("*.partial")):
        with claim(left.with_name(left.name.removesuffix(".partial"))):  # whoever is still at work ends first
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink(missing_ok=True)


def lfs_pointer(start: bytes) -> str | None:
    """Return in words that a file, by its first bytes, is what Git LFS leaves where it has not fetched it; else None.

    A clone made without Git LFS, as of a data set or a model on the Hugging Face Hub, holds such files under the names
    of images, tables, archives and weights.
    """
    if not start.startswith(b"version https://git-lfs.github.com/spec/"):
        return None
    return "is a pointer of Git LFS in place of the file itself: `git lfs pull` in its clone fetches that"


def lfs_pointer_at(path: str | Path) -> str | None:
    """Return what `lfs_pointer` says of the file that lies there."""
    with Path(path).open("rb") as stream:
        return lfs_pointer(stream.read(64))


def expanded(path: str | Path) -> Path:
    """Return a path as a shell would: `~` is the home folder, unless it names nobody's; then there is no such file."""
    return Path(os.path.expanduser(path))


def file_md5(path: str | Path) -> str:
    """Return a file's md5, the name that DVC gives it."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def file_sha256(path: str | Path) -> str:
    """Return a file's sha256, which nobody can give another file as well."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
