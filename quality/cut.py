"""Tokenizers cut down to what some texts can use: of these they give the same ids, and they open at once.

BPE only ever joins neighbours, and so does SentencePiece's kind of it. A piece that stands nowhere in a text, as the
tokenizer gets to see it, is never made on the way to that text's tokens, and neither are the merges that lead to it.
(Where it treats what lies between special tokens differently from the whole text, a piece too many may be cut. So a
difference found with less than the whole is no finding yet: `Words` then asks the whole.)
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import compress, starmap
from operator import add, itemgetter
from typing import Any, TypeVar

from ..checkpoint.tokenizer_file import TokenizerFile

AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")
"""Options of BPE that give pieces a form which does not stand in the text."""
PART = 4
"""Characters that are looked at first, at both ends of a piece."""
BYTE = "<0x"

V = TypeVar("V")


class Held:
    """The pieces that stand in a text, and those that stand for bytes; `also` are kept as well."""

    def __init__(self, text: str, also: Collection[str] = ()) -> None:
        self.text, self.also = text, also
        self.parts = {text[at : at + n] for n in range(1, PART + 1) for at in range(len(text))}
        self.starts = self.parts.union((f"{BYTE}{digit:X}" for digit in range(16)), (piece[:PART] for piece in also))

    def among(self, pieces: Collection[str], values: Iterable[V]) -> list[V]:
        """The value of each of `pieces` that is one of them. There may be 262144: a quick look comes first."""
        likely = compress(zip(pieces, values, strict=True), map(self.starts.__contains__, map(_start, pieces)))
        return [value for piece, value in likely if self._is(piece)]

    def _is(self, piece: str) -> bool:
        in_text = piece[-PART:] in self.parts and piece in self.text
        return in_text or piece.startswith(BYTE) or piece in self.also


_start = itemgetter(slice(PART))


def cut_tokenizer(file: TokenizerFile, texts: Iterable[str]) -> str | None:
    """The JSON of a tokenizer, less all that `texts` have no use for; None where nothing can be cut.

    Raises Unusual, what the `tokenizers` library raises, and LookupError or TypeError for a damaged file.
    """
    document, model = file.rest, file.rest["model"]
    if model.get("type", "BPE") != "BPE" or any(model.get(name) for name in AFFIXES):
        return None
    always = {model.get("unk_token") or "", *(token["content"] for token in document.get("added_tokens") or ())}
    held = Held("\n".join(_words(document, texts)), always)
    vocabulary: dict[str, int] = {}
    for some in file.pieces():
        vocabulary.update(held.among(some, some.items()))
    merges: list[tuple[str, str]] = []
    for some in file.pairs():
        merges += compress(some, map(vocabulary.__contains__, starmap(add, some)))
    less = {**model, "vocab": vocabulary, "merges": merges}
    return json.dumps({**document, "model": less}, ensure_ascii=False)


def _words(document: Mapping[str, Any], texts: Iterable[str]) -> Iterator[str]:
    """What BPE gets to see of `texts`."""
    from tokenizers import Tokenizer

    empty = {**document["model"], "vocab": {}, "merges": [], "unk_token": None}
    shell = Tokenizer.from_str(json.dumps({**document, "model": empty, "added_tokens": [], "post_processor": None}))
    for text in texts:
        normal = shell.normalizer.normalize_str(text) if shell.normalizer else text
        if shell.pre_tokenizer:
            yield from (word for word, _ in shell.pre_tokenizer.pre_tokenize_str(normal))
        else:
            yield normal
