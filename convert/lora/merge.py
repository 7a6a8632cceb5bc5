"""Merging LoRA adapters into a checkpoint: the updates that its tensors get while they are converted."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from ...checkpoint.file_access import quote
from ...checkpoint.folder import Checkpoint
from ...checkpoint.lora import Adapter, LoraModule
from ...checkpoint.types import GGMLQuantizationType, Slice
from ...errors import InvalidInput
from ...pipeline.plan import EqualSlices, LowRank, Tensor
from ..architectures import siglip
from ..plain_names import plain_name
from ..tied_embeddings import EMBEDDINGS, HEAD
from .targets import Loras, Targets, find_targets, listed

VISION = (siglip.TOWER, siglip.PROJECTOR)

log = logging.getLogger("borealis_gguf")


@dataclass(frozen=True, slots=True)
class Merge:
    """What adapters do to a checkpoint.

    `checkpoint` has the tensors they replace, `names` has tensors' names by slice. With `lora_on_tied`, LoRA changes an
    embedding that is the output layer, too. `equal` are arrays that must hold the same bytes.
    """

    checkpoint: Checkpoint
    updates: Mapping[Slice, tuple[LowRank, ...]]
    precision: Mapping[Slice, GGMLQuantizationType]
    names: Mapping[Slice, str]
    lora_on_tied: bool = False
    equal: tuple[EqualSlices, ...] = ()

    def warn(self) -> None:
        """Log what merging does that the adapter's training did not do."""
        if self.lora_on_tied:
            log.warning(
                "the embedding and the output layer are one matrix here, so LoRA on one of them changes both, as "
                "PEFT's merge_and_unload does; if only one was trained, untie them in the base model first (load it "
                "with tie_word_embeddings=False, copy the embedding into lm_head, save it)"
            )

    def apply(self, tensors: Iterable[Tensor], *, vision: bool = False) -> tuple[Tensor, ...]:
        """`tensors`, of the text model or of the vision tower (`vision`), with their updates.

        Raises InvalidInput for an update of that part that would be lost.
        """
        merged = tuple(self._updated(tensor) for tensor in tensors)
        lost = [name for slice, name in self.names.items() if slice not in {t.source.slice for t in merged}]
        if here := [name for name in lost if plain_name(name).startswith(VISION) == vision]:
            raise InvalidInput(f"{self.checkpoint.path}: an adapter changes {listed(here)}, which is not converted")
        if lost and not vision:
            log.warning("an adapter also changes the vision side (%s): the mmproj needs it too", listed(lost))
        return merged

    def _updated(self, tensor: Tensor) -> Tensor:
        slice = tensor.source.slice
        updates, precision = self.updates.get(slice, ()), self.precision.get(slice)
        if not updates and precision is None:
            return tensor
        return replace(tensor, source=replace(tensor.source, updates=updates, precision=precision))


def plan_merge(checkpoint: Checkpoint, loras: Loras) -> Merge:
    """Find the tensor that every tensor of the adapters changes. Scales multiply updates; replaced tensors are taken
    whole.

    Raises InvalidInput for modules the checkpoint does not have, shapes that do not fit, and two adapters that
    replace the same tensor.
    """
    if not loras:
        return Merge(checkpoint, {}, {}, {})
    targets = find_targets(checkpoint, loras)
    updates: dict[Slice, tuple[LowRank, ...]] = {}
    for adapter, scale in loras:
        for module, name in targets.of(adapter):
            slice = targets.tensors[name]
            if scale:
                updates[slice] = (*updates.get(slice, ()), low_rank(adapter, module, slice, scale))
    changed = updates.keys() | targets.precision.keys()
    names = {slice: name for name, slice in targets.tensors.items() if slice in changed}
    config = checkpoint.config | ({"tie_word_embeddings": False} if targets.untied else {})
    merged = replace(checkpoint, tensors=targets.tensors, config=config)
    return Merge(merged, updates, targets.precision, names, _lora_on_tied(loras, targets), tuple(targets.equal))


def low_rank(adapter: Adapter, module: LoraModule, matrix: Slice, scale: float) -> LowRank:
    """The update of `matrix`, at `scale`. Raises InvalidInput when its shape is another."""
    shape, factor = (module.b.shape[0], module.a.shape[1]), scale * module.scaling
    if not module.embedding and matrix.shape == shape:
        return LowRank(module.b, module.a, factor)
    # PEFT too heeds fan_in_fan_out only where a matrix is stored as [in, out]
    if (module.embedding or adapter.fan_in_fan_out) and matrix.shape == shape[::-1]:
        return LowRank(module.a, module.b, factor, transposed=True)
    raise InvalidInput(
        f"{module.a.path}: {quote(module.module)}: changes a matrix of {list(shape)}, but the checkpoint's is "
        f"{list(matrix.shape)}; is this the model the adapter was trained on?"
    )


def _lora_on_tied(loras: Loras, targets: Targets) -> bool:
    changed = {f"{plain_name(module.module)}.weight" for adapter, scale in loras if scale for module in adapter.modules}
    return targets.is_tied and not changed.isdisjoint((HEAD, *EMBEDDINGS))
