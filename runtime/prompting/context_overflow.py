"""Which turns to leave out of a conversation that has outgrown the context."""

from collections.abc import Callable, Sequence
from functools import cache

from ...errors import InvalidInput
from ..events import Overflow
from .chat_template import Message
from .prompt import EncodedChat

POLICIES = ("error", "roll", "truncate_middle")


def encode_fitting(
    messages: Sequence[Message],
    policy: Overflow,
    limit: int,
    reserved: int,
    encode: Callable[[Sequence[Message]], EncodedChat],
) -> EncodedChat:
    """`messages` encoded; with "roll" or "truncate_middle" what is left of them so that `reserved` tokens stay free.

    `roll` drops the oldest turns, `truncate_middle` keeps the first one too; system messages and the last turn always
    stay. A turn begins with a user's message. Raises InvalidInput when no choice of turns fits below `limit`.
    """
    if policy not in POLICIES:
        raise InvalidInput(f"overflow: {policy!r} is not one of {', '.join(POLICIES)}")
    whole = encode(messages)
    if whole.n_tokens < limit and (policy == "error" or whole.n_tokens <= limit - reserved):
        return whole
    head, turns = _turns(messages)
    first = turns[:1] if policy == "truncate_middle" and len(turns) > 1 else []
    rest = turns[len(first) :]
    if policy == "error" or not rest:
        raise too_long(whole.n_tokens, limit)

    @cache
    def without(dropped: int) -> EncodedChat:
        return encode([*head, *(message for turn in (*first, *rest[dropped:]) for message in turn)])

    low, high = 1, len(rest) - 1  # the fewest dropped turns that are enough
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if without(middle).n_tokens <= limit - reserved else (middle + 1, high)
    shortest = without(high) if high > 0 else whole
    if shortest.n_tokens >= limit:
        raise too_long(shortest.n_tokens, limit)
    return shortest


def _turns(messages: Sequence[Message]) -> tuple[list[Message], list[list[Message]]]:
    """The messages before the first turn, and the turns."""
    head: list[Message] = []
    turns: list[list[Message]] = []
    for message in messages:
        if message.get("role") == "user" and "tool_call_id" not in message:
            turns.append([message])
        else:
            (turns[-1] if turns else head).append(message)
    return head, turns


def too_long(length: int, limit: int) -> InvalidInput:
    """The error for a prompt that leaves no room."""
    return InvalidInput(f"the prompt is {length} tokens, the context {limit}; shorten it or ask for more context")
