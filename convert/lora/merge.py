"""LoRA adapters and the tensors of a checkpoint: which update belongs to which.

A module has one name in the checkpoint's files and another in the model that was trained, and both vary with the
version of transformers: `language_model.model.layers.0…` is `model.language_model.layers.0…`. The wrappers in front
do not count.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ...checkpoint.file_access import quote
from ...checkpoint.folder import Checkpoint
from ...checkpoint.lora import Adapter, LoraModule
from ...checkpoint.types import GGMLQuantizationType, Slice
from ...errors import InvalidInput
from ...pipeline.plan import LowRank, Tensor
from ..architectures import siglip
from ..same_bytes import same_bytes
from ..tied_embeddings import EMBEDDINGS, HEAD, embedding_of, is_tied, without_shared

Loras = Sequence[tuple[Adapter, float]]
"""Adapters, each with its own scale."""

WRAPPERS = ("base_model", "_orig_mod", "model", "language_model", "transformer")
VISION = (siglip.TOWER, siglip.PROJECTOR)

log = logging.getLogger("borealis_gguf")


@dataclass(frozen=True, slots=True)
class Merge:
    """What adapters do to a checkpoint. `checkpoint` has the tensors they replace, `names` tells names by slice.

    With `lora_on_tied`, LoRA changes an embedding that is the output layer, too.
    """

    checkpoint: Checkpoint
    updates: Mapping[Slice, tuple[LowRank, ...]]
    precision: Mapping[Slice, GGMLQuantizationType]
    names: Mapping[Slice, str]
    lora_on_tied: bool = False

    def warn(self) -> None:
        """Say what is done that the adapter's training did not do."""
        if self.lora_on_tied:
            log.warning(
                "the embedding and the output layer are one matrix here, so LoRA on one of them changes both, as "
                "PEFT's merge_and_unload does; if only one was trained, untie them in the base model first (load it "
                "with tie_word_embeddings=False, copy the embedding into lm_head, save it)"
            )

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
    tensors, precision, homes, parted = _replaced(checkpoint, loras)
    updates: dict[Slice, tuple[LowRank, ...]] = {}
    for adapter, scale in loras:
        for module, name in _targets(adapter, homes):
            home = tensors[name]
            if scale:
                updates[home] = (*updates.get(home, ()), low_rank(adapter, module, home, scale))
    changed = updates.keys() | precision.keys()
    parted = parted or _is_parted(tensors, homes, updates)
    names = {slice: name for name, slice in tensors.items() if slice in changed}
    merged = replace(checkpoint, tensors=tensors, parted_head=parted)
    return Merge(merged, updates, precision, names, _lora_on_tied(loras, homes))


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
    plain = {module.module: f"{plain_name(module.module)}.weight" for module in adapter.modules}
    missing = [module for module, name in plain.items() if name not in homes]
    if missing:
        raise InvalidInput(
            f"{adapter.path}: the adapter changes {_listed(missing)}, which the model does not have; is it its adapter?"
        )
    modules = without_shared(adapter, plain) if _one_matrix(homes) else adapter.modules
    return ((module, homes[plain[module.module]]) for module in modules)


def _replaced(
    checkpoint: Checkpoint, loras: Loras
) -> tuple[dict[str, Slice], dict[Slice, GGMLQuantizationType], dict[str, str], bool]:
    """The tensors, some of them taken from adapters; the type that those are rounded to, the base model's; names by
    plain name, where a tied output layer has the embedding's; and whether adapters part it from the embedding."""
    tensors, precision = dict(checkpoint.tensors), {}
    homes = _by_plain_name(checkpoint, tensors)
    embedding = embedding_of(homes)
    if tied := is_tied(checkpoint, homes):
        tensors.pop(homes.get(HEAD, ""), None)
        homes[HEAD] = str(embedding)
    copies: dict[str, Slice] = {}
    seen: dict[str, tuple[Adapter, Slice]] = {}
    for adapter, scale in loras:
        if adapter.replaced and scale != 1:
            log.warning("%s: %s: saved whole, so --lora-scale does not apply", adapter.path, _listed(adapter.replaced))
        for name, slice in adapter.replaced.items():
            home = homes.get(plain_name(name))
            if home is None:
                raise InvalidInput(
                    f"{adapter.path}: replaces {quote(name)}, which the model does not have; is it its adapter?"
                )
            like = checkpoint.tensors[home]
            if like.shape != slice.shape:
                raise InvalidInput(
                    f"{slice.path}: {quote(name)}: its shape is {list(slice.shape)[:9]}, but the checkpoint's is "
                    f"{list(like.shape)}; an adapter that changes shapes must be merged with PEFT"
                )
            precision[slice] = like.type
            is_copy = tied and home == embedding and name in adapter.copies
            place = plain_name(name) if is_copy else home
            _check_once(adapter, name, slice, *seen.setdefault(place, (adapter, slice)))
            if is_copy:
                copies[place] = slice
            else:
                tensors[home] = slice
    parted = bool(copies) and _part(tensors, homes, copies)
    return tensors, precision, homes, parted


def _check_once(adapter: Adapter, name: str, slice: Slice, owner: Adapter, first: Slice) -> None:
    """An adapter may hold a tied matrix twice. Two adapters may not replace the same tensor."""
    if owner is not adapter:
        raise InvalidInput(f"{adapter.path}: {quote(name)}: two adapters replace this tensor; merge only one")
    if slice is not first and not same_bytes(slice, first):
        raise InvalidInput(
            f"{slice.path}: {quote(name)}: the file has another embedding than output layer; they are one matrix in "
            "the base model, and modules_to_save names neither, so PEFT would use whichever it loads last"
        )


def _part(tensors: dict[str, Slice], homes: dict[str, str], copies: Mapping[str, Slice]) -> bool:
    """Put trained copies of a tied embedding and output layer in their places. Whether they are two matrices then."""
    embedding = homes[HEAD]
    head = copies.get(HEAD, tensors[embedding])
    tensors[embedding] = next((slice for name, slice in copies.items() if name != HEAD), tensors[embedding])
    if same_bytes(head, tensors[embedding]):
        return False
    tensors[HEAD], homes[HEAD] = head, HEAD
    return True


def _one_matrix(homes: Mapping[str, str]) -> bool:
    return HEAD in homes and homes[HEAD] == embedding_of(homes)


def _is_parted(tensors: Mapping[str, Slice], homes: Mapping[str, str], updates: Mapping[Slice, object]) -> bool:
    """Whether the output layer is no longer the embedding though their bytes may be the same."""
    embedding = embedding_of(homes)
    if embedding is None or HEAD not in homes or _one_matrix(homes):
        return False
    return updates.get(tensors[homes[HEAD]]) != updates.get(tensors[embedding])


def _by_plain_name(checkpoint: Checkpoint, tensors: Mapping[str, Slice]) -> dict[str, str]:
    names: dict[str, str] = {}
    for name in tensors:
        if names.setdefault(plain_name(name), name) != name:
            other = names[plain_name(name)]
            raise InvalidInput(f"{checkpoint.path}: {quote(name)} and {quote(other)} are the same tensor to an adapter")
    return names


def _lora_on_tied(loras: Loras, homes: Mapping[str, str]) -> bool:
    changed = {f"{plain_name(module.module)}.weight" for adapter, scale in loras if scale for module in adapter.modules}
    return _one_matrix(homes) and not changed.isdisjoint((HEAD, *EMBEDDINGS))


def _listed(names: Iterable[str]) -> str:
    shown = [quote(name).strip("'") for name in names]
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")
