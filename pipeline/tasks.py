"""Tasks: some rows of a tensor, the types they are encoded to, and where in the output files the bytes go."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..checkpoint.types import LATTICE_TYPES, GGMLQuantizationType, row_nbytes
from .plan import FilePlan, Tensor, TensorPlan

CHUNK_WEIGHTS = 1 << 20
"""Weights encoded at a time by one worker: so many that handing out tasks takes little time, and so few that a run
stops soon. Any value gives the same bytes."""

LATTICE_CHUNK_WEIGHTS = 1 << 16
"""The same for the types of one to three bits that search a lattice: ggml's own encoders take up to 2 s for a million
weights, and longer where workers share a core. A run is to stop within one second."""

COPY_BYTES = 1 << 19
"""Bytes copied at a time where nothing is encoded: they are read, checked and written while they are in the cache."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """One type a tensor is encoded to, and the files it goes to as (index of the file, offset of the first row)."""

    type: GGMLQuantizationType
    importance: np.ndarray | None
    places: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Task:
    """Rows `first` to `first + rows` of a tensor, with all types they are encoded to."""

    tensor: Tensor
    encodings: tuple[Encoding, ...]
    first: int
    rows: int

    @property
    def nbytes(self) -> int:
        """Bytes of these rows in the source."""
        return self.rows * row_nbytes(self.tensor.source.slice.type, self.tensor.n_per_row)

    def source_rows(self) -> np.ndarray | None:
        """The numbers of their source rows (of a tensor of one axis, elements); None if they are the same."""
        order, flat = self.tensor.source.order, len(self.tensor.shape) == 1
        if order is None:
            return None
        return order.rows(0, self.tensor.n_per_row) if flat else order.rows(self.first, self.first + self.rows)

    def source_range(self) -> tuple[int, int]:
        """The range of the file that holds the source rows, and any rows between them: offset and number of bytes."""
        rows = self.source_rows()
        if rows is None:
            return self.tensor.source.slice.offset + self.first * (self.nbytes // self.rows), self.nbytes
        first, nbytes = int(rows.min()), self.nbytes // len(rows)
        return self.tensor.source.slice.offset + first * nbytes, (int(rows.max()) + 1 - first) * nbytes

    @property
    def span_nbytes(self) -> int:
        """Bytes of a buffer for that range, if rows are picked out of it; 0 without an order."""
        return 0 if self.tensor.source.order is None else self.source_range()[1]


def is_copy(tensor: Tensor, type: GGMLQuantizationType) -> bool:
    """Whether ranges of the source's bytes are ranges of the output's."""
    return type == tensor.source.slice.type and tensor.source.as_stored


def rows_at_once(tensor: Tensor, encodings: Sequence[Encoding], chunk_weights: int) -> int:
    """How many rows of `tensor` one task takes."""
    if all(is_copy(tensor, e.type) for e in encodings):
        return max(1, COPY_BYTES // row_nbytes(tensor.source.slice.type, tensor.n_per_row))
    if any(e.type in LATTICE_TYPES for e in encodings):
        chunk_weights = min(chunk_weights, LATTICE_CHUNK_WEIGHTS)
    return max(1, chunk_weights // tensor.n_per_row)


def tasks(plans: Sequence[FilePlan], chunk_weights: int = CHUNK_WEIGHTS) -> Iterator[Task]:
    """All work of one pass, in the order of the first file: each row range once, each of its types once."""
    for tensor, encodings in _shared(plans):
        step = rows_at_once(tensor, encodings, chunk_weights)
        for first in range(0, tensor.rows, step):
            yield Task(tensor, encodings, first, min(step, tensor.rows - first))


def total_nbytes(plans: Sequence[FilePlan]) -> int:
    """Bytes of the source that all tasks together read."""
    tensors = [tensor for tensor, _ in _shared(plans)]
    return sum(t.rows * row_nbytes(t.source.slice.type, t.n_per_row) for t in tensors)


def _shared(plans: Sequence[FilePlan]) -> Iterator[tuple[Tensor, tuple[Encoding, ...]]]:
    """Each distinct tensor of `plans`, with its distinct encodings: files that encode it alike share one."""
    uses: dict[tuple[object, ...], list[tuple[int, TensorPlan]]] = {}
    for index, plan in enumerate(plans):
        for t in plan.tensors:
            uses.setdefault((t.tensor.source, t.tensor.shape), []).append((index, t))
    for users in uses.values():
        kinds: dict[tuple[object, ...], list[tuple[int, TensorPlan]]] = {}
        for index, t in users:
            kinds.setdefault((t.type, id(t.importance)), []).append((index, t))
        encodings = tuple(
            Encoding(same[0][1].type, same[0][1].importance, tuple((index, t.offset) for index, t in same))
            for same in kinds.values()
        )
        yield users[0][1].tensor, encodings
