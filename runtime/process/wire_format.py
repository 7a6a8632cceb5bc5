"""Requests and events as lines of JSON, between the app's process and the model's.

Both sides are this package, but a hostile file may have taken over the model's process: what it sends is parsed as
data, field by field. Bytes are sent as {"$bytes": base64}.
"""

import base64
import json
from dataclasses import asdict
from typing import Any, get_args

import numpy as np

from ...errors import InvalidInput
from ..events import (
    Candidate,
    Chosen,
    Event,
    Finished,
    GenerationRequest,
    ModelInfo,
    Options,
    Reason,
    Text,
    Tool,
    ToolCall,
    Usage,
)

FIGURES = (
    "active", "waiting", "kv_tokens", "requests_total", "cancelled_total", "prompt_tokens_total",
    "completion_tokens_total", "prompt_seconds_total", "completion_seconds_total",
)  # fmt: skip
"""The statistics that a model's process reports."""


def pack(value: Any) -> bytes:
    """`value` as one line of JSON. Raises InvalidInput for lists in lists in lists, beyond what JSON readers take."""
    try:
        return json.dumps(value, default=_plain).encode("ascii") + b"\n"
    except RecursionError:
        raise InvalidInput("the request is nested too deep") from None


def unpack(line: bytes) -> Any:
    """The value that `pack` was given. Raises ValueError for any other line."""
    try:
        return json.loads(line, object_hook=_bytes)
    except RecursionError:
        raise ValueError("JSON nested too deep") from None


def unpack_message(line: bytes) -> dict[str, Any]:
    """A message of the model's process. Raises ValueError for any other line."""
    found = unpack(line)
    if not isinstance(found, dict):
        raise ValueError(f"no message but a {type(found).__name__}")
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray)):
        return {"$bytes": base64.b64encode(value).decode("ascii")}
    return dict(value) if hasattr(value, "keys") else list(value)


def _bytes(found: dict[str, Any]) -> Any:
    return base64.b64decode(found["$bytes"]) if found.keys() == {"$bytes"} else found


def pack_request(request: GenerationRequest) -> dict[str, Any]:
    """A request as JSON."""
    options = {name: getattr(request.options, name) for name in Options.__slots__}  # type: ignore[attr-defined]
    options["tools"] = [asdict(tool) for tool in request.options.tools]
    return {"prompt": request.prompt, "raw": request.raw, "options": options, "overflow": request.overflow}


def unpack_request(found: dict[str, Any]) -> GenerationRequest:
    """The request that `pack_request` packed."""
    options = dict(found["options"])
    options["tools"] = tuple(Tool(**tool) for tool in options["tools"])
    return GenerationRequest(found["prompt"], found["raw"], Options(**options), found["overflow"])


def pack_event(event: Event) -> list[Any]:
    """An event as JSON."""
    if isinstance(event, Text):
        logprobs = [[c.id, c.data, c.logprob, [[t.id, t.data, t.logprob] for t in c.top]] for c in event.logprobs]
        return ["text", event.text, logprobs]
    if isinstance(event, ToolCall):
        return ["call", event.id, event.name, event.arguments]
    return ["end", event.reason, asdict(event.usage)]


def unpack_event(found: list[Any]) -> Event:
    """The event that `pack_event` packed. Raises ValueError, TypeError and so on for anything else."""
    kind, *rest = found
    if kind == "text":
        text, logprobs = rest
        chosen = [Chosen(i, data, p, tuple(Candidate(*each) for each in top)) for i, data, p, top in logprobs]
        return Text(str(text), tuple(chosen))
    if kind == "call":
        id, name, arguments = map(str, rest)
        return ToolCall(id, name, arguments)
    if kind == "end" and rest[0] in get_args(Reason):
        reason, usage = rest
        prompt, cached, completion = (int(usage[f"{what}_tokens"]) for what in ("prompt", "cached", "completion"))
        seconds = (float(usage[f"{what}_seconds"]) for what in ("prompt", "completion"))
        return Finished(reason, Usage(prompt, cached, completion, *seconds))
    raise ValueError(f"no event: {kind!r}")


def unpack_info(found: dict[str, Any]) -> ModelInfo:
    """What a loaded model offers. Raises ValueError, TypeError and so on for anything else."""
    return ModelInfo(
        int(found["context"]),
        int(found["parallel"]),
        bool(found["vision"]),
        bool(found["chat"]),
        str(found["placement"]),
    )


def unpack_reply(what: str, value: Any) -> Any:
    """The value of the reply to the request `what`. Raises ValueError, TypeError and so on for anything else."""
    if what == "embed":
        shape, data, count = value
        return np.frombuffer(data, "<f4").reshape(shape), int(count)
    if what == "tokenize":
        return [int(id) for id in value]
    if what == "detokenize":
        return str(value)
    if what == "restore":
        return {**value, "messages": [dict(each) for each in value["messages"]], "overflow": str(value["overflow"])}
    if what == "stats":
        return {name: float(value[name]) for name in FIGURES}
    return None
