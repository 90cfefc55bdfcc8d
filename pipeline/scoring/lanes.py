"""All cores at work on one stream of images: threads that decode, beside lanes that each take a forward pass.

A pass on one thread wastes nothing, where the threads of a shared one wait for each other at every layer. Which images
share a pass, on how many threads it runs, how much is held and in which order rows come is settled by one thread, the
caller's, and from the images alone: so nothing here needs a lock, and no bit depends on who was faster.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from pipeline.data.decoding import ImageError, image_size
from pipeline.scoring.gather import Item
from pipeline.scoring.journal import Row
from pipeline.scoring.maps import MAP_SIDE
from pipeline.scoring.scorer import Fitted, Pass, Scorer, Seen

HELD_BYTES = 192_000_000  # of pixels from file to score, beside the pass that fills; a larger image goes alone
MOST_LANES = 8  # each needs the memory of a forward pass; with more cores than that a lane has several threads
IMAGES_A_LANE = 4  # at least: one image, or a few, have all cores for the few passes that they share


class Awaited(NamedTuple):
    """An image whose score is awaited, without its pixels.

    Attributes:
        item: Which one.
        number: Its place in its block.
        height, width: Of the image as it was opened.
        small: What its quality map is drawn over, (H, W, 3), uint8; None where none is drawn.
    """

    item: Item
    number: int
    height: int
    width: int
    small: np.ndarray | None


@dataclass(eq=False)
class Block:
    """Images whose results are kept or lost together; no forward pass has images of two.

    Attributes:
        items: The images.
        rows: What came of them so far, by their places.
    """

    items: Sequence[Item]
    rows: dict[int, Row] = field(default_factory=dict)


def fill(
    blocks: Iterable[Block],
    scorer: Scorer,
    row_of: Callable[[Awaited, Seen], Row],
    *,
    batch: int | None = None,
    maps: bool = False,
    max_pixels: int | None = None,
    threads: int | None = None,
    expected: int | None = None,
) -> Iterator[int]:
    """Fill the rows of blocks, in their order, and yield now and then how many images are done since the last time.

    Args:
        blocks: Taken as they are needed, some images ahead; each is filled before the one that follows.
        scorer: Scores.
        row_of: Makes a row of what was seen; called in a lane.
        batch: As `Scorer.stream`.
        maps: See quality maps, too.
        max_pixels: As `pipeline.data.decoding.open_image`.
        threads: Of the CPU, for the lanes; as many decode. None takes as many as torch does.
        expected: Images at most; None means many.
    """
    cores = threads or _cores(scorer)
    lanes = min(cores, MOST_LANES) if scorer.device == "cpu" else 1
    if expected is not None:
        lanes = min(lanes, max(1, expected // IMAGES_A_LANE))
    readers = max(2, cores)
    with _own_threads(scorer), _pool("decode", readers) as decoding, _pool("lane", lanes) as scoring:
        flight = _Flight(scorer, scoring, lanes, cores, row_of, batch, maps)

        def load(item: Item) -> tuple[Fitted, np.ndarray | None] | ImageError:
            try:
                return _open(scorer, item, max_pixels, maps)
            except ImageError as error:
                return error

        for block, number, box in _read_ahead(blocks, load, decoding, readers, flight):
            item, opened = block.items[number], box.pop()
            if isinstance(opened, ImageError):
                block.rows[number] = Row(item.path, error=opened.reason)
                flight.done += 1
            else:
                flight.take(block, number, *opened)
            del opened  # so that a huge image is gone before the next one is opened
            if number == len(block.items) - 1:
                flight.send()
            yield flight.news()
        while flight.waiting:
            flight.collect()
            yield flight.news()


class _Flight:
    """Forward passes: the one that fills, and those that wait for a lane or are in one.

    Attributes:
        held: Bytes of pixels that are being decoded, that wait for their turn, or that are in a pass that was sent.
        waiting: Passes that were sent, oldest first: bytes, block and rows of each.
        done: Images that have a row since the last news.
    """

    def __init__(
        self,
        scorer: Scorer,
        pool: ThreadPoolExecutor,
        lanes: int,
        cores: int,
        row_of: Callable[[Awaited, Seen], Row],
        batch: int | None,
        maps: bool,
    ) -> None:
        self._scorer, self._pool, self._lanes, self._cores = scorer, pool, lanes, cores
        self._row_of, self._batch, self._maps = row_of, batch, maps
        self.held = self.done = 0
        self.waiting: deque[tuple[int, Block, Future[list[tuple[int, Row]]]]] = deque()
        self._empty()

    def _empty(self) -> None:
        self._filling, self._size = self._scorer.new_pass(self._batch), 0
        self._block: Block | None = None
        self._awaited: list[Awaited] = []

    def take(self, block: Block, number: int, fitted: Fitted, small: np.ndarray | None) -> None:
        """Let an image join the pass that fills, or the next one if there it has no room."""
        if not self._filling.has_room(fitted):
            self.send()
        self._filling.add(fitted)
        self._size += fitted.pixels.nbytes
        self._block = block
        self._awaited.append(Awaited(block.items[number], number, fitted.height, fitted.width, small))
        if self._filling.is_full:
            self.send()

    def send(self) -> None:
        """Send the pass that fills to a lane, unless it is empty."""
        if self._block is None:
            return
        while len(self.waiting) > self._lanes:  # one more waits, so that no lane ever does
            self.collect()
        is_large = self._filling.windows > self._filling.most  # one image, whose neighbours may take as long to come
        threads = self._cores if is_large else self._cores // self._lanes
        future = self._pool.submit(self._see, self._filling, self._awaited, threads)
        self.waiting.append((self._size, self._block, future))
        self.held += self._size
        self._empty()

    def _see(self, images: Pass, awaited: list[Awaited], threads: int) -> list[tuple[int, Row]]:
        if self._scorer.folded is not None:
            import torch

            torch.set_num_threads(threads)  # of this lane
        seen = self._scorer.see(images, quality_maps=self._maps, map_side=MAP_SIDE)
        return [(one.number, self._row_of(one, seen.popleft())) for one in awaited]

    def collect(self) -> None:
        """Wait for the oldest pass that was sent."""
        size, block, future = self.waiting.popleft()
        rows = future.result()
        block.rows.update(rows)
        self.held -= size
        self.done += len(rows)

    def news(self) -> int:
        """Return how many images have a row since this was last asked."""
        done, self.done = self.done, 0
        return done


def _open(scorer: Scorer, item: Item, max_pixels: int | None, maps: bool) -> tuple[Fitted, np.ndarray | None]:
    if item.fault is not None:
        raise ImageError(item.fault)
    pixels = scorer.open(item.path if item.source is None else item.source, max_pixels=max_pixels)
    step = max(1, -(-max(pixels.shape[:2]) // MAP_SIDE))
    return scorer.fit(pixels), pixels[::step, ::step].copy() if maps else None


def _read_ahead(
    blocks: Iterable[Block],
    load: Callable[[Item], object],
    pool: ThreadPoolExecutor,
    readers: int,
    flight: _Flight,
) -> Iterator[tuple[Block, int, list]]:
    """Yield every image of every block, its place and, in a list, what came of it; loaded as far ahead as may be."""
    queue: deque[tuple[int, Block, int, Future]] = deque()
    coming = ((block, number) for block in blocks for number in range(len(block.items)))
    following: tuple[Block, int, int] | None = None
    while True:
        while len(queue) < 4 * readers:
            if following is None:
                if (found := next(coming, None)) is None:
                    break
                following = (*found, _decoded_bytes(found[0].items[found[1]]))
            block, number, size = following
            if flight.held + size > HELD_BYTES and (queue or flight.waiting):
                if queue:
                    break
                flight.collect()
                continue
            queue.append((size, block, number, pool.submit(load, block.items[number])))
            flight.held += size
            following = None
        if not queue:
            return
        size, block, number, future = queue.popleft()
        box = [future.result()]
        del future  # it holds the pixels, too
        flight.held -= size
        yield block, number, box


def _decoded_bytes(item: Item) -> int:
    if item.fault is not None:
        return 0
    width, height = image_size(item.path if item.source is None else item.source)
    return 3 * width * height


def _cores(scorer: Scorer) -> int:
    """Return how many threads torch would take, without importing it for a method that needs none of it."""
    if scorer.folded is not None:
        import torch

        return torch.get_num_threads()
    return usable_cores()


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _own_threads(scorer: Scorer) -> Iterator[None]:
    """Let lanes set how many threads torch takes; threads that the caller starts afterwards take as many as before."""
    try:
        yield
    finally:
        if scorer.folded is not None:
            import torch

            torch.set_num_threads(torch.get_num_threads())  # the caller's own, which lanes leave alone


@contextmanager
def _pool(name: str, size: int) -> Iterator[ThreadPoolExecutor]:
    """Hand out threads; when the block ends, what has begun is awaited and the rest is dropped."""
    pool = ThreadPoolExecutor(size, thread_name_prefix=name)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
