"""The page's server for tests: the folder with the headers it is always served with, and answers from a script."""

import asyncio
import json
import mimetypes
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PAGE = Path(__file__).parents[1] / "runtime" / "page"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

Step = bytes | float | threading.Event | Literal["drop"]
"""Bytes to send, seconds to wait, what to wait for, or the connection broken."""


@dataclass(frozen=True)
class Script:
    """What one request for an answer gets; a status other than 200 with `error` as its message and code."""

    steps: Sequence[Step] = ()
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    error: tuple[str, str | None] = ("", None)


@dataclass
class PageServer:
    """`scripts` are used up, then every question is echoed. `asked` are the requests' bodies; `left` is set when a
    browser went away in the middle of an answer."""

    scripts: list[Script] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)
    key: str = ""
    vision: bool = True
    context: int = 8192
    url: str = ""

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
    try:
        yield page
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)


def _app(page: PageServer) -> Starlette:
    mimetypes.add_type("text/javascript", ".js")  # Windows may say otherwise, and nosniff then refuses the module

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
            message, code = script.error
            return JSONResponse({"error": {"message": message, "code": code}}, script.status, script.headers)
        return StreamingResponse(_play(page, script), media_type="text/event-stream")

    routes = [
        Route("/v1/models", models),
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Mount("/", StaticFiles(directory=PAGE, html=True)),
    ]
    return Starlette(routes=routes, middleware=[Middleware(_Headers)])


def _refused(page: PageServer, request: Request) -> Response | None:
    if not page.key or request.headers.get("Authorization") == f"Bearer {page.key}":
        return None
    return JSONResponse({"error": {"message": "this server wants a key"}}, 401)


def _asked_text(body: dict[str, Any]) -> str:
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else content[-1].get("text", "")


async def _play(page: PageServer, script: Script) -> AsyncIterator[bytes]:
    whole = False
    try:
        for step in script.steps:
            if isinstance(step, bytes):
                yield step
            elif isinstance(step, threading.Event):
                while not step.is_set():
                    await asyncio.sleep(0.01)
            elif step == "drop":
                whole = True
                raise ConnectionError("the script says so")
            else:
                await asyncio.sleep(float(step))
        whole = True
    finally:
        if not whole:
            page.left.set()


class _Headers:
    """Adds the page's headers to every answer, without touching how it streams."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in HEADERS.items())]
            await send(message)

        await self.app(scope, receive, with_headers)
