"""A conversation that keeps its own history. The slots find its KV cache again by the common prefix."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidInput
from .answer import Answer
from .events import Options, Overflow

if TYPE_CHECKING:
    from .model import Model


class Conversation:
    """`messages` is the history, which may be read and changed between answers; one answer at a time.

    `notice` is a sentence to show the user, where one was loaded without its KV cache.
    """

    def __init__(
        self,
        model: "Model",
        messages: Sequence[Mapping[str, Any]] = (),
        *,
        overflow: Overflow = "error",
        options: Options | None = None,
    ) -> None:
        self.model = model
        self.messages: list[dict[str, Any]] = [dict(message) for message in messages]
        self.overflow: Overflow = overflow
        self.options = options or Options()
        self.notice = ""

    def send(
        self,
        content: str | Sequence[Mapping[str, Any]],
        *,
        images: Sequence[str | Path | bytes] = (),
        options: Options | None = None,
    ) -> Answer:
        """Send a user message; the answer streams. Both join the history when the answer ends, a cancelled one as far
        as it came, but not where it was cancelled before its first word.

        `images` are PNG, JPEG or WebP files, or their bytes. Raises what `Model.chat` raises; then the history is as
        before.
        """
        message = {"role": "user", "content": _content(content, images)}
        return self._chat([*self.messages, message], options)

    async def asend(
        self,
        content: str | Sequence[Mapping[str, Any]],
        *,
        images: Sequence[str | Path | bytes] = (),
        options: Options | None = None,
    ) -> Answer:
        """`send` without blocking the event loop, even where the model's process must be restarted."""
        return await asyncio.to_thread(self.send, content, images=images, options=options)

    def reply(self, results: Mapping[str, str], *, options: Options | None = None) -> Answer:
        """Send the results of tool calls, by the ids of the calls; the model goes on."""
        calls = self.messages[-1].get("tool_calls", ()) if self.messages else ()
        known = {call["id"]: call["name"] for call in calls}
        if not known or set(results) != set(known):
            raise InvalidInput(f"results for {sorted(results)}, but the model asked for {sorted(known)}")
        answers = [
            {"role": "tool", "tool_call_id": id, "name": known[id], "content": text} for id, text in results.items()
        ]
        return self._chat([*self.messages, *answers], options)

    async def areply(self, results: Mapping[str, str], *, options: Options | None = None) -> Answer:
        """`reply` without blocking the event loop."""
        return await asyncio.to_thread(self.reply, results, options=options)

    def regenerate(self, *, options: Options | None = None) -> Answer:
        """Another answer to the last message of the user; the old one leaves the history."""
        messages = list(self.messages)
        while messages and messages[-1]["role"] == "assistant":
            messages.pop()
        if not messages or messages[-1]["role"] == "system":
            raise InvalidInput("nothing to answer again: nobody has said anything yet")
        return self._chat(messages, options)

    async def aregenerate(self, *, options: Options | None = None) -> Answer:
        """`regenerate` without blocking the event loop."""
        return await asyncio.to_thread(self.regenerate, options=options)

    def save(self, path: str | Path) -> None:
        """Write the history and its KV cache, which `Model.load_conversation` restores on this machine.

        Raises InvalidInput where `path` is any other file than a saved conversation.
        """
        state = {"messages": self.messages, "overflow": self.overflow}
        self.model.backend.save(str(Path(path).absolute()), state)

    async def asave(self, path: str | Path) -> None:
        """`save` without blocking the event loop."""
        await asyncio.to_thread(self.save, path)

    def _chat(self, messages: list[dict[str, Any]], options: Options | None) -> Answer:
        def remember(answer: Answer) -> None:
            reply: dict[str, Any] = {"role": "assistant", "content": answer.shown}
            if answer.calls:
                reply["tool_calls"] = [{"id": c.id, "name": c.name, "arguments": c.arguments} for c in answer.calls]
            if answer.shown or answer.calls:
                self.messages = [*messages, reply]

        chosen = self.options if options is None else options
        return self.model.chat(messages, replace(chosen), overflow=self.overflow, on_end=remember)


def _content(content: str | Sequence[Mapping[str, Any]], images: Sequence[str | Path | bytes]) -> Any:
    if not images:
        return content if isinstance(content, str) else [dict(part) for part in content]
    image_parts: list[dict[str, Any]] = [
        {"type": "image", "data": image} if isinstance(image, bytes) else {"type": "image", "path": str(image)}
        for image in images
    ]
    text_parts = [{"type": "text", "text": content}] if isinstance(content, str) else [dict(part) for part in content]
    return [*image_parts, *text_parts]
