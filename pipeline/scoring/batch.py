"""Score any number of image files: decoded ahead, bad ones reported and passed, and a broken run taken up again.

Images are taken in blocks whose limits depend on the list alone. A block's rows go to a journal once they are all
there, and a restarted run computes whole blocks only; so it ends with the same bits as an unbroken one.
"""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

from pipeline.data.decoding import MOST_PIXELS, ImageError, image_size
from pipeline.files import write_atomically
from pipeline.scoring.gather import Item
from pipeline.scoring.journal import Journal, Row, journal_state
from pipeline.scoring.maps import MAP_SIDE, draw_map
from pipeline.scoring.scorer import Scorer

BLOCK = {"cpu": 32, "cuda": 512}  # images whose results are kept or lost together
AHEAD_PIXELS = 64_000_000  # that are decoded ahead of scoring at most, 192 MB; a larger image is decoded alone
DECODERS = 2


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
        max_pixels: As `pipeline.data.decoding.open_image`.
        advance: Called with the number of images that are done since the last call.
    """
    size = BLOCK[scorer.device]
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
                before = [journal_state(item.path) for item in block]
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

    for seen in scorer.stream(usable(), quality_maps=maps is not None, map_side=MAP_SIDE, batch=batch):
        number, width, height, small = waiting.popleft()
        path, picture = block[number].path, None
        raw = round(seen.raw, 6)
        score = round(float(scorer.to_mos(np.float64(raw))), 6)
        low, high = (None if end is None else round(float(end), 6) for end in scorer.band(np.float64(score)))
        if maps is not None:
            target = maps / _map_name(os.path.relpath(os.path.abspath(path), base))
            write_atomically(target, draw_map(small, seen.drawn, scorer.to_mos))
            picture = str(target)
        found[number] = Row(path, score, raw, width, height, None, picture, low, high, seen.unfamiliar)
        advance(1)
    return [found[number] for number in range(len(block))]


def _map_name(name: str) -> str:
    """Return an image's path with the suffix of its map; a name too long for that is cut, and told apart."""
    folder, name = os.path.split(name)
    content = os.fsencode(name)
    if len(content) > 200:
        name = os.fsdecode(content[:160]) + "-" + hashlib.sha256(content).hexdigest()[:12]
    return os.path.join(folder, name + ".png")


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
