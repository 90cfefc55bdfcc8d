"""What folders, tables, Parquet files and WebDataset shards hold, here or at any address that fsspec knows.

It is cut into parts, each of which is scored, written and found again as a whole. What a part is called depends on what
was named and nothing else, and a second mark says whether anything in it has changed: so a part that is scored twice,
by a run that went on or by a worker that took over from a dead one, gets the same name twice.
"""

import gzip
import hashlib
import json
import os
import tarfile
import time
import zlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import IO, TYPE_CHECKING, Any

from pipeline.data.colours import ImageError
from pipeline.data.labels import IMAGE_SUFFIXES
from pipeline.data.places import is_side_file
from pipeline.data.tables import IMAGE_COLUMNS, column_of, near_column
from pipeline.scoring.gather import Gathered, InputError, Item, gather
from pipeline.scoring.journal import journal_state

if TYPE_CHECKING:
    import pyarrow as pa
    from fsspec import AbstractFileSystem

TABLES, SHARDS = (".parquet",), (".tar", ".tar.gz", ".tgz")
MOST_BYTES = 1 << 29  # of an image file that does not lie on this machine; it is read whole
FETCHED = 16  # files from afar that are fetched at a time


@dataclass(frozen=True)
class Part:
    """Images whose rows make one file.

    Attributes:
        name: The same whenever the same is named.
        state: Another one if anything in it has changed.
        files: Of a part of a list: as the user would write each, where it lies, and why it cannot be scored.
        address: Of a Parquet file or a shard.
        shown: The same as the user would write it.
        column: The Parquet file's.
        group, start, stop: Its row group, and which rows of that.
        images: How many; None of a shard.
    """

    name: str
    state: str
    files: tuple[tuple[str, str, str | None], ...] = ()
    address: str | None = None
    shown: str | None = None
    column: str | None = None
    group: int = 0
    start: int = 0
    stop: int = 0
    images: int | None = None


def find_parts(
    sources: Sequence[str], size: int, *, column: str | None = None, listed: IO[bytes] | None = None
) -> tuple[list[Part], Gathered]:
    """Return the parts of what is named, and what was passed over or set aside, as `gather` does.

    Args:
        sources: What `gather` takes; Parquet files with a column of paths or of image files' bytes; WebDataset shards
            (.tar, .tar.gz); patterns and folders of those; and all but tables as addresses such as s3://bucket/folder.
            A folder that holds images is a folder of images, whatever else lies in it.
        size: Images a part at most; a shard is a part whatever its size.
        column: As `gather`, and of Parquet files.
        listed: Standard input.

    Raises:
        InputError: As `gather`, or if an address leads nowhere or nowhere that is known.
    """
    parts, found = [], Gathered([], Counter())
    files: list[tuple[str, str, str | None, object]] = []
    for source in sources:
        if "://" in source:
            images, whole = _at_address(source, found)
            files += images
        elif (whole := _local(source)) is None:
            gathered = gather([source], column=column, listed=listed)
            found.passed_over.update(gathered.passed_over)
            found.aside.extend(gathered.aside)
            for item in gathered.items:
                if "://" in item.path:
                    files.append((item.path, item.path, item.fault, None))
                else:
                    files.append((item.path, os.path.abspath(item.path), item.fault, journal_state(item.path)))
        for shown in whole or ():
            address = shown if "://" in shown else os.path.abspath(shown)
            is_table = address.lower().endswith(TABLES)
            parts += _of_table(address, shown, column, size) if is_table else [_of_shard(address, shown)]
    for number, start in enumerate(range(0, len(files), size)):
        some = files[start : start + size]
        own = tuple((shown, place, fault) for shown, place, fault, _ in some)
        parts.append(Part(f"{number:07d}", _digest(some), own, images=len(some)))
    if not parts:
        raise InputError("no image is named: give folders, Parquet files, shards or addresses")
    if repeated := [name for name, count in Counter(part.name for part in parts).items() if count > 1]:
        twice = next(part.address for part in parts if part.name == repeated[0])
        raise InputError(f"{twice} is named twice: its rows would be written twice")
    return parts, found


def items_of(part: Part) -> Iterator[Item]:
    """Yield a part's images with where their pixels come from; what cannot be read keeps its place with the reason.

    They are read as they are taken, those from afar some ahead, so that a part of any size takes little memory.

    Raises:
        OSError: If a shard cannot be read: nobody can tell how many images it holds.
    """
    if part.address is None:
        yield from _fetched(part.files)
    elif part.address.endswith(TABLES):
        yield from _rows(part)
    else:
        yield from _members(part)


