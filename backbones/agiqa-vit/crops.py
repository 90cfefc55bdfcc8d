"""The fixed pool of crops: what each one shows and suffers, its pixels, and the memory of both and of the teacher.

Everything about a crop follows from its index, so that a pool is made once, in any order, and read again on every later
pass.
"""

from __future__ import annotations

import hashlib
import json
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

from distortions import DISTORTIONS, NAMES, SIDE, as_image, jpeg_at, quality_of  # noqa: E402
from packing import Entry, Pack  # noqa: E402

from pipeline.data import scenes  # noqa: E402

CROP = 128
CLEAN, DRAWN, WHOLE = 0.35, 0.10, 0.25
# How often each source is drawn from: generated pictures and classes about equally, whatever their number.
SOURCES = {"caltech": 0.45, "sheets": 0.42, "photographs": 0.13}
# Failures of generators come twice as often as those of cameras and of storage.
GENERATED = ("scramble", "smear", "blobs", "upscale", "residual_noise", "warp", "grid", "shift", "ghost")
CHANCES = np.array([2.0 if name in GENERATED else 1.0 for name in NAMES])
CHANCES /= CHANCES.sum()
LEVELS = ((0.85, "excellent"), (0.65, "good"), (0.45, "fair"), (0.25, "poor"), (-1.0, "bad"))
PLAIN = ("a {word} photo of {content}", "{content}, {word}", "a {word} picture of {content}", "{word} image, {content}")
RECIPE = 1  # raise it whenever the pixels of an index change, so that no memo of another recipe is read


@dataclass(frozen=True)
class Plan:
    """What one crop is.

    Attributes:
        picture: Number in the pack; the ground of a drawn scene, or -1 for one on its own ground.
        scene: Of a drawn crop, else None.
        whole: Whether the whole picture is seen, else a piece at full scale.
        scale: Of a piece, enlargement; of a whole picture, its short side over SIDE.
        place: Position of the piece and of the crop in it, four numbers in 0..1.
        severities: Of the distortions, shape (distortions,).
        order: Distortions laid on, in this order.
        stored: JPEG quality of a mild last compression, or 0.
        content: What is shown, whatever its quality: crops of equal content have equal captions.
        word: Word for the quality in the caption, or empty.
        caption: The text.
        quality, structure: In 0..1, from the severities.
        seed: Of the pixels' randomness.
    """

    picture: int
    scene: scenes.Scene | None
    whole: bool
    scale: float
    place: tuple[float, ...]
    severities: np.ndarray
    order: tuple[int, ...]
    stored: int
    content: str
    word: str
    caption: str
    quality: float
    structure: float
    seed: tuple[int, ...] = field(repr=False)


class Planner:
    """Says what each index of a pool is.

    Args:
        pack: The opened pack.
        seed: Of the pool.
        held_out: Whether to plan over the pictures kept for the probe, else over the others.
        clean: Plan whole, undistorted pictures alone, index = position in `numbers`.
    """

    def __init__(self, pack: Pack, seed: int, *, held_out: bool = False, clean: bool = False) -> None:
        self.pack, self.seed, self.held_out, self.clean = pack, seed, held_out, clean
        chosen = [k for k, entry in enumerate(pack.entries) if entry.held_out == held_out]
        self.numbers = {source: [k for k in chosen if pack.entries[k].source == source] for source in SOURCES}
        self.sources = [source for source in SOURCES if self.numbers[source]]
        shares = np.array([SOURCES[source] for source in self.sources])
        self.shares = shares / shares.sum()

    def key(self) -> str:
        """Return a hash of all that decides a crop's pixels but its index."""
        facts = [RECIPE, self.pack.digest, self.pack.kind, self.seed, self.held_out, self.clean]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def __call__(self, index: int) -> Plan:
        """Return the plan of one crop, the same for the same index."""
        if self.clean:
            return self._whole(index)
        seed = (self.seed, int(self.held_out), index)
        rng = np.random.default_rng(seed)
        drawn = rng.random() < DRAWN
        numbers = self.numbers[self.sources[rng.choice(len(self.sources), p=self.shares)]]
        picture = numbers[rng.integers(len(numbers))]
        whole = bool(rng.random() < WHOLE)
        scale = float(rng.uniform(CROP / SIDE, 1)) if whole else float(np.exp(rng.uniform(np.log(0.8), np.log(1.25))))
        place = tuple(float(value) for value in rng.random(4))
        severities, order = np.zeros(len(NAMES), np.float32), ()
        if rng.random() >= CLEAN:
            order = tuple(int(k) for k in rng.choice(len(NAMES), rng.integers(1, 3), replace=False, p=CHANCES))
            severities[list(order)] = rng.beta(1.0, 1.2, len(order))
        stored = int(rng.integers(75, 97)) if rng.random() < 0.3 else 0
        quality, structure = quality_of(severities)
        scene = None
        if drawn:
            scene = scenes.draw_scene(rng)
            content = scenes.caption(scene)
            if rng.random() < 0.5:
                picture = -1
            else:
                content = content.split(",")[0] + ", on a natural background"
            template = "a {word} picture of {content}"
        else:
            content, template = self._words(picture, rng)
        word = quality_word(severities, quality, rng)
        caption = template.format(word=word, content=content).replace("  ", " ").strip(" ,")
        return Plan(
            picture, scene, whole and not drawn, scale, place, severities, order, stored, content, word, caption,
            quality, structure, (*seed, 1),
        )  # fmt: skip

    def _words(self, picture: int, rng: np.random.Generator) -> tuple[str, str]:
        forms = forms_of(self.pack.entries[picture])
        content, templates = forms[rng.integers(len(forms))]
        return content, templates[rng.integers(len(templates))]

    def _whole(self, index: int) -> Plan:
        severities = np.zeros(len(NAMES), np.float32)
        return Plan(index, None, True, CROP / SIDE, (0.5,) * 4, severities, (), 0, "", "", "", 1.0, 1.0, (0, index))


