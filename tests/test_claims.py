"""One writer an output, and no stage that outlives its DVC: with real processes and real kills."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import ROOT

from pipeline.claims import claim
from pipeline.files import replaced_folder

WRITER = """
import sys, time
from pathlib import Path
from pipeline.files import replaced_folder
name, seconds = sys.argv[1], float(sys.argv[2])
with replaced_folder(Path("data", "raw", "demo")) as folder:
    print("began", flush=True)
    for part in range(10):
        (folder / f"{part}").write_text(name)
        time.sleep(seconds / 10)
"""
# What `dvc repro` does: a process that runs the stage through a shell and waits for it.
DVC = "import subprocess, sys; subprocess.run(sys.argv[1], shell=True)"
STAGE = 'import stages, os, time, sys; print(os.getpid(), flush=True); time.sleep(float(sys.argv[1])); print("done")'


def environment(**more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("DVC_ROOT", "TORCHELASTIC_RUN_ID")}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


def test_two_writers_take_turns_and_the_later_one_stays(in_tmp: Path) -> None:
    command = [sys.executable, "-c", WRITER]
    first = subprocess.Popen([*command, "first", "1"], env=environment(), stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "began\n"
    second = subprocess.run([*command, "second", "0"], env=environment(), capture_output=True, text=True)
    first.communicate()
    assert (first.returncode, second.returncode) == (0, 0), second.stderr
    assert [path.read_text() for path in sorted(Path("data/raw/demo").iterdir())] == ["second"] * 10
    assert not Path("data/raw/demo.partial").exists()


def test_a_claim_ends_with_its_process_and_waiting_is_said(in_tmp: Path, caplog: pytest.LogCaptureFixture) -> None:
    command = [sys.executable, "-c", WRITER, "first", "60"]
    first = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "began\n"
    killer = subprocess.Popen([sys.executable, "-c", f"import time, os; time.sleep(3); os.kill({first.pid}, 9)"])
    with replaced_folder(Path("data", "raw", "demo")) as folder:
        (folder / "only").write_text("mine")
    first.communicate()
    killer.wait()
    assert first.returncode == -signal.SIGKILL
    assert [path.name for path in Path("data/raw/demo").iterdir()] == ["only"]
    assert "another process writes data/raw/demo: waiting until it ends" in caplog.text


def test_claims_of_one_process_nest_and_other_outputs_are_free(in_tmp: Path) -> None:
    with claim("runs/a"), claim("runs/a"), claim("runs/b"), replaced_folder("runs/a") as folder:
        (folder / "x").touch()
    assert Path("runs/a/x").is_file()
    assert [path.name for path in Path("runs").iterdir()] == ["a"]  # a lock beside it would be a part of DVC's outputs


def test_an_output_elsewhere_can_be_claimed(in_tmp: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with claim(tmp_path_factory.mktemp("elsewhere") / "out"):
        assert not Path(".work").exists()


@pytest.mark.parametrize("through", ["", "exec "])
def test_a_stage_ends_with_the_dvc_that_ran_it(in_tmp: Path, through: str) -> None:
    """Whether the shell waits or gives its place to the stage."""
    stage = (
        f"{through}{sys.executable} -c '{STAGE}' 60; true" if not through else f"exec {sys.executable} -c '{STAGE}' 60"
    )
    dvc = subprocess.Popen(
        [sys.executable, "-c", DVC, stage], env=environment(DVC_ROOT=str(in_tmp)), stdout=subprocess.PIPE, text=True
    )
    orphan = psutil.Process(int(dvc.stdout.readline()))
    dvc.kill()
    dvc.wait()
    orphan.wait(timeout=20)
    dvc.stdout.close()


def test_one_of_several_processes_ends_with_its_launcher(in_tmp: Path) -> None:
    """Even where no DVC runs the launcher."""
    stage = f"exec {sys.executable} -c '{STAGE}' 60"
    every = environment(TORCHELASTIC_RUN_ID="x", RANK="0")
    launcher = subprocess.Popen(
        [sys.executable, "-c", DVC, stage], env=every, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    orphan = psutil.Process(int(launcher.stdout.readline()))
    launcher.kill()
    launcher.wait()
    orphan.wait(timeout=20)
    told = launcher.communicate()[1]
    assert told == "error: the launcher that ran this stage is gone, and so is its wish for the result: stopping\n"


def test_a_stage_run_by_hand_is_its_callers_own_affair(in_tmp: Path) -> None:
    shell = subprocess.Popen(
        [sys.executable, "-c", DVC, f"{sys.executable} -c '{STAGE}' 2 > out"], env=environment(), stdout=subprocess.PIPE
    )
    time.sleep(1)
    shell.kill()
    shell.wait()
    shell.stdout.close()
    deadline = time.monotonic() + 30
    while "done" not in Path("out").read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert Path("out").read_text().endswith("done\n")
