"""Results as DVC's run cache holds them: of which inputs they are, who has them, and in what two of them differ.

Each finished stage leaves a small YAML file there, `runs/<hash of its inputs>/<hash of inputs and outputs>`, in the
format of dvc.lock; `dvc push --run-cache` copies it to a remote. Two files of one input are two results of the same
computation, of which `dvc repro` would take the newest without a word.

The only room that knows the inside of DVC, whose version is pinned.
"""

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.errors import AgiqaError
from pipeline.layout import FEATURE_TIMES, METRICS, RUN, TIMING

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

HERE = "this folder"
NAME = re.compile("[0-9a-f]{64}")
AT_ONCE = 16  # files read of a remote; most of the time goes to waiting for its answers


class Result(NamedTuple):
    """What a stage made of certain inputs.

    Attributes:
        name: Hash of inputs and outputs, as DVC names the file.
        locked: cmd, deps, params and outs, as in dvc.lock.
        sources: Who has it: names of remotes, or HERE.
    """

    name: str
    locked: dict[str, Any]
    sources: tuple[str, ...]

    @property
    def outputs(self) -> dict[str, str]:
        """Return the hash of every output by path."""
        return {out["path"]: out["md5"] for out in self.locked["outs"]}


@contextmanager
def opened(sources: Sequence[str]) -> Iterator[tuple["Repo", dict[str, str]]]:
    """Open the working folder, the root of a repository of DVC's, for one writer, and name its sources as remotes.

    Args:
        sources: Names of its remotes, or folders of other clones; none: its default remote.

    Yields:
        The repository, locked, and what each remote is called here, by DVC's name. A clone's cache serves as a remote.

    Raises:
        AgiqaError: If a source is neither, none is given and there is no default, or DVC fails.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with _quiet(), Repo(".") as repo:
            known, default = sorted(repo.config["remote"]), repo.config["core"].get("remote")
        names = list(dict.fromkeys(sources or ([default] if default else [])))
        if not names:
            raise AgiqaError("no remote to gather from: name one (`dvc remote add -d store URL`), or clones' folders")
        called = {name if name in known else f"agiqa-clone-{number}": name for number, name in enumerate(names)}
        clones = {remote: {"url": _cache_of(name, known)} for remote, name in called.items() if remote != name}
        whole = Repo(".", config={"remote": clones}, _wait_for_lock=True)
        with _quiet(), whole as repo, repo.lock, repo.scm_context(quiet=True):
            yield repo, called
    except DvcException as error:
        raise AgiqaError(f"DVC: {' '.join(str(error).split())}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep DVC from telling of every step on standard output; what fails is raised, or asked for."""
    loggers = [logging.getLogger(name) for name in ("dvc", "dvc_data", "dvc_objects")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _cache_of(clone: str, remotes: Sequence[str]) -> str:
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    try:
        with Repo(clone) as repo:
            return repo.cache.legacy.path
    except NotDvcRepoError:
        named = f"the remotes are {', '.join(remotes)}" if remotes else "there is no remote"
        raise AgiqaError(f"{clone} is neither a remote nor the folder of a clone; {named}") from None


def read_results(repo: "Repo", remotes: Iterable[str]) -> dict[str, list[Result]]:
    """Return all results of this folder's run cache and the remotes', by the hash of their inputs.

    Raises:
        AgiqaError: If a remote has no run cache, as one over plain HTTP.
    """
    found: dict[tuple[str, str], Result] = {}
    for source in (HERE, *remotes):
        odb = repo.cache.legacy if source == HERE else _remote(repo, source)
        for key, name, locked in _entries(odb):
            earlier = found.get((key, name))
            found[key, name] = Result(name, locked, (*(earlier.sources if earlier else ()), source))
    by_key: dict[str, list[Result]] = {}
    for (key, _), result in sorted(found.items(), key=lambda item: item[0]):
        by_key.setdefault(key, []).append(result)
    return by_key


def _remote(repo: "Repo", name: str) -> Any:
    from dvc.config import RemoteConfigError

    try:
        odb = repo.cloud.get_remote_odb(name, "gather", hash_name="md5-dos2unix")
    except RemoteConfigError as error:
        raise AgiqaError(f"remote {name}: {error}") from None
    if odb.fs.protocol in ("http", "https"):
        raise AgiqaError(f"remote {name}: DVC keeps no run cache over HTTP; use a folder, SSH, S3 or the like")
    return odb


def _entries(odb: Any) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield inputs' hash, name and content of every entry of a cache or remote; half-written ones are passed over."""
    from dvc.schema import COMPILED_LOCK_FILE_STAGE_SCHEMA
    from dvc.utils.serialize import YAMLFileCorruptedError, parse_yaml
    from tqdm import tqdm
    from voluptuous import Invalid

    fs, runs = odb.fs, odb.fs.join(odb.path, "runs")
    if not fs.exists(runs):
        return
    paths = sorted(path for path in fs.find(runs) if NAME.fullmatch(fs.name(path)))  # not what is just being copied

    def read(path: str) -> bytes:
        with suppress(FileNotFoundError), fs.open(path, "rb") as stream:
            return stream.read()
        return b""

    with ThreadPoolExecutor(AT_ONCE) as pool:
        texts = tqdm(pool.map(read, paths), "run cache", len(paths), unit="result", delay=1, dynamic_ncols=True)
        for path, text in zip(paths, texts, strict=True):
            try:
                locked = COMPILED_LOCK_FILE_STAGE_SCHEMA(parse_yaml(text.decode(), path))
            except (YAMLFileCorruptedError, Invalid, UnicodeDecodeError):  # a worker is writing it, or was killed
                continue
            yield fs.name(fs.parent(path)), fs.name(path), locked


def inputs_of(stage: "PipelineStage") -> tuple[str, Result | None]:
    """Take up a stage's inputs as they are now.

    Returns:
        Their hash, and the result that dvc.lock holds of them, if any.

    Raises:
        DvcException: If an input does not exist.
    """
    from dvc.stage.cache import _get_cache_hash, _get_stage_hash
    from dvc.stage.serialize import to_single_stage_lockfile

    whole = not stage.changed_stage() and all(item.hash_info for item in (*stage.deps, *stage.outs))
    locked = to_single_stage_lockfile(stage) if whole else None
    known = _get_stage_hash(stage) if whole else None
    stage.save_deps()
    key = _get_stage_hash(stage)
    if locked is None or key != known:
        return key, None
    return key, Result(_get_cache_hash(to_single_stage_lockfile(stage)), locked, (HERE,))


def fetched(repo: "Repo", result: Result) -> bool:
    """Bring a result's files into the cache from whoever has them, and return whether they are all there."""
    from dvc.exceptions import DvcException

    cached = repo.stage_cache._create_stage(dict(result.locked))
    for source in result.sources:
        if cached.outs_cached():
            break
        if source == HERE:
            continue
        try:
            for objects in cached.get_used_objs(remote=source).values():
                repo.cloud.pull(objects, remote=source)
        except DvcException:  # such as a worker that was killed while it pushed: the entry is there, its files are not
            continue
    return cached.outs_cached()


def restore(repo: "Repo", stage: "PipelineStage", result: Result) -> None:
    """Put a result whose files are in the cache into the workspace, dvc.lock and the run cache. Runs nothing.

    Raises:
        DvcException: If that would overwrite files that the cache does not have.
    """
    repo.stage_cache._create_stage(dict(result.locked), wdir=stage.wdir).checkout()
    stage.save()
    stage.commit()
    stage.dump(update_pipeline=False)


def differences(repo: "Repo", one: Result, other: Result) -> list[str]:
    """Return which files of two results of the same inputs differ, apart from what only tells when and how long.

    Args:
        repo: Whose cache has the files of both: see `fetched`.
        one: A result.
        other: Another one.
    """
    files, others = _files(repo, one), _files(repo, other)
    return [
        path
        for path in sorted(files.keys() | others.keys())
        if files.get(path) != others.get(path) and not _tells_times(repo, path, files.get(path), others.get(path))
    ]


def _files(repo: "Repo", result: Result) -> dict[str, str]:
    """Return the md5 of every file of a result, by path."""
    found = {}
    for path, md5 in result.outputs.items():
        if md5.endswith(".dir"):
            found |= {f"{path}/{file['relpath']}": file["md5"] for file in _json(repo, md5)}
        else:
            found[path] = md5
    return found


def _json(repo: "Repo", md5: str) -> Any:
    return json.loads(Path(repo.cache.local.oid_to_path(md5)).read_bytes())


def _tells_times(repo: "Repo", path: str, one: str | None, other: str | None) -> bool:
    name = Path(path).name
    if one is None or other is None:
        return False
    if name in (RUN, TIMING) or Path(path).is_relative_to(FEATURE_TIMES):
        return True
    return name == METRICS and _without_cost(_json(repo, one)) == _without_cost(_json(repo, other))


def _without_cost(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metrics.items() if key != "cost"}


def changed_inputs(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Return the names of the inputs in which a result differs from what is wanted; both as in dvc.lock."""
    names = []
    for kind in (wanted, found):
        deps = {dep["path"]: dep.get("md5") for dep in kind.get("deps", [])}
        params = {f"{file}:{key}": value for file, of in kind.get("params", {}).items() for key, value in of.items()}
        names.append(deps | params)
    one, other = names
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
