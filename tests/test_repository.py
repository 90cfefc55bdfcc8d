"""The rules of the house: edges that are true, imports that run one way, and pages that agree with each other."""

import ast
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from pipeline.code import imported
from pipeline.params import load_params

ROOT = Path(__file__).resolve().parent.parent
DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
MODULES = sorted(path for path in (ROOT / "pipeline").glob("*.py") if path.name != "__init__.py")
SCRIPTS = sorted(path for path in (ROOT / "stages").glob("*.py") if path.name != "__init__.py")


def body(stage: dict) -> dict:
    return stage.get("do", stage)


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.splitlines() if (ROOT / name).is_file()]


@pytest.mark.parametrize("name", [name for name in DVC if name != "code"])
def test_every_stage_depends_on_the_code_that_it_runs(name: str) -> None:
    stage = body(DVC[name])
    commands = [stage["cmd"]] if isinstance(stage["cmd"], str) else stage["cmd"]
    scripts = [re.match(r"python -m stages\.(\w+)", command).group(1) for command in commands]
    assert {f"data/code/{script}.json" for script in scripts} <= set(stage["deps"])


@pytest.mark.parametrize("name", list(DVC))
def test_outs_can_be_cached(name: str) -> None:
    """A plain out with `cache: false` or `persist: true` would switch DVC's run cache off in silence."""
    assert all(isinstance(out, str) for out in body(DVC[name])["outs"])


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_says_what_it_imports(path: Path) -> None:
    tree = ast.parse(path.read_text())
    found = {Path(name).stem for name in imported(path, ROOT)}
    said = " ".join((ast.get_docstring(tree) or "").split())
    if not found:
        assert "mports nothing of ours" in said
    else:
        stated = re.search(r"Imports ((?:pipeline\.\w+(?:, | and )?)+)", said)
        assert stated, f"{path} imports {sorted(found)}"
        assert set(re.findall(r"pipeline\.(\w+)", stated.group(1))) == found


def test_imports_run_one_way() -> None:
    graph = {path.stem: {Path(name).stem for name in imported(path, ROOT)} for path in MODULES}
    done: set[str] = set()
    while left := {name for name, needs in graph.items() if name not in done and needs <= done}:
        done |= left
    assert done == set(graph), "these import each other in a circle"
    for path in MODULES:
        assert not any(name.startswith("stages/") for name in imported(path, ROOT)), path


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_stages_are_thin_and_callable(path: Path) -> None:
    text = path.read_text()
    assert "def main(argv: Sequence[str] | None = None) -> None:" in text
    assert len(text.splitlines()) < 90


def test_few_modules_know_mlflow_and_one_knows_open_clip() -> None:
    """MLflow runs served_model itself, which so must be a model of its kind."""
    for package, owners in (("mlflow", ["served_model", "tracking"]), ("open_clip", ["backbone"])):
        users = [
            path.stem
            for path in MODULES + SCRIPTS
            if re.search(rf"^\s*(import|from) {package}\b", path.read_text(), re.M)
        ]
        assert users == owners


def test_every_module_has_its_test() -> None:
    tests = " ".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    for path in MODULES:
        assert re.search(rf"pipeline\.{path.stem}\b|from pipeline import [^\n]*\b{path.stem}\b", tests), path.stem


def test_the_default_params_are_the_demo() -> None:
    assert (ROOT / "params.yaml").read_text() == (ROOT / "params" / "demo.yaml").read_text()


def test_every_key_of_params_is_explained_where_it_first_stands() -> None:
    sections = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert set(sections) == set(load_params(ROOT / "params.yaml").model_dump())


def test_no_machine_path_registry_or_weights_in_the_repository() -> None:
    for path in tracked():
        assert path.suffix not in (".zip", ".pt", ".pth", ".ckpt", ".jpg", ".parquet"), path
        assert path.name != "uv.lock"
        if path.suffix in (".py", ".md", ".yaml", ".toml", ".txt", ".json", "") and path.stat().st_size < 2**20:
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"(?<![\w.])/(home|root|work|Users)/\w", text), path


def test_versions_agree() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    version = re.search(r'^version = "(.+)"', project, re.M).group(1)
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
    assert f"version: {version}" in (ROOT / "CITATION.cff").read_text()
    pins = dict(re.findall(r'^\s+"([A-Za-z0-9_]+)==([^"]+)"', project, re.M))
    constraints = dict(re.findall(r"^([a-z0-9-]+)==([^ ;\n]+)", (ROOT / "constraints.txt").read_text(), re.M))
    for name, pinned in pins.items():
        assert constraints[name.lower().replace("_", "-")] == pinned
