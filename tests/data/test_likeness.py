"""One picture in several files, and pictures that are not one."""

import io
import zipfile
from pathlib import Path

import imagehash
import numpy as np
import pandas as pd
import pytest
from made_images import plain, saved, waves
from PIL import Image

from pipeline.data.decoding import ImageError
from pipeline.data.likeness import BITS, NEAR, Fingerprint, distances, fingerprint


def printed(folder: Path, content: bytes) -> Fingerprint:
    path = folder / "image"
    path.write_bytes(content)
    return fingerprint(path)


def apart(one: Fingerprint, other: Fingerprint) -> int:
    return int(distances(one.look, other.look[None])[0])


def changed(image: Image.Image) -> dict[str, bytes]:
    """Return an image's file as people pass it on: packed anew, shrunk, enlarged."""
    half, twice = image.resize([side // 2 for side in image.size]), image.resize([side * 2 for side in image.size])
    return {
        "jpeg 90": saved(image, "JPEG", quality=90),
        "jpeg 50": saved(image, "JPEG", quality=50),
        "webp 50": saved(image, "WEBP", quality=50),
        "half": saved(half),
        "half jpeg 50": saved(half, "JPEG", quality=50),
        "twice": saved(twice),
    }


def test_bytes_and_pixels_are_told_apart(tmp_path: Path) -> None:
    image = waves(1)
    one, packed = printed(tmp_path, saved(image)), printed(tmp_path, saved(image, compress_level=0))
    assert one.content != packed.content
    assert one.pixels == packed.pixels
    assert printed(tmp_path, saved(image)).content == one.content
    turned = printed(tmp_path, saved(image.rotate(90)))
    assert turned.pixels != one.pixels
    assert printed(tmp_path, saved(image.convert("L").convert("RGB"))).pixels != one.pixels


def test_the_shape_counts_where_bytes_are_equal(tmp_path: Path) -> None:
    grey = np.full((20, 30, 3), 7, np.uint8)
    wide, tall = (printed(tmp_path, saved(Image.fromarray(pixels))) for pixels in (grey, grey.reshape(30, 20, 3)))
    assert wide.pixels != tall.pixels


def test_distances_are_those_of_the_library(tmp_path: Path) -> None:
    images = [waves(seed) for seed in range(5)]
    hashes = [imagehash.phash(image, hash_size=16) for image in images]
    prints = [printed(tmp_path, saved(image)) for image in images]
    looks = np.stack([each.look for each in prints])
    assert looks.shape == (5, BITS // 64)
    for mine, expected in zip(looks, hashes, strict=True):
        assert distances(mine, looks).tolist() == [expected - other for other in hashes]


@pytest.mark.parametrize("seed", range(4))
def test_what_files_do_to_a_picture_keeps_its_look(tmp_path: Path, seed: int) -> None:
    original = printed(tmp_path, saved(waves(seed)))
    for name, content in changed(waves(seed)).items():
        assert apart(original, printed(tmp_path, content)) <= NEAR, name
    for other in range(4, 9):
        assert apart(original, printed(tmp_path, saved(waves(other)))) > NEAR


def test_flat_images_have_no_look(tmp_path: Path) -> None:
    black, white = (printed(tmp_path, saved(Image.new("RGB", (32, 32), colour))) for colour in ("black", "white"))
    assert (black.look, white.look) == (None, None)
    assert black.pixels != white.pixels
    assert printed(tmp_path, saved(plain())).look is not None


def test_what_is_no_image_says_so(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="is empty"):
        printed(tmp_path, b"")
    with pytest.raises(FileNotFoundError):
        fingerprint(tmp_path / "none.png")


@pytest.mark.slow
def test_real_images_of_one_prompt_are_not_one_and_their_copies_are(agiqa_data: Path, tmp_path: Path) -> None:
    """Ten prompts of AGIQA-3K with every image of theirs, by all six generators."""
    with zipfile.ZipFile(agiqa_data / "agiqa3k" / "AGIQA-3K.zip") as archive:
        table = pd.read_csv(io.BytesIO(archive.read("data.csv")))
        chosen = table[table["prompt"].isin(table["prompt"].unique()[::30])]
        prints = {name: printed(tmp_path, archive.read(f"img/{name}")) for name in chosen["name"]}
        firsts = [Image.open(io.BytesIO(archive.read(f"img/{name}"))).convert("RGB") for name in chosen["name"][::8]]
    assert len(prints) > 90
    for _, group in chosen.groupby("prompt"):
        looks = np.stack([prints[name].look for name in group["name"]])
        between = np.stack([distances(look, looks) for look in looks])[~np.eye(len(group), dtype=bool)]
        assert between.min() > 2 * NEAR
    for name, image in zip(chosen["name"][::8], firsts, strict=True):
        for change, content in changed(image).items():
            assert apart(prints[name], printed(tmp_path, content)) <= NEAR, (name, change)
