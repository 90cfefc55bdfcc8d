"""What the report says: its words against what the tests carry, and sentences where there is nothing to show."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from made_study import made_runs, make_study

from pipeline.report import page, sections, significance, text
from pipeline.report.results import read_results
from pipeline.report.sections import Section, arrange
from pipeline.report.summaries import summarise

SIDES = ("difference", "low", "high")


def verdict(srcc: dict[str, float], outcome: str, leaks: str = "", rounds: int = 3) -> str:
    """The answer on made-up rows: variant a, baseline z, and one tested pair of them."""
    kinds = {"a": "variant", "z": "baseline"}
    runs = made_runs(**{method: [value + 0.01 * number for number in range(rounds)] for method, value in srcc.items()})
    runs = runs.assign(kind=runs["method"].map(kinds), leaks=leaks, backbone_origin="pretrained")
    pairs = pd.DataFrame([{"first": "a", "second": "z", "outcome": outcome} | dict.fromkeys(SIDES, 0.1)])
    estimates = {method: {"srcc": np.array([value, value - 0.1, value + 0.1])} for method, value in srcc.items()}
    return " ".join(sections._verdict(summarise(runs), significance.Evidence(estimates, pairs), False).sentences)


def test_a_pair_reads_from_either_side() -> None:
    """The tests list a pair once, and the best variant may be its second method."""
    pair = {"first": "a", "second": "z", "outcome": "loss"} | dict.fromkeys(SIDES, 0.0)
    estimates = {method: {"srcc": np.array([0.6, 0.4, 0.8])} for method in "az"}
    evidence = significance.Evidence(estimates, pd.DataFrame([pair]))
    found = sections._verdict(summarise(made_runs(a=[0.5], z=[0.7])), evidence, False)
    assert found.method == "z"
    assert "`z` is ahead of `a`" in found.sentences[0]


def test_the_answer_claims_what_the_tests_carry() -> None:
    text = verdict({"a": 0.5, "z": 0.7}, "loss")
    assert text.startswith("**The baseline `z` beats every variant**: SRCC 0.710 ± 0.010. Shown, over prompts, ")
    assert "splits and trainings: `a` is behind `z`. Not shown: anything about images" in text
    text = verdict({"a": 0.5, "z": 0.7}, "behind")
    assert text.startswith("**The baseline `z` scores higher than every variant**: SRCC 0.710 ± 0.010, a difference to")
    assert "that the tests confirm on these trainings alone. Shown, over prompts, splits and trainings: no diff" in text
    assert (
        "On these trainings `a` is behind `z`, whichever prompts stand in test; for other splits and trainings, "
        in text
    )
    assert "the rounds do not show it. Not shown: anything about images" in text
    assert "one round cannot show it." in verdict({"a": 0.8, "z": 0.7}, "ahead", rounds=1)
    text = verdict({"a": 0.5, "z": 0.7}, "tie")
    assert "`z` scores higher than every variant**: SRCC 0.710 ± 0.010, a difference to the best that the tests" in text
    assert "trainings: no difference to any other method. Not shown: any difference between `a` and `z`;" in text
    text = verdict({"a": 0.8, "z": 0.7}, "win")
    assert text.startswith("Shown, over prompts, splits and trainings: `a` is ahead of `z`. Not shown: anything about")
    assert "baseline" not in text
    assert "trainings" not in text.split("Not shown")[1]
    text = verdict({"a": 0.8, "z": 0.7}, "none")
    assert "Not shown: anything about `z`, which lacks a score in some round;" in text
    text = verdict({"a": 0.8, "z": 0.7}, "win", leaks="random split")
    assert text.startswith("The study has no variant without leaks here, so none is named best.")


def test_the_answer_says_what_scores_a_users_images_and_how_well() -> None:
    """The baseline is the best on validation, and so scores; the variant is what the study is about."""
    runs = made_runs(a=[0.5, 0.6], z=[0.4, 0.5])
    runs = runs.assign(kind=runs["method"].map({"a": "variant", "z": "baseline"}), rmse_calibrated=0.4242)
    runs = runs.assign(validation_srcc=runs["method"].map({"a": 0.1, "z": 0.2}), coverage=[0.5, 0.5, 0.86, 0.9])
    pairs = pd.DataFrame([{"first": "a", "second": "z", "outcome": "tie"} | dict.fromkeys(SIDES, 0.1)])
    estimates = {method: {"srcc": np.array([0.6, 0.4, 0.8])} for method in "az"}
    found = sections._verdict(summarise(runs), significance.Evidence(estimates, pairs), False)
    assert found.method == "a"
    said = "What a user is told, by the champion `z`, the best on validation: its calibrated score is off by 0.424 MOS "
    assert f"{said}(RMSE) on the test images, and its 90 % band holds 88.0 % of them." in found.sentences


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
        ("answer", "The study has no variant without leaks here"),
        ("tests", "One method alone has nothing to be compared with."),
        ("leaks", "The study's own rounds leak, so there is no clean score to measure leaks from."),
        ("ablation", "An ablation needs `dcmpln` and another variant"),
        ("cross", "A study of one data set has nothing to transfer to."),
        ("pictures", "The evaluations of demo left no pictures."),
        ("answer", "1 trainings or fits and the scoring of their test images"),
    ],
)
def test_where_there_is_nothing_to_show_a_sentence_says_why(
    small: dict[str, Section], name: str, sentence: str
) -> None:
    assert sentence in text.render("small", [small[name]])


def test_both_forms_have_the_same_sections_in_the_same_order(small: dict[str, Section], tmp_path: Path) -> None:
    titles = [section.title for section in small.values()]
    html, written = page.render(tmp_path, "s", list(small.values())), text.render("s", list(small.values()))
    assert [re.sub(r"^\d+\. ", "", title) for title in re.findall("<h2>(.*?)</h2>", html)] == titles
    assert re.findall("^## (.*)$", written, re.M) == titles


def test_the_command_that_checks_the_lock_runs(small: dict[str, Section], tmp_path: Path) -> None:
    """It is printed for readers, and nothing else would notice that what it imports has moved."""
    commands = next(content for kind, content in small["rerun"].blocks if kind == "code")
    (code,) = re.findall(r'^python -c "(.*)"   # c{32}$', commands, re.M)
    (tmp_path / "dvc.lock").write_text(json.dumps({"stages": {"train": {"cmd": "x"}}}))
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert re.fullmatch("[0-9a-f]{32}\n", done.stdout)
