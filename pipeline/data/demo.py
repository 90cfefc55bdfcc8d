"""The embedded demo data set: drawn scenes with captions, imperfect 'generators', and simulated raters.

Lives here so that a whole study runs offline on data the project makes itself. What is drawn stands in `scenes`; here
are the flaws, the raters and the files.
"""

import csv
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from tqdm import tqdm

from pipeline.data.scenes import (
    COLOURS,
    RELATIONS,
    SHAPES,
    TEXTURES,
    Scene,
    Thing,
    caption,
    draw_scene,
    noise_field,
    pixel_grid,
    render,
)
from pipeline.errors import AgiqaError

# ---------------------------------------------------------------- flaws: f(picture, severity in 0..1, generator)
# These are the demo's own, written apart from those of the backbone's pre-training (backbones/demo/pretrain.py).


def _image(picture: np.ndarray) -> Image.Image:
    return Image.fromarray((np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8))


def _picture(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.float32) / 255


def _soft(picture: np.ndarray, severity: float, generator: np.random.Generator) -> np.ndarray:
    """Draw small and enlarge."""
    side = picture.shape[0]
    small = round(side / (1.3 + 2.7 * severity))
    return _picture(
        _image(picture).resize((small, small), Image.Resampling.BOX).resize((side, side), Image.Resampling.BICUBIC)
    )


def _grain(picture: np.ndarray, severity: float, generator: np.random.Generator) -> np.ndarray:
    """Noise that grows with brightness, as photons do."""
    noise = generator.standard_normal(picture.shape, dtype=np.float32)
    return picture + (0.03 + 0.17 * severity) * np.sqrt(np.clip(picture, 0.02, 1)) * noise


def _blocks(picture: np.ndarray, severity: float, generator: np.random.Generator) -> np.ndarray:
    """Coarse transform coding with halved colour."""
    buffer = io.BytesIO()
    _image(picture).save(buffer, "JPEG", quality=round(40 - 34 * severity), subsampling=2)
    return _picture(Image.open(buffer))


def _bands(picture: np.ndarray, severity: float, generator: np.random.Generator) -> np.ndarray:
    """Too few brightness levels, colours kept."""
    light = picture.mean(-1, keepdims=True)
    levels = 12 - 9 * severity
    return picture + (np.round(light * levels) / levels - light)


def _halo(picture: np.ndarray, severity: float, generator: np.random.Generator) -> np.ndarray:
    """Overdone sharpening."""
    mask = ImageFilter.UnsharpMask(
        radius=float(generator.uniform(1, 3)), percent=round(120 + 380 * severity), threshold=0
    )
    return _picture(_image(picture).filter(mask))


def _lattice(picture: np.ndarray, severity: float, generator: np.random.Generator) -> np.ndarray:
    """The crosshatch of strided upsampling layers, two periods at once."""
    rows, columns = pixel_grid(picture.shape[0])
    period = float(generator.choice((2.0, 4.0)))
    pattern = np.cos(2 * np.pi * rows / period) + np.cos(2 * np.pi * columns / period)
    pattern += 0.7 * np.cos(np.pi * (rows + columns) / period + generator.uniform(0, 6))
    return picture * (1 + (0.04 + 0.16 * severity) * pattern[..., None]) + (0.01 + 0.03 * severity) * pattern[..., None]


def _tint(picture: np.ndarray, severity: float, generator: np.random.Generator) -> np.ndarray:
    """Channels leak into each other."""
    leak = generator.uniform(-0.5, 1, (3, 3)) * (0.12 + 0.45 * severity)
    np.fill_diagonal(leak, 0)
    return picture @ (np.eye(3) + leak - np.diag(leak.sum(0)) * 0.6).astype(np.float32)


def _haze(picture: np.ndarray, severity: float, generator: np.random.Generator) -> np.ndarray:
    """A veil that thickens to one side."""
    side = picture.shape[0]
    rows, columns = pixel_grid(side)
    angle = generator.uniform(0, 2 * np.pi)
    depth = 0.5 + 0.6 * ((rows - side / 2) * np.sin(angle) + (columns - side / 2) * np.cos(angle)) / side
    veil = np.clip((0.25 + 0.6 * severity) * (0.5 + depth), 0, 0.9)[..., None]
    return picture * (1 - veil) + generator.uniform(0.55, 0.8) * veil


