"""Chat templates, the conversations they are rendered with, and what comes out; `template_renderer` renders them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # imports numpy, which the process that renders does without
    from ...checkpoint.gguf_header import GGUFFile

Message = Mapping[str, Any]
"""`role` (system, user or assistant) and `content`: text, or a list of parts, each {"type": "text", "text": …} or
{"type": "image", "path": …}, a PNG, JPEG or WebP file."""

ROLES = ("system", "user", "assistant")
TEMPLATE_KEY = "tokenizer.chat_template"


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A chat template, and the texts of the two tokens that it may name."""

    source: str
    bos_token: str = ""
    eos_token: str = ""


@dataclass(frozen=True, slots=True)
class Rendering:
    """One conversation as a template renders it: its text, or why the template refused it."""

    text: str | None
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a rendered prompt. `trusted` text is the template's: only there are names of control tokens tokens."""

    text: str
    trusted: bool


def chat_template_of(header: "GGUFFile") -> ChatTemplate | None:
    """The default chat template of a GGUF; None where there is none."""
    source = header.value(TEMPLATE_KEY)
    if not isinstance(source, str) or not source:
        return None
    return ChatTemplate(source, *(_token_text(header, f"tokenizer.ggml.{kind}_token_id") for kind in ("bos", "eos")))


def _token_text(header: "GGUFFile", key: str) -> str:
    id, tokens = header.value(key, -1), header.value("tokenizer.ggml.tokens", ())
    return tokens[id] if isinstance(id, int) and 0 <= id < len(tokens) else ""
