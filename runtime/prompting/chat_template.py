"""Renders a model's own chat template: untrusted code, so in a sandbox, with limits of time and memory.

The environment is the one in which `transformers` renders chat templates (immutable sandbox, trimmed blocks, loop
controls, `generation`, `tojson`, `raise_exception`, `strftime_now`), with limits on steps, numbers and text.
"""

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ...errors import InvalidInput
from .template_analysis import prints_texts_unchanged

Message = Mapping[str, Any]
"""`role` (system, user or assistant) and `content`: text, or a list of parts, each {"type": "text", "text": …} or
{"type": "image", "path": …}, a PNG, JPEG or WebP file."""

ROLES = ("system", "user", "assistant")
MAX_STEPS = 1_000_000
MAX_NUMBER = 100_000
MAX_TEXT = 16_000_000
TOO_LONG = f"it makes more than {MAX_TEXT} characters"


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox keeps a template from reaching Python; this one also limits its time and memory."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def wrap_str_format(self, value: Any) -> Any:
        if super().wrap_str_format(value) is not None:
            raise SecurityError("it calls str.format, whose widths have no bound")
        return None

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _refuse_large(right)
        _refuse_long(_result_size(operator, left, right))
        return super().call_binop(context, operator, left, right)

    def call(self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        _refuse_large(*args, *kwargs.values())
        text = getattr(__obj, "__self__", None)
        if isinstance(text, str) and __obj.__name__ == "replace" and len(args) > 1:
            _refuse_long((len(text) + 1) * len(str(args[1])))
        return super().call(__context, __obj, *args, **kwargs)


def _result_size(operator: str, left: Any, right: Any) -> int:
    """An upper bound for the length of the result; 0 where no text or list is made."""
    sizes = [len(side) if isinstance(side, (str, list, tuple)) else 0 for side in (left, right)]
    if operator == "+":
        return sum(sizes)
    if operator == "*":
        return max(sizes[0] * right if sizes[0] else 0, sizes[1] * left if sizes[1] else 0)
    if operator == "%" and isinstance(left, str):
        return MAX_TEXT + 1 if re.search(r"%[^a-zA-Z]*(\d{5}|\*)", left) else 0
    return left.bit_length() * right if operator == "**" and isinstance(left, int) and isinstance(right, int) else 0


def _refuse_large(*values: Any) -> None:
    if any(isinstance(value, int) and abs(value) > MAX_NUMBER for value in values):
        raise SecurityError(f"it uses a number above {MAX_NUMBER}")


def _refuse_long(size: int) -> None:
    if size > MAX_TEXT:
        raise SecurityError(TOO_LONG)


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


@lru_cache(maxsize=1)
def _environment() -> _Sandbox:
    # optimized=False: constants are not computed while compiling, where the bounds do not hold.
    extensions = ("jinja2.ext.loopcontrols", _Generation)
    env = _Sandbox(trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=extensions)
    for name in ("lipsum", "cycler"):
        del env.globals[name]
    for name in ("center", "indent", "wordwrap", "format"):  # they grow text by a number
        del env.filters[name]
    env.filters["tojson"] = _tojson
    env.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    return env


@lru_cache(maxsize=8)
def _compile(source: str) -> Template:
    return _environment().from_string(source)


@lru_cache(maxsize=8)
def _prints_texts_unchanged(source: str) -> bool:
    try:
        return prints_texts_unchanged(_environment().parse(source))
    except (TemplateError, RecursionError):
        return False


def _counted_range() -> Any:
    """A `range` function for one rendering: all its ranges together have at most MAX_STEPS steps."""
    total = 0

    def limited(*args: int) -> range:
        nonlocal total
        steps = range(*args)
        total += len(steps)
        if total > MAX_STEPS:
            raise SecurityError(f"it counts further than {MAX_STEPS}")
        return steps

    return limited


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A chat template, and the texts of the two tokens that it may name."""

    source: str
    bos_token: str = ""
    eos_token: str = ""

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt as text, up to and including the opening of the model's turn.

        Raises InvalidInput when the template refuses the conversation, is broken, or oversteps its bounds.
        """
        names = {"bos_token": self.bos_token, "eos_token": self.eos_token, "range": _counted_range()}
        try:
            parts = _compile(self.source).generate(
                messages=messages, tools=None, documents=None, add_generation_prompt=True, **names
            )
            return "".join(_bounded(parts))
        except TemplateError as error:
            raise InvalidInput(f"the model's chat template refuses: {_one_line(error)}") from error
        except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise InvalidInput(f"the model's chat template fails: {_one_line(error)}") from error

    def segments(self, messages: Sequence[Message]) -> list["Segment"]:
        """The same prompt as `render` gives, cut where text of the template and text of the messages meet.

        The template is rendered with unguessable markers in place of the messages' texts, padded with white space so
        that a template's trimming shows. Neighbouring texts of messages become one segment.
        """
        markers = _Markers()
        return markers.cut(self.render(markers.mark(messages)))

    def render_segments(self, messages: Sequence[Message]) -> tuple[str, list["Segment"]]:
        """What `render` and `segments` give, from one rendering where the template prints texts as they are."""
        markers = _Markers()
        marked = markers.mark(messages)
        if not _prints_texts_unchanged(self.source) or not all(text.strip() for text in markers.texts):
            return self.render(messages), markers.cut(self.render(marked))
        rendered = self.render(marked)
        segments = markers.cut(rendered)
        if markers.quoted(rendered):
            return self.render(messages), segments
        text = "".join(segment.text for segment in segments)
        if len(text) > MAX_TEXT:
            raise InvalidInput(f"the model's chat template refuses: {TOO_LONG}")
        return text, segments


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a rendered prompt. `trusted` text is the template's: only there are names of control tokens tokens."""

    text: str
    trusted: bool


@dataclass(slots=True)
class _Markers:
    """Replaces the texts of messages by markers, and finds the markers again in the rendered prompt."""

    secret: str = field(default_factory=lambda: secrets.token_hex(16))
    texts: list[str] = field(default_factory=list)

    def mark(self, messages: Sequence[Message]) -> list[Message]:
        """`messages` with a marker in place of each of their texts."""
        return [{**message, "content": self._mark_content(message["content"])} for message in messages]

    def _mark_content(self, content: Any) -> Any:
        return self._marker(content) if isinstance(content, str) else [self._mark_part(part) for part in content]

    def _mark_part(self, part: Any) -> Any:
        if isinstance(part, str):
            return self._marker(part)
        return {**part, "text": self._marker(part["text"])} if isinstance(part.get("text"), str) else part

    def _marker(self, text: str) -> str:
        self.texts.append(text)
        return f"\x1c\x1d{self.secret}:{len(self.texts) - 1}:\x1d\x1c"

    def cut(self, rendered: str) -> list[Segment]:
        """`rendered` in segments, with the texts back in their places, trimmed where the markers were."""
        found = re.split(rf"(\x1c\x1d)?{self.secret}:(\d+):(\x1d\x1c)?", rendered)
        segments = [Segment(found[0], True)]
        for left, number, right, after in zip(*(iter(found[1:]),) * 4, strict=True):
            text = self.texts[int(number)]
            text = text if left else text.lstrip()
            segments += [Segment(text if right else text.rstrip(), False), Segment(after, True)]
        return list(_joined(segment for segment in segments if segment.text))

    def quoted(self, rendered: str) -> bool:
        """Whether a marker was printed as part of a list or a message, with escapes as in Python's source."""
        return f"\\x1d{self.secret}" in rendered


def _joined(segments: Iterator[Segment]) -> Iterator[Segment]:
    last: Segment | None = None
    for segment in segments:
        if last is not None and last.trusted == segment.trusted:
            last = Segment(last.text + segment.text, last.trusted)
            continue
        if last is not None:
            yield last
        last = segment
    if last is not None:
        yield last


def _bounded(parts: Iterator[str]) -> Iterator[str]:
    length = 0
    for part in parts:
        length += len(part)
        _refuse_long(length)
        yield part


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
