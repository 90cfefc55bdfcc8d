"""Many workers, one study, as docs/scale.md tells it: the real stages, separate clones, a remote, MLflow over HTTP."""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import made_cells
import pytest
from made_parts import write_params
from made_server import free_port

from pipeline.params import load_params
from pipeline.study.assembly import assemble
from pipeline.study.cells import cells
from pipeline.tracking import entries, store
from pipeline.training.fit import STATE_FILE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning:dvc"),  # DVC's own
]
ROOT = Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location("torture", ROOT / "benchmarks/torture.py")
torture = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(torture)
WORKERS, PATIENCE = 3, 1500  # seconds, on a machine that others load
CELLS = {"demo/dcmpln/round-0", "demo/clip_agiqa/round-0", "demo/handcrafted/round-0"}


@contextmanager
def served(command: list[str], path: str, port: int, folder: Path) -> Iterator[str]:
    """Run a server until the block ends; hand out its address once it answers."""
    environment = made_cells.environment(folder) | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("wb") as log:
        running = subprocess.Popen(
            [sys.executable, "-m", *command], env=environment, stdout=log, stderr=log, start_new_session=True
        )
    local, until = urllib.request.build_opener(urllib.request.ProxyHandler({})), time.monotonic() + 180
    try:
        while True:
            try:
                local.open(f"http://127.0.0.1:{port}{path}", timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < until
                assert running.poll() is None, (folder / "server.log").read_text()
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(running.pid, signal.SIGTERM)
        running.wait(60)


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[str]:
    """Return the address of an MLflow server with an empty database."""
    folder, port = tmp_path / "server", free_port()
    folder.mkdir()
    command = ["mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        f"{folder}/artifacts",
    ]
    with served(command, "/health", port, folder) as address:
        yield address


@pytest.fixture
def study(tmp_path: Path, tiny_config: Path) -> Path:
    """Return a committed study of three cells whose shared stages have run and are pushed."""
    place = tmp_path / "study"
    made_cells.git(tmp_path, "clone", "--quiet", str(ROOT), str(place))
    shutil.copy(tiny_config, place / "backbones/tiny-vit.json")
    changes = {"variants": ["dcmpln", "clip_agiqa"], "baselines": ["handcrafted"], "rounds": [0]}
    settings = {f"study__{key}": value for key, value in (changes | {"audit": []}).items()}
    write_params(place, Path("backbones/tiny-vit.json"), **settings, train__epochs=4)
    made_cells.dvc(place, "remote", "add", "--quiet", "-d", "store", str(tmp_path / "store"))
    made_cells.dvc(place, "repro", "--quiet", "index")
    made_cells.dvc(place, "push", "--quiet", "--run-cache")
    made_cells.git(place, "add", "-A")
    made_cells.git(place, "commit", "--quiet", "--no-verify", "-m", "the data, prepared")
    return place


def worker(study: Path, number: int, server: str) -> subprocess.Popen:
    """Start a task of the Slurm array, without Slurm."""
    environment = made_cells.environment(study) | patient(server)
    environment |= {
        "SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_TASK_COUNT": str(WORKERS), "SLURM_SUBMIT_DIR": str(study),
    }  # fmt: skip
    with (study.parent / f"worker-{number}.log").open("ab") as log:
        return subprocess.Popen(
            ["bash", "examples/slurm/array.sh"], cwd=study, env=environment, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip


def patient(server: str) -> dict[str, str]:
    """Return the environment of a server that may be slow, as beside other work on this machine."""
    return {
        "MLFLOW_TRACKING_URI": server, "MLFLOW_HTTP_REQUEST_TIMEOUT": "60", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
        "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip


def gather(place: Path, server: str) -> subprocess.CompletedProcess:
    command, environment = [sys.executable, "-m", "pipeline.cli", "gather"], made_cells.environment(place)
    return subprocess.run(
        command, cwd=place, env=environment | patient(server), capture_output=True, text=True, check=False
    )


def shown(server: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the study's runs in MLflow by name, parent included: their ids; and their statuses."""
    client = store.client_of(server)
    found = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    names = [run.info.run_name for run in found]
    assert len(set(names)) == len(names), names
    assert {run.data.tags[entries.KIND] for run in found if entries.KIND in run.data.tags} == {"study"}
    for run in found:
        assert run.info.run_name == "tiny" or "test/srcc" in run.data.metrics, run.info.run_name
    return (
        {run.info.run_name: run.info.run_id for run in found},
        {run.info.run_name: run.info.status for run in found},
    )


def folder(place: Path) -> dict[str, bytes]:
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def test_three_workers_of_whom_one_is_killed_make_the_study_of_one_machine(
    study: Path, mlflow_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in patient(mlflow_server).items():
        monkeypatch.setenv(key, value)
    alone = made_cells.clone(study, "alone")  # trains all of it, with a store of its own, while the workers are at work
    with (study.parent / "alone.log").open("wb") as log:
        trained = subprocess.Popen(
            [sys.executable, "-m", "dvc", "repro"],
            cwd=alone, env=made_cells.environment(alone), stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    workers = [worker(study, number, mlflow_server) for number in range(WORKERS)]
    clones, until = study.parent / "study-clones", time.monotonic() + PATIENCE
    while not list(clones.glob(f"0/.work/train/*/{STATE_FILE}")):  # an epoch of the first cell is over
        assert time.monotonic() < until
        assert workers[0].poll() is None, (study.parent / "worker-0.log").read_text()
        time.sleep(0.05)
    os.killpg(workers[0].pid, signal.SIGKILL)
    assert [running.wait(PATIENCE) for running in workers] == [-signal.SIGKILL, 0, 0]

    gathered = made_cells.clone(study, "gathered")
    early = gather(gathered, mlflow_server)
    assert early.returncode == 1
    assert "missing      train@demo-dcmpln-0 (demo/dcmpln/round-0): nobody has made it\n" in early.stdout
    assert "lacks: demo/dcmpln/round-0\n" in early.stderr

    again = worker(study, 0, mlflow_server)
    assert again.wait(PATIENCE) == 0, (study.parent / "worker-0.log").read_text()
    done = gather(gathered, mlflow_server)
    assert (done.returncode, done.stdout.count("missing")) == (0, 0), done
    ids, statuses = shown(mlflow_server)
    assert ids.keys() == CELLS | {"tiny"}
    assert set(statuses.values()) == {"FINISHED"}
    assert not list(gathered.glob(".work/train/*"))  # where a training would leave its state

    before, report = (gathered / "dvc.lock").read_bytes(), folder(gathered / "reports")
    done = gather(gathered, mlflow_server)
    assert (done.returncode, "0 stages restored" in done.stderr) == (0, True), done
    assert (gathered / "dvc.lock").read_bytes() == before
    assert folder(gathered / "reports") == report
    assert shown(mlflow_server) == (ids, statuses)

    assert trained.wait(PATIENCE) == 0, (study.parent / "alone.log").read_text()
    assert list(alone.glob(".work/train/*"))
    assert torture.contents(alone) == torture.contents(gathered)
    # What is left out there tells when and how long something ran. Given those times, too, every byte is the same.
    for name in ("runs", "data"):
        for source in (gathered / name).rglob("*"):
            if torture.ABOUT.search(source.name) or source.suffix == ".json":
                shutil.copy(source, alone / source.relative_to(gathered))
    shutil.copy(gathered / "dvc.lock", alone)
    command = [sys.executable, "-m", "stages.report", "--out", "reports/again"]
    subprocess.run(command, cwd=alone, env=made_cells.environment(alone), check=True)
    assert folder(alone / "reports/again") == folder(gathered / "reports/study")


def lines_of(place: Path) -> list[str]:
    """Return the stages of each cell of a study, as `agiqa cells --share 0/1` prints them."""
    return [" ".join(cell.stages) for cell in cells(load_params(place / "params.yaml").study)]


ONCE = {"code": 1, "download": 1, "preprocess": 1, "split": 1, "features": 1, "index": 1, "train": 2, "evaluate": 3,
        "baseline": 1, "report": 1, "mirror": 1}  # fmt: skip


def test_cells_run_side_by_side_in_one_folder(tmp_path: Path, tiny_config: Path) -> None:
    study = made_cells.make_origin(tmp_path, tiny_config)
    command = ["xargs", "-P", "3", "-L", "1", sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item"]
    text = "".join(f"{line}\n" for line in lines_of(study))
    subprocess.run(command, input=text, text=True, cwd=study, env=made_cells.environment(study), check=True)
    made_cells.dvc(study, "repro", "--quiet")
    assert Counter(line.split()[0] for line in made_cells.journal(study)) == ONCE


def test_cells_run_in_the_queue_and_come_together_by_plain_dvc(tmp_path: Path, tiny_config: Path) -> None:
    study = made_cells.make_origin(tmp_path, tiny_config)
    for number, line in enumerate(lines_of(study)):
        made_cells.dvc(study, "exp", "run", "--quiet", "--queue", "--name", f"cell-{number}", *line.split())
    try:
        made_cells.dvc(study, "queue", "start", "--jobs", "2")
        until, command = time.monotonic() + PATIENCE, [sys.executable, "-m", "dvc", "queue", "status"]
        while re.search("Queued|Running", status := subprocess.run(
            command, cwd=study, env=made_cells.environment(study), capture_output=True, text=True, check=True
        ).stdout):  # fmt: skip
            assert time.monotonic() < until, status
            time.sleep(2)
        assert status.count("Success") == 3, status
    finally:
        made_cells.dvc(study, "queue", "stop", "--kill")
    assert not (study / "runs").exists()
    made_cells.dvc(study, "repro", "--quiet")
    assert Counter(line.split()[0] for line in made_cells.journal(study)) == ONCE


def test_the_remote_may_be_s3(tmp_path: Path, tiny_config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dvc_s3", reason="the extra `s3` is not installed")
    pytest.importorskip("moto", reason="the server of S3, of the extra `dev-s3`, is not installed")
    (tmp_path / "server").mkdir()
    for key, value in {
        "AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
    }.items():  # fmt: skip
        monkeypatch.setenv(key, value)
    port = free_port()
    with served(
        ["moto.server", "-H", "127.0.0.1", "-p", str(port)], "/moto-api/", port, tmp_path / "server"
    ) as address:
        bucket = urllib.request.Request(f"{address}/studies", method="PUT")
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(bucket, timeout=60).close()
        origin = made_cells.make_origin(tmp_path, tiny_config, "s3://studies/toy", endpointurl=address)
        one, two, place = (made_cells.clone(origin, name) for name in ("one", "two", "whole"))
        made_cells.work(one, "evaluate@demo-dcmpln-0")
        monkeypatch.chdir(place)
        assert assemble().missing.keys() == {"train@demo-dcmpln-1", "baseline@demo-handcrafted"}
        made_cells.work(two, "evaluate@demo-dcmpln-1", "baseline@demo-handcrafted")
        made = assemble()
        assert made.complete
        assert set(made.restored.values()) == {"store"}
        assert sorted(line.split()[0] for line in made_cells.journal(two)) == [
            "baseline",
            "evaluate",
            "evaluate",
            "train",
        ]
        assert made_cells.journal(place) == []
        for worker_place, run in ((one, "round-0"), (two, "round-1")):
            name = f"runs/demo/dcmpln/{run}/train/run.json"
            assert (place / name).read_bytes() == (worker_place / name).read_bytes()
        again = assemble()
        assert (again.restored, len(again.kept)) == ({}, 11)
