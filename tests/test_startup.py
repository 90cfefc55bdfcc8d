"""A stage: how it starts, how it ends, and what it says of a mistake."""

import os
import pty
import subprocess
import sys
import termios
from contextlib import suppress
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


BAR = "import stages, time; from tqdm import tqdm; [time.sleep(0.02) for _ in tqdm(range(60))]"


@pytest.mark.slow
def test_bars_draw_rarely_in_logs_and_often_on_a_terminal() -> None:
    """Of 1.2 s a log gets the first line and the last, a terminal at least one between them."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("TQDM_")}

    def drawn(**options: str) -> int:
        asked = {**bare, **options}
        done = subprocess.run([sys.executable, "-c", BAR], cwd=ROOT, env=asked, stderr=subprocess.PIPE, check=True)
        return done.stderr.count(b"\r")

    assert drawn() == 2
    assert drawn(TQDM_MININTERVAL="0.1") > 4  # a user's own wish
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    subprocess.run([sys.executable, "-c", BAR], cwd=ROOT, env=bare, stderr=theirs, check=True)
    os.close(theirs)
    found = b""
    with suppress(OSError), open(ours, "rb", buffering=0) as terminal:  # its end is an error
        while part := terminal.read(1 << 16):
            found += part
    assert found.count(b"\r") > 3


def test_every_bar_leaves_its_pace_to_the_start() -> None:
    """An argument of the call would win."""
    for path in [*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "stages").glob("*.py")]:
        assert "interval=" not in path.read_text(), path


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
