"""Tables as editors, systems and spreadsheets write them."""

import csv
import io
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.data.labels import DatasetError
from pipeline.data.tables import column_of, near_column, read_cells, read_table


def read(folder: Path, content: str | bytes) -> tuple[list[str], dict[int, list[str]]]:
    path = folder / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    cells = read_cells(path)
    return cells.columns, dict(zip(cells.numbers, cells.rows, strict=True))


PLAIN = (["image", "mos"], {2: ["a.png", "1.5"], 3: ["b c.png", "2"]})


@pytest.mark.parametrize("separator", [",", ";", "\t", "|", " , ", "; "])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_every_common_dialect_is_read_alike(tmp_path: Path, separator: str, end: str, coding: str) -> None:
    lines = [separator.join(row) for row in (["image", "mos"], ["a.png", "1.5"], ["b c.png", "2"])]
    for text in (end.join(lines), end.join(lines) + end, end.join(lines) + 3 * end):
        assert read(tmp_path, text.encode(coding)) == PLAIN


@pytest.mark.parametrize("mark", ["sep=;", "SEP=;", '"sep=;"', "sep=; "])
def test_a_line_that_names_the_separator_is_believed(tmp_path: Path, mark: str) -> None:
    found = read(tmp_path, f"{mark}\r\nimage;mos\r\na,b,c.png;1,5\r\n")
    assert found == (["image", "mos"], {3: ["a,b,c.png", "1,5"]})


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('image;mos;"rater a, b, c, d"\na;1;x\n', ["image", "mos", "rater a, b, c, d"]),
        ("image;mos;rater a, b, c, d\na;1;x\n", ["image", "mos", "rater a, b, c, d"]),
        ('image\tmos\t"x; y; z, w"\na\t1\tx\n', ["image", "mos", "x; y; z, w"]),
        ("image,mos,x;y;z;w\na,1,x\n", ["image", "mos", "x;y;z;w"]),
        ("image\na,b.png\n", ["image"]),
        ("photo,stars\na;b;c,1\nd;e;f,2\n", ["photo", "stars"]),
        ("photo;note\na;x, y\nb;z\n", ["photo", "note"]),
    ],
)
def test_the_separator_is_that_between_names(tmp_path: Path, text: str, names: list[str]) -> None:
    assert read(tmp_path, text)[0] == names


def test_rows_are_counted_as_a_spreadsheet_counts(tmp_path: Path) -> None:
    text = '# made by x, on y\n\nimage,mos,prompt\na.png,1,"two\nlines"\n\n,,\n# nothing here\nb.png,2,"a ""b"""\n'
    names, rows = read(tmp_path, text)
    assert names == ["image", "mos", "prompt"]
    assert rows == {4: ["a.png", "1", "two\nlines"], 8: ["b.png", "2", 'a "b"']}
    assert read(tmp_path, "#image,mos\na.png,1\n") == (["image", "mos"], {2: ["a.png", "1"]})
    assert read(tmp_path, "image,mos\n#1.png,1\n") == (["image", "mos"], {2: ["#1.png", "1"]})


