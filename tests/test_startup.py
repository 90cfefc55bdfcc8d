import os
import subprocess
import sys
from pathlib import Path

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
