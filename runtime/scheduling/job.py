"""One answer in the making: its request, its place in the cache, and the events it has sent."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...errors import BorealisError
from ..events import Chosen, Event, EventSink, Finished, Reason, Text, Usage, send_event
from ..llama.sampler import Sampler
from .output_text import OutputText
from .slots import Slot


@dataclass(slots=True, eq=False)
class Job:
    """One answer to make. `tokens` are the prompt as in `slots`; `images` are features by their positions.

    While `awaiting_images`, the job keeps its place in the queue, but cannot start. `lock` guards what is emitted.
    """

    tokens: Sequence[int]
    images: dict[int, np.ndarray]
    sampler: Sampler
    sink: EventSink
    max_tokens: int | None
    stop: Sequence[str] = ()
    logprobs: int | None = None
    awaiting_images: bool = False
    cancelled: bool = False
    slot: Slot | None = None
    output: OutputText = field(init=False)
    last_token: int = -1
    generated: int = 0
    cached: int = 0
    started: float = 0.0
    prefilled: float = 0.0
    pending_logprobs: list[Chosen] = field(default_factory=list)
    ended: bool = False
    lock: Any = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.output = OutputText(self.stop)

    @property
    def position(self) -> int:
        """The position of the next token to compute; -1 without a slot."""
        return len(self.slot.tokens) if self.slot is not None else -1

    @property
    def actionable(self) -> bool:
        """Whether the scheduler has something to do for this job while it waits."""
        return not self.awaiting_images or self.cancelled

    def usage(self) -> Usage:
        """Tokens and seconds so far."""
        now = time.monotonic()
        started, prefilled = self.started or now, self.prefilled or now
        return Usage(len(self.tokens), self.cached, self.generated, prefilled - started, now - prefilled)

    def emit(self, text: str) -> None:
        """Send text, with the logprobs of its tokens. Raises BorealisError when the sink raises."""
        error = send_event(self.sink, Text(text, tuple(self.pending_logprobs)))
        self.pending_logprobs.clear()
        if error is not None:
            raise BorealisError(f"the receiver of the answer's events failed: {error!r}")

    def end(self, event: Event | BaseException) -> None:
        """Send the last event, unless one was sent."""
        with self.lock:
            if not self.ended:
                self.ended = True
                send_event(self.sink, event)

    def finish(self, reason: Reason) -> Finished | BorealisError:
        """Emit the text that was held back; returns the last event, which the caller sends with `end`."""
        with self.lock:
            try:
                if not self.ended and reason != "stop" and (rest := self.output.push(b"", last=True)):
                    self.emit(rest)
            except BorealisError as error:
                return error
            return Finished(reason, self.usage())
