"""Readers: the published label files, their oddities, and what they refuse."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.io import savemat

from pipeline.data.datasets import read_labels
from pipeline.data.labels import COLUMNS, DatasetError
from pipeline.data.readers import AIGCIQA_GENERATORS


def agiqa3k_table(names: list[str]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "name": names,
            "prompt": [f"prompt {name[-7:-4]}" for name in names],
            "mos_quality": np.linspace(0.5, 4.4, len(names)),
            "std_quality": 0.3,
            "mos_align": np.linspace(4, 0.1, len(names)),
            "std_align": 0.2,
        }
    )


def test_agiqa3k_names_say_generator_and_missing_indices_are_noted(tmp_path: Path) -> None:
    names = ["sd1.5_lowcorr_000.jpg", "sd1.5_lowcorr_002.jpg", "AttnGAN_normal_001.jpg"]
    agiqa3k_table(names).to_csv(tmp_path / "data.csv", index=False)
    labels = read_labels("agiqa3k", tmp_path)
    assert labels.rows.columns.tolist() == COLUMNS
    assert labels.rows["generator"].tolist() == ["AttnGAN", "sd1.5", "sd1.5"]
    assert labels.notes == [
        "AttnGAN_normal was published without 2 of 3 images: 000, 002",
        "sd1.5_lowcorr was published without 1 of 3 images: 001",
    ]
    assert labels.rows.set_index("image_id").loc["AttnGAN_normal_001.jpg", "quality"] == pytest.approx(4.4)


def test_scores_off_the_scale_and_rows_that_stand_twice_are_problems(tmp_path: Path) -> None:
    table = agiqa3k_table(["a_x_000.jpg", "a_x_001.jpg", "a_x_001.jpg", "a_x_002.jpg", "a_x_003.jpg"])
    table.loc[3, "mos_quality"], table.loc[4, "mos_align"] = 7.5, np.nan
    table.to_csv(tmp_path / "data.csv", index=False)
    labels = read_labels("agiqa3k", tmp_path)
    assert labels.rows["image_id"].tolist() == ["a_x_000.jpg"]
    assert sorted((problem.kind, problem.image, problem.detail) for problem in labels.problems) == [
        ("bad_label", "a_x_002.jpg", "quality is 7.5, not in 0..5"),
        ("bad_label", "a_x_003.jpg", "alignment is nan, not in 0..5"),
        ("duplicate_name", "a_x_001.jpg", "stands 2 times, with quality 1.475 and 2.450"),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop(columns="mos_align"), "data.csv lacks column 'mos_align'; it has name, prompt"),
        (lambda table: table.assign(name="x.jpg"), "'x.jpg' is not named <generator>_<setting>_<index>.jpg"),
        (lambda table: table.assign(prompt=None), "row 2 has no prompt"),
    ],
)
def test_faulty_tables_are_refused(tmp_path: Path, change: object, message: str) -> None:
    change(agiqa3k_table(["a_x_000.jpg"])).to_csv(tmp_path / "data.csv", index=False)
    with pytest.raises(DatasetError, match=re.escape(message)):
        read_labels("agiqa3k", tmp_path)


def test_missing_and_ambiguous_label_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="run the download stage first"):
        read_labels("agiqa3k", tmp_path / "none")
    with pytest.raises(DatasetError, match=re.escape("holds no data.csv, which has the labels")):
        read_labels("agiqa3k", tmp_path)
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        agiqa3k_table(["a_x_000.jpg"]).to_csv(tmp_path / place / "data.csv", index=False)
    with pytest.raises(DatasetError, match=re.escape("holds data.csv 2 times (a/data.csv, b/data.csv)")):
        read_labels("agiqa3k", tmp_path)


def aigciqa_csv(folder: Path) -> pd.DataFrame:
    number = np.arange(2400)
    table = pd.DataFrame(
        {
            "name": [f"{k}.png" for k in number],
            "prompt": [f"prompt {k % 400 // 4}" for k in number],
            "quality_mos": 30 + number / 100,
            "authenticity_mos": 60 - number / 100,
            "correspondence_mos": 50 + np.sin(number),
        }
    )
    table.sample(frac=1, random_state=0).to_csv(folder / "AIGCIQA2023.csv", index=False)
    return table


def test_aigciqa2023_from_csv_and_from_mat_agree(tmp_path: Path) -> None:
    for place in ("csv", "mat"):
        (tmp_path / place).mkdir()
    table = aigciqa_csv(tmp_path / "csv")
    columns = ("quality_mos", "authenticity_mos", "correspondence_mos")
    for number, column in enumerate(columns, 1):
        savemat(tmp_path / "mat" / f"mosz{number}.mat", {"MOSz": table[column].to_numpy()[:, None]})
    one, other = read_labels("aigciqa2023", tmp_path / "csv"), read_labels("aigciqa2023", tmp_path / "mat")
    pd.testing.assert_frame_equal(
        one.rows.drop(columns=["generation_prompt", "prompt_group"]),
        other.rows.drop(columns=["generation_prompt", "prompt_group"]),
    )
    assert one.rows["generation_prompt"].nunique() == other.rows["generation_prompt"].nunique() == 100
    same = pd.crosstab(one.rows["generation_prompt"], other.rows["generation_prompt"])
    assert ((same > 0).sum() == 1).all()
    first = one.rows.set_index("image_id").loc["2399.png"]
    assert (first["generator"], first["generation_prompt"]) == ("Unidiffuser", "prompt 99")
    assert first["quality"] == pytest.approx(30 + 23.99)
    assert first["alignment"] == pytest.approx(50 + np.sin(2399))
    assert "named by number" in " ".join(other.notes)


def test_aigciqa2023_finds_images_in_both_layouts(tmp_path: Path) -> None:
    aigciqa_csv(tmp_path)
    nested = tmp_path / "Image" / "Glide"
    nested.mkdir(parents=True)
    (nested / "003-2.png").write_bytes(b"")
    rows = read_labels("aigciqa2023", tmp_path).rows.set_index("image_id")
    number = AIGCIQA_GENERATORS.index("Glide") * 400 + 3 * 4 + 1
    assert rows.loc[f"{number}.png", "file"] == "Image/Glide/003-2.png"
    shutil.rmtree(tmp_path / "Image")
    (tmp_path / "allimg").mkdir()
    (tmp_path / "allimg" / f"{number}.png").write_bytes(b"")
    rows = read_labels("aigciqa2023", tmp_path).rows.set_index("image_id")
    assert rows.loc[f"{number}.png", "file"] == f"allimg/{number}.png"


def test_the_real_agiqa1k_labels(agiqa_data: Path, tmp_path: Path) -> None:
    shutil.copy(agiqa_data / "agiqa1k" / "AIGC_MOS_Zscore.xlsx", tmp_path)
    labels = read_labels("agiqa1k", tmp_path)
    assert len(labels.rows) == 1078  # 1,080 rows, one name twice: both left out
    assert [(problem.kind, problem.image) for problem in labels.problems] == [
        ("duplicate_name", "dreamStudio_8_9_1_1.jpg")
    ]
    assert labels.rows["prompt_group"].nunique() == 360
    assert labels.rows["alignment"].isna().all()
    assert labels.rows["quality"].between(0, 5).all()


def test_the_real_aigciqa2023_labels(agiqa_data: Path) -> None:
    labels = read_labels("aigciqa2023", agiqa_data / "aigciqa2023")
    rows = labels.rows
    assert (len(rows), rows["prompt_group"].nunique(), labels.problems) == (2400, 100, [])
    for name, (low, high) in {"quality": (26.6, 72.1), "authenticity": (28.4, 73.7), "alignment": (27.7, 72.4)}.items():
        assert (rows[name].min(), rows[name].max()) == pytest.approx((low, high), abs=0.06)
    assert rows["generator"].value_counts().to_dict() == dict.fromkeys(AIGCIQA_GENERATORS, 400)


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
        ("", "is no table with one row of column names"),
        ("image,mos\na.png,2,3,4\n", "has more cells in its rows than column names"),
        ("image,mos\na.png,2\nb.png,1,1\n", "is no table with one row of column names"),
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
