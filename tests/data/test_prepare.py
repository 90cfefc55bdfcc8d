"""Preparation: every image decoded once, every problem named, nothing dropped in silence."""

import io
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.data.pixels import open_prepared
from pipeline.data.prepare import PreparationError, check, prepare


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Return a small AGIQA-3K of six images of differing sizes."""
    folder = tmp_path / "raw"
    (folder / "img").mkdir(parents=True)
    generator = np.random.default_rng(0)
    names = [f"sd_normal_{k:03d}.png" for k in range(6)]
    for k, name in enumerate(names):
        pixels = generator.integers(0, 256, (16 + k, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "img" / name)
    pd.DataFrame(
        {
            "name": names, "prompt": [f"p{k // 2}" for k in range(6)], "mos_quality": np.linspace(1, 4, 6),
            "std_quality": 0.1, "mos_align": np.linspace(4, 1, 6), "std_align": 0.1,
        }
    ).to_csv(folder / "data.csv", index=False)  # fmt: skip
    return folder


def problems_of(out: Path) -> list[tuple[str, str]]:
    table = pd.read_csv(out / "problems.csv")
    return list(zip(table["kind"], table["image"], strict=True))


def test_packed_pixels_are_those_of_the_files(raw: Path, tmp_path: Path) -> None:
    prepare("toy", "agiqa3k", raw, tmp_path / "out")
    manifest, pack = open_prepared(tmp_path / "out")
    assert len(pack) == 6
    for row, file in enumerate(manifest["file"]):
        np.testing.assert_array_equal(pack[row], np.asarray(Image.open(raw / file)))
    assert manifest["height"].tolist() == [16, 17, 18, 19, 20, 21]
    assert problems_of(tmp_path / "out") == []
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert (card["images"], card["generation_prompts"], card["generators"]) == (6, 3, {"sd": 6})
    assert card["raters"] == "people"
    assert set(manifest["raters"]) == {"people"}
    assert card["scores"]["quality"] == {
        "images": 6, "lowest": 1.0, "mean": 2.5, "highest": 4.0, "std_published": True,
    }  # fmt: skip


def spoil(raw: Path) -> None:
    image = raw / "img"
    (image / "sd_normal_000.png").unlink()
    (image / "sd_normal_001.png").write_bytes((image / "sd_normal_001.png").read_bytes()[:200])
    (image / "sd_normal_003.png").write_bytes((image / "sd_normal_002.png").read_bytes())
    (image / "stranger.jpg").write_bytes(b"")


FOUND = [
    ("duplicate_image", "sd_normal_002.png"), ("duplicate_image", "sd_normal_003.png"),
    ("missing", "sd_normal_000.png"), ("unlabelled", "img/stranger.jpg"), ("unreadable", "sd_normal_001.png"),
]  # fmt: skip


def test_every_problem_is_named_and_stops_the_stage(raw: Path, tmp_path: Path) -> None:
    spoil(raw)
    with pytest.raises(PreparationError) as error:
        prepare("toy", "agiqa3k", raw, tmp_path / "out")
    message = str(error.value)
    assert "data set 'toy' has 5 problems" in message
    assert all(name in message for _, name in FOUND)
    assert "allow_problems: [duplicate_image, missing, unlabelled, unreadable]" in message
    assert problems_of(tmp_path / "out") == FOUND
    assert not (tmp_path / "out" / "manifest.parquet").exists()


def test_allowed_problems_have_the_stated_consequence(raw: Path, tmp_path: Path) -> None:
    spoil(raw)
    kinds = ["missing", "unreadable", "duplicate_image", "unlabelled"]
    manifest = prepare("toy", "agiqa3k", raw, tmp_path / "out", kinds)
    assert manifest["image_id"].tolist() == [f"sd_normal_{k:03d}.png" for k in (2, 3, 4, 5)]
    assert problems_of(tmp_path / "out") == FOUND
    with pytest.raises(PreparationError, match=re.escape("has 1 problems")):
        prepare("toy", "agiqa3k", raw, tmp_path / "out", kinds[1:])


def test_a_score_that_is_the_same_everywhere_stops_the_stage(raw: Path, tmp_path: Path) -> None:
    table = pd.read_csv(raw / "data.csv")
    labels = pd.DataFrame({"image": table["name"], "mos": 61.5})
    labels.to_csv(raw / "data.csv", index=False)
    own = {"labels_file": "data.csv", "scale": (0, 100)}
    message = "no_spread: 1; if allowed, the score stays; a model cannot be trained on it, nor compared with it\n"
    message += "    quality: 61.5 for all 6 images: a correlation needs different scores"
    with pytest.raises(PreparationError, match=re.escape(message)):
        prepare("mine", "folder", raw, tmp_path / "out", **own)
    found, _ = check("folder", raw, **own)
    assert [problem[:2] for problem in found.problems] == [("no_spread", "quality")]
    prepare("mine", "folder", raw, tmp_path / "out", ["no_spread"], **own)


def test_ones_own_folder_becomes_a_data_set(raw: Path, tmp_path: Path) -> None:
    table = pd.read_csv(raw / "data.csv")
    labels = pd.DataFrame({"image": table["name"], "mos": 20 * table["mos_quality"], "prompt": table["prompt"]})
    labels.to_csv(raw / "data.csv", index=False)
    own = {"labels_file": "data.csv", "scale": (0, 100)}
    prepare("mine", "folder", raw, tmp_path / "out", **own)
    manifest, pack = open_prepared(tmp_path / "out")
    assert manifest["image_id"].tolist() == [f"img/sd_normal_{k:03d}.png" for k in range(6)]
    np.testing.assert_array_equal(pack[2], np.asarray(Image.open(raw / manifest["file"][2])))
    assert manifest["quality"].tolist() == pytest.approx(np.linspace(20, 80, 6))
    assert manifest["alignment"].isna().all()
    (raw / "img" / "sd_normal_001.png").write_bytes(b"<html>not found</html>")
    (raw / "img" / "new.png").write_bytes(b"")
    labels.assign(mos=labels["mos"].where(labels.index != 3, 500)).to_csv(raw / "data.csv", index=False)
    with pytest.raises(PreparationError, match=re.escape("row 5: mos is 500, not in 0..100")):
        prepare("mine", "folder", raw, tmp_path / "out", **own)
    assert problems_of(tmp_path / "out") == [
        ("bad_label", "sd_normal_003.png"), ("unlabelled", "img/new.png"), ("unreadable", "img/sd_normal_001.png"),
    ]  # fmt: skip


def test_a_check_finds_what_preparation_would_and_writes_nothing(raw: Path) -> None:
    spoil(raw)
    before = sorted(raw.rglob("*"))
    labels, manifest = check("agiqa3k", raw)
    assert sorted((problem.kind, problem.image) for problem in labels.problems) == FOUND
    assert manifest["image_id"].tolist() == [f"sd_normal_{k:03d}.png" for k in (2, 3, 4, 5)]
    assert sorted(raw.rglob("*")) == before


def test_the_real_agiqa3k(agiqa_data: Path, tmp_path: Path) -> None:
    """Thirty images of the real archive, two of them identical files under different prompts."""
    with zipfile.ZipFile(agiqa_data / "agiqa3k" / "AGIQA-3K.zip") as archive:
        table_name = next(name for name in archive.namelist() if name.endswith("data.csv"))
        table = pd.read_csv(io.BytesIO(archive.read(table_name)))
        assert len(table) == 2982
        members = {Path(name).name: name for name in archive.namelist() if name.lower().endswith(".jpg")}
        assert set(table["name"]) == set(members)
        crc = pd.Series({name: archive.getinfo(member).CRC for name, member in members.items()})
        twin = crc[crc.duplicated(keep=False)].sort_values().index[:2].tolist()
        part = pd.concat([table[table["name"].isin(twin)], table[~table["name"].isin(twin)].head(28)])
        (tmp_path / "raw" / "img").mkdir(parents=True)
        for name in part["name"]:
            (tmp_path / "raw" / "img" / name).write_bytes(archive.read(members[name]))
    part.to_csv(tmp_path / "raw" / "data.csv", index=False)
    with pytest.raises(PreparationError, match="duplicate_image: 2; if allowed"):
        prepare("agiqa3k", "agiqa3k", tmp_path / "raw", tmp_path / "out")
    manifest = prepare("agiqa3k", "agiqa3k", tmp_path / "raw", tmp_path / "out", ["duplicate_image"])
    assert len(manifest) == 30


def test_converted_profiles_and_small_images_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    linear = b"".join([b"curv", bytes(4), (1).to_bytes(4), (256).to_bytes(2), bytes(2)])  # a grey profile, gamma 1
    tag = b"kTRC" + (144).to_bytes(4) + len(linear).to_bytes(4)
    head = (144 + len(linear)).to_bytes(4) + bytes(4) + b"\x02\x10\0\0mntrGRAYXYZ " + bytes(12) + b"acsp" + bytes(28)
    head += b"\0\0\xf6\xd6\0\1\0\0\0\0\xd3\x2d"
    profile = head.ljust(128, b"\0") + (1).to_bytes(4) + tag + linear
    grey = np.arange(400, dtype=np.uint16).reshape(20, 20) % 256
    Image.fromarray(grey.astype(np.uint8)).save(folder / "a.png", icc_profile=profile)
    Image.fromarray(grey.astype(np.uint8).T.copy()).save(folder / "b.png")
    Image.new("L", (15, 99)).save(folder / "c.png")
    (folder / "labels.csv").write_text("image,mos\na.png,2\nb.png,3\nc.png,1\n")
    prepare("own", "folder", folder, tmp_path / "out", ["unreadable"], scale=(1, 5))
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["notes"][-1] == (
        "converted to sRGB, relative colorimetric, from the profiles that they embed: 1 a profile without a name"
    )
    detail = pd.read_csv(tmp_path / "out" / "problems.csv")["detail"].tolist()
    assert detail == ["c.png has 15 x 99 pixels: images are judged from 16 a side on"]
    _, pack = open_prepared(tmp_path / "out")
    assert pack[0].mean() > pack[1].mean() + 30  # linear light, shown as such


def test_a_link_in_a_data_set_is_refused_as_the_study_does(raw: Path) -> None:
    (raw / "img" / "more.png").symlink_to("sd_normal_000.png")
    with pytest.raises(PreparationError, match=r"more\.png is a link: put the file itself there$"):
        check("agiqa3k", raw)
