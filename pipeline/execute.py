"""The executor: reads row ranges, makes their bytes, writes them where the plan says.

A worker reads at a position, encodes, writes at positions: nothing is shared on that path but the list of tasks, so
the bytes depend neither on the number of workers nor on the size of the chunks.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import FileIO, RawIOBase
from itertools import islice, takewhile
from pathlib import Path
from queue import Full, Queue
from typing import Protocol

import numpy as np

from ..checkpoint.types import GGMLQuantizationType, row_nbytes
from ..errors import BorealisError, Cancelled, InvalidInput
from . import low_rank
from .atomic_output import PartialFile, check_outputs
from .plan import Codec, FilePlan, Tensor, TensorSource
from .row_reader import Announced, Batch, OpenSlice, ReadAhead, batches, fill, is_remote, open_local, read_ahead_memory
from .tasks import CHUNK_WEIGHTS, Encoding, Task, is_copy, tasks, total_nbytes

F32, F16, BF16 = GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16
PLAIN = {F32: np.dtype(np.float32), F16: np.dtype(np.float16), BF16: np.dtype(np.uint16)}


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands: bytes of input done and in all, seconds since it began."""

    done: int
    total: int
    seconds: float


@dataclass(frozen=True, slots=True)
class FileResult:
    """A finished file."""

    path: Path
    label: str
    size: int
    bits_per_weight: float
    seconds: float


class Verifier(Protocol):
    """Looks at files before they appear under their names. What it raises keeps all of them from that."""

    def begin(self, files: Sequence[tuple[Path, FilePlan]]) -> None:
        """Called when the headers stand in the files, under the names they have meanwhile; data is yet to come."""

    def finish(self) -> None:
        """Called when all is written."""


def execute(
    plans: Sequence[FilePlan],
    codec: Codec,
    *,
    jobs: int | None = None,
    chunk_weights: int = CHUNK_WEIGHTS,
    on_progress: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
    allow_nonfinite: bool = False,
    open_slice: OpenSlice = open_local,
    verifier: Verifier | None = None,
) -> tuple[FileResult, ...]:
    """Write every planned file in one pass over their sources.

    `on_progress` is called in this thread, about ten times a second. Setting `stop` from another thread ends the run
    within a second, as an exception in this thread does; no file then stands under a final name. `open_slice` opens
    the files that slices lie in; with remote ones among them, all are read ahead. `verifier` has the last word before
    a file gets its name.

    Raises InvalidInput before anything is written (no space, no such folder, another run at the same output),
    BorealisError in the middle (a truncated or changed source, NaN or Inf weights, a full disk), Cancelled.
    """
    began = time.monotonic()
    check_outputs(plans)
    stamps = source_stamps(plans)
    with ExitStack() as stack, _clear_errors():
        files = []
        for plan in plans:
            files.append(PartialFile(plan))
            stack.callback(files[-1].discard)
            files[-1].begin()
        if verifier:
            verifier.begin([(file.path, file.plan) for file in files])
        total = total_nbytes(plans)
        run = _Run(
            tasks(plans, chunk_weights),
            [_Output(f.path) for f in files],
            codec,
            stop or threading.Event(),
            allow_nonfinite,
            open_slice,
            plans,
        )
        if is_remote(plans):
            run.ahead = ReadAhead(batches(run.tasks), open_slice, run.stop)
            stack.callback(run.ahead.close)
        else:
            run.tasks = announced = Announced(run.tasks)
            stack.callback(announced.close)
        with _flushing(files, run):
            run.work(jobs or available_cores(), total, on_progress)
        for path, stamp in stamps.items():
            if source_stamp(path) != stamp:
                raise BorealisError(f"{path}: changed while it was read; run again when nothing writes to it")
        with ThreadPoolExecutor(1, "sync") as pool:  # the disk is waited for while the files are looked at
            synced = [pool.submit(file.sync) for file in files]
            if verifier:
                verifier.finish()
        for each in synced:
            each.result()
        for file in files:
            file.publish()
    seconds = time.monotonic() - began
    return tuple(FileResult(p.path, p.label, p.size, bits_per_weight(p), seconds) for p in plans)


