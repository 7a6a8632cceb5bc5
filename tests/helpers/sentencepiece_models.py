"""Writing SentencePiece models: the few fields of the format that matter, by hand."""

import itertools
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

BPE = 2
SPECIALS = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
LETTERS = "▁enratsilodkgmvfupbhjåyøcæwxzq"


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes((*out, value))


def message(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def piece(text: str, score: float, type: int = 1) -> bytes:
    data = message(1, text.encode()) + b"\x15" + struct.pack("<f", score)
    return message(1, data + (b"\x18" + varint(type) if type != 1 else b""))


def model(pieces: Iterable[tuple[str, float, int]], model_type: int = BPE, prefix: bool = False) -> bytes:
    """A whole model; the trainer's settings say BPE with bytes, the normalizer's that texts stay as they are."""
    trainer = b"\x18" + varint(model_type) + varint(35 << 3) + b"\x01"
    trainer += b"".join(varint(number << 3) + varint(id) for number, id in ((40, 3), (41, 2), (42, 1), (43, 0)))
    normalizer = message(1, b"identity") + b"\x18" + varint(prefix) + b"\x20\x00" + b"\x28\x01"
    return b"".join(piece(*p) for p in pieces) + message(2, trainer) + message(3, normalizer)


def pieces(words: Sequence[str]) -> list[tuple[str, float, int]]:
    """Specials, bytes, then words: scores fall from the first word on, as training leaves them."""
    types = {"<unk>": 2, "<start_of_turn>": 4, "<end_of_turn>": 4}
    start = [(text, 0.0, types.get(text, 3)) for text in SPECIALS]
    start += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    return start + [(word, -float(i), 1) for i, word in enumerate(words)]


def write_large_model(path: Path, n: int) -> dict[int, str]:
    """A model of `n` pieces: every word of two to four letters, until there are enough. Returns the specials."""
    words = ("".join(letters) for size in range(2, 5) for letters in itertools.product(LETTERS, repeat=size))
    count = n - len(SPECIALS) - 256 - len(LETTERS)
    path.write_bytes(model(pieces([*itertools.islice(words, count), *LETTERS])))
    return dict(enumerate(SPECIALS))
