"""Side data that is damaged leaves pixels as they are; damaged pixels stay refused."""

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from pipeline.data.decoding import ImageError, image_size, open_image
from pipeline.data.mending import Pieces, view

Y, X = np.mgrid[:40, :50]
PIXELS = np.stack([X * 5, Y * 6, (X * Y) % 256], axis=2).astype(np.uint8)


def saved(form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, form, **options)
    return buffer.getvalue()


# PNG

SIDE = [
    (b"tEXt", b"a\0b"), (b"tEXt", b"\xff\xfe"), (b"tEXt", b"a" * 3_000_000), (b"zTXt", b"x\0\5zz"), (b"zTXt", b"x"),
    (b"zTXt", b"a\0\0" + zlib.compress(bytes(5_000_000))), (b"iTXt", b"x"), (b"iTXt", b"x\0\1\0\0\0zz"),
    (b"tIME", b""), (b"tIME", b"1234567"), (b"eXIf", b""), (b"eXIf", b"MM\0*\0\0\0\x08"), (b"eXIf", b"junk" * 9),
    (b"iCCP", b""), (b"iCCP", b"x"), (b"iCCP", b"x\0\1zz"), (b"iCCP", b"x\0\0zz"),
    (b"iCCP", b"x\0\0" + zlib.compress(b"x" * 200)), (b"iCCP", b"x\0\0" + zlib.compress(bytes(5_000_000))),
    (b"sRGB", b""), (b"gAMA", b""), (b"pHYs", b"1"), (b"cHRM", b"1"), (b"bKGD", b""), (b"hIST", b"1"), (b"sPLT", b""),
    (b"acTL", b""), (b"fcTL", b""), (b"fdAT", b""), (b"caBX", b"x"), (b"teXt", b""), (b"vpAg", b"123"),
]  # fmt: skip


def chunk(kind: bytes, data: bytes, flip: int = 0) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ flip)


@pytest.mark.parametrize(("kind", "data"), SIDE, ids=lambda part: str(part[:12]))
def test_a_png_is_read_past_its_side_chunks(kind: bytes, data: bytes) -> None:
    content = saved("PNG")
    for flip in (0, 1):
        for place in (33, len(content) - 12):  # after the header, and before the end
            found = open_image(content[:place] + chunk(kind, data, flip) + content[place:])
            np.testing.assert_array_equal(found, PIXELS)


