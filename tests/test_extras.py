"""The core install scores, every other package belongs to an extra, and what is missing is said in one line.

A clean environment is made twice: with the core alone, and with the extra `serve`.
"""

import ast
import csv
import io
import json
import os
import re
import subprocess
import sys
import tomllib
import urllib.request
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from conftest import ROOT
from made_server import await_listening, free_port

from pipeline import extras
from pipeline.cli import main
from pipeline.extras import advice, extra_of
from pipeline.scoring.scorer import load_scorer

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DEPENDENCIES, EXTRAS = PROJECT["project"]["dependencies"], PROJECT["project"]["optional-dependencies"]
# What is imported under another name than the package's, of the core.
CORE = {"open-clip-torch": "open_clip", "pillow": "PIL"}
BROUGHT = {"httpx2"}  # by huggingface_hub, whose errors it raises

NOT_CORE = ["dvc", "mlflow", "sklearn", "pandas", "matplotlib", "pyarrow", "ruamel", "imagehash", "gdown", "openpyxl",
            "fastapi", "uvicorn", "onnx", "onnxruntime", "pytest"]  # fmt: skip


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let extras be those of this tree's pyproject.toml, whenever it was installed."""
    lines = [f'{wanted}; extra == "{extra}"' for extra, all_of in EXTRAS.items() for wanted in all_of]
    monkeypatch.setattr(extras, "_wanted", lambda: [*DEPENDENCIES, *lines])


@pytest.mark.parametrize(
    ("package", "extra"),
    [
        ("fastapi", "serve"),
        ("starlette", "serve"),
        ("multipart", "serve"),
        ("onnxruntime", "export"),
        ("mlflow", "study"),
        ("sklearn", "study"),
        ("ruamel", "study"),
        ("pytest", "dev"),
        ("torch", None),
        ("nothing_of_ours", None),
    ],
)
def test_an_extra_is_found_by_what_is_imported(package: str, extra: str | None, declared: None) -> None:
    assert extra_of(package) == extra


def test_advice_is_one_line_and_for_our_extras_alone(declared: None) -> None:
    missing = ModuleNotFoundError("No module named 'sklearn.linear_model'", name="sklearn.linear_model")
    assert advice(missing) == (
        "this needs scikit-learn, which comes with the extra 'study': pip install 'agiqa-study[study]' (in a clone: "
        "pip install '.[study]')"
    )
    assert advice(ModuleNotFoundError("No module named 'pipeline.nowhere'", name="pipeline.nowhere")) is None
    assert advice(ImportError("cannot import name 'x' from 'fastapi'", name="fastapi")) is None  # a fault of ours


def test_without_an_installation_there_is_no_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "NAME", "never-installed-anywhere")
    assert advice(ModuleNotFoundError("No module named 'fastapi'", name="fastapi")) is None


def test_the_command_says_it_in_one_line(
    declared: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], in_tmp: Path
) -> None:
    for package in ("uvicorn", "pyarrow", "pipeline.nowhere"):
        monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    (in_tmp / "a.png").write_bytes(b"")
    for words, extra in ((["serve"], "serve"), (["score", "a.png", "--out", "a.parquet"], "study")):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert said.startswith("agiqa: error: this needs ")
        assert said.endswith(f"pip install '.[{extra}]')\n")
        assert said.count("\n") == 1


def imports() -> dict[str, set[str]]:
    """Return the packages of others that our code imports, each with the files that do."""
    found: dict[str, set[str]] = {}
    for path in [*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "stages").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            named += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in {word.partition(".")[0] for word in named} - {*sys.stdlib_module_names, "pipeline", "stages"}:
                found.setdefault(name, set()).add(path.relative_to(ROOT).as_posix())
    return found


def test_whatever_is_imported_is_declared(declared: None) -> None:
    core = {CORE.get(name, name) for name in (re.match(r"[\w-]+", wanted)[0] for wanted in DEPENDENCIES)}
    core = {name.replace("open_clip_torch", "open_clip") for name in core}
    undeclared = {
        name: files for name, files in imports().items() if name not in core | BROUGHT and extra_of(name) is None
    }
    assert undeclared == {}


