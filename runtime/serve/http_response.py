"""Wraps ASGI receive and send of one request: adds headers, and sends errors so that clients get to read them."""

import asyncio
import time
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from .error_response import ErrorResponse

LINGER_SECONDS = 1.0
MAX_LINGER_BYTES = 64 << 20
"""How long, and how many bytes, a body is still read and discarded after an error was sent."""


class HTTPResponse:
    """Receives and sends for one request. `status` is that of the response, once it started."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, headers: Mapping[str, str]) -> None:
        self.status: int | None = None
        self._scope, self._receive, self._send, self._headers = scope, receive, send, headers
        given = Headers(scope=scope)
        self._body_ended = given.get("content-length", "0") == "0" and "transfer-encoding" not in given

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._body_ended = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            given = list(message.get("headers", ()))
            own = {name.lower() for name, _ in given}
            more = [(name.encode(), value.encode("latin-1")) for name, value in self._headers.items()]
            message = {**message, "headers": [*given, *(pair for pair in more if pair[0] not in own)]}
        await self._send(message)

    async def send_error(self, error: ErrorResponse) -> None:
        """Send an error. A client that is still sending its body would not see it if the connection closed at once."""
        response = error.response()
        await self.send({"type": "http.response.start", "status": error.status, "headers": response.raw_headers})
        await self._send({"type": "http.response.body", "body": bytes(response.body), "more_body": True})
        await self._discard_body()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _discard_body(self) -> None:
        end, discarded = time.monotonic() + LINGER_SECONDS, 0
        while not self._body_ended and discarded < MAX_LINGER_BYTES and (left := end - time.monotonic()) > 0:
            try:
                discarded += len((await asyncio.wait_for(self.receive(), left)).get("body", b""))
            except (TimeoutError, asyncio.TimeoutError):  # two classes before Python 3.11
                return
