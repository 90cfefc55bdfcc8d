"""The parts of an image file that make its pixels, apart from what lies beside them: text, times, EXIF, XMP, profiles.

Programs write side data that is damaged, or not as its standard says, around pixels that are whole. Decoders refuse
such a file, or stumble over it; here it is handed on without what they stumble over. What makes pixels stays strict: a
PNG's own checksums are compared, also where Pillow does not.

Sources: PNG, third edition (W3C, 2025); ITU-T T.81, annex B; TIFF 6.0; RFC 9649 (WebP).
"""

import hashlib
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import IO, NamedTuple

_PNG = b"\x89PNG\r\n\x1a\n"
_BLOCK = 1 << 20
_MOST_ENTRIES = 4096  # of a TIFF's directory


class _Chunk(NamedTuple):
    kind: bytes
    start: int  # of its length
    size: int  # of its data
    whole: bool  # all of it is there, with the right checksum


class Pieces(io.RawIOBase):
    """A read-only file made of parts of another one and of bytes of one's own, without a copy."""

    def __init__(self, stream: IO[bytes], pieces: list[bytes | tuple[int, int]]) -> None:
        """Join the pieces: bytes as they are, and (start, length) of `stream`."""
        self._stream, self._pieces, self._place = stream, [], 0
        end = 0
        for piece in pieces:
            size = len(piece) if isinstance(piece, bytes) else piece[1]
            self._pieces.append((end, size, piece))
            end += size
        self._end, self._at = end, 0

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def seekable(self) -> bool:
        """Say that any place can be read."""
        return True

    def tell(self) -> int:
        """Return the place that is read next."""
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place, as files do."""
        self._place = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._end}[whence])
        return self._place

    def readinto(self, buffer: memoryview) -> int:
        """Read on from where the last call ended."""
        if self._place >= self._end:
            return 0
        if not self._pieces[self._at][0] <= self._place:
            self._at = 0
        while self._place >= self._pieces[self._at][0] + self._pieces[self._at][1]:
            self._at += 1
        start, size, piece = self._pieces[self._at]
        inside = self._place - start
        count = min(len(buffer), size - inside)
        if isinstance(piece, bytes):
            content = piece[inside : inside + count]
        else:
            self._stream.seek(piece[0] + inside)
            content = self._stream.read(count)
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)


def view(stream: IO[bytes]) -> IO[bytes]:
    """Return an image file without the side chunks whose checksum is wrong: the file itself but for such a PNG.

    Raises:
        ValueError: If the checksum of a chunk that makes pixels is wrong.
    """
    stream.seek(0)
    if stream.read(8) != _PNG:
        stream.seek(0)
        return stream
    chunks = list(_png_chunks(stream))
    for chunk in chunks:
        if _makes_pixels(chunk.kind) and not chunk.whole and chunk is not chunks[-1]:
            raise ValueError(f"the checksum of its {chunk.kind.decode('latin-1')!a} chunk is wrong")
    if all(chunk.whole for chunk in chunks[:-1]):
        stream.seek(0)
        return stream
    return _png_of(stream, [chunk for chunk in chunks if _makes_pixels(chunk.kind) or chunk.whole])


def without_side_data(stream: IO[bytes]) -> IO[bytes] | None:
    """Return an image file that has of its side data only what can be read; None if it holds none to leave out."""
    stream.seek(0)
    start = stream.read(12)
    pick: Callable[[IO[bytes]], IO[bytes] | None] | None = None
    if start.startswith(_PNG):
        pick = _png_pixels
    elif start.startswith(b"\xff\xd8"):
        pick = _jpeg_pixels
    elif start.startswith(b"RIFF") and start[8:] == b"WEBP":
        pick = _webp_pixels
    elif start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        pick = _tiff_pixels
    try:
        return pick(stream) if pick else None
    except (struct.error, IndexError):  # it ends where more should be
        return None


# PNG


def _png_chunks(stream: IO[bytes]) -> Iterator[_Chunk]:
    """Yield a PNG's chunks to the last; of those that are cut off, the first."""
    place = 8
    while True:
        stream.seek(place)
        head = stream.read(8)
        if len(head) < 8:
            return
        size, kind = int.from_bytes(head[:4]), head[4:]
        checksum, left = zlib.crc32(kind), size
        while left and (block := stream.read(min(left, _BLOCK))):
            checksum, left = zlib.crc32(block, checksum), left - len(block)
        found = stream.read(4)
        yield _Chunk(kind, place, size, not left and found == checksum.to_bytes(4))
        if left or len(found) < 4 or kind == b"IEND":
            return
        place += 12 + size


def _makes_pixels(kind: bytes) -> bool:
    """Tell whether a chunk is critical (its name begins with a capital), or tells which pixels are transparent."""
    return not kind[0] & 0x20 or kind == b"tRNS"


