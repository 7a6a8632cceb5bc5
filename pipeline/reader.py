"""How the rows of a planned tensor are read and become numbers: as its slice has them, picked, updated, shifted."""

import threading
from collections.abc import Sequence
from io import RawIOBase
from pathlib import Path

import numpy as np

from ..checkpoint.types import FLOAT_DTYPES, GGMLQuantizationType
from . import low_rank
from .plan import Codec, Tensor, TensorSource
from .read_ahead import FetchedBatch
from .sources import OpenSlice, open_local, prefetch, read_exactly
from .tasks import Task

F32 = GGMLQuantizationType.F32


class TaskReader:
    """Reads the rows of tasks for one thread: an open source file, and buffers that are kept between tasks.

    Arrays it returns may be overwritten by the next call. With `prefetches`, local files are prefetched, for tasks in
    the order of a run. `fetched` holds what was read ahead of a remote file for the next tasks.
    """

    def __init__(self, codec: Codec, open_slice: OpenSlice, stop: threading.Event, *, prefetches: bool = False) -> None:
        self.codec = codec
        self.open_slice = open_slice
        self.stop = stop
        self.prefetches = prefetches
        self.fetched: FetchedBatch | None = None
        self._source: tuple[Path, RawIOBase] | None = None
        self._updates: tuple[TensorSource, low_rank.Updates] | None = None
        self._buffers: dict[str, np.ndarray] = {}

    def close(self) -> None:
        if self._source:
            self._source[1].close()

    def buffer(self, name: str, nbytes: int) -> np.ndarray:
        """`nbytes` of uint8, kept between tasks."""
        if name not in self._buffers or self._buffers[name].size < nbytes:
            self._buffers[name] = np.empty(nbytes, np.uint8)
        return self._buffers[name][:nbytes]

    def read_bytes(self, task: Task) -> np.ndarray:
        """The bytes (uint8) of the task's source rows, in the order of the output's rows."""
        rows, (start, nbytes) = task.source_rows(), task.source_range()
        if rows is None:
            return self._read_range(task, start, nbytes, "in")
        span = self._read_range(task, start, nbytes, "span").reshape(-1, task.nbytes // len(rows))
        data = self.buffer("in", task.nbytes)
        np.take(span, rows - rows.min(), axis=0, out=data.reshape(len(rows), -1), mode="clip")
        return data

    def to_numbers(self, task: Task, data: np.ndarray, *, as_float32: bool) -> np.ndarray:
        """`data` of `read_bytes` as numbers [rows, n_per_row], with the updates, scale and shift of their tensor.

        float32 with `as_float32`, which saves work where they are encoded more than once; else float32, float16, or
        uint16 for BF16, whichever they are.
        """
        source, n = task.tensor.source, task.tensor.n_per_row
        if source.slice.type not in FLOAT_DTYPES:
            rows = self.codec.decode(data.reshape(task.rows, -1), source.slice.type, n)
        else:
            rows = data.view(FLOAT_DTYPES[source.slice.type]).reshape(task.rows, n)
        if source.updates or source.type != source.slice.type:
            rows = self._updated(task, self._float32(rows))
        if source.scale != 1.0:
            rows = self._float32(rows) * np.float32(source.scale)
        if source.shift and rows.dtype == np.float16:
            rows = rows + np.float16(source.shift)
        elif source.shift:
            rows = self._float32(rows) + np.float32(source.shift)
        return self._float32(rows) if as_float32 else rows

    def opened(self, task: Task) -> RawIOBase:
        """The source file of the task."""
        slice = task.tensor.source.slice
        if not self._source or self._source[0] != slice.path:
            self.close()
            self._source = slice.path, self.open_slice(slice, self.stop)
        return self._source[1]

    def _updated(self, task: Task, rows: np.ndarray) -> np.ndarray:
        """float32 `rows`, which are overwritten, with the updates of their tensor, in its precision."""
        source = task.tensor.source
        if source.updates:
            if self._updates is None or self._updates[0] is not source:
                self._updates = source, low_rank.Updates(source.updates, self.codec)
            picked = task.source_rows()
            self._updates[1].add(rows, np.arange(task.first, task.first + task.rows) if picked is None else picked)
        if source.type == F32:
            return rows
        out = self.buffer("updated", rows.size * 2)
        self.codec.encode(rows, source.type, None, out.reshape(len(rows), -1))
        return out.view(FLOAT_DTYPES[source.type]).reshape(rows.shape)

    def _float32(self, rows: np.ndarray) -> np.ndarray:
        if rows.dtype == np.float32:
            return rows
        out = self.buffer("float32", rows.size * 4).reshape(rows.shape[0], -1)
        self.codec.encode(rows, F32, None, out)
        return out.view(np.float32)

    def _read_range(self, task: Task, start: int, nbytes: int, buffer: str) -> np.ndarray:
        """`nbytes` from byte `start` of the task's source file: out of the fetched batch, or read now."""
        if self.fetched:
            return self.fetched.range(start, nbytes)
        data, file = self.buffer(buffer, nbytes), self.opened(task)
        if self.prefetches:
            prefetch(file, start, nbytes)
        read_exactly(file, start, data, task)
        return data


class SourceRows:
    """Rows of planned tensors as the workers see them, in float32, for comparisons. For one thread."""

    def __init__(self, codec: Codec, open_slice: OpenSlice = open_local) -> None:
        self._reader = TaskReader(codec, open_slice, threading.Event())

    def __enter__(self) -> "SourceRows":
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    def read(self, tensor: Tensor, first: int, rows: int) -> np.ndarray:
        """Rows `first` to `first + rows` as float32 [rows, n_per_row]; valid until the next call."""
        task = Task(tensor, (), first, rows)
        return self._reader.to_numbers(task, self._reader.read_bytes(task), as_float32=True)

    def read_each(self, tensor: Tensor, rows: Sequence[int]) -> np.ndarray:
        """The rows of these numbers, as `read` gives them. Decoded together, unless a row's updates depend on it."""
        if tensor.source.updates:
            return np.concatenate([self.read(tensor, row, 1).copy() for row in rows])
        together = Task(tensor, (), 0, len(rows))
        data = np.empty((len(rows), together.nbytes // len(rows)), np.uint8)
        if tensor.source.order:
            for out, row in zip(data, rows, strict=True):
                out[:] = self._reader.read_bytes(Task(tensor, (), row, 1))
        else:
            start, nbytes = tensor.source.slice.offset, data.shape[1]
            file = self._reader.opened(together)
            for out, row in zip(data, rows, strict=True):
                read_exactly(file, start + row * nbytes, out, together)
        return self._reader.to_numbers(together, data.reshape(-1), as_float32=True)
