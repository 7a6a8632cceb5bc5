"""Builds the vocabulary of llama.cpp's SentencePiece tokenizer: a text, a score and a type for every id.

The pieces come from tokenizer.model, or without it from tokenizer.json. Added tokens (see `added_tokens`) replace
pieces, and ids that no file lists become padding.
"""

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from enum import IntEnum
from itertools import chain, compress
from operator import ne
from pathlib import Path
from typing import Any

from gguf.constants import GGUFValueType

from ...checkpoint.file_access import quote
from ...checkpoint.folder import Checkpoint
from ...checkpoint.tokenizer_file import read_tokenizer_file
from ...checkpoint.types import KV
from ...checkpoint.unsupported_folder import no_tokenizer
from ...errors import InvalidInput
from ..metadata.chat_template import ChatTemplate, chat_template_kv, read_chat_template
from .added_tokens import AddedToken, added_tokens, declared_tokens, looks_special, optional_json
from .embedding_rows import check_token_rows, embedding_rows
from .sentencepiece_from_json import Pieces, pieces_of_tokenizer_json
from .sentencepiece_model import BPE, SentencePieceModel, read_sentencepiece
from .special_tokens import GEMMA, special_kv
from .token_validation import repeated, tokens_fault

SPACE = "▁"
ADDED_SCORE, PADDING_SCORE = -1000.0, -10000.0
TURNS = ("<start_of_turn>", "<end_of_turn>")


