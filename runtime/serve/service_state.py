"""State shared by all requests: settings, the loaded model, metrics, limits of threads and memory."""

import asyncio
import time
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from anyio import CapacityLimiter, to_thread

from ...errors import BorealisError
from .error_response import ErrorResponse, error_response_of
from .metrics import Metrics

if TYPE_CHECKING:
    from ..answer import Answer
    from ..model import Model

T = TypeVar("T")

PAGE = Path(__file__).parents[1] / "page"

BODY_LIMIT = 4 << 20
BODY_LIMIT_WITH_IMAGES = 20 << 20
"""Bytes. Text of this size fills any context; images in base64 need more."""

MAX_LARGE_BODIES = 8
"""Limit of all bodies together, in bodies of the largest size."""

START_THREADS = 32
EMBEDDING_THREADS = 2
"""Threads that wait for the engine. Its process has four workers, and embedding must not occupy them all."""

HEALTH_TIMEOUT = 0.5
"""Seconds within which a healthy model reports its statistics."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Settings of a server. `hosts` and `origins` are allowed in addition to the local ones.

    name: the model's name in responses; None is the file's. body_limit: bytes; None depends on whether the model has
    vision. page: the folder of the page at `/`. Times are in seconds.
    """

    name: str | None = None
    key: str | None = None
    origins: Sequence[str] = ()
    hosts: Sequence[str] = ()
    queue: int = 64
    body_limit: int | None = None
    page: Path | None = PAGE
    body_idle: float = 10.0
    body_total: float = 120.0
    ping: float = 15.0
    log: Callable[[str], None] | None = None


class Service:
    """The state of one server, shared by all its requests."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.model: Model | None = None
        self.load_progress = 0.0
        self.created = int(time.time())
        self.stopping = False
        self.held_bytes = 0
        self.embedding_requests = 0
        self._health_check: asyncio.Future[dict[str, float]] | None = None
        self._start_limiter = CapacityLimiter(START_THREADS)
        self._embedding_limiter = CapacityLimiter(EMBEDDING_THREADS)

    def loaded_model(self) -> "Model":
        """The model. Raises ErrorResponse (503) while it is loaded or closed."""
        if self.stopping:
            raise ErrorResponse(503, ENDING, code="stopping")
        if self.model is None:
            raise ErrorResponse(503, "the model is being loaded", code="loading", headers={"retry-after": "1"})
        return self.model

    async def health(self) -> str:
        """For /health: "ok", or why not. A request to a model's process that died restarts it."""
        if self.stopping:
            return "stopping"
        if self.model is None:
            return "loading"
        if self._health_check is None or self._health_check.done():
            self._health_check = asyncio.ensure_future(self.run_in_thread(self.model.stats))
        await asyncio.wait({self._health_check}, timeout=HEALTH_TIMEOUT)
        check = self._health_check
        replied = check.done() and check.exception() is None and bool(check.result()["up"])
        return "ok" if replied else "restarting"

    @property
    def name(self) -> str:
        """The model's name in responses."""
        return self.settings.name or ("" if self.model is None else self.model.path.stem)

    @property
    def body_limit(self) -> int:
        if self.settings.body_limit is not None:
            return self.settings.body_limit
        return BODY_LIMIT_WITH_IMAGES if self.model is not None and self.model.vision else BODY_LIMIT

    def error_response_of(self, error: BorealisError) -> ErrorResponse:
        """The HTTP error for an exception; during shutdown always the same one."""
        return ErrorResponse(503, ENDING, code="stopping") if self.stopping else error_response_of(error)

    def hold_body_bytes(self, scope: MutableMapping[str, Any], size: int) -> None:
        """Count bytes of a body until its request ends. Raises ErrorResponse (429) above the limit of all requests."""
        if self.held_bytes + size > MAX_LARGE_BODIES * self.body_limit:
            raise ErrorResponse(429, "requests being worked on are too large together", code="busy", headers=RETRY_SOON)
        self.held_bytes += size
        scope[HELD_BYTES] = scope.get(HELD_BYTES, 0) + size

    def release_body_bytes(self, scope: MutableMapping[str, Any]) -> None:
        """Stop counting the body of a request that has ended."""
        self.held_bytes -= scope.pop(HELD_BYTES, 0)

    async def start_answers(self, calls: "Sequence[Callable[[], Answer]]") -> "list[Answer]":
        """Start all answers, or none. Raises what the first one that cannot start raises."""
        return await to_thread.run_sync(_start_all, calls, limiter=self._start_limiter)

    async def run_in_thread(self, function: Callable[[], T]) -> T:
        """Run a short function in a thread, so that other requests continue."""
        return await to_thread.run_sync(function)

    async def run_embedding(self, function: Callable[[], T]) -> T:
        """Run a function that occupies the engine in a thread."""
        return await to_thread.run_sync(function, limiter=self._embedding_limiter)


ENDING = "the server is ending"
HELD_BYTES = "borealis_gguf.held"
RETRY_SOON = {"retry-after": "1"}


def _start_all(calls: "Sequence[Callable[[], Answer]]") -> "list[Answer]":
    answers: list[Answer] = []
    try:
        for call in calls:
            answers.append(call())
    except BaseException:
        for answer in answers:
            answer.close()
        raise
    return answers
