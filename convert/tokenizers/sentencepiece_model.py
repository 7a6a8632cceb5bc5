"""Reads the pieces, scores and types of a SentencePiece model (tokenizer.model).

    ModelProto     1: SentencePiece, repeated   2: TrainerSpec   3: NormalizerSpec
    SentencePiece  1: piece (string)   2: score (float)   3: type (enum, 1 when it is missing)
    TrainerSpec    3: model_type (enum, 1 when it is missing)
    NormalizerSpec 2: precompiled_charsmap (bytes)   3: add_dummy_prefix   4: remove_extra_whitespaces
                   (bools, true when they are missing)

A field is a varint tag (number × 8 + wire type), then the value. These four messages are parsed without a protobuf
package, and every length is checked before it is used.
Source: the protocol buffers encoding, and sentencepiece_model.proto.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...checkpoint.file_access import open_regular, recognize
from ...errors import InvalidInput

MAX_MODEL = 64 << 20  # 262144 pieces take 4.7 MB
MAX_PIECES = 1 << 20

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
UNIGRAM, BPE = 1, 2
FLOAT = struct.Struct("<f")
DAMAGED = "the file is damaged or incomplete, fetch it again"


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """`types` are SentencePiece's own: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte.

    `prefix`: the encoder puts a space before the text. `joins_spaces`: it merges runs of spaces. `maps`: it normalizes
    characters (NFKC, for example).
    """

    pieces: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[int, ...]
    model_type: int
    prefix: bool = True
    joins_spaces: bool = True
    maps: bool = False


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Reads tokenizer.model. Raises InvalidInput, naming the file and the byte, for a damaged or other file."""
    file, size = open_regular(path)
    with file:
        if size > MAX_MODEL:
            raise InvalidInput(f"{path}: {size} bytes; {MAX_MODEL} is the most a SentencePiece model may have")
        data = file.read(MAX_MODEL)
    if (file_format := recognize(data[:64])) is not None:
        raise InvalidInput(f"{path}: not a SentencePiece model but {file_format}")
    try:
        return parse_sentencepiece(data)
    except _Damaged as error:
        raise InvalidInput(f"{path}: not a SentencePiece model: {error}; {DAMAGED}") from None


class _Damaged(ValueError):
    """A parsing error; the text names the byte."""


def parse_sentencepiece(data: bytes) -> SentencePieceModel:
    pieces: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    model_type, switches, maps = UNIGRAM, {3: True, 4: True}, False
    for number, wire, start, end in _fields(data, 0, len(data)):
        if number == 1 and wire == BYTES:
            piece, score, type = _piece(data, start, end)
            pieces.append(piece)
            scores.append(score)
            types.append(type)
            if len(pieces) > MAX_PIECES:
                raise _Damaged(f"byte {end}: more than {MAX_PIECES} pieces")
        elif number == 2 and wire == BYTES:
            inner = (f for f in _fields(data, start, end) if f[:2] == (3, VARINT))
            model_type = next((_varint(data, f[2], f[3])[0] for f in inner), model_type)
        elif number == 3 and wire == BYTES:
            for inside, kind, begin, stop in _fields(data, start, end):
                if kind == VARINT and inside in switches:
                    switches[inside] = _varint(data, begin, stop)[0] != 0
                maps |= (inside, kind) == (2, BYTES) and stop > begin
    if not pieces:
        raise _Damaged("byte 0: it holds no pieces")
    return SentencePieceModel(tuple(pieces), tuple(scores), tuple(types), model_type, switches[3], switches[4], maps)


def _piece(data: bytes, start: int, end: int) -> tuple[str, float, int]:
    text, score, type = "", 0.0, 1
    for number, wire, at, stop in _fields(data, start, end):
        if number == 1 and wire == BYTES:
            try:
                text = data[at:stop].decode()
            except UnicodeDecodeError:
                raise _Damaged(f"byte {at}: a piece that is not UTF-8") from None
        elif number == 2 and wire == FIXED32:
            (score,) = FLOAT.unpack_from(data, at)
        elif number == 3 and wire == VARINT:
            type = data[at] if stop == at + 1 else _varint(data, at, stop)[0]
    return text, score, type


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yields each field between `at` and `end`: number, wire type, start and end of its value."""
    while at < end:
        tag, start = (data[at], at + 1) if data[at] < 0x80 else _varint(data, at, end)
        wire = tag & 7
        if wire == BYTES:
            if start < end and data[start] < 0x80:  # fast path for one-byte lengths: a vocabulary has a million fields
                start += 1
                stop = start + data[start - 1]
            else:
                length, start = _varint(data, start, end)
                stop = start + length
        elif wire == FIXED32:
            stop = start + 4
        elif wire == VARINT:
            _, stop = _varint(data, start, end)
        elif wire == FIXED64:
            stop = start + 8
        else:
            raise _Damaged(f"byte {at}: wire type {wire}")
        if stop > end:
            raise _Damaged(f"byte {at}: a field that ends at byte {stop}, where {end} is the last")
        if tag < 8:
            raise _Damaged(f"byte {at}: field number 0")
        yield tag >> 3, wire, start, stop
        at = stop


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Reads an unsigned varint of at most ten bytes, and returns it with its end."""
    value = 0
    for i in range(10):
        if at + i >= end:
            raise _Damaged(f"byte {at}: a number that has no end")
        byte = data[at + i]
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, at + i + 1
    raise _Damaged(f"byte {at}: a number of more than ten bytes")