class TokenType(IntEnum):
    """GGUF's token types; SentencePiece numbers its own the same way."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """The vocabulary by id, and the parsed files that name special tokens.

    `json` is tokenizer.json without its model; `config` is tokenizer_config.json. A missing file is an empty object.
    """

    folder: Path
    tokens: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[int, ...]
    json: dict[str, Any]
    config: dict[str, Any]
    chat_template: ChatTemplate


@dataclass(slots=True)
class _Table:
    """The vocabulary while it is built. `used` is 1 for the ids that some file lists."""

    tokens: list[str]
    scores: list[float]
    types: list[int]
    used: bytearray

    @classmethod
    def of(cls, pieces: Pieces, n: int) -> "_Table":
        """Starts a table with the first `n` pieces, and padding for ids without a piece."""
        texts = pieces.texts[:n]
        given = len(texts)
        more = n - given
        gaps = [id for id, text in enumerate(texts) if text is None] if None in texts else []
        tokens: list[Any] = [*texts, *[None] * more]
        table = cls(tokens, [*pieces.scores[:n], *[0.0] * more], [*pieces.types[:n], *[0] * more], bytearray(b"\1" * n))
        for id in (*gaps, *range(given, n)):
            tokens[id], table.scores[id], table.types[id] = f"[PAD{id}]", PADDING_SCORE, int(TokenType.UNUSED)
            table.used[id] = 0
        return table

    def put(self, id: int, token: str, score: float, type: int) -> None:
        self.tokens[id], self.scores[id] = token, score
        self.types[id] = int(type)  # a plain int, since Python 3.10 formats an enum by its name
        self.used[id] = 1


def read_tokenizer(checkpoint: Checkpoint, n_vocab: int, *, plain: bool = True) -> Tokenizer:
    """Reads the SentencePiece tokenizer of `checkpoint`, for a model of `n_vocab` embeddings.

    With `plain`, as for Gemma, the tokenizer must not preprocess texts, except for replacing spaces by ▁.

    Raises InvalidInput, naming the file, where llama.cpp's ids would differ from the checkpoint's tokenizer:
    unreadable files, duplicate pieces or ids, gaps, turn markers that are plain text.
    """
    model, tokenizer_json = checkpoint.file("tokenizer.model"), checkpoint.file("tokenizer.json")
    trained = read_sentencepiece(model) if model else None
    json = read_tokenizer_file(tokenizer_json) if tokenizer_json else {}
    config = optional_json(checkpoint, "tokenizer_config.json")
    added = added_tokens(str(tokenizer_json), json)
    if model and trained:
        where, pieces = model, _pieces_of_model(model, trained)
    elif tokenizer_json:
        where, pieces = (
            tokenizer_json,
            pieces_of_tokenizer_json(str(tokenizer_json), json, {t["content"] for t in added}, plain=plain),
        )
    else:
        raise InvalidInput(f"{checkpoint.path}: {no_tokenizer(checkpoint.path)}")
    declared = declared_tokens(checkpoint, config, added)
    vocabulary = _vocabulary_beside_model(json)
    named = chain(
        ((id, text) for id, text in enumerate(pieces.texts[n_vocab:], n_vocab) if text is not None),
        ((id, piece) for piece, id in vocabulary.items() if type(id) is int),
        ((token["id"], token["content"]) for token in added),
        ((token.id, token.text) for token in declared),
    )
    check_token_rows(checkpoint.path, named, n_vocab, embedding_rows(checkpoint))
    table = _Table.of(pieces, n_vocab)
    _add_tokens(declared, table)
    _check_vocabulary(where, table)
    _check_same_pieces(str(tokenizer_json), vocabulary, {token["id"] for token in added}, declared, table)
    _check_markers(where, table, added)
    json.pop("model", None)
    template = read_chat_template(checkpoint, config)
    return Tokenizer(
        checkpoint.path, tuple(table.tokens), tuple(table.scores), tuple(table.types), json, config, template
    )


def tokenizer_kv(tokenizer: Tokenizer, config: Mapping[str, Any], names: Mapping[str, str] = GEMMA) -> tuple[KV, ...]:
    """Returns the tokenizer's keys in the order llama.cpp's converter writes them; `config` is config.json.

    `names` are the default texts of special tokens that no file names."""
    string, array = GGUFValueType.STRING, GGUFValueType.ARRAY
    return (
        KV("tokenizer.ggml.model", string, "llama"),
        KV("tokenizer.ggml.pre", string, "default"),
        KV("tokenizer.ggml.tokens", array, tokenizer.tokens, string),
        KV("tokenizer.ggml.scores", array, tokenizer.scores, GGUFValueType.FLOAT32),
        KV("tokenizer.ggml.token_type", array, tokenizer.types, GGUFValueType.INT32),
        *special_kv(str(tokenizer.folder), tokenizer.json, tokenizer.config, config, tokenizer.tokens, names),
        *chat_template_kv(tokenizer.chat_template),
    )


def _pieces_of_model(path: Path, model: SentencePieceModel) -> Pieces:
    """Returns the pieces of tokenizer.model; user-defined ones get spaces for ▁, since llama.cpp matches raw text."""
    if model.model_type != BPE:
        raise InvalidInput(
            f"{path}: a SentencePiece model of type {model.model_type}, not BPE; llama.cpp would split otherwise"
        )
    if not math.isfinite(sum(map(abs, model.scores))):
        id = next(id for id, score in enumerate(model.scores) if not math.isfinite(score))
        raise InvalidInput(f"{path}: piece {id}, {quote(model.pieces[id])}, has the score {model.scores[id]}")
    if unknown := set(model.types) - set(TokenType):
        id = next(id for id, type in enumerate(model.types) if type in unknown)
        raise InvalidInput(f"{path}: piece {id} is of type {model.types[id]}; only 1 to 6 are known")
    texts = list(model.pieces)
    user_defined = int(TokenType.USER_DEFINED)  # a plain int compares faster than an enum
    for id in compress(range(len(texts)), map(user_defined.__eq__, model.types)):
        texts[id] = texts[id].replace(SPACE, " ")
    return Pieces(texts, model.scores, model.types)


def _vocabulary_beside_model(json: Mapping[str, Any]) -> dict[str, Any]:
    """Returns pieces and ids of tokenizer.json, empty without the file."""
    model = json.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    return vocabulary if isinstance(vocabulary, dict) else {}


def _check_same_pieces(
    where: str, vocabulary: dict[str, Any], added: Set[int], declared: Sequence[AddedToken], table: _Table
) -> None:
    """Checks that tokenizer.json agrees with the table; `added` are the ids of its added tokens."""
    n, tokens = len(table.tokens), table.tokens
    rows = iter(vocabulary.items())
    if list(vocabulary.values()) == list(range(len(vocabulary))):  # ids in order: compares texts by position
        rows = compress(rows, map(ne, vocabulary, [*tokens, *[None] * (len(vocabulary) - n)]))
    for piece, id in rows:
        if type(id) is not int:
            raise InvalidInput(f"{where}: {quote(piece)} has the id {quote(str(id), 30)}, which is no whole number")
        if not 0 <= id < n or tokens[id] == piece or id in added:
            continue
        if tokens[id] == piece.replace(SPACE, " "):
            continue
        other = quote(tokens[id]) if table.used[id] else "no piece"
        if file := next((token.path.name for token in declared if token.id == id), None):
            raise InvalidInput(f"{where}: id {id} is {quote(piece)}, but {other} in {file}; they must agree")
        raise InvalidInput(
            f"{where}: id {id} is {quote(piece)}, but {other} in tokenizer.model; "
            "remove the one that does not belong to the checkpoint"
        )


def _add_tokens(declared: Sequence[AddedToken], table: _Table) -> None:
    """Puts added tokens into the table. Ids past the vocabulary are placeholders and are skipped."""
    for _, id, text, special in declared:
        if id >= len(table.tokens):
            continue
        if special or (special is not None and looks_special(text)):
            table.put(id, text, ADDED_SCORE, TokenType.CONTROL)
        else:
            plain = text if special is None else text.replace(SPACE, " ")
            table.put(id, plain, ADDED_SCORE, TokenType.USER_DEFINED)


def _check_vocabulary(path: Path, table: _Table) -> None:
    """Checks that llama.cpp can load the vocabulary and encode every byte with it."""
    last = table.used.rfind(1)
    if last < 0:
        raise InvalidInput(f"{path}: it holds no tokens")
    if (gap := table.used.find(0, 0, last)) >= 0:
        raise InvalidInput(f"{path}: no token has the id {gap}, though ids go up to {last}")
    tokens = table.tokens
    if fault := tokens_fault(tokens):
        raise InvalidInput(f"{path}: {fault}")
    texts = set(tokens)
    if len(texts) != len(tokens):
        raise InvalidInput(f"{path}: {repeated(tokens)}")
    missing = next((f"<0x{byte:02X}>" for byte in range(256) if f"<0x{byte:02X}>" not in texts), None)
    if missing:
        raise InvalidInput(f"{path}: there is no token {missing}; without all 256 bytes some text cannot be encoded")


def _check_markers(path: Path, table: _Table, added: Sequence[dict[str, Any]]) -> None:
    """Checks that added tokens agree with tokenizer.json, and that turn markers are control tokens."""
    for token in added:
        id, content = token["id"], token["content"]
        if 0 <= id < len(table.tokens) and table.tokens[id] not in (content, content.replace(SPACE, " ")):
            raise InvalidInput(
                f"{path}: token {id} is {quote(table.tokens[id])}, but {quote(content)} in tokenizer.json; "
                "the tokenizer's files must agree"
            )
    for token in TURNS:
        id = table.tokens.index(token) if token in table.tokens else None
        if id is not None and table.types[id] != TokenType.CONTROL:
            raise InvalidInput(
                f"{path}: {token} (id {id}) is not a control token, so a user's text could end a turn; "
                'give it "special": true in tokenizer_config.json\'s added_tokens_decoder'
            )
