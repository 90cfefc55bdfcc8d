"""The published label files, their oddities, and what is refused."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_labels import agiqa3k_table
from scipy.io import savemat

from pipeline.data import demo
from pipeline.data.datasets import read_labels
from pipeline.data.labels import COLUMNS, DatasetError
from pipeline.data.readers import AIGCIQA_GENERATORS, READERS


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
    with pytest.raises(DatasetError, match=re.escape("holds no data.csv, which has the labels")):
        READERS["agiqa3k"](tmp_path)
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        agiqa3k_table(["a_x_000.jpg"]).to_csv(tmp_path / place / "data.csv", index=False)
    with pytest.raises(DatasetError, match=re.escape("holds data.csv 2 times (a/data.csv, b/data.csv)")):
        READERS["agiqa3k"](tmp_path)


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


def test_damaged_files_are_named(tmp_path: Path) -> None:
    for name, reader in {"AIGC_MOS_Zscore.xlsx": "agiqa1k", "mosz1.mat": "aigciqa2023", "data.csv": "agiqa3k"}.items():
        folder = tmp_path / reader
        folder.mkdir()
        (folder / name).write_bytes(b"\xff<html>not what it should be\n\x00")
        with pytest.raises(DatasetError, match=rf"{name} is damaged, or not what its name says: \w+: "):
            READERS[reader](folder)


def test_what_is_no_number_and_no_name_is_told_with_its_row(tmp_path: Path) -> None:
    table = agiqa3k_table(["a_x_000.jpg", "a_x_001.jpg"]).astype({"mos_align": object})
    table.loc[1, "mos_align"] = "four"
    table.to_csv(tmp_path / "data.csv", index=False)
    with pytest.raises(DatasetError, match=r"data\.csv: row 3 has the mos_align 'four', which is no number"):
        READERS["agiqa3k"](tmp_path)
    aigciqa_csv(tmp_path).assign(name="one.png").to_csv(tmp_path / "AIGCIQA2023.csv", index=False)
    for number in (1, 2, 3):
        savemat(tmp_path / f"mosz{number}.mat", {"MOSz": np.zeros(2400)})
    with pytest.raises(DatasetError, match=r"'one\.png' is not named <number>\.png"):
        READERS["aigciqa2023"](tmp_path)


def test_the_demos_labels_are_read(tmp_path: Path) -> None:
    demo.generate(tmp_path, seed=1, prompts=2, size=64, progress=False)
    labels = READERS["demo"](tmp_path)
    assert labels.rows["file"].tolist() == [f"img/{name}" for name in labels.rows["image_id"]]
    assert (len(labels.rows), labels.problems, labels.licence) == (2 * len(demo.GENERATORS), [], "MIT")
    table = pd.read_csv(tmp_path / "labels.csv")
    np.testing.assert_array_equal(labels.rows["alignment"], table["mos_align"])
