"""POST /v1/embeddings."""

import base64
import json
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from ...errors import Busy
from .error_response import invalid_field
from .http_stream import cancel_on_disconnect, read_body
from .request_parsing import EmbeddingRequest, parse_embedding_request
from .service_state import Service

if TYPE_CHECKING:
    from ..model import Model

BATCH_TEXTS = 8
"""Texts embedded at a time; a disconnected client is noticed between batches."""


async def embeddings(service: Service, request: Request) -> Response:
    """Texts as vectors of length 1. Raises ErrorResponse, BorealisError and ClientDisconnected."""
    model = service.loaded_model()
    raw = await read_body(service, request)
    parsed = await service.run_in_thread(partial(parse_embedding_request, raw))
    if service.embedding_requests > service.settings.queue:
        raise Busy(f"{service.embedding_requests} requests for embeddings are waiting already; try again later")
    service.embedding_requests += 1
    try:
        vectors, tokens = await cancel_on_disconnect(request.receive, _embed(service, model, parsed))
    finally:
        service.embedding_requests -= 1
    body = await service.run_in_thread(partial(_body, vectors, tokens, parsed.base64, service.name))
    return Response(body, media_type="application/json")


async def _embed(service: Service, model: "Model", parsed: EmbeddingRequest) -> tuple[np.ndarray, int]:
    found, total = [], 0
    for start in range(0, len(parsed.inputs), BATCH_TEXTS):
        vectors, tokens = await service.run_embedding(partial(model.embed, parsed.inputs[start : start + BATCH_TEXTS]))
        if parsed.dimensions not in (None, vectors.shape[1]):
            raise invalid_field("dimensions", f"this model's vectors have {vectors.shape[1]}, no other number")
        found.append(vectors)
        total += tokens
    return np.concatenate(found), total


def _body(vectors: np.ndarray, tokens: int, as_base64: bool, name: str) -> bytes:
    """The response's JSON, made vector by vector: one call for a hundred megabytes would hold the GIL too long."""
    data = ",".join(
        json.dumps({"object": "embedding", "index": index, "embedding": _encoded(vector, as_base64)})
        for index, vector in enumerate(vectors)
    )
    used = {"prompt_tokens": tokens, "total_tokens": tokens}
    rest = json.dumps({"model": name, "usage": used}, ensure_ascii=False)[1:]
    return f'{{"object":"list","data":[{data}],{rest}'.encode()


def _encoded(vector: np.ndarray, as_base64: bool) -> Any:
    if as_base64:
        return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
    return vector.tolist()
