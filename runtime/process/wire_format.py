"""Requests and events as lines of JSON, between the app's process and the model's.

Both sides are this program, but the model's may have been overrun by a hostile file: what it sends is data, read by
name, and never more than that. Bytes travel as {"$bytes": base64}.
"""

import base64
import json
from dataclasses import asdict
from typing import Any

from ..events import Ask, Candidate, Chosen, Event, Finished, Options, Text, Tool, ToolCall, Usage


def pack(value: Any) -> bytes:
    """One line."""
    return json.dumps(value, default=_plain).encode("ascii") + b"\n"


def unpack(line: bytes) -> Any:
    """What `pack` was given. Raises ValueError for a line that is none."""
    return json.loads(line, object_hook=_bytes)


def _plain(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray)):
        return {"$bytes": base64.b64encode(value).decode("ascii")}
    return dict(value) if hasattr(value, "keys") else list(value)


def _bytes(found: dict[str, Any]) -> Any:
    return base64.b64decode(found["$bytes"]) if found.keys() == {"$bytes"} else found


def pack_ask(ask: Ask) -> dict[str, Any]:
    """A request as JSON."""
    options = {name: getattr(ask.options, name) for name in Options.__slots__}  # type: ignore[attr-defined]
    options["tools"] = [asdict(tool) for tool in ask.options.tools]
    return {"prompt": ask.prompt, "raw": ask.raw, "options": options, "overflow": ask.overflow}


def unpack_ask(found: dict[str, Any]) -> Ask:
    """The request that `pack_ask` packed."""
    options = dict(found["options"])
    options["tools"] = tuple(Tool(**tool) for tool in options["tools"])
    return Ask(found["prompt"], found["raw"], Options(**options), found["overflow"])


def pack_event(event: Event) -> list[Any]:
    """An event as JSON."""
    if isinstance(event, Text):
        told = [[c.id, c.data, c.logprob, [[t.id, t.data, t.logprob] for t in c.top]] for c in event.logprobs]
        return ["text", event.text, told]
    if isinstance(event, ToolCall):
        return ["call", event.id, event.name, event.arguments]
    return ["end", event.reason, asdict(event.usage)]


def unpack_event(found: list[Any]) -> Event:
    """The event that `pack_event` packed. Raises ValueError for anything else."""
    kind, *rest = found
    if kind == "text":
        text, told = rest
        chosen = [Chosen(i, data, p, tuple(Candidate(*each) for each in top)) for i, data, p, top in told]
        return Text(str(text), tuple(chosen))
    if kind == "call":
        return ToolCall(*map(str, rest))
    if kind == "end":
        return Finished(rest[0], Usage(**rest[1]))
    raise ValueError(f"no event: {kind!r}")
