"""Many files: nothing depends on what was decoded ahead, on bad neighbours, or on a run that broke."""

import os
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.scoring import batch, lanes
from pipeline.scoring.batch import _map_name, score_files
from pipeline.scoring.gather import Item
from pipeline.scoring.journal import Journal
from pipeline.scoring.scorer import Scorer

SETTINGS = {"checkpoint": "abc"}


@pytest.fixture
def items(in_tmp: Path) -> list[Item]:
    """Return twenty images of differing sizes, the fourth and the last unusable."""
    generator = np.random.default_rng(0)
    for k in range(20):
        pixels = generator.integers(0, 256, (20 + 3 * k, 70 - 2 * k, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"{k:02d}.png")
    Path("03.png").write_bytes(b"")
    return [*(Item(f"{k:02d}.png") for k in range(19)), Item("19.png", "is known to be bad")]


def test_rows_keep_their_order_and_their_errors(scorer: Scorer, items: list[Item]) -> None:
    advanced: list[int] = []
    rows = list(score_files(scorer, items, advance=advanced.append))
    assert [row.image for row in rows] == [item.path for item in items]
    assert sum(advanced) == 20
    assert [(row.image, row.error) for row in rows if row.error] == [
        ("03.png", "is empty (0 bytes)"), ("19.png", "is known to be bad"),
    ]  # fmt: skip
    for row in rows:
        if row.error is None:
            expected = scorer.score(row.image)
            assert (row.raw, row.score) == pytest.approx((expected.raw[0], expected.mos[0]), abs=5e-6)
            with Image.open(row.image) as image:
                assert (row.width, row.height) == image.size


def test_looking_ahead_changes_nothing(scorer: Scorer, items: list[Item], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = list(score_files(scorer, items))
    for ahead, block in ((1, 32), (5000, 32), (10**9, 1000)):
        monkeypatch.setattr(lanes, "HELD_BYTES", ahead)
        monkeypatch.setitem(batch.BLOCK, "cpu", block)
        assert list(score_files(scorer, items)) == expected


def test_a_broken_run_ends_with_the_same_rows(
    scorer: Scorer, items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(batch.BLOCK, "cpu", 4)
    whole = list(score_files(scorer, items))
    for cut in (10, 700, 1500, 10_000):
        journal = Journal(Path("j"), SETTINGS)
        for _, _row in zip(range(9), score_files(scorer, items, journal=journal), strict=False):
            pass
        journal.close(delete=False)
        content = Path("j").read_bytes()
        Path("j").write_bytes(content[:cut])  # a kill may leave half a line
        journal = Journal(Path("j"), SETTINGS)
        assert journal.resumed in range(0, 13, 4)
        assert list(score_files(scorer, items, journal=journal)) == whole
        journal.close(delete=True)
        assert not Path("j").exists()


def test_finished_blocks_are_not_scored_again_unless_a_file_changed(
    scorer: Scorer, items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(batch.BLOCK, "cpu", 4)
    journal = Journal(Path("j"), SETTINGS)
    first = list(score_files(scorer, items, journal=journal))
    journal.close(delete=False)
    Image.new("RGB", (40, 40)).save("05.png")
    opened: list[str] = []
    original = Scorer.open
    monkeypatch.setattr(Scorer, "open", lambda self, path, **o: opened.append(path) or original(self, path, **o))
    journal = Journal(Path("j"), SETTINGS)
    again = list(score_files(scorer, items, journal=journal))
    journal.close(delete=False)
    assert sorted(opened) == ["04.png", "05.png", "06.png", "07.png"]
    assert [row.image for row, old in zip(again, first, strict=True) if row != old] == ["05.png"]


def test_maps_are_drawn_beside_each_other_under_their_folders(scorer: Scorer, items: list[Item]) -> None:
    Path("deep").mkdir()
    Image.new("RGB", (50, 40)).save("deep/00.png")
    rows = list(score_files(scorer, [items[0], items[3], Item("deep/00.png")], maps=Path("maps")))
    assert [row.quality_map for row in rows] == ["maps/00.png.png", None, "maps/deep/00.png.png"]
    assert all(Path(row.quality_map).is_file() for row in rows if row.quality_map)


def test_a_huge_image_is_gone_before_the_next_is_opened(
    scorer: Scorer, items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "HELD_BYTES", 1)  # every image counts as huge
    original, alive = Scorer.open, []

    def watched(self: Scorer, path: str, **options: object) -> np.ndarray:
        assert not any(reference() is not None for reference in alive), path
        pixels = original(self, path, **options)
        alive.append(weakref.ref(pixels))
        return pixels

    monkeypatch.setattr(Scorer, "open", watched)
    rows = list(score_files(scorer, items[10:19], batch=1, maps=Path("maps")))
    assert len(alive) == 9
    assert [row.error for row in rows] == [None] * 9


def test_a_map_of_a_long_name_has_a_name_that_a_file_can_have() -> None:
    assert _map_name("a/one.png") == "a/one.png.png"
    long, other = ("é" * 100 + f"{end}.png" for end in "ab")
    names = [_map_name(f"a/{name}") for name in (long, other)]
    assert names[0] != names[1]
    assert all(len(os.fsencode(os.path.basename(name))) < 200 for name in names)
    assert all(name.startswith("a/é") and name.endswith(".png") for name in names)
