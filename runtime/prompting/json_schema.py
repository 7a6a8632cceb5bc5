"""JSON schemas from callers become grammars; bounded, since a few bytes of schema can mean gigabytes of grammar."""

import json
import re
from collections.abc import Mapping
from typing import Any

from ...errors import InvalidInput

MAX_SCHEMA = 64 * 1024
MAX_DEPTH = 32
MAX_COUNT = 1000
MAX_GRAMMAR = 512 * 1024
LITERAL_OR_CLASS = r'"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]'
COUNTS = ("minItems", "maxItems", "minLength", "maxLength")


def grammar_of(schema: Mapping[str, Any]) -> str:
    """GBNF of the texts that follow `schema`, as llama-cpp-python makes it. Raises InvalidInput if it cannot."""
    from ..llama.grammar import gbnf_of_json_schema

    text = _checked(schema)
    try:
        grammar = gbnf_of_json_schema(text)
    except RecursionError:
        raise InvalidInput("the schema refers to itself without an end; make it simpler") from None
    except Exception as error:  # whatever a stranger's schema makes the converter stumble over
        raise InvalidInput(
            f"the schema cannot be followed: {type(error).__name__}: {error}; make it simpler"
        ) from error
    if len(grammar) > MAX_GRAMMAR:
        raise InvalidInput(f"the schema needs a grammar of {len(grammar)} characters; make it simpler")
    return re.sub(LITERAL_OR_CLASS, _strict, grammar)


def _strict(found: re.Match[str]) -> str:
    """A negated class also leaves out what JSON allows in no string: quotes, backslashes and control characters."""
    part = found[0]
    return rf'[^"\\\x00-\x1F{part[2:]}' if part.startswith("[^") else part


def _checked(schema: Mapping[str, Any]) -> str:
    _look(schema, 0)
    text = json.dumps(schema or {"type": "object"}, default=dict, allow_nan=False)
    if len(text) > MAX_SCHEMA:
        raise InvalidInput(f"the schema is {len(text)} characters; {MAX_SCHEMA} are the most")
    return text


def _look(value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise InvalidInput(f"the schema is nested deeper than {MAX_DEPTH}; make it simpler")
    if isinstance(value, Mapping):
        for name in COUNTS:
            count = value.get(name)
            if isinstance(count, (int, float)) and not 0 <= count <= MAX_COUNT:
                raise InvalidInput(f"the schema: {name} {count} is not within 0 and {MAX_COUNT}")
        if isinstance(pattern := value.get("pattern"), str) and ('"' in pattern or "\\\\" in pattern):
            raise InvalidInput("the schema: a pattern with a quote or a backslash as text cannot be followed")
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    for part in inner:
        _look(part, depth + 1)
