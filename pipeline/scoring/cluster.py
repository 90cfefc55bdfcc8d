"""Score millions of images with Ray Data: `agiqa score --engine ray`.

Workers hold the model once each and take parts (see `pipeline.scoring.shards`), whose pixels never leave the worker
that reads them. What a part gives is one Parquet file under a name that only depends on the part, whole or not there.
So a part that is scored twice, as after a worker's death, overwrites itself; a part whose file is there is done; and
the folder in the end holds every row once. That is looked at again before the run says so.
"""

import argparse
import io
import json
import logging
import os
import pickle
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.errors import AgiqaError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from pipeline.scoring.journal import Row
    from pipeline.scoring.scorer import Scorer
    from pipeline.scoring.shards import Part

PER_FILE = 1024  # images; a multiple of every BLOCK, so that passes are those of the plain engine
ABOUT = "_scoring.json"  # in the output's folder; what begins with _ is no data to those who read Parquet folders
TRIES = 3  # of a part that may kill its worker, or whose files cannot be read or written
OBJECTS = 100_000_000  # bytes of memory for what Ray moves between processes here: parts' names and counts
NAME = re.compile(r"part-(\w+)-([0-9a-f]{16})\.parquet")
KINDS = {
    **dict.fromkeys(("score", "low", "high", "raw", "scale_low", "scale_high"), "float64"),
    **dict.fromkeys(("level", "width", "height"), "int64"),
    "unfamiliar": "bool",
}


class ClusterError(AgiqaError):
    """Workers, a cluster or an output that cannot be used."""


class Total(NamedTuple):
    """What parts gave: rows, those without a score, unfamiliar ones, the scores' sum, and parts that were done."""

    images: int = 0
    failed: int = 0
    unfamiliar: int = 0
    score: float = 0.0
    known: int = 0

    def __add__(self, other: "Total") -> "Total":
        return Total(*(own + more for own, more in zip(self, other, strict=True)))


def check_options(options: argparse.Namespace) -> None:
    """Refuse options of one engine for the other.

    Raises:
        ClusterError: Says which, and what would be right.
    """
    own = {"--workers": options.workers, "--gpus-per-worker": options.gpus_per_worker, "--address": options.address,
           "--per-file": options.per_file}  # fmt: skip
    if options.engine == "plain":
        if given := [name for name, value in own.items() if value is not None]:
            raise ClusterError(f"{given[0]} is for many workers: give --engine ray with it")
        return
    if options.quality_map is not None:
        raise ClusterError("--engine ray draws no quality maps: score the images that you want to look at without it")
    if options.out is None:
        raise ClusterError("--engine ray needs --out, a folder or an address: it writes Parquet files there")
    if (isinstance(options.out, Path) and options.out.is_file()) or str(options.out).endswith((".csv", ".json")):
        raise ClusterError(f"--out is {options.out}: --engine ray writes a folder of Parquet files; name a folder")
    if (options.gpus_per_worker or 0) < 0:
        raise ClusterError(f"--gpus-per-worker is {options.gpus_per_worker:g}: 0 or more, such as 1 or 0.5")
    try:
        import pyarrow  # noqa: F401
        import ray.data  # noqa: F401
    except ModuleNotFoundError as error:
        raise ClusterError(
            f"--engine ray needs {error.name}, which comes with the extra 'ray': pip install 'agiqa-study[ray]' "
            "(in a clone: pip install '.[ray]')"
        ) from None


def run(
    options: argparse.Namespace,
    paths: Sequence[str],
    load: "Callable[[argparse.Namespace], Scorer]",
    say: Callable[[str], object],
) -> Total:
    """Score all that is named on workers, and return what it gave, with what was done before.

    Args:
        options: Of `agiqa score`.
        paths: Its arguments.
        load: Returns the scorer of such options.
        say: Tells the user something.

    Raises:
        ClusterError: If there is no cluster, it has no room for the workers, the output belongs to another run, or
            workers fail.
    """
    from tqdm import tqdm

    from pipeline.scoring.gather import left_out
    from pipeline.scoring.output import told
    from pipeline.scoring.shards import find_parts

    parts, found = find_parts(paths, options.per_file or PER_FILE, column=options.column, listed=sys.stdin.buffer)
    for line in left_out(found):
        say(line)
    scorer = load(argparse.Namespace(**vars(options) | {"device": "cpu"}))  # this process computes nothing
    folder = _Folder(str(options.out))
    with folder.alone(), _cluster(options) as nodes:
        workers, cores, gpus = _shares(options, nodes)
        settings = _settings(options, scorer, gpus)
        folder.begin(settings, scorer)
        _say_state(folder, parts, say)
        total, known = Total(), [part.images for part in parts]
        images = None if None in known else sum(known)
        with tqdm(total=images, desc="scoring", unit="image", dynamic_ncols=True) as bar:
            for one in _stream(parts, settings | {"threads": cores}, folder.address, workers, cores, gpus):
                total += one
                bar.update(one.images)
        folder.settle(parts)
    say(told(total.images - total.failed, total.failed, total.unfamiliar, total.score, scorer))
    return total


