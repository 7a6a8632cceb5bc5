"""Converts a byte-level BPE tokenizer.json to llama.cpp's "gpt2" tokenizer: tokens, types, merges, pre type."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from gguf.constants import GGUFValueType

from ...checkpoint.file_access import quote
from ...checkpoint.types import KV
from ...errors import InvalidInput
from .added_tokens import AddedToken, added_tokens, looks_special
from .embedding_rows import check_token_rows
from .pre_tokenizer import Match, match_pre_type
from .preprocessing import unsupported_added_tokens
from .sentencepiece_from_json import pairs
from .sentencepiece_vocabulary import TURNS, TokenType
from .special_tokens import special_kv
from .token_validation import repeated, tokens_fault

ADD_BOS = "tokenizer.ggml.add_bos_token"
PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
LETTER_OF_BYTE = dict(zip(PRINTABLE, PRINTABLE, strict=True))
LETTER_OF_BYTE.update((byte, 0x100 + n) for n, byte in enumerate(b for b in range(0x100) if b not in PRINTABLE))
"""GPT-2's letter for each of the 256 bytes: printable bytes keep theirs, the rest are numbered from Ā."""
LETTERS = frozenset(map(chr, LETTER_OF_BYTE.values()))


@dataclass(frozen=True, slots=True)
class Bpe:
    """A vocabulary by id, its merges in order, and the matching pre type of llama.cpp."""

    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    match: Match
    added: tuple[dict[str, Any], ...]

    @property
    def unsupported(self) -> tuple[str, ...]:
        """Steps of the tokenizer that llama.cpp does not perform."""
        return (*self.match.unsupported, *unsupported_added_tokens(self.added))


def read_bpe(
    path: Path,
    json: Mapping[str, Any],
    config: Mapping[str, Any],
    n_vocab: int,
    *,
    rows: int | None = None,
    declared: Sequence[AddedToken] = (),
) -> Bpe:
    """Reads a parsed tokenizer.json; `config` is tokenizer_config.json, `n_vocab` the number of embeddings.

    `rows` is the number of rows of the stored embedding, `declared` the added tokens of other files.

    Raises InvalidInput for a vocabulary that llama.cpp would not load, and for unknown ways to split words.
    """
    model = json.get("model")
    if not isinstance(model, dict):
        raise InvalidInput(f"{path}: it has no model")
    _check_model(path, model)
    # transformers 5 (which writes "backend") writes this only if it is not the default, false
    cleans = config.get("clean_up_tokenization_spaces", False if "backend" in config else None)
    match = match_pre_type(str(path), json, cleans if isinstance(cleans, bool) else None)
    vocabulary = _vocabulary(path, model)
    added = tuple(added_tokens(str(path), json))
    named = chain(
        ((id, token) for token, id in vocabulary.items()),
        ((token["id"], token["content"]) for token in added),
        ((token.id, token.text) for token in declared),
    )
    check_token_rows(path.parent, named, n_vocab, rows)
    tokens = [f"[PAD{i}]" for i in range(n_vocab)]
    types = [int(TokenType.UNUSED)] * n_vocab
    for token, id in vocabulary.items():
        if id < n_vocab:
            tokens[id], types[id] = token, int(TokenType.NORMAL)
    for token in added:
        id, text = token["id"], token["content"]
        if id < 0:
            raise InvalidInput(f"{path}: {quote(text)} has the id {id}; it must be a whole number from 0")
        if id >= n_vocab:
            continue
        special = token.get("special") or looks_special(text) or text in TURNS
        tokens[id], types[id] = text, int(TokenType.CONTROL if special else TokenType.USER_DEFINED)
    for token in declared:
        if token.id < n_vocab and types[token.id] == TokenType.UNUSED:
            raise InvalidInput(
                f"{token.path}: token {token.id} is {quote(token.text)}, which tokenizer.json lacks; "
                "the tokenizer's files must agree"
            )
    _check_tokens(path, tokens)
    return Bpe(tuple(tokens), tuple(types), _merges(path, model, vocabulary), match, added)


def bpe_kv(
    where: str, bpe: Bpe, json: Mapping[str, Any], tokenizer_config: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[KV, ...]:
    """Returns the tokenizer's keys in the order llama.cpp's converter writes them, without the chat template."""
    text, array = GGUFValueType.STRING, GGUFValueType.ARRAY
    special = special_kv(where, json, tokenizer_config, config, bpe.tokens, names={}, required=("eos",))
    # llama.cpp adds a BOS for some pre types unless a key disables it.
    no_bos = () if ADD_BOS in (kv.key for kv in special) or not bpe.match.type.adds_bos else (False,)
    return (
        KV("tokenizer.ggml.model", text, "gpt2"),
        KV("tokenizer.ggml.pre", text, bpe.match.type.name),
        KV("tokenizer.ggml.tokens", array, bpe.tokens, text),
        KV("tokenizer.ggml.token_type", array, bpe.types, GGUFValueType.INT32),
        KV("tokenizer.ggml.merges", array, bpe.merges, text),
        *special,
        *(KV(ADD_BOS, GGUFValueType.BOOL, value) for value in no_bos),
    )


def _check_model(path: Path, model: Mapping[str, Any]) -> None:
    """Refuses model settings that llama.cpp lacks; byte_fallback is unused if every byte's letter is a token."""
    vocabulary = model.get("vocab")
    harmless = isinstance(vocabulary, dict) and vocabulary.keys() >= LETTERS
    faults = [
        f"{key} is {quote(str(model.get(key)))}"
        for key, allowed in (
            ("type", ("BPE", None)),
            ("byte_fallback", (False, None, *[True] * harmless)),
            ("dropout", (None, 0, 0.0)),
            ("continuing_subword_prefix", (None, "")),
            ("end_of_word_suffix", (None, "")),
        )
        if model.get(key) not in allowed
    ]
    if faults:
        raise InvalidInput(f"{path}: {'; '.join(faults)}; llama.cpp has no tokenizer that does this")


def _vocabulary(path: Path, model: Mapping[str, Any]) -> dict[str, int]:
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict) or not vocabulary:
        raise InvalidInput(f"{path}: model.vocab must be an object of tokens and their ids")
    ids = vocabulary.values()
    if not all(type(id) is int for id in ids) or len(set(ids)) != len(ids):
        raise InvalidInput(f"{path}: model.vocab gives an id to two tokens, or something that is no id")
    token = next((token for token, id in vocabulary.items() if id < 0), None)
    if token is not None:
        raise InvalidInput(f"{path}: {quote(token)} has the id {vocabulary[token]}; it must be a whole number from 0")
    return vocabulary


def _check_tokens(path: Path, tokens: Sequence[str]) -> None:
    if fault := tokens_fault(tokens):
        raise InvalidInput(f"{path}: {fault}")
    if len(set(tokens)) != len(tokens):
        raise InvalidInput(f"{path}: {repeated(tokens)}")


def _merges(path: Path, model: Mapping[str, Any], vocabulary: Mapping[str, int]) -> tuple[str, ...]:
    merges = model.get("merges")
    if not isinstance(merges, list) or not merges:
        raise InvalidInput(f"{path}: model.merges must be a list of merges")
    read = []
    for rank, (left, right) in enumerate(pairs(str(path), merges)):
        if left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
            raise InvalidInput(f"{path}: merge {rank}, {quote(left)} and {quote(right)}, is of unknown tokens")
        if " " in left + right:
            raise InvalidInput(f"{path}: merge {rank} holds a space, so its tokens are not of the byte-level kind")
        read.append(f"{left} {right}")
    return tuple(read)
