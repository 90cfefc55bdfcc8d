"""Scores as files and as lines: readable back, and harmless to a terminal."""

import csv
import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from pipeline.scoring.compare import Comparison, compare
from pipeline.scoring.journal import Row
from pipeline.scoring.output import (
    OutputError,
    check_target,
    conclude,
    describe,
    summary,
    write_comparison,
    write_ranks,
    write_scores,
)
from pipeline.scoring.prompts import Grouping
from pipeline.scoring.ranking import best, rank
from pipeline.scoring.scorer import Scorer
from pipeline.study.generators import GeneratorError

ROWS = [
    Row("a, b.png", 3.0, 0.5, 40, 30, None, "maps/a.png"),
    Row("c\udcff\n.png", error='is "odd"'),
    Row("d.png", 5.0, 1.0, 10, 10),
]
LABEL = (
    "dcmpln trained on photos: quality, MOS 1 to 5 by people; backbone tiny-vit (random weights); NOT CALIBRATED: the "
    "raw score stretched over the scale, good for ranking alone"
)


def test_a_model_of_simulated_raters_says_so(scorer: Scorer) -> None:
    record = {**scorer.record, "raters": "simulated"}
    said = describe(replace(scorer, record=record))
    assert said == LABEL.replace("by people", "by simulated raters")


def check_records(records: list[dict[str, object]]) -> None:
    assert [record["image"] for record in records] == ["a, b.png", "c\\xff\n.png", "d.png"]
    assert [record["score"] for record in records] == [3.0, None, 5.0]
    assert [record["raw"] for record in records] == [0.5, None, 1.0]
    assert [record["width"] for record in records] == [40, None, 10]
    assert [record["error"] for record in records] == [None, 'is "odd"', None]
    assert {(record["scale_low"], record["scale_high"]) for record in records} == {(1.0, 5.0)}


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_files_are_read_back_as_they_were(scorer: Scorer, tmp_path: Path, kind: str) -> None:
    out = tmp_path / f"scores.{kind}"
    assert write_scores(iter(ROWS), scorer, out=out, form=None, with_maps=True) == ROWS
    if kind == "json":
        document = json.loads(out.read_text())
        assert document["checkpoint"]["scale"] == [1.0, 5.0]
        assert document["checkpoint"]["raters"] == "people"
        assert document["checkpoint"]["backbone"] == "tiny-vit (random weights)"
        records = document["images"]
    else:
        table = pd.read_csv(out) if kind == "csv" else pd.read_parquet(out)
        records = table.astype(object).where(table.notna(), None).to_dict("records")
    check_records(records)
    assert records[0]["quality_map"] == "maps/a.png"


def test_standard_output_is_clean_csv_or_json(scorer: Scorer, capsys: pytest.CaptureFixture[str]) -> None:
    write_scores(iter(ROWS), scorer, out=None, form=None)  # captured, so no terminal
    records = [
        {key: None if value == "" else value for key, value in record.items()}
        for record in csv.DictReader(io.StringIO(capsys.readouterr().out))
    ]
    numbers = ("score", "raw", "width", "height", "scale_low", "scale_high")
    check_records([
        {key: float(value) if key in numbers and value is not None else value for key, value in record.items()}
        for record in records
    ])  # fmt: skip
    write_scores(iter(ROWS), scorer, out=None, form="json")
    check_records(json.loads(capsys.readouterr().out)["images"])


def test_a_table_has_bars_and_spells_out_what_is_not_printable(
    scorer: Scorer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scores(iter([*ROWS, Row("e\x1b[2J.png", 1.0, 0.0, 1, 1)]), scorer, out=None, form="table")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        LABEL,
        " score                1                      5  image",
        "  3.00                ████████████············  a, b.png",
        '     -  c\\xff\\n.png: is "odd"',
        "  5.00                ████████████████████████  d.png",
        "  1.00                ························  e\\x1b[2J.png",
    ]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    write_scores(iter(ROWS), scorer, out=None, form=None)
    assert capsys.readouterr().out.startswith(LABEL)


def test_ranks(scorer: Scorer, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = [Row(f"{folder}/{k}.png", 1.0 + k, k / 4, 9, 9) for folder in ("a", "b") for k in range(3)]
    ranked, _ = best(rank(rows, [row.image[0] for row in rows]), 1)
    write_ranks(ranked, scorer, out=None, form="table")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:4] == ["", "a", "   1.   3.00                ████████████············  a/2.png"]
    write_ranks(ranked, scorer, out=tmp_path / "r.csv", form=None)
    table = pd.read_csv(tmp_path / "r.csv")
    assert table[["group", "order", "place", "tie", "image"]].to_numpy().tolist() == [
        ["a", 1, 1, False, "a/2.png"], ["b", 1, 1, False, "b/2.png"]
    ]  # fmt: skip


