"""An answer while it is being generated: events to iterate over, in threads or in asyncio, and a way to stop it."""

import asyncio
import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable
from functools import cache, partial
from queue import SimpleQueue
from types import TracebackType

from ..errors import BorealisError
from .events import Event, EventSink, Finished, Options, Text, ToolCall
from .prompting.tool_calls import ToolCallParser

WAIT_SECONDS = 0.1  # on Windows, Ctrl-C does not interrupt a wait without a timeout

_dropped: "SimpleQueue[Callable[[], None]]" = SimpleQueue()
"""How to cancel answers that were dropped; unlike all other queues, it may be used by the garbage collector."""


class Answer:
    """Iterate over it with `for` or `async for`; the last event is Finished. Closing it earlier cancels it."""

    def __init__(self, options: Options, on_end: Callable[["Answer"], None] | None = None) -> None:
        self.finished: Finished | None = None
        self.error: BaseException | None = None
        self.shown = ""
        """All text so far, iterated over or not."""
        self.calls: list[ToolCall] = []
        self._parser = ToolCallParser(options)
        self._events: deque[Event] = deque()
        self._changed = threading.Condition()
        self._wake_callbacks: list[Callable[[], object]] = []
        self._stop: Callable[[], None] | None = None
        self._cancelled = False
        self._on_end = on_end

    def __enter__(self) -> "Answer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> "Answer":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __del__(self, drop: "Callable[[Callable[[], None]], object]" = _dropped.put) -> None:
        """Cancel an answer that nobody will read, from a thread of its own: this one may hold any lock."""
        stop = getattr(self, "_stop", None)
        if stop is not None and not self._ended:
            drop(stop)

    def close(self) -> None:
        """Cancel the answer unless it is finished."""
        if self.finished is None and self.error is None:
            self.cancel()

    def cancel(self) -> None:
        """Stop generating, from any thread. The last event will be Finished("cancelled"), unless it ended before."""
        with self._changed:
            self._cancelled, stop = True, self._stop
        if stop is not None:
            stop()

    def __iter__(self) -> "Answer":
        return self

    def __next__(self) -> Event:
        with self._changed:
            while not self._events and not self._ended:
                self._changed.wait(WAIT_SECONDS)
            return self._next_event(StopIteration)

    def __aiter__(self) -> "Answer":
        return self

    async def __anext__(self) -> Event:
        while True:
            with self._changed:
                if self._events or self._ended:
                    return self._next_event(StopAsyncIteration)
                ready = asyncio.Event()
                self._wake_callbacks.append(partial(asyncio.get_running_loop().call_soon_threadsafe, ready.set))
            await ready.wait()

    def take(self) -> list[Event]:
        """The events not yet iterated over, without waiting. Where there are none, raises the error that ended it."""
        with self._changed:
            events = list(self._events)
            self._events.clear()
            if not events and self.error is not None:
                raise self.error
        return events

    def when_ready(self, wake: Callable[[], object]) -> None:
        """Call `wake` once, from any thread, when `take` would return events or the answer has ended."""
        with self._changed:
            if not self._events and not self._ended:
                self._wake_callbacks.append(wake)
                return
        wake()

    def text(self) -> str:
        """Wait for the end; returns the whole text. Raises the error that ended the answer."""
        with self._changed:
            while not self._ended:
                self._changed.wait(WAIT_SECONDS)
        if self.error is not None:
            raise self.error
        return self.shown

    async def result(self) -> str:
        """`text` for asyncio."""
        async for _ in self:
            pass
        return self.shown

    @property
    def _ended(self) -> bool:
        return self.finished is not None or self.error is not None

    def _next_event(self, end: type[Exception]) -> Event:
        if self._events:
            return self._events.popleft()
        if self.error is not None:
            raise self.error
        raise end

    # For the backend:

    def on_cancel(self, stop: Callable[[], None]) -> None:
        """Set the function that stops the answer; called at once where it was cancelled before it started."""
        with self._changed:
            self._stop, late = stop, self._cancelled
        if late:
            stop()

    def push(self, event: Event | BaseException) -> None:
        """Add the next event; after the last one, events are ignored."""
        if self._ended:
            return
        events: list[Event] = []
        try:
            events = self._parsed(event)
        except Exception as error:
            event = BorealisError(f"the answer cannot be read: {error!r}")
        with self._changed:
            for e in events:
                self._record(e)
            if isinstance(event, BaseException):
                self.error = event
        self._notify()

    def _parsed(self, event: Event | BaseException) -> list[Event]:
        """The events to show for one of the model's: texts that are tool calls become calls."""
        if isinstance(event, Text):
            parsed = self._parser.push(event)
            return [parsed] if parsed is not None else []
        if isinstance(event, Finished):
            events = [*self._parser.end(), event]
            if any(not isinstance(e, (Text, Finished)) for e in events):
                events[-1] = Finished("tool_calls", event.usage)
            return events
        return [] if isinstance(event, BaseException) else [event]

    def _record(self, event: Event) -> None:
        self._events.append(event)
        if isinstance(event, Text):
            self.shown += event.text
        elif isinstance(event, ToolCall):
            self.calls.append(event)
        else:
            self.finished = event
            try:
                if self._on_end is not None:
                    self._on_end(self)
            except BaseException as error:
                self.error = error  # an error of the caller, not of the engine

    def _notify(self) -> None:
        with self._changed:
            wake_callbacks, self._wake_callbacks = self._wake_callbacks, []
            self._changed.notify_all()
        for wake in wake_callbacks:
            try:
                wake()
            except RuntimeError:
                pass  # its loop is closed
            except Exception:  # the other ones are woken all the same
                logging.getLogger(__name__).exception("a callback of an answer failed")


def start_answer(answer: Answer, start: Callable[[EventSink], Callable[[], None]]) -> Answer:
    """`answer`, after calling `start` with the sink of its events. It is cancelled when the caller drops it."""
    _start_cancelling()
    reference = weakref.ref(answer)

    def push(event: Event | BaseException) -> None:
        if (target := reference()) is not None:
            target.push(event)

    try:
        answer.on_cancel(start(push))
    except BorealisError as error:
        answer.error = error
        raise
    return answer


@cache
def _start_cancelling() -> None:
    """Start the thread that cancels dropped answers, once."""
    threading.Thread(target=_cancel_dropped, name="borealis-gguf dropped answers", daemon=True).start()


def _cancel_dropped() -> None:
    while True:
        stop = _dropped.get()
        try:
            stop()
        except Exception:
            logging.getLogger(__name__).exception("a dropped answer could not be cancelled")
