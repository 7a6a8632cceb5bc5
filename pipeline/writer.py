"""Writing encoded rows to their places in the output files, and flushing these files to the disk meanwhile."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import numpy as np

from ..checkpoint.types import row_nbytes
from .atomic_output import PartialFile
from .tasks import Encoding, Task

WRITE_BYTES = 1 << 18
"""Bytes written at a time. For more, Linux asks for memory in pieces that it may have to look for."""

FLUSH_BYTES = 1 << 28
"""Input done between two flushes: the disk writes while the workers encode, and little is left for the end."""


class OutputWriter:
    """One thread's handles of all output files. Other threads write other ranges of the same files."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files: list[FileIO] = []
        for path in paths:
            self._files.append(path.open("r+b", buffering=0))

    def close(self) -> None:
        for file in self._files:
            file.close()

    def write(self, task: Task, encoding: Encoding, data: np.ndarray) -> None:
        """Write `data`, the task's rows as `encoding` has them, to every file that takes them."""
        skip = task.first * row_nbytes(encoding.type, task.tensor.n_per_row)
        for index, offset in encoding.places:
            _write_at(self._files[index], offset + skip, data.data)


def _write_at(file: FileIO, start: int, data: memoryview) -> None:
    file.seek(start)
    while data:
        data = data[file.write(data[:WRITE_BYTES]) :]


@contextmanager
def flushing(
    files: Sequence[PartialFile], done: Callable[[], int], on_error: Callable[[OSError], None]
) -> Iterator[None]:
    """While the body runs, a thread flushes `files` each time `done()`, in bytes of input, has grown enough.

    Raises the OSError of a flush that fails while or after the body ends; `on_error` is called with it at once.
    """
    ended = threading.Event()
    errors: list[OSError] = []

    def flush() -> None:
        flushed = 0
        while not ended.wait(0.05):
            if done() - flushed >= FLUSH_BYTES:
                flushed = done()
                try:
                    for file in files:
                        file.flush()
                except OSError as error:  # the system reports an error of the disk once: here
                    errors.append(error)
                    on_error(error)

    thread = threading.Thread(target=flush, name="flush")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if errors:
        raise errors[0]
