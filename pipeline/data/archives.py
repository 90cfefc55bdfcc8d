"""Fetch a data set, from the user's copy or from the web, and verify its bytes before it is unpacked."""

import hashlib
import json
import shutil
from pathlib import Path

from pipeline.data.places import find_link, plain_files
from pipeline.data.unpacking import ArchiveError, progress_bar, unpack
from pipeline.files import expanded, replaced_folder, write_json

CHECKSUMS = "checksums.json"
_BLOCK = 1 << 20


def locate(
    dataset: str, source: str | None, archive: str | None, data_folder: str | None, root: Path = Path()
) -> Path | None:
    """Return the user's own copy of a data set, an archive or a folder, or None.

    Args:
        dataset: Its name in params.yaml.
        source: `datasets.<name>.source`: a path that must exist if given; a relative one starts from `root`.
        archive: Name of the published archive.
        data_folder: The value of AGIQA_DATA, likewise. It may hold the archive, or a folder of the data set's name,
            with the archive or the unpacked data set in it.
        root: The repository's root; in one of DVC's temporary copies, that of the repository itself.

    Raises:
        ArchiveError: If `source` or `data_folder` is given and does not exist.
    """
    if source is not None:
        path = root / expanded(source)
        if not path.exists():
            raise ArchiveError(
                f"datasets.{dataset}.source is {source!r}, which does not exist: correct the path, or null"
            )
        return path
    if not data_folder:
        return None
    base = root / expanded(data_folder)
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
    root: Path = Path(),
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
        root: As `locate`.

    Raises:
        ArchiveError: If there is no copy and none can be downloaded, the digest differs, or the archive is unsafe.
    """
    local = locate(dataset, source, archive, data_folder, root)
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
    with progress_bar(path.stat().st_size, f"checking {path.name}") as bar, path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def folder_digest(folder: Path) -> str:
    """Return one SHA-256 of a folder's file names and contents, whatever their order on disk."""
    digest = hashlib.sha256()
    files = _plain_files(folder)
    with progress_bar(sum(path.stat().st_size for path in files), f"checking {folder.name}") as bar:
        for path in files:
            with path.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            digest.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
            bar.update(path.stat().st_size)
    return digest.hexdigest()


def _plain_files(folder: Path) -> list[Path]:
    if (link := find_link(folder)) is not None:
        raise ArchiveError(f"{link} is a link: put the file itself there")
    found = plain_files(folder)
    if not found:
        raise ArchiveError(f"{folder} holds no file")
    return found


def _verify(dataset: str, path: Path, digest: str, pinned: str | None, checksums: Path | None) -> None:
    recorded = _recorded(checksums) if checksums is not None and checksums.is_file() else {}
    expected = pinned or recorded.get(dataset)
    if expected is None:
        write_json(checksums, recorded | {dataset: digest})
    elif digest != expected:
        where = f"params.yaml (datasets.{dataset}.sha256)" if pinned else str(checksums)
        raise ArchiveError(
            f"{path} has SHA-256 {digest}, and {where} says {expected}: it is damaged or another version. Fetch it "
            f"anew, or, if you trust it, put its SHA-256 there"
        )


def _recorded(checksums: Path) -> dict[str, str]:
    """Return the digests of data sets that were seen before."""
    try:
        return dict(json.loads(checksums.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ArchiveError(
            f"{checksums} is damaged ({error}): delete it, and what is fetched next is recorded anew"
        ) from None


def _copy(source: Path, folder: Path) -> None:
    files = _plain_files(source)
    with progress_bar(sum(path.stat().st_size for path in files), f"copying {source.name}") as bar:
        for path in files:
            target = folder / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            bar.update(path.stat().st_size)