WRITE_BYTES = 1 << 18
"""Bytes written at a time. Of more, Linux asks for memory in pieces that it may have to look for."""

LEFT = 2
"""What has been made of tasks and waits, at most, for a file that another worker is writing to."""

FLUSH_BYTES = 1 << 28
"""Input done between two flushes: the disk writes while the workers encode, and little is left for the end."""


@contextmanager
def _flushing(files: "Sequence[PartialFile]", run: "_Run") -> Iterator[None]:
    """While the body runs, put on the disk what it writes, from a thread of its own."""
    ended = threading.Event()

    def flush() -> None:
        flushed = 0
        while not ended.wait(0.05):
            if run.done - flushed >= FLUSH_BYTES:
                flushed = run.done
                try:
                    for file in files:
                        file.flush()
                except OSError as error:  # the system tells a disk's error once: here
                    run.fail(error)

    thread = threading.Thread(target=flush, name="flush")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def _clear_errors() -> Iterator[None]:
    """What the operating system says, as one line about a file."""
    try:
        yield
    except OSError as error:
        raise BorealisError(f"{error.filename or 'writing'}: {error.strerror or error}; nothing was kept") from error


def bits_per_weight(plan: FilePlan) -> float:
    """Bits a weight takes in the tensor data of `plan`."""
    return 8 * sum(t.nbytes for t in plan.tensors) / sum(t.tensor.rows * t.tensor.n_per_row for t in plan.tensors)


def available_cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_needed(plans: Sequence[FilePlan], jobs: int, chunk_weights: int = CHUNK_WEIGHTS) -> int:
    """Bytes of buffers that `jobs` workers hold at most, with what is read ahead of them or left to be written."""
    ahead = read_ahead_memory(jobs) if is_remote(plans) else 0
    largest = list(_largest(plans, chunk_weights))
    left = (LEFT + 1) * len(plans) if jobs > 1 else 0  # one of them is being written
    return ahead + jobs * max(map(_task_memory, largest), default=0) + left * max(map(_made_nbytes, largest), default=0)


def _largest(plans: Sequence[FilePlan], chunk_weights: int) -> Iterator[Task]:
    """The first rows of each tensor; where rows are reordered, all: how far apart their sources lie varies."""
    return (task for task in tasks(plans, chunk_weights) if task.first == 0 or task.tensor.source.order)


def _task_memory(task: Task) -> int:
    n = task.tensor.n_per_row
    source = task.tensor.source
    merged = 0 if source.as_stored else low_rank.memory(source.updates, task.rows) + 2 * n * task.rows
    return task.nbytes + task.span_nbytes + merged + task.rows * 4 * n + _made_nbytes(task)


def _made_nbytes(task: Task) -> int:
    """Bytes of the largest thing that is made of a task."""
    return task.rows * max(row_nbytes(e.type, task.tensor.n_per_row) for e in task.encodings)


