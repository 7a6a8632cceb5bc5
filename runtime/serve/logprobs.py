"""Log-probabilities of tokens, in the formats of OpenAI's chat and completion APIs."""

from collections.abc import Iterable
from typing import Any

from ..events import Candidate, Chosen

LOWEST = -9999.0
"""Stands for minus infinity, which JSON does not have."""


def token_text(data: bytes) -> str:
    """The text of a token; bytes that are no whole character are written as \\xNN."""
    return data.decode("utf-8", "backslashreplace")


def chat_logprobs(tokens: Iterable[Chosen]) -> dict[str, Any]:
    """`logprobs` of a chat's choice."""
    content = [{**_entry(token), "top_logprobs": [_entry(other) for other in token.top]} for token in tokens]
    return {"content": content, "refusal": None}


def _entry(token: Candidate) -> dict[str, Any]:
    return {"token": token_text(token.data), "logprob": _number(token), "bytes": list(token.data)}


def completion_logprobs(tokens: Iterable[Chosen], offset: int, alternatives: bool) -> dict[str, Any]:
    """`logprobs` of a completion's choice, whose first token stands `offset` characters into the text."""
    tokens = list(tokens)
    offsets, data = [], b""
    for token in tokens:
        offsets.append(offset + len(data.decode("utf-8", "ignore")))
        data += token.data
    return {
        "tokens": [token_text(token.data) for token in tokens],
        "token_logprobs": [_number(token) for token in tokens],
        "top_logprobs": [_table(token) for token in tokens] if alternatives else None,
        "text_offset": offsets,
    }


def _table(token: Chosen) -> dict[str, float]:
    """The likeliest tokens and the chosen one. Of two with the same text the likelier stays."""
    table: dict[str, float] = {}
    for other in (*token.top, token):
        table.setdefault(token_text(other.data), _number(other))
    return table


def _number(token: Candidate) -> float:
    return max(token.logprob, LOWEST)
