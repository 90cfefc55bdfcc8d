"""The Dockerfile without a builder: it is linted, and its steps run in an empty folder that stands for the root.

What would change this machine (`apt-get`, `useradd`) is linted alone. No index of torch builds is asked:
torch comes from where that of this environment did.
"""

import copy
import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
import zipfile
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import ROOT
from made_server import await_listening, free_port

DOCKERFILE = ROOT / "Dockerfile"
SYSTEM = ("apt-get", "useradd")  # not run here
OTHERS = ("UV_TORCH_BACKEND", "UV_NO_CACHE", "UV_LINK_MODE", "UV_COMPILE_BYTECODE")
FOLDERS = re.compile(r"(?<![\w.])/(opt|src|data|study|tmp)\b")


class Step(NamedTuple):
    """An instruction of a Dockerfile and what stands behind it, lines joined."""

    word: str
    text: str


def steps() -> list[Step]:
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line.strip() and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [Step(*line.split(maxsplit=1)) for line in joined]


def stages() -> dict[str, list[Step]]:
    """Return the steps of every stage by its name, the first of them FROM."""
    found: dict[str, list[Step]] = {}
    for step in steps():
        if step.word == "FROM":
            found[step.text.split(" AS ")[1]] = []
        if found:
            list(found.values())[-1].append(step)
    return found


STAGES = stages()


def test_hadolint_finds_nothing() -> None:
    program = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([program, DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_nothing_runs_as_root_and_the_default_scores() -> None:
    for target in ("study", "serve", "score"):
        assert [step.text for step in STAGES[target] if step.word == "USER"] == ["1000"]
    assert list(STAGES)[-1] == "score"  # what `docker build .` builds


def test_versions_are_those_of_the_constraints() -> None:
    installs = [step.text for step in steps() if step.word == "RUN" and "uv pip install" in step.text]
    assert len(installs) == 4
    assert all(" -c constraints.txt " in text for text in installs)


def test_the_context_is_what_is_copied() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    sent = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        source
        for step in steps()
        if step.word == "COPY" and not step.text.startswith("--from")
        for source in step.text.split()[:-1]
    }
    assert copied == sent
    assert all((ROOT / name).exists() for name in sent)


# The steps, taken


def context(place: Path) -> Path:
    """Copy what a builder would be sent."""
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] not in "#*!"]
    ignored += [line.removeprefix("**/") for line in (ROOT / ".dockerignore").read_text().splitlines() if "**/" in line]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line.startswith("!"):
            for path in [ROOT / line[1:], *(ROOT / line[1:]).rglob("*")]:
                name = path.relative_to(ROOT).as_posix()
                parts = path.relative_to(ROOT).parts
                if path.is_file() and not any(
                    fnmatch.fnmatch(name, pattern) or any(fnmatch.fnmatch(part, pattern) for part in parts)
                    for pattern in ignored
                ):
                    (place / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, place / name)
    return place


@dataclass
class State:
    """What a stage hands on to one that begins with it."""

    environment: dict[str, str]
    work: Path
    arguments: dict[str, str] = field(default_factory=dict)
    start: list[str] = field(default_factory=list)