def compared(
    a: list[float], b: list[float], error: GeneratorError | None = None, others: str = "abcdefgh"
) -> Comparison:
    labels = list("abcdefgh"[: len(a)]), list(others[: len(b)])
    first, second = ([Row("x.png", score) for score in side] for side in (a, b))
    return compare(first, second, ("m/", "n/"), Grouping("name", labels), error)


def lines_of(result: Comparison, scorer: Scorer, capsys: pytest.CaptureFixture[str]) -> list[str]:
    write_comparison(result, scorer, out=None, form="table")
    return capsys.readouterr().out.splitlines()


A, B = [4.0, 4.1, 4.2, 4.1, 4.0, 4.2], [3.0, 3.2, 3.1, 3.0, 3.2, 3.1]
DIFFERENCE = "A - B is +1.000 on the MOS scale, 95 % interval +0.867 to +1.133"


def test_a_comparison_ends_in_a_conclusion(demo_scorer: Scorer, capsys: pytest.CaptureFixture[str]) -> None:
    assert lines_of(compared(A, B), demo_scorer, capsys)[1:] == [
        "A  m/       6 images  mean  4.100  ██████████████████▋·····",
        "B  n/       6 images  mean  3.100  ████████████▋···········",
        "A - B  +1.000, 95 % interval +0.867 to +1.133",
        "(t interval over 6 pairs of equal names, taking pairs as independent)",
        "A wins 100.0 % of 6 pairs",
        "The interval holds the choice of images alone: how far this model errs by generator, nobody has measured",
        f"Conclusion: A is better: {DIFFERENCE}",
    ]
    lines = lines_of(compared(B, A), demo_scorer, capsys)
    assert lines[-3].startswith("A wins 0.0 % of 6 pairs")
    assert lines[-1].startswith("Conclusion: A is worse: A - B is -1.000 on the MOS scale, 95 % interval -1.133 to")
    assert lines_of(compared(A, B, GeneratorError(0.1, 6)), demo_scorer, capsys)[-2:] == [
        "The interval holds the choice of images alone: on its test images the model misjudged a generator's mean by "
        "0.10 typically (6 generators); a difference below 0.37 may be chance or that",
        f"Conclusion: A is better: {DIFFERENCE}",
    ]


def test_a_conclusion_says_why_nothing_is_shown(demo_scorer: Scorer, capsys: pytest.CaptureFixture[str]) -> None:
    head = "Conclusion: not shown which is better: "
    assert lines_of(compared(A, B, GeneratorError(0.4, 6)), demo_scorer, capsys)[-1] == (
        f"{head}{DIFFERENCE}; with the model's error by generator, only a difference over 1.391 is shown"
    )
    lines = lines_of(compared([*A, 1.0], [*B, 5.0]), demo_scorer, capsys)
    assert lines[-1].startswith(head)
    assert lines[-1].endswith("; the interval holds 0")
    lines = lines_of(compared(A[:5], B, GeneratorError(0.1, 6)), demo_scorer, capsys)
    assert "left out, since the other set has no counterpart: 0 images of A, 1 of B" in lines
    assert lines[-2].endswith("misjudged a generator's mean by 0.10 typically (6 generators)")
    assert lines[-1].endswith("; fewer than 6 pairs of a set")
    lines = lines_of(compared([4.0], B, others="stuvwx"), demo_scorer, capsys)
    assert "A wins 100.0 % of 6 pairs of one image from each" in lines
    assert lines[-1] == f"{head}A - B is +0.900 on the MOS scale; fewer than 6 images of a set"


def test_scores_without_calibration_are_on_no_mos_scale(scorer: Scorer) -> None:
    assert "A - B is +1.000 on a scale that is not calibrated, 95 %" in conclude(compared(A, B), scorer)


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_a_comparison_as_a_file_carries_its_conclusion(demo_scorer: Scorer, tmp_path: Path, kind: str) -> None:
    found = []
    for number, error in enumerate((GeneratorError(0.1, 4), None)):
        out = tmp_path / f"{number}.{kind}"
        write_comparison(compared(A, B[:5], error), demo_scorer, out=out, form=None)
        if kind == "json":
            found.append(json.loads(out.read_text())["comparison"][0])
        else:
            table = pd.read_csv(out) if kind == "csv" else pd.read_parquet(out)
            found += table.astype(object).where(table.notna(), None).to_dict("records")
    assert found[0] == {
        "name_a": "m/", "name_b": "n/", "images_a": 5, "images_b": 5, "left_out_a": 1, "left_out_b": 0, "groups_a": 5,
        "groups_b": 5, "mean_a": pytest.approx(4.08), "mean_b": pytest.approx(3.1), "difference": pytest.approx(0.98),
        "low": pytest.approx(0.8181, abs=1e-4), "high": pytest.approx(1.1419, abs=1e-4), "generator_error": 0.1,
        "margin": None, "conclusion": "not shown", "wins": 1.0, "paired": True, "grouped_by": "name",
        "method": "t interval over 5 pairs of equal names, taking pairs as independent", "generators": 4,
        "scale_low": demo_scorer.mos_low, "scale_high": demo_scorer.mos_high,
    }  # fmt: skip
    assert (found[1]["generator_error"], found[1]["generators"]) == (None, None)


