"""Score any number of image files: bad ones are reported and passed, and a broken run is taken up again.

Images are taken in blocks whose limits depend on the list alone. A block's rows go to a journal once they are all
there, and a restarted run computes whole blocks only; so it ends with the same bits as an unbroken one.
"""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from pipeline.data.decoding import MOST_PIXELS
from pipeline.files import write_atomically
from pipeline.scoring.gather import Item
from pipeline.scoring.journal import Journal, Row, journal_state
from pipeline.scoring.lanes import Awaited, Block, fill
from pipeline.scoring.maps import draw_map
from pipeline.scoring.scorer import Scorer, Seen

BLOCK = {"cpu": 32, "cuda": 512}  # images whose results are kept or lost together


def score_files(
    scorer: Scorer,
    items: Iterable[Item],
    *,
    journal: "Journal | None" = None,
    batch: int | None = None,
    maps: Path | None = None,
    max_pixels: int | None = MOST_PIXELS,
    threads: int | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> Iterator[Row]:
    """Yield a row an image, in the order of the images.

    Args:
        scorer: Scores.
        items: The images, which are taken as they are needed; all of them at once with quality maps.
        journal: Where finished rows are kept, and found again; None keeps nothing.
        batch: As `Scorer.stream`.
        maps: Folder for pictures of the quality maps; None draws none.
        max_pixels: As `pipeline.data.decoding.open_image`.
        threads: Of the CPU; None takes as many as torch does.
        advance: Called with the number of images that are done since the last call.
    """
    items = items if maps is None else list(items)
    base = None if maps is None else _common_folder(items)
    begun: deque[tuple[Block, list[tuple[int, int] | None] | None]] = deque()

    def missing() -> Iterator[Block]:
        """Yield the blocks without known rows."""
        images = iter(items)
        while some := list(islice(images, BLOCK[scorer.device])):
            known = None if journal is None else journal.rows_of(some)
            if known is not None:
                begun.append((Block(some, dict(enumerate(known))), None))
                continue
            # Before any of them is opened, so that a file that changes meanwhile is scored again by the next run.
            begun.append((Block(some), [journal_state(item.path) for item in some]))
            yield begun[-1][0]

    def row_of(image: Awaited, seen: Seen) -> Row:
        raw = round(seen.raw, 6)
        score = round(float(scorer.to_mos(np.float64(raw))), 6)
        low, high = (None if end is None else round(float(end), 6) for end in scorer.band(np.float64(score)))
        picture = None
        if maps is not None:
            target = maps / _map_name(os.path.relpath(os.path.abspath(image.item.path), base))
            write_atomically(target, draw_map(image.small, seen.drawn, scorer.to_mos))
            picture = str(target)
        return Row(image.item.path, score, raw, image.width, image.height, None, picture, low, high, seen.unfamiliar)

    def finished() -> Iterator[Row]:
        while begun and len(begun[0][0].rows) == len(begun[0][0].items):
            block, before = begun.popleft()
            rows = [block.rows[number] for number in range(len(block.items))]
            if before is None:
                advance(len(rows))
            elif journal is not None:
                journal.add(rows, before)
            yield from rows

    for done in fill(
        missing(), scorer, row_of, batch=batch, maps=maps is not None, max_pixels=max_pixels, threads=threads,
        expected=len(items) if isinstance(items, Sequence) else None,
    ):  # fmt: skip
        if done:
            advance(done)
        yield from finished()
    yield from finished()


def _map_name(name: str) -> str:
    """Return an image's path with the suffix of its map; a name too long for that is cut, and told apart."""
    folder, name = os.path.split(name)
    content = os.fsencode(name)
    if len(content) > 200:
        name = os.fsdecode(content[:160]) + "-" + hashlib.sha256(content).hexdigest()[:12]
    return os.path.join(folder, name + ".png")


def _common_folder(items: Sequence[Item]) -> str:
    return os.path.commonpath([os.path.dirname(os.path.abspath(item.path)) for item in items])
