"""Requests to a model and the events of its answers: plain data, the same within a process and between two."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Overflow = Literal["error", "roll", "truncate_middle"]
Reason = Literal["stop", "length", "tool_calls", "cancelled"]


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the model may call; `parameters` is the JSON schema of its arguments."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object"})


@dataclass(frozen=True, slots=True)
class Options:
    """How one answer is made. None leaves the choice to the model file and to `load`.

    stop: texts that end the answer and are not part of it. schema: JSON schema the answer must follow; {} is any
    JSON. tools: functions the model may call, instead of a schema; an answer is text or one call, never more.
    tool_choice: "auto", "none", "required" or a function's name.
    logprobs: how many alternatives to report for every token; 0 reports the sampled one alone.
    """

    max_tokens: int | None = None
    seed: int | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)
    stop: Sequence[str] = ()
    schema: Mapping[str, Any] | None = None
    tools: Sequence[Tool] = ()
    tool_choice: str = "auto"
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token and the natural logarithm of its probability; `data` are its bytes, which may be part of a character."""

    id: int
    data: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class Chosen(Candidate):
    """The sampled token, and the most probable ones at its position, the most probable first."""

    top: tuple[Candidate, ...] = ()


@dataclass(frozen=True, slots=True)
class Text:
    """The next whole characters of the answer, empty only where `logprobs` is not."""

    text: str
    logprobs: tuple[Chosen, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The model calls a function; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens and seconds of one answer. `cached_tokens` of the prompt were in the KV cache and not computed."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    prompt_seconds: float = 0.0
    completion_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of every answer that ends without an error."""

    reason: Reason
    usage: Usage


Event = Text | ToolCall | Finished

EventSink = Callable[[Event | BaseException], None]
"""Receives the events of one answer; the last is Finished or an exception. Called from any thread."""


def send_event(sink: EventSink, event: Event | BaseException) -> BaseException | None:
    """Give `sink` an event. What it raises is logged and returned: it must not end the thread that serves others.

    Only Ctrl-C, which is raised in the main thread alone, is raised.
    """
    try:
        sink(event)
    except BaseException as error:
        if not isinstance(error, Exception) and threading.current_thread() is threading.main_thread():
            raise
        logging.getLogger(__name__).error("the receiver of an answer's events failed", exc_info=error)
        return error
    return None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One request: a conversation, or with `raw` a text or token ids to continue."""

    prompt: Sequence[Mapping[str, Any]] | str | Sequence[int]
    raw: bool = False
    options: Options = field(default_factory=Options)
    overflow: Overflow = "error"


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a loaded model offers: `context` in tokens, `parallel` answers, image input, a chat template."""

    context: int
    parallel: int
    vision: bool
    chat: bool
    placement: str = ""
