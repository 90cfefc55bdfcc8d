"""Fetch a data set, verify its bytes and unpack it so that no archive can harm the machine."""

import hashlib
import json
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from pipeline.errors import AgiqaError
from pipeline.files import expanded, replaced_folder, write_json

CHECKSUMS = "checksums.json"
MOST_BYTES = 40 * 2**30  # unpacked; the largest data set of this field is below 5 GiB
MOST_MEMBERS = 200_000
MOST_RATIO = 200  # unpacked bytes to packed bytes; photographs stay near 1, bombs reach 1,000
_BLOCK = 1 << 20


class ArchiveError(AgiqaError):
    """A data set that cannot be fetched, or must not be trusted."""


def locate(dataset: str, source: str | None, archive: str | None, data_folder: str | None) -> Path | None:
    """Return the user's own copy of a data set, an archive or a folder, or None.

    Args:
        dataset: Its name in params.yaml.
        source: `datasets.<name>.source`: a path that must exist if given.
        archive: Name of the published archive.
        data_folder: The value of AGIQA_DATA. It may hold the archive, or a folder of the data set's name, with the
            archive or the unpacked data set in it.

    Raises:
        ArchiveError: If `source` or `data_folder` is given and does not exist.
    """
    if source is not None:
        path = expanded(source)
        if not path.exists():
            raise ArchiveError(
                f"datasets.{dataset}.source is {source!r}, which does not exist: correct the path, or null"
            )
        return path
    if not data_folder:
        return None
    base = expanded(data_folder)
    if not base.is_dir():
        raise ArchiveError(f"AGIQA_DATA is {data_folder!r}, which is no folder: correct or unset it")
    candidates = [place / archive for place in (base, base / dataset)] if archive else []
    return next((path for path in [*candidates, base / dataset] if path.exists()), None)


def fetch(
    dataset: str,
    out: Path,
    *,
    source: str | None = None,
    archive: str | None = None,
    sha256: str | None = None,
    google_drive_id: str | None = None,
    data_folder: str | None = None,
    downloads: Path,
    checksums: Path | None,
) -> None:
    """Bring a data set into `out`: from the user's copy if there is one, else from Google Drive.

    Args:
        dataset: Its name in params.yaml.
        out: Folder to fill; whole or not at all.
        source: As `locate`.
        archive: As `locate`.
        sha256: Pinned digest of the archive (or, for a folder, of `folder_digest`); None: see `checksums`.
        google_drive_id: Of the published archive.
        data_folder: As `locate`.
        downloads: Folder for downloaded archives and their unfinished parts; a broken download goes on from there.
        checksums: JSON file of digests recorded at first sight, which later copies must have as well; None: the data
            set is the user's own, and may change.

    Raises:
        ArchiveError: If there is no copy and none can be downloaded, the digest differs, or the archive is unsafe.
    """
    local = locate(dataset, source, archive, data_folder)
    found = local or download(dataset, archive, google_drive_id, downloads)
    if sha256 is not None or checksums is not None:
        digest = folder_digest(found) if found.is_dir() else file_digest(found)
        _verify(dataset, found, digest, sha256, checksums)
    with replaced_folder(out) as folder:
        if found.is_dir():
            _copy(found, folder)
        else:
            unpack(found, folder)


def download(
    dataset: str, archive: str | None, google_drive_id: str | None, downloads: Path, *, by_hand: str | None = None
) -> Path:
    """Return the archive, downloaded from Google Drive unless it already lies in `downloads`; a broken one goes on.

    Args:
        dataset: Its name.
        archive: File name to give it.
        google_drive_id: Of the file.
        downloads: Folder to keep it in.
        by_hand: For the error: what to do without a download; None speaks of params.yaml.

    Raises:
        ArchiveError: If it cannot be downloaded.
    """
    by_hand = by_hand or (
        f"Put {archive or 'its archive or folder'} into a folder and name that folder in the environment variable "
        f"AGIQA_DATA, or name the file itself in params.yaml under datasets.{dataset}.source."
    )
    if google_drive_id is None or archive is None:
        raise ArchiveError(f"data set {dataset!r} has no copy here and no google_drive_id to fetch it by. {by_hand}")
    target = downloads / archive
    if target.is_file():
        return target
    import gdown

    downloads.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".download")
    try:
        written = gdown.download(id=google_drive_id, output=str(partial), resume=True, quiet=False)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        written = None
    else:
        reason = "Google Drive gave no file"
    if not written or not partial.is_file():
        raise ArchiveError(
            f"{archive} could not be downloaded from Google Drive (file id {google_drive_id}): {reason.strip()}. "
            f"Is there network? With a browser: https://drive.google.com/uc?id={google_drive_id}. {by_hand}"
        )
    partial.replace(target)
    return target


