"""From a conversation to token ids: one BOS, and no control token that a message brought along."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from ...errors import InvalidInput
from .chat_template import ROLES, ChatTemplate, Message, Piece

IMAGE_BEGIN, IMAGE_END = "<start_of_image>", "<end_of_image>"
AROUND_IMAGE = f"\n\n{IMAGE_BEGIN}{IMAGE_END}\n\n"
"""What Gemma 3's processor puts in place of the template's `<start_of_image>`; the image comes between the two."""


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
    check(messages)
    text, pieces = template.render(messages), template.pieces(messages)
    if count := sum(part.get("type") == "image" for part in parts(messages)):
        text, pieces = _with_images(text, pieces, count)
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


def parts(messages: Sequence[Message]) -> list[Message]:
    """The parts of all messages whose content is a list, in order."""
    contents = [message["content"] for message in messages if not isinstance(message["content"], str)]
    return [part for content in contents for part in content if not isinstance(part, str)]


def _with_images(text: str, pieces: Sequence[Piece], count: int) -> tuple[str, list[Piece]]:
    """Open every place where the template has an image. Raises InvalidInput when it has another number of places."""
    places = sum(piece.text.count(IMAGE_BEGIN) for piece in pieces if piece.trusted)
    if places != count:
        raise InvalidInput(f"this model's chat template has {places} places for {count} images; is it one that sees?")
    opened = [replace(p, text=p.text.replace(IMAGE_BEGIN, AROUND_IMAGE)) if p.trusted else p for p in pieces]
    if "".join(piece.text for piece in pieces) == text:
        return "".join(piece.text for piece in opened), opened
    if text.count(IMAGE_BEGIN) == count:  # no message brought one along
        return text.replace(IMAGE_BEGIN, AROUND_IMAGE), opened
    raise InvalidInput(f"a message holds the text {IMAGE_BEGIN}, and so does the place of an image; take that text out")


def image_places(vocabulary: Vocabulary, ids: Sequence[int], count: int) -> list[int]:
    """Where in `ids` the `count` images belong: before an end that follows its beginning at once."""
    begin, end = (vocabulary.tokenize(mark, special=True) for mark in (IMAGE_BEGIN, IMAGE_END))
    if len(begin) != 1 or len(end) != 1:
        raise InvalidInput(f"this model's vocabulary has no {IMAGE_BEGIN} or {IMAGE_END}: it cannot see")
    places = [i + 1 for i in range(len(ids) - 1) if list(ids[i : i + 2]) == [*begin, *end]]
    if len(places) != count:
        raise InvalidInput(f"a message holds {IMAGE_BEGIN}{IMAGE_END}; take that text out")
    return places


def with_bos(vocabulary: Vocabulary, ids: list[int]) -> list[int]:
    """`ids` with exactly one BOS in front (none for a model without)."""
    bos = vocabulary.bos
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


def check(messages: Sequence[Message]) -> None:
    """Raises InvalidInput for an unknown role, and for content that is neither text nor parts."""
    for number, message in enumerate(messages, 1):
        if message.get("role") not in ROLES:
            raise InvalidInput(f"message {number}: role {message.get('role')!r} is not one of {', '.join(ROLES)}")
        content = message.get("content")
        if not isinstance(content, (str, list, tuple)) or not all(isinstance(part, (str, dict)) for part in content):
            raise InvalidInput(f"message {number}: content is neither text nor a list of parts")
