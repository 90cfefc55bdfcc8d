"""Which code a stage runs: what it imports, late and indirectly, here in made trees and in the real one."""

import re
import shutil
from pathlib import Path

import pytest
from conftest import ROOT

from pipeline.code import code_of, imported
from pipeline.files import file_md5
from pipeline.study.runs import key_of

STAGES = sorted(path.stem for path in (ROOT / "stages").glob("[!_]*.py"))


@pytest.fixture
def repository(in_tmp: Path) -> Path:
    for name, text in {
        "pipeline/__init__.py": "",
        "pipeline/a.py": "import numpy\nfrom pipeline.wing.b import thing\n",
        "pipeline/wing/__init__.py": "import pipeline.g\n",
        "pipeline/wing/b.py": "def f():\n    from pipeline import c\n    import pipeline.d\n",
        "pipeline/c.py": "from pipeline import a\nfrom pipeline.wing import h\n",
        "pipeline/d.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pipeline import e\n",
        "pipeline/e.py": "",
        "pipeline/g.py": "",
        "pipeline/wing/h.py": "",
        "pipeline/tracking/__init__.py": "",
        "pipeline/tracking/live.py": "import pipeline.e\n",
        "stages/__init__.py": "",
        "stages/run.py": "from pipeline import a\nfrom pipeline.tracking import live\n",
    }.items():
        (in_tmp / name).parent.mkdir(exist_ok=True, parents=True)
        (in_tmp / name).write_text(text)
    return in_tmp


def test_the_closure_follows_late_imports_circles_and_folders_and_leaves_the_mirror_out(repository: Path) -> None:
    found = code_of(Path("stages/run.py"))
    assert list(found) == [
        "pipeline/__init__.py", "pipeline/a.py", "pipeline/c.py", "pipeline/d.py", "pipeline/g.py",
        "pipeline/wing/__init__.py", "pipeline/wing/b.py", "pipeline/wing/h.py",
        "stages/__init__.py", "stages/run.py",
    ]  # fmt: skip
    assert found["pipeline/wing/b.py"] == file_md5(repository / "pipeline/wing/b.py")
    assert imported(Path("pipeline/d.py"), Path(), typing=True) == {"pipeline/e.py"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("from . import a\n", "line 1: relative import"),
        ("\nfrom pipeline import z\n", "line 2: pipeline.z is no module"),
        ("from pipeline.wing import z\n", "line 1: pipeline.wing.z is no module"),
        ("import pipeline.nothing\n", "line 1: pipeline.nothing is no module"),
    ],
)
def test_imports_that_cannot_be_followed_are_refused(repository: Path, text: str, message: str) -> None:
    (repository / "stages/run.py").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        imported(Path("stages/run.py"), Path())


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the real tree's code."""
    copy = tmp_path_factory.mktemp("tree")
    for folder in ("pipeline", "stages"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def touched(tree: Path, name: str) -> set[str]:
    """Return the stages whose code changes when one file is edited."""
    before = {stage: code_of(Path("stages", f"{stage}.py"), tree) for stage in STAGES}
    path = tree / name
    held = path.read_bytes() if path.exists() else None
    path.write_bytes((held or b"") + b"\n# edited\n")
    try:
        return {stage for stage in STAGES if code_of(Path("stages", f"{stage}.py"), tree) != before[stage]}
    finally:
        path.unlink() if held is None else path.write_bytes(held)


@pytest.mark.parametrize(
    ("edited", "stale"),
    [
        ("pipeline/report/plots.py", {"report"}),
        ("pipeline/report/page.html.j2", {"report"}),
        ("pipeline/report/words.py", {"report"}),
        ("pipeline/training/fit.py", {"train"}),
        ("pipeline/training/step.py", {"train"}),
        ("pipeline/training/schedule.py", {"train", "audit"}),
        ("pipeline/data/archives.py", {"download"}),
        ("pipeline/data/scenes.py", {"download"}),
        ("pipeline/data/card.py", {"preprocess"}),
        ("pipeline/training/statistics.py", {"features"}),
        ("pipeline/study/gallery.py", {"evaluate"}),
        ("pipeline/model/tower.py", {"train", "features", "evaluate", "audit"}),
        ("pipeline/study/champion.py", {"mirror"}),
        ("pipeline/tracking/mirror.py", set()),
        ("pipeline/serving/register.py", set()),
        ("pipeline/serving/http.py", set()),
        ("pipeline/scoring/compare.py", set()),
        ("pipeline/__init__.py", set(STAGES)),
        # what editors, merges and git leave beside a module
        ("pipeline/training/fit.py~", set()),
        ("pipeline/training/fit.py.orig", set()),
        ("pipeline/training/.#fit.py", set()),
        ("pipeline/report/page.html.j2~", set()),
        ("pipeline/report/page.html.orig", set()),
    ],
)
def test_an_edit_reruns_what_it_touches(tree: Path, edited: str, stale: set[str]) -> None:
    assert touched(tree, edited) == stale


def test_an_edit_changes_a_trainings_key(tree: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tree)
    read = tmp_path / "manifest"
    read.write_text("one")

    def key() -> str:
        return key_of({"learning_rate": 1e-4}, [read], Path("stages/train.py"))

    first = key()
    assert key() == first
    for name, changes in (
        ("pipeline/training/fit.py", True),
        ("pipeline/model/dcmpln.py", True),
        ("stages/train.py", True),
        ("pipeline/report/plots.py", False),
        ("pipeline/tracking/live.py", False),
    ):
        held = Path(name).read_bytes()
        Path(name).write_bytes(held + b"\n# edited\n")
        assert (key() != first) is changes, name
        Path(name).write_bytes(held)
    read.write_text("two")
    assert key() != first
    assert key_of({"learning_rate": 1e-3}, [read], Path("stages/train.py")) != key()
