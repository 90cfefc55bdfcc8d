"""The rules of the house: edges that are true, imports that run one way, and pages that agree with each other."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.code import imported

ROOT = Path(__file__).resolve().parent.parent
DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
MODULES = sorted(path for path in (ROOT / "pipeline").rglob("*.py") if path.name != "__init__.py")
NAMES = [path.relative_to(ROOT / "pipeline").with_suffix("").as_posix() for path in MODULES]
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
    """A plain out with `cache: false` or `persist: true` switches DVC's run cache off in silence.

    The mirror alone wants that: it works in MLflow, where a cache restores nothing.
    """
    outs = body(DVC[name])["outs"]
    if name == "mirror":
        assert outs == [{"reports/champions.json": {"persist": True}}]
    else:
        assert all(isinstance(out, str) for out in outs)


# Which wings a wing may import; itself is understood. `ground` is what lies in pipeline/ itself.
MAY_IMPORT = {
    "ground": [],
    "data": ["ground"],
    "model": ["ground"],
    "training": ["ground", "data", "model"],
    "study": ["ground", "data", "model", "training"],
    "report": ["ground"],
    "tracking": ["ground"],
    "scoring": ["ground", "data", "model", "training", "study", "tracking"],
    "serving": ["ground", "data", "model", "training", "study", "tracking", "scoring"],
    "cli": ["ground", "data", "model", "study", "tracking", "scoring", "serving"],
    "stages": ["ground", "data", "model", "training", "study", "report", "tracking", "scoring", "serving"],
}


def wing(name: str) -> str:
    """Return the wing of a file, by its path relative to the repository."""
    parts = Path(name).parts
    if parts[0] == "stages":
        return "stages"
    if len(parts) > 2:
        return parts[1]
    return "cli" if parts[1] in ("cli.py", "__init__.py") else "ground"


def arrows() -> dict[str, set[str]]:
    """Return what each of our files imports, for types included."""
    return {
        path.relative_to(ROOT).as_posix(): imported(path, ROOT, typing=True)
        for path in [*(ROOT / "pipeline").rglob("*.py"), *SCRIPTS]
    }


def test_imports_run_down_the_staircase(capsys: pytest.CaptureFixture[str]) -> None:
    counts: dict[tuple[str, str], int] = {}
    for name, needs in arrows().items():
        for need in needs:
            assert wing(need) in [wing(name), *MAY_IMPORT[wing(name)]], f"{name} imports {need}"
            counts[wing(name), wing(need)] = counts.get((wing(name), wing(need)), 0) + 1
    with capsys.disabled():
        if os.environ.get("SHOW_ARROWS"):
            print_table(counts)
    order = list(MAY_IMPORT)
    assert all(order.index(to) <= order.index(of) for of, to in counts)


def print_table(counts: dict[tuple[str, str], int]) -> None:
    """Print the arrows between wings: rows import columns."""
    order = list(MAY_IMPORT)
    rows = [["", *order]] + [[of, *(str(counts.get((of, to), ".")) for to in order)] for of in order]
    sys.stdout.write("\n" + "\n".join("".join(f"{cell:>9}" for cell in row) for row in rows) + "\n")


def test_no_room_imports_itself_through_others() -> None:
    graph, done = arrows(), set()
    while left := {name for name, needs in graph.items() if name not in done and needs <= done}:
        done |= left
    assert done == set(graph), f"these import each other in a circle: {sorted(set(graph) - done)}"


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_a_room_is_small_and_says_what_it_is_for(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 500
    assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("path", sorted((ROOT / "pipeline").glob("*/__init__.py")), ids=lambda path: path.parent.name)
def test_a_wing_opens_with_a_docstring_alone(path: Path) -> None:
    """Anything that it imported would be code of every stage that uses the wing."""
    assert [type(node) for node in ast.parse(path.read_text()).body] == [ast.Expr]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_stages_are_thin_and_callable(path: Path) -> None:
    text = path.read_text()
    assert "def main(argv: Sequence[str] | None = None) -> None:" in text
    assert len(text.splitlines()) <= 95


def test_few_rooms_know_mlflow_and_open_clip() -> None:
    """MLflow runs serving/served itself, which so must be a model of its kind."""
    owners = {
        "mlflow": r"tracking/|serving/served$",
        "open_clip": r"model/(loading|image_side|image_weights|text_side)$",
        "timm": r"model/",
        "huggingface_hub": r"model/hub$|study/push$",
        "torchmetrics": r"scoring/mean_score$",
        "pyiqa": r"training/no_reference$",
    }
    for package, owner in owners.items():
        users = [
            name
            for name, path in zip(NAMES, MODULES, strict=True)
            if re.search(rf"^\s*(import|from) {package}\b", path.read_text(), re.M)
        ]
        assert all(re.match(owner, name) for name in users), (package, users)
        assert not any(re.search(rf"^\s*(import|from) {package}\b", path.read_text(), re.M) for path in SCRIPTS)


def test_only_trainings_and_the_mirror_know_the_store() -> None:
    """Whatever else a stage makes must stand even where MLflow fails."""
    users = {
        path.stem
        for path in SCRIPTS
        if any(name.startswith("pipeline/tracking/") or name.endswith("register.py") for name in imported(path, ROOT))
    }
    assert users == {"mirror", "train"}


@pytest.mark.parametrize("name", NAMES)
def test_every_room_has_its_test(name: str) -> None:
    place = Path(name)
    test = ROOT / "tests" / place.parent / f"test_{place.name}.py"
    assert test.is_file(), f"{test.relative_to(ROOT)} does not exist"
    dotted = f"pipeline.{name.replace('/', '.')}"
    package, room = dotted.rsplit(".", 1)
    found = re.search(rf"{re.escape(dotted)}\b|from {re.escape(package)} import [^\n]*\b{room}\b", test.read_text())
    assert found, f"{test.relative_to(ROOT)} never imports {dotted}"


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
