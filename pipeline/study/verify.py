"""Whether a finished study still is what it was: every hash that it recorded, computed anew from the bytes."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import AgiqaError
from pipeline.files import file_md5
from pipeline.layout import CODE, LOCK, RECORD, RUNS, TRAIN, checkpoint_path, input_paths, locked_stages


class Finding(NamedTuple):
    """One recorded hash, looked at again.

    Attributes:
        path: What was hashed, relative to the study's folder.
        said_by: Who recorded the hash.
        fault: What no longer holds, or None.
    """

    path: str
    said_by: str
    fault: str | None


def verify(root: str | Path) -> Iterator[Finding]:
    """Yield a finding for every hash that a finished study recorded.

    Those are dvc.lock's of every output, the code's that each stage ran, the manifests' and splits' that each run read,
    and its selected checkpoint's. DVC itself looks at sizes and times first, and so does not see a flipped bit.

    Args:
        root: Of the study, with dvc.lock, data/ and runs/.

    Raises:
        AgiqaError: If there is no dvc.lock, or it cannot be read.
    """
    root = Path(root)
    lock = root / LOCK
    if not lock.is_file():
        raise AgiqaError(f"{lock} does not exist: nothing was recorded here; run the study first (`make study`)")
    yield from _outputs(root, lock)
    for path in sorted((root / CODE).glob("*.json")):
        for name, md5 in _read(path).items():
            yield _file(root, Path(name), md5, path.relative_to(root).as_posix())
    for path in sorted((root / RUNS).glob(f"*/*/*/{TRAIN}/{RECORD}")):
        yield from _run(root, path)


def _outputs(root: Path, lock: Path) -> Iterator[Finding]:
    stages = locked_stages(lock)
    if not stages:
        raise AgiqaError(f"{lock} is no lock of DVC's (it holds no stage): restore it from git")
    for stage, entry in stages.items():
        for out in entry.get("outs", []):
            name, expected = out["path"], out.get("md5")
            path = root / name
            if not path.exists():
                yield Finding(name, f"dvc.lock, {stage}", "is missing: `dvc checkout` or `dvc pull` may bring it back")
                continue
            found = _folder_md5(path) if path.is_dir() else file_md5(path)
            fault = None if found == expected else f"has md5 {found}, and {expected} was recorded"
            yield Finding(name, f"dvc.lock, {stage}", fault)


def _folder_md5(folder: Path) -> str:
    """Return the name that DVC gives a folder: the md5 of the list of its files and theirs."""
    files = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file())
    listed = [{"md5": file_md5(path), "relpath": name} for name, path in files]
    return hashlib.md5(json.dumps(listed, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def _run(root: Path, path: Path) -> Iterator[Finding]:
    record, said_by = _read(path), path.relative_to(root).as_posix()
    split, _, number = path.parents[1].name.partition("-")
    inputs = record.get("inputs", {})
    for key, name in zip(
        ("manifest_md5", "splits_md5"), input_paths(record["dataset"], int(number), split), strict=True
    ):
        if key in inputs:
            yield _file(root, name, inputs[key], said_by)
    if record.get("checkpoint_md5"):
        checkpoint = checkpoint_path(path.parent, record["selected_epoch"])
        yield _file(root, checkpoint.relative_to(root), record["checkpoint_md5"], said_by)


def _file(root: Path, name: Path, expected: str, said_by: str) -> Finding:
    path = root / name
    if not path.is_file():
        return Finding(name.as_posix(), said_by, "is missing")
    found = file_md5(path)
    return Finding(name.as_posix(), said_by, None if found == expected else f"has md5 {found}, not {expected}")


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AgiqaError(f"{path} is not JSON ({error}): run the stage that writes it again") from None
