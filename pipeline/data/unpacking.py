"""Unpack an archive so that nothing in it can harm the machine, and no damage passes for content."""

import bz2
import copy
import gzip
import io
import lzma
import re
import shutil
import stat
import struct
import sys
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import IO

from tqdm import tqdm

from pipeline.data.places import is_side_file
from pipeline.errors import AgiqaError
from pipeline.files import lfs_pointer

MOST_BYTES = 40 * 2**30  # unpacked; the largest data set of this field is below 5 GiB
MOST_MEMBERS = 200_000
MOST_RATIO = 200  # unpacked bytes to packed bytes; photographs stay near 1, bombs reach 1,000
_BLOCK = 1 << 20
_MOST_HEADER = 1 << 18  # bytes of one tar header with its extensions; usual ones stay below 4 KiB
_MOST_FRAME = 1 << 26  # bytes of a tar around its files, beyond what the ratio grants
_MOST_DIRECTORY = 1 << 26  # bytes of a zip directory; 200,000 files need about 25 MB
_MOST_NAME = 255  # bytes of a file name on the usual file systems
_MOST_DEPTH = 64
_PACKED_TAR = {b"\x1f\x8b": gzip.open, b"BZh": bz2.BZ2File, b"\xfd7zXZ\0": lzma.LZMAFile}
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_RECORD = re.compile(rb"([1-9]\d{0,6}) [^=\n]+=")  # of a PAX header: its length, a key; a value and a newline follow
_DIGITS = re.compile(rb"\d{50}")  # on which tarfile before 3.12.6 takes quadratic time
_UNREADABLE = (  # what zipfile, tarfile and the decompressors raise on bytes that they did not write
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, ValueError),
    *(IndexError, OverflowError, RecursionError, NotImplementedError, MemoryError),
)


class ArchiveError(AgiqaError):
    """A data set that cannot be fetched, or must not be trusted."""


def unpack(
    archive: Path,
    folder: Path,
    *,
    most_bytes: int = MOST_BYTES,
    most_members: int = MOST_MEMBERS,
    most_ratio: int = MOST_RATIO,
) -> None:
    r"""Unpack a zip or tar archive into an empty folder: whole, with every checksum read, or not at all.

    Left out are hidden files and those that systems lay beside one's own, such as `__MACOSX/`, `._name`, `.DS_Store`,
    `Icon\r`, `Thumbs.db`, `desktop.ini`: see `pipeline.data.places.is_side_file`. A backslash separates folders, as
    Windows writes them; a colon is a letter like others, but for a drive. Names that are not UTF-8 are read as code
    page 437, the one of old zip files.

    Args:
        archive: .zip, or .tar, plain or in gzip, bzip2 or xz.
        folder: Where to.
        most_bytes: Limit of the unpacked size, counted while unpacking: what an archive says of itself proves nothing.
        most_members: Limit of the number of members, and of the files and folders that they make.
        most_ratio: Limit of unpacked to packed bytes.

    Raises:
        ArchiveError: If a member would land outside `folder`, is a link, a device, sparse or encrypted, or has a name
            that cannot be a file's here; if two members would be one file; if a limit is passed; if `folder` holds
            something; or if the archive is damaged, incomplete or neither zip nor tar. No file of it stays.
    """
    folder = folder.resolve()
    if folder.is_dir() and any(folder.iterdir()):
        raise ArchiveError(f"{folder} is not empty: {archive.name} is unpacked into an empty folder only")
    packed = archive.stat().st_size
    limit, total, where = min(most_bytes, most_ratio * packed), 0, ""
    tree: dict[str, bool] = {}  # folded path: is it a file?
    try:
        with progress_bar(packed, f"unpacking {archive.name}") as bar:
            for number, (name, size, blocks) in enumerate(_members(archive, limit, most_members), 1):
                where = f"member {_shown(name)}: "
                parts = _parts(archive, name, is_file=blocks is not None)
                if parts and not is_side_file(parts):
                    _place(archive, name, parts, blocks is not None, tree)
                    if blocks is not None:
                        target = folder.joinpath(*parts)
                        target.parent.mkdir(parents=True, exist_ok=True)
                        with target.open("xb") as output:
                            for block in blocks:
                                total += len(block)
                                if total > limit:
                                    raise _bomb(archive, limit)
                                output.write(block)
                if max(number, len(tree)) > most_members:
                    raise ArchiveError(f"{archive} holds more than {most_members} files: refused")
                where = ""
                bar.update(max(0, min(size, packed - bar.n)))  # sizes may lie
        if not any(tree.values()):
            raise ArchiveError(f"{archive} holds no file")
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, ArchiveError) or not isinstance(error, _UNREADABLE):
            raise
        if isinstance(error, OSError) and error.errno is not None:
            raise ArchiveError(f"{archive} cannot be unpacked into {folder}: {where}{error.strerror}") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ArchiveError(f"{archive} is damaged ({where}{reason}): delete it and fetch it anew") from error


