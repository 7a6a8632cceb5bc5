"""One request's way in and out: headers that all answers have, and refusals that their readers get to see."""

import asyncio
import time
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from .error_response import Refusal

LINGER_SECONDS = 1.0
MAX_LINGER = 64 << 20
"""How long, and how many bytes, a body is read and forgotten after it was refused."""


class Reply:
    """Stands between uvicorn and the application for one request. `status` is that of the response, once it began."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, headers: Mapping[str, str]) -> None:
        self.status: int | None = None
        self._scope, self._receive, self._send, self._headers = scope, receive, send, headers
        asked = Headers(scope=scope)
        self._body_ended = asked.get("content-length", "0") == "0" and "transfer-encoding" not in asked

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

    async def refuse(self, refusal: Refusal) -> None:
        """Send an error. A client that is still sending its body would lose it if the connection ended at once."""
        response = refusal.response()
        await self.send({"type": "http.response.start", "status": refusal.status, "headers": response.raw_headers})
        await self._send({"type": "http.response.body", "body": bytes(response.body), "more_body": True})
        await self._linger()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _linger(self) -> None:
        end, dropped = time.monotonic() + LINGER_SECONDS, 0
        while not self._body_ended and dropped < MAX_LINGER and (left := end - time.monotonic()) > 0:
            try:
                dropped += len((await asyncio.wait_for(self.receive(), left)).get("body", b""))
            except (TimeoutError, asyncio.TimeoutError):  # two classes before Python 3.11
                return
