"""What chats and completions have in common: answers gathered as they come, and what they took."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..events import Chosen, Event, Finished, Text, ToolCall, Usage
from .http_stream import merged
from .service_state import Service

if TYPE_CHECKING:
    from ..answer import Answer


@dataclass(slots=True)
class Gathered:
    """One answer, as far as it has come."""

    texts: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    tokens: list[Chosen] = field(default_factory=list)
    finished: Finished | None = None

    def add(self, event: Event) -> None:
        if isinstance(event, Text):
            self.texts.append(event.text)
            self.tokens += event.logprobs
        elif isinstance(event, ToolCall):
            self.calls.append(event)
        else:
            self.finished = event

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def reason(self) -> str | None:
        return None if self.finished is None else self.finished.reason


async def gather(service: Service, answers: "Sequence[Answer]") -> list[Gathered]:
    """Wait for whole answers."""
    gathered = [Gathered() for _ in answers]
    async for events in merged(answers, service.settings.ping):
        for number, event in events:
            gathered[number].add(event)
    return gathered


def header(service: Service, prefix: str, kind: str) -> dict[str, Any]:
    """The beginning of a response, the same in all chunks of it."""
    return {
        "id": f"{prefix}-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": service.name,
    }


def usage(finished: Sequence[Finished | None], n: int) -> dict[str, Any]:
    """What the answers took, `n` to each prompt, which counts once: as the first of them found it."""
    took = [Usage() if one is None else one.usage for one in finished]
    prompt = sum(one.prompt_tokens for one in took[::n])
    cached = sum(one.cached_tokens for one in took[::n])
    completion = sum(one.completion_tokens for one in took)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
