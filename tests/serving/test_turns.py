"""Requests that take turns, are counted before they are decoded, and end when their client leaves."""

import asyncio
import io
import threading
import time
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from pipeline.data.decoding import ImageError
from pipeline.scoring.scorer import Scorer
from pipeline.serving.turns import GoneError, TooManyWindowsError, Turns


def png(side: int, colour: str = "teal") -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(data, "PNG")
    return data.getvalue()


class Client:
    """Stands where a request does: stays until told to leave."""

    def __init__(self) -> None:
        self.left = False

    async def is_disconnected(self) -> bool:
        return self.left


def each(scorer: Scorer, name: str, pixels: np.ndarray) -> tuple[str, float]:
    return name, float(scorer.score([pixels]).raw[0])


def slow(scorer: Scorer, passes: list[float], seconds: float) -> Scorer:
    """Return the scorer with passes that take a while; `passes` gets the first number of each."""

    def score_prepared(prepared: Tensor, **options: Any) -> Tensor:
        passes.append(round(float(prepared.mean()), 3))
        time.sleep(seconds)
        return scorer.folded.score_prepared(prepared, **options)

    slowed = SimpleNamespace(
        prepare=scorer.folded.prepare, score_prepared=score_prepared, deviation_weights=scorer.folded.deviation_weights
    )
    return replace(scorer, folded=slowed)


def test_scores_are_the_scorers(demo_scorer: Scorer) -> None:
    turns = Turns(demo_scorer, max_pixels=10**6, max_windows=500)
    files = [png(70), png(500, "red")]
    rows = asyncio.run(turns.score(Client(), [("a", files[0]), ("b", files[1])], each))
    assert [name for name, _ in rows] == ["a", "b"]
    np.testing.assert_allclose([raw for _, raw in rows], demo_scorer.score(files).raw, atol=1e-6)


def test_requests_take_turns(demo_scorer: Scorer) -> None:
    passes: list[float] = []
    turns = Turns(slow(demo_scorer, passes, 0.03), max_pixels=10**6, max_windows=500)

    async def both() -> None:
        await asyncio.gather(*(turns.score(Client(), [("a", png(900, colour))], each) for colour in ("black", "white")))

    asyncio.run(both())  # 19 x 19 windows, six passes each
    assert len(passes) == 12
    changes = sum(one != other for one, other in pairwise(passes))
    assert changes >= 6, passes


def test_scoring_ends_when_the_client_leaves(demo_scorer: Scorer) -> None:
    passes: list[float] = []
    turns, client = Turns(slow(demo_scorer, passes, 0.1), max_pixels=10**6, max_windows=5000), Client()

    async def leave() -> None:
        while len(passes) < 2:
            await asyncio.sleep(0.01)
        client.left = True

    async def both() -> None:
        await asyncio.gather(leave(), turns.score(client, [("a", png(900))] * 5, each))  # 30 passes

    with pytest.raises(GoneError, match="the client has left"):
        asyncio.run(both())
    assert len(passes) <= 6


def test_who_leaves_while_waiting_waits_no_more(demo_scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.serving.turns.LARGE_PIXELS", 0)
    started, release = threading.Semaphore(0), threading.Event()

    def held(scorer: Scorer, name: str, pixels: np.ndarray) -> str:
        started.release()
        assert release.wait(20)
        return name

    async def play() -> list[Any]:
        turns, client = Turns(demo_scorer, max_pixels=10**6, max_windows=50), Client()
        first = [asyncio.create_task(turns.score(Client(), [("a", png(70))], held)) for _ in range(2)]
        for _ in first:
            await asyncio.to_thread(started.acquire, timeout=20)
        third = asyncio.create_task(turns.score(client, [("b", png(70))], held))
        await asyncio.sleep(0.2)
        client.left = True
        with pytest.raises(GoneError):
            await asyncio.wait_for(third, 10)
        release.set()
        return await asyncio.gather(*first)

    assert asyncio.run(play()) == [["a"], ["a"]]


def test_windows_are_counted_before_anything_is_decoded(demo_scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scorer, "open", lambda *_, **__: pytest.fail("an image was decoded"))
    turns = Turns(demo_scorer, max_pixels=10**6, max_windows=700)
    expected = "take 722 windows, and 700 are allowed in all: send fewer or smaller images"
    with pytest.raises(TooManyWindowsError, match=expected):
        asyncio.run(turns.score(Client(), [("a", png(900)), ("b", png(900))], each))


def test_an_image_that_cannot_be_scored_stops_those_before_it(demo_scorer: Scorer) -> None:
    passes: list[float] = []
    turns = Turns(slow(demo_scorer, passes, 0), max_pixels=10**4, max_windows=500)
    with pytest.raises(ImageError, match="b: has 900 x 900 pixels, and 10,000 are allowed in all"):
        asyncio.run(turns.score(Client(), [("a", png(70)), ("b", png(900))], each))
    assert not passes