def test_blanks_of_every_kind_and_empty_columns_fall_away(tmp_path: Path) -> None:
    assert read(tmp_path, "image , mos,\n\u00a0a.png\u00a0,\u20092\u200b,\n") == (["image", "mos"], {2: ["a.png", "2"]})
    assert read(tmp_path, ",image,mos,,\n0,a.png,2,,\n") == (["column 1", "image", "mos"], {2: ["0", "a.png", "2"]})
    assert read(tmp_path, "image,mos,note\na.png,2\nb.png,3,x,,,\n")[1] == {
        2: ["a.png", "2", ""],
        3: ["b.png", "3", "x"],
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: it needs a row of column names, such as image,mos"),
        (b"\n\n# nothing\n", "is empty: it needs a row of column names, such as image,mos"),
        (b"image,mos\n\n", "has no row below its column names"),
        (b"image,mos\na,1\n\0\0\0", "row 3 holds a zero byte: the file is damaged, or no text"),
        (b"image,mos\r\na\0,1\r\n", "row 2 holds a zero byte: the file is damaged, or no text"),
        (b"image,mos\na,1\n\xe4,2\n", "is no UTF-8 text: save it as `CSV UTF-8` (row 3 holds the byte 0xE4)"),
        (b"\xff\xfei\0m\0a", "is damaged UTF-16 text: save it as `CSV UTF-8`"),
        (b"PK\x03\x04xx", "is a spreadsheet's or an archive's own file, not a CSV: save or export it as `CSV UTF-8`"),
        (b"\xd0\xcf\x11\xe0", "is an old spreadsheet's own file, not a CSV: save or export it as `CSV UTF-8`"),
        (b"<!DOCTYPE html>", "is a web page, not a CSV: save or export it as `CSV UTF-8`"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
         "is a pointer of Git LFS in place of the file itself: `git lfs pull` in its clone fetches that"),
        (b"image,mos\na,1\nb,2,3\n", "row 3 has 3 cells, and row 1 names 2 columns; cells are parted by commas: put "
         "quotes around a text that holds one"),
        (b"image;mos\na;1;2\n", "row 2 has 3 cells, and row 1 names 2 columns; cells are parted by semicolons: put "
         "quotes around a text that holds one"),
        (b"image,mos\na,1\nb,\"2\nc,3\n", "a quote that opens in row 3 is never closed"),
        (b"image,mos,MOS\na,1,2\n", "columns 2 and 3 are both named 'MOS': keep or rename one"),
        (b"image,mos\na," + b"x" * 2_000_000 + b"\n", "row 2 cannot be read: field larger than field limit (1048576)"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_told_with_its_row(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "t.csv"
    with pytest.raises(DatasetError, match=f"^{re.escape(str(path))}:? {re.escape(message)}$"):
        read(tmp_path, content)


def test_columns_are_found_in_letters_of_any_size() -> None:
    assert column_of(["Image ", "PROMPT"], ["path", "prompt"]) == "PROMPT"
    assert column_of(["a"], ["b"]) is None
    assert near_column("promt", ["Image", "Prompt"]) == "; is it 'Prompt'?"
    assert near_column("zzz", ["Image", "Prompt"]) == ""


# What a cell can hold and still be told from another: control characters are none of it.
CELLS = st.text(
    st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="\u200b\u200e\u200f\u2060\ufeff")
    | st.sampled_from(',;\t|"\n#')
).map(str.strip)


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[str], list[list[str]]]:
    extra = draw(st.lists(CELLS.filter(lambda name: name.strip()), max_size=3, unique_by=str.casefold))
    names = ["image", "mos", *[name for name in extra if name.casefold() not in ("image", "mos")]]
    image = CELLS.filter(lambda cell: cell and not cell.startswith("#"))
    row = st.tuples(image, *[CELLS] * (len(names) - 1)).map(list)
    return names, draw(st.lists(row, min_size=1, max_size=6))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    table=tables(),
    separator=st.sampled_from(",;\t|"),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    coding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
)
def test_any_table_of_any_dialect_is_read_back(
    tmp_path: Path, table: tuple[list[str], list[list[str]]], separator: str, end: str, coding: str, quoting: int
) -> None:
    names, rows = table
    if any("\n" in cell for row in (names, *rows) for cell in row):
        quoting = csv.QUOTE_ALL  # the writer leaves line ends other than its own without quotes
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=separator, lineterminator=end, quoting=quoting)
    writer.writerows([names, *rows])
    found_names, found = read(tmp_path, buffer.getvalue().encode(coding))
    assert found_names == names
    assert list(found.values()) == rows
    assert list(found) == list(range(2, len(rows) + 2))


def test_a_table_of_text_holds_the_same_cells(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("image;mos;;\n\na.png;1,5;;x\n# a note\nb.png;;;\n")
    table = read_table(path)
    assert table.columns.tolist() == read_cells(path).columns == ["image", "mos", "column 4"]
    assert table.index.tolist() == [3, 5]
    assert table.to_numpy().tolist() == [["a.png", "1,5", "x"], ["b.png", "", ""]]
    assert table.attrs["separator"] == ";"
