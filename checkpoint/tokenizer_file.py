"""tokenizer.json, of which nearly everything is one vocabulary and the merges that lead to it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from .strict_json import MAX_TOKENIZER_JSON, check_values, no_collection, parse_object, read_json_bytes

_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_vocabulary = msgspec.json.Decoder(dict[str, int])
_pairs = msgspec.json.Decoder(list[tuple[str, str]])
_texts = msgspec.json.Decoder(list[str])


def read_tokenizer_file(path: Path, *, merges: bool = True) -> dict[str, Any]:
    """Read tokenizer.json: the values and the InvalidInput of `read_json_object`, in half its time and memory.

    Merges are pairs of pieces, whether the file has ["a", "b"] or "a b". Without `merges`, which are most of the file,
    they are left out. Where the vocabulary or the merges are not what they usually are, the general parser decides.
    """
    text = read_json_bytes(path, MAX_TOKENIZER_JSON)
    with no_collection():
        try:
            return _read_typed(text, str(path), merges)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return parse_object(text, str(path), limit=MAX_TOKENIZER_JSON)


def _read_typed(text: bytes, where: str, merges: bool) -> dict[str, Any]:
    """Raises msgspec's errors for whatever is not as expected, wrong or not."""
    check_values(text, where, MAX_TOKENIZER_JSON)
    document = _object.decode(text)
    model = _object.decode(document.pop("model", msgspec.Raw(b"null")))
    vocabulary, merged = (model.pop(name, msgspec.Raw(b"null")) for name in ("vocab", "merges"))
    found: dict[str, Any] = {"vocab": _decode_vocabulary(bytes(vocabulary))}
    if merges:
        found["merges"] = _decode_merges(merged)
    return {**_general(document, where), "model": {**_general(model, where), **found}}


def _general(values: dict[str, msgspec.Raw], where: str) -> dict[str, Any]:
    """The small values of an object, by the general parser."""
    inner = b",".join(msgspec.json.encode(key) + b":" + bytes(value) for key, value in values.items())
    return parse_object(b"{" + inner + b"}", where, limit=MAX_TOKENIZER_JSON)


def _decode_vocabulary(raw: bytes) -> dict[str, int]:
    """Raises ValidationError also for a piece that stands there twice: the general parser names it."""
    vocabulary = _vocabulary.decode(raw)
    quotes = raw.count(b'"') - raw.replace(b"\\\\", b"").count(b'\\"')
    if quotes != 2 * len(vocabulary):
        raise msgspec.ValidationError
    return vocabulary


def _decode_merges(raw: msgspec.Raw) -> Sequence[tuple[str, ...]]:
    try:
        return _pairs.decode(raw)
    except msgspec.ValidationError:
        pairs = [tuple(merge.split(" ")) for merge in _texts.decode(raw)]
    if any(len(pair) != 2 for pair in pairs):
        raise msgspec.ValidationError
    return pairs
