"""Words and cells: what may never be missing from them."""

import math

import pandas as pd

from pipeline.report import words


def test_numbers_are_written_in_one_way() -> None:
    assert words.figure(-0.0001) == "0.000"
    assert words.figure(0.05, "+") == "+0.050"
    assert words.figure(math.nan) == "—"
    assert words.spread(0.7544, math.nan) == "0.754 ± —"
    assert words.percent(0.9134, 0.0206) == "91.3 ± 2.1 %"
    assert words.percent(1, math.nan) == "100.0 ± — %"
    assert [words.percent(0.019), words.percent(math.nan, 0.1)] == ["1.9 %", "—"]
    assert words.interval(-0.1, 0.25, "+") == "[-0.100, +0.250]"
    assert words.interval(math.nan, 1.0) == "—"
    assert words.span([1200, 3, 40]) == "3 to 1,200"
    assert words.listed(["a", "b", "c"]) == "`a`, `b` and `c`"


def test_no_speed_and_no_span_reads_as_none() -> None:
    speeds = {1234.5: "1,234", 10.0: "10", 9.96: "10.0", 2.5: "2.5", 0.5: "0.50", 0.083: "0.083", 0.0004: "0.00040"}
    assert {speed: words.rate(speed) for speed in speeds} == speeds
    assert [words.rate(speed) for speed in (0.0, math.nan)] == ["—", "—"]
    assert [words.seconds(span) for span in (0.0, 0.049, 0.05, 1234.56)] == ["< 0.1 s", "< 0.1 s", "0.1 s", "1,234.6 s"]
    assert words.seconds(math.nan) == "—"


def test_backbones_and_leaks_are_named() -> None:
    rows = pd.DataFrame(
        {"method": ["a", "b", "c"], "backbone": ["ViT", "none", "ViT"], "leaks": ["", "", "random split"]}
    )
    assert words.backbones(rows) == "Backbone: ViT; none in b"
    assert words.backbones(rows[1:2]) == "No backbone"
    assert words.titled("What is shown", rows) == "What is shown. LEAKS in c: random split."
    assert words.titled("What is shown", rows[:2]) == "What is shown."
    assert words.leaks(pd.concat([rows[2:]] * 2)) == "LEAKS in every row: random split"


def test_train_below_validation_is_explained_where_it_occurs() -> None:
    history = pd.DataFrame(
        {"method": ["a", "a", "b"], "train_srcc": [0.3, 0.6, 0.5], "validation_srcc": [0.4, 0.5, 0.5]}
    )
    text = words.train_below_validation(history)
    assert text.startswith(" In `a` train lies below validation in some epochs, which is no fault: ")
    assert text.endswith(".")
    assert words.train_below_validation(history[1:]) == ""


def test_a_table_cannot_be_broken_by_its_cells() -> None:
    assert words.markdown_table(["a", "b"], [["x|y", "1\n2"]], [1]) == "| a | b |\n| --- | ---: |\n| x\\|y | 1 2 |"


def test_a_row_is_marked_by_its_leaks_and_its_kind() -> None:
    assert words.remarks({"leaks": "", "kind": "variant"}) == ""
    assert words.remarks({"leaks": "random split", "kind": "baseline"}) == "LEAKS: random split; baseline"
    assert words.remarks({"leaks": "", "kind": "control"}) == "control: trained on shuffled labels"


def test_caveats_are_those_of_the_weights_and_of_the_data() -> None:
    in_house = pd.DataFrame({"backbone_origin": ["in-house", "none"]})
    assert [line.split(" ")[1] for line in words.caveats(in_house, generated=True)] == ["in-house", "backbone's"]
    assert words.caveats(in_house, generated=False)[0].startswith("The backbone's weights are in-house.")
    assert words.caveats(pd.DataFrame({"backbone_origin": ["pretrained", "none"]}), generated=True) == []
