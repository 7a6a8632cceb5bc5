"""Plans the merge of LoRA adapters into a checkpoint: the low-rank updates applied to its tensors during conversion."""

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
    """The changes that adapters make to a checkpoint.

    `checkpoint` has replaced tensors already in place, `names` maps changed slices to names. With `lora_on_tied`, LoRA
    changes a tied embedding, hence the output layer too. `equal` are tensors that must hold the same bytes.
    """

    checkpoint: Checkpoint
    updates: Mapping[Slice, tuple[LowRank, ...]]
    precision: Mapping[Slice, GGMLQuantizationType]
    names: Mapping[Slice, str]
    lora_on_tied: bool = False
    equal: tuple[EqualSlices, ...] = ()

    def warn(self) -> None:
        """Warns if the merge changes a tied matrix of which training may have changed one side only."""
        if self.lora_on_tied:
            log.warning(
                "the embedding and the output layer are one matrix here, so LoRA on one of them changes both, as "
                "PEFT's merge_and_unload does; if only one was trained, untie them in the base model first (load it "
                "with tie_word_embeddings=False, copy the embedding into lm_head, save it)"
            )

    def apply(self, tensors: Iterable[Tensor], *, vision: bool = False) -> tuple[Tensor, ...]:
        """Adds the updates to `tensors`, of the text model or of the vision tower (`vision`).

        Raises InvalidInput for an update of a tensor of that part that is not converted.
        """
        merged = tuple(self._updated(tensor) for tensor in tensors)
        not_converted = [name for slice, name in self.names.items() if slice not in {t.source.slice for t in merged}]
        if lost := [name for name in not_converted if plain_name(name).startswith(VISION) == vision]:
            raise InvalidInput(f"{self.checkpoint.path}: an adapter changes {listed(lost)}, which is not converted")
        if not_converted and not vision:
            log.warning("an adapter also changes the vision side (%s): the mmproj needs it too", listed(not_converted))
        return merged

    def _updated(self, tensor: Tensor) -> Tensor:
        slice = tensor.source.slice
        updates, precision = self.updates.get(slice, ()), self.precision.get(slice)
        if not updates and precision is None:
            return tensor
        return replace(tensor, source=replace(tensor.source, updates=updates, precision=precision))


def plan_merge(checkpoint: Checkpoint, loras: Loras) -> Merge:
    """Plans the update of every tensor that the adapters change. Scales multiply updates, not tensors saved whole.

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
    """Returns the update of `matrix` at `scale`. Raises InvalidInput if its shape does not fit the LoRA matrices."""
    shape, factor = (module.b.shape[0], module.a.shape[1]), scale * module.scaling
    if not module.embedding and matrix.shape == shape:
        return LowRank(module.b, module.a, factor)
    # like PEFT, applies fan_in_fan_out only to a matrix stored as [in, out]
    if (module.embedding or adapter.fan_in_fan_out) and matrix.shape == shape[::-1]:
        return LowRank(module.a, module.b, factor, transposed=True)
    raise InvalidInput(
        f"{module.a.path}: {quote(module.module)}: changes a matrix of {list(shape)}, but the checkpoint's is "
        f"{list(matrix.shape)}; is this the model the adapter was trained on?"
    )


def _lora_on_tied(loras: Loras, targets: Targets) -> bool:
    changed = {f"{plain_name(module.module)}.weight" for adapter, scale in loras if scale for module in adapter.modules}
    return targets.is_tied and not changed.isdisjoint((HEAD, *EMBEDDINGS))
