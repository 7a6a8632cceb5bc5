"""Resolves --outtype to a type per tensor: the chosen type for matrices, F32 for norms and vectors."""

from collections.abc import Sequence

from gguf.constants import LlamaFileType

from ..checkpoint.types import GGMLQuantizationType, row_nbytes
from ..errors import InvalidInput
from ..pipeline.plan import Tensor

OUTTYPES = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
AUTO = "auto"


def resolve_outtype(tensors: Sequence[Tensor], outtype: str) -> str:
    """Resolves `auto` to bf16 if the checkpoint's first matrix is BF16, else to f16."""
    if outtype == AUTO:
        first = next((t.source.type for t in tensors if len(t.shape) > 1), None)
        return "bf16" if first == GGMLQuantizationType.BF16 else "f16"
    if outtype not in OUTTYPES:
        raise InvalidInput(f"--outtype {outtype}: not an output type; choose one of {', '.join([*OUTTYPES, AUTO])}")
    return outtype


def file_type(tensors: Sequence[Tensor], outtype: str) -> LlamaFileType:
    """Returns the value of `general.file_type`."""
    return OUTTYPES[resolve_outtype(tensors, outtype)][1]


def outtypes(tensors: Sequence[Tensor], outtype: str) -> list[GGMLQuantizationType]:
    """Returns the type of each tensor: F32 for norms and vectors, F16 for rows that do not fill whole blocks."""
    type = OUTTYPES[resolve_outtype(tensors, outtype)][0]
    return [GGMLQuantizationType.F32 if _stays_f32(t) else _fitting(type, t.n_per_row) for t in tensors]


def _stays_f32(tensor: Tensor) -> bool:
    return len(tensor.shape) < 2 or tensor.name.endswith("_norm.weight") or not tensor.name.endswith(".weight")


def _fitting(type: GGMLQuantizationType, n_per_row: int) -> GGMLQuantizationType:
    try:
        row_nbytes(type, n_per_row)
    except ValueError:
        return GGMLQuantizationType.F16
    return type