def _members(archive: Path, limit: int, most_members: int) -> Iterator[tuple[str, int, Iterable[bytes] | None]]:
    """Yield name, size and content (None: a folder) of every member; refuse what is neither file nor folder."""
    with archive.open("rb") as stream:
        head = stream.read(tarfile.BLOCKSIZE)
        stream.seek(0)
        opener = next((opener for magic, opener in _PACKED_TAR.items() if head.startswith(magic)), None)
        if opener is not None:  # before zip: the last file of a tar may be a zip, whose end would be found
            with opener(stream) as unpacked:
                yield from _tar_members(archive, _TarStream(archive, unpacked, limit))
        elif _is_tar_header(head):
            yield from _tar_members(archive, _TarStream(archive, stream, limit))
        elif zipfile.is_zipfile(stream):
            with _ZipStream(archive, most_members) as limited, zipfile.ZipFile(limited) as opened:
                yield from _zip_members(archive, opened)
        elif head.startswith(b"PK\x03\x04"):
            raise ArchiveError(f"{archive} is damaged (a zip without its end, as a broken download): fetch it anew")
        elif pointer := lfs_pointer(head):
            raise ArchiveError(f"{archive} {pointer}")
        else:
            raise ArchiveError(f"{archive} is neither zip nor tar: a download page saved in place of the file?")


def _zip_members(archive: Path, opened: zipfile.ZipFile) -> Iterator[tuple[str, int, Iterable[bytes] | None]]:
    for member in opened.infolist():
        name = member.orig_filename  # `filename` ends at a NUL
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _refused(archive, name, "is a link or a device")
        if member.flag_bits & 0x2041:  # encrypted, strongly encrypted, or its header is
            raise _refused(archive, name, "is encrypted")
        if member.compress_type not in _ZIP_METHODS:
            raise _refused(archive, name, f"is packed by method {member.compress_type} and not by deflate")
        if b"PK\x01\x02" in member.comment or b"PK\x01\x02" in member.extra:
            raise zipfile.BadZipFile(f"the entry of {_shown(name)} swallows the next")
        if member.header_offset < 0:
            raise zipfile.BadZipFile(f"member {_shown(name)} lies before the file")
        folder = name.endswith(("/", "\\"))
        if folder and member.file_size:
            raise _refused(archive, name, "is a folder with bytes of its own")
        yield name, member.compress_size, None if folder else _zip_blocks(opened, member)


