"""Pack the pre-training's pictures, and their words, into one file; open such a file.

The pictures lie in public repositories, cloned beforehand; `sources.json` beside this file says which, and nothing else
is read. A pack is a zip of pictures shrunk to a short side of 256 px, and a listing with each one's name, source,
subject and the hash of the file that it was cut from.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
MANIFEST = HERE / "sources.json"
HASHES = HERE / "sources.npy"
SHORT, LONG = 256, 384
HELD_OUT = 0.05
# Folders of Caltech-101 whose names are no noun; the rest are taken as they are, with an article.
SUBJECTS = {
    "BACKGROUND_Google": "something",
    "Faces": "a face",
    "Faces_easy": "a face",
    "Leopards": "a leopard",
    "Motorbikes": "a motorbike",
    "airplanes": "an airplane",
    "car_side": "the side of a car",
    "cougar_body": "a cougar",
    "cougar_face": "the face of a cougar",
    "crocodile_head": "the head of a crocodile",
    "flamingo_head": "the head of a flamingo",
    "scissors": "scissors",
    "water_lilly": "a water lily",
    "yin_yang": "a yin yang sign",
}
# What the four pieces of a sheet were asked for, in reading order; the actor that the third names is left unnamed.
PIECES = ("", "woman", "man", "city")


@dataclass(frozen=True)
class Entry:
    """One picture of a pack.

    Attributes:
        name: Source, path in it, and the piece of a sheet.
        source: Key in the manifest.
        label: Class folder, or empty.
        subject: What the picture shows, as the end of "a photo of ...".
        style: Medium and the artist whose style was asked for, or empty.
        sha256: Of the file as it lies in the source.
        held_out: Whether it is kept for the probe; the same for all pieces of one sheet.
    """

    name: str
    source: str
    label: str
    subject: str
    style: str
    sha256: str
    held_out: bool


def with_article(noun: str) -> str:
    """Return the noun with an indefinite article."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def is_held_out(name: str) -> bool:
    """Return whether a picture of this name is kept for the probe, by the name's hash."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 16**8 < HELD_OUT


def read_manifest(path: Path = MANIFEST) -> dict[str, dict[str, object]]:
    """Return the manifest: source -> repository, commit, folder, licence and how captions are made."""
    return json.loads(path.read_text(encoding="utf-8"))["sources"]


class Repository:
    """A cloned repository at one commit, of which only one folder and the named files may be read."""

    def __init__(self, clone: Path, commit: str, allowed: Sequence[str]) -> None:
        self.git = ["git", f"--git-dir={clone}"]
        self.commit, self.allowed = commit, tuple(allowed)

    def read(self, path: str) -> bytes:
        """Return one file."""
        self._check(path)
        return subprocess.run(
            [*self.git, "cat-file", "blob", f"{self.commit}:{path}"], check=True, capture_output=True
        ).stdout

    def files(self, folder: str) -> list[str]:
        """Return the sorted paths below a folder."""
        command = [*self.git, "ls-tree", "-r", "-z", "--name-only", self.commit, f"{folder}/"]
        found = subprocess.run(command, check=True, capture_output=True).stdout.decode().split("\0")
        return sorted(path for path in found if path)

    def read_all(self, paths: Sequence[str]) -> Iterator[bytes]:
        """Yield files through one process of git."""
        with subprocess.Popen(
            [*self.git, "cat-file", "--batch"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as reader:
            for path in paths:
                self._check(path)
                reader.stdin.write(f"{self.commit}:{path}\n".encode())
                reader.stdin.flush()
                size = int(reader.stdout.readline().split()[2])
                yield reader.stdout.read(size)
                reader.stdout.read(1)
            reader.stdin.close()

    def _check(self, path: str) -> None:
        if not any(path == name or path.startswith(f"{name}/") for name in self.allowed):
            raise PermissionError(f"{path} is not among what sources.json allows to read: {', '.join(self.allowed)}")


def caltech(repository: Repository, folder: str) -> Iterator[tuple[str, bytes, list[tuple[str, str, str]]]]:
    """Yield (path, bytes, [(label, subject, style)]) of Caltech-101's photographs."""
    paths = [path for path in repository.files(folder) if path.endswith(".jpg")]
    for path, content in zip(paths, repository.read_all(paths), strict=True):
        label = path.split("/")[-2]
        subject = SUBJECTS.get(label) or with_article(label.replace("_", " "))
        yield path, content, [(label, subject, "")]


