"""Embedding and output layer as one matrix, and what adapters make of it: as PEFT's merge_and_unload leaves them.

- Whether they are one matrix is what config.json says (`tie_word_embeddings`). No weight is read here: where both are
  stored, the pair is handed on, to be compared before files are written.
- A copy that is trained whole (modules_to_save) takes the place of its own matrix; the other one stays as it is. With
  PEFT's ensure_weight_tying, both copies are one matrix.
- Whatever else changes one of the two changes both: LoRA matrices, and weights that PEFT stores beside them.
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
"""Beginnings of the architectures that tie where config.json is silent."""


def embedding_of(homes: Mapping[str, str]) -> str | None:
    """The embedding's name in the checkpoint, of names by plain name."""
    return next((homes[name] for name in EMBEDDINGS if name in homes), None)


def is_tied(checkpoint: Checkpoint, homes: Mapping[str, str]) -> bool:
    """Whether the output layer is the embedding: it is not stored, or stored once more and tied by the configuration.

    `homes` has the checkpoint's names by plain name.
    """
    embedding = embedding_of(homes)
    if embedding is None or HEAD not in homes:
        return embedding is not None
    return says_tied(checkpoint.config) and alike(checkpoint.tensors[homes[HEAD]], checkpoint.tensors[embedding])


def alike(first: Slice, second: Slice) -> bool:
    """Whether two arrays can hold the same matrix, as far as headers tell."""
    return (first.type, first.shape) == (second.type, second.shape)


def says_tied(config: Mapping[str, Any]) -> bool:
    """Whether config.json ties the output layer to the embedding, by itself or by the architecture's default."""
    text = config.get("text_config")
    found = [c.get("tie_word_embeddings") for c in (config, text if isinstance(text, Mapping) else {})]
    known = [value for value in found if value is not None]
    names = config.get("architectures")
    first = str(names[0]) if isinstance(names, list) and names else ""
    return all(known) if known else first.startswith(TIED_BY_DEFAULT)


def without_tied_head(checkpoint: Checkpoint) -> dict[str, Slice]:
    """The checkpoint's tensors, less an output layer that repeats the embedding, as config.json has it.

    Raises InvalidInput where the output layer is neither stored nor tied. One that is tied and of another shape or type
    than the embedding is another matrix, as merges of models leave it: it is kept, with a warning.
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
    """The output layer that `without_tied_head` leaves out, and the embedding that it must repeat."""
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
    """The adapter's modules; of embedding and output layer that share their LoRA matrices, the embedding alone.

    `plain` has plain names by module. PEFT's ensure_weight_tying makes such pairs; one of them is stored transposed.
    """
    if not adapter.ensures_tying:
        return adapter.modules
    by_name = {plain[module.module]: module for module in adapter.modules}
    head = by_name.get(HEAD)
    embedding = next((by_name[name] for name in EMBEDDINGS if name in by_name), None)
    if not head or not embedding or head.a.shape != embedding.b.shape[::-1]:
        return adapter.modules
    return [module for module in adapter.modules if module is not head]
