"""Drawn scenes and their captions: things with a shape, a colour and a texture, in relation to each other."""

import functools
import math
from dataclasses import dataclass

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "hexagon", "heart", "crescent")
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.82, 0.12, 0.12),
    "orange": (0.93, 0.50, 0.10),
    "yellow": (0.93, 0.83, 0.16),
    "green": (0.16, 0.58, 0.20),
    "teal": (0.10, 0.58, 0.58),
    "blue": (0.14, 0.28, 0.80),
    "purple": (0.48, 0.18, 0.64),
    "pink": (0.95, 0.56, 0.72),
    "brown": (0.45, 0.28, 0.14),
    "white": (0.94, 0.94, 0.92),
    "grey": (0.52, 0.52, 0.53),
    "black": (0.09, 0.09, 0.10),
}
TEXTURES = ("plain", "striped", "dotted", "checkered", "noisy", "wavy", "ringed", "shaded", "marbled", "woven")
SIZES = ("small", "", "large")
RELATIONS = ("above", "below", "left of", "right of")


@dataclass(frozen=True)
class Thing:
    """One object of a scene; every field is a word of the caption (size may be empty: medium)."""

    shape: str
    colour: str
    texture: str
    size: str


@dataclass(frozen=True)
class Scene:
    """What a caption says: one object, or two in a relation, on a ground. `second` is None exactly if `relation` is."""

    first: Thing
    relation: str | None
    second: Thing | None
    ground_texture: str
    ground_colour: str


def draw_thing(generator: np.random.Generator, avoid_colours: tuple[str, ...] = ()) -> Thing:
    """Return a random object whose colour is none of `avoid_colours`."""
    colours = [name for name in COLOURS if name not in avoid_colours]
    return Thing(
        shape=SHAPES[generator.integers(len(SHAPES))],
        colour=colours[generator.integers(len(colours))],
        texture=TEXTURES[generator.integers(len(TEXTURES))],
        size=SIZES[generator.integers(len(SIZES))],
    )


def draw_scene(generator: np.random.Generator, two_objects: float = 0.7) -> Scene:
    """Return a random scene; with probability `two_objects` it holds two objects in a relation."""
    ground_colour = tuple(COLOURS)[generator.integers(len(COLOURS))]
    first = draw_thing(generator, (ground_colour,))
    relation, second = None, None
    if generator.random() < two_objects:
        relation = RELATIONS[generator.integers(len(RELATIONS))]
        second = draw_thing(generator, (ground_colour, first.colour))
    return Scene(first, relation, second, TEXTURES[generator.integers(len(TEXTURES))], ground_colour)


def describe(thing: Thing) -> str:
    """Return the object's words, e.g. "a small red striped circle" (medium size and plain texture stay unsaid)."""
    words = [thing.size, thing.colour, "" if thing.texture == "plain" else thing.texture, thing.shape]
    text = " ".join(word for word in words if word)
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def caption(scene: Scene) -> str:
    """Return a scene's caption, e.g. "a red striped circle above a small blue square, on a noisy green background"."""
    text = describe(scene.first)
    if scene.second is not None:
        text += f" {scene.relation} {describe(scene.second)}"
    return f"{text}, on a {scene.ground_texture} {scene.ground_colour} background"


