"""The torture itself, on a study of sleeping stages that takes a second: does it count, begin anew and find faults?"""

import importlib.util
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location("torture", ROOT / "benchmarks/torture.py")
torture = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(torture)

REPRO = """
import pathlib, subprocess, sys
for number in range(4):
    if not pathlib.Path(f"runs/{number}.txt").exists():
        subprocess.run([sys.executable, "-m", "stages.work", str(number)], check=True)
"""
# A sound stage writes at its end and at once; a careless one leaves half a result to whoever kills it.
STAGES = {
    "sound": "time.sleep(0.2); place.write_text('whole')",
    "careless": "place.write_text('half'); time.sleep(0.2); place.write_text('whole')",
}


@pytest.fixture
def stage(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    kind = request.param

    def clone(source: Path, place: Path) -> Path:
        for name in ("runs", "stages"):
            (place / name).mkdir(parents=True)
        (place / "params.yaml").write_text("train:\n  epochs: 2\n")
        (place / "repro.py").write_text(REPRO)
        work = f"import pathlib, sys, time\nplace = pathlib.Path(f'runs/{{sys.argv[1]}}.txt')\n{STAGES[kind]}\n"
        (place / "stages/work.py").write_text(work)
        return place

    monkeypatch.setattr(torture, "clone", clone)
    monkeypatch.setattr(torture, "repro", lambda: [sys.executable, "repro.py"])
    monkeypatch.setattr(torture, "SOONEST", 0.1)
    monkeypatch.setattr(torture, "SLACK", 0.8)
    monkeypatch.setattr(torture, "TARGETS", ("group",))  # DVC's claims, which hold orphans off, are not here
    return kind


def tortured(kills: int, seed: int, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Return the exit status of so many kills, and what was said."""
    with pytest.raises(SystemExit) as status:
        torture.main(["--kills", str(kills), "--seed", str(seed)])
    return status.value.code, capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sound"], indirect=True)
def test_it_begins_anew_until_every_kill_has_hit(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = tortured(6, 5, capsys)
    assert status == 0
    studies = re.findall(r"study (\d+), seed (\d+)", said)
    assert len(studies) > 1, said
    assert [int(seed) - int(number) for number, seed in studies] == [4] * len(studies)
    assert len(re.findall(r"\d: killed group by SIG\w+ after \d\.\d s during stages\.work \d", said)) == 6
    ended = r"6 kills of a stage and \d+ between stages: the same bytes in all (\d+) studies"
    assert re.search(ended, said).group(1) == str(len(studies))


@pytest.mark.parametrize("stage", ["careless"], indirect=True)
def test_what_a_kill_leaves_torn_is_found(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = tortured(2, 1, capsys)
    assert status == 1
    assert re.search(r"differs: runs/\d\.txt", said)
    assert re.search(r"2 kills of a stage and \d+ between stages: \d of \d studies differ", said)


def test_a_study_that_fails_by_itself_stops_the_torture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "params.yaml").write_text("train:\n  epochs: 2\n")
    failing = [sys.executable, "-c", "raise SystemExit('no lock to be had')"]
    monkeypatch.setattr(torture, "repro", lambda: failing)
    monkeypatch.setattr(torture, "MOST_FAILURES", 2)
    with pytest.raises(RuntimeError, match="failed 2 times in a row without being killed"):
        torture.torture(tmp_path, 1, random.Random(0), 1.0)
    assert torture.last_line(tmp_path.with_suffix(".stderr")) == "no lock to be had"


def test_a_kill_aimed_at_a_stage_hits_dvc_where_none_runs() -> None:
    running = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"], start_new_session=True)
    time.sleep(0.1)
    assert torture.running_stage(running.pid) is None
    assert torture.kill(running, torture.signal.SIGKILL, "stage") == "dvc by SIGKILL"
    assert running.returncode == -9


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (".dvc/tmp/rwlock", "ERROR: Unable to read RWLock-file '.dvc/tmp/rwlock'. JSON structure is corrupted: line 1"),
        ("dvc.lock", "'./dvc.lock' validation failed.\n\nrequired key not provided, in schema"),
        ("dvc.lock", "'./dvc.lock' is invalid.\n\nwhile parsing a flow sequence"),
    ],
)
def test_what_dvc_calls_torn_is_removed_and_nothing_else(
    tmp_path: Path, name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / ".dvc/tmp/rwlock", tmp_path / "dvc.lock", tmp_path / "params.yaml"]
    for path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{")
    torture.remove_torn(tmp_path, "ERROR: failed to reproduce 'train': failed to run")
    assert all(path.is_file() for path in files)
    torture.remove_torn(tmp_path, said)
    assert [path for path in files if not path.is_file()] == [tmp_path / name]
    assert f"removed {name}, which a kill had torn" in capsys.readouterr().err
