"""Which tensor of a checkpoint each tensor of an adapter belongs to.

A module has one name in the checkpoint's files and another in the model that was trained, and both vary with the
version of transformers: `language_model.model.layers.0…` is `model.language_model.layers.0…`. Names are compared
without the wrappers in front.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ...checkpoint.file_access import quote
from ...checkpoint.folder import Checkpoint
from ...checkpoint.lora import Adapter, LoraModule
from ...checkpoint.types import GGMLQuantizationType, Slice
from ...errors import InvalidInput
from ...pipeline.plan import EqualSlices
from ..plain_names import plain_name
from ..tied_embeddings import HEAD, alike, embedding_of, is_tied, without_shared

Loras = Sequence[tuple[Adapter, float]]
"""Adapters, each with its own scale."""

log = logging.getLogger("borealis_gguf")


@dataclass(slots=True)
class Targets:
    """A checkpoint's tensors with those that adapters store whole in their places.

    `names` has the tensors' names by plain name; a tied output layer has the embedding's. `precision` is what replaced
    tensors are rounded to, the base model's type. `equal` are arrays that must hold the same bytes. With `untied`,
    adapters make two matrices of the embedding and the output layer, which were one.
    """

    tensors: dict[str, Slice]
    names: dict[str, str]
    precision: dict[Slice, GGMLQuantizationType] = field(default_factory=dict)
    equal: list[EqualSlices] = field(default_factory=list)
    untied: bool = False

    @property
    def is_tied(self) -> bool:
        """Whether embedding and output layer are one matrix."""
        return HEAD in self.names and self.names[HEAD] == embedding_of(self.names)

    def of(self, adapter: Adapter) -> Iterator[tuple[LoraModule, str]]:
        """Each LoRA module of `adapter` with the name of the tensor it updates. Raises InvalidInput for one without."""
        plain = {module.module: f"{plain_name(module.module)}.weight" for module in adapter.modules}
        missing = [module for module, name in plain.items() if name not in self.names]
        if missing:
            what = f"the adapter changes {listed(missing)}, which the model does not have"
            raise InvalidInput(f"{adapter.path}: {what}; is it its adapter?")
        modules = without_shared(adapter, plain) if self.is_tied else adapter.modules
        return ((module, self.names[plain[module.module]]) for module in modules)


def find_targets(checkpoint: Checkpoint, loras: Loras) -> Targets:
    """Put the tensors that adapters store whole in their places.

    Raises InvalidInput for one that the checkpoint does not have, or has in another shape, and for two adapters that
    replace the same one.
    """
    targets = Targets(dict(checkpoint.tensors), _by_plain_name(checkpoint))
    embedding = embedding_of(targets.names)
    if tied := is_tied(checkpoint, targets.names):
        targets.tensors.pop(targets.names.get(HEAD, ""), None)
        targets.names[HEAD] = str(embedding)
    copies: dict[str, tuple[Adapter, Slice]] = {}
    seen: dict[str, tuple[Adapter, Slice]] = {}
    for adapter, scale in loras:
        if adapter.replaced and scale != 1:
            log.warning("%s: %s: saved whole, so --lora-scale does not apply", adapter.path, listed(adapter.replaced))
        for name, slice in adapter.replaced.items():
            stored = _stored_name(checkpoint, targets.names, adapter, name)
            targets.precision[slice] = checkpoint.tensors[stored].type
            is_copy = tied and stored == embedding and name in adapter.copies
            place = plain_name(name) if is_copy else stored
            targets.equal += _same_tensor(adapter, name, slice, *seen.setdefault(place, (adapter, slice)))
            if is_copy:
                copies[place] = adapter, slice
            else:
                targets.tensors[stored] = slice
    if copies:
        _place_copies(targets, copies)
    return targets


def _stored_name(checkpoint: Checkpoint, names: Mapping[str, str], adapter: Adapter, name: str) -> str:
    """The checkpoint's name of the tensor that an adapter replaces."""
    stored = names.get(plain_name(name))
    if stored is None:
        raise InvalidInput(f"{adapter.path}: replaces {quote(name)}, which the model does not have; is it its adapter?")
    slice, base = adapter.replaced[name], checkpoint.tensors[stored]
    if base.shape != slice.shape:
        raise InvalidInput(
            f"{slice.path}: {quote(name)}: its shape is {list(slice.shape)[:9]}, but the checkpoint's is "
            f"{list(base.shape)}; an adapter that changes shapes must be merged with PEFT"
        )
    return stored


def _same_tensor(adapter: Adapter, name: str, slice: Slice, owner: Adapter, first: Slice) -> list[EqualSlices]:
    """An adapter may hold a tied matrix twice. Two adapters may not replace the same tensor."""
    if owner is not adapter:
        raise InvalidInput(f"{adapter.path}: {quote(name)}: two adapters replace this tensor; merge only one")
    otherwise = (
        f"{slice.path}: {quote(name)}: the file has another embedding than output layer; they are one matrix in "
        "the base model, and modules_to_save names neither, so PEFT would use whichever it loads last"
    )
    return [] if slice is first else [EqualSlices(first, slice, otherwise)]


def _place_copies(targets: Targets, copies: Mapping[str, tuple[Adapter, Slice]]) -> None:
    """Put trained copies of a tied embedding and output layer in their places: as two matrices, unless PEFT tied them.

    PEFT copies each of the two, and trains the copies apart, unless `ensure_weight_tying` says otherwise.
    """
    embedding = targets.names[HEAD]
    slices = [slice for _, slice in copies.values()]
    if all(adapter.ensures_tying for adapter, _ in copies.values()) and alike(slices[0], slices[-1]):
        otherwise = f"{slices[0].path}: ensure_weight_tying is true, but embedding and output layer differ; unset it"
        targets.equal += [EqualSlices(slices[0], slice, otherwise) for slice in slices[1:]]
        targets.tensors[embedding] = slices[0]
        return
    base = targets.tensors[embedding]
    by_name = {name: slice for name, (_, slice) in copies.items()}
    targets.tensors[HEAD] = by_name.pop(HEAD, base)
    targets.tensors[embedding] = next(iter(by_name.values()), base)
    targets.names[HEAD], targets.untied = HEAD, True


def _by_plain_name(checkpoint: Checkpoint) -> dict[str, str]:
    names: dict[str, str] = {}
    for name in checkpoint.tensors:
        if names.setdefault(plain_name(name), name) != name:
            other = names[plain_name(name)]
            raise InvalidInput(f"{checkpoint.path}: {quote(name)} and {quote(other)} are the same tensor to an adapter")
    return names


def listed(names: Iterable[str]) -> str:
    shown = [quote(name).strip("'") for name in names]
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")
