"""Image files that nobody has vouched for, decoded by Pillow: bytes, formats and pixels are bounded before.

A file is decoded once when it is read, so that a damaged one is an error at once, and again for the vision tower: what
is decoded takes far more memory than the file, and a request may have to wait.
"""

import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...checkpoint.file_access import open_regular, recognize
from ...errors import InvalidInput

if TYPE_CHECKING:
    from PIL import Image

MAX_BYTES = 64 << 20
MAX_PIXELS = 1 << 26
"""67 million: more than any telephone's, 200 MB when decoded."""

MAX_SCANS = 100
"""A progressive JPEG has about ten, and each takes as long as the whole image."""

FORMATS = ("PNG", "JPEG", "WEBP")
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
PNG_END = b"IEND\xaeB`\x82"
SIGNATURES: tuple[tuple[str, Callable[[bytes], bool]], ...] = (
    ("a GIF", lambda data: data.startswith(b"GIF8")),
    ("a BMP", lambda data: data.startswith(b"BM")),
    ("a TIFF", lambda data: data.startswith((b"II*\0", b"MM\0*"))),
    ("a PDF", lambda data: data.startswith(b"%PDF")),
    ("a HEIC, AVIF or video", lambda data: data[4:8] == b"ftyp"),
)


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A whole file of one image, of `width` and `height` as stored: Exif may want it turned."""

    path: Path
    data: bytes
    width: int
    height: int


def read_image(path: Path) -> ImageFile:
    """Read an image file. Raises InvalidInput for other formats, and for a file that is damaged or too large."""
    file, size = open_regular(path)
    with file:
        if size > MAX_BYTES:
            raise _too_many_bytes(path, size)
        return read_image_data(file.read(MAX_BYTES), path)


def read_image_data(data: bytes, name: Path = Path("image")) -> ImageFile:
    """The same for an image in memory; `name` stands in errors."""
    if len(data) > MAX_BYTES:
        raise _too_many_bytes(name, len(data))
    if not (data.startswith((PNG, JPEG)) or _is_webp(data)):
        raise InvalidInput(f"{name}: not a PNG, JPEG or WebP{_other_format(data)}")
    if data.startswith(JPEG):
        _check_jpeg(name, data)
    with _opened(name, data) as image:
        width, height = image.size
        if data.startswith(PNG):
            image.verify()  # the checksums; after it nothing can be decoded
            if PNG_END not in data:
                raise _cut_short(name, data)
    with _opened(name, data) as image:
        image.load()
    return ImageFile(name, data, width, height)


def image_pixels(image: ImageFile, width: int, height: int) -> np.ndarray:
    """The image upright, stretched to `width` x `height` as transformers does it: uint8 [height, width, 3]."""
    from PIL import Image, ImageOps

    with _opened(image.path, image.data) as opened:
        upright = opened
        with suppress(Exception):  # Exif data that makes no sense turns nothing
            upright = ImageOps.exif_transpose(opened)
        if upright.mode.startswith("I"):  # 16 bits of grey; what `convert` makes of them differs between versions
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        upright.info.pop("transparency", None)  # ignored, as in other formats
        return np.asarray(upright.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))


@contextmanager
def _opened(name: Path, data: bytes) -> "Iterator[Image.Image]":
    """The image, of which only the header is read. Whatever Pillow raises in the `with` becomes an InvalidInput."""
    try:
        from PIL import Image
    except ImportError:
        raise InvalidInput('images need Pillow, which is missing; pip install "borealis-gguf[images]"') from None
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if not 0 < width * height <= MAX_PIXELS:
                raise _too_many_pixels(name, f"an image of {width} × {height}")
            yield image
    except InvalidInput:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels(name, "an image too large to decode") from None
    except Exception as error:  # a damaged file can make any of Pillow's readers stumble
        raise _damaged(name, " ".join(str(error).split()) or type(error).__name__) from None


def _check_jpeg(name: Path, data: bytes) -> None:
    """Refuse what libjpeg takes: a file cut short, which it completes with grey, and one of very many scans.

    Segments are a marker FF xx, a length u16 and that much data; after SOS comes compressed data, in which FF is
    followed by 00 or a restart marker.
    """
    at, scans = 2, 0
    while match := re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])").search(data, at):
        marker, start = match[1], match.end()
        if marker == b"\xd9":
            break
        at = start + (struct.unpack_from(">H", data, start)[0] if start + 2 <= len(data) else len(data))
        scans += marker == b"\xda"
    if match is None:
        raise _cut_short(name, data)
    if scans > MAX_SCANS:
        raise _damaged(name, f"it is drawn in {scans} steps")


def _is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def _other_format(data: bytes) -> str:
    if not data:
        return ": the file is empty"
    if kind := next((kind for kind, matches in SIGNATURES if matches(data)), None):
        return f" but {kind}; save it as PNG or JPEG"
    kind = recognize(data)
    return f" but {kind.partition(';')[0]}" if kind else ""


def _too_many_bytes(name: Path, size: int) -> InvalidInput:
    return InvalidInput(f"{name}: {size} bytes; an image may have {MAX_BYTES} at most: scale it down")


def _too_many_pixels(name: Path, what: str) -> InvalidInput:
    return InvalidInput(f"{name}: {what}; {MAX_PIXELS >> 20} million pixels are the most: scale it down")


def _cut_short(name: Path, data: bytes) -> InvalidInput:
    return _damaged(name, f"it ends at byte {len(data)}, in the middle")


def _damaged(name: Path, what: str) -> InvalidInput:
    return InvalidInput(f"{name}: a damaged image: {what}; fetch or save it again")