def file_digest(path: Path) -> str:
    """Return a file's SHA-256 under a progress bar."""
    digest = hashlib.sha256()
    with _bar(path.stat().st_size, f"checking {path.name}") as bar, path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def folder_digest(folder: Path) -> str:
    """Return one SHA-256 of a folder's file names and contents, whatever their order on disk."""
    digest = hashlib.sha256()
    files = _plain_files(folder)
    with _bar(sum(path.stat().st_size for path in files), f"checking {folder.name}") as bar:
        for path in files:
            with path.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            digest.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
            bar.update(path.stat().st_size)
    return digest.hexdigest()


def _plain_files(folder: Path) -> list[Path]:
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise ArchiveError(f"{path} is a link: put the file itself there")
        if path.is_file():
            found.append(path)
    if not found:
        raise ArchiveError(f"{folder} holds no file")
    return found


def _verify(dataset: str, path: Path, digest: str, pinned: str | None, checksums: Path | None) -> None:
    recorded = json.loads(checksums.read_text()) if checksums is not None and checksums.is_file() else {}
    expected = pinned or recorded.get(dataset)
    if expected is None:
        write_json(checksums, recorded | {dataset: digest})
    elif digest != expected:
        where = f"params.yaml (datasets.{dataset}.sha256)" if pinned else str(checksums)
        raise ArchiveError(
            f"{path} has SHA-256 {digest}, and {where} says {expected}: it is damaged or another version. Fetch it "
            f"anew, or, if you trust it, put its SHA-256 there"
        )


def _copy(source: Path, folder: Path) -> None:
    files = _plain_files(source)
    with _bar(sum(path.stat().st_size for path in files), f"copying {source.name}") as bar:
        for path in files:
            target = folder / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            bar.update(path.stat().st_size)


def unpack(
    archive: Path,
    folder: Path,
    *,
    most_bytes: int = MOST_BYTES,
    most_members: int = MOST_MEMBERS,
    most_ratio: int = MOST_RATIO,
) -> None:
    """Unpack a zip or tar archive into an empty folder; nothing of a refused archive stays.

    Args:
        archive: .zip, or .tar in any compression that Python reads.
        folder: Where to.
        most_bytes: Limit of the unpacked size, counted while unpacking: what an archive says of itself proves nothing.
        most_members: Limit of the number of files.
        most_ratio: Limit of unpacked to packed bytes.

    Raises:
        ArchiveError: If a member would land outside `folder`, is a link or a device, stands twice or is encrypted; if a
            limit is passed; or if the file is damaged or neither zip nor tar.
    """
    limit = min(most_bytes, most_ratio * archive.stat().st_size)
    folder = folder.resolve()
    total, seen = 0, set()
    try:
        with _bar(archive.stat().st_size, f"unpacking {archive.name}") as bar:
            for number, (name, size, stream) in enumerate(_members(archive), 1):
                if number > most_members:
                    raise ArchiveError(f"{archive} holds more than {most_members} files: refused")
                target = _inside(archive, folder, name)
                key = str(target).casefold()  # one file on file systems that fold case
                if key in seen:
                    raise ArchiveError(f"{archive}: member {name!r} stands twice: refused")
                seen.add(key)
                target.parent.mkdir(parents=True, exist_ok=True)
                with stream, target.open("xb") as output:
                    while block := stream.read(_BLOCK):
                        total += len(block)
                        if total > limit:
                            raise ArchiveError(
                                f"{archive} unpacks to more than {limit:,} bytes (from {archive.stat().st_size:,}): "
                                "refused as a bomb"
                            )
                        output.write(block)
                bar.update(size)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError)):
            raise ArchiveError(f"{archive} is damaged ({error}): fetch it anew") from error
        raise
    if not seen:
        raise ArchiveError(f"{archive} holds no file")


def _members(archive: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Yield name, packed size and content of every plain file; refuse what is neither file nor folder."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            for member in opened.infolist():
                kind = stat.S_IFMT(member.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise ArchiveError(f"{archive}: member {member.filename!r} is a link or a device: refused")
                if member.flag_bits & 1:
                    raise ArchiveError(f"{archive}: member {member.filename!r} is encrypted: refused")
                if not member.is_dir():
                    yield member.filename, member.compress_size, opened.open(member)
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as opened:
            for member in opened:
                if not (member.isfile() or member.isdir()):
                    raise ArchiveError(f"{archive}: member {member.name!r} is a link or a device: refused")
                if member.isfile():
                    content = opened.extractfile(member)
                    yield member.name, member.size, content
    else:
        raise ArchiveError(f"{archive} is neither zip nor tar: a download page saved in place of the file?")


def _inside(archive: Path, folder: Path, name: str) -> Path:
    parts = PurePosixPath(name.replace("\\", "/"))
    target = Path(os.path.normpath(folder / parts))
    if parts.is_absolute() or ".." in parts.parts or ":" in name or "\0" in name or not target.is_relative_to(folder):
        raise ArchiveError(f"{archive}: member {name!r} leaves the folder: refused")
    return target


def _bar(total: int, label: str) -> tqdm:
    return tqdm(
        total=total, desc=label, unit="B", unit_scale=True, unit_divisor=1024, mininterval=0.5, dynamic_ncols=True
    )
