"""What a checkpoint itself makes of texts: its tokenizer's ids, and the conversations as its template renders them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidInput
from ..runtime.template import ChatTemplate
from .asked import Asked, Child
from .conversations import CONVERSATIONS
from .own import Own


@dataclass(frozen=True, slots=True)
class Rendering:
    """One conversation as a template renders it: its text, or why it refused."""

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


class Theirs:
    """The checkpoint's side. It is asked when this is made, and answers when it is done; `close()` ends what is not."""

    def __init__(
        self,
        own: Own,
        lines: Sequence[str],
        *,
        quick: bool = False,
        child: Child | None = None,
    ) -> None:
        """Nothing is waited for here.

        quick: the tokenizer is opened as far as the texts need it (see `cut`), until `ask_whole`. child: one to ask
        that has been started for it.
        """
        self.own, self.lines, self.quick = own, lines, quick
        self.renderings = render(own.template)
        self._children: list[Asked] = []
        self._ids = self._ask_ids(child, less=quick) if own.tokenizer else None

    def ask_whole(self) -> None:
        """Ask again, the whole tokenizer."""
        self.quick = False
        self._ids = self._ask_ids() if self.own.tokenizer else None

    def answer(self) -> dict[str, Any]:
        """`ids` of the lines and of the renderings, `around` (see `worker`), or `missing`; empty without a tokenizer.

        Waits for it. Raises BorealisError when there is no answer, saying why.
        """
        return self._ids.answer() if self._ids else {}

    def bare(self) -> tuple[list[list[int]], dict[str, list[int]]]:
        """Ids of the lines, and of the renderings by name, without what no GGUF can do. Waits for them."""
        chats = rendered(self.renderings)
        request = {"tokenizer": str(self.own.tokenizer), "texts": list(self.lines), "chats": list(chats.values())}
        answer = self._ask(request, f"tokenizers read a part of {self.own.tokenizer}").answer()
        return answer["ids"], dict(zip(chats, answer["chats"], strict=True))

    def close(self) -> None:
        for child in self._children:
            child.close()

    def _ask_ids(self, child: Child | None = None, **how: bool) -> Asked:
        texts = [*self.lines, *rendered(self.renderings).values()]
        request = {"tokenizer": str(self.own.tokenizer), "texts": texts, **how}
        return self._ask(request, f"tokenizers read {self.own.tokenizer}", child)

    def _ask(self, request: dict[str, Any], what: str, child: Child | None = None) -> Asked:
        self._children.append(Asked(request, what, child))
        return self._children[-1]
