"""A GGUF's vocabulary against the checkpoint's own tokenizer, token by token: `convert` has no part in it."""

from collections.abc import Mapping, Sequence
from itertools import compress, pairwise
from operator import ne
from typing import Any

from ...checkpoint.gguf import GGUFFile
from ...convert.tokenizers.embedding_rows import PLACEHOLDERS

SPACE = "▁"
USER_DEFINED, BYTE = 4, 6
KEPT = 5
"""Examples that are handed on of each kind of difference."""


def compare_texts(reference: Mapping[str, int], header: GGUFFile) -> dict[str, Any]:
    """Compare the text of every id. `reference` is the tokenizer's vocabulary.

    `different`: how many ids have another text, and `examples` of them as [id, tokenizer's text, GGUF's]. `lost`: how
    many tokens have an id for which the GGUF has no token, apart from placeholders; `lost_examples` as [id, text].
    """
    tokens: Sequence[str] = header.value("tokenizer.ggml.tokens", ())
    types: Sequence[int] = header.value("tokenizer.ggml.token_type", ())
    texts: list[str | None] = [None] * max(len(tokens), 1 + max(reference.values(), default=-1))
    for text, id in reference.items():
        texts[id] = text
    stored = types and header.value("tokenizer.ggml.model") == "llama"
    different = [
        [id, text, tokens[id]]
        for id, text in compress(enumerate(texts), map(ne, texts, tokens))
        if text is not None and not (stored and types[id] == USER_DEFINED and tokens[id] == text.replace(SPACE, " "))
    ]
    lost = [
        [id, text] for id, text in enumerate(texts[len(tokens) :], len(tokens)) if text and text not in PLACEHOLDERS
    ]
    return {
        "tokens": len(tokens),
        "different": len(different),
        "examples": different[:KEPT],
        "lost": len(lost),
        "lost_examples": lost[:KEPT],
    }


def compare_merges(json: Mapping[str, Any], header: GGUFFile) -> list[str]:
    """What is wrong with how the GGUF joins pieces, in sentences; `json` is a parsed tokenizer.json.

    A byte-level GGUF has the merges themselves. A SentencePiece one has scores: llama.cpp joins any two pieces that
    make a piece, the best score first, so scores must fall in the order of the merges, and no merge may be missing.
    """
    merges: Sequence[tuple[str, str]] = json["model"]["merges"]
    if header.value("tokenizer.ggml.model") == "gpt2":
        return _same_merges(merges, header.value("tokenizer.ggml.merges", ()))
    added = {token["content"] for token in json.get("added_tokens") or []}
    return [*_order(merges, added, header), *_missing(merges, json["model"]["vocab"].keys() - added, header)]


def _same_merges(merges: Sequence[tuple[str, str]], found: Sequence[str]) -> list[str]:
    if len(found) != len(merges):
        return [f"{len(found)} merges, where tokenizer.json has {len(merges)}"]
    ranks = [rank for rank, (pair, merge) in enumerate(zip(merges, found, strict=True)) if " ".join(pair) != merge]
    return [f"{len(ranks)} merges differ from tokenizer.json's, the first at rank {ranks[0]}"] if ranks else []


def _order(merges: Sequence[tuple[str, str]], added: set[str], header: GGUFFile) -> list[str]:
    tokens, scores = (header.value(f"tokenizer.ggml.{name}", ()) for name in ("tokens", "scores"))
    score_of = dict(zip(tokens, scores, strict=False))
    pieces = [piece for piece in dict.fromkeys(left + right for left, right in merges) if piece not in added]
    ordered = [score_of[piece] for piece in pieces if piece in score_of]
    wrong = sum(a < b for a, b in pairwise(ordered))
    return [f"scores rise at {wrong} places where the merges of tokenizer.json fall in rank"] if wrong else []


def _missing(merges: Sequence[tuple[str, str]], joined: set[str], header: GGUFFile) -> list[str]:
    """Pairs of pieces that llama.cpp joins and tokenizer.json does not."""
    made: dict[str, int] = {}
    for left, right in merges:
        if left in joined and right in joined:
            made[left + right] = made.get(left + right, 0) + 1
    missing = 0
    for piece in joined:
        count, splits = made.get(piece, 0), range(1, len(piece))
        if count < len(splits) and not (len(piece) == 6 and piece.startswith("<0x")):
            missing += sum(piece[:i] in joined and piece[i:] in joined for i in splits) - count
    return [f"{missing} pairs of pieces are no merges in tokenizer.json, and llama.cpp joins them"] if missing else []
