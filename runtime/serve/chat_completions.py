"""POST /v1/chat/completions."""

from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from ..events import Event, Finished, Text, ToolCall
from .http_stream import (
    PING,
    EventStream,
    cancel_on_disconnect,
    closing_answers,
    merge_events,
    read_body,
    sse_event,
)
from .logprobs import chat_logprobs
from .request_parsing import ChatRequest, parse_chat_request
from .response_parts import CollectedAnswer, collect_answers, response_head, token_usage
from .service_state import Service

if TYPE_CHECKING:
    from ..answer import Answer


async def chat_completions(service: Service, request: Request) -> JSONResponse | EventStream:
    """Answer a conversation. Raises ErrorResponse, BorealisError and ClientDisconnected."""
    model = service.loaded_model()
    raw = await read_body(service, request)
    parsed = await service.run_in_thread(partial(parse_chat_request, raw, model.vision))
    answers = await service.start_answers(
        [partial(model.chat, parsed.messages, options) for options in parsed.options_per_answer()]
    )
    if parsed.stream:
        return EventStream(service, _chunks(service, parsed, answers), answers)
    with closing_answers(answers):
        collected = await cancel_on_disconnect(request.receive, collect_answers(service, answers))
    return JSONResponse(
        {
            **response_head(service, "chatcmpl", "chat.completion"),
            "choices": [_choice(parsed, number, one) for number, one in enumerate(collected)],
            "usage": token_usage([one.finished for one in collected], parsed.n),
        }
    )


def _choice(parsed: ChatRequest, index: int, collected: CollectedAnswer) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": collected.text, "refusal": None}
    if collected.calls:
        message["content"] = collected.text or None
        message["tool_calls"] = [_call(call) for call in collected.calls]
    logprobs = None if parsed.options.logprobs is None else chat_logprobs(collected.tokens)
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": collected.reason}


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


async def _chunks(service: Service, parsed: ChatRequest, answers: "Sequence[Answer]") -> AsyncGenerator[bytes, None]:
    head = response_head(service, "chatcmpl", "chat.completion.chunk")
    extra = {"usage": None} if parsed.include_usage else {}

    def chunk(index: int, delta: dict[str, Any], reason: str | None = None, logprobs: Any = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return sse_event({**head, "choices": [choice], **extra})

    yield b"".join(chunk(i, {"role": "assistant", "content": "", "refusal": None}) for i in range(parsed.n))
    finished: list[Finished | None] = [None] * parsed.n
    called = [0] * parsed.n
    async for events in merge_events(answers, service.settings.ping):
        parts = []
        for number, found in events:
            delta = _delta(found, called[number])
            called[number] += isinstance(found, ToolCall)
            if isinstance(found, Finished):
                finished[number] = found
                parts.append(chunk(number, delta, found.reason))
            else:
                tokens = found.logprobs if isinstance(found, Text) and parsed.options.logprobs is not None else None
                parts.append(chunk(number, delta, logprobs=None if tokens is None else chat_logprobs(tokens)))
        yield b"".join(parts) or PING
    if parsed.include_usage:
        yield sse_event({**head, "choices": [], "usage": token_usage(finished, parsed.n)})


def _delta(found: Event, calls: int) -> dict[str, Any]:
    if isinstance(found, Text):
        return {"content": found.text}
    if isinstance(found, ToolCall):
        return {"tool_calls": [{"index": calls, **_call(found)}]}
    return {}
