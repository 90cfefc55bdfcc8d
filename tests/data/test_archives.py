"""Fetching: the order of sources, digests that hold, and archives that must not be trusted."""

import hashlib
import io
import json
import re
import stat
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from pipeline.data import archives
from pipeline.data.archives import ArchiveError, fetch, unpack


def zip_of(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return path


@pytest.fixture
def where(tmp_path: Path) -> dict[str, Path]:
    return {"downloads": tmp_path / "downloads", "checksums": tmp_path / "checksums.json"}


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_users_path_comes_before_the_data_folder(tmp_path: Path, where: dict[str, Path]) -> None:
    (tmp_path / "data" / "toy").mkdir(parents=True)
    zip_of(tmp_path / "data" / "toy" / "toy.zip", {"which": b"data folder"})
    own = zip_of(tmp_path / "own.zip", {"which": b"own"})
    common = {"archive": "toy.zip", "data_folder": str(tmp_path / "data"), **where}
    fetch("toy", tmp_path / "a", source=str(own), **common)
    where["checksums"].unlink()
    fetch("toy", tmp_path / "b", **common)
    assert files_of(tmp_path / "a") == {"which": b"own"}
    assert files_of(tmp_path / "b") == {"which": b"data folder"}


def test_an_unpacked_folder_serves_as_well(tmp_path: Path, where: dict[str, Path]) -> None:
    (tmp_path / "data" / "toy" / "img").mkdir(parents=True)
    (tmp_path / "data" / "toy" / "img" / "a.png").write_bytes(b"a")
    fetch("toy", tmp_path / "out", archive="toy.zip", data_folder=str(tmp_path / "data"), **where)
    assert files_of(tmp_path / "out") == {"img/a.png": b"a"}


def test_a_digest_is_recorded_at_first_sight_and_checked_ever_after(tmp_path: Path, where: dict[str, Path]) -> None:
    archive = zip_of(tmp_path / "toy.zip", {"a": b"1"})
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    fetch("toy", tmp_path / "out", source=str(archive), **where)
    assert json.loads(where["checksums"].read_text()) == {"toy": digest}
    zip_of(archive, {"a": b"2"})
    with pytest.raises(ArchiveError, match=rf"{re.escape(str(archive))} has SHA-256 \w+, and .*says {digest}"):
        fetch("toy", tmp_path / "out", source=str(archive), **where)
    assert files_of(tmp_path / "out") == {"a": b"1"}  # what was there stays


def test_a_pinned_digest_is_named_with_its_key(tmp_path: Path, where: dict[str, Path]) -> None:
    archive = zip_of(tmp_path / "toy.zip", {"a": b"1"})
    with pytest.raises(ArchiveError, match=re.escape("params.yaml (datasets.toy.sha256) says " + "0" * 64)):
        fetch("toy", tmp_path / "out", source=str(archive), sha256="0" * 64, **where)
    assert not (tmp_path / "out").exists()


def test_without_copy_or_network_the_message_says_what_to_do(
    tmp_path: Path, where: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import gdown

    def unreachable(**_: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(gdown, "download", unreachable)
    with pytest.raises(ArchiveError) as error:
        fetch("toy", tmp_path / "out", archive="Toy.zip", google_drive_id="ID123", **where)
    for part in ("Toy.zip", "ID123", "no route to host", "AGIQA_DATA", "datasets.toy.source", "drive.google.com"):
        assert part in str(error.value)


def test_a_download_is_kept_and_goes_on_from_its_part(
    tmp_path: Path, where: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import gdown

    calls = []
    content = zip_of(tmp_path / "origin.zip", {"a": b"1"}).read_bytes()

    def download(id: str, output: str, resume: bool, quiet: bool) -> str:
        calls.append((id, resume, Path(output).exists()))
        if len(calls) == 1:
            Path(output).write_bytes(content[:20])
            raise ConnectionError("broken off")
        Path(output).write_bytes(content)
        return output

    monkeypatch.setattr(gdown, "download", download)
    settings = {"archive": "Toy.zip", "google_drive_id": "ID123", **where}
    with pytest.raises(ArchiveError, match="broken off"):
        fetch("toy", tmp_path / "out", **settings)
    fetch("toy", tmp_path / "out", **settings)
    fetch("toy", tmp_path / "out", **settings)
    assert calls == [("ID123", True, False), ("ID123", True, True)]
    assert files_of(tmp_path / "out") == {"a": b"1"}


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "..\\evil", "C:/evil"])
def test_members_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    archive = zip_of(tmp_path / "bad.zip", {"good": b"", name: b"evil"})
    with pytest.raises(ArchiveError, match="leaves the folder: refused"):
        unpack(archive, tmp_path / "deep" / "out")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["bad.zip", "deep"]


def test_links_and_devices_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as opened:
        opened.writestr(link, "/etc/passwd")
    names = ["link.zip"]
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE):
        names.append(f"link-{kind.decode()}.tar")
        with tarfile.open(tmp_path / names[-1], "w") as opened:
            member = tarfile.TarInfo("link")
            member.type, member.linkname = kind, "/etc/passwd"
            opened.addfile(member)
    for name in names:
        with pytest.raises(ArchiveError, match="member 'link' is a link or a device: refused"):
            unpack(tmp_path / name, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_bombs_are_refused_by_what_they_unpack_to(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("zeros", bytes(20_000_000))
    with pytest.raises(ArchiveError, match="refused as a bomb"):
        unpack(tmp_path / "bomb.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    many = zip_of(tmp_path / "many.zip", {f"f{k}": b"x" for k in range(5)})
    with pytest.raises(ArchiveError, match="holds more than 4 files: refused"):
        unpack(many, tmp_path / "out", most_members=4)


def test_tar_in_any_compression_and_damage(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "good.tar.gz", "w:gz") as opened:
        member = tarfile.TarInfo("img/a.png")
        member.size = 3
        opened.addfile(member, io.BytesIO(b"abc"))
    unpack(tmp_path / "good.tar.gz", tmp_path / "out")
    assert files_of(tmp_path / "out") == {"img/a.png": b"abc"}
    good = zip_of(tmp_path / "good.zip", {"a": b"x" * 500})
    damaged = bytearray(good.read_bytes())
    damaged[100] ^= 255
    (tmp_path / "bad.zip").write_bytes(damaged)
    with pytest.raises(ArchiveError, match="is damaged"):
        unpack(tmp_path / "bad.zip", tmp_path / "out2")
    (tmp_path / "page.zip").write_text("<html>Google Drive - Virus scan warning</html>")
    with pytest.raises(ArchiveError, match="is neither zip nor tar: a download page saved in place of the file"):
        unpack(tmp_path / "page.zip", tmp_path / "out3")


def test_names_that_fold_into_one_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="member 'IMG/A' stands twice"):
        unpack(zip_of(tmp_path / "twice.zip", {"img/a": b"1", "IMG/A": b"2"}), tmp_path / "out")


def test_wrong_paths_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=re.escape("datasets.toy.source is '/nowhere', which does not exist")):
        archives.locate("toy", "/nowhere", None, None)
    with pytest.raises(ArchiveError, match=re.escape("AGIQA_DATA is '/nowhere', which is no folder")):
        archives.locate("toy", None, "toy.zip", "/nowhere")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ArchiveError, match="is a link: put the file itself there"):
        archives.folder_digest(tmp_path)


def test_ones_own_folder_may_change(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for text in ("one", "two"):
        (tmp_path / "mine" / "labels.csv").write_text(text)
        fetch("mine", tmp_path / "out", source=str(tmp_path / "mine"), downloads=tmp_path / "d", checksums=None)
        assert (tmp_path / "out" / "labels.csv").read_text() == text
