"""Reads request bodies within their limits, streams answers as server-sent events, cancels when clients disconnect."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator, Coroutine, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from ...errors import BorealisError
from ..events import Event, Finished
from .error_response import ClientDisconnected, ErrorResponse
from .service_state import Service

if TYPE_CHECKING:
    from ..answer import Answer

T = TypeVar("T")
Numbered = tuple[int, Event]

SSE = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
DONE = b"data: [DONE]\n\n"
PING = b": still at work\n\n"


async def read_body(service: Service, request: Request) -> bytes:
    """The body of a request. Raises ErrorResponse when it is too long, too slow or no JSON, and ClientDisconnected."""
    kind, _, parameters = request.headers.get("content-type", "").partition(";")
    if kind.strip().lower() != "application/json":
        raise ErrorResponse(415, "the body must be JSON, sent with Content-Type: application/json")
    if "charset" in parameters.lower() and "utf-8" not in parameters.lower():
        raise ErrorResponse(415, "the body must be in UTF-8")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ErrorResponse(415, "compressed bodies are not taken")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 15 or int(length) > service.body_limit):
        raise _too_large(service)
    body, end = bytearray(), time.monotonic() + service.settings.body_total
    more = True
    while more:
        message = await _next_message(service, request, end)
        piece = message.get("body", b"")
        if len(body) + len(piece) > service.body_limit:
            raise _too_large(service)
        service.hold_body_bytes(request.scope, len(piece))
        body += piece
        more = message.get("more_body", False)
    return bytes(body)


async def _next_message(service: Service, request: Request, end: float) -> Any:
    left = min(end - time.monotonic(), service.settings.body_idle)
    try:
        message = await asyncio.wait_for(request.receive(), max(left, 0.001))
    except (TimeoutError, asyncio.TimeoutError):  # two classes before Python 3.11
        raise ErrorResponse(408, "the body comes too slowly", headers={"connection": "close"}) from None
    if message["type"] == "http.disconnect":
        raise ClientDisconnected
    return message


def _too_large(service: Service) -> ErrorResponse:
    return ErrorResponse(413, f"the body is larger than {service.body_limit} bytes", code="body_too_large")


async def cancel_on_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns. Cancels it and raises ClientDisconnected when the client disconnects before."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_wait_for_disconnect(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnected
        return task.result()
    finally:
        await cancel_tasks([task, gone])


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def merge_events(answers: "Sequence[Answer]", ping: float) -> AsyncGenerator[list[Numbered], None]:
    """The events of several answers with the answers' numbers, all that are ready at a time; [] after `ping` seconds.

    Raises what an answer raises, and ErrorResponse when one was cancelled, which only the server's shutdown does.
    """
    left, signal = dict(enumerate(answers)), _EventSignal()
    while left:
        events = [(number, event) for number, answer in left.items() for event in answer.take()]
        if events or not await signal.wait(left, ping):
            yield events
        for number, event in events:
            if isinstance(event, Finished):
                del left[number]
                if event.reason == "cancelled":
                    raise ErrorResponse(503, "the server is ending", code="stopping")


class _EventSignal:
    """Wakes a coroutine when an answer has events, in one turn of the event loop a token; queues would take several."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._woken: asyncio.Future[bool] = self._loop.create_future()
        self._registered: set[int] = set()

    async def wait(self, answers: "Mapping[int, Answer]", timeout: float) -> bool:
        """Wait until one of `answers` has events: True, or False after `timeout` seconds."""
        self._woken = self._loop.create_future()
        for number in answers.keys() - self._registered:
            self._registered.add(number)
            wake = partial(self._wake, number)
            answers[number].when_ready(lambda wake=wake: self._loop.call_soon_threadsafe(wake))
        timer = self._loop.call_later(timeout, partial(self._set, has_events=False))
        try:
            return await self._woken
        finally:
            timer.cancel()

    def _wake(self, number: int) -> None:
        self._registered.discard(number)
        self._set(has_events=True)

    def _set(self, *, has_events: bool) -> None:
        if not self._woken.done():
            self._woken.set_result(has_events)


@contextlib.contextmanager
def closing_answers(answers: "Sequence[Answer]") -> Iterator[None]:
    """Closes, and so cancels, the answers at the end of the `with`."""
    try:
        yield
    finally:
        for answer in answers:
            answer.close()


async def cancel_tasks(tasks: "Sequence[asyncio.Future[Any]]") -> None:
    """Cancel tasks and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def sse_event(content: Any) -> bytes:
    """One server-sent event with `content` as JSON, which has no raw line break inside."""
    return b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8") + b"\n\n"


class EventStream:
    """A response of server-sent events. After an error in mid-stream, which is an event too, there is no [DONE]."""

    def __init__(self, service: Service, source: AsyncGenerator[bytes, None], answers: "Sequence[Answer]") -> None:
        self.service, self.source, self.answers = service, source, answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": SSE})
        with closing_answers(self.answers):
            await cancel_on_disconnect(receive, self._write(send))

    async def _write(self, send: Send) -> None:
        async with contextlib.aclosing(self.source) as source:
            try:
                async for data in source:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                last = DONE
            except (BorealisError, ErrorResponse) as error:
                last = sse_event(
                    (error if isinstance(error, ErrorResponse) else self.service.error_response_of(error)).body()
                )
            except Exception:
                logging.getLogger(__name__).exception("an answer failed")
                last = sse_event(ErrorResponse(500, "an internal error").body())
        await send({"type": "http.response.body", "body": last, "more_body": False})
