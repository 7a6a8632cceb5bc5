"""Embedding and output layer as one matrix, and what adapters make of it: as PEFT's merge_and_unload leaves them.

- A copy that is trained whole (modules_to_save) takes the place of its own matrix; the other one stays as it is. Two
  copies with the same bytes are one matrix again.
- Whatever else changes one of the two changes both: LoRA matrices, and weights that PEFT stores beside them.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..checkpoint.folder import Checkpoint
from ..checkpoint.lora import Adapter, LoraModule
from ..checkpoint.types import Slice
from ..pipeline.low_rank import read_matrix
from .same_bytes import same_bytes

HEAD = "lm_head.weight"
EMBEDDINGS = ("embed_tokens.weight", "word_embeddings.weight")
TIED_BY_DEFAULT = ("Gemma3", "Bloom")
"""Beginnings of the architectures that tie where config.json is silent."""


def embedding_of(homes: Mapping[str, str]) -> str | None:
    """The embedding's name in the checkpoint, of names by plain name."""
    return next((homes[name] for name in EMBEDDINGS if name in homes), None)


def is_tied(checkpoint: Checkpoint, homes: Mapping[str, str]) -> bool:
    """Whether the output layer is the embedding: it is not stored, or stored twice and tied by the configuration."""
    embedding = embedding_of(homes)
    if embedding is None or HEAD not in homes:
        return embedding is not None
    return says_tied(checkpoint.config) and same_bytes(*(checkpoint.tensors[n] for n in (homes[HEAD], embedding)))


def says_tied(config: Mapping[str, Any]) -> bool:
    """Whether config.json ties the output layer to the embedding, by itself or by the architecture's default."""
    text = config.get("text_config")
    said = [c.get("tie_word_embeddings") for c in (config, text if isinstance(text, Mapping) else {})]
    known = [value for value in said if value is not None]
    names = config.get("architectures")
    first = str(names[0]) if isinstance(names, list) and names else ""
    return all(known) if known else first.startswith(TIED_BY_DEFAULT)


def warn_of_own_head(checkpoint: Checkpoint) -> None:
    """For an output layer that is stored, and is another matrix than the embedding, as merges of models leave it."""
    if says_tied(checkpoint.config) and not checkpoint.parted_head:
        checkpoint.warn(
            f"{checkpoint.path}: tie_word_embeddings is true, but {HEAD} is not the embedding; it is kept, as "
            "transformers 5 does (4 leaves it out); set tie_word_embeddings to false if that is meant, or remove it"
        )


def without_shared(adapter: Adapter, plain: Mapping[str, str]) -> Iterable[LoraModule]:
    """The adapter's modules; of embedding and output layer that share their LoRA matrices, the embedding alone.

    `plain` has plain names by module. Such pairs are what ensure_weight_tying makes; one of them is stored transposed.
    """
    by_name = {plain[module.module]: module for module in adapter.modules}
    head = by_name.get(HEAD)
    embedding = next((by_name[name] for name in EMBEDDINGS if name in by_name), None)
    if not head or not embedding or not (_transposed(head.a, embedding.b) and _transposed(head.b, embedding.a)):
        return adapter.modules
    return [module for module in adapter.modules if module is not head]


def _transposed(one: Slice, other: Slice) -> bool:
    return one.shape == other.shape[::-1] and np.array_equal(read_matrix(one), read_matrix(other).T)
