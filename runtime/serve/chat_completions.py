"""POST /v1/chat/completions."""

from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from ..events import Event, Finished, Text, ToolCall
from .http_stream import PING, Stream, closing_all, merged, read_body, sse, unless_gone
from .logprobs import chat_logprobs
from .request_parsing import Chat, read_chat
from .response_parts import Gathered, gather, header, usage
from .service_state import Service

if TYPE_CHECKING:
    from ..answer import Answer


async def chat_completions(service: Service, request: Request) -> JSONResponse | Stream:
    """Answer a conversation. Raises Refusal, BorealisError and ClientGone."""
    model = service.ready()
    raw = await read_body(service, request)
    asked = await service.work(partial(read_chat, raw, model.vision))
    answers = await service.begin([partial(model.chat, asked.messages, options) for options in asked.variants()])
    if asked.stream:
        return Stream(service, _chunks(service, asked, answers), answers)
    with closing_all(answers):
        gathered = await unless_gone(request.receive, gather(service, answers))
    return JSONResponse(
        {
            **header(service, "chatcmpl", "chat.completion"),
            "choices": [_choice(asked, number, one) for number, one in enumerate(gathered)],
            "usage": usage([one.finished for one in gathered], asked.n),
        }
    )


def _choice(asked: Chat, index: int, gathered: Gathered) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": gathered.text, "refusal": None}
    if gathered.calls:
        message["content"] = gathered.text or None
        message["tool_calls"] = [_call(call) for call in gathered.calls]
    logprobs = None if asked.options.logprobs is None else chat_logprobs(gathered.tokens)
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": gathered.reason}


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


async def _chunks(service: Service, asked: Chat, answers: "Sequence[Answer]") -> AsyncGenerator[bytes, None]:
    head = header(service, "chatcmpl", "chat.completion.chunk")
    extra = {"usage": None} if asked.include_usage else {}

    def chunk(index: int, delta: dict[str, Any], reason: str | None = None, logprobs: Any = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return sse({**head, "choices": [choice], **extra})

    yield b"".join(chunk(i, {"role": "assistant", "content": "", "refusal": None}) for i in range(asked.n))
    finished: list[Finished | None] = [None] * asked.n
    called = [0] * asked.n
    async for events in merged(answers, service.settings.ping):
        parts = []
        for number, found in events:
            delta = _delta(found, called[number])
            called[number] += isinstance(found, ToolCall)
            if isinstance(found, Finished):
                finished[number] = found
                parts.append(chunk(number, delta, found.reason))
            else:
                tokens = found.logprobs if isinstance(found, Text) and asked.options.logprobs is not None else None
                parts.append(chunk(number, delta, logprobs=None if tokens is None else chat_logprobs(tokens)))
        yield b"".join(parts) or PING
    if asked.include_usage:
        yield sse({**head, "choices": [], "usage": usage(finished, asked.n)})


def _delta(found: Event, calls: int) -> dict[str, Any]:
    if isinstance(found, Text):
        return {"content": found.text}
    if isinstance(found, ToolCall):
        return {"tool_calls": [{"index": calls, **_call(found)}]}
    return {}
