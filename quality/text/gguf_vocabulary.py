"""The vocabulary in a GGUF's metadata as the text checks use it: token texts, special token ids, the chat template."""

from collections.abc import Iterable, Sequence
from itertools import compress
from typing import Any

from ...checkpoint.gguf import GGUFFile
from ..report import spelled

TURN_ENDS = ("<end_of_turn>", "<|im_end|>", "<|eot_id|>", "<turn|>")
TURN_STARTS = ("<start_of_turn>", "<|im_start|>", "<|start_header_id|>", "<|turn>")
KINDS = ("bos", "eos")
TEXT_TYPES = (1, 4)
"""Types of tokens that are text: normal ones and user-defined ones."""

COMPARED_KEYS = ("model", "tokens", "token_type", "scores", "merges")


class GGUFVocabulary:
    """Token texts and ids by the header of a GGUF; nothing is tokenized here."""

    def __init__(self, header: GGUFFile) -> None:
        self.header = header
        self.tokens: Sequence[str] = header.value("tokenizer.ggml.tokens", ())

    def token_id(self, kind: str) -> int:
        """The id of "bos" or "eos"; -1 where there is none."""
        id = self.header.value(f"tokenizer.ggml.{kind}_token_id", -1)
        return id if isinstance(id, int) else -1

    def text(self, id: int) -> str:
        return self.tokens[id] if 0 <= id < len(self.tokens) else ""

    def label(self, id: int) -> str:
        """A token for a finding: its id and its text."""
        return f"{id} {spelled(self.text(id), 40)}"

    def labels(self, ids: Sequence[int]) -> str:
        """The first few of `ids` for a finding."""
        shown = ", ".join(f"{id} {spelled(self.text(id), 20)}" for id in ids[:3]) or "the end"
        return shown + (" …" if len(ids) > 3 else "")

    def special_ids(self, ends: Iterable[int]) -> list[int]:
        """Ids of tokens with a role: BOS and EOS, `ends`, which end an answer, and tokens named like ends of turns."""
        names = {*TURN_ENDS, *TURN_STARTS}
        named = compress(range(len(self.tokens)), map(names.__contains__, self.tokens))
        ids = [*(self.token_id(kind) for kind in KINDS), *ends, *named]
        return sorted({id for id in ids if 0 <= id < len(self.tokens)})

    def bracketed_ids(self) -> list[int]:
        """Ids of text tokens with a "<" in their names: llama.cpp may take them for control tokens."""
        types: Sequence[int] = self.header.value("tokenizer.ggml.token_type", ())
        rows = enumerate(zip(self.tokens, types, strict=False))
        return [id for id, (text, type) in rows if type in TEXT_TYPES and "<" in text]

    def tables(self) -> dict[str, Any]:
        """What `vocabulary_parity` compares, as JSON has it."""
        return {key: self.header.value(f"tokenizer.ggml.{key}", ()) for key in COMPARED_KEYS}