def forms_of(entry: Entry) -> list[tuple[str, tuple[str, ...]]]:
    """Return what can be said of an undistorted picture: its content, and the captions that content may stand in."""
    if not entry.style:
        return [(entry.subject, PLAIN)]
    medium, artist = entry.style.split(", ", 1)
    if not entry.subject:
        return [(artist, ("{content}, {word}",))]
    return [
        (f"{artist}, {entry.subject}", ("{content}, {word}",)),
        (f"{medium} of a {entry.subject}", ("a {word} {content}",)),
        (f"a {entry.subject}", PLAIN),
        (f"{medium} of a {entry.subject}, {artist}", ("a {word} {content}",)),
    ]


def all_texts(entries: Sequence[Entry]) -> set[str]:
    """Return every caption that these pictures can get, with one word for the quality: a tokenizer may join marks."""
    forms = {form for entry in entries for form in forms_of(entry)}
    return {
        template.format(word=word, content=content).strip(" ,")
        for content, templates in forms
        for template in templates
        for word in ("", "good")
    }


def quality_word(severities: np.ndarray, quality: float, rng: np.random.Generator) -> str:
    """Return a word for the quality of a picture, for its worst distortion, or none."""
    chance = rng.random()
    if chance < 0.35:
        return ""
    if chance < 0.65 and severities.any():
        return DISTORTIONS[NAMES[int(np.argmax(severities))]][3]
    if chance < 0.65:
        return ("sharp", "clean", "high quality")[rng.integers(3)]
    return next(word for bound, word in LEVELS if quality > bound)


def pixels_of(plan: Plan, pack: Pack) -> np.ndarray:
    """Return the crop, uint8, shape (3, 128, 128)."""
    rng = np.random.default_rng(plan.seed)
    if plan.picture < 0:
        picture = scenes.render(plan.scene, rng, SIDE, detail=rng.uniform(0, 2))
    else:
        picture = cut(pack.picture(plan.picture), plan)
        if plan.scene is not None:
            picture = scenes.render(plan.scene, rng, SIDE, ground=picture, detail=rng.uniform(0, 1))
    for k in plan.order:
        picture = np.clip(DISTORTIONS[NAMES[k]][0](picture, float(plan.severities[k]), rng), 0, 1)
    image = as_image(picture)
    if plan.whole and plan.scale < 1:
        side = round(SIDE * plan.scale)
        image = image.resize((side, side), Image.Resampling.LANCZOS)
    if plan.stored:
        image = jpeg_at(image, plan.stored)
    room = image.size[0] - CROP
    left, top = (round(room * value) for value in plan.place[2:])
    return np.asarray(image.crop((left, top, left + CROP, top + CROP))).transpose(2, 0, 1)


def cut(picture: np.ndarray, plan: Plan) -> np.ndarray:
    """Return the piece of a picture, or all of it but what its long side has too much, float32 (SIDE, SIDE, 3)."""
    height, width = picture.shape[:2]
    need = min(height, width)
    if not plan.whole:
        need = min(need, round(SIDE / plan.scale))
    left, top = round((width - need) * plan.place[0]), round((height - need) * plan.place[1])
    image = Image.fromarray(picture).resize(
        (SIDE, SIDE), Image.Resampling.LANCZOS, box=(left, top, left + need, top + need)
    )
    return np.asarray(image, np.float32) / 255


class Memo:
    """Crops and the teacher's answers on disk, each row with its checksum; a row not yet made reads as absent.

    The checksum is what makes it safe to be killed at any moment: a row half written does not fit it and is made anew.

    Args:
        folder: Where the file lies.
        key: Of the recipe; another recipe gets another file.
        rows: Size of the pool.
        shapes: Name -> (type, shape) of what a row holds.
        teacher: Whose answers they are; another's get another file.
    """

    def __init__(
        self, folder: Path, key: str, rows: int, shapes: dict[str, tuple[str, tuple[int, ...]]], teacher: str = ""
    ) -> None:
        described = hashlib.sha256(json.dumps([shapes, teacher]).encode()).hexdigest()[:8]
        self.path = folder / f"pool-{key}-{described}.bin"
        layout = np.dtype([(name, kind, shape) for name, (kind, shape) in shapes.items()])
        folder.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as stream:  # a larger pool keeps the smaller one's rows
            stream.truncate(max(rows * layout.itemsize, stream.tell()))
        sums = self.path.with_suffix(".sums")
        with sums.open("ab") as stream:
            stream.truncate(max(rows * 8, stream.tell()))
        self.rows = np.memmap(self.path, layout, "r+", shape=(rows,))
        self.sums = np.memmap(sums, np.uint64, "r+", shape=(rows,))

    def has(self, index: int) -> bool:
        """Return whether a row was made; whether it is whole shows when it is read."""
        return bool(self.sums[index])

    def put(self, index: int, values: dict[str, np.ndarray]) -> None:
        """Write one row, its checksum last."""
        row = self.rows[index]
        for name, value in values.items():
            row[name] = value
        self.sums[index] = 2**32 + zlib.crc32(row.tobytes())

    def get(self, indices: Sequence[int]) -> dict[str, np.ndarray] | None:
        """Return whole rows, stacked, or None if any of them is broken (and then forgets it)."""
        rows = self.rows[list(indices)]
        whole = True
        for index, row in zip(indices, rows, strict=True):
            if self.sums[index] != 2**32 + zlib.crc32(row.tobytes()):
                self.sums[index] = 0
                whole = False
        return {name: rows[name] for name in rows.dtype.names} if whole else None
