"""A GGUF against what it was made from: the whole check, and the quick one that files pass to get their names."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path

import numpy as np

from ..checkpoint.gguf import GGUFFile, read_gguf
from ..checkpoint.gguf_validation import check_model
from ..checkpoint.types import Slice
from ..convert.metadata.chat_template import read_text
from ..errors import BorealisError, InvalidInput
from ..pipeline.execute import Progress
from ..pipeline.plan import Codec, FilePlan, GGUFModel, gguf_tensors
from ..pipeline.sources import OpenSlice, open_local
from ..usable_cores import usable_cores
from .cross_check.cross_check import second_opinion
from .metadata import check_metadata
from .report import Finding, Report, Section
from .text.checkpoint_text import read_checkpoint_text
from .text.sample_texts import LINES, QUICK_LINES
from .text.text_checks import TextCheck
from .weights.comparison import Pair
from .weights.sampled_rows import Tap
from .weights.tensor_checks import check_names, check_weights

MAX_TEXT = 64 << 20
WEIGHTED_BY = "quantize.imatrix.file"


def check_file(
    path: Path,
    source: GGUFModel,
    codec: Codec,
    *,
    against: str,
    texts: Sequence[str] = (),
    importance: Mapping[str, np.ndarray | None] | None = None,
    quick: bool = False,
    logits: bool = False,
    jobs: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Check the GGUF at `path` against `source`, which `against` is the name of.

    texts: lines of the user's to tokenize, beside the built-in ones. importance: what the tensors' encoder was given,
    by name. logits: compare those, too, which needs transformers. `on_progress` counts weights. Raises InvalidInput
    when `path` is no GGUF, or its logits cannot be compared; a GGUF with a fault fails.
    """
    began = time.monotonic()
    header = read_gguf(path)
    if logits:
        _can_compare_logits(path, header, source, against)
    with ExitStack() as stack:
        text = None
        if _has_vocabulary(header):
            checkpoint = read_checkpoint_text(source.origin) if source.origin else None
            lines = [*(QUICK_LINES if quick else LINES), *texts]
            text = TextCheck(path, header, source.kv, checkpoint, lines, quick=quick)
            stack.callback(text.close)
        sections = [
            _form(header),
            check_metadata(header.kv, source.kv),
            *check_tensors(
                header, source, codec, quick=quick, importance=importance, jobs=jobs, on_progress=on_progress
            ),
            second_opinion(header, source, codec, quick=quick),
            *(text.sections() if text else ()),
        ]
        if logits and source.origin:
            from .logits import check_logits

            sections.append(check_logits(str(path), source.origin, header, jobs or usable_cores()))
    return Report(path, against, quick, tuple(s for s in sections if s.findings), time.monotonic() - began)


