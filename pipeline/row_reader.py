"""Where rows come from: files of this machine, announced to it early; others are read ahead in larger pieces.

Workers take row ranges in turn, which looks like no pattern to the system: it would fetch each when it is asked for.
So it is told of every range some tasks before.

Of sources that are far away, opened by whoever knows how, ranges as small as the workers like them would each wait for
the network. So consecutive tasks of a tensor make a batch, which is one read, and `READERS` threads read batches while
the workers encode those that have come.
"""

import contextlib
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path

import numpy as np

from ..checkpoint.types import Slice
from ..errors import BorealisError
from .plan import FilePlan
from .tasks import Task

OpenSlice = Callable[[Slice, threading.Event], RawIOBase]
"""Opens the file a slice lies in. When the event is set, a read that waits gives up: it raises Cancelled."""

FETCH_BYTES = 8 << 20
"""Bytes of one remote read: at 100 MB/s it takes as long as a request to the other side of the world."""

ANNOUNCED = 32
"""Tasks that the system knows of before their turn: 16 MB where bytes are copied, 64 where they are encoded."""

READERS = 8
"""Remote reads at a time, each over its own connection: one alone rarely fills a line."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Tasks of one tensor, and the bytes of their slice's file that they need: `nbytes` from `start`."""

    tasks: tuple[Task, ...]
    start: int
    nbytes: int


def open_local(slice: Slice, stop: threading.Event) -> RawIOBase:
    """A file on this machine, unbuffered."""
    if slice.remote is not None:
        raise BorealisError(f"{slice.path}: lies on {slice.remote.url}, and nobody here can open that")
    return slice.path.open("rb", buffering=0)


class Announced:
    """`work`, of which the system hears `ahead` tasks early what they will read. Not for two threads at a time."""

    def __init__(self, work: Iterator[Task], ahead: int = ANNOUNCED) -> None:
        self._work, self._ahead = work, ahead
        self._waiting: deque[Task] = deque()
        self._file: tuple[Path, int] | None = None

    def __iter__(self) -> "Announced":
        return self

    def __next__(self) -> Task:
        while len(self._waiting) <= self._ahead and (task := next(self._work, None)):
            self._announce(task)
            self._waiting.append(task)
        if not self._waiting:
            raise StopIteration
        return self._waiting.popleft()

    def _announce(self, task: Task) -> None:
        """On systems that can be told (not on Windows, nor on a Mac); what goes wrong here does so when it is read."""
        if not hasattr(os, "posix_fadvise"):
            return
        path, (start, nbytes) = task.tensor.source.slice.path, task.source_range()
        with contextlib.suppress(OSError):
            if self._file is None or self._file[0] != path:
                self.close()
                self._file = path, os.open(path, os.O_RDONLY)
            if not _in_memory(self._file[1], start + nbytes - 1):
                os.posix_fadvise(self._file[1], start, nbytes, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file[1])
            self._file = None


def _in_memory(fd: int, at: int) -> bool:
    """Whether the byte `at` of a file can be read without waiting for the disk. False where the system does not say.

    To announce what is there already makes the system look at every page of it.
    """
    if not hasattr(os, "RWF_NOWAIT"):
        return False
    try:
        return os.preadv(fd, [bytearray(1)], at, os.RWF_NOWAIT) == 1
    except OSError:
        return False


def is_remote(plans: Sequence[FilePlan]) -> bool:
    return any(t.tensor.source.slice.remote for plan in plans for t in plan.tensors)


def read_ahead_memory(jobs: int) -> int:
    """Bytes that batches take: those being read or waiting, and one that each worker is at."""
    return (READERS + jobs) * FETCH_BYTES


def batches(work: Iterable[Task], limit: int = FETCH_BYTES) -> Iterator[Batch]:
    """Consecutive tasks of a tensor together, as long as what they need is at most `limit` bytes."""
    batch: Batch | None = None
    for task in work:
        start, nbytes = task.source_range()
        if batch and batch.tasks[0].tensor is task.tensor:
            first, end = min(start, batch.start), max(start + nbytes, batch.start + batch.nbytes)
            if end - first <= limit:
                batch = Batch((*batch.tasks, task), first, end - first)
                continue
        if batch:
            yield batch
        batch = Batch((task,), start, nbytes)
    if batch:
        yield batch


def fill(file: RawIOBase, start: int, data: np.ndarray, task: Task) -> None:
    """Read `data` (uint8) from byte `start` of the file `task` comes from. Raises BorealisError at its end."""
    file.seek(start)
    view, got = data.data, 0
    while got < len(view):
        n = file.readinto(view[got:])
        if not n:
            raise BorealisError(
                f"{task.tensor.source.slice.path}: ends inside {task.tensor.name}, at offset {start + got}; the file "
                "is truncated: fetch it again"
            )
        got += n


class ReadAhead:
    """Hands out batches with their bytes, in the order of `work`. At most `readers` are being read or waiting.

    The threads are daemons: one that hangs in the network holds nobody up once `stop` is set.
    """

    def __init__(
        self, work: Iterator[Batch], open_slice: OpenSlice, stop: threading.Event, readers: int = READERS
    ) -> None:
        self.work = work
        self.open_slice = open_slice
        self.stop = stop
        self.lock = threading.Lock()
        self.asked: queue.SimpleQueue[tuple[Batch, Future[np.ndarray]] | None] = queue.SimpleQueue()
        self.pending: deque[tuple[Batch, Future[np.ndarray]]] = deque()
        self.threads = [threading.Thread(target=self._read, name=f"reader-{n}", daemon=True) for n in range(readers)]
        for thread in self.threads:
            thread.start()
            self._ask()

    def next(self) -> tuple[Batch, np.ndarray] | None:
        """The next batch; None when there is no more, or `stop` is set. Raises what reading it raised."""
        with self.lock:
            if not self.pending:
                return None
            batch, future = self.pending.popleft()
            self._ask()
        while not self.stop.is_set():
            if wait((future,), timeout=0.1).done:
                return batch, future.result()
        return None

    def close(self) -> None:
        for _ in self.threads:
            self.asked.put(None)

    def _ask(self) -> None:
        batch = next(self.work, None)
        if batch is not None:
            self.pending.append((batch, Future()))
            self.asked.put(self.pending[-1])

    def _read(self) -> None:
        file: RawIOBase | None = None
        opened = None
        while (item := self.asked.get()) is not None and not self.stop.is_set():
            batch, future = item
            try:
                slice = batch.tasks[0].tensor.source.slice
                if file is None or opened != slice.path:
                    if file:
                        file.close()
                    file, opened = self.open_slice(slice, self.stop), slice.path
                data = np.empty(batch.nbytes, np.uint8)
                fill(file, batch.start, data, batch.tasks[0])
                future.set_result(data)
                del data, item, future  # nothing keeps the bytes while this thread waits for its next batch
            except BaseException as error:
                future.set_exception(error)
        if file:
            file.close()
