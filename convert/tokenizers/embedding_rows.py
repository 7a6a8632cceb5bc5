"""Tokens without an embedding row: their ids are past the vocabulary that config.json gives the model."""

from collections.abc import Iterable
from pathlib import Path

from ...checkpoint.file_access import quote
from ...checkpoint.folder import Checkpoint
from ...errors import InvalidInput
from ..config_fields import shown

PLACEHOLDERS = frozenset({"<image_soft_token>"})
"""Tokens that mark the place of an image's embeddings and are never looked up. Gemma 3 270m and 1b share a tokenizer
with the sizes that have vision, so theirs has this token one past the last row."""

EMBEDDINGS = ("embed_tokens.weight", "word_embeddings.weight")


def embedding_rows(checkpoint: Checkpoint) -> int | None:
    """How many rows the token embedding has; None where there is none."""
    return next((s.shape[0] for name, s in checkpoint.tensors.items() if name.endswith(EMBEDDINGS) and s.shape), None)


def check_token_rows(folder: Path, tokens: Iterable[tuple[int, str]], n_vocab: int, rows: int | None) -> None:
    """Refuse tokens (id, text) past a vocabulary of `n_vocab`, unless they are placeholders.

    `rows` is the length of the embedding, if it is known: rows past `n_vocab` would be cut off.
    """
    lost = {id: text for id, text in tokens if id >= n_vocab and text not in PLACEHOLDERS}
    if not lost:
        return
    ids = sorted(lost)
    listed = ", ".join(f"{quote(lost[id], 40)} (id {shown(id, 20)})" for id in ids[:4])
    more = f" and {len(ids) - 4} more" if len(ids) > 4 else ""
    advice = (
        f"the embedding has {rows} rows, so set vocab_size to {rows}"
        if rows is not None and ids[-1] < rows
        else "call model.resize_token_embeddings(len(tokenizer)) in transformers and save the model again, or remove "
        "these tokens from the tokenizer"
    )
    raise InvalidInput(
        f"{folder / 'config.json'}: vocab_size is {n_vocab}, which leaves these tokens without an embedding: "
        f"{listed}{more}; {advice}"
    )
