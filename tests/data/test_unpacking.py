"""Archives that must not be trusted: no path leaves, no damage passes, no bomb takes the machine."""

import bz2
import gzip
import io
import json
import lzma
import re
import stat
import struct
import subprocess
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.data.unpacking import ArchiveError, unpack

ROOT = Path(__file__).resolve().parents[2]
FILES = {"img/a.png": bytes(range(99)), "img/b.png": b"second" * 9, "labels.csv": b"image,mos\na.png,1\n"}
DATE = (2024, 1, 1, 0, 0, 0)
NOISE = bytes(k * k % 251 for k in range(700))
MEBIBYTE = gzip.compress(bytes(1 << 20), mtime=0)  # a member of its own; gzip files may be joined


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def zipped(
    *members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED, mode: int = 0, flags: int = 0, comment: bytes = b""
) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as opened:
        for name, content in members:
            entry = zipfile.ZipInfo("x", DATE)
            entry.filename = name  # as it is: the constructor would end it at a NUL
            entry.compress_type, entry.external_attr, entry.comment = method, mode << 16, comment
            with warnings.catch_warnings(action="ignore"):  # of names that stand twice
                opened.writestr(entry, content)
    data = buffer.getvalue()
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)) if flags else ():
        at = data.index(signature) + offset
        data = data[:at] + struct.pack("<H", struct.unpack_from("<H", data, at)[0] | flags) + data[at + 2 :]
    return data


def zip_of(path: Path, members: dict[str, bytes]) -> Path:
    path.write_bytes(zipped(*members.items(), method=zipfile.ZIP_STORED))
    return path


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = size, kind, link
    return member.tobuf(tarfile.GNU_FORMAT)


