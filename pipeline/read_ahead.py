"""Reading remote sources ahead of the workers, in larger pieces than one task needs.

One request over the network for each task would make every worker wait for every task. So consecutive tasks of a
tensor form a batch, which is one request, and `READERS` threads request batches while the workers encode the batches
that have arrived. For local files, `sources.prefetch` has the operating system do as much.
"""

import queue
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from io import RawIOBase

import numpy as np

from .sources import OpenSlice, read_exactly
from .tasks import Task

REQUEST_BYTES = 8 << 20
"""Bytes of one remote read: at 100 MB/s it takes as long as a request to the other side of the world."""

READERS = 8
"""Remote reads at a time, each over its own connection: one alone rarely fills a line."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Tasks of one tensor, and the range of their source file that they need: `nbytes` from byte `start`."""

    tasks: tuple[Task, ...]
    start: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class FetchedBatch:
    """A batch, and the bytes (uint8) of its range."""

    batch: Batch
    data: np.ndarray

    def range(self, start: int, nbytes: int) -> np.ndarray:
        """`nbytes` from byte `start` of the source file."""
        return self.data[start - self.batch.start :][:nbytes]


def read_ahead_memory(jobs: int) -> int:
    """Bytes of all batches held at most: those being read or waiting, and one in the hands of each worker."""
    return (READERS + jobs) * REQUEST_BYTES


def batches(work: Iterable[Task], limit: int = REQUEST_BYTES) -> Iterator[Batch]:
    """Joins consecutive tasks of a tensor, as long as the range they need is at most `limit` bytes."""
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


class ReadAhead:
    """Hands out batches with their bytes, in the order of `work`. At most `readers` are being read or waiting.

    The threads are daemons: one that hangs in the network delays nothing once `stop` is set.
    """

    def __init__(
        self, work: Iterator[Batch], open_slice: OpenSlice, stop: threading.Event, readers: int = READERS
    ) -> None:
        self.work = work
        self.open_slice = open_slice
        self.stop = stop
        self.lock = threading.Lock()
        self.requests: queue.SimpleQueue[tuple[Batch, Future[np.ndarray]] | None] = queue.SimpleQueue()
        self.pending: deque[tuple[Batch, Future[np.ndarray]]] = deque()
        self.threads = [threading.Thread(target=self._read, name=f"reader-{n}", daemon=True) for n in range(readers)]
        for thread in self.threads:
            thread.start()
            self._request_next()

    def next(self) -> FetchedBatch | None:
        """The next batch; None when there is no more, or `stop` is set. Raises what reading it raised."""
        with self.lock:
            if not self.pending:
                return None
            batch, future = self.pending.popleft()
            self._request_next()
        while not self.stop.is_set():
            if wait((future,), timeout=0.1).done:
                return FetchedBatch(batch, future.result())
        return None

    def close(self) -> None:
        """Have the threads end."""
        for _ in self.threads:
            self.requests.put(None)

    def _request_next(self) -> None:
        batch = next(self.work, None)
        if batch is not None:
            self.pending.append((batch, Future()))
            self.requests.put(self.pending[-1])

    def _read(self) -> None:
        file: RawIOBase | None = None
        opened = None
        while (item := self.requests.get()) is not None and not self.stop.is_set():
            batch, future = item
            try:
                slice = batch.tasks[0].tensor.source.slice
                if file is None or opened != slice.path:
                    if file:
                        file.close()
                    file, opened = self.open_slice(slice, self.stop), slice.path
                data = np.empty(batch.nbytes, np.uint8)
                read_exactly(file, batch.start, data, batch.tasks[0])
                future.set_result(data)
                del data, item, future  # no reference keeps the bytes alive while this thread waits for its next batch
            except BaseException as error:
                future.set_exception(error)
        if file:
            file.close()
