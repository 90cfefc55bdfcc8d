"""A data set of one's own: what its CSV may say, and every fault by its row."""

import re
from pathlib import Path

import pytest

from pipeline.data.datasets import read_labels
from pipeline.data.labels import COLUMNS, DatasetError
from pipeline.data.own import read_folder
from pipeline.data.places import shortened
from pipeline.data.tables import OWN_COLUMNS, read_table


def own(folder: Path, text: str, names: list[str] | None = None) -> Path:
    """Write a data set of one's own: a CSV and empty files; a reader decodes none."""
    folder.mkdir(exist_ok=True)
    for name in names or ["a.png", "b.png", "sub/c.jpg"]:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    (folder / "labels.csv").write_bytes(text.encode("utf-8"))
    return folder


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    text = (
        "image,mos,prompt,generator,alignment,std\n"
        'a.png,1.5,"a cat, sleeping",sdxl,2,0.1\nb.png,3,,flux,4,\nc.jpg,5,a dog,,0,0.3\n\n'
    )
    labels = read_labels("folder", own(tmp_path / "own", text), scale=(0, 5))
    rows = labels.rows.set_index("image_id")
    assert labels.rows.columns.tolist() == COLUMNS
    assert (rows.index.tolist(), labels.problems) == (["a.png", "b.png", "sub/c.jpg"], [])
    assert rows["quality"].tolist() == [1.5, 3.0, 5.0]
    assert rows["alignment"].tolist() == [2.0, 4.0, 0.0]
    assert rows["quality_std"].tolist()[::2] == [0.1, 0.3]
    assert rows["generator"].tolist() == ["sdxl", "flux", "unknown"]
    assert rows["generation_prompt"].tolist() == ["a cat, sleeping", "", "a dog"]
    assert rows["prompt_group"].tolist() == ["a cat, sleeping", "no prompt: b.png", "a dog"]
    assert set(rows["mos_low"]) | set(rows["mos_high"]) == {0.0, 5.0}
    assert labels.notes == [
        "1 of 3 images have no generation prompt: each is a group of its own, and no rule can tell which of them are "
        "of one prompt"
    ]


def test_a_spreadsheets_csv_is_read_as_well(tmp_path: Path) -> None:
    text = "\ufeffImage;Quality;mos_low;mos_high;rater\r\na.png;10;0;100;x\r\nsub/c.jpg;90;0;100;y\r\n"
    labels = read_labels("folder", own(tmp_path / "own", text))
    assert labels.rows["file"].tolist() == ["a.png", "sub/c.jpg"]
    assert labels.rows["mos_high"].tolist() == [100.0, 100.0]
    assert labels.notes[0] == "columns that are not read: rater"
    assert labels.rows["prompt_group"].nunique() == 2


