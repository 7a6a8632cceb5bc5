"""The quick check that files must pass before they get their names: sampled rows, metadata, and a few texts."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path

from ..checkpoint.gguf import GGUFFile, read_gguf
from ..checkpoint.types import Slice
from ..errors import STOPPED, BorealisError, Cancelled
from ..pipeline.plan import Codec, FilePlan
from ..pipeline.sources import OpenSlice, open_local
from .check import check_header, check_tensors, has_vocabulary
from .metadata_check import check_metadata
from .report import Report, Section
from .text.checkpoint_text import read_checkpoint_text
from .text.sample_texts import QUICK_LINES
from .text.text_checks import TextCheck
from .weights.sampled_rows import SampledRows


@dataclass(frozen=True, slots=True)
class _CheckedFile:
    """A file under quick check. `header_sections` are on its header; `text` is None without a vocabulary to compare."""

    path: Path
    plan: FilePlan
    header: GGUFFile
    header_sections: tuple[Section, ...]
    text: TextCheck | None


class QuickCheck:
    """A `Verifier` for the executor: a file that does not pass gets no name.

    A thread reads headers back and has texts tokenized while the weights are being written. Use it in a `with`, and let
    the executor open its sources with `open_slice`: sampled rows of remote sources are kept as they are read. There is
    no cross check here, which `check_file` has.
    """

    def __init__(
        self,
        codec: Codec,
        on_report: Callable[[Report], None] | None = None,
        open_slice: OpenSlice = open_local,
    ) -> None:
        self.codec, self.on_report = codec, on_report
        self._sampled_rows = SampledRows(open_slice)
        self._files: list[_CheckedFile] = []
        self._stack = ExitStack()
        self._pool = self._stack.enter_context(ThreadPoolExecutor(1, "quick-check"))
        self._reading: Future[None] | None = None
        self._aborted = False

    def __enter__(self) -> "QuickCheck":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()  # before the text checks that its thread has started are closed
        self._stack.close()

    def begin(self, files: Sequence[tuple[Path, FilePlan]]) -> None:
        """Start reading headers and tokenizing, in a thread; `finish` raises its errors."""
        self._sampled_rows.keep(t.tensor for _, plan in files for t in plan.tensors if t.tensor.source.slice.remote)
        self._reading = self._pool.submit(self._read, files)

    def open_slice(self, slice: Slice, stop: threading.Event) -> RawIOBase:
        return self._sampled_rows.open(slice, stop)

    def _read(self, files: Sequence[tuple[Path, FilePlan]]) -> None:
        """Read the headers back and start the text checks; files with the same vocabulary share one.

        A file whose source is a GGUF has no text check: its vocabulary must equal the source's, key by key.
        """
        for path, plan in files:
            header = read_gguf(path)
            text = next((f.text for f in self._files if _same_vocabulary(f.header, header)), None)
            if text is None and plan.model.checkpoint and has_vocabulary(header):
                checkpoint = read_checkpoint_text(plan.model.checkpoint)
                text = TextCheck(header, plan.model.kv, checkpoint, QUICK_LINES, quick=True)
                self._stack.callback(text.close)
            header_sections = (check_header(header), check_metadata(header.kv, plan.model.kv))
            self._files.append(_CheckedFile(path, plan, header, header_sections, text))

    def finish(self) -> None:
        """Compare the weights and wait for the texts. Raises BorealisError, in one line, for a file that fails."""
        if self._reading:
            self._reading.result()
        text_sections: dict[int, tuple[Section, ...]] = {}
        for file in self._files:
            began = time.monotonic()
            if file.text and id(file.text) not in text_sections:
                text_sections[id(file.text)] = file.text.sections()
            if self._aborted:
                raise Cancelled(STOPPED)
            report = self._report(file, text_sections.get(id(file.text), ()), began)
            if self.on_report:
                self.on_report(report)
            if not report.ok:
                raise BorealisError(f"{report.verdict}; nothing was kept (--no-check skips the check)")

    def abort(self) -> None:
        """End the workers that `finish` waits for; it then raises Cancelled."""
        self._aborted = True
        for file in self._files:
            if file.text:
                file.text.close()

    def _report(self, file: _CheckedFile, text_sections: tuple[Section, ...], began: float) -> Report:
        model = file.plan.model
        importance = {t.tensor.name: t.importance for t in file.plan.tensors}
        tensor_sections = check_tensors(
            file.header,
            model,
            self.codec,
            quick=True,
            importance=importance,
            open_slice=self._sampled_rows.open_kept,
        )
        sections = (*file.header_sections, *tensor_sections, *text_sections)
        source = model.checkpoint.path if model.checkpoint else file.plan.tensors[0].tensor.source.slice.path
        shown = tuple(section for section in sections if section.findings)
        return Report(file.plan.path, str(source), True, shown, time.monotonic() - began)


def _same_vocabulary(a: GGUFFile, b: GGUFFile) -> bool:
    """Whether two files have the same vocabulary and chat template."""
    return [kv for kv in a.kv if kv.key.startswith("tokenizer.")] == [
        kv for kv in b.kv if kv.key.startswith("tokenizer.")
    ]
