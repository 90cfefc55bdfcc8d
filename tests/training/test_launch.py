"""The launcher with real processes: how they end, what is told, and a training that is killed and goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
from made_parts import write_params, write_prepared

from pipeline.tracking.store import open_store
from pipeline.training.launch import processes_to_start
from pipeline.training.ranks import RankError

ROOT = Path(__file__).resolve().parent.parent.parent
TRAIN = ["-m", "stages.train", "--dataset", "demo", "--variant", "dcmpln", "--round", "0"]
# How far a history of two processes may be from one's, in losses and correlations of rank: stated in docs/scale.md.
TOLERANCE = 1e-4


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return the environment of a process that neither DVC nor a launcher runs."""
    for name in ("DVC_ROOT", "TORCHELASTIC_RUN_ID", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("processes", "device", "gpus", "expected"),
    [(1, "auto", 0, 1), (3, "auto", 0, 3), (3, "cpu", 2, 3), (2, "cuda", 2, 2), (1, "auto", 4, 1),
     ("auto", "auto", 0, 1), ("auto", "auto", 4, 4), ("auto", "cpu", 4, 1)],
)  # fmt: skip
def test_as_many_start_as_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, processes: object, device: str, gpus: int, expected: int
) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert processes_to_start(processes, device) == expected
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")  # torchrun has started them
    assert processes_to_start(processes, device) == 1


def test_more_processes_than_gpus_are_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RankError, match=r"^3 processes were asked for, and torch sees 2 GPUs here: give train\.proc"):
        processes_to_start(3, "auto")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "told"),
    [
        ("mistake", "error: lower train.learning_rate\n"),
        (
            "killed",
            "error: process 2 of 2 of this training was ended by SIGKILL (out of memory?), and the others with it: run "
            "the same command again, and it goes on after the last finished epoch\n",
        ),
        ("hang", "error: another of the 2 processes of this training has not answered for 5 s: it hangs (Timed out"),
        ("bug", "Traceback (most recent call last):\n"),
    ],
)
def test_one_process_that_ends_ends_all_and_is_told_once(environment: dict[str, str], job: str, told: str) -> None:
    words = [sys.executable, "-c", "import stages, made_ranks; made_ranks.main()", "launched", job]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(told)
    if job == "bug":
        assert done.stderr.count("Traceback") == 1
        assert done.stderr.endswith("ZeroDivisionError: ours\n")
    else:
        assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.slow
def test_no_process_outlives_its_launcher(environment: dict[str, str]) -> None:
    words = [sys.executable, "-m", "made_ranks", "launched", "wait"]
    launcher = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    launcher.stdout.readline()  # both are there
    orphans = psutil.Process(launcher.pid).children()
    assert len(orphans) == 2
    launcher.kill()
    launcher.wait()
    assert psutil.wait_procs(orphans, timeout=60)[1] == []
    launcher.stdout.close()


def wait_for(pattern: str, folder: Path, process: subprocess.Popen) -> Path:
    """Return the first path that a process makes, as soon as it is there."""
    deadline = time.monotonic() + 300
    while not (found := next(folder.glob(pattern), None)):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


@pytest.mark.slow
def test_a_killed_process_ends_the_stage_and_the_next_run_goes_on(
    environment: dict[str, str], tmp_path: Path, tiny_config: Path
) -> None:
    """Of three trainings, one by one process, one by two, and one by two of which the second is killed.

    The third goes on under torchrun. Its bits are the second's; both are the first's within the tolerance.
    """
    for name, processes in (("alone", 1), ("whole", 2), ("broken", 2)):
        (tmp_path / name).mkdir()
        write_prepared(tmp_path / name)
        changes = {"train__processes": processes, "train__batch_size": 5, "train__ranking_weight": 0.2}
        write_params(tmp_path / name, tiny_config, backbone__seed=1, **changes)
    for name in ("alone", "whole"):
        words = [sys.executable, *TRAIN]
        done = subprocess.run(
            words, cwd=tmp_path / name, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("demo/dcmpln/round-0: ") <= 4  # one bar and not two
    broken = tmp_path / "broken"
    process = subprocess.Popen([sys.executable, *TRAIN], cwd=broken, env=environment, stderr=subprocess.PIPE, text=True)
    wait_for(".work/train/*/checkpoints/epoch-001.safetensors", broken, process)
    ranks = {child.environ()["RANK"]: child for child in psutil.Process(process.pid).children()}
    ranks["1"].send_signal(signal.SIGKILL)
    told = process.communicate(timeout=120)[1]
    assert process.returncode == 1
    assert told.splitlines()[-1].startswith("error: process 2 of 2 of this training was ended by SIGKILL")
    assert "Traceback" not in told
    assert not ranks["0"].is_running()
    assert not (broken / "runs/demo/dcmpln/round-0/train").exists()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, *TRAIN], cwd=broken, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    alone, whole, resumed = (
        tmp_path / name / "runs/demo/dcmpln/round-0/train" for name in ("alone", "whole", "broken")
    )
    for path in ("history.csv", "record.json", *(f"checkpoints/epoch-00{epoch}.safetensors" for epoch in (1, 2, 3))):
        assert (whole / path).read_bytes() == (resumed / path).read_bytes(), path
    one, two = (pd.read_csv(folder / "history.csv") for folder in (alone, whole))
    pd.testing.assert_frame_equal(one, two, rtol=0, atol=TOLERANCE)
    runs = [json.loads((folder / "run.json").read_text()) for folder in (alone, whole, resumed)]
    assert [run["processes"] for run in runs] == [1, 2, 2]
    records = [json.loads((folder / "record.json").read_text()) for folder in (alone, whole)]
    assert [record["params"]["train.processes"] for record in records] == [1, 2]
    for key in ("srcc", "plcc", "krcc"):
        assert records[0]["validation"][key] == pytest.approx(records[1]["validation"][key], abs=TOLERANCE)
    with open_store(broken) as client:
        found = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert [run.info.status for run in found if run.info.run_name == "demo/dcmpln/round-0"] == ["FINISHED"]
