"""Bytes in and out of one request: bodies within their limits, clients that leave, events as they come."""

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
from .error_response import ClientGone, Refusal
from .service_state import Service

if TYPE_CHECKING:
    from ..answer import Answer

T = TypeVar("T")
Numbered = tuple[int, Event]

SSE = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
DONE = b"data: [DONE]\n\n"
PING = b": still at work\n\n"


async def read_body(service: Service, request: Request) -> bytes:
    """The JSON of a request. Raises Refusal when it is too long, too slow or of another type, and ClientGone."""
    kind, _, parameters = request.headers.get("content-type", "").partition(";")
    if kind.strip().lower() != "application/json":
        raise Refusal(415, "the body must be JSON, sent with Content-Type: application/json")
    if "charset" in parameters.lower() and "utf-8" not in parameters.lower():
        raise Refusal(415, "the body must be in UTF-8")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(415, "compressed bodies are not taken")
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
        service.hold(request.scope, len(piece))
        body += piece
        more = message.get("more_body", False)
    return bytes(body)


async def _next_message(service: Service, request: Request, end: float) -> Any:
    left = min(end - time.monotonic(), service.settings.body_idle)
    try:
        message = await asyncio.wait_for(request.receive(), max(left, 0.001))
    except (TimeoutError, asyncio.TimeoutError):  # two classes before Python 3.11
        raise Refusal(408, "the body comes too slowly", headers={"connection": "close"}) from None
    if message["type"] == "http.disconnect":
        raise ClientGone
    return message


def _too_large(service: Service) -> Refusal:
    return Refusal(413, f"the body is larger than {service.body_limit} bytes", code="body_too_large")


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns; it is cancelled, and ClientGone raised, when the client leaves before."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        await dismiss([task, gone])


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def merged(answers: "Sequence[Answer]", ping: float) -> AsyncGenerator[list[Numbered], None]:
    """The events of several answers, with their numbers, as many at a time as are there; [] when long there is none.

    Raises what an answer raises, and Refusal when one was cancelled, which only the end of the server does.
    """
    left, bell = dict(enumerate(answers)), _Bell()
    while left:
        events = [(number, event) for number, answer in left.items() for event in answer.take()]
        if events or not await bell.rung(left, ping):
            yield events
        for number, event in events:
            if isinstance(event, Finished):
                del left[number]
                if event.reason == "cancelled":
                    raise Refusal(503, "the server is ending", code="stopping")


class _Bell:
    """Rung by answers that have something. One turn of the event loop a token: tasks and queues would take several."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ringing: asyncio.Future[bool] = self._loop.create_future()
        self._asked: set[int] = set()

    async def rung(self, answers: "Mapping[int, Answer]", timeout: float) -> bool:
        """Wait until one of `answers` has something, or False after `timeout` seconds."""
        self._ringing = self._loop.create_future()
        for number in answers.keys() - self._asked:
            self._asked.add(number)
            ring = partial(self._ring, number)
            answers[number].when_ready(lambda ring=ring: self._loop.call_soon_threadsafe(ring))
        timer = self._loop.call_later(timeout, partial(self._end, rung=False))
        try:
            return await self._ringing
        finally:
            timer.cancel()

    def _ring(self, number: int) -> None:
        self._asked.discard(number)
        self._end(rung=True)

    def _end(self, *, rung: bool) -> None:
        if not self._ringing.done():
            self._ringing.set_result(rung)


@contextlib.contextmanager
def closing_all(answers: "Sequence[Answer]") -> Iterator[None]:
    """Answers that nobody waits for any more are not made any more."""
    try:
        yield
    finally:
        for answer in answers:
            answer.close()


async def dismiss(tasks: "Sequence[asyncio.Future[Any]]") -> None:
    """Cancel tasks and wait until they are gone."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def sse(content: Any) -> bytes:
    """One server-sent event; JSON has no raw line break inside."""
    return b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8") + b"\n\n"


class Stream:
    """A response of server-sent events. An error in mid-stream is the last of them, without [DONE]."""

    def __init__(self, service: Service, source: AsyncGenerator[bytes, None], answers: "Sequence[Answer]") -> None:
        self.service, self.source, self.answers = service, source, answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": SSE})
        with closing_all(self.answers):
            await unless_gone(receive, self._write(send))

    async def _write(self, send: Send) -> None:
        async with contextlib.aclosing(self.source) as source:
            try:
                async for data in source:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                last = DONE
            except (BorealisError, Refusal) as error:
                last = sse((error if isinstance(error, Refusal) else self.service.refusal_of(error)).body())
            except Exception:
                logging.getLogger(__name__).exception("an answer failed")
                last = sse(Refusal(500, "an internal error").body())
        await send({"type": "http.response.body", "body": last, "more_body": False})
