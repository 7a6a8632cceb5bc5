"""Finds the checkpoint tensor that each tensor of an adapter changes.

Module names in the checkpoint and in the adapter vary with the version of transformers:
`language_model.model.layers.0…` and `model.language_model.layers.0…` are the same. So names are compared without
these prefixes (`plain_name`).
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
"""Adapters, each with its scale."""

log = logging.getLogger("borealis_gguf")


@dataclass(slots=True)
class Targets:
    """A checkpoint's tensors, with tensors that adapters save whole replacing them.

    `names` maps plain names to tensor names, a tied output layer to the embedding. `precision` is the base model's
    type, to which replaced tensors are rounded. `equal` are tensors that must hold the same bytes. With `untied`,
    adapters turned tied embedding and output layer into two matrices.
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
        """Yields each LoRA module and the name of the tensor it updates. Raises InvalidInput for an unknown module."""
        plain = {module.module: f"{plain_name(module.module)}.weight" for module in adapter.modules}
        missing = [module for module, name in plain.items() if name not in self.names]
        if missing:
            problem = f"the adapter changes {listed(missing)}, which the model does not have"
            raise InvalidInput(f"{adapter.path}: {problem}; is it its adapter?")
        modules = without_shared(adapter, plain) if self.is_tied else adapter.modules
        return ((module, self.names[plain[module.module]]) for module in modules)


def find_targets(checkpoint: Checkpoint, loras: Loras) -> Targets:
    """Replaces a checkpoint's tensors by tensors that adapters save whole.

    Raises InvalidInput for a tensor that the checkpoint lacks or has in another shape, and for two adapters that
    replace the same tensor.
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
    """Returns the checkpoint's name of the tensor that an adapter replaces."""
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
    """Requires equal bytes of a tied matrix that an adapter saves twice; refuses two adapters for one tensor."""
    if owner is not adapter:
        raise InvalidInput(f"{adapter.path}: {quote(name)}: two adapters replace this tensor; merge only one")
    otherwise = (
        f"{slice.path}: {quote(name)}: the file has another embedding than output layer; they are one matrix in "
        "the base model, and modules_to_save names neither, so PEFT would use whichever it loads last"
    )
    return [] if slice is first else [EqualSlices(first, slice, otherwise)]


def _place_copies(targets: Targets, copies: Mapping[str, tuple[Adapter, Slice]]) -> None:
    """Replaces tied embedding and output layer by their trained copies.

    PEFT trains the copies as two matrices, or as one with `ensure_weight_tying`.
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
