"""Score any number of image files: decoded ahead, bad ones reported and passed, and a broken run taken up again.

Images are taken in blocks whose limits depend on the list alone. A block's rows go to a journal once they are all
there, and a restarted run computes whole blocks only; so it ends with the same bits as an unbroken one.

Imports pipeline.files, pipeline.images, pipeline.inputs, pipeline.scoring.
"""

import fcntl
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageDraw

from pipeline.files import write_atomically
from pipeline.images import MOST_PIXELS, ImageError, image_size
from pipeline.inputs import Item
from pipeline.scoring import Scorer

BLOCK = {"cpu": 32, "cuda": 512}  # images whose results are kept or lost together
AHEAD_PIXELS = 64_000_000  # that are decoded ahead of scoring at most, 192 MB; a larger image is decoded alone
DECODERS = 2
MAP_SIDE = 1600  # pixels of a quality map's picture at most


class JournalError(ValueError):
    """A journal that belongs to another run."""


@dataclass(frozen=True)
class Row:
    """What came of one image.

    Attributes:
        image: Its path as the user wrote it.
        score: On the data set's MOS scale, or None.
        raw: In 0..1, or None.
        width, height: In pixels, or None.
        error: Why there is no score, or None.
        quality_map: The picture of its quality map, if one was asked for.
    """

    image: str
    score: float | None = None
    raw: float | None = None
    width: int | None = None
    height: int | None = None
    error: str | None = None
    quality_map: str | None = None


def score_files(
    scorer: Scorer,
    items: Sequence[Item],
    *,
    journal: "Journal | None" = None,
    batch: int | None = None,
    maps: Path | None = None,
    max_pixels: int | None = MOST_PIXELS,
    advance: Callable[[int], object] = lambda count: None,
) -> Iterator[Row]:
    """Yield a row an image, in the order of the images.

    Args:
        scorer: Scores.
        items: The images.
        journal: Where finished rows are kept, and found again; None keeps nothing.
        batch: As `Scorer.stream`.
        maps: Folder for pictures of the quality maps; None draws none.
        max_pixels: As `pipeline.images.open_image`.
        advance: Called with the number of images that are done since the last call.
    """
    size = BLOCK[scorer.device.type]
    blocks = [items[start : start + size] for start in range(0, len(items), size)]
    known = [None if journal is None else journal.rows_of(block) for block in blocks]
    missing = [item for block, rows in zip(blocks, known, strict=True) if rows is None for item in block]
    base = _common_folder(items)
    with ThreadPoolExecutor(DECODERS, thread_name_prefix="decode") as pool:
        ahead = _read_ahead(pool, scorer, missing, max_pixels)
        for block, rows in zip(blocks, known, strict=True):
            if rows is not None:
                advance(len(rows))
            else:
                before = [_state(item.path) for item in block]
                rows = _score_block(scorer, block, islice(ahead, len(block)), batch, maps, base, advance)
                if journal is not None:
                    journal.add(rows, before)
            yield from rows