def test_what_is_wrong_with_ones_own_data_is_told_row_by_row(tmp_path: Path) -> None:
    text = (
        "image,mos,std\na.png,abc,0.1\nb.png,7,0.1\nsub/c.jpg,,0.1\nd.png,2,0.1\ne.png,2,-1\ne.png,3,1\n"
        '../x.png,1,1\n,1,1\nf.png,"3,5",1\ng.png,1,1\ntwice.png,1,1\n'
    )
    names = ["a.png", "b.png", "sub/c.jpg", "dd.png", "e.png", "f.png", "g.png", "sub/twice.png", "other/twice.png"]
    labels = read_labels("folder", own(tmp_path / "own", text, names), scale=(0, 5))
    assert labels.rows["image_id"].tolist() == ["g.png"]
    assert [tuple(problem) for problem in labels.problems] == [
        ("bad_label", "a.png", "row 2: mos is 'abc', which is no number"),
        ("bad_label", "b.png", "row 3: mos is 7, not in 0..5"),
        ("bad_label", "sub/c.jpg", "row 4: mos is empty"),
        ("missing", "d.png", "row 5: d.png does not exist; is it dd.png?"),
        ("bad_label", "e.png", "row 6: std is -1, and no spread is below 0"),
        ("duplicate_name", "e.png", "row 6: e.png stands in row 7, too"),
        ("duplicate_name", "e.png", "row 7: e.png stands in row 6, too"),
        (
            "missing", "../x.png",
            "row 8: ../x.png lies outside the data set's folder: name images relative to the CSV",
        ),
        ("missing", "row 9", "row 9: no image is named"),
        ("bad_label", "f.png", "row 10: mos is '3,5', which is no number: write a point for the comma"),
        ("missing", "twice.png", "row 12: twice.png lies in 2 folders: write its path"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,mos\na.png,2\n", "nothing says on which scale `mos` is (its values run from 2 to 2): give the lowest"),
        ("image,mos,promt\na.png,2,x\n", "column 'promt' is not known; is it 'prompt'?"),
        ("image,score\na.png,2\n", "lacks the column 'mos'; it has 'image', 'score'"),
        ("mos,prompt\n2,x\n", "lacks the column 'image'; it has 'mos', 'prompt'"),
        ("image,mos,quality\na.png,2,2\n", "columns 'mos' and 'quality' mean the same: keep one"),
        ("image,mos,mos_low,mos_high\na.png,2,1,5\nb.png,2,0,5\n", "mos_low must hold one value in all rows"),
        ("image,mos,mos_low,mos_high\na.png,2,5,1\n", "mos_low must be below mos_high"),
        ("image,mos\n", "has no row below its column names"),
        ("", "is empty: it needs a row of column names"),
        ("image,mos\na.png,2,3,4\n", "row 2 has 4 cells, and row 1 names 2 columns"),
        ("image,mos\na.png,2\nb.png,1,1\n", "row 3 has 3 cells, and row 1 names 2 columns"),
        ("image,mos\n,2\n", "column 'image' is empty"),
    ],
)
def test_ones_own_table_that_cannot_be_read(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DatasetError, match=re.escape(message)):
        read_labels("folder", own(tmp_path / "own", text))


def test_ones_own_table_must_be_found(tmp_path: Path) -> None:
    folder = own(tmp_path / "own", "image,mos\na.png,2\n")
    with pytest.raises(DatasetError, match=r"mos\.csv does not exist: `labels` names the CSV relative"):
        read_labels("folder", folder, labels_file="mos.csv", scale=(0, 5))
    (folder / "more.csv").write_text("x")
    with pytest.raises(DatasetError, match=re.escape("holds 2 CSV files (labels.csv, more.csv): say under `labels`")):
        read_labels("folder", folder, scale=(0, 5))
    assert len(read_labels("folder", folder, labels_file="labels.csv", scale=(0, 5)).rows) == 1
    (folder / "labels.csv").write_bytes("image,mos\nä.png,2\n".encode("latin-1"))
    with pytest.raises(DatasetError, match="is no UTF-8 text: save it as `CSV UTF-8`"):
        read_labels("folder", folder, labels_file="labels.csv", scale=(0, 5))
    (folder / "more.csv").unlink()
    (folder / "labels.csv").unlink()
    with pytest.raises(DatasetError, match="holds no CSV with the labels: it needs one with the columns image and mos"):
        read_labels("folder", folder, scale=(0, 5))


@pytest.mark.parametrize(("ours", "alias"), [(ours, alias) for ours, names in OWN_COLUMNS.items() for alias in names])
def test_every_column_has_its_names(tmp_path: Path, ours: str, alias: str) -> None:
    cells = {"image": "a.png", "quality": "2", "mos_low": "0", "mos_high": "5"}
    cells |= {ours: cells.get(ours, "1")}
    names = [alias.upper() if name == ours else OWN_COLUMNS[name][0] for name in cells]
    text = f"{','.join(names)}\n{','.join(cells.values())}\n"
    labels = read_folder(own(tmp_path / "own", text, ["a.png"]), None, None)
    assert (labels.problems, labels.rows["file"].tolist()) == ([], ["a.png"])
    if ours not in ("image", "mos_low", "mos_high"):
        assert str(labels.rows[ours].iloc[0]).rstrip("0").rstrip(".") == cells[ours]


