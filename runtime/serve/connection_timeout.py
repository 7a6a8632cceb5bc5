"""Closes connections whose client neither sends nor reads, whatever state the request is in.

uvicorn has no timeout for a request's header, nor for a client that stops reading.
"""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 15.0
"""Time limit for the header of a request, and for the rest of a body after the response."""

STALL_SECONDS = 30.0
"""Time limit without the client reading a single byte of what waits to be sent."""

MAX_DISCARDED_BYTES = 64 << 20
"""Bytes of a refused body that are read and discarded, so that the client gets to read the error."""


class TimeoutConnection(H11Protocol):
    """uvicorn's HTTP connection, with limits for slow headers, stalled clients and discarded bodies."""

    header_seconds = HEADER_SECONDS
    stall_seconds = STALL_SECONDS

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._header_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._discarded_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # so that every byte that the system does not take pauses writing at once
        transport.set_write_buffer_limits(high=0)
        super().connection_made(transport)
        self._start_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_header_timer()
        self._stop_stall_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except h11.LocalProtocolError:  # invalid data from the client in the middle of a response
            self.transport.abort()
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_header_timer()
            return
        self._start_header_timer()
        self._discarded_bytes += len(data)
        if self._discarded_bytes > MAX_DISCARDED_BYTES:
            self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_stall_timer(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self._stop_stall_timer()
        super().resume_writing()

    def _start_header_timer(self) -> None:
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(self.header_seconds, self.transport.abort)

    def _stop_header_timer(self) -> None:
        self._discarded_bytes = 0
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _start_stall_timer(self, waiting: int) -> None:
        self._stall_timer = self.loop.call_later(self.stall_seconds, self._check_stalled, waiting)

    def _check_stalled(self, before: int) -> None:
        waiting = self.transport.get_write_buffer_size()
        if waiting >= before:
            self.transport.abort()
        else:
            self._start_stall_timer(waiting)

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
