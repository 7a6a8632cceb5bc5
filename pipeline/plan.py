"""Plans: the output files, known completely before a weight is read. Pure data."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np

from ..checkpoint.folder import Checkpoint
from ..checkpoint.types import KV, GGMLQuantizationType, Slice


@dataclass(frozen=True, slots=True)
class Codec:
    """The encoders and decoders of a run. Every function is thread-safe and releases the GIL.

    encode(rows, type, importance, out): rows [n, n_per_row] as float32, float16, or uint16 (which means BF16);
        importance float32 [n_per_row] or None; fills out, uint8 [n, row_nbytes]. False when a weight of `rows` is
        NaN or Inf.
    decode(data, type, n_per_row): uint8 [n, row_nbytes] to float32 [n, n_per_row].
    valid(data, type): False when a value stored in `data` (uint8) is NaN or Inf.
    add_product(rows, up, down, scale): what `low_rank.add_product` does, with the same bits, faster; False when it
        cannot, and has done nothing.
    """

    encode: Callable[[np.ndarray, GGMLQuantizationType, np.ndarray | None, np.ndarray], bool]
    decode: Callable[[np.ndarray, GGMLQuantizationType, int], np.ndarray]
    valid: Callable[[np.ndarray, GGMLQuantizationType], bool]
    add_product: Callable[[np.ndarray, np.ndarray, np.ndarray, float], bool] = lambda rows, up, down, scale: False


@dataclass(frozen=True, slots=True)
class RowMap:
    """Which source row each row is: the source's rows from `first` on, seen as an array of `shape`, transposed.

    With the shape (heads, 2, half) and the axes (0, 2, 1), rows 0, 1, 2, 3 come from rows 0, half, 1, half + 1. A
    tensor of one axis has its elements ordered in this way.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    first: int = 0

    def rows(self, start: int, stop: int) -> np.ndarray:
        """The source rows (int64) of rows `start` to `stop`."""
        strides = [prod(self.shape[axis + 1 :]) for axis in self.axes]
        digits = np.unravel_index(np.arange(start, stop), [self.shape[axis] for axis in self.axes])
        return self.first + np.dot(strides, digits)


@dataclass(frozen=True, slots=True)
class LowRank:
    """A low-rank update, which is added to a matrix of the source: scale · up @ down, in float32.

    `up` is [rows, r] and `down` [r, n_per_row], BF16, F16 or F32; stored [r, rows] and [n_per_row, r] if `transposed`.
    """

    up: Slice
    down: Slice
    scale: float
    transposed: bool = False

    @property
    def rank(self) -> int:
        return self.up.shape[0 if self.transposed else 1]


@dataclass(frozen=True, slots=True)
class TensorSource:
    """Where a tensor's rows come from: `slice`, in its order or in that of `order`.

    `updates` are added to the source's rows, in their order. The sum is rounded to `precision`: that of the matrix
    before it was changed, so None is the slice's own. Then `scale` multiplies every element, in float32, and `shift`
    is added, in float32 (in float16 for F16 numbers).
    """

    slice: Slice
    shift: float = 0.0
    order: RowMap | None = None
    updates: tuple[LowRank, ...] = ()
    precision: GGMLQuantizationType | None = None
    scale: float = 1.0

    @property
    def type(self) -> GGMLQuantizationType:
        """The type its numbers have before `scale` and `shift`."""
        return self.slice.type if self.precision is None else self.precision

    @property
    def as_stored(self) -> bool:
        """Whether its numbers are those in the file."""
        return self.type == self.slice.type and not (self.updates or self.shift or self.order) and self.scale == 1.0

    def slices(self) -> Iterator[Slice]:
        """Every array that is read."""
        yield self.slice
        for update in self.updates:
            yield from (update.up, update.down)


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


def gguf_tensors(slices: Mapping[str, Slice]) -> tuple[Tensor, ...]:
    """Tensors of a GGUF as they are, without leading extents of 1: ggml counts none at the end of its own order."""
    return tuple(Tensor(name, TensorSource(s), _squeezed(s.shape)) for name, s in slices.items())


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


@dataclass(frozen=True, slots=True)
class EqualSlices:
    """Two stored arrays whose bytes a plan takes to be equal; `otherwise` is the error message where they are not."""

    first: Slice
    second: Slice
    otherwise: str


@dataclass(frozen=True, slots=True)
class GGUFModel:
    """What a checkpoint or a GGUF means: metadata in the order it is written, and tensors in file order.

    `checkpoint` is what it was read from, None when that was a GGUF. `equal` are arrays that must hold the same bytes
    for the plan to be right, which planning, without reading weights, cannot tell.
    """

    kv: tuple[KV, ...]
    tensors: tuple[Tensor, ...]
    checkpoint: Checkpoint | None = field(default=None, compare=False, repr=False)
    equal: tuple[EqualSlices, ...] = ()


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One tensor of one output file. `offset` is absolute in the file; `nbytes` is without padding.

    `requested` is the type its shape made it fall back from. `importance` is float32 [n_per_row].
    """

    tensor: Tensor
    type: GGMLQuantizationType
    offset: int
    nbytes: int
    requested: GGMLQuantizationType | None = None
    importance: np.ndarray | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class FilePlan:
    """One output file. `header` is complete (magic, KV, tensor infos, padding); `size` is the whole file's.

    `label` is what the file is called in reports: a preset or an outtype. `model` is what the header was made of.
    `retype` are the options that give tensors another type, "{}": by tensor name, and by "" those of the others.
    `inputs` are the files that were read to plan it, which no output may overwrite; those of its weights may be left
    out.
    """

    path: Path
    label: str
    header: bytes
    tensors: tuple[TensorPlan, ...]
    size: int
    model: GGUFModel
    retype: tuple[tuple[str, str], ...] = ()
    inputs: tuple[Path, ...] = ()

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data for each weight, padding left out."""
        return 8 * sum(t.nbytes for t in self.tensors) / sum(t.tensor.rows * t.tensor.n_per_row for t in self.tensors)

    def option(self, name: str, type: GGMLQuantizationType) -> str | None:
        """The option that makes `type` the type of tensor `name`."""
        options = dict(self.retype)
        text = options.get(name, options.get(""))
        return text and text.format(type.name.lower(), name=name)
