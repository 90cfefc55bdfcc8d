"""A checkpoint that someone gave away scores images, in Python, as the library's own parts do."""

import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

import pipeline
from pipeline import load_scorer
from pipeline.data.decoding import ImageError
from pipeline.errors import AgiqaError
from pipeline.model.backbone import BackboneError
from pipeline.model.checkpoint import CheckpointError
from pipeline.model.folded import image_scores, quality_map
from pipeline.model.windows import WindowRule
from pipeline.scoring.scorer import Scorer, ScoringError

RULE = WindowRule(32, 24, "all", "clip", mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))


def pictures(count: int = 5) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (30 + 11 * k, 50 + 7 * k, 3), dtype=np.uint8) for k in range(count)]


def test_scores_are_the_librarys_on_both_scales(scorer: Scorer) -> None:
    images = pictures()
    scores = scorer.score(images, quality_maps=True)
    expected = image_scores(scorer.folded, images, 5, RULE)
    assert expected.std() > 1e-4
    np.testing.assert_allclose(scores.raw, expected, atol=1e-6)
    np.testing.assert_allclose(scores.mos, 1 + 4 * scores.raw, atol=1e-12)
    assert (scorer.mos_low, scorer.mos_high, scorer.rule) == (1.0, 5.0, RULE)
    for image, drawn in zip(images, scores.maps, strict=True):
        assert drawn.shape == image.shape[:2]
    np.testing.assert_allclose(scores.maps[2], quality_map(scorer.folded, images[2], RULE), atol=1e-6)
    small = [seen.drawn for seen in scorer.stream(images, quality_maps=True, map_side=30)]
    for whole, drawn in zip(scores.maps, small, strict=True):
        step = -(-max(whole.shape) // 30)
        np.testing.assert_allclose(drawn, whole[::step, ::step], atol=1e-6)
    assert abs(scores.maps[0].mean() - scores.raw[0]) < 0.1  # enlarged for scoring, and the map made small again


def test_every_kind_of_image_scores_alike(scorer: Scorer, tmp_path: Path) -> None:
    pixels = pictures()[3]
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    expected = scorer.score(pixels).raw
    assert expected.shape == (1,)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    for image in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), Image.fromarray(pixels), tensor,
                  tensor / 255, [path], np.stack([pixels]), tensor[None]):  # fmt: skip
        np.testing.assert_array_equal(scorer.score(image).raw, expected)
    mixed = scorer.score([path, pixels, tensor]).raw
    np.testing.assert_allclose(mixed, np.repeat(expected, 3), atol=1e-6)
    assert scorer.score([]).raw.shape == (0,)


def test_neither_batches_nor_neighbours_nor_threads_change_a_score(scorer: Scorer) -> None:
    images = pictures(8)
    alone = np.concatenate([scorer.score(image).raw for image in images])
    for batch in (1, 5, 64):
        np.testing.assert_allclose(scorer.score(images, batch=batch).raw, alone, atol=1e-6)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda _: scorer.score(images).raw, range(8)))
    for raw in together:
        np.testing.assert_allclose(raw, alone, atol=1e-6)


