"""The environment in which chat templates are rendered, inside the process that `template_renderer` limits.

It is that of `transformers`: Jinja's immutable sandbox, trimmed blocks, loop controls, `generation`, `tojson`,
`raise_exception`, `strftime_now`. The sandbox keeps a template from reaching Python; it bounds neither time nor memory.
"""

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ...errors import InvalidInput
from .chat_template import ChatTemplate, Message
from .template_analysis import prints_texts_unchanged

MAX_TEXT = 16_000_000
MAX_OWN_TEXT = 20_000
"""Characters that a template may print besides its messages: a default system message has a few thousand. llama.cpp
takes seconds to tokenize 100 000 characters that its vocabulary lacks."""
MAX_GROWTH = 8
"""How many times as long as its messages a prompt may be: a template may print them escaped, and twice."""
MAX_REFUSAL = 500


def render(template: ChatTemplate, messages: Sequence[Message]) -> str:
    """The prompt as text, up to and including the opening of the model's turn.

    Raises InvalidInput when the template refuses the conversation, is broken, or makes too long a text.
    """
    names = {"bos_token": template.bos_token, "eos_token": template.eos_token}
    try:
        parts = _compile(template.source).generate(
            messages=messages, tools=None, documents=None, add_generation_prompt=True, **names
        )
        return "".join(_bounded(parts, max_length(messages)))
    except TemplateError as error:
        raise InvalidInput(f"the model's chat template refuses: {one_line(error)}") from error
    except (InvalidInput, MemoryError):
        raise
    except Exception as error:
        raise InvalidInput(f"the model's chat template fails: {one_line(error)}") from error


def max_length(messages: Sequence[Message]) -> int:
    """The most characters that the prompt of `messages` may have."""
    return min(MAX_TEXT, MAX_OWN_TEXT + MAX_GROWTH * len(repr(messages)))


def too_long(length: int) -> InvalidInput:
    """The error for a prompt of more than `length` characters."""
    return InvalidInput(f"the model's chat template refuses: it makes more than {length} characters")


def _bounded(parts: Iterator[str], limit: int) -> Iterator[str]:
    length = 0
    for part in parts:
        length += len(part)
        if length > limit:
            raise too_long(limit)
        yield part


def one_line(error: Exception) -> str:
    """What an error says, printable and not long."""
    line = " ".join(str(error).split()) or type(error).__name__
    return "".join(c if c.isprintable() else "\ufffd" for c in line[:MAX_REFUSAL])


@lru_cache(maxsize=8)
def prints_unchanged(source: str) -> bool:
    """Whether the template prints the texts of messages as they are; False also for a template that is broken."""
    try:
        return prints_texts_unchanged(_environment().parse(source))
    except MemoryError:
        raise
    except Exception:
        return False


@lru_cache(maxsize=8)
def _compile(source: str) -> Template:
    return _environment().from_string(source)


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    extensions = ("jinja2.ext.loopcontrols", _Generation)
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    for name in ("lipsum", "cycler"):  # no template for chats needs them, and attacks on the sandbox begin there
        del env.globals[name]
    env.filters["tojson"] = _tojson
    env.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    return env


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


class _Generation(Extension):
    """The block `{% generation %}`, with which trainers mark the model's own text; here it renders its content."""

    tags = {"generation"}  # noqa: RUF012 (as Extension declares it)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)
