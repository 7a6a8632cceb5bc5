"""POST /v1/completions: texts continued, without a chat template."""

from collections.abc import AsyncGenerator, Sequence
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from ..events import Finished, Text
from .http_stream import PING, Stream, closing_all, merged, read_body, sse, unless_gone
from .logprobs import completion_logprobs
from .request_parsing import Completion, read_completion
from .response_parts import Gathered, gather, header, usage
from .service_state import Service

if TYPE_CHECKING:
    from ..answer import Answer
    from ..model import Model


async def completions(service: Service, request: Request) -> JSONResponse | Stream:
    """Continue texts. Raises Refusal, BorealisError and ClientGone."""
    model = service.ready()
    raw = await read_body(service, request)
    asked = await service.work(partial(read_completion, raw, model.parallel + service.settings.queue))
    echoes = await service.work(partial(_echoes, model, asked))
    calls = [partial(model.complete, prompt, options) for prompt in asked.prompts for options in asked.variants()]
    answers = await service.begin(calls)
    if asked.stream:
        return Stream(service, _chunks(service, asked, answers, echoes), answers)
    with closing_all(answers):
        gathered = await unless_gone(request.receive, gather(service, answers))
    return JSONResponse(
        {
            **header(service, "cmpl", "text_completion"),
            "choices": [_choice(asked, *one) for one in zip(count(), gathered, echoes, strict=False)],
            "usage": usage([one.finished for one in gathered], asked.n),
        }
    )


def _echoes(model: "Model", asked: Completion) -> list[str]:
    """What each answer begins with."""
    if not asked.echo:
        return [""] * (len(asked.prompts) * asked.n)
    texts = [prompt if isinstance(prompt, str) else model.detokenize(prompt) for prompt in asked.prompts]
    return [text for text in texts for _ in range(asked.n)]


def _choice(asked: Completion, index: int, gathered: Gathered, echo: str) -> dict[str, Any]:
    top = asked.options.logprobs
    logprobs = None if top is None else completion_logprobs(gathered.tokens, len(echo), top > 0)
    return {"index": index, "text": echo + gathered.text, "logprobs": logprobs, "finish_reason": gathered.reason}


async def _chunks(
    service: Service, asked: Completion, answers: "Sequence[Answer]", echoes: Sequence[str]
) -> AsyncGenerator[bytes, None]:
    head = header(service, "cmpl", "text_completion")
    extra = {"usage": None} if asked.include_usage else {}
    offsets = [0] * len(answers)

    def chunk(index: int, text: str, reason: str | None = None, logprobs: Any = None) -> bytes:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return sse({**head, "choices": [choice], **extra})

    if asked.echo:
        yield b"".join(chunk(number, echo) for number, echo in enumerate(echoes))
    finished: list[Finished | None] = [None] * len(answers)
    async for events in merged(answers, service.settings.ping):
        parts = []
        for number, found in events:
            if isinstance(found, Finished):
                finished[number] = found
                parts.append(chunk(number, "", found.reason))
            elif isinstance(found, Text):
                logprobs = _stream_logprobs(asked, found, offsets[number])
                offsets[number] += len(found.text)
                parts.append(chunk(number, found.text, logprobs=logprobs))
        yield b"".join(parts) or PING
    if asked.include_usage:
        yield sse({**head, "choices": [], "usage": usage(finished, asked.n)})


def _stream_logprobs(asked: Completion, found: Text, offset: int) -> dict[str, Any] | None:
    top = asked.options.logprobs
    return None if top is None else completion_logprobs(found.logprobs, offset, top > 0)