def _melt(picture: np.ndarray, severity: float, generator: np.random.Generator) -> np.ndarray:
    """A few whirls that turn forms into dough."""
    side = picture.shape[0]
    rows, columns = (grid.copy() for grid in pixel_grid(side))
    for _ in range(2 + round(3 * severity)):
        row, column = generator.uniform(0.15, 0.85, 2) * side
        reach = generator.uniform(0.12, 0.28) * side
        down, right = rows - row, columns - column
        turn = generator.choice((-1, 1)) * (0.5 + 2.2 * severity) * np.exp(-(down**2 + right**2) / (2 * reach**2))
        rows = row + down * np.cos(turn) - right * np.sin(turn)
        columns = column + down * np.sin(turn) + right * np.cos(turn)
    return picture[np.clip(np.rint(rows), 0, side - 1).astype(int), np.clip(np.rint(columns), 0, side - 1).astype(int)]


def _wash(picture: np.ndarray, severity: float, generator: np.random.Generator) -> np.ndarray:
    """Strong edges stay, fine structure is painted over."""
    washed = _picture(_image(picture).filter(ImageFilter.MedianFilter(3 if severity < 0.35 else 5)))
    share = min(1.0, 0.5 + severity)
    return picture * (1 - share) + washed * share


def _patchwork(picture: np.ndarray, severity: float, generator: np.random.Generator) -> np.ndarray:
    """Pieces of the picture stand where they do not belong."""
    side = picture.shape[0]
    torn = picture.copy()
    for _ in range(3 + round(14 * severity)):
        height, width = generator.integers(side // 16, side // 6, 2)
        fro, to = generator.integers(0, side - side // 6, (2, 2))
        torn[to[0] : to[0] + height, to[1] : to[1] + width] = picture[fro[0] : fro[0] + height, fro[1] : fro[1] + width]
    return torn


def _residue(picture: np.ndarray, severity: float, generator: np.random.Generator) -> np.ndarray:
    """Coloured clouds left by a denoiser that stopped early."""
    clouds = np.stack([noise_field(generator, picture.shape[0], 0.7) for _ in range(3)], -1)
    return picture * (1 - 0.25 * severity) + 0.12 * severity + (0.03 + 0.11 * severity) * clouds


def _echo(picture: np.ndarray, severity: float, generator: np.random.Generator) -> np.ndarray:
    """Faint displaced copies beside everything."""
    down, right = (int(k) for k in generator.choice((-1, 1), 2) * generator.integers(2, 8, 2))
    share = 0.15 + 0.3 * severity
    return picture * (1 - share) + share * np.roll(picture, (down, right), (0, 1))


# name -> (function, annoyance at full severity)
FLAWS: dict[str, tuple[Callable[[np.ndarray, float, np.random.Generator], np.ndarray], float]] = {
    "soft": (_soft, 1.0),
    "grain": (_grain, 0.9),
    "blocks": (_blocks, 0.8),
    "bands": (_bands, 0.7),
    "halo": (_halo, 0.6),
    "lattice": (_lattice, 0.9),
    "tint": (_tint, 0.5),
    "haze": (_haze, 0.7),
    "melt": (_melt, 1.1),
    "wash": (_wash, 0.7),
    "patchwork": (_patchwork, 1.1),
    "residue": (_residue, 0.9),
    "echo": (_echo, 0.8),
}


# ---------------------------------------------------------------- generators


@dataclass(frozen=True)
class Habits:
    """How a 'generator' fails: its usual flaws, their mean severity, and how often it drops a fact of the caption."""

    flaws: tuple[str, ...]
    severity: float
    forgets: float


# Named twice: drawn twice as often. Mostly veils and clouds, which a backbone of a million parameters tells from a
# picture's own texture; grain and softness it confounds with noisy and plain grounds, echoes it cannot see at all.
GENERATORS: dict[str, Habits] = {
    "atelier": Habits(("haze", "haze", "residue", "soft"), 0.26, 0.16),
    "brushgan": Habits(("residue", "residue", "haze", "lattice"), 0.50, 0.30),
    "cloudlet": Habits(("haze", "haze", "haze", "soft"), 0.42, 0.08),
    "driftnet": Habits(("haze", "haze", "residue", "grain"), 0.36, 0.34),
    "earlystop": Habits(("residue", "residue", "residue", "grain"), 0.46, 0.14),
    "fastpix": Habits(("residue", "residue", "haze", "soft"), 0.42, 0.24),
    "glasswork": Habits(("haze", "residue"), 0.32, 0.10),
    "harvest": Habits(("residue", "haze", "residue", "grain"), 0.30, 0.22),
}
FACT_WEIGHTS = {
    "presence": 3.0,
    "shape": 2.0,
    "colour": 2.0,
    "relation": 2.0,
    "ground_colour": 1.0,
    "texture": 1.0,
    "ground_texture": 0.7,
}


def other(current: str, choices: Sequence[str], generator: np.random.Generator) -> str:
    """Return a random element of `choices` that is not `current`."""
    left = [choice for choice in choices if choice != current]
    return left[generator.integers(len(left))]


def forget(scene: Scene, chance: float, generator: np.random.Generator) -> tuple[Scene, dict[str, bool]]:
    """Return the scene as a forgetful generator draws it, and which of the caption's facts it kept.

    Args:
        scene: What the caption says.
        chance: Mean probability that a fact is lost; each picture has its own, spread widely around it.
        generator: Source of randomness.

    Returns:
        The scene to draw, and a dict from fact ("first.colour", "relation", "second.presence", ...) to kept or not.
    """
    chance = chance * float(generator.gamma(1.0))  # attention is lost for whole pictures rather than for single facts
    lost = {}

    def loses(fact: str) -> bool:
        lost[fact] = bool(generator.random() < min(chance, 0.9))
        return lost[fact]

    def alter(thing: Thing, name: str, avoid: tuple[str, ...]) -> Thing:
        if loses(f"{name}.shape"):
            thing = replace(thing, shape=other(thing.shape, SHAPES, generator))
        if loses(f"{name}.colour"):
            allowed = [colour for colour in COLOURS if colour not in avoid]
            thing = replace(thing, colour=other(thing.colour, allowed, generator))
        if loses(f"{name}.texture"):
            thing = replace(thing, texture=other(thing.texture, TEXTURES, generator))
        return thing

    ground_colour, ground_texture = scene.ground_colour, scene.ground_texture
    taken = (scene.first.colour, scene.second.colour) if scene.second is not None else (scene.first.colour,)
    if loses("ground_colour"):
        ground_colour = other(ground_colour, [colour for colour in COLOURS if colour not in taken], generator)
    if loses("ground_texture"):
        ground_texture = other(ground_texture, TEXTURES, generator)
    first = alter(scene.first, "first", (scene.ground_colour, ground_colour))
    relation, second = scene.relation, scene.second
    if second is not None:
        if loses("second.presence"):
            lost |= {"second.shape": True, "second.colour": True, "second.texture": True, "relation": True}
            relation, second = None, None
        else:
            second = alter(second, "second", (scene.ground_colour, ground_colour))
            if loses("relation"):
                relation = other(str(relation), RELATIONS, generator)
    return Scene(first, relation, second, ground_texture, ground_colour), {
        fact: not gone for fact, gone in lost.items()
    }


def alignment_of(kept: dict[str, bool]) -> float:
    """Return the weighted share of kept facts in [0, 1] (weights: FACT_WEIGHTS)."""
    weights = {fact: FACT_WEIGHTS[fact.split(".")[-1]] for fact in kept}
    return sum(weights[fact] for fact, is_kept in kept.items() if is_kept) / sum(weights.values())


def quality_of(severities: dict[str, float], beauty: float) -> float:
    """Return noiseless quality in [0, 1]: annoyances add up as a 1.5-norm, and a fair motif softens the judgement.

    Args:
        severities: Severity in 0..1 of every flaw in the picture.
        beauty: How pleasing the flawless picture is, 0..1.
    """
    annoyance = sum((FLAWS[name][1] * severity) ** 1.5 for name, severity in severities.items()) ** (1 / 1.5)
    return float(np.clip((0.8 + 0.2 * beauty) * np.exp(-1.5 * annoyance**1.2), 0, 1))


@dataclass(frozen=True)
class Drawing:
    """One finished demo picture with its noiseless truth; `image` is uint8 RGB, shape (size, size, 3)."""

    image: np.ndarray
    scene: Scene
    drawn: Scene
    kept: dict[str, bool]
    severities: dict[str, float]
    quality: float
    alignment: float


def draw(scene: Scene, habits: Habits, generator: np.random.Generator, size: int = 160) -> Drawing:
    """Let a 'generator' draw a caption's scene with its flaws and lapses.

    Args:
        scene: What the caption says.
        habits: Which generator draws.
        generator: Source of all randomness of this picture.
        size: Side in pixels.

    Returns:
        The picture with its noiseless quality and alignment, both in [0, 1].
    """
    drawn, kept = forget(scene, habits.forgets, generator)
    detail = float(generator.uniform(0.5, 1.7))
    picture = render(drawn, generator, size, detail=detail)
    names = list(FLAWS)
    severities: dict[str, float] = {}
    mood = float(np.clip(habits.severity + generator.normal(0, 0.28), 0.02, 0.95))  # wide, so that generators overlap
    for _ in range(generator.integers(1, 4)):
        usual = generator.random() < 0.9
        name = habits.flaws[generator.integers(len(habits.flaws))] if usual else names[generator.integers(len(names))]
        if name not in severities:
            severities[name] = float(np.clip(mood * generator.gamma(4.0, 0.25), 0, 1))
            picture = np.clip(FLAWS[name][0](picture, severities[name], generator), 0, 1)
    ground, thing = (np.array(COLOURS[name]) for name in (drawn.ground_colour, drawn.first.colour))
    beauty = float(np.clip(0.25 * detail + 0.5 * np.abs(ground - thing).max(), 0, 1))
    quality = quality_of(severities, beauty)
    legible = 0.8 + 0.2 * quality  # a fact that cannot be seen counts less
    return Drawing(np.asarray(_image(picture)), scene, drawn, kept, severities, quality, alignment_of(kept) * legible)


def rate(values: np.ndarray, generator: np.random.Generator, raters: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Let a panel rate pictures on the scale 0..5 in half steps.

    Args:
        values: Noiseless values in [0, 1], shape (n,).
        generator: Source of the raters' habits and of their noise.
        raters: Size of the panel.

    Returns:
        MOS and the standard deviation over raters, each of shape (n,).
    """
    bias = generator.normal(0, 0.3, raters)
    gain = generator.normal(1, 0.12, raters)
    noise = generator.normal(0, 0.75, (len(values), raters))
    opinions = 2.5 + gain * (4.6 * (values[:, None] - 0.5)) + bias + noise
    opinions = np.round(np.clip(opinions, 0, 5) * 2) / 2  # (n, raters)
    return opinions.mean(1), opinions.std(1)


def draw_captions(seed: int, prompts: int) -> list[Scene]:
    """Return `prompts` scenes with pairwise different captions."""
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
    scenes: dict[str, Scene] = {}
    while len(scenes) < prompts:
        scene = draw_scene(generator)
        scenes.setdefault(caption(scene), scene)
    return list(scenes.values())


def draw_all(seed: int, prompts: int, generators: Sequence[str], size: int) -> Iterator[tuple[str, str, str, Drawing]]:
    """Yield (file name, caption, generator, drawing) for every prompt and generator; each picture has its own seed."""
    for row, scene in enumerate(draw_captions(seed, prompts)):
        for name in generators:
            column = list(GENERATORS).index(name)
            own = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1, row, column)))
            yield f"{name}_{row:03d}.png", caption(scene), name, draw(scene, GENERATORS[name], own, size)


def generate(
    folder: Path,
    *,
    seed: int = 0,
    prompts: int = 72,
    generators: Sequence[str] = tuple(GENERATORS),
    size: int = 160,
    progress: bool = True,
) -> None:
    """Write the demo data set: img/*.png and labels.csv, the same bytes for the same arguments.

    labels.csv has the columns name, prompt, generator, mos_quality, std_quality, mos_align, std_align; MOS on 0..5.

    Args:
        folder: Where to write; made if missing.
        seed: Seed of everything.
        prompts: Number of captions; each generator draws each of them once.
        generators: Names out of GENERATORS.
        size: Side of the pictures in pixels, at least 64.
        progress: Whether to show a progress bar on stderr.

    Raises:
        AgiqaError: If prompts < 1, size < 64, or a generator is unknown, repeated or missing.
    """
    if prompts < 1:
        raise AgiqaError(f"prompts is {prompts}; the demo needs at least 1")
    if size < 64:
        raise AgiqaError(f"size is {size}; the demo needs at least 64 pixels")
    unknown = sorted(set(generators) - set(GENERATORS))
    if unknown or not generators or len(set(generators)) != len(generators):
        raise AgiqaError(f"generators is {list(generators)}; use different ones out of {', '.join(GENERATORS)}")
    (folder / "img").mkdir(parents=True, exist_ok=True)
    names, texts, makers, qualities, alignments = [], [], [], [], []
    drawings = draw_all(seed, prompts, generators, size)
    for name, text, maker, drawing in tqdm(
        drawings,
        total=prompts * len(generators),
        desc="demo pictures",
        unit="picture",
        disable=not progress,
        file=sys.stderr,
    ):
        Image.fromarray(drawing.image).save(folder / "img" / name, "PNG", compress_level=3)
        names.append(name)
        texts.append(text)
        makers.append(maker)
        qualities.append(drawing.quality)
        alignments.append(drawing.alignment)
    panel = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(2,)))
    quality, quality_std = rate(np.array(qualities), panel)
    alignment, alignment_std = rate(np.array(alignments), panel)
    half_done = folder / "labels.csv.part"
    with half_done.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("name", "prompt", "generator", "mos_quality", "std_quality", "mos_align", "std_align"))
        for row in zip(names, texts, makers, quality, quality_std, alignment, alignment_std, strict=True):
            writer.writerow([*row[:3], *(f"{value:.4f}" for value in row[3:])])
    os.replace(half_done, folder / "labels.csv")