def file_system(address: str) -> "tuple[AbstractFileSystem, str]":
    """Return what reads an address, or a path of this machine, and the address's path in it.

    Raises:
        InputError: If no package for such addresses is installed.
    """
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(address)
    except (ImportError, ValueError) as error:  # "Install s3fs to access S3"
        raise InputError(f"{address} is an address that cannot be read here: {error}") from None


def _local(source: str) -> list[str] | None:
    """Return the absolute paths of tables and shards that are named on this machine; None if images are."""
    from glob import glob, has_magic

    ends = (*TABLES, *SHARDS)
    if source.lower().endswith(ends) and not os.path.isdir(source):
        names = sorted(glob(source, recursive=True)) if has_magic(source) and not os.path.exists(source) else [source]
        if not names:
            raise InputError(f"no file matches {source!r}")
        if missing := next((name for name in names if not os.path.isfile(name)), None):
            raise InputError(f"{missing} does not exist")
        return names
    if not os.path.isdir(source):
        return None
    names = sorted(os.path.join(top, name) for top, _, here in os.walk(source) for name in here)
    names = [name for name in names if not is_side_file(tuple(os.path.relpath(name, source).split(os.sep)))]
    if any(name.lower().endswith(IMAGE_SUFFIXES) for name in names):
        return None
    return [name for name in names if name.lower().endswith(ends)] or None


def _at_address(source: str, found: Gathered) -> tuple[list[tuple[str, str, str | None, object]], list[str]]:
    """Return the image files at an address, or the tables and shards where there is no image."""
    system, path = file_system(source)
    try:
        if "*" in path or "?" in path:
            entries = system.glob(path, detail=True)
        elif system.isdir(path):
            entries = system.find(path, detail=True)
        else:
            entries = {path: system.info(path)}
    except FileNotFoundError:
        raise InputError(f"{source} does not exist") from None
    except Exception as error:  # each kind of storage has errors of its own: of rights, of names, of networks
        raise InputError(f"{source} cannot be read: {type(error).__name__}: {error}") from None
    images, whole = [], []
    for name, about in sorted(entries.items()):
        address, inner = system.unstrip_protocol(name), name[len(path) :].strip("/")
        if about.get("type") == "directory":
            continue
        if is_side_file(tuple(inner.split("/"))):
            found.aside.append(address)
        elif name.lower().endswith((*TABLES, *SHARDS)):
            whole.append(address)
        elif name == path or name.lower().endswith(IMAGE_SUFFIXES):
            images.append((address, address, _too_large(about.get("size")), _state(about)))
        else:
            found.passed_over["." + name.rpartition(".")[2].lower()] += 1
    if images:
        found.passed_over.update("." + name.rpartition(".")[2].lower() for name in whole)
        return images, []
    if not whole:
        raise InputError(f"{source} holds no image ({', '.join(IMAGE_SUFFIXES)}), Parquet file or shard")
    return [], whole


def _too_large(size: int | None) -> str | None:
    return f"has {size:,} bytes, and {MOST_BYTES:,} are allowed from afar" if size and size > MOST_BYTES else None


def _state(about: dict[str, Any]) -> list[object]:
    """Return what tells a file from a changed one, of what a kind of storage says about it."""
    marks = ("size", "mtime", "ETag", "etag", "md5Hash", "LastModified", "last_modified", "updated")
    return [str(about[mark]) for mark in marks if about.get(mark) is not None]


def _digest(*what: object) -> str:
    text = json.dumps(what, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _of_shard(address: str, shown: str) -> Part:
    system, path = file_system(address)
    return Part(_digest(address), _digest(_state(system.info(path))), address=address, shown=shown)


def _of_table(address: str, shown: str, column: str | None, size: int) -> list[Part]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    system, path = file_system(address)
    try:
        state = _state(system.info(path))
        with system.open(path) as stream:
            table = pq.ParquetFile(stream)
            schema = table.schema_arrow
            counts = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
    except FileNotFoundError:
        raise InputError(f"{shown} does not exist") from None
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{shown} is no Parquet file that can be read: {error}") from None
    wanted = [column] if column else [*IMAGE_COLUMNS, "bytes", "jpg", "png", "webp"]
    chosen = column_of(schema.names, wanted)
    if chosen is None:
        raise InputError(
            f"{shown} has no column {' or '.join(wanted)}; it has {', '.join(schema.names)}"
            f"{near_column(wanted[0], schema.names)}: name the column of the images with --column"
        )
    kind = schema.field(chosen).type
    if not (_is_text(kind) or _is_bytes(kind) or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)):
        raise InputError(f"{shown}: column {chosen} holds {kind}: paths, or bytes of image files, would be right")
    parts = []
    for group, count in enumerate(counts):
        for start in range(0, count, size):
            stop = min(start + size, count)
            name = _digest(address, group, start)
            mark, images = _digest(state, chosen, stop), stop - start
            parts.append(Part(name, mark, (), address, shown, chosen, group, start, stop, images))
    return parts


