"""Many workers: the rows of the plain engine, each once, whoever dies meanwhile."""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from PIL import Image

from pipeline.cli import main, make_parser
from pipeline.scoring import cluster
from pipeline.scoring.batch import score_files
from pipeline.scoring.cluster import ClusterError, Worker, _Folder, _shares, as_table, file_name
from pipeline.scoring.gather import gather
from pipeline.scoring.journal import Row
from pipeline.scoring.output import as_record
from pipeline.scoring.scorer import Scorer
from pipeline.scoring.shards import find_parts


@pytest.fixture
def photos(in_tmp: Path) -> Path:
    """Return a folder of 40 images, every ninth of which is none."""
    Path("photos").mkdir()
    for k in range(40):
        pixels = np.random.default_rng(k).integers(0, 256, (40 + k, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"photos/{k:03d}.png")
    for k in range(0, 40, 9):
        Path(f"photos/{k:03d}.png").write_bytes(b"nothing")
    return Path("photos")


@pytest.fixture
def settings(scorer: Scorer) -> dict:
    return {
        "checkpoint": str(scorer.path), "sha256": scorer.sha256, "backbone_file": None, "device": "cpu", "batch": None,
        "bfloat16": False, "int8": False, "level": 90, "max_pixels": 10**6, "threads": 2,
    }  # fmt: skip


def options(*words: str) -> argparse.Namespace:
    return make_parser("score").parse_args(["score", "photos", *words])


def records(scorer: Scorer, rows: list[Row]) -> list[dict]:
    return [as_record(row, scorer, with_maps=False) for row in rows]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--workers", "2"], "--workers is for many workers: give --engine ray with it"),
        (["--address", "auto", "--out", "x.csv"], "--address is for many workers: give --engine ray with it"),
        (["--engine", "ray"], "--engine ray needs --out, a folder or an address: it writes Parquet files there"),
        (["--engine", "ray", "--out", "a.csv"], "--out is a.csv: --engine ray writes a folder of Parquet files"),
        (["--engine", "ray", "--out", "o", "--quality-map", "m"], "--engine ray draws no quality maps"),
        (["--out", "s3://bucket/x.csv"], "--out is s3://bucket/x.csv, an address: only --engine ray writes to one"),
        (["--engine", "ray", "--out", "o", "--gpus-per-worker", "-1"], "--gpus-per-worker is -1: 0 or more"),
        (["--engine", "ray", "--out", "nowhere://x"], "nowhere://x is an address that cannot be read here"),
    ],
)
def test_a_mistake_is_a_line(
    photos: Path, tiny_checkpoint: Path, words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "ray" in words:
        pytest.importorskip("ray", reason="the extra `ray` is not installed")
    assert main(["score", "photos", "--checkpoint", str(tiny_checkpoint), *words]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"agiqa: error: {expected}")


def test_the_extra_that_is_missing_is_named(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["score", "photos", "--engine", "ray", "--out", "o"]) == 2
    assert capsys.readouterr().err == (
        "agiqa: error: --engine ray needs ray, which comes with the extra 'ray': pip install 'agiqa-study[ray]' "
        "(in a clone: pip install '.[ray]')\n"
    )


@pytest.mark.parametrize(
    ("words", "nodes", "expected"),
    [
        ("", [{"CPU": 2}], (1, 2, 0)),
        ("--workers 2", [{"CPU": 2}], (2, 1, 0)),
        ("--workers 3", [{"CPU": 8}, {"CPU": 5}], (3, 4, 0)),  # two here and one there
        ("--threads 3 --workers 3", [{"CPU": 8}, {"CPU": 5}], (3, 3, 0)),
        ("", [{"CPU": 4}, {"CPU": 16}, {"memory": 1}], (2, 8, 0)),  # both on the larger one
        ("", [{"CPU": 16, "GPU": 2}, {"CPU": 16, "GPU": 2}], (4, 8, 1)),
        ("--gpus-per-worker 0.5", [{"CPU": 16, "GPU": 2}], (4, 4, 0.5)),
        ("--device cpu", [{"CPU": 16, "GPU": 2}], (1, 16, 0)),
    ],
)
def test_workers_share_what_there_is(words: str, nodes: list[dict], expected: tuple) -> None:
    assert _shares(options(*words.split()), nodes) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--workers 3", "there is no room for 3 workers: the cluster has 2 cores and 0 GPUs on 1 machines"),
        ("--gpus-per-worker 1", "there is no room for 1 workers: the cluster has 2 cores and 0 GPUs on 1 machines"),
        ("--device cuda", "--device is cuda, and there is no GPU for the workers: use auto or cpu"),
    ],
)
def test_too_many_workers_are_refused(words: str, expected: str) -> None:
    with pytest.raises(ClusterError, match=re.escape(expected)):
        _shares(options(*words.split()), [{"CPU": 2}])


