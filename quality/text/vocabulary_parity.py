"""Vocabulary parity: a GGUF's tokens, scores and merges against the checkpoint's own tokenizer, without `convert`."""

from collections.abc import Mapping, Sequence
from itertools import compress, pairwise
from operator import ne
from typing import Any

PLACEHOLDERS = frozenset({"<image_soft_token>"})
"""Tokens that may have no row in the embedding: they mark the place of an image and are never looked up."""

SPACE = "▁"
USER_DEFINED, BYTE = 4, 6
MAX_EXAMPLES = 5
"""Of each kind of difference."""


def compare_texts(reference: Mapping[str, int], gguf: Mapping[str, Any]) -> dict[str, Any]:
    """Compare the text of every id. `reference` is the tokenizer's vocabulary; `gguf`, the keys `tokenizer.ggml.…`.

    `different` counts ids with another text, `examples` are [id, tokenizer's text, GGUF's text]. `lost` counts tokens
    whose id the GGUF has no token for, apart from placeholders; `lost_examples` are [id, text].
    """
    tokens: Sequence[str] = gguf["tokens"]
    types: Sequence[int] = gguf["token_type"]
    texts: list[str | None] = [None] * max(len(tokens), 1 + max(reference.values(), default=-1))
    for text, id in reference.items():
        texts[id] = text
    sentencepiece = types and gguf["model"] == "llama"
    different = [
        [id, text, tokens[id]]
        for id, text in compress(enumerate(texts), map(ne, texts, tokens))
        if text is not None
        and not (sentencepiece and types[id] == USER_DEFINED and tokens[id] == text.replace(SPACE, " "))
    ]
    lost = [
        [id, text] for id, text in enumerate(texts[len(tokens) :], len(tokens)) if text and text not in PLACEHOLDERS
    ]
    return {
        "tokens": len(tokens),
        "different": len(different),
        "examples": different[:MAX_EXAMPLES],
        "lost": len(lost),
        "lost_examples": lost[:MAX_EXAMPLES],
    }


def compare_merges(json: Mapping[str, Any], gguf: Mapping[str, Any]) -> list[str]:
    """Faults in how the GGUF joins pieces, as sentences. `json` is a parsed tokenizer.json, `gguf` as above.

    A byte-level GGUF has the merges themselves. A SentencePiece one has scores: llama.cpp joins any two pieces that
    make a piece, the best score first, so scores must fall in the order of the merges, and no merge may be missing.
    """
    merges: Sequence[tuple[str, str]] = json["model"]["merges"]
    if gguf["model"] == "gpt2":
        return _same_merges(merges, gguf["merges"])
    added = {token["content"] for token in json.get("added_tokens") or []}
    return [*_score_order(merges, added, gguf), *_missing_merges(merges, json["model"]["vocab"].keys() - added)]


def _same_merges(merges: Sequence[tuple[str, str]], gguf_merges: Sequence[str]) -> list[str]:
    if len(gguf_merges) != len(merges):
        return [f"{len(gguf_merges)} merges, where tokenizer.json has {len(merges)}"]
    ranks = [
        rank for rank, (pair, merge) in enumerate(zip(merges, gguf_merges, strict=True)) if " ".join(pair) != merge
    ]
    return [f"{len(ranks)} merges differ from tokenizer.json's, the first at rank {ranks[0]}"] if ranks else []


def _score_order(merges: Sequence[tuple[str, str]], added: set[str], gguf: Mapping[str, Any]) -> list[str]:
    score_of = dict(zip(gguf["tokens"], gguf["scores"], strict=False))
    pieces = [piece for piece in dict.fromkeys(left + right for left, right in merges) if piece not in added]
    ordered = [score_of[piece] for piece in pieces if piece in score_of]
    wrong = sum(a < b for a, b in pairwise(ordered))
    return [f"scores rise at {wrong} places where the merges of tokenizer.json fall in rank"] if wrong else []


def _missing_merges(merges: Sequence[tuple[str, str]], joined: set[str]) -> list[str]:
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
