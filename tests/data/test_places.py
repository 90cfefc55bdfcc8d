"""Names as users and systems write them, and files that nobody means."""

import unicodedata
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from pipeline.data.places import (
    MAP_MARK,
    find,
    find_link,
    is_quality_map,
    is_side_file,
    nearest,
    plain_files,
    shortened,
)


@pytest.mark.parametrize(
    "path",
    [
        "._a.png", ".a.png", ".thumbnails/a.png", ".ipynb_checkpoints/labels-checkpoint.csv", "@eaDir/a.png/S.png",
        "__MACOSX/a.png", "x/.Trash-1000/files/a.png", ".Trashes/a.png", "Thumbs.db", "ehthumbs.db", "Desktop.ini",
        "$RECYCLE.BIN/a.png", "#recycle/a.png", "System Volume Information/a.png", "lost+found/a.png", ".DS_Store",
        "Icon\r", "~$labels.csv", ".git/a.png", ".Spotlight-V100/a.png", ".dvc/tmp/a.png", "@tmp/a.png",
        ".@__thumb/a.png",
    ],
)  # fmt: skip
def test_hidden_files_and_those_of_systems_are_side_files(path: str) -> None:
    assert is_side_file(Path(path).parts)
    assert is_side_file(("deep", *Path(path).parts))


@pytest.mark.parametrize(
    "path", ["a.png", "one (1).png", "a.b/c..png", "tmp/a.png", "cache/a.png", "-.png", "thumbs/a.png"]
)
def test_ones_own_files_are_none(path: str) -> None:
    assert not is_side_file(Path(path).parts)


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_names_are_found_however_a_table_spells_them(tmp_path: Path) -> None:
    apart, joined = unicodedata.normalize("NFD", "déjà"), unicodedata.normalize("NFC", "vù")
    folder = touch(tmp_path, "a/one.png", "back\\slash.png", f"{apart}/{joined}.png")
    assert find(folder, "a/one.png") == folder / "a/one.png"
    assert find(folder, "a\\one.png") == folder / "a/one.png"
    assert find(folder, ".\\a\\one.png") == folder / "a/one.png"
    assert find(folder, "back\\slash.png") == folder / "back\\slash.png"  # a file of that very name comes first
    for form in ("NFC", "NFD"):
        assert find(folder, unicodedata.normalize(form, "déjà\\vù.png")) == folder / f"{apart}/{joined}.png"
    assert find(folder, "a/two.png") is None
    assert find(folder, "dejà/vù.png") is None
    touch(folder, unicodedata.normalize("NFC", "é.png"), unicodedata.normalize("NFD", "é.png"))
    assert find(folder, unicodedata.normalize("NFC", "é.png")).name == unicodedata.normalize("NFC", "é.png")
    with pytest.raises(OSError, match="too long"):
        find(folder, "x" * 300)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("0000.png", "; is it 0000.PNG?"),
        ("0000", "; is it 0000.PNG?"),
        ("0001.jpeg", "; is it 0001.jpg?"),
        ("photo one.png", "; is it Photo One.png?"),
        ("noext.png", "; is it noext?"),
        ("v1.5", "; is it v1.5.png?"),
        ("p25.png", r"; is it 'p25.png\xa0'?"),
        ("zzzz.png", ""),
        (".hidden", ""),
    ],
)
def test_what_does_not_exist_is_told_its_neighbour(tmp_path: Path, name: str, hint: str) -> None:
    touch(
        tmp_path,
        "0000.PNG",
        "0001.jpg",
        "Photo One.png",
        "photo_one.webp",
        "noext",
        "v1.5.png",
        "p25.png\u00a0",
        ".hidden.png",
    )
    assert nearest(tmp_path / name) == hint
    assert nearest(tmp_path / "none" / name) == ""


def test_neighbours_may_lie_in_other_folders(tmp_path: Path) -> None:
    assert nearest(tmp_path / "0031.png", ["img/031.png", "img/44.png"]) == "; is it img/031.png?"


def test_plain_files_and_links(tmp_path: Path) -> None:
    folder = touch(tmp_path / "set", "b.png", "a/c.png", ".x/d.png", "@eaDir/e.png")
    assert [path.relative_to(folder).as_posix() for path in plain_files(folder)] == ["a/c.png", "b.png"]
    (folder / ".x" / "hidden").symlink_to("d.png")
    assert find_link(folder) is None
    (folder / "a" / "out").symlink_to(tmp_path)
    assert find_link(folder) == folder / "a" / "out"


def test_a_quality_map_is_known_by_its_mark(tmp_path: Path) -> None:
    image, mark = Image.new("RGB", (20, 20)), PngImagePlugin.PngInfo()
    image.save(tmp_path / "plain.png")
    mark.add_text("Software", MAP_MARK.decode())
    image.save(tmp_path / "map.png", pnginfo=mark)
    (tmp_path / "folder.png").mkdir()
    assert is_quality_map(tmp_path / "map.png")
    for name in ("plain.png", "folder.png", "none.png", "a.jpg"):
        assert not is_quality_map(tmp_path / name)


def test_long_texts_are_shortened() -> None:
    assert shortened("a" * 80) == "a" * 80
    assert shortened("a" * 300) == "a" * 60 + "... (300 letters)"
