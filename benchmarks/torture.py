"""Kill the smoke study again and again, change its params in between, and hold what comes out to an undisturbed run.

    python benchmarks/torture.py --kills 50

A clone of the committed code runs the smoke study and is left alone. In another, `dvc repro` is killed at random
moments: DVC alone, its whole group, or the stage alone, by SIGKILL or SIGTERM, at times with other params in force, so
that orphans of one study could write into the next. Once that study is whole it must hold the same bytes as the one
left alone, apart from what tells when and how long something ran. Then another clone begins anew, until as many kills
as were asked for have hit a stage at work. Exit status 0 if all were equal.

Every clone has a seed of its own, which is printed: `--seed` with it draws the same moments, ways and params again.
What runs at those moments depends on the machine, too.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("data/raw", "data/prepared", "data/splits", "data/features", "data/index", "runs", "reports/study")
# What tells when and how long something ran, and at which commit; and what shows it: page, summary, table of costs.
ABOUT = re.compile(r"(run\.json|timing\.csv|index\.html|summary\.md|cost\.(csv|md|tex))$")
TIMES = {"cost", "seconds", "cpu_seconds", "under_load", "images_per_second", "lock"}
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)
TARGETS = ("dvc", "dvc", "group", "stage")
SOONEST, SLACK = 1.0, 4.0  # seconds: DVC's own start takes as long
# What a kill in the moment of writing leaves torn of DVC's own files, by what DVC then says: a person removes it, as
# docs/troubleshooting.md tells, and nothing is lost with it.
TORN = {"Unable to read RWLock-file": ".dvc/tmp/rwlock", "dvc.lock' ": "dvc.lock"}
MOST_FAILURES = 20  # in a row, of runs that nobody killed
CHANGES = (("learning_rate: ", "0.0031"), ("epochs: ", "3"), ("gallery: ", "2"))


class Killed(NamedTuple):
    """How often `dvc repro` was killed.

    Attributes:
        stages: While a stage was at work.
        between: While DVC did its own work, before, between and behind the stages.
    """

    stages: int = 0
    between: int = 0

    def __add__(self, other: "Killed") -> "Killed":
        """Return the sums."""
        return Killed(self.stages + other.stages, self.between + other.between)


def main(argv: Sequence[str] | None = None) -> None:
    """Torture clones, and exit with 1 if one differs from the one that was left alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="that hit a stage at work (default: 50)")
    parser.add_argument("--seed", type=int, default=None, help="of the first clone's kills; default: a random one")
    arguments = parser.parse_args(argv)
    seed = arguments.seed if arguments.seed is not None else random.randrange(10**6)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:  # an orphan may still write into it
        calm = clone(ROOT, Path(place, "calm"))
        started = time.monotonic()
        subprocess.run(repro(), cwd=calm, env=environment(), check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - started
        say(f"undisturbed: {seconds:.0f} s")
        expected = contents(calm)
        killed, studies, differing = Killed(), 0, 0
        while killed.stages < arguments.kills:
            say(f"study {studies + 1}, seed {seed + studies}")
            tortured = clone(calm, Path(place, f"tortured-{studies}"))  # the same commit, whatever ROOT has by now
            new = torture(tortured, arguments.kills - killed.stages, random.Random(seed + studies), seconds)
            faults = compare(expected, contents(tortured))
            for fault in faults:
                say(fault)
            outcome = f"{len(faults)} files differ" if faults else f"the same bytes in {len(expected)} files"
            killed, studies, differing = killed + new, studies + 1, differing + bool(faults)
            say(f"study {studies}: {new.stages} kills of a stage, {new.between} between stages; {outcome}")
            shutil.rmtree(tortured, ignore_errors=True)
    outcome = f"{differing} of {studies} studies differ" if differing else f"the same bytes in all {studies} studies"
    say(f"{killed.stages} kills of a stage and {killed.between} between stages: {outcome}")
    sys.exit(1 if differing else 0)


def say(text: str) -> None:
    """Print a line that a progress bar does not swallow."""
    tqdm.write(text, file=sys.stderr)


def clone(source: Path, place: Path) -> Path:
    """Return a clone of a repository's committed code that is about to run the smoke study."""
    subprocess.run(["git", "clone", "--quiet", str(source), str(place)], check=True)
    (place / "params.yaml").write_text((place / "params" / "smoke.yaml").read_text())
    return place


def environment() -> dict[str, str]:
    """Return the environment of a `dvc repro` with this Python."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    return {**kept, "PATH": path, "MLFLOW_DISABLE_TELEMETRY": "true", "HF_HUB_OFFLINE": "1"}


def repro() -> list[str]:
    """Return the command of a whole study."""
    return [sys.executable, "-m", "dvc", "repro"]  # --quiet would hide why it failed


def torture(place: Path, kills: int, moments: random.Random, seconds: float) -> Killed:
    """Kill a clone's study until it is whole with its own params, or was hit `kills` times; then let it end.

    Args:
        place: The clone.
        kills: How many kills of a stage at most.
        moments: Draws when, what and how is killed, and which params hold meanwhile.
        seconds: That an undisturbed run takes.

    Returns:
        How often it was killed. Params under which a run ended by itself do not come again: nothing is left to kill.

    Raises:
        RuntimeError: If a run fails by itself so often that the study cannot be going on.
    """
    params, own, said = place / "params.yaml", (place / "params.yaml").read_text(), place.with_suffix(".stderr")
    killed, whole, failures = Killed(), set(), 0
    while killed.stages < kills:
        wanted = changed(own, moments) if moments.random() < 0.4 else own
        # Mostly soon, so that kills are spread over what is left to do, and now and then anywhere in a whole run.
        reach = seconds if moments.random() < 0.15 else 0.15 * seconds + SLACK
        wait, pause = moments.uniform(SOONEST, reach), moments.uniform(0, 1) * (moments.random() < 0.5)
        number, target = moments.choice(SIGNALS), moments.choice(TARGETS)
        if wanted in whole:
            continue
        params.write_text(wanted)
        with said.open("wb") as stream:  # no pipe: an orphan would keep it open
            running = subprocess.Popen(
                repro(), cwd=place, env=environment(), start_new_session=True, stdout=subprocess.DEVNULL, stderr=stream
            )
        try:
            status = running.wait(wait)
        except subprocess.TimeoutExpired:
            stage = running_stage(running.pid)
            how, failures = kill(running, number, target), 0
            killed += Killed(stages=1) if stage else Killed(between=1)
            say(f"{killed.stages}: killed {how} after {wait:.1f} s during {stage or 'the work of DVC itself'}")
        else:
            if status == 0:
                whole.add(wanted)
            else:  # as where what is left of the run before still holds a lock
                failures += 1
                say(f"ended by itself with status {status}: {last_line(said)}")
                remove_torn(place, said.read_text(errors="replace"))
        if own in whole:
            return killed
        if failures == MOST_FAILURES:
            raise RuntimeError(f"{place.name} failed {failures} times in a row without being killed")
        time.sleep(pause)  # else the next one begins while an orphan may still be at work
    params.write_text(own)
    subprocess.run(repro(), cwd=place, env=environment(), check=True, stdout=subprocess.DEVNULL)
    return killed


def changed(text: str, moments: random.Random) -> str:
    """Return params with one value changed."""
    key, value = moments.choice(CHANGES)
    return re.sub(rf"(?m)^(\s+{re.escape(key)})[^\s#]+", rf"\g<1>{value}", text, count=1)


def remove_torn(place: Path, said: str) -> None:
    """Remove the file of DVC's own that a message calls unreadable, and say so."""
    for words, name in TORN.items():
        if words in said and (place / name).is_file():
            (place / name).unlink()
            say(f"removed {name}, which a kill had torn")


def last_line(path: Path) -> str:
    """Return the last line of a text that is not blank."""
    return next((line for line in reversed(path.read_text(errors="replace").splitlines()) if line.strip()), "")


def running_stage(pid: int) -> str | None:
    """Return the command of the stage that runs under a process, or None."""
    try:
        commands = [" ".join(child.cmdline()) for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return None
    found = [command.partition("-m ")[2] for command in commands if "-m stages." in command]
    return found[-1] if found else None


def kill(running: subprocess.Popen, number: signal.Signals, target: str) -> str:
    """Send a signal to DVC, to its group, or to what it runs, wait for DVC's end, and say what was done."""
    children = []
    if target == "stage":
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(running.pid).children(recursive=True)
        target = "stage" if children else "dvc"
    with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
        if target == "group":
            os.killpg(running.pid, number)
        else:
            (children[-1] if children else psutil.Process(running.pid)).send_signal(number)
    try:
        running.wait(60)
    except subprocess.TimeoutExpired:  # a dvc that was asked to end, and waits for its stage
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    return f"{target} by {number.name}"


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
