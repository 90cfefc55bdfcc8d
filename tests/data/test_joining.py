"""How tables name images, and how they become one: every row is held against what was written."""

from pathlib import Path

import pytest

from pipeline.data.joining import Images, folder_generators, join, read_tables
from pipeline.data.labels import DatasetError


def make(folder: Path, files: list[str], **tables: str) -> tuple[Images, list[Path]]:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    for name, text in tables.items():
        (folder / f"{name}.csv").write_text(text)
    return Images.of(folder), [folder / f"{name}.csv" for name in tables]


@pytest.mark.parametrize(
    ("cell", "beside", "found"),
    [
        ("a/0.png", (), "img/a/0.png"),
        ("A\\0.PNG", (), "img/a/0.png"),
        ("./img/b/0.png", (), "img/b/0.png"),
        ("/mnt/x/img/b/0.png", (), "img/b/0.png"),
        ("0.png", (), None),  # in two folders
        ("0", ("B", "3.5"), "img/b/0.png"),
        ("1.5_x", (), "img/a/1.5_x.jpg"),
        ("c/1.5_x.jpg", (), None),  # another folder's
        ("", (), None),
        ("9.png", (), None),
    ],
)
def test_a_cell_names_a_file(tmp_path: Path, cell: str, beside: tuple[str, ...], found: str | None) -> None:
    images, _ = make(tmp_path, ["img/a/0.png", "img/b/0.png", "img/a/1.5_x.jpg", "notes.txt", ".hid.png"])
    assert images.files == ["img/a/0.png", "img/a/1.5_x.jpg", "img/b/0.png"]
    assert images.find(cell, beside) == found


def test_a_table_of_prompts_is_joined_over_their_number_even_where_files_are_numbers(tmp_path: Path) -> None:
    images, paths = make(
        tmp_path, [f"{k}.png" for k in range(6)],
        scores="id,prompt_no,mos\n" + "".join(f"{k},{k // 2},{k}.5\n" for k in range(6)),
        prompts="prompt_no,prompt\n2,c\n0,a\n1,b\n",
    )  # fmt: skip
    joined = join(read_tables(images, paths, None))
    cells = {f"{column.table}:{column.name}": column.cells.tolist() for column in joined.columns}
    assert joined.image == "id"
    assert joined.files == [f"{k}.png" for k in range(6)]
    assert cells["prompts.csv:prompt"] == ["a", "a", "b", "b", "c", "c"]
    assert [column.joined for column in joined.columns if column.name == "prompt"] == ["joined over prompt_no"]


def test_rows_without_an_image_stay_and_tables_of_something_else_are_told(tmp_path: Path) -> None:
    images, paths = make(
        tmp_path, ["a.png", "b.png"], scores="image,mos\na.png,1\nb.png,2\nc.png,3\n",
        more="file,tag\nb.png,x\n", other="who,age\nme,40\n",
    )  # fmt: skip
    joined = join(read_tables(images, paths, None))
    assert joined.files == ["a.png", "b.png", None]
    assert joined.names == ["a.png", "b.png", "c.png"]
    assert {column.name: column.cells.tolist() for column in joined.columns} == {
        "mos": ["1", "2", "3"], "tag": ["", "x", ""],
    }  # fmt: skip
    assert joined.unused == ["other.csv: it names no image, and shares no column with a table that does"]


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"a": "x,y\n1,2\n"}, r"no column names images of the folder: say --map image=COLUMN; a\.csv has 'x', 'y'"),
        ({"a": "image,file\na.png,b.png\nb.png,a.png\n"}, r"a\.csv: columns 'image' and 'file' both name images: say"),
        ({"a": "image,mos\na.png,1\n./a.png,2\n"}, r"a\.csv: rows 2 and 3 are both of a\.png"),
        (
            {"a": "image,mos\na.png,1\n", "b": "image,mos\na.png,2\n"},
            r"a\.csv and b\.csv have the same columns and both name a\.png: say with --table which",
        ),
    ],
)
def test_what_cannot_be_joined_is_told(tmp_path: Path, tables: dict[str, str], message: str) -> None:
    images, paths = make(tmp_path, ["a.png", "b.png"], **tables)
    with pytest.raises(DatasetError, match=message):
        join(read_tables(images, paths, None))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["i/a/1", "i/a/2", "i/b/1", "i/b/2", None], ["a", "a", "b", "b", ""]),
        (["a/1", "a/2", "b/x/1", "b/y/2", "3"], ["a", "a", "b", "b", ""]),
        (["i/1", "i/2", "i/3"], None),
        (["1", "2"], None),
        (["train/1", "train/2", "test/1", "test/2"], None),
        (["p1/1", "p2/1", "p3/1", "p4/1"], None),  # a folder an image
        ([], None),
    ],
)
def test_folders_tell_generators(files: list[str | None], expected: list[str] | None) -> None:
    assert folder_generators(files) == expected
