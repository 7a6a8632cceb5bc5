"""The executor: writes planned files in one pass over their sources, with several workers.

A worker reads at a position, encodes, and writes at positions: workers share nothing on that path but the list of
tasks, so the bytes depend neither on the number of workers nor on the size of the tasks.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path
from typing import Protocol

from ..errors import STOPPED, BorealisError, Cancelled, os_errors_as_ours
from ..usable_cores import usable_cores
from .atomic_output import PartialFile, check_outputs, make_folders
from .plan import Codec, FilePlan
from .read_ahead import ReadAhead, batches
from .sources import OpenSlice, is_remote, open_local, require_unchanged, source_stamps
from .task_worker import RunSettings, TaskWorker
from .tasks import CHUNK_WEIGHTS, Task, tasks, total_nbytes
from .writer import OutputWriter, flushing


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
    """Checks files before they appear under their final names. When it raises, none of them does."""

    def begin(self, files: Sequence[tuple[Path, FilePlan]]) -> None:
        """Called when the files hold their headers and no data yet, each under its temporary path."""

    def finish(self) -> None:
        """Called when all data is written."""

    def abort(self) -> None:
        """Called from another thread while `finish` runs, when the run is to stop: `finish` then ends soon."""


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
    the files that slices lie in; with remote ones among them, all are read ahead. `verifier` checks the files before
    they get their names.

    Raises InvalidInput before anything is written (no space, no such folder, another run at the same output),
    BorealisError in the middle (a truncated or changed source, NaN or Inf weights, a full disk), Cancelled.
    """
    began = time.monotonic()
    settings = RunSettings(plans, codec, open_slice, threading.Event(), allow_nonfinite)
    with os_errors_as_ours(plans[0].path if plans else "no plan", "; nothing was kept"), ExitStack() as stack:
        make_folders(plans, stack)
        check_outputs(plans)
        stamps = source_stamps(plans)
        require_unchanged(stamps, "since it was planned")
        files: list[PartialFile] = []
        for plan in plans:
            files.append(PartialFile(plan))
            stack.callback(files[-1].discard)
            files[-1].begin()
        if verifier:
            verifier.begin([(file.path, file.plan) for file in files])
        run = _Run(settings, tasks(plans, chunk_weights), files)
        stack.callback(run.close)
        with flushing(files, lambda: run.done, run.fail):
            run.work(jobs or usable_cores(), total_nbytes(plans), on_progress, stop or threading.Event())
        require_unchanged(stamps, "while it was read")
        with ThreadPoolExecutor(1, "sync") as pool:  # the disk works while the verifier does
            synced = [pool.submit(file.sync) for file in files]
            if verifier:
                _finish(verifier, stop or threading.Event())
        for each in synced:
            each.result()
        for file in files:
            file.publish()
    seconds = time.monotonic() - began
    return tuple(FileResult(p.path, p.label, p.size, p.bits_per_weight, seconds) for p in plans)


def _finish(verifier: Verifier, stop: threading.Event) -> None:
    """Have the files verified. Raises Cancelled soon after `stop` is set."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            if stop.is_set():
                verifier.abort()
                return

    watcher = threading.Thread(target=watch, name="stop")
    watcher.start()
    try:
        verifier.finish()
    except BorealisError:
        if not stop.is_set():
            raise
    finally:
        ended.set()
        watcher.join()
    if stop.is_set():
        raise Cancelled(STOPPED)


class _Run:
    """The workers of one run: hands tasks to them, counts what is done, keeps the first error."""

    def __init__(self, settings: RunSettings, work: Iterator[Task], outputs: Sequence[PartialFile]) -> None:
        self.settings = settings
        self.stop = settings.stop
        self.outputs = outputs
        self.tasks = work
        self.read_ahead: ReadAhead | None = None
        if is_remote(settings.plans):
            self.read_ahead = ReadAhead(batches(work), settings.open_slice, settings.stop)
        self.lock = threading.Lock()
        self.done = 0
        self.error: BaseException | None = None

    def close(self) -> None:
        if self.read_ahead:
            self.read_ahead.close()

    def work(
        self, jobs: int, total: int, on_progress: Callable[[Progress], None] | None, cancelled: threading.Event
    ) -> None:
        """Run all tasks; return when they are done, raise when one failed or the caller has set `cancelled`."""
        began = time.monotonic()
        threads = [threading.Thread(target=self._work, name=f"worker-{n}") for n in range(jobs)]
        ended = False
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.1)
                    if cancelled.is_set():  # the caller's own event is read, and never set
                        self.stop.set()
                    if on_progress:
                        on_progress(Progress(self.done, total, time.monotonic() - began))
            ended = True
        finally:
            if not ended:
                self.stop.set()
            for thread in threads:
                if thread.ident:
                    thread.join()
        if self.error:
            raise self.error
        if cancelled.is_set():
            raise Cancelled(STOPPED)
        if on_progress:
            on_progress(Progress(self.done, total, time.monotonic() - began))

    def fail(self, error: BaseException) -> None:
        """Remember the first error, and stop all workers."""
        with self.lock:
            self.error = self.error or error
        self.stop.set()

    def _work(self) -> None:
        """One worker's thread."""
        try:
            worker = TaskWorker(self.settings, OutputWriter(self.outputs))
            try:
                for task in self._tasks_for(worker):
                    worker.do(task)
                    with self.lock:
                        self.done += task.nbytes
            finally:
                worker.close()
        except BaseException as error:
            self.fail(error)

    def _tasks_for(self, worker: TaskWorker) -> Iterator[Task]:
        """Tasks for one worker, until all are done or the run is stopped."""
        while not self.stop.is_set() and (work := self._next_tasks(worker)):
            yield from takewhile(lambda _: not self.stop.is_set(), work)

    def _next_tasks(self, worker: TaskWorker) -> tuple[Task, ...]:
        """The next task, or the tasks of the next batch, which the worker's reader then holds; empty at the end."""
        if self.read_ahead:
            worker.reader.fetched = None  # frees the last batch before the next one is waited for
            worker.reader.fetched = self.read_ahead.next()
            return worker.reader.fetched.batch.tasks if worker.reader.fetched else ()
        with self.lock:
            return tuple(islice(self.tasks, 1))