@functools.cache
def pixel_grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of every pixel, float32, shape (size, size) each; cached, so read-only."""
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32)
    rows.flags.writeable = columns.flags.writeable = False
    return rows, columns


@functools.cache
def _frequency(size: int) -> np.ndarray:
    """Distance from zero frequency of every rfft2 bin, shape (size, size // 2 + 1); infinite at 0 to drop the mean."""
    radius = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    radius[0, 0] = np.inf
    return radius


def noise_field(generator: np.random.Generator, size: int, exponent: float) -> np.ndarray:
    """Return a random field with a 1/f**exponent amplitude spectrum, zero mean, unit deviation, shape (size, size)."""
    white = generator.standard_normal((size, size), dtype=np.float32)
    if exponent == 0:
        return white
    spectrum = np.fft.rfft2(white)
    field = np.fft.irfft2(spectrum / _frequency(size) ** exponent, s=(size, size)).astype(np.float32)
    return field / max(float(field.std()), 1e-6)


def draw_texture(kind: str, size: int, generator: np.random.Generator) -> np.ndarray:
    """Return a texture of the named kind in [-1, 1], shape (size, size), with random period, angle and phase.

    Raises:
        ValueError: If `kind` is none of TEXTURES.
    """
    rows, columns = pixel_grid(size)
    # Python floats, not numpy ones: those would turn every float32 field below into float64, at twice the time.
    angle, phase = float(generator.uniform(0, np.pi)), float(generator.uniform(0, 2 * np.pi))
    wave = 2 * math.pi / float(generator.uniform(6, 16))  # periods in pixels
    along = columns * math.cos(angle) + rows * math.sin(angle)
    across = -columns * math.sin(angle) + rows * math.cos(angle)
    if kind == "plain":
        return np.zeros((size, size), np.float32)
    if kind == "striped":
        field = 2.5 * np.sin(wave * along + phase)
    elif kind == "dotted":
        field = 4 * (np.sin(wave * along + phase) * np.sin(wave * across) - 0.35)
    elif kind == "checkered":
        field = 5 * np.sin(wave * along + phase) * np.sin(wave * across)
    elif kind == "noisy":
        field = 0.6 * noise_field(generator, size, 0.3)
    elif kind == "wavy":
        field = 1.5 * np.sin(wave * along + 2.5 * np.sin(0.5 * wave * across + phase))
    elif kind == "ringed":
        row, column = (generator.uniform(0.3, 0.7, 2) * size).tolist()
        field = 1.8 * np.sin(wave * np.hypot(rows - row, columns - column) + phase)
    elif kind == "shaded":
        field = 1.6 * (along - along.mean()) / size + 0.3 * np.sin(0.15 * wave * across + phase)
    elif kind == "marbled":
        field = np.sin(0.6 * wave * along + 1.6 * noise_field(generator, size, 1.5))
    elif kind == "woven":
        field = np.where(
            np.sin(wave * along) * np.sin(wave * across) > 0, np.sin(3 * wave * along), np.sin(3 * wave * across)
        )
    else:
        raise ValueError(f"texture {kind!r} is unknown; use one of {', '.join(TEXTURES)}")
    return np.clip(field, -1, 1).astype(np.float32)


def shape_mask(kind: str, size: int, centre: tuple[float, float], radius: float, angle: float) -> np.ndarray:
    """Return an anti-aliased mask in [0, 1], shape (size, size).

    Args:
        kind: One of SHAPES.
        size: Side of the mask in pixels.
        centre: Row and column of the shape's middle, in pixels.
        radius: Its radius in pixels.
        angle: Its turn in radians.

    Raises:
        ValueError: If `kind` is none of SHAPES.
    """
    rows, columns = pixel_grid(size)
    rows, columns = (rows - centre[0]) / radius, (columns - centre[1]) / radius
    u = columns * math.cos(angle) + rows * math.sin(angle)
    v = -columns * math.sin(angle) + rows * math.cos(angle)
    r = np.hypot(u, v)
    # Every inside is a signed depth in units of the radius: positive inside, zero on the edge.
    if kind == "circle":
        depth = 0.9 - r
    elif kind == "square":
        depth = 0.78 - np.maximum(np.abs(u), np.abs(v))
    elif kind == "triangle":
        depth = np.minimum(0.5 - v, np.minimum(0.5 + 0.5 * v - 0.866 * u, 0.5 + 0.5 * v + 0.866 * u))
    elif kind == "star":
        depth = 0.62 + 0.3 * np.cos(5 * np.arctan2(u, v)) - r
    elif kind == "cross":
        wide, long = np.abs(u), np.abs(v)
        depth = np.maximum(np.minimum(0.3 - wide, 0.95 - long), np.minimum(0.3 - long, 0.95 - wide))
    elif kind == "ring":
        depth = 0.2 - np.abs(r - 0.72)
    elif kind == "diamond":
        depth = (0.95 - np.abs(u) * 1.5 - np.abs(v)) * 0.7
    elif kind == "hexagon":
        depth = 0.8 - np.maximum(np.abs(v), np.maximum(np.abs(0.866 * u + 0.5 * v), np.abs(0.866 * u - 0.5 * v)))
    elif kind == "heart":
        depth = 0.75 - np.hypot(u * 0.95, v * 1.05 - 0.15 + 0.55 * np.sqrt(np.abs(u)))
    elif kind == "crescent":
        depth = np.minimum(0.9 - r, np.hypot(u - 0.42, v) - 0.68)
    else:
        raise ValueError(f"shape {kind!r} is unknown; use one of {', '.join(SHAPES)}")
    return np.clip(depth * radius + 0.5, 0, 1).astype(np.float32)


def paint(base: tuple[float, float, float] | np.ndarray, texture: np.ndarray, strength: float) -> np.ndarray:
    """Return colour `base` with its brightness moved by `texture` * `strength`, shape (H, W, 3), unclipped."""
    light = 1 + strength * texture[..., None]
    return np.asarray(base, np.float32) * light + 0.12 * strength * texture[..., None]


def place(scene: Scene, size: int, generator: np.random.Generator) -> list[tuple[Thing, tuple[float, float], float]]:
    """Return each object with its centre (row, column) and radius in pixels; the relation decides the centres."""
    radii = {"small": 0.13, "": 0.19, "large": 0.26}
    spread = 0.05 * size
    if scene.second is None:
        centres = [np.array([0.5, 0.5])]
    else:
        step = {"above": (-0.23, 0), "below": (0.23, 0), "left of": (0, -0.23), "right of": (0, 0.23)}[
            str(scene.relation)
        ]
        centres = [0.5 + np.array(step), 0.5 - np.array(step)]
    things = [scene.first] + ([scene.second] if scene.second is not None else [])
    placed = []
    for thing, middle in zip(things, centres, strict=True):
        row, column = middle * size + generator.uniform(-spread, spread, 2)
        scale = 1.35 if scene.second is None else 1.0
        placed.append(
            (
                thing,
                (float(row), float(column)),
                float(radii[thing.size] * scale * size * generator.uniform(0.92, 1.08)),
            )
        )
    return placed


def render(
    scene: Scene, generator: np.random.Generator, size: int = 160, ground: np.ndarray | None = None, detail: float = 1.0
) -> np.ndarray:
    """Draw a scene without any flaw.

    Args:
        scene: What to draw.
        generator: Source of all randomness (positions, texture phases, light, fine detail).
        size: Side in pixels.
        ground: Picture to draw upon in place of the scene's own ground, float32 (size, size, 3), or None.
        detail: Strength of the fine surface structure, 0 for flat colours.

    Returns:
        RGB in [0, 1], float32, shape (size, size, 3).
    """
    strength = float(generator.uniform(0.22, 0.42))
    if ground is None:
        texture = draw_texture(scene.ground_texture, size, generator)
        picture = paint(np.array(COLOURS[scene.ground_colour], np.float32) * 0.85 + 0.06, texture, strength * 0.8)
    else:
        picture = ground.copy()
    for thing, centre, radius in place(scene, size, generator):
        angle = float(generator.uniform(-0.35, 0.35))
        mask = shape_mask(thing.shape, size, centre, radius, angle)
        offset = max(1, round(radius * 0.12))
        shadow = np.roll(mask, (offset, offset), (0, 1))
        picture *= 1 - 0.35 * shadow[..., None]
        colour = np.array(COLOURS[thing.colour], np.float32)
        rows, columns = pixel_grid(size)
        light = 0.16 * ((centre[0] - rows) + (centre[1] - columns)) / radius  # lit from the upper left
        surface = (
            paint(colour, draw_texture(thing.texture, size, generator), strength)
            * (1 + np.clip(light, -0.3, 0.3))[..., None]
        )
        picture = picture * (1 - mask[..., None]) + surface * mask[..., None]
    if detail:
        grain = noise_field(generator, size, float(generator.uniform(0.6, 1.1)))
        picture = picture * (1 + 0.05 * detail * grain[..., None])
        sweep = noise_field(generator, size, 2.0)
        picture = picture * (1 + 0.08 * sweep[..., None])
    return np.clip(picture, 0, 1).astype(np.float32)
