"""Tables of splits as others publish them."""

import re
from pathlib import Path

import pandas as pd
import pytest

from pipeline.data.parts import (
    NAME_COLUMNS,
    PROMPT_COLUMNS,
    SplitTableError,
    find_files,
    find_pairs,
    name_images,
    read_part,
)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train.csv", "test.csv"), ("1/train.csv", "1/val.csv"), ("x-train.csv", "x-test.csv"),
        ("AGIQA3k_Train_1.csv", "AGIQA3k_Test_1.csv"), ("train/1.csv", "test/1.csv"),
        ("test run/train.tsv", "test run/validation.tsv"), ("training.txt", "testing.txt"),
    ],
)  # fmt: skip
def test_a_split_is_two_tables_whose_paths_differ_in_one_word(tmp_path: Path, train: str, test: str) -> None:
    touch(tmp_path, train, test, "data.csv", "train.py", "contest.csv")
    assert find_pairs(tmp_path) == ([(tmp_path / train, tmp_path / test)], [])


def test_both_other_parts_are_compared_and_what_stands_alone_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "a/train.csv", "a/test.csv", "a/val.csv", "b/train.csv", "c/test.csv", ".hidden/train.csv")
    pairs, alone = find_pairs(tmp_path)
    a = tmp_path / "a"
    assert pairs == [(a / "train.csv", a / "test.csv"), (a / "train.csv", a / "val.csv")]
    assert alone == [tmp_path / "b/train.csv", tmp_path / "c/test.csv"]
    with pytest.raises(SplitTableError, match=re.escape(f"{tmp_path / 'b'} holds no split: two tables whose paths")):
        find_pairs(tmp_path / "b")


@pytest.mark.parametrize("prompt", PROMPT_COLUMNS)
@pytest.mark.parametrize("image", NAME_COLUMNS)
def test_columns_go_by_many_names(tmp_path: Path, prompt: str, image: str) -> None:
    (tmp_path / "t.csv").write_text(f"mos;{image.title()};{prompt.upper()};Model\n1;./a\\b.png;a cat, asleep;sdxl\n")
    table = read_part(tmp_path / "t.csv")
    assert table.to_dict("index") == {2: {"prompt": "a cat, asleep", "image": "a/b.png", "generator": "sdxl"}}


def test_columns_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("what,prompt,pic\na dog,7,a.png\n")
    table = read_part(tmp_path / "t.csv", "What", "pic")
    assert table.iloc[0].tolist() == ["a dog", "a.png", ""]
    assert read_part(tmp_path / "t.csv")["image"].tolist() == [""]


def test_tables_without_column_names(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("all/a.png\t3.5\t2\ta cat, asleep\nall/b.jpg\t1\t4\t12\n\nall/c.png\t1\t4\ta dog\n")
    table = read_part(tmp_path / "t.txt")
    assert table["prompt"].to_dict() == {1: "a cat, asleep", 2: "12", 4: "a dog"}
    assert table["image"].tolist() == ["all/a.png", "all/b.jpg", "all/c.png"]
    (tmp_path / "u.txt").write_text("a.png\tsdxl\ta cat\nb.png\tflux\ta dog\n")
    with pytest.raises(SplitTableError, match=r"u\.txt has no column 'prompt' or .*3 columns without names.*1 for the"):
        read_part(tmp_path / "u.txt")
    assert read_part(tmp_path / "u.txt", "3")["prompt"].tolist() == ["a cat", "a dog"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,promt\na.png,x\n", "t.csv has no column 'prompt' or 'generation_prompt' or"),
        ("image,promt\na.png,x\n", "it has 'image', 'promt'; is it 'promt'?: name the column with --prompt-column"),
        ("image,prompt\na.png,\nb.png,\n", "t.csv: column 'prompt' is empty"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(SplitTableError, match=re.escape(message)):
        read_part(tmp_path / "t.csv")


def test_a_table_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    touch(tmp_path, "Train.csv")
    with pytest.raises(SplitTableError, match=r"train\.csv does not exist; is it Train\.csv\?"):
        read_part(tmp_path / "train.csv")
    (tmp_path / "t.csv").write_text("image,prompt\na.png,x\n")
    with pytest.raises(SplitTableError, match=r"has no column 'nam'; it has 'image', 'prompt'.*with --image-column"):
        read_part(tmp_path / "t.csv", None, "nam")


def part(*rows: tuple[str, str]) -> pd.DataFrame:
    return pd.DataFrame([("x", *row) for row in rows], columns=["prompt", "image", "generator"])


def test_a_generator_parts_images_of_one_name() -> None:
    train, test = part(("1.png", "a"), ("2.png", "a")), part(("1.png", "b"), ("", "b"))
    name_images(train, test)
    assert (train["image"].tolist(), test["image"].tolist()) == (["a/1.png", "a/2.png"], ["b/1.png", ""])
    train, test = part(("1.png", "a")), part(("1.png", "a"), ("2.png", "b"))
    name_images(train, test)
    assert test["image"].tolist() == ["1.png", "2.png"]


def test_files_are_found_by_their_path_its_end_or_their_name(tmp_path: Path) -> None:
    touch(tmp_path, "img/a.png", "A/1.png", "B/1.png", "deep/er/C/2.png", "D/2.png", "notes.txt")
    names = ["img/a.png", "all/a.png", "a.png", "b/1.png", "c/2.png", "1.png", "3.png", "x" * 300 + ".png"]
    files, faults = find_files(names, tmp_path)
    assert {name: path.relative_to(tmp_path).as_posix() for name, path in files.items()} == {
        "img/a.png": "img/a.png", "all/a.png": "img/a.png", "a.png": "img/a.png", "b/1.png": "B/1.png",
        "c/2.png": "deep/er/C/2.png",
    }  # fmt: skip
    assert faults["1.png"] == f"lies in 2 folders of {tmp_path}: write its path"
    assert faults["3.png"] == f"does not exist in {tmp_path}"
    assert len(faults) == 3
