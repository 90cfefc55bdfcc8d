"""From somebody's folder and tables to a data set of the study, in one command that asks nothing."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.cli import main
from pipeline.data.datasets import read_labels
from pipeline.data.init_data import LABELS, look, with_data_set
from pipeline.data.labels import DatasetError
from pipeline.params import load_params

PARAMS = Path(__file__).resolve().parents[2] / "params" / "demo.yaml"
GENERATORS = ("dalle", "glide", "sd1.5")


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(path)


def public(folder: Path, count: int = 12) -> pd.DataFrame:
    """Make the shape in which people publish: two CSVs, columns of their own, images in sub-folders by generator.

    Every sub-folder has the same file names, as programs write them.
    """
    rows = []
    for number in range(count):
        generator, name = GENERATORS[number % 3], f"{number // 3:03d}.png"
        draw(folder / "images" / generator / name, number)
        rows.append(
            {
                "Filename": f"{generator}/{name}",
                "rating": 1.25 + number * 0.21,
                "rating_sd": 0.5,
                "n_votes": 20 + number % 2,
                "prompt_id": number // 3,
            }
        )
    table = pd.DataFrame(rows)
    table.to_csv(folder / "ratings.csv", index=False)
    prompts = pd.DataFrame(
        {"prompt_id": range(count // 3), "Text Prompt": [f"a scene, number {k}" for k in range(count // 3)]}
    )
    prompts.to_csv(folder / "prompts.csv", index=False, sep=";")
    return table


@pytest.fixture
def home(in_tmp: Path) -> Path:
    """Return an empty repository with params, in which the test runs."""
    shutil.copy(PARAMS, in_tmp / "params.yaml")
    (in_tmp / "my images").mkdir()
    return in_tmp


def test_the_public_shape_becomes_a_data_set(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = public(home / "my images")
    before = {path: path.read_bytes() for path in (home / "my images").rglob("*") if path.is_file()}
    assert main(["init-data", "my images"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "my images: 12 images; 12 rows in ratings.csv"
    assert [" ".join(line.split()) for line in told[1:8]] == [
        "image Filename names 12 of 12 images",
        "mos rating by its name",
        "std rating_sd by its name",
        "prompt prompts.csv: Text Prompt by its name; joined over prompt_id",
        "generator (folder) no column says it; 3 folders hold the images: dalle, glide, sd1.5",
        "scale 1 to 5 the smallest usual scale that holds 1.25 to 3.56; another: --scale LOW HIGH",
        "not read ratings.csv: n_votes",
    ]
    assert "next: agiqa plan says what will run and how long; dvc repro runs it" in told
    assert {path: path.read_bytes() for path in before} == before
    params = load_params("params.yaml")
    assert (params.study.name, params.study.datasets) == ("my_images", ["my_images"])
    mine = params.datasets["my_images"]
    assert (mine.source, mine.labels, mine.scale) == ("my images", LABELS, [1, 5])
    rows = read_labels("folder", "my images", labels_file=mine.labels, scale=(1, 5)).rows
    expected = table.assign(file="images/" + table["Filename"]).sort_values("file")
    assert rows["file"].tolist() == expected["file"].tolist()
    np.testing.assert_allclose(rows["quality"], expected["rating"])
    assert rows["generator"].tolist() == [name.split("/")[0] for name in expected["Filename"]]
    assert rows["generation_prompt"].tolist() == [f"a scene, number {k}" for k in expected["prompt_id"]]
    text = (home / "params.yaml").read_bytes()
    assert main(["init-data", "my images"]) == 0  # once more changes nothing
    assert (home / "params.yaml").read_bytes() == text


def test_a_table_that_the_reader_takes_needs_no_other_and_the_block_is_three_lines(home: Path) -> None:
    folder = home / "my images"
    for number in range(4):
        draw(folder / f"{number}.png", number)
    (folder / "r.csv").write_text("image,mos,prompt\n" + "".join(f"{k}.png,{k + 1},p{k}\n" for k in range(4)))
    assert main(["init-data", "my images", "--name", "mine"]) == 0
    assert not (folder / LABELS).exists()
    lines = (home / "params.yaml").read_text().splitlines()
    place = lines.index("  mine:")
    assert lines[place + 1 : place + 5] == ["    reader: folder", "    source: my images", "    scale: [1, 5]", ""]


def own(
    folder: Path, text: str, names: tuple[str, ...] = ("0.png", "1.png", "2.png", "3.png"), table: str = "a.csv"
) -> None:
    for seed, name in enumerate(names):
        draw(folder / name, seed)
    (folder / table).write_text(text)


def rows_of(*cells: str) -> str:
    return "".join(f"{k}.png,{','.join(part.replace('#', str(k)) for part in cells)}\n" for k in range(4))


@pytest.mark.parametrize(
    ("head", "cells", "options", "message"),
    [
        ("file,rating,score", ("1.5#", "2.5#"), [],
         "'a.csv: rating' and 'a.csv: score' could both be the MOS: say --map mos=ra"),
        ("file,beauty,detail", ("1.5#", "2.5#"), [],
         "'a.csv: beauty' and 'a.csv: detail' could both be the MOS: say --map mos=beauty"),
        ("file,mos,quality", ("1.5#", "2.5#"), [], "could both be the MOS: say --map mos=mos"),
        ("file,mos,sd,std dev", ("1.5#", ".1", ".2"), [], "could both be the std: say --map std=sd"),
        ("file,tag", ("x#",), [], "no column holds the MOS: say --map mos=COLUMN; columns: a.csv: tag"),
        ("file,mos", ("-1#.5",), [],
         "the scores run from -13.5 to -10.5, which no usual scale holds: say --scale LOW HIGH"),
        ("file,mos", ("1.5#",), ["--map", "mos=rating"], "--map mos=rating: no table has this column; they have 'mos'"),
        ("file,mos", ("1.5#",), ["--map", "moss=mos"],
         "--map moss=mos: say OURS=COLUMN, where ours is one of image, mos"),
        ("file,mos", ("1.5#",), ["--map", "mos="], "--map mos=: a data set needs its mos: name a column"),
        ("file,mos", ("1.5#",), ["--table", "b.csv"], "--table b.csv: my images/b.csv does not exist"),
        ("file,mos", ("1.5#",), ["--name", "agiqa3k"],
         "datasets.agiqa3k is the ready-made data set of the reader agiqa3k"),
        ("file,mos", ("1.5#",), ["--name", "a-b"], "a name has letters from A to Z, digits and _"),
    ],
)  # fmt: skip
def test_what_is_ambiguous_or_wrong_is_one_line_and_writes_nothing(
    home: Path, capsys: pytest.CaptureFixture[str], head: str, cells: tuple[str, ...], options: list[str], message: str
) -> None:
    own(home / "my images", f"{head}\n{rows_of(*cells)}")
    before = (home / "params.yaml").read_bytes()
    assert main(["init-data", "my images", *options]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("agiqa: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert (home / "params.yaml").read_bytes() == before
    assert not (home / "my images" / LABELS).exists()


def test_the_user_decides(home: Path) -> None:
    own(home / "my images", f"file,rating,score,seed\n{rows_of('1.5#', '72.#', '#')}")
    found = look(home / "my images", wanted={"quality": "score", "quality_std": ""}, scale=(0, 100))
    assert str(found.taken["quality"].column) == "a.csv: score"
    assert found.table().to_csv(index=False) == "image,mos\n" + rows_of("72.#")


def test_a_users_files_are_replaced_only_if_told(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = home / "my images"
    own(folder, f"file,rating\n{rows_of('1.5#')}")
    assert main(["init-data", "my images"]) == 0
    (folder / LABELS).write_text("image,mos\n0.png,2\n")  # mended by hand
    params = (home / "params.yaml").read_bytes()
    assert main(["init-data", "my images"]) == 2
    assert f"my images/{LABELS} is there and says something else" in capsys.readouterr().err
    assert (folder / LABELS).read_text() == "image,mos\n0.png,2\n"
    assert main(["init-data", "my images", "--scale", "0", "10"]) == 2
    assert "datasets.my_images is there and says something else" in capsys.readouterr().err
    assert (home / "params.yaml").read_bytes() == params
    assert main(["init-data", "my images", "--scale", "0", "10", "--overwrite"]) == 0
    assert load_params("params.yaml").datasets["my_images"].scale == [0, 10]
    assert (folder / LABELS).read_text() == "image,mos\n" + rows_of("1.5#")


def test_problems_are_told_and_can_be_allowed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own(home / "my images", f"file,rating\n{rows_of('1.5#')}9.png,2\n")
    draw(home / "my images" / "unrated.png", 9)
    assert main(["init-data", "my images"]) == 1
    told = capsys.readouterr().out
    assert "missing          9.png: row 6: 9.png does not exist" in told
    assert "2 problems stop the study; all of them: agiqa check my images/agiqa-labels.csv --scale 1 5" in told
    assert "--allow missing unlabelled --overwrite" in told
    assert main(["init-data", "my images", "--allow", "missing", "unlabelled", "--overwrite"]) == 0
    assert load_params("params.yaml").datasets["my_images"].allow_problems == ["missing", "unlabelled"]


def test_a_second_data_set_stands_behind_the_first_and_a_chosen_name_stays(tmp_path: Path) -> None:
    text, params = PARAMS.read_text(), load_params(PARAMS)
    one = with_data_set(text, params, "one", {"reader": "folder", "source": "a", "scale": [0, 1]})
    assert "  name: one\n  datasets: [one]\n" in one
    path = tmp_path / "params.yaml"
    path.write_text(one.replace("name: one", "name: chosen"))
    two = with_data_set(
        path.read_text(), load_params(path), "two", {"reader": "folder", "source": "b", "scale": [0, 1]}
    )
    assert "  name: chosen\n  datasets: [one, two]\n" in two


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        # one name in every folder, told apart by a column; no suffix; the image's name without one
        ({"a.csv": "img,model,mos\n0,dalle,1.5\n0,glide,2.5\n"},
         [("images/dalle/0.png", "1.5"), ("images/glide/0.png", "2.5")]),
        # a path from another machine, in a spreadsheet's CSV with decimal commas
        ({"a.csv": "Bild;MOS\nC:\\x\\images\\dalle\\0.png;1,5\nC:\\x\\images\\glide\\0.png;2,5\n"},
         [("images/dalle/0.png", "1.5"), ("images/glide/0.png", "2.5")]),
        # one table a generator
        ({"dalle.csv": "path,mos\ndalle/0.png,1.5\n", "glide.csv": "path,mos\nglide/0.png,2.5\n"},
         [("images/dalle/0.png", "1.5"), ("images/glide/0.png", "2.5")]),
        # scores apart from what else is known, joined over the image
        ({"m.csv": "path,mos\ndalle/0.png,1.5\nglide/0.png,2.5\n",
          "p.tsv": "file\tcaption\nglide/0.png\tb\ndalle/0.png\ta\n"},
         [("images/dalle/0.png", "1.5", "a"), ("images/glide/0.png", "2.5", "b")]),
    ],
)  # fmt: skip
def test_tables_name_images_as_they_like(
    tmp_path: Path, tables: dict[str, str], expected: list[tuple[str, ...]]
) -> None:
    for name in ("images/dalle/0.png", "images/glide/0.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    for name, text in tables.items():
        (tmp_path / name).write_text(text)
    made = look(tmp_path).table().drop(columns="generator", errors="ignore")
    assert sorted(map(tuple, made.to_numpy().tolist())) == expected


def test_raw_ratings_and_repeats_are_told(tmp_path: Path) -> None:
    own(tmp_path, "file,rater,mos\n0.png,a,1\n0.png,b,2\n1.png,a,3\n")
    with pytest.raises(
        DatasetError, match=r"^a\.csv: rows 2 and 3 are both of 0\.png: it takes one row an image; where"
    ):
        look(tmp_path)


def test_a_spreadsheets_own_file_is_named(tmp_path: Path) -> None:
    draw(tmp_path / "0.png", 0)
    (tmp_path / "scores.xlsx").write_bytes(b"PK\x03\x04")
    with pytest.raises(DatasetError, match=r"holds no CSV or TSV with the images' scores: save scores\.xlsx there as"):
        look(tmp_path)