def _zip_blocks(opened: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    """Yield a member's bytes and check its CRC; zipfile unpacks bzip2 and lzma without bounds, so not through it."""
    if member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with opened.open(member) as stream:
            yield from iter(lambda: stream.read(_BLOCK), b"")
        return
    as_stored = copy.copy(member)
    as_stored.compress_type, as_stored.file_size = zipfile.ZIP_STORED, member.compress_size
    del as_stored.CRC
    with opened.open(as_stored) as stream:
        if member.compress_type == zipfile.ZIP_BZIP2:
            opener = bz2.BZ2File
        else:  # two bytes of version, two of the length of the properties; then as in an .lzma file
            length, properties, dictionary = struct.unpack("<2xHBI", stream.read(9))
            if length != 5:
                raise zipfile.BadZipFile("unknown lzma properties")
            chain = {"id": lzma.FILTER_LZMA1, "dict_size": min(dictionary, max(4096, member.file_size))}
            chain |= {"lc": properties % 9, "lp": properties // 9 % 5, "pb": properties // 45}
            opener = partial(lzma.LZMAFile, format=lzma.FORMAT_RAW, filters=[chain])
        unpacked, left, crc = opener(stream), member.file_size, 0
        while left:
            block = unpacked.read(min(left, _BLOCK))
            if not block:
                raise zipfile.BadZipFile("it ends early")
            left, crc = left - len(block), zlib.crc32(block, crc)
            yield block
        if crc != member.CRC:
            raise zipfile.BadZipFile("bad CRC-32")


class _ZipStream(io.BufferedReader):
    """A zip file that refuses a huge directory before zipfile makes objects of it: zipfile reads it in one piece."""

    def __init__(self, archive: Path, most_members: int) -> None:
        super().__init__(io.FileIO(archive))
        self.archive, self.most_members = archive, most_members

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MOST_DIRECTORY:
            raise ArchiveError(f"{self.archive} has a directory of {size:,} bytes: refused as a bomb")
        data = super().read(size)
        if data.startswith(b"PK\x01\x02") and data.count(b"PK\x01\x02") > self.most_members:
            raise ArchiveError(f"{self.archive} holds more than {self.most_members} files: refused")
        return data


def _tar_members(archive: Path, stream: "_TarStream") -> Iterator[tuple[str, int, Iterable[bytes] | None]]:
    opened = tarfile.TarFile(fileobj=stream, tarinfo=_TarMember, encoding="utf-8", errors="surrogateescape")
    while (member := opened.next()) is not None:
        opened.members.clear()
        name = member.name.encode("utf-8", "surrogateescape")
        try:
            name = name.decode()
        except UnicodeDecodeError:
            name = name.decode("cp437")
        if member.issparse():
            raise _refused(archive, name, "is sparse (tar --sparse)")
        if not (member.isfile() or member.isdir()):
            raise _refused(archive, name, "is a link or a device")
        stream.header_left = sys.maxsize
        if member.isfile():
            content = opened.extractfile(member)
            yield name, member.size, iter(lambda content=content: content.read(_BLOCK), b"")
        else:
            yield name, 0, None
        stream.header_left = _MOST_HEADER
    stream.header_left = sys.maxsize
    while block := stream.read(_BLOCK):  # to the very end, where the checksum of the compression stands
        if block.strip(b"\0"):
            raise tarfile.ReadError("there are bytes after the archive's end")


class _TarStream:
    """An unpacked tar that is read forward only, and whose headers take bounded memory whatever size they claim."""

    def __init__(self, archive: Path, unpacked: IO[bytes], limit: int) -> None:
        self.archive, self.unpacked, self.limit = archive, unpacked, limit
        self.position, self.again = 0, b""
        self.header_left = self.global_left = _MOST_HEADER

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.header_left:
            raise ArchiveError(f"{self.archive} has a header of more than {_MOST_HEADER:,} bytes: refused as a bomb")
        data, self.again = self.again[:size], self.again[size:]
        if len(data) < size:
            data += self.unpacked.read(size - len(data))
        self.position += len(data)
        self.header_left -= len(data)
        if self.position > self.limit + _MOST_FRAME:
            raise _bomb(self.archive, self.limit + _MOST_FRAME)
        return data

    def unread(self, data: bytes) -> None:
        self.again, self.position = data + self.again, self.position - len(data)
        self.header_left += len(data)

    def tell(self) -> int:
        return self.position

    def seek(self, position: int) -> None:
        held, self.header_left = self.header_left, sys.maxsize
        while self.position < position:
            if not self.read(min(position - self.position, _BLOCK)):
                raise tarfile.ReadError("unexpected end of data")
        if self.position > position:
            raise tarfile.ReadError("a member of negative size")
        self.header_left = held


class _TarMember(tarfile.TarInfo):
    """A tar header that speaks up where tarfile would end the archive without a word."""

    @classmethod
    def fromtarfile(cls, opened: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(opened)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} before byte {opened.fileobj.tell():,}") from None

    def _proc_member(self, opened: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE):
            stream: _TarStream = opened.fileobj
            content = stream.read(-(-self.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
            stream.unread(content)
            if self.type == tarfile.XGLTYPE:  # tarfile keeps these for good
                stream.global_left -= self.size
            end = 0
            while end < self.size:  # else tarfile takes quadratic time and memory on records that overlap
                start, record = end, _RECORD.match(content, end)
                end += int(record[1]) if record else 0
                if record is None or not record.end() < end <= self.size or content[end - 1] != ord("\n"):
                    raise tarfile.InvalidHeaderError(f"invalid extended header at its byte {start}")
            if _DIGITS.search(content) or stream.global_left < 0:
                raise ArchiveError(f"{stream.archive} has a header that is far too long: refused as a bomb")
        return super()._proc_member(opened)


def _is_tar_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        return isinstance(error, tarfile.EOFHeaderError)
    return True


def _parts(archive: Path, name: str, *, is_file: bool) -> tuple[str, ...]:
    """Return a member's path, in names that can stand below the folder; empty for the folder itself."""
    path = name.replace("\\", "/")
    parts = tuple(part for part in path.split("/") if part not in ("", "."))
    fault = None
    if path.startswith("/") or ".." in parts or re.match("[A-Za-z]:/", path):
        fault = "leaves the folder"
    elif not parts and is_file:
        fault = "has no name"
    elif any(unicodedata.category(sign) in ("Cc", "Cs") for sign in name) and not is_side_file(parts):
        fault = "has a control character in its name"
    elif len(parts) > _MOST_DEPTH:
        fault = f"lies more than {_MOST_DEPTH} folders deep"
    elif any(len(part.encode("utf-8", "surrogatepass")) > _MOST_NAME for part in parts):
        fault = f"has a name of more than {_MOST_NAME} bytes"
    if fault:
        raise _refused(archive, name, fault)
    return parts


def _place(archive: Path, name: str, parts: tuple[str, ...], is_file: bool, tree: dict[str, bool]) -> None:
    """Enter a member into the tree; refuse what some file system, which folds case, accents or dots, would merge."""
    decompose = partial(unicodedata.normalize, "NFD")
    keys = list(accumulate((decompose(decompose(part).casefold()).rstrip(". ") for part in parts), "{}/{}".format))
    if is_file and tree.get(keys[-1]):
        raise _refused(archive, name, "stands twice")
    for key in keys:
        kind = is_file and key is keys[-1]
        if tree.setdefault(key, kind) != kind:
            raise _refused(archive, name, "needs one name for a file and a folder")


def _refused(archive: Path, name: str, fault: str) -> ArchiveError:
    return ArchiveError(f"{archive}: member {_shown(name)} {fault}: refused")


def _shown(name: str) -> str:
    return repr(name) if len(name) <= 100 else f"{name[:100]!r}..."


def _bomb(archive: Path, limit: int) -> ArchiveError:
    return ArchiveError(
        f"{archive} unpacks to more than {limit:,} bytes (from {archive.stat().st_size:,}): refused as a bomb"
    )


def progress_bar(total: int, label: str) -> tqdm:
    """Return a progress bar over bytes."""
    return tqdm(total=total, desc=label, unit="B", unit_scale=True, unit_divisor=1024, dynamic_ncols=True)
