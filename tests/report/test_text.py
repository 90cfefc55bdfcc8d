"""The report as Markdown: the tables of its files, and what may never stand without its mark."""

import re
from pathlib import Path

import pandas as pd
import pytest
from made_study import make_study

from pipeline.report import text
from pipeline.report.answer import Answer, Headline, Verdict
from pipeline.report.figures import Picture
from pipeline.report.published import published_for
from pipeline.report.report import write_report
from pipeline.report.sections import Section

FEW = ("dcmpln", "shuffled", "clip_iqa")


@pytest.fixture(scope="module")
def written(reported: Path) -> str:
    return (reported / "out/summary.md").read_text()


def main_row(written: str, method: str) -> list[str]:
    line = next(line for line in written.splitlines() if line.startswith(f"| {method} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_table_is_the_one_in_its_file(reported: Path, written: str) -> None:
    files = sorted((reported / "out/tables").glob("*.md"))
    assert len(files) > 10
    for path in files:
        assert f"\n{path.read_text().rstrip()}\n" in written, path.name
    assert len(re.findall(r"^\| --- ", written, re.M)) == len(files)  # and no other table


def test_the_main_rows_follow_from_the_predictions(reported: Path, written: str) -> None:
    files = [reported / f"runs/agiqa3k/dcmpln/round-{k}/evaluate/predictions.csv" for k in range(3)]
    each = pd.Series([table["predicted"].corr(table["mos"], method="spearman") for table in map(pd.read_csv, files)])
    assert main_row(written, "dcmpln")[1].startswith(f"{each.mean():.3f} ± {each.std():.3f} [")
    assert main_row(written, "shuffled")[-1] == "control: trained on shuffled labels"


def test_published_rows_stand_with_their_protocol(written: str) -> None:
    for row in published_for("agiqa3k", "quality"):
        cells = main_row(written, row.method)
        assert cells[1] == f"{row.srcc:.4f}"
        assert cells[4] == f"{row.plcc:.4f}"
        assert cells[8] == row.protocol
        assert "not comparable: our backbone is in-house" in cells[9]


def test_pictures_lie_beside_it_and_name_their_backbone(reported: Path, written: str) -> None:
    pictures = re.findall(r"^!\[(.*)\]\((.*)\)$", written, re.M)
    assert len(pictures) == 16
    for alt, name in pictures:
        assert (reported / "out" / name).is_file()
        assert "Backbone: demo-vit (in-house weights)" in alt


def test_its_headings_and_folds_are_whole(written: str) -> None:
    assert written.count("<details><summary>") == written.count("\n\n</details>") > 2
    assert written.count("\n```\n") % 2 == 0
    assert not re.search(r"\n{3}", written)
    assert written.endswith("\n")
    assert not written.endswith("\n\n")


def test_leaks_are_marked_and_one_round_claims_no_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.report.figures.draw", lambda *_: [])
    make_study(tmp_path, methods=FEW, rounds=(0,), leaks=("random split",))
    write_report(
        tmp_path / "out", "toy", ["demo"], FEW, [0],
        runs=tmp_path / "runs", splits=tmp_path / "data/splits", prepared=tmp_path / "data/prepared",
    )  # fmt: skip
    found = (tmp_path / "out/summary.md").read_text()
    assert "One round has no spread over rounds" in found
    assert re.match(r"0\.\d{3} ± — \[", main_row(found, "dcmpln")[1])
    assert all("LEAKS: random split" in main_row(found, method)[-1] for method in FEW)
    assert "On **demo** no method is named best: every one leaks." in found
    assert "LEAKS in every row: random split" in found


def test_every_kind_of_block_has_a_form_but_the_gallery() -> None:
    blocks = [("text", "One."), ("heading", "demo"), ("facts", [("Device", "cpu"), ("Code", "`a`")]), ("gallery", {})]
    picture = Picture("p", "A picture", "What it shows.", "How to read it.", "Backbone: b")
    one = Answer("demo", Verdict("`a` is best.", "95 %", ["Shown."], ["this", "that"]), None, None)
    other = Answer("x", Verdict("None.", "", [], ["all"]), None, None)
    blocks += [("headline", Headline([one, other], picture)), ("folded", ("More", [("text", "Two."), ("code", "ls")]))]
    whole = text.render("toy", "Backbone: b", [Section("s", "Title", blocks)])
    assert whole.startswith("# toy\n\nBackbone: b. The same report")
    assert whole.split("\n\n")[2:] == [
        *("## Title", "One.", "### demo", "- Device: cpu\n- Code: `a`"),
        *("- `a` is best. (95 %)\n- None.", "![What it shows. Backbone: b.](p.png)"),
        *("### demo", "Not shown:", "- this\n- that", "Shown.", "### x", "Not shown:", "- all"),
        *("<details><summary>More</summary>", "Two.", "```\nls\n```", "</details>\n"),
    ]
    with pytest.raises(ValueError, match="a block of kind 'poem' has no form in Markdown"):
        text.render("toy", "b", [Section("s", "Title", [("poem", "")])])
