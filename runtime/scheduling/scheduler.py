"""Continuous batching: one thread computes all running answers together, a batch at a time.

Every step computes one token of each answer being decoded and fills the batch up with prompts. Answers start and end
between steps.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from ...errors import BorealisError, Busy, EngineDied
from ..events import Finished, Reason
from ..llama.engine import Engine
from ..llama.sampler import with_logprobs
from .batch import next_batch
from .job import Job
from .slots import MIN_SHARED_TOKENS, SlotPool, common_prefix


class Scheduler:
    """The engine's thread. All public methods may be called from any other thread.

    What a job or a call raises ends that one alone, with that error; what a step of llama.cpp raises ends the running
    jobs. Where even that fails, the engine is unusable: everything that waits, and everything later, gets EngineDied.
    """

    def __init__(self, engine: Engine, max_queue: int | None = None) -> None:
        self.engine, self.max_queue = engine, max_queue
        self.slots = SlotPool(engine)
        self.totals: dict[str, float] = dict.fromkeys(
            ("requests", "cancelled", "prompt_tokens", "completion_tokens", "prompt_seconds", "completion_seconds"), 0
        )
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._changed = threading.Condition()
        self._computing: list[Job] = []
        self._closed = False
        self.unusable: EngineDied | None = None
        self._thread = threading.Thread(target=self._run, name="borealis-gguf engine", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job. Raises Busy when too many wait already, BorealisError when closed or unusable."""
        with self._changed:
            self._check_usable()
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
        self._end(job, error)

    def call(self, function: Callable[[], Any]) -> Any:
        """Run `function` in the engine's thread between two steps; returns or raises what it does."""
        future: Future[Any] = Future()
        with self._changed:
            self._check_usable()
            self._calls.append((future, function))
            self._changed.notify()
        return future.result()

    def _check_usable(self) -> None:
        if self._closed:
            raise BorealisError("the model is closed")
        if self.unusable is not None:
            raise self.unusable

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
        try:
            while self._turn():
                pass
        except BaseException as error:
            self._give_up(error)

    def _turn(self) -> bool:
        """One step, and what happens before it. False: the scheduler is closed."""
        try:
            going = self._prepare()
            self._step()
            return going
        except BaseException as error:
            for job in list(self._running):
                self._fail(job, error, clear=True)
            return True

    def _give_up(self, error: BaseException) -> None:
        """End everything that waits with `error`, which left the engine unusable."""
        logging.getLogger(__name__).error("the engine's thread ended", exc_info=error)
        with self._changed:
            self.unusable = EngineDied(f"the engine failed and cannot go on: {error!r}; load the model again")
            jobs, calls = [*self._running, *self._waiting], list(self._calls)
            for queue in (self._running, self._waiting, self._calls):
                queue.clear()
        for future, _ in calls:
            future.set_exception(self.unusable)
        for job in jobs:
            job.end(self.unusable)

    def _prepare(self) -> bool:
        """Wait for work; then end cancelled jobs, run calls and start jobs. False: the scheduler is closed."""
        with self._changed:
            while not (self._closed or self._running or self._calls or any(job.actionable for job in self._waiting)):
                self._changed.wait()
            self.engine.abort(False)
            closed = self._closed
            unwanted = [job for job in (*self._waiting, *self._running) if job.cancelled or closed]
        for job in unwanted:
            if job.awaiting_images and not job.cancelled:
                self._fail(job, BorealisError("the model is closed"))
            else:
                job.cancelled = True
                self._finish(job, "cancelled")
        self._run_calls()
        self._start_jobs()
        return not closed

    def _run_calls(self) -> None:
        for _ in range(len(self._calls)):  # those queued meanwhile wait for the next step
            future, function = self._calls.popleft()
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

    def _start_jobs(self) -> None:
        with self._changed:
            ready = [job for job in self._waiting if not job.awaiting_images]
        for job in ready:
            try:
                if not self.slots.has_idle():
                    return
                if not self._should_wait(job):
                    self._start(job)
            except BaseException as error:
                self._fail(job, error)

    def _start(self, job: Job) -> None:
        with self._changed:
            if job not in self._waiting:
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
                except BaseException as error:
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
        if self._take_out(job):
            self._end(job, event)

    def _fail(self, job: Job, error: BaseException, clear: bool = False) -> None:
        """End a job with an error; `clear`: its slot's cache cannot be trusted."""
        if self._take_out(job):
            self._end(job, error if isinstance(error, BorealisError) else _engine_error(error), clear)

    def _take_out(self, job: Job) -> bool:
        """Take the job out of its queue. False: another thread did, and ends it."""
        with self._changed:
            queue = next((queue for queue in (self._running, self._waiting) if job in queue), None)
            if queue is not None:
                queue.remove(job)
            return queue is not None

    def _end(self, job: Job, event: Finished | BorealisError, clear: bool = False) -> None:
        """Count a job that was taken out, free what it holds, and send its last event."""
        self._count(job)
        slot, job.slot = job.slot, None
        try:
            if slot is not None and clear:
                self.slots.clear(slot)
        finally:
            if slot is not None:
                self.slots.release(slot)
            _close_sampler(job)
            job.end(event)

    def _count(self, job: Job) -> None:
        usage = job.usage()
        with self._changed:
            for name in ("prompt_tokens", "completion_tokens", "prompt_seconds", "completion_seconds"):
                self.totals[name] += getattr(usage, name)
            self.totals["requests"] += 1
            self.totals["cancelled"] += job.cancelled


def _close_sampler(job: Job) -> None:
    try:
        job.sampler.close()
    except Exception:  # its memory is lost, and nothing else
        logging.getLogger(__name__).exception("a sampler could not be closed")


def _engine_error(error: BaseException) -> BorealisError:
    return BorealisError(f"the engine failed: {error!r}")