def _png_of(stream: IO[bytes], chunks: list[_Chunk]) -> IO[bytes]:
    return io.BufferedReader(Pieces(stream, [_PNG, *((chunk.start, 12 + chunk.size) for chunk in chunks)]))


def _png_pixels(stream: IO[bytes]) -> IO[bytes] | None:
    chunks = list(_png_chunks(stream))
    kept = [chunk for chunk in chunks if _makes_pixels(chunk.kind) or _is_sound(stream, chunk)]
    return _png_of(stream, kept) if len(kept) < len(chunks) else None


def _is_sound(stream: IO[bytes], chunk: _Chunk) -> bool:
    """Tell whether a side chunk is EXIF data or a profile that Pillow can unpack."""
    if not chunk.whole or chunk.kind not in (b"eXIf", b"iCCP") or chunk.size > _BLOCK:
        return False
    stream.seek(chunk.start + 8)
    data = stream.read(chunk.size)
    if chunk.kind == b"eXIf":
        return data[:4] in (b"II*\0", b"MM\0*")
    name, _, rest = data.partition(b"\0")
    if not 0 < len(name) < 80 or rest[:1] != b"\0":
        return False
    unpacking = zlib.decompressobj()
    try:
        unpacking.decompress(rest[1:], _BLOCK)
    except zlib.error:
        return False
    return unpacking.eof


# JPEG

_JPEG_SCAN, _JPEG_RESTARTS = 0xDA, 0xDD  # markers of pixels, and of the interval at which decoding begins anew in them
_ENDS = 8  # of a kind; of 33,000 small files, cut at every byte, none with a missing pixel passed
# Segments whose content counts, by marker and beginning, and their shortest length.
_JPEG_SIDE = {(0xE0, b"JFIF\0"): 14, (0xE1, b"Exif\0"): 14, (0xE2, b"ICC_P"): 14, (0xEE, b"Adobe"): 12}


def _jpeg_segments(stream: IO[bytes]) -> Iterator[tuple[int, int, int]]:
    """Yield marker, place and length of a JPEG's segments, the last of which is all that follows its first pixels."""
    place, end = 2, stream.seek(0, io.SEEK_END)
    while True:
        stream.seek(place)
        head = stream.read(4)
        if head[0] != 0xFF:
            return
        if head[1] == 0xFF:  # a fill byte
            place += 1
            continue
        if head[1] == _JPEG_SCAN:
            yield head[1], place, end - place
            return
        size = 2 if head[1] == 0x01 or 0xD0 <= head[1] <= 0xD9 else 2 + int.from_bytes(head[2:])
        yield head[1], place, size
        place += size


def _jpeg_pixels(stream: IO[bytes]) -> IO[bytes] | None:
    kept: list[bytes | tuple[int, int]] = [(0, 2)]
    dropped = False
    for marker, place, size in _jpeg_segments(stream):
        is_sound = True
        if 0xE0 <= marker <= 0xEF or marker == 0xFE:
            stream.seek(place + 4)
            content = stream.read(max(0, min(size - 4, 14)))
            is_sound = len(content) >= _JPEG_SIDE.get((marker, content[:5]), 15)
        if is_sound:
            kept.append((place, size))
        dropped |= not is_sound
        if marker == _JPEG_SCAN:
            return io.BufferedReader(Pieces(stream, kept)) if dropped else None
    return None


