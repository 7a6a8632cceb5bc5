"""Tool calls for models whose template knows none: an instruction, a grammar, and the way back to events.

The model answers with text, or with {"name": …, "arguments": …}: an answer that begins with a brace is a call, and the
grammar holds it to the schema of the function it names.
"""

import contextlib
import json
import secrets
from collections.abc import Sequence
from typing import Any

from ..errors import InvalidInput
from .events import Options, Text, Tool, ToolCall
from .schema import grammar_of
from .template import Message

PREAMBLE = """You can call functions. To call one, answer with nothing but one JSON object,
{{"name": "the function", "arguments": {{…}}}}, without any other text around it. {when}
The functions, each with the JSON schema of its arguments:
{functions}"""
WHEN_AUTO = "Call one only if it helps; otherwise answer in plain text."
WHEN_REQUIRED = "Now you must call one."
CHOICES = ("auto", "none", "required")


def offered(options: Options) -> Sequence[Tool]:
    """The tools the model may call. Raises InvalidInput for a choice that names none of them."""
    if options.tool_choice in ("auto", "required"):
        return options.tools
    chosen = [tool for tool in options.tools if tool.name == options.tool_choice]
    if options.tool_choice != "none" and not chosen:
        raise InvalidInput(f"tool_choice: {options.tool_choice!r} is none of {', '.join(CHOICES)} and no tool's name")
    return chosen


def tool_grammar(options: Options) -> str | None:
    """GBNF for an answer that may or must be a call; None without tools. Raises InvalidInput for a bad schema."""
    tools = offered(options)
    if not tools:
        return None
    if options.schema is not None:
        raise InvalidInput("tools and a schema for the answer cannot be asked for together")
    calls = grammar_of({"anyOf": [_call_schema(tool) for tool in tools]})
    if options.tool_choice != "auto":
        return calls
    renamed = "\n".join(
        line.replace("root ::=", "call ::=", 1) if line.startswith("root ::=") else line for line in calls.splitlines()
    )
    return renamed + "\nroot ::= call | text\ntext ::= [^{] anything*\nanything ::= [^\\x00]\n"


def _call_schema(tool: Tool) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": tool.name}, "arguments": dict(tool.parameters)},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def with_tools(messages: Sequence[Message], options: Options) -> list[Message]:
    """The conversation in roles that every template knows, with what the model must know of the tools."""
    plain = _merged([_plain(message) for message in messages])
    tools = offered(options)
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


def _plain(message: Message) -> Message:
    if message.get("role") == "tool":
        name = message.get("name") or "the function"
        return {"role": "user", "content": f"Result of {name}:\n{message.get('content') or ''}", "tool_call_id": True}
    if calls := message.get("tool_calls"):
        said = [message["content"]] if isinstance(message.get("content"), str) and message["content"] else []
        return {"role": "assistant", "content": "\n".join([*said, *map(_call_text, calls)])}
    return message


def _call_text(call: Any) -> str:
    arguments = call.get("arguments", "{}")
    with contextlib.suppress(ValueError):  # what the model once wrote is shown to it as it was
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    return json.dumps({"name": call.get("name"), "arguments": arguments}, ensure_ascii=False)


def _merged(messages: Sequence[Message]) -> list[Message]:
    """Results that follow each other become one message, since templates want roles to alternate."""
    merged: list[Message] = []
    for message in messages:
        if message.get("tool_call_id") is True and merged and merged[-1].get("tool_call_id") is True:
            merged[-1] = {**merged[-1], "content": f"{merged[-1]['content']}\n\n{message['content']}"}
        else:
            merged.append(message)
    return merged


class Calls:
    """Finds the call in the pieces of an answer: everything from a first brace on is kept until the end."""

    def __init__(self, options: Options) -> None:
        self.names = {tool.name for tool in offered(options)}
        self._held = ""
        self._call = False
        self._begun = False

    def push(self, piece: Text) -> Text | None:
        """The piece to show, or None while a call is being written."""
        if self.names and not self._begun and piece.text:
            self._begun, self._call = True, piece.text.startswith("{")
        if not self._call:
            return piece
        self._held += piece.text
        return None

    def end(self) -> list[Text | ToolCall]:
        """The call, or the text of one that was cut short."""
        if not self._call:
            return []
        try:
            found = json.loads(self._held)
            name, arguments = found["name"], found["arguments"]
        except (ValueError, TypeError, KeyError):
            return [Text(self._held)]
        if name not in self.names:
            return [Text(self._held)]
        return [ToolCall(f"call_{secrets.token_hex(12)}", name, json.dumps(arguments, ensure_ascii=False))]
