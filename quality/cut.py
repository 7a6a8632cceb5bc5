"""A tokenizer.json cut down to what some texts can use: of these it gives the same ids, and it opens at once.

BPE only ever joins neighbours. A piece that stands nowhere in a text, as the tokenizer's own normalizer and
pre-tokenizer leave it, is never made on the way to that text's tokens, and neither are the merges that lead to it.
(Where they treat what lies between added tokens differently from the whole text, a piece too many may be cut. So a
difference found with less than the whole is no finding yet: `Words` then asks the whole tokenizer.)
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import compress, starmap
from operator import add, itemgetter
from typing import Any

from ..checkpoint.tokenizer_file import TokenizerFile

AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")
"""Options of BPE that give pieces a form which does not stand in the text."""
PART = 4
"""Characters that are looked at first, at both ends of a piece."""
BYTE = "<0x"


def cut(file: TokenizerFile, texts: Iterable[str]) -> str | None:
    """The JSON of a tokenizer, less all that `texts` have no use for; None where nothing can be cut.

    Raises Unusual, what the `tokenizers` library raises, and LookupError or TypeError for a damaged file.
    """
    document, model = file.rest, file.rest["model"]
    if model.get("type", "BPE") != "BPE" or any(model.get(name) for name in AFFIXES):
        return None
    there = "\n".join(_words(document, texts))
    parts = {there[at : at + n] for n in range(1, PART + 1) for at in range(len(there))}
    always = {model.get("unk_token") or "", *(token["content"] for token in document.get("added_tokens") or ())}
    starts = parts.union((f"{BYTE}{digit:X}" for digit in range(16)), (piece[:PART] for piece in always))
    vocabulary: dict[str, int] = {}
    for some in file.pieces():
        likely = compress(some.items(), map(starts.__contains__, map(itemgetter(slice(PART)), some)))
        vocabulary.update(
            (piece, id)
            for piece, id in likely
            if (piece[-PART:] in parts and piece in there) or piece.startswith(BYTE) or piece in always
        )
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
