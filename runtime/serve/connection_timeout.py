"""A connection that is dropped when its client neither sends nor takes, whatever state the request is in.

uvicorn has no limit for a request's header, nor for a client that stops reading.
"""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 15.0
"""For the header of a request, or for the rest of a body after the answer was given."""

STALL_SECONDS = 30.0
"""Without taking a single byte of what waits to be sent."""

MAX_DROPPED = 64 << 20
"""Bytes of a refused body that are read, and forgotten, so that its sender gets to see the refusal."""


class Connection(H11Protocol):
    """uvicorn's connection with three limits more."""

    header_seconds = HEADER_SECONDS
    stall_seconds = STALL_SECONDS

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._header_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._dropped = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # Every byte that the system does not take shows at once as a pause.
        transport.set_write_buffer_limits(high=0)
        super().connection_made(transport)
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._request_came()
        self._unstall()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except h11.LocalProtocolError:  # nonsense from the client in the middle of an answer
            self.transport.abort()
        if self.cycle is not None and not self.cycle.response_complete:
            self._request_came()
            return
        self._await_request()
        self._dropped += len(data)
        if self._dropped > MAX_DROPPED:
            self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self._unstall()
        super().resume_writing()

    def _await_request(self) -> None:
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(self.header_seconds, self.transport.abort)

    def _request_came(self) -> None:
        self._dropped = 0
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _watch(self, waiting: int) -> None:
        self._stall_timer = self.loop.call_later(self.stall_seconds, self._look, waiting)

    def _look(self, before: int) -> None:
        waiting = self.transport.get_write_buffer_size()
        if waiting >= before:
            self.transport.abort()
        else:
            self._watch(waiting)

    def _unstall(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
