"""Continuous batching: one thread that computes all running answers together, a batch at a time.

Every step takes one token of each answer being written and fills the batch up with prompts. Answers come and go
between steps.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...errors import BorealisError, Busy
from ..events import Chosen, Event, Finished, Reason, Text, Usage
from ..llama.engine import BATCH, Cell, Engine
from ..llama.sampler import Sampler, chosen
from .output_text import Output
from .slots import WORTH, Sequences, common
from .slots import Sequence as Slot

SHARED_BATCH = 128
"""Most tokens of prompts in a step while answers are being written: what those wait for."""

Sink = Callable[[Event | BaseException], None]
"""Gets the events of one answer; the last is Finished or an exception. Called by the engine's thread or `cancel`."""


@dataclass(slots=True, eq=False)
class Job:
    """One answer to make. `trace` is the prompt as `sequences` has it; `images` are features by their places.

    While its images are `looking` for their features it waits like others, and is not begun.
    """

    trace: Sequence[int]
    images: dict[int, np.ndarray]
    sampler: Sampler
    sink: Sink
    max_tokens: int | None
    stop: Sequence[str] = ()
    logprobs: int | None = None
    looking: bool = False
    cancelled: bool = False
    slot: Slot | None = None
    output: Output = field(init=False)
    last: int = -1
    made: int = 0
    cached: int = 0
    begun: float = 0.0
    read: float = 0.0
    told: list[Chosen] = field(default_factory=list)
    over: bool = False
    lock: Any = field(default_factory=threading.RLock)  # of what is told

    def __post_init__(self) -> None:
        self.output = Output(self.stop)

    def usage(self) -> Usage:
        """Tokens and seconds so far."""
        now = time.monotonic()
        begun, read = self.begun or now, self.read or now
        return Usage(len(self.trace), self.cached, self.made, read - begun, now - read)

    def tell(self, text: str) -> None:
        """Pass text on, with what is known of its tokens."""
        self.sink(Text(text, tuple(self.told)))
        self.told.clear()

    def end(self, event: Event | BaseException) -> None:
        """Pass the last event on, if none was."""
        with self.lock:
            if not self.over:
                self.over = True
                self.sink(event)

    def ended(self, reason: Reason) -> Finished:
        """Tell what was held back of the text; what ends the answer then."""
        with self.lock:
            if not self.over and reason != "stop" and (rest := self.output.push(b"", last=True)):
                self.tell(rest)
            return Finished(reason, self.usage())


