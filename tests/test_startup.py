"""A stage: how it starts, how it ends, and what it says of a mistake."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

SCRIPT = """
import atexit, gc, sys
atexit.register(lambda: sys.stdout.write(f"{gc.get_freeze_count() > 0} "))  # runs after what is registered later
import stages
cycle = []
cycle.append(cycle)
del cycle
sys.stdout.write(f"{gc.isenabled()} {gc.get_threshold()[0]} {gc.collect() > 0} ")
"""


def test_a_stage_collects_rarely_still_finds_cycles_and_skips_the_search_at_its_end() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, env=environment, cwd=ROOT
    )
    assert done.stdout.split() == ["True", "20000", "True", "True"]


def test_every_stage_starts_so() -> None:
    done = subprocess.run(
        [sys.executable, "-v", "-m", "stages.code", "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "import 'pipeline.startup'" in done.stderr


@pytest.mark.parametrize(
    ("raised", "lines"),
    [
        (
            "from pipeline.params import ParamsError; raise ParamsError('train.epochs is 0')",
            ["error: train.epochs is 0"],
        ),
        ("open('no/such/file')", ["error: [Errno 2] No such file or directory: 'no/such/file'"]),
        ("raise ValueError('a fault of ours')", None),
        ("raise RuntimeError('a fault of ours')", None),
    ],
)
def test_a_users_mistake_is_one_line_and_ours_a_traceback(raised: str, lines: list[str] | None) -> None:
    done = subprocess.run([sys.executable, "-c", f"import stages; {raised}"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    if lines is None:
        assert done.stderr.startswith("Traceback")
        assert done.stderr.endswith("a fault of ours\n")
    else:
        assert done.stderr.splitlines() == lines


def test_a_stage_tells_a_misspelt_key_in_a_line(tmp_path: Path) -> None:
    text = (ROOT / "params" / "demo.yaml").read_text().replace("learning_rate:", "learning_rat:")
    (tmp_path / "params.yaml").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "stages.split", "--dataset", "demo", "--params", str(tmp_path / "params.yaml")],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 1
    heading, *faults = done.stderr.splitlines()
    assert heading == f"error: {tmp_path / 'params.yaml'}:"
    assert "  unknown key 'train.learning_rat'; did you mean 'learning_rate'?" in faults
    assert "Traceback" not in done.stderr