def test_cells_are_text_without_blanks_at_their_ends(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("\ufeffimage; mos\r\n a.png ;01\r\nNA;\r\n".encode())
    table = read_table(tmp_path / "a.csv")
    assert table.columns.tolist() == ["image", "mos"]
    assert table.to_numpy().tolist() == [["a.png", "01"], ["NA", ""]]


@pytest.mark.parametrize("name", ["a" * 300 + ".png", "loop.png"])
def test_a_name_that_no_file_can_have_is_a_problem_of_its_row(tmp_path: Path, name: str) -> None:
    folder = own(tmp_path / "own", f"image,mos\n{name},2\nb.png,3\n")
    (folder / "loop.png").symlink_to("loop.png")
    labels = read_labels("folder", folder, scale=(0, 5))
    assert labels.rows["image_id"].tolist() == ["b.png"]
    assert [(problem.kind, problem.detail) for problem in labels.problems] == [
        ("missing", f"row 2: {shortened(name)!r} cannot be opened as a path")
    ]


def test_decimal_commas_are_read_where_no_comma_parts_cells(tmp_path: Path) -> None:
    for separator in ";\t|":
        text = "image;mos;std\na.png;1,5;,25\nb.png;3;1\nsub/c.jpg;2,25;0,5\n".replace(";", separator)
        labels = read_labels("folder", own(tmp_path / "own", text), scale=(0, 5))
        assert labels.problems == []
        assert labels.rows["quality"].tolist() == [1.5, 3.0, 2.25]
        assert labels.rows["quality_std"].tolist() == [0.25, 1.0, 0.5]


@pytest.mark.parametrize(
    ("cell", "hint"),
    [
        ("1,5", ": write a point for the comma"), ("1 000", ": write it without separators of thousands"),
        ("1\u00a0000,5", ": write it without separators of thousands"),
        ("1'000.5", ": write it without separators of thousands"), ("80 %", ": write the number alone, without %"),
        ("4/5", ": write the score alone"), ("inf", ""), ("NaN", ""), ("1_0", ""),
    ],
)  # fmt: skip
def test_what_is_no_number_is_told_what_to_write(tmp_path: Path, cell: str, hint: str) -> None:
    text = f"image;mos\na.png;{cell}\nb.png;2.5\n"  # a point and a comma in one column are no one's way to write
    labels = read_labels("folder", own(tmp_path / "own", text), scale=(0, 5000))
    assert [problem.detail for problem in labels.problems] == [f"row 2: mos is {cell!r}, which is no number{hint}"]


def test_side_files_are_neither_labels_nor_images(tmp_path: Path) -> None:
    names = ["a.png", ".ipynb_checkpoints/a.png", "@eaDir/b.png"]
    folder = own(tmp_path / "own", "image,mos\na.png,2\n.ipynb_checkpoints/a.png,3\nb.png,1\n", names)
    for name in (".ipynb_checkpoints/labels-checkpoint.csv", "~$labels.csv", "._labels.csv"):
        (folder / name).write_text("image,mos\n")
    labels = read_labels("folder", folder, scale=(0, 5))
    assert labels.rows["file"].tolist() == ["a.png"]
    assert [problem.detail for problem in labels.problems] == [
        "row 3: .ipynb_checkpoints/a.png is hidden, or a copy that a system or a program made: it is no part of a "
        "data set",
        "row 4: b.png does not exist",
    ]


def test_names_are_found_in_either_composition(tmp_path: Path) -> None:
    folder = own(tmp_path / "own", "image,mos\nsub\\e\u0301.png,2\n", ["sub/\u00e9.png"])
    labels = read_labels("folder", folder, scale=(0, 5))
    assert (labels.problems, labels.rows["file"].tolist()) == ([], ["sub/\u00e9.png"])


def test_a_scale_that_differs_is_told_in_plain_numbers(tmp_path: Path) -> None:
    text = "image,mos,mos_low,mos_high\na.png,2,1,5\nb.png,2,0,5\n"
    with pytest.raises(DatasetError, match=r"mos_low must hold one value in all rows, and holds 0, 1$"):
        read_labels("folder", own(tmp_path / "own", text))
