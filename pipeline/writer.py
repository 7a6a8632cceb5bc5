"""Writing encoded rows to their places in the output files, and flushing these files to the disk meanwhile."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import FileIO

import numpy as np

from ..checkpoint.file_access import reason
from ..checkpoint.types import row_nbytes
from ..errors import BorealisError
from .atomic_output import PartialFile
from .tasks import Encoding, Task

WRITE_BYTES = 1 << 18
"""Bytes written at a time. For more, Linux asks for memory in pieces that it may have to look for."""

FLUSH_BYTES = 1 << 28
"""Input done between two flushes: the disk writes while the workers encode, and little is left for the end."""


class OutputWriter:
    """One thread's handles of all output files. Other threads write other ranges of the same files."""

    def __init__(self, outputs: Sequence[PartialFile]) -> None:
        self._outputs = outputs
        self._files: list[FileIO] = []
        with ExitStack() as opened:
            for output in outputs:
                self._files.append(opened.enter_context(output.path.open("r+b", buffering=0)))
            self._opened = opened.pop_all()

    def close(self) -> None:
        self._opened.close()

    def write(self, task: Task, encoding: Encoding, data: np.ndarray) -> None:
        """Write `data`, the task's rows as `encoding` has them, to every file that takes them. Raises BorealisError."""
        skip = task.first * row_nbytes(encoding.type, task.tensor.n_per_row)
        for index, offset in encoding.places:
            try:
                _write_at(self._files[index], offset + skip, data.data)
            except OSError as error:
                raise BorealisError(
                    f"{self._outputs[index].plan.path}: {task.tensor.name}, at offset {offset + skip}: cannot be "
                    f"written: {reason(error)}; nothing was kept"
                ) from error


def _write_at(file: FileIO, start: int, data: memoryview) -> None:
    file.seek(start)
    while data:
        data = data[file.write(data[:WRITE_BYTES]) :]


@contextmanager
def flushing(
    files: Sequence[PartialFile], done: Callable[[], int], on_error: Callable[[BorealisError], None]
) -> Iterator[None]:
    """While the body runs, a thread flushes `files` each time `done()`, in bytes of input, has grown enough.

    Raises the error of a flush that fails while or after the body ends; `on_error` is called with it at once.
    """
    ended = threading.Event()
    errors: list[BorealisError] = []

    def flush() -> None:
        flushed = 0
        while not ended.wait(0.05):
            if done() - flushed >= FLUSH_BYTES:
                flushed = done()
                try:
                    for file in files:
                        file.flush()
                except BorealisError as error:  # the system reports an error of the disk once: here
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