def source_stamp(path: Path) -> tuple[int, int, int]:
    """What changes when a file does: size, time of modification, inode."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def source_stamps(plans: Sequence[FilePlan]) -> dict[Path, tuple[int, int, int]]:
    """Of the sources on this machine; a remote one is compared with its ETag at every read."""
    slices = {s for plan in plans for t in plan.tensors for s in t.tensor.source.slices()}
    return {path: source_stamp(path) for path in {slice.path for slice in slices if slice.remote is None}}


class SourceRows:
    """Rows of planned tensors as the workers make them, in float32: for whoever compares. For one thread."""

    def __init__(self, codec: Codec, open_slice: OpenSlice = open_local) -> None:
        self._worker = _Worker(_Run(iter(()), (), codec, threading.Event(), True, open_slice), ())

    def __enter__(self) -> "SourceRows":
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.close()

    def read(self, tensor: Tensor, first: int, rows: int) -> np.ndarray:
        """Rows `first` to `first + rows` as float32 [rows, n_per_row]; good until the next call."""
        task = Task(tensor, (), first, rows)
        return self._worker.rows(task, self._worker.read(task), once=True)

    def read_each(self, tensor: Tensor, rows: Sequence[int]) -> np.ndarray:
        """These rows, wherever they lie, as `read` gives them; as one where nothing depends on the place of a row."""
        if tensor.source.updates:
            return np.concatenate([self.read(tensor, row, 1).copy() for row in rows])
        whole = Task(tensor, (), 0, len(rows))
        data = np.empty((len(rows), whole.nbytes // len(rows)), np.uint8)
        if tensor.source.order:
            for out, row in zip(data, rows, strict=True):
                out[:] = self._worker.read(Task(tensor, (), row, 1))
        else:
            start, nbytes = tensor.source.slice.offset, data.shape[1]
            file = self._worker.opened(whole)
            for out, row in zip(data, rows, strict=True):
                fill(file, start + row * nbytes, out, whole)
        return self._worker.rows(whole, data.reshape(-1), once=True)


class _Run:
    """What the workers of one run share."""

    def __init__(
        self,
        work: Iterator[Task],
        outputs: "Sequence[_Output]",
        codec: Codec,
        stop: threading.Event,
        allow_nonfinite: bool,
        open_slice: OpenSlice = open_local,
        plans: Sequence[FilePlan] = (),
    ) -> None:
        self.tasks = work
        self.plans = plans
        self.outputs = outputs
        self.codec = codec
        self.stop = stop
        self.allow_nonfinite = allow_nonfinite
        self.open_slice = open_slice
        self.ahead: ReadAhead | None = None
        self.lock = threading.Lock()
        self.done = 0
        self.error: BaseException | None = None

    def work(self, jobs: int, total: int, on_progress: Callable[[Progress], None] | None) -> None:
        """Run all tasks; return when they are done, raise when one failed or the run was stopped."""
        began = time.monotonic()
        threads = [threading.Thread(target=self._worker, name=f"worker-{n}") for n in range(jobs)]
        ended = threading.Event()
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.1)
                    if on_progress:
                        on_progress(Progress(self.done, total, time.monotonic() - began))
            ended.set()
        finally:
            if not ended.is_set():
                self.stop.set()
            for thread in threads:
                if thread.ident:
                    thread.join()
        if self.error:
            raise self.error
        if self.stop.is_set():
            raise Cancelled("stopped; nothing was written under a final name")
        if on_progress:
            on_progress(Progress(self.done, total, time.monotonic() - began))

    def _worker(self) -> None:
        with ExitStack() as stack:
            try:
                outputs = [stack.enter_context(output.path.open("r+b", buffering=0)) for output in self.outputs]
                worker = _Worker(self, outputs)
                stack.callback(worker.close)
                for task in self._tasks_of(worker):
                    worker.do(task)
                    with self.lock:
                        self.done += task.nbytes
            except BaseException as error:
                self.fail(error)

    def _tasks_of(self, worker: "_Worker") -> Iterator[Task]:
        """What `worker` is to do, until all is done or the run is stopped."""
        while not self.stop.is_set():
            if self.ahead:
                worker.ahead = None
                worker.ahead = self.ahead.next()
                work = worker.ahead[0].tasks if worker.ahead else ()
            else:
                with self.lock:
                    work = tuple(islice(self.tasks, 1))
            if not work:
                return
            yield from takewhile(lambda _: not self.stop.is_set(), work)

    def fail(self, error: BaseException) -> None:
        """Remember the first error, and stop all workers."""
        with self.lock:
            self.error = self.error or error
        self.stop.set()


class _Output:
    """A file that workers write to, each with a handle of its own, and what they have left to each other.

    Linux lets no two write to a file at once, and lets the second one turn in a loop meanwhile. So what took time to
    make is left to whoever is writing, and its maker makes more. Copies wait: they have nothing else to do.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._left: Queue[tuple[int, memoryview]] = Queue(LEFT)

    def write(self, file: FileIO, at: int, data: memoryview, later: bool) -> bool:
        """Write `data` from byte `at` on, and what others have left. Returns whether it is done: with `later` it may
        not be, and another worker then does it before it ends."""
        mine = at, data
        done = not (later and self._leave(mine))
        if done:
            _put(file, *mine)
        while not self._left.empty() and self._lock.acquire(blocking=False):
            try:
                while not self._left.empty():  # who has the lock is the only one who takes
                    each = self._left.get_nowait()
                    _put(file, *each)
                    done |= each is mine
            finally:
                self._lock.release()
        return done

    def _leave(self, data: tuple[int, memoryview]) -> bool:
        """Whether there was room for it."""
        try:
            self._left.put_nowait(data)
        except Full:
            return False
        return True


