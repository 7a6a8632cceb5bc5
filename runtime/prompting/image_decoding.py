"""Images that nobody has vouched for: PNG and JPEG files, checked before native code decodes them.

The decoder takes a truncated JPEG for a grey one and inflates a PNG to any size; so a file is walked through first.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...checkpoint.file_access import open_regular, recognize
from ...errors import InvalidInput

MAX_BYTES = 64 << 20
MAX_SIDE = 1 << 16
MAX_PIXELS = 1 << 26
"""67 million: more than any telephone's, 200 MB when decoded."""

MAX_SCANS = 100
"""A progressive JPEG has about ten, and each takes as long as the whole image."""

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
OTHERS = (
    (b"GIF8", "a GIF"),
    (b"BM", "a BMP"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"%PDF", "a PDF"),
)
COLOURS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Samples a pixel has, by PNG's colour type."""

PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""PNG's interlacing: first column and row of each pass, and the steps between its columns and rows."""


@dataclass(frozen=True, slots=True)
class Image:
    """A whole file of one image. `orientation` is Exif's: 1 upright, 2 to 8 turned or mirrored."""

    path: Path
    data: bytes
    width: int
    height: int
    orientation: int = 1


def read_image(path: Path) -> Image:
    """Read a PNG or JPEG. Raises InvalidInput for anything else, and for a file that is damaged or too large."""
    file, size = open_regular(path)
    with file:
        if size > MAX_BYTES:
            raise InvalidInput(f"{path}: {size} bytes; an image may have {MAX_BYTES} at most: scale it down")
        return read_image_data(file.read(MAX_BYTES), path)


def read_image_data(data: bytes, name: Path = Path("image")) -> Image:
    """The same for an image in memory; `name` stands in errors."""
    if len(data) > MAX_BYTES:
        raise InvalidInput(f"{name}: {len(data)} bytes; an image may have {MAX_BYTES} at most: scale it down")
    if data.startswith(PNG):
        return _png(name, data)
    if data.startswith(JPEG):
        return _jpeg(name, data)
    raise InvalidInput(f"{name}: not a PNG or JPEG{_instead(data)}")


def _instead(data: bytes) -> str:
    if not data:
        return ": the file is empty"
    if data[4:8] == b"ftyp":
        return " but a HEIC, AVIF or video; save it as JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return " but a WebP; save it as PNG or JPEG"
    what = next((what for magic, what in OTHERS if data.startswith(magic)), None)
    if what:
        return f" but {what}; save it as PNG or JPEG"
    what = recognize(data)
    return f" but {what.partition(';')[0]}" if what else ""


def _checked(path: Path, data: bytes, width: int, height: int, exif: bytes = b"") -> Image:
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE and width * height <= MAX_PIXELS):
        raise InvalidInput(
            f"{path}: an image of {width} × {height}; {MAX_PIXELS >> 20} million pixels are the most: scale it down"
        )
    return Image(path, data, width, height, exif_orientation(exif))


def _damaged(path: Path, what: str) -> InvalidInput:
    return InvalidInput(f"{path}: a damaged image: {what}; fetch or save it again")


# PNG: signature, then chunks of length u32, type, data, CRC-32 of type and data; big-endian.


def _png(path: Path, data: bytes) -> Image:
    pixels, exif, image = _Inflated(path), b"", None
    for kind, body in _png_chunks(path, data):
        if (kind == b"IHDR") != (image is None):
            raise _damaged(path, "its header is missing or comes twice")
        if kind == b"IHDR":
            image = _png_header(path, data, body, pixels)
        elif kind == b"IDAT":
            pixels.add(body)
        elif kind == b"eXIf":
            exif = body
    if image is None:
        raise _damaged(path, "it has no header")
    pixels.check()
    return _checked(path, data, image.width, image.height, exif)


