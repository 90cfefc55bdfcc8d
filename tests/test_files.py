"""Writing whole or not at all."""

import hashlib
import os
from pathlib import Path

import pytest

from pipeline.files import expanded, file_md5, file_sha256, replaced_folder, sweep, write_atomically, write_json


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "file"
    write_atomically(path, b"old")

    def crash(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"


def test_a_folder_is_replaced_only_when_the_block_ends_well(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with replaced_folder(out) as folder:
        (folder / "a").write_text("1")

    def broken() -> None:
        with replaced_folder(out) as folder:
            (folder / "b").write_text("2")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert [path.name for path in out.iterdir()] == ["a"]
    with replaced_folder(out) as folder:
        (folder / "c").write_text("3")
    assert [path.name for path in out.iterdir()] == ["c"]


def test_json_is_strict_and_equal_for_equal_values(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": "\u00e9"})
    write_json(tmp_path / "b.json", {"a": "\u00e9", "b": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_hashes_are_what_they_are_called(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 3_000_000)
    assert file_md5(tmp_path / "f") == hashlib.md5(b"x" * 3_000_000, usedforsecurity=False).hexdigest()
    assert file_sha256(tmp_path / "f") == hashlib.sha256(b"x" * 3_000_000).hexdigest()


def test_a_home_folder_is_found_and_nobodys_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert expanded("~/a") == Path("/somewhere/a")
    assert expanded(Path("b")) == Path("b")
    assert not expanded("~no such user/a").exists()


def test_what_killed_writers_left_is_swept_and_nothing_else(in_tmp: Path) -> None:
    run = in_tmp / "runs/demo/dcmpln/round-0"
    for name in ("evaluate.partial/cross/other.csv", "evaluate/metrics.json", "train/partial.csv", "note.txt.partial"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("x")
    sweep(in_tmp / "runs")
    left = sorted(path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file())
    assert left == ["evaluate/metrics.json", "train/partial.csv"]
    assert not (run / "evaluate.partial").exists()
    sweep(in_tmp / "none")