def _score_block(
    scorer: Scorer,
    block: Sequence[Item],
    opened: Iterator[np.ndarray | ImageError],
    batch: int | None,
    maps: Path | None,
    base: str,
    advance: Callable[[int], object],
) -> list[Row]:
    found: dict[int, Row] = {}
    waiting: deque[tuple[int, int, int, np.ndarray | None]] = deque()

    def usable() -> Iterator[np.ndarray]:
        number = -1
        for result in opened:  # not enumerate, which would hold every image until the next one is there
            number += 1
            if isinstance(result, ImageError):
                found[number] = Row(block[number].path, error=result.reason)
                advance(1)
                continue
            height, width = result.shape[:2]
            step = max(1, -(-max(height, width) // MAP_SIDE))
            waiting.append((number, width, height, result[::step, ::step].copy() if maps is not None else None))
            handed = [result]
            del result  # so that a huge image is gone before the next one is opened
            yield handed.pop()

    for raw, drawn in scorer.stream(usable(), quality_maps=maps is not None, map_side=MAP_SIDE, batch=batch):
        number, width, height, small = waiting.popleft()
        path, picture = block[number].path, None
        raw = round(raw, 6)
        score = round(float(scorer.to_mos(np.float64(raw))), 6)
        if maps is not None:
            target = maps / (os.path.relpath(os.path.abspath(path), base) + ".png")
            write_atomically(target, draw_map(small, drawn, scorer.to_mos))
            picture = str(target)
        found[number] = Row(path, score, raw, width, height, None, picture)
        advance(1)
    return [found[number] for number in range(len(block))]


def _common_folder(items: Sequence[Item]) -> str:
    return os.path.commonpath([os.path.dirname(os.path.abspath(item.path)) for item in items])


def _read_ahead(
    pool: ThreadPoolExecutor, scorer: Scorer, items: Sequence[Item], max_pixels: int | None
) -> Iterator[np.ndarray | ImageError]:
    """Yield every item's pixels or what is wrong with it, decoded ahead by threads as far as AHEAD_PIXELS allow."""
    queue: deque[tuple[int, Future[np.ndarray | ImageError]]] = deque()
    coming = iter(items)
    next_one: tuple[Item, int] | None = None
    held = 0

    def load(item: Item) -> np.ndarray | ImageError:
        if item.fault is not None:
            return ImageError(item.fault)
        try:
            return scorer.open(item.path, max_pixels=max_pixels)
        except ImageError as error:
            return error

    while True:
        while len(queue) < 4 * DECODERS:
            if next_one is None:
                item = next(coming, None)
                if item is None:
                    break
                width, height = (0, 0) if item.fault is not None else image_size(item.path)
                next_one = item, width * height
            if queue and held + next_one[1] > AHEAD_PIXELS:
                break
            queue.append((next_one[1], pool.submit(load, next_one[0])))
            held += next_one[1]
            next_one = None
        if not queue:
            return
        held -= queue[0][0]
        yield queue.popleft()[1].result()


class Journal:
    """Finished rows beside the output, so that a run that was killed goes on where it stopped."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Open the journal, or begin it.

        Args:
            path: The file.
            settings: All that scores depend on beside the images.

        Raises:
            JournalError: If it was written with other settings, or another run writes it now.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._stream: IO[bytes] = path.open("a+b")
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._stream.close()
            raise JournalError(f"{path}: another run writes to the same output; wait for it") from None
        self._rows: dict[tuple[str, tuple[int, int] | None], Row] = {}
        head = {"journal": 1, "settings": dict(settings)}
        good = self._read(head)
        self._stream.truncate(good)  # a line that was cut off by a kill
        if not good:
            self._write(head)
        self.resumed = len(self._rows)

    def _read(self, head: dict[str, Any]) -> int:
        """Take up the rows, and return how many bytes of the file are whole lines."""
        self._stream.seek(0)
        good = 0
        for number, line in enumerate(self._stream):
            if not line.endswith(b"\n"):
                break
            try:
                entry = json.loads(line)
            except ValueError:
                break
            if number == 0 and entry != head:
                self._stream.close()
                raise JournalError(
                    f"{self.path} holds an unfinished run with another checkpoint or other settings: finish that one, "
                    "choose another output, or delete the file"
                )
            for row, state in zip(entry.get("rows", []), entry.get("states", []), strict=True):
                self._rows[row["image"], None if state is None else tuple(state)] = Row(**row)
            good += len(line)
        return good

    def _write(self, entry: dict[str, Any]) -> None:
        self._stream.write(json.dumps(entry).encode() + b"\n")  # one write a block: whole, or not there
        self._stream.flush()

    def rows_of(self, block: Sequence[Item]) -> list[Row] | None:
        """Return a block's rows if all are there and no file has changed since, else None."""
        rows = [self._rows.get((item.path, _state(item.path))) for item in block]
        return None if None in rows else rows

    def add(self, rows: Sequence[Row], states: Sequence[tuple[int, int] | None]) -> None:
        """Keep a block's rows with their files' sizes and times, as they were when its turn came."""
        self._write({"rows": [asdict(row) for row in rows], "states": list(states)})

    def close(self, *, delete: bool) -> None:
        """Let go of the file; a finished run deletes it."""
        if delete:
            self.path.unlink()
        self._stream.close()


def _state(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def draw_map(pixels: np.ndarray, drawn: np.ndarray, to_mos: Callable[[np.ndarray], np.ndarray]) -> bytes:
    """Return a PNG of an image in grey under the colours of its quality map, with the colours' scale below.

    Args:
        pixels: Shape (H, W, 3), uint8.
        drawn: Raw scores, shape (H, W); NaN where no window reaches, which stays uncoloured.
        to_mos: Turns raw scores into MOS for the scale's labels.
    """
    import io

    from matplotlib import colormaps  # imported here: costs half a second

    low, high = float(np.nanmin(drawn)), float(np.nanmax(drawn))
    place = np.nan_to_num((drawn - low) / ((high - low) or 1.0))
    colours = colormaps["viridis"](place)[..., :3] * 255
    grey = pixels.mean(axis=2, keepdims=True)
    mixed = np.where(np.isnan(drawn)[..., None], grey, 0.45 * grey + 0.55 * colours).astype(np.uint8)
    height, width = drawn.shape
    whole = Image.new("RGB", (max(width, 260), height + 28), "white")
    whole.paste(Image.fromarray(mixed), (0, 0))
    ramp = (colormaps["viridis"](np.linspace(0, 1, 100))[None, :, :3] * 255).astype(np.uint8).repeat(12, axis=0)
    whole.paste(Image.fromarray(ramp), (80, height + 8))
    pen = ImageDraw.Draw(whole)
    worst, best = (float(to_mos(np.float64(value))) for value in (low, high))
    pen.text((4, height + 8), f"worst {worst:.2f}", fill="black")
    pen.text((186, height + 8), f"best {best:.2f}", fill="black")
    buffer = io.BytesIO()
    whole.save(buffer, "PNG")
    return buffer.getvalue()
