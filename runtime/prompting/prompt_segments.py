"""Renders a prompt in segments: which of its text is the template's, and which came with the messages."""

import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .chat_template import ChatTemplate, Message, Segment
from .template_sandbox import max_length, prints_unchanged, render, too_long


def segments(template: ChatTemplate, messages: Sequence[Message]) -> list[Segment]:
    """The same prompt as `render` gives, cut where text of the template and text of the messages meet.

    The template is rendered with unguessable markers in place of the messages' texts, padded with white space so that a
    template's trimming shows. Neighbouring texts of messages become one segment.
    """
    markers = _Markers()
    return markers.cut(render(template, markers.mark(messages)))


def render_segments(template: ChatTemplate, messages: Sequence[Message]) -> tuple[str, list[Segment]]:
    """What `render` and `segments` give, from one rendering where the template prints texts as they are."""
    markers = _Markers()
    marked = markers.mark(messages)
    if not prints_unchanged(template.source) or not all(text.strip() for text in markers.texts):
        return render(template, messages), markers.cut(render(template, marked))
    rendered = render(template, marked)
    found = markers.cut(rendered)
    if markers.quoted(rendered):
        return render(template, messages), found
    text = "".join(segment.text for segment in found)
    if len(text) > (limit := max_length(messages)):
        raise too_long(limit)
    return text, found


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
