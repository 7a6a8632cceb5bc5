"""LoRA adapters and the tensors of a checkpoint: which update belongs to which.

A module has one name in the checkpoint's files and another in the model that was trained, and both vary with the
version of transformers: `language_model.model.layers.0…` is `model.language_model.layers.0…`. The wrappers in front
do not count.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ..checkpoint.files import quote
from ..checkpoint.folder import Checkpoint
from ..checkpoint.lora import Adapter, LoraModule
from ..checkpoint.types import GGMLQuantizationType, Slice
from ..errors import InvalidInput
from ..pipeline.plan import LowRank, Tensor
from . import siglip

Loras = Sequence[tuple[Adapter, float]]
"""Adapters, each with its own scale."""

WRAPPERS = ("base_model", "model", "language_model", "transformer")
VISION = (siglip.TOWER, siglip.PROJECTOR)
HEAD = "lm_head.weight"
EMBEDDINGS = ("embed_tokens.weight", "word_embeddings.weight")

log = logging.getLogger("borealis_gguf")


@dataclass(frozen=True, slots=True)
class Merge:
    """What adapters do to a checkpoint. `checkpoint` has the tensors they replace, `names` tells names by slice."""

    checkpoint: Checkpoint
    updates: Mapping[Slice, tuple[LowRank, ...]]
    precision: Mapping[Slice, GGMLQuantizationType]
    names: Mapping[Slice, str]

    def apply(self, tensors: Iterable[Tensor], *, vision: bool = False) -> tuple[Tensor, ...]:
        """`tensors`, the text side or the `vision` side, with the updates that are theirs.

        Raises InvalidInput for an update of that side that would be lost.
        """
        merged = tuple(self._changed(tensor) for tensor in tensors)
        lost = [name for slice, name in self.names.items() if slice not in {t.source.slice for t in merged}]
        if here := [name for name in lost if plain_name(name).startswith(VISION) == vision]:
            raise InvalidInput(f"{self.checkpoint.path}: an adapter changes {_listed(here)}, which is not converted")
        if lost and not vision:
            log.warning("an adapter also changes the vision side (%s): the mmproj needs it too", _listed(lost))
        return merged

    def _changed(self, tensor: Tensor) -> Tensor:
        slice = tensor.source.slice
        updates, precision = self.updates.get(slice, ()), self.precision.get(slice)
        if not updates and precision is None:
            return tensor
        return replace(tensor, source=replace(tensor.source, updates=updates, precision=precision))


def plain_name(name: str) -> str:
    """A tensor's or module's name without what wraps the model."""
    parts = name.split(".")
    while len(parts) > 1 and parts[0] in WRAPPERS:
        del parts[0]
    name = ".".join(parts)
    return siglip.plain_name(name) or name


def plan_merge(checkpoint: Checkpoint, loras: Loras) -> Merge:
    """Find the place of every tensor of the adapters. Scales multiply updates; replaced tensors are taken whole.

    Raises InvalidInput for modules the checkpoint does not have, shapes that do not fit, and two adapters that
    replace the same tensor.
    """
    if not loras:
        return Merge(checkpoint, {}, {}, {})
    tensors, precision = _replaced(checkpoint, loras)
    homes = _by_plain_name(checkpoint, tensors)
    updates: dict[Slice, tuple[LowRank, ...]] = {}
    for adapter, scale in loras:
        for module, name in _targets(adapter, homes):
            home = tensors[name]
            if scale:
                updates[home] = (*updates.get(home, ()), low_rank(adapter, module, home, scale))
    _warn_of_tied(homes, tensors, updates.keys() | precision.keys())
    changed = updates.keys() | precision.keys()
    return Merge(replace(checkpoint, tensors=tensors), updates, precision,
                 {slice: name for name, slice in tensors.items() if slice in changed})  # fmt: skip


def low_rank(adapter: Adapter, module: LoraModule, home: Slice, scale: float) -> LowRank:
    """The update of the matrix `home`, at `scale`. Raises InvalidInput when its shape is another."""
    shape, factor = (module.b.shape[0], module.a.shape[1]), scale * module.scaling
    if not module.embedding and home.shape == shape:
        return LowRank(module.b, module.a, factor)
    # PEFT too heeds fan_in_fan_out only where a matrix is stored as [in, out]
    if (module.embedding or adapter.fan_in_fan_out) and home.shape == shape[::-1]:
        return LowRank(module.a, module.b, factor, transposed=True)
    raise InvalidInput(
        f"{module.a.path}: {quote(module.module)}: changes a matrix of {list(shape)}, but the checkpoint's is "
        f"{list(home.shape)}; is this the model the adapter was trained on?"
    )


def _targets(adapter: Adapter, homes: Mapping[str, str]) -> Iterator[tuple[LoraModule, str]]:
    """Each module with the name of the tensor it updates."""
    missing = [module.module for module in adapter.modules if f"{plain_name(module.module)}.weight" not in homes]
    if missing:
        tied = plain_name(missing[0]) == "lm_head"
        why = "the output layer is the embedding here, and merging would change both" if tied else "is it this model's?"
        raise InvalidInput(
            f"{adapter.path}: the adapter changes {_listed(missing)}, which the model does not have; {why}"
        )
    return ((module, homes[f"{plain_name(module.module)}.weight"]) for module in adapter.modules)


def _replaced(checkpoint: Checkpoint, loras: Loras) -> tuple[dict[str, Slice], dict[Slice, GGMLQuantizationType]]:
    """The tensors, some of them taken from adapters, and the type that those are rounded to: the base model's."""
    tensors, precision = dict(checkpoint.tensors), {}
    homes = _by_plain_name(checkpoint, tensors)
    seen: set[str] = set()
    for adapter, scale in loras:
        if adapter.replaced and scale != 1:
            log.warning("%s: %s: saved whole, so --lora-scale does not apply", adapter.path, _listed(adapter.replaced))
        for name, slice in adapter.replaced.items():
            plain = plain_name(name)
            if plain in seen:
                raise InvalidInput(f"{adapter.path}: {quote(name)}: two adapters replace this tensor; merge only one")
            seen.add(plain)
            home = homes.get(plain, plain)
            if plain not in homes and (plain != HEAD or _embedding(homes) is None):
                raise InvalidInput(
                    f"{adapter.path}: replaces {quote(name)}, which the model does not have; is it its adapter?"
                )
            like = checkpoint.tensors.get(home) or checkpoint.tensors[_embedding(homes) or home]
            if like.shape != slice.shape:
                raise InvalidInput(
                    f"{slice.path}: {quote(name)}: its shape is {list(slice.shape)[:9]}, but the checkpoint's is "
                    f"{list(like.shape)}; an adapter that changes shapes must be merged with PEFT"
                )
            tensors[home], precision[slice] = slice, like.type
    return tensors, precision


def _by_plain_name(checkpoint: Checkpoint, tensors: Mapping[str, Slice]) -> dict[str, str]:
    names: dict[str, str] = {}
    for name in tensors:
        if names.setdefault(plain_name(name), name) != name:
            other = names[plain_name(name)]
            raise InvalidInput(f"{checkpoint.path}: {quote(name)} and {quote(other)} are the same tensor to an adapter")
    return names


def _warn_of_tied(homes: Mapping[str, str], tensors: Mapping[str, Slice], changed: Iterable[Slice]) -> None:
    embedding = _embedding(homes)
    if embedding and tensors[embedding] in set(changed) and HEAD not in {plain_name(name) for name in tensors}:
        log.warning("an adapter changes the embedding, and with it the output layer, which is tied to it")


def _embedding(homes: Mapping[str, str]) -> str | None:
    return next((homes[name] for name in EMBEDDINGS if name in homes), None)


def _listed(names: Iterable[str]) -> str:
    shown = [quote(name).strip("'") for name in names]
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")
