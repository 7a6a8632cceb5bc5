"""Continuous batching: one thread computes all running answers together, a batch at a time.

Every step computes one token of each answer being decoded and fills the batch up with prompts. Answers start and end
between steps.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...errors import BorealisError, Busy
from ..events import Reason
from ..llama.engine import Engine
from ..llama.sampler import with_logprobs
from .batch import next_batch
from .job import Job
from .slots import MIN_SHARED_TOKENS, SlotPool, common_prefix


class Scheduler:
    """The engine's thread. All public methods may be called from any other thread."""

    def __init__(self, engine: Engine, max_queue: int | None = None) -> None:
        self.engine, self.max_queue = engine, max_queue
        self.slots = SlotPool(engine)
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
        """Queue a job. Raises Busy when too many wait already, BorealisError when closed."""
        with self._changed:
            if self._closed:
                raise BorealisError("the model is closed")
            room = sum(not slot.busy for slot in self.slots.all) + sum(job.cancelled for job in self._running)
            waiting = sum(not job.cancelled for job in self._waiting)
            if self.max_queue is not None and waiting >= self.max_queue + room:
                raise Busy(f"{waiting} requests are waiting already; try again later")
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Stop making this answer. Its last event, Finished("cancelled"), is sent at once, even during a step.

        A step of this job alone is aborted. A step that other jobs share is computed to its end: to compute it again
        would take longer than the rest of it, and llama.cpp would use other cells of the cache for it, where results
        differ in their last digits.
        """
        with self._changed:
            job.cancelled = True
            if self._computing == [job]:
                self.engine.abort()
            self._changed.notify()
        with job.lock:
            job.end(job.finish("cancelled"))

    def is_waiting(self, job: Job) -> bool:
        """Whether the job waits to start, and is not cancelled."""
        with self._changed:
            return job in self._waiting and not job.cancelled

    def attach_images(self, job: Job, tokens: Sequence[int], images: dict[int, np.ndarray]) -> None:
        """Let a job start whose images are encoded."""
        with self._changed:
            job.tokens, job.images, job.awaiting_images = tokens, images, False
            self._changed.notify()

    def drop(self, job: Job, error: BorealisError) -> None:
        """End a waiting job with an error; does nothing for any other job."""
        with self._changed:
            if job not in self._waiting:
                return
            self._waiting.remove(job)
        self._fail(job, error)

    def call(self, function: Callable[[], Any]) -> Any:
        """Run `function` in the engine's thread between two steps; returns or raises what it does."""
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
        """Jobs running and waiting, tokens in the cache, and totals since the start."""
        with self._changed:
            held = sum(len(slot.tokens) for slot in self.slots.all)
            now = {"active": len(self._running), "waiting": len(self._waiting), "kv_tokens": held}
            return now | {f"{name}_total": value for name, value in self.totals.items()}

    def close(self) -> None:
        """Cancel all jobs and end the thread; the engine is then unused. A second call does nothing."""
        with self._changed:
            self._closed = True
            self.engine.abort()
            self._changed.notify()
        self._thread.join()

    # The methods below run in the engine's thread.

    def _run(self) -> None:
        going = True
        while going:
            try:
                going = self._prepare()
                self._step()
            except Exception as error:
                for job in list(self._running):
                    self._fail(job, error, clear=True)

    def _prepare(self) -> bool:
        """Wait for work; then end cancelled jobs, run calls and start jobs. False: the scheduler is closed."""
        with self._changed:
            while not (self._closed or self._running or self._calls or any(job.actionable for job in self._waiting)):
                self._changed.wait()
            self.engine.abort(False)
            calls, closed = list(self._calls), self._closed
            self._calls.clear()
            dropped = [job for job in self._waiting if job.cancelled or closed]
            for job in dropped:
                self._waiting.remove(job)
        for job in [job for job in dropped if job.awaiting_images and not job.cancelled]:
            dropped.remove(job)
            self._fail(job, BorealisError("the model is closed"))
        for job in [*dropped, *(job for job in self._running if job.cancelled or closed)]:
            job.cancelled = True
            self._finish(job, "cancelled")
        for call in calls:
            call()
        self._start_jobs()
        return not closed

    def _start_jobs(self) -> None:
        while self.slots.has_idle():
            with self._changed:
                ready = (job for job in self._waiting if not (job.awaiting_images or self._should_wait(job)))
                job = next(ready, None)
                if job is None:
                    return
                self._waiting.remove(job)
                self._running.append(job)
            job.started = time.monotonic()
            job.slot, job.cached = self.slots.acquire(job.tokens)
            job.sampler.accept_prompt([id for id in job.tokens if id >= 0])

    def _should_wait(self, job: Job) -> bool:
        """Whether a running job is prefilling a prefix of this one that is worth waiting for."""
        prefilling = [other for other in self._running if not other.generated]
        shared = max((common_prefix(other.tokens, job.tokens[:-1]) for other in prefilling), default=0)
        return shared >= MIN_SHARED_TOKENS and shared >= self.slots.longest_prefix(job.tokens) + MIN_SHARED_TOKENS

    def _step(self) -> None:
        with_image = next((job for job in self._running if job.position in job.images), None)
        if with_image is not None:
            self._decode_image(with_image)
            return
        tokens, owners = next_batch(self._running, self.engine.window_cells)
        if not tokens or not self._compute(owners, lambda: self.engine.decode(tokens)):
            return
        for token, job in zip(tokens, owners, strict=True):
            if job.slot is not None:
                job.slot.tokens.append(token.id)
        for n, (token, job) in enumerate(zip(tokens, owners, strict=True)):
            if token.logits:
                try:
                    self._advance(job, n)
                except Exception as error:
                    self._fail(job, error)

    def _compute(self, owners: Sequence[Job], work: Callable[[], bool]) -> bool:
        """Do `work` for `owners`. False: it was not done or aborted, because all of them are cancelled."""
        with self._changed:
            if all(job.cancelled for job in owners):
                return False
            self._computing = list(dict.fromkeys(owners))
        try:
            return work()
        finally:
            with self._changed:
                self._computing = []

    def _decode_image(self, job: Job) -> None:
        slot, features = job.slot, job.images[job.position]
        if slot is None:
            return
        if self._compute([job], lambda: self.engine.decode_features(slot.id, len(slot.tokens), features)):
            slot.tokens += job.tokens[len(slot.tokens) : len(slot.tokens) + len(features)]

    def _advance(self, job: Job, n: int) -> None:
        """Sample the token after token `n` of the batch, and emit its text."""
        slot = job.slot
        with job.lock:
            reason = None if job.ended else self._sample(job, n)
        if job.generated == 1 and slot is not None:
            self.slots.add_checkpoint(slot)
        if reason is not None:
            self._finish(job, reason)

    def _sample(self, job: Job, n: int) -> Reason | None:
        """As `_advance`; returns why the answer ends with this token, if it does."""
        job.prefilled = job.prefilled or time.monotonic()
        if job.max_tokens == 0:
            return "length"
        job.last_token = job.sampler.sample(n)
        job.generated += 1
        end = self.engine.is_end(job.last_token)
        if job.logprobs is not None and not end:
            logits = self.engine.logits_at(n)
            job.pending_logprobs.append(with_logprobs(self.engine, logits, job.last_token, job.logprobs))
        text = job.output.push(b"" if end else self.engine.piece(job.last_token), last=end)
        if text or (end and job.pending_logprobs):
            job.emit(text)
        full = job.slot is not None and job.position + 1 >= self.engine.n_context
        if end or job.output.stopped:
            return "stop"
        return "length" if job.generated == job.max_tokens or full else None

    def _finish(self, job: Job, reason: Reason) -> None:
        event = job.finish(reason)
        self._release(job)
        job.end(event)

    def _fail(self, job: Job, error: Exception, clear: bool = False) -> None:
        self._release(job, clear)
        job.end(error if isinstance(error, BorealisError) else BorealisError(f"the engine failed: {error!r}"))

    def _release(self, job: Job, clear: bool = False) -> None:
        """Give up the job's slot and count it; `clear`: the slot's cache cannot be trusted."""
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
            if clear:
                self.slots.clear(job.slot)
            self.slots.release(job.slot)
            job.slot = None