def test_a_worker_writes_what_the_plain_engine_does_and_nothing_twice(
    photos: Path, scorer: Scorer, settings: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, (parts, _) = Worker(settings, str(Path("out").resolve())), find_parts(["photos"], 32)
    totals = [worker.total(part) for part in parts]
    expected = records(scorer, list(score_files(scorer, gather(["photos"]).items, threads=2)))
    files = [Path("out", file_name(part)) for part in parts]
    assert [record for file in files for record in pq.read_table(file).to_pylist()] == expected
    assert [(total.images, total.failed, total.known) for total in totals] == [(32, 4, 0), (8, 1, 0)]
    assert sum(total.score for total in totals) == pytest.approx(sum(record["score"] or 0 for record in expected))

    monkeypatch.setattr(Scorer, "open", lambda *args, **kinds: pytest.fail("was scored again"))
    assert [worker.total(part) for part in parts] == [total._replace(known=1) for total in totals]


def test_a_storage_that_fails_for_a_moment_is_asked_again(
    photos: Path, settings: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, (parts, _) = Worker(settings, str(Path("out").resolve())), find_parts(["photos"], 64)
    fails, original = [OSError("reset"), OSError("reset")], cluster.write
    monkeypatch.setattr(time, "sleep", lambda seconds: None)

    def write(*args: object) -> None:
        if fails:
            raise fails.pop()
        original(*args)

    monkeypatch.setattr(cluster, "write", write)
    assert worker.total(parts[0]).images == 40
    fails += [OSError("gone")] * 3
    Path("out", file_name(parts[0])).unlink()
    with pytest.raises(ClusterError, match="0000000: gone"):
        worker.total(parts[0])


def test_a_part_that_kills_its_workers_ends_the_run(
    photos: Path, settings: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_was_dead", lambda: True)
    worker, (parts, _) = Worker(settings, str(Path("out").resolve())), find_parts(["photos"], 64)
    with monkeypatch.context() as patched:
        patched.setattr(Worker, "rows", lambda *args: 1 / 0)  # as far as notes go, a death
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                worker.total(parts[0])
        expected = (
            r"part 0000000 has ended 3 workers: photos/000\.png, photos/039\.png may hold an image .* delete .*/out/_"
        )
        with pytest.raises(ClusterError, match=expected):
            worker.total(parts[0])
    Path("out/_tried-0000000").write_text("2")
    assert worker.total(parts[0]).images == 40
    assert [path.name for path in Path("out").iterdir()] == [file_name(parts[0])]


def test_columns_have_one_type_whatever_is_missing(scorer: Scorer) -> None:
    rows = [Row("a.png", 1.0, 0.5, 3, 4, None, None, 0.5, 1.5, True), Row("b.png", error="is empty")]
    good, bad = (as_table([row], scorer) for row in rows)
    assert good.schema == bad.schema
    assert good.to_pylist() + bad.to_pylist() == records(scorer, rows)


def test_a_worker_wants_the_checkpoint_of_the_run(settings: dict, in_tmp: Path) -> None:
    with pytest.raises(ClusterError, match="is another file on a worker's machine than where this began"):
        Worker(settings | {"sha256": "0" * 64}, str(in_tmp))


def test_an_output_belongs_to_one_run(photos: Path, scorer: Scorer, settings: dict) -> None:
    folder = _Folder("out")
    with folder.alone(), pytest.raises(ClusterError, match="another run writes to the same output"), folder.alone():
        pass
    told = {key: value for key, value in settings.items() if key != "threads"}
    folder.begin(told, scorer)
    folder.begin(told | {"checkpoint": "moved"}, scorer)
    assert json.loads(Path("out/_scoring.json").read_text())["checkpoint"]["sha256"] == scorer.sha256
    with pytest.raises(ClusterError, match=r"out holds rows of another run, whose level was 90 and not 80: choose"):
        folder.begin(told | {"level": 80}, scorer)

    parts, _ = find_parts(["photos"], 32)
    Path("out", file_name(parts[0])).write_bytes(b"")
    Path("out/part-0000007-0123456789abcdef.parquet").write_bytes(b"")
    Path("out/mine.parquet").write_bytes(b"")
    said: list[str] = []
    cluster._say_state(folder, parts, said.append)
    assert said == [
        "1 files of rows are removed, since their images have changed or are named no more",
        "going on where a broken run stopped: 1 of 2 parts are done",
    ]
    with pytest.raises(ClusterError, match=f"lacks 1 files, such as {file_name(parts[1])}: start the run again"):
        folder.settle(parts)
    Path("out", file_name(parts[1])).write_bytes(b"")
    folder.settle(parts)
    assert Path("out/mine.parquet").is_file()  # nobody's part: not ours to remove
    Path("out/_scoring.json").unlink()
    with pytest.raises(ClusterError, match=r"holds Parquet files without _scoring\.json"):
        folder.begin(told, scorer)


@pytest.mark.slow
def test_no_row_is_lost_or_doubled_when_workers_and_runs_are_killed(
    photos: Path, tiny_checkpoint: Path, scorer: Scorer
) -> None:
    """One worker of two is killed amid the work, then the whole run, which is started again."""
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    for k in range(40, 400):
        Path(f"photos/{k:03d}.png").write_bytes(Path(f"photos/{k % 40:03d}.png").read_bytes())
    command = [
        sys.executable, "-m", "pipeline.cli", "score", "photos", "--checkpoint", str(tiny_checkpoint),
        "--engine", "ray", "--out", "out", "--workers", "2", "--threads", "1", "--per-file", "32", "--batch", "1",
    ]  # fmt: skip
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": paths, "RAY_USAGE_STATS_ENABLED": "0"}

    def start() -> subprocess.Popen:
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)

    def until(run: subprocess.Popen, found: Callable[[], object]) -> object:
        while run.poll() is None:
            if value := found():
                return value
            time.sleep(0.02)
        raise AssertionError(f"the run ended early: {run.stderr.read()}")

    def files() -> list[Path]:
        return sorted(Path("out").glob("part-*.parquet"))

    with start() as run:
        until(run, lambda: len(files()) >= 2)
        workers = [process for process in psutil.Process(run.pid).children(recursive=True) if is_worker(process)]
        assert len(workers) == 2
        workers[0].kill()
        until(run, lambda: len(files()) >= 6)
        family = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
        os.kill(run.pid, signal.SIGKILL)
        psutil.wait_procs(family, timeout=60)
        run.stderr.close()
    early = {file: file.stat().st_mtime_ns for file in files()}
    assert 6 <= len(early) < 13

    with start() as run:
        until(run, lambda: len(files()) > len(early))
        for process in psutil.Process(run.pid).children(recursive=True):
            if is_worker(process):
                process.kill()
                break
        said = run.communicate()[1]
    assert run.returncode == 1, said  # some images have no score
    assert f"going on where a broken run stopped: {len(early)} of 13 parts are done" in said
    assert {file: file.stat().st_mtime_ns for file in early} == early
    rows = [record for file in files() for record in pq.read_table(file).to_pylist()]
    expected = records(scorer, list(score_files(scorer, gather(["photos"]).items, batch=1, threads=1)))
    assert len(rows) == 400
    assert [row["image"] for row in rows] == [row["image"] for row in expected]
    assert [row["error"] for row in rows] == [row["error"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert (row["score"], row["raw"]) == pytest.approx((other["score"], other["raw"]), abs=1e-6)
    failed = sum(row["error"] is not None for row in rows)
    assert f"{400 - failed} images scored, mean " in said
    assert f"{failed} could not be: the rows with an error say why" in said


def is_worker(process: psutil.Process) -> bool:
    """Return whether a process of Ray holds a model."""
    try:
        return "MapWorker" in " ".join(process.cmdline())
    except psutil.Error:
        return False