def photographs(repository: Repository, folder: str) -> Iterator[tuple[str, bytes, list[tuple[str, str, str]]]]:
    """Yield the photographs of the NIPS 2017 set, whose labels are ImageNet's, counted from one."""
    names = json.loads(repository.read("data/labels.txt"))
    rows = csv.DictReader(io.StringIO(repository.read("data/dev_dataset.csv").decode()))
    classes = {row["ImageId"]: int(row["TrueLabel"]) - 1 for row in rows}
    paths = [path for path in repository.files(folder) if Path(path).stem in classes]
    for path, content in zip(paths, repository.read_all(paths), strict=True):
        label = names[str(classes[Path(path).stem])].split(",")[0]
        yield path, content, [("", with_article(label), "")]


def sheets(repository: Repository, folder: str) -> Iterator[tuple[str, bytes, list[tuple[str, str, str]]]]:
    """Yield the 2 x 2 sheets of generated pictures with the four prompts of each."""
    text = repository.read("src/data.js").decode()
    styles = {}
    for record in re.findall(r"\{[^{}]*\}", text):
        # As JSON but for the escaped apostrophes, which JSON does not know.
        pairs = re.findall(r'"(\w+)":"((?:[^"\\]|\\.)*)"', record)
        fields = {key: json.loads('"' + value.replace("\\'", "'") + '"') for key, value in pairs}
        kinds = [kind.strip().lower() for kind in fields["Category"].split(",")]
        medium = next((kind for kind in kinds if kind in MEDIA), "picture")
        material = next((kind for kind in kinds if kind in MATERIALS), "")
        artist = fields["Prompt"].removeprefix("style of ")
        styles[fields["Image"]] = f"{material} {MEDIA.get(medium, medium)}".strip() + f", style of {artist}"
    paths = [path for path in repository.files(folder) if path.split("/", 1)[1] in styles]
    for path, content in zip(paths, repository.read_all(paths), strict=True):
        yield path, content, [("", piece, styles[Path(path).name]) for piece in PIECES]


MEDIA = {
    "painting": "painting",
    "illustration": "illustration",
    "photography": "photo",
    "comic": "comic",
    "sculpture": "sculpture",
    "concept art": "concept art",
    "collage": "collage",
    "animation": "animation",
}
MATERIALS = ("oil", "watercolor", "ink", "acrylic", "gouache", "pastel", "charcoal", "b&w")
READERS = {"caltech": caltech, "photographs": photographs, "sheets": sheets}


def shrink(image: Image.Image) -> Image.Image:
    """Return the picture's centre, shrunk to a short side of at most 256 px, the long one at most 384."""
    image = image.convert("RGB")
    factor = min(1.0, SHORT / min(image.size))
    width, height = (max(1, round(side * factor)) for side in image.size)
    if factor < 1:
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    left, top = max(0, width - LONG) // 2, max(0, height - LONG) // 2
    return image.crop((left, top, left + min(width, LONG), top + min(height, LONG)))


def pieces_of(content: bytes, count: int) -> list[Image.Image]:
    """Return the picture itself, or the `count` = 4 quarters of a sheet in reading order."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    if count == 1:
        return [image]
    width, height = image.size[0] // 2, image.size[1] // 2
    return [image.crop((x, y, x + width, y + height)) for y in (0, height) for x in (0, width)]


def digest(entries: Iterable[Entry]) -> str:
    """Return a hash of a pack's names, words and source files, the same whatever quality it is packed with."""
    return hashlib.sha256(json.dumps([asdict(entry) for entry in entries], sort_keys=True).encode()).hexdigest()


def hashes_within(archive: Path) -> set[str]:
    """Return the sha256 of every file in a zip, for pictures that must not be packed."""
    with zipfile.ZipFile(archive) as stored:
        return {hashlib.sha256(stored.read(name)).hexdigest() for name in stored.namelist() if not name.endswith("/")}


def refuse_known(name: str, sha256: str, refused: set[str]) -> None:
    """Raise if a source file is one of those that must not be packed.

    Raises:
        ValueError: If so; names it.
    """
    if sha256 in refused:
        raise ValueError(
            f"{name} (sha256 {sha256}) is a picture of a quality data set, which the backbone must not see"
        )


