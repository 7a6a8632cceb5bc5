"""Renders the sample conversations with the chat templates that are compared."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

from ...errors import InvalidInput
from ...runtime.prompting.chat_template import ChatTemplate, Rendering
from ...runtime.prompting.template_renderer import TemplateRenderer
from .sample_conversations import CONVERSATIONS


@dataclass(frozen=True, slots=True)
class Renderings:
    """Every conversation by name. `problem`: why there are none, if the template takes too much time or memory."""

    by_name: Mapping[str, Rendering] = field(default_factory=dict)
    problem: str = ""

    @property
    def texts(self) -> dict[str, str]:
        """The texts of the conversations that were not refused, by name."""
        return {name: rendering.text for name, rendering in self.by_name.items() if rendering.text is not None}


def render_templates(
    gguf: tuple[ChatTemplate | None, str], reference: tuple[ChatTemplate | None, str]
) -> tuple[Renderings, Renderings]:
    """Render with two templates; equal ones are rendered once, and the second not at all if the first is a problem.

    A template comes with the name of the file or folder that it is from, for error messages.
    """
    with ExitStack() as stack:  # both processes start at once
        renderers = {t: t and stack.enter_context(TemplateRenderer(t)) for t in {gguf[0], reference[0]}}
        first = _render(renderers[gguf[0]], gguf[1])
        if first.problem or gguf[0] == reference[0]:
            return first, first
        return first, _render(renderers[reference[0]], reference[1])


def _render(renderer: TemplateRenderer | None, where: str) -> Renderings:
    if renderer is None:
        return Renderings({name: Rendering(None, "no template") for name in CONVERSATIONS})
    try:
        renderings = renderer.render_each(list(CONVERSATIONS.values()))
    except InvalidInput as error:
        return Renderings(problem=f"{where}: {error}")
    return Renderings(dict(zip(CONVERSATIONS, renderings, strict=True)))
