"""Renders the sample conversations with a chat template, in a worker process: templates are untrusted code."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

from ...errors import BorealisError, InvalidInput
from ...runtime.prompting.chat_template import ChatTemplate
from ..check_worker_client import PendingRequest
from .sample_conversations import CONVERSATIONS


@dataclass(frozen=True, slots=True)
class Rendering:
    """One conversation as a template renders it: its text, or why the template refused it."""

    text: str | None
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Renderings:
    """Every conversation by name. `problem`: why there are none, if the worker gave no answer."""

    by_name: Mapping[str, Rendering] = field(default_factory=dict)
    problem: str = ""

    @property
    def texts(self) -> dict[str, str]:
        """The texts of the conversations that were not refused, by name."""
        return {name: rendering.text for name, rendering in self.by_name.items() if rendering.text is not None}


def render_templates(
    gguf: tuple[ChatTemplate | None, str], reference: tuple[ChatTemplate | None, str]
) -> tuple[Renderings, Renderings]:
    """Render with two templates, each in a worker of its own; equal templates are rendered once.

    A template comes with the name of the file or folder that it is from, for error messages.
    """
    with ExitStack() as stack:
        first = _start(stack, *gguf)
        second = first if gguf[0] == reference[0] else _start(stack, *reference)
        return _renderings(first), _renderings(second)


def _start(stack: ExitStack, template: ChatTemplate | None, where: str) -> PendingRequest | None:
    if template is None:
        return None
    pending = PendingRequest("render_conversations", f"the chat template of {where} was rendered", asdict(template))
    stack.callback(pending.close)
    return pending


def _renderings(pending: PendingRequest | None) -> Renderings:
    if pending is None:
        return Renderings({name: Rendering(None, "no template") for name in CONVERSATIONS})
    try:
        answer = pending.result()
    except BorealisError as error:
        return Renderings(problem=str(error))
    return Renderings({name: Rendering(*answer[name]) for name in CONVERSATIONS})


def render_conversations(template: ChatTemplate) -> dict[str, Rendering]:
    """Render every sample conversation, in the worker."""
    return {name: _render(template, messages) for name, messages in CONVERSATIONS.items()}


def _render(template: ChatTemplate, messages: Sequence[Mapping[str, Any]]) -> Rendering:
    try:
        return Rendering(template.render(messages))
    except InvalidInput as error:
        return Rendering(None, str(error))
