"""Parts: what was named, once each, whatever holds it; and what is damaged keeps its place."""

import io
import os
import re
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.scoring.gather import InputError, Item, gather
from pipeline.scoring.shards import Part, find_parts, items_of


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(in_tmp: Path) -> Path:
    """Return a folder of ten images at two depths, with a text and a hidden file."""
    for k in range(10):
        path = Path("photos", "deep" if k % 2 else "", f"{k}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(k))
    Path("photos/note.txt").write_text("mine")
    Path("photos/.hidden.png").write_bytes(b"")
    return Path("photos")


def shard(path: Path, names: list[str]) -> None:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as out:
        for k, name in enumerate(names):
            content = picture(k) if name.endswith("png") else b'{"text": 1}'
            about = tarfile.TarInfo(name)
            about.size = len(content)
            out.addfile(about, io.BytesIO(content))


def content_of(item: Item) -> bytes:
    return item.source if isinstance(item.source, bytes) else Path(item.source).read_bytes()


def all_of(parts: list[Part]) -> list[Item]:
    return [item for part in parts for item in items_of(part)]


def test_a_folder_holds_what_the_plain_engine_finds(folder: Path) -> None:
    parts, found = find_parts(["photos"], 4)
    assert [part.images for part in parts] == [4, 4, 2]
    assert [item.path for item in all_of(parts)] == [item.path for item in gather(["photos"]).items]
    assert all(os.path.isabs(item.source) for item in all_of(parts))  # a worker's folder is another one
    assert (dict(found.passed_over), found.aside) == ({".txt": 1}, ["photos/.hidden.png"])


def test_a_part_is_known_again_until_a_file_in_it_changes(folder: Path) -> None:
    before, again = find_parts(["photos"], 4)[0], find_parts(["photos"], 4)[0]
    assert before == again
    Path("photos/2.png").write_bytes(b"")
    after = find_parts(["photos"], 4)[0]
    assert [part.name for part in after] == [part.name for part in before]
    assert [new.state == old.state for new, old in zip(after, before, strict=True)] == [False, True, True]
    Path("photos/deep/99.png").write_bytes(picture(99))
    assert [part.state for part in find_parts(["photos"], 4)[0]][:2] == [part.state for part in after][:2]


def test_what_cannot_be_read_keeps_its_place(folder: Path) -> None:
    Path("list.csv").write_text("image\nphotos/0.png\nnone.png\n\nphotos/2.png\n")
    items = all_of(find_parts(["list.csv"], 4)[0])
    assert [(item.path, item.fault) for item in items] == [
        (item.path, item.fault) for item in gather(["list.csv"]).items
    ]


@pytest.mark.parametrize("kind", ["paths", "bytes", "struct"])
def test_parquet_files_give_a_row_a_row(folder: Path, kind: str) -> None:
    names = [item.path for item in gather(["photos"]).items]
    contents = [Path(name).read_bytes() for name in names]
    cells: list = {
        "paths": names, "bytes": contents,
        "struct": [{"bytes": content, "path": "x"} for content in contents],
    }[kind]  # fmt: skip
    cells[3] = None
    Path("sub").mkdir()
    pq.write_table(pa.table({"Image": cells, "n": range(10)}), "t.parquet", row_group_size=6)
    parts = find_parts(["t.parquet"], 4)[0]
    assert [part.images for part in parts] == [4, 2, 4]
    assert len({part.name for part in parts}) == 3
    items = all_of(parts)
    assert [k for k, item in enumerate(items) if item.fault == "names no image"] == [3]
    found = [content_of(item) for item in items if item.fault is None]
    assert found == contents[:3] + contents[4:]
    if kind == "paths":
        assert items[0].path == f"{Path.cwd()}/{names[0]}"
    else:
        assert [item.path for item in items] == [f"t.parquet, row {k}" for k in range(1, 11)]


def test_a_damaged_row_group_gives_its_rows_too(folder: Path) -> None:
    pq.write_table(pa.table({"image": [picture(k) for k in range(6)]}), "t.parquet", row_group_size=3, compression=None)
    content = bytearray(Path("t.parquet").read_bytes())
    place = pq.ParquetFile("t.parquet").metadata.row_group(1).column(0)
    start = place.dictionary_page_offset or place.data_page_offset
    content[start : start + 40] = b"\xff" * 40
    Path("t.parquet").write_bytes(content)
    items = all_of(find_parts(["t.parquet"], 10)[0])
    assert len(items) == 6
    assert [item.fault is None for item in items] == [True] * 3 + [False] * 3
    assert items[4].path == "t.parquet, row group 1, row 2"
    assert items[4].fault.startswith("cannot be read: ")


def test_shards_stream_by_in_their_order(in_tmp: Path) -> None:
    Path("shards").mkdir()
    shard(Path("shards/0.tar"), ["a.png", "a.json", "b/b.input.png", "b/b.json"])
    shard(Path("shards/1.tar.gz"), ["c.png"])
    shard(Path("shards/2.tar"), ["c.json"])
    for sources in (["shards"], ["shards/*.tar", "shards/1.tar.gz"]):
        parts, _ = find_parts(sources, 1)
        items = {item.path: item for item in all_of(parts)}
        assert [part.images for part in parts] == [None] * 3
        assert set(items) == {
            "shards/0.tar/a.png",
            "shards/0.tar/b/b.input.png",
            "shards/1.tar.gz/c.png",
            "shards/2.tar",
        }
        assert items["shards/0.tar/a.png"].source == picture(0)
        assert items["shards/0.tar/b/b.input.png"].source == picture(2)
        assert items["shards/2.tar"].fault.startswith("is a shard without an image (")


def test_a_shard_that_is_cut_off_is_told_wherever_it_is_cut(in_tmp: Path) -> None:
    shard(Path("whole.tar"), [f"{k}.png" for k in range(3)])
    whole = Path("whole.tar").read_bytes()
    with tarfile.open("whole.tar") as read:
        ends = [member.offset_data + member.size for member in read]
    after = [-(-end // 512) * 512 for end in ends]
    for cut in (100, 700, after[0], after[0] + 512, after[0] + 600, after[1], after[1] + 300, after[2]):
        Path("cut.tar").write_bytes(whole[:cut])
        items = all_of(find_parts(["cut.tar"], 1)[0])
        good = [item for item in items if item.fault is None]
        assert [item.source for item in good] == [picture(k) for k in range(sum(end <= cut for end in after))], cut
        assert re.match(r"is damaged or cut off, after \d images: ", items[-1].fault), cut
    shard(Path("w.tar.gz"), [f"{k}.png" for k in range(3)])
    Path("cut.tar.gz").write_bytes(Path("w.tar.gz").read_bytes()[:9000])
    assert "damaged or cut off" in all_of(find_parts(["cut.tar.gz"], 1)[0])[-1].fault


@pytest.fixture
def remote(in_tmp: Path) -> "fsspec.AbstractFileSystem":
    """Return storage that is no disk, empty before and after."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs.clear()
    yield system
    system.store.clear()


def test_addresses_hold_images_tables_and_shards(remote: "fsspec.AbstractFileSystem") -> None:
    for k in range(5):
        remote.pipe_file(f"/b/photos/{'x/' * (k % 2)}{k}.png", picture(k))
    remote.pipe_file("/b/photos/.x/0.png", b"")
    remote.pipe_file("/b/photos/note.txt", b"")
    parts, found = find_parts(["memory://b/photos"], 3)
    assert [part.images for part in parts] == [3, 2]
    assert {item.path: item.source for item in all_of(parts)} == {
        f"memory:///b/photos/{'x/' * (k % 2)}{k}.png": picture(k) for k in range(5)
    }
    assert (dict(found.passed_over), found.aside) == ({".txt": 1}, ["memory:///b/photos/.x/0.png"])

    shard(Path("0.tar"), ["a.png"])
    remote.pipe_file("/b/shards/0.tar", Path("0.tar").read_bytes())
    pq.write_table(pa.table({"image": ["0.png", "memory://b/photos/2.png"]}), "t.parquet")
    remote.pipe_file("/b/photos/t.parquet", Path("t.parquet").read_bytes())
    for sources in (["memory://b/shards/*.tar", "memory://b/photos/t.parquet"], ["memory://b/shards/0.tar"]):
        items = all_of(find_parts(sources, 3)[0])
        assert [item.fault for item in items] == [None] * len(items)
        assert items[-1].source == (picture(2) if len(items) > 1 else picture(0))
    remote.rm_file("/b/photos/0.png")
    assert all_of(parts)[0].fault == "does not exist"


def test_what_leads_nowhere_is_told(folder: Path, remote: "fsspec.AbstractFileSystem") -> None:
    shard(Path("a.tar"), ["a.png"])
    pq.write_table(pa.table({"x": ["a.png"], "image": [1]}), "t.parquet")
    Path("bad.parquet").write_bytes(b"PAR1")
    for source, expected in {
        "memory://none": "memory://none does not exist",
        "nowhere://a": "nowhere://a is an address that cannot be read here: Protocol not known: nowhere",
        "none.tar": "none.tar does not exist",
        "*.tgz": "no file matches '*.tgz'",
        "bad.parquet": "bad.parquet is no Parquet file that can be read: ",
        "t.parquet": "t.parquet: column image holds int64: paths, or bytes of image files, would be right",
    }.items():
        with pytest.raises(InputError, match=re.escape(expected)):
            find_parts([source], 3)
    with pytest.raises(InputError, match=r"t\.parquet has no column imag; it has x, image; is it 'image'"):
        find_parts(["t.parquet"], 3, column="imag")
    with pytest.raises(InputError, match=r"a\.tar is named twice: its rows would be written twice"):
        find_parts(["a.tar", "a.tar"], 3)
