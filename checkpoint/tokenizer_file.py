"""tokenizer.json, of which nearly everything is one vocabulary and the merges that lead to it."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec

from ..errors import InvalidInput
from .jsonfile import MAX_TOKENIZER_JSON, check_values, no_collection, parse_object, read_json_bytes

HEAD = 64
"""Bytes by which a part is looked for; what is found is compared whole."""
WINDOW = 1 << 18
"""Bytes of a part that are parsed together: what is made of them stays in the cache."""


class _Model(msgspec.Struct):
    vocab: msgspec.Raw
    merges: msgspec.Raw


class _Document(msgspec.Struct):
    model: _Model


class _Kind(NamedTuple):
    """How a part is parsed, and between which bytes (group 1) it may be taken apart.

    Those stand inside a string only where it ends with what looks like the end of an item; what is taken apart there
    cannot be parsed.
    """

    decoder: Any
    between: re.Pattern[bytes]


_documents = msgspec.json.Decoder(_Document)
VOCABULARY = _Kind(
    msgspec.json.Decoder(dict[str, Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]]), re.compile(rb'\d(\s*,\s*)"')
)
MERGES = _Kind(msgspec.json.Decoder(list[tuple[str, str]]), re.compile(rb'"\s*\](\s*,\s*)\['))
OLD_MERGES = _Kind(msgspec.json.Decoder(list[str]), re.compile(rb'"(\s*,\s*)"'))
LISTS = re.compile(rb"\[\s*\[")
ESCAPED = re.compile(rb"\\(.)", re.DOTALL)


class Unusual(Exception):
    """The file may be right, but is not as they usually are: the strict parser has the last word."""


@dataclass(frozen=True, slots=True)
class TokenizerFile:
    """A tokenizer.json in parts: the JSON of the vocabulary and of the merges, and the rest, with null for both."""

    rest: dict[str, Any]
    vocabulary: bytes
    merges: memoryview

    def pieces(self) -> Iterator[dict[str, int]]:
        """The vocabulary, some of it at a time. Raises Unusual."""
        return _taken_apart(self.vocabulary, VOCABULARY)

    def pairs(self) -> Iterator[list[tuple[str, str]]]:
        """The merges, some at a time. Raises Unusual."""
        if LISTS.match(self.merges):
            yield from _taken_apart(self.merges, MERGES)
            return
        for some in _taken_apart(self.merges, OLD_MERGES):
            yield [(left, right) for left, _, right in (merge.partition(" ") for merge in some)]


def read_tokenizer_file(path: Path, *, merges: bool = True, pieces: Sequence[str] = ()) -> dict[str, Any]:
    """What `read_json_object` reads; InvalidInput for the same faults.

    Without `merges`, which are most of the file and most of the time, what they hold is not looked at, and may be
    missing in the result; so may a vocabulary that is `pieces`, numbered from 0 on.
    """
    text = read_json_bytes(path, MAX_TOKENIZER_JSON)
    if not merges:
        try:
            with no_collection():
                return _without_merges(in_parts(text), tuple(pieces))
        except Unusual:
            pass
    return parse_object(text, str(path), limit=MAX_TOKENIZER_JSON)


def open_in_parts(path: Path) -> TokenizerFile:
    """Take a tokenizer.json apart. Raises InvalidInput where it cannot be read, and Unusual."""
    return in_parts(read_json_bytes(path, MAX_TOKENIZER_JSON))


def in_parts(text: bytes) -> TokenizerFile:
    """Take the JSON of a tokenizer apart. Raises Unusual, also for whatever is wrong with it."""
    try:
        model = _documents.decode(text).model
        vocabulary, merges = bytes(model.vocab), memoryview(model.merges)
        (a, b), (c, d) = sorted(_place(text, part) for part in (vocabulary, merges))
        rest = parse_object(b"null".join((text[:a], text[b:c], text[d:])), "")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, InvalidInput) as error:
        raise Unusual from error
    found = rest.get("model", {})
    if any(found.get(name, "") is not None for name in _Model.__struct_fields__):
        raise Unusual("one of them stands somewhere else, too")
    return TokenizerFile(rest, vocabulary, merges)


def _place(text: bytes, part: bytes | memoryview) -> tuple[int, int]:
    """Where `part` begins and ends. Raises Unusual where something else begins like it."""
    start = text.find(bytes(part[:HEAD]))
    if not text.startswith(part, start):
        raise Unusual
    return start, start + len(part)


def _without_merges(file: TokenizerFile, pieces: Sequence[str]) -> dict[str, Any]:
    """Raises Unusual where a piece stands twice, which the strict parser tells."""
    model = file.rest["model"]
    del model["merges"]
    if pieces and _holds(file, pieces):
        del model["vocab"]
        return file.rest
    try:
        check_values(file.vocabulary, "", MAX_TOKENIZER_JSON)
        vocabulary = VOCABULARY.decoder.decode(file.vocabulary)
    except (msgspec.MsgspecError, UnicodeDecodeError, InvalidInput) as error:
        raise Unusual from error
    if _keys(file.vocabulary) != len(vocabulary):
        raise Unusual
    model["vocab"] = vocabulary
    return file.rest


def _holds(file: TokenizerFile, pieces: Sequence[str]) -> bool:
    """Whether the vocabulary is `pieces`, numbered from 0 on, and none of them stands there twice."""
    at = 0
    try:
        for some in file.pieces():
            end = at + len(some)
            if tuple(some) != pieces[at:end] or tuple(some.values()) != tuple(range(at, end)):
                return False
            at = end
    except Unusual:
        return False
    return at == len(pieces) == _keys(file.vocabulary)


def _keys(part: bytes) -> int:
    """How many keys an object has whose values are numbers: half its quotation marks, but those inside of keys."""
    return (part.count(b'"') - ESCAPED.findall(part).count(b'"')) // 2


def _taken_apart(part: bytes | memoryview, kind: _Kind) -> Iterator[Any]:
    """The items of a JSON list or object, some at a time. Raises Unusual."""
    at, end, begins, ends = 1, len(part) - 1, bytes(part[:1]), bytes(part[-1:])
    while at < end:
        between = kind.between.search(part, at + WINDOW)
        stop, start = between.span(1) if between else (end, end)
        try:
            yield kind.decoder.decode(begins + part[at:stop] + ends)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Unusual from error
        at = start
