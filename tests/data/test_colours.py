"""Pixels of every mode, depth and colour space against values worked by hand, or by littleCMS itself."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from pipeline.data import colours
from pipeline.data.decoding import ImageError, open_image, opened

GREY = np.linspace(0, 255, 40 * 50).round().astype(np.uint8).reshape(40, 50)
COLOURS = np.stack([GREY, GREY[::-1], np.roll(GREY, 9, 1)], axis=2)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def tiff(values: np.ndarray, *, photometric: int = 1, sample: int | None = None, order: str = "<") -> bytes:
    """Return an uncompressed grey TIFF of any depth, as cameras and microscopes write them."""
    height, width = values.shape
    if sample is None:
        sample = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    tags = [(256, 3, width), (257, 3, height), (258, 3, 8 * values.dtype.itemsize), (259, 3, 1), (262, 3, photometric),
            (273, 4, 8), (277, 3, 1), (278, 3, height), (279, 4, len(data)), (339, 3, sample)]  # fmt: skip
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(data))
    directory = struct.pack(order + "H", len(tags))
    for tag, kind, value in tags:
        directory += struct.pack(order + "HHI", tag, kind, 1) + struct.pack(order + "HI"[kind // 4 :][0], value).ljust(
            4, b"\0"
        )
    return head + data + directory + bytes(4)


def spread(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


@pytest.mark.parametrize(
    ("content", "off"),
    [
        (tiff(GREY.astype(np.uint32) * 16843009), 0),  # all of 32 bits, which Pillow takes for signed values
        (tiff(GREY.astype(np.int32) * 8421504), 0),
        (tiff(GREY.astype(np.uint32) * 257), 0),
        (tiff(GREY.astype(np.uint32) * 16), 1),
        (tiff(GREY.astype(np.uint32)), 0),
        (tiff(GREY.astype(np.int32) * 257, order=">"), 0),
        (tiff(GREY.astype(np.uint16) * 257), 0),
        (tiff(GREY.astype(np.uint16) * 257, order=">"), 0),
        (tiff(65535 - GREY.astype(np.uint16) * 257, photometric=0), 0),  # counts from white down
        (tiff(GREY.astype(np.int16) * 128), 1),
        (tiff(GREY / np.float32(255)), 0),
        (tiff(GREY / np.float32(255), order=">"), 0),
        (tiff(1 - GREY / np.float32(255), photometric=0), 0),
        (encoded(Image.fromarray(GREY.astype(np.uint16) * 257), "PPM"), 0),
        (encoded(Image.fromarray(GREY.astype(np.uint16) * 257), "PNG"), 0),
        (encoded(Image.fromarray(GREY.astype(np.uint16) * 257), "JPEG2000"), 0),
    ],
)
def test_deep_greys_keep_their_range(content: bytes, off: int) -> None:
    found = open_image(content).astype(int)
    assert np.abs(found - spread(GREY)).max() <= off


def test_a_dark_deep_picture_stays_dark_and_a_black_one_black() -> None:
    dark = open_image(tiff(GREY.astype(np.uint32) * 100))  # up to 25,500: 16 bits
    np.testing.assert_array_equal(dark, spread((GREY * (25500 / 65535)).round().astype(np.uint8)))
    assert not open_image(tiff(np.zeros((20, 20), np.uint32))).any()
    assert not open_image(tiff(np.zeros((20, 20), np.float32))).any()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tiff(GREY.astype(np.float32)), "holds floats from 0 to 255: give floats in 0..1, or 8 or 16 bits a channel"),
        (tiff(GREY / np.float32(-255)), "holds floats from -1 to -0"),
        (tiff(np.full((20, 20), np.nan, np.float32)), "holds floats from nan to nan"),
        (tiff(np.where(GREY == 9, np.float32(np.nan), np.float32(0.5))), "holds floats"),
        (tiff(np.where(GREY == 9, np.float32(np.inf), np.float32(0.5))), "holds floats from 0.5 to inf"),
        (tiff((GREY > 99).astype(np.uint32)), "holds integers from 0 to 1, of which nobody knows what is white"),
        (tiff(GREY.astype(np.int32) - 9), "holds integers from -9 to 246, of which nobody knows what is white"),
    ],
)
def test_values_without_a_white_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=f"^{re.escape(message)}"):
        open_image(content)


def test_overshoot_of_half_a_step_is_rounding() -> None:
    assert open_image(tiff(np.full((20, 20), 1.001, np.float32))).min() == 255


def lab(image: Image.Image) -> Image.Image:
    return ImageCms.applyTransform(
        image, ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    )


@pytest.mark.parametrize("mode", ["HSV", "YCbCr", "CMYK", "LAB", "RGBX", "RGBa"])
def test_other_spaces_come_back_as_rgb(mode: str) -> None:
    image = Image.fromarray(COLOURS)
    if mode == "RGBa":
        image = image.convert("RGBA")
    image = lab(image) if mode == "LAB" else image.convert(mode)
    found = open_image(image).astype(int)
    assert np.abs(found - COLOURS).mean() < 2
    assert np.abs(found - COLOURS).max() <= {"LAB": 30, "HSV": 9, "YCbCr": 3}.get(mode, 1)  # LAB of 8 bits is coarse
    if mode in ("LAB", "CMYK", "YCbCr"):
        np.testing.assert_array_equal(open_image(encoded(image, "TIFF")), found)


def test_transparency_of_every_kind_stands_on_white() -> None:
    half = np.where(np.arange(50) < 25, 0, 255).astype(np.uint8)[None].repeat(40, 0)
    for image in (
        Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(half)]),
        Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(half)]).convert("La"),
        Image.fromarray(np.dstack([COLOURS, half])).convert("RGBa"),
    ):
        found = open_image(image)
        assert (found[:, :25] == 255).all()
        assert (
            np.abs(
                found[:, 25:].astype(int) - np.asarray(image.convert(image.mode.upper()).convert("RGB"))[:, 25:]
            ).max()
            == 0
        )
    palette = Image.fromarray(COLOURS).quantize(16)
    palette.info["transparency"] = 3
    found = open_image(encoded(palette, "PNG"))
    assert (found[np.asarray(palette) == 3] == 255).all()
    np.testing.assert_array_equal(
        found[np.asarray(palette) != 3], np.asarray(palette.convert("RGB"))[np.asarray(palette) != 3]
    )


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def deep_png(values: np.ndarray, clear: bytes = b"", extra: bytes = b"") -> bytes:
    """Return a PNG of 16 bits a channel, which Pillow does not write."""
    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = chunk(b"IHDR", header) + extra + (chunk(b"tRNS", clear) if clear else b"")
    return b"\x89PNG\r\n\x1a\n" + parts + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_sixteen_bits_of_colour_keep_their_upper_half() -> None:
    deep = COLOURS.astype(np.uint16) * 257
    np.testing.assert_array_equal(open_image(deep_png(deep)), COLOURS)
    opaque = np.full_like(deep[..., :1], 65535)
    np.testing.assert_array_equal(open_image(deep_png(np.dstack([deep, opaque]))), COLOURS)
    np.testing.assert_array_equal(open_image(deep_png(np.dstack([deep[..., :1], opaque]))), spread(GREY))
    found = open_image(deep_png(deep[..., :1], clear=struct.pack(">H", 100 * 257)))
    np.testing.assert_array_equal(found, spread(np.where(GREY == 100, 255, GREY)))


# Profiles


def curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)


def profile(space: bytes = b"RGB ", gamma: float = 2.2, primaries: np.ndarray | None = None) -> bytes:
    """Return a matrix or grey profile, made by hand after ICC.1:2001."""
    fixed = lambda values: struct.pack(">3i", *(round(value * 65536) for value in values))  # noqa: E731
    xyz = lambda values: b"XYZ " + bytes(4) + fixed(values)  # noqa: E731
    text = b"Made by hand"
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(text) + 1) + text + bytes(1 + 4 + 4 + 2 + 1 + 67),
        b"wtpt": xyz((0.9642, 1, 0.8249)),
    }
    if space == b"GRAY":
        tags[b"kTRC"] = curve(gamma)
    else:  # of Adobe RGB (1998), adapted to D50
        matrix = [[0.60974, 0.31111, 0.01947], [0.20528, 0.62567, 0.06087], [0.14919, 0.06322, 0.74457]]
        for name, values in zip(b"rgb", matrix if primaries is None else primaries, strict=True):
            tags[bytes([name]) + b"XYZ"], tags[bytes([name]) + b"TRC"] = xyz(values), curve(gamma)
    table, data, place = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", place + len(data), len(content))
        data += content
    body = struct.pack(">I", len(tags)) + table + data
    head = struct.pack(">I4sI4s4s4s", 128 + len(body), bytes(4), 0x02100000, b"mntr", space, b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + fixed((0.9642, 1, 0.8249))
    return head.ljust(128, b"\0") + body


ADOBE = profile(gamma=563 / 256)


def srgb_curve(linear: np.ndarray) -> np.ndarray:
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def test_a_wide_gamut_is_converted_as_by_hand() -> None:
    to_xyz = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
    from_xyz = np.array(
        [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540], [0.0719453, -0.2289914, 1.4052427]]
    )  # sRGB, D50; fmt: skip
    linear = (COLOURS / 255) ** (563 / 256) @ to_xyz.T @ from_xyz.T
    expected = 255 * srgb_curve(linear.clip(0, 1))
    found = opened(encoded(Image.fromarray(COLOURS), "PNG", icc_profile=ADOBE))
    assert found.profile == "Made by hand"
    assert np.abs(found.pixels - expected).max() < 3
    assert np.abs(found.pixels.astype(int) - COLOURS).mean() > 5


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_profiles_are_read_in_every_format(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(COLOURS)
    found = opened(encoded(image, form, icc_profile=ADOBE))
    plain = Image.open(io.BytesIO(encoded(image, form))).convert("RGB")
    made = ImageCms.profileToProfile(
        plain, io.BytesIO(ADOBE), ImageCms.createProfile("sRGB"), renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC
    )
    np.testing.assert_array_equal(found.pixels, np.asarray(made))
    monkeypatch.setattr(colours, "STRIP_PIXELS", 100)
    np.testing.assert_array_equal(opened(encoded(image, form, icc_profile=ADOBE)).pixels, found.pixels)


def test_the_srgb_profile_changes_no_bit() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    found = opened(encoded(Image.fromarray(COLOURS), "PNG", icc_profile=srgb))
    assert found.profile is None
    np.testing.assert_array_equal(found.pixels, COLOURS)
    matrix = [[0.43607, 0.22249, 0.01392], [0.38515, 0.71687, 0.09708], [0.14307, 0.06061, 0.71410]]
    wide = opened(encoded(Image.fromarray(COLOURS), "PNG", icc_profile=profile(gamma=1.0, primaries=np.array(matrix))))
    assert np.abs(wide.pixels - 255 * srgb_curve(COLOURS / 255)).max() < 1.5  # linear light, primaries of sRGB


def test_grey_profiles_and_depths_and_alpha_go_together() -> None:
    linear = profile(b"GRAY", gamma=1.0)
    expected = spread(255 * srgb_curve(GREY / 255))
    half = np.where(np.arange(50) < 25, 0, 255).astype(np.uint8)[None].repeat(40, 0)
    icc = chunk(b"iCCP", b"x\0\0" + zlib.compress(linear))
    deep = GREY[..., None].astype(np.uint16) * 257
    for content in (
        encoded(Image.fromarray(GREY), "PNG", icc_profile=linear),
        encoded(Image.fromarray(GREY), "JPEG", icc_profile=linear, quality=100),
        deep_png(deep, extra=icc),
        deep_png(np.dstack([deep, np.full_like(deep, 65535)]), extra=icc),
    ):
        found = opened(content)
        assert found.profile == "Made by hand"
        assert np.abs(found.pixels - expected).max() < (12 if content[:2] == b"\xff\xd8" else 1.5)
    clear = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(half)])
    found = open_image(encoded(clear, "PNG", icc_profile=linear))
    assert (found[:, :25] == 255).all()
    assert np.abs(found[:, 25:] - expected[:, 25:]).max() < 1.5
    clear = Image.fromarray(np.dstack([COLOURS, half]))
    found = open_image(encoded(clear, "PNG", icc_profile=ADOBE))
    assert (found[:, :25] == 255).all()
    plain = open_image(encoded(Image.fromarray(COLOURS), "PNG", icc_profile=ADOBE))
    np.testing.assert_array_equal(found[:, 25:], plain[:, 25:])
    grey = opened(encoded(Image.fromarray(GREY), "PNG", icc_profile=ADOBE))  # a curve that grey pixels have as well
    assert grey.profile is None or np.abs(grey.pixels.astype(int) - spread(GREY)).max() <= 10
    few = Image.fromarray(COLOURS).quantize(200)
    found = open_image(encoded(few, "PNG", icc_profile=ADOBE))
    np.testing.assert_array_equal(found, open_image(encoded(few.convert("RGB"), "PNG", icc_profile=ADOBE)))


@pytest.mark.parametrize(
    "broken",
    [
        b"", b"x" * 500, ADOBE[:200], ADOBE[:128] + bytes(len(ADOBE) - 128), ADOBE.replace(b"mntr", b"link"),
        ADOBE.replace(b"RGB ", b"CMYK"), ADOBE.replace(b"RGB ", b"3CLR"), profile(b"GRAY"), profile(gamma=0),
        profile(primaries=np.zeros((3, 3))), profile(primaries=np.full((3, 3), 30000.0)),
        ADOBE.replace(b"acsp", b"acsq"),
    ],
)  # fmt: skip
def test_a_broken_profile_counts_as_absent(broken: bytes) -> None:
    plain = Image.fromarray(COLOURS)
    for form in ("PNG", "JPEG", "WEBP", "TIFF"):
        found = opened(encoded(plain, form, icc_profile=broken))
        assert found.profile is None
        np.testing.assert_array_equal(found.pixels, open_image(encoded(plain, form)))


def test_cmyk_with_and_without_adobes_marker() -> None:
    inks = Image.fromarray(COLOURS).convert("CMYK")
    with_marker = encoded(inks, "JPEG", quality=100)
    assert b"Adobe" in with_marker
    place = with_marker.index(b"\xff\xee")
    length = struct.unpack(">H", with_marker[place + 2 : place + 4])[0]
    bare = with_marker[:place] + with_marker[place + 2 + length :]
    assert np.abs(open_image(with_marker).astype(int) - COLOURS).max() < 12
    np.testing.assert_array_equal(open_image(bare), np.asarray(Image.open(io.BytesIO(bare)).convert("RGB")))
    assert 20 < open_image(bare).mean() < 235