class Machine:
    """Takes a Dockerfile's steps in a folder that stands for the root of all its stages."""

    def __init__(self, root: Path, sent: Path) -> None:
        self.root, self.sent = root, sent
        self.skipped: list[str] = []
        self.done: dict[str, State] = {}
        subprocess.run([sys.executable, "-m", "venv", root / "system"], check=True)  # the base image's Python
        same = root / "same.txt"
        same.write_text(f"torch=={version('torch')}\n")
        cache = [sys.executable, "-m", "uv", "cache", "dir"]
        self.ours = {
            "UV_FIND_LINKS": os.environ.get("UV_FIND_LINKS", os.environ.get("PIP_FIND_LINKS", "")),
            "UV_CONSTRAINT": str(same),
            "UV_CACHE_DIR": subprocess.run(cache, capture_output=True, text=True, check=True).stdout.strip(),
        }

    def here(self, text: str) -> str:
        return FOLDERS.sub(lambda found: f"{self.root}{found[0]}", text)

    def image(self) -> State:
        """Return how the base image begins."""
        kept = ("PIP_FIND_LINKS", "PIP_CERT", "SSL_CERT_FILE", "OPENBLAS_CORETYPE")
        environment = {name: os.environ[name] for name in kept if name in os.environ}
        return State({**environment, "PATH": f"{self.root}/system/bin:/usr/bin:/bin"}, self.root)

    def build(self, stage: str) -> State:
        """Take a stage's steps, those of the stages that it needs before them, each once."""
        if stage in self.done:
            return self.done[stage]
        first, *rest = STAGES[stage]
        parent = first.text.split()[0]
        state = copy.deepcopy(self.build(parent)) if parent in STAGES else self.image()
        state.arguments = {}  # which do not outlive their stage
        for step in rest:
            self.take(step, state)
        self.done[stage] = state
        return state

    def take(self, step: Step, state: State) -> None:
        match step.word:
            case "ARG":
                name, _, value = step.text.partition("=")
                state.arguments[name] = value
            case "ENV":
                for pair in shlex.split(step.text):
                    name, _, value = pair.partition("=")
                    known = {**state.environment, **state.arguments}
                    value = re.sub(r"\$\{?(\w+)\}?", lambda found, known=known: known[found[1]], self.here(value))
                    state.environment[name] = value
            case "WORKDIR":
                state.work = Path(self.here(step.text))
                state.work.mkdir(parents=True, exist_ok=True)
            case "COPY" if given := re.fullmatch(r"--from=(\S+) (\S+) (\S+)", step.text):
                self.build(given[1])
                assert given[2] == given[3]  # a virtual environment works nowhere but where it was made
                assert Path(self.here(given[2])).exists()
            case "COPY":
                *sources, target = step.text.split()
                for source in sources:
                    path = self.sent / source
                    place = state.work / target / (source if target.endswith("/") else "")
                    (shutil.copytree if path.is_dir() else shutil.copyfile)(path, place)
            case "RUN" if step.text.split()[0] in SYSTEM:
                self.skipped.append(step.text.split()[0])
                assert subprocess.run(["sh", "-n", "-c", step.text], check=False).returncode == 0
            case "RUN":
                self.run(["sh", "-e", "-c", self.here(step.text)], state)
            case "ENTRYPOINT" | "CMD":
                state.start += json.loads(step.text)
            case _:
                assert step.word in ("USER", "EXPOSE", "HEALTHCHECK"), step

    def run(self, command: list[str], state: State) -> str:
        settings = self.settings(state)
        done = subprocess.run(command, cwd=state.work, env=settings, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def settings(self, state: State) -> dict[str, str]:
        """Return a step's variables, but those that would fetch torch anew, or take minutes to compile it."""
        given = {**state.environment, **state.arguments, **self.ours}
        return {name: value for name, value in given.items() if name not in OTHERS}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "root" / "tmp").mkdir(parents=True)
    return Machine(tmp_path / "root", context(tmp_path / "sent"))


@pytest.fixture(scope="module")
def photo(agiqa_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "one.jpg"
    with zipfile.ZipFile(agiqa_data / "agiqa3k" / "AGIQA-3K.zip") as archive:
        path.write_bytes(archive.read(next(name for name in archive.namelist() if name.endswith(".jpg"))))
    return path


@pytest.mark.slow
def test_the_default_scores_the_folder_that_is_mounted(machine: Machine, photo: Path) -> None:
    state = machine.build("score")
    assert machine.skipped == ["useradd"]
    shutil.copy(photo, state.work)
    rows = machine.run(state.start, state).splitlines()
    assert len(rows) == 2
    assert rows[1].startswith("./one.jpg,")
    assert rows[1].endswith(",")  # no error


@pytest.mark.slow
def test_serve_answers(machine: Machine) -> None:
    state = machine.build("serve")
    port = free_port()
    start = [*state.start, "--port", str(port)]
    start[start.index("0.0.0.0")] = "127.0.0.1"  # nothing here is opened to others
    with subprocess.Popen(start, cwd=state.work, env=machine.settings(state)) as process:
        try:
            await_listening(process, port)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=60) as answer:
                assert answer.status == 200
        finally:
            process.terminate()


@pytest.mark.slow
def test_study_runs_a_clone_that_is_mounted(machine: Machine) -> None:
    state = machine.build("study")
    assert machine.skipped == ["useradd", "apt-get"]
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(state.work)], check=True)
    assert state.start == ["dvc", "repro"]
    machine.run([*state.start, "code"], state)  # its first stage
    assert (state.work / "data" / "code" / "train.json").is_file()
    assert "report" in machine.run(["dvc", "stage", "list", "--name-only"], state).split()