def _put(file: FileIO, at: int, data: memoryview) -> None:
    file.seek(at)
    while data:
        data = data[file.write(data[:WRITE_BYTES]) :]


class _Worker:
    """One thread's file handles and buffers."""

    def __init__(self, run: _Run, outputs: Sequence[FileIO]) -> None:
        self.run = run
        self.outputs = outputs
        self.source: tuple[Path, RawIOBase] | None = None
        self.ahead: tuple[Batch, np.ndarray] | None = None
        self.updates: tuple[TensorSource, low_rank.Updates] | None = None
        self.buffers: dict[str, np.ndarray] = {}

    def close(self) -> None:
        if self.source:
            self.source[1].close()

    def buffer(self, name: str, nbytes: int) -> np.ndarray:
        """`nbytes` of uint8, kept between tasks."""
        if name not in self.buffers or self.buffers[name].size < nbytes:
            self.buffers[name] = np.empty(nbytes, np.uint8)
        return self.buffers[name][:nbytes]

    def do(self, task: Task) -> None:
        data = self.read(task)
        copies = [e for e in task.encodings if is_copy(task.tensor, e.type)]
        others = [e for e in task.encodings if not is_copy(task.tensor, e.type)]
        for encoding in copies:
            self.check(self.run.codec.valid(data, encoding.type), task, "is NaN or Inf")
            self.write(task, encoding, data)
        if not others:
            return
        rows = self.rows(task, data, once=len(others) > 1)
        for encoding in others:
            if self.run.stop.is_set():
                return
            nbytes = row_nbytes(encoding.type, task.tensor.n_per_row)
            out = self.buffer("out", task.rows * nbytes)
            try:
                finite = self.run.codec.encode(rows, encoding.type, encoding.importance, out.reshape(task.rows, nbytes))
            except InvalidInput as error:
                raise InvalidInput(f"{task.tensor.source.slice.path}: {task.tensor.name}: {error}") from None
            self.check(finite, task, "is NaN or Inf")
            if not self.run.codec.valid(out, encoding.type):
                self.check(False, task, f"is too large for {encoding.type.name}", self.larger_type(task, encoding))
            if not self.write(task, encoding, out, later=True):
                del self.buffers["out"]

    def rows(self, task: Task, data: np.ndarray, once: bool) -> np.ndarray:
        """The task's rows as numbers, with all that is done to them; float32 if for more than one encoding (`once`)."""
        source, n = task.tensor.source, task.tensor.n_per_row
        if source.slice.type not in PLAIN:
            rows = self.run.codec.decode(data.reshape(task.rows, -1), source.slice.type, n)
        else:
            rows = data.view(PLAIN[source.slice.type]).reshape(task.rows, n)
        if source.updates or source.type != source.slice.type:
            rows = self.merged(task, self.float32(rows))
        if source.scale != 1.0:
            rows = self.float32(rows) * np.float32(source.scale)
        if source.shift and rows.dtype == np.float16:
            rows = rows + np.float16(source.shift)
        elif source.shift:
            rows = self.float32(rows) + np.float32(source.shift)
        return self.float32(rows) if once else rows

    def merged(self, task: Task, rows: np.ndarray) -> np.ndarray:
        """float32 `rows`, which are overwritten, with the updates of their tensor, in its precision."""
        source = task.tensor.source
        if source.updates:
            if self.updates is None or self.updates[0] is not source:
                self.updates = source, low_rank.Updates(source.updates, self.run.codec)
            picked = task.source_rows()
            self.updates[1].add(rows, np.arange(task.first, task.first + task.rows) if picked is None else picked)
        if source.type == F32:
            return rows
        out = self.buffer("merged", rows.size * 2)
        self.run.codec.encode(rows, source.type, None, out.reshape(len(rows), -1))
        return out.view(PLAIN[source.type]).reshape(rows.shape)

    def float32(self, rows: np.ndarray) -> np.ndarray:
        if rows.dtype == np.float32:
            return rows
        out = self.buffer("float32", rows.size * 4).reshape(rows.shape[0], -1)
        self.run.codec.encode(rows, F32, None, out)
        return out.view(np.float32)

    def read(self, task: Task) -> np.ndarray:
        rows, (start, nbytes) = task.source_rows(), task.source_range()
        if rows is None:
            return self.read_range(task, start, nbytes, "in")
        span = self.read_range(task, start, nbytes, "span").reshape(-1, task.nbytes // len(rows))
        data = self.buffer("in", task.nbytes)
        np.take(span, rows - rows.min(), axis=0, out=data.reshape(len(rows), -1), mode="clip")
        return data

    def read_range(self, task: Task, start: int, nbytes: int, buffer: str) -> np.ndarray:
        """`nbytes` from byte `start` of the file the task comes from: of what was read ahead, or read now."""
        if self.ahead:
            batch, data = self.ahead
            return data[start - batch.start :][:nbytes]
        data = self.buffer(buffer, nbytes)
        fill(self.opened(task), start, data, task)
        return data

    def opened(self, task: Task) -> RawIOBase:
        """The file the task comes from."""
        where = task.tensor.source.slice
        if not self.source or self.source[0] != where.path:
            self.close()
            self.source = where.path, self.run.open_slice(where, self.run.stop)
        return self.source[1]

    def write(self, task: Task, encoding: Encoding, data: np.ndarray, *, later: bool = False) -> bool:
        """Write what was made of a task. Returns whether that is done: if not (`later`), `data` is no longer ours."""
        skip = task.first * row_nbytes(encoding.type, task.tensor.n_per_row)
        done = True
        for index, offset in encoding.places:
            done &= self.run.outputs[index].write(self.outputs[index], offset + skip, data.data, later)
        return done

    def check(self, good: bool, task: Task, fault: str, advice: str = "--allow-nonfinite keeps it") -> None:
        if not good and not self.run.allow_nonfinite:
            source = task.tensor.source
            files = dict.fromkeys(str(slice.path) for slice in (source.slice, *(u.up for u in source.updates)))
            raise BorealisError(
                f"{' with '.join(files)}: {task.tensor.name}: a weight in rows {task.first} to "
                f"{task.first + task.rows - 1} {fault}; {advice}"
            )

    def larger_type(self, task: Task, encoding: Encoding) -> str:
        """What to do about a weight that is beyond the largest number of its type."""
        plan, types = self.run.plans[encoding.places[0][0]], [t for t in (BF16, F32) if t != encoding.type]
        options = filter(None, (plan.option(task.tensor.name, type) for type in types))
        use = " or ".join(options) or f"write it as {types[0].name}"
        return f"use {use} (--allow-nonfinite writes infinity)"
