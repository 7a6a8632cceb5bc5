"""A server for the page's tests: the real files with their real headers, and answers from a script."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from borealis_gguf.runtime.serve.access_guard import SECURITY_HEADERS
from borealis_gguf.runtime.serve.service_state import PAGE
from borealis_gguf.runtime.serve.static_files import StaticFile, read_page_files, serve_file

Step = bytes | float | threading.Event | Literal["drop"]
"""Bytes to send, seconds to wait, what to wait for, or the connection broken."""


@dataclass(frozen=True)
class Script:
    """What one request for an answer gets; a status other than 200 with `error` as its message."""

    steps: Sequence[Step] = ()
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    error: str = ""


@dataclass
class PageServer:
    """`scripts` are used up, then every question is echoed. `asked` are the requests' bodies; `left` is set when a
    browser went away in the middle of an answer."""

    scripts: list[Script] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)
    key: str = ""
    loading: bool = False
    vision: bool = True
    context: int = 8192
    url: str = ""
    stop: Callable[[], None] = lambda: None

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


def delta(text: str) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})


def event(value: object) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def finish(tokens: int = 7, total: int = 42, reason: str = "stop") -> list[bytes]:
    """The end of every whole answer."""
    usage = {"prompt_tokens": total - tokens, "completion_tokens": tokens, "total_tokens": total}
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}
    return [event(last), event({"choices": [], "usage": usage}), b"data: [DONE]\n\n"]


def answer(text: str, size: int = 20, pause: float = 0.0) -> Script:
    pieces = [delta(text[at : at + size]) for at in range(0, len(text), size)]
    steps: list[Step] = []
    for piece in pieces:
        steps += [piece, pause]
    return Script([*steps, *finish(len(pieces))])


@contextmanager
def serve(page: PageServer, port: int = 0) -> Iterator[PageServer]:
    """A running server; its port is free again afterwards."""
    config = uvicorn.Config(_app(page), host="127.0.0.1", port=port, log_level="critical", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError(f"no server on port {port}")
        time.sleep(0.01)
    page.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    def stop() -> None:
        server.should_exit = server.force_exit = True
        thread.join(10)

    page.stop = stop
    try:
        yield page
    finally:
        stop()


def _app(page: PageServer) -> Starlette:
    async def models(request: Request) -> Response:
        meta = {"vision": page.vision, "context": page.context}
        return _refused(page, request) or JSONResponse({"data": [{"id": "borealis-4b", "meta": meta}]})

    async def chat(request: Request) -> Response:
        body = await request.json()
        page.asked.append(body)
        script = page.scripts.pop(0) if page.scripts else answer(f"Du skrev: {_asked_text(body)}")
        if refused := _refused(page, request):
            return refused
        if script.status != 200:
            return JSONResponse({"error": {"message": script.error}}, script.status, script.headers)
        return StreamingResponse(_play(page, script, request), media_type="text/event-stream")

    routes = [
        Route("/v1/models", models),
        Route("/v1/chat/completions", chat, methods=["POST"]),
        *(Route(path, partial(_show, file)) for path, file in read_page_files(PAGE).items()),
    ]
    return Starlette(routes=routes)


async def _show(file: StaticFile, request: Request) -> Response:
    response = await serve_file(file, request)
    response.headers.update({name: value for name, value in SECURITY_HEADERS.items() if name not in response.headers})
    return response


def _refused(page: PageServer, request: Request) -> Response | None:
    if page.loading:
        return JSONResponse({"error": {"message": "the model is being loaded", "code": "loading"}}, 503)
    if not page.key or request.headers.get("Authorization") == f"Bearer {page.key}":
        return None
    return JSONResponse({"error": {"message": "this server wants a key"}}, 401)


def _asked_text(body: dict[str, Any]) -> str:
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else content[-1].get("text", "")


async def _play(page: PageServer, script: Script, request: Request) -> AsyncIterator[bytes]:
    whole = False
    try:
        for step in script.steps:
            if isinstance(step, bytes):
                yield step
            elif isinstance(step, threading.Event):
                while not step.is_set() and not await request.is_disconnected():
                    await asyncio.sleep(0.01)
            elif step == "drop":
                whole = True
                raise ConnectionError("the script says so")
            else:
                await asyncio.sleep(float(step))
        whole = not await request.is_disconnected()
    finally:
        if not whole:
            page.left.set()