def pack(
    clones: dict[str, Path],
    out: Path,
    *,
    megabytes: float | None = None,
    quality: int = 95,
    refused: Sequence[Path] = (),
) -> dict[str, object]:
    """Write the pack; return what sources.json records of it.

    Args:
        clones: Source -> git directory of its repository.
        out: The file to write.
        megabytes: Upper size; the AVIF quality follows from a sample. None packs JPEG of `quality`.
        quality: JPEG quality, colours not thinned.
        refused: Zips of pictures that must not be among the sources.

    Raises:
        ValueError: If a picture stands in one of `refused`.
    """
    forbidden = set().union(*(hashes_within(archive) for archive in refused)) if refused else set()
    entries: list[Entry] = []
    images: list[Image.Image] = []
    for source, facts in read_manifest().items():
        repository = Repository(clones[source], facts["commit"], [facts["folder"], *facts["words_from"]])
        for path, content, words in tqdm(
            READERS[source](repository, facts["folder"]), desc=source, file=sys.stderr, mininterval=5
        ):
            sha256 = hashlib.sha256(content).hexdigest()
            refuse_known(path, sha256, forbidden)
            for number, (image, (label, subject, style)) in enumerate(
                zip(pieces_of(content, len(words)), words, strict=True)
            ):
                name = f"{source}/{path}" + (f"#{number}" if len(words) > 1 else "")
                entries.append(Entry(name, source, label, subject, style, sha256, is_held_out(f"{source}/{path}")))
                images.append(shrink(image))
    kind, options = "jpg", {"format": "JPEG", "quality": quality, "subsampling": 0}
    if megabytes is not None:
        kind, options = "avif", choose_quality(images, megabytes * 1e6)
    half_done = out.with_name(out.name + ".part")
    with zipfile.ZipFile(half_done, "w", zipfile.ZIP_STORED) as archive:
        for number, image in enumerate(tqdm(images, desc="writing", file=sys.stderr, mininterval=5)):
            # A fixed date, so that packing twice gives the same bytes.
            archive.writestr(zipfile.ZipInfo(f"{number:06d}.{kind}"), encode(image, options))
        listing = json.dumps({"kind": kind, "entries": [asdict(entry) for entry in entries]})
        archive.writestr(zipfile.ZipInfo("listing.json"), listing, zipfile.ZIP_DEFLATED)
    os.replace(half_done, out)
    counts = {source: sum(entry.source == source for entry in entries) for source in read_manifest()}
    short = sorted({int(entry.sha256[:16], 16) for entry in entries})
    np.save(HASHES, np.array(short, np.uint64))
    return {
        "pictures": counts,
        "listing_sha256": digest(entries),
        "pack": {**options, "bytes": out.stat().st_size, "sha256": file_sha256(out)},
    }


def encode(image: Image.Image, options: dict[str, object]) -> bytes:
    """Return the picture as a file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def choose_quality(images: Sequence[Image.Image], limit: float) -> dict[str, object]:
    """Return the AVIF options whose size, by every 40th picture, stays below `limit` bytes less a tenth.

    At 60 MB, AVIF keeps quality 35 where WebP would be down to 15.

    Raises:
        ValueError: If no quality does.
    """
    sample = images[::40]
    for quality in range(90, 4, -5):
        options = {"format": "AVIF", "quality": quality, "speed": 8}
        if sum(len(encode(image, options)) for image in sample) * len(images) / len(sample) < 0.9 * limit:
            return options
    raise ValueError(f"{len(images)} pictures do not fit {limit / 1e6:.0f} MB at any quality")


def file_sha256(path: Path) -> str:
    """Return the hash of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class Pack:
    """An opened pack: its entries, and its pictures by number."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.archive = zipfile.ZipFile(path)
        listing = json.loads(self.archive.read("listing.json"))
        self.kind = listing["kind"]
        self.entries = [Entry(**fields) for fields in listing["entries"]]
        self.digest = digest(self.entries)

    def picture(self, number: int) -> np.ndarray:
        """Return one picture, uint8 RGB."""
        return np.asarray(Image.open(io.BytesIO(self.archive.read(f"{number:06d}.{self.kind}"))).convert("RGB"))
