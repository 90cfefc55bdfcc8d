"""What arguments mean: files, folders, patterns, lists, tables; nothing named is left out in silence."""

import io
import os
import re
from pathlib import Path

import numpy as np
import pytest

from pipeline.scoring.gather import InputError, gather, values_of
from pipeline.scoring.maps import draw_map


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def paths(*arguments: str, **options: object) -> list[str]:
    return [item.path for item in gather(arguments, **options).items]


def test_folders_files_and_patterns(in_tmp: Path) -> None:
    touch("a/2.png", "a/10.JPG", "a/deep/er/1.webp", "a/notes.txt", "a/README", "b.png", "c[1].png", "x1.png", "x2.png")
    found = gather(["a", "b.png", "none.png"])
    assert [item.path for item in found.items] == ["a/10.JPG", "a/2.png", "a/deep/er/1.webp", "b.png", "none.png"]
    assert dict(found.passed_over) == {".txt": 1, "no suffix": 1}
    assert paths("a/") == ["a/10.JPG", "a/2.png", "a/deep/er/1.webp"]
    assert paths("x?.png") == ["x1.png", "x2.png"]
    assert paths("**/*.webp") == ["a/deep/er/1.webp"]
    assert paths("a/d*") == ["a/deep/er/1.webp"]
    assert paths("c[1].png") == ["c[1].png"]  # a file of that name comes before the pattern
    with pytest.raises(InputError, match=re.escape("no file matches '*.gif'")):
        gather(["*.gif"])
    Path("empty").mkdir()
    with pytest.raises(InputError, match="folder empty holds no image"):
        gather(["empty"])
    with pytest.raises(InputError, match="no image is named: give files, folders"):
        gather([])


def test_links_are_followed_and_circles_are_named(in_tmp: Path) -> None:
    touch("a/1.png", "b/2.png")
    os.symlink("../b", "a/to_b")
    os.symlink("..", "b/up")
    os.symlink("loop.png", "a/loop.png")
    os.symlink("nowhere", "a/gone.png")
    found = gather(["a"]).items
    circle = "is a link that leads in a circle, back to a folder that it lies in"
    assert [(item.path, item.fault) for item in found] == [
        ("a/1.png", None), ("a/gone.png", None), ("a/loop.png", None), ("a/to_b/2.png", None),
        ("a/to_b/up/a", circle), ("a/to_b/up/b", circle),
    ]  # fmt: skip


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_a_folder_that_may_not_be_read_is_named(in_tmp: Path) -> None:
    touch("a/1.png", "a/closed/2.png")
    Path("a/closed").chmod(0)
    found = gather(["a"]).items
    Path("a/closed").chmod(0o700)
    assert found[1].fault == "is a folder that cannot be read: Permission denied"


def test_a_list_on_standard_input() -> None:
    odd = os.fsdecode(b"b\xff.png")
    assert paths("-", listed=io.BytesIO(b"a.png\n\nb\xff.png\nc d.png")) == ["a.png", odd, "c d.png"]
    assert paths("-", listed=io.BytesIO(b"a\nb.png\0c.png\0")) == ["a\nb.png", "c.png"]
    with pytest.raises(InputError, match="standard input lists no image"):
        gather(["-"], listed=io.BytesIO(b"\n"))


def test_tables_name_images_relative_to_themselves(in_tmp: Path) -> None:
    touch("d/x.csv")
    Path("d/x.csv").write_text("prompt;Image\na cat;1.png\na dog;\n/cat;/abs/2.png\n")
    found = gather(["d/x.csv"]).items
    assert [item.path for item in found] == ["d/1.png", "d/x.csv, row 3", "/abs/2.png"]
    assert found[1].fault == "names no image"
    assert found[0].cells == {"prompt": "a cat", "Image": "1.png"}
    assert paths("d/x.csv", column="prompt")[0] == "d/a cat"
    with pytest.raises(InputError, match="has no column photo; it has prompt, Image: name the column"):
        gather(["d/x.csv"], column="photo")
    with pytest.raises(InputError, match=r"none\.csv does not exist"):
        gather(["none.csv"])


def test_hidden_files_and_those_of_systems_are_left_out(in_tmp: Path) -> None:
    names = [
        "._one.png",
        ".thumbnails/one.png",
        "@eaDir/one.png/S.png",
        ".ipynb_checkpoints/one-checkpoint.png",
        "x/.a.png",
    ]
    touch("a/one.png", "a/one (1).png", "a/x/two.png", *(f"a/{name}" for name in names))
    found = gather(["a"])
    assert [item.path for item in found.items] == ["a/one (1).png", "a/one.png", "a/x/two.png"]
    assert sorted(found.aside) == ["a/._one.png", "a/.ipynb_checkpoints", "a/.thumbnails", "a/@eaDir", "a/x/.a.png"]
    assert paths("a/**/*.png") == ["a/one (1).png", "a/one.png", "a/x/two.png"]
    for named in ("a/._one.png", "a/.thumbnails/one.png", "a/@eaDir/one.png/S.png"):  # who names one means it
        assert paths(named) == [named]
    assert paths("a/.thumbnails") == ["a/.thumbnails/one.png"]
    assert paths("a/@eaDir/*/*.png") == ["a/@eaDir/one.png/S.png"]
    assert paths("a/.thumb*/*.png") == ["a/.thumbnails/one.png"]


def test_quality_maps_are_no_images_of_a_folder(in_tmp: Path) -> None:
    drawn = draw_map(np.zeros((40, 40, 3), np.uint8), np.full((40, 40), 0.5, np.float32), lambda raw: raw)
    touch("a/one.png", "a/maps/one.png.png", "a/other/x.png")
    assert paths("a", maps=Path("a/maps")) == ["a/one.png", "a/other/x.png"]
    assert paths("a/*", maps=Path("a/maps")) == ["a/one.png", "a/other/x.png"]
    assert paths("a/maps", maps=Path("a/maps")) == ["a/maps/one.png.png"]  # who names the folder means it
    Path("a/maps/one.png.png").write_bytes(drawn)
    assert paths("a") == paths("a/**/*.png") == ["a/one.png", "a/other/x.png"]
    assert paths("a/maps/one.png.png") == ["a/maps/one.png.png"]


@pytest.mark.parametrize("name", ["list.csv", "list.tsv", "list.txt"])
def test_tables_of_every_dialect_and_spelling(in_tmp: Path, name: str) -> None:
    touch("a/one.png", "a/two, 2.jpg", "dé.png")
    Path(name).write_bytes(
        "sep=;\r\nImage;Prompt\r\na\\one.png;x, y\r\n.\\a\\two, 2.jpg;x\r\n\r\nde\u0301.png;z\r\n".encode("utf-16")
    )
    found = gather([name]).items
    assert [item.path for item in found] == ["a/one.png", "a/two, 2.jpg", "dé.png"]
    assert values_of(found, "prompt") == values_of(found, "PROMPT") == ["x, y", "x", "z"]
    with pytest.raises(
        InputError,
        match=re.escape("--by is 'promt', a column that not every image has; columns: Image, Prompt; is it 'Prompt'?"),
    ):
        values_of(found, "promt")
    with pytest.raises(InputError, match=re.escape("has no column imag; it has Image, Prompt; is it 'Image'?")):
        gather([name], column="imag")