def _say_state(folder: "_Folder", parts: "Sequence[Part]", say: Callable[[str], object]) -> None:
    wanted = {file_name(part) for part in parts}
    there = folder.names()
    if stale := there - wanted:
        folder.remove(stale)
        say(f"{len(stale):,} files of rows are removed, since their images have changed or are named no more")
    if done := len(there & wanted):
        say(f"going on where a broken run stopped: {done:,} of {len(parts):,} parts are done")


def file_name(part: "Part") -> str:
    """Return the name of the file with a part's rows."""
    return f"part-{part.name}-{part.state}.parquet"


def _settings(options: argparse.Namespace, scorer: "Scorer", gpus: float) -> dict[str, Any]:
    """Return all that a worker needs to score as this process would, but for its threads."""
    from pipeline.data.decoding import MOST_PIXELS

    file = options.backbone_file
    return {
        "checkpoint": str(scorer.path.resolve()),
        "sha256": scorer.sha256,
        "backbone_file": None if file is None else str(file.resolve()),
        "device": "cuda" if gpus else "cpu",
        "batch": options.batch,
        "bfloat16": options.bfloat16,
        "int8": options.int8,
        "level": scorer.level,
        "max_pixels": options.max_pixels or MOST_PIXELS,
    }


class _Folder:
    """The output: a folder here, or at an address, of a Parquet file a part and a note of what scored them."""

    def __init__(self, address: str) -> None:
        from pipeline.scoring.shards import file_system

        self.system, self.path = file_system(address)
        self.is_here = "file" in self.system.protocol
        self.address = f"file://{self.path}" if self.is_here else address

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder against other runs on this machine."""
        if not self.is_here:
            yield
            return
        from filelock import FileLock, Timeout

        Path(self.path).mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(os.path.join(self.path, "_scoring.lock"), blocking=False):
                yield
        except Timeout:
            raise ClusterError(f"{self.path}: another run writes to the same output; wait for it") from None

    def begin(self, settings: dict[str, Any], scorer: "Scorer") -> None:
        """Note what scores here, or hold it to what is noted."""
        from pipeline.scoring.output import about

        told = {key: value for key, value in settings.items() if key not in ("checkpoint", "backbone_file")}
        path = f"{self.path}/{ABOUT}"
        if self.system.exists(path):
            noted = json.loads(self.system.cat_file(path))["settings"]
            if noted != told:
                odd = next(key for key in told if noted.get(key) != told[key])
                raise ClusterError(
                    f"{self.path} holds rows of another run, whose {odd} was {noted.get(odd)} and not {told[odd]}: "
                    "choose another output, or delete that one"
                )
        elif self.names():
            raise ClusterError(f"{self.path} holds Parquet files without {ABOUT}, which says who scored them")
        else:
            write(self.system, path, json.dumps({"checkpoint": about(scorer), "settings": told}, indent=1).encode())

    def names(self) -> set[str]:
        """Return the names of the files of rows that are there."""
        self.system.invalidate_cache()
        if not self.system.exists(self.path):
            return set()
        found = (path.rpartition("/")[2] for path in self.system.ls(self.path, detail=False))
        return {name for name in found if NAME.fullmatch(name)}

    def remove(self, names: set[str]) -> None:
        """Remove files of rows."""
        self.system.rm([f"{self.path}/{name}" for name in sorted(names)])

    def settle(self, parts: "Sequence[Part]") -> None:
        """Hold what is there to the parts: each has its file, and no other file is there."""
        wanted, there = {file_name(part) for part in parts}, self.names()
        if odd := there - wanted:  # a worker of a run that was killed ended late
            self.remove(odd)
        if missing := wanted - there:
            raise ClusterError(f"{self.path} lacks {len(missing):,} files, such as {min(missing)}: start the run again")
        if self.is_here:
            for left in Path(self.path).glob("part-*.partial"):
                left.unlink(missing_ok=True)


def write(system: Any, path: str, content: bytes) -> None:
    """Write a file so that a reader sees all of it or nothing; stores of objects do so by themselves."""
    from pipeline.files import write_atomically

    if "file" in system.protocol:
        write_atomically(path, content)
    else:
        system.pipe_file(path, content)


@contextmanager
def _cluster(options: argparse.Namespace) -> Iterator[list[dict[str, float]]]:
    """Hand out what each machine of the cluster has; a cluster that is started here, of this machine alone, ends."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns that this will be the default
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what matters comes as an exception
    import ray

    address = options.address or os.environ.get("RAY_ADDRESS") or "local"
    here = {"num_cpus": _here(options), "object_store_memory": OBJECTS, "include_dashboard": False}
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    try:
        with _without_stderr():
            own = here if address == "local" else {}
            ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL, **own)
    except Exception as error:  # plain ones among them, as of processes that do not start in time
        raise ClusterError(f"no Ray cluster at {address}: {_line(error)}") from error
    try:
        yield [node["Resources"] for node in ray.nodes() if node["Alive"]]
    finally:
        ray.shutdown()


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Keep what is not Python from writing to standard error: Ray tells there of every setting that it found."""
    sys.stderr.flush()
    with open(os.devnull, "wb") as nowhere:
        kept = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _here(options: argparse.Namespace) -> int:
    """Return how many cores a cluster of this machine has: enough for the workers and threads that were asked for."""
    from pipeline.scoring.lanes import usable_cores

    return max(usable_cores(), (options.workers or 1) * (options.threads or 1))


def _shares(options: argparse.Namespace, nodes: Sequence[dict[str, float]]) -> tuple[int, int, float]:
    """Return how many workers there are, and each one's cores and GPUs.

    Raises:
        ClusterError: If the machines have no room for them.
    """
    gpus = [int(node.get("GPU", 0)) for node in nodes]
    cores = [int(node.get("CPU", 0)) for node in nodes]
    each = options.gpus_per_worker
    if each is None:
        each = 1.0 if any(gpus) and options.device != "cpu" else 0.0
    if options.device == "cuda" and not each:
        raise ClusterError("--device is cuda, and there is no GPU for the workers: use auto or cpu")
    workers = options.workers or (int(sum(gpus) / each) if each else sum(count > 0 for count in cores)) or 1
    for threads in [options.threads] if options.threads else range(max(cores, default=0), 0, -1):
        room = (
            min(core // threads, int(gpu / each)) if each else core // threads
            for core, gpu in zip(cores, gpus, strict=True)
        )
        if sum(room) >= workers:
            return workers, threads, each
    raise ClusterError(
        f"there is no room for {workers} workers: the cluster has {sum(cores)} cores and {sum(gpus)} GPUs on "
        f"{len(nodes)} machines"
    )


def _stream(
    parts: "Sequence[Part]", settings: dict[str, Any], folder: str, workers: int, cores: int, gpus: float
) -> Iterator[Total]:
    """Yield what each part gave, in any order."""
    import ray
    from ray.exceptions import RayError

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # ours counts images
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    rows = ray.data.from_items(
        [{"part": pickle.dumps(part)} for part in parts], override_num_blocks=min(len(parts), 20_000)
    )
    found = rows.map_batches(
        Worker,
        fn_constructor_args=[settings, folder],
        batch_size=1,
        batch_format="numpy",
        num_cpus=cores,
        num_gpus=gpus,
        compute=ray.data.ActorPoolStrategy(size=workers),  # Ray Data starts dead ones again, and their parts, for ever
    )
    try:
        for row in found.iter_rows():
            yield Total(*(row[name] for name in Total._fields))
    except (RayError, ray.data.exceptions.UserCodeException) as error:
        raise ClusterError(f"workers fail; what they wrote is kept for the next run: {_line(error)}") from error


def _line(error: BaseException) -> str:
    """Return the last words of an error, which hold its cause, on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


