"""What one thread does with a task: read its rows, encode them to each type, check them, write them."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..checkpoint.types import GGMLQuantizationType, row_nbytes
from ..errors import BorealisError, InvalidInput
from .plan import Codec, FilePlan
from .reader import TaskReader
from .sources import OpenSlice
from .tasks import Encoding, Task, is_copy
from .writer import OutputWriter

LARGER_TYPES = (GGMLQuantizationType.BF16, GGMLQuantizationType.F32)
"""Types for weights that are beyond the largest number of another."""


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What all workers of a run have in common."""

    plans: Sequence[FilePlan]
    codec: Codec
    open_slice: OpenSlice
    stop: threading.Event
    allow_nonfinite: bool


class TaskWorker:
    """Carries out tasks, one after another, with files and buffers of its own."""

    def __init__(self, settings: RunSettings, writer: OutputWriter) -> None:
        self.settings = settings
        self.codec = settings.codec
        self.reader = TaskReader(settings.codec, settings.open_slice, settings.stop, prefetches=True)
        self.writer = writer

    def close(self) -> None:
        self.reader.close()
        self.writer.close()

    def do(self, task: Task) -> None:
        """Write everything that is made of `task`. Raises BorealisError for weights that must not be written."""
        data = self.reader.read_bytes(task)
        copies = [e for e in task.encodings if is_copy(task.tensor, e.type)]
        others = [e for e in task.encodings if not is_copy(task.tensor, e.type)]
        for encoding in copies:
            self._check(self.codec.valid(data, encoding.type), task, "is NaN or Inf")
            self.writer.write(task, encoding, data)
        if not others:
            return
        rows = self.reader.to_numbers(task, data, as_float32=len(others) > 1)
        for encoding in others:
            if self.settings.stop.is_set():
                return
            self.writer.write(task, encoding, self._encode(task, rows, encoding))

    def _encode(self, task: Task, rows: np.ndarray, encoding: Encoding) -> np.ndarray:
        """`rows` of the task as uint8, checked; valid until the next call."""
        nbytes = row_nbytes(encoding.type, task.tensor.n_per_row)
        out = self.reader.buffer("out", task.rows * nbytes)
        try:
            finite = self.codec.encode(rows, encoding.type, encoding.importance, out.reshape(task.rows, nbytes))
        except InvalidInput as error:
            raise InvalidInput(f"{task.tensor.source.slice.path}: {task.tensor.name}: {error}") from None
        self._check(finite, task, "is NaN or Inf")
        if not self.codec.valid(out, encoding.type):
            self._check(False, task, f"is too large for {encoding.type.name}", self._larger_type(task, encoding))
        return out

    def _check(self, good: bool, task: Task, fault: str, advice: str = "--allow-nonfinite keeps it") -> None:
        if not good and not self.settings.allow_nonfinite:
            source = task.tensor.source
            files = dict.fromkeys(str(slice.path) for slice in (source.slice, *(u.up for u in source.updates)))
            raise BorealisError(
                f"{' with '.join(files)}: {task.tensor.name}: a weight in rows {task.first} to "
                f"{task.first + task.rows - 1} {fault}; {advice}"
            )

    def _larger_type(self, task: Task, encoding: Encoding) -> str:
        """What to do about a weight that is beyond the largest number of its type."""
        plan = self.settings.plans[encoding.places[0][0]]
        types = [type for type in LARGER_TYPES if type != encoding.type]
        options = filter(None, (plan.option(task.tensor.name, type) for type in types))
        use = " or ".join(options) or f"write it as {types[0].name}"
        return f"use {use} (--allow-nonfinite writes infinity)"