def _can_compare_logits(path: Path, header: GGUFFile, source: GGUFModel, against: str) -> None:
    """Raises InvalidInput, in one line, when there is nothing that transformers could compute the same of."""
    from .logits import require

    if not source.origin:
        raise InvalidInput(f"{against}: a GGUF; logits are compared with a checkpoint")
    if header.value("general.type") == "mmproj":
        raise InvalidInput(f"{path}: an mmproj has no logits; check it without --logits, and its model with them")
    if any(tensor.source.updates or tensor.source.precision is not None for tensor in source.tensors):
        raise InvalidInput(
            f"{path}: {against} has other logits than with adapters merged into it; leave out --logits, or merge them "
            "with PEFT and check against that"
        )
    require()


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file, without those that are empty. Raises InvalidInput."""
    return [line for line in read_text(path, MAX_TEXT).split("\n") if line]


def _has_vocabulary(header: GGUFFile) -> bool:
    """A vision tower and an adapter have none."""
    return header.find("tokenizer.ggml.tokens") is not None


def _form(header: GGUFFile) -> Section:
    """Metadata and tensors of a model agree with each other, whatever the source says."""
    if header.value("general.type") == "adapter":
        return Section("form", ())
    try:
        check_model(header)
    except InvalidInput as error:
        return Section("form", (Finding("failed", "the header", found=str(error)),))
    return Section("form", ())


def check_tensors(
    header: GGUFFile,
    source: GGUFModel,
    codec: Codec,
    *,
    quick: bool,
    importance: Mapping[str, np.ndarray | None] | None = None,
    jobs: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    open_slice: OpenSlice = open_local,
) -> tuple[Section, Section]:
    """The sections on names and shapes, and on weights; the arguments are those of `check_file` and `compare`."""
    found = gguf_tensors(header.tensors)
    theirs = {t.name: t for t in source.tensors}
    pairs = [
        Pair(t, theirs[t.name], importance.get(t.name) if importance else None)
        for t in found
        if t.name in theirs and t.shape == theirs[t.name].shape
    ]
    weighted = importance is None and header.find(WEIGHTED_BY) is not None
    return check_names(found, source.tensors), check_weights(
        pairs,
        source.tensors,
        codec,
        quick=quick,
        weighted=weighted,
        jobs=jobs,
        on_progress=on_progress,
        open_slice=open_slice,
    )


@dataclass(frozen=True, slots=True)
class _File:
    """A file under quick check. `metadata`: the sections on its header; `text`: None where there is nothing to ask."""

    path: Path
    plan: FilePlan
    header: GGUFFile
    metadata: tuple[Section, ...]
    text: TextCheck | None


class QuickCheck:
    """A `Verifier`: what is written must pass the quick form of the check, or it gets no name.

    Headers are read back and texts tokenized while the weights are being written. Use it in a `with`, and let the
    executor open its sources with `open_slice`: the sampled rows of remote sources are kept as they come in.
    """

    def __init__(
        self,
        codec: Codec,
        on_report: Callable[[Report], None] | None = None,
        open_slice: OpenSlice = open_local,
    ) -> None:
        self.codec, self.on_report = codec, on_report
        self._tap = Tap(open_slice)
        self._files: list[_File] = []
        self._stack = ExitStack()
        self._pool = self._stack.enter_context(ThreadPoolExecutor(1, "quick-check"))
        self._begun: Future[None] | None = None

    def __enter__(self) -> "QuickCheck":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()  # before what it has begun is closed
        self._stack.close()

    def begin(self, files: Sequence[tuple[Path, FilePlan]]) -> None:
        """Begin, in a thread: what it finds is told by `finish`."""
        self._tap.want(t.tensor for _, plan in files for t in plan.tensors if t.tensor.source.slice.remote)
        self._begun = self._pool.submit(self._read, files)

    def open_slice(self, slice: Slice, stop: threading.Event) -> RawIOBase:
        return self._tap.open(slice, stop)

    def _read(self, files: Sequence[tuple[Path, FilePlan]]) -> None:
        """Read the headers back, and begin to tokenize: files with the same vocabulary share one check of it.

        There is none when the source is a GGUF: its vocabulary must come over as it is, key by key.
        """
        for path, plan in files:
            header = read_gguf(path)
            text = next((f.text for f in self._files if _same_vocabulary(f.header, header)), None)
            if text is None and plan.model.origin and _has_vocabulary(header):
                checkpoint = read_checkpoint_text(plan.model.origin)
                text = TextCheck(path, header, plan.model.kv, checkpoint, QUICK_LINES, quick=True)
                self._stack.callback(text.close)
            metadata = (_form(header), check_metadata(header.kv, plan.model.kv))
            self._files.append(_File(path, plan, header, metadata, text))

    def finish(self) -> None:
        """Compare. Raises BorealisError, in one line, when a file is not what it should be."""
        if self._begun:
            self._begun.result()
        checked: dict[int, tuple[Section, ...]] = {}
        for file in self._files:
            began = time.monotonic()
            if file.text and id(file.text) not in checked:
                checked[id(file.text)] = file.text.sections()
            report = self._report(file, checked.get(id(file.text), ()), began)
            if self.on_report:
                self.on_report(report)
            if not report.ok:
                raise BorealisError(f"{report.verdict}; nothing was kept (--no-check skips the check)")

    def _report(self, file: _File, text: tuple[Section, ...], began: float) -> Report:
        model = file.plan.model
        importance = {t.tensor.name: t.importance for t in file.plan.tensors}
        sections = (
            *file.metadata,
            *check_tensors(
                file.header,
                model,
                self.codec,
                quick=True,
                importance=importance,
                open_slice=self._tap.open_kept,
            ),
            second_opinion(file.header, model, self.codec, quick=True),
            *text,
        )
        against = str(model.origin or file.plan.tensors[0].tensor.source.slice.path)
        shown = tuple(section for section in sections if section.findings)
        return Report(file.plan.path, against, True, shown, time.monotonic() - began)


def _same_vocabulary(a: GGUFFile, b: GGUFFile) -> bool:
    """Whether two files have the same vocabulary and chat template."""
    return [kv for kv in a.kv if kv.key.startswith("tokenizer.")] == [
        kv for kv in b.kv if kv.key.startswith("tokenizer.")
    ]
