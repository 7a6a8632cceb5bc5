"""Reads chat templates from a checkpoint's files, without rendering them."""

import logging
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf.constants import GGUFValueType

from ...checkpoint.file_access import open_regular, quote
from ...checkpoint.folder import Checkpoint, own_file
from ...checkpoint.strict_json import read_json_object
from ...checkpoint.types import KV
from ...errors import InvalidInput

log = logging.getLogger("borealis_gguf")

MAX_TEMPLATE = 1 << 20
NAME_CHARACTERS = frozenset(string.ascii_letters + string.digits)

ChatTemplate = str | tuple[tuple[str, str], ...] | None
"""One template, several as (name, template), or None."""


def read_chat_template(checkpoint: Checkpoint, tokenizer_config: Mapping[str, Any]) -> ChatTemplate:
    """Reads the template of tokenizer_config.json, else of chat_template.jinja, else of chat_template.json."""
    where = checkpoint.path / "tokenizer_config.json"
    value = tokenizer_config.get("chat_template")
    jinja, json = checkpoint.file("chat_template.jinja"), checkpoint.file("chat_template.json")
    if jinja and isinstance(value, str) and value != read_text(jinja):
        log.warning("%s: its chat_template differs from chat_template.jinja; the former is used", where)
    if value is None and jinja:
        folder = checkpoint.file("additional_chat_templates")
        additional = sorted(folder.glob("*.jinja")) if folder else []
        if not additional:
            return read_text(jinja)
        return (
            ("default", read_text(jinja)),
            *((path.stem, read_text(own_file(checkpoint.path, path))) for path in additional),
        )
    if value is None and json:
        where, value = json, read_json_object(json).get("chat_template")
    return _checked_template(where, value)


def read_text(path: Path, limit: int = MAX_TEMPLATE) -> str:
    """Reads a UTF-8 file of at most `limit` bytes, with line ends as `\\n`."""
    file, size = open_regular(path)
    with file:
        if size > limit:
            raise InvalidInput(f"{path}: {size} bytes; {limit} is the most such a file may have")
        data = file.read(limit)
    try:
        return data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path}: byte {error.start} is not UTF-8") from None


def _checked_template(where: Path, value: Any) -> ChatTemplate:
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise InvalidInput(f"{where}: chat_template must be text or a list of named templates")
    templates = []
    for item in value:
        name, template = (item.get("name"), item.get("template")) if isinstance(item, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(template, str):
            raise InvalidInput(f"{where}: chat_template holds {quote(str(item))}; each must have a name and a template")
        templates.append((name, template))
    return tuple(templates)


def chat_template_kv(template: ChatTemplate) -> tuple[KV, ...]:
    """Returns the keys of named templates, then their names, then the default template; skips empty templates."""
    kind = GGUFValueType.STRING
    named = (("default", template),) if isinstance(template, str) else template or ()
    texts = {"".join(c if c in NAME_CHARACTERS else "_" for c in name): text for name, text in named}
    others = {name: text for name, text in texts.items() if name and name != "default"}
    keys = [KV(f"tokenizer.chat_template.{name}", kind, text) for name, text in others.items() if text]
    if others:
        keys.append(KV("tokenizer.chat_templates", GGUFValueType.ARRAY, tuple(others), kind))
    if texts.get("default"):
        keys.append(KV("tokenizer.chat_template", kind, texts["default"]))
    return tuple(keys)
