"""Lanes: the rows of a single thread, whatever the number of lanes, in bounded memory, and nothing left behind."""

import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.scoring import lanes
from pipeline.scoring.batch import BLOCK, score_files
from pipeline.scoring.gather import Item
from pipeline.scoring.scorer import Pass, Scorer, ScoringError


@pytest.fixture
def items(in_tmp: Path) -> list[Item]:
    """Return 45 images of one to nine windows, every seventh unusable."""
    generator = np.random.default_rng(0)
    for k in range(45):
        pixels = generator.integers(0, 256, (32 + 24 * (k % 3), 32 + 24 * (k % 4), 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"{k:02d}.png")
    for k in range(0, 45, 7):
        Path(f"{k:02d}.png").write_bytes(b"nothing")
    return [Item(f"{k:02d}.png") for k in range(45)]


@pytest.mark.parametrize("threads", [1, 2, 5, 9])
def test_the_bits_are_those_of_one_thread(scorer: Scorer, items: list[Item], threads: int, one_thread: None) -> None:
    """Of `Scorer.stream`, block by block: who shares a forward pass with whom is part of that."""
    expected = []
    for start in range(0, len(items), BLOCK["cpu"]):
        good = [scorer.open(f"{k:02d}.png") for k in range(start, min(start + 32, 45)) if k % 7]
        expected += [round(seen.raw, 6) for seen in scorer.stream(good, batch=16)]
    advanced: list[int] = []
    rows = list(score_files(scorer, items, batch=16, threads=threads, advance=advanced.append))
    assert [row.image for row in rows] == [item.path for item in items]
    assert [row.raw for row in rows if row.error is None] == expected
    assert [k for k, row in enumerate(rows) if row.error] == list(range(0, 45, 7))
    assert sum(advanced) == 45


def test_few_images_and_large_ones_have_all_cores(
    scorer: Scorer, items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, found = Scorer.see, []

    def watched(self: Scorer, images: Pass, **options: object) -> object:
        found.append((images.windows, torch.get_num_threads()))
        return original(self, images, **options)

    monkeypatch.setattr(Scorer, "see", watched)
    for some, batch, expected in (
        (items[1:2], 64, {4}),  # alone
        (items[1:4], 64, {4}),
        (items[1:7], 64, {4}),
        (items, 64, {1}),
        (items, 10, {1, 4}),  # those of twelve windows are large
    ):
        found.clear()
        list(score_files(scorer, some, batch=batch, threads=4))
        assert {threads for _, threads in found} == expected
        assert all((threads == 4) == (windows > batch) for windows, threads in found) or some is not items


def test_bytes_at_hand_score_like_their_file(scorer: Scorer, items: list[Item]) -> None:
    at_hand = [Item(f"s3://{item.path}", source=Path(item.path).read_bytes()) for item in items[:9]]
    rows = list(score_files(scorer, iter(at_hand)))
    files = list(score_files(scorer, items[:9]))
    assert [(row.raw, row.width, row.error) for row in rows] == [(row.raw, row.width, row.error) for row in files]
    assert [row.image for row in rows] == [item.path for item in at_hand]


def test_pixels_that_are_held_are_bounded(scorer: Scorer, items: list[Item], monkeypatch: pytest.MonkeyPatch) -> None:
    """However many images there are, of pixels there are HELD_BYTES and those of the pass that fills."""
    limit, largest = 60_000, 3 * 80 * 104
    monkeypatch.setattr(lanes, "HELD_BYTES", limit)
    original, alive, most, lock = Scorer.open, [], [], threading.Lock()

    def watched(self: Scorer, path: str, **options: object) -> np.ndarray:
        pixels = original(self, path, **options)
        with lock:
            alive.append(weakref.ref(pixels))
            most.append(sum(held.nbytes for reference in alive if (held := reference()) is not None))
        return pixels

    monkeypatch.setattr(Scorer, "open", watched)
    assert len(list(score_files(scorer, items * 4, batch=4, threads=4))) == 180
    assert max(most) <= limit + 2 * largest


def test_images_are_taken_as_they_are_needed_and_threads_end_with_the_reader(scorer: Scorer, items: list[Item]) -> None:
    taken = 0

    def endless() -> Iterator[Item]:
        nonlocal taken
        while True:
            taken += 1
            yield items[1]

    rows = score_files(scorer, endless(), threads=2)
    for _ in range(40):
        next(rows)
    assert taken < 40 + 4 * BLOCK["cpu"]
    rows.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("decode", "lane"))]


def test_what_fails_in_a_lane_comes_out(scorer: Scorer, items: list[Item], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr("pipeline.model.folded.window_scores", fail)
    with pytest.raises(ScoringError, match="the memory of the cpu does not suffice for 64 windows a forward pass"):
        list(score_files(scorer, items))


def test_torch_takes_as_many_threads_as_before(scorer: Scorer, items: list[Item]) -> None:
    found, before = [], torch.get_num_threads()
    list(score_files(scorer, items[:20], threads=before + 3))
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert (torch.get_num_threads(), found) == (before, [before])