def _is_text(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_bytes(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _rows(part: Part) -> Iterator[Item]:
    """Yield the images of a Parquet file's rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    done, paths = part.start, []
    try:
        system, path = file_system(part.address)
        with system.open(path) as stream:
            table = pq.ParquetFile(stream, pre_buffer=False)
            before = sum(table.metadata.row_group(group).num_rows for group in range(part.group))
            is_text = _is_text(table.schema_arrow.field(part.column).type)
            batches = table.iter_batches(FETCHED, row_groups=[part.group], columns=[part.column])
            cells = (cell.as_py() for batch in batches for cell in batch.column(0))
            for number, cell in enumerate(islice(cells, part.stop)):
                if number < part.start:
                    continue
                name = f"{part.shown}, row {before + number + 1}"
                content = cell.get("bytes") if isinstance(cell, dict) else cell
                if is_text:
                    paths.append(_beside(part.address, content) if content else (name, name, "names no image"))
                    continue
                yield Item(name, None if content else "names no image", source=content or None)
                done = number + 1
            yield from _fetched(paths)
            done = part.stop
    except (OSError, InputError, pa.ArrowException) as error:
        for number in range(done, part.stop):
            yield Item(f"{part.shown}, row group {part.group}, row {number + 1}", f"cannot be read: {error}")


def _beside(table: str, name: str) -> tuple[str, str, str | None]:
    """Return how a table's image is shown, where it lies, and no fault; a relative path starts from the table."""
    if "://" in name or os.path.isabs(name):
        return name, name, None
    return (place := f"{table.rpartition('/')[0]}/{name}"), place, None


def _members(part: Part) -> Iterator[Item]:
    """Yield the images of a shard, in its order, as the file streams by.

    Raises:
        OSError: If the shard cannot be read; nobody can tell how many images it holds.
    """
    count = 0
    try:
        system, path = file_system(part.address)
        with system.open(path) as stream, tarfile.open(fileobj=stream, mode="r|*") as shard:
            for member in shard:
                shard.members = []  # tarfile would keep all of them
                if not member.isfile() or not member.name.lower().endswith(IMAGE_SUFFIXES):
                    continue
                count += 1
                fault = _too_large(member.size)
                yield Item(
                    f"{part.shown}/{member.name}", fault, source=None if fault else shard.extractfile(member).read()
                )
            # A shard that is cut off between two files looks like one that ends there, but for the zeros behind.
            if part.address.lower().endswith(".tar") and system.size(path) - shard.offset < tarfile.BLOCKSIZE:
                raise tarfile.ReadError("its end is missing")
    except (EOFError, tarfile.TarError, zlib.error, gzip.BadGzipFile) as error:
        yield Item(part.shown, f"is damaged or cut off, after {count} images: {error}")
        return
    if not count:
        yield Item(part.shown, f"is a shard without an image ({', '.join(IMAGE_SUFFIXES)})")


def _fetched(files: Iterable[tuple[str, str, str | None]]) -> Iterator[Item]:
    """Yield images of a list; those that do not lie on this machine are fetched, some ahead."""
    coming, queue = iter(files), deque()
    pool = ThreadPoolExecutor(FETCHED, thread_name_prefix="fetch")
    try:
        while True:
            while len(queue) < 2 * FETCHED and (one := next(coming, None)) is not None:
                shown, place, fault = one
                afar = fault is None and "://" in place
                queue.append((shown, place, fault, pool.submit(_fetch, place) if afar else None))
            if not queue:
                return
            shown, place, fault, future = queue.popleft()
            if future is None:
                yield Item(shown, fault, source=place)
                continue
            content = future.result()
            yield Item(shown, content.reason, None) if isinstance(content, ImageError) else Item(shown, source=content)
    finally:
        pool.shutdown(cancel_futures=True)


def _fetch(address: str) -> str | bytes | ImageError:
    """Return a file's bytes, or its path if it lies here after all, or what is wrong with it."""
    for pause in (1.0, 4.0, None):
        try:
            system, path = file_system(address)
            if "file" in system.protocol:
                return path
            content = system.cat_file(path, end=MOST_BYTES + 1)
            return content if len(content) <= MOST_BYTES else ImageError(_too_large(len(content)))
        except FileNotFoundError:
            return ImageError("does not exist")
        except InputError as error:
            return ImageError(str(error))
        except PermissionError:
            return ImageError("may not be read: permission denied")
        except Exception as error:  # networks fail in many ways, and most of them pass
            if pause is None:
                return ImageError(f"cannot be read: {type(error).__name__}: {' '.join(str(error).split())}")
            time.sleep(pause)
    raise AssertionError
