"""Refuses tokens without an embedding row, with ids past config.json's vocab_size."""

from collections.abc import Iterable
from pathlib import Path

from ...checkpoint.file_access import quote
from ...checkpoint.folder import Checkpoint
from ...errors import InvalidInput
from ..config_fields import shown

PLACEHOLDERS = frozenset({"<image_soft_token>"})
"""Tokens that image embeddings replace, so they need no row. Gemma 3 270m and 1b share the tokenizer of the vision
models, in which this token's id is one past the last row."""

EMBEDDINGS = ("embed_tokens.weight", "word_embeddings.weight")


def embedding_rows(checkpoint: Checkpoint) -> int | None:
    """Returns the number of rows of the token embedding, or None without one."""
    return next((s.shape[0] for name, s in checkpoint.tensors.items() if name.endswith(EMBEDDINGS) and s.shape), None)


def check_token_rows(folder: Path, tokens: Iterable[tuple[int, str]], n_vocab: int, rows: int | None) -> None:
    """Refuses tokens (id, text) past a vocabulary of `n_vocab`, unless they are placeholders.

    `rows` is the number of rows of the stored embedding, if known; rows past `n_vocab` are dropped.
    """
    without_row = {id: text for id, text in tokens if id >= n_vocab and text not in PLACEHOLDERS}
    if not without_row:
        return
    ids = sorted(without_row)
    listed = ", ".join(f"{quote(without_row[id], 40)} (id {shown(id, 20)})" for id in ids[:4])
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
