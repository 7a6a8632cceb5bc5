"""What all requests share: the settings, the model once it is loaded, and what is counted."""

import asyncio
import time
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from anyio import CapacityLimiter, to_thread

from ...errors import BorealisError
from .error_response import Refusal, refusal_of
from .metrics import Metrics

if TYPE_CHECKING:
    from ..answer import Answer
    from ..model import Model

T = TypeVar("T")

PAGE = Path(__file__).parents[1] / "page"

BODY_LIMIT = 4 << 20
BODY_LIMIT_WITH_IMAGES = 20 << 20
"""More than any context takes as text; images in base64 are larger."""

BODIES = 8
"""Bodies of the largest size that may be held at once, all requests together."""

STARTING = 32
EMBEDDING = 2
"""Threads that wait for the engine; the engine's process has four, and embedding must not take them all."""

PULSE = 0.5
"""Seconds that a model in good health needs at most to tell how it is."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How a server behaves. `hosts` and `origins` are let in beside the local ones.

    name: the model's in answers; None takes the file's.

    body_limit: bytes; None chooses by whether the model sees. page: the folder of the page at `/`. Times are seconds.
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
    """The state of one server."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.model: Model | None = None
        self.loaded = 0.0
        self.created = int(time.time())
        self.stopping = False
        self.held = 0
        self.embedding = 0
        self._pulse: asyncio.Future[dict[str, float]] | None = None
        self._starters = CapacityLimiter(STARTING)
        self._embedders = CapacityLimiter(EMBEDDING)

    def ready(self) -> "Model":
        """The model. Raises Refusal (503) while there is none."""
        if self.stopping:
            raise Refusal(503, ENDING, code="stopping")
        if self.model is None:
            raise Refusal(503, "the model is being loaded", code="loading", headers={"retry-after": "1"})
        return self.model

    async def state(self) -> str:
        """For /health: "ok", or why not. Asking a model's process that died starts it again."""
        if self.stopping:
            return "stopping"
        if self.model is None:
            return "loading"
        if self._pulse is None or self._pulse.done():
            self._pulse = asyncio.ensure_future(self.work(self.model.stats))
        await asyncio.wait({self._pulse}, timeout=PULSE)
        alive = self._pulse.done() and self._pulse.exception() is None
        return "ok" if alive else "restarting"

    @property
    def name(self) -> str:
        """The model's, as clients see it."""
        return self.settings.name or ("" if self.model is None else self.model.path.stem)

    @property
    def body_limit(self) -> int:
        if self.settings.body_limit is not None:
            return self.settings.body_limit
        return BODY_LIMIT_WITH_IMAGES if self.model is not None and self.model.vision else BODY_LIMIT

    def refusal_of(self, error: BorealisError) -> Refusal:
        """What to tell of an error; in the end every answer fails, and for one reason."""
        return Refusal(503, ENDING, code="stopping") if self.stopping else refusal_of(error)

    def hold(self, scope: MutableMapping[str, Any], size: int) -> None:
        """Count bytes of a body for as long as its request lives. Raises Refusal (429) when all hold too much."""
        if self.held + size > BODIES * self.body_limit:
            raise Refusal(429, "requests being worked on are too large together", code="busy", headers=SOON)
        self.held += size
        scope[HELD] = scope.get(HELD, 0) + size

    def let_go(self, scope: MutableMapping[str, Any]) -> None:
        self.held -= scope.pop(HELD, 0)

    async def begin(self, calls: "Sequence[Callable[[], Answer]]") -> "list[Answer]":
        """Start all these answers, or none. Raises what the first one that cannot start raises."""
        return await to_thread.run_sync(_started, calls, limiter=self._starters)

    async def work(self, function: Callable[[], T]) -> T:
        """Run something short in a thread, so that other requests go on."""
        return await to_thread.run_sync(function)

    async def embed(self, function: Callable[[], T]) -> T:
        """Run something that keeps the engine busy in a thread."""
        return await to_thread.run_sync(function, limiter=self._embedders)


ENDING = "the server is ending"
HELD = "borealis_gguf.held"
SOON = {"retry-after": "1"}


def _started(calls: "Sequence[Callable[[], Answer]]") -> "list[Answer]":
    answers: list[Answer] = []
    try:
        for call in calls:
            answers.append(call())
    except BaseException:
        for answer in answers:
            answer.close()
        raise
    return answers
