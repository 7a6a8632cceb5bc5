"""The check of a GGUF against its source: metadata, tensors, weights, text, the cross check, and logits if wanted."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from ..checkpoint.gguf import GGUFFile
from ..checkpoint.gguf_validation import check_model
from ..convert.metadata.chat_template import read_text
from ..errors import InvalidInput
from ..pipeline.execute import Progress
from ..pipeline.plan import Codec, GGUFModel, gguf_tensors
from ..pipeline.sources import OpenSlice, open_local
from ..usable_cores import usable_cores
from .cross_check.cross_check import cross_check
from .metadata_check import check_metadata
from .report import Finding, Report, Section
from .text.checkpoint_text import read_checkpoint_text
from .text.sample_texts import LINES, QUICK_LINES
from .text.text_checks import TextCheck
from .weights.tensor_checks import check_names, check_weights
from .weights.tensor_comparison import TensorPair

MAX_TEXT = 64 << 20
IMATRIX_KEY = "quantize.imatrix.file"


def check_file(
    header: GGUFFile,
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
    """Check the GGUF that `header` was read from against `source`, which the report calls `against`.

    texts: lines of the user's to tokenize beside the built-in ones. importance: what the tensors' encoder was given, by
    name. logits: compare those, too, which needs transformers. `on_progress` counts weights. Raises InvalidInput when
    logits cannot be compared; a GGUF with a fault gives a report that is not `ok`.
    """
    began = time.monotonic()
    if logits:
        _require_comparable_logits(header, source, against)
    with ExitStack() as stack:
        text = None
        if has_vocabulary(header):
            checkpoint = read_checkpoint_text(source.checkpoint) if source.checkpoint else None
            lines = [*(QUICK_LINES if quick else LINES), *texts]
            text = TextCheck(header, source.kv, checkpoint, lines, quick=quick)
            stack.callback(text.close)
        sections = [
            check_header(header),
            check_metadata(header.kv, source.kv),
            *check_tensors(
                header, source, codec, quick=quick, importance=importance, jobs=jobs, on_progress=on_progress
            ),
            cross_check(header, source, codec, quick=quick),
            *(text.sections() if text else ()),
        ]
        if logits and source.checkpoint:
            from .logits import check_logits

            sections.append(check_logits(header, source.checkpoint.path, jobs or usable_cores()))
    seconds = time.monotonic() - began
    return Report(header.path, against, quick, tuple(s for s in sections if s.findings), seconds)


def _require_comparable_logits(header: GGUFFile, source: GGUFModel, against: str) -> None:
    """Raises InvalidInput, in one line, when transformers has nothing to compute the same logits from."""
    from .logits import require_libraries

    if not source.checkpoint:
        raise InvalidInput(f"{against}: a GGUF; logits are compared with a checkpoint")
    if header.value("general.type") == "mmproj":
        raise InvalidInput(
            f"{header.path}: an mmproj has no logits; check it without --logits, and its model with them"
        )
    if any(tensor.source.updates or tensor.source.precision is not None for tensor in source.tensors):
        raise InvalidInput(
            f"{header.path}: {against} has other logits than with adapters merged into it; leave out --logits, or "
            "merge them with PEFT and check against that"
        )
    require_libraries()


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file, without empty ones. Raises InvalidInput."""
    return [line for line in read_text(path, MAX_TEXT).split("\n") if line]


def has_vocabulary(header: GGUFFile) -> bool:
    """An mmproj and an adapter have none."""
    return header.find("tokenizer.ggml.tokens") is not None


def check_header(header: GGUFFile) -> Section:
    """The section on form: metadata and tensors of a model agree with each other, whatever its source has."""
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
    """The sections on names and shapes, and on weights. Arguments are those of `check_file` and `compare_tensors`."""
    tensors = gguf_tensors(header.tensors)
    sources = {t.name: t for t in source.tensors}
    pairs = [
        TensorPair(t, sources[t.name], importance.get(t.name) if importance else None)
        for t in tensors
        if t.name in sources and t.shape == sources[t.name].shape
    ]
    unknown_importance = importance is None and header.find(IMATRIX_KEY) is not None
    return check_names(tensors, source.tensors), check_weights(
        pairs,
        source.tensors,
        codec,
        quick=quick,
        unknown_importance=unknown_importance,
        jobs=jobs,
        on_progress=on_progress,
        open_slice=open_slice,
    )