def _png_chunks(path: Path, data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at, kind = len(PNG), b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at) if at + 8 <= len(data) else (0, b"")
        end = at + 8 + length
        if not kind or end + 4 > len(data):
            raise _damaged(path, f"it ends at byte {len(data)}, in the middle")
        if zlib.crc32(data[at + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise _damaged(path, f"bytes {at} to {end} do not fit their checksum")
        yield kind, data[at + 8 : end]
        at = end + 4


def _png_header(path: Path, data: bytes, body: bytes, pixels: "_Inflated") -> Image:
    if len(body) != 13:
        raise _damaged(path, f"its header has {len(body)} bytes")
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", body)
    if colour not in COLOURS or depth not in (1, 2, 4, 8, 16) or interlaced > 1:
        raise _damaged(path, "its header names a format that PNG does not have")
    image = _checked(path, data, width, height)
    bits = COLOURS[colour] * depth
    passes = PASSES if interlaced else ((0, 0, 1, 1),)
    sizes = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in passes if x < width and y < height]
    pixels.room = sum(rows * (1 + (columns * bits + 7) // 8) for columns, rows in sizes)
    return image


class _Inflated:
    """Counts what the pixels of a PNG inflate to, and keeps none of it."""

    def __init__(self, path: Path) -> None:
        self.path, self.room, self.stream = path, 0, zlib.decompressobj()

    def add(self, data: bytes) -> None:
        try:
            while data and not self.stream.eof and self.room >= 0:
                self.room -= len(self.stream.decompress(data, 1 << 20))
                data = self.stream.unconsumed_tail
        except zlib.error:
            raise _damaged(self.path, "its pixels cannot be inflated") from None

    def check(self) -> None:
        if self.room or not self.stream.eof:
            raise _damaged(self.path, f"it holds {'more' if self.room < 0 else 'fewer'} pixels than it says")


# JPEG: markers FF xx, most with a length u16 and that much data; after SOS compressed data, in which FF is followed by
# 00 or a restart marker.

FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
NEXT_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")


def _jpeg(path: Path, data: bytes) -> Image:
    at, scans, exif, size = 2, 0, b"", None
    while match := NEXT_MARKER.search(data, at):
        marker, start = match[1][0], match.end()
        if marker == 0xD9:
            break
        length = struct.unpack_from(">H", data, start)[0] if start + 2 <= len(data) else 0
        body, at = data[start + 2 : start + length], start + length
        if length < 2 or at > len(data):
            match = None
            break
        if marker == 0xE1 and body.startswith(b"Exif\0\0"):
            exif = exif or body[6:]
        elif marker in FRAMES and len(body) >= 6:
            height, width = struct.unpack_from(">HH", body, 1)
            size = size or _checked(path, data, width, height)
        scans += marker == 0xDA
    if match is None:
        raise _damaged(path, f"it ends at byte {len(data)}, in the middle")
    if size is None or not scans:
        raise _damaged(path, "it holds no picture")
    if scans > MAX_SCANS:
        raise _damaged(path, f"it is drawn in {scans} steps")
    return _checked(path, data, size.width, size.height, exif)


def exif_orientation(tiff: bytes) -> int:
    """Tag 0x0112 of the first directory; 1 where there is none or it makes no sense."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 10:
        return 1
    start = struct.unpack_from(f"{order}I", tiff, 4)[0]
    entries = struct.unpack_from(f"{order}H", tiff, start)[0] if start + 2 <= len(tiff) else 0
    for at in range(start + 2, min(start + 2 + 12 * entries, len(tiff) - 11), 12):
        tag, kind, count, value = struct.unpack_from(f"{order}HHIH", tiff, at)
        if (tag, kind, count) == (0x0112, 3, 1) and 1 <= value <= 8:
            return value
    return 1


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """`pixels` [height, width, 3] as they are meant to be seen."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels


BITS = 22
"""Of the fraction in a resampling weight, as in Pillow; sums of 8-bit samples then fit 32 bits."""


def resize(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """uint8 [height, width, 3] stretched or shrunk, bilinear with antialiasing: along each axis just as Pillow does.

    Rounded between the axes. Which one goes first differs between versions of Pillow, by one level of 255.
    """
    if pixels.shape[1] != width:
        pixels = _resize_rows(pixels.transpose(1, 0, 2), width).transpose(1, 0, 2)
    return _resize_rows(pixels, height) if pixels.shape[0] != height else pixels


def _resize_rows(pixels: np.ndarray, n: int) -> np.ndarray:
    """`n` rows, each a weighted sum of neighbouring rows of `pixels` [rows, columns, 3]."""
    first, weights = _weights(pixels.shape[0], n)
    out = np.empty((n, *pixels.shape[1:]), np.uint8)
    for row, (start, shares) in enumerate(zip(first, weights, strict=True)):
        part = pixels[start : start + len(shares)].astype(np.int32)
        total = np.tensordot(shares[: len(part)], part, axes=1) + (1 << (BITS - 1))
        out[row] = np.clip(total >> BITS, 0, 255)
    return out


def _weights(rows: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of `n` new rows the first old row it takes, and its shares [n, support] of that and the next ones."""
    scale = rows / n
    reach = max(scale, 1.0)
    centre = (np.arange(n) + 0.5) * scale
    first = np.maximum((centre - reach + 0.5).astype(int), 0)
    last = np.minimum((centre + reach + 0.5).astype(int), rows)
    at = first[:, None] + np.arange((last - first).max())
    shares = np.maximum(1 - np.abs((at - centre[:, None] + 0.5) * (1 / reach)), 0) * (at < last[:, None])
    shares /= shares.sum(axis=1, keepdims=True)
    return first, (shares * (1 << BITS) + 0.5).astype(np.int32)
