"""POST /v1/embeddings."""

import base64
import json
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from ...errors import Busy
from .error_response import wrong
from .http_stream import read_body, unless_gone
from .request_parsing import Embedding, read_embedding
from .service_state import Service

if TYPE_CHECKING:
    from ..model import Model

TOGETHER = 8
"""Texts embedded before it is asked again whether the client still waits."""


async def embeddings(service: Service, request: Request) -> Response:
    """Texts as vectors of length 1. Raises Refusal, BorealisError and ClientGone."""
    model = service.ready()
    raw = await read_body(service, request)
    asked = await service.work(partial(read_embedding, raw))
    if service.embedding > service.settings.queue:
        raise Busy(f"{service.embedding} requests for embeddings are waiting already; try again later")
    service.embedding += 1
    try:
        vectors, tokens = await unless_gone(request.receive, _embed(service, model, asked))
    finally:
        service.embedding -= 1
    body = await service.work(partial(_body, vectors, tokens, asked.base64, service.name))
    return Response(body, media_type="application/json")


async def _embed(service: Service, model: "Model", asked: Embedding) -> tuple[np.ndarray, int]:
    found, total = [], 0
    for start in range(0, len(asked.inputs), TOGETHER):
        vectors, tokens = await service.embed(partial(model.embed, asked.inputs[start : start + TOGETHER]))
        if asked.dimensions not in (None, vectors.shape[1]):
            raise wrong("dimensions", f"this model's vectors have {vectors.shape[1]}, no other number")
        found.append(vectors)
        total += tokens
    return np.concatenate(found), total


def _body(vectors: np.ndarray, tokens: int, as_base64: bool, name: str) -> bytes:
    """Made vector by vector: a hundred megabytes of numbers at once would keep everybody else waiting."""
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