def ended(stream: IO[bytes]) -> list[IO[bytes]]:
    """Return a JPEG that lacks its end with one put there, again and again; nothing for other files.

    Before the end marker stands something else each time. If the marker alone was missing, all are the same picture:
    decoders pass over bytes between the last pixel and a marker. If pixels are missing, the bytes are taken for them,
    and the pictures differ. That holds where all pixels are stored in one run. A file that was cut between two of the
    passes, components or restart intervals of another kind would decode to the same coarse or incomplete picture.
    """
    stream.seek(0)
    try:
        if stream.read(2) != b"\xff\xd8":
            return []
        places = {marker: place for marker, place, _ in _jpeg_segments(stream)}
    except IndexError:  # it ends before its pixels
        return []
    frame = next((places[marker] for marker in (0xC0, 0xC1) if marker in places), None)
    if frame is None or _JPEG_SCAN not in places or _JPEG_RESTARTS in places:
        return []
    components = []
    for place in (frame + 9, places[_JPEG_SCAN] + 4):
        stream.seek(place)
        components.append(stream.read(1))
    if components[0] != components[1]:
        return []
    end = stream.seek(0, io.SEEK_END)
    stream.seek(end - 1)
    if stream.read(1) == b"\xff":  # the first half of the marker
        end -= 1
    # A decoder takes codes that it does not know for nothing, and so can take noise; the file's own codes it knows.
    first = places[_JPEG_SCAN] + 14  # behind the marker's own bytes
    length = min(256, (end - first) // 4)
    slices = [(first + (end - length - first) * part // _ENDS, length) for part in range(_ENDS if length > 0 else 0)]
    noise = [hashlib.shake_128(bytes([part])).digest(256).replace(b"\xff", b"") for part in range(_ENDS)]
    return [io.BufferedReader(Pieces(stream, [(0, end), part, b"\xff\xd9"])) for part in (b"\x00\x00", *slices, *noise)]


# WebP

_ICC, _EXIF, _ALPHA_AND_ANIMATION = 0x20, 0x08, 0x12  # bits of VP8X


def _webp_pixels(stream: IO[bytes]) -> IO[bytes] | None:
    place, end = 12, stream.seek(0, io.SEEK_END)
    kept: list[bytes | tuple[int, int]] = []
    flags, header = 0, None
    while place + 8 <= end:
        stream.seek(place)
        kind, size = struct.unpack("<4sI", stream.read(8))
        if place + 8 + size > end:  # cut off, or it lies
            if kind not in (b"EXIF", b"XMP ", b"ICCP"):
                return None
            break
        padded = min(8 + size + size % 2, end - place)
        if kind == b"VP8X" and size == 10:
            header = stream.read(10)
        elif kind in (b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF", b"ICCP", b"EXIF"):
            flags |= {b"ICCP": _ICC, b"EXIF": _EXIF}.get(kind, 0)
            kept.append((place, padded))
            if padded < 8 + size + size % 2:
                kept.append(b"\0")
        place += padded
    if header is not None:
        kept.insert(
            0, struct.pack("<4sIB", b"VP8X", 10, header[0] & _ALPHA_AND_ANIMATION | flags) + b"\0\0\0" + header[4:]
        )
    else:  # a plain file has one chunk
        kept = kept[:1]
    size = 4 + sum(len(piece) if isinstance(piece, bytes) else piece[1] for piece in kept)
    return io.BufferedReader(Pieces(stream, [struct.pack("<4sI4s", b"RIFF", size, b"WEBP"), *kept]))


# TIFF

# What says how pixels are stored: sizes, compression, strips, tiles, planes, colour maps, sample formats, JPEG tables.
_PIXEL_TAGS = {
    *range(254, 260), 262, 263, 266, 273, 277, 278, 279, 280, 281, 284, 290, 291, 292, 293, 317, 318, 319, 320,
    *range(322, 326), 330, 332, 333, 334, 336, 338, 339, 340, 341, 347, *range(512, 522), *range(529, 533),
}  # fmt: skip
_ORIENTATION, _PROFILE, _TEXTS = 274, 34675, (269, 270, 271, 272, 285, 305, 306, 315, 316, 33432)
_BYTE, _ASCII, _SHORT, _UNDEFINED = 1, 2, 3, 7


def _tiff_pixels(stream: IO[bytes]) -> IO[bytes] | None:
    """Return a TIFF whose first directory says nothing of what lies beside the pixels, entry by entry."""
    end = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    head = stream.read(16)
    order = "<" if head[:2] == b"II" else ">"
    is_big = head[2:4] in (b"+\0", b"\0+")
    (place,) = struct.unpack_from(order + ("Q" if is_big else "I"), head, 8 if is_big else 4)
    count_form, entry_form = ("Q", "HHQ8s") if is_big else ("H", "HHI4s")
    stream.seek(place)
    (count,) = struct.unpack(order + count_form, stream.read(struct.calcsize(order + count_form)))
    if count > _MOST_ENTRIES:
        return None
    first, size = stream.tell(), struct.calcsize(order + entry_form)
    entries = []
    for start in range(first, first + count * size, size):
        stream.seek(start)
        content = stream.read(size)
        tag, kind, values, value = struct.unpack(order + entry_form, content)
        where = int.from_bytes(value, "little" if order == "<" else "big")
        turns = kind == _SHORT and values == 1 and 1 <= struct.unpack_from(order + "H", value)[0] <= 8
        is_there = kind in (_BYTE, _UNDEFINED) and values > len(value) and where + values <= end
        if tag not in _PIXEL_TAGS and not (tag == _ORIENTATION and turns) and not (tag == _PROFILE and is_there):
            kind = {_ORIENTATION: _SHORT, **dict.fromkeys(_TEXTS, _ASCII)}.get(tag, _UNDEFINED)
            value = struct.pack(order + "H", int(tag == _ORIENTATION)).ljust(len(value), b"\0")
            content = struct.pack(order + entry_form, tag, kind, 1, value)
        entries.append(content)
    after = first + count * size
    return io.BufferedReader(Pieces(stream, [(0, first), b"".join(entries), (after, end - after)]))
