"""The conversations of `conversations`, as a chat template renders them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import InvalidInput
from ...runtime.prompting.chat_template import ChatTemplate
from .sample_conversations import CONVERSATIONS


@dataclass(frozen=True, slots=True)
class Rendering:
    """One conversation as a template renders it: its text, or why the template refused it."""

    text: str | None
    refusal: str = ""


def render(template: ChatTemplate | None) -> dict[str, Rendering]:
    """Every conversation, by name."""
    return {name: _render(template, messages) for name, messages in CONVERSATIONS.items()}


def _render(template: ChatTemplate | None, messages: Sequence[Mapping[str, Any]]) -> Rendering:
    if template is None:
        return Rendering(None, "no template")
    try:
        return Rendering(template.render(messages))
    except InvalidInput as error:
        return Rendering(None, str(error))


def rendered(renderings: Mapping[str, Rendering]) -> dict[str, str]:
    """The texts of those that were not refused, by name."""
    return {name: rendering.text for name, rendering in renderings.items() if rendering.text is not None}
