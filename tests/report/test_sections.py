"""What stands where in a report, and the lines that stand where there is nothing to show."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from made_study import make_study

from pipeline.report import page, significance, text
from pipeline.report.results import read_results
from pipeline.report.sections import Section, arrange
from pipeline.report.summaries import summarise


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Section]:
    """The sections, by name, of a study of one leaking variant, without tables and figures."""
    root = tmp_path_factory.mktemp("small")
    make_study(root, ("demo",), ("dcmpln",), (0,), leaks=("random split",))
    folders = (root / "runs", root / "data/splits", root / "data/prepared")
    results = read_results(["demo"], ["dcmpln"], [0], *folders, ["dcmpln"])
    estimates = significance.leave_out(results.predictions)
    evidence = {"demo": significance.Evidence(estimates, significance.compare(results.runs, estimates))}
    found = arrange(results, summarise(results.runs), evidence, [], [], audited=["dcmpln"], lock="c" * 32)
    return {section.name: section for section in found}


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("answer", "On **demo** no method is named best: every one leaks."),
        ("tests", "Not asked: one method alone has nothing to be compared with."),
        ("leaks", "Not measured: the study's own rounds leak, so there is no clean score to start from."),
        ("ablation", "Not measured: it needs `dcmpln` and another variant"),
        ("cross", "Not measured: a study of one data set has nothing to transfer to."),
        ("pictures", "The evaluations of demo left no pictures."),
        ("cost", "1 trainings or fits and the scoring of their test images"),
    ],
)
def test_where_there_is_nothing_to_show_a_sentence_says_why(
    small: dict[str, Section], name: str, sentence: str
) -> None:
    assert sentence in text.render("small", "b", [small[name]])


def test_what_was_not_measured_is_a_line_and_no_section_of_its_own(small: dict[str, Section], tmp_path: Path) -> None:
    lines = {name for name, section in small.items() if section.is_line}
    assert {"tests", "leaks", "ablation", "cross"} <= lines
    assert not lines & {"answer", "data", "rerun"}
    html = page.render(tmp_path, "s", "b", list(small.values()))
    assert {name for name in small if f'<section id="{name}" class="line-only">' in html} == lines


def test_hashes_are_folded_away_at_the_end(small: dict[str, Section]) -> None:
    assert list(small)[-1] == "rerun"
    shown = [block for section in small.values() for block in section.blocks if block[0] != "folded"]
    folded = [block for section in small.values() for block in section.blocks if block[0] == "folded"]
    for digest in ("a" * 40, "c" * 32, "d" * 32):
        assert digest not in str(shown)
        assert digest in str(folded)


def test_both_forms_have_the_same_sections_in_the_same_order(small: dict[str, Section], tmp_path: Path) -> None:
    titles = [section.title for section in small.values()]
    html, written = page.render(tmp_path, "s", "b", list(small.values())), text.render("s", "b", list(small.values()))
    assert re.findall("<h2>(.*?)</h2>", html) == titles
    assert re.findall("^## (.*)$", written, re.M) == titles


def test_the_command_that_checks_the_lock_runs(small: dict[str, Section], tmp_path: Path) -> None:
    """It is printed for readers, and nothing else would notice that what it imports has moved."""
    folds = dict(content for kind, content in small["rerun"].blocks if kind == "folded")
    commands = next(content for kind, content in folds["To rerun exactly this"] if kind == "code")
    (code,) = re.findall(r'^python -c "(.*)"   # c{32}$', commands, re.M)
    (tmp_path / "dvc.lock").write_text(json.dumps({"stages": {"train": {"cmd": "x"}}}))
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert re.fullmatch("[0-9a-f]{32}\n", done.stdout)
