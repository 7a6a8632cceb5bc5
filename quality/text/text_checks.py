"""The text checks of one GGUF: starts the workers that render and tokenize, and makes sections of their answers."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from ...checkpoint.gguf import GGUFFile
from ...checkpoint.types import KV
from ...errors import BorealisError
from ...runtime.prompting.chat_template import chat_template_of
from ..check_worker_client import PendingRequest
from ..report import Finding, Section
from .chat_template_check import check_chat_template
from .checkpoint_text import CheckpointText
from .gguf_vocabulary import GGUFVocabulary
from .known_differences import KnownDifferences, known_differences
from .special_token_check import check_special_tokens
from .template_renderings import Renderings, render_templates
from .token_id_check import check_token_ids
from .worker_answers import TextAnswers

COMPARED_WITHOUT = "compared are the vocabulary itself (under metadata), and whether texts come back from their ids"


class TextCheck:
    """Compares what a GGUF does with text with what its checkpoint does (None: the source is a GGUF).

    Making one waits for a worker to render the chat templates, and starts a worker for each tokenizer; `sections` waits
    for those, `close` ends them.
    """

    def __init__(
        self,
        header: GGUFFile,
        source_kv: Sequence[KV],
        checkpoint: CheckpointText | None,
        lines: Sequence[str],
        *,
        quick: bool = False,
    ) -> None:
        """quick: the vocabulary and the merges are not compared with the tokenizer's one by one."""
        self.header, self.checkpoint, self.lines = header, checkpoint, lines
        self.vocabulary = GGUFVocabulary(header)
        self.source_kv = {kv.key: kv.value for kv in source_kv}
        ends = checkpoint.ends.values() if checkpoint else ()
        self.special_ids = self.vocabulary.special_ids(id for ids in ends for id in ids)
        self.gguf_chats, self.reference_chats = self._render()
        self._stack = ExitStack()
        self._gguf = self._tokenize_gguf()
        self._reference = self._tokenize_reference(quick)

    def close(self) -> None:
        """End the workers that are still running."""
        self._stack.close()

    def sections(self) -> tuple[Section, ...]:
        """Token ids, special tokens and chat template."""
        try:
            gguf = self._gguf.result()
        except BorealisError as error:
            return (Section("token ids", (Finding("failed", "vocabulary", found=str(error)),)),)
        reference, problem = self._reference_answer()
        answers = TextAnswers(
            vocabulary=self.vocabulary,
            checkpoint=self.checkpoint,
            source_kv=self.source_kv,
            lines=self.lines,
            special_ids=self.special_ids,
            gguf_chats=self.gguf_chats,
            reference_chats=self.reference_chats,
            gguf=gguf,
            reference=reference,
            problem=problem,
            known=self._known_differences(gguf, reference),
        )
        return check_token_ids(answers), check_special_tokens(answers), check_chat_template(answers)

    def _render(self) -> tuple[Renderings, Renderings]:
        """The sample conversations by the GGUF's chat template, and by the checkpoint's."""
        gguf, reference = chat_template_of(self.header), self.checkpoint.template if self.checkpoint else None
        folder = self.checkpoint.folder if self.checkpoint else ""
        return render_templates((gguf, str(self.header.path)), (reference, str(folder)))

    def _request(self, task: str, activity: str, arguments: Mapping[str, Any]) -> PendingRequest:
        pending = PendingRequest(task, activity, arguments)
        self._stack.callback(pending.close)
        return pending

    def _tokenize_gguf(self) -> PendingRequest:
        path = str(self.header.path)
        request: dict[str, Any] = {"gguf": path, "texts": [*self.lines, *self.gguf_chats.texts.values()]}
        request |= {"special_ids": self.special_ids, "text_ids": self.vocabulary.bracketed_ids()}
        return self._request("tokenize_gguf", f"llama.cpp read the vocabulary of {path}", request)

    def _tokenize_reference(self, quick: bool) -> PendingRequest | None:
        if self.checkpoint is None or self.checkpoint.tokenizer is None:
            return None
        path = str(self.checkpoint.tokenizer)
        request: dict[str, Any] = {"tokenizer": path, "texts": [*self.lines, *self.reference_chats.texts.values()]}
        request |= {"special_tokens": {self.vocabulary.tokens[id]: id for id in self.special_ids}}
        request |= {"gguf_tables": None if quick else self.vocabulary.tables()}
        return self._request("tokenize_reference", f"tokenizers read {path}", request)

    def _reference_answer(self) -> tuple[dict[str, Any], list[Finding]]:
        """The answer about the checkpoint's tokenizer, or why there is none."""
        if self._reference:
            try:
                return self._reference.result(), []
            except BorealisError as error:
                return {}, [Finding("failed", f"not compared: {error}")]
        if self.checkpoint:
            text = f"not compared: the checkpoint has no tokenizer.json; {COMPARED_WITHOUT}"
            return {}, [Finding("note", text)]
        return {}, []

    def _known_differences(self, gguf: Mapping[str, Any], reference: Mapping[str, Any]) -> KnownDifferences:
        """Computed only where ids differ."""
        if not reference or not self.checkpoint or reference["ids"] == gguf["ids"]:
            return KnownDifferences()
        return known_differences(
            str(self.checkpoint.tokenizer),
            self.lines,
            self.reference_chats.texts,
            gguf=gguf,
            reference=reference,
            n_vocab=len(self.vocabulary.tokens),
        )
