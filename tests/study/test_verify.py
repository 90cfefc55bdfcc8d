"""What a study recorded, against bytes that were changed behind DVC's back; DVC's own lock is the oracle."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.errors import AgiqaError
from pipeline.study.verify import verify

DVC_YAML = """
stages:
  make:
    cmd: python make.py
    deps: [make.py]
    outs: [data/raw/demo, data/one.txt]
"""
MAKE = """
from pathlib import Path
folder = Path("data", "raw", "demo", "deep"); folder.mkdir(parents=True)
(folder / "b.png").write_bytes(b"second"); (folder.parent / "a.png").write_bytes(b"first")
(folder.parent / "a b.txt").write_text("third"); Path("data/one.txt").write_text("one")
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder whose dvc.lock DVC itself wrote."""
    place = tmp_path_factory.mktemp("made")
    (place / "dvc.yaml").write_text(DVC_YAML)
    (place / "make.py").write_text(MAKE)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for words in (["init", "--no-scm", "-q"], ["config", "core.analytics", "false"], ["repro", "-q"]):
        subprocess.run([sys.executable, "-m", "dvc", *words], cwd=place, check=True, env=environment)
    return place


@pytest.fixture
def study(made: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "study"
    shutil.copytree(made, copy, ignore=shutil.ignore_patterns(".dvc"))
    return copy


def test_what_dvc_recorded_is_found_again(study: Path) -> None:
    found = [(finding.path, finding.fault) for finding in verify(study)]
    assert sorted(found) == [("data/one.txt", None), ("data/raw/demo", None)]


def test_a_flipped_bit_of_equal_size_and_time_is_seen(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = study / "data" / "raw" / "demo" / "deep" / "b.png"
    status = path.stat()
    path.write_bytes(b"secons")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    faults = {finding.path: finding.fault for finding in verify(study) if finding.fault}
    assert list(faults) == ["data/raw/demo"]
    assert main(["verify", str(study)]) == 1
    told = capsys.readouterr()
    assert told.out.startswith("data/raw/demo has md5 ")
    assert told.out.endswith("(recorded by dvc.lock, make)\n")
    assert told.err.endswith("agiqa: 2 recorded hashes, 1 no longer match\n")


def test_what_is_missing_or_added_is_seen(study: Path) -> None:
    (study / "data" / "one.txt").unlink()
    (study / "data" / "raw" / "demo" / "new").touch()
    faults = {finding.path: finding.fault for finding in verify(study)}
    assert faults["data/one.txt"] == "is missing: `dvc checkout` or `dvc pull` may bring it back"
    assert faults["data/raw/demo"]


def test_a_runs_inputs_and_checkpoint_are_looked_at(study: Path) -> None:
    train = study / "runs" / "demo" / "dcmpln" / "round-1" / "train"
    (train / "checkpoints").mkdir(parents=True)
    (train / "checkpoints" / "epoch-002.safetensors").write_bytes(b"weights")
    for folder, name in (("prepared", "manifest.parquet"), ("splits", "round-1.csv")):
        (study / "data" / folder / "demo").mkdir(parents=True)
        (study / "data" / folder / "demo" / name).write_bytes(name.encode())
    md5s = [  # of md5sum
        subprocess.run(["md5sum", path], capture_output=True, text=True, check=True).stdout.split()[0]
        for path in (
            study / "data/prepared/demo/manifest.parquet", study / "data/splits/demo/round-1.csv",
            train / "checkpoints/epoch-002.safetensors",
        )
    ]  # fmt: skip
    record = {
        "dataset": "demo", "selected_epoch": 2, "inputs": {"manifest_md5": md5s[0], "splits_md5": md5s[1]},
        "checkpoint_md5": md5s[2],
    }  # fmt: skip
    (train / "record.json").write_text(json.dumps(record))
    assert [finding.fault for finding in verify(study)] == [None] * 5
    (train / "checkpoints" / "epoch-002.safetensors").write_bytes(b"Weights")
    (study / "data" / "splits" / "demo" / "round-1.csv").unlink()
    faults = {Path(finding.path).name: finding.fault for finding in verify(study) if finding.fault}
    assert faults.keys() == {"epoch-002.safetensors", "round-1.csv"}
    assert faults["round-1.csv"] == "is missing"


def test_the_code_that_ran_is_looked_at(study: Path) -> None:
    (study / "data" / "code").mkdir()
    (study / "data" / "code" / "make.json").write_text(json.dumps({"make.py": "0" * 32}))
    faults = [finding for finding in verify(study) if finding.fault]
    assert [(finding.path, finding.said_by) for finding in faults] == [("make.py", "data/code/make.json")]


@pytest.mark.parametrize("text", [None, "[]", "a: [", "other: 1"])
def test_without_a_lock_there_is_nothing_to_verify(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "dvc.lock").write_text(text)
    with pytest.raises(AgiqaError, match=r"dvc\.lock (does not exist|is no lock of DVC's)"):
        list(verify(tmp_path))
