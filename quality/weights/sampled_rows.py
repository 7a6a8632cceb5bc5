"""Sampled rows of a source, kept as they come in, so that a source far away is read once and looked at all the same."""

import io
import threading
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...checkpoint.types import Slice
from ...errors import BorealisError
from ...pipeline.plan import Tensor
from ...pipeline.sources import OpenSlice
from ...pipeline.tasks import Task
from .comparison import sampled_rows


class Tap:
    """Opens sources for the executor (`open`), and again (`open_kept`): there, what is far away is the kept rows."""

    def __init__(self, open_slice: OpenSlice) -> None:
        self._open = open_slice
        self._files: dict[Path, _Kept] = defaultdict(_Kept)

    def want(self, tensors: Iterable[Tensor]) -> None:
        """Keep the sampled rows of `tensors`; to be called before anything is read."""
        for tensor in tensors:
            for row in sampled_rows(tensor.rows):
                self._files[tensor.source.slice.path].want(*Task(tensor, (), row, 1).source_range())

    def open(self, slice: Slice, stop: threading.Event) -> io.RawIOBase:
        file = self._open(slice, stop)
        return file if slice.remote is None else _Tapped(file, self._files[slice.path])

    def open_kept(self, slice: Slice, stop: threading.Event) -> io.RawIOBase:
        return self._open(slice, stop) if slice.remote is None else _Replay(slice.path, self._files[slice.path])


class _Kept:
    """Ranges of one file: where each begins, and its bytes as far as they have come."""

    def __init__(self) -> None:
        self.data: dict[int, bytearray] = {}
        self.seen: dict[int, int] = {}
        self.starts: list[int] = []
        self.longest = 0

    def want(self, start: int, nbytes: int) -> None:
        if len(self.data.get(start, b"")) < nbytes:
            self.data[start], self.seen[start] = bytearray(nbytes), 0
            self.starts = []
            self.longest = max(self.longest, nbytes)

    def take(self, at: int, view: memoryview) -> None:
        """Keep what is wanted of the bytes that stand from `at` on."""
        end = at + len(view)
        for start in self.starts[bisect_right(self.starts, at - self.longest) : bisect_left(self.starts, end)]:
            kept = self.data[start]
            first, last = max(at, start), min(end, start + len(kept))
            if first < last:
                kept[first - start : last - start] = view[first - at : last - at]
                self.seen[start] += last - first

    def sort(self) -> "_Kept":
        """Before it is used: the starts in order."""
        self.starts = self.starts or sorted(self.data)
        return self


class _Tapped(io.RawIOBase):
    """A source that hands over what it reads, and keeps some of it."""

    def __init__(self, file: io.RawIOBase, kept: _Kept) -> None:
        self._file, self._kept = file, kept.sort()

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int | None:
        at = self._file.tell()
        got = self._file.readinto(buffer)
        if got:
            self._kept.take(at, memoryview(buffer).cast("B")[:got])
        return got

    def close(self) -> None:
        self._file.close()
        super().close()


class _Replay(io.RawIOBase):
    """The kept ranges of a file."""

    def __init__(self, path: Path, kept: _Kept) -> None:
        self._path, self._kept, self._at = path, kept, 0

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset if whence == io.SEEK_SET else self._at + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        kept = self._kept.data.get(self._at, bytearray())
        if len(kept) < len(view) or self._kept.seen[self._at] < len(kept):
            raise BorealisError(f"{self._path}: the bytes from {self._at} on were not read while the file was written")
        view[:] = kept[: len(view)]
        self._at += len(view)
        return len(view)
