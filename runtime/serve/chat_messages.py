"""Parses the messages of OpenAI's chat API into those that `Model.chat` takes."""

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any

from .error_response import invalid_field
from .json_fields import Fields

MAX_MESSAGES = 10_000
MAX_PARTS = 1_000
MAX_IMAGES = 16
MAX_IMAGE_BYTES = 20 << 20
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
"""OpenAI's roles, and those that `Model.chat` has for them."""

DATA_URL = re.compile(r"data:image/(png|jpeg|jpg|webp);base64,", re.IGNORECASE)

Message = dict[str, Any]


def parse_messages(body: Fields, vision: bool) -> list[Message]:
    """The conversation in `body`. Raises ErrorResponse naming the message and the field that cannot be used."""
    given = body.objects("messages", MAX_MESSAGES)
    if not given:
        raise invalid_field("messages", "at least one message is needed")
    tools: dict[str, str] = {}
    messages = [_message(fields, tools) for fields in given]
    images = sum(part["type"] == "image" for m in messages if isinstance(m["content"], list) for part in m["content"])
    if images > MAX_IMAGES:
        raise invalid_field("messages", f"{images} images; {MAX_IMAGES} are the most")
    if images and not vision:
        raise invalid_field("messages", "this model was loaded without its vision side (mmproj) and cannot see images")
    return messages


def _message(fields: Fields, tools: dict[str, str]) -> Message:
    """`tools` maps the ids of tool calls so far to names of functions."""
    role = fields.one_of("role", tuple(ROLES))
    if role is None:
        raise fields.invalid("role", "is missing")
    message: Message = {"role": ROLES[role]}
    calls = _tool_calls(fields) if role == "assistant" else []
    if calls:
        message["tool_calls"] = calls
        tools.update({call["id"]: call["name"] for call in calls})
    message["content"] = _content(fields, images=role == "user", optional=role == "assistant")
    if role == "tool":
        id = message["tool_call_id"] = fields.needed_text("tool_call_id", 256)
        if id not in tools:
            raise fields.invalid("tool_call_id", "no assistant message before it has a tool call of this id")
        message["name"] = tools[id]
    return message


def _content(fields: Fields, images: bool, optional: bool) -> str | list[dict[str, Any]]:
    value = fields.any("content")
    if value is None and optional:
        return ""
    if not isinstance(value, list):
        return fields.needed_text("content")
    parts = [_part(part, images) for part in fields.objects("content", MAX_PARTS)]
    if any(part["type"] == "image" for part in parts):
        return parts
    return "".join(part["text"] for part in parts)


def _part(part: Fields, images: bool) -> dict[str, Any]:
    kind = part.one_of("type", ("text", "refusal", "image_url") if images else ("text", "refusal"))
    if kind is None:
        raise part.invalid("type", "is missing")
    if kind != "image_url":
        return {"type": "text", "text": part.needed_text(kind)}
    return {"type": "image", "data": _image(part.needed_object("image_url"))}


def _image(image: Fields) -> bytes:
    url = image.needed_text("url")
    match = DATA_URL.match(url)
    if match is None:
        if url[:5].lower() != "data:":
            raise image.invalid("url", "images are not fetched; send a PNG, JPEG or WebP as data:image/png;base64,…")
        raise image.invalid("url", "not a PNG, JPEG or WebP in base64: data:image/png;base64,…")
    if (len(url) - match.end()) * 3 // 4 > MAX_IMAGE_BYTES + 3:
        raise image.invalid("url", f"the image has more than {MAX_IMAGE_BYTES >> 20} MiB; scale it down")
    try:
        return base64.b64decode(url[match.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise image.invalid("url", "the image is not valid base64") from None


def _tool_calls(fields: Fields) -> list[Mapping[str, str]]:
    return [_tool_call(call) for call in fields.objects("tool_calls", 128)]


def _tool_call(call: Fields) -> Mapping[str, str]:
    call.one_of("type", ("function",))
    function = call.needed_object("function")
    return {
        "id": call.needed_text("id", 256),
        "name": function.needed_text("name", 64),
        "arguments": function.needed_text("arguments"),
    }
