"""Tool calls for models whose template has none: an instruction, a grammar, and a parser of the answer.

The model answers with text, or with {"name": …, "arguments": …}: an answer that begins with a brace, perhaps after
blanks, is a call, which the grammar constrains to the schema of its function. A call in a code fence is parsed too,
though without the constraint. An answer is at most one call.
"""

import contextlib
import json
import re
import secrets
from collections.abc import Sequence
from typing import Any

from ...errors import InvalidInput
from ..events import Options, Text, Tool, ToolCall
from .chat_template import Message
from .json_schema import grammar_of

PREAMBLE = """You can call functions. To call one, answer with nothing but one JSON object,
{{"name": "the function", "arguments": {{…}}}}, without any other text around it. {when}
The functions, each with the JSON schema of its arguments:
{functions}"""
WHEN_AUTO = "Call one only if it helps; otherwise answer in plain text."
WHEN_REQUIRED = "Now you must call one."
CHOICES = ("auto", "none", "required")
AUTO = r"""
root ::= auto-blank* (auto-call | auto-text)?
auto-text ::= [^{ \t\n\r] auto-any*
auto-blank ::= [ \t\n\r]
auto-any ::= [^\x00]
"""
CALL = re.compile(r"[ \t\n\r]*(?:```(?:json)?[ \t\n\r]*)?(?=\{)")
MAY_BE_CALL = re.compile(r"[ \t\n\r]*(?:`{0,2}|```(?:j|js|jso|json)?[ \t\n\r]*)")
CLOSED = re.compile(r"(?:[ \t\n\r]*```)?[ \t\n\r]*\Z")


def offered_tools(options: Options) -> Sequence[Tool]:
    """The tools that the model may call. Raises InvalidInput for a `tool_choice` that is none of them."""
    if options.tool_choice in ("auto", "required"):
        return options.tools
    chosen = [tool for tool in options.tools if tool.name == options.tool_choice]
    if options.tool_choice != "none" and not chosen:
        raise InvalidInput(f"tool_choice: {options.tool_choice!r} is none of {', '.join(CHOICES)} and no tool's name")
    return chosen


def tool_grammar(options: Options) -> str | None:
    """GBNF for an answer that may or must be a call; None without tools. Raises InvalidInput for a bad schema."""
    tools = offered_tools(options)
    if not tools:
        return None
    calls = grammar_of({"anyOf": [_call_schema(tool) for tool in tools]})
    if options.tool_choice != "auto":
        return calls
    return re.sub("^root ::=", "auto-call ::=", calls, flags=re.MULTILINE).rstrip() + AUTO


def _call_schema(tool: Tool) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": tool.name}, "arguments": dict(tool.parameters)},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def add_tool_instructions(messages: Sequence[Message], options: Options) -> list[Message]:
    """The conversation in roles that every template has, with a system message that describes the tools."""
    plain = _merge_tool_results([_without_tool_role(message) for message in messages])
    tools = offered_tools(options)
    if not tools:
        return plain
    functions = "\n".join(
        json.dumps({"name": t.name, "description": t.description, "parameters": dict(t.parameters)}, ensure_ascii=False)
        for t in tools
    )
    when = WHEN_AUTO if options.tool_choice == "auto" else WHEN_REQUIRED
    text = PREAMBLE.format(when=when, functions=functions)
    if plain and plain[0].get("role") == "system" and isinstance(plain[0].get("content"), str):
        return [{"role": "system", "content": f"{plain[0]['content']}\n\n{text}"}, *plain[1:]]
    return [{"role": "system", "content": text}, *plain]


def _without_tool_role(message: Message) -> Message:
    """A tool's result as a message of the user, and a tool call as text of the assistant."""
    if message.get("role") == "tool":
        name = message.get("name") or "the function"
        return {"role": "user", "content": f"Result of {name}:\n{message.get('content') or ''}", "tool_call_id": True}
    if calls := message.get("tool_calls"):
        text = [message["content"]] if isinstance(message.get("content"), str) and message["content"] else []
        return {"role": "assistant", "content": "\n".join([*text, *map(_call_text, calls)])}
    return message


def _call_text(call: Any) -> str:
    arguments = call.get("arguments", "{}")
    with contextlib.suppress(ValueError):  # invalid JSON of the model stays as it was
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    return json.dumps({"name": call.get("name"), "arguments": arguments}, ensure_ascii=False)


def _merge_tool_results(messages: Sequence[Message]) -> list[Message]:
    """Joins results that follow each other to one message, since templates want roles to alternate."""
    merged: list[Message] = []
    for message in messages:
        if message.get("tool_call_id") is True and merged and merged[-1].get("tool_call_id") is True:
            merged[-1] = {**merged[-1], "content": f"{merged[-1]['content']}\n\n{message['content']}"}
        else:
            merged.append(message)
    return merged


class ToolCallParser:
    """Finds the tool call in a streamed answer. Text that may be the beginning of a call is held back."""

    def __init__(self, options: Options) -> None:
        self.names = {tool.name for tool in offered_tools(options)}
        self._held: list[Text] = []
        self._call: bool | None = None if self.names else False  # None: not decided yet

    def push(self, piece: Text) -> Text | None:
        """The text to show, with what was held back before; None while the text is, or may be, a call."""
        if self._call is False:
            return piece
        self._held.append(piece)
        if self._call is None:
            text = _joined(self._held).text
            self._call = True if CALL.match(text) else None if MAY_BE_CALL.fullmatch(text) else False
        return _joined(self._held) if self._call is False else None

    def end(self) -> list[Text | ToolCall]:
        """At the end of the answer: the tool call, or the text of an incomplete one."""
        if self._call is False or not self._held:
            return []
        held = _joined(self._held)
        return [self._parse(held.text) or held]

    def _parse(self, text: str) -> ToolCall | None:
        try:
            found = json.loads(CLOSED.sub("", CALL.sub("", text, count=1), count=1))
            name, arguments = found["name"], found["arguments"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        if not isinstance(name, str) or name not in self.names or not isinstance(arguments, dict):
            return None
        return ToolCall(f"call_{secrets.token_hex(12)}", name, json.dumps(arguments, ensure_ascii=False))


def _joined(pieces: Sequence[Text]) -> Text:
    return Text("".join(piece.text for piece in pieces), tuple(token for piece in pieces for token in piece.logprobs))
