"""Kill the smoke study again and again, change its params in between, and hold what comes out to an undisturbed run.

    python benchmarks/torture.py --kills 50

Two clones of the committed code run the smoke study. One is left alone; in the other, `dvc repro` is killed at random
moments: DVC alone, its whole group, or the stage alone, by SIGKILL or SIGTERM, at times with other params in force, so
that orphans of one study could write into the next. At the end both must hold the same bytes, apart from what tells
when and how long something ran. Exit status 0 if they do.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("data/raw", "data/prepared", "data/splits", "data/features", "data/index", "runs", "reports/study")
# What tells when and how long something ran, and at which commit; and what shows it: page, summary, table of costs.
ABOUT = re.compile(r"(run\.json|timing\.csv|index\.html|summary\.md|cost\.(csv|md|tex))$")
TIMES = {"cost", "seconds", "cpu_seconds", "under_load", "images_per_second", "lock"}
CHANGES = (("learning_rate: ", "0.0031"), ("epochs: ", "2"), ("gallery: ", "2"))


def main(argv: Sequence[str] | None = None) -> None:
    """Torture a clone, and exit with 1 if it differs from the one that was left alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=None, help="of the moments; default: another one each time")
    arguments = parser.parse_args(argv)
    seed = arguments.seed if arguments.seed is not None else random.randrange(10**6)
    say(f"seed {seed}")
    with tempfile.TemporaryDirectory() as place:
        calm, tortured = clone(Path(place, "calm")), clone(Path(place, "tortured"))
        started = time.monotonic()
        subprocess.run(repro(), cwd=calm, env=environment(), check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - started
        say(f"undisturbed: {seconds:.0f} s")
        killed = torture(tortured, arguments.kills, random.Random(seed), seconds)
        faults = compare(contents(calm), contents(tortured))
    for fault in faults:
        say(fault)
    outcome = f"{len(faults)} files differ" if faults else "the same bytes"
    say(f"{killed} kills in {arguments.kills} tries: {outcome}")
    sys.exit(1 if faults else 0)


def say(text: str) -> None:
    """Print a line that a progress bar does not swallow."""
    tqdm.write(text, file=sys.stderr)


def clone(place: Path) -> Path:
    """Return a clone of the committed code that is about to run the smoke study."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(place)], check=True)
    (place / "params.yaml").write_text((place / "params" / "smoke.yaml").read_text())
    return place


def environment() -> dict[str, str]:
    """Return the environment of a `dvc repro` with this Python."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    return {**kept, "PATH": path, "MLFLOW_DISABLE_TELEMETRY": "true", "HF_HUB_OFFLINE": "1"}


def repro() -> list[str]:
    """Return the command of a whole study."""
    return [sys.executable, "-m", "dvc", "repro", "--quiet"]


def torture(place: Path, kills: int, moments: random.Random, seconds: float) -> int:
    """Try to kill a clone's study `kills` times, then let it end with its own params; return how often it was killed.

    Args:
        place: The clone.
        kills: How often.
        moments: Draws when, what and how is killed, and which params hold meanwhile.
        seconds: That an undisturbed run takes.
    """
    params, own, killed = place / "params.yaml", (place / "params.yaml").read_text(), 0
    for _ in tqdm(range(kills), "kills", unit="kill", mininterval=10):
        params.write_text(changed(own, moments) if moments.random() < 0.4 else own)
        running = subprocess.Popen(
            repro(), cwd=place, env=environment(), start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        # Mostly soon, so that kills are spread over what is left to do, and now and then anywhere in a whole run.
        reach = seconds if moments.random() < 0.15 else 0.15 * seconds + 4
        try:
            running.wait(moments.uniform(1, reach))
        except subprocess.TimeoutExpired:
            stage = running_stage(running.pid)
            how = kill(running, moments)
            killed += 1
            say(f"killed {how} during {stage}")
        if moments.random() < 0.5:
            time.sleep(moments.uniform(0, 1))  # else the next one begins while an orphan may still be at work
    params.write_text(own)
    subprocess.run(repro(), cwd=place, env=environment(), check=True, stdout=subprocess.DEVNULL)
    return killed


def changed(text: str, moments: random.Random) -> str:
    """Return params with one value changed."""
    key, value = moments.choice(CHANGES)
    return re.sub(rf"(?m)^(\s+{re.escape(key)})[^\s#]+", rf"\g<1>{value}", text, count=1)


def running_stage(pid: int) -> str:
    """Return the command of the stage that runs under a process, or what else it does."""
    try:
        commands = [" ".join(child.cmdline()) for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return "its end"
    found = [command.partition("-m ")[2] for command in commands if "-m stages." in command]
    return found[-1] if found else "DVC's own work"


def kill(running: subprocess.Popen, moments: random.Random) -> str:
    """Kill DVC, its group, or what it runs, and return what was done in words."""
    number = moments.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
    target = moments.choice(["dvc", "dvc", "group", "stage"])
    children = []
    if target == "stage":
        try:
            children = psutil.Process(running.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            children = []
    if target == "group":
        os.killpg(running.pid, number)
    for process in children[-1:] if target == "stage" else [psutil.Process(running.pid)] if target == "dvc" else []:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
    try:
        running.wait(60)
    except subprocess.TimeoutExpired:  # a dvc that was asked to end, and waits for its stage
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    return f"{target} by {signal.Signals(number).name}"


def contents(place: Path) -> dict[str, str]:
    """Return a hash of every file of a study, without what tells of times."""
    found = {}
    for folder in FOLDERS:
        for path in sorted((place / folder).rglob("*")):
            name = path.relative_to(place).as_posix()
            if path.is_file() and not ABOUT.search(name):
                data = path.read_bytes()
                if path.suffix == ".json":
                    data = json.dumps(without_times(json.loads(data)), sort_keys=True).encode()
                found[name] = hashlib.sha256(data).hexdigest()
    return found


def without_times(value: Any) -> Any:
    """Return JSON without the keys that tell of times."""
    if isinstance(value, dict):
        return {key: without_times(inner) for key, inner in value.items() if key not in TIMES}
    return [without_times(inner) for inner in value] if isinstance(value, list) else value


def compare(calm: dict[str, str], tortured: dict[str, str]) -> list[str]:
    """Return a line for every file that one has alone, or that differs."""
    lines = [f"missing: {name}" for name in sorted(calm.keys() - tortured.keys())]
    lines += [f"left over: {name}" for name in sorted(tortured.keys() - calm.keys())]
    return lines + [
        f"differs: {name}" for name in sorted(calm.keys() & tortured.keys()) if calm[name] != tortured[name]
    ]


if __name__ == "__main__":
    main()