class Worker:
    """Holds the model, and scores parts; lives in a process of its own."""

    def __init__(self, settings: dict[str, Any], folder: str) -> None:
        """Load the model.

        Args:
            settings: From the process that was started, with the number of threads.
            folder: Address of the output.

        Raises:
            ClusterError: If the checkpoint here is another one.
        """
        os.environ.setdefault("PILLOW_BLOCK_SIZE", "64m")
        from pipeline.scoring.scorer import load_scorer
        from pipeline.scoring.shards import file_system
        from pipeline.startup import quiet_pillow

        quiet_pillow()
        self.settings = settings
        self.scorer = load_scorer(
            settings["checkpoint"],
            device=settings["device"],
            backbone_file=settings["backbone_file"],
            bfloat16=settings["bfloat16"],
            int8=settings["int8"],
            level=settings["level"],
        )
        if self.scorer.sha256 != settings["sha256"]:
            raise ClusterError(f"{settings['checkpoint']} is another file on a worker's machine than where this began")
        self.system, self.folder = file_system(folder)
        self.takes_over = _was_dead()

    def __call__(self, batch: "dict[str, np.ndarray]") -> dict[str, list[Any]]:
        """Score parts whose file is not there yet, and return the totals of all."""
        totals = [self.total(pickle.loads(part)) for part in batch["part"]]
        return {name: [getattr(total, name) for total in totals] for name in Total._fields}

    def total(self, part: "Part") -> Total:
        """Score a part unless it is done, and return what it gave."""
        import pyarrow.parquet as pq

        path = f"{self.folder}/{file_name(part)}"
        try:
            with self.system.open(path) as stream:
                done = pq.read_table(stream, columns=["score", "unfamiliar", "error"])
            return _sum(done, known=1)
        except FileNotFoundError:
            pass
        tried = self.count_try(part) if self.takes_over else None
        for attempt in range(1, TRIES + 1):
            try:
                table = as_table(self.rows(part), self.scorer)
                write(self.system, path, _parquet(table))
                if tried is not None:
                    self.system.rm_file(tried)
                return _sum(table, known=0)
            except OSError as error:  # a disk or a network, which may be back in a moment
                if attempt == TRIES:
                    raise ClusterError(f"{part.shown or part.name}: {error}") from error
                time.sleep(2.0**attempt)
        raise AssertionError

    def count_try(self, part: "Part") -> str:
        """Note that a worker which was dead begins a part: perhaps what killed it is in there. Return the note's path.

        Raises:
            ClusterError: If too many have begun it.
        """
        path = f"{self.folder}/_tried-{part.name}"
        tries = int(self.system.cat_file(path)) if self.system.exists(path) else 0
        if tries == TRIES:
            raise ClusterError(
                f"part {part.name} has ended {TRIES} workers: {part.shown or ', '.join(_ends(part))} may hold an image "
                f"that needs more memory than there is (--max-pixels); to try again, delete {path}"
            )
        write(self.system, path, str(tries + 1).encode())
        return path

    def rows(self, part: "Part") -> "Iterator[Row]":
        """Yield a part's rows."""
        from pipeline.scoring.batch import score_files
        from pipeline.scoring.shards import items_of

        return score_files(
            self.scorer,
            items_of(part),
            batch=self.settings["batch"],
            max_pixels=self.settings["max_pixels"],
            threads=self.settings["threads"],
        )