class Scheduler:
    """The engine's thread. All methods may be called from any other thread."""

    def __init__(self, engine: Engine, max_queue: int | None = None) -> None:
        self.engine, self.max_queue = engine, max_queue
        self.sequences = Sequences(engine)
        self.totals: dict[str, float] = dict.fromkeys(
            ("requests", "cancelled", "prompt_tokens", "completion_tokens", "prompt_seconds", "completion_seconds"), 0
        )
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._calls: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._computing: list[Job] = []
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="borealis-gguf engine", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Have an answer made. Raises Busy when too many wait already, BorealisError when closed."""
        with self._changed:
            if self._closed:
                raise BorealisError("the model is closed")
            room = sum(not slot.busy for slot in self.sequences.all) + sum(job.cancelled for job in self._running)
            waiting = sum(not job.cancelled for job in self._waiting)
            if self.max_queue is not None and waiting >= self.max_queue + room:
                raise Busy(f"{waiting} requests are waiting already; try again later")
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Stop making this answer. Its last event, Finished("cancelled"), comes at once, whatever is being computed.

        A step that is nobody else's is left in the middle. One that others share is computed to its end: to do it again
        would take longer than what is left of it, and llama.cpp would put some of it to other places in memory, where
        results differ in their last digits.
        """
        with self._changed:
            job.cancelled = True
            if self._computing == [job]:
                self.engine.abort()
            self._changed.notify()
        with job.lock:
            job.end(job.ended("cancelled"))

    def waits(self, job: Job) -> bool:
        """Whether somebody still wants this answer, which has not begun."""
        with self._changed:
            return job in self._waiting and not job.cancelled

    def looked(self, job: Job, trace: Sequence[int], images: dict[int, np.ndarray]) -> None:
        """Let an answer begin whose images have been looked at."""
        with self._changed:
            job.trace, job.images, job.looking = trace, images, False
            self._changed.notify()

    def drop(self, job: Job, error: BorealisError) -> None:
        """End an answer that has not begun; one that has ended already stays as it is."""
        with self._changed:
            if job not in self._waiting:
                return
            self._waiting.remove(job)
        self._fail(job, error)

    def call(self, function: Callable[[], Any]) -> Any:
        """Run `function` in the engine's thread between two steps, and give back what it returns or raises."""
        done = threading.Event()
        results: list[Any] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(function())
            except BaseException as error:
                errors.append(error)
            done.set()

        with self._changed:
            if self._closed:
                raise BorealisError("the model is closed")
            self._calls.append(run)
            self._changed.notify()
        done.wait()
        if errors:
            raise errors[0]
        return results[0]

    def stats(self) -> dict[str, float]:
        """Answers being made and waiting, tokens in memory, and totals since the start."""
        with self._changed:
            held = sum(len(slot.trace) for slot in self.sequences.all)
            now = {"active": len(self._running), "waiting": len(self._waiting), "kv_tokens": held}
            return now | {f"{name}_total": value for name, value in self.totals.items()}

    def close(self) -> None:
        """Cancel everything and end the thread; the engine is then nobody's. A second call does nothing."""
        with self._changed:
            self._closed = True
            self.engine.abort()
            self._changed.notify()
        self._thread.join()

    # What follows runs in the engine's thread.

    def _run(self) -> None:
        going = True
        while going:
            try:
                going = self._next()
                self._step()
            except Exception as error:
                for job in list(self._running):
                    self._fail(job, error, lose=True)

    def _next(self) -> bool:
        """Wait for work and see to what has changed. False: the end."""
        with self._changed:
            while not (self._closed or self._running or self._calls or any(map(_ripe, self._waiting))):
                self._changed.wait()
            self.engine.abort(False)
            calls, closed = list(self._calls), self._closed
            self._calls.clear()
            waiting = [job for job in self._waiting if job.cancelled or closed]
            for job in waiting:
                self._waiting.remove(job)
        for job in [job for job in waiting if job.looking and not job.cancelled]:
            waiting.remove(job)
            self._fail(job, BorealisError("the model is closed"))
        for job in [*waiting, *(job for job in self._running if job.cancelled or closed)]:
            job.cancelled = True
            self._finish(job, "cancelled")
        for call in calls:
            call()
        self._admit()
        return not closed

    def _admit(self) -> None:
        while self.sequences.free():
            with self._changed:
                job = next((job for job in self._waiting if not (job.looking or self._worth_waiting(job))), None)
                if job is None:
                    return
                self._waiting.remove(job)
                self._running.append(job)
            job.begun = time.monotonic()
            slot, job.cached = self.sequences.take(job.trace)
            job.slot = slot
            job.sampler.seen([id for id in job.trace if id >= 0])

    def _worth_waiting(self, job: Job) -> bool:
        """Whether another answer is just computing much of what this one begins with."""
        reading = [other for other in self._running if not other.made]
        shared = max((common(other.trace, job.trace[:-1]) for other in reading), default=0)
        return shared >= WORTH and shared >= self.sequences.best(job.trace) + WORTH

    def _step(self) -> None:
        picture = next((job for job in self._running if self._place(job) in job.images), None)
        if picture is not None:
            self._look(picture)
            return
        cells, owners = self._batch()
        if not cells or not self._compute(owners, lambda: self.engine.decode(cells)):
            return
        for cell, job in zip(cells, owners, strict=True):
            if job.slot is not None:
                job.slot.trace.append(cell.id)
        for n, (cell, job) in enumerate(zip(cells, owners, strict=True)):
            if cell.logits:
                try:
                    self._advance(job, n)
                except Exception as error:
                    self._fail(job, error)

    def _compute(self, owners: Sequence[Job], work: Callable[[], bool]) -> bool:
        """Do `work` for `owners`. False: it was not done, and nobody needs it any more."""
        with self._changed:
            if all(job.cancelled for job in owners):
                return False
            self._computing = list(dict.fromkeys(owners))
        try:
            return work()
        finally:
            with self._changed:
                self._computing = []

    def _place(self, job: Job) -> int:
        return len(job.slot.trace) if job.slot is not None else -1

    def _look(self, job: Job) -> None:
        slot, features = job.slot, job.images[self._place(job)]
        if slot is None:
            return
        if self._compute([job], lambda: self.engine.decode_features(slot.id, len(slot.trace), features)):
            slot.trace += job.trace[len(slot.trace) : len(slot.trace) + len(features)]

    def _batch(self) -> tuple[list[Cell], list[Job]]:
        cells: list[Cell] = []
        owners: list[Job] = []
        writing = [job for job in self._running if job.slot is not None and job.made]
        for job in writing:
            cells.append(Cell(job.slot.id, len(job.slot.trace), job.last, True))  # type: ignore[union-attr]
            owners.append(job)
        room = min(BATCH - len(cells), SHARED_BATCH) if writing else BATCH
        for job in self._running:
            if not job.made and job.slot is not None:
                part = self._part(job, room - (len(cells) - len(writing)))
                cells += part
                owners += [job] * len(part)
        return cells, owners

    def _part(self, job: Job, room: int) -> list[Cell]:
        """The next tokens of a prompt, at most `room`, up to an image, the end, or where windows begin anew in memory.

        A batch that goes round there, left in the middle and computed later, would take other places in memory, and
        results would differ in their last digits.
        """
        slot = job.slot
        if slot is None:
            return []
        start = len(slot.trace)
        ends = [start + max(0, room), len(job.trace), *(place for place in job.images if place > start)]
        if ring := self.engine.ring:
            ends.append((start // ring + 1) * ring)
        stop = min(ends)
        last = len(job.trace) - 1
        return [Cell(slot.id, place, job.trace[place], place == last) for place in range(start, stop)]

    def _advance(self, job: Job, n: int) -> None:
        """Draw the token after cell `n`, and tell."""
        slot = job.slot
        with job.lock:
            reason = None if job.over else self._written(job, n)
        if job.made == 1 and slot is not None:
            self.sequences.mark(slot)
        if reason is not None:
            self._finish(job, reason)

    def _written(self, job: Job, n: int) -> Reason | None:
        """As `_advance`; why that was the last token, if it was."""
        job.read = job.read or time.monotonic()
        if job.max_tokens == 0:
            return "length"
        job.last = job.sampler.draw(n)
        job.made += 1
        end = self.engine.is_end(job.last)
        if job.logprobs is not None and not end:
            job.told.append(chosen(self.engine, self.engine.logits_at(n), job.last, job.logprobs))
        text = job.output.push(b"" if end else self.engine.piece(job.last), last=end)
        if text or (end and job.told):
            job.tell(text)
        full = job.slot is not None and len(job.slot.trace) + 1 >= self.engine.n_context
        if end or job.output.stopped:
            return "stop"
        return "length" if job.made == job.max_tokens or full else None

    def _finish(self, job: Job, reason: Reason) -> None:
        event = job.ended(reason)
        self._leave(job)
        job.end(event)

    def _fail(self, job: Job, error: Exception, lose: bool = False) -> None:
        self._leave(job, lose)
        job.end(error if isinstance(error, BorealisError) else BorealisError(f"the engine failed: {error!r}"))

    def _leave(self, job: Job, lose: bool = False) -> None:
        """Make room for others; `lose`: what its sequence holds cannot be trusted."""
        usage = job.usage()
        with self._changed:
            if job in self._running:
                self._running.remove(job)
            for name in ("prompt_tokens", "completion_tokens", "prompt_seconds", "completion_seconds"):
                self.totals[name] += getattr(usage, name)
            self.totals["requests"] += 1
            self.totals["cancelled"] += job.cancelled
        job.sampler.close()
        if job.slot is not None:
            if lose:
                self.sequences.lose(job.slot)
            self.sequences.release(job.slot)
            job.slot = None


def _ripe(job: Job) -> bool:
    """Whether there is something to do for a job that waits."""
    return not job.looking or job.cancelled
