"""The demo data: the same bytes for the same seed, and scores that mean what they say."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import spearmanr

from pipeline.data import demo, scenes


def test_equal_seeds_give_equal_bytes_and_one_more_prompt_changes_no_picture(tmp_path: Path) -> None:
    for name, seed, prompts in (("a", 3, 4), ("b", 3, 4), ("c", 3, 5), ("d", 4, 4)):
        demo.generate(tmp_path / name, seed=seed, prompts=prompts, size=64, progress=False)
    files = {
        name: {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()}
        for name in "abcd"
    }
    assert files["a"] == files["b"]
    assert files["a"].keys() == files["d"].keys()
    assert files["a"] != files["d"]
    pictures = {name for name in files["a"] if name.endswith(".png")}
    assert len(pictures) == 4 * len(demo.GENERATORS)
    assert all(files["a"][name] == files["c"][name] for name in pictures)


def test_labels_are_a_data_set_like_the_real_ones(tmp_path: Path) -> None:
    demo.generate(tmp_path, seed=1, prompts=6, size=64, progress=False)
    table = pd.read_csv(tmp_path / "labels.csv")
    assert table["prompt"].nunique() == 6
    assert table.groupby("generator").size().eq(6).all()
    assert table[["mos_quality", "mos_align"]].stack().between(0, 5).all()
    assert (table[["std_quality", "std_align"]] > 0).all(axis=None)
    with Image.open(tmp_path / "img" / table["name"][0]) as picture:
        assert picture.size == (64, 64)


def test_quality_falls_with_severity_and_alignment_with_lost_facts() -> None:
    qualities = [demo.quality_of({"soft": severity}, 0.5) for severity in (0, 0.2, 0.5, 1)]
    assert qualities == sorted(qualities, reverse=True)
    assert qualities[0] == pytest.approx(0.9)
    assert demo.quality_of({"soft": 0.5, "grain": 0.5}, 0.5) < demo.quality_of({"soft": 0.5}, 0.5)
    assert demo.alignment_of({"first.shape": True, "first.texture": False}) == pytest.approx(2 / 3)


@pytest.mark.parametrize("name", list(demo.FLAWS))
def test_every_flaw_changes_the_picture_more_when_it_is_severe(name: str) -> None:
    generator = np.random.default_rng(0)
    changes = {0.1: [], 0.9: []}
    for _ in range(4):
        picture = scenes.render(scenes.draw_scene(generator), generator, 64, detail=1.0)
        for severity, found in changes.items():
            flawed = demo.FLAWS[name][0](picture, severity, np.random.default_rng(1))
            assert flawed.shape == picture.shape
            found.append(np.abs(np.clip(flawed, 0, 1) - picture).mean())
    assert np.mean(changes[0.9]) > 1.2 * np.mean(changes[0.1]) > 0


def test_raters_agree_with_the_truth_but_for_noise() -> None:
    values = np.random.default_rng(0).uniform(size=400)
    mos, std = demo.rate(values, np.random.default_rng(1))
    assert 0.95 < spearmanr(values, mos).statistic < 0.999
    assert 0.4 < std.mean() < 1


def test_the_generators_name_alone_does_not_tell_quality() -> None:
    """Else a model could score well without looking at the picture."""
    drawings = list(demo.draw_all(5, 12, list(demo.GENERATORS), 64))
    quality = np.array([drawing.quality for *_, drawing in drawings])
    maker = pd.Series([name for *_, name, _ in drawings])
    by_maker = maker.map(pd.Series(quality).groupby(maker).mean())
    assert spearmanr(by_maker, quality).statistic < 0.5
    alignment = [drawing.alignment for *_, drawing in drawings]
    assert spearmanr(quality, alignment).statistic < 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": 0}, "prompts is 0; the demo needs at least 1"),
        ({"size": 32}, "size is 32; the demo needs at least 64 pixels"),
        ({"generators": ["dall-e"]}, "use different ones out of atelier, brushgan"),
    ],
)
def test_refusals(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        demo.generate(tmp_path, **settings)
