"""The HTTP routes: OpenAI's API, health, metrics, and the files of the chat page."""

import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from ...errors import BorealisError
from .access_guard import AccessGuard
from .chat_completions import chat_completions
from .completions import completions
from .embeddings import embeddings
from .error_response import ErrorResponse
from .service_state import Service
from .static_files import read_page_files, serve_file

Endpoint = Callable[[Service, Request], Awaitable[ASGIApp]]

POSTS: dict[str, Endpoint] = {
    "/v1/chat/completions": chat_completions,
    "/v1/completions": completions,
    "/v1/embeddings": embeddings,
}


def make_app(service: Service) -> ASGIApp:
    """The ASGI application."""
    gets: dict[str, Endpoint] = {"/v1/models": models, "/health": health, "/metrics": metrics}
    pages = {} if service.settings.page is None else read_page_files(service.settings.page)
    routes = [
        *(Route(path, partial(endpoint, service), methods=["POST"]) for path, endpoint in POSTS.items()),
        *(Route(path, partial(endpoint, service), methods=["GET"]) for path, endpoint in gets.items()),
        Route("/v1/models/{id:path}", partial(one_model, service), methods=["GET"]),
        *(Route(path, partial(serve_file, file), methods=["GET"]) for path, file in pages.items()),
    ]
    names = {path: path for path in (*POSTS, *gets)} | dict.fromkeys(pages, "page")
    return AccessGuard(Router(routes, redirect_slashes=False), service, names)


def _model_description(service: Service) -> dict[str, Any]:
    model = service.loaded_model()
    return {
        "id": service.name,
        "object": "model",
        "created": service.created,
        "owned_by": "borealis-gguf",
        "meta": {"vision": model.vision, "context": model.context},
    }


async def models(service: Service, request: Request) -> Response:
    """GET /v1/models."""
    return JSONResponse({"object": "list", "data": [_model_description(service)]})


async def one_model(service: Service, request: Request) -> Response:
    """GET /v1/models/{id}. Raises ErrorResponse (404) for another model."""
    if request.path_params["id"] != service.name:
        raise ErrorResponse(404, f"there is one model here: {service.name}", param="model", code="model_not_found")
    return JSONResponse(_model_description(service))


async def health(service: Service, request: Request) -> Response:
    """GET /health: 200 when the model answers, 503 while it is loaded or restarted."""
    state = await service.health()
    if state == "ok":
        return JSONResponse({"status": "ok"})
    return JSONResponse({"status": state, "progress": round(service.load_progress, 3)}, 503, {"retry-after": "1"})


async def metrics(service: Service, request: Request) -> Response:
    """GET /metrics."""
    stats: dict[str, float] = {"up": 0}
    if service.model is not None:
        with contextlib.suppress(BorealisError):  # closed, or its process cannot be started
            stats = await service.run_in_thread(service.model.stats)
    return Response(service.metrics.text(stats), media_type="text/plain; version=0.0.4; charset=utf-8")