def _was_dead() -> bool:
    """Return whether this process takes the place of a worker that died."""
    if "ray" not in sys.modules:
        return False
    import ray

    return ray.is_initialized() and ray.get_runtime_context().was_current_actor_reconstructed


def _ends(part: "Part") -> tuple[str, str]:
    """Return the first and the last image of a part of a list."""
    return part.files[0][0], part.files[-1][0]


def as_table(rows: "Iterable[Row]", scorer: "Scorer") -> "pa.Table":
    """Return rows with the columns that the plain engine writes, each of one type whatever is missing."""
    import pyarrow as pa

    from pipeline.scoring.output import as_record

    records = [as_record(row, scorer, with_maps=False) for row in rows]
    names = list(records[0]) if records else []
    types = {"float64": pa.float64(), "int64": pa.int64(), "bool": pa.bool_()}
    schema = pa.schema([(name, types.get(KINDS.get(name), pa.string())) for name in names])
    return pa.Table.from_pylist(records, schema)


def _parquet(table: "pa.Table") -> bytes:
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _sum(table: "pa.Table", known: int) -> Total:
    import pyarrow.compute as pc

    failed = len(table) - table["error"].null_count
    unfamiliar, score = pc.sum(table["unfamiliar"]).as_py() or 0, pc.sum(table["score"]).as_py() or 0.0
    return Total(len(table), failed, int(unfamiliar), score, known)
