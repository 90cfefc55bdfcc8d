"""Scoring for several requests at once: each gets a forward pass in turn, and none once its client has left."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from anyio import CancelScope, CapacityLimiter, to_thread

from pipeline.data.decoding import ImageError, from_base64, image_size
from pipeline.errors import AgiqaError
from pipeline.model.windows import resized_sides, window_origins
from pipeline.scoring.scorer import Scorer

if TYPE_CHECKING:
    from starlette.requests import Request
    from torch import Tensor

LARGE_PIXELS = 4_000_000
LARGE_AT_ONCE, SMALL_AT_ONCE = 2, 8  # images that are held decoded: large ones wait for each other, small ones pass
LOOK_SECONDS = 0.1  # between two looks whether the client is still there

Row = TypeVar("Row")


class GoneError(AgiqaError):
    """The client has left."""


class TooManyWindowsError(AgiqaError):
    """A request that would take more windows than are allowed."""


class _InTurn:
    """Stands where `window_scores` expects a FoldedScorer, and hands each of its steps to the one thread that scores.

    A method without a network has no such steps; its images are judged in the threads that decode them.

    A request has one step in that thread's queue at a time, so requests take turns.
    """

    def __init__(self, folded: Any, queue: ThreadPoolExecutor, gone: threading.Event) -> None:
        self._folded, self._queue, self._gone = folded, queue, gone

    def prepare(self, image: "Tensor", origins: Sequence[tuple[int, int]]) -> "Tensor":
        return self._take(self._folded.prepare, image, origins)

    @property
    def deviation_weights(self) -> np.ndarray | None:
        return self._folded.deviation_weights

    def score_prepared(self, prepared: "Tensor", *, autocast: bool = False) -> "tuple[Tensor, Tensor]":
        return self._take(self._folded.score_prepared, prepared, autocast=autocast)

    def _take(self, step: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        def turn() -> Any:
            if self._gone.is_set():
                raise GoneError("the client has left")
            return step(*arguments, **options)

        return self._queue.submit(turn).result()


class Turns:
    """Scores requests' images."""

    def __init__(self, scorer: Scorer, *, max_pixels: int, max_windows: int) -> None:
        """Start no thread yet.

        Args:
            scorer: From `load_scorer`.
            max_pixels: Of one image.
            max_windows: Of one request.
        """
        self.scorer, self.max_pixels, self.max_windows = scorer, max_pixels, max_windows
        self._queue = ThreadPoolExecutor(1, "scoring")
        self._large, self._small = CapacityLimiter(LARGE_AT_ONCE), CapacityLimiter(SMALL_AT_ONCE)

    async def score(
        self,
        request: "Request",
        uploads: list[tuple[str, bytes | str]],
        each: Callable[[Scorer, str, np.ndarray], Row],
    ) -> list[Row]:
        """Return what `each` makes of every image of a request.

        Args:
            request: Its body has been read.
            uploads: Names, with an image file's bytes or their base64.
            each: Gets a scorer that takes turns, an image's name and its pixels (H, W, 3), in a thread of its own.

        Raises:
            GoneError: If the client left, at most one forward pass or one image's decoding ago.
            ImageError: If an image cannot be used; names it.
            TooManyWindowsError: If the request takes more than `max_windows`; counted before any pixel is decoded.
        """
        gone, rows = threading.Event(), []
        folded = self.scorer.folded
        scorer = replace(self.scorer, folded=None if folded is None else _InTurn(folded, self._queue, gone))
        with CancelScope() as scope:  # a thread that runs is waited for, so that limits on images held are true

            async def watch() -> None:
                while not await request.is_disconnected():
                    await asyncio.sleep(LOOK_SECONDS)
                gone.set()
                scope.cancel()

            watcher = asyncio.create_task(watch())
            try:
                found = await to_thread.run_sync(self._counted, uploads, gone, limiter=self._small)
                for name, data, pixels in found:
                    limiter = self._large if pixels > LARGE_PIXELS else self._small
                    rows.append(await to_thread.run_sync(self._one, scorer, name, data, each, limiter=limiter))
                return rows
            finally:
                gone.set()
                watcher.cancel()
        raise GoneError("the client has left")

    def _one(self, scorer: Scorer, name: str, data: bytes, each: Callable[[Scorer, str, np.ndarray], Row]) -> Row:
        try:
            return each(scorer, name, scorer.open(data, max_pixels=self.max_pixels))
        except ImageError as error:
            raise ImageError(error.reason, name) from None

    def _counted(self, uploads: list[tuple[str, bytes | str]], gone: threading.Event) -> list[tuple[str, bytes, int]]:
        """Return each image's name, file and pixels, if the request's windows are within what is allowed."""
        found, windows = [], 0
        for name, content in uploads:
            if gone.is_set():
                raise GoneError("the client has left")
            try:
                data = from_base64(content) if isinstance(content, str) else content
                height, width, pixels = self._sides(data)
            except ImageError as error:
                raise ImageError(error.reason, name) from None
            found.append((name, data, pixels))
            windows += 1 if self.scorer.rule is None else len(window_origins(height, width, self.scorer.rule))
        if windows > self.max_windows:
            raise TooManyWindowsError(
                f"the request's images take {windows:,} windows, and {self.max_windows:,} are allowed in all: "
                "send fewer or smaller images"
            )
        return found

    def _sides(self, data: bytes) -> tuple[int, int, int]:
        """Return height and width after resizing, as the file's head states them, and the most pixels held at once."""
        width, height = image_size(data)
        if self.scorer.rule is None:
            if not width or height * width > self.max_pixels:
                height, width = self.scorer.open(data, max_pixels=self.max_pixels).shape[:2]
            return height, width, height * width
        tall, wide = resized_sides(height, width, self.scorer.rule) if width and height else (0, 0)
        if not tall or max(height * width, tall * wide) > self.max_pixels:  # refused in plain words
            height, width = self.scorer.open(data, max_pixels=self.max_pixels).shape[:2]
            tall, wide = resized_sides(height, width, self.scorer.rule)
        return tall, wide, max(height * width, tall * wide)
