"""What will be written, known completely before a weight is read. Pure data."""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np
from gguf.constants import GGMLQuantizationType

from ..checkpoint.types import KV, Slice


@dataclass(frozen=True, slots=True)
class Codec:
    """How bytes are made. Every function is thread-safe and releases the GIL.

    encode(rows, type, importance, out): rows [n, n_per_row] as float32, float16, or uint16 (which means BF16);
        importance float32 [n_per_row] or None; fills out, uint8 [n, row_nbytes]. False when a weight of `rows` is
        NaN or Inf.
    decode(data, type, n_per_row): uint8 [n, row_nbytes] to float32 [n, n_per_row].
    valid(data, type): False when a value stored in `data` (uint8) is NaN or Inf.
    """

    encode: Callable[[np.ndarray, GGMLQuantizationType, np.ndarray | None, np.ndarray], bool]
    decode: Callable[[np.ndarray, GGMLQuantizationType, int], np.ndarray]
    valid: Callable[[np.ndarray, GGMLQuantizationType], bool]


@dataclass(frozen=True, slots=True)
class TensorSource:
    """Where a tensor's rows come from. `shift` is added to every element, in float32 (in float16 for an F16 slice)."""

    slice: Slice
    shift: float = 0.0


@dataclass(frozen=True, slots=True)
class Tensor:
    """A GGUF tensor before a type is chosen for it. `shape` is row-major; it may hold fewer rows than the source."""

    name: str
    source: TensorSource
    shape: tuple[int, ...]

    @property
    def n_per_row(self) -> int:
        return self.shape[-1]

    @property
    def rows(self) -> int:
        return prod(self.shape[:-1])


@dataclass(frozen=True, slots=True)
class Model:
    """What a checkpoint or a GGUF means: metadata in the order it is written, and tensors in file order.

    `origin` is the folder of the checkpoint it was read from; None when that was a GGUF.
    """

    kv: tuple[KV, ...]
    tensors: tuple[Tensor, ...]
    origin: Path | None = None


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One tensor of one output file. `offset` is absolute in the file; `nbytes` is without padding.

    `wanted` is the type its shape made it fall back from. `importance` is float32 [n_per_row].
    """

    tensor: Tensor
    type: GGMLQuantizationType
    offset: int
    nbytes: int
    wanted: GGMLQuantizationType | None = None
    importance: np.ndarray | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class FilePlan:
    """One output file. `header` is complete (magic, KV, tensor infos, padding); `size` is the whole file's.

    `label` is what the file is called in reports: a preset or an outtype. `model` is what the header was made of.
    """

    path: Path
    label: str
    header: bytes
    tensors: tuple[TensorPlan, ...]
    size: int
    model: Model
