"""POST /v1/completions: texts continued, without a chat template."""

from collections.abc import AsyncGenerator, Sequence
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from ..events import Finished, Text
from .http_stream import (
    PING,
    EventStream,
    cancel_on_disconnect,
    closing_answers,
    merge_events,
    read_body,
    sse_event,
)
from .logprobs import completion_logprobs
from .request_parsing import CompletionRequest, parse_completion_request
from .response_parts import CollectedAnswer, collect_answers, response_head, token_usage
from .service_state import Service

if TYPE_CHECKING:
    from ..answer import Answer
    from ..model import Model


async def completions(service: Service, request: Request) -> JSONResponse | EventStream:
    """Continue texts. Raises ErrorResponse, BorealisError and ClientDisconnected."""
    model = service.loaded_model()
    raw = await read_body(service, request)
    parsed = await service.run_in_thread(
        partial(parse_completion_request, raw, model.parallel + service.settings.queue)
    )
    echoes = await service.run_in_thread(partial(_echoes, model, parsed))
    calls = [
        partial(model.complete, prompt, options) for prompt in parsed.prompts for options in parsed.options_per_answer()
    ]
    answers = await service.start_answers(calls)
    if parsed.stream:
        return EventStream(service, _chunks(service, parsed, answers, echoes), answers)
    with closing_answers(answers):
        collected = await cancel_on_disconnect(request.receive, collect_answers(service, answers))
    return JSONResponse(
        {
            **response_head(service, "cmpl", "text_completion"),
            "choices": [_choice(parsed, *one) for one in zip(count(), collected, echoes, strict=False)],
            "usage": token_usage([one.finished for one in collected], parsed.n),
        }
    )


def _echoes(model: "Model", parsed: CompletionRequest) -> list[str]:
    """What each answer begins with."""
    if not parsed.echo:
        return [""] * (len(parsed.prompts) * parsed.n)
    texts = [prompt if isinstance(prompt, str) else model.detokenize(prompt) for prompt in parsed.prompts]
    return [text for text in texts for _ in range(parsed.n)]


def _choice(parsed: CompletionRequest, index: int, collected: CollectedAnswer, echo: str) -> dict[str, Any]:
    top = parsed.options.logprobs
    logprobs = None if top is None else completion_logprobs(collected.tokens, len(echo), top > 0)
    return {"index": index, "text": echo + collected.text, "logprobs": logprobs, "finish_reason": collected.reason}


async def _chunks(
    service: Service, parsed: CompletionRequest, answers: "Sequence[Answer]", echoes: Sequence[str]
) -> AsyncGenerator[bytes, None]:
    head = response_head(service, "cmpl", "text_completion")
    extra = {"usage": None} if parsed.include_usage else {}
    offsets = [0] * len(answers)

    def chunk(index: int, text: str, reason: str | None = None, logprobs: Any = None) -> bytes:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return sse_event({**head, "choices": [choice], **extra})

    if parsed.echo:
        yield b"".join(chunk(number, echo) for number, echo in enumerate(echoes))
    finished: list[Finished | None] = [None] * len(answers)
    async for events in merge_events(answers, service.settings.ping):
        parts = []
        for number, found in events:
            if isinstance(found, Finished):
                finished[number] = found
                parts.append(chunk(number, "", found.reason))
            elif isinstance(found, Text):
                logprobs = _stream_logprobs(parsed, found, offsets[number])
                offsets[number] += len(found.text)
                parts.append(chunk(number, found.text, logprobs=logprobs))
        yield b"".join(parts) or PING
    if parsed.include_usage:
        yield sse_event({**head, "choices": [], "usage": token_usage(finished, parsed.n)})


def _stream_logprobs(parsed: CompletionRequest, found: Text, offset: int) -> dict[str, Any] | None:
    top = parsed.options.logprobs
    return None if top is None else completion_logprobs(found.logprobs, offset, top > 0)
