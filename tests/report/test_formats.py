"""A table's three formats: what they must escape, and that they agree."""

import re
from pathlib import Path

import pandas as pd

from pipeline.report import formats
from pipeline.report.formats import Table


def made(rows: list[list[str]], columns: list[str], note: str = "") -> Table:
    return Table("t", "a_b: 95 %", columns, rows, [""] * len(rows), pd.DataFrame({"a": [1.23456789, None]}), note)


def test_csv_has_the_numbers_and_says_where_there_is_none() -> None:
    assert formats.csv(made([], ["a"])) == 'a\n1.23457\n""\n'


def test_markdown_has_caption_cells_and_note() -> None:
    text = formats.markdown(made([["x|y", "-1.0"]], ["Method", "SRCC"], "A note."))
    assert text == "**a_b: 95 %**\n\n| Method | SRCC |\n| --- | ---: |\n| x\\|y | -1.0 |\n\nA note.\n"


def test_a_file_names_the_backbone_that_the_caption_leaves_out() -> None:
    table = made([["x", "1"]], ["Method", "SRCC"])._replace(caption="A thing.", backbone="Backbone: ViT_B")
    assert formats.markdown(table).startswith("**A thing. Backbone: ViT_B.**\n")
    assert r"\caption{A thing. Backbone: ViT\_B.}" in formats.latex(table)


def test_names_of_others_are_text_in_markdown() -> None:
    rows = [
        ["<img src=x onerror=y>", "a</td>|b", "![x](http://y) &lt; &amp"],
        ["a\r\nb\u2028c", "< 0.001", "[0.1, 0.2]"],
    ]
    lines = formats.markdown(made(rows, ["<b>", "b", "c"])).splitlines()
    assert lines[2] == "| &lt;b> | b | c |"
    assert lines[4] == r"| &lt;img src=x onerror=y> | a&lt;/td>\|b | ![x]\(http://y) &amp;lt; &amp |"
    assert lines[5] == "| a b c | < 0.001 | [0.1, 0.2] |"


def test_a_column_is_one_of_numbers_if_all_its_cells_are() -> None:
    rows = [
        ["1", "0.5 ± 0.1", "< 0.001", "reference", "—", "", "win", "both: +1.0 points"],
        ["2", "—", "[-0.1, 0.2]", "+0.2", "—", "", "0.5", "-3"],
    ]
    assert formats.numeric_columns(made(rows, list("abcdefgh"))) == [1, 2, 3, 4, 7]


def test_latex_is_balanced_and_escaped() -> None:
    frame = pd.DataFrame({"a": [1]})
    rows = [["no_mpa & co", "-0.035 ± 0.010", "at 50 % {x} #1 $ ~ ^ \\ sd-1.5"], ["b", "+0.1", ""]]
    text = formats.latex(Table("t", "a_b: 95 %", ["Method", "SRCC", "Remarks"], rows, ["", ""], frame, "n_1"))
    assert r"no\_mpa \& co & $-$0.035 $\pm$ 0.010 & at 50 \% \{x\} \#1 \$ " in text
    assert r"\textasciitilde{} \textasciicircum{} \textbackslash{} sd-1.5 \\" in text
    assert r"\caption{a\_b: 95 \%}" in text
    assert r"\begin{tabular}{lrl}" in text


def test_every_table_compiles_in_form_and_agrees_in_its_files(reported: Path) -> None:
    files = sorted((reported / "out/tables").glob("*.tex"))
    assert len(files) > 15
    for path in files:
        text = path.read_text()
        assert text.count(r"\begin{") == text.count(r"\end{") == 2
        plain = re.sub(r"\\[\\&%$#_{}]", "", text.split("\n", 1)[1])
        assert plain.count("{") == plain.count("}")
        assert not re.search(r"[_#%]", re.sub(r"\\label\{.*?\}", "", plain)), path
        layout = re.search(r"\\begin\{tabular\}\{([lr]+)\}", text).group(1)
        body = re.search(r"\\toprule\n(.*)\\bottomrule", text, re.S).group(1).replace("\\midrule\n", "")
        lines = body.splitlines()
        assert all(line.endswith(r" \\") for line in lines)
        assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in lines} == {len(layout)}
        markdown = [line for line in path.with_suffix(".md").read_text().splitlines() if line.startswith("| ")]
        assert len(markdown) == len(lines) + 1
        assert path.with_suffix(".csv").stat().st_size > 20
