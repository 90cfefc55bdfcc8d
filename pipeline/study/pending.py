"""What `dvc repro` would do now: which stages it would run, and which of them DVC's cache would give back.

DVC's own dry run looks at each stage as things stand, and so misses what follows from a stage that runs. Here its
stages are asked in its order, with the hashes that what comes before them will have: those that its run cache knows,
and those of the two small stages (`code` and `index`) whose output can be told without running them. Where a hash can
not be known before, the stage counts as one that runs: it may yet turn out to have nothing new to do.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.code import code_of
from pipeline.errors import AgiqaError
from pipeline.files import json_bytes
from pipeline.layout import CODE, INDEX, PREPARED, SPLITS
from pipeline.params import Params

if TYPE_CHECKING:
    from dvc.dependency import Dependency
    from dvc.repo import Repo
    from dvc.stage import Stage
    from dvc_data.hashfile.hash_info import HashInfo


@dataclass(frozen=True)
class Step:
    """One stage that is not up to date.

    Attributes:
        stage: As dvc.yaml calls it, such as train.
        item: What of, such as (demo, dcmpln, 0); empty for a stage that stands once.
        cached: Whether DVC's cache holds its results.
    """

    stage: str
    item: tuple[str, ...]
    cached: bool


def pending(params: Params) -> list[Step]:
    """Return the stages of this folder's study that are not up to date, in DVC's order.

    Args:
        params: Of the study; params.yaml as DVC reads it.

    Raises:
        AgiqaError: If the folder is no repository of DVC's, or another DVC works in it.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(os.curdir) as repo, repo.lock:
            return list(_steps(repo, params))
    except DvcException as error:
        raise AgiqaError(f"DVC cannot say what it would run: {' '.join(str(error).split())}") from None


def _steps(repo: "Repo", params: Params) -> Iterator[Step]:
    from dvc.repo.reproduce import get_active_graph, plan_repro

    coming = _Coming({})
    for stage in plan_repro(get_active_graph(repo.index.graph)):
        name, _, item = stage.addressing.partition("@")
        given = {dep.def_path: coming.hash_of(dep.def_path) for dep in stage.deps}
        # A hash that is known is compared with the one of DVC's lock; what nobody changes is asked for its state.
        changed = [dep for dep in stage.deps if _differs(dep, given[dep.def_path])]
        if not changed and not stage.changed_stage() and not stage.changed_outs():
            continue
        if name == "code":
            coming.tell(_code_hashes())
            yield Step(name, (), cached=False)
            continue
        outs = _cached_outs(repo, stage, given, bool(changed))
        coming.tell({out.def_path: None for out in stage.outs} if outs is None else outs)
        if name == "index" and outs is None:
            coming.tell(_round_indices(coming, params))
        yield Step(name, tuple(item.split("-")) if item else (), cached=outs is not None)


UNTOUCHED = object()


def _differs(dep: "Dependency", coming: Any) -> bool:
    return bool(dep.status()) if coming is UNTOUCHED else coming is None or coming != dep.hash_info


class _Coming:
    """The hashes that paths will have when what is pending has run; None where nobody can know."""

    def __init__(self, known: "dict[str, Any]") -> None:
        self._known = known

    def tell(self, hashes: "dict[str, Any]") -> None:
        self._known |= hashes

    def hash_of(self, path: str) -> Any:
        """Return a path's hash to come, None if it cannot be known, or UNTOUCHED."""
        if path in self._known:
            return _hash(self._known[path])
        for above, found in self._known.items():
            if path.startswith(f"{above}/"):
                tree = found.get_obj() if hasattr(found, "get_obj") else None
                inner = tree.get(tuple(path[len(above) + 1 :].split("/"))) if tree is not None else None
                return inner[1] if inner else None
        return None if self.touches(path) else UNTOUCHED

    def touches(self, folder: str) -> bool:
        """Tell whether anything in a folder may become another."""
        return any(path.startswith(f"{folder}/") for path in self._known)


def _hash(found: Any) -> "HashInfo | None":
    return found.hash_info if hasattr(found, "hash_info") else found


def _md5(content: bytes) -> "HashInfo":
    from dvc_data.hashfile.hash_info import HashInfo

    return HashInfo("md5", hashlib.md5(content, usedforsecurity=False).hexdigest())


def _code_hashes() -> "dict[str, HashInfo]":
    """Return what the stage `code` will write, by path."""
    scripts = sorted(Path("stages").glob("[!_]*.py"))
    return {(CODE / f"{script.stem}.json").as_posix(): _md5(json_bytes(code_of(script))) for script in scripts}


def _round_indices(coming: _Coming, params: Params) -> "dict[str, HashInfo]":
    """Return the files of the stage `index` that will stay as they are where it runs for features, which they omit."""
    if any(coming.touches(folder.as_posix()) for folder in (PREPARED, SPLITS)):
        return {}
    found = {}
    for number in params.study.rounds:
        path = INDEX / f"round-{number}.json"
        if path.is_file():
            said = json.loads(path.read_text(encoding="utf-8"))
            named = (set(said["prepared"]), said["evaluate"])
            if named == (set(params.study.datasets), params.evaluate.model_dump()):
                found[path.as_posix()] = _md5(path.read_bytes())
    return found


def _cached_outs(repo: "Repo", stage: "Stage", given: dict[str, Any], changed: bool) -> "dict[str, Any] | None":
    """Return a stage's outputs by path as DVC's cache holds them for these dependencies, or None if it does not."""
    from dvc.stage.serialize import to_single_stage_lockfile
    from dvc_data.hashfile.meta import Meta

    if any(found is None for found in given.values()) or any(out.persist for out in stage.outs):
        return None
    if not changed and not stage.changed_stage() and all(out.hash_info for out in stage.outs):
        entry = to_single_stage_lockfile(stage)  # up to date but for outputs that are not in their place
    else:
        for dep in stage.deps:
            if given[dep.def_path] is UNTOUCHED:
                dep.save()
            else:
                dep.hash_info, dep.meta = given[dep.def_path], Meta()  # which holds the earlier hash once more
        entry = _run_cache_entry(repo, to_single_stage_lockfile(stage))
    if entry is None:
        return None
    held = repo.stage_cache._create_stage(entry, wdir=stage.wdir)
    return {out.def_path: out for out in held.outs} if held.outs_cached() else None


def _run_cache_entry(repo: "Repo", asked: dict[str, Any]) -> dict[str, Any] | None:
    """Return the newest run that DVC remembers of a command with these dependencies; as `StageCache._load`.

    That one would hash dependencies anew, which are not in their place yet.
    """
    from dvc.stage.cache import _get_cache_hash

    key = _get_cache_hash(asked, key=True)
    folder = Path(repo.stage_cache._get_cache_dir(key))
    entries = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime) if folder.is_dir() else []
    return repo.stage_cache._load_cache(key, entries[-1].name) if entries else None
