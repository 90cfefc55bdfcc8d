"""Which code a stage runs: what it imports, late and indirectly."""

import re
from pathlib import Path

import pytest

from pipeline.code import code_of, imported
from pipeline.files import file_md5


@pytest.fixture
def repository(in_tmp: Path) -> Path:
    for folder in ("pipeline", "stages"):
        (in_tmp / folder).mkdir()
    for name, text in {
        "pipeline/a.py": "import numpy\nfrom pipeline.b import thing\n",
        "pipeline/b.py": "def f():\n    from pipeline import c\n    import pipeline.d\n",
        "pipeline/c.py": "from pipeline import a\n",
        "pipeline/d.py": "",
        "pipeline/e.py": "",
        "pipeline/tracking.py": "import pipeline.e\n",
        "stages/run.py": "from pipeline import a, tracking\n",
    }.items():
        (in_tmp / name).write_text(text)
    return in_tmp


def test_the_closure_follows_late_imports_and_circles_and_leaves_the_mirror_out(repository: Path) -> None:
    expected = ["pipeline/a.py", "pipeline/b.py", "pipeline/c.py", "pipeline/d.py", "stages/run.py"]
    found = code_of(Path("stages/run.py"))
    assert list(found) == expected
    assert found["pipeline/b.py"] == file_md5(repository / "pipeline/b.py")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("from . import a\n", "line 1: relative import"),
        ("\nfrom pipeline import z\n", "line 2: pipeline.z is no module"),
    ],
)
def test_imports_that_cannot_be_followed_are_refused(repository: Path, text: str, message: str) -> None:
    (repository / "stages/run.py").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        imported(Path("stages/run.py"), Path())


def test_a_template_beside_its_module_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (
        ("stages/report.py", "from pipeline import page\n"),
        ("pipeline/page.py", ""),
        ("pipeline/page.html.j2", "one"),
        ("pipeline/pages.py", ""),
    ):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    first = code_of(Path("stages/report.py"))
    assert set(first) == {"stages/report.py", "pipeline/page.py", "pipeline/page.html.j2"}
    Path("pipeline/page.html.j2").write_text("two")
    assert code_of(Path("stages/report.py")) != first