def entry(name: str, content: bytes = b"x", kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    return header(name, len(content), kind, link) + content + bytes(-len(content) % 512)


def tarred(*entries: bytes) -> bytes:
    return b"".join(entries) + bytes(10240)


def pax(key: str, value: str) -> bytes:
    text = f" {key}={value}\n".encode()
    length = next(n for n in range(len(text), len(text) + 9) if len(str(n)) + len(text) == n)
    return entry("pax", str(length).encode() + text, tarfile.XHDTYPE)


def good_tar() -> bytes:
    return tarred(*(entry(name, content) for name, content in FILES.items()))


def flipped(data: bytes, at: int, mask: int = 255) -> bytes:
    damaged = bytearray(data)
    damaged[at] ^= mask
    return bytes(damaged)


def method_of(data: bytes, method: int) -> bytes:
    """Return a zip whose first member claims another method."""
    for signature, offset in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        at = data.index(signature) + offset
        data = data[:at] + struct.pack("<H", method) + data[at + 2 :]
    return data


def swallowing() -> bytes:
    """Return a zip of two members in which one damaged byte makes the second a comment of the first."""
    data = zipped(("a", b"1"), ("b", b"2"))
    second = len(data) - 22 - 47
    return flipped(data, second - 47 + 32, 47)


BAD: list[tuple[str, Callable[[], bytes], str]] = [
    ("zip-parent", lambda: zipped(("../evil", b"x")), r"member '\.\./evil' leaves the folder: refused"),
    ("zip-absolute", lambda: zipped(("/etc/evil", b"x")), "member '/etc/evil' leaves the folder: refused"),
    ("zip-drive", lambda: zipped(("C:\\evil", b"x")), r"member 'C:\\\\evil' leaves the folder: refused"),
    ("zip-share", lambda: zipped(("\\\\host\\evil", b"x")), r"member '.*host.*evil' leaves the folder: refused"),
    ("zip-nul", lambda: zipped(("a\0b", b"x")), r"member 'a\\x00b' has a control character in its name: refused"),
    ("zip-newline", lambda: zipped(("a\nb", b"x")), r"member 'a\\nb' has a control character in its name: refused"),
    ("zip-empty-name", lambda: zipped(("", b"x")), "member '' has no name: refused"),
    ("zip-dot", lambda: zipped((".", b"x")), r"member '\.' has no name: refused"),
    (
        "zip-long",
        lambda: zipped(("n" * 300, b"x")),
        r"member 'n{100}'\.\.\. has a name of more than 255 bytes: refused",
    ),
    ("zip-umlauts", lambda: zipped(("ü" * 200, b"x")), r"member 'ü{100}'\.\.\. has a name of more than 255 bytes"),
    ("zip-deep", lambda: zipped(("d/" * 400 + "a", b"x")), "lies more than 64 folders deep: refused"),
    ("zip-twice", lambda: zipped(("a", b"x"), ("./a", b"y")), r"member '\./a' stands twice: refused"),
    ("zip-case", lambda: zipped(("A", b"x"), ("a", b"y")), "member 'a' stands twice: refused"),
    ("zip-accent", lambda: zipped(("\xe9", b"x"), ("e\u0301", b"y")), "stands twice: refused"),
    ("zip-file-folder", lambda: zipped(("a", b"x"), ("a/b", b"y")), "member 'a/b' needs one name for a file and a fol"),
    (
        "zip-folder-file",
        lambda: zipped(("a/b", b"x"), ("a", b"y")),
        "member 'a' needs one name for a file and a folder",
    ),
    ("zip-full-folder", lambda: zipped(("a/", b"x")), "member 'a/' is a folder with bytes of its own: refused"),
    ("zip-link", lambda: zipped(("a", b"/etc"), mode=stat.S_IFLNK), "member 'a' is a link or a device: refused"),
    ("zip-fifo", lambda: zipped(("a", b""), mode=stat.S_IFIFO), "member 'a' is a link or a device: refused"),
    ("zip-encrypted", lambda: zipped(("a", b"x"), flags=1), "member 'a' is encrypted: refused"),
    ("zip-strongly-encrypted", lambda: zipped(("a", b"x"), flags=64), "member 'a' is encrypted: refused"),
    (
        "zip-patch",
        lambda: zipped(("a", b"x"), flags=32),
        r"is damaged \(member 'a': compressed patched data \(flag bit",
    ),
    (
        "zip-method",
        lambda: method_of(zipped(("a", b"x")), 9),
        "member 'a' is packed by method 9 and not by deflate: ref",
    ),
    (
        "zip-bad-utf8",
        lambda: zipped(("é", b"x")).replace(b"\xc3\xa9", b"\xff\xfe"),
        r"is damaged \('utf-8' codec can't",
    ),
    ("zip-swallowed", swallowing, r"is damaged \(the entry of 'a' swallows the next\): delete it and fetch it anew"),
    ("zip-cut", lambda: zipped(*FILES.items())[:-30], r"is damaged \(a zip without its end, as a broken download\)"),
    (
        "zip-head-cut",
        lambda: zipped(*FILES.items())[30:],
        r"is damaged \(member 'img/a\.png' lies before the file\)",
    ),
    (
        "zip-crc",
        lambda: zipped(("a", NOISE), method=0).replace(NOISE, NOISE[::-1]),
        r"\(member 'a': Bad CRC-32 for file",
    ),
    (
        "zip-bzip2",
        lambda: flipped(zipped(("a", NOISE), method=12), 200),
        r"is damaged \(member 'a': Invalid data stream",
    ),
    (
        "zip-lzma",
        lambda: flipped(zipped(("a", NOISE), method=14), 200),
        r"is damaged \(member 'a': (bad CRC|Corrupt input)",
    ),
    ("zip-lzma-head", lambda: flipped(zipped(("a", NOISE), method=14), 33), r"\(member 'a': unknown lzma properties\)"),
    ("zip-nothing", lambda: zipped(("a/", b"")), "holds no file"),
    ("zip-side-files", lambda: zipped(("__MACOSX/._a", b"x"), (".DS_Store", b"x")), "holds no file"),
    ("tar-parent", lambda: tarred(entry("a/../../evil")), r"member 'a/\.\./\.\./evil' leaves the folder: refused"),
    (
        "tar-absolute",
        lambda: tarred(pax("path", "/etc/evil"), entry("a")),
        "member '/etc/evil' leaves the folder: refused",
    ),
    ("tar-drive", lambda: tarred(entry("c:/evil")), "member 'c:/evil' leaves the folder: refused"),
    ("tar-folder-out", lambda: tarred(entry("../out2", b"", b"5")), r"member '\.\./out2' leaves the folder: refused"),
    ("tar-dot", lambda: tarred(entry(".")), r"member '\.' has no name: refused"),
    (
        "tar-control",
        lambda: tarred(pax("path", "a\x1b[2J"), entry("a")),
        r"'a\\x1b\[2J' has a control character in its",
    ),
    ("tar-long", lambda: tarred(pax("path", "n" * 300), entry("a")), "has a name of more than 255 bytes: refused"),
    ("tar-symlink", lambda: tarred(entry("a", b"", b"2", "/etc")), "member 'a' is a link or a device: refused"),
    ("tar-hardlink", lambda: tarred(entry("a", b"", b"1", "/etc")), "member 'a' is a link or a device: refused"),
    ("tar-device", lambda: tarred(entry("a", b"", b"4")), "member 'a' is a link or a device: refused"),
    ("tar-fifo", lambda: tarred(entry("a", b"", b"6")), "member 'a' is a link or a device: refused"),
    ("tar-sparse", lambda: tarred(entry("a", b"x" * 512, b"S")), r"member 'a' is sparse \(tar --sparse\): refused"),
    (
        "tar-pax-sparse",
        lambda: tarred(pax("GNU.sparse.map", "0,1"), entry("a")),
        r"is sparse \(tar --sparse\): refused",
    ),
    ("tar-second-header", lambda: flipped(good_tar(), 1024 + 3), r"is damaged \(bad checksum before byte 1,536\)"),
    (
        "tar-zeroed-header",
        lambda: good_tar()[:1024] + bytes(512) + good_tar()[1536:],
        "there are bytes after the archive",
    ),
    ("tar-joined", lambda: good_tar() + tarred(entry("c")), r"is damaged \(there are bytes after the archive's end\)"),
    ("tar-no-end", lambda: good_tar()[:-10240], r"is damaged \(empty header before byte"),
    ("tar-cut", lambda: good_tar()[:600], r"is damaged \(member 'img/a.png': unexpected end of data\)"),
    ("tar-cut-header", lambda: good_tar()[:1200], r"is damaged \(truncated header before byte 1,200\)"),
    ("tar-pax-number", lambda: tarred(pax("size", "-9"), entry("a")), r"is damaged \("),
    (
        "tar-pax-record",
        lambda: tarred(entry("p", b"99 path=b\n", b"x"), entry("a")),
        "invalid extended header at its byte 0",
    ),
    ("tar-pax-last", lambda: tarred(pax("path", "b")), r"is damaged \(end of file header before byte"),
    ("tar-empty", lambda: tarred(), "holds no file"),
    ("gzip-cut", lambda: gzip.compress(good_tar())[:-9], r"is damaged \("),
    ("gzip-crc", lambda: flipped(gzip.compress(good_tar()), -6), r"is damaged \(CRC check failed"),
    (
        "gzip-length",
        lambda: flipped(gzip.compress(good_tar()), -1),
        r"is damaged \(Incorrect length of data produced\)",
    ),
    ("gzip-rest", lambda: gzip.compress(good_tar()) + b"rest", r"is damaged \(Not a gzipped file"),
    ("gzip-second", lambda: gzip.compress(good_tar()) + flipped(MEBIBYTE, -6), r"is damaged \(CRC check failed"),
    ("gzip-no-tar", lambda: gzip.compress(b"image,mos\n" * 99), r"is damaged \(invalid header before byte 512\)"),
    ("xz-cut", lambda: lzma.compress(good_tar())[:-9], r"is damaged \(Compressed file ended before the end-of-stream"),
    ("bzip2-cut", lambda: bz2.compress(good_tar())[:-9], r"is damaged \(Compressed file ended before the end-of-stre"),
    (
        "page",
        lambda: b"<html>Google Drive - Virus scan warning</html>",
        "is neither zip nor tar: a download page saved i",
    ),
    (
        "pointer",
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "is a pointer of Git LFS in place of the file itself",
    ),
    ("nothing", lambda: b"", "is neither zip nor tar: a download page saved in place of the file"),
]


@pytest.mark.parametrize(("data", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_archives_end_in_one_line_and_leave_nothing(
    tmp_path: Path, data: Callable[[], bytes], message: str
) -> None:
    archive = tmp_path / "bad"
    archive.write_bytes(data())
    with pytest.raises(ArchiveError, match=message) as error:
        unpack(archive, tmp_path / "deep" / "out")
    text = str(error.value)
    assert text.startswith(str(archive))
    assert "\n" not in text
    assert len(text) < 400 + len(str(archive))
    assert {path.name for path in tmp_path.rglob("*")} <= {"bad", "deep"}


GOOD: list[tuple[str, Callable[[], bytes], dict[str, bytes]]] = [
    ("zip-stored", lambda: zipped(*FILES.items(), method=zipfile.ZIP_STORED), FILES),
    ("zip-deflate", lambda: zipped(*FILES.items()), FILES),
    ("zip-bzip2", lambda: zipped(*FILES.items(), ("e", b""), method=zipfile.ZIP_BZIP2), FILES | {"e": b""}),
    ("zip-lzma", lambda: zipped(*FILES.items(), ("e", b""), method=zipfile.ZIP_LZMA), FILES | {"e": b""}),
    ("zip-behind-a-program", lambda: b"#!/bin/sh\n" + zipped(*FILES.items()), FILES),
    ("zip-backslashes", lambda: zipped(("img\\", b""), ("img\\a.png", b"x")), {"img/a.png": b"x"}),
    ("zip-old-names", lambda: zipped(("img/??", b"x")).replace(b"??", b"\x81\xff"), {"img/ü\xa0": b"x"}),
    ("zip-colon", lambda: zipped(("a:b.png", b"x"), ("10:00/C:.png", b"y")), {"a:b.png": b"x", "10:00/C:.png": b"y"}),
    ("tar-plain", good_tar, FILES),
    ("tar-gzip", lambda: gzip.compress(good_tar()), FILES),
    ("tar-gzip-joined", lambda: gzip.compress(good_tar()[:600]) + gzip.compress(good_tar()[600:]), FILES),
    ("tar-bzip2", lambda: bz2.compress(good_tar()), FILES),
    ("tar-xz", lambda: lzma.compress(good_tar()), FILES),
    ("tar-lone-end", lambda: good_tar()[: 512 - 10240], FILES),
    ("tar-of-a-zip", lambda: tarred(entry("a.zip", zipped(("b", b"x")))), {"a.zip": zipped(("b", b"x"))}),
    ("tar-dot-folders", lambda: tarred(entry("./", b"", b"5"), entry("./a", b"", b"5"), entry("./a/b")), {"a/b": b"x"}),
    ("tar-pax-name", lambda: tarred(pax("path", "d/" + "ü" * 120), entry("a")), {"d/" + "ü" * 120: b"x"}),
    ("tar-old-name", lambda: latin_tar(), {"ü": b"x"}),
    (
        "side-files",
        lambda: zipped(
            *(("a.png", b"x"), ("__MACOSX/._a.png", b"x"), ("d/._b.png", b"x"), ("d/.DS_Store", b"x"), ("Icon\r", b"")),
            *(("d/Thumbs.db", b"x"), ("Desktop.ini", b"x"), ("d/.hidden", b"y")),
        ),
        {"a.png": b"x"},
    ),
]


def latin_tar() -> bytes:
    member = tarfile.TarInfo("\udc81")
    member.size = 1
    return tarred(member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape") + b"x" + bytes(511))


@pytest.mark.parametrize(("data", "files"), [row[1:] for row in GOOD], ids=[row[0] for row in GOOD])
def test_harmless_archives_are_read(tmp_path: Path, data: Callable[[], bytes], files: dict[str, bytes]) -> None:
    (tmp_path / "good").write_bytes(data())
    unpack(tmp_path / "good", tmp_path / "out")
    assert files_of(tmp_path / "out") == files


FORMATS = ["zip-stored", "zip-deflate", "zip-bzip2", "zip-lzma", "tar-gzip", "tar-gzip-joined", "tar-bzip2", "tar-xz"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_no_flipped_byte_and_no_lost_end_passes_for_content(tmp_path: Path, name: str) -> None:
    """What is flipped is refused, or stands where nothing depends on it, as in a date: then all files are right."""
    data, files = next(row[1:] for row in GOOD if row[0] == name)
    whole = data()
    archive, out = tmp_path / "archive", tmp_path / "out"
    harmless = 0
    damaged = [flipped(whole, at, 1 << at % 8) for at in range(len(whole))]
    for number, content in enumerate(damaged + [whole[:end] for end in range(0, len(whole), 7)]):
        archive.write_bytes(content)
        try:
            unpack(archive, out)
        except ArchiveError:
            assert not out.exists()
        else:
            assert files_of(out) == files, number
            assert number < len(whole) or name.startswith("tar")
            harmless += 1
            for path in sorted(out.rglob("*"), reverse=True):
                path.unlink() if path.is_file() else path.rmdir()
    assert harmless < len(whole) * (0.5 if name.startswith("zip") else 0.1)


def zip_directory() -> bytes:
    """Return a zip of a million entries without names."""
    one = struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", 20, 3, 20, 0, *[0] * 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    return one * 1_000_000 + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, 46_000_000, 0, 0)


def global_headers() -> bytes:
    blocks = (
        entry(
            "g",
            b"".join(f"300 k{n}x{k:04}={'':x>{300 - 11 - len(str(n))}}"[:299].encode() + b"\n" for k in range(800)),
            b"g",
        )
        + entry(f"f{n}")
        for n in range(400)
    )
    return gzip.compress(tarred(*blocks), 6)


def huge(kind: bytes) -> bytes:
    rest = gzip.compress(tarred(entry("a")))
    return gzip.compress(header("h", 1 << 30, kind)) + MEBIBYTE * 1024 + rest


def sparse_map() -> bytes:
    head = bytearray(header("s", 0, b"S"))
    head[482] = 1
    head[148:156] = b"%06o\0 " % (sum(head[:148]) + sum(head[156:]) + 256)
    part = gzip.compress((b"00000000001\0" * 42 + b"\1" + bytes(7)) * 2048, 6)
    return gzip.compress(bytes(head)) + part * 512 + gzip.compress(tarred())


def zeros(method: int, size: int) -> bytes:
    return zipped(("a", bytes(size)), method=method)


BOMBS: list[tuple[str, Callable[[], bytes], str]] = [
    ("pax", lambda: huge(b"x"), "has a header of more than 262,144 bytes: refused as a bomb"),
    ("pax-global", lambda: huge(b"g"), "has a header of more than 262,144 bytes: refused as a bomb"),
    ("long-name", lambda: huge(b"L"), "has a header of more than 262,144 bytes: refused as a bomb"),
    ("long-link", lambda: huge(b"K"), "has a header of more than 262,144 bytes: refused as a bomb"),
    ("sparse-map", sparse_map, "has a header of more than 262,144 bytes: refused as a bomb"),
    ("global-headers", global_headers, "has a header that is far too long: refused as a bomb"),
    ("nested-headers", lambda: gzip.compress(pax("a", "b") * 9999), "refused as a bomb|recursion depth"),
    ("pax-overlap", lambda: gzip.compress(tarred(entry("p", b"2 " * 130_000 + b"=", b"x"))), "invalid extended header"),
    ("pax-digits", lambda: gzip.compress(tarred(pax("a", "1" * 260_000), entry("a"))), "header that is far too long"),
    ("content", lambda: huge(b"0"), r"unpacks to more than [\d,]+ bytes .*: refused as a bomb"),
    ("rest", lambda: gzip.compress(tarred(entry("a"))) + MEBIBYTE * 1024, "unpacks to more than .*: refused as a bomb"),
    ("zip-deflate", lambda: zeros(zipfile.ZIP_DEFLATED, 1 << 28), "unpacks to more than .*: refused as a bomb"),
    ("zip-bzip2", lambda: zeros(zipfile.ZIP_BZIP2, 1 << 28), "unpacks to more than .*: refused as a bomb"),
    ("zip-lzma", lambda: zeros(zipfile.ZIP_LZMA, 1 << 26), "unpacks to more than .*: refused as a bomb"),
    ("zip-directory", zip_directory, "holds more than 200000 files: refused"),
]
MEASURE = """
import json, resource, sys, time
from pathlib import Path
from pipeline.data.unpacking import ArchiveError, unpack
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
message = "accepted"
try:
    if sys.argv[1] == "control":
        held = bytearray(b"x") * (200 << 20)
    else:
        unpack(Path(sys.argv[1]), Path(sys.argv[2]))
except ArchiveError as error:
    message = str(error)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([message, before / 1024, (after - before) / 1024, time.perf_counter() - start]))
"""


def measured(archive: Path | str, out: Path, code: str = MEASURE, cwd: Path = ROOT) -> tuple[str, float, float]:
    """Return what a fresh process says of an archive, its peak memory in MiB above its start, and its seconds.

    A program's peak on Linux starts at that of the process which it was forked from, here one that has built the bomb
    and would hide it. So a shell stands between.
    """
    command = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-c", code, archive, out]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True, timeout=120)
    message, before, mebibytes, seconds = json.loads(done.stdout)
    assert before < 100, "the peak of another process"
    return message, mebibytes, seconds


def test_the_measure_of_memory_sees_what_is_taken(tmp_path: Path) -> None:
    held = bytearray(b"x") * (300 << 20)
    assert 190 < measured("control", tmp_path / "out")[1] < 220
    del held


@pytest.mark.parametrize(("data", "message"), [row[1:] for row in BOMBS], ids=[row[0] for row in BOMBS])
def test_bombs_are_refused_in_bounded_memory_and_time(tmp_path: Path, data: Callable[[], bytes], message: str) -> None:
    (tmp_path / "bomb").write_bytes(data())
    said, mebibytes, seconds = measured(tmp_path / "bomb", tmp_path / "out")
    assert re.search(message, said)
    assert mebibytes < 160
    assert seconds < 20  # below five on an idle machine
    assert not (tmp_path / "out").exists()


names = st.text(st.characters(codec="utf-8"), max_size=40) | st.lists(
    st.sampled_from(
        ["..", ".", "", "a", "A", "C:", "~", "b.png", "._a", "\\", "/", "\0", "é", "e\u0301", "con ", "x" * 256]
    ),
    max_size=6,
).map("/".join)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(members=st.lists(st.tuples(names, st.binary(max_size=20)), min_size=1, max_size=5), as_tar=st.booleans())
def test_no_name_leads_out_of_the_folder(
    tmp_path_factory: pytest.TempPathFactory, members: list[tuple[str, bytes]], as_tar: bool
) -> None:
    place = tmp_path_factory.mktemp("place")
    if as_tar:
        data = tarred(*(pax("path", name) + entry("a", content) for name, content in members))
    else:
        data = zipped(*((name, b"" if name.endswith(("/", "\\")) else content) for name, content in members))
    (place / "archive").write_bytes(data)
    (place / "beside").write_bytes(b"untouched")
    try:
        unpack(place / "archive", place / "deep" / "out")
    except ArchiveError:
        assert not (place / "deep" / "out").exists()
    else:
        found = list((place / "deep" / "out").rglob("*"))
        assert not any(path.is_symlink() for path in found)
        assert 0 < sum(path.is_file() for path in found) <= len(members)
    assert {path.name for path in place.iterdir()} <= {"archive", "beside", "deep"}
    assert (place / "beside").read_bytes() == b"untouched"


def test_only_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "img").symlink_to(tmp_path / "outside")
    archive = zip_of(tmp_path / "good.zip", FILES)
    with pytest.raises(ArchiveError, match=r"out is not empty: good\.zip is unpacked into an empty folder only"):
        unpack(archive, tmp_path / "out")
    assert not list((tmp_path / "outside").iterdir())
    assert (tmp_path / "out" / "img").is_symlink()


def test_a_full_disk_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = zip_of(tmp_path / "good.zip", FILES)
    plain = Path.open

    def full(path: Path, mode: str = "r", **settings: object) -> object:
        if mode == "xb":
            raise OSError(28, "No space left on device")
        return plain(path, mode, **settings)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(
        ArchiveError, match=r"cannot be unpacked into .*out: member 'img/a\.png': No space left on device"
    ):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


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
