"""One run of the study on disk: where it lies, how it describes itself, and how a killed one goes on."""

import hashlib
import json
import math
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.claims import alone, claim
from pipeline.code import code_of
from pipeline.costs import Spent
from pipeline.files import file_md5, replaced_folder, write_json
from pipeline.layout import LOCK, RUN
from pipeline.metrics import krcc, plcc, srcc


def provenance() -> dict[str, Any]:
    """Return the code's git commit, whether the tree is dirty, and DVC's experiment name, each None where unknown.

    dvc.lock does not count: DVC writes it after every stage, so that it is nearly never committed while one runs.
    """

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    status = git("status", "--porcelain", "--", ":(top,exclude)dvc.lock")
    return {
        "git_commit": git("rev-parse", "HEAD"),
        "git_dirty": None if status is None else bool(status),
        "dvc_exp_name": os.environ.get("DVC_EXP_NAME"),
    }


def now() -> str:
    """Return the present time in UTC, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def key_of(values: Mapping[str, Any], files: list[Path], script: Path) -> str:
    """Return a name for a computation: a hash of its values, of the files that it reads, and of our code that it runs.

    So a state that other values, data or code have left behind is never taken up. The code is what DVC counts for the
    stage, too: see `pipeline.code`.

    Args:
        values: What the computation is told.
        files: That it reads.
        script: Of the stage, relative to the repository root, which is the working folder.
    """
    digest = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode())
    for path in files:
        digest.update(file_md5(path).encode())
    digest.update(json.dumps(code_of(script), sort_keys=True).encode())
    return digest.hexdigest()[:24]


@contextmanager
def resumable(root: Path, out: Path, key: str) -> Iterator[Path]:
    """Hand out the folder in which a killed computation finds what it had, alone.

    DVC empties `out` before it runs a stage, so what must survive a crash lies in .work/train/<key>. Its subfolder
    `results` appears when the computation is done, and is copied to `out` when the block ends. It is kept until DVC has
    taken `out` up into dvc.lock, so that a crash in between costs nothing, and a forced rerun starts anew.

    Args:
        root: The repository; several working copies of it share one .work.
        out: The stage's output folder.
        key: From `key_of`.

    Raises:
        RuntimeError: If the block ends without results.
    """
    work = root / ".work" / "train"
    work.mkdir(parents=True, exist_ok=True)
    # One writer of the output, whatever it computes; and one of the key's folder, which working copies share. A second
    # process of the same key waits for the first and takes over its results.
    with claim(out), alone(work / f"{key}.lock", work / key):
        for marker in work.glob("*/finished.json"):
            finished = json.loads(marker.read_text())
            if finished["lock_entries"] != _lock_entries(Path(finished["out"])):
                shutil.rmtree(marker.parent)
        folder = work / key
        folder.mkdir(exist_ok=True)
        yield folder
        results = folder / "results"
        if not results.is_dir():
            raise RuntimeError(f"{folder} holds no results for {out}")
        with replaced_folder(out) as fresh:
            shutil.copytree(results, fresh, dirs_exist_ok=True)
        write_json(folder / "finished.json", {"out": str(out), "lock_entries": _lock_entries(out)})


def _lock_entries(out: Path) -> list[str]:
    """Return every hash that dvc.lock gives for a path; it changes when DVC takes the path up anew."""
    lock = Path(LOCK)
    text = lock.read_text() if lock.is_file() else ""
    return re.findall(rf"path: {re.escape(out.as_posix())}\n(?:.*\n)??\s*md5: (\S+)", text)


def write_table(path: Path, rows: list[Mapping[str, float]]) -> None:
    """Write rows as CSV; NaN becomes empty, and numbers keep every digit."""
    import pandas as pd

    pd.DataFrame(rows).to_csv(path, index=False)


def agreement(raw: np.ndarray, target: np.ndarray) -> dict[str, float | None]:
    """Return SRCC, PLCC and KRCC for JSON, which knows no NaN: None in its place.

    Args:
        raw: Scores, shape (n,).
        target: What they should agree with, shape (n,).
    """
    found = {"srcc": srcc(raw, target), "plcc": plcc(raw, target), "krcc": krcc(raw, target)}
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def used_params(params: Mapping[str, Any], keys: list[str]) -> dict[str, Any]:
    """Return the named parts of nested parameters as flat `section.key` entries.

    Args:
        params: All parameters, nested.
        keys: Sections or keys, such as `train` or `split.rule`.
    """
    flat: dict[str, Any] = {}
    for key in keys:
        value: Any = params
        for part in key.split("."):
            value = value[part]
        flat |= _flatten(value, key)
    return flat


def _flatten(value: Any, key: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {key: value}
    return {name: entry for part, inner in value.items() for name, entry in _flatten(inner, f"{key}.{part}").items()}


def begin(folder: Path, machine: Mapping[str, Any], study: str) -> dict[str, Any]:
    """Return run.json of a computation that begins, or goes on after it was killed, in `folder`."""
    path = folder / RUN
    earlier = json.loads(path.read_text()) if path.is_file() else {"started": now(), "run_id": None}
    return {**earlier, **provenance(), **machine, "experiment": study}


def end(run: Mapping[str, Any], cost: Spent) -> dict[str, Any]:
    """Return run.json of a computation that is done.

    Args:
        run: From `begin`.
        cost: Of its training or fit; `seconds` beside it count from the first start, and so hold every pause and crash.
    """
    ended = now()
    seconds = (datetime.fromisoformat(ended) - datetime.fromisoformat(run["started"])).total_seconds()
    return {**run, "ended": ended, "seconds": round(seconds, 3), "cost": cost._asdict()}
