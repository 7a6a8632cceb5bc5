"""All that the text checks compare: the workers' answers about a GGUF and about its checkpoint's tokenizer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..report import Finding, first_difference, spelled
from .checkpoint_text import CheckpointText
from .gguf_vocabulary import GGUFVocabulary
from .known_differences import KnownDifferences
from .template_renderings import Renderings


@dataclass(frozen=True, slots=True)
class TextAnswers:
    """`gguf` and `reference` are the answers of `tokenize_gguf` and `tokenize_reference` on `lines` and rendered chats.

    `gguf` is about `special_ids`, too. `reference` is empty where there is none, and `problem` then says why.
    `checkpoint` is None where the source is a GGUF; `source_kv` is the source's metadata.
    """

    vocabulary: GGUFVocabulary
    checkpoint: CheckpointText | None
    source_kv: Mapping[str, Any]
    lines: Sequence[str]
    special_ids: Sequence[int]
    gguf_chats: Renderings
    reference_chats: Renderings
    gguf: Mapping[str, Any]
    reference: Mapping[str, Any]
    problem: Sequence[Finding]
    known: KnownDifferences

    def chat_ids(self) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
        """The ids of rendered conversations by name: the GGUF's, and the reference's, if there is one."""
        n = len(self.lines)
        gguf = dict(zip(self.gguf_chats.texts, self.gguf["ids"][n:], strict=True))
        if not self.reference:
            return gguf, {}
        return gguf, dict(zip(self.reference_chats.texts, self.reference["ids"][n:], strict=True))

    def different_ids(self, text: str, expected: Sequence[int], ids: Sequence[int]) -> Finding:
        """The failed finding for a text with other ids than expected, from the first different one on."""
        at = first_difference(expected, ids)
        where = f"text {spelled(text, 40)}, token {at}"
        return Finding("failed", "ids", where, self.vocabulary.labels(expected[at:]), self.vocabulary.labels(ids[at:]))
