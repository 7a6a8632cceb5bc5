"""Parts of chat and completion responses: collected answers, the common head, token usage."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..events import Chosen, Event, Finished, Text, ToolCall, Usage
from .http_stream import merge_events
from .service_state import Service

if TYPE_CHECKING:
    from ..answer import Answer


@dataclass(slots=True)
class CollectedAnswer:
    """The text, tool calls and tokens of one answer."""

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


async def collect_answers(service: Service, answers: "Sequence[Answer]") -> list[CollectedAnswer]:
    """Wait until all answers are complete."""
    collected = [CollectedAnswer() for _ in answers]
    async for events in merge_events(answers, service.settings.ping):
        for number, event in events:
            collected[number].add(event)
    return collected


def response_head(service: Service, prefix: str, kind: str) -> dict[str, Any]:
    """The fields id, object, created and model, the same in all chunks of a response."""
    return {
        "id": f"{prefix}-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": service.name,
    }


def token_usage(finished: Sequence[Finished | None], n: int) -> dict[str, Any]:
    """The tokens of `n` answers to each prompt; a prompt counts once, with the cached tokens of its first answer."""
    usages = [Usage() if one is None else one.usage for one in finished]
    prompt = sum(one.prompt_tokens for one in usages[::n])
    cached = sum(one.cached_tokens for one in usages[::n])
    completion = sum(one.completion_tokens for one in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
