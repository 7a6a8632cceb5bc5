"""Tokenizers cut down to what some texts can use: of these they give the same ids, and they open at once.

BPE only ever joins neighbours, and so does SentencePiece's kind of it. A piece that stands nowhere in a text, as the
tokenizer gets to see it, is never made on the way to that text's tokens, and neither are the merges that lead to it.
(Where it treats what lies between special tokens differently from the whole text, a piece too many may be cut. So a
difference found with less than the whole is no finding yet: `Words` then asks the whole.)
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress, starmap
from operator import add, itemgetter
from typing import Any, TypeVar

from gguf.constants import GGUFValueType

from ..checkpoint.tokenizer_file import TokenizerFile
from ..checkpoint.types import KV
from ..convert.bpe import LETTER_OF_BYTE

AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")
"""Options of BPE that give pieces a form which does not stand in the text."""
PART = 4
"""Characters that are looked at first, at both ends of a piece."""
BYTE = "<0x"
OF_TOKENIZER = "tokenizer.ggml."
KIND, PREFIX, TOKENS, SCORES, TYPES, MERGES = (
    OF_TOKENIZER + name for name in ("model", "add_space_prefix", "tokens", "scores", "token_type", "merges")
)
BY_ID = {TOKENS, SCORES, TYPES}
NORMAL, UNUSED = 1, 5
"""GGUF's types of tokens that a text makes only by joining."""
SPACE = "▁"

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Cut:
    """Metadata with the tokens of `ids` alone, which are there numbered from 0 on."""

    entries: Sequence[KV]
    ids: Sequence[int]


class _Held:
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
    held = _Held("\n".join(_words(document, texts)), always)
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


def cut_vocabulary(entries: Sequence[KV], texts: Sequence[str], keep: Collection[int]) -> Cut | None:
    """A GGUF's metadata, less the tokens that `texts` have no use for; special ones and those of the ids `keep` stay,
    and what their names as plain text need. None where nothing can be cut.
    """
    by_key = {kv.key: kv for kv in entries if kv.key.startswith(OF_TOKENIZER)}
    lists = {kv.key: kv.value for kv in by_key.values() if kv.type is GGUFValueType.ARRAY}
    merges, tokens, types = lists.pop(MERGES, ()), lists.get(TOKENS, ()), lists.get(TYPES, ())
    special = [id for id, type in enumerate(types) if type not in (NORMAL, UNUSED)]
    texts = [*texts, *(tokens[id] for id in keep)]
    text = _seen_by_llama(by_key, texts, [tokens[id] for id in special if id < len(tokens)])
    if text is None or not lists.keys() <= BY_ID or any(len(values) != len(tokens) for values in lists.values()):
        return None
    held = _Held(text)
    roles = {key: kv.value for key, kv in by_key.items() if key.endswith("_token_id") and type(kv.value) is int}
    left = {*keep, *roles.values(), *special, *held.among(tokens, range(len(tokens)))}
    ids = sorted(id for id in left if 0 <= id < len(tokens))
    place = {id: n for n, id in enumerate(ids)}
    changed: dict[str, Any] = {key: [values[id] for id in ids] for key, values in lists.items()}
    changed |= {key: place.get(id, id) for key, id in roles.items()}
    changed[MERGES] = held.among([merge.replace(" ", "", 1) for merge in merges], merges)
    return Cut([replace(kv, value=changed.get(kv.key, kv.value)) for kv in entries], ids)


def _seen_by_llama(by_key: Mapping[str, KV], texts: Sequence[str], special: Sequence[str]) -> str | None:
    """What llama.cpp joins pieces of, as one text; None for a kind of tokenizer that does something else."""
    kind, whole = by_key[KIND].value if KIND in by_key else "", "\n".join(texts)
    if kind == "gpt2":
        return whole.encode("utf-8", "replace").decode("latin-1").translate(LETTER_OF_BYTE)
    if kind != "llama":
        return None
    spaced = whole.replace(" ", SPACE)
    if PREFIX in by_key and not by_key[PREFIX].value:
        return spaced
    between = spaced
    for token in special:  # what follows one has a space in front, too
        between = between.replace(token.replace(" ", SPACE), "\n")
    return spaced + "".join(f"\n{SPACE}{line}" for line in f"{spaced}\n{between}".split("\n"))
