"""Recovers SentencePiece pieces and scores from a tokenizer.json, for checkpoints without tokenizer.model.

transformers converted these files from a SentencePiece BPE model: every split of a piece into two pieces became a
merge, and merges are ranked by the score of the resulting piece. So minus the rank of a piece's first merge orders
pieces as the original scores do, and only this order matters to the encoder.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from ...checkpoint.file_access import quote
from ...errors import InvalidInput
from .preprocessing import read_preprocessing

NORMAL, UNUSED, BYTE = 1, 5, 6
MERGED_NEVER = 0.0
"""The score of a piece that no merge makes (a letter, a byte); the encoder does not use it."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """Texts, scores and types by id; the text of an id without a piece is None."""

    texts: Sequence[str | None]
    scores: Sequence[float]
    types: Sequence[int]


def pieces_of_tokenizer_json(
    where: str, json: Mapping[str, Any], added: Collection[str], *, plain: bool = True
) -> Pieces:
    """Returns the pieces; the `added` tokens fill ids without one. Removes the merges from `json`.

    Raises InvalidInput for a tokenizer that is not of Gemma's kind, since llama.cpp would return other ids. Without
    `plain`, every preprocessing that `read_preprocessing` accepts is allowed.
    """
    model = json.get("model")
    if not isinstance(model, dict):
        raise InvalidInput(f"{where}: it has no model")
    _check_kind(where, json, model, plain)
    vocabulary = _vocabulary(where, model)
    # The encoder cuts added tokens out of a text first, so they are never merged.
    joined = vocabulary.keys() - added
    n = max(vocabulary.values()) + 1
    texts: list[str | None] = [None] * n
    for piece, id in vocabulary.items():
        texts[id] = piece
    types = [UNUSED if text is None else BYTE if _is_byte(text) else NORMAL for text in texts]
    return Pieces(texts, _scores(where, model.pop("merges", None), vocabulary, joined, n), types)


def _check_kind(where: str, json: Mapping[str, Any], model: Mapping[str, Any], plain: bool) -> None:
    faults = [
        f"{key} is {quote(str(model.get(key)))}"
        for key, allowed in (
            ("type", ("BPE", None)),
            ("byte_fallback", (True,)),
            ("ignore_merges", (False, None)),
            ("dropout", (None, 0, 0.0)),
            ("continuing_subword_prefix", (None, "")),
            ("end_of_word_suffix", (None, "")),
        )
        if model.get(key) not in allowed
    ]
    preprocessing = read_preprocessing(json)
    if preprocessing is None or (plain and (preprocessing.prefix or preprocessing.normalizer)):
        faults.append("its normalizer does more, or less, than to replace spaces by ▁")
    if preprocessing is None or (plain and preprocessing.splits):
        faults.append("its pre_tokenizer splits the text")
    if faults:
        kind = "Gemma's kind" if plain else "SentencePiece's kind"
        raise InvalidInput(
            f"{where}: not a tokenizer of {kind} ({'; '.join(faults)}); put the checkpoint's tokenizer.model beside it"
        )


def _vocabulary(where: str, model: Mapping[str, Any]) -> dict[str, int]:
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict) or not vocabulary:
        raise InvalidInput(f"{where}: model.vocab must be an object of pieces and their ids")
    ids: set[int] = set()
    for piece, id in vocabulary.items():
        if type(id) is not int or not 0 <= id < 1 << 20 or id in ids:
            raise InvalidInput(
                f"{where}: {quote(piece)} has the id {quote(str(id), 30)}, which is out of range or taken"
            )
        ids.add(id)
    return vocabulary


def _scores(where: str, merges: Any, vocabulary: Mapping[str, int], joined: AbstractSet[str], n: int) -> list[float]:
    """Returns, by id, minus the rank of the first merge that makes the piece."""
    if not isinstance(merges, list):
        raise InvalidInput(f"{where}: model.merges must be a list")
    scores, merge_counts = [MERGED_NEVER] * n, [0] * n
    id_of, first = vocabulary.get, bytearray(b"\1" * n)
    for rank, (left, right) in enumerate(pairs(where, merges)):
        id = id_of(left + right)
        both_joined = left in joined and right in joined
        if id is None or not (both_joined or (left in vocabulary and right in vocabulary)):
            raise InvalidInput(f"{where}: merge {rank}, {quote(left)} and {quote(right)}, is of unknown pieces")
        merge_counts[id] += both_joined
        if first[id]:
            scores[id], first[id] = -float(rank), 0
    _check_complete(where, vocabulary, joined, merge_counts)
    return scores


def _check_complete(
    where: str, vocabulary: Mapping[str, int], joined: AbstractSet[str], merge_counts: Sequence[int]
) -> None:
    """Checks that every pair of pieces that makes a piece is a merge, since llama.cpp merges all such pairs."""
    for piece, id in vocabulary.items():
        merges = merge_counts[id]
        if merges == len(piece) - 1 or piece not in joined or _is_byte(piece):
            continue
        possible = 0
        for i in range(1, len(piece)):
            possible += piece[:i] in joined and piece[i:] in joined
        if merges < possible:
            raise InvalidInput(
                f"{where}: {quote(piece)} can be made of {possible} pairs of pieces, but only {merges} are merges, so "
                "llama.cpp would give other ids; put the checkpoint's tokenizer.model beside it"
            )


def pairs(where: str, merges: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """Yields every merge of a parsed tokenizer.json as two pieces. Raises InvalidInput for a malformed merge."""
    for rank, merge in enumerate(merges):
        if isinstance(merge, list) and len(merge) == 2:
            left, right = merge
            if isinstance(left, str) and isinstance(right, str) and left and right:
                yield left, right
                continue
        raise InvalidInput(f"{where}: merge {rank} is {quote(str(merge))}; it must be two pieces")


def _is_byte(piece: str) -> bool:
    return (
        len(piece) == 6
        and piece.startswith("<0x")
        and piece.endswith(">")
        and all(c in "0123456789ABCDEF" for c in piece[3:5])
    )
