"""Fetching: the order of sources, digests that hold, and folders that are copied whole."""

import hashlib
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from pipeline.data import archives
from pipeline.data.archives import ArchiveError, fetch, locate
from stages.download import main as download_stage


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


@pytest.mark.parametrize("content", ['{"toy": "1', "<<<<<<< HEAD", "3"])
def test_a_damaged_record_of_digests_is_one_line(tmp_path: Path, where: dict[str, Path], content: str) -> None:
    archive = zip_of(tmp_path / "toy.zip", {"a": b"1"})
    where["checksums"].write_text(content)
    with pytest.raises(ArchiveError, match=rf"^{re.escape(str(where['checksums']))} is damaged \(.*\): delete it"):
        fetch("toy", tmp_path / "out", source=str(archive), **where)
    assert where["checksums"].read_text() == content


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


def test_what_macs_and_windows_lay_beside_the_files_is_no_part_of_a_folder(
    tmp_path: Path, where: dict[str, Path]
) -> None:
    (tmp_path / "mine" / "img").mkdir(parents=True)
    (tmp_path / "mine" / "img" / "a.png").write_bytes(b"a")
    digest = archives.folder_digest(tmp_path / "mine")
    for name in ("._a.png", ".DS_Store", "Thumbs.db", "Desktop.ini"):
        (tmp_path / "mine" / "img" / name).write_bytes(b"x")
    assert archives.folder_digest(tmp_path / "mine") == digest
    fetch("mine", tmp_path / "out", source=str(tmp_path / "mine"), **where)
    assert files_of(tmp_path / "out") == {"img/a.png": b"a"}


def test_a_refused_archive_leaves_nothing_and_takes_nothing_away(tmp_path: Path, where: dict[str, Path]) -> None:
    fetch("toy", tmp_path / "out", source=str(zip_of(tmp_path / "toy.zip", {"a": b"1"})), **where)
    where["checksums"].unlink()
    bad = zip_of(tmp_path / "bad.zip", {"a": b"2", "../b": b"2"})
    with pytest.raises(ArchiveError, match=r"member '\.\./b' leaves the folder: refused"):
        fetch("toy", tmp_path / "out", source=str(bad), **where)
    assert files_of(tmp_path / "out") == {"a": b"1"}
    assert not list(tmp_path.glob("*.partial"))


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


def test_a_relative_source_starts_from_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in one of DVC's temporary copies, which does not hold what git does not know."""
    repository, copy = tmp_path / "repository", tmp_path / "copy"
    (repository / "photos").mkdir(parents=True)
    (repository / "photos" / "a.png").write_bytes(b"x")
    copy.mkdir()
    monkeypatch.chdir(copy)
    assert locate("mine", "photos", None, None, repository) == repository / "photos"
    assert locate("mine", str(repository / "photos"), None, None, copy) == repository / "photos"
    (repository / "data" / "mine").mkdir(parents=True)
    assert locate("mine", None, None, "data", repository) == repository / "data" / "mine"
    with pytest.raises(ArchiveError, match=r"datasets\.mine\.source is 'photos', which does not exist"):
        locate("mine", "photos", None, None)
    raw = yaml.safe_load((ROOT / "params" / "demo.yaml").read_text())
    raw["datasets"]["mine"] = raw["datasets"]["demo"] | {"reader": "folder", "source": "photos", "scale": [1, 5]}
    raw["study"]["datasets"] = ["mine"]
    (copy / "params.yaml").write_text(yaml.safe_dump(raw))
    monkeypatch.setenv("DVC_ROOT", str(repository))
    download_stage(["--dataset", "mine"])
    assert (copy / "data" / "raw" / "mine" / "a.png").read_bytes() == b"x"
