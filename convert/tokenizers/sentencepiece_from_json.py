"""SentencePiece pieces and scores from a tokenizer.json, the fast form of Gemma's tokenizer.

transformers made these files from a SentencePiece BPE model: for every piece, every way to split it into two pieces
became a merge, and merges are ranked by the score of the piece they make. So a piece's score is found again, up to a
scale that no encoder sees, as minus the rank of its first merge.
"""

from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from ...checkpoint.file_access import quote
from ...errors import InvalidInput
from .preprocessing import read_preprocessing

NORMAL, UNUSED, BYTE = 1, 5, 6
MERGED_NEVER = 0.0
"""The score of a piece that no merge makes (a letter, a byte): no encoder looks at it."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """Texts, scores and types by id; a text is None where an id has no piece."""

    texts: Sequence[str | None]
    scores: Sequence[float]
    types: Sequence[int]


def pieces_of_tokenizer_json(
    where: str, json: Mapping[str, Any], added: Collection[str], *, plain: bool = True
) -> Pieces:
    """The pieces; ids without one are those of the `added` tokens, which fill them. Merges are taken out of `json`.

    Raises InvalidInput when the tokenizer is not of Gemma's kind, since llama.cpp would then give other ids. Without
    `plain`, it may do to a text whatever `read_preprocessing` knows.
    """
    model = json.get("model")
    if not isinstance(model, dict):
        raise InvalidInput(f"{where}: it has no model")
    _check_kind(where, json, model, plain)
    vocabulary = _vocabulary(where, model)
    # Added tokens are cut out of a text beforehand: no encoder joins them with anything.
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
    view = read_preprocessing(json)
    if view is None or (plain and (view.prefix or view.normalizer)):
        faults.append("its normalizer does more, or less, than to replace spaces by ▁")
    if view is None or (plain and view.splits):
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
    """By id, minus the rank of the first merge that makes a piece."""
    if not isinstance(merges, list):
        raise InvalidInput(f"{where}: model.merges must be a list")
    scores, made = [MERGED_NEVER] * n, [0] * n
    id_of, first = vocabulary.get, bytearray(b"\1" * n)
    for rank, (left, right) in enumerate(pairs(where, merges)):
        id = id_of(left + right)
        if id is None or left not in vocabulary or right not in vocabulary:
            raise InvalidInput(f"{where}: merge {rank}, {quote(left)} and {quote(right)}, is of unknown pieces")
        if left in joined and right in joined:
            made[id] += 1
        if first[id]:
            scores[id], first[id] = -float(rank), 0
    _check_complete(where, vocabulary, joined, made)
    return scores


def _check_complete(where: str, vocabulary: Mapping[str, int], joined: AbstractSet[str], made: Sequence[int]) -> None:
    """llama.cpp joins any two pieces that make a piece, so every such pair must be a merge here."""
    for piece, id in vocabulary.items():
        merges = made[id]
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


def pairs(where: str, merges: Sequence[Any]) -> Sequence[tuple[str, str]]:
    """Every merge of a parsed tokenizer.json as two pieces. Raises InvalidInput for one that is something else."""
    return [_pair(where, rank, merge) for rank, merge in enumerate(merges)]


def _pair(where: str, rank: int, merge: Any) -> tuple[str, str]:
    if isinstance(merge, list) and len(merge) == 2:
        left, right = merge
        if isinstance(left, str) and isinstance(right, str) and left and right:
            return left, right
    raise InvalidInput(f"{where}: merge {rank} is {quote(str(merge))}; it must be two pieces")


def _is_byte(piece: str) -> bool:
    return (
        len(piece) == 6
        and piece.startswith("<0x")
        and piece.endswith(">")
        and all(c in "0123456789ABCDEF" for c in piece[3:5])
    )