def test_images_of_one_forward_pass_are_held_at_a_time(scorer: Scorer) -> None:
    taken = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal taken
        while True:
            taken += 1
            yield np.zeros((32, 32, 3), np.uint8)

    stream = scorer.stream(endless(), batch=4)
    for number in range(1, 10):
        next(stream)
        assert taken == 4 * ((number + 3) // 4)


def test_an_image_that_cannot_be_used_is_named(scorer: Scorer, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"<html>")
    with pytest.raises(ImageError, match=re.escape(f"{tmp_path / 'a.png'}: is a web page saved under")):
        scorer.score([pictures()[0], tmp_path / "a.png"])
    with pytest.raises(ImageError, match=r"image 1 \(from 0\): is empty"):
        scorer.score([pictures()[0], b""])
    with pytest.raises(ImageError, match="has 16 x 32,000 pixels, and 32 x 64,000 once its short side is enlarged"):
        scorer.open(np.zeros((32000, 16, 3), np.uint8), max_pixels=1_000_000)


def test_what_is_missing_is_told(tiny_checkpoint: Path, scorer: Scorer, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.safetensors does not exist"):
        load_scorer(tmp_path / "none.safetensors")
    with pytest.raises(ScoringError, match="device is 'tpu': auto, cpu and cuda are known"):
        load_scorer(tiny_checkpoint, device="tpu")
    record = json.loads(json.dumps(scorer.record))
    record["backbone"] |= {"file": "weights/b.safetensors", "origin": "pretrained"}
    from safetensors.torch import save_file

    path = tmp_path / "a.safetensors"
    save_file(scorer.folded.constants(), path, metadata={"agiqa": json.dumps(record)})
    with pytest.raises(BackboneError, match=re.escape(f"no {tmp_path / 'x' / 'weights' / 'b.safetensors'}")):
        load_scorer(path, root=tmp_path / "x")


def test_auto_takes_the_champion_of_the_study(
    tiny_checkpoint: Path, scorer: Scorer, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = in_tmp / "runs" / "photos" / "dcmpln" / "round-0" / "train"
    (folder / "checkpoints").mkdir(parents=True)
    record = {
        "dataset": "photos", "method": "dcmpln", "kind": "variant", "leaks": [], "shuffled_labels": False,
        "selected_epoch": 2,
    }  # fmt: skip
    (folder / "record.json").write_text(json.dumps(record))
    (folder / "history.csv").write_text("epoch,validation_srcc\n1,0.2\n2,0.4\n")
    (folder / "checkpoints" / "epoch-002.safetensors").write_bytes(tiny_checkpoint.read_bytes())
    for name in ("auto", "auto:photos", "auto:photos:dcmpln", "auto::dcmpln"):
        found = load_scorer(name, device="cpu")
        assert found.path == folder / "checkpoints" / "epoch-002.safetensors"
    np.testing.assert_array_equal(found.score(pictures()).raw, scorer.score(pictures()).raw)


def test_asking_for_the_package_costs_no_torch() -> None:
    code = "import sys, pipeline; assert 'numpy' not in sys.modules; pipeline.load_scorer"
    code += "; assert 'numpy' in sys.modules; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=ROOT)
    with pytest.raises(AttributeError, match="has no attribute 'load_scorers'"):
        pipeline.load_scorers  # noqa: B018 (asking is the test)


def test_int8_stays_close_and_is_refused_beside_bfloat16(tiny_checkpoint: Path, scorer: Scorer) -> None:
    small = load_scorer(tiny_checkpoint, device="cpu", int8=True)
    exact, found = scorer.score(pictures()).raw, small.score(pictures()).raw
    assert 0 < np.abs(exact - found).max() < 0.01
    with pytest.raises(ScoringError, match="int8 is for CPUs and goes without bfloat16"):
        load_scorer(tiny_checkpoint, device="cpu", int8=True, bfloat16=True)


@pytest.mark.parametrize("raised", [MemoryError(), torch.OutOfMemoryError("tried to allocate"), None])
def test_a_batch_beyond_the_memory_is_told(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch, raised: Exception | None
) -> None:
    def fail(*_: object, **__: object) -> None:
        if raised is None:
            torch.empty(2**60)  # as torch itself says it
        raise raised

    monkeypatch.setattr("pipeline.model.folded.window_scores", fail)
    with pytest.raises(ScoringError, match="the memory of the cpu does not suffice for 7 windows a forward pass: ask"):
        scorer.score(pictures(), batch=7)


def test_a_fault_of_ours_while_scoring_stays_one(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr("pipeline.model.folded.window_scores", fail)
    with pytest.raises(RuntimeError, match="shapes differ") as error:
        scorer.score(pictures())
    assert not isinstance(error.value, AgiqaError)
