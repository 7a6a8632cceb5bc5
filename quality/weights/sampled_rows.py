"""Sampled rows of a tensor: which rows a quick check reads, and their bytes, kept while a streamed source is read."""

import io
import threading
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from ...checkpoint.types import Slice
from ...errors import BorealisError
from ...pipeline.plan import Tensor
from ...pipeline.sources import OpenSlice
from ...pipeline.tasks import Task

SAMPLED_ROWS = 8


def sample_rows(rows: int) -> list[int]:
    """The first row, the last, and one of each stretch between, unevenly spaced: no head or block is missed often."""
    if rows <= SAMPLED_ROWS:
        return list(range(rows))
    starts = [rows * n // SAMPLED_ROWS for n in range(SAMPLED_ROWS)]
    inner = [a + int((b - a) * (n * 0.618034 % 1)) for n, (a, b) in enumerate(pairwise(starts))]
    return [0, *inner[1:], rows - 1]


class SampledRows:
    """The sampled rows of remote tensors, kept while the executor reads them, so that the check fetches nothing again.

    The executor opens its sources with `open`, which keeps the bytes of sampled rows; the check opens the same sources
    with `open_kept`, which for a remote source serves the kept bytes alone.
    """

    def __init__(self, open_slice: OpenSlice) -> None:
        self._open = open_slice
        self._files: dict[Path, _KeptRanges] = defaultdict(_KeptRanges)

    def keep(self, tensors: Iterable[Tensor]) -> None:
        """Choose the sampled rows of `tensors` to be kept; to be called before anything is read."""
        for tensor in tensors:
            for row in sample_rows(tensor.rows):
                self._files[tensor.source.slice.path].add(*Task(tensor, (), row, 1).source_range())

    def open(self, slice: Slice, stop: threading.Event) -> io.RawIOBase:
        file = self._open(slice, stop)
        return file if slice.remote is None else _RecordingFile(file, self._files[slice.path])

    def open_kept(self, slice: Slice, stop: threading.Event) -> io.RawIOBase:
        return self._open(slice, stop) if slice.remote is None else _KeptFile(slice.path, self._files[slice.path])


class _KeptRanges:
    """Byte ranges of one file: `data` by start offset, and in `received` how many bytes of each have been read."""

    def __init__(self) -> None:
        self.data: dict[int, bytearray] = {}
        self.received: dict[int, int] = {}
        self.starts: list[int] = []
        self.longest = 0

    def add(self, start: int, nbytes: int) -> None:
        if len(self.data.get(start, b"")) < nbytes:
            self.data[start], self.received[start] = bytearray(nbytes), 0
            self.starts = []
            self.longest = max(self.longest, nbytes)

    def store(self, at: int, view: memoryview) -> None:
        """Copy those bytes of `view`, which lies at offset `at` of the file, that belong to a kept range."""
        end = at + len(view)
        for start in self.starts[bisect_right(self.starts, at - self.longest) : bisect_left(self.starts, end)]:
            kept = self.data[start]
            first, last = max(at, start), min(end, start + len(kept))
            if first < last:
                kept[first - start : last - start] = view[first - at : last - at]
                self.received[start] += last - first

    def sort(self) -> "_KeptRanges":
        """Sort the start offsets, which `store` needs."""
        self.starts = self.starts or sorted(self.data)
        return self


class _RecordingFile(io.RawIOBase):
    """A source file that stores the kept ranges of what is read from it."""

    def __init__(self, file: io.RawIOBase, kept: _KeptRanges) -> None:
        self._file, self._kept = file, kept.sort()

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int | None:
        at = self._file.tell()
        count = self._file.readinto(buffer)
        if count:
            self._kept.store(at, memoryview(buffer).cast("B")[:count])
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


class _KeptFile(io.RawIOBase):
    """Reads the kept ranges of a file, and no other bytes of it."""

    def __init__(self, path: Path, kept: _KeptRanges) -> None:
        self._path, self._kept, self._at = path, kept, 0

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset if whence == io.SEEK_SET else self._at + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        kept = self._kept.data.get(self._at, bytearray())
        if len(kept) < len(view) or self._kept.received[self._at] < len(kept):
            raise BorealisError(f"{self._path}: the bytes from {self._at} on were not read while the file was written")
        view[:] = kept[: len(view)]
        self._at += len(view)
        return len(view)
