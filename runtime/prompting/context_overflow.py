"""Which turns to leave out of a conversation that has outgrown the context."""

from collections.abc import Callable, Sequence

from ...errors import InvalidInput
from ..events import Overflow
from .chat_template import Message

POLICIES = ("error", "roll", "truncate_middle")


def fitted(
    messages: Sequence[Message], policy: Overflow, limit: int, room: int, length: Callable[[Sequence[Message]], int]
) -> Sequence[Message]:
    """`messages`, or with "roll" or "truncate_middle" what is left of them so that `length` is at most limit - room.

    `roll` drops the oldest turns, `truncate_middle` keeps the first one too; system messages and the last turn always
    stay. A turn begins with a user's message. Raises InvalidInput when no choice of turns fits below `limit`.
    """
    if policy not in POLICIES:
        raise InvalidInput(f"overflow: {policy!r} is not one of {', '.join(POLICIES)}")
    head, turns = _turns(messages)
    first = turns[:1] if policy == "truncate_middle" and len(turns) > 1 else []
    rest = turns[len(first) :]

    def left(dropped: int) -> list[Message]:
        return [*head, *(message for turn in (*first, *rest[dropped:]) for message in turn)]

    whole = length(messages)
    if whole < limit and (policy == "error" or whole <= limit - room):
        return messages
    if policy == "error" or not rest:
        raise too_long(whole, limit)
    low, high = 1, len(rest) - 1  # the fewest dropped turns that are enough
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if length(left(middle)) <= limit - room else (middle + 1, high)
    shortest = left(max(0, high))
    if (least := length(shortest)) >= limit:
        raise too_long(least, limit)
    return shortest


def _turns(messages: Sequence[Message]) -> tuple[list[Message], list[list[Message]]]:
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
