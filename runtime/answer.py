"""An answer while it is being made: events to iterate over, in threads or in asyncio, and a way to stop it."""

import asyncio
import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from types import TracebackType

from ..errors import BorealisError
from .events import Event, Finished, Options, Text, ToolCall
from .prompting.tool_calls import Calls

TICK = 0.1  # s; on Windows a wait without an end hears no Ctrl-C


class Answer:
    """Iterate over it, `for` or `async for`; the last event is Finished. Left or closed before: cancelled."""

    def __init__(self, options: Options, on_end: Callable[["Answer"], None] | None = None) -> None:
        self.finished: Finished | None = None
        self.error: BaseException | None = None
        self.shown = ""
        """The text so far, as far as it was made, iterated over or not."""
        self.calls: list[ToolCall] = []
        self._parser = Calls(options)
        self._events: deque[Event] = deque()
        self._changed = threading.Condition()
        self._wakers: list[Callable[[], object]] = []
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

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def close(self) -> None:
        """Cancel what is not finished."""
        if self.finished is None and self.error is None:
            self.cancel()

    def cancel(self) -> None:
        """Stop making it, from any thread. The last event will be Finished("cancelled"), if it was not done already."""
        with self._changed:
            self._cancelled, stop = True, self._stop
        if stop is not None:
            stop()

    def __iter__(self) -> "Answer":
        return self

    def __next__(self) -> Event:
        with self._changed:
            while not self._events and not self._over:
                self._changed.wait(TICK)
            return self._take(StopIteration)

    def __aiter__(self) -> "Answer":
        return self

    async def __anext__(self) -> Event:
        while True:
            with self._changed:
                if self._events or self._over:
                    return self._take(StopAsyncIteration)
                ready = asyncio.Event()
                self._wakers.append(partial(asyncio.get_running_loop().call_soon_threadsafe, ready.set))
            await ready.wait()

    def take(self) -> list[Event]:
        """All events that have come and were not iterated over, without waiting. Then raises what went wrong, if so."""
        with self._changed:
            events = list(self._events)
            self._events.clear()
            if not events and self.error is not None:
                raise self.error
        return events

    def when_ready(self, wake: Callable[[], object]) -> None:
        """Have `wake` called once, from any thread, when there is something to `take`, or nothing more to come."""
        with self._changed:
            if not self._events and not self._over:
                self._wakers.append(wake)
                return
        wake()

    def text(self) -> str:
        """Wait for the end; the whole text. Raises what went wrong."""
        with self._changed:
            while not self._over:
                self._changed.wait(TICK)
        if self.error is not None:
            raise self.error
        return self.shown

    async def result(self) -> str:
        """`text` for asyncio."""
        async for _ in self:
            pass
        return self.shown

    @property
    def _over(self) -> bool:
        return self.finished is not None or self.error is not None

    def _take(self, end: type[Exception]) -> Event:
        if self._events:
            return self._events.popleft()
        if self.error is not None:
            raise self.error
        raise end

    # For the engine's side:

    def runs(self, stop: Callable[[], None]) -> None:
        """Say how to stop it, once it has begun."""
        with self._changed:
            self._stop, late = stop, self._cancelled
        if late:
            stop()

    def push(self, event: Event | BaseException) -> None:
        """Take the next event; after the last one nothing is taken."""
        if self._over:
            return
        events: list[Event] = []
        if isinstance(event, Text):
            event_or_none = self._parser.push(event)
            events = [event_or_none] if event_or_none is not None else []
        elif isinstance(event, Finished):
            events = [*self._parser.end(), event]
            if any(not isinstance(e, (Text, Finished)) for e in events):
                events[-1] = Finished("tool_calls", event.usage)
        elif not isinstance(event, BaseException):
            events = [event]
        with self._changed:
            for e in events:
                self._keep(e)
            if isinstance(event, BaseException):
                self.error = event
        self._tell()

    def _keep(self, event: Event) -> None:
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
            except Exception as error:
                self.error = error  # it is the reader's, not the engine's

    def _tell(self) -> None:
        with self._changed:
            wakers, self._wakers = self._wakers, []
            self._changed.notify_all()
        for wake in wakers:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                wake()


def begun(answer: Answer, start: Callable[[Callable[[Event | BaseException], None]], Callable[[], None]]) -> Answer:
    """`answer`, after `start` was given where its events go. An answer that nobody holds any more is cancelled."""
    held = weakref.ref(answer)

    def push(event: Event | BaseException) -> None:
        if (target := held()) is not None:
            target.push(event)

    try:
        answer.runs(start(push))
    except BorealisError as error:
        answer.error = error
        raise
    return answer
