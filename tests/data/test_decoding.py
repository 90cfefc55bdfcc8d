"""Images of every kind and source against Pillow's own reading, and what is refused in plain words."""

import io
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, features

from pipeline.data import colours
from pipeline.data.decoding import ImageError, image_size, open_image


def picture(width: int = 37, height: int = 23, seed: int = 0) -> np.ndarray:
    """Return smooth pixels, which JPEG keeps well."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (5 + k) + seed) * np.cos(y / (7 - k)) for k in range(3)]
    return ((np.stack(waves, axis=-1) + 1) * 127).astype(np.uint8)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


# What EXIF's orientations say, after its standard: where the stored rows and columns are to be seen.
SEEN = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored),
}


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "1", "I;16"])
@pytest.mark.parametrize("orientation", SEEN)
def test_orientations_are_those_of_a_viewer(orientation: int, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(colours, "STRIP_PIXELS", 100)  # several strips
    if mode == "I;16":
        stored = Image.fromarray(picture()[..., 0].astype(np.uint16) * 257)
    else:
        stored = Image.fromarray(picture()).convert(mode)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    content = encoded(stored, "PNG", exif=exif)
    seen = open_image(content)
    np.testing.assert_array_equal(seen, SEEN[orientation](open_image(encoded(stored, "PNG"))))
    assert seen.flags.c_contiguous
    with Image.open(io.BytesIO(content)) as theirs:
        before = theirs.copy()
        np.testing.assert_array_equal(open_image(theirs), seen)
        assert theirs.copy() == before  # the caller's own image stays as it is


def test_damaged_exif_data_turns_an_image_where_it_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    content = encoded(Image.fromarray(picture()), "PNG", exif=exif)

    def fail(*_: object) -> None:
        raise ValueError("damaged")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Exif, "tobytes", fail)  # it can be read, but not be written anew
        np.testing.assert_array_equal(open_image(content), SEEN[6](picture()))
    monkeypatch.setattr(Image.Image, "getexif", fail)
    for source in (content, Image.fromarray(picture())):
        np.testing.assert_array_equal(open_image(source), picture())


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM"])
def test_common_formats_are_read(form: str) -> None:
    if form == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    content = encoded(Image.fromarray(picture()), form)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    np.testing.assert_array_equal(open_image(content), expected)


def test_modes_end_as_eight_bit_rgb() -> None:
    pixels = picture()
    gray = Image.fromarray(pixels[..., 0])
    expected = np.repeat(pixels[..., :1], 3, axis=2)
    np.testing.assert_array_equal(open_image(encoded(gray, "PNG")), expected)
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    np.testing.assert_array_equal(open_image(encoded(deep, "PNG")), expected)
    np.testing.assert_array_equal(open_image(encoded(deep, "TIFF")), expected)
    clear = Image.fromarray(pixels).convert("RGBA")
    clear.putalpha(Image.fromarray(np.where(np.arange(37) < 9, 0, 255).astype(np.uint8)[None].repeat(23, 0)))
    shown = open_image(encoded(clear, "PNG"))
    assert (shown[:, :9] == 255).all()
    np.testing.assert_array_equal(shown[:, 9:], pixels[:, 9:])
    cmyk = encoded(Image.fromarray(pixels).convert("CMYK"), "TIFF")
    np.testing.assert_array_equal(open_image(cmyk), np.asarray(Image.open(io.BytesIO(cmyk)).convert("RGB")))
    frames = [Image.fromarray(picture(seed=seed)) for seed in range(3)]
    moving = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    np.testing.assert_array_equal(open_image(moving), picture())


def test_every_kind_of_source_gives_the_same_pixels(tmp_path: Path) -> None:
    pixels = picture()
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    sources = [path, str(path), path.read_bytes(), path.open("rb"), Image.open(path), pixels, pixels / np.float32(255),
               tensor, tensor / 255]  # fmt: skip
    for source in sources:
        found = open_image(source)
        assert (found.dtype, found.flags.c_contiguous) == (np.uint8, True)
        np.testing.assert_array_equal(found, pixels)
    sources[3].close()
    sources[4].close()
    np.testing.assert_array_equal(open_image(pixels[..., 0]), np.repeat(pixels[..., :1], 3, axis=2))
    np.testing.assert_array_equal(open_image(tensor[:1]), np.repeat(pixels[..., :1], 3, axis=2))


def test_what_is_no_image_is_told_in_plain_words(tmp_path: Path) -> None:
    whole = encoded(Image.fromarray(picture(200, 200)), "JPEG")
    claimed = b"\x89PNG\r\n\x1a\n"  # 900 million pixels, if one believes it
    for kind, data in ((b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)), (b"IDAT", b"")):
        claimed += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    for content, message in {
        b"": "is empty (0 bytes)",
        b"\n<!DOCTYPE html><html>": "is a web page saved under an image's name, not an image of pixels",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>": "is an SVG drawing",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n": "is a pointer of Git LFS in place of",
        b"just words": "is no image in a format that is read here",
        b"%!PS-Adobe-3.0 EPSF-3.0\n": "is a document, an archive or a film",  # Pillow would call Ghostscript
        b"\0\0\0\x18ftypheic\0\0\0\0": "is HEIC, which this Pillow does not read",
        whole[: len(whole) // 2]: "is cut off: image file is truncated",
        claimed: "may be a decompression bomb",
    }.items():
        with pytest.raises(ImageError, match=re.escape(message)):
            open_image(content)
        (tmp_path / "x.jpg").write_bytes(content)
        with pytest.raises(ImageError, match=re.escape(f"{tmp_path / 'x.jpg'}: {message}")) as error:
            open_image(tmp_path / "x.jpg")
        assert error.value.reason.startswith(message)


def test_paths_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    loop, dangling, pipe = tmp_path / "loop.png", tmp_path / "dangling.png", tmp_path / "pipe.png"
    loop.symlink_to(loop)
    dangling.symlink_to(tmp_path / "nothing")
    os.mkfifo(pipe)
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
    for path, message in {
        loop: "loop.png: is a link that leads in a circle",
        dangling: "dangling.png: is a link to nothing",
        pipe: "pipe.png: is no plain file",  # reading it would wait for ever
        tmp_path: "is a folder",
        odd: r"\xff.png: does not exist",
        Path("a\0b.png"): "is no path",
    }.items():
        with pytest.raises(ImageError, match=re.escape(message)):
            open_image(path)
        assert image_size(path) == (0, 0)


def test_limits_are_kept_before_anything_is_decoded() -> None:
    pixels = picture()
    content = encoded(Image.fromarray(pixels), "PNG")
    with pytest.raises(ImageError, match=f"has {len(content):,} bytes, and 10 are allowed"):
        open_image(content, max_bytes=10)
    with pytest.raises(ImageError, match="has 11 bytes, and 10 are allowed"):
        open_image(io.BytesIO(content), max_bytes=10)  # no more of a stream is read than shows the excess
    for source in (content, Image.fromarray(pixels), pixels):
        with pytest.raises(ImageError, match=re.escape("has 37 x 23 pixels, and 800 are allowed in all")):
            open_image(source, max_pixels=800)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((4, 5, 2), np.uint8), "an array has shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), and this one"),
        (torch.zeros(5, 4, 3), "a tensor has shape (1, H, W), (3, H, W) or (4, H, W), and this one (5, 4, 3)"),
        (np.full((20, 20), 2.0), "holds floats outside 0..1: give pixels before normalisation"),
        (np.zeros((20, 20), np.int64), "holds int64: give uint8, or floats in 0..1"),
    ],
)
def test_arrays_of_another_layout_are_refused(source: object, message: str) -> None:
    with pytest.raises(ImageError, match=re.escape(message)):
        open_image(source)
    with pytest.raises(TypeError, match="and this a int"):
        open_image(3)
