"""Scenes: captions that say what is drawn, and drawings that hold what captions say."""

import re
from dataclasses import replace

import numpy as np
import pytest

from pipeline.data import scenes
from pipeline.data.scenes import Scene, Thing

CIRCLE = Thing("circle", "red", "striped", "")
SCENE = Scene(CIRCLE, "above", Thing("square", "orange", "plain", "small"), "noisy", "green")


def test_a_caption_says_all_that_is_in_a_scene() -> None:
    assert scenes.caption(SCENE) == "a red striped circle above a small orange square, on a noisy green background"
    alone = replace(SCENE, first=replace(CIRCLE, colour="orange"), relation=None, second=None)
    assert scenes.caption(alone) == "an orange striped circle, on a noisy green background"


def test_scenes_that_differ_are_told_apart_by_their_captions() -> None:
    generator = np.random.default_rng(0)
    drawn = {scenes.draw_scene(generator) for _ in range(2000)}
    assert len({scenes.caption(scene) for scene in drawn}) == len(drawn) > 1900


def test_drawn_scenes_have_different_colours_and_a_relation_where_they_have_two_things() -> None:
    generator = np.random.default_rng(1)
    found = [scenes.draw_scene(generator) for _ in range(500)]
    for scene in found:
        colours = [scene.ground_colour, scene.first.colour]
        colours += [] if scene.second is None else [scene.second.colour]
        assert len(set(colours)) == len(colours)
        assert (scene.relation is None) == (scene.second is None)
    assert 0.6 < np.mean([scene.second is not None for scene in found]) < 0.8


@pytest.mark.parametrize(
    ("relation", "axis", "sign"), [("above", 0, -1), ("below", 0, 1), ("left of", 1, -1), ("right of", 1, 1)]
)
def test_things_stand_as_the_relation_says(relation: str, axis: int, sign: int) -> None:
    for seed in range(30):
        placed = scenes.place(replace(SCENE, relation=relation), 160, np.random.default_rng(seed))
        (_, first, _), (_, second, radius) = placed
        assert sign * (first[axis] - second[axis]) > 40
        assert radius < placed[0][2]  # small, beside one of medium size


@pytest.mark.parametrize("kind", scenes.SHAPES)
def test_a_shapes_mask_lies_around_its_centre_and_turns_with_it(kind: str) -> None:
    mask = scenes.shape_mask(kind, 96, (40.0, 56.0), 20.0, 0.0)
    assert (mask.shape, mask.dtype, mask.min(), mask.max()) == ((96, 96), np.float32, 0, 1)
    rows, columns = np.nonzero(mask)
    assert np.hypot(rows - 40, columns - 56).max() <= 20 * 1.15 + 1
    assert 0.15 < mask.sum() / (np.pi * 20**2) < 1
    quarter = scenes.shape_mask(kind, 96, (47.5, 47.5), 20.0, np.pi / 2)
    upright = scenes.shape_mask(kind, 96, (47.5, 47.5), 20.0, 0.0)
    assert min(np.abs(np.rot90(upright, turn) - quarter).max() for turn in (1, -1)) < 1e-3


@pytest.mark.parametrize("kind", scenes.TEXTURES)
def test_a_texture_is_seeded_and_bounded(kind: str) -> None:
    field, again, other = (scenes.draw_texture(kind, 64, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert (field.shape, field.dtype) == ((64, 64), np.float32)
    assert np.abs(field).max() <= 1
    assert np.array_equal(field, again)
    assert (field.std() > 0.1) == (kind != "plain")
    assert np.array_equal(field, other) == (kind == "plain")


def test_what_is_unknown_is_named() -> None:
    with pytest.raises(ValueError, match=re.escape("texture 'furry' is unknown; use one of plain, striped")):
        scenes.draw_texture("furry", 64, np.random.default_rng(0))
    with pytest.raises(ValueError, match=re.escape("shape 'blob' is unknown; use one of circle, square")):
        scenes.shape_mask("blob", 64, (32, 32), 9, 0)


def test_noise_has_the_spectrum_that_is_asked_for() -> None:
    field = scenes.noise_field(np.random.default_rng(0), 256, 1.5)
    assert abs(field.mean()) < 1e-3
    assert field.std() == pytest.approx(1, abs=1e-3)
    power = np.abs(np.fft.rfft2(field))
    radius = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256)[None, :])
    rings = [(power[(radius > low) & (radius <= 1.2 * low)]).mean() for low in (0.02, 0.2)]
    assert np.log10(rings[0] / rings[1]) == pytest.approx(1.5, abs=0.15)


def test_a_rendered_scene_shows_its_colours_where_its_things_are() -> None:
    picture = scenes.render(SCENE, np.random.default_rng(3), 160, detail=0)
    assert (picture.shape, picture.dtype) == ((160, 160, 3), np.float32)
    assert picture.min() >= 0
    assert picture.max() <= 1
    (_, first, _), (_, second, _) = scenes.place(SCENE, 160, _after_the_ground(3))
    ground = picture[:8].mean((0, 1))
    assert ground.argmax() == 1  # green
    for (row, column), dominant in ((first, 0), (second, 0)):
        around = picture[round(row) - 4 : round(row) + 5, round(column) - 4 : round(column) + 5].mean((0, 1))
        assert around.argmax() == dominant
    own_ground = np.full((160, 160, 3), 0.5, np.float32)
    upon = scenes.render(SCENE, np.random.default_rng(3), 160, ground=own_ground, detail=0)
    np.testing.assert_array_equal(upon[:8], 0.5)
    assert (own_ground == 0.5).all()


def _after_the_ground(seed: int) -> np.random.Generator:
    """Return a generator as `render` has it once the ground is drawn."""
    generator = np.random.default_rng(seed)
    generator.uniform(0.22, 0.42)
    scenes.draw_texture(SCENE.ground_texture, 160, generator)
    return generator