def test_the_wings_are_packed() -> None:
    wings = {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in ROOT.glob("pipeline/**/__init__.py")
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == wings | {"pipeline.shipped"}
    assert (ROOT / "pipeline" / "py.typed").is_file()


# A clean environment


def uv(*words: str, **more: str) -> str:
    environment = {**os.environ, **more}
    environment.setdefault("UV_FIND_LINKS", environment.get("PIP_FIND_LINKS", ""))
    done = subprocess.run([sys.executable, "-m", "uv", *words], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def install(folder: Path, clone: Path, extra: str = "") -> Path:
    """Return the folder of commands of a new environment with this project, as a user installs it from a clone.

    torch is of the same build as here, so that it lies in uv's cache and nothing has to be downloaded.
    """
    same = folder.parent / "same.txt"
    same.write_text(f"torch=={version('torch')}\n")
    uv("venv", "--quiet", "--python", sys.executable, str(folder))
    pins = ["-c", str(ROOT / "constraints.txt"), "-c", str(same)]
    uv("pip", "install", "--quiet", "--python", str(folder / "bin/python"), *pins, f"{clone}{extra}")
    return folder / "bin"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of what git would track here, so that nothing that was built before is packed."""
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def core(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("core") / "venv", clone)


@pytest.fixture(scope="module")
def photo(agiqa_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an image of AGIQA-3K, alone in a folder."""
    path = tmp_path_factory.mktemp("photo") / "one.jpg"
    with zipfile.ZipFile(agiqa_data / "agiqa3k" / "AGIQA-3K.zip") as archive:
        path.write_bytes(archive.read(next(name for name in archive.namelist() if name.endswith(".jpg"))))
    return path


def run(program: Path, *words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program of a clean environment in a folder, with nothing of this one about."""
    kept = {name: value for name, value in os.environ.items() if name in ("LANG", "OPENBLAS_CORETYPE", "TMPDIR")}
    environment = {**kept, "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"}
    return subprocess.run([program, *words], cwd=folder, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.slow
def test_the_core_has_few_packages_and_none_of_the_studys(core: Path, tmp_path: Path) -> None:
    listed = json.loads(uv("pip", "list", "--format", "json", "--python", str(core / "python")))
    assert len(listed) <= 40
    script = f"import importlib.util as u, sys; sys.exit(any(u.find_spec(name) for name in {NOT_CORE}))"
    assert run(core / "python", "-c", script, folder=tmp_path).returncode == 0


@pytest.mark.slow
def test_the_core_scores_with_every_model_that_comes_along(core: Path, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "one.jpg").write_bytes(photo.read_bytes())
    for which in ("auto", "auto:agiqa3k:dcmpln", "auto:agiqa3k:linear_probe"):
        done = run(core / "agiqa", "score", "one.jpg", "--checkpoint", which, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        (row,) = csv.DictReader(io.StringIO(done.stdout))
        expected = load_scorer(which, root=ROOT, device="cpu").score(photo)
        assert float(row["raw"]) == pytest.approx(expected.raw[0], abs=2e-6)
        assert float(row["score"]) == pytest.approx(expected.mos[0], abs=1e-5)
        assert float(row["low"]) == pytest.approx(expected.low[0], abs=1e-5)


SCRIPT = """
import sys
from pipeline.cli import main
for words in (
    ["score", "one.jpg", "--quality-map", "maps", "--out", "s.csv", "--checkpoint", "auto:agiqa3k:dcmpln"],
    ["rank", "s.csv", "--by", "image", "--out", "r.json"],
    ["compare", "s.csv", "one.jpg", "--out", "c.csv"],
    ["completion", "bash"],
):
    if (status := main(words)) != 0:
        sys.exit(f"{words}: {status}")
for words in (["check", "."], ["publish", "out"], ["serve"], ["score", "one.jpg", "--out", "s.parquet"],
              ["score", "one.jpg", "--checkpoint", "models:/m/1"]):
    if (status := main(words)) != 2:
        sys.exit(f"{words}: {status}")
"""


@pytest.mark.slow
def test_the_core_ranks_compares_draws_maps_and_names_the_extra_of_the_rest(
    core: Path, photo: Path, tmp_path: Path
) -> None:
    (tmp_path / "one.jpg").write_bytes(photo.read_bytes())
    done = run(core / "python", "-c", SCRIPT, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--quality-map" in done.stdout  # of what a shell reads
    assert (tmp_path / "maps" / "one.jpg.png").is_file()
    assert json.loads((tmp_path / "r.json").read_text())["images"][0]["place"] == 1
    said = re.findall(
        r"^agiqa: error: this needs .* extra '(\w+)': pip install 'agiqa-study\[\1\]' .*$", done.stderr, re.M
    )
    assert said == ["study", "study", "serve", "study", "study"]
    assert "Traceback" not in done.stderr


@pytest.fixture
def served(clone: Path, tmp_path: Path) -> Iterator[str]:
    """Serve from an environment with the core and the extra `serve` alone; hand out the address."""
    program = install(tmp_path / "venv", clone, "[serve]") / "agiqa"
    port = free_port()
    kept = {"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen([program, "serve", "--port", str(port)], cwd=tmp_path, env=kept) as process:
        try:
            await_listening(process, port)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@pytest.mark.slow
def test_the_extra_serve_serves(served: str, photo: Path) -> None:
    import base64

    body = json.dumps({"images": [base64.b64encode(photo.read_bytes()).decode()]}).encode()
    request = urllib.request.Request(f"{served}/score", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        found = json.load(answer)
    expected = load_scorer("auto", root=ROOT, device="cpu").score(photo)
    assert expected.mos[0] == pytest.approx(found["scores"][0]["mos"], abs=1e-4)