def test_chunks_that_make_pixels_stay_strict() -> None:
    content, place = saved("PNG"), 8
    while place < len(content) - 12:
        size, kind = struct.unpack(">I4s", content[place : place + 8])
        for at in (place + 8 + size, place + 8 + size // 2, place + 8 + size - 1):
            bad = bytearray(content)
            bad[at] ^= 1
            with pytest.raises(ImageError, match=f"^is damaged: the checksum of its '{kind.decode()}' chunk is wrong$"):
                open_image(bytes(bad))
        place += 12 + size
    few = Image.fromarray(PIXELS).quantize(16)
    buffer = io.BytesIO()
    few.save(buffer, "PNG", transparency=3)
    for kind in (b"PLTE", b"tRNS"):
        bad = bytearray(buffer.getvalue())
        bad[bad.index(kind) + 5] ^= 1
        with pytest.raises(ImageError, match=f"the checksum of its '{kind.decode()}' chunk is wrong"):
            open_image(bytes(bad))


def test_orientation_is_kept_where_another_chunk_is_bad() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = saved("PNG", exif=exif)
    for bad in (chunk(b"sRGB", b""), chunk(b"tIME", b"1", 1)):
        np.testing.assert_array_equal(open_image(turned[:33] + bad + turned[33:]), np.rot90(PIXELS, -1))


def test_a_cut_png_is_told_as_cut(tmp_path: Path) -> None:
    content = saved("PNG")
    with pytest.raises(ImageError, match="is cut off: "):
        open_image(content[: len(content) // 2])
    (tmp_path / "a.png").write_bytes(content[:33] + chunk(b"tEXt", b"a\0b", 1) + content[33:])
    assert image_size(tmp_path / "a.png") == (50, 40)
    np.testing.assert_array_equal(open_image(tmp_path / "a.png"), PIXELS)


# JPEG

PAYLOADS = [
    b"", b"\0", b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0" + b"\xff" * 50, b"ICC_PROFILE\0",
    b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x09\0\xff\xff\xff\xff" * 3, b"ICC_PROFILE\0\1",
    b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="9"', b"http://ns.adobe.com/xap/1.0/\0\xff\xfe\0<<",
    b"ICC_PROFILE\0\1\1", b"ICC_PROFILE\0\1\1" + b"x" * 300, b"ICC_PROFILE\0\2\1xx", b"ICC_PROFILE\0\1\0xx", b"MPF\0",
    b"MPF\0MM\0*\0\0\0\x08\xff\xff", b"MPF\0II*\0\x08\0\0\0\1\0\x02\xb0\x07\0\x10\0\0\0\0\0\0\0", b"Photoshop 3.0\0",
    b"Photoshop 3.0\0008BIM", b"Photoshop 3.0\0008BIM\x03\xed\xff\0\xff\xff\xff\xff", b"Adobe", b"Adobe\0d", b"JFIF\0",
    b"JFIF\0\1", b"AVI1", b"FPXR\0", b"x" * 60_000,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("marker", [0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE, 0xE5])
def test_a_jpeg_is_read_past_its_side_segments(marker: int) -> None:
    content = saved("JPEG")
    expected = open_image(content)
    for payload in PAYLOADS:
        segment = bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload
        for place in (2, 20):
            np.testing.assert_array_equal(open_image(content[:place] + segment + content[place:]), expected)


@pytest.mark.parametrize(
    ("options", "misses_no_pixel"),
    [({}, (1, 2)), ({"restart_marker_blocks": 2}, ()), ({"progressive": True}, ())],
    ids=["one run", "restarts", "progressive"],
)
def test_a_jpeg_may_lack_its_end_marker_and_no_pixel(options: dict[str, object], misses_no_pixel: tuple[int]) -> None:
    content = saved("JPEG", quality=40, **options)
    expected = open_image(content)
    assert content.endswith(b"\xff\xd9")
    for missing in range(1, len(content) - content.index(b"\xff\xda") - 20):
        cut = content[:-missing]
        if missing in misses_no_pixel:
            np.testing.assert_array_equal(open_image(cut), expected)
        else:
            with pytest.raises(ImageError, match="is cut off: "):
                open_image(cut)
    broken = content[:2] + b"\xff\xe1\0\x0aExif\0\0MM" + content[2:-2]  # side data is bad as well
    if misses_no_pixel:
        np.testing.assert_array_equal(open_image(broken), expected)


# WebP


def parts(content: bytes) -> list[tuple[bytes, bytes]]:
    found, place = [], 12
    while place < len(content):
        kind, size = struct.unpack("<4sI", content[place : place + 8])
        found.append((kind, content[place + 8 : place + 8 + size]))
        place += 8 + size + size % 2
    return found


def joined(chunks: list[tuple[bytes, bytes]]) -> bytes:
    body = b"WEBP" + b"".join(k + struct.pack("<I", len(d)) + d + bytes(len(d) % 2) for k, d in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webps() -> Iterator[bytes]:
    whole = saved("WEBP", lossless=True, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0", xmp=b"<x/>", icc_profile=b"x" * 400)
    chunks = parts(whole)
    assert joined(chunks) == whole
    for number, (kind, data) in enumerate(chunks):
        if kind in (b"EXIF", b"XMP ", b"ICCP"):
            for other in (b"", b"x", b"\xff" * 41, data[: len(data) // 2]):
                yield joined([*chunks[:number], (kind, other), *chunks[number + 1 :]])
            yield joined([*chunks[:number], *chunks[number + 1 :]])
            if kind != b"ICCP":  # which stands before the pixels
                place = whole.index(kind, 30)
                for size in (len(data) + 1000, 2**32 - 1):
                    yield whole[: place + 4] + struct.pack("<I", size) + whole[place + 8 :]
                yield whole[: place + 12]
    for flags in range(0, 256, 4):
        yield joined([(b"VP8X", bytes([flags]) + chunks[0][1][1:]), *chunks[1:]])
    plain = saved("WEBP", lossless=True)
    yield joined([*parts(plain), (b"EXIF", b"zz")])
    yield plain + b"junk"
    yield plain + b"EXIF\xff\xff\xff\xff"


def test_a_webp_is_read_past_its_side_chunks() -> None:
    for content in webps():
        np.testing.assert_array_equal(open_image(content), PIXELS)


# TIFF


def with_tag(content: bytes, order: str, tag: int, kind: int, count: int, value: int) -> bytes:
    """Return an uncompressed TIFF with one more entry in its directory, which moves to the end."""
    (place,) = struct.unpack_from(order + "I", content, 4)
    (number,) = struct.unpack_from(order + "H", content, place)
    entries = {struct.unpack_from(order + "H", content, place + 2 + 12 * k)[0]: k for k in range(number)}
    whole = {key: content[place + 2 + 12 * k : place + 14 + 12 * k] for key, k in entries.items()}
    whole[tag] = struct.pack(order + "HHII", tag, kind, count, value)
    directory = struct.pack(order + "H", len(whole)) + b"".join(whole[key] for key in sorted(whole)) + bytes(4)
    return content[:4] + struct.pack(order + "I", len(content)) + content[8:] + directory


TAGS = (270, 274, 282, 296, 305, 306, 315, 700, 33723, 34377, 34665, 34675, 34853, 37724, 40965, 50341, 65000)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("order", "<>")
def test_a_tiff_is_read_past_its_side_tags(order: str, tag: int) -> None:
    content = saved("TIFF")
    if order == ">":
        buffer = io.BytesIO()
        Image.frombytes("I;16B", (50, 40), PIXELS[..., 0].astype(">u2").tobytes()).save(buffer, "TIFF")
        content = buffer.getvalue()
        assert content.startswith(b"MM")
    expected = open_image(content)
    for kind in (0, 1, 2, 3, 4, 7, 9, 11, 12, 13, 99):
        for count in (0, 1, 2, 1000, 2**32 - 1):
            for value in (0, 1, 2**32 - 16):
                np.testing.assert_array_equal(open_image(with_tag(content, order, tag, kind, count, value)), expected)


def test_pieces_are_one_file() -> None:
    pieces = io.BufferedReader(Pieces(io.BytesIO(b"0123456789"), [b"ab", (3, 4), b"", (0, 2), b"c"]))
    assert pieces.read() == b"ab345601c"
    pieces.seek(-4, io.SEEK_END)
    assert pieces.read(2) == b"60"
    pieces.seek(1)
    assert (pieces.read(3), pieces.tell(), pieces.read(1), pieces.seek(99), pieces.read(5)) == (
        b"b34",
        4,
        b"5",
        99,
        b"",
    )


def test_a_whole_file_is_handed_on_as_it_is() -> None:
    for form in ("PNG", "JPEG", "TIFF"):
        stream = io.BytesIO(saved(form))
        assert view(stream) is stream
        assert stream.tell() == 0
