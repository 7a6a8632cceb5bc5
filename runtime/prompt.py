"""From a conversation to token ids: one BOS, and no control token that a message brought along."""

from collections.abc import Sequence
from typing import Protocol

from ..errors import InvalidInput
from .template import ROLES, ChatTemplate, Message


class Vocabulary(Protocol):
    """What tokenizing needs to know of a model."""

    @property
    def bos(self) -> int | None:
        """The id every prompt begins with; None for a model that takes none."""
        ...

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Ids of `text` and nothing else. Names of control tokens become these tokens only if `special`."""
        ...

    def is_control(self, id: int) -> bool: ...


def encode_chat(vocabulary: Vocabulary, template: ChatTemplate, messages: Sequence[Message]) -> list[int]:
    """The ids of the rendered conversation, where `<end_of_turn>` in a message stays text.

    A prompt is tokenized whole, as other programs do, if that gives exactly the control tokens of the template. If a
    message would add some, texts of template and messages are tokenized apart. Raises InvalidInput when that is
    impossible because the template rewrites messages, and when a role is unknown.
    """
    _check(messages)
    text = template.render(messages)
    pieces = template.pieces(messages)
    whole = vocabulary.tokenize(text, special=True)
    meant = [id for p in pieces if p.trusted for id in vocabulary.tokenize(p.text, True) if vocabulary.is_control(id)]
    if [id for id in whole if vocabulary.is_control(id)] == meant:
        return with_bos(vocabulary, whole)
    if "".join(piece.text for piece in pieces) != text:
        raise InvalidInput(
            "a message holds the text of a control token, and this model's chat template rewrites messages, so it "
            "cannot be kept as text; take that text out"
        )
    return with_bos(vocabulary, [id for p in pieces for id in vocabulary.tokenize(p.text, p.trusted)])


def with_bos(vocabulary: Vocabulary, ids: list[int]) -> list[int]:
    """`ids` with exactly one BOS in front (none for a model without)."""
    bos = vocabulary.bos
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


def _check(messages: Sequence[Message]) -> None:
    for number, message in enumerate(messages, 1):
        if message.get("role") not in ROLES:
            raise InvalidInput(f"message {number}: role {message.get('role')!r} is not one of {', '.join(ROLES)}")
        content = message.get("content")
        if not isinstance(content, (str, list, tuple)) or not all(isinstance(part, (str, dict)) for part in content):
            raise InvalidInput(f"message {number}: content is neither text nor a list of parts")
