"""Splits with known overlaps: every shared prompt and picture is found, and nothing else."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_images import saved, waves
from PIL import Image

from pipeline.cli import main
from pipeline.data.leaks import KINDS, Leak, compare
from pipeline.data.parts import read_part


def written(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows, columns=["name", "prompt"]).assign(mos=1.0).to_csv(path, index=False)
    return path


def audited(train: Path, test: Path, *more: object) -> int:
    return main(["audit-split", "--train", str(train), "--test", str(test), *map(str, more)])


TRAIN = [("0.png", "a red fox"), ("1.png", "A  cat, asleep."), ("2.png", "a dog"), ("3.png", "two dogs"), ("4.png", "")]
TEST = [("5.png", "a cat, ASLEEP"), ("6.png", "a cat, asleep"), ("3.png", "a bird"), ("7.png", "a cat"), ("8.png", "")]


def test_prompts_and_names_that_both_parts_have(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, test = written(Path("train.csv"), TRAIN), written(Path("test.csv"), TEST)
    audit = compare(read_part(train), read_part(test), (train, test))
    assert audit.leaks == [
        Leak("prompt", "a cat, ASLEEP", "A  cat, asleep.", [2, 3], [3]),
        Leak("name", "3.png", "3.png", [4], [5]),
    ]
    assert (audit.compared, audit.touched, audit.images) == ({"prompt": 3, "name": 5}, 2, (5, 5))
    assert audited(train, test) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "train.csv (5 images) and test.csv (5 images)",
        "  1 of 3 test prompts also stand in train; 2 of 5 test images are of them",
        "  1 of 5 test images also stand in train, by name",
        "  note: 1 of 5 rows of train.csv have no prompt, and share none",
        "  note: 1 of 5 rows of test.csv have no prompt, and share none",
        "    prompt  a cat, ASLEEP: 2 in test, 1 in train",
        "    name    3.png: row 4 of test, row 5 of train",
    ]
    assert captured.err == ""


def test_a_clean_split_is_clean(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, test = written(Path("train.csv"), TRAIN), written(Path("test.csv"), [("9.png", "a cat")])
    assert audited(train, test) == 0
    assert "  0 of 1 test prompts also stand in train; 0 of 1 test images are of them\n" in capsys.readouterr().out


@pytest.mark.parametrize("seed", range(5))
def test_what_is_found_is_what_sets_say(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [(f"{image}.png", f"prompt {prompt}") for image, prompt in rng.integers(0, 40, (60, 2))]
    train, test = written(tmp_path / "train.csv", rows[:40]), written(tmp_path / "test.csv", rows[40:])
    audit = compare(read_part(train), read_part(test), (train, test))
    for kind, column in (("name", 0), ("prompt", 1)):
        shared = {row[column] for row in rows[:40]} & {row[column] for row in rows[40:]}
        leaks = [leak for leak in audit.leaks if leak.kind == kind]
        assert {leak.test for leak in leaks} == shared
        for leak in leaks:
            assert [rows[40 + row - 2][column] for row in leak.test_rows] == [leak.test] * len(leak.test_rows)
            assert leak.train_rows == [row for row in range(2, 42) if rows[row - 2][column] == leak.test]


@pytest.fixture
def pictures(in_tmp: Path) -> tuple[Path, Path]:
    """Return two tables of images of which some are one picture; all prompts differ."""
    folder = Path("img")
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.png").write_bytes(saved(waves(number)))
    (folder / "same bytes.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "same pixels.bmp").write_bytes(saved(waves(1), "BMP"))
    (folder / "jpeg.jpg").write_bytes(saved(waves(2), "JPEG", quality=50))
    (folder / "half.png").write_bytes(saved(waves(3).resize((48, 48))))
    for name, colour in (("black", "black"), ("night", "black"), ("white", "white")):
        (folder / f"{name}.png").write_bytes(saved(Image.new("RGB", (40, 40), colour)))
    theirs = ["0.png", "1.png", "2.png", "3.png", "4.png", "black.png"]
    ours = ["same bytes.png", "same pixels.bmp", "jpeg.jpg", "half.png", "4.png", "5.png", "night.png", "white.png"]
    return tuple(
        written(Path(part), [(name, f"{part} {row}") for row, name in enumerate(names)])
        for part, names in (("train.csv", theirs), ("test.csv", ours))
    )


def test_pictures_that_both_parts_have(pictures: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert audited(*pictures, "--images", "img", "--out", "leaks.json") == 1
    document = json.loads(Path("leaks.json").read_text())["splits"][0]
    found = {(leak["kind"], leak["test"], leak["train"]) for leak in document["leaks"]}
    assert found == {
        ("name", "4.png", "4.png"),
        ("bytes", "same bytes.png", "0.png"),
        ("bytes", "night.png", "black.png"),
        ("pixels", "same pixels.bmp", "1.png"),
        ("near", "jpeg.jpg", "2.png"),
        ("near", "half.png", "3.png"),
    }
    assert document["shared"] == {"prompt": 0, "name": 1, "bytes": 2, "pixels": 1, "near": 2}
    assert document["compared"] == {"prompt": 8, "name": 8, "bytes": 8, "pixels": 8, "near": 8}
    told = capsys.readouterr().out
    for kind, count in document["shared"].items():
        assert f"  {count} of 8 {KINDS[kind]}" in told
    assert "    near    half.png is 3.png of train, " in told


def test_a_picture_that_cannot_be_compared_is_named(
    pictures: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    clean = written(Path("clean.csv"), [("5.png", "x"), ("6.png", "y"), ("7.PNG", "z")])
    assert audited(pictures[0], clean, "--images", "img") == 0
    Path("img/6.png").write_bytes(b"")
    Path("img/7.png").unlink()
    assert audited(pictures[0], clean, "--images", "img") == 1
    captured = capsys.readouterr()
    assert "    not compared: 6.png: is empty (0 bytes)\n" in captured.out
    assert "    not compared: 7.PNG: does not exist in img\n" in captured.out
    assert "agiqa: not all images could be compared" in captured.err


def test_the_list_is_bounded_on_the_terminal_and_whole_in_a_file(
    in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(f"{number}.png", f"prompt\x1b {number}, of many") for number in range(40)]
    train, test = (
        written(Path("train.csv"), rows),
        written(Path("test.csv"), [(f"t{name}", text) for name, text in rows]),
    )
    assert audited(train, test) == 1
    told = capsys.readouterr().out
    assert told.count("prompt\\x1b") == 5
    assert "... and 35 more: --out FILE.csv has all" in told
    assert audited(train, test, "--out", "all.csv") == 1
    assert "... and 35 more: all of them are in all.csv" in capsys.readouterr().out
    table = pd.read_csv("all.csv")
    assert table["test"].tolist() == [text for _, text in rows]
    assert (table["kind"] == "prompt").all()
    assert table["test_rows"].tolist() == table["train_rows"].tolist() == list(range(2, 42))


def test_a_folder_of_splits(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2):
        written(Path(f"db/{number}/train.csv"), TRAIN)
        written(Path(f"db/{number}/val.csv"), TEST if number == 1 else [("9.png", "a bird")])
    written(Path("db/3/test.csv"), TEST)
    assert main(["audit-split", "db", "--out", "all.json"]) == 1
    captured = capsys.readouterr()
    assert "agiqa: passed over, since without a counterpart: 1 (db/3/test.csv)" in captured.err
    assert "agiqa: 1 of 2 splits leak" in captured.err
    splits = json.loads(Path("all.json").read_text())["splits"]
    assert [(split["test_table"], split["shared"]["prompt"]) for split in splits] == [
        ("db/1/val.csv", 1),
        ("db/2/val.csv", 0),
    ]


def test_images_of_several_generators_share_no_name(in_tmp: Path) -> None:
    for part, makers in (("train", "ab"), ("test", "bc")):
        rows = [(f"{number}.png", f"{part} {maker} {number}", maker) for maker in makers for number in range(3)]
        pd.DataFrame(rows, columns=["image_name", "prompt", "model"]).to_csv(f"{part}.csv", index=False)
    assert audited(Path("train.csv"), Path("test.csv"), "--out", "all.json") == 1
    leaks = json.loads(Path("all.json").read_text())["splits"][0]["leaks"]
    assert [leak["test"] for leak in leaks] == ["b/0.png", "b/1.png", "b/2.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --train and --test, the tables of one split, or a folder of splits"),
        (["--train", "train.csv"], "give --train and --test, the tables of one split, or a folder of splits"),
        (["db", "--train", "train.csv"], "give --train and --test, the tables of one split, or a folder of splits"),
        (["--train", "train.csv", "--test", "train.csv"], "--train and --test are both train.csv"),
        (["--train", "train.csv", "--test", "Test.csv"], "Test.csv does not exist; is it test.csv?"),
        (["--train", "train.csv", "--test", "bare.csv"], "bare.csv has no column 'prompt' or"),
        (["--train", "train.csv", "--test", "page.csv"], "page.csv is a web page, not a CSV"),
        (["none"], "none is no folder; for one split, give --train and --test"),
        (["empty"], "empty holds no split: two tables whose paths differ in the word train, and test or val"),
        (["--train", "train.csv", "--test", "test.csv", "--out", "a.xls"], "its name must end in .csv or .json"),
        (["--train", "train.csv", "--test", "test.csv", "--out", "test.csv"], "--out is test.csv, which is also an"),
        (["--train", "train.csv", "--test", "test.csv", "--images", "none"], "--images is none, which is no folder"),
        (
            ["--train", "train.csv", "--test", "test.csv", "--images", "empty"],
            "--images is empty, which holds none of the images, such as '0.png'",
        ),
        (["--train", "train.csv", "--test", "words.csv", "--images", "empty"], "words.csv names no image, so --images"),
    ],
)
def test_a_users_mistake_is_one_line(
    in_tmp: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    written(Path("train.csv"), TRAIN)
    written(Path("test.csv"), TEST)
    Path("bare.csv").write_text("name,mos\na.png,1\n")
    Path("words.csv").write_text("prompt,mos\na cat,1\n")
    Path("page.csv").write_text("<!DOCTYPE html>")
    Path("empty").mkdir()
    assert main(["audit-split", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("agiqa: error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert {path.name for path in Path().iterdir()} == {
        "train.csv", "test.csv", "bare.csv", "words.csv", "page.csv", "empty",
    }  # fmt: skip


def test_on_the_real_labels_a_random_split_leaks_and_a_disjoint_one_does_not(agiqa_data: Path, in_tmp: Path) -> None:
    with zipfile.ZipFile(agiqa_data / "agiqa3k" / "AGIQA-3K.zip") as archive:
        table = pd.read_csv(io.BytesIO(archive.read("data.csv")))
    for seed in range(3):
        rng = np.random.default_rng(seed)
        random = rng.permutation(len(table)) < len(table) // 5
        disjoint = table["prompt"].isin(rng.permutation(table["prompt"].unique())[:60]).to_numpy()
        for chosen in (random, disjoint):
            table[~chosen].to_csv("train.csv", index=False)
            table[chosen].to_csv("test.csv", index=False)
            leaks = audited(Path("train.csv"), Path("test.csv"), "--out", "all.json")
            found = json.loads(Path("all.json").read_text())["splits"][0]
            shared = set(table[chosen]["prompt"]) & set(table[~chosen]["prompt"])
            assert found["shared"] == {"prompt": len(shared), "name": 0}
            assert found["compared"] == {"prompt": table[chosen]["prompt"].nunique(), "name": chosen.sum()}
            assert leaks == (chosen is random)
            if chosen is random:
                assert found["shared"]["prompt"] >= 0.99 * found["compared"]["prompt"]
