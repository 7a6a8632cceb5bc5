"""Requests and events as lines of JSON, between the app's process and the model's.

Both sides are this package, but a hostile file may have taken over the model's process: what it sends is parsed as
data, field by field. Bytes are sent as {"$bytes": base64}.
"""

import base64
import json
from dataclasses import asdict
from typing import Any

from ..events import Candidate, Chosen, Event, Finished, GenerationRequest, Options, Text, Tool, ToolCall, Usage


def pack(value: Any) -> bytes:
    """`value` as one line of JSON."""
    return json.dumps(value, default=_plain).encode("ascii") + b"\n"


def unpack(line: bytes) -> Any:
    """The value that `pack` was given. Raises ValueError for any other line."""
    return json.loads(line, object_hook=_bytes)


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
    """The event that `pack_event` packed. Raises ValueError for anything else."""
    kind, *rest = found
    if kind == "text":
        text, logprobs = rest
        chosen = [Chosen(i, data, p, tuple(Candidate(*each) for each in top)) for i, data, p, top in logprobs]
        return Text(str(text), tuple(chosen))
    if kind == "call":
        return ToolCall(*map(str, rest))
    if kind == "end":
        return Finished(rest[0], Usage(**rest[1]))
    raise ValueError(f"no event: {kind!r}")
