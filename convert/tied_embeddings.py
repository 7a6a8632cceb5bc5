"""Decides whether embedding and output layer are tied (one matrix), and merges adapters as PEFT's merge_and_unload.

- `tie_word_embeddings` in config.json decides. If both matrices are stored, the pipeline compares their bytes before it
  writes files, since no weight is read here.
- A trained copy (modules_to_save) replaces its own matrix only; the other one is unchanged. With PEFT's
  ensure_weight_tying, both copies are one matrix.
- LoRA matrices, and weights that PEFT stores beside them, change both matrices.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from ..checkpoint.folder import Checkpoint
from ..checkpoint.lora import Adapter, LoraModule
from ..checkpoint.types import Slice
from ..errors import InvalidInput
from ..pipeline.plan import EqualSlices
from .plain_names import plain_name

HEAD = "lm_head.weight"
EMBEDDINGS = ("embed_tokens.weight", "word_embeddings.weight")
TIED_BY_DEFAULT = ("Gemma3", "Bloom")
"""Prefixes of architectures that tie by default, if config.json has no tie_word_embeddings."""


def embedding_of(homes: Mapping[str, str]) -> str | None:
    """Returns the embedding's tensor name; `homes` maps plain names to names in the checkpoint."""
    return next((homes[name] for name in EMBEDDINGS if name in homes), None)


def is_tied(checkpoint: Checkpoint, homes: Mapping[str, str]) -> bool:
    """Whether the output layer is the embedding: it is not stored, or stored twice and tied by the configuration.

    `homes` maps plain names to names in the checkpoint.
    """
    embedding = embedding_of(homes)
    if embedding is None or HEAD not in homes:
        return embedding is not None
    return says_tied(checkpoint.config) and alike(checkpoint.tensors[homes[HEAD]], checkpoint.tensors[embedding])


def alike(first: Slice, second: Slice) -> bool:
    """Whether two tensors have the same type and shape, so that they may hold the same matrix."""
    return (first.type, first.shape) == (second.type, second.shape)


def says_tied(config: Mapping[str, Any]) -> bool:
    """Whether config.json ties the output layer to the embedding, by itself or by the architecture's default."""
    text = config.get("text_config")
    settings = [c.get("tie_word_embeddings") for c in (config, text if isinstance(text, Mapping) else {})]
    known = [value for value in settings if value is not None]
    names = config.get("architectures")
    first = str(names[0]) if isinstance(names, list) and names else ""
    return all(known) if known else first.startswith(TIED_BY_DEFAULT)


def without_tied_head(checkpoint: Checkpoint) -> dict[str, Slice]:
    """Returns the checkpoint's tensors without a tied output layer.

    Raises InvalidInput if the output layer is neither stored nor tied. A tied output layer whose shape or type differs
    from the embedding's, as some model merges write it, is kept with a warning.
    """
    tensors = checkpoint.tensors
    homes = {plain_name(name): name for name in tensors}
    if HEAD not in homes and not says_tied(checkpoint.config):
        config = checkpoint.path / "config.json"
        raise InvalidInput(f"{config}: tie_word_embeddings is false, but there is no {HEAD} among the tensors")
    if is_tied(checkpoint, homes):
        return {name: tensor for name, tensor in tensors.items() if name != homes.get(HEAD)}
    if embedding_of(homes) and says_tied(checkpoint.config):
        checkpoint.warn(
            f"{checkpoint.path}: tie_word_embeddings is true, but {HEAD} is not the embedding; it is kept, as "
            "transformers 5 does (4 leaves it out); set tie_word_embeddings to false if that is meant, or remove it"
        )
    return tensors


def repeated_head(checkpoint: Checkpoint) -> tuple[EqualSlices, ...]:
    """Returns the output layer that `without_tied_head` drops, paired with the embedding that it must equal."""
    homes = {plain_name(name): name for name in checkpoint.tensors}
    embedding = embedding_of(homes)
    if embedding is None or HEAD not in homes or not is_tied(checkpoint, homes):
        return ()
    otherwise = (
        f"{checkpoint.path}: tie_word_embeddings is true, but {HEAD} is not the embedding; set tie_word_embeddings to "
        "false in config.json to keep it, as transformers 5 does, or remove it, as 4 does"
    )
    return (EqualSlices(checkpoint.tensors[homes[HEAD]], checkpoint.tensors[embedding], otherwise),)


def without_shared(adapter: Adapter, plain: Mapping[str, str]) -> Iterable[LoraModule]:
    """Returns the adapter's modules, without an output layer that shares its LoRA matrices with the embedding.

    `plain` maps modules to plain names. PEFT's ensure_weight_tying shares the matrices, and stores one pair transposed.
    """
    if not adapter.ensures_tying:
        return adapter.modules
    by_name = {plain[module.module]: module for module in adapter.modules}
    head = by_name.get(HEAD)
    embedding = next((by_name[name] for name in EMBEDDINGS if name in by_name), None)
    if not head or not embedding or head.a.shape != embedding.b.shape[::-1]:
        return adapter.modules
    return [module for module in adapter.modules if module is not head]