def test_an_output_that_would_do_harm_is_refused_first(in_tmp: Path) -> None:
    Path("list.csv").touch()
    Path("folder.csv").mkdir()
    for out, message in {
        "scores.txt": "its name must end in .csv, .json, .parquet",
        "list.csv": "which is also an input: it would be overwritten",
        "folder.csv": "which is a folder: name a file",
    }.items():
        with pytest.raises(OutputError, match=re.escape(message)):
            check_target(Path(out), ["./list.csv"])
    check_target(Path("scores.csv"), ["./list.csv"])


def test_the_summary_counts(scorer: Scorer) -> None:
    assert summary(ROWS, scorer) == (
        "2 images scored, mean 4.000 on the scale 1 to 5; 1 could not be: the rows with an error say why"
    )
    assert summary([ROWS[0]], scorer) == "1 image scored, mean 3.000 on the scale 1 to 5"
    assert summary([ROWS[1]], scorer).startswith("0 images scored; 1 could not be")


def test_bands_and_what_is_unfamiliar_are_shown(
    demo_scorer: Scorer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = [
        Row("a.png", 3.0, 0.5, 40, 30, None, None, 1.92, 4.08, False),
        Row("b.png", 4.5, 0.9, 9, 9, None, None, 3.42, 5.0, True)
    ]  # fmt: skip
    write_scores(iter(rows), demo_scorer, out=None, form="table")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("backbone demo-vit (in-house weights); bands hold 90 % of images like those")
    assert lines[1:] == [
        " score  90 % band     1                      5  image",
        "  3.00   1.92 - 4.08  ████████████············  a.png",
        "  4.50   3.42 - 5.00  █████████████████████···  b.png  unfamiliar",
    ]
    assert summary(rows, demo_scorer).endswith(
        "; 1 unfamiliar: unlike the training images, so nobody vouches for score and band"
    )
    write_scores(iter([*rows, Row("c.png", error="bad")]), demo_scorer, out=tmp_path / "s.csv", form=None)
    table = pd.read_csv(tmp_path / "s.csv")
    assert table["low"].tolist()[:2] == [1.92, 3.42]
    assert table["level"].tolist()[:2] == [90, 90]
    assert table["unfamiliar"].tolist()[:2] == [False, True]
    assert table.iloc[2].notna().sum() == 4  # image, scale and error
    write_scores(iter(rows), replace(demo_scorer, level=75), out=tmp_path / "s.json", form=None)
    document = json.loads((tmp_path / "s.json").read_text())
    assert (document["checkpoint"]["calibrated"], document["checkpoint"]["level"]) == (True, 75)
    assert {row["level"] for row in document["images"]} == {75}


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_ties_are_marked(demo_scorer: Scorer, capsys: pytest.CaptureFixture[str], tmp_path: Path, kind: str) -> None:
    rows = [Row(f"{score}.png", score, score / 5, 9, 9, low=score - 1, high=5.0) for score in (1.5, 4.0, 3.5)]
    ranked = rank(rows, ["a"] * 3)
    write_ranks(ranked, demo_scorer, out=None, form="table")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:4] == [
        "= shares its place: the scores are within the band of the first of them; still best first", "", "a"
    ]  # fmt: skip
    assert [line[:14] for line in lines[4:]] == ["  =1.   4.00  ", "  =1.   3.50  ", "   3.   1.50  "]
    out = tmp_path / f"ranks.{kind}"
    write_ranks(ranked, demo_scorer, out=out, form=None)
    if kind == "json":
        table = pd.DataFrame(json.loads(out.read_text())["images"])
    else:
        table = pd.read_csv(out) if kind == "csv" else pd.read_parquet(out)
    assert table[["order", "place", "tie"]].to_numpy().tolist() == [[1, 1, True], [2, 1, True], [3, 3, False]]
