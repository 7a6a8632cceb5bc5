"""From a conversation to token ids: one BOS, and no control token that a message brought along."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

from ...errors import InvalidInput
from .chat_template import ROLES, Message, Segment
from .template_renderer import TemplateRenderer

IMAGE_BEGIN, IMAGE_END = "<start_of_image>", "<end_of_image>"
AROUND_IMAGE = f"\n\n{IMAGE_BEGIN}{IMAGE_END}\n\n"
"""What Gemma 3's processor puts in place of the template's `<start_of_image>`; the image comes between the two."""

CACHED_SEGMENTS = 256
"""Texts of a template whose control tokens are remembered; a template has about five."""


class PromptTokenizer(Protocol):
    """The tokenizer of a model, as far as prompts need it."""

    @property
    def bos(self) -> int | None:
        """The id every prompt begins with; None for a model that takes none."""
        ...

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Ids of `text` and nothing else. Names of control tokens become these tokens only if `special`."""
        ...

    def is_control(self, id: int) -> bool: ...


@dataclass(frozen=True, slots=True)
class EncodedChat:
    """A conversation as token ids. `n_tokens` also counts the tokens of its images, which `ids` does not hold yet."""

    messages: Sequence[Message]
    ids: list[int]
    n_tokens: int


class ChatEncoder:
    """Turns conversations into token ids, with one tokenizer and one chat template."""

    def __init__(self, tokenizer: PromptTokenizer, renderer: TemplateRenderer) -> None:
        self.tokenizer, self.renderer = tokenizer, renderer
        self._control_ids = lru_cache(CACHED_SEGMENTS)(self._find_control_ids)

    def encode(self, messages: Sequence[Message], image_tokens: int = 0) -> EncodedChat:
        """The rendered conversation, in which each image takes `image_tokens`; `<end_of_turn>` in a message stays text.

        A prompt is tokenized whole, as other programs do, if that gives exactly the control tokens of the template. If
        a message would add some, texts of template and messages are tokenized apart. Raises InvalidInput when that is
        impossible because the template rewrites messages, when a role is unknown, and what `render_segments` raises.
        """
        check_messages(messages)
        text, segments = self.renderer.render_segments(messages)
        if count := len(image_parts(messages)):
            text, segments = _with_images(text, segments, count)
        ids = with_bos(self.tokenizer, self._tokenize(text, segments))
        return EncodedChat(messages, ids, len(ids) + count * image_tokens)

    def _tokenize(self, text: str, segments: Sequence[Segment]) -> list[int]:
        whole = self.tokenizer.tokenize(text, special=True)
        intended = [id for segment in segments if segment.trusted for id in self._control_ids(segment.text)]
        if list(filter(self.tokenizer.is_control, whole)) == intended:
            return whole
        if "".join(segment.text for segment in segments) != text:
            raise InvalidInput(
                "a message holds the text of a control token, and this model's chat template rewrites messages, so it "
                "cannot be kept as text; take that text out"
            )
        return [id for segment in segments for id in self.tokenizer.tokenize(segment.text, segment.trusted)]

    def _find_control_ids(self, text: str) -> list[int]:
        return list(filter(self.tokenizer.is_control, self.tokenizer.tokenize(text, special=True)))


def image_parts(messages: Sequence[Message]) -> list[Message]:
    """The images of all messages, in order."""
    contents = [message["content"] for message in messages if not isinstance(message["content"], str)]
    return [part for content in contents for part in content if not isinstance(part, str) and _is_image(part)]


def _is_image(part: Message) -> bool:
    return part.get("type") == "image"


def _with_images(text: str, segments: Sequence[Segment], count: int) -> tuple[str, list[Segment]]:
    """Open every place where the template has an image. Raises InvalidInput when it has another number of places."""
    places = sum(segment.text.count(IMAGE_BEGIN) for segment in segments if segment.trusted)
    if places != count:
        raise InvalidInput(f"this model's chat template has {places} places for {count} images; is it one that sees?")
    opened = [replace(s, text=s.text.replace(IMAGE_BEGIN, AROUND_IMAGE)) if s.trusted else s for s in segments]
    if "".join(segment.text for segment in segments) == text:
        return "".join(segment.text for segment in opened), opened
    if text.count(IMAGE_BEGIN) == count:  # no message brought one along
        return text.replace(IMAGE_BEGIN, AROUND_IMAGE), opened
    raise InvalidInput(f"a message holds the text {IMAGE_BEGIN}, and so does the place of an image; take that text out")


def image_places(tokenizer: PromptTokenizer, ids: Sequence[int], count: int) -> list[int]:
    """Where in `ids` the `count` images belong: before an end that follows its beginning at once."""
    begin, end = (tokenizer.tokenize(name, special=True) for name in (IMAGE_BEGIN, IMAGE_END))
    if len(begin) != 1 or len(end) != 1:
        raise InvalidInput(f"this model's vocabulary has no {IMAGE_BEGIN} or {IMAGE_END}: it cannot see")
    places = [i + 1 for i in range(len(ids) - 1) if list(ids[i : i + 2]) == [*begin, *end]]
    if len(places) != count:
        raise InvalidInput(f"a message holds {IMAGE_BEGIN}{IMAGE_END}; take that text out")
    return places


def with_bos(tokenizer: PromptTokenizer, ids: list[int]) -> list[int]:
    """`ids` with exactly one BOS in front (none for a model without)."""
    bos = tokenizer.bos
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


def check_messages(messages: Sequence[Message]) -> None:
    """Raises InvalidInput for an unknown role, and for content that is neither text nor parts."""
    for number, message in enumerate(messages, 1):
        if message.get("role") not in ROLES:
            raise InvalidInput(f"message {number}: role {message.get('role')!r} is not one of {', '.join(ROLES)}")
        content = message.get("content")
        if not isinstance(content, (str, list, tuple)) or not all(isinstance(part, (str, dict)) for part in content):
            raise InvalidInput(f"message {number}: content is neither text nor a list of parts")
